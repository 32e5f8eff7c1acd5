"""Structures: configurations up to symmetry, with their space groups."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.formula import Formula

from clease_nn.lattice import Lattice
from clease_nn.symmetry import canonical_occupations, structure_variants

__all__ = ["Structure", "distinct_structures"]


@dataclass(frozen=True, eq=False)
class Structure:
    """One structure of lowest energy; symmetry makes ``degeneracy`` configurations of it.

    Attributes
    ----------
    lattice : Lattice
    occupations : ndarray, shape (sites,), int8
        One representative (:func:`~clease_nn.symmetry.canonical_occupations`).
    degeneracy : int
        Configurations of the supercell that the symmetry of the crystal relates.
    """

    lattice: Lattice
    occupations: np.ndarray
    degeneracy: int

    @property
    def atoms(self) -> Atoms:
        """The supercell as Atoms."""
        return self.lattice.atoms(self.occupations)

    @property
    def formula(self) -> str:
        """Formula of the active sites, reduced."""
        names, n = np.unique(np.array(self.lattice.species)[self.occupations], return_counts=True)
        counts = dict(zip(names.tolist(), n.tolist(), strict=True))
        return str(Formula.from_dict(counts).reduce()[0])

    def space_group(self, symprec: float = 1e-3) -> str:
        """International symbol and number of the structure, species and background included.

        Every direction counts as periodic; a slab needs vacuum in its cell.

        Parameters
        ----------
        symprec : float
            Tolerance of spglib in angstrom.

        Raises
        ------
        ValueError
            If spglib finds no symmetry.
        """
        import spglib

        atoms = self.atoms
        cell = (atoms.cell.complete()[:], atoms.get_scaled_positions(), atoms.numbers)
        try:
            found = spglib.get_spacegroup(cell, symprec=symprec)
        except getattr(spglib, "SpglibError", ()):
            found = None
        if found is None:
            raise ValueError(f"spglib finds no symmetry of {self.formula}; change symprec")
        return found

    def primitive(self, symprec: float = 1e-3) -> Atoms:
        """The smallest cell that repeats to this structure, background included.

        Raises
        ------
        ValueError
            If spglib finds none.
        """
        import spglib

        atoms = self.atoms
        cell = (atoms.cell.complete()[:], atoms.get_scaled_positions(), atoms.numbers)
        try:
            found = spglib.find_primitive(cell, symprec=symprec)
        except getattr(spglib, "SpglibError", ()):
            found = None
        if found is None:
            raise ValueError(f"spglib finds no primitive cell of {self.formula}; change symprec")
        return Atoms(found[2], scaled_positions=found[1], cell=found[0], pbc=atoms.pbc)


def distinct_structures(
    lattice: Lattice, states: np.ndarray, permutations: np.ndarray
) -> tuple[Structure, ...]:
    """Structures that the symmetry of the crystal does not relate.

    Domains along different axes are one structure also where the shape of the supercell tells
    them apart.

    Parameters
    ----------
    lattice : Lattice
    states : ndarray, shape (batch, sites), int8
    permutations : ndarray, shape (operations, sites)
        :func:`~clease_nn.symmetry.site_permutations` of the lattice.

    Examples
    --------
    >>> from clease_nn.symmetry import site_permutations
    >>> lattice = Lattice.square(4, 2)
    >>> stripes = np.array([[0, 1] * 4, [0, 0, 1, 1] * 2], dtype=np.int8)
    >>> [s.degeneracy for s in distinct_structures(lattice, stripes, site_permutations(lattice))]
    [4]
    """
    left = np.unique(canonical_occupations(np.unique(states, axis=0), permutations), axis=0)
    out = []
    while len(left):
        variants = structure_variants(lattice, left[0])
        out.append(Structure(lattice, left[0], len(variants)))
        related = canonical_occupations(variants, permutations)
        left = left[~(left[:, None] == related[None]).all(2).any(1)]
    return tuple(out)
