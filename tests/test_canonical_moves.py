"""Moves at fixed composition: normalised, reversible, stationary, whatever the model."""

from itertools import permutations

import numpy as np
import pytest
import torch
from sampler_helpers import FieldModel, pooled_z
from scipy.stats import chisquare
from toys import SYSTEMS, binary, random_expansion, two_sublattices

from clease_nn.conditions import Conditions
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.io import TrainedModel
from clease_nn.models import AnyOrderARM
from clease_nn.networks import LatticeConvolution
from clease_nn.sampler import CanonicalBlockMoves, NeuralMoves, match_composition


def untrained(lattice, box, needs_fields=False):
    """A network with random weights, head included."""
    torch.manual_seed(0)
    network = LatticeConvolution(lattice, box, needs_fields=needs_fields)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return AnyOrderARM(network)


def moves_for(name, model="field", block_size=4, seed=0, **options):
    """(moves, lattice, ensemble, conditions) on one of the toy systems."""
    lattice, _, box = SYSTEMS[name]()
    ensemble = SemiGrandCanonical(random_expansion(lattice, 3, scale=0.06))
    model = FieldModel() if model == "field" else untrained(lattice, box)
    at = Conditions([900.0], box.axes[:1] * 0.05)
    rng = torch.Generator().manual_seed(seed)
    moves = CanonicalBlockMoves(model, ensemble, lattice, at, rng, block_size, **options)
    return moves, lattice, ensemble, at


def block_of(moves, size=4):
    """A block in the order of drawing."""
    return moves._shuffled(moves._among(None).one(size, moves.rng))


def one_composition(lattice, ensemble, at, groups=None, seed=1):
    """States with the composition, sublattice by sublattice, of a random one; their weights."""
    states = ensemble.enumerate(lattice)
    x = states.occupations.numpy()
    groups = lattice.sublattices if groups is None else groups
    start = np.random.default_rng(seed).permutation(len(x))
    key = np.stack(
        [
            (x[:, groups == g] == a).sum(1)
            for g in np.unique(groups)
            for a in range(lattice.n_species)
        ],
        1,
    )
    sizes = [int((key == key[k]).all(1).sum()) for k in start[:50]]
    k = start[int(np.argmax(sizes))]
    same = (key == key[k]).all(1)
    return (
        x[same],
        torch.softmax(states.log_target(at)[same], 0).numpy(),
        states.energy[same].numpy(),
    )


@pytest.mark.parametrize("model", ["field", "untrained"])
@pytest.mark.parametrize("name", list(SYSTEMS))
def test_proposals_sum_to_one(name, model):
    """For a block in an order, q' over everything the block can become sums to one."""
    moves, lattice, ensemble, at = moves_for(name, model)
    states, _, _ = one_composition(lattice, ensemble, at)
    x = states[3]
    for _ in range(3):
        sites = block_of(moves)
        total, seen = 0.0, set()
        for p in permutations(range(len(sites))):
            y = x.copy()
            y[sites.numpy()] = x[sites.numpy()[list(p)]]
            counts = [np.sort(y[lattice.sublattices == g]).tolist() for g in (0, 1)]
            mine = [np.sort(x[lattice.sublattices == g]).tolist() for g in (0, 1)]
            if tuple(y.tolist()) in seen or counts != mine:
                continue
            seen.add(tuple(y.tolist()))
            total += np.exp(moves._score(y, sites))
        assert abs(total - 1) < 1e-9


def test_drawn_and_scored_likelihoods_agree():
    """A block is drawn with the probability with which it is scored, number and frequency."""
    moves, lattice, ensemble, at = moves_for("binary")
    x = one_composition(lattice, ensemble, at)[0][5]
    sites = torch.tensor([0, 3, 5, 6, 7])
    counts, expected = {}, {}
    n = 2000
    for y, log_q in zip(*moves._draw(x, sites.repeat(n, 1)), strict=True):
        key = tuple(y.tolist())
        if key not in expected:
            expected[key] = np.exp(moves._score(y, sites))
            assert abs(np.log(expected[key]) - log_q) < 1e-4
        counts[key] = counts.get(key, 0) + 1
    f, e = np.array([(counts[k], n * expected[k]) for k in counts]).T
    common = e > 5
    rest = max(n - e[common].sum(), 1e-9)
    f, e = np.append(f[common], f[~common].sum()), np.append(e[common], rest)
    assert chisquare(f[e > 1], e[e > 1] * f[e > 1].sum() / e[e > 1].sum()).pvalue > 1e-3


@pytest.mark.parametrize("name", list(SYSTEMS))
def test_detailed_balance_of_the_whole_transition_matrix(name):
    """w(x) P(x to y) = w(y) P(y to x), with P made of the log ratios that propose returns."""
    moves, lattice, ensemble, at = moves_for(name, "untrained", block_size=5)
    states, w, energy = one_composition(lattice, ensemble, at)
    beta = at.beta.item()
    for _ in range(2):
        sites = block_of(moves, 5)
        moves._shuffled = lambda _, sites=sites: sites
        for k in range(0, len(states), max(1, len(states) // 12)):
            x = states[k]
            y, log_ratio = moves.propose(states[k])
            log_q = {True: moves._score(x, sites), False: moves._score(y, sites)}
            if (y == states[k]).all():
                assert log_ratio == 0
                continue
            assert abs(log_ratio - (log_q[True] - log_q[False])) < 1e-4
            j = int(np.flatnonzero((states == y).all(1))[0])
            there = (
                w[k]
                * np.exp(log_q[False])
                * min(1, np.exp(-beta * (energy[j] - energy[k]) + log_ratio))
            )
            back = (
                w[j]
                * np.exp(log_q[True])
                * min(1, np.exp(-beta * (energy[k] - energy[j]) - log_ratio))
            )
            assert there == pytest.approx(back, rel=1e-3)
        del moves._shuffled


@pytest.mark.parametrize("name", list(SYSTEMS))
def test_species_stay_on_their_sublattices(name):
    """The composition of every sublattice is what it was, and every site is allowed."""
    moves, lattice, ensemble, at = moves_for(name, block_size=6)
    x = one_composition(lattice, ensemble, at)[0][0]
    changed = 0
    for _ in range(30):
        y, log_ratio = moves.propose(x)
        assert np.isfinite(log_ratio)
        assert lattice.allowed[np.arange(lattice.n_sites), y].all()
        for g in np.unique(lattice.sublattices):
            on = lattice.sublattices == g
            assert (np.sort(y[on]) == np.sort(x[on])).all()
        changed += (x != y).any()
        x = y
    assert changed


@pytest.mark.parametrize("block_size", [None, 5])
@pytest.mark.parametrize("name", list(SYSTEMS))
def test_chains_sample_the_canonical_distribution(name, block_size):
    """Mean energy and every state's probability at fixed composition, from independent chains."""
    # few chains of the ternary leave its ground states: as few as 20 show hardly any spread
    n_chains, n_steps = {"ternary": 80}.get(name, 20), 50
    _, lattice, ensemble, at = moves_for(name)
    states, w, energy = one_composition(lattice, ensemble, at)
    exact, index = float(w @ energy), {x.tobytes(): k for k, x in enumerate(states)}
    best = int(w.argmax())
    beta, mean, share = at.beta.item(), [], []
    for seed in range(n_chains):
        moves, *_ = moves_for(name, seed=seed, block_size=block_size)
        k = int(np.random.default_rng(seed).choice(len(w), p=w))  # already in equilibrium
        x, log_target = states[k], _mu_n(states[k], at) - beta * energy[k]
        seen = []
        for _ in range(n_steps):
            _, x, log_target = moves.step(x, log_target)
            seen.append(index[x.tobytes()])
        mean.append(energy[seen].mean())
        share.append(np.mean(np.array(seen) == best))
    assert abs(pooled_z(mean, exact)) < 3.5
    assert abs(pooled_z(share, w[best])) < 3.5


def _mu_n(x, at):
    return float(at.mu[0][torch.as_tensor(x).long()].sum() * at.beta[0])


def test_without_the_ratio_the_average_is_wrong():
    """The test above has the power to see a missing ratio."""
    _, lattice, ensemble, at = moves_for("binary")
    states, w, energy = one_composition(lattice, ensemble, at)
    moves, *_ = moves_for("binary", seed=3, block_size=6)
    index = {x.tobytes(): k for k, x in enumerate(states)}
    rng = np.random.default_rng(0)
    k, seen = 0, []
    for _ in range(900):
        j = index[moves.propose(states[k])[0].tobytes()]
        if rng.random() < np.exp(min(0.0, -at.beta.item() * (energy[j] - energy[k]))):
            k = j
        seen.append(energy[k])
    batches = np.array(seen).reshape(30, -1).mean(1)
    assert abs(pooled_z(batches, float(w @ energy))) > 6


def test_other_moves_in_between_do_no_harm():
    """Redrawing all sites among swaps, with proposals drawn ahead, stays exact."""
    _, lattice, ensemble, at = moves_for("binary")
    states, w, energy = one_composition(lattice, ensemble, at)
    index = {x.tobytes(): k for k, x in enumerate(states)}
    means = []
    for seed in range(20):
        moves, *_ = moves_for("binary", seed=seed, block_size=None, batch_size=16)
        random = np.random.default_rng(seed)
        k, seen = int(random.choice(len(w), p=w)), []
        for t in range(60):
            if t % 3 == 2:
                y, ratio = states[k].copy(), 0.0
                i, j = random.choice(len(y), 2, replace=False)
                y[[i, j]] = y[[j, i]]
            else:
                y, ratio = moves.propose(states[k])
            j = index[y.tobytes()]
            if random.random() < np.exp(
                min(0.0, -at.beta.item() * (energy[j] - energy[k]) + ratio)
            ):
                k = j
                if t % 3 != 2:
                    moves.accepted()
            seen.append(energy[k])
        means.append(np.mean(seen))
    assert abs(pooled_z(means, float(w @ energy))) < 3.5


def test_blocks_stay_among_the_sites_given():
    """Only sites of ``among`` change; frozen ones and other groups do not."""
    reachable = two_sublattices()[0].allowed.copy()
    reachable[0] = [False, True, False, False]
    moves, lattice, ensemble, at = moves_for("two_sublattices", reachable=reachable)
    x = next(s for s in one_composition(lattice, ensemble, at)[0] if s[0] == 1)
    among = np.flatnonzero(lattice.sublattices == lattice.sublattices[0])
    for _ in range(20):
        y, _ = moves.propose(x, among)
        changed = np.flatnonzero(x != y)
        assert np.isin(changed, among).all() and 0 not in changed
    halves = np.arange(lattice.n_sites) % 4 < 2
    moves, *_ = moves_for("two_sublattices", groups=halves, block_size=8)
    for _ in range(20):
        y, _ = moves.propose(x)
        assert (np.sort(y[halves]) == np.sort(x[halves])).all()


def test_the_chemical_potential_hardly_matters():
    """Any chemical potential is exact; the tilt keeps even a distant one useful."""
    lattice, ensemble, _ = binary()
    x = one_composition(lattice, ensemble, Conditions([900.0], [[0.0, 0.0]]))[0][0]
    acceptance = []
    for mu in (0.0, 0.5):
        at = Conditions([900.0], [[mu, 0.0]])
        rng = torch.Generator().manual_seed(0)
        moves = CanonicalBlockMoves(FieldModel(1.0), ensemble, lattice, at, rng, 6)
        state, log_target, a = x, None, []
        c = NeuralMoves(FieldModel(), ensemble, lattice, at, rng)
        log_target = -c.energy(x) * at.beta.item()
        for _ in range(100):
            _, state, log_target = moves.step(state, log_target)
            a.append(moves.acceptance)
        acceptance.append(np.mean(a))
    assert min(acceptance) > 0.3


def test_matching_finds_the_chemical_potential_of_a_composition():
    """More Au calls for a higher chemical potential of Au, within the trained range."""
    lattice, ensemble, box = binary()
    trained = TrainedModel(FieldModel(1.0), box)
    rng = torch.Generator().manual_seed(0)
    found = []
    for n in (2, 4, 6):
        x = np.array([0] * n + [1] * (8 - n), dtype=np.int8)
        at = match_composition(trained, lattice, x, 900.0, rng, ensemble.fields)
        assert bool(box.contains(at).all()) and at.temperature.item() == 900
        found.append(float(at.mu[0, 0] - at.mu[0, 1]))
    assert found[0] < found[1] < found[2]


@pytest.mark.parametrize("block_size", [None, 4])
def test_neural_proposals_for_other_chains(block_size):
    """``propose`` in a chain that decides by itself gives the exact semi-grand averages."""
    lattice, ensemble, _ = binary()
    at = Conditions([900.0], [[0.03, 0.0]])
    states = ensemble.enumerate(lattice)
    exact = float(states.probabilities(at) @ states.energy)
    place = 2 ** torch.arange(8)
    log_target = states.log_target(at).numpy()
    number = {int((x.long() * place).sum()): k for k, x in enumerate(states.occupations)}
    means = []
    for seed in range(24):
        rng = torch.Generator().manual_seed(seed)
        moves = NeuralMoves(
            FieldModel(), ensemble, lattice, at, rng, block_size=block_size, batch_size=64
        )
        random = np.random.default_rng(seed)
        k, seen = int(random.choice(256, p=states.probabilities(at).numpy())), []
        for t in range(100):
            if t % 3 == 2:  # a flip in between
                y, ratio = states.occupations[k].numpy().copy(), 0.0
                i = random.integers(8)
                y[i] = 1 - y[i]
            else:
                y, ratio = moves.propose(states.occupations[k].numpy())
            j = number[int((torch.as_tensor(y).long() * place).sum())]
            if random.random() < np.exp(min(0.0, log_target[j] - log_target[k] + ratio)):
                k = j
                if t % 3 != 2:
                    moves.accepted()
            seen.append(float(states.energy[k]))
        means.append(np.mean(seen))
    assert abs(pooled_z(means, exact)) < 3.5


def test_proposals_follow_fixed_sites():
    """A site that these moves leave alone but others change is in the next proposal as it is."""
    lattice, ensemble, _ = binary()
    at, rng = Conditions([900.0], [[0.03, 0.0]]), torch.Generator().manual_seed(0)
    reachable = np.array(lattice.allowed)
    reachable[0] = [True, False]
    moves = NeuralMoves(FieldModel(), ensemble, lattice, at, rng, reachable=reachable)
    x = np.zeros(8, dtype=np.int8)
    for t in range(12):
        x[0] = t // 3 % 2
        y, log_ratio = moves.propose(x)
        assert y[0] == x[0] and np.isfinite(log_ratio)


def test_bad_input():
    """Small blocks, several conditions and unreachable species are refused."""
    with pytest.raises(ValueError, match="at least 2"):
        moves_for("binary", block_size=1)
    lattice, ensemble, box = binary()
    with pytest.raises(ValueError, match="one condition"):
        CanonicalBlockMoves(FieldModel(), ensemble, lattice, box.grid(2, 1), torch.Generator(), 4)
    with pytest.raises(ValueError, match="groups"):
        moves_for("binary", groups=[0, 1])
    moves, *_ = moves_for("ternary", block_size=6, reachable=np.tile([True, True, False], (6, 1)))
    with pytest.raises(ValueError, match="carries Ag"):
        moves.propose(np.array([0, 1, 2, 0, 1, 0], dtype=np.int8))
