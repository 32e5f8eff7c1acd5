"""The density of states: exact thermodynamics, parts of it, replicas and refusals."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase.units import kB
from toys import SYSTEMS

from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.cost import Cost
from clease_nn.errors import NotDeterminedError
from clease_nn.statistics import Estimate
from clease_nn.thermodynamics import DensityOfStates, density_of_states
from clease_nn.warnings import LowESSWarning


@pytest.fixture(scope="module", params=sorted(SYSTEMS))
def system(request):
    """Lattice, exact states, density of states, conditions across the range."""
    lattice, ensemble, box = SYSTEMS[request.param]()
    states = ensemble.enumerate(lattice)
    return lattice, states, DensityOfStates.exact(states), box.grid(2, 3)


def test_exact_averages_are_those_of_the_enumeration(system):
    """ln Z, means and covariances of every condition are exact, their errors zero."""
    lattice, states, dos, at = system
    counts = torch.stack([(states.occupations == a).sum(1) for a in range(lattice.n_species)], 1)
    for k, a in enumerate(dos.averages(at)):
        p, t = states.probabilities(at[k]).numpy(), at.temperature[k].item()
        n = counts.numpy().astype(float)
        h = states.energy.numpy() - n @ at.mu[k].numpy()
        mean = p @ n
        log_z = states.log_z(at[k])[0].item()
        assert a.log_z.value == pytest.approx(log_z, abs=1e-10)
        assert a.energy.value == pytest.approx(p @ states.energy.numpy(), abs=1e-10)
        assert a.heat_capacity.value == pytest.approx(p @ (h - p @ h) ** 2 / (kB * t**2))
        assert a.entropy.value == pytest.approx(-kB * p @ np.log(p), rel=1e-9)
        np.testing.assert_allclose(a.composition.value, mean / lattice.n_sites, atol=1e-12)
        covariance = (p[:, None] * n).T @ n - np.outer(mean, mean)
        np.testing.assert_allclose(a.count_covariance.value, covariance, atol=1e-9)
        assert a.log_z.error == a.energy.error == a.heat_capacity.error == 0
    np.testing.assert_allclose(dos.log_z(at).value, states.log_z(at).numpy(), atol=1e-10)


def test_exact_states_determine_everything(system):
    """Every condition is determined, and nothing but the enumeration was paid."""
    _, states, dos, at = system
    assert dos.is_exact and dos.determined(at).all() and np.isinf(dos.ess(at)).all()
    assert dos.cost == Cost(energy_evaluations=len(states.energy))


def test_a_density_of_states_is_printed_in_a_line(system):
    """Number of states and sites, and whether ln Z is absolute: no arrays."""
    _, states, dos, at = system
    assert f"({len(states.energy)} states of " in str(dos)
    assert "exact, absolute ln Z" in str(dos) and "sampled" not in str(dos)
    sampled = str(replace(dos, absolute=False, sampled=at))
    assert f"{len(at)} sampled conditions" in sampled and "relative ln Z" in sampled
    assert len(sampled) < 200 and "\n" not in sampled


def test_parts_add_up(system):
    """The partition functions of all compositions add up to the whole."""
    _, _, dos, at = system
    _, part = np.unique(dos.counts, axis=0, return_inverse=True)
    parts = [dos.restricted(part.ravel() == k).log_z(at).value for k in range(part.max() + 1)]
    np.testing.assert_allclose(np.logaddexp.reduce(parts), dos.log_z(at).value, atol=1e-10)


def test_means_and_histograms_of_any_observable(system):
    """A histogram is the mean of indicators; all bins and what is outside add up to one."""
    _, states, dos, at = system
    values = states.energy.numpy()
    edges = np.quantile(values, [0.1, 0.3, 0.6, 1.0])
    h = dos.histogram(values, edges, at)
    np.testing.assert_allclose(h.probability.value.sum(1) + h.outside.value, 1, atol=1e-6)
    first = (values >= edges[0]) & (values < edges[1])
    np.testing.assert_allclose(h.probability.value[:, 0], dos.mean(first, at).value, atol=1e-6)
    exact = states.mean(at, torch.as_tensor(np.stack([values, values**2], 1)))
    np.testing.assert_allclose(dos.mean(np.stack([values, values**2], 1), at).value, exact)


def with_replicas(system, spread=0.1, n=400):
    """The exact states with replicas whose weights are off by independent factors."""
    dos = system[2]
    noise = np.random.default_rng(0).normal(size=(len(dos), n))
    return replace(dos, replicas=np.exp(spread * noise).astype(np.float32))


def test_moments_carry_the_spread_of_replicas(system):
    """Errors of functions of means are those of recomputing them with every replica's weights."""
    _, states, _, at = system
    dos = with_replicas(system)
    e = states.energy.numpy()
    m = dos.moments(np.stack([e, e**2], 1), at[0], check=False)
    found = m.estimate(lambda x: x[1] - x[0] ** 2)
    w = states.probabilities(at[0]).numpy()[:, None] * dos.replicas.astype(float)
    log_z = np.log(w.sum(0))
    w /= w.sum(0)
    variance = (w * e[:, None] ** 2).sum(0) - (w * e[:, None]).sum(0) ** 2
    assert found.error == pytest.approx(variance.std(ddof=1), rel=1e-3)
    np.testing.assert_allclose(m.log_z_replicas - m.log_z, log_z, atol=1e-5)


def test_equal_factors_move_ln_z_but_no_mean(system):
    """A common factor of a replica is an error of the constant of ln Z alone."""
    _, _, dos, at = system
    factor = np.exp(np.random.default_rng(0).normal(0, 0.3, 200)).astype(np.float32)
    dos = replace(dos, replicas=np.repeat(factor[None], len(dos), 0))
    m = dos.moments(dos.energy, at[0], check=False)
    assert m.estimate().error < 1e-5 * np.abs(dos.energy).max()
    assert m.log_z_replicas.std() == pytest.approx(np.log(factor).std(), rel=1e-3)


def draws(n, seed=0, chain=False):
    lattice, ensemble, box = SYSTEMS["binary"]()
    states, at = ensemble.enumerate(lattice), box.grid(1, 1)
    p = states.probabilities(at).numpy()
    rows = torch.as_tensor(np.random.default_rng(seed).choice(len(p), n, p=p))
    kind = {"chain": torch.arange(n)} if chain else {"log_prob": torch.as_tensor(np.log(p))[rows]}
    c = Configurations(lattice, at.repeat(n), states.occupations[rows], **kind)
    return ensemble.score(c), at


def test_few_effective_states_warn_and_fewer_refuse():
    """Below 200 effective states a warning, below 50 a refusal."""
    c, at = draws(150)
    with pytest.warns(LowESSWarning, match="150 effective"):
        density_of_states(c).averages(at)
    c, at = draws(45)
    with pytest.raises(NotDeterminedError, match=r"45.0 effective of 45 samples \(need 50\)"):
        density_of_states(c).averages(at)
    c, at = draws(400)
    with warnings.catch_warnings():
        warnings.simplefilter("error", LowESSWarning)
        density_of_states(c).averages(at)


def test_effective_states_count_correlations():
    """Rows of which two are as good as one count half."""
    c, at = draws(400)
    dos = density_of_states(c)
    slow = replace(dos, inefficiency=np.full(len(dos), 2.0))
    np.testing.assert_allclose(slow.ess(at), dos.ess(at) / 2)


def test_an_estimate_of_an_exact_density_has_no_error():
    """Moments of exact states are returned with error zero."""
    lattice, ensemble, box = SYSTEMS["binary"]()
    dos = DensityOfStates.exact(ensemble.enumerate(lattice))
    e = dos.moments(dos.counts, box.grid(1, 1)).estimate()
    assert isinstance(e, Estimate) and (e.error == 0).all() and e.value.shape == (2,)


def test_bad_input_is_refused(system):
    """Errors name the shapes and what is wrong with them."""
    lattice, _, dos, at = system
    with pytest.raises(ValueError, match="at least one state"):
        DensityOfStates(lattice, np.empty(0), np.empty((0, lattice.n_species)), np.empty(0))
    with pytest.raises(ValueError, match="need counts of shape"):
        DensityOfStates(lattice, dos.energy, dos.counts[:2], dos.log_g)
    with pytest.raises(ValueError, match="NaN or infinite"):
        DensityOfStates(lattice, dos.energy * np.nan, dos.counts, dos.log_g)
    with pytest.raises(ValueError, match="rows, one a state"):
        DensityOfStates(lattice, dos.energy, dos.counts, dos.log_g, replicas=np.ones((3, 2)))
    for bad, text in (((len(dos), 1), "at least two replicas, got 1"), ((len(dos),), "got shape")):
        with pytest.raises(ValueError, match=text):
            replace(dos, replicas=np.ones(bad, dtype=np.float32))
    for read in (dos.log_z, lambda x: dos.mean(dos.energy, x)):
        with pytest.raises(ValueError, match="no conditions"):
            read(at[:0])
    with pytest.raises(ValueError, match="booleans"):
        dos.restricted(np.arange(3))
    with pytest.raises(ValueError, match="never sampled"):
        dos.restricted(np.zeros(len(dos), dtype=bool))
    with pytest.raises(ValueError, match="one condition at a time"):
        dos.log_weights(at)
    with pytest.raises(ValueError, match="values have 3 rows"):
        dos.mean(np.zeros(3), at)
    with pytest.raises(ValueError, match="chemical potentials"):
        dos.log_z(Conditions([600.0], np.zeros((1, lattice.n_species + 1))))
    with pytest.raises(ValueError, match="ascending"):
        dos.histogram(dos.energy, [1.0, 0.0], at)
