"""Laws of sources: what they hand out, exact continuation, honest counts."""

from functools import partial

import numpy as np
import pytest
import torch
import toys
from training_toys import BOX, ising, model

from clease_nn.conditions import ConditionRange, Conditions
from clease_nn.energies.cluster_expansion import ClusterExpansionEnergy
from clease_nn.energies.ising import ising_energy
from clease_nn.energies.tables import ClusterTables
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.io import read_state, write_state
from clease_nn.lattice import Lattice
from clease_nn.models import AnyOrderARM
from clease_nn.montecarlo.chains import random_occupations
from clease_nn.networks import LatticeConvolution
from clease_nn.objectives import CompleteBatch, MaskedBatch, cross_entropy
from clease_nn.schedules import Annealing, FixedGrid, RandomWalk
from clease_nn.sources import (
    GeneratedSource,
    ParallelTemperingSource,
    ReplaySource,
    independent,
)
from clease_nn.sources.generated import random_passes
from clease_nn.sources.masking import with_surprises
from clease_nn.sources.replay import tempered_weights

SOURCES = {
    "generated": partial(GeneratedSource, n_conditions=4, passes=2, seed=1),
    "walking": lambda e, lattice, box: GeneratedSource(
        e,
        lattice,
        box,
        n_conditions=4,
        schedule=Annealing(RandomWalk(box, 3000.0, 0.1, seed=2), 50000.0, 0.9),
    ),
    "replay": partial(ReplaySource, n_conditions=4, every=2, keep=3, seed=1),
    "tempering": partial(ParallelTemperingSource, shape=(4, 4), burn_in=3, seed=1),
}


def same(a, b) -> bool:
    """Whether two batches hold the same numbers."""
    first, second = (
        (x.full if isinstance(x, CompleteBatch) else x.partial, getattr(x, "targets", None))
        for x in (a, b)
    )
    columns = ("occupations", "step", "log_prob", "log_target")
    pairs = [(getattr(first[0], n), getattr(second[0], n)) for n in columns]
    pairs += [(first[0].conditions.temperature, second[0].conditions.temperature)]
    pairs += [(first[1], second[1]), (a.weight, b.weight)]
    pairs += [(getattr(a, "passes", None), getattr(b, "passes", None))]
    return all((x is None and y is None) or torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("kind", ["any", "fixed"])
@pytest.mark.parametrize("name", sorted(SOURCES))
def test_continued_from_a_file_is_uninterrupted(name, kind, tmp_path):
    """A new source with the state of another goes on bitwise as that one; counts included."""
    system = ising()
    of = model(kind, system[0], spoilt=0.5)
    a, b = (SOURCES[name](system[1], system[0], system[2]) for _ in range(2))
    for _ in range(3):
        a.batch(32, of)
    write_state(tmp_path / "s", "source", a.state_dict())
    b.load_state_dict(read_state(tmp_path / "s", "source"))
    for _ in range(5):
        assert same(a.batch(32, of), b.batch(32, of))
    assert a.energy_evaluations == b.energy_evaluations > 0


@pytest.mark.parametrize("kind", ["any", "fixed"])
@pytest.mark.parametrize("name", sorted(SOURCES))
def test_batches_fit_the_model(name, kind):
    """The model can be trained on them; rows are in the box and complete where they must be."""
    lattice, ensemble, box = ising()
    of = model(kind, lattice, spoilt=0.5)
    batch = SOURCES[name](ensemble, lattice, box).batch(32, of)
    if name in ("generated", "walking") or kind == "fixed":
        assert isinstance(batch, CompleteBatch) and len(batch.full) == 32
        c = batch.full
        assert c.known.all() and c.step.sort(1).values.tolist() == [[0, 1, 2, 3]] * 32
        for g in range(int(batch.group.max()) + 1):
            assert len(torch.unique(c.conditions.temperature[batch.group == g])) == 1
    else:
        assert isinstance(batch, MaskedBatch)
        c = batch.partial
        assert (~c.known).any(1).all()
        assert torch.allclose(batch.targets.sum(-1), torch.ones(32, 4), atol=1e-5)
    assert box.contains(c.conditions).all()
    loss, metrics = cross_entropy(of, batch)
    loss.backward()
    assert np.isfinite(metrics["loss"])


@pytest.mark.parametrize("kind", ["any", "fixed"])
def test_drawn_rows_carry_the_likelihood_of_the_model(kind):
    """log_prob as drawn is log_prob recomputed; log_target is that of the ensemble."""
    lattice, ensemble, box = ising(3, 2)
    of = model(kind, lattice, spoilt=0.5)
    c = GeneratedSource(ensemble, lattice, box, n_conditions=4).batch(64, of).full
    with torch.no_grad():
        assert torch.allclose(of.log_prob(c, steps=c.step), c.log_prob, atol=1e-5)
    assert torch.equal(ensemble.score(c).log_target, c.log_target)


def test_drawing_leaves_the_model_as_it_was():
    """Training mode and weights are untouched."""
    lattice, ensemble, box = ising()
    of = model("any", lattice).train()
    before = [p.clone() for p in of.parameters()]
    GeneratedSource(ensemble, lattice, box, n_conditions=4).batch(8, of)
    assert of.training
    assert all(torch.equal(p, q) for p, q in zip(before, of.parameters(), strict=True))


@pytest.mark.parametrize("n_sites, n", [(7, 1), (7, 3), (7, 7), (16, 5), (2, 5)])
def test_random_passes_are_chosen_evenly(n_sites, n):
    """Each pass equally often, z-test; no repetition where there are enough of them."""
    steps = torch.arange(n_sites).repeat(20_000, 1)
    passes = random_passes(steps, n, np.random.default_rng(0))
    assert passes.shape == (20_000, n)
    count = passes.ravel().bincount(minlength=n_sites).double()
    expected = 20_000 * n / n_sites
    assert ((count - expected).abs() < 5 * expected**0.5 + 1).all()
    if n <= n_sites:
        assert (passes.sort(1).values.diff(dim=1) > 0).all()


def test_random_passes_follow_each_row():
    """Rows with fewer passes get only passes that they have."""
    steps = torch.tensor([[0, 1, 2, 3], [0, 1, -1, -1], [-1, -1, 0, -1]])
    passes = random_passes(steps.repeat(200, 1), 2, np.random.default_rng(0))
    assert passes.view(200, 3, 2).amax((0, 2)).tolist() == [3, 1, 0]


@pytest.mark.parametrize("spread", [0.01, 1.0, 10.0, 1000.0])
def test_tempered_weights_keep_their_effective_sample_size(spread):
    """NESS is at least the minimum, the power is the largest that allows it, weights sum to 1."""
    log_w = torch.randn(20, 64, generator=torch.Generator().manual_seed(0)).double() * spread
    weight, power = tempered_weights(log_w, 0.4)
    ness = 1 / weight.square().sum(1) / 64
    assert torch.allclose(weight.sum(1), torch.ones(20).double())
    assert (ness >= 0.4 - 1e-9).all()
    assert ((power == 1) | (ness < 0.4 + 1e-3)).all()
    assert spread != 0.01 or (power == 1).all()
    assert torch.equal(tempered_weights(log_w, 0.0)[0], torch.softmax(log_w, 1))


def test_replayed_rows_follow_their_weights():
    """Kept rows are picked in proportion to w: at one condition they follow p, z-test."""
    lattice, ensemble, box = ising()
    of = model("fixed", lattice, spoilt=0.3)
    at = BOX.at([[0.8, 0.4]])
    source = ReplaySource(
        ensemble, lattice, box, schedule=FixedGrid(at), n_conditions=1, every=1, keep=2, min_ness=0
    )
    exact = ensemble.enumerate(lattice)
    mean = exact.mean(at, exact.occupations.double().mean(1)).item()
    means = []
    for _ in range(80):
        rows = source.batch(128, of).full.occupations
        means.append(rows.double().mean().item())
    means = np.array(means[::3])  # blocks are kept for 2 batches
    assert abs(means.mean() - mean) < 4.5 * means.std() / np.sqrt(len(means))
    assert (source.powers == 1).all()


def test_energies_are_counted():
    """One a generated row; one in ``every`` rows of a replay."""
    lattice, ensemble, box = ising()
    of = model("any", lattice)
    generated = GeneratedSource(ensemble, lattice, box, n_conditions=5)
    replay = ReplaySource(ensemble, lattice, box, n_conditions=5, every=3)
    for _ in range(6):
        generated.batch(33, of)
        replay.batch(33, of)
    assert generated.energy_evaluations == 6 * 30
    assert replay.energy_evaluations == 2 * 30


def test_chains_for_validation_only_where_they_are_cheap():
    """Cluster tables or flip energies: unbiased chains, not counted; a bare callable: none."""
    lattice, ensemble, box = ising()
    bare = SemiGrandCanonical(lambda lattice, x: ensemble.energy(lattice, x))
    for make in (GeneratedSource, ReplaySource):
        source = make(ensemble, lattice, box)
        chains = source.chain_configurations(5, 3)
        assert chains.known.all() and chains.chain.bincount().max() == 3
        assert source.energy_evaluations == 0
        again = make(ensemble, lattice, box).chain_configurations(5, 3)
        assert torch.equal(chains.occupations, again.occupations)
        assert make(bare, lattice, box).chain_configurations(5, 3) is None


@pytest.mark.parametrize("n_species", [2, 3, 4, 6, 8])
def test_chains_for_validation_stay_few(n_species, monkeypatch):
    """Many chemical potentials thin the grid out along every axis; 24 conditions are left."""
    shapes = []

    def watched(*arguments, shape, burn_in, **options):
        shapes.append(shape)
        return ParallelTemperingSource(*arguments, shape=shape, burn_in=1, **options)

    monkeypatch.setattr(independent, "ParallelTemperingSource", watched)
    lattice = Lattice.square(
        2, species=("Ag", "Al", "Au", "Cu", "Ni", "Pd", "Pt", "Zn")[:n_species]
    )
    terms = [(0.01, [(i, 0)]) for i in range(4)]
    tables = ClusterTables.from_terms(4, [np.arange(n_species)], terms)
    ensemble = SemiGrandCanonical(ClusterExpansionEnergy(tables))
    d = n_species - 1
    box = ConditionRange((600, 900), [-0.1] * d, [0.1] * d, np.eye(n_species)[:d])
    chains = independent.independent_chains(ensemble, lattice, box, 24, 2)
    assert len(torch.unique(chains.chain)) == 24
    assert np.prod(shapes[0]) <= 260


@pytest.mark.parametrize("make", [GeneratedSource, ReplaySource])
def test_bad_input_is_named(make):
    """Too few rows, conditions outside of the box, impossible numbers."""
    lattice, ensemble, box = ising()
    of = model("any", lattice)
    with pytest.raises(ValueError, match="n_conditions must be at least 1, got 0"):
        make(ensemble, lattice, box, n_conditions=0)
    with pytest.raises(ValueError, match=r"8 rows at 5 conditions leave 1 .*batch_size"):
        make(ensemble, lattice, box, n_conditions=5).batch(8, of)
    cold = FixedGrid(Conditions([100.0], [[0.0, 0.0]]))
    with pytest.raises(ValueError, match=r"of the schedule 0 .100 K.*25000 to 60000 K"):
        make(ensemble, lattice, box, schedule=cold, n_conditions=1)


def test_bad_numbers_of_one_source_are_named():
    """Passes between 1 and the sites; a NESS below 1; whole draws."""
    lattice, ensemble, box = ising()
    with pytest.raises(ValueError, match="between 1 and the 4 sites, got 5"):
        GeneratedSource(ensemble, lattice, box, passes=5)
    with pytest.raises(ValueError, match="min_ness"):
        ReplaySource(ensemble, lattice, box, min_ness=1.0)
    with pytest.raises(ValueError, match="keep"):
        ReplaySource(ensemble, lattice, box, keep=0)


def test_energies_that_are_not_finite_stop_a_draw():
    """The row is named."""
    lattice, _, box = ising()
    nan = SemiGrandCanonical(lambda lattice, x: torch.full((len(x),), torch.nan))
    with pytest.raises(ValueError, match="not finite"):
        GeneratedSource(nan, lattice, box).batch(32, model("any", lattice))


def test_a_box_may_be_narrower_than_the_model():
    """Sources ask for their own box alone."""
    lattice, ensemble, _ = ising()
    narrow = ConditionRange((30000, 31000), [-0.1], [0.1], [[-1.0, 1.0]])
    c = GeneratedSource(ensemble, lattice, narrow).batch(64, model("any", lattice)).full
    assert narrow.contains(c.conditions).all()


# ------------------------------------------------------------------ rows with surprises
def test_surprises_are_allowed_species_on_known_sites_of_as_many_rows_as_asked():
    """Unknown sites and the input stay, species are allowed, and the mean number is p/2 a site."""
    lattice = toys.two_sublattices()[0]
    rng = np.random.default_rng(5)
    full = random_occupations(lattice, 4000, rng)
    before = full.copy()
    known = rng.random(full.shape) < 0.7
    x = with_surprises(full, known, lattice, 0.5, np.random.default_rng(1))
    assert (full == before).all()
    assert (x[~known] == full[~known]).all()
    assert lattice.allowed[np.arange(lattice.n_sites), x].all()
    other = 1 - 1 / lattice.allowed.sum(1)  # chance that a species drawn anew is another one
    expected = (known * other).sum() * 0.5 * 0.05
    number = (x != full).sum(1)
    error = np.sqrt((number**2).sum())
    assert abs(number.sum() - expected) < 5 * error < expected


def test_a_batch_with_surprises_has_the_targets_of_its_own_known_sites():
    """Targets are conditionals around the known sites as they are in the batch."""
    lattice, box = Lattice.square(3), ConditionRange((40000, 40001), [-0.1], [0.1], [[-1.0, 1.0]])
    ensemble = SemiGrandCanonical(ising_energy(lattice))
    source = ParallelTemperingSource(
        ensemble, lattice, box, shape=(4, 4), burn_in=2, surprises=1.0, target_sweeps=400, seed=3
    )
    model = AnyOrderARM(LatticeConvolution(lattice, box, channels=4, blocks=1))
    batch = source.batch(16, model)
    states = ensemble.enumerate(lattice)
    for row in range(16):
        known = batch.partial.known[row]
        fits = (states.occupations[:, known] == batch.partial.occupations[row, known]).all(1)
        p = states.probabilities(batch.partial.conditions[row]) * fits
        exact = ((states.occupations == 0) * p[:, None]).sum(0) / p.sum()
        off = (batch.targets[row, :, 0].double() - exact)[~known].abs().max()
        assert off < 0.15  # 400 correlated sweeps of conditionals: errors of 0.02 or so


def test_a_share_of_surprises_beyond_one_is_refused():
    """The share of rows lies between 0 and 1."""
    lattice, box = Lattice.square(3), ConditionRange((40000, 40001), [-0.1], [0.1], [[-1.0, 1.0]])
    with pytest.raises(ValueError, match="surprises.*1.5"):
        ParallelTemperingSource(
            SemiGrandCanonical(ising_energy(lattice)), lattice, box, shape=(2, 2), surprises=1.5
        )
