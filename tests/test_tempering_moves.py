"""Laws of moves inside parallel tempering, and of rows that follow the measured gap."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from toys import SYSTEMS
from training_toys import BOX, ising, model

from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.energies.ising import ising_energy
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.io import read_state, write_state
from clease_nn.lattice import Lattice
from clease_nn.montecarlo import ParallelTempering
from clease_nn.sampling import BlockMoves
from clease_nn.sources import ParallelTemperingSource
from clease_nn.sources import tempering as source_module
from clease_nn.statistics import series_mean
from clease_nn.warnings import ChainWarning


class Independence:
    """Draws from a tilted Boltzmann distribution (``tilt`` 1: the exact one) of all states."""

    def __init__(self, ensemble, lattice, tilt=1.0, seed=0, accept_all=False):
        self.ensemble, self.exact = ensemble, ensemble.enumerate(lattice)
        self.tilt, self.accept_all = tilt, accept_all
        self.rng = torch.Generator().manual_seed(seed)

    def __call__(self, c):
        log_q, pick = [], []
        for k in range(len(c)):
            log_p = torch.log_softmax(self.tilt * self.exact.log_target(c.conditions[k]), 0)
            now = int((self.exact.occupations == c.occupations[k]).all(1).nonzero()[0])
            drawn = int(torch.multinomial(log_p.exp(), 1, generator=self.rng))
            pick.append(drawn)
            log_q.append((log_p[now] - log_p[drawn]).item())
        y = self.ensemble.score(replace(c, occupations=self.exact.occupations[pick]))
        log_ratio = y.log_target - c.log_target + torch.tensor(log_q)
        u = torch.rand(len(c), generator=self.rng, dtype=torch.float64)
        take = (u.log() < log_ratio + 1e-9) | self.accept_all
        columns = {
            name: torch.where(
                take[:, None] if name == "occupations" else take, getattr(y, name), getattr(c, name)
            )
            for name in ("occupations", "energy", "log_target")
        }
        return replace(c, **columns), take


def p_value(energy, ensemble, lattice, condition):
    """Of the energies of many chains at one condition against their exact distribution."""
    exact = ensemble.enumerate(lattice)
    levels = np.round(exact.energy.numpy(), 6)
    names, index = np.unique(levels, return_inverse=True)
    p = np.bincount(index, exact.probabilities(condition).numpy()) * len(energy)
    seen = np.searchsorted(names, np.round(energy, 6) - 1e-7)
    observed = np.bincount(seen, minlength=len(names))
    rare = p < 10
    o, e = np.append(observed[~rare], observed[rare].sum()), np.append(p[~rare], p[rare].sum())
    o, e = o[e > 0], e[e > 0]
    return chi2.sf(((o - e) ** 2 / e).sum(), len(o) - 1)


def at_equilibrium(seed=0, n=1500):
    """Chains of one condition on nine sites, each drawn from the exact distribution."""
    lattice = Lattice.square(3)
    ensemble = SemiGrandCanonical(ising_energy(lattice))
    condition = Conditions.from_kT([4.0], [[-0.3, 0.3]])
    many = condition.repeat(n)
    tempering = ParallelTempering(ensemble, lattice, many, (n,), start="random", seed=seed)
    exact = ensemble.enumerate(lattice)
    p = exact.probabilities(condition).numpy()
    pick = np.random.default_rng(seed).choice(len(p), n, p=p / p.sum())
    tempering.chains.occupations = exact.occupations[pick].numpy()
    return tempering, ensemble, lattice, condition


@pytest.mark.parametrize("tilt", [0.0, 0.5, 1.0])
def test_moves_keep_the_exact_distribution(tilt):
    """A hopeless, a poor and a perfect proposal leave chains at equilibrium where they were."""
    tempering, ensemble, lattice, condition = at_equilibrium()
    move = Independence(ensemble, lattice, tilt, seed=1)
    for _ in range(2):
        accepted = tempering.apply(move)
    assert accepted.all() if tilt == 1.0 else 0.02 < accepted.mean() < 0.98
    assert p_value(tempering.configurations.energy.numpy(), ensemble, lattice, condition) > 1e-5


def test_a_wrong_move_is_noticed():
    """The test has power: accepting every proposal of a poor distribution shows."""
    tempering, ensemble, lattice, condition = at_equilibrium()
    tempering.apply(Independence(ensemble, lattice, 0.5, seed=1, accept_all=True))
    assert p_value(tempering.configurations.energy.numpy(), ensemble, lattice, condition) < 1e-6


def test_runs_with_moves_sample_the_ensemble():
    """Energies, compositions and ln Z of every condition agree with enumeration."""
    lattice, ensemble, box = SYSTEMS["ternary"]()
    exact = ensemble.enumerate(lattice)
    moves = [Independence(ensemble, lattice, tilt, seed=k) for k, tilt in enumerate((0.7, 1.0))]
    run = ParallelTempering(ensemble, lattice, box, (4, 2, 2), seed=5)
    result = run.run(800, moves=moves, move_interval=8)
    assert result.move_acceptance.shape == (2, 16)
    assert (result.move_acceptance[1] == 1.0).all()
    assert ((result.move_acceptance[0] > 0) & (result.move_acceptance[0] < 1)).all()
    c, z = result.configurations, []
    assert torch.allclose(ensemble.score(c).energy, c.energy, atol=1e-9)
    number = (exact.occupations == 0).sum(1).to(torch.float64)
    for k in range(16):
        rows, condition = c.chain == k, result.conditions[k]
        for of_state, of_sample in ((exact.energy, c.energy), (number, c.counts()[:, 0])):
            z.append(series_mean(of_sample[rows].numpy()).z(exact.mean(condition, of_state).item()))
    assert np.abs(z).max() < 4.8 and np.sqrt(np.mean(np.square(z))) < 1.5
    assert np.abs(result.log_z.z(exact.log_z(result.conditions))).max() < 5


def test_a_perfect_move_frees_every_chain():
    """From one corner, exact independence moves alone reach equilibrium in one step."""
    tempering, ensemble, lattice, condition = at_equilibrium(seed=3)
    tempering.chains.occupations = np.zeros_like(tempering.occupations)
    before = tempering.cost.energy_evaluations
    tempering.apply(Independence(ensemble, lattice, 1.0, seed=2))
    assert p_value(tempering.configurations.energy.numpy(), ensemble, lattice, condition) > 1e-5
    assert tempering.cost.energy_evaluations >= before + len(tempering.occupations)


def test_a_move_of_some_rows_leaves_the_others():
    """Only the rows asked for move, and their energies are right afterwards."""
    tempering, ensemble, lattice, _ = at_equilibrium(n=40)
    before = tempering.occupations.copy()
    rows = np.array([3, 17, 30])
    accepted = tempering.apply(Independence(ensemble, lattice, 1.0, seed=4), rows)
    changed = (tempering.occupations != before).any(1)
    assert accepted.shape == (3,) and set(np.flatnonzero(changed)) <= set(rows)
    again = ensemble.score(tempering.configurations).energy
    torch.testing.assert_close(tempering.configurations.energy, again)


def test_unscored_moves_are_refused():
    """A move that loses rows or energies is named; interval and moves are checked."""
    tempering, _, _, _ = at_equilibrium(n=4)

    class Short:
        def __call__(self, c):
            return c[:2], torch.ones(2, dtype=torch.bool)

    def blind(c):
        return replace(c, energy=None), torch.ones(len(c), dtype=torch.bool)

    with pytest.raises(ValueError, match="Short handed back 2"):
        tempering.apply(Short())
    with pytest.raises(ValueError, match="with their energies"):
        tempering.apply(blind)
    with pytest.raises(ValueError, match="move_interval must be at least 1, got 0"):
        tempering.run(20, move_interval=0)


def test_frozen_chains_are_named():
    """The warning of a run says at which conditions chains are frozen, five of them at most."""
    lattice = Lattice.square(4)
    ensemble = SemiGrandCanonical(ising_energy(lattice))
    grid = Conditions.from_kT(np.geomspace(2.0, 6, 8), np.zeros((8, 2)))
    result = ParallelTempering(ensemble, lattice, grid, (8,)).run(200)
    assert result.frozen is not None and not result.frozen.any()
    with pytest.warns(ChainWarning, match=r"8 of 8 chains were frozen.*23209 K.* and 3 more"):
        replace(result, frozen=np.ones(8, dtype=bool)).warn(200)


# ---------------------------------------------------------------------- rows that follow the gap
def source(seed=1, shape=(6, 6), **options):
    lattice, ensemble, _ = ising(3, 3)
    return ParallelTemperingSource(
        ensemble, lattice, BOX, shape=shape, burn_in=3, seed=seed, **options
    )


def test_shares_follow_the_gap_with_a_floor():
    """Chains near a bad condition get more rows, none less than 30 % of an even share."""
    s, of = source(), model("any", ising(3, 3)[0])
    s.batch(8, of)
    np.testing.assert_allclose(s.shares, 1 / 36)
    chains = s.tempering.conditions
    gap = np.zeros(36)
    gap[7] = 2.0
    s.focus(chains, gap)
    assert abs(s.shares.sum() - 1) < 1e-12
    assert s.shares.argmax() == 7 and s.shares.min() >= 0.3 / 36
    assert s.shares[7] > 0.5
    # measured at the chains themselves, shares are in proportion to the gap
    gap = np.random.default_rng(0).random(36)
    s.focus(chains, gap)
    np.testing.assert_allclose(s.shares, 0.3 / 36 + 0.7 * gap / gap.sum(), rtol=1e-2)


@pytest.mark.parametrize("gap", [0.0, -0.1, np.nan])
def test_no_gap_is_no_reason_to_choose(gap):
    """Gaps of zero, negative ones (noise) and unknown ones leave the shares even."""
    s = source()
    s.focus(BOX.grid(2, 2), np.full(4, gap))
    np.testing.assert_allclose(s.shares, 1 / 36)


def test_rows_are_drawn_as_the_shares_say():
    """Over many batches every chain gives its share of the rows, within one row a batch."""
    s, of = source(), model("any", ising(3, 3)[0])
    s.batch(8, of)
    s.focus(BOX.at([[0.0, 0.5], [1.0, 0.0]]), np.array([1.0, 0.2]))
    temperature = s.tempering.conditions.temperature.numpy()
    seen = np.zeros(36)
    for _ in range(60):
        rows = s.batch(20, of).partial.conditions.temperature.numpy()
        seen += (rows[:, None] == temperature[None]).sum(0)
    expected = 60 * 20 * s.shares
    z = (seen - expected) / np.sqrt(60 * 0.25)  # of each batch within one row: variance <= 1/4
    assert np.abs(z).max() < 4.5
    assert seen.sum() == 1200


def test_targets_do_not_depend_on_the_focus():
    """What is learnt at a condition stays: rows of a chain carry that chain's configuration."""
    s, of = source(), model("fixed", ising(3, 3)[0])
    s.focus(BOX.at([[0.0, 0.5]]).repeat(1), np.array([1.0]))
    batch = s.batch(30, of).full
    where = {float(t): k for k, t in enumerate(s.tempering.conditions.temperature)}
    rows = [where[float(t)] for t in batch.conditions.temperature]
    np.testing.assert_array_equal(batch.occupations, s.tempering.occupations[rows])


def test_focus_before_the_first_batch_holds_after_the_conditions_moved():
    """Shares are made anew where the chains are after their conditions were spaced."""
    early, late = source(), source()
    of = model("any", ising(3, 3)[0])
    where, gap = BOX.at([[0.0, 0.2], [0.9, 0.9]]), np.array([1.0, 0.1])
    early.focus(where, gap)
    early.batch(8, of)
    late.batch(8, of)
    late.focus(where, gap)
    np.testing.assert_array_equal(early.shares, late.shares)


def with_blocks(of, ensemble, lattice):
    return [BlockMoves(of, ensemble, lattice, torch.Generator().manual_seed(3), size=4)]


def test_a_focused_source_with_moves_continues_bitwise(tmp_path, monkeypatch):
    """From a file a new source goes on as the old one: gap, rows, moves and their generators."""
    monkeypatch.setattr(source_module, "_MOVES_AFTER", 2)
    monkeypatch.setattr(source_module, "_MOVE_INTERVAL", 2)
    of = model("any", ising(3, 3)[0], spoilt=0.3)
    one = source(moves=with_blocks)
    one.focus(BOX.grid(2, 2), np.array([0.1, 0.0, 0.5, 0.2]))
    for _ in range(5):
        one.batch(12, of)
    write_state(tmp_path / "state", "checkpoint", {"source": one.state_dict()})
    first = [one.batch(12, of) for _ in range(4)]
    two = source(seed=77, moves=with_blocks)
    two.load_state_dict(read_state(tmp_path / "state", "checkpoint")["source"])
    second = [two.batch(12, of) for _ in range(4)]
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.partial.occupations, b.partial.occupations)
        assert torch.equal(a.targets, b.targets)
    np.testing.assert_array_equal(one.shares, two.shares)
    assert one.move_acceptance == two.move_acceptance and 0 < one.move_acceptance < 1


def test_moves_wait_until_the_model_has_learnt():
    """The model is not asked in the first 200 batches."""
    asked = []
    s = source(shape=(2, 2), moves=lambda *given: asked.append(given) or [])
    of = model("any", ising(3, 3)[0])
    s.batch(2, of)
    assert not asked and np.isnan(s.move_acceptance)
    s._batches = 200
    s.batch(2, of)
    assert len(asked) == 1 and asked[0] == (of, s.ensemble, s.lattice)


def test_models_elsewhere_move_as_copies_on_the_cpu(monkeypatch):
    """The copy has the weights that the model has by then; a model on the CPU is no copy."""
    of = model("any", ising(3, 3)[0])
    assert source_module._on_cpu(of) is of
    elsewhere = copy.deepcopy(of).to("meta")
    with pytest.raises(NotImplementedError, match="meta"):  # a copy is made, and has no weights
        source_module._on_cpu(elsewhere)
    monkeypatch.setattr(source_module, "_MOVES_AFTER", 0)
    monkeypatch.setattr(source_module, "_MOVE_INTERVAL", 1)
    monkeypatch.setattr(source_module, "_on_cpu", copy.deepcopy)
    asked = []
    s = source(shape=(2, 2), moves=lambda *given: asked.append(given[0]) or [])
    for _ in range(2):
        with torch.no_grad():
            for p in of.parameters():
                p.add_(1.0)
        s.batch(2, of)
    assert len(asked) == 1 and asked[0] is not of
    for a, b in zip(asked[0].parameters(), of.parameters(), strict=True):
        assert torch.equal(a, b)


def test_training_chains_with_moves_stay_exact(monkeypatch):
    """With moves of an untrained model at every batch, chains follow the exact distribution."""
    monkeypatch.setattr(source_module, "_MOVES_AFTER", 0)
    monkeypatch.setattr(source_module, "_MOVE_INTERVAL", 1)
    lattice, ensemble, _ = ising(2, 2)
    of = model("any", lattice, spoilt=0.5)
    s = ParallelTemperingSource(
        ensemble,
        lattice,
        BOX,
        shape=(3, 3),
        burn_in=5,
        seed=4,
        target_sweeps=1,
        moves=lambda m, e, cell: [BlockMoves(m, e, cell, torch.Generator().manual_seed(0))],
    )
    s.batch(1, of)
    energy = np.empty((200, 9))
    for k in range(len(energy)):
        s.batch(1, of)
        energy[k] = s.tempering.configurations.energy
    exact = ensemble.enumerate(lattice)
    conditions = s.tempering.conditions
    z = [
        series_mean(energy[:, k]).z(exact.mean(conditions[k], exact.energy).item())
        for k in range(9)
    ]
    assert np.abs(z).max() < 4.5
    assert 0.02 < s.move_acceptance < 1


def test_starts_reach_the_chains():
    """A source may begin in ordered phases, which its chains then know."""
    s = source(start="ordered")
    assert s.tempering.phases is not None
    with pytest.raises(ValueError, match="'warm'"):
        source(start="warm")


def test_bad_gaps_are_named():
    """Shapes that do not fit are errors that say so."""
    s = source()
    with pytest.raises(ValueError, match=r"each of the 4 conditions, got an array of shape \(3,\)"):
        s.focus(BOX.grid(2, 2), np.zeros(3))
    with pytest.raises(ValueError, match="3 chemical potentials, the lattice 2 species"):
        s.focus(Conditions([300.0], [[0.0, 0.0, 0.0]]), np.zeros(1))


def test_moves_see_scored_configurations():
    """What a move is handed is complete, scored and at the chain's own condition."""
    tempering, ensemble, _, _ = at_equilibrium(n=5)
    seen: list[Configurations] = []

    def look(c):
        seen.append(c)
        return c, torch.zeros(len(c), dtype=torch.bool)

    assert not tempering.apply(look).any()
    torch.testing.assert_close(seen[0].log_target, ensemble.score(seen[0]).log_target)
