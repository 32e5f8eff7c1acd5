"""Laws of the chains: stationary distribution, heat-bath probabilities, energies, resume."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from clease_nn.conditions import Conditions
from clease_nn.energies.cluster_expansion import ClusterExpansionEnergy
from clease_nn.energies.tables import ClusterTables
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import Lattice
from clease_nn.montecarlo import Chains, heat_bath_probabilities

FUNCTIONS = {2: [[-1.0, 1.0]], 3: [[-1.2, 0.0, 1.2], [0.7, -1.4, 0.7]]}


def expansion(lattice, seed, n_terms=25, scale=0.02):
    """Random one- to four-site terms on random sites."""
    rng = np.random.default_rng(seed)
    functions = FUNCTIONS[lattice.n_species]
    terms = []
    for _ in range(n_terms):
        sites = rng.choice(lattice.n_sites, rng.integers(1, 5), replace=False)
        terms.append(
            (scale * rng.normal(), [(int(s), int(rng.integers(len(functions)))) for s in sites])
        )
    return ClusterTables.from_terms(lattice.n_sites, functions, terms, 0.3)


def two_sublattices():
    """Three sites Cu/Au, two sites Au/Ag, one site Cu only."""
    template = Lattice.square(3, 2).template
    allowed = [[1, 1, 0]] * 3 + [[0, 1, 1]] * 2 + [[1, 0, 0]]
    return Lattice(template, range(6), ["Cu", "Au", "Ag"], allowed)


LATTICES = {
    "binary": Lattice.square(3, 2),
    "ternary": Lattice.square(2, 2, ("Cu", "Au", "Ag")),
    "sublattices": two_sublattices(),
}


def flips_only(energy):
    """The same energies for an engine that sees flip energies but no tables."""

    class Flips:
        def __call__(self, lattice, occupations):
            return energy(lattice, occupations)

        def flip_energies(self, lattice, occupations):
            return energy.flip_energies(lattice, occupations)

    return Flips()


ENGINES = {
    "tables": lambda energy: energy,
    "flips": flips_only,
    "plain": lambda energy: lambda lattice, occupations: energy(lattice, occupations),
}


def state_index(lattice, occupations):
    """Row of every configuration in ``ensemble.enumerate``."""
    index = np.zeros(len(occupations), dtype=int)
    place = 1
    for i in range(lattice.n_sites):
        choices = np.flatnonzero(lattice.allowed[i])
        index += place * np.searchsorted(choices, occupations[:, i])
        place *= len(choices)
    return index


def chi_square(index, probabilities):
    """p-value of observed states against their probabilities, rare states pooled."""
    n = len(index)
    observed = np.bincount(index, minlength=len(probabilities))
    rare = probabilities * n < 10
    o = np.append(observed[~rare], observed[rare].sum())
    e = np.append(probabilities[~rare], probabilities[rare].sum()) * n
    o, e = o[e > 0], e[e > 0]
    return chi2.sf(((o - e) ** 2 / e).sum(), max(len(o) - 1, 1))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", ["heat_bath", "metropolis"])
@pytest.mark.parametrize("name", LATTICES)
def test_a_sweep_keeps_the_exact_distribution(name, method, engine):
    """Started from the exact distribution, chains still follow it after two sweeps."""
    lattice = LATTICES[name]
    energy = ClusterExpansionEnergy(expansion(lattice, 3))
    exact = SemiGrandCanonical(energy).enumerate(lattice)
    ensemble = SemiGrandCanonical(ENGINES[engine](energy))
    n = 20000 if engine == "tables" else 4000
    rng = np.random.default_rng(7)
    mu = np.array([0.0, 0.03, -0.02])[: lattice.n_species]
    conditions = Conditions([250.0, 900.0], np.array([mu, -mu]))
    starts, p = [], []
    for k in range(2):
        p.append(exact.probabilities(conditions[k]).numpy())
        p[k] /= p[k].sum()
        starts.append(exact.occupations[rng.choice(len(p[k]), n, p=p[k])])
    chains = Chains(ensemble, lattice, conditions.repeat(n), torch.cat(starts), seed=5)
    chains.sweep(2, method)
    assert 0 < chains.accepted < chains.attempted
    for k in range(2):
        index = state_index(lattice, chains.occupations[k * n : (k + 1) * n])
        assert chi_square(index, p[k]) > 1e-5


@pytest.mark.parametrize("method", ["heat_bath", "metropolis"])
def test_chains_forget_where_they_started(method):
    """From one corner of the state space chains reach the exact distribution."""
    lattice = LATTICES["ternary"]
    energy = ClusterExpansionEnergy(expansion(lattice, 4))
    ensemble = SemiGrandCanonical(energy)
    condition = Conditions([1500.0], [[0.0, 0.03, -0.02]])
    start = np.zeros((20000, lattice.n_sites))
    chains = Chains(ensemble, lattice, condition.repeat(20000), start, seed=2)
    chains.sweep(40, method)
    p = ensemble.enumerate(lattice).probabilities(condition).numpy()
    assert chi_square(state_index(lattice, chains.occupations), p) > 1e-5


def test_metropolis_has_no_conserved_parity_at_infinite_temperature():
    """Where every trial is accepted both parities of the number of flips occur."""
    lattice = Lattice.square(4)
    tables = expansion(lattice, 0)
    ensemble = SemiGrandCanonical(ClusterExpansionEnergy(tables))
    hot = Conditions([1e12], [[0.0, 0.0]]).repeat(64 * 40)
    chains = Chains(ensemble, lattice, hot, np.zeros((64 * 40, 16)), seed=1)
    chains.sweep(3, "metropolis")
    odd = (chains.occupations.sum(1) % 2).reshape(40, 64)[:, 0]
    assert 8 < odd.sum() < 32  # binomial(40, 1/2), 3.8 standard deviations


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", ["heat_bath", "metropolis"])
def test_clamped_sites_stay_and_the_rest_follows_the_conditional(method, engine):
    """Clamped sites never change; the others follow p(rest | clamped)."""
    lattice = LATTICES["sublattices"]
    energy = ClusterExpansionEnergy(expansion(lattice, 5))
    exact = SemiGrandCanonical(energy).enumerate(lattice)
    n = 4000
    condition = Conditions([2000.0], [[0.0, 0.02, -0.01]])
    start = np.tile([0, 1, 0, 1, 2, 0], (n, 1))
    clamped = np.zeros((n, 6), dtype=bool)
    clamped[:, [1, 4]] = True
    ensemble = SemiGrandCanonical(ENGINES[engine](energy))
    chains = Chains(ensemble, lattice, condition.repeat(n), start, clamped, seed=8)
    chains.sweep(15, method)
    assert (chains.occupations[:, [1, 4]] == [1, 2]).all()
    match = (exact.occupations[:, [1, 4]] == torch.tensor([1, 2])).all(1).numpy()
    p = exact.probabilities(condition).numpy() * match
    assert chi_square(state_index(lattice, chains.occupations), p / p.sum()) > 1e-5


@pytest.mark.parametrize("engine", ENGINES)
def test_probabilities_of_a_single_free_site_are_exact(engine):
    """With all other sites clamped the target is the exact conditional probability."""
    lattice = LATTICES["sublattices"]
    energy = ClusterExpansionEnergy(expansion(lattice, 6, scale=0.05))
    ensemble = SemiGrandCanonical(ENGINES[engine](energy))
    rng = np.random.default_rng(0)
    n = 70
    conditions = Conditions(rng.uniform(200, 900, n), rng.normal(0, 0.05, (n, 3)))
    chains = Chains(ensemble, lattice, conditions, seed=1)
    before = chains.occupations.copy()
    free = rng.integers(0, 5, n)
    clamped = np.arange(6) != free[:, None]
    p, after = heat_bath_probabilities(ensemble, lattice, conditions, before, clamped, 3, rng)
    assert (after.numpy() == before)[clamped].all()
    for row in range(n):
        site = free[row]
        weights = np.zeros(3)
        for a in np.flatnonzero(lattice.allowed[site]):
            x = before[row : row + 1].copy()
            x[0, site] = a
            e = float(energy(lattice, torch.as_tensor(x))[0])
            weights[a] = np.exp(-(e - float(conditions.mu[row, a])) / float(conditions.kT[row]))
        np.testing.assert_allclose(p[row, site], weights / weights.sum(), rtol=1e-5, atol=1e-7)
    known = np.eye(3)[before][clamped]
    np.testing.assert_array_equal(p.numpy()[clamped], known)


@pytest.mark.parametrize("engine", ["tables", "plain"])
def test_mean_probabilities_are_the_conditional_marginals(engine):
    """Averaged over chains the targets are p(species on site | clamped sites)."""
    lattice = LATTICES["ternary"]
    energy = ClusterExpansionEnergy(expansion(lattice, 9))
    ensemble = SemiGrandCanonical(ENGINES[engine](energy))
    exact = SemiGrandCanonical(energy).enumerate(lattice)
    condition = Conditions([1200.0], [[0.0, 0.02, -0.01]])
    weights = exact.probabilities(condition).numpy() * (exact.occupations[:, 0] == 2).numpy()
    weights /= weights.sum()
    n = 3000
    rng = np.random.default_rng(3)
    start = exact.occupations[rng.choice(len(weights), n, p=weights)]
    clamped = np.zeros((n, lattice.n_sites), dtype=bool)
    clamped[:, 0] = True
    p, _ = heat_bath_probabilities(ensemble, lattice, condition.repeat(n), start, clamped, 4, rng)
    one_hot = np.eye(3)[exact.occupations.numpy()]
    marginal = np.tensordot(weights, one_hot, 1)
    p = p.numpy().astype(float)
    np.testing.assert_allclose(p.sum(-1), 1.0, atol=1e-5)
    z = (p.mean(0) - marginal)[1:] / (p.std(0)[1:] / np.sqrt(n))
    assert np.abs(z).max() < 4.5


@pytest.mark.parametrize("method", ["heat_bath", "metropolis"])
@pytest.mark.parametrize("engine", ENGINES)
def test_energies_do_not_drift(engine, method):
    """After many sweeps the energy of every chain is that of its configuration to 1e-9 eV."""
    lattice = Lattice.square(4, 4, ("Cu", "Au", "Ag"))
    energy = ClusterExpansionEnergy(expansion(lattice, 1, 80, scale=1.0))
    ensemble = SemiGrandCanonical(ENGINES[engine](energy))
    chains = Chains(ensemble, lattice, Conditions([9000.0], [[0, 0, 0.1]]).repeat(5), seed=1)
    for _ in range(4):
        chains.sweep(15, method)
        expected = energy(lattice, torch.from_numpy(chains.occupations)).numpy()
        np.testing.assert_allclose(chains.energy, expected, atol=1e-9)
    scored = ensemble.score(chains.configurations())
    torch.testing.assert_close(scored.log_target, chains.configurations().log_target)


@pytest.mark.parametrize("n", [1, 63, 64, 65, 200])
def test_any_number_of_chains_runs(n):
    """Blocks that are not full change nothing: no chain is left out, none sees another."""
    lattice = LATTICES["binary"]
    energy = ClusterExpansionEnergy(expansion(lattice, 3))
    conditions = Conditions([1e9], [[0.0, 0.0]]).repeat(n)
    chains = Chains(SemiGrandCanonical(energy), lattice, conditions, np.zeros((n, 6)), seed=0)
    seen = np.zeros(n, dtype=bool)
    for _ in range(12):
        chains.sweep()
        seen |= chains.occupations.any(1)
    assert seen.all()


@pytest.mark.parametrize("engine", ENGINES)
def test_seeds_and_states_reproduce_bitwise(engine):
    """The same seed gives the same chains; a restored state continues as if never stopped."""
    lattice = LATTICES["sublattices"]
    energy = ClusterExpansionEnergy(expansion(lattice, 3))
    ensemble = SemiGrandCanonical(ENGINES[engine](energy))
    conditions = Conditions(np.linspace(300, 900, 70), np.zeros((70, 3)))
    chains = Chains(ensemble, lattice, conditions, seed=4)
    chains.sweep(3)
    state = chains.state_dict()
    chains.sweep(2)
    chains.sweep(2, "metropolis")
    twin = Chains(ensemble, lattice, conditions, seed=4)
    twin.sweep(3)
    twin.sweep(2)
    twin.sweep(2, "metropolis")
    other = Chains(ensemble, lattice, conditions, seed=99)
    other.load_state_dict(state)
    other.sweep(2)
    other.sweep(2, "metropolis")
    for c in (twin, other):
        np.testing.assert_array_equal(c.occupations, chains.occupations)
        np.testing.assert_array_equal(c.energy, chains.energy)
        assert c.accepted == chains.accepted and c.energy_evaluations == chains.energy_evaluations


def test_energies_without_terms_give_uniform_sites():
    """A constant energy leaves independent sites with probabilities from mu alone."""
    lattice = Lattice.square(3)
    tables = ClusterTables.from_terms(9, [[-1.0, 1.0]], [], 1.5)
    ensemble = SemiGrandCanonical(SimpleNamespace(tables=tables))
    condition = Conditions([1000.0], [[0.0, 0.1]])
    chains = Chains(ensemble, lattice, condition.repeat(4000), seed=0)
    chains.sweep()
    p = 1 / (1 + np.exp(-0.1 * float(condition.beta[0])))
    z = (chains.occupations.mean() - p) / np.sqrt(p * (1 - p) / 36000)
    assert abs(z) < 4.5
    np.testing.assert_allclose(chains.energy, 1.5)


def test_bad_input_is_named():
    """Errors name the value and what is expected."""
    lattice = LATTICES["sublattices"]
    ensemble = SemiGrandCanonical(ClusterExpansionEnergy(expansion(lattice, 3)))
    conditions = Conditions([300.0], [[0.0, 0.0, 0.0]])
    with pytest.raises(ValueError, match="site 3 of configuration 0 carries 0"):
        Chains(ensemble, lattice, conditions, [[0, 1, 0, 0, 2, 0]])
    with pytest.raises(ValueError, match="carries -1"):
        Chains(ensemble, lattice, conditions, [[-1, 1, 0, 1, 2, 0]])
    with pytest.raises(ValueError, match=r"shape \(1, 6\)"):
        Chains(ensemble, lattice, conditions, clamped=[[True]])
    with pytest.raises(ValueError, match="2 chemical potentials, the lattice 3"):
        Chains(ensemble, lattice, Conditions([300.0], [[0.0, 0.0]]))
    chains = Chains(ensemble, lattice, conditions)
    with pytest.raises(ValueError, match="'gibbs'"):
        chains.sweep(1, "gibbs")
    with pytest.raises(ValueError, match="as many conditions"):
        chains.conditions = conditions.repeat(2)
    with pytest.raises(ValueError, match="sweeps must be at least 1"):
        heat_bath_probabilities(
            ensemble,
            lattice,
            conditions,
            chains.occupations,
            np.zeros((1, 6), bool),
            0,
            np.random.default_rng(0),
        )
    with pytest.raises(ValueError, match="this energy is for 6 active sites"):
        Chains(ensemble, Lattice.square(3, species=("Cu", "Au", "Ag")), conditions)
    bad = SemiGrandCanonical(lambda lattice, x: torch.full((len(x),), torch.nan))
    with pytest.raises(ValueError, match="not finite"):
        Chains(bad, lattice, conditions).sweep()
