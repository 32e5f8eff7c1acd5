"""Plane waves of a supercell, and octaves of the conditions: what a Transformer is told."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor

from clease_nn.conditions import ConditionRange, Conditions
from clease_nn.lattice import Lattice

__all__ = ["condition_waves", "n_condition_waves", "site_coordinates", "wave_vectors"]

_OCTAVES = 4
_SAME = 1e-4  # fractional coordinates closer than this are the same
_MAX_INDEX = 32  # of a wave vector along an axis


def n_condition_waves(n_species: int) -> int:
    """Length of a row of :func:`condition_waves`."""
    return 2 * _OCTAVES * (2 + 2 * n_species)


def condition_waves(conditions: Conditions, box: ConditionRange) -> Tensor:
    """Sines and cosines of T and mu, (batch, 2 * octaves * (2 + 2 * species)), float32.

    Four octaves, ``sin`` and ``cos`` of ``pi 2^j x`` with j = 0 ... 3, of the position in the box
    of ``ln T`` and of ``1 / T``, and of mu and beta*mu relative to their largest value in the box.

    Examples
    --------
    >>> box = ConditionRange((300, 900), [-0.1], [0.1], [[-1.0, 1.0]])
    >>> condition_waves(box.at([[0.0, 0.5], [1.0, 1.0]]), box).shape
    torch.Size([2, 48])
    """
    t_low, t_high = box.temperature
    axes = box.axes - box.axes.mean(1, keepdims=True)
    reach = np.maximum(np.abs(box.low), np.abs(box.high))
    largest = max(float((reach @ np.abs(axes)).max(initial=0.0)), 1e-6)
    t = conditions.temperature[:, None]
    log_t = torch.log(t / t_low) / np.log(t_high / t_low)
    inverse = (t_low / t - t_low / t_high) / (1 - t_low / t_high)
    mu = conditions.relative_mu() / largest
    x = torch.cat([log_t, inverse, mu, mu * t_low / t], 1)
    octave = torch.pi * 2.0 ** torch.arange(_OCTAVES, device=x.device)
    angle = (x[:, :, None] * octave).flatten(1)
    return torch.cat([angle.sin(), angle.cos()], 1).to(torch.float32)


def site_coordinates(lattice: Lattice) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of the active sites in which integer wave vectors are waves of the supercell.

    Returns
    -------
    coordinates : ndarray, shape (sites, 3)
        Fractional coordinates of the supercell relative to the first site; along axes that are
        not periodic 0 to 1/2 between the outermost sites (0 where there is one layer).
    metric : ndarray, shape (3, 3)
        ``m @ metric`` is the wave vector of integers m in 1/angstrom (without 2 pi).
    """
    cell = np.array(lattice.template.cell.complete())
    f = lattice.positions @ np.linalg.inv(cell)
    f = f - f[0]
    for a in np.flatnonzero(~np.asarray(lattice.template.pbc)):
        extent = np.ptp(f[:, a])
        flat = extent < _SAME
        f[:, a] = 0.0 if flat else (f[:, a] - f[:, a].min()) / (2 * extent)
        cell[a] *= 1.0 if flat else 2 * extent
    return f, np.linalg.inv(cell).T


def wave_vectors(coordinates: np.ndarray, metric: np.ndarray, heads: int, pairs: int) -> np.ndarray:
    """Integer vectors m of the rotary pairs, shape (heads, pairs, 3): long waves first.

    No two of the waves that are dealt are the same, or each other's mirror image, on the sites;
    none is shorter than two layers of sites. The first pair of a head is ``m = 0`` (attention
    by content alone) where there are at least 4. Up to three quarters of the others are waves
    along one axis, the same in every head unless they are too many, and the longest of each axis
    in any case: the exponential of the softmax multiplies what they say, which places a site
    along every axis. The rest are waves along combinations of axes, others in every head. Where a
    small cell has fewer waves than there are pairs they are dealt again.

    Parameters
    ----------
    coordinates : ndarray, shape (sites, 3)
    metric : ndarray, shape (3, 3)
        Both of :func:`site_coordinates`.
    heads, pairs : int
        Number of heads, and of pairs in each.

    Examples
    --------
    >>> coordinates, metric = site_coordinates(Lattice.square(4))
    >>> wave_vectors(coordinates, metric, 1, 8)[0, :, :2].tolist()
    [[0, 0], [0, 1], [1, 0], [0, 2], [2, 0], [1, -1], [1, 1], [1, -2]]
    """
    along, across = _distinct_waves(coordinates, metric, 4 * heads * pairs)
    out = np.zeros((heads, pairs, 3), dtype=int)
    free = pairs - 1 if pairs >= 4 else pairs
    if not len(along):
        return out
    n_along = min(len(along), free - free // 4 if len(across) else free)
    n_across = min(len(across), free - n_along)
    longest = np.unique((along != 0).argmax(1), return_index=True)[1]
    if n_along < len(longest):
        longest = longest[:0]  # too few pairs: heads share the axes out
    others = np.setdiff1d(np.arange(len(along)), longest)
    n_others = n_along - len(longest)
    for h in range(heads):
        even = (np.arange(n_others) + h / heads) * (len(others) / max(n_others, 1))
        chosen = [along[np.sort(np.append(longest, others[even.astype(int)]))]]
        if n_across:
            chosen.append(across[(h * n_across + np.arange(n_across)) % len(across)])
        out[h, pairs - free :] = np.resize(np.concatenate(chosen), (free, 3))
    return out


def _distinct_waves(coordinates, metric, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Distinct waves along one axis, and along several, at most ``limit`` of each; long first."""
    layers = [len(_distinct(np.mod(x + _SAME, 1.0))) for x in coordinates.T]
    top = [min(n // 2, _MAX_INDEX) for n in layers]
    m = np.array(list(itertools.product(*(range(-t, t + 1) for t in top))))
    # of m and -m, the one whose first component other than zero is positive
    lead = np.take_along_axis(m, (m != 0).argmax(1)[:, None], 1)[:, 0]
    m = m[lead > 0]
    length = np.round(np.linalg.norm(m @ metric, axis=1), 6)
    m = m[np.lexsort((*m.T[::-1], length))]
    single = (m != 0).sum(1) == 1
    seen: set[bytes] = set()
    out = []
    for group in (m[single], m[~single][: 4 * limit]):
        phase = 2 * np.pi * (group @ coordinates.T)
        cos, sin = np.round(np.cos(phase), 3) + 0.0, np.round(np.sin(phase), 3) + 0.0
        flat = (np.abs(cos - 1) < 1e-3).all(1)
        keep = []
        for k in range(len(group)):
            keys = (np.concatenate([cos[k], s * sin[k] + 0.0]).tobytes() for s in (1, -1))
            if not flat[k] and not any(key in seen for key in keys):
                seen.add(np.concatenate([cos[k], sin[k]]).tobytes())
                keep.append(k)
        out.append(group[keep][:limit])
    return out[0], out[1]


def _distinct(x: np.ndarray) -> np.ndarray:
    x = np.sort(x)
    return x[np.concatenate([[True], np.diff(x) > 2 * _SAME])]
