"""Laws of parallel tempering: ln Z, exchanges, growth, frozen chains, bounds, resume."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from clease_nn.conditions import ConditionRange, Conditions
from clease_nn.configurations import Configurations
from clease_nn.energies.cluster_expansion import ClusterExpansionEnergy
from clease_nn.energies.ising import ising_energy
from clease_nn.energies.tables import ClusterTables
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import Lattice
from clease_nn.montecarlo import (
    ParallelTempering,
    frozen_chains,
    ground_state_bound,
    growth_stages,
)
from clease_nn.statistics import series_mean
from clease_nn.warnings import ChainWarning

ISING_BOX = ConditionRange((15000, 60000), [-0.3], [0.3], [[-1.0, 1.0]])


def ternary():
    """Random pair and triplet terms on eight sites with three species."""
    lattice = Lattice.square(4, 2, ("Cu", "Au", "Ag"))
    rng = np.random.default_rng(11)
    terms = [
        (
            0.03 * rng.normal(),
            [(int(s), int(rng.integers(2))) for s in rng.choice(8, rng.integers(1, 4), False)],
        )
        for _ in range(40)
    ]
    tables = ClusterTables.from_terms(8, [[-1.2, 0.0, 1.2], [0.7, -1.4, 0.7]], terms)
    return lattice, SemiGrandCanonical(ClusterExpansionEnergy(tables))


def ising(n, m=None):
    """Ferromagnet with coupling 1 eV."""
    lattice = Lattice.square(n, m)
    return lattice, SemiGrandCanonical(ising_energy(lattice))


CASES = {
    "binary": (*ising(4), ISING_BOX, (6, 5)),
    "ternary": (
        *ternary(),
        ConditionRange((250, 1500), [-0.1, -0.1], [0.1, 0.1], [[-1, 1, 0], [-1, 0, 1.0]]),
        (5, 3, 3),
    ),
}


@pytest.mark.parametrize("jitter", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_log_z_agrees_with_enumeration_within_its_errors(name, jitter):
    """Over independent runs the z-scores of ln Z at all conditions have unit size."""
    lattice, ensemble, box, shape = CASES[name]
    exact = ensemble.enumerate(lattice)
    z = []
    for seed in range(8):
        run = ParallelTempering(ensemble, lattice, box, shape=shape, seed=seed, jitter=jitter)
        result = run.run(400, interval=100)
        reference = exact.log_z(result.conditions)
        z.append(result.log_z.z(reference))
        assert (result.lower_bound <= reference + 1e-9).all()
    # conditions of one run are correlated: as few as two independent ones a run are assumed
    z = np.array(z)
    n = 2 * len(z)
    assert abs(np.mean(z**2) - 1) < 4 * np.sqrt(2 / n)
    assert np.mean(z**2) > 0.2
    assert np.abs(z).max() < 5.5


def test_samples_are_those_of_the_ensemble():
    """Energies and compositions of every condition agree with enumeration."""
    lattice, ensemble, box, shape = CASES["ternary"]
    exact = ensemble.enumerate(lattice)
    result = ParallelTempering(ensemble, lattice, box, shape=shape, seed=3).run(1500, log_z=False)
    c = result.configurations
    assert result.log_z is None and (np.diff(c.chain.numpy()) >= 0).all()
    torch.testing.assert_close(ensemble.score(c).log_target, c.log_target)
    counts = torch.stack([(exact.occupations == a).sum(1) for a in range(3)], 1)
    z = []
    values = [(exact.energy, c.energy)]
    values += [(counts[:, a].to(torch.float64), c.counts()[:, a]) for a in range(2)]
    for k in range(len(result.conditions)):
        rows, condition = c.chain == k, result.conditions[k]
        for of_state, of_sample in values:
            mean = exact.mean(condition, of_state).item()
            variance = exact.mean(condition, of_state**2).item() - mean**2
            # too few excitations in the run for a normal distribution of the mean
            if variance * rows.sum() > 20 * of_state.diff().abs().max() ** 2:
                z.append(series_mean(of_sample[rows].numpy()).z(mean))
    assert len(z) > 40
    assert np.abs(z).max() < 4.8
    assert np.sqrt(np.mean(np.square(z))) < 1.35


@pytest.mark.parametrize("descending", [False, True])
def test_temperatures_may_run_either_way(descending):
    """The ladder to infinite temperature attaches to the hottest end of the grid."""
    lattice, ensemble = ising(4)
    temperatures = [20000, 30000, 45000][:: -1 if descending else 1]
    grid = Conditions.grid(temperatures, [[-0.1, 0.1], [0.1, -0.1]])
    result = ParallelTempering(ensemble, lattice, grid, shape=(3, 2), seed=0).run(400)
    z = result.log_z.z(ensemble.enumerate(lattice).log_z(grid))
    assert np.abs(z).max() < 5


def test_exchanges_run_in_every_direction():
    """Chains exchange along temperature and every chemical potential; acceptance is a share."""
    lattice, ensemble, box, shape = CASES["ternary"]
    tempering = ParallelTempering(ensemble, lattice, box, shape=shape, seed=3)
    for _ in range(20):
        occupations, conditions = tempering.step()
    assert occupations.shape == (45, 8) and len(conditions) == 45
    assert tempering.swap_acceptance.shape == (3,)
    assert ((tempering.swap_acceptance > 0) & (tempering.swap_acceptance < 1)).all()
    assert sorted(tempering.replica) == list(range(45))
    assert (tempering.replica != np.arange(45)).any()


@pytest.mark.filterwarnings("ignore::clease_nn.warnings.ChainWarning")
@pytest.mark.parametrize("with_ladder", [False, True])
def test_a_restored_run_continues_bitwise(with_ladder):
    """State and restore change nothing, with and without the ladder of ln Z."""
    lattice, ensemble = ising(4)
    one = ParallelTempering(ensemble, lattice, ISING_BOX, shape=(3, 3), seed=1, jitter=True)
    if with_ladder:
        one.run(10)
    for _ in range(3):
        one.step()
    state = one.state_dict()
    first = one.run(20, burn_in=4, log_z=with_ladder)
    two = ParallelTempering(ensemble, lattice, ISING_BOX, shape=(3, 3), seed=77, jitter=True)
    two.load_state_dict(state)
    second = two.run(20, burn_in=4, log_z=with_ladder)
    np.testing.assert_array_equal(
        second.configurations.occupations, first.configurations.occupations
    )
    np.testing.assert_array_equal(second.conditions.mu, first.conditions.mu)
    assert second.energy_evaluations == first.energy_evaluations
    if with_ladder:
        np.testing.assert_array_equal(second.log_z.value, first.log_z.value)
    with pytest.raises(ValueError, match="saved grid has shape"):
        ParallelTempering(ensemble, lattice, ISING_BOX, shape=(3, 2)).load_state_dict(state)


def test_generic_energies_run_too():
    """An energy without tables or flips gives the same ln Z."""
    lattice = Lattice.square(3, 2)
    energy = ising_energy(lattice)
    plain = SemiGrandCanonical(lambda lattice, occupations: energy(lattice, occupations))
    tempering = ParallelTempering(plain, lattice, ISING_BOX, shape=(3, 2), sweeps_per_exchange=1)
    result = tempering.run(300)
    z = result.log_z.z(plain.enumerate(lattice).log_z(result.conditions))
    assert np.abs(z).max() < 5


def test_small_cells_have_the_energies_of_their_copies():
    """A configuration of a small cell has 1/copies of the energy of its copy; stages nest."""
    lattice, ensemble = ising(8)
    stages = growth_stages(lattice)
    assert [s.max() + 1 for s in stages] == [16, 32]
    rng = np.random.default_rng(0)
    for stage in stages:
        folded = ensemble.energy.tables.fold(stage)
        x = rng.integers(0, 2, (5, stage.max() + 1))
        small = ClusterExpansionEnergy(folded)
        lattice_of = Lattice.square(len(x[0]), 1)
        large = ensemble.energy(lattice, torch.as_tensor(x[:, stage], dtype=torch.int8))
        e = small(lattice_of, torch.as_tensor(x, dtype=torch.int8)) * (64 // len(x[0]))
        torch.testing.assert_close(e, large)
    pairs = set(zip(stages[1].tolist(), stages[0].tolist(), strict=True))
    assert len(pairs) == stages[1].max() + 1  # one small site for every site of the larger cell


def test_grown_chains_are_not_frozen():
    """Grown from small cells no cold chain is frozen; from random starts some are, and thaw."""
    lattice, ensemble = ising(12)
    cold = Conditions.from_kT(np.full(48, 0.25), np.zeros((48, 2)))
    frozen = {}
    for start in ("grow", "random"):
        tempering = ParallelTempering(ensemble, lattice, cold, shape=(1, 48), seed=0, start=start)
        for _ in range(5):
            tempering.step()
        test = frozen_chains(ensemble, tempering.configurations)
        frozen[start] = test.mask.sum()
        if start == "random":
            assert tempering.thaw().mask.any()
            assert not frozen_chains(ensemble, tempering.configurations).mask.any()
    assert frozen["grow"] == 0
    assert frozen["random"] > 0
    assert "frozen" in str(test)


def test_frozen_means_cold_and_defective():
    """A stripe domain is frozen when cold; ground states and hot chains are not."""
    lattice, ensemble = ising(8)
    stripe = (np.arange(64) // 8 < 4).astype(np.int8)
    ground = np.zeros(64, dtype=np.int8)
    conditions = Conditions.from_kT([0.5, 0.5, 5.0], np.zeros((3, 2)))
    c = Configurations(lattice, conditions, torch.as_tensor(np.stack([stripe, ground, stripe])))
    test = frozen_chains(ensemble, c, seed=1)
    assert test.mask.tolist() == [True, False, False]
    # two domain walls of 8 bonds, 2 eV each
    assert abs(test.excess[0] - 32) < 4 and test.excess[1] < 4


def test_the_lower_bound_is_rigorous_and_tight_when_cold():
    """Below ln Z always; equal to it where only the ground states count."""
    lattice, ensemble = ising(4)
    conditions = Conditions.from_kT([0.3, 1.0, 3.0], np.zeros((3, 2)))
    ground = Configurations(lattice, conditions[:1], torch.zeros((1, 16), dtype=torch.int8))
    both = Configurations.cat(
        [ground, replace(ground, occupations=torch.ones((1, 16), dtype=torch.int8))]
    )
    exact = ensemble.enumerate(lattice).log_z(conditions)
    bound = ground_state_bound(ensemble, both, conditions)
    assert (bound <= exact).all()
    assert abs(bound[0] - exact[0]) < 1e-9
    one = ground_state_bound(ensemble, ground, conditions)
    torch.testing.assert_close(one, bound - np.log(2.0))
    defect = torch.zeros((1, 16), dtype=torch.int8)
    defect[0, 0] = 1
    sixteen = ground_state_bound(ensemble, replace(ground, occupations=defect), conditions)
    expected = -ensemble.energy(lattice, defect)[0] / conditions.kT + np.log(16.0)
    torch.testing.assert_close(sixteen, expected)


@pytest.mark.filterwarnings("ignore::clease_nn.warnings.ChainWarning")
def test_doubtful_runs_warn():
    """Neighbours that never exchange warn; ln Z below its bound is marked."""
    lattice, ensemble = ising(6)
    grid = Conditions.from_kT([0.8, 8.0], np.zeros((2, 2)))
    with pytest.warns(ChainWarning, match="exchanged"):
        ParallelTempering(ensemble, lattice, grid, shape=(2,), seed=0).run(20, thaw=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ChainWarning)
        lattice, ensemble = ising(4)
        grid = Conditions.from_kT(np.geomspace(1.2, 6, 12), np.zeros((12, 2)))
        tempering = ParallelTempering(ensemble, lattice, grid, shape=(12,), seed=0)
        result = tempering.run(200)
    assert not result.below_bound().any()
    low = replace(result, log_z=result.log_z - 3.0)
    assert low.below_bound()[0] and not low.below_bound()[-1]
    with pytest.warns(ChainWarning, match="below its rigorous lower bound at"):
        low.warn(200)


def test_bad_input_is_named():
    """Errors name the value and the remedy."""
    lattice, ensemble = ising(4)
    grid = Conditions([300.0, 400.0], np.zeros((2, 2)))
    for arguments, message in [
        ((ISING_BOX, (3,)), "must have 2 numbers"),
        ((ISING_BOX, (3, 0)), "positive"),
        ((grid, (3, 1)), "needs 3 conditions"),
    ]:
        with pytest.raises(ValueError, match=message):
            ParallelTempering(ensemble, lattice, *arguments)
    with pytest.raises(ValueError, match="jitter needs a ConditionRange"):
        ParallelTempering(ensemble, lattice, grid, (2,), jitter=True)
    with pytest.raises(ValueError, match="'cold'"):
        ParallelTempering(ensemble, lattice, grid, (2,), start="cold")
    with pytest.raises(ValueError, match="sweeps_per_exchange"):
        ParallelTempering(ensemble, lattice, grid, (2,), sweeps_per_exchange=0)
    tempering = ParallelTempering(ensemble, lattice, grid, (2,))
    with pytest.raises(ValueError, match="n_steps must be at least 10"):
        tempering.run(3)
    with pytest.raises(ValueError, match="interval"):
        tempering.run(20, interval=21)
