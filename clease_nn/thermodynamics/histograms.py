"""Histograms of energies and compositions at every condition, with errors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.statistics import Estimate
from clease_nn.thermodynamics.groups import groups, stack, to_numpy

__all__ = ["Histogram", "composition_histogram", "energy_histogram", "histogram"]


@dataclass(frozen=True, eq=False)
class Histogram:
    """Probability of every bin at every condition.

    Attributes
    ----------
    conditions : Conditions
        One a row, in the order of first appearance.
    edges : ndarray, shape (bins + 1,)
        Borders of the bins in the unit of the quantity; the last bin contains its upper border.
    probability : Estimate, shape (conditions, bins)
        A bin into which no draw fell reads 0 +- 0: how rare it is cannot be told from the draws.
    outside : Estimate, shape (conditions,)
        Probability of lying in no bin; what the sum over bins lacks to one.
    """

    conditions: Conditions
    edges: np.ndarray
    probability: Estimate
    outside: Estimate

    @property
    def centres(self) -> np.ndarray:
        """Middle of every bin, shape (bins,)."""
        return (self.edges[1:] + self.edges[:-1]) / 2

    @property
    def density(self) -> Estimate:
        """Probability over the width of the bin, shape (conditions, bins)."""
        return self.probability / np.diff(self.edges)


def histogram(c: Configurations, values, edges) -> Histogram:
    """Histogram of any observable at every condition.

    Parameters
    ----------
    c : Configurations
        Weighted or chains; for chains no energies are needed.
    values : array_like, shape (batch,)
        The observable of every row.
    edges : array_like, shape (bins + 1,)
        Ascending borders; infinity is one. Values beyond them belong to no bin: the sum over bins
        is the probability of lying inside, the rest is ``outside``.

    Raises
    ------
    ValueError
        As :func:`~clease_nn.thermodynamics.averages`, if ``values`` and ``c`` differ in length or
        a value is NaN, or the edges do not ascend.
    """
    v = to_numpy(values) if hasattr(values, "detach") else np.asarray(values, dtype=float)
    edges = np.asarray(edges, dtype=float)
    if v.shape != (len(c),):
        raise ValueError(f"values have shape {v.shape}, but there are {len(c)} configurations")
    if np.isnan(v).any():
        raise ValueError(
            f"{int(np.isnan(v).sum())} of {len(v)} values are NaN (first in row "
            f"{int(np.argmax(np.isnan(v)))}) and belong to no bin; leave these rows out"
        )
    if edges.ndim != 1 or len(edges) < 2 or not (np.diff(edges) > 0).all():
        raise ValueError(f"edges must be at least two ascending numbers, got {edges}")
    n = len(edges) - 1
    bins = np.searchsorted(edges, v, side="right") - 1
    bins[v == edges[-1]] = n - 1
    inside = (bins[:, None] == np.arange(n)).astype(float)
    outside = ((bins < 0) | (bins >= n)).astype(float)
    found = groups(c)
    return Histogram(
        Conditions.cat(g.condition for g in found),
        edges,
        stack([g.mean(inside[g.rows]) for g in found]),
        stack([g.mean(outside[g.rows]) for g in found]),
    )


def energy_histogram(c: Configurations, bins=40) -> Histogram:
    """Histogram of the interaction energy E (without mu.N) in eV per active site.

    Parameters
    ----------
    c : Configurations
        With energies; weighted or chains.
    bins : int or array_like
        Number of equal bins between the lowest and the highest energy of all rows, or the edges.

    Raises
    ------
    ValueError
        As :func:`histogram`, if energies are missing, or ``bins`` < 1.

    Examples
    --------
    >>> import torch
    >>> from clease_nn.ensemble import SemiGrandCanonical
    >>> from clease_nn.lattice import Lattice
    >>> count = SemiGrandCanonical(lambda lattice, x: 0.1 * (x == 1).double().sum(1))
    >>> x = torch.randint(2, (400, 4), generator=torch.Generator().manual_seed(0))
    >>> at = Conditions([1e6], [[0.0, 0.0]]).repeat(400)
    >>> drawn = Configurations(Lattice.square(2), at, x, log_prob=torch.zeros(400))
    >>> h = energy_histogram(count.score(drawn), bins=[-0.01, 0.05, 0.11])
    >>> print(h.probability[0])
    [0.285 +- 0.023, 0.715 +- 0.023] (NESS 1.00)
    """
    if c.energy is None:
        raise ValueError(
            "configurations carry no energy; score them first: SemiGrandCanonical(energy).score(c)"
        )
    per_site = to_numpy(c.energy) / c.lattice.n_sites
    if np.ndim(bins) == 0:
        if bins < 1 or bins != int(bins):
            raise ValueError(f"bins must be a whole number of at least 1, or the edges; got {bins}")
        if not (len(c) and np.isfinite(per_site).all()):
            raise ValueError("an energy is NaN or infinite, or there are no configurations")
        low = per_site.min()
        width = max(np.ptp(per_site), 1e-6)
        # evenly spaced levels meet the borders: shifted, no rounding tears one level in two
        margin = 1e-9 + 1e-6 * width
        edges = low - margin + width * np.linspace(0, 1, int(bins) + 1)
        edges[-1] += 2 * margin
        bins = edges
    return histogram(c, per_site, bins)


def composition_histogram(c: Configurations, species: str, edges=None) -> Histogram:
    """Histogram of the share of active sites that carry a species.

    Parameters
    ----------
    c : Configurations
        Weighted or chains.
    species : str
    edges : array_like, optional
        Default: one bin for every number of atoms, ``(k - 1/2) / sites``.

    Raises
    ------
    ValueError
        As :func:`histogram`, or if the lattice has no such species.
    """
    if species not in c.lattice.species:
        raise ValueError(f"species {species!r} is none of {c.lattice.species}")
    n = c.lattice.n_sites
    counts = to_numpy(c.counts())[:, c.lattice.species.index(species)]
    return histogram(c, counts / n, (np.arange(n + 2) - 0.5) / n if edges is None else edges)
