"""Laws of responses: derivatives along the right path, exact limits, errors that are right."""

import numpy as np
import pytest
from ase.units import kB
from scipy.optimize import brentq
from toys import random_expansion, two_sublattices
from weighted_states import assert_standard, drawn, mixture

from clease_nn.conditions import Conditions
from clease_nn.energies.ising import ising_energy
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.errors import NotDeterminedError
from clease_nn.lattice import Lattice
from clease_nn.thermodynamics import (
    DensityOfStates,
    constant_composition_heat_capacity,
    thermodynamic_factor,
)

GRID = Conditions.grid([500.0, 700.0, 1100.0], [[0.0, x] for x in (-0.05, 0.0, 0.02)])


@pytest.fixture(scope="module")
def ising():
    """9 sites that unmix."""
    cell = Lattice.square(3)
    return SemiGrandCanonical(ising_energy(cell, 0.02)).enumerate(cell)


@pytest.fixture(scope="module")
def ternary():
    """9 sites, three species."""
    cell = Lattice.square(3, species=("Cu", "Au", "Ag"))
    return SemiGrandCanonical(random_expansion(cell, 4)).enumerate(cell)


def ideal(species):
    """9 sites without interactions."""
    cell = Lattice.square(3, species=species)
    zero = SemiGrandCanonical(lambda lattice, x: np.zeros(len(x)))
    return DensityOfStates.exact(zero.enumerate(cell))


def test_heat_capacity_is_the_slope_of_the_energy_at_fixed_composition(ising):
    """d<E>/dT along the path on which mu keeps the mean composition where it is."""
    dos = DensityOfStates.exact(ising)

    def gold(t, mu):
        return dos.averages(Conditions([t], [[0.0, mu]]))[0].composition.value[1]

    def energy(t, x):
        mu = brentq(lambda m: gold(t, m) - x, -0.5, 0.5, xtol=1e-14)
        return dos.averages(Conditions([t], [[0.0, mu]]))[0].energy.value

    for mu in (-0.03, 0.02):
        at = Conditions([800.0], [[0.0, mu]])
        x = gold(800.0, mu)
        slope = (energy(801.0, x) - energy(799.0, x)) / 2
        c_x = constant_composition_heat_capacity(dos, at)
        assert c_x.value[0] == pytest.approx(slope, rel=1e-5)
        assert c_x.error[0] == 0


@pytest.mark.parametrize("name", ["ising", "ternary", "sublattices"])
def test_fixing_the_composition_lowers_the_heat_capacity(name, request):
    """0 <= C_x <= C_mu everywhere, on sublattices too; a common shift of mu changes nothing."""
    if name == "sublattices":
        cell, ensemble, _ = two_sublattices()
        states = ensemble.enumerate(cell)
    else:
        states = request.getfixturevalue(name)
    dos = DensityOfStates.exact(states)
    rng = np.random.default_rng(0)
    mu = rng.normal(scale=0.1, size=(8, dos.lattice.n_species))
    at = Conditions(rng.uniform(200, 2000, 8), mu)
    c_x = constant_composition_heat_capacity(dos, at)
    c_mu = np.array([a.heat_capacity.value for a in dos.averages(at)])
    assert (c_x.value >= -1e-15).all() and (c_x.value <= c_mu * (1 + 1e-9)).all()
    shifted = constant_composition_heat_capacity(dos, Conditions(at.temperature, mu + 0.7))
    np.testing.assert_allclose(shifted.value, c_x.value, rtol=1e-6, atol=1e-14)


def test_energy_that_follows_the_composition_has_no_heat_capacity():
    """Where E is linear in N all fluctuations of E are those of N."""
    cell = Lattice.square(3)
    linear = SemiGrandCanonical(lambda lattice, x: 0.05 * x.sum(1).double()).enumerate(cell)
    at = Conditions([600.0], [[0.0, 0.02]])
    dos = DensityOfStates.exact(linear)
    assert abs(constant_composition_heat_capacity(dos, at).value[0]) < 1e-15
    assert dos.mean(dos.energy, at).value[0] > 0


def test_errors_of_responses_are_calibrated(ising):
    """C_x, the thermodynamic factor and Darken's lie within their own errors."""
    exact = DensityOfStates.exact(ising)
    c_x = constant_composition_heat_capacity(exact, GRID).value
    theta = thermodynamic_factor(exact, GRID)
    q = mixture(ising, GRID)
    rng = np.random.default_rng(1)
    scores = {"c_x": [], "factor": [], "darken": []}
    for _ in range(22):
        dos = drawn(ising, q, 5000, rng)
        scores["c_x"].append(constant_composition_heat_capacity(dos, GRID).z(c_x))
        found = thermodynamic_factor(dos, GRID)
        assert found.reasons == ()
        scores["factor"].append(found.factor.z(theta.factor.value))
        scores["darken"].append(found.darken.z(theta.darken.value))
    for z in scores.values():
        assert_standard(z)


@pytest.mark.parametrize("species", [("Cu", "Au"), ("Cu", "Au", "Ag")])
def test_ideal_solutions_have_the_ideal_factor(species):
    """Theta_ij = delta_ij / x_i + 1 / x_solvent; Darken's form is 1."""
    dos = ideal(species)
    rng = np.random.default_rng(2)
    at = Conditions([600.0] * 5, rng.normal(scale=0.06, size=(5, len(species))))
    found = thermodynamic_factor(dos, at, solvent="Au")
    assert found.species == tuple(s for s in species if s != "Au") and found.solvent == "Au"
    x = found.composition.value
    solvent = 1 - x.sum(1)
    expected = np.einsum("ci,ij->cij", 1 / x, np.eye(x.shape[1])) + 1 / solvent[:, None, None]
    np.testing.assert_allclose(found.factor.value, expected, rtol=1e-7)
    if len(species) == 2:
        np.testing.assert_allclose(found.darken.value, 1, rtol=1e-7)
    else:
        assert found.darken is None


def test_factor_is_the_slope_of_chemical_potentials(ternary):
    """The Jacobian of x with respect to mu/kT is the inverse of Theta."""
    dos = DensityOfStates.exact(ternary)
    t, mu, h = 900.0, np.array([0.0, 0.02, -0.03]), 1e-4
    theta = thermodynamic_factor(dos, Conditions([t], mu[None]))
    assert theta.species == ("Au", "Ag")
    jacobian = np.empty((2, 2))
    for j in (1, 2):
        both = Conditions([t, t], np.stack([mu + h * np.eye(3)[j], mu - h * np.eye(3)[j]]))
        up, down = (a.composition.value[1:] for a in dos.averages(both))
        jacobian[:, j - 1] = (up - down) / (2 * h / (kB * t))
    np.testing.assert_allclose(theta.factor.value[0] @ jacobian, np.eye(2), atol=1e-4)
    np.testing.assert_allclose(theta.factor.value[0], theta.factor.value[0].T, rtol=1e-9)


def test_darken_form_is_the_factor_times_both_shares(ising):
    """x (1 - x) Theta, with the error of the product."""
    dos = drawn(ising, mixture(ising, GRID), 4000, np.random.default_rng(3))
    found = thermodynamic_factor(dos, GRID)
    x = found.composition.value[:, 0]
    np.testing.assert_allclose(
        found.darken.value, x * (1 - x) * found.factor.value[:, 0, 0], rtol=1e-9
    )
    assert (found.darken.error > 0).all()


def test_frozen_composition_is_not_determined(ising):
    """A pure phase whose composition never moves: nan and the reason, for it alone."""
    at = Conditions([150.0, 900.0], [[0.0, 0.3], [0.0, 0.0]])
    dos = drawn(ising, mixture(ising, at), 2000, np.random.default_rng(4))
    found = thermodynamic_factor(dos, at)
    assert np.isnan(found.factor.value[0]).all() and np.isnan(found.darken.value[0])
    assert np.isfinite(found.factor.value[1]).all()
    [reason] = found.reasons
    assert "T = 150 K" in reason and "hardly moves" in reason
    assert constant_composition_heat_capacity(dos, at).value[0] == pytest.approx(0, abs=1e-12)


def test_bad_requests_are_refused(ising):
    """Unknown solvents, sublattices, conditions without data."""
    dos = DensityOfStates.exact(ising)
    for function in (thermodynamic_factor, constant_composition_heat_capacity):
        with pytest.raises(TypeError, match="combine configurations"):
            function([1.0, 2.0], GRID)
    with pytest.raises(ValueError, match="solvent 'Ag' is none"):
        thermodynamic_factor(dos, GRID, solvent="Ag")
    cell, ensemble, box = two_sublattices()
    split = DensityOfStates.exact(ensemble.enumerate(cell))
    with pytest.raises(ValueError, match="moves in 2 directions"):
        thermodynamic_factor(split, box.grid(1, 1))
    cold = Conditions([200.0], [[0.0, -0.3]])
    few = drawn(
        ising, mixture(ising, Conditions([900.0], [[0.0, 0.2]])), 300, np.random.default_rng(5)
    )
    for function in (thermodynamic_factor, constant_composition_heat_capacity):
        with pytest.raises(NotDeterminedError, match="T = 200 K"):
            function(few, cold)
