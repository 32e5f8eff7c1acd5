"""Which sites trial moves may change, and to which species."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

__all__ = ["FlipGroups"]


class FlipGroups:
    """Which sites may be given which species by a trial move.

    Parameters
    ----------
    groups : iterable of (sites, species)
        Site numbers of a group and the species (indices) that its moves exchange. A move chooses
        a group, a site in it and a new species, each uniformly. Empty groups propose nothing.
    allowed : ndarray of bool, shape (sites, species)
        A move to a species not allowed on its site is rejected.

    Raises
    ------
    ValueError
        If no group has a site and at least two species, or a site is in two groups: a species of
        one of them only could be left more easily than reached.

    Examples
    --------
    >>> FlipGroups([(range(4), [0, 1])], np.ones((4, 2), bool)).free
    array([ True,  True,  True,  True])
    """

    def __init__(self, groups: Iterable[tuple[Iterable[int], Iterable[int]]], allowed: np.ndarray):
        groups = [(np.array(list(s), np.int64), np.array(list(a), np.int64)) for s, a in groups]
        if not any(len(s) and len(a) > 1 for s, a in groups):
            raise ValueError(
                "no trial move is possible: every site is fixed or has a single species; loosen "
                "the constraints or give at least two symbols"
            )
        sites, times = np.unique(np.concatenate([s for s, _ in groups]), return_counts=True)
        if (times > 1).any():
            raise ValueError(
                f"site {sites[times > 1][0]} is given twice to the trial moves; groups of sites "
                "that overlap break detailed balance, so put every site into one group"
            )
        self.allowed = np.array(allowed, dtype=np.bool_)
        self.site_pointer = np.cumsum([0] + [len(s) for s, _ in groups])
        self.sites = np.concatenate([s for s, _ in groups])
        self.species_pointer = np.cumsum([0] + [len(a) for _, a in groups])
        self.species = np.concatenate([a for _, a in groups])
        self.reachable = np.zeros_like(self.allowed)
        """(sites, species) bool: species that a trial move may put on a site."""
        self.proposed = np.zeros(len(self.allowed), dtype=bool)
        """(sites,) bool: the site is in a group."""
        for sites, species in groups:
            self.proposed[sites] = True
            self.reachable[np.ix_(sites, species)] = True
        self.reachable &= self.allowed
        self.free = self.reachable.sum(1) > 1
        """(sites,) bool: the site can change."""

    def check(self, occupations: np.ndarray) -> int | None:
        """First proposed site whose species its group does not exchange, or None."""
        wrong = self.proposed & ~self.reachable[np.arange(len(occupations)), occupations]
        return int(np.flatnonzero(wrong)[0]) if wrong.any() else None
