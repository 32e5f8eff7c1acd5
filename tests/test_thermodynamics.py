"""Laws of the thermodynamics: exact values lie within the errors, or nothing is claimed."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase.units import kB

from clease_nn import thermodynamics
from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import Lattice
from clease_nn.warnings import LowESSWarning

J = 0.02  # eV, nearest neighbours; the square lattice orders near 2.27 J/kB = 527 K
LATTICE = Lattice.square(4)
REPLICAS = 20
OBSERVABLES = ("log_z", "composition", "energy", "sgc_energy", "heat_capacity", "entropy")


def ising_energy(lattice, occupations):
    """-J sum of neighbouring spins on the periodic 4 x 4 square, eV."""
    s = 2.0 * occupations.to(torch.float64).reshape(-1, 4, 4) - 1
    return -J * (s * (s.roll(1, 1) + s.roll(1, 2))).sum((1, 2))


ENSEMBLE = SemiGrandCanonical(ising_energy)
EXACT = ENSEMBLE.enumerate(LATTICE)
# 14 conditions on both sides of the order-disorder line
CONDITIONS = Conditions.grid(
    [450.0, 600.0, 900.0, 1500.0], [[0.0, x] for x in (-0.05, 0.0, 0.02, 0.08)]
)[torch.arange(2, 16)]


def exact_averages(conditions):
    """Reference by enumeration: dict of arrays (conditions, ...)."""
    x = EXACT.occupations.to(torch.float64)
    out = {name: [] for name in (*OBSERVABLES, "count_covariance")}
    for k in range(len(conditions)):
        at = conditions[k]
        kT, temperature = at.kT.item(), at.temperature.item()
        p = EXACT.probabilities(at).numpy()
        counts = torch.stack([16 - x.sum(1), x.sum(1)], 1).numpy()
        sgc = -kT * EXACT.log_target(at).numpy()
        d = counts - p @ counts
        out["log_z"].append(EXACT.log_z(at).item())
        out["composition"].append(p @ counts / 16)
        out["count_covariance"].append(np.einsum("n,na,nb->ab", p, d, d))
        out["energy"].append(p @ EXACT.energy.numpy())
        out["sgc_energy"].append(p @ sgc)
        out["heat_capacity"].append(p @ (sgc - p @ sgc) ** 2 / (kB * temperature**2))
        out["entropy"].append(-kB * (p * np.log(np.maximum(p, 1e-300))).sum())
    return {name: np.array(v) for name, v in out.items()}


REFERENCE = exact_averages(CONDITIONS)


def draw(log_q, at, n, generator):
    """``n`` draws from the normalised log probabilities of all states, scored at ``at``."""
    index = torch.multinomial(log_q.exp(), n, replacement=True, generator=generator)
    occupations = EXACT.occupations[index]
    c = Configurations(LATTICE, at.repeat(n), occupations, log_prob=log_q[index])
    return ENSEMBLE.score(c)


def tempered(at, factor):
    """Boltzmann distribution at ``factor`` times the temperature: wrong, but known."""
    return EXACT.log_target(Conditions(at.temperature * factor, at.mu)).log_softmax(0)


def independent_sites(_):
    """Mixture of independent sites at seven compositions: no correlation, but every phase.

    At a single composition the opposite phase would never be drawn; no weight can tell of that.
    """
    ones = EXACT.occupations.to(torch.float64).sum(1)
    x = torch.tensor([0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98], dtype=torch.float64)[:, None]
    return torch.logsumexp(ones * x.log() + (16 - ones) * (1 - x).log(), 0) - np.log(len(x))


PROPOSALS = {
    "hotter": (lambda at: tempered(at, 1.25), 2000),
    "independent": (independent_sites, 5000),
}


def usable(average, k):
    """The rule of the project: 200 effective samples and n Var(N) of at least 20."""
    return (
        average.ess >= 200
        and average.n * average.ness * REFERENCE["count_covariance"][k, 1, 1] > 20
    )


def z_scores(average, k):
    """One z-score an observable."""
    z = {}
    for name in OBSERVABLES:
        estimate, exact = getattr(average, name), REFERENCE[name][k]
        if name == "composition":
            estimate, exact = estimate[1], exact[1]
        if estimate is not None:
            z[name] = estimate.z(exact)
    z["variance"] = average.count_covariance[1, 1].z(REFERENCE["count_covariance"][k, 1, 1])
    return z


def assert_calibrated(scores, least):
    """Spread of the pooled z-scores within 0.8 to 1.2, mean below 0.25, no wild outlier."""
    for name in scores[0]:
        z = np.array([s[name] for s in scores])
        assert len(z) >= least, f"only {len(z)} usable conditions"
        assert 0.8 < z.std() < 1.2, f"{name}: std {z.std():.2f}"
        assert abs(z.mean()) < 0.25, f"{name}: mean {z.mean():.2f}"
        assert np.abs(z).max() < 5.5, f"{name}: worst {np.abs(z).max():.1f}"


@pytest.mark.filterwarnings("ignore::clease_nn.warnings.LowESSWarning")
@pytest.mark.parametrize("name", PROPOSALS)
def test_importance_sampling_is_calibrated(name):
    """Draws of a wrong but known q give the exact ensemble within their own errors."""
    proposal, n = PROPOSALS[name]
    generator = torch.Generator().manual_seed(11)
    log_qs = [proposal(CONDITIONS[k]) for k in range(len(CONDITIONS))]
    scores, left_out = [], 0
    for _ in range(REPLICAS):
        batch = [draw(q, CONDITIONS[k], n, generator) for k, q in enumerate(log_qs)]
        for k, average in enumerate(thermodynamics.averages(Configurations.cat(batch))):
            if usable(average, k):
                scores.append(z_scores(average, k))
            else:
                left_out += 1
    assert left_out <= len(scores)
    assert_calibrated(scores, least=140)


def heat_bath(at, chains, sweeps, generator):
    """Single-site heat bath on the 4 x 4 square, (sweeps, chains, 16) after burn-in."""
    kT, mu = at.kT.item(), (at.mu[0, 1] - at.mu[0, 0]).item()
    s = torch.randint(2, (chains, 4, 4), generator=generator) * 2 - 1
    out = []
    for sweep in range(sweeps + 50):
        r = torch.rand((16, chains), generator=generator)
        for site in range(16):
            i, j = divmod(site, 4)
            around = s[:, i - 1, j] + s[:, (i + 1) % 4, j] + s[:, i, j - 1] + s[:, i, (j + 1) % 4]
            up = torch.sigmoid((2 * J * around + mu) / kT)
            s[:, i, j] = (r[site] < up).long() * 2 - 1
        if sweep >= 50:
            out.append((s.reshape(chains, 16) + 1) // 2)
    return torch.stack(out)


def test_chain_averages_are_calibrated():
    """Heat-bath chains give the exact ensemble within their autocorrelation-corrected errors."""
    generator = torch.Generator().manual_seed(5)
    sweeps, chains = 500, 4 * REPLICAS
    keep = [6, 7, 8, 10, 11]
    scores = []
    for k in keep:
        at = CONDITIONS[k]
        x = heat_bath(at, chains, sweeps, generator).reshape(sweeps, REPLICAS, 4, 16)
        label = torch.arange(4).repeat(sweeps)
        for r in range(REPLICAS):
            c = Configurations(LATTICE, at.repeat(4 * sweeps), x[:, r].reshape(-1, 16), chain=label)
            [average] = thermodynamics.averages(ENSEMBLE.score(c))
            assert average.log_z is None
            scores.append(z_scores(average, k))
    assert_calibrated(scores, least=100)


def test_spoilt_model_is_never_confidently_wrong():
    """Draws at seven times, or of the opposite composition: refused, warned of, or right."""
    generator = torch.Generator().manual_seed(3)
    confident = refused = 0
    for k in range(len(CONDITIONS)):
        at = CONDITIONS[k]
        opposite = Conditions(at.temperature, -at.mu if at.mu.any() else [[0.0, 0.1]])
        spoilt = [tempered(at, 7.0), EXACT.log_target(opposite)]
        for log_q in spoilt:
            for n in (100, 1000):
                c = draw(log_q.log_softmax(0), at, n, generator)
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("error", LowESSWarning)
                        [average] = thermodynamics.averages(c)
                except (ValueError, LowESSWarning):
                    refused += 1
                    continue
                confident += 1
                assert abs(average.log_z.z(REFERENCE["log_z"][k])) < 4.5
                assert abs(average.energy.z(REFERENCE["energy"][k])) < 4.5
    assert refused > 20
    assert confident >= 3


def test_worse_model_gives_a_larger_error():
    """The further the proposal from the target, the larger the error of ln Z."""
    generator = torch.Generator().manual_seed(4)
    at = CONDITIONS[7]
    errors = [
        thermodynamics.log_z(draw(tempered(at, f), at, 20000, generator)).error[0]
        for f in (1.02, 1.2, 1.5)
    ]
    assert errors[0] < errors[1] < errors[2]


def test_conditions_keep_their_order_and_rows():
    """Interleaved conditions are grouped, in the order of first appearance."""
    generator = torch.Generator().manual_seed(6)
    order = [9, 2, 11]
    batch = [draw(tempered(CONDITIONS[k], 1.1), CONDITIONS[k], 1000, generator) for k in order]
    c = Configurations.cat(batch)
    shuffled = c[torch.arange(3000).reshape(3, 1000).T.reshape(-1)]
    a, b = thermodynamics.averages(c), thermodynamics.averages(shuffled)
    wanted = CONDITIONS.temperature[order]
    assert torch.equal(a.conditions.temperature, wanted)
    assert torch.equal(thermodynamics.conditions(shuffled).mu, CONDITIONS.mu[order])
    np.testing.assert_allclose(
        [x.log_z.value for x in a], [x.log_z.value for x in b], rtol=0, atol=1e-12
    )


def test_functions_agree_with_the_averages():
    """free_energy, log_z and mean are columns of averages."""
    generator = torch.Generator().manual_seed(7)
    order = [7, 11]
    batch = [draw(tempered(CONDITIONS[k], 1.2), CONDITIONS[k], 1000, generator) for k in order]
    c = Configurations.cat(batch)
    all_of_it = thermodynamics.averages(c)
    free = thermodynamics.free_energy(c)
    energy = thermodynamics.mean(c, c.energy)
    counts = thermodynamics.mean(c, c.counts())
    ln_z = thermodynamics.log_z(c)
    for k, average in enumerate(all_of_it):
        assert free[k].value == pytest.approx(average.grand_potential.value)
        assert free[k].error == pytest.approx(average.grand_potential.error)
        assert ln_z[k].value == pytest.approx(average.log_z.value)
        assert energy[k].error == pytest.approx(average.energy.error)
        assert energy[k].ness == pytest.approx(average.ness)
        np.testing.assert_allclose(counts[k].value, 16 * average.composition.value)
        per_site = average.grand_potential_per_site
        assert per_site.value == pytest.approx(free[k].value / 16)


def test_gauge_shifts_the_grand_potential_per_site():
    """A constant added to all chemical potentials lowers the grand potential by it per site."""
    generator = torch.Generator().manual_seed(8)
    at = CONDITIONS[7]
    c = draw(tempered(at, 1.2), at, 1000, generator)
    shifted = ENSEMBLE.score(
        replace(c, conditions=Conditions(c.conditions.temperature, c.conditions.mu + 0.3))
    )
    [a], [b] = thermodynamics.averages(c), thermodynamics.averages(shifted)
    difference = b.grand_potential_per_site.value - a.grand_potential_per_site.value
    assert difference == pytest.approx(-0.3)
    assert b.heat_capacity.value == pytest.approx(a.heat_capacity.value)
    assert b.energy.value == pytest.approx(a.energy.value)


def test_exact_draws_need_no_correction():
    """Draws of the exact distribution: NESS and acceptance one, ln Z without error."""
    at = CONDITIONS[7]
    c = draw(tempered(at, 1.0), at, 500, torch.Generator().manual_seed(9))
    [a] = thermodynamics.averages(c)
    assert a.ness == pytest.approx(1.0)
    assert a.acceptance == pytest.approx(1.0)
    assert a.log_z.value == pytest.approx(REFERENCE["log_z"][7], abs=1e-9)
    assert a.log_z.error < 1e-9


def test_acceptance_is_that_of_the_chain():
    """The predicted acceptance is what a long independence chain over these draws shows."""
    generator = torch.Generator().manual_seed(10)
    at = CONDITIONS[7]
    c = draw(tempered(at, 1.4), at, 2000, generator)
    [a] = thermodynamics.averages(c)
    w = (c.log_weight - c.log_weight.max()).exp().numpy()
    ratio = np.minimum(1.0, w[None, :] / w[:, None])
    assert a.acceptance == pytest.approx((w / w.sum()) @ ratio.mean(1), rel=1e-9)


def test_rows_are_flat_and_json_ready():
    """A table row holds plain numbers, None for what chains do not know."""
    import json

    at = CONDITIONS[9]
    c = draw(tempered(at, 1.1), at, 1000, torch.Generator().manual_seed(12))
    [row] = thermodynamics.averages(c).to_rows()
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert {"mu_Cu", "x_Au", "x_Au_error", "cov_Cu_Au", "grand_potential_per_site"} <= set(row)
    chain = replace(c, log_prob=None, chain=torch.arange(1000))
    [other] = thermodynamics.averages(chain).to_rows()
    assert set(other) == set(row)
    assert other["log_z"] is None
    assert other["ness"] == 1.0
    json.dumps(other, allow_nan=False)


# ------------------------------------------------------------------ refusals and warnings
@pytest.fixture
def draws():
    """A good batch of 1000 weighted draws."""
    at = CONDITIONS[9]
    return draw(tempered(at, 1.1), at, 1000, torch.Generator().manual_seed(13))


def test_weighted_and_chain_data_do_not_mix(draws):
    """log_prob and chain together, or neither, are refused with the remedy."""
    with pytest.raises(ValueError, match="both log_prob"):
        thermodynamics.averages(replace(draws, chain=torch.arange(1000)))
    with pytest.raises(ValueError, match=r"chain=torch\.arange"):
        thermodynamics.averages(replace(draws, log_prob=None))


def test_missing_columns_are_named(draws):
    """Unscored and incomplete configurations, and chains asked for ln Z, are refused."""
    with pytest.raises(ValueError, match="score them first"):
        thermodynamics.averages(replace(draws, log_target=None))
    holes = draws.occupations.clone()
    holes[3, 2] = -1
    with pytest.raises(ValueError, match="unknown sites"):
        thermodynamics.averages(replace(draws, occupations=holes))
    with pytest.raises(ValueError, match="ParallelTempering"):
        thermodynamics.log_z(replace(draws, log_prob=None, chain=torch.arange(1000)))
    with pytest.raises(ValueError, match="1000 configurations"):
        thermodynamics.mean(draws, torch.zeros(3))
    with pytest.raises(ValueError, match="no configurations"):
        thermodynamics.averages(draws[:0])


def test_energies_of_chains_must_be_finite(draws):
    """NaN is refused in chains as in weights; averages of other quantities do not need energies."""
    energy = draws.energy.clone()
    energy[3] = float("nan")
    chains = replace(draws, log_prob=None, energy=energy, chain=torch.arange(1000))
    with pytest.raises(ValueError, match="an energy at T = 900 K"):
        thermodynamics.averages(chains)
    assert np.isfinite(thermodynamics.mean(chains, chains.counts()).value).all()


def test_averages_of_something_else_are_refused(draws):
    """A density of states is asked itself, and the message says so."""
    with pytest.raises(TypeError, match="got DensityOfStates.*averages.conditions"):
        thermodynamics.averages(thermodynamics.density_of_states(draws))


def test_too_few_samples_are_refused(draws):
    """Nine samples carry no error."""
    with pytest.raises(ValueError, match="only 9 samples at T = 900 K"):
        thermodynamics.averages(draws[:9])


def test_one_dominating_sample_is_refused(draws):
    """All weight on one draw is no estimate."""
    log_prob = draws.log_prob.clone()
    log_prob[17] -= 40
    with pytest.raises(ValueError, match="one of 1000 samples carries"):
        thermodynamics.free_energy(replace(draws, log_prob=log_prob))
    log_prob[17] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinite"):
        thermodynamics.free_energy(replace(draws, log_prob=log_prob))


def test_low_effective_sample_sizes_are_warned_of_once(draws):
    """One warning a call names the worst condition, its numbers and the remedy."""
    few = Configurations.cat([draws[:150], draws[:0]])
    with pytest.warns(LowESSWarning, match=r"T = 900 K.*of 150 samples.*train") as record:
        thermodynamics.averages(few)
    assert len(record) == 1
    slow = replace(
        draws[torch.arange(20).repeat_interleave(30)],
        log_prob=None,
        chain=torch.zeros(600, dtype=torch.int64),
    )
    with pytest.warns(LowESSWarning, match="of 600 chain samples"):
        thermodynamics.averages(slow)


def test_different_given_sites_are_refused(draws):
    """Draws completed from different partial configurations are no draws of one ensemble."""
    step = torch.zeros(1000, 16, dtype=torch.int16)
    step[:, 0] = -1
    with pytest.raises(ValueError, match="different given sites"):
        thermodynamics.averages(replace(draws, step=step))
    same = draws.occupations[:, 0] == 1
    part = replace(draws, step=step)[same]
    assert len(thermodynamics.averages(part)) == 1
