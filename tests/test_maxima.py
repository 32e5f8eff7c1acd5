"""Maxima of response functions: those of a fine grid, with errors that cover."""

import numpy as np
import pytest
import torch
from ase.units import kB
from toys import SYSTEMS

from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.energies.ising import ising_energy
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import Lattice
from clease_nn.phases import (
    ChemicalPotentialLine,
    heat_capacity_maxima,
    susceptibility_maxima,
)
from clease_nn.thermodynamics import (
    DensityOfStates,
    constant_composition_heat_capacity,
    density_of_states,
)

J = 0.02
LATTICE = Lattice.square(4)
ALLOY = SemiGrandCanonical(ising_energy(LATTICE, -J))  # orders
GAP = SemiGrandCanonical(ising_energy(LATTICE, J))  # separates
LINE = ChemicalPotentialLine.exchange(LATTICE, "Au", "Cu")
STATES = {"alloy": ALLOY.enumerate(LATTICE), "gap": GAP.enumerate(LATTICE)}
EXACT = {name: DensityOfStates.exact(states) for name, states in STATES.items()}
RANGE = (150.0, 3000.0)


def fine(dos, t, quantity, low, high):
    """Temperature of the maximum on a grid of 0.02 K."""
    grid = np.arange(low, high, 0.02)
    values = quantity(dos, LINE.at(grid, t))
    return grid[int(np.argmax(values))]


def heat_capacity(dos, conditions):
    """C at constant mu from every state, without reweighting code."""
    out = []
    for k in range(len(conditions)):
        h = dos.energy - dos.counts @ conditions.mu[k].numpy()
        w = np.exp(-(h - h.min()) / conditions.kT[k].item())
        w /= w.sum()
        out.append((w @ h**2 - (w @ h) ** 2) / conditions.temperature[k].item() ** 2)
    return np.array(out)


def susceptibility(dos, conditions):
    """Var(N) / kT."""
    out = []
    for k in range(len(conditions)):
        h = dos.energy - dos.counts @ conditions.mu[k].numpy()
        w = np.exp(-(h - h.min()) / conditions.kT[k].item())
        w /= w.sum()
        n = dos.counts[:, 1]
        out.append((w @ n**2 - (w @ n) ** 2) / conditions.temperature[k].item())
    return np.array(out)


@pytest.mark.parametrize(
    ("search", "quantity", "name", "t"),
    [
        (heat_capacity_maxima, heat_capacity, "alloy", 0.0),
        (heat_capacity_maxima, heat_capacity, "alloy", 0.06),
        (heat_capacity_maxima, heat_capacity, "gap", 0.01),
        (susceptibility_maxima, susceptibility, "gap", 0.01),
        (susceptibility_maxima, susceptibility, "alloy", 0.06),
    ],
)
def test_exact_maxima_are_those_of_a_fine_grid(search, quantity, name, t):
    """Continuous search ends within 0.02 K of the best point of a fine grid, without error."""
    found = search(EXACT[name], LINE, [t], RANGE)
    top = found.temperature.value[0]
    assert abs(top - fine(EXACT[name], t, quantity, top - 2, top + 2)) < 0.03
    coarse = np.geomspace(*RANGE, 60)
    values = quantity(EXACT[name], LINE.at(coarse, t))
    assert quantity(EXACT[name], LINE.at(top, t))[0] >= values.max()
    assert found.temperature.error[0] == 0.0 and found.stable.tolist() == [True]
    [a] = EXACT[name].averages(LINE.at(top, t))
    np.testing.assert_allclose(found.composition.value[0], a.composition.value[1], rtol=1e-9)


def test_at_constant_composition_it_is_that_of_the_thermodynamic_response():
    """The maximum of the heat capacity without what follows the composition."""
    found = heat_capacity_maxima(EXACT["alloy"], LINE, [0.06], RANGE, constant="composition")
    top = found.temperature.value[0]
    grid = np.arange(top - 1, top + 1, 0.05)
    c = constant_composition_heat_capacity(EXACT["alloy"], LINE.at(grid, 0.06)).value
    assert abs(grid[int(np.argmax(c))] - top) < 0.06
    whole = heat_capacity_maxima(EXACT["alloy"], LINE, [0.06], RANGE)
    assert abs(whole.temperature.value[0] - top) > 1.0


def test_one_composition_has_the_canonical_maximum():
    """States of one composition only: chemical potentials play no part."""
    half = EXACT["alloy"].restricted(EXACT["alloy"].counts[:, 0] == 8)
    found = heat_capacity_maxima(half, LINE, [0.0, 0.5], RANGE)
    np.testing.assert_allclose(*found.temperature.value, rtol=1e-6)
    np.testing.assert_allclose(found.composition.value, 0.5)


def test_symmetric_positions_have_the_same_maximum():
    """Exchange of the species turns t into -t and x into 1 - x."""
    found = heat_capacity_maxima(EXACT["alloy"], LINE, [-0.05, 0.05], RANGE)
    np.testing.assert_allclose(*found.temperature.value, rtol=1e-6)
    np.testing.assert_allclose(found.composition.value[:, 0].sum(), 1.0, atol=1e-9)


def sampled(name, seed, n=1000):
    """Exact draws at a few temperatures and chemical potentials."""
    states = STATES[name]
    at = Conditions.grid([420.0, 560.0, 750.0], LINE.mu([0.0, 0.06]))
    rng = np.random.default_rng(seed)
    rows, log_prob, conditions = [], [], []
    for k in range(len(at)):
        p = states.probabilities(at[k]).numpy()
        # not quite the distribution wanted, so that weights matter
        q = 0.9 * p + 0.1 / len(p)
        pick = rng.choice(len(p), size=n, p=q)
        rows.append(pick)
        log_prob.append(np.log(q[pick]))
        conditions.append(at[k : k + 1].repeat(n))
    rows = torch.as_tensor(np.concatenate(rows))
    c = Configurations(
        LATTICE,
        Conditions.cat(conditions),
        states.occupations[rows],
        log_prob=torch.as_tensor(np.concatenate(log_prob)),
    )
    return density_of_states(ALLOY.score(c), seed=seed)


@pytest.fixture(scope="module")
def replicas():
    """Independent densities of states of the ordering alloy."""
    return [sampled("alloy", seed) for seed in range(20)]


@pytest.mark.parametrize("constant", ["mu", "composition"])
def test_errors_of_sampled_maxima_cover(replicas, constant):
    """z-scores against the exact maxima are standard normal, for temperature and composition."""
    t = [0.0, 0.03, 0.06]
    window = (400.0, 800.0)
    options = {"constant": constant, "n_temperatures": 9}
    exact = heat_capacity_maxima(EXACT["alloy"], LINE, t, window, **options)
    z, z_x = [], []
    for dos in replicas:
        found = heat_capacity_maxima(dos, LINE, t, window, **options)
        z.append(found.temperature.z(exact.temperature.value))
        z_x.append(found.composition.z(exact.composition.value)[:, 0])
    z, z_x = np.array(z), np.array(z_x)
    assert np.isfinite(z).all() and np.abs(z).max() < 4.5
    assert 0.8 < z.std() < 1.2 and 0.8 < z_x.std() < 1.2, (z.std(), z_x.std())
    assert (np.abs(z.mean(0)) < 4.5 / np.sqrt(len(z))).all()
    assert (np.abs(z_x.mean(0)) < 4.5 / np.sqrt(len(z))).all()


def test_sampled_susceptibility_maxima_cover(replicas):
    """The same for the maximum of the composition's fluctuations."""
    exact = susceptibility_maxima(EXACT["alloy"], LINE, [0.06], (450.0, 800.0))
    z = [
        susceptibility_maxima(dos, LINE, [0.06], (450.0, 800.0), n_temperatures=9).temperature.z(
            exact.temperature.value
        )[0]
        for dos in replicas
    ]
    assert np.isfinite(z).all() and np.abs(z).max() < 4.5 and 0.8 < np.std(z) < 1.2, np.std(z)


def test_errors_are_small_enough_to_be_of_use(replicas):
    """Thousands of draws near the maximum place it within ten kelvin."""
    found = heat_capacity_maxima(replicas[0], LINE, [0.0], (400.0, 800.0))
    assert 0 < found.temperature.error[0] < 10


# ------------------------------------------------------------------ not determined
def test_a_maximum_outside_the_range_is_not_given():
    """The edge of the range is no maximum, and the result says so."""
    found = heat_capacity_maxima(EXACT["alloy"], LINE, [0.0], (700.0, 3000.0))
    assert np.isnan(found.temperature.value).all() and np.isnan(found.composition.value).all()
    assert "the maximum lies at the edge 700 K of the range" in found.reason
    assert not found.stable.any()
    low = heat_capacity_maxima(EXACT["alloy"], LINE, [0.0], (100.0, 400.0))
    assert "edge 400 K" in low.reason


def test_conditions_without_data_give_no_maximum(replicas):
    """Far from all samples nothing is said; near their edge the edge is named."""
    found = heat_capacity_maxima(replicas[0], LINE, [2.0], (20.0, 60.0))
    assert np.isnan(found.temperature.value).all()
    assert "the data determine the heat-capacity at" in found.reason
    dos = replicas[0]
    half = heat_capacity_maxima(dos, LINE, [0.0], (650.0, 4000.0))
    assert np.isnan(half.temperature.value).all() and "edge 650 K" in half.reason


def test_flat_curves_have_no_maximum():
    """One state a composition: no fluctuation of the energy at all."""
    lattice = Lattice.square(1)
    dos = DensityOfStates.exact(SemiGrandCanonical(ising_energy(lattice)).enumerate(lattice))
    line = ChemicalPotentialLine.exchange(lattice, "Au", "Cu")
    found = heat_capacity_maxima(dos, line, [0.0], RANGE)
    assert np.isnan(found.temperature.value).all() and "flat" in found.reason


def test_lower_maxima_are_told():
    """Two Schottky anomalies far apart: the highest counts, the other is listed."""
    lattice = Lattice.square(2, species=("Cu", "Au"))
    gaps = torch.tensor([0.01, 0.01, 0.2, 0.2], dtype=torch.float64)
    model = SemiGrandCanonical(lambda lattice, x: (x.to(torch.float64) * gaps).sum(1))
    dos = DensityOfStates.exact(model.enumerate(lattice))
    line = ChemicalPotentialLine.exchange(lattice, "Au", "Cu")
    found = heat_capacity_maxima(dos, line, [0.0], (10.0, 5000.0))
    # a two-level system with gap d has its maximum where x tanh(x/2) = 2, x = d/kT = 2.39936
    tops = np.array([0.01, 0.2]) / (2.39936 * kB)
    assert np.abs(tops / found.temperature.value[0] - 1).min() < 0.02
    assert "a lower maximum at" in found.reason
    other = float(found.reason.split("a lower maximum at ")[1].split(" K")[0])
    assert np.abs(tops / other - 1).min() < 0.02


def test_three_species_and_sublattices_are_served():
    """Any lattice and any line; the maximum is the highest of a grid."""
    for name in ("ternary", "two_sublattices"):
        lattice, ensemble, _ = SYSTEMS[name]()
        dos = DensityOfStates.exact(ensemble.enumerate(lattice))
        line = ChemicalPotentialLine.exchange(lattice, "Au", "Cu")
        for constant in ("mu", "composition"):
            found = heat_capacity_maxima(dos, line, [0.02], (50, 5000), constant=constant)
            top = found.temperature.value[0]
            assert np.isfinite(top)
            if constant == "mu":
                c = dos.averages(line.at([top - 1, top, top + 1], 0.02))
                assert np.argmax([a.heat_capacity.value for a in c]) == 1


def test_bad_questions_are_refused():
    """Empty ranges, foreign lines, unknown choices."""
    dos = EXACT["alloy"]
    for bad in ((300, 200), (0, 100), (100, np.inf)):
        with pytest.raises(ValueError, match="low"):
            heat_capacity_maxima(dos, LINE, [0.0], bad)
    with pytest.raises(ValueError, match="constant"):
        heat_capacity_maxima(dos, LINE, [0.0], RANGE, constant="volume")
    with pytest.raises(ValueError, match="at least 5"):
        heat_capacity_maxima(dos, LINE, [0.0], RANGE, n_temperatures=2)
    with pytest.raises(ValueError, match="finite"):
        heat_capacity_maxima(dos, LINE, [np.nan], RANGE)
    with pytest.raises(ValueError, match="finite"):
        heat_capacity_maxima(dos, LINE, [], RANGE)
    foreign = ChemicalPotentialLine.exchange(Lattice.square(2, species=("Pd", "Ag")), "Ag", "Pd")
    for search in (heat_capacity_maxima, susceptibility_maxima):
        with pytest.raises(ValueError, match="does not fit"):
            search(dos, foreign, [0.0], RANGE)
