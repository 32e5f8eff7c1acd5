"""The lattice: active sites, species allowed on each, translations and pair relations."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from ase import Atoms
from ase.neighborlist import neighbor_list

if TYPE_CHECKING:
    from scipy.sparse import csr_array

__all__ = ["UNKNOWN", "Lattice"]

UNKNOWN = -1
"""Occupation of a site that has not been drawn yet."""

_TOLERANCE = 1e-3  # angstrom; sites and distances closer than this are the same


class Lattice:
    """Active sites of a supercell and what may sit on them.

    Everything that varies in a simulation is an *active site*; the other atoms of ``template``
    are background and never change.

    Parameters
    ----------
    template : ase.Atoms
        The supercell with its cell, periodicity, positions and background atoms. It is copied.
    site_indices : sequence of int, shape (sites,)
        Indices of the active sites in ``template``.
    species : sequence of str
        All species that occur on active sites; an occupation is an index into this tuple.
        Vacancies are ``"X"``.
    allowed : array_like of bool, shape (sites, species)
        Species allowed on each active site, at least one on each.
    sublattices : sequence of int, shape (sites,), optional
        Crystallographic sublattice of each active site. Default: sites with the same allowed
        species are one sublattice.

    Raises
    ------
    TypeError
        If ``template`` is not an Atoms object.
    ValueError
        If indices repeat or are out of range, or shapes do not match.

    Examples
    --------
    >>> from ase.build import bulk
    >>> lattice = Lattice.uniform(bulk("Au", cubic=True) * 2, ["Au", "Cu"])
    >>> lattice.n_sites, lattice.species, len(lattice.translations)
    (32, ('Au', 'Cu'), 32)
    """

    def __init__(
        self,
        template: Atoms,
        site_indices: Sequence[int],
        species: Sequence[str],
        allowed,
        sublattices: Sequence[int] | None = None,
    ):
        if not isinstance(template, Atoms):
            raise TypeError(f"template must be an ase.Atoms object, got {type(template).__name__}")
        self.template = template.copy()
        self.template.calc = None
        self.site_indices = np.asarray(site_indices, dtype=np.int64)
        self.species = tuple(species)
        self.allowed = np.array(allowed, dtype=bool)
        n = len(self.site_indices)
        if n == 0:
            raise ValueError("a lattice needs at least one active site")
        if (
            len(np.unique(self.site_indices)) != n
            or not ((self.site_indices >= 0) & (self.site_indices < len(template))).all()
        ):
            raise ValueError("site_indices must be distinct indices into template")
        if len(set(self.species)) != len(self.species):
            raise ValueError(f"species repeat: {self.species}")
        if self.allowed.shape != (n, len(self.species)):
            raise ValueError(
                f"allowed must have shape {(n, len(self.species))}, got {self.allowed.shape}"
            )
        if not self.allowed.any(1).all():
            raise ValueError("every active site needs at least one allowed species")
        if sublattices is None:
            _, sublattices = np.unique(self.allowed, axis=0, return_inverse=True)
        self.sublattices = np.asarray(sublattices, dtype=np.int64).ravel()
        if self.sublattices.shape != (n,):
            raise ValueError(f"sublattices must have shape ({n},), got {self.sublattices.shape}")
        for array in (self.site_indices, self.allowed, self.sublattices):
            array.setflags(write=False)

    @classmethod
    def uniform(cls, atoms: Atoms, species: Sequence[str]) -> Lattice:
        """Every atom of ``atoms`` is an active site and may carry any of ``species``."""
        return cls(atoms, np.arange(len(atoms)), species, np.ones((len(atoms), len(species))))

    @classmethod
    def square(cls, nx: int, ny: int | None = None, species=("Cu", "Au")) -> Lattice:
        """Periodic square lattice of ``nx`` by ``ny`` sites, 1 angstrom apart (Ising models)."""
        ny = nx if ny is None else ny
        grid = np.stack(np.meshgrid(np.arange(nx), np.arange(ny), indexing="ij"), -1)
        positions = np.concatenate([grid.reshape(-1, 2), np.zeros((nx * ny, 1))], 1)
        atoms = Atoms([species[0]] * (nx * ny), positions, cell=[nx, ny, 10.0], pbc=[1, 1, 0])
        return cls.uniform(atoms, species)

    @property
    def n_sites(self) -> int:
        """Number of active sites."""
        return len(self.site_indices)

    @property
    def n_species(self) -> int:
        """Number of species."""
        return len(self.species)

    @property
    def positions(self) -> np.ndarray:
        """Positions of the active sites in angstrom, shape (sites, 3)."""
        return self.template.positions[self.site_indices]

    def allowed_mask(self, device="cpu") -> torch.Tensor:
        """``allowed`` as a tensor on a device, shape (sites, species), bool."""
        return torch.tensor(self.allowed, device=device)

    @cached_property
    def log_states(self) -> float:
        """Natural logarithm of the number of configurations."""
        return float(np.log(self.allowed.sum(1)).sum())

    # ------------------------------------------------------------------ Atoms <-> occupations
    def occupations(self, atoms: Atoms) -> np.ndarray:
        """Occupations of an Atoms object with this cell, shape (sites,), int8.

        Raises
        ------
        ValueError
            If the number of atoms differs, a site carries an element it may not carry, or a
            background atom differs from the template.
        """
        if len(atoms) != len(self.template):
            raise ValueError(
                f"atoms has {len(atoms)} sites, this lattice {len(self.template)}; "
                "use the supercell the lattice was made from"
            )
        symbols = np.array(atoms.get_chemical_symbols())
        background = np.ones(len(atoms), dtype=bool)
        background[self.site_indices] = False
        wrong = np.flatnonzero(background & (atoms.numbers != self.template.numbers))
        if len(wrong):
            i = wrong[0]
            raise ValueError(
                f"background atom {i} is {symbols[i]}, the lattice has "
                f"{self.template.symbols[int(i)]} there"
            )
        index = {s: k for k, s in enumerate(self.species)}
        out = np.empty(self.n_sites, dtype=np.int8)
        for k, i in enumerate(self.site_indices):
            a = index.get(symbols[i])
            if a is None or not self.allowed[k, a]:
                may = [s for s, ok in zip(self.species, self.allowed[k], strict=True) if ok]
                raise ValueError(f"atom {i} is {symbols[i]}, but this site may carry only {may}")
            out[k] = a
        return out

    def atoms(self, occupations) -> Atoms:
        """Atoms object of one configuration (occupations of shape (sites,), none unknown)."""
        occupations = np.asarray(occupations)
        if occupations.shape != (self.n_sites,) or (occupations < 0).any():
            raise ValueError("atoms() needs one configuration without unknown sites")
        out = self.template.copy()
        symbols = out.get_chemical_symbols()
        for k, i in enumerate(self.site_indices):
            symbols[i] = self.species[int(occupations[k])]
        out.set_chemical_symbols(symbols)
        return out

    # ------------------------------------------------------------------ files
    def to_dict(self) -> dict:
        """JSON-ready description; :meth:`from_dict` rebuilds the lattice from it.

        Examples
        --------
        >>> lattice = Lattice.square(3)
        >>> Lattice.from_dict(lattice.to_dict()).fingerprint == lattice.fingerprint
        True
        """
        return {
            "numbers": self.template.numbers.tolist(),
            "positions": self.template.positions.tolist(),
            "cell": np.array(self.template.cell).tolist(),
            "pbc": self.template.pbc.tolist(),
            "site_indices": self.site_indices.tolist(),
            "species": list(self.species),
            "allowed": self.allowed.tolist(),
            "sublattices": self.sublattices.tolist(),
        }

    @classmethod
    def from_dict(cls, d: dict) -> Lattice:
        """Rebuild from :meth:`to_dict`."""
        atoms = Atoms(d["numbers"], d["positions"], cell=d["cell"], pbc=d["pbc"])
        return cls(atoms, d["site_indices"], d["species"], d["allowed"], d["sublattices"])

    # ------------------------------------------------------------------ geometry
    def _kinds(self) -> np.ndarray:
        """(atoms,) label that a symmetry must keep: sublattice, or minus background number."""
        kinds = -1 - self.template.numbers.astype(np.int64)
        kinds[self.site_indices] = self.sublattices
        return kinds

    @cached_property
    def translation_factors(self) -> list[np.ndarray]:
        """Factors of the translation group, each (powers, sites), the identity first.

        Every translation is one row of each factor, composed, in one way. Only a few are ever
        matched with the atoms: the group is closed from those by composition.
        """
        from scipy.spatial import cKDTree

        atoms = self.template
        kinds = self._kinds()
        cell = np.array(atoms.cell.complete())
        inverse = np.linalg.inv(cell)
        positions = atoms.positions
        labels, counts = np.unique(kinds, return_counts=True)
        candidates = np.flatnonzero(kinds == labels[np.argmin(counts)])
        vectors = positions[candidates] - positions[candidates[0]]
        fractional = vectors @ inverse
        shift = np.where(atoms.pbc, fractional - np.round(fractional), fractional)
        vectors = shift @ cell
        fixed = ~np.asarray(atoms.pbc)
        # wrap with a margin so that no site sits on the seam, then match in a padded KD-tree
        lengths = np.linalg.norm(cell, axis=1)
        margin = 0.1 / lengths

        def wrapped(p):
            f = p @ inverse + margin
            f[:, ~fixed] -= np.floor(f[:, ~fixed])
            return f

        base = wrapped(positions)
        box = np.where(fixed, 0.0, 1.0)
        low = np.where(fixed, base.min(0) - 1.0, 0.0)
        tree = cKDTree((base - low) % np.where(fixed, np.inf, 1.0), boxsize=box)
        tolerance = _TOLERANCE * 10 / lengths.min()

        def matched(which, v):
            d, j = tree.query((wrapped(positions[which] + v) - low) % np.where(fixed, np.inf, 1.0))
            return j if d.max() < tolerance and (kinds[j] == kinds[which]).all() else None

        everyone, few = np.arange(len(atoms)), np.arange(0, len(atoms), len(atoms) // 16 + 1)
        first = candidates[0]
        factors = [everyone[None]]
        orbit = np.array([first])  # where the translations found so far take the first candidate
        tried = np.zeros(len(atoms), dtype=bool)
        tried[orbit] = True
        for candidate, v in zip(candidates, vectors, strict=True):
            if tried[candidate] or (np.abs(v @ inverse)[fixed] > 1e-6).any():
                continue
            if matched(few, v) is None:
                step = None
            else:
                step = matched(everyone, v)
                if step is not None and len(np.unique(step)) != len(step):
                    step = None
            if step is None:
                tried[candidate] = True
                continue
            inside = np.zeros(len(atoms), dtype=bool)
            inside[orbit] = True
            powers = [everyone]
            while not inside[(power := step[powers[-1]])[first]]:
                powers.append(power)
            powers = np.array(powers)
            orbit = powers[:, orbit].ravel()
            tried[orbit] = True
            factors.append(powers)
        position_of = np.full(len(atoms), -1)
        position_of[self.site_indices] = np.arange(self.n_sites)
        return [position_of[f[:, self.site_indices]] for f in factors]

    @cached_property
    def translations(self) -> np.ndarray:
        """Lattice translations as permutations of active sites, shape (translations, sites).

        ``occupations[:, translations[k]]`` is a translated configuration. The identity is first.
        On large lattices this is a large array; see :meth:`random_translations`.
        """
        out = np.arange(self.n_sites)[None]
        for powers in self.translation_factors:
            out = powers[:, out].reshape(-1, self.n_sites)
        return out[np.argsort(out[:, 0], kind="stable")]

    def random_translations(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """``n`` lattice translations drawn evenly, with repetition, shape (n, sites), int64.

        As rows of :attr:`translations`, without the table of all of them.

        Examples
        --------
        >>> Lattice.square(3).random_translations(2, np.random.default_rng(0)).shape
        (2, 9)
        """
        out = np.broadcast_to(np.arange(self.n_sites), (n, self.n_sites))
        for powers in self.translation_factors:
            chosen = powers[rng.integers(len(powers), size=n)]
            out = np.take_along_axis(chosen, out, axis=1)
        return np.array(out)

    def pair_shells(self, n_shells: int) -> list[tuple[int, int, float]]:
        """Keys of the nearest pair shells: (sublattice, sublattice of the neighbour, distance).

        Distances in angstrom, rounded to 1e-3. With several sublattices every ordered pair of
        sublattices has shells of its own, up to the distance at which the sparsest sublattice
        has seen ``n_shells`` shells of neighbours. A key means the same in every supercell of
        the same parent lattice.
        """
        if n_shells < 1:
            raise ValueError(f"n_shells must be at least 1, got {n_shells}")
        sites = self._sites_as_atoms()
        cutoff = 1.2 * max(sites.cell.volume / len(sites), 1.0) ** (1 / 3)
        for _ in range(40):
            i, j, d = neighbor_list("ijd", sites, cutoff)
            d = _merge_distances(d)
            sub = self.sublattices
            per_sublattice = [np.unique(d[sub[i] == s]) for s in np.unique(sub)]
            if all(len(u) >= n_shells for u in per_sublattice):
                break
            if not any(sites.pbc) and cutoff > 2 * np.ptp(sites.positions, axis=0).max() + 1:
                break
            cutoff *= 1.25
        limit = max((u[min(n_shells, len(u)) - 1] for u in per_sublattice if len(u)), default=0.0)
        keep = d <= limit + _TOLERANCE / 2
        keys = set(zip(sub[i[keep]].tolist(), sub[j[keep]].tolist(), d[keep].tolist(), strict=True))
        return sorted(keys, key=lambda k: (k[2], k[0], k[1]))

    def relation_lists(self, keys: Sequence[tuple[int, int, float]]) -> csr_array:
        """Number of neighbours of each kind, sparse, shape (len(keys) * sites, sites), int64.

        Entry ``[s * sites + i, j]`` counts the periodic images of site ``j`` that are neighbours
        of site ``i`` in shell ``keys[s]``; more than one in cells smaller than the interaction.
        Memory grows with the number of neighbours, not with the square of the number of sites.

        Examples
        --------
        >>> lattice = Lattice.square(64)
        >>> lattice.relation_lists(lattice.pair_shells(2)).sum(1).tolist() == [4] * 8192
        True
        """
        from scipy.sparse import csr_array

        n = self.n_sites
        shape = (len(keys) * n, n)
        if not keys:
            return csr_array(shape, dtype=np.int64)
        limit = max(k[2] for k in keys) + 10 * _TOLERANCE
        i, j, d = neighbor_list("ijd", self._sites_as_atoms(), limit)
        rows, columns = [], []
        for s, (a, b, distance) in enumerate(keys):
            hit = np.flatnonzero(np.abs(d - distance) < 3 * _TOLERANCE)
            hit = hit[(self.sublattices[i[hit]] == a) & (self.sublattices[j[hit]] == b)]
            rows.append(s * n + i[hit])
            columns.append(j[hit])
        rows, columns = np.concatenate(rows), np.concatenate(columns)
        out = csr_array((np.ones(len(rows), dtype=np.int64), (rows, columns)), shape=shape)
        out.sum_duplicates()
        return out

    def relation_matrices(self, keys: Sequence[tuple[int, int, float]]) -> np.ndarray:
        """:meth:`relation_lists` as full matrices, shape (len(keys), sites, sites), float32."""
        out = self.relation_lists(keys).toarray().astype(np.float32)
        return out.reshape(len(keys), self.n_sites, self.n_sites)

    def _sites_as_atoms(self) -> Atoms:
        atoms = self.template
        return Atoms(
            ["X"] * self.n_sites, self.positions, cell=atoms.cell.complete(), pbc=atoms.pbc
        )

    @cached_property
    def fingerprint(self) -> str:
        """Hash of cell, sites and allowed species (not of occupations)."""
        h = hashlib.sha256()
        for part in (
            _rounded(np.array(self.template.cell.complete()), 4),
            np.asarray(self.template.pbc),
            _rounded(self.template.positions, 3),
            self._kinds(),
            self.allowed,
        ):
            h.update(np.ascontiguousarray(part).tobytes())
        h.update("|".join(self.species).encode())
        return h.hexdigest()[:16]

    def __repr__(self) -> str:
        return (
            f"Lattice({self.n_sites} active sites of {len(self.template)}, "
            f"species {'/'.join(self.species)}, {len(np.unique(self.sublattices))} sublattices)"
        )


def _rounded(x: np.ndarray, decimals: int) -> np.ndarray:
    """Rounded, and the same for all that is within 1e-7 of halfway (1.8075, a/2 of copper)."""
    return np.round(x + 1e-6, decimals) + 0.0


def _merge_distances(d: np.ndarray) -> np.ndarray:
    """Replace distances closer than the tolerance by one common rounded value."""
    unique = np.unique(np.round(d, 6))
    if len(unique) == 0:
        return d
    group = np.concatenate([[0], np.cumsum(np.diff(unique) > _TOLERANCE)])
    values = np.array([round(float(unique[group == g].mean()), 3) for g in range(group[-1] + 1)])
    return values[group[np.searchsorted(unique, np.round(d, 6))]]
