"""The smaller periodic cells that tile a supercell."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import numpy as np
from ase.geometry.minkowski_reduction import minkowski_reduce
from scipy.spatial import cKDTree

from clease_nn.lattice import Lattice

__all__ = ["PeriodicCells"]

_TOLERANCE = 1e-2  # angstrom; as for the translations of a lattice


@dataclass(frozen=True, eq=False)
class PeriodicCells:
    """The smaller periodic cells that tile a supercell, found in integers.

    Site ``i`` is motif ``motif[i]`` of the primitive cell at ``coordinates[i] @ basis``. A
    smaller periodic cell is a lattice between the primitive one and that of the supercell, in
    Hermite normal form: an upper triangular integer matrix whose rows, in units of ``basis``,
    are its vectors.

    Attributes
    ----------
    basis : ndarray, shape (directions, 3)
        Shortest primitive translations in angstrom, along the periodic directions.
    supercell : ndarray of int, shape (directions, directions)
        Hermite normal form of the supercell.
    coordinates : ndarray of int, shape (sites, directions)
    motif : ndarray of int, shape (sites,)

    Examples
    --------
    >>> cells = PeriodicCells.of(Lattice.square(4))
    >>> cells.supercell.tolist(), [cell.tolist() for cell in cells.of_size(2)]
    ([[4, 0], [0, 4]], [[[1, 0], [0, 2]], [[1, 1], [0, 2]], [[2, 0], [0, 1]]])
    """

    basis: np.ndarray
    supercell: np.ndarray
    coordinates: np.ndarray
    motif: np.ndarray

    @classmethod
    def of(cls, lattice: Lattice) -> PeriodicCells:
        """Those of a lattice."""
        atoms = lattice.template
        pbc = np.asarray(atoms.pbc)
        cell = np.array(atoms.cell.complete())
        basis = _primitive(lattice, cell, pbc)
        directions = len(basis)
        frame = np.concatenate([basis, cell[~pbc]])
        fractional = (lattice.positions - lattice.positions[0]) @ np.linalg.inv(frame)
        motif = np.full(lattice.n_sites, -1)
        coordinates = np.zeros((lattice.n_sites, directions), dtype=np.int64)
        for m in itertools.count():
            if (motif >= 0).all():
                break
            d = fractional - fractional[np.argmax(motif < 0)]
            steps = np.round(d[:, :directions])
            d[:, :directions] -= steps
            here = (np.linalg.norm(d @ frame, axis=1) < 2 * _TOLERANCE) & (motif < 0)
            motif[here], coordinates[here] = m, steps[here].astype(np.int64)
        supercell = np.round(cell[pbc] @ np.linalg.pinv(basis)).astype(np.int64)
        return cls(basis, hermite(supercell), coordinates, motif)

    @property
    def n_primitive(self) -> int:
        """Primitive cells in the supercell."""
        return prod(np.diag(self.supercell).tolist())

    def labels(self, cell: np.ndarray) -> np.ndarray:
        """Site of a small cell (Hermite normal form) that every site is a copy of, (sites,)."""
        inside = reduced(self.coordinates, cell)
        code = np.ravel_multi_index(inside.T, np.diag(cell)) if len(cell) else 0
        code = self.motif * prod(np.diag(cell).tolist()) + code
        return np.unique(code, return_inverse=True)[1].ravel()

    def of_size(self, size: int) -> Iterator[np.ndarray]:
        """Hermite normal forms of all cells of ``size`` primitive cells that tile the supercell."""
        for cell in _normal_forms(size, len(self.supercell)):
            if not reduced(self.supercell, cell).any():
                yield cell

    def shortest(self, cell: np.ndarray) -> float:
        """Length of the shortest vector of a cell in angstrom; infinite without directions."""
        if not len(cell):
            return np.inf
        vectors = np.zeros((3, 3))
        vectors[: len(cell)] = cell @ self.basis
        short, _ = minkowski_reduce(_filled(vectors), np.arange(3) < len(cell))
        return float(np.linalg.norm(short[: len(cell)], axis=1).min())

    def parents(self, cell: np.ndarray, largest_factor: int) -> Iterator[tuple[int, np.ndarray]]:
        """Cells that a cell is ``factor`` copies of, ``factor`` up to ``largest_factor``.

        Only those that one more translation generates.
        """
        seen = set()
        for factor in range(2, largest_factor + 1):
            for combination in itertools.product(range(factor), repeat=len(cell)):
                vector = np.array(combination) @ cell
                if not any(combination) or (vector % factor).any():
                    continue
                parent = hermite(np.concatenate([cell, vector[None] // factor]))
                key = parent.tobytes()
                if key not in seen:
                    seen.add(key)
                    times = prod(np.diag(cell).tolist()) // prod(np.diag(parent).tolist())
                    yield times, parent


def hermite(vectors: np.ndarray) -> np.ndarray:
    """Hermite normal form of the lattice that integer row vectors (n, d) of rank d span.

    Upper triangular, positive diagonal, entries above a diagonal element smaller than it.

    Examples
    --------
    >>> hermite(np.array([[2, 0], [0, 2], [1, 1]])).tolist()
    [[1, 1], [0, 2]]
    """
    a = np.array(vectors, dtype=object)
    d = a.shape[1]
    for k in range(d):
        while True:
            rows = [r for r in range(k, len(a)) if a[r, k]]
            pivot = min(rows, key=lambda r: abs(a[r, k]))
            a[[k, pivot]] = a[[pivot, k]]
            if len(rows) == 1:
                break
            for r in range(k + 1, len(a)):
                a[r] = a[r] - (a[r, k] // a[k, k]) * a[k]
        if a[k, k] < 0:
            a[k] = -a[k]
        for r in range(k):
            a[r] = a[r] - (a[r, k] // a[k, k]) * a[k]
    return a[:d].astype(np.int64)


def reduced(vectors: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """Integer vectors (n, d) modulo a lattice in Hermite normal form.

    Examples
    --------
    >>> reduced(np.array([[3, 1]]), np.array([[2, 1], [0, 2]])).tolist()
    [[1, 0]]
    """
    out = np.array(vectors, dtype=np.int64)
    for k in range(len(cell)):
        out -= (out[:, k] // cell[k, k])[:, None] * cell[k]
    return out


def _normal_forms(size: int, d: int) -> Iterator[np.ndarray]:
    """All Hermite normal forms of determinant ``size`` in ``d`` dimensions."""
    if d == 0:
        if size == 1:
            yield np.zeros((0, 0), dtype=np.int64)
        return
    for first in (n for n in range(1, size + 1) if size % n == 0):
        for rest in _normal_forms(size // first, d - 1):
            for top in itertools.product(*map(range, np.diag(rest).tolist())):
                out = np.zeros((d, d), dtype=np.int64)
                out[0, 0], out[0, 1:], out[1:, 1:] = first, top, rest
                yield out


def _filled(vectors: np.ndarray) -> np.ndarray:
    """Zero rows replaced by unit vectors orthogonal to the others."""
    rank = int(np.any(vectors, axis=1).sum())
    return np.concatenate([vectors[:rank], np.linalg.svd(vectors)[2][rank:]])


def _primitive(lattice: Lattice, cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """Successive shortest translations along the periodic directions, shape (directions, 3).

    In up to three dimensions they are a basis (Minkowski).
    """
    directions = int(pbc.sum())
    if directions == 0:
        return np.zeros((0, 3))
    atoms = lattice.template
    kinds = np.zeros((len(atoms), 1 + lattice.n_species), dtype=np.int64)
    kinds[:, 0] = -1 - atoms.numbers
    kinds[lattice.site_indices, 0] = lattice.sublattices
    kinds[lattice.site_indices, 1:] = lattice.allowed
    kinds = np.unique(kinds, axis=0, return_inverse=True)[1].ravel()
    short, _ = minkowski_reduce(cell, pbc)
    inverse = np.linalg.inv(short)
    rarest = np.flatnonzero(kinds == np.argmin(np.bincount(kinds)))
    vectors = atoms.positions[rarest] - atoms.positions[rarest[0]]
    fractional = vectors @ inverse
    fractional[:, pbc] -= np.round(fractional[:, pbc])
    flat = (np.abs(fractional[:, ~pbc] @ short[~pbc]) < _TOLERANCE).all(1)
    cosets = fractional[flat]
    images = np.array(list(itertools.product(*[(-1, 0, 1) if p else (0,) for p in pbc])))
    every = (cosets[:, None] + images).reshape(-1, 3) @ short
    coset = np.repeat(np.arange(len(cosets)), len(images))
    length = np.linalg.norm(every, axis=1)
    margin = np.where(pbc, 0.1 / np.linalg.norm(short, axis=1), 0.0)
    size = np.where(pbc, 1.0, 0.0)
    base = atoms.positions @ inverse + margin
    base[:, pbc] %= 1.0
    tree = cKDTree(base, boxsize=size)
    close = _TOLERANCE / np.linalg.norm(short, axis=1).min()

    def is_translation(v) -> bool:
        moved = (atoms.positions + v) @ inverse + margin
        moved[:, pbc] %= 1.0
        distance, onto = tree.query(moved)
        return bool(distance.max() < close and (kinds[onto] == kinds).all())

    answers: dict[int, bool] = {}
    basis = np.zeros((0, 3))
    for k in np.lexsort((every[:, 2], every[:, 1], every[:, 0], np.round(length, 6))):
        if length[k] < _TOLERANCE:
            continue
        larger = np.concatenate([basis, every[k : k + 1]])
        if np.linalg.matrix_rank(larger, tol=1e-3 * length[k]) < len(larger):
            continue
        if coset[k] not in answers:
            answers[coset[k]] = is_translation(every[k])
        if answers[coset[k]]:
            basis = larger
        if len(basis) == directions:
            break
    return basis
