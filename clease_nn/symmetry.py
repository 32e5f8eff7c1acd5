"""Symmetry of a lattice: permutations of sites that leave the empty supercell as it is."""

from __future__ import annotations

import warnings
from functools import lru_cache

import numpy as np
from ase.constraints import FixAtoms

from clease_nn.compiled import njit
from clease_nn.lattice import Lattice

__all__ = ["canonical_occupations", "site_permutations", "structure_variants"]

_VACUUM = 10.0  # angstrom of empty space along directions that are not periodic
_NO_SYMMETRY = (
    "spglib finds no symmetry of the supercell: are atoms on top of one another? check the "
    "positions and the cell of the template"
)


def site_permutations(lattice: Lattice, symprec: float = 1e-3) -> np.ndarray:
    """Space group of the supercell with all active sites empty, as permutations of active sites.

    Symmetry keeps sublattices, allowed species and background atoms (with the initial charges
    and magnetic moments of the template, and which atoms ``FixAtoms`` holds). An energy that
    depends on the structure alone is the same for ``occupations`` and
    ``occupations[:, permutations[k]]``.

    Parameters
    ----------
    lattice : Lattice
    symprec : float
        Tolerance of spglib in angstrom.

    Returns
    -------
    ndarray, shape (operations, sites), int64
        Distinct permutations, a group, the identity first. Directions that are not periodic have
        no translations and are not exchanged with periodic ones.

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
    fixed = ~np.asarray(atoms.pbc)
    cell = _open_cell(atoms, fixed)
    scaled = atoms.positions @ np.linalg.inv(cell)
    with warnings.catch_warnings():
        # older releases return None, newer ones raise and deprecate the former
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            found = spglib.get_symmetry((cell, scaled, _kinds(lattice)), symprec=symprec)
        except getattr(spglib, "SpglibError", ()):
            found = None
    if found is None:
        raise ValueError(_NO_SYMMETRY)
    site_of = np.full(len(atoms), -1)
    site_of[lattice.site_indices] = np.arange(lattice.n_sites)
    translations, rotated, seen = [], [], set()
    identity = np.eye(3, dtype=int)
    for rotation, shift in zip(found["rotations"], found["translations"], strict=True):
        pure = (rotation == identity).all()
        # every operation is a translation after one operation of the same rotation
        if (not pure and rotation.tobytes() in seen) or rotation[fixed][:, ~fixed].any():
            continue
        moved = scaled @ rotation.T + shift
        moved[:, fixed] += np.round((scaled - moved)[:, fixed].mean(0))
        image = _match(moved, scaled, cell, fixed, 10 * symprec)
        if image is not None:
            (translations if pure else rotated).append(site_of[image[lattice.site_indices]])
            seen.add(rotation.tobytes())
    shifts = np.array(translations, dtype=np.int64)
    rows = np.concatenate([shifts, *(shifts[:, image] for image in rotated)])
    out = np.unique(rows, axis=0)
    first = (out == np.arange(lattice.n_sites)).all(1)
    return np.concatenate([out[first], out[~first]])


def structure_variants(lattice: Lattice, occupations, symprec: float = 1e-3) -> np.ndarray:
    """All configurations that the symmetry of the parent crystal makes of an ordered structure.

    More than the images under :func:`site_permutations` where the shape of the supercell is less
    symmetric than the crystal: the domains of CuAu along x, y and z are one structure in every
    supercell that holds all three of them.

    Parameters
    ----------
    lattice : Lattice
    occupations : array_like, shape (sites,)
    symprec : float
        Tolerance of spglib in angstrom.

    Returns
    -------
    ndarray, shape (variants, sites), int8
        Distinct configurations, the given one first.

    Raises
    ------
    ValueError
        As :func:`site_permutations`, or if there is not one occupation for each site.

    Examples
    --------
    >>> stripes = np.tile([0, 1], 4)  # along x of a lattice of 4 x 2 sites
    >>> structure_variants(Lattice.square(4, 2), stripes)
    array([[0, 1, 0, 1, 0, 1, 0, 1],
           [0, 0, 1, 1, 0, 0, 1, 1],
           [1, 0, 1, 0, 1, 0, 1, 0],
           [1, 1, 0, 0, 1, 1, 0, 0]], dtype=int8)
    """
    x = np.asarray(occupations, dtype=np.int8)
    if x.shape != (lattice.n_sites,):
        raise ValueError(
            f"this supercell has {lattice.n_sites} occupations a structure, got shape {x.shape}"
        )
    # a rotated structure has the periods of the supercell if the given one has those that become
    # them
    whole = [
        x[image]
        for image, periods in _rotations(lattice, symprec)
        if all((x[p] == x).all() for p in periods)
    ]
    rows = np.concatenate([w[lattice.translations] for w in np.unique([x, *whole], axis=0)])
    rows = np.unique(rows, axis=0)
    given = (rows == x).all(1)
    return np.concatenate([rows[given], rows[~given]])


@lru_cache(maxsize=4)
def _rotations(lattice: Lattice, symprec: float) -> list[tuple[np.ndarray, list[np.ndarray]]]:
    """Operations of the crystal's primitive cell, each by what it does in the supercell.

    The site (sites,) that each site is an image of, and, for each period of the supercell, the
    site (sites,) which lies where the inverse rotation takes this period from each site.
    """
    import spglib

    atoms = lattice.template
    fixed = ~np.asarray(atoms.pbc)
    cell = _open_cell(atoms, fixed)
    inverse = np.linalg.inv(cell)
    whole = (cell, atoms.positions @ inverse, _kinds(lattice))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            primitive = spglib.standardize_cell(
                whole, to_primitive=True, no_idealize=True, symprec=symprec
            )
            found = None if primitive is None else spglib.get_symmetry(primitive, symprec=symprec)
        except getattr(spglib, "SpglibError", ()):
            found = None
    if found is None:
        raise ValueError(_NO_SYMMETRY)
    sites = atoms.positions[lattice.site_indices]
    scaled = sites @ inverse
    basis = np.asarray(primitive[0])

    def sites_at(points):
        """(sites,) which site lies at each of the points (scaled), or None."""
        d = points[:, None] - scaled[None]
        d[..., ~fixed] -= np.round(d[..., ~fixed])
        distance = np.linalg.norm(d @ cell, axis=2)
        return None if distance.min(1).max() > 10 * symprec else distance.argmin(1)

    out = []
    for rotation, shift in zip(found["rotations"], found["translations"], strict=True):
        # positions are rows: r -> r turn + shift
        turn = np.linalg.inv(basis) @ rotation.T @ basis
        if np.abs((cell @ turn @ inverse)[fixed][:, ~fixed]).max(initial=0.0) > 1e-6:
            continue
        back = np.linalg.inv(turn)
        source = (sites - shift @ basis) @ back @ inverse
        source[:, fixed] += (scaled - source)[:, fixed].mean(0)
        image = sites_at(source)
        periods = [sites_at(scaled + v @ back @ inverse) for v in cell[~fixed]]
        if image is not None and all(p is not None for p in periods):
            out.append((image, periods))
    return out


def canonical_occupations(occupations: np.ndarray, permutations: np.ndarray) -> np.ndarray:
    """One representative of all configurations that a group of permutations makes equivalent.

    Parameters
    ----------
    occupations : ndarray, shape (batch, sites), int8
    permutations : ndarray, shape (operations, sites), int64
        A group, as :func:`site_permutations` returns it.

    Returns
    -------
    ndarray, shape (batch, sites), int8
        The lexicographically smallest of ``occupations[:, permutations[k]]`` over all ``k``.

    Examples
    --------
    >>> turns = np.array([[0, 1, 2], [1, 2, 0], [2, 0, 1]])
    >>> canonical_occupations(np.array([[1, 0, 0], [1, 1, 0]], dtype=np.int8), turns)
    array([[0, 0, 1],
           [0, 1, 1]], dtype=int8)
    """
    occupations = np.ascontiguousarray(occupations, dtype=np.int8)
    out = np.empty_like(occupations)
    _smallest(occupations, np.ascontiguousarray(permutations, dtype=np.int64), out)
    return out


@njit
def _smallest(occupations, permutations, out):
    n = occupations.shape[1]
    for b in range(len(occupations)):
        row = occupations[b]
        best = permutations[0]
        for k in range(1, len(permutations)):
            trial = permutations[k]
            for i in range(n):
                a, z = row[trial[i]], row[best[i]]
                if a != z:
                    if a < z:
                        best = trial
                    break
        for i in range(n):
            out[b, i] = row[best[i]]


def _open_cell(atoms, fixed: np.ndarray) -> np.ndarray:
    """The cell with vacuum, at right angles, along directions that are not periodic."""
    if fixed.all():
        axes = np.eye(3)
    else:
        axes = np.array(atoms.cell.complete())
        basis = list(np.linalg.qr(axes[~fixed].T)[0].T)
        for k in np.flatnonzero(fixed):
            for b in basis:
                axes[k] = axes[k] - (axes[k] @ b) * b
            axes[k] /= np.linalg.norm(axes[k])
            basis.append(axes[k])
    if fixed.any():
        axes[fixed] *= np.ptp(atoms.positions @ axes[fixed].T, axis=0).max() + _VACUUM
    return axes


def _kinds(lattice: Lattice) -> np.ndarray:
    """(atoms,) integer label of what symmetry must not mix."""
    atoms = lattice.template
    allowed = np.zeros((len(atoms), lattice.n_species))
    allowed[lattice.site_indices] = lattice.allowed
    active = np.zeros(len(atoms))
    active[lattice.site_indices] = 1 + lattice.sublattices
    background = np.where(active > 0, 0, atoms.numbers)
    held = np.zeros(len(atoms))
    for constraint in atoms.constraints:
        if isinstance(constraint, FixAtoms):
            held[constraint.get_indices()] = 1
    extra = [
        np.round(np.nan_to_num(v).reshape(len(atoms), -1), 6)
        for v in (atoms.get_initial_magnetic_moments(), atoms.get_initial_charges())
    ]
    rows = np.concatenate(
        [active[:, None], background[:, None], held[:, None], allowed, *extra], axis=1
    )
    return np.unique(rows, axis=0, return_inverse=True)[1].ravel()


def _match(moved, scaled, cell, fixed, tolerance):
    """(atoms,) which atom each one moves onto, or None if one has no partner."""
    shift = scaled[None] - moved[:, None]
    shift[..., ~fixed] -= np.round(shift[..., ~fixed])
    distance = np.linalg.norm(shift @ cell, axis=2)
    out = distance.argmin(1)
    if distance[np.arange(len(out)), out].max() > tolerance:
        return None
    return out if len(np.unique(out)) == len(out) else None
