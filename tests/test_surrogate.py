"""Two levels: a chain of the true energy proposed by a surrogate, and how surrogates are fitted."""

import warnings

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.units import kB
from toys import SYSTEMS, random_expansion

from clease_nn.conditions import ConditionRange, Conditions
from clease_nn.configurations import Configurations
from clease_nn.energies.calculator import CalculatorEnergy
from clease_nn.energies.cluster_basis import ClusterBasis
from clease_nn.energies.ising import ising_energy
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import Lattice
from clease_nn.montecarlo.chains import random_occupations
from clease_nn.single_chain import FlipGroups
from clease_nn.statistics import series_mean
from clease_nn.surrogate import DelayedAcceptanceChain, fit_surrogate, ridge
from clease_nn.symmetry import canonical_occupations
from clease_nn.thermodynamics import averages
from clease_nn.warnings import TrainingWarning


class Counted:
    """An energy that remembers every configuration it was asked for."""

    def __init__(self, energy, fail=None):
        self.energy, self.fail, self.asked, self.batches = energy, fail, [], []

    def __call__(self, lattice, x):
        out = torch.as_tensor(self.energy(lattice, x)).clone()
        for k, row in enumerate(x.numpy()):
            self.asked.append(row.copy())
            if self.fail is not None:
                value = self.fail(len(self.asked))
                out[k] = out[k] if value is None else value
        self.batches.append(len(x))
        return out


def groups(lattice):
    """Moves of every site among the species it may carry."""
    parts = [
        (np.flatnonzero((lattice.allowed == row).all(1)), np.flatnonzero(row))
        for row in np.unique(lattice.allowed, axis=0)
    ]
    return FlipGroups(parts, lattice.allowed)


def start(chain, lattice, energy, T, mu, seed, x=None):
    """Load a chain with a random configuration at a condition."""
    c = Conditions([T], np.array([mu]))
    chain.seed(np.random.SeedSequence(seed))
    chain.set(float(c.kT[0]), mu, groups(lattice))
    if x is None:
        x = random_occupations(lattice, 1, np.random.default_rng(seed))[0]
    e = float(energy(lattice, torch.from_numpy(x[None]))[0]) - float(np.asarray(mu)[x].sum())
    chain.load(x, e)
    return c


def exact_means(exact, c):
    """<E'> and the mean share of every species by enumeration."""
    shares = (exact.occupations[:, :, None] == torch.arange(exact.lattice.n_species)).double()
    shares = shares.mean(1)
    e = exact.energy - (shares * exact.lattice.n_sites) @ c.mu[0]
    return [float(exact.mean(c, e)[0]), *exact.mean(c, shares)[0].tolist()]


# ------------------------------------------------------------------ delayed acceptance
@pytest.mark.parametrize("inner", [1, 7, None])
@pytest.mark.parametrize("name", SYSTEMS)
def test_averages_are_those_of_the_true_energy(name, inner):
    """The chain has the true energy's averages and not those of a wrong surrogate."""
    lattice, ensemble, _ = SYSTEMS[name]()
    wrong = random_expansion(lattice, seed=11)
    mu = np.linspace(0.05, -0.05, lattice.n_species)
    chain = DelayedAcceptanceChain(
        ensemble.energy, wrong, lattice, np.eye(lattice.n_species), inner=inner
    )
    c = start(chain, lattice, ensemble.energy, 6000.0, mu, 5)
    true = exact_means(ensemble.enumerate(lattice), c)
    false = exact_means(SemiGrandCanonical(wrong).enumerate(lattice), c)
    chain.run(200)
    rows = np.empty((3000, len(true)))
    for k in range(len(rows)):
        chain.run(1)
        rows[k] = chain.energy, *chain.values
    means = [series_mean(v) for v in rows.T]
    assert max(abs(m.z(t)) for m, t in zip(means, true, strict=True)) < 4
    assert max(abs(m.z(f)) for m, f in zip(means, false, strict=True)) > 10


def test_a_condition_keeps_its_stretch():
    """The number of surrogate moves does not follow the state of the chain."""
    lattice, ensemble, _ = SYSTEMS["binary"]()
    chain = DelayedAcceptanceChain(ensemble.energy, random_expansion(lattice, seed=11), lattice)
    lengths = []
    for temperature in (900.0, 3000.0, 900.0):
        start(chain, lattice, ensemble.energy, temperature, [0.05, -0.05], 5)
        chain.run(20)
        lengths.append(chain.inner)
    assert lengths[0] == lengths[2]
    start(chain, lattice, ensemble.energy, 900.0, [0.0, 0.0], 5)
    assert chain.inner is None


def test_flows_between_configurations_balance():
    """From the true distribution as many steps go from x to y as from y to x, for all pairs."""
    lattice = Lattice.square(3, 1)
    true, wrong = random_expansion(lattice, 1, scale=0.1), random_expansion(lattice, 2, scale=0.1)
    exact = SemiGrandCanonical(true).enumerate(lattice)
    mu = [0.02, -0.02]
    chain = DelayedAcceptanceChain(true, wrong, lattice, inner=3)
    c = start(chain, lattice, true, 2000.0, mu, 1)
    p = exact.probabilities(c).numpy()
    rng = np.random.default_rng(3)
    sgc = exact.energy.numpy() - np.array(mu)[exact.occupations.numpy()].sum(1)
    code = 2 ** np.arange(3)
    place = {int(x @ code): k for k, x in enumerate(exact.occupations.numpy())}
    flow = np.zeros((8, 8))
    for k in rng.choice(8, size=20_000, p=p):
        chain.load(exact.occupations[k].numpy(), sgc[k])
        chain.run(1)
        flow[k, place[int(chain.occupations @ code)]] += 1
    i, j = np.triu_indices(8, 1)
    total = flow[i, j] + flow[j, i]
    z = (flow[i, j] - flow[j, i])[total > 20] / np.sqrt(total[total > 20])
    assert len(z) > 10
    assert (z**2).sum() < len(z) + 4 * np.sqrt(2 * len(z))


def test_a_perfect_surrogate_is_always_accepted():
    """Where the surrogate is the true energy, every stretch that moved is accepted."""
    lattice, ensemble, _ = SYSTEMS["binary"]()
    chain = DelayedAcceptanceChain(ensemble.energy, ensemble.energy, lattice, inner=20)
    start(chain, lattice, ensemble.energy, 900.0, [0.0, 0.0], 2)
    chain.run(500)
    assert chain.accepted == chain.true_calls > 300


def test_a_stretch_that_ends_where_it_began_costs_nothing():
    """Without accepted surrogate moves no true energy is asked for; steps count all the same."""
    lattice, ensemble, _ = SYSTEMS["binary"]()
    chain = DelayedAcceptanceChain(ensemble.energy, ensemble.energy, lattice, inner=1)
    exact = ensemble.enumerate(lattice)
    lowest = exact.occupations[exact.energy.argmin()].numpy()
    start(chain, lattice, ensemble.energy, 1.0, [0.0, 0.0], 3, x=lowest)
    chain.run(50)
    assert (chain.true_calls, chain.steps, chain.accepted) == (0, 50, 0)
    assert (chain.occupations == lowest).all()


def test_sums_are_those_of_the_steps():
    """Sums over steps are those of energies and observables after each step."""
    lattice, ensemble, _ = SYSTEMS["ternary"]()
    chain = DelayedAcceptanceChain(
        ensemble.energy, random_expansion(lattice, 4), lattice, np.eye(3), inner=4
    )
    start(chain, lattice, ensemble.energy, 1500.0, [0.0, 0.0, 0.0], 4)
    total = np.zeros_like(chain.sums)
    for _ in range(60):
        chain.run(1)
        e, s = chain.energy, chain.values
        shares = [(chain.occupations == a).mean() for a in range(3)]
        true = float(ensemble.energy(lattice, torch.from_numpy(chain.occupations[None]))[0])
        assert np.allclose(s, shares) and np.isclose(e, true)
        total += [e, e * e, *np.stack([s, s * s, s * e], 1).ravel()]
    assert np.allclose(total, chain.sums)


def test_equal_seeds_make_equal_chains():
    """The seed fixes everything, the measured length of a stretch included."""
    lattice, ensemble, _ = SYSTEMS["binary"]()
    runs = []
    for _ in range(2):
        chain = DelayedAcceptanceChain(ensemble.energy, random_expansion(lattice, 3), lattice)
        start(chain, lattice, ensemble.energy, 900.0, [0.0, 0.0], 6)
        chain.run(30)
        runs.append((chain.occupations.tolist(), chain.energy, chain.inner))
    assert runs[0] == runs[1]


def test_stretches_are_longer_where_the_surrogate_is_slow():
    """The number of inner moves is measured: at low temperature it grows."""
    lattice = Lattice.square(4)
    ising = ising_energy(lattice)
    inner = []
    for kT in (10.0, 1.7):
        chain = DelayedAcceptanceChain(ising, ising, lattice)
        start(chain, lattice, ising, kT / kB, [0.0, 0.0], 7)
        chain.run(1)
        inner.append(chain.inner)
    assert 16 * lattice.n_sites <= inner[0] < inner[1] / 5


def test_sites_without_moves_stay():
    """Only sites of the groups change."""
    lattice, ensemble, _ = SYSTEMS["binary"]()
    chain = DelayedAcceptanceChain(ensemble.energy, random_expansion(lattice, 3), lattice, inner=9)
    start(chain, lattice, ensemble.energy, 2000.0, [0.0, 0.0], 8)
    chain.set(1.0, [0.0, 0.0], FlipGroups([([0, 1], [0, 1])], lattice.allowed))
    before = chain.occupations.copy()
    chain.load(before, chain.energy)
    chain.run(100)
    assert (chain.occupations[2:] == before[2:]).all() and chain.accepted


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_energies_that_are_not_finite_are_named(value):
    """The error names the configuration, and the chain stays where it was."""
    lattice, ensemble, _ = SYSTEMS["binary"]()
    bad = Counted(ensemble.energy, lambda n: value if n == 6 else None)
    chain = DelayedAcceptanceChain(bad, random_expansion(lattice, 3), lattice, inner=8)
    start(chain, lattice, ensemble.energy, 2000.0, [0.0, 0.0], 9)
    with pytest.raises(ValueError, match=r"energy of the configuration \[[01, ]+\] is (nan|inf)"):
        chain.run(50)
    check_goes_on(chain, lattice, ensemble)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_broken_step_leaves_the_chain_as_it_was(error):
    """After Ctrl-C or an error of the energy the chain goes on from its last whole step."""
    lattice, ensemble, _ = SYSTEMS["binary"]()

    def fail(n):
        if n == 6:
            raise error("stop")

    chain = DelayedAcceptanceChain(
        Counted(ensemble.energy, fail), random_expansion(lattice, 3), lattice, inner=8
    )
    start(chain, lattice, ensemble.energy, 2000.0, [0.0, 0.0], 9)
    with pytest.raises(error):
        chain.run(50)
    check_goes_on(chain, lattice, ensemble)


def check_goes_on(chain, lattice, ensemble):
    assert 5 <= chain.steps < 50
    for _ in range(2):
        x = torch.from_numpy(chain.occupations[None].copy())
        assert np.isclose(chain.energy, float(ensemble.energy(lattice, x)[0]))
        chain.run(10)


def test_bad_arguments_are_named():
    """What is no surrogate, no length and no energy is refused."""
    lattice, ensemble, _ = SYSTEMS["binary"]()
    with pytest.raises(TypeError, match="surrogate must be a ClusterExpansionEnergy"):
        DelayedAcceptanceChain(ensemble.energy, lambda lattice, x: x.sum(1), lattice)
    with pytest.raises(ValueError, match="inner must be at least 1"):
        DelayedAcceptanceChain(ensemble.energy, ensemble.energy, lattice, inner=0)
    with pytest.raises(ValueError, match="this energy is for 8 active sites"):
        DelayedAcceptanceChain(ensemble.energy, ensemble.energy, Lattice.square(2))
    chain = DelayedAcceptanceChain(ensemble.energy, ensemble.energy, lattice)
    with pytest.raises(ValueError, match="cannot start from the energy nan"):
        chain.load(np.zeros(8, np.int8), np.nan)


# ------------------------------------------------------------------ importance weights
def test_weights_with_the_true_energy_correct_draws_of_the_surrogate():
    """Draws of the surrogate, scored by the true ensemble, have the true averages and ln Z."""
    lattice, ensemble, _ = SYSTEMS["binary"]()
    c = Conditions([6000.0], [[0.02, -0.02]])
    wrong = SemiGrandCanonical(random_expansion(lattice, seed=11)).enumerate(lattice)
    exact = ensemble.enumerate(lattice)
    p = wrong.probabilities(c)
    index = torch.multinomial(p, 20_000, True, generator=torch.Generator().manual_seed(1))
    draws = Configurations(
        lattice, c.repeat(len(index)), wrong.occupations[index], log_prob=p.log()[index]
    )
    [a] = averages(ensemble.score(draws))
    assert abs(a.log_z.z(float(exact.log_z(c)))) < 4
    assert abs(a.sgc_energy.z(exact_means(exact, c)[0])) < 4
    assert abs(a.sgc_energy.z(exact_means(wrong, c)[0])) > 10


# ------------------------------------------------------------------ regression
def test_leave_one_out_errors_are_those_of_refits():
    """The closed form equals fitting again without each structure at the same penalty."""
    lattice, _, _ = SYSTEMS["binary"]()
    basis = ClusterBasis(lattice)
    x = random_occupations(lattice, 25, np.random.default_rng(0))
    y = random_expansion(lattice, 5)(lattice, torch.from_numpy(x)).numpy()
    y = y + 0.01 * np.random.default_rng(1).normal(size=len(y))
    f = basis.features(x)
    fit = ridge(basis, f, y)
    z = (f[:, 1:] - fit._mean) * fit._scale
    penalty = np.linalg.inv(fit._inverse) - z.T @ z
    for k in range(len(y)):
        rest = np.arange(len(y)) != k
        mean, middle = z[rest].mean(0), y[rest].mean()
        w = np.linalg.solve(
            (z[rest] - mean).T @ (z[rest] - mean) + penalty, (z[rest] - mean).T @ (y[rest] - middle)
        )
        left_out = y[k] - middle - (z[k] - mean) @ w
        assert np.isclose(left_out, fit.loo_residuals[k], rtol=1e-5, atol=1e-8)


def test_energies_within_the_span_are_found():
    """As many structures as features determine an expansion of the basis."""
    lattice = Lattice.uniform(bulk("Au", a=3.8, cubic=True) * (2, 1, 1), ["Au", "Cu"])
    basis = ClusterBasis(lattice, {2: 9.0, 3: 3.0})
    rng = np.random.default_rng(2)
    x, c = random_occupations(lattice, 80, rng), 0.1 * rng.normal(size=basis.n_features)
    f = basis.features(x)
    fit = ridge(basis, f, f @ c)
    assert fit.loo_rmse < 1e-6
    assert np.allclose(fit.predict(f), f @ c, atol=1e-6)


def test_uncertainty_is_large_where_there_are_no_data():
    """Structures like those of the fit are known better than others, which are picked first."""
    lattice, ensemble, _ = SYSTEMS["binary"]()
    basis = ClusterBasis(lattice)
    exact = ensemble.enumerate(lattice)
    x = exact.occupations.numpy()
    rich = x.sum(1) >= 5
    known = np.flatnonzero(rich)[::3]
    f = basis.features(x)
    rng = np.random.default_rng(3)
    y = exact.energy.numpy()[known] + 1e-3 * rng.normal(size=len(known))
    fit = ridge(basis, f[known], y)
    deviation = fit.standard_deviation(f)
    assert deviation[x.sum(1) <= 2].mean() > 2 * deviation[rich].mean()
    assert not rich[fit.pick(f, 3)[0]]
    assert len(set(fit.pick(f, 10).tolist())) == 10


def test_bad_data_are_named():
    """Too few structures and energies that are not finite are refused."""
    basis = ClusterBasis(Lattice.square(2))
    f = basis.features([[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 1]])
    with pytest.raises(ValueError, match="at least 3 structures"):
        ridge(basis, f[:2], [0.0, 1.0])
    with pytest.raises(ValueError, match="energy of structure 1 is nan"):
        ridge(basis, f, [0.0, np.nan, 1.0])


# ------------------------------------------------------------------ fitting
BOX = ConditionRange((600, 2400), [-0.1], [0.1], [[1.0, -1.0]])


def fcc16():
    """16 fcc sites."""
    return Lattice.uniform(bulk("Au", a=3.8) * (2, 2, 4), ["Au", "Cu"])


def test_a_fitted_surrogate_is_good_where_the_sampler_goes():
    """Converged means: its deviation from EMT over the true distribution is small against kT."""
    lattice = fcc16()
    energy = Counted(CalculatorEnergy(EMT()))
    box = ConditionRange((400, 1200), [-0.3], [0.3], [[0.5, -0.5]])
    s = fit_surrogate(energy, lattice, box, max_calls=100, target_error=0.2, seed=1)
    assert s.report.converged and s.report.error_kT <= 0.2
    assert s.report.true_calls == len(energy.asked) == s.report.n_structures <= 100
    exact = SemiGrandCanonical(energy.energy).enumerate(lattice)
    deviation = s.energy(lattice, exact.occupations) - exact.energy
    for T, mu in ((400.0, 0.0), (500.0, 0.2), (1000.0, -0.2)):
        c = Conditions([T], [[mu / 2, -mu / 2]])
        p = exact.probabilities(c)
        assert float((p * deviation.abs()).sum() / c.kT[0]) < 0.4
    assert np.allclose(
        s.true_energies,
        energy.energy(lattice, torch.from_numpy(s.occupations)).numpy(),
    )
    assert np.allclose(
        s.basis.features(s.occupations) @ s.coefficients,
        s.energy(lattice, torch.from_numpy(s.occupations)).numpy(),
    )


def test_no_structure_is_computed_twice():
    """Structures are new up to symmetry, those known before included, and calls stay in bounds."""
    lattice = fcc16()
    energy = Counted(random_expansion(lattice, 6, scale=0.003))
    with pytest.warns(TrainingWarning, match=r"max_calls = 40 are spent before the target"):
        first = fit_surrogate(energy, lattice, BOX, max_calls=40, target_error=1e-9, batch=7)
    known = first.occupations, first.true_energies
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrainingWarning)  # it may or may not reach the target
        second = fit_surrogate(
            energy, lattice, BOX, max_calls=30, target_error=1e-12, seed=2, known=known
        )
    assert len(energy.asked) == 70 and max(energy.batches[:6]) <= 7
    assert second.report.n_structures == 70 and second.report.true_calls == 30
    distinct = canonical_occupations(np.array(energy.asked), first.basis.permutations)
    assert len(np.unique(distinct, axis=0)) == 70


def test_small_cells_are_exhausted():
    """Where the sampler finds nothing new the fit ends, whatever may still be spent."""
    lattice = Lattice.square(2)
    with pytest.warns(TrainingWarning, match="finds nothing new before the target"):
        s = fit_surrogate(
            random_expansion(lattice, 1), lattice, BOX, target_error=1e-30, cutoffs={2: 1.2}
        )
    assert s.report.n_structures <= 6


def test_failed_structures_are_left_out():
    """NaN marks a failed structure: it is counted, not fitted, and not asked for again."""
    lattice = fcc16()
    energy = Counted(random_expansion(lattice, 6), lambda n: np.nan if n % 5 == 0 else None)
    s = fit_surrogate(energy, lattice, BOX, max_calls=60, target_error=0.5, seed=3)
    assert s.report.failures == len(energy.asked) // 5
    assert s.report.n_structures == len(energy.asked) - s.report.failures
    assert np.isfinite(s.true_energies).all()
    distinct = canonical_occupations(np.array(energy.asked), s.basis.permutations)
    assert len(np.unique(distinct, axis=0)) == len(energy.asked)


def test_ctrl_c_keeps_what_was_computed():
    """After Ctrl-C the surrogate of the batches that are finished comes back, with a warning."""
    lattice = fcc16()

    def fail(n):
        if n == 30:
            raise KeyboardInterrupt

    energy = Counted(random_expansion(lattice, 6), fail)
    with pytest.warns(TrainingWarning, match="the fit was interrupted"):
        s = fit_surrogate(energy, lattice, BOX, max_calls=60, target_error=1e-9, batch=8)
    assert s.report.interrupted and s.report.n_structures == 24

    def at_once(n):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_surrogate(Counted(random_expansion(lattice, 6), at_once), lattice, BOX)


def test_errors_of_the_energy_pass_through():
    """What the calculator raises is the user's to see."""

    def broken(lattice, x):
        raise RuntimeError("no licence")

    with pytest.raises(RuntimeError, match="no licence"):
        fit_surrogate(broken, fcc16(), BOX)


@pytest.mark.parametrize("name", ["ternary", "two_sublattices"])
def test_any_lattice_is_fitted(name):
    """Several species and sublattices: every structure is allowed, an expansion is recovered."""
    lattice, ensemble, box = SYSTEMS[name]()
    s = fit_surrogate(ensemble.energy, lattice, box, max_calls=120, target_error=0.3, seed=1)
    assert lattice.allowed[np.arange(lattice.n_sites), s.occupations].all()
    assert s.report.converged


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_calls": 3}, "max_calls must be at least 4"),
        ({"target_error": 0.0}, "target_error must be positive"),
        ({"n_start": 2}, "n_start must be at least 3"),
        ({"batch": 1}, "batch 2"),
        ({"known": (np.zeros((2, 3)), np.zeros(2))}, r"known must be occupations \(n, 16\)"),
    ],
)
def test_bad_options_are_named(options, message):
    """Numbers out of range name themselves, before any true energy is paid for."""
    energy = Counted(random_expansion(fcc16(), 6))
    with pytest.raises(ValueError, match=message):
        fit_surrogate(energy, fcc16(), BOX, **options)
    assert not energy.asked


def test_two_levels_give_the_thermodynamics_of_emt():
    """Fit a surrogate to EMT, sample with few calls: composition and energy equal enumeration."""
    lattice = fcc16()
    energy = CalculatorEnergy(EMT())
    box = ConditionRange((400, 1200), [-0.3], [0.3], [[0.5, -0.5]])
    # nearest neighbours alone, so that the second level has something to do
    with pytest.warns(TrainingWarning):
        s = fit_surrogate(energy, lattice, box, max_calls=25, cutoffs={2: 4.0})
    exact = SemiGrandCanonical(energy).enumerate(lattice)
    chain = DelayedAcceptanceChain(energy, s.energy, lattice, np.eye(2))
    c = start(chain, lattice, energy, 500.0, [0.1, -0.1], 3)
    rows = np.empty((2500, 3))
    for k in range(len(rows)):
        chain.run(1)
        rows[k] = chain.energy, *chain.values
    means = [series_mean(v[100:]) for v in rows.T]
    true = exact_means(exact, c)
    false = exact_means(SemiGrandCanonical(s.energy).enumerate(lattice), c)
    assert max(abs(m.z(t)) for m, t in zip(means, true, strict=True)) < 4
    assert max(abs(m.z(f)) for m, f in zip(means, false, strict=True)) > 6
