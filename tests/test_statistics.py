"""Laws of the estimates: errors mean what they say, and doubts are visible."""

import numpy as np
import pytest
import torch
from emcee.autocorr import integrated_time

from clease_nn.statistics import (
    Estimate,
    bootstrap,
    integrated_autocorrelation_time,
    log_mean_exp,
    log_mean_exp_plus_mean,
    normalized_ess,
    pareto_k,
    series_covariance,
    series_mean,
    weighted_covariance,
    weighted_mean,
)


def ar1(rng, length, chains, rho):
    """Stationary first-order autoregression of unit variance, (length, chains)."""
    x = np.empty((length, chains))
    x[0] = rng.normal(size=chains)
    kicks = rng.normal(size=(length, chains)) * np.sqrt(1 - rho**2)
    for t in range(1, length):
        x[t] = rho * x[t - 1] + kicks[t]
    return x


def assert_calibrated(z):
    """The spread of z-scores is one within 0.8 to 1.2, and their mean is zero within it."""
    z = np.ravel(z)
    assert 0.8 < z.std() < 1.2
    assert abs(z.mean()) < 0.25


# ------------------------------------------------------------------ Estimate
def test_estimate_scales_and_shifts():
    """Constants act on the value; an error only knows the magnitude of a factor."""
    e = (3 - 2 * Estimate(1.0, 0.1, 0.5)) / 2
    assert e.value == pytest.approx(0.5)
    assert e.error == pytest.approx(0.1)
    assert e.ness == 0.5
    assert e.z(0.4) == pytest.approx(1.0)


def test_estimate_arrays_broadcast_from_both_sides():
    """A numpy array times an estimate is one estimate of arrays, and rows can be taken."""
    e = np.array([1.0, -2.0]) * Estimate(np.array([1.0, 2.0]), np.array([0.1, 0.2]))
    assert isinstance(e, Estimate)
    np.testing.assert_allclose(e.error, [0.1, 0.4])
    assert isinstance(e[1].value, float)
    assert "+-" in str(e)


def test_estimates_do_not_combine_silently():
    """Two estimates may be correlated, so their sum is refused."""
    e = Estimate(1.0, 0.1)
    with pytest.raises(TypeError, match="correlation"):
        e + e
    with pytest.raises(TypeError, match="correlation"):
        e * e


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (1.0, 0.0, "1 +- 0"),
        (12345.0, 230.0, "12345 +- 230"),
        (1.5e-9, 2e-10, "1.50e-09 +- 2.0e-10"),
        (1.0, np.inf, "1 +- inf"),
    ],
)
def test_estimate_prints_the_error_to_two_digits(value, error, text):
    """Value and error end at the same decimal."""
    assert str(Estimate(value, error)) == text


# ------------------------------------------------------------------ weights
def test_ness_does_not_depend_on_the_scale_of_the_weights():
    """A constant added to the log weights changes nothing, however large."""
    log_w = np.random.default_rng(0).normal(size=100)
    assert normalized_ess(log_w + 1e5) == pytest.approx(normalized_ess(log_w))
    assert normalized_ess(torch.as_tensor(log_w)) == normalized_ess(log_w)


@pytest.mark.parametrize("bad", [[], [np.nan, 0.0], [np.inf, 0.0], [-np.inf, -np.inf], [[0.0]]])
def test_bad_log_weights_are_refused(bad):
    """NaN, infinity, nothing, and the wrong shape raise."""
    with pytest.raises(ValueError, match="log weights"):
        normalized_ess(bad)


@pytest.mark.parametrize("k", [0.2, 0.5, 0.8, 1.2])
def test_pareto_k_finds_the_tail(k):
    """The shape of a Pareto tail is recovered; its prior pulls at most 0.1 to 1/2."""
    rng = np.random.default_rng(1)
    found = [pareto_k(-k * np.log(rng.random(4000))) for _ in range(40)]
    spread = np.std(found) / np.sqrt(40)
    assert abs(np.mean(found) - k) < 0.1 + 3 * spread


def test_pareto_k_of_equal_weights_is_no_alarm():
    """Equal weights have no tail, few weights give no answer."""
    assert pareto_k(np.zeros(1000)) < 0
    assert np.isnan(pareto_k(np.zeros(20)))


def test_log_mean_exp_is_calibrated():
    """z-scores of ln of a mean lognormal weight against its exact value are standard normal."""
    rng = np.random.default_rng(2)
    z = [log_mean_exp(0.7 * rng.normal(size=1000)).z(0.7**2 / 2) for _ in range(400)]
    assert_calibrated(z)


def test_log_mean_exp_error_agrees_with_the_bootstrap():
    """Jackknife and bootstrap are two routes to one error."""
    log_w = 0.5 * np.random.default_rng(3).normal(size=2000)
    other = bootstrap(lambda w: np.log(np.exp(w).mean()), log_w, 1000)
    # a bootstrap error of 1000 resamples is known to 1/sqrt(2000)
    assert log_mean_exp(log_w).error == pytest.approx(other.error, rel=0.1)


@pytest.mark.parametrize("k", [0.45, 0.6, 0.75])
def test_heavy_tails_widen_the_error(k):
    """Pareto weights of (nearly) infinite variance: at most 1 in 20 is off by three errors."""
    rng = np.random.default_rng(4)
    z = [log_mean_exp(-k * np.log(rng.random(1000))).z(-np.log(1 - k)) for _ in range(300)]
    assert np.mean(np.abs(z) > 3) < 0.05


def test_rare_large_weights_widen_the_error():
    """A Pareto tail (k = 0.6) on a tenth of otherwise equal weights: 1 in 20 is off by three."""
    rng = np.random.default_rng(4)
    z = []
    for _ in range(300):
        w = 1 + 0.1 * rng.random(600) ** -0.6
        z.append(log_mean_exp(np.log(w)).z(np.log(1 + 0.1 / 0.4)))
    assert np.mean(np.abs(z) > 3) < 0.05


def test_nearly_equal_weights_keep_their_small_error():
    """Whatever shape is fitted to differences of some per cent, errors stay calibrated."""
    rng = np.random.default_rng(13)
    z, z_mean, shapes = [], [], []
    for _ in range(400):
        # most weights equal, every tenth of a long-tailed but bounded spread: NESS 0.998
        x = rng.normal(size=600)
        log_w = np.where(rng.random(600) < 0.1, 0.4 * rng.random(600) ** 3, 0.0)
        shapes.append(pareto_k(log_w))
        # E exp(0.4 u^3) = sum 0.4^m / (m! (3 m + 1))
        mean = 0.9 + 0.1 * (1 + 0.4 / 4 + 0.08 / 7 + 0.064 / 60 + 0.0256 / 312)
        z.append(log_mean_exp(log_w).z(np.log(mean)))
        z_mean.append(weighted_mean(x, log_w).z(0.0))
    assert np.median(shapes) > 0.3
    assert_calibrated(z)
    assert_calibrated(z_mean)


def test_weighted_mean_is_calibrated():
    """Normal target seen through a shifted, wider normal: the mean is zero within its error."""
    rng = np.random.default_rng(5)
    z = []
    for _ in range(300):
        x = 0.5 + 1.3 * rng.normal(size=1000)
        log_w = -(x**2) / 2 + (x - 0.5) ** 2 / (2 * 1.3**2)
        z.append(weighted_mean(x, log_w).z(0.0))
    assert_calibrated(z)


def test_weighted_covariance_is_calibrated():
    """Covariances of a correlated normal through wrong draws are exact within their errors."""
    rng = np.random.default_rng(6)
    exact = np.array([[1.0, 0.6], [0.6, 1.0]])
    inverse = np.linalg.inv(exact)
    z = []
    for _ in range(300):
        x = 1.2 * rng.normal(size=(1000, 2))
        log_w = -0.5 * np.einsum("na,ab,nb->n", x, inverse, x) + (x**2).sum(1) / (2 * 1.2**2)
        z.append(weighted_covariance(x, log_w).z(exact))
    for a, b in ((0, 0), (0, 1), (1, 1)):
        assert_calibrated(np.array(z)[:, a, b])


def test_sum_of_log_mean_and_mean_knows_their_correlation():
    """ln Z + beta <U> of a Gaussian energy is exact within its error."""
    rng = np.random.default_rng(7)
    # p/q = exp(-x), x standard normal: ln Z = 1/2, <x> = -1
    z = []
    for _ in range(300):
        x = rng.normal(size=4000) * 0.7
        z.append(log_mean_exp_plus_mean(x, -x).z(0.7**2 / 2 - 0.7**2))
    assert_calibrated(z)


def test_lengths_must_match():
    """Values and weights of different lengths are refused."""
    with pytest.raises(ValueError, match="3 weights"):
        weighted_mean([1.0, 2.0], [0.0, 0.0, 0.0])


# ------------------------------------------------------------------ series
@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_autocorrelation_time_of_an_autoregression(rho):
    """AR(1) has tau = (1 + rho)/(1 - rho); within four errors of Sokal's formula."""
    x = ar1(np.random.default_rng(8), 4000, 20, rho)
    tau = (1 + rho) / (1 - rho)
    error = np.sqrt(2 * (10 * tau + 1) / x.size)
    assert integrated_autocorrelation_time(x) == pytest.approx(tau, rel=4 * error)


def test_autocorrelation_time_of_one_chain_is_that_of_emcee():
    """For a single chain the sum and window are those of emcee."""
    x = ar1(np.random.default_rng(9), 3000, 1, 0.8)[:, 0]
    assert integrated_autocorrelation_time(x) == pytest.approx(integrated_time(x)[0], rel=1e-10)


def test_stuck_chains_are_seen():
    """Chains each frozen near its own value are worth about one sample a chain."""
    rng = np.random.default_rng(10)
    x = rng.normal(size=50) + 0.01 * rng.normal(size=(200, 50))
    assert integrated_autocorrelation_time(x) > 100
    assert series_mean(x).error == pytest.approx(1 / np.sqrt(50), rel=0.35)


def test_short_and_constant_series_claim_one_sample_a_chain():
    """What cannot be estimated is taken at its worst."""
    assert integrated_autocorrelation_time(np.arange(6.0)) == 6
    assert integrated_autocorrelation_time(np.ones((30, 4))) == 30
    assert integrated_autocorrelation_time(np.random.default_rng(0).normal(size=(1, 40))) == 1


def test_series_mean_and_variance_are_calibrated():
    """z-scores of mean and variance of correlated series are standard normal."""
    rng = np.random.default_rng(11)
    z_mean, z_variance = [], []
    for _ in range(300):
        x = ar1(rng, 500, 4, 0.7)
        z_mean.append(series_mean(x).z(0.0))
        z_variance.append(series_covariance(x, x).z(1.0))
    assert_calibrated(z_mean)
    assert_calibrated(z_variance)


def test_chains_of_different_lengths():
    """A list of chains cut short anywhere is read like the full ones."""
    x = ar1(np.random.default_rng(12), 2000, 6, 0.6)
    ragged = [x[: 2000 - 200 * k, k] for k in range(6)]
    assert integrated_autocorrelation_time(ragged) == pytest.approx(4.0, rel=0.15)
    assert abs(series_mean(ragged).z(0.0)) < 4


def test_bootstrap_needs_rows():
    """One row, or one resample, gives no spread."""
    with pytest.raises(ValueError, match="two rows"):
        bootstrap(np.mean, [1.0])
