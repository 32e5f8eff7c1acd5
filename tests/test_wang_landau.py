"""Wang-Landau sampling of mchammer, handed over as a density of states."""

import random

import numpy as np
import pytest

pytest.importorskip("icet")

from mchammer import WangLandauDataContainer
from mchammer_helpers import system

from clease_nn.conditions import Conditions
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.errors import NotDeterminedError
from clease_nn.hosts.mchammer import energy, lattice, wang_landau
from clease_nn.thermodynamics import DensityOfStates, canonical, compare

SHORT = {"fill_factor_limit": 4e-3, "flatness_check_interval": 200, "progress": False}
HALF = [[4, 4]]


class Here:
    """An executor that runs everything at once, in this process."""

    map = staticmethod(map)


@pytest.fixture(scope="module")
def gold():
    """8 sites of Ag-Au: structure, calculator, exact density of states."""
    atoms, calculator = system("binary", scale=0.1)
    states = SemiGrandCanonical(energy(atoms, calculator)).enumerate(lattice(atoms, calculator))
    return atoms, calculator, DensityOfStates.exact(states)


def test_swaps_agree_with_enumeration(gold):
    """ln Z, <E>, composition and heat capacity of all compositions are the exact ones."""
    atoms, calculator, exact = gold
    dos = wang_landau(atoms, calculator, 0.03, n_runs=5, **SHORT)
    at = Conditions.grid([400.0, 1200, 3000], [[0, 0.0], [0, 0.1], [0, -0.1]])
    assert dos.determined(at).all()
    found = dos.averages(at)
    for a, b in zip(found, exact.averages(at), strict=True):
        # |t| of 4 degrees of freedom is above 20 with a probability of 4e-5
        for name, floor in {"log_z": 1e-5, "energy": 1e-6, "heat_capacity": 1e-8}.items():
            x, y = getattr(a, name), getattr(b, name).value
            assert abs(x.value - y) < 20 * x.error + floor
            assert x.error < 0.02 * (abs(y) + 1e-3)
        assert np.abs(a.composition.value - b.composition.value).max() < 1e-3
        assert a.ess > 200 and 0 < a.energy.ness <= 1
    # F(T, N) at every composition
    t = [400.0, 1200.0]
    difference = compare(canonical(dos, t), canonical(exact, t))["free_energy"].difference
    assert (np.abs(difference.value) < 20 * difference.error + 1e-6).all()
    assert np.abs(difference.value).max() < 1e-3


def test_weights_count_the_configurations(gold):
    """The weights of each composition add up to its number of configurations, errors to zero."""
    atoms, calculator, _ = gold
    dos = wang_landau(atoms, calculator, 0.1, compositions=[[3, 5], [8, 0], [4, 4]], n_runs=2,
                      **SHORT)  # fmt: skip
    n = {(3, 5): 56, (8, 0): 1, (4, 4): 70}
    found = {tuple(c) for c in dos.counts.tolist()}
    assert found == set(n)
    for counts, number in n.items():
        mine = (dos.counts == counts).all(1)
        weight = np.exp(dos.log_g[mine])
        assert weight.sum() == pytest.approx(number, rel=1e-9)
        assert weight @ dos.replicas[mine] == pytest.approx(np.full(200, number), rel=1e-5)


def test_errors_are_those_of_the_scatter(gold):
    """Deviations from the exact ln Z, of independent calls, are as large as their errors say."""
    atoms, calculator, exact = gold
    at = Conditions([300.0], [[0.0, 0.0]])
    half = exact.restricted((exact.counts == HALF[0]).all(1)).log_z(at).value
    z = []
    for seed in range(8):
        dos = wang_landau(atoms, calculator, 0.01, compositions=HALF, n_runs=6, seed=seed,
                          fill_factor_limit=0.05, flatness_check_interval=200,
                          progress=False)  # fmt: skip
        z.append(float(dos.log_z(at).z(half)[0]))
    # t of 5 degrees of freedom, rms 1.29; 8 values
    assert 0.3 < np.sqrt(np.mean(np.square(z))) < 3.5


def test_flips_find_all_compositions(gold):
    """One run over all compositions: right within its errors, less precise than swaps."""
    atoms, calculator, exact = gold
    dos = wang_landau(atoms, calculator, 0.03, trial_move="flip", n_runs=5, **SHORT)
    at = Conditions.grid([700.0, 3000.0], [[0, 0.0], [0, 0.1]])
    hot = Conditions([1e9], [[0.0, 0.0]])
    assert dos.log_z(hot).value[0] == pytest.approx(8 * np.log(2), abs=1e-4)
    for a, b in zip(dos.averages(at), exact.averages(at), strict=True):
        assert abs(a.log_z.z(b.log_z.value)) < 20
        assert abs(a.energy.z(b.energy.value)) < 20
        assert a.log_z.error < 0.1


def test_two_sublattices():
    """Swaps within each of two sublattices: ln Z of a composition of both."""
    atoms, calculator = system("salt", scale=0.05)
    host = lattice(atoms, calculator)
    states = SemiGrandCanonical(energy(atoms, calculator)).enumerate(host)
    exact = DensityOfStates.exact(states)
    counts = [2 if s in ("Mg", "Zn") else 1 + 2 * (s == "O") for s in host.species]
    dos = wang_landau(atoms, calculator, 0.05, compositions=[counts], n_runs=4, **SHORT)
    exact = exact.restricted((exact.counts == counts).all(1))
    at = Conditions([500.0], [[0.0] * host.n_species])
    assert np.exp(dos.log_g).sum() == pytest.approx(6 * 4)
    assert abs(dos.log_z(at).value[0] - exact.log_z(at).value[0]) < 25 * dos.log_z(at).error[0]


def test_interrupted_runs_go_on(gold, tmp_path):
    """A run stopped short is refused and kept, goes on where it was, and is not made again."""
    atoms, calculator, exact = gold
    options = {"compositions": HALF, "n_runs": 4, **SHORT}
    with pytest.raises(NotDeterminedError, match="fill factor of .* after 1000 steps"):
        wang_landau(atoms, calculator, 0.02, folder=tmp_path, max_trial_steps=1000, **options)
    kept = {path: WangLandauDataContainer.read(str(path)) for path in tmp_path.glob("*.dc")}
    assert len(kept) == 4
    dos = wang_landau(atoms, calculator, 0.02, folder=tmp_path, **options)
    for path, before in kept.items():
        after = WangLandauDataContainer.read(str(path)).fill_factor_history.to_numpy()
        part = before.fill_factor_history.to_numpy()
        assert len(after) > len(part) and (after[: len(part)] == part).all()
    again = wang_landau(atoms, calculator, 0.02, folder=tmp_path, **options)
    assert np.array_equal(again.log_g, dos.log_g) and np.array_equal(again.energy, dos.energy)
    assert again.cost == dos.cost
    at = Conditions([500.0], [[0.0, 0.0]])
    half = exact.restricted((exact.counts == HALF[0]).all(1)).log_z(at).value
    assert abs(dos.log_z(at).z(half)[0]) < 25  # t of 3 degrees of freedom


def test_an_executor_gives_the_same(gold):
    """Runs that get the expansion from a file are the same runs; ``random`` is left alone."""
    atoms, calculator, _ = gold
    options = {"compositions": HALF, "n_runs": 2, **SHORT}
    random.seed(3)
    before = random.getstate()
    here = wang_landau(atoms, calculator, 0.1, **options)
    assert random.getstate() == before
    there = wang_landau(atoms, calculator, 0.1, executor=Here(), **options)
    assert np.allclose(here.log_g, there.log_g)
    assert here.cost.energy_evaluations > 1000
    assert here.cost.seconds > 0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"n_runs": 1}, "n_runs must be at least 2"),
        ({"trial_move": "exchange"}, "'swap' or 'flip'"),
        ({"compositions": [[3, 4]]}, "impossible on 8 active sites"),
        ({"compositions": [[4, 4], [4, 4]]}, "asked for twice"),
        ({"compositions": [4, 4]}, "shape"),
        ({"compositions": HALF, "trial_move": "flip"}, "leave out compositions"),
        ({"fill_factor_limit": 0.0}, "fill_factor_limit"),
        ({"flatness_limit": 1.5}, "flatness_limit must be between 0 and 1, got 1.5"),
        ({"flatness_limit": 0.0}, "flatness_limit"),
        ({"flatness_check_interval": -3}, "flatness_check_interval must be at least 1, got -3"),
        ({"flatness_check_interval": 0}, "flatness_check_interval"),
        ({"max_trial_steps": 0}, "max_trial_steps"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_bad_input(gold, options, text):
    """What cannot be is refused with its value and a remedy."""
    atoms, calculator, _ = gold
    with pytest.raises(ValueError, match=text):
        wang_landau(atoms, calculator, 0.1, **options)


@pytest.mark.parametrize("name", ["n_runs", "seed", "max_trial_steps"])
def test_counts_are_whole_numbers(gold, name):
    """Half a run is a TypeError."""
    atoms, calculator, _ = gold
    with pytest.raises(TypeError, match=f"{name} must be a whole number, got 2.5"):
        wang_landau(atoms, calculator, 0.1, **{name: 2.5})


@pytest.mark.parametrize("spacing", [0.0, -1.0, np.nan])
def test_bad_spacing(gold, spacing):
    """An energy spacing must be positive and finite."""
    atoms, calculator, _ = gold
    with pytest.raises(ValueError, match="energy_spacing"):
        wang_landau(atoms, calculator, spacing)
