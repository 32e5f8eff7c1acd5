"""Estimates with errors from weighted draws and from correlated series; no physics.

Log weights are natural logarithms of unnormalised weights ``w = p/q`` of draws from ``q``. Arrays
may be numpy arrays or torch tensors; results are floats or numpy arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import nan

import numpy as np

__all__ = [
    "Estimate",
    "bootstrap",
    "independence_acceptance",
    "integrated_autocorrelation_time",
    "log_mean_exp",
    "log_mean_exp_plus_mean",
    "normalized_ess",
    "pareto_k",
    "series_covariance",
    "series_mean",
    "weighted_covariance",
    "weighted_mean",
]

_WINDOW = 5.0  # Sokal's window in units of the autocorrelation time
_K_LIGHT = 0.3  # fitted tail shape up to which the sample variance alone is right
_K_LARGEST = 0.95  # the fitted tail has no mean from 1 on
_K_SLACK = 0.7  # the largest of m Pareto weights is above m^k exp(-0.7) in 6 of 7 cases (k < 1)


@dataclass(frozen=True, eq=False)
class Estimate:
    """A value with its standard error and the share of effective samples behind it.

    Parameters
    ----------
    value, error : float or ndarray
        Estimate and one standard error, in the same unit and of one shape.
    ness : float or ndarray, default nan
        Normalised effective sample size in [0, 1]; nan where it has no meaning.

    Examples
    --------
    >>> e = Estimate(-1.23456, 0.0123, 0.93)
    >>> print(e)
    -1.235 +- 0.012 (NESS 0.93)
    >>> print(-2 * e + 1)
    3.469 +- 0.025 (NESS 0.93)
    >>> round(e.z(-1.25), 2)
    1.26
    """

    value: float | np.ndarray
    error: float | np.ndarray
    ness: float | np.ndarray = nan

    # numpy leaves ``array * estimate`` to __rmul__
    __array_ufunc__ = None

    def z(self, reference):
        """``(value - reference) / error``; zero where both difference and error are zero."""
        difference = np.subtract(self.value, _array(reference))
        with np.errstate(divide="ignore", invalid="ignore"):
            z = np.where(difference == 0, 0.0, difference / self.error)
        return z if z.ndim else float(z)

    def __neg__(self) -> Estimate:
        return -1.0 * self

    def __add__(self, constant) -> Estimate:
        value = self.value + _constant(constant)
        return Estimate(_plain(value), _plain(self.error + np.zeros_like(value)), self.ness)

    __radd__ = __add__

    def __sub__(self, constant) -> Estimate:
        return self + -_constant(constant)

    def __rsub__(self, constant) -> Estimate:
        return -self + constant

    def __mul__(self, constant) -> Estimate:
        c = _constant(constant)
        return Estimate(_plain(self.value * c), _plain(self.error * np.abs(c)), self.ness)

    __rmul__ = __mul__

    def __truediv__(self, constant) -> Estimate:
        return self * (1.0 / _constant(constant))

    def __getitem__(self, index) -> Estimate:
        """Estimate of the indexed elements; ``ness`` is indexed where it has the same shape."""
        ness = self.ness
        if np.ndim(ness):
            ness = np.asarray(ness)[index[: np.ndim(ness)] if isinstance(index, tuple) else index]
        return Estimate(
            _plain(np.asarray(self.value)[index]),
            _plain(np.asarray(self.error)[index]),
            _plain(np.asarray(ness)),
        )

    def __len__(self) -> int:
        return len(self.value)

    def __str__(self) -> str:
        if np.ndim(self.value):
            pairs = zip(np.ravel(self.value), np.ravel(self.error), strict=True)
            text = f"[{', '.join(_pair(v, e) for v, e in pairs)}]"
        else:
            text = _pair(float(self.value), float(self.error))
        ness = np.min(self.ness)
        if np.isnan(ness):
            return text
        return f"{text} (NESS {'>= ' if np.ndim(self.ness) else ''}{ness:.2f})"


# ------------------------------------------------------------------ weights
def normalized_ess(log_weights) -> float:
    """Kish's effective sample size over the number of samples, ``(sum w)^2 / (n sum w^2)``.

    Parameters
    ----------
    log_weights : array_like, shape (n,)

    Returns
    -------
    float
        Between ``1/n`` (all weight on one sample) and 1 (equal weights).

    Raises
    ------
    ValueError
        If there is no sample, or a log weight is NaN or plus infinity.

    References
    ----------
    L. Kish, Survey Sampling (Wiley, 1965).

    Examples
    --------
    >>> normalized_ess([0.0, 0.0])
    1.0
    >>> normalized_ess([0.0, -1000.0])
    0.5
    """
    w = _weights(log_weights)
    return float(1.0 / (len(w) * (w**2).sum()))


def pareto_k(log_weights) -> float:
    """Shape k of the generalized Pareto tail of the weights (the k-hat of PSIS).

    The largest ``min(n/5, 3 sqrt(n))`` weights are fitted. Below 0.5 the weights have a finite
    variance; above 0.7 estimates and their errors cannot be trusted, whatever the effective
    sample size says.

    Returns
    -------
    float
        k; nan where fewer than five weights make the tail, minus infinity where it is flat.

    References
    ----------
    A. Vehtari et al., J. Mach. Learn. Res. 25, 72 (2024); J. Zhang and M. A. Stephens,
    Technometrics 51, 316 (2009) for the fit.

    Examples
    --------
    >>> u = (np.arange(4000) + 0.5) / 4000
    >>> [round(pareto_k(-k * np.log(u)), 1) for k in (0.3, 0.9)]
    [0.3, 0.9]
    """
    return _tail(_weights(log_weights))[0]


def independence_acceptance(log_weights) -> float:
    """Acceptance of an independence Metropolis-Hastings chain that proposes these draws.

    ``sum_ij min(w_i, w_j) / (n sum_i w_i)``, the mean of ``min(1, w_new / w_old)`` in equilibrium.

    Examples
    --------
    >>> independence_acceptance([0.0, 0.0])
    1.0
    >>> independence_acceptance([0.0, -1000.0])
    0.5
    """
    w = np.sort(_weights(log_weights))
    n = len(w)
    # the k-th smallest of n weights is the minimum of 2(n - k) + 1 ordered pairs
    return float((w * (2 * np.arange(n, 0, -1) - 1)).sum() / n)


def log_mean_exp(log_weights) -> Estimate:
    """Logarithm of the mean weight, ``ln (1/n) sum w``, with its jackknife error.

    Where the weights have a tail (k-hat > 0.3, and a largest weight that stands far enough above
    the others for such a shape; their variance is infinite from 0.5 on), the part of the mean
    expected beyond the largest weight seen is added to the error in quadrature.

    Raises
    ------
    ValueError
        With fewer than two samples, or if a log weight is NaN or plus infinity.

    Examples
    --------
    >>> print(log_mean_exp(np.log([1.0, 2.0, 3.0, 2.0])))
    0.69 +- 0.21 (NESS 0.89)
    """
    log_w = _array(log_weights)
    w = _weights(log_w, at_least=2)
    n = len(w)
    shift = log_w.max()
    value = shift + np.log(np.exp(log_w - shift).mean())
    error = np.hypot(_jackknife_error(np.log(_left(w))), np.log1p(_unseen(w)))
    return Estimate(float(value), float(error), float(1.0 / (n * (w**2).sum())))


def log_mean_exp_plus_mean(values, log_weights) -> Estimate:
    """``ln (1/n) sum w + sum w v / sum w`` with the jackknife error of the sum.

    The two terms come from the same draws and are correlated: an entropy over kB is such a sum
    (ln Z and the mean energy over kT).

    Parameters
    ----------
    values : array_like, shape (n,)
    log_weights : array_like, shape (n,)
    """
    log_z = log_mean_exp(log_weights)
    w = _weights(log_weights)
    v = _rows(values, len(w))
    mean = w @ v
    left = _left(w)
    # without a sample: total weight and weighted mean of the others
    others = np.log(left) - w * (v - mean) / left
    unseen = _unseen(w)
    tail = np.log1p(unseen) + unseen / (1 + unseen) * np.abs(v - mean).max()
    error = np.hypot(_jackknife_error(others), tail)
    return Estimate(float(log_z.value + mean), float(error), log_z.ness)


def weighted_mean(values, log_weights) -> Estimate:
    """Self-normalised mean ``sum w v / sum w`` with its error by the delta method.

    The error ``sqrt(n/(n-1) sum (w (v - mean))^2) / sum w`` contains the variance of the weights.
    Where the weights have a tail (see :func:`log_mean_exp`) the weight expected beyond the
    largest one seen, at the value farthest from the mean, is added in quadrature.

    Parameters
    ----------
    values : array_like, shape (n, ...)
    log_weights : array_like, shape (n,)

    Returns
    -------
    Estimate
        Of shape (...).

    References
    ----------
    A. B. Owen, Monte Carlo theory, methods and examples (2013), section 9.2.

    Examples
    --------
    >>> print(weighted_mean([1.0, 2.0, 3.0], [0.0, 0.0, 0.0]))
    2.00 +- 0.58 (NESS 1.00)
    """
    w = _weights(log_weights, at_least=2)
    v = _rows(values, len(w))
    n = len(w)
    mean = np.tensordot(w, v, 1)
    d = v - mean
    variance = np.tensordot(w**2, d**2, 1) * n / (n - 1)
    unseen = _unseen(w)
    error = np.hypot(np.sqrt(variance), unseen / (1 + unseen) * np.abs(d).max(0))
    return Estimate(_plain(mean), _plain(error), float(1.0 / (n * (w**2).sum())))


def weighted_covariance(values, log_weights) -> Estimate:
    """Covariance matrix under the weights, with jackknife errors.

    The plain estimate is divided by ``1 - sum (w/sum w)^2``, which removes its bias to leading
    order.

    Parameters
    ----------
    values : array_like, shape (n,) or (n, d)
    log_weights : array_like, shape (n,)

    Returns
    -------
    Estimate
        Variance for values of shape (n,), else covariance of shape (d, d).

    Examples
    --------
    >>> print(weighted_covariance([1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0]))
    1.7 +- 1.2 (NESS 1.00)
    """
    w = _weights(log_weights, at_least=3)
    v = _rows(values, len(w))
    n = len(w)
    x = v.reshape(n, -1)
    x = x - w @ x
    product = x[:, :, None] * x[:, None, :]
    square = (w**2).sum()
    value = np.tensordot(w, product, 1) / (1 - square)
    # leave one out: the moments of the others, the mean of all being zero
    left = 1 - w
    mean = -w[:, None] * x / left[:, None]
    second = (np.tensordot(w, product, 1) - w[:, None, None] * product) / left[:, None, None]
    bias = 1 - (square - w**2) / left**2
    others = (second - mean[:, :, None] * mean[:, None, :]) / bias[:, None, None]
    unseen = _unseen(w)
    tail = unseen / (1 + unseen) * np.abs(product - value).max(0)
    error = np.hypot(_jackknife_error(others), tail)
    shape = () if v.ndim == 1 else value.shape
    return Estimate(
        _plain(value.reshape(shape)), _plain(error.reshape(shape)), float(1.0 / (n * square))
    )


def bootstrap(
    statistic: Callable[[np.ndarray], object],
    data,
    n_resamples: int = 200,
    rng: np.random.Generator | None = None,
) -> Estimate:
    """Value of a statistic and its bootstrap error (resampled rows with replacement).

    Parameters
    ----------
    statistic : callable
        ``statistic(rows)`` of an array like ``data``; a float or an array.
    data : array_like, shape (n, ...)
        Independent rows.
    n_resamples : int
        At least 2.
    rng : numpy.random.Generator, optional
        Default: a generator of fixed seed, so that the error is reproducible.

    Examples
    --------
    >>> data = np.random.default_rng(1).normal(size=400)
    >>> print(bootstrap(np.mean, data))
    -0.082 +- 0.046
    """
    rows = _array(data)
    if len(rows) < 2 or n_resamples < 2:
        raise ValueError(
            f"a bootstrap needs two rows and two resamples, got {len(rows)} and {n_resamples}"
        )
    rng = np.random.default_rng(0) if rng is None else rng
    draws = [
        np.asarray(statistic(rows[rng.integers(len(rows), size=len(rows))]), dtype=float)
        for _ in range(n_resamples)
    ]
    return Estimate(
        _plain(np.asarray(statistic(rows), dtype=float)), _plain(np.std(draws, axis=0, ddof=1))
    )


# ------------------------------------------------------------------ correlated series
def integrated_autocorrelation_time(x) -> float:
    """Integrated autocorrelation time ``1 + 2 sum_t rho(t)`` in steps, with Sokal's window.

    All chains share one mean, so chains stuck in different places show as a time of the order of
    their length. A single chain of fewer than 10 steps, and a constant series, cannot tell: the
    length of the longest chain is returned, that is one effective sample a chain.

    Parameters
    ----------
    x : array_like, shape (time,) or (time, chains), or a list of 1-d arrays
        A list holds chains of different lengths.

    Returns
    -------
    float
        At least 1. With fewer than about 50 times this many steps in all it is itself uncertain.

    References
    ----------
    A. D. Sokal, Monte Carlo methods in statistical mechanics (1996).

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> round(integrated_autocorrelation_time(rng.normal(size=(2000, 10))), 1)
    1.0
    """
    chains = _chains(x)
    longest = max(len(c) for c in chains)
    if longest == 1 and len(chains) > 1:
        return 1.0
    mean = np.concatenate(chains).mean()
    size = 2 ** int(np.ceil(np.log2(2 * longest)))
    covariance = np.zeros(longest)
    for c in chains:
        f = np.fft.rfft(c - mean, size)
        acf = np.fft.irfft(f * np.conj(f), size)[: len(c)]
        covariance[: len(c)] += acf
    scale = max(float(np.abs(c - mean).max()) for c in chains)
    flat = scale <= 1e-12 * max(abs(mean), np.finfo(float).tiny)
    if flat or (len(chains) == 1 and longest < 10):
        return float(longest)
    taus = 2.0 * np.cumsum(covariance / covariance[0]) - 1.0
    beyond = np.arange(longest) >= _WINDOW * taus
    # chains that never forget fill the whole window
    return float(max(1.0, taus[np.argmax(beyond) if beyond.any() else -1]))


def series_mean(x) -> Estimate:
    """Mean of unweighted, correlated series with an error from their autocorrelation.

    Parameters
    ----------
    x : array_like, shape (time,) or (time, chains), or a list of 1-d arrays

    Returns
    -------
    Estimate
        ``ness`` is one over the autocorrelation time.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> print(series_mean(rng.normal(size=(2000, 5))))
    0.0063 +- 0.0100 (NESS 1.00)
    """
    chains = _chains(x)
    tau = integrated_autocorrelation_time(chains)
    rows = np.concatenate(chains)
    n = len(rows)
    if n < 2:
        raise ValueError(f"an error needs at least two samples, got {n}")
    # var (n - tau)/n is what is left after the sample mean: undo it
    variance = rows.var() / (1.0 - min(tau, n / 2) / n)
    return Estimate(float(rows.mean()), float(np.sqrt(variance * tau / n)), 1.0 / tau)


def series_covariance(x, y) -> Estimate:
    """Covariance of two correlated series, the error from the autocorrelation of their product.

    Parameters
    ----------
    x, y : array_like, shape (time,) or (time, chains), or lists of 1-d arrays
        Of equal shapes.
    """
    a, b = _chains(x), _chains(y)
    if [len(c) for c in a] != [len(c) for c in b]:
        raise ValueError("the two series must have the same chains and lengths")
    mean_a, mean_b = np.concatenate(a).mean(), np.concatenate(b).mean()
    n = sum(len(c) for c in a)
    # the sample mean takes one effective sample
    tau_mean = min(max(integrated_autocorrelation_time(c) for c in (a, b)), n / 2)
    product = [(c - mean_a) * (d - mean_b) for c, d in zip(a, b, strict=True)]
    return series_mean(product) * (1.0 / (1.0 - tau_mean / n))


# ------------------------------------------------------------------ helpers
def _left(w: np.ndarray) -> np.ndarray:
    """Total normalised weight without each sample; positive also where rounding says zero."""
    return np.maximum(1.0 - w, np.finfo(float).tiny)


def _jackknife_error(left_out: np.ndarray) -> np.ndarray:
    """Standard error from the n leave-one-out values along axis 0."""
    n = len(left_out)
    return np.sqrt((n - 1) / n * ((left_out - left_out.mean(0)) ** 2).sum(0))


def _tail_size(n: int) -> int:
    return int(min(0.2 * n, 3 * np.sqrt(n)))


def _tail(w: np.ndarray) -> tuple[float, float, float]:
    """Shape and scale of the Pareto tail of weights, and its threshold."""
    n = len(w)
    size = _tail_size(n)
    if size < 5:
        return nan, nan, nan
    ordered = np.sort(w)
    threshold = ordered[-size - 1]
    x = ordered[-size:] - threshold
    x = x[x > 1e-12 * ordered[-1]]
    if len(x) == 0:
        return -np.inf, 0.0, threshold
    if len(x) < 5:
        return nan, nan, threshold
    k, sigma = _fit_pareto(x)
    return k, sigma, threshold


def _fit_pareto(x: np.ndarray) -> tuple[float, float]:
    """Generalized Pareto fit of ascending exceedances: posterior mean of Zhang and Stephens."""
    n = len(x)
    m = 30 + int(np.sqrt(n))
    j = np.arange(1, m + 1)
    quartile = x[int(n / 4 + 0.5) - 1]
    theta = 1 / x[-1] + (1 - np.sqrt(m / (j - 0.5))) / (3 * quartile)
    theta = theta[theta != 0]
    shape = np.log1p(-theta[:, None] * x).mean(1)
    log_likelihood = n * (np.log(-theta / shape) - shape - 1)
    weight = np.exp(log_likelihood - log_likelihood.max())
    best = (theta * weight).sum() / weight.sum()
    k = np.log1p(-best * x).mean()
    sigma = -k / best
    # weakly informative prior of PSIS: ten pseudo-observations at 1/2
    return float((n * k + 5.0) / (n + 10.0)), float(sigma)


def _unseen(w: np.ndarray) -> float:
    """Weight expected beyond the largest one seen, relative to the total; 0 for thin tails.

    The fitted shape is bounded by how far the largest weight stands above the threshold: for
    nearly equal weights the fit finds any shape among differences that do not matter.
    """
    k, sigma, threshold = _tail(w)
    size, largest = _tail_size(len(w)), w.max()
    if k > _K_LIGHT and threshold > 0:
        k = min(k, (np.log(largest / threshold) + _K_SLACK) / np.log(size))
    if not k > _K_LIGHT:
        return 0.0
    # one standard error above the fitted shape: short samples hide their tails
    k = min(k + (1 + k) / np.sqrt(size), _K_LARGEST)
    # one more draw in n, now of the mean weight, exceeds the largest by the tail's mean excess
    return float(largest - 1 / len(w) + (sigma + k * (largest - threshold)) / (1 - k))


def _array(x) -> np.ndarray:
    if hasattr(x, "detach"):
        x = x.detach().cpu()
    return np.asarray(x, dtype=float)


def _plain(x):
    return x if np.ndim(x) else float(x)


def _constant(x) -> np.ndarray:
    if isinstance(x, Estimate):
        raise TypeError(
            "the error of a combination of two estimates depends on their correlation; "
            "combine the samples, or the values and errors by hand"
        )
    return _array(x)


def _weights(log_weights, at_least: int = 1) -> np.ndarray:
    """Weights of sum one."""
    log_w = _array(log_weights)
    if log_w.ndim != 1 or len(log_w) < at_least:
        raise ValueError(
            f"log weights must be one-dimensional with at least {at_least} samples, got shape "
            f"{log_w.shape}"
        )
    if np.isnan(log_w).any() or log_w.max() == np.inf or log_w.max() == -np.inf:
        raise ValueError("log weights must not be NaN, plus infinity or all minus infinity")
    w = np.exp(log_w - log_w.max())
    return w / w.sum()


def _rows(values, n: int) -> np.ndarray:
    v = _array(values)
    if v.ndim == 0 or len(v) != n:
        raise ValueError(f"values have shape {v.shape}, but there are {n} weights")
    return v


def _chains(x) -> Sequence[np.ndarray]:
    if isinstance(x, list) and x and np.ndim(x[0]) == 1:
        chains = [_array(c) for c in x]
    else:
        v = _array(x)
        if v.ndim not in (1, 2):
            raise ValueError(f"a series must have shape (time,) or (time, chains), got {v.shape}")
        chains = list(v.reshape(len(v), -1).T)
    chains = [c for c in chains if len(c)]
    if not chains:
        raise ValueError("a series needs at least one step")
    return chains


def _pair(value: float, error: float) -> str:
    """Value and error, the error to two digits."""
    if not (np.isfinite(error) and error > 0 and np.isfinite(value)):
        return f"{value:.6g} +- {error:.2g}"
    exponent = int(np.floor(np.log10(error)))
    if exponent < -6 or exponent > 3:
        digits = max(0, int(np.floor(np.log10(max(abs(value), error)))) - exponent + 1)
        return f"{value:.{digits}e} +- {error:.1e}"
    decimals = max(0, 1 - exponent)
    return f"{value:.{decimals}f} +- {error:.{decimals}f}"
