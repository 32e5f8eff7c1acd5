"""Where a small cell fits into a larger one of the same parent lattice: maps of their sites."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from clease_nn.lattice import Lattice

__all__ = ["Windows", "place_windows", "window_repeats"]

_TOLERANCE = 0.02  # angstrom; an atom nearer than this to a position sits there


@dataclass(frozen=True, eq=False)
class Windows:
    """Copies of a small cell laid over a larger one.

    Attributes
    ----------
    sites : ndarray, shape (windows, small sites), int64
        Site of the larger lattice under each site of the small one.
    core : ndarray, shape (windows, small sites), bool
        Sites that may be drawn there; the others are only looked at.
    """

    sites: np.ndarray
    core: np.ndarray

    def __len__(self) -> int:
        return len(self.sites)


class _Atoms:
    """Atoms of a lattice, to be asked what sits at a position."""

    def __init__(self, lattice: Lattice):
        atoms = lattice.template
        self.cell = np.array(atoms.cell.complete())
        self.inverse = np.linalg.inv(self.cell)
        self.periodic = np.asarray(atoms.pbc)
        self.positions = atoms.positions
        self.kinds = -1 - atoms.numbers.astype(np.int64)  # background; sublattices are >= 0
        self.kinds[lattice.site_indices] = lattice.sublattices
        self._low = np.where(self.periodic, 0.0, self.fractional(self.positions).min(0) - 1.0)
        self._box = np.where(self.periodic, 1.0, 0.0)
        self._base = self._folded(self.positions)
        self._tree = cKDTree(self._base, boxsize=self._box)

    def fractional(self, positions: np.ndarray) -> np.ndarray:
        return positions @ self.inverse

    def _folded(self, positions: np.ndarray) -> np.ndarray:
        f = self.fractional(positions)
        inside = f - np.floor(f)
        return np.where(self.periodic, np.where(inside < 1.0, inside, 0.0), f - self._low)

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Nearest atom to each position (..., 3), and its distance in angstrom."""
        f = self._folded(positions)
        j = self._tree.query(f)[1]
        delta = f - self._base[j]
        delta = np.where(self.periodic, delta - np.round(delta), delta)
        return j, np.linalg.norm(delta @ self.cell, axis=-1)

    def carries(self, positions: np.ndarray, kinds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Nearest atom to each position, and whether it sits there and is of the kind given."""
        j, distance = self.at(positions)
        return j, (distance < _TOLERANCE) & (self.kinds[j] == kinds)

    def rarest(self) -> np.ndarray:
        """Indices of the atoms of the kind that occurs least."""
        kinds, counts = np.unique(self.kinds, return_counts=True)
        return np.flatnonzero(self.kinds == kinds[np.argmin(counts)])

    def wrapped(self) -> np.ndarray:
        """Positions inside the cell along periodic directions."""
        margin = _TOLERANCE / np.linalg.norm(self.cell, axis=1)
        turns = np.where(self.periodic, np.floor(self.fractional(self.positions) + margin), 0.0)
        return self.positions - turns @ self.cell


def _repeat(atoms: _Atoms, axis: int) -> tuple[np.ndarray | None, int]:
    """Shortest step along a cell vector that meets the same atoms again, and how many there are."""
    vector, positions = atoms.cell[axis], atoms.positions
    if atoms.periodic[axis]:
        for n in range(len(atoms.rarest()), 1, -1):
            if (
                len(positions) % n == 0
                and atoms.carries(positions + vector / n, atoms.kinds)[1].all()
            ):
                return vector / n, n
        return vector, 1
    length = np.linalg.norm(vector)
    along = positions @ vector / length
    steps = along[atoms.rarest()] - along[atoms.rarest()[0]]
    for step in np.sort(np.unique(np.abs(steps).round(6))):
        inside = along + step < along.max() + _TOLERANCE
        if step > _TOLERANCE and inside.any():
            shift = vector * (step / length)
            if atoms.carries(positions[inside] + shift, atoms.kinds[inside])[1].all():
                return shift, int((np.ptp(along) + _TOLERANCE) // step) + 1
    return None, 1


def window_repeats(small: Lattice) -> tuple[int, int, int]:
    """How many times the parent lattice repeats along each cell vector of a lattice.

    Examples
    --------
    >>> from ase.build import bulk
    >>> window_repeats(Lattice.uniform(bulk("Au", a=4.0) * (2, 2, 4), ["Au", "Cu"]))
    (2, 2, 4)
    >>> window_repeats(Lattice.uniform(bulk("Au", a=4.0, cubic=True), ["Au", "Cu"]))
    (1, 1, 1)
    >>> window_repeats(Lattice.square(10))
    (10, 10, 1)
    """
    atoms = _Atoms(small)
    return tuple(_repeat(atoms, axis)[1] for axis in range(3))


def place_windows(
    small: Lattice,
    large: Lattice,
    stride: tuple[int, int, int],
    margin: tuple[int, int, int] = (0, 0, 0),
) -> Windows:
    """Copies of a small cell over a larger one, in raster order, first cell vector slowest.

    Cell vectors of the small lattice are divided into repeats of the parent lattice
    (:func:`window_repeats`). Copies start every ``stride`` repeats as far as the larger cell
    reaches and wrap around where it is periodic; where it is not, none reaches over an end and
    the last touches it. Along a cell vector after which the larger lattice repeats, the window is
    as wide as that: one start will do, without a margin. The larger cell need be no multiple of
    the small one.

    Parameters
    ----------
    small, large : Lattice
        Supercells of one parent lattice in one orientation; species, species allowed, sublattices
        and background atoms must agree.
    stride, margin : tuple of 3 int
        In repeats. A margin is not drawn in a window, except at an end of the larger lattice.

    Raises
    ------
    ValueError
        If the lattices are of different parents, the larger is narrower than the window, or a
        site is in no window.
    """
    if small.species != large.species:
        raise ValueError(
            f"the window has the species {small.species}, this lattice {large.species}; both must "
            "be made from the same settings"
        )
    window, cell = _Atoms(small), _Atoms(large)
    units, repeats = zip(*(_repeat(window, axis) for axis in range(3)), strict=True)
    positions = window.wrapped() + _origin(small, large, window, cell)
    starts, open_axes, margin = [], [], list(margin)
    basis = np.array([v if u is None else u for u, v in zip(units, window.cell, strict=True)])
    for axis in range(3):
        turns = cell.fractional(window.cell[axis])
        is_open = bool((np.abs(turns)[~cell.periodic] > 1e-6).any())
        open_axes.append(is_open)
        if units[axis] is None or ((np.abs(turns - np.round(turns)) < 1e-6).all() and not is_open):
            starts.append(np.zeros(1, dtype=int))
            margin[axis] = 0
        elif is_open:
            starts.append(_starts_between_ends(positions, window, cell, units[axis], stride[axis]))
        else:
            corners = np.array(list(itertools.product((0, 1), repeat=3)))[:, cell.periodic]
            reach = (corners @ cell.cell[cell.periodic] @ np.linalg.inv(basis))[:, axis]
            low, high = int(np.floor(reach.min() + 1e-3)), int(np.ceil(reach.max() - 1e-3))
            starts.append(np.arange(low, max(high, low + 1), stride[axis]))
    grid = np.array(list(itertools.product(*starts)))
    shifted = positions[None] + (grid @ basis)[:, None]
    j, fits = cell.carries(shifted, window.kinds)
    if not fits.all():
        i = np.argwhere(~fits)[0]
        raise ValueError(
            f"site {i[1]} of the window of {small.n_sites} sites finds no site of its kind when "
            f"the window starts at {tuple(grid[i[0]].tolist())} repeats: this lattice is a cell of "
            "another parent lattice; make both cells from the same settings"
        )
    position_of = np.full(len(cell.kinds), -1)
    position_of[large.site_indices] = np.arange(large.n_sites)
    sites = position_of[j[:, small.site_indices]]
    _check_width(sites[0], small, large, basis, repeats, cell)
    if not (large.allowed[sites] == small.allowed).all():
        w, i = np.argwhere((large.allowed[sites] != small.allowed).any(-1))[0]
        raise ValueError(
            f"site {sites[w, i]} of this lattice may carry other species than site {i} of the "
            "window; both must be made from the same settings"
        )
    blocks = _blocks(window, basis, small.site_indices)
    core = np.ones(sites.shape, dtype=bool)
    for axis in range(3):
        first, last = margin[axis], repeats[axis] - margin[axis]
        begin, end = starts[axis][0], starts[axis][-1]
        at_low = (grid[:, axis] == begin)[:, None] & open_axes[axis]
        at_high = (grid[:, axis] == end)[:, None] & open_axes[axis]
        core &= (blocks[:, axis] >= first) | at_low
        core &= (blocks[:, axis] < last) | at_high
    covered = np.zeros(large.n_sites, dtype=bool)
    covered[sites[core]] = True
    if not covered.all():
        raise ValueError(
            f"{int((~covered).sum())} of the {large.n_sites} sites of this lattice, site "
            f"{int(np.argmin(covered))} among them, are in no window: along a direction that is "
            "not periodic the window must be as thick as the lattice, or have a cell vector along "
            "it and two repeats or more"
        )
    key = np.where(core, sites, -1 - sites)
    _, kept = np.unique(key, axis=0, return_index=True)
    kept.sort()
    return Windows(sites[kept], core[kept])


def _origin(small: Lattice, large: Lattice, window: _Atoms, cell: _Atoms) -> np.ndarray:
    """Shift that lays the small cell on atoms of the larger: none where that will do."""
    positions, reference = window.wrapped(), window.rarest()[0]
    same = np.flatnonzero(cell.kinds == window.kinds[reference])
    shifts = np.concatenate([np.zeros((1, 3)), cell.positions[same] - positions[reference]])
    worst = []
    for shift in shifts:
        fits = cell.carries(positions + shift, window.kinds)[1]
        if fits.all():
            return shift
        worst.append((int(fits.sum()), cell.at(positions + shift)[1].max()))
    best, distance = max(worst, key=lambda w: (w[0], -w[1]))
    raise ValueError(
        f"the window of {small.n_sites} sites does not lie on this lattice of {large.n_sites}: "
        f"at best {best} of its {len(positions)} atoms find one of their kind, the farthest is "
        f"{distance:.3f} angstrom off; one is a cell of another parent lattice, orientation or "
        "lattice constant, or it is thinner along a direction that is not periodic: make both "
        "from the same settings, the larger at least as wide as the window"
    )


def _starts_between_ends(positions, window: _Atoms, cell: _Atoms, unit, stride: int) -> np.ndarray:
    """Starts of windows between the two ends of the larger lattice, one at either end."""
    reach = int(np.ptp(cell.positions @ unit) / (unit @ unit)) + 1
    inside = [
        k
        for k in range(-reach, reach + 1)
        if cell.carries(positions + k * unit, window.kinds)[1].all()
    ]
    return np.unique([*range(min(inside), max(inside), stride), max(inside)])


def _check_width(sites, small: Lattice, large: Lattice, basis, repeats, cell: _Atoms) -> None:
    if len(np.unique(sites)) == len(sites):
        return
    wide = []
    for unit in basis:
        multiples = cell.fractional(np.arange(1, large.n_sites + 1)[:, None] * unit)
        multiples = np.where(cell.periodic, multiples - np.round(multiples), multiples)
        home = (np.abs(multiples @ cell.cell) < _TOLERANCE).all(1)
        wide.append(int(np.argmax(home)) + 1 if home.any() else 1)
    raise ValueError(
        f"the window of {small.n_sites} sites is {tuple(repeats)} repeats of the parent lattice "
        f"wide, this lattice of {large.n_sites} sites comes back to itself after {tuple(wide)} "
        "along the same directions, so that two sites of a window would be one; use a larger cell, "
        "or a model of a smaller one"
    )


def _blocks(window: _Atoms, basis: np.ndarray, site_indices: np.ndarray) -> np.ndarray:
    """Number of the repeat that each active site is in, shape (sites, 3)."""
    at = window.wrapped() @ np.linalg.inv(basis)
    at -= np.where(window.periodic, 0.0, at.min(0))
    return np.floor(at[site_indices] + 1e-3).astype(int)
