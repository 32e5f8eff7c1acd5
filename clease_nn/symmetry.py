"""Symmetry of a lattice: permutations of sites that leave the empty supercell as it is."""

from __future__ import annotations

import numpy as np

from clease_nn.lattice import Lattice

__all__ = ["site_permutations"]


def site_permutations(lattice: Lattice, symprec: float = 1e-3) -> np.ndarray:
    """Space group of the supercell with all active sites empty, as permutations of active sites.

    Symmetry keeps sublattices, allowed species and background atoms (with the initial charges
    and magnetic moments of the template). An energy that depends on the structure alone is the same
    for ``occupations`` and ``occupations[:, permutations[k]]``.

    Parameters
    ----------
    lattice : Lattice
    symprec : float
        Tolerance of spglib in angstrom.

    Returns
    -------
    ndarray, shape (operations, sites), int64
        Distinct permutations, the identity first. Along directions that are not periodic no
        translation and no operation that moves atoms across the boundary is used.

    Raises
    ------
    ValueError
        If spglib finds no symmetry at all, as for atoms on top of one another.

    References
    ----------
    A. Togo, K. Shinohara, I. Tanaka, Sci. Technol. Adv. Mater.: Methods 4, 2384822 (2024).

    Examples
    --------
    >>> from ase.build import bulk
    >>> len(site_permutations(Lattice.uniform(bulk("Cu", cubic=True), ["Au", "Cu"])))
    24
    """
    import spglib

    atoms = lattice.template
    cell = np.array(atoms.cell.complete())
    scaled = atoms.positions @ np.linalg.inv(cell)
    found = spglib.get_symmetry((cell, scaled, _kinds(lattice)), symprec=symprec)
    if found is None:
        raise ValueError(
            "spglib finds no symmetry of the supercell: are atoms on top of one another? "
            "check the positions and the cell of the template"
        )
    site_of = np.full(len(atoms), -1)
    site_of[lattice.site_indices] = np.arange(lattice.n_sites)
    fixed = ~np.asarray(atoms.pbc)
    rows = []
    for rotation, translation in zip(found["rotations"], found["translations"], strict=True):
        moved = scaled @ rotation.T + translation
        image = _match(moved, scaled, cell, fixed, 10 * symprec)
        if image is not None:
            rows.append(site_of[image[lattice.site_indices]])
    out = np.unique(np.array(rows, dtype=np.int64), axis=0)
    identity = (out == np.arange(lattice.n_sites)).all(1)
    return np.concatenate([out[identity], out[~identity]])


def _kinds(lattice: Lattice) -> np.ndarray:
    """(atoms,) integer label of what symmetry must not mix."""
    atoms = lattice.template
    allowed = np.zeros((len(atoms), lattice.n_species))
    allowed[lattice.site_indices] = lattice.allowed
    active = np.zeros(len(atoms))
    active[lattice.site_indices] = 1 + lattice.sublattices
    background = np.where(active > 0, 0, atoms.numbers)
    extra = [
        np.round(np.nan_to_num(v).reshape(len(atoms), -1), 6)
        for v in (atoms.get_initial_magnetic_moments(), atoms.get_initial_charges())
    ]
    rows = np.concatenate([active[:, None], background[:, None], allowed, *extra], 1)
    return np.unique(rows, axis=0, return_inverse=True)[1].ravel()


def _match(moved, scaled, cell, fixed, tolerance):
    """(atoms,) which atom each one moves onto, or None if one has no partner."""
    out = np.empty(len(scaled), dtype=np.int64)
    for k, position in enumerate(moved):
        shift = scaled - position
        shift[:, ~fixed] -= np.round(shift[:, ~fixed])
        distance = np.linalg.norm(shift @ cell, axis=1)
        out[k] = distance.argmin()
        if distance[out[k]] > tolerance:
            return None
    return out if len(np.unique(out)) == len(out) else None
