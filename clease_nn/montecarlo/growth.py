"""Starts for large cells: configurations of smaller, equilibrated periodic cells.

Random starts of large cells freeze into antiphase domains. A small cell orders at once; copied
into the large cell its configuration is free of such defects.
"""

from __future__ import annotations

from math import prod

import numpy as np

from clease_nn.lattice import Lattice
from clease_nn.montecarlo.cells import PeriodicCells

__all__ = ["growth_stages", "small_lattice"]

_LARGEST_FACTOR = 5


def growth_stages(lattice: Lattice, smallest: int = 16) -> list[np.ndarray]:
    """Nested smaller periodic cells of a supercell, smallest first.

    Every stage divides the supercell by a subgroup of its translations, chosen so that the
    shortest repeat vector is as long as possible. Near-linear in the number of sites.

    Parameters
    ----------
    lattice : Lattice
    smallest : int
        Sites of the smallest cell, at least.

    Returns
    -------
    list of ndarray, shape (sites,), int
        Site of the small cell that every site of the supercell is a copy of; empty where the
        supercell has no suitable subgroup.

    Examples
    --------
    >>> [int(stage.max()) + 1 for stage in growth_stages(Lattice.square(8))]
    [16, 32]
    """
    cells = PeriodicCells.of(lattice)
    motifs = lattice.n_sites // cells.n_primitive
    cell = cells.supercell
    stages = []
    while True:
        best = None
        for factor, parent in cells.parents(cell, _LARGEST_FACTOR):
            if motifs * prod(np.diag(parent).tolist()) < smallest:
                continue
            score = (-factor, round(cells.shortest(parent), 6))
            if best is None or score > best[0]:
                best = (score, parent)
        if best is None:
            return stages[::-1]
        cell = best[1]
        stages.append(cells.labels(cell))


def small_lattice(lattice: Lattice, site_to_cell: np.ndarray) -> Lattice:
    """Sites of one small cell as a lattice of its own (for energies, not for geometry)."""
    representatives = np.unique(site_to_cell, return_index=True)[1]
    return Lattice(
        lattice.template,
        lattice.site_indices[representatives],
        lattice.species,
        lattice.allowed[representatives],
        lattice.sublattices[representatives],
    )
