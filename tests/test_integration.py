"""Thermodynamic integration against enumeration."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toys import SYSTEMS, binary, ternary

from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.cost import Cost
from clease_nn.energies.ising import ising_energy
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import Lattice
from clease_nn.statistics import Estimate
from clease_nn.thermodynamics import (
    Averages,
    DensityOfStates,
    averages,
    excitation_log_z,
    hysteresis,
    integrate_grand_potential,
)

METHODS = ("trapezoid", "simpson", "spline")


def exact(name):
    """Lattice, density of states by enumeration."""
    lattice, ensemble, _ = SYSTEMS[name]()
    return lattice, DensityOfStates.exact(ensemble.enumerate(lattice))


def isotherm(lattice, n=41, reach=0.4, temperature=1000.0, direction=None):
    """Chemical potentials on a line, in order."""
    k = lattice.n_species
    direction = np.eye(k)[0] - 0.3 * np.eye(k)[-1] if direction is None else direction
    return Conditions.grid([temperature], np.linspace(-reach, reach, n)[:, None] * direction)


def heating(lattice, n=41, mu=0.03):
    """Temperatures from 400 to 4000 K at one set of chemical potentials."""
    mus = np.tile(mu * np.arange(lattice.n_species), (n, 1))
    return Conditions(1 / np.linspace(1 / 400, 1 / 4000, n), mus)


def drawn(states, path, n, rng):
    """Exact independent samples at every condition, to be read as unweighted."""
    rows = np.concatenate(
        [
            rng.choice(len(states.energy), n, p=states.probabilities(path[k]).numpy())
            for k in range(len(path))
        ]
    )
    at = path.repeat(n)
    energy = states.energy[rows]
    c = Configurations(states.lattice, at, states.occupations[rows], energy=energy)
    log_target = SemiGrandCanonical.log_weight(c, energy)
    return replace(c, log_target=log_target, chain=torch.arange(len(at)))


# ------------------------------------------------------------------ exact paths
@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("kind", [isotherm, heating])
@pytest.mark.parametrize("method", METHODS)
def test_exact_averages_give_exact_differences(name, kind, method):
    """With exact averages ln Z is exact but for the spacing, in both directions."""
    lattice, dos = exact(name)
    path = kind(lattice)
    log_z = dos.log_z(path).value
    for order in (np.arange(len(path)), np.arange(len(path))[::-1]):
        rows = torch.as_tensor(order.copy())
        found = integrate_grand_potential(dos.averages(path[rows]), log_z[order[0]], method=method)
        off = np.abs(found.log_z.value - log_z[order])
        assert off.max() < (0.03 if method == "trapezoid" else 2e-3)
        assert off.max() <= 1.5 * np.nanmax(np.abs(found.discretisation)) + 1e-6
        assert (found.log_z.error == 0).all()
        kT = path[rows].kT.numpy()
        per_site = -kT * log_z[order] / lattice.n_sites
        assert np.allclose(found.grand_potential_per_site.value, per_site, atol=1e-3)


@pytest.mark.parametrize(("method", "order"), [("trapezoid", 2), ("simpson", 4), ("spline", 4)])
def test_rules_converge_at_their_order(method, order):
    """Half the spacing, a quarter or a sixteenth of the error."""
    lattice, dos = exact("binary")
    off = []
    for n in (81, 161):
        path = isotherm(lattice, n)
        log_z = dos.log_z(path).value
        found = integrate_grand_potential(dos.averages(path), log_z[0], method=method)
        off.append(abs(found.log_z.value[-1] - log_z[-1]) + 1e-14)
    assert off[1] < 1.3 * off[0] / 2**order + 1e-9


def test_infinite_temperature_is_a_start():
    """From all configurations being equal, down in temperature."""
    lattice, dos = exact("binary")
    beta = np.linspace(0, 1 / 500, 61)
    path = Conditions(1 / np.maximum(beta, 1e-12), np.tile([0.05, 0.0], (61, 1)))
    found = integrate_grand_potential(dos.averages(path), lattice.log_states)
    assert np.abs(found.log_z.value - dos.log_z(path).value).max() < 1e-3


# ------------------------------------------------------------------ errors
@pytest.mark.filterwarnings("ignore::clease_nn.warnings.LowESSWarning")
@pytest.mark.parametrize("kind", [isotherm, heating])
def test_errors_are_calibrated(kind):
    """z-scores of ln Z along the path have mean 0 and spread 1 over independent replicas."""
    lattice, ensemble, _ = binary()
    states = ensemble.enumerate(lattice)
    path = kind(lattice, 7, **({"reach": 0.15} if kind is isotherm else {}))
    dos = DensityOfStates.exact(states)
    # against the integral of the exact averages: the spacing is not at stake
    reference = integrate_grand_potential(dos.averages(path), 0.0).log_z.value
    rng = np.random.default_rng(7)
    z = []
    for _ in range(50):
        found = integrate_grand_potential(averages(drawn(states, path, 60, rng)), Estimate(0, 0))
        z.append(found.log_z.z(reference)[[2, 4, 6]])
    z = np.array(z)
    last = z[:, -1]
    assert abs(last.mean()) < 4 * last.std() / np.sqrt(len(last))
    # 50 replicas: 4 errors of a standard deviation are 0.4
    assert 0.6 < last.std() < 1.4
    assert 0.7 < z.std() < 1.3


@pytest.mark.filterwarnings("ignore::clease_nn.warnings.LowESSWarning")
def test_errors_of_oblique_paths_are_not_too_small():
    """With three species and all potentials moving the error is right or on the safe side."""
    lattice, ensemble, _ = ternary()
    states = ensemble.enumerate(lattice)
    path = isotherm(lattice, 5, 0.1, direction=np.array([1.0, -0.6, 0.2]))
    reference = integrate_grand_potential(
        DensityOfStates.exact(states).averages(path), 0.0
    ).log_z.value[-1]  # fmt: skip
    rng = np.random.default_rng(8)
    z = [
        integrate_grand_potential(averages(drawn(states, path, 60, rng)), 0.0).log_z.z(reference)[
            -1
        ]
        for _ in range(50)
    ]
    assert 0.5 < np.std(z) < 1.4


def test_the_error_of_the_start_is_carried_along():
    """It adds in quadrature, everywhere."""
    lattice, dos = exact("binary")
    path = isotherm(lattice, 5)
    found = integrate_grand_potential(dos.averages(path), Estimate(3.0, 0.25))
    assert np.allclose(found.log_z.error, 0.25)


def test_the_cost_is_that_of_the_averages():
    """And zero where they are a plain list."""
    lattice, dos = exact("binary")
    found = dos.averages(isotherm(lattice, 5))
    assert integrate_grand_potential(found, 0.0).cost == dos.cost
    assert integrate_grand_potential(list(found), 0.0).cost == Cost()


# ------------------------------------------------------------------ hysteresis
@pytest.mark.filterwarnings("ignore::clease_nn.warnings.LowESSWarning")
def test_two_honest_directions_agree():
    """Equilibrium samples of both directions are not flagged; each is its own run."""
    lattice, ensemble, _ = binary()
    states = ensemble.enumerate(lattice)
    path = isotherm(lattice, 21, 0.2)
    back = path[torch.arange(20, -1, -1)]
    rng = np.random.default_rng(1)
    log_z = states.log_z(path).numpy()
    pair = hysteresis(
        averages(drawn(states, path, 200, rng)),
        averages(drawn(states, back, 200, rng)),
        references=(log_z[0], log_z[-1]),
    )
    assert not pair.mask.any() and "0 of 21" in str(pair)


@pytest.mark.filterwarnings("ignore::clease_nn.warnings.LowESSWarning")
def test_metastable_branches_are_flagged():
    """A ferromagnet that keeps its phase until half way: flagged where it does, and beyond."""
    lattice = Lattice.square(3)
    ensemble = SemiGrandCanonical(ising_energy(lattice))
    states = ensemble.enumerate(lattice)
    path = Conditions.from_kT(
        np.full(21, 1.2), np.linspace(-0.25, 0.25, 21)[:, None] * np.array([[-1.0, 1.0]])
    )
    log_z = states.log_z(path).numpy()
    ups = (states.occupations == 1).sum(1).numpy()
    rng = np.random.default_rng(2)

    def branch(order, stays, until):
        out = []
        for k in order:
            p = states.probabilities(path[int(k)]).numpy()
            if until(k):
                p = np.where(stays, p, 0.0)
            out.append(rng.choice(len(p), 300, p=p / p.sum()))
        at = path[torch.as_tensor(np.array(order))].repeat(300)
        rows = np.concatenate(out)
        c = Configurations(lattice, at, states.occupations[rows], energy=states.energy[rows])
        c = replace(c, log_target=SemiGrandCanonical.log_weight(c, c.energy))
        return averages(replace(c, chain=torch.arange(len(c))))

    up = branch(range(21), ups < 5, lambda k: k <= 14)
    down = branch(range(20, -1, -1), ups > 4, lambda k: k >= 6)
    pair = hysteresis(up, down, references=(log_z[0], log_z[-1]))
    assert pair.branches[8:13].all() and not pair.branches[[0, 1, 2, 18, 19, 20]].any()
    assert pair.integrated[[0, 20]].all()  # the integrals know it even where averages agree
    assert (pair.mask == (pair.branches | pair.integrated)).all()
    assert hysteresis(up, down).integrals is None


# ------------------------------------------------------------------ starts
@pytest.mark.parametrize("name", ["binary", "ternary"])
def test_excitations_of_a_ground_state(name):
    """The expansion differs from ln Z by less than it says, and by less the colder it is."""
    lattice, ensemble, _ = SYSTEMS[name]()
    states = ensemble.enumerate(lattice)
    mu = 0.6 * np.eye(lattice.n_species)[:1]
    path = Conditions([500.0, 1000.0], np.repeat(mu, 2, axis=0))
    found = excitation_log_z(ensemble, lattice, np.zeros(lattice.n_sites), path)
    off = np.abs(found.value - states.log_z(path).numpy())
    assert (off <= found.error + 1e-9).all() and off[0] <= off[1] < 0.05


def test_a_start_must_be_a_ground_state():
    """A phase that a single change improves is refused, and so are wrong occupations."""
    lattice, ensemble, _ = binary()
    at = Conditions([500.0], [[0.6, 0.0]])
    with pytest.raises(ValueError, match="no ground state"):
        excitation_log_z(ensemble, lattice, np.ones(lattice.n_sites), at)
    for bad in (np.zeros(3), np.full(lattice.n_sites, -1), np.full(lattice.n_sites, 2)):
        with pytest.raises(ValueError, match="allowed species"):
            excitation_log_z(ensemble, lattice, bad, at)


# ------------------------------------------------------------------ bad input
def test_paths_that_are_none():
    """Too short, turning back, standing still, bent, or with everything changing at once."""
    lattice, dos = exact("binary")
    path = isotherm(lattice, 5)
    found = dos.averages(path)
    with pytest.raises(ValueError, match="at least two points"):
        integrate_grand_potential(found[:1], 0.0)
    for order in ([0, 2, 1], [0, 1, 1, 2]):
        with pytest.raises(ValueError, match="turns back"):
            integrate_grand_potential([found[k] for k in order], 0.0)
    both = dos.averages(Conditions([500.0, 600.0], [[0.0, 0.0], [0.0, 0.1]]))
    with pytest.raises(ValueError, match="both change"):
        integrate_grand_potential(both, 0.0)
    lattice, dos = exact("ternary")
    bent = dos.averages(Conditions.grid([900.0], [[0, 0, 0], [0.1, 0, 0], [0.1, 0.1, 0]]))
    with pytest.raises(ValueError, match="straight line"):
        integrate_grand_potential(bent, 0.0)


def test_other_bad_input():
    """An unknown rule, a reference that is no number, averages that are not finite."""
    lattice, dos = exact("binary")
    found = dos.averages(isotherm(lattice, 5))
    with pytest.raises(ValueError, match="method must be one of"):
        integrate_grand_potential(found, 0.0, method="gauss")
    for start in (Estimate(np.zeros(2), np.zeros(2)), np.nan, Estimate(1.0, np.inf)):
        with pytest.raises(ValueError, match="one finite number"):
            integrate_grand_potential(found, start)
    spoilt = replace(found[2], composition=Estimate(np.full(2, np.nan), np.zeros(2)))
    with pytest.raises(ValueError, match="point 2 .* not finite"):
        integrate_grand_potential(Averages([*found[:2], spoilt, *found[3:]]), 0.0)
    with pytest.raises(ValueError, match="opposite directions"):
        hysteresis(found, found)
