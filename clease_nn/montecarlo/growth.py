"""Starts for large cells: configurations of smaller, equilibrated periodic cells.

Random starts of large cells freeze into antiphase domains. A small cell orders at once; copied
into the large cell its configuration is free of such defects.
"""

from __future__ import annotations

import numpy as np
from ase.geometry import find_mic

from clease_nn.lattice import Lattice

__all__ = ["growth_stages", "small_lattice"]

_LARGEST_FACTOR = 5


def growth_stages(lattice: Lattice, smallest: int = 16) -> list[np.ndarray]:
    """Nested smaller periodic cells of a supercell, smallest first.

    Every stage divides the supercell by a subgroup of its translations, chosen so that the
    shortest repeat vector is as long as possible.

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
    translations = lattice.translations
    n = lattice.n_sites
    first = translations[:, 0]
    vectors = lattice.positions[first] - lattice.positions[0]
    atoms = lattice.template
    _, lengths = find_mic(vectors, atoms.cell.complete(), atoms.pbc)
    number_of = {tuple(t): k for k, t in enumerate(translations.tolist())}

    def generated(group: set[int], k: int) -> set[int]:
        """The subgroup that contains ``group`` and translation ``k``; translations commute."""
        out, power = set(group), translations[k]
        while number_of[tuple(power.tolist())] not in group:
            out |= {number_of[tuple(translations[g][power].tolist())] for g in group}
            power = translations[k][power]
        return out

    group = {0}
    stages = []
    while True:
        best = None
        for k in range(len(translations)):
            if k in group:
                continue
            larger = generated(group, k)
            factor = len(larger) // len(group)
            if factor > _LARGEST_FACTOR or n // len(larger) < smallest:
                continue
            shortest = min(lengths[g] for g in larger if g)
            score = (-factor, round(float(shortest), 6))
            if best is None or score > best[0]:
                best = (score, larger)
        if best is None:
            return stages[::-1]
        group = best[1]
        orbits = translations[sorted(group)].min(0)
        stages.append(np.unique(orbits, return_inverse=True)[1])


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
