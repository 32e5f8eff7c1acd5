"""Factors on the rows of a set of samples that other samples would have given."""

from __future__ import annotations

import numpy as np

from clease_nn.statistics import integrated_autocorrelation_time

__all__ = ["bootstrap_factors", "chain_blocks", "common_blocks"]

_BLOCK = 4.0  # length of a block in units of the autocorrelation time
_FEWEST_BLOCKS = 4
_FEWEST_COMMON, _MOST_COMMON = 16, 32  # blocks that all chains of a run share


def bootstrap_factors(
    blocks: np.ndarray, inflation: float, n_resamples: int, rng: np.random.Generator
) -> np.ndarray:
    """Factors of mean one, one a block, that rows would carry in resampled data.

    A Bayesian bootstrap: the ``B`` blocks carry Dirichlet weights whose concentration is such
    that a mean over blocks has the variance ``inflation S^2 / (B - 1)``, unbiased for independent
    blocks with an inflation of 1. No block is ever lost, unlike with resampled counts.

    Parameters
    ----------
    blocks : ndarray of int, shape (rows,)
        Block of every row, numbered from zero.
    inflation : float
        Factor on the variance.
    n_resamples : int
    rng : numpy.random.Generator

    Returns
    -------
    ndarray, shape (rows, n_resamples), float32

    References
    ----------
    D. B. Rubin, Ann. Stat. 9, 130 (1981).

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=400)
    >>> b = bootstrap_factors(np.arange(400), 1.0, 4000, rng)
    >>> bool(abs((b * x[:, None]).mean(0).std() / x.std() * 20 - 1) < 0.05)
    True
    """
    n_blocks = int(blocks[-1]) + 1 if len(blocks) else 0
    if n_blocks < 2:
        return np.ones((len(blocks), n_resamples), dtype=np.float32)
    size = np.bincount(blocks, minlength=n_blocks)
    shape = max(((n_blocks - 1) / inflation - 1) / n_blocks, 0.05)
    weight = rng.standard_gamma(shape, size=(n_blocks, n_resamples), dtype=np.float32)
    weight /= (size @ weight) / len(blocks)
    return weight if n_blocks == len(blocks) else weight[blocks]


def chain_blocks(
    lengths: list[int], tau: float, fewest: int = _FEWEST_BLOCKS
) -> tuple[np.ndarray, float]:
    """Blocks of rows of chains, laid one after another, and the inflation they need.

    Chains are cut into blocks of about four autocorrelation times; shorter chains are blocks of
    their own. Means over blocks of finite length have less variance than the autocorrelation time
    says; the missing part is that of a first-order autoregressive process.

    Parameters
    ----------
    lengths : list of int
        Rows of every chain.
    tau : float
        Integrated autocorrelation time, at least 1.
    fewest : int
        Fewer chains than this are cut shorter, so that there are so many blocks.

    Returns
    -------
    blocks : ndarray of int, shape (rows,)
    inflation : float
        Factor on the variance of means over blocks.

    Examples
    --------
    >>> chain_blocks([3, 3], 1.0)[0].tolist()
    [0, 1, 2, 3, 4, 5]
    >>> chain_blocks([3, 3, 2, 4], 100.0)[0].tolist()
    [0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 3]
    """
    n = sum(lengths)
    length = 1 if tau < 1.05 else max(int(np.ceil(_BLOCK * tau)), 1)
    if len(lengths) < fewest:
        length = max(1, min(length, n // fewest))
    parts, start, cut = [], 0, False
    for rows in lengths:
        pieces = max(1, round(rows / length))
        cut |= pieces > 1
        parts.append(start + np.arange(rows) * pieces // max(rows, 1))
        start += pieces
    blocks = np.concatenate(parts)
    if not cut:
        return blocks, 1.0
    mean_length = n / start
    rho = (tau - 1) / (tau + 1)
    missing = (tau - 1 / tau) * (1 - rho**mean_length) / (2 * mean_length)
    return blocks, 1.0 / (1.0 - min(missing, 0.9))


def common_blocks(series: list[np.ndarray], tau: float) -> tuple[np.ndarray, float]:
    """Blocks of time common to chains that exchange configurations.

    What one chain of a parallel tempering run gives away a neighbour gets, so that their errors
    are correlated, and a slow configuration comes back later. Blocks are cut through all chains
    at the same times, about four autocorrelation times long, by the slower of single chains and
    of sums over all of them; 16 to 32 of them, since slow exchanges are hidden in short runs.

    Parameters
    ----------
    series : list of ndarray, shape (time, chains)
        Observables of all chains.
    tau : float
        Autocorrelation time of single chains.

    Returns
    -------
    blocks : ndarray of int, shape (time,)
    inflation : float
        As of :func:`chain_blocks`.
    """
    times = [tau]
    for x in series:
        scale = x.std(0)
        moving = scale > 0
        if moving.any():
            together = ((x - x.mean(0))[:, moving] / scale[moving]).sum(1)
            times.append(integrated_autocorrelation_time(together))
    steps = len(series[0])
    blocks, inflation = chain_blocks([steps], max(times), _FEWEST_COMMON)
    if blocks[-1] >= _MOST_COMMON:
        blocks = np.arange(steps) * _MOST_COMMON // steps
    return blocks, inflation
