"""Laws of neural moves and of the compiled single-site chain, free of any host."""

import warnings

import numpy as np
import pytest
import torch
from sampler_helpers import FieldModel

from clease_nn.conditions import ConditionRange, Conditions
from clease_nn.configurations import Configurations
from clease_nn.energies.cluster_expansion import ClusterExpansionEnergy
from clease_nn.energies.tables import ClusterTables
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.io import TrainedModel
from clease_nn.lattice import Lattice
from clease_nn.models import AnyOrderARM
from clease_nn.networks import LatticeConvolution
from clease_nn.sampler import (
    NeuralMoves,
    draw_chain,
    find_model,
    plan_schedule,
    resample_chain,
)
from clease_nn.single_chain import FlipGroups, SingleChain
from clease_nn.warnings import LowESSWarning

SPECIES = {2: ("Au", "Cu"), 3: ("Au", "Cu", "Pd")}


def toy(n_species, seed=0, sites=(2, 3), orders=(1, 2, 3, 4, 5, 6)):
    """Random expansion with terms of one to six sites on a small square lattice."""
    lattice = Lattice.square(*sites, species=SPECIES[n_species])
    rng = np.random.default_rng(seed)
    functions = rng.normal(size=(n_species - 1, n_species))
    terms = []
    for order in orders:
        for _ in range(5):
            chosen = rng.choice(lattice.n_sites, order, replace=False)
            entries = [(int(s), int(rng.integers(n_species - 1))) for s in chosen]
            terms.append((rng.normal(0, 0.05), entries))
    tables = ClusterTables.from_terms(lattice.n_sites, functions, terms)
    return lattice, SemiGrandCanonical(ClusterExpansionEnergy(tables)), functions


def index_of(occupations, n_species):
    """Number of a configuration in the order of enumeration."""
    return occupations.astype(np.int64) @ n_species ** np.arange(occupations.shape[-1])


def condition(n_species):
    return Conditions.from_kT([0.08], [[0.0, 0.03, -0.02][:n_species]])


def total_variation(counts, p):
    return 0.5 * np.abs(counts / counts.sum() - p).sum()


@pytest.mark.parametrize("n_species", [2, 3])
def test_chain_energy_follows_the_expansion(n_species):
    """After any number of moves the chain's E' is that of its configuration, to 1e-11 eV."""
    lattice, ensemble, functions = toy(n_species)
    at = condition(n_species)
    chain = SingleChain(ensemble.energy.tables, functions)
    groups = FlipGroups([(range(lattice.n_sites), range(n_species))], lattice.allowed)
    chain.set(at.kT.item(), at.mu[0].numpy(), groups)
    chain.seed(np.random.SeedSequence(3))
    start = np.zeros(lattice.n_sites, np.int8)

    def energy(x):
        c = Configurations(lattice, at, torch.as_tensor(x)[None])
        return -float(ensemble.score(c).log_target) * at.kT.item()

    chain.load(start, energy(start))
    for steps in (1, 2, 50, 5000):
        chain.run(steps)
        assert chain.energy == pytest.approx(energy(chain.occupations), abs=1e-11)
        assert chain.values == pytest.approx(functions[:, chain.occupations].mean(1), abs=1e-12)


@pytest.mark.parametrize("n_species", [2, 3])
def test_chain_samples_the_boltzmann_distribution(n_species):
    """Means of E', E'^2 and the observables agree with enumeration within pooled errors."""
    lattice, ensemble, functions = toy(n_species)
    at = condition(n_species)
    states = ensemble.enumerate(lattice)
    e = -states.log_target(at) * at.kT
    s = torch.as_tensor(functions)[:, states.occupations.long()].mean(-1)
    values = [e, e * e]
    for row in s:
        values += [row, row * row, row * e]
    exact = states.mean(at, torch.stack(values, 1))[0].numpy()
    groups = FlipGroups([(range(lattice.n_sites), range(n_species))], lattice.allowed)
    chain = SingleChain(ensemble.energy.tables, functions)
    chain.set(at.kT.item(), at.mu[0].numpy(), groups)
    means = []
    for seed in range(24):
        chain.seed(np.random.SeedSequence(seed))
        chain.load(np.zeros(lattice.n_sites, np.int8), float(e[0]))
        chain.run(500)
        chain.clear()
        chain.run(10_000)
        means.append(chain.sums / chain.steps)
    means = np.array(means)
    z = (means.mean(0) - exact) / (means.std(0, ddof=1) / np.sqrt(len(means)))
    assert np.abs(z).max() < 4.5


def test_masked_moves_are_rejected_not_redrawn():
    """With states forbidden by a mask the chain samples the Boltzmann weights of the others."""
    lattice, ensemble, _ = toy(3)
    at = condition(3)
    states = ensemble.enumerate(lattice)
    mask = np.ones_like(lattice.allowed)
    mask[0, 2] = mask[3, 1] = False
    groups = FlipGroups([(range(1, 6), range(3)), ([0], range(3))], mask)
    chain = SingleChain(ensemble.energy.tables)
    chain.set(at.kT.item(), at.mu[0].numpy(), groups)
    chain.seed(np.random.SeedSequence(1))
    inside = mask[np.arange(6), states.occupations.numpy()].all(1)
    p = np.where(inside, states.probabilities(at).numpy(), 0.0)
    p /= p.sum()
    chain.load(np.zeros(6, np.int8), 0.0)
    counts = np.zeros(len(p))
    for _ in range(30_000):
        chain.run(6)
        counts[index_of(chain.occupations, 3)] += 1
    assert counts[~inside].sum() == 0
    assert total_variation(counts, p) < 2.5 * np.sqrt(p).sum() * np.sqrt(2 / np.pi / 30_000) / 2


def test_no_possible_move_is_an_error():
    """A chain whose sites are all fixed says what to loosen."""
    with pytest.raises(ValueError, match="loosen the constraints"):
        FlipGroups([([], [0, 1])], np.ones((2, 2), bool))


def test_overlapping_groups_are_refused():
    """A site in two groups would break detailed balance: proposals would not be symmetric."""
    allowed = np.ones((3, 3), bool)
    with pytest.raises(ValueError, match="site 1 is given twice"):
        FlipGroups([([0, 1], [0, 1]), ([1, 2], [1, 2])], allowed)
    FlipGroups([([0, 1], [0, 1]), ([2], [1, 2])], allowed)


@pytest.mark.parametrize("block_size", [None, 2])
def test_neural_moves_sample_the_boltzmann_distribution(block_size):
    """Moves of an order-dependent, imperfect model alone leave the exact distribution."""
    lattice, ensemble, _ = toy(2, sites=(2, 2), orders=(1, 2, 3, 4))
    at = condition(2)
    p = ensemble.enumerate(lattice).probabilities(at).numpy()
    moves = NeuralMoves(
        FieldModel(), ensemble, lattice, at, torch.Generator().manual_seed(1), block_size=block_size
    )
    x = np.zeros(lattice.n_sites, np.int8)
    c = Configurations(lattice, at, torch.as_tensor(x)[None])
    log_target = float(ensemble.score(c).log_target)
    n = 1000
    counts, accepted = np.zeros(len(p)), 0
    for _ in range(n):
        moved, x, log_target = moves.step(x, log_target)
        counts[index_of(x, 2)] += 1
        accepted += moved
    assert accepted < n
    # the expected distance of n independent draws, with room for the rejected moves
    expected = np.sqrt(p * (1 - p)).sum() * np.sqrt(2 / np.pi / n) / 2
    assert total_variation(counts, p) < 2.5 * expected


def test_flow_between_any_two_states_balances():
    """Accepted neural moves from a to b are as many as from b to a (detailed balance)."""
    lattice, ensemble, _ = toy(2, sites=(3, 1), orders=(1, 2))
    at = condition(2)
    moves = NeuralMoves(FieldModel(), ensemble, lattice, at, torch.Generator().manual_seed(5))
    x, flow = np.zeros(lattice.n_sites, np.int8), np.zeros((8, 8))
    c = Configurations(lattice, at, torch.as_tensor(x)[None])
    log_target = float(ensemble.score(c).log_target)
    for _ in range(1500):
        before = x
        _, x, log_target = moves.step(x, log_target)
        flow[index_of(before, 2), index_of(x, 2)] += 1
    a, b = np.triu_indices(8, 1)
    total = flow[a, b] + flow[b, a]
    chi2 = ((flow[a, b] - flow[b, a]) ** 2 / np.maximum(total, 1))[total > 5]
    assert chi2.sum() < len(chi2) + 4 * np.sqrt(2 * len(chi2))


def test_proposals_outside_the_reachable_states_are_rejected():
    """Fixed sites keep their species and free ones never get a forbidden one."""
    lattice, ensemble, _ = toy(3)
    at = condition(3)
    reachable = np.ones_like(lattice.allowed)
    reachable[2] = [False, True, False]
    reachable[4] = [True, True, False]
    moves = NeuralMoves(
        FieldModel(), ensemble, lattice, at, torch.Generator().manual_seed(2), reachable=reachable
    )
    x = np.array([0, 0, 1, 0, 0, 0], np.int8)
    c = Configurations(lattice, at, torch.as_tensor(x)[None])
    log_target, seen = float(ensemble.score(c).log_target), set()
    for _ in range(200):
        _, x, log_target = moves.step(x, log_target)
        assert x[2] == 1 and x[4] != 2
        seen.add(index_of(x, 3))
    assert len(seen) > 10


def test_schedule_is_deterministic_and_sparse_far_from_transitions():
    """Two pilots agree, and a quickly forgetting chain gets few neural moves."""
    lattice, ensemble, functions = toy(2)
    at = condition(2)
    groups = FlipGroups([(range(lattice.n_sites), range(2))], lattice.allowed)
    plans = []
    for _ in range(2):
        chain = SingleChain(ensemble.energy.tables, functions)
        chain.set(at.kT.item(), at.mu[0].numpy(), groups)
        chain.load(np.zeros(lattice.n_sites, np.int8), 0.0)
        moves = NeuralMoves(FieldModel(), ensemble, lattice, at, torch.Generator().manual_seed(0))
        plans.append(plan_schedule(chain, moves, lattice.n_sites))
    assert plans[0].interval == plans[1].interval > 50
    assert plans[0].autocorrelation < 10
    assert "single-site moves forget in" in plans[0].reason and "insurance" in plans[0].reason


def test_schedule_makes_neural_moves_often_where_the_chain_is_stuck():
    """Between two deep minima single-site moves do not cross: neural moves get the time."""
    lattice = Lattice.square(4)
    bonds = lattice.relation_matrices(lattice.pair_shells(2))[1]
    i, j = np.nonzero(np.triu(bonds))
    terms = [(-0.03, [(int(a), 0), (int(b), 0)]) for a, b in zip(i, j, strict=True)]
    tables = ClusterTables.from_terms(16, [[-1.0, 1.0]], terms)
    ensemble = SemiGrandCanonical(ClusterExpansionEnergy(tables))
    groups = FlipGroups([(range(16), range(2))], lattice.allowed)
    plans = []
    for kT in (0.2, 0.03):
        at = Conditions.from_kT([kT], [[0.0, 0.0]])
        chain = SingleChain(tables, [[-1.0, 1.0]])
        chain.set(kT, [0.0, 0.0], groups)
        moves = NeuralMoves(
            FieldModel(1.0), ensemble, lattice, at, torch.Generator().manual_seed(0)
        )
        start = np.zeros(16, np.int8)
        chain.load(start, moves.energy(start))
        plans.append(plan_schedule(chain, moves, 16))
    assert np.isfinite(plans[0].autocorrelation) and plans[1].autocorrelation == np.inf
    assert plans[1].interval < plans[0].interval / 5


def test_resampled_chain_is_unweighted():
    """The chain made of weighted draws averages to the exact energy, and says what it is."""
    from clease_nn.sampling import sample

    lattice, ensemble, _ = toy(2)
    at = condition(2)
    states = ensemble.enumerate(lattice)
    rng = torch.Generator().manual_seed(4)
    means = []
    for _ in range(12):
        c = sample(FieldModel(), ensemble, lattice, at.repeat(500), rng)
        chain = resample_chain(c, rng, 450)
        means.append(float(chain.energy.mean()))
    assert chain.log_prob is None and (chain.chain == 0).all() and len(chain) == 450
    assert "Metropolis-Hastings" in chain.provenance["method"]
    exact = states.mean(at, states.energy).item()
    assert abs(np.mean(means) - exact) < 4 * np.std(means, ddof=1) / np.sqrt(12)


def test_short_chains_of_a_poor_model_are_unbiased():
    """The mean of many single unweighted draws is exact, however poor the model."""
    lattice, ensemble, _ = toy(2)
    at = Conditions.from_kT([0.05], [[0.0, 0.03]])
    states = ensemble.enumerate(lattice)
    rng = torch.Generator().manual_seed(4)
    energies = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LowESSWarning)
        for _ in range(300):
            c = draw_chain(FieldModel(0.0), ensemble, lattice, at, 1, rng)
            energies.append(float(c.energy[0]))
    assert c.provenance["surplus"] >= 128 and c.provenance["effective_draws"] > 10
    exact = states.mean(at, states.energy).item()
    assert abs(np.mean(energies) - exact) < 4 * np.std(energies, ddof=1) / np.sqrt(300)


def test_too_few_effective_draws_are_said():
    """Where even many draws carry little weight the chain comes with a warning and its number."""
    lattice, ensemble, _ = toy(2, sites=(4, 4))
    at = Conditions.from_kT([0.05], [[0.0, 2.0]])
    rng = torch.Generator().manual_seed(4)
    with pytest.warns(LowESSWarning, match="worth"):
        c = draw_chain(FieldModel(0.0), ensemble, lattice, at, 3, rng)
    assert c.provenance["surplus"] == 4096 and c.provenance["effective_draws"] < 20


def test_find_model_needs_the_key_and_the_range(tmp_path, monkeypatch):
    """A file is used only if its expansion and its range fit; foreign files are passed over."""
    lattice = Lattice.square(2)
    box = ConditionRange((300, 900), [-0.1], [0.1], [[-1.0, 1.0]])
    model = AnyOrderARM(LatticeConvolution(lattice, box, needs_fields=False))
    TrainedModel(model, box, {"parent_fingerprint": "abc"}).save(tmp_path / "m.nn")
    (tmp_path / "broken.nn").write_bytes(b"nonsense")
    monkeypatch.setenv("CLEASE_NN_MODELS", str(tmp_path))
    inside = Conditions([600.0], [[0.0, 0.05]])
    assert find_model("abc", inside, lattice) is not None
    assert find_model("xyz", inside, lattice) is None
    assert find_model("abc", Conditions([1200.0], [[0.0, 0.05]]), lattice) is None
    assert find_model("abc", Conditions([600.0], [[0.0, 0.5]]), lattice) is None
    monkeypatch.setenv("CLEASE_NN_MODELS", str(tmp_path / "nowhere"))
    monkeypatch.chdir(tmp_path)
    assert find_model("abc", inside, lattice) is not None
