"""Which sites trial moves may change, and to which species."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

__all__ = ["FlipGroups"]


class FlipGroups:
    """Which sites may be given which species by a trial move.

    Parameters
    ----------
    groups : iterable of (sites, species)
        Site numbers of a group and the species (indices) that its moves exchange. A move chooses
        a group, then a site in it and a new species, both uniformly. Empty groups propose
        nothing.
    allowed : ndarray of bool, shape (sites, species)
        A move to a species not allowed on its site is rejected.
    weights : sequence of float, optional
        Relative probability of every group, positive. Default: uniform.
    avoid : mapping of int to sequences of int, optional
        Sites that must not be occupied at the same time as a site; symmetric. A move that would
        put anything but ``vacancy`` on a site is rejected while one of its neighbours here
        carries anything but ``vacancy``.
    vacancy : int
        Index of the vacancy species; -1 if the species do not include vacancies.

    Raises
    ------
    ValueError
        If no group has a site and at least two species, or a site is in two groups: a species of
        one of them only could be left more easily than reached; if weights are not positive or
        not one a group; if ``avoid`` is not symmetric.

    Examples
    --------
    >>> FlipGroups([(range(4), [0, 1])], np.ones((4, 2), bool)).free
    array([ True,  True,  True,  True])

    Two neighbouring sites of which one at most is occupied (species 1 is the vacancy):

    >>> g = FlipGroups(
    ...     [([0, 1], [0, 1])], np.ones((2, 2), bool), avoid={0: [1], 1: [0]}, vacancy=1
    ... )
    >>> g.forbidden(np.array([[0, 0], [0, 1], [1, 1]]))
    array([ True, False, False])
    """

    def __init__(
        self,
        groups: Iterable[tuple[Iterable[int], Iterable[int]]],
        allowed: np.ndarray,
        *,
        weights: Sequence[float] | None = None,
        avoid: Mapping[int, Sequence[int]] | None = None,
        vacancy: int = -1,
    ):
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
        self.cumulative = _cumulative(weights, len(groups))
        """(groups,) cumulative probabilities; empty where the choice is uniform."""
        self.vacancy = int(vacancy)
        self.avoid_pointer, self.avoid = _neighbours(avoid or {}, len(self.allowed))
        """Site ``i`` must not be occupied at the same time as
        ``avoid[avoid_pointer[i]:avoid_pointer[i + 1]]``."""
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

    def forbidden(self, occupations: np.ndarray) -> np.ndarray:
        """(batch,) bool: two sites that avoid each other are occupied, (batch, sites) given."""
        occupied = np.asarray(occupations) != self.vacancy
        owner = np.repeat(np.arange(len(self.allowed)), np.diff(self.avoid_pointer))
        return (occupied[:, owner] & occupied[:, self.avoid]).any(1)


def _cumulative(weights: Sequence[float] | None, n: int) -> np.ndarray:
    if weights is None:
        return np.zeros(0)
    weights = np.asarray(weights, dtype=float)
    if weights.shape != (n,) or not (np.isfinite(weights) & (weights > 0)).all():
        raise ValueError(
            f"weights must be {n} positive numbers, one a group, got {weights.tolist()}; leave "
            "out groups that are never chosen"
        )
    return np.cumsum(weights) / weights.sum()


def _neighbours(avoid: Mapping[int, Sequence[int]], n: int) -> tuple[np.ndarray, np.ndarray]:
    """Pointer (n + 1,) and flat list of the sites to avoid."""
    pairs = {(int(i), int(j)) for i, others in avoid.items() for j in others}
    for i, j in sorted(pairs):
        if not (0 <= i < n and 0 <= j < n) or i == j or (j, i) not in pairs:
            raise ValueError(
                f"avoid must hold pairs of different sites below {n} in both directions, got "
                f"{i}: {j}"
            )
    flat = np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)
    return np.searchsorted(flat[:, 0], np.arange(n + 1)).astype(np.int64), flat[:, 1].copy()
