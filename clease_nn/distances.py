"""Sites around a site, nearest first, on lattices of any size.

Translations make the surroundings of equivalent sites alike: the sites around one of each kind
are sorted once, and those around any other are found by moving them. Memory is of the order of
sites times inequivalent sites, not of sites squared.
"""

from __future__ import annotations

from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from ase.geometry import get_distances

from clease_nn.compiled import njit
from clease_nn.lattice import Lattice

__all__ = ["Surroundings", "neighbour", "surroundings"]


class Surroundings(NamedTuple):
    """All sites sorted by distance, around every site.

    Attributes
    ----------
    kind : ndarray, shape (sites,), int32
        Which of the inequivalent sites a site is a translation of.
    order : ndarray, shape (kinds, sites), int32
        Sites around one of each kind, nearest first, itself the very first.
    distance : ndarray, shape (kinds, sites), float32
        Their distances in angstrom, rounded to 1e-3; of periodic images the nearest.
    factor : ndarray, shape (powers, sites), int32
        Permutations whose products are the translations.
    move : ndarray, shape (sites, factors), int32
        Rows of ``factor`` that together move the one of its kind onto a site.
    """

    kind: np.ndarray
    order: np.ndarray
    distance: np.ndarray
    factor: np.ndarray
    move: np.ndarray


_MADE: WeakKeyDictionary[Lattice, Surroundings] = WeakKeyDictionary()


def surroundings(lattice: Lattice) -> Surroundings:
    """Sites around every site of a lattice; made once for each lattice and kept with it.

    Examples
    --------
    >>> around = surroundings(Lattice.square(64))
    >>> around.distance.shape, around.distance[0, :6]
    ((1, 4096), array([0.   , 1.   , 1.   , 1.   , 1.   , 1.414], dtype=float32))
    >>> [neighbour(around, 70, k) for k in range(5)]
    [70, 71, 69, 134, 6]
    """
    if lattice not in _MADE:
        _MADE[lattice] = _make(lattice)
    return _MADE[lattice]


def _make(lattice: Lattice) -> Surroundings:
    n = lattice.n_sites
    factors = [f for f in lattice.translation_factors if len(f) > 1]
    first = np.cumsum([0, *(len(f) for f in factors)])
    factor = np.concatenate([*factors, np.empty((0, n), dtype=np.int64)]).astype(np.int32)
    cell, pbc = lattice.template.cell.complete(), lattice.template.pbc
    kind = np.full(n, -1, dtype=np.int32)
    move = np.zeros((n, len(factors)), dtype=np.int32)
    order, distance = [], []
    for site in range(n):
        if kind[site] >= 0:
            continue
        images, moves = np.array([site]), np.zeros((1, 0), dtype=np.int32)
        for f, start in zip(factors, first[:-1], strict=True):
            rows = np.repeat(np.arange(start, start + len(f)), len(images))
            images = f[:, images].ravel()
            moves = np.column_stack([np.tile(moves, (len(f), 1)), rows])
        kind[images], move[images] = len(order), moves
        d = get_distances(lattice.positions[site], lattice.positions, cell, pbc)[1][0]
        d = np.round(d, 3)
        d[site] = -1.0  # before a site at the same place
        order.append(np.argsort(d, kind="stable"))
        distance.append(np.maximum(d[order[-1]], 0.0))
    return Surroundings(
        kind, np.array(order, dtype=np.int32), np.array(distance, dtype=np.float32), factor, move
    )


@njit
def neighbour(around, site, k):  # pragma: no cover
    """The site that is ``k``-th nearest to a site, compiled; the zeroth is the site itself."""
    found = around.order[around.kind[site], k]
    for f in range(around.move.shape[1]):
        found = around.factor[around.move[site, f], found]
    return found
