"""Samples of many conditions, combined: errors are right, and wrong data are refused."""

import re
import warnings
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from ase.units import kB
from toys import SYSTEMS

from clease_nn.conditions import ConditionRange, Conditions
from clease_nn.configurations import Configurations, species_counts
from clease_nn.energies.ising import ising_energy
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.errors import NotDeterminedError
from clease_nn.lattice import Lattice
from clease_nn.montecarlo import ParallelTempering
from clease_nn.statistics import Estimate
from clease_nn.thermodynamics import averages, density_of_states, overlap, where_to_sample
from clease_nn.thermodynamics.agreement import disagreement
from clease_nn.thermodynamics.mixture import start, states_of
from clease_nn.thermodynamics.multistate import MultistateLikelihood, connected
from clease_nn.thermodynamics.pooling import Pool
from clease_nn.warnings import ChainWarning, LostModeWarning, LowESSWarning

LATTICE = Lattice.square(4)
ENSEMBLE = SemiGrandCanonical(ising_energy(LATTICE))
GRID = Conditions.grid([20000.0, 30000.0, 45000.0], [[0, m] for m in (-1, -0.3, 0, 0.3, 1)])
BETWEEN = Conditions.grid([24000.0, 37000.0], [[0, m] for m in (-0.6, 0.1, 0.7)])
ALL = Conditions.cat([GRID, BETWEEN])
FAR = Conditions([6000.0, 6000.0], [[0, -3.0], [0, 3.0]])
QUANTITIES = ("log_z", "energy", "composition", "heat_capacity", "entropy")


@cache
def states():
    return ENSEMBLE.enumerate(LATTICE)


@cache
def probabilities(temperature, mu):
    return states().probabilities(Conditions([temperature], [[0.0, mu]])).numpy()


def exact_probabilities(at):
    return [
        probabilities(t, m)
        for t, m in zip(at.temperature.tolist(), at.mu[:, 1].tolist(), strict=True)
    ]


def exact(at):
    """Exact values of QUANTITIES, each (conditions,)."""
    e, up = states().energy.numpy(), (states().occupations == 1).sum(1).numpy()
    out = {name: [] for name in QUANTITIES}
    for k, p in enumerate(exact_probabilities(at)):
        t = at.temperature[k].item()
        h = e - at.mu[k, 1].item() * up
        log_z = states().log_z(at[k])[0].item()
        out["log_z"].append(log_z)
        out["energy"].append(p @ e)
        out["composition"].append(p @ up / 16)
        out["heat_capacity"].append(p @ (h - p @ h) ** 2 / (kB * t**2))
        out["entropy"].append(kB * log_z + p @ h / t)
    return {name: np.array(v) for name, v in out.items()}


def estimated(a):
    """Estimates of QUANTITIES, each (conditions,)."""
    out = {}
    for name in QUANTITIES:
        each = [getattr(x, name) for x in a]
        each = [x[1] if name == "composition" else x for x in each]
        out[name] = Estimate(np.array([x.value for x in each]), np.array([x.error for x in each]))
    return out


@cache
def proposal(k, temper, mix):
    """A deliberately imperfect q of condition k: tempered, jittered and mixed with uniform."""
    p = exact_probabilities(GRID[k])[0]
    noise = np.random.default_rng(k).normal(size=len(p))
    q = p ** (1 / temper) * np.exp(3 * mix * noise)
    q = (1 - mix) * q / q.sum() + mix / len(q)
    return q / q.sum()


def chosen(at, n, seed, probability, weighted):
    """Rows drawn with the given probabilities of all states, n a condition."""
    rng, parts = np.random.default_rng(seed), []
    for k, q in enumerate(probability):
        rows = torch.as_tensor(rng.choice(len(q), n, p=q))
        kind = {"log_prob": torch.as_tensor(np.log(q))[rows]} if weighted else {}
        kind = kind or {"chain": torch.arange(n)}
        parts.append(Configurations(LATTICE, at[k].repeat(n), states().occupations[rows], **kind))
    return ENSEMBLE.score(Configurations.cat(parts))


def weighted(n, seed, temper=1.15, mix=0.03, at=GRID):
    q = [proposal(k, temper, mix) for k in range(len(at))]
    return chosen(at, n, seed, q, weighted=True)


def independent(n, seed, at=GRID):
    """Unweighted, independent draws."""
    return chosen(at, n, seed, exact_probabilities(at), weighted=False)


def check_calibrated(z, spread=(0.8, 1.2)):
    """z (replicas, conditions) of each quantity: no outliers, no bias, right error bars.

    Conditions share their data, so that the mean over replicas has an error of its own spread.
    """
    for name, v in z.items():
        v = np.array(v)
        pooled = v.mean(1)
        error = pooled.std(ddof=1) / np.sqrt(len(pooled))
        assert spread[0] < v.std() < spread[1], (name, v.std())
        assert abs(pooled.mean()) < max(4.5 * error, 0.2), (name, pooled.mean(), error)
        assert np.abs(v).max() < 6, (name, np.abs(v).max())


@pytest.mark.filterwarnings("error::clease_nn.warnings.LostModeWarning")
@pytest.mark.parametrize(("temper", "mix"), [(1.15, 0.03), (1.02, 0.003)])
def test_errors_are_right_at_and_between_the_conditions(temper, mix):
    """z-scores of 22 replicas at 15 sampled and 6 other conditions have a spread of one."""
    reference = exact(ALL)
    z = {name: [] for name in QUANTITIES}
    for seed in range(22):
        c = weighted(300, seed, temper, mix)
        dos = density_of_states(c, n_resamples=60, seed=seed)
        for name, e in estimated(dos.averages(ALL)).items():
            z[name].append(e.z(reference[name]))
    check_calibrated(z)


@pytest.mark.parametrize("system", sorted(SYSTEMS))
def test_any_number_of_species_and_sublattices(system):
    """ln Z, energies and counts of several species lie within their errors of the enumeration.

    A common shift of all chemical potentials moves ln Z by that of all atoms, and nothing else.
    """
    lattice, ensemble, box = SYSTEMS[system]()
    all_states, at = ensemble.enumerate(lattice), box.grid(2, 2)
    counts = species_counts(all_states.occupations, lattice.n_species)
    # the last count follows from the others
    values = torch.cat([all_states.energy[:, None], counts[:, :-1]], 1)
    p = torch.stack([all_states.probabilities(at[k]) for k in range(len(at))])
    q = p**0.9
    q = 0.95 * q / q.sum(1, keepdim=True) + 0.05 / q.shape[1]
    reference = np.concatenate([all_states.log_z(at).numpy()[:, None], (p @ values).numpy()], 1)
    rng, z = np.random.default_rng(0), []
    for seed in range(22):
        parts = []
        for k in range(len(at)):
            rows = torch.as_tensor(rng.choice(q.shape[1], 400, p=(q[k] / q[k].sum()).numpy()))
            x, log_prob = all_states.occupations[rows], q[k].log()[rows]
            parts.append(Configurations(lattice, at[k].repeat(400), x, log_prob=log_prob))
        c = ensemble.score(Configurations.cat(parts))
        dos = density_of_states(c, n_resamples=60, seed=seed)
        log_z, mean = dos.log_z(at), dos.mean(np.column_stack([dos.energy, dos.counts[:, :-1]]), at)
        z.append(np.column_stack([log_z.z(reference[:, 0]), mean.z(reference[:, 1:])]))
    shifted = Conditions(at.temperature, at.mu + 0.3)
    moved = dos.log_z(shifted).value - log_z.value
    np.testing.assert_allclose(moved, 0.3 * lattice.n_sites / at.kT.numpy(), rtol=1e-9)
    frozen = reference[:, 1:].var(0) < 1e-20  # nothing to estimate
    z = np.array(z)[:, :, np.concatenate([[True], ~frozen])]
    check_calibrated({"all": z.reshape(22, -1)})


def test_a_combination_is_better_than_single_conditions():
    """Combined ln Z have less than 0.6, energies less than 0.4 of the errors of single ones."""
    reference, single, combined = exact(GRID), [], []
    for seed in range(10):
        c = weighted(400, seed)
        for out, a in ((single, averages(c)), (combined, density_of_states(c).averages(GRID))):
            e = estimated(a)
            out.append([e[n].value - reference[n] for n in ("log_z", "energy")])
    ratio = np.std(combined, axis=(0, 2)) / np.std(single, axis=(0, 2))
    assert (ratio < [0.6, 0.4]).all(), ratio


def test_exact_likelihoods_are_known_exactly_without_overlap():
    """Weighted draws of conditions that share nothing have absolute ln Z, each its own."""
    c = chosen(FAR, 300, 0, exact_probabilities(FAR), weighted=True)
    dos = density_of_states(c)
    assert dos.absolute
    np.testing.assert_allclose(dos.log_z(FAR).value, exact(FAR)["log_z"], atol=1e-5)


def test_one_condition_gives_its_own_importance_sampling():
    """With nothing to combine, values are those of ``averages`` and errors agree."""
    c = weighted(2000, 3, 1.3, 0.1, at=GRID[:1])
    a, b = averages(c)[0], density_of_states(c, n_resamples=400).averages(GRID[:1])[0]
    for name in ("log_z", "energy", "heat_capacity"):
        one, other = getattr(a, name), getattr(b, name)
        assert abs(one.value - other.value) < 0.01 * one.error, name
        assert abs(other.error / one.error - 1) < 0.25, name


def test_unweighted_draws_agree_with_pymbar():
    """ln Z ratios of independent draws are those of the multistate Bennett acceptance ratio."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pymbar = pytest.importorskip("pymbar")
    c = independent(200, 1)
    dos = density_of_states(c)
    assert not dos.absolute
    kt, mu = GRID.kT.numpy(), GRID.mu.numpy()
    u = (c.energy.numpy() - mu @ c.counts().numpy().T) / kt[:, None]
    mbar = pymbar.MBAR(u, np.full(len(GRID), 200), relative_tolerance=1e-12)
    found = mbar.compute_free_energy_differences()
    none = np.zeros((len(dos), 0))
    log_z = np.array([dos.moments(none, GRID[k]).log_z for k in range(len(GRID))])
    np.testing.assert_allclose(log_z - log_z[0], -found["Delta_f"][0], atol=1e-6)
    np.testing.assert_allclose(overlap(c), mbar.compute_overlap()["matrix"], atol=1e-6)


def test_ratios_are_solved_from_any_start():
    """The likelihood is convex: a start that is off by ten leads to the same ln Z."""
    pool = Pool.of(independent(100, 0))
    model, _ = states_of(pool)
    near = model.ratios(start(pool))
    off = np.random.default_rng(0).normal(scale=10.0, size=len(near))
    far = model.ratios(near + off)
    np.testing.assert_allclose(far - far[0], near - near[0], atol=1e-8)


def test_known_references_are_where_the_solution_starts():
    """ln Z that are known need no path of conditions between them."""
    pool = Pool.of(independent(50, 0))
    value = np.arange(len(pool.sets), dtype=float)
    known = np.arange(len(value)), value, np.ones(len(value))
    np.testing.assert_array_equal(start(pool, known), value)


def test_chains_and_weighted_draws_agree_and_combine():
    """Independent draws beside weighted ones: absolute, unbiased, with right errors."""
    reference = exact(ALL)
    z = {name: [] for name in QUANTITIES}
    for seed in range(20):
        some = weighted(300, seed)
        rows = some.conditions.temperature == 20000.0
        parts = [some[rows], independent(200, seed + 1000, GRID[5:])]
        dos = density_of_states(parts, n_resamples=60, seed=seed)
        assert dos.absolute and len(dos) == 5 * 300 + 10 * 200
        for name, e in estimated(dos.averages(ALL)).items():
            z[name].append(e.z(reference[name]))
    check_calibrated(z)


def test_exchanging_chains_have_right_errors():
    """Parallel tempering with its own ln Z as reference: z-scores of 16 runs are of order one."""
    box = ConditionRange((24000, 60000), [-0.6], [0.6], [[0.0, 1.0]])
    z = {name: [] for name in QUANTITIES}
    for seed in range(16):
        pt = ParallelTempering(ENSEMBLE, LATTICE, box, (3, 4), seed=seed)
        run = pt.run(1200, 50, interval=3)
        known = (run.conditions, run.log_z)
        dos = density_of_states(run.configurations, known=known, n_resamples=40, seed=seed)
        assert (dos.inefficiency >= 1).all() and dos.absolute
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LowESSWarning)
            e = estimated(dos.averages(run.conditions))
        reference = exact(run.conditions)
        for name in QUANTITIES:
            z[name].append(e[name].z(reference[name]))
    check_calibrated(z, (0.75, 1.3))


def test_rows_stay_in_order_and_costs_add_up():
    """State i of the result is row i of the data, whatever the order of the conditions."""
    c = weighted(100, 0)
    c = replace(c, provenance={"energy_evaluations": 7, "seconds": 2.0})
    shuffled = c[torch.randperm(len(c), generator=torch.Generator().manual_seed(0))]
    slices = density_of_states([c[:700], c[700:]])
    assert slices.cost.energy_evaluations == 7 and slices.provenance["parts"] == 2
    dos = density_of_states([c, replace(shuffled, provenance=dict(c.provenance))])
    assert torch.equal(dos.occupations, torch.cat([c.occupations, shuffled.occupations]))
    assert np.array_equal(dos.energy, torch.cat([c.energy, shuffled.energy]).numpy())
    assert dos.cost.energy_evaluations == 14 and dos.cost.seconds == 4
    assert dos.provenance["rows"] == 3000 and dos.provenance["replicas"] == 100
    one, two = density_of_states(c), density_of_states(shuffled)
    np.testing.assert_allclose(one.log_z(GRID).value, two.log_z(GRID).value, atol=1e-6)


def test_the_result_is_reproducible():
    """The same data and seed give the same replicas."""
    c = weighted(50, 0)
    one, two = density_of_states(c, seed=3), density_of_states(c, seed=3)
    assert np.array_equal(one.replicas, two.replicas)


def test_correlated_chains_have_larger_errors():
    """Every draw repeated five times adds nothing: the errors stay about the same."""
    c = independent(400, 0)
    five = c[torch.arange(len(c)).repeat_interleave(5)]
    rows = torch.zeros(len(five), dtype=torch.int64)
    one = density_of_states(replace(c, chain=torch.zeros(len(c), dtype=torch.int64)))
    slow = density_of_states(replace(five, chain=rows))
    assert 3 < np.median(slow.inefficiency) < 7
    a = estimated(replace(one, absolute=True).averages(GRID))
    b = estimated(replace(slow, absolute=True).averages(GRID))
    ratio = b["energy"].error / a["energy"].error
    assert 0.75 < np.median(ratio) < 1.35, ratio


# ------------------------------------------------------------------ what data do not determine
def test_conditions_far_from_the_data_are_refused_with_a_way_there():
    """No extrapolation: the refusal names conditions, and sampling them answers the question."""
    at = Conditions.grid([30000.0], [[0, m] for m in (-1.0, 0.0, 1.0)])
    hot = Conditions([100000.0, 300000.0], [[0, 0.5], [0, 0.0]])
    c = chosen(at, 300, 0, exact_probabilities(at), weighted=True)
    dos = density_of_states(c)
    with pytest.raises(NotDeterminedError, match=r"effective of 900 .* Remedy: sample at T = "):
        dos.averages(hot)
    assert dos.determined(at).all() and not dos.determined(hot).any()
    more = where_to_sample(dos, hot)
    assert 1 <= len(more) <= 4 and more.temperature.max() <= 300000.001
    more = chosen(more, 300, 1, exact_probabilities(more), weighted=True)
    dos = density_of_states([c, more])
    assert dos.determined(hot).all() and len(where_to_sample(dos, hot)) == 0
    assert np.abs(dos.log_z(hot).z(exact(hot)["log_z"])).max() < 4.5


def test_a_stuck_chain_is_named():
    """One chain of 15 that knows one of two phases only contradicts its neighbours."""
    p = exact_probabilities(GRID)
    one_phase = np.where((states().occupations == 1).sum(1).numpy() > 8, 0, p[2])
    p[2] = one_phase / one_phase.sum()
    c = chosen(GRID, 300, 5, p, weighted=False)
    with pytest.warns(ChainWarning, match=r"worst: T = 20000 K, mu = \(0, 0\) eV"):
        density_of_states(c)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ChainWarning)
        density_of_states(independent(300, 5))


def test_dense_grids_of_few_samples_overlap():
    """Many conditions that share a little each are one group; two such grids far apart are not."""
    dense = np.full((40, 40), 0.2)
    assert [len(g) for g in connected(dense, 4.0)] == [40]
    apart = np.kron(np.eye(2), dense)
    assert [g.tolist() for g in connected(apart, 4.0)] == [list(range(40)), list(range(40, 80))]
    at = Conditions.grid(np.linspace(30000, 45000, 8), [[0, m] for m in np.linspace(-0.5, 0.5, 9)])
    assert not density_of_states(independent(10, 0, at), n_resamples=2).absolute


def test_chains_without_overlap_are_refused():
    """Two groups of chains that share nothing: both are named, and a condition in between."""
    with pytest.raises(NotDeterminedError, match=r"-3\).*0, 3\).*in between.*\(0, 0\)"):
        density_of_states(independent(100, 0, FAR))


def test_chains_without_overlap_are_refused_beside_weighted_draws():
    """Absolute ln Z of others do not help chains that nothing joins."""
    one = chosen(FAR[:1], 100, 0, exact_probabilities(FAR[:1]), weighted=True)
    with pytest.raises(NotDeterminedError, match="share too few states"):
        density_of_states([one, independent(100, 0, FAR[1:])])


def test_known_references_join_groups_without_overlap():
    """ln Z of both groups as references answer what overlap does not."""
    log_z = exact(FAR)["log_z"]
    known = (FAR, Estimate(log_z, np.full(2, 0.01)))
    e = density_of_states(independent(100, 0, FAR), known=known).log_z(FAR)
    np.testing.assert_allclose(e.value, log_z, atol=1e-4)
    assert (np.abs(e.error / 0.01 - 1) < 0.3).all()


def test_chains_alone_know_no_absolute_log_z():
    """Ratios only, said in words; energies are known all the same."""
    dos = density_of_states(independent(100, 0))
    with pytest.raises(NotDeterminedError, match="up to a constant"):
        dos.log_z(GRID)
    assert dos.averages(GRID)[0].log_z is None


# ------------------------------------------------------------------ bad input
def test_bad_data_are_refused():
    """Every error names what is wrong and what to do."""
    c = weighted(40, 0)
    with pytest.raises(ValueError, match="no configurations"):
        density_of_states([])
    with pytest.raises(ValueError, match="no configurations"):
        density_of_states(c[:0])
    with pytest.raises(TypeError, match="expected Configurations, got int"):
        density_of_states([c, 3])
    for bad in (None, "samples", 3, {"c": c}):
        with pytest.raises(TypeError, match="expected Configurations or a sequence of them"):
            density_of_states(bad)
    with pytest.raises(ValueError, match="at least two replicas"):
        density_of_states(c, n_resamples=1)
    with pytest.raises(ValueError, match="score them first"):
        density_of_states(replace(c, energy=None, log_target=None))
    with pytest.raises(ValueError, match="only 5 samples"):
        density_of_states(c[:5])
    with pytest.raises(ValueError, match="neither log_prob"):
        density_of_states(replace(c, log_prob=None))
    other = Lattice.square(3)
    x = torch.zeros((20, 9), dtype=torch.int8)
    wrong = Configurations(other, GRID[:1].repeat(20), x, chain=torch.arange(20))
    with pytest.raises(ValueError, match="different lattices"):
        density_of_states([c, SemiGrandCanonical(ising_energy(other)).score(wrong)])


def test_one_sample_with_all_the_weight_is_refused():
    """A weight of 99 % on one draw is no sample."""
    c = weighted(20, 0)
    log_prob = c.log_prob.clone()
    log_prob[3] -= 40
    with pytest.raises(ValueError, match="carries 100.0% of the weight"):
        density_of_states(replace(c, log_prob=log_prob))


def test_references_that_fit_no_condition_are_refused():
    """``known`` must name a sampled condition, with one value each."""
    c = independent(50, 0)
    with pytest.raises(ValueError, match="no condition that was sampled"):
        density_of_states(c, known=(BETWEEN, Estimate(np.zeros(6), np.ones(6))))
    with pytest.raises(ValueError, match="6 conditions and 2 values"):
        density_of_states(c, known=(BETWEEN, Estimate(np.zeros(2), np.ones(2))))
    for value, error in ((np.nan, 0.1), (1.0, np.nan), (1.0, -0.1), (np.inf, 0.1)):
        with pytest.raises(ValueError, match="known needs finite ln Z"):
            density_of_states(c, known=(GRID[:1], Estimate(np.array([value]), np.array([error]))))


def test_a_wrong_log_prob_is_noticed():
    """Likelihoods that contradict the overlap of the samples do not pass in silence."""
    c = weighted(300, 0, 1.02, 0.003)
    wrong = torch.where(c.conditions.mu[:, 1] > 0.2, c.log_prob - 2.0, c.log_prob)
    with pytest.raises(NotDeterminedError, match=r"mean weight says .* which contradicts"):
        density_of_states(replace(c, log_prob=wrong))


def with_a_lost_mode(k, n, temper, mix):
    """Weighted draws, at condition k almost without states that are more than half up."""
    q = [proposal(j, temper, mix) for j in range(len(GRID))]
    up = (states().occupations == 1).sum(1).numpy()
    q[k] = np.where(up > 8, 1e-7 * q[k], q[k])
    return chosen(GRID, n, 1, [p / p.sum() for p in q], weighted=True)


@pytest.mark.parametrize("k", [2, 3, 7])
def test_a_mode_lost_at_one_condition_is_noticed(k):
    """Half and more of the weight is missing: NESS is high, but the others have seen it."""
    c = with_a_lost_mode(k, 300, 1.05, 0.01)
    assert averages(c[300 * k : 300 * (k + 1)])[0].ness > 0.8
    where = re.escape(f"T = {GRID.temperature[k]:g} K, mu = (0, {GRID.mu[k, 1]:g})")
    with pytest.raises(NotDeterminedError, match=where + ".*a phase that was never drawn there"):
        density_of_states(c)


def test_a_mode_that_poor_weights_lose_is_named():
    """Where ln Z is known less well, the draws of others contradict it all the same."""
    match = r"at \d of 15 .* worst: T = 45000 K, mu = \(0, 0\) eV.*seem to miss a phase"
    with pytest.warns(LostModeWarning, match=match):
        density_of_states(with_a_lost_mode(12, 300, 1.4, 0.1))


def test_agreement_with_others_has_right_errors():
    """No warning, and z-scores of a spread of at most one, over 12 replicas and 15 conditions."""
    for temper, mix in ((1.15, 0.03), (1.6, 0.2)):
        z = []
        for seed in range(12):
            pool = Pool.of(weighted(300, seed, temper, mix))
            model, state = states_of(pool)
            difference, error = disagreement(model, pool.sets, state, np.zeros(15))
            z.append(difference / error)
        assert np.isfinite(z).all() and 0.5 < np.std(z) < 1.1 and np.abs(z).max() < 4.5


def test_likelihoods_that_are_a_little_wrong_are_noticed():
    """Errors of log_prob of a few standard errors of ln Z, at all conditions: too much scatter."""
    c = weighted(300, 0, 1.15, 0.03)
    shift = 0.1 * torch.as_tensor(np.random.default_rng(0).normal(size=15))
    c = replace(c, log_prob=c.log_prob + shift.repeat_interleave(300))
    with pytest.warns(LowESSWarning, match=r"scatter 2\.\d times as much .* worst: T = "):
        density_of_states(c)


def test_conditions_without_others_are_not_judged():
    """A condition alone, and chains, have no second opinion."""
    for parts in (weighted(100, 0, at=GRID[:1]), independent(100, 0)):
        pool = Pool.of(parts)
        model, state = states_of(pool)
        assert np.isnan(disagreement(model, pool.sets, state, start(pool))).all()


def test_conditions_far_from_others_raise_no_alarm():
    """Others that reach a part of a distribution only say nothing against it."""
    for far in (FAR, Conditions([30000.0, 6000.0], [[0, -1.0], [0, 3.0]])):
        c = chosen(far, 300, 0, exact_probabilities(far), weighted=True)
        with warnings.catch_warnings():
            warnings.simplefilter("error", LostModeWarning)
            assert density_of_states(c).absolute


def test_less_trust_in_mean_weights_is_announced(monkeypatch):
    """If no solution is found within their errors, these are enlarged, and that is said."""
    c, solve = weighted(300, 0), MultistateLikelihood.joint

    def stubborn(self, f, measured, precision):
        if precision.max() > 1000:
            raise RuntimeError("no solution")
        return solve(self, f, measured, precision)

    monkeypatch.setattr(MultistateLikelihood, "joint", stubborn)
    match = r"taken as [1-9]\.\d times larger. Most doubtful: T = \d+ K"
    with pytest.warns(LowESSWarning, match=match):
        dos = density_of_states(c)
    assert np.abs(dos.log_z(GRID).z(exact(GRID)["log_z"])).max() < 5


def test_poor_weights_are_announced():
    """A handful of effective samples a condition is warned of, with its name."""
    with pytest.warns(LowESSWarning, match=r"fewer than 20 effective .* worst: \d+ of 60 at"):
        density_of_states(weighted(60, 0, 1.6, 0.2))
    with pytest.warns(LowESSWarning, match=r"NESS below 0.15; worst: \d+ of 2000 at T = 20000 K"):
        density_of_states(weighted(2000, 0, 2.5, 0.5, at=GRID[:1]), n_resamples=2)
