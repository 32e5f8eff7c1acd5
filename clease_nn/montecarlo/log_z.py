"""Absolute ln Z of many conditions from the overlaps of neighbours.

Every pair of neighbouring conditions gives a difference of ln Z by Bennett's acceptance ratio
[1]_; the differences of all pairs are combined by weighted least squares, with ln Z known exactly
where beta = 0, and where ordered phases are known estimated at low temperature from the share of
the time spent in them. The work grows linearly with the number of conditions.

References
----------
.. [1] C. H. Bennett, J. Comput. Phys. 22, 245 (1976).
.. [2] U. Wolff, Comput. Phys. Commun. 156, 143 (2004), eq. 49.
.. [3] C. J. Geyer, Stat. Sci. 7, 473 (1992).
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_matrix, diags
from scipy.sparse.linalg import splu

from clease_nn.statistics import integrated_autocorrelation_time

__all__ = ["anchored", "bennett", "combine", "differences"]

_BATCHES = 10
_CONFLICT = 4.0  # errors of ln Z without anchors, by which anchors may move it


def bennett(forward: np.ndarray, backward: np.ndarray) -> tuple[np.ndarray, ...]:
    """Differences of ln Z of pairs of conditions.

    Parameters
    ----------
    forward : ndarray, shape (time, pairs)
        ``ln w_1(x) - ln w_0(x)`` of samples ``x`` of condition 0.
    backward : ndarray, shape (time, pairs)
        The same of samples of condition 1.

    Returns
    -------
    difference : ndarray, shape (pairs,)
        ``ln Z_1 - ln Z_0``.
    influence : ndarray, shape (time, pairs)
        Contribution of every time to the error of the difference; mean zero, and the variance of
        its mean is that of the difference.
    variance : ndarray, shape (pairs,)
        Variance of the difference if all samples were independent.

    Examples
    --------
    >>> f, _, _ = bennett(np.full((5, 1), 2.0), np.full((5, 1), 2.0))
    >>> round(float(f[0]), 6)
    2.0
    """
    low = np.minimum(forward.min(0), backward.min(0))
    high = np.maximum(forward.max(0), backward.max(0))
    f = 0.5 * (low + high)
    for _ in range(200):
        p, q = _sigmoid(forward - f), _sigmoid(f - backward)
        value = p.sum(0) - q.sum(0)
        low, high = np.where(value >= 0, f, low), np.where(value <= 0, f, high)
        slope = (p * (1 - p)).sum(0) + (q * (1 - q)).sum(0)
        with np.errstate(divide="ignore", invalid="ignore"):
            new = f + value / slope
        new = np.where((new > low) & (new < high), new, 0.5 * (low + high))
        done = np.abs(new - f) < 1e-11 * (1 + np.abs(f))
        f = new
        if done.all():
            break
    p, q = _sigmoid(forward - f), _sigmoid(f - backward)
    slope = np.maximum((p * (1 - p)).mean(0) + (q * (1 - q)).mean(0), 1e-300)
    influence = (p - q) / slope
    n = len(forward)
    variance = np.maximum(1.0 / slope - 2.0, 0.0) / n
    return f, influence, variance


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def differences(pairs, beta, beta_mu, energy, counts, known, chunk: int = 256):
    """:func:`bennett` of all pairs of neighbouring chains of which not both are known.

    Parameters
    ----------
    pairs : sequence of two ndarrays
        Chains at the start and at the end of each.
    beta : ndarray, shape (chains,)
        1/eV.
    beta_mu : ndarray, shape (chains, species)
    energy : ndarray, shape (time, chains)
        eV.
    counts : ndarray, shape (time, chains, species)
    known : ndarray of bool, shape (chains,)
    chunk : int
        Pairs at once.

    Returns
    -------
    pairs : two ndarrays
    difference, influence, variance : ndarray
    """
    i, j = (np.concatenate(side) for side in zip(*pairs, strict=True))
    useful = ~(known[i] & known[j])
    i, j = i[useful], j[useful]
    parts = []
    for k in range(0, len(i), chunk):
        a, b = i[k : k + chunk], j[k : k + chunk]
        d_beta, d_mu = beta[b] - beta[a], beta_mu[b] - beta_mu[a]

        def change(at, d_beta=d_beta, d_mu=d_mu):
            return (counts[:, at] * d_mu).sum(2) - d_beta * energy[:, at]

        parts.append(bennett(change(a), change(b)))
    return (i, j), *(np.concatenate(p, axis=-1) for p in zip(*parts, strict=True))


def combine(
    nodes: int,
    pairs: tuple[np.ndarray, np.ndarray],
    difference: np.ndarray,
    influence: np.ndarray,
    variance: np.ndarray,
    known: np.ndarray,
    value: float,
) -> tuple[np.ndarray, np.ndarray]:
    """ln Z of all nodes from the differences along the pairs.

    Parameters
    ----------
    nodes : int
    pairs : two ndarrays, shape (pairs,)
        Node at the start and at the end of every pair; every node must be connected to a known
        one.
    difference, influence, variance
        From :func:`bennett`.
    known : ndarray of bool, shape (nodes,)
    value : float
        ln Z of the known nodes.

    Returns
    -------
    log_z, error : ndarray, shape (nodes,)
        The error includes the autocorrelation of the series.
    """
    i, j = pairs
    n_pairs, n_times = len(i), len(influence)
    weight = 1.0 / (variance + 0.02 / n_times)
    rows = np.arange(n_pairs)
    incidence = coo_matrix(
        (np.repeat([1.0, -1.0], n_pairs), (np.tile(rows, 2), np.concatenate([j, i]))),
        shape=(n_pairs, nodes),
    ).tocsr()
    free = np.flatnonzero(~known)
    reduced = incidence[:, free]
    offset = incidence[:, np.flatnonzero(known)].sum(1).A1 * value
    weighted = reduced.T @ diags(weight)
    solver = splu((weighted @ reduced).tocsc())
    log_z = np.full(nodes, value)
    log_z[free] = solver.solve(weighted @ (difference - offset))
    error = np.zeros(nodes)
    chunk = max(1, 20_000_000 // max(n_times, 1))
    for k in range(0, len(free), chunk):
        # rows of the inverse belonging to these nodes: their response to every pair
        unit = np.zeros((len(free), min(chunk, len(free) - k)))
        unit[np.arange(k, k + unit.shape[1]), np.arange(unit.shape[1])] = 1.0
        response = weighted.T @ solver.solve(unit)
        series = influence @ response
        for c in range(series.shape[1]):
            error[free[k + c]] = np.sqrt(_variance_of_mean(series[:, c]))
    return log_z, error


def anchored(
    nodes: int,
    pairs: tuple[np.ndarray, np.ndarray],
    difference: np.ndarray,
    influence: np.ndarray,
    variance: np.ndarray,
    known: np.ndarray,
    value: float,
    anchors: tuple[np.ndarray, ...],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """:func:`combine` with estimates of ln Z of some nodes, and where these are in conflict.

    An estimate from the share of the time in known configurations
    (:class:`~clease_nn.montecarlo.anchors.GroundStates`) knows nothing of variants and phases that
    its chain never reached. Where such estimates move ln Z by more than four errors, one of the
    two must be wrong, and the error is at least what they differ by.

    Parameters
    ----------
    nodes, pairs, difference, influence, variance, known, value
        As for :func:`combine`.
    anchors : tuple
        Nodes, ln Z of each, influence and variance, as :meth:`GroundStates.log_z` has them.

    Returns
    -------
    log_z, error : ndarray, shape (nodes,)
    conflict : ndarray, shape (nodes,)
        What the estimates moved ln Z by where that is more than four errors; zero elsewhere.
    """
    plain, plain_error = combine(nodes, pairs, difference, influence, variance, known, value)
    at, own, own_influence, own_variance = anchors
    if not len(at):
        return plain, plain_error, np.zeros(nodes)
    i = np.append(pairs[0], np.full(len(at), np.flatnonzero(known)[0]))
    log_z, error = combine(
        nodes,
        (i, np.append(pairs[1], at)),
        np.append(difference, own - value),
        np.concatenate([influence, own_influence], 1),
        np.append(variance, own_variance),
        known,
        value,
    )
    conflict = log_z - plain
    limit = _CONFLICT * np.hypot(plain_error, 0.5 / len(influence))
    conflict[np.abs(conflict) <= limit] = 0.0
    return log_z, np.maximum(error, np.abs(conflict)), conflict


def _variance_of_mean(x: np.ndarray) -> float:
    """Variance of the mean of a series: the larger of two estimates.

    The autocorrelation time misses slow modes of small amplitude, as exchanges between phases
    are; means of batches [3] see them.
    """
    n = len(x)
    tau = integrated_autocorrelation_time(x)
    tau *= 1 + (10 * tau + 1) / n  # bias of a window of 5 times tau [2]
    windowed = tau * np.mean(x**2) / n
    size = n // _BATCHES
    if size < 2:
        return windowed
    means = x[n - size * _BATCHES :].reshape(_BATCHES, size).mean(1)
    return max(windowed, means.var(ddof=1) / _BATCHES)
