"""Neighbouring conditions at which a model is poor, and their box in words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from clease_nn.conditions import Conditions

__all__ = ["Region", "regions", "where"]


@dataclass(frozen=True, eq=False)
class Region:
    """Neighbouring conditions at which the model is poor.

    Attributes
    ----------
    rows : ndarray of int
        Which conditions.
    where : str
        Their box in words: temperatures and relative chemical potentials.
    share : float
        Of the sum of the KL gap over all conditions.
    worst : int
        The condition of the largest gap.
    """

    rows: np.ndarray
    where: str
    share: float
    worst: int


def where(conditions: Conditions, species, rows) -> str:
    """Box of some conditions in words; chemical potentials that never vary are left out."""
    t = conditions.temperature[rows].numpy()
    text = f"{t.min():.0f} K" if t.min().round() == t.max().round() else (
        f"{t.min():.0f}-{t.max():.0f} K"
    )  # fmt: skip
    relative = (conditions.mu - conditions.mu[:, -1:]).numpy()[:, :-1]
    for s, m in zip(species[:-1], relative.T, strict=True):
        if np.ptp(m) > 1e-9:
            low, high = (round(x, 3) + 0.0 for x in (m[rows].min(), m[rows].max()))
            span = f"{low:+.3f}" if high - low < 5e-4 else f"{low:+.3f}..{high:+.3f}"
            text += f", mu_{s} - mu_{species[-1]} {span} eV"
    return text


def regions(at: Conditions, species, gap: np.ndarray, low: np.ndarray) -> tuple[Region, ...]:
    """Groups of low conditions with no other condition between neighbours."""
    rows = np.flatnonzero(low)
    if not len(rows):
        return ()
    relative = (at.mu - at.mu[:, -1:]).numpy()[:, :-1]
    point = np.concatenate([np.log(at.temperature.numpy())[:, None], relative], 1)
    point = point / np.maximum(np.ptp(point, axis=0), 1e-9)
    d = ((point[rows][:, None] - point[None]) ** 2).sum(-1)
    linked = np.zeros((len(rows), len(rows)), dtype=bool)
    for i in range(len(rows)):
        for j in range(i):
            # Gabriel graph: nothing inside the sphere over the line that joins them
            linked[i, j] = (d[i] + d[j]).min() > d[i, rows[j]] * (1 - 1e-6)
    _, group = connected_components(coo_array(linked), directed=False)
    total = max(gap.sum(), 1e-300)
    found = []
    for g in range(group.max() + 1):
        members = rows[group == g]
        worst = int(members[np.argmax(gap[members])])
        found.append(
            Region(members, where(at, species, members), float(gap[members].sum() / total), worst)
        )
    return tuple(sorted(found, key=lambda r: -r.share))
