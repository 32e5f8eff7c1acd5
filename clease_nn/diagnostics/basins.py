"""Phases told apart by valleys in the distribution of composition and energy."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter1d

__all__ = ["basins"]

_VALLEY = 0.4  # of the lower of two maxima, below which there are two phases
_SMALLEST = 0.02  # share of a phase
_FEWEST = 3  # rows of a phase
_CAP = 10.0  # times the mean: no single weight makes a phase
_SILVERMAN = 0.9  # width of the kernel, times deviation times rows^(-1/5)
_STEPS = 4.0  # grid points a standard deviation of the kernel
_POINTS = 4000


def basins(composition: np.ndarray, energy: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Label of the phase of every row, shape (rows,), 0, 1, ...

    The distribution is smoothed by a Gaussian kernel and cut at its deepest valley, first in the
    composition, then in the energy at equal composition (its linear part taken out), again and
    again until no valley is left.

    Parameters
    ----------
    composition : ndarray, shape (rows, species)
        Numbers of atoms of each species.
    energy : ndarray, shape (rows,)
        Of the supercell, in units of kT.
    weights : ndarray, shape (rows,)

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> gold = np.concatenate([rng.binomial(32, 0.1, 300), rng.binomial(32, 0.8, 100)])
    >>> labels = basins(np.stack([gold, 32 - gold], 1), rng.normal(size=400), np.ones(400))
    >>> np.bincount(labels)
    array([300, 100])
    """
    weights = np.minimum(weights, _CAP * weights.mean())
    weights = weights / weights.sum()
    n_sites = composition[0].sum()
    labels = np.zeros(len(weights), dtype=int)
    todo, found = [np.arange(len(weights))], 0
    while todo:
        rows = todo.pop(0)
        x, w = composition[rows], weights[rows]
        # a few atoms more or less, or a few kT, are fluctuations of one phase
        cut = max(
            (_deepest(column, w, max(0.5, 0.02 * n_sites)) for column in x[:, :-1].T),
            key=lambda c: c[0],
            default=(0.0, None),
        )
        if cut[1] is None:
            cut = _deepest(_without_linear(energy[rows], x, w), w, 2.0)
        if cut[1] is None:
            labels[rows] = found
            found += 1
        else:
            todo += [rows[cut[1]], rows[~cut[1]]]
    return labels


def _without_linear(energy: np.ndarray, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """What a linear dependence on the composition leaves of the energy."""
    design = np.concatenate([np.ones((len(x), 1)), x[:, :-1]], 1)
    root = np.sqrt(w)[:, None]
    return energy - design @ np.linalg.lstsq(design * root, energy * root[:, 0], rcond=None)[0]


def _deepest(v: np.ndarray, w: np.ndarray, narrowest: float):
    """Depth of the deepest valley and the rows below it, (0, None) without one."""
    none = (0.0, None)
    span = np.ptp(v)
    if len(v) < 2 * _FEWEST or span <= narrowest:
        return none
    share = w / w.sum()
    deviation = np.sqrt(share @ (v - share @ v) ** 2)
    effective = 1.0 / (share @ share)
    width = max(narrowest, _SILVERMAN * deviation * effective**-0.2, span * _STEPS / _POINTS)
    step = width / _STEPS
    bins = ((v - v.min()) / step).astype(int)
    margin = int(3 * _STEPS)
    density = np.bincount(bins + margin, w, bins.max() + 2 * margin + 1)
    density = gaussian_filter1d(density, _STEPS, mode="constant", truncate=4.0)
    left = np.maximum.accumulate(density)
    right = np.maximum.accumulate(density[::-1])[::-1]
    ratio = density / np.minimum(left, right)
    below = np.cumsum(np.bincount(bins + margin, w, len(density)))
    rows = np.cumsum(np.bincount(bins + margin, minlength=len(density)))
    enough = np.minimum(below, w.sum() - below) >= _SMALLEST
    enough &= np.minimum(rows, len(v) - rows) >= _FEWEST
    ratio[~enough] = np.inf
    # the middle of an empty stretch
    lowest = np.flatnonzero(ratio <= ratio.min() + 1e-9)
    k = int(lowest[len(lowest) // 2])
    if not ratio[k] < _VALLEY:
        return none
    return -np.log(max(ratio[k], 1e-12)), bins + margin <= k
