"""Read an icet cluster expansion: its lattice and its energy as flat tables.

icet gives the energy ``scaling * sum_i parameter_i * cv_i``; a calculator scales with the number
of sites unless told otherwise. An element i of the cluster vector is the mean, over all clusters
of an orbit in the supercell and over the ``site_permutations`` p of the element, of
``prod_k phi_{m_{p_k}}(site k)``, m its multicomponent vector. The site functions depend on how many
species a site may carry. A cluster that contains a site twice multiplies the functions there.

Of what icet does not document, this module alone reads what ``orbit_list``, ``species_maps``,
``evaluate_cluster_function`` and ``cluster_vector_elements`` give; private attributes are in
``private.py``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from icet import ClusterExpansion
from icet.core.structure import find_lattice_sites_by_positions
from mchammer.calculators import ClusterExpansionCalculator

from clease_nn.energies.cluster_expansion import ClusterExpansionEnergy
from clease_nn.energies.tables import ClusterTables
from clease_nn.hosts.mchammer.private import check_version, property_scaling
from clease_nn.lattice import Lattice

__all__ = ["energy", "is_plain", "lattice", "parent_fingerprint"]


def is_plain(calculator) -> bool:
    """Whether the energy of a mchammer calculator is its cluster expansion and nothing else."""
    methods = ("calculate_total", "calculate_change")
    return isinstance(calculator, ClusterExpansionCalculator) and all(
        getattr(type(calculator), m) is getattr(ClusterExpansionCalculator, m) for m in methods
    )


def lattice(structure: Atoms, expansion) -> Lattice:
    """Lattice of a supercell of an icet expansion.

    Active sites are those that may carry more than one species; species are in alphabetical
    order, vacancies are ``"X"``; sublattices are the sites that the space group of the decorated
    primitive cell maps onto one another.

    Parameters
    ----------
    structure : ase.Atoms
        Supercell.
    expansion : icet.ClusterExpansion or mchammer.calculators.ClusterExpansionCalculator

    Raises
    ------
    ImportError
        If icet's version is not supported.
    TypeError
        If ``structure`` or ``expansion`` is something else, or the calculator's energy is more
        than its cluster expansion.
    ValueError
        If the structure is no supercell of the expansion's primitive cell, or a site carries a
        species that the expansion does not allow there.

    Examples
    --------
    >>> from ase.build import bulk
    >>> from icet import ClusterExpansion, ClusterSpace
    >>> primitive = bulk("Au")
    >>> space = ClusterSpace(primitive, [4.3], ["Ag", "Au"])
    >>> expansion = ClusterExpansion(space, [0, 0, 0.1, -0.02])
    >>> lattice(primitive.repeat(2), expansion)
    Lattice(8 active sites of 8, species Ag/Au, 1 sublattices)
    """
    return _Supercell(structure, _Parent(expansion)).lattice


def energy(structure: Atoms, expansion) -> ClusterExpansionEnergy:
    """Energy of a supercell of an icet expansion.

    Parameters
    ----------
    structure : ase.Atoms
        Supercell.
    expansion : icet.ClusterExpansion or mchammer.calculators.ClusterExpansionCalculator
        An expansion gives an energy per site and is multiplied by the number of atoms, as a
        calculator does by default; the scaling of a calculator is kept.

    Returns
    -------
    ClusterExpansionEnergy
        For ``lattice(structure, expansion)``, in eV per supercell; ``metadata`` has ``parent``
        (:func:`parent_fingerprint`).

    Raises
    ------
    ImportError, TypeError, ValueError
        As :func:`lattice`; ValueError also for parameters that are not finite.

    Examples
    --------
    >>> from ase.build import bulk
    >>> from icet import ClusterExpansion, ClusterSpace
    >>> primitive = bulk("Au")
    >>> space = ClusterSpace(primitive, [4.3], ["Ag", "Au"])
    >>> expansion = ClusterExpansion(space, [0, 0, 0.1, -0.02])
    >>> gold = primitive.repeat(2)
    >>> host = lattice(gold, expansion)
    >>> e = energy(gold, expansion)(host, host.occupations(gold)[None])
    >>> bool(abs(e.item() - 8 * expansion.predict(gold)) < 1e-10)
    True
    """
    parent = _Parent(expansion)
    cell = _Supercell(structure, parent)
    scale = parent.relative_scale * len(structure)
    functions = [[f.get(s, 0.0) for s in cell.lattice.species] for f in parent.functions]
    tables = ClusterTables.from_arrays(cell.lattice.n_sites, functions, *cell.terms(scale))
    return ClusterExpansionEnergy(tables, {"parent": parent.fingerprint})


def parent_fingerprint(expansion) -> str:
    """Hash of parameters, orbits and primitive cell, the same for every supercell.

    Orbits whose parameter is zero do not count, nor does it matter whether the expansion comes
    alone or in a calculator; a scaling per site other than one does.

    Raises
    ------
    ImportError, TypeError, ValueError
        As :func:`energy`.
    """
    return _Parent(expansion).fingerprint


class _Parent:
    """What an expansion says about every supercell."""

    def __init__(self, expansion):
        check_version()
        self.relative_scale = 1.0
        if isinstance(expansion, ClusterExpansionCalculator):
            if not is_plain(expansion):
                raise TypeError(
                    f"the energy of a {type(expansion).__name__} is more than its cluster "
                    "expansion; use it as a plain callable energy(lattice, occupations), or give "
                    "a ClusterExpansionCalculator"
                )
            n_atoms = len(expansion.cpp_calc.occupations)
            self.relative_scale = property_scaling(expansion) / n_atoms
            expansion = expansion.cluster_expansion
        if not isinstance(expansion, ClusterExpansion):
            raise TypeError(
                "expansion must be an icet.ClusterExpansion or a mchammer "
                f"ClusterExpansionCalculator, got {type(expansion).__name__}"
            )
        self.parameters = np.array(expansion.parameters, dtype=float)
        if not np.isfinite(self.parameters).all():
            k = int(np.flatnonzero(~np.isfinite(self.parameters))[0])
            raise ValueError(
                f"parameters must be finite, got {self.parameters[k]} at index {k}; fit again"
            )
        self.space = expansion.get_cluster_space_copy()
        self.primitive = self.space.primitive_structure
        self.species = [sorted(symbols) for symbols in self.space.chemical_symbols]
        self.tolerance = self.space.fractional_position_tolerance
        self._make_functions()

    def _make_functions(self) -> None:
        """Site functions (species -> value) and where those of a primitive site begin."""
        self.functions: list[dict[str, float]] = []
        self.first_function = np.zeros(len(self.species), dtype=np.int64)
        known: dict[tuple, int] = {}
        for site, codes in enumerate(self.space.species_maps):
            n = len(codes)
            key = tuple(sorted(codes.items()))
            if key not in known:
                known[key] = len(self.functions)
                self.functions += [
                    {
                        chemical_symbols[z]: self.space.evaluate_cluster_function(n, f, code)
                        for z, code in codes.items()
                    }
                    for f in range(n - 1)
                ]
            self.first_function[site] = known[key]

    @cached_property
    def sublattices(self) -> np.ndarray:
        """(primitive sites,) sublattice; inactive sites are numbered too."""
        n = len(self.primitive)
        label = np.arange(n)
        for row in self.space.orbit_list.matrix_of_equivalent_positions:
            same = label[sorted({site.index for site in row})]
            label[np.isin(label, same)] = same.min()
        return np.unique(label, return_inverse=True)[1].ravel()

    def orbits(self) -> Iterator[tuple[float, np.ndarray, np.ndarray, dict]]:
        """(parameter, sites, offsets, element) of the terms that are not zero.

        ``sites`` (clusters, order) are those of the primitive cell, ``offsets``
        (clusters, order, 3) their cells; all clusters with a site in the cell at the origin
        that no translation maps onto one another.
        """
        orbit_list = self.space.orbit_list
        k = 0
        for index in range(len(orbit_list)):
            orbit = orbit_list.get_orbit(index)
            elements = orbit.cluster_vector_elements
            values = self.parameters[k + 1 : k + 1 + len(elements)]
            k += len(elements)
            if not values.any():
                continue
            clusters = [cluster.lattice_sites for cluster in orbit.clusters]
            sites = np.array([[s.index for s in c] for c in clusters])
            offsets = np.array([[s.unitcell_offset for s in c] for c in clusters], dtype=np.int64)
            for value, element in zip(values, elements, strict=True):
                if value:
                    yield float(value), sites, offsets, element

    @property
    def fingerprint(self) -> str:
        """See :func:`parent_fingerprint`."""
        h = hashlib.sha256()

        def put(*parts):
            for part in parts:
                if isinstance(part, np.ndarray):
                    part = (np.round(part.astype(float), 6) + 0.0).tobytes()
                h.update(part if isinstance(part, bytes) else f"{part}|".encode())

        put(
            "icet",
            np.array(self.primitive.cell),
            self.primitive.get_scaled_positions(),
            *self.species,
        )
        put(f"{self.parameters[0] * self.relative_scale:.12f}")
        for value, sites, offsets, element in self.orbits():
            put(f"{value * self.relative_scale:.12f}", sites, offsets)
            put(element["multicomponent_vector"], element["site_permutations"])
        return h.hexdigest()[:16]


class _Supercell:
    """Where the sites of a structure lie in the primitive lattice."""

    def __init__(self, structure: Atoms, parent: _Parent):
        if not isinstance(structure, Atoms):
            raise TypeError(f"structure must be an ase.Atoms object, got {structure!r}")
        self.structure, self.parent = structure, parent
        repeats = np.array(structure.cell) @ np.linalg.inv(np.array(parent.primitive.cell))
        self.repeats = np.round(repeats).astype(np.int64)
        self.n_cells = abs(round(np.linalg.det(self.repeats)))
        n_primitive = len(parent.primitive)
        if (
            self.n_cells == 0
            or np.abs(repeats - self.repeats).max() > 1e-2
            or len(structure) != self.n_cells * n_primitive
        ):
            raise ValueError(
                f"the structure ({len(structure)} atoms, cell vectors {np.round(repeats, 3)} in "
                f"those of the primitive cell) is no supercell of the expansion's primitive cell "
                f"({n_primitive} atoms); build it by repeating primitive_structure of the expansion"
            )
        try:
            found = find_lattice_sites_by_positions(
                parent.primitive,
                positions=structure.positions,
                fractional_position_tolerance=parent.tolerance,
            )
        except Exception as error:
            raise ValueError(
                "a site of the structure lies on no site of the expansion's primitive lattice "
                f"({error}); use ideal, unrelaxed positions"
            ) from error
        self.basis = np.array([s.index for s in found])
        cells = np.array([s.unitcell_offset for s in found], dtype=np.int64)
        self._adjugate = np.round(np.linalg.inv(self.repeats) * np.linalg.det(self.repeats)).astype(
            np.int64
        ) * int(np.sign(np.linalg.det(self.repeats)))
        keys = self._keys(self.basis, cells)
        if len(np.unique(keys)) != len(keys):
            raise ValueError("two atoms of the structure lie on the same site of the lattice")
        self._order = np.argsort(keys)
        self._sorted = keys[self._order]
        self.origins = cells[self.basis == 0]
        self._check_species()

    def _keys(self, basis: np.ndarray, cells: np.ndarray) -> np.ndarray:
        """One number for a site of the supercell, whatever its periodic image."""
        n = self.n_cells
        scaled = (cells @ self._adjugate) % n
        return ((basis * n + scaled[..., 0]) * n + scaled[..., 1]) * n + scaled[..., 2]

    def atoms_at(self, basis: np.ndarray, cells: np.ndarray) -> np.ndarray:
        """Atoms on primitive sites ``basis`` (...) of the cells (..., 3)."""
        return self._order[np.searchsorted(self._sorted, self._keys(basis, cells))]

    def _check_species(self) -> None:
        known = sorted({s for symbols in self.parent.species for s in symbols})
        for i, symbol in enumerate(self.structure.get_chemical_symbols()):
            allowed = self.parent.species[self.basis[i]]
            if symbol not in allowed:
                reason = "" if symbol in known else f"; the expansion knows only {known}"
                raise ValueError(
                    f"atom {i} is {symbol}, but this site may carry only {allowed}{reason}; "
                    "change the atom, or the chemical symbols of the cluster space"
                )

    @cached_property
    def lattice(self) -> Lattice:
        """See :func:`lattice`."""
        species_of = self.parent.species
        sites = np.flatnonzero([len(species_of[b]) > 1 for b in self.basis])
        species = sorted({s for b in self.basis[sites] for s in species_of[b]})
        allowed = np.array([[s in species_of[b] for s in species] for b in self.basis[sites]])
        structure = self.structure
        template = Atoms(numbers=structure.numbers, positions=structure.positions)
        template.cell, template.pbc = structure.cell, True
        sublattices = self.parent.sublattices[self.basis[sites]]
        return Lattice(template, sites, species, allowed, sublattices)

    def terms(self, scale: float) -> tuple[np.ndarray, np.ndarray, float]:
        """Coefficients, variables and constant, eV: see :meth:`ClusterTables.from_arrays`."""
        parent = self.parent
        n_sites = self.lattice.n_sites
        site_of = np.full(len(self.structure), n_sites)  # an inactive site would be refused
        site_of[self.lattice.site_indices] = np.arange(n_sites)
        n_functions = max(len(parent.functions), 1)
        parts = []
        for value, sites, offsets, element in parent.orbits():
            cells = self.origins[:, None, None] + offsets
            active = site_of[self.atoms_at(np.broadcast_to(sites, cells.shape[:-1]), cells)]
            active = active.reshape(-1, sites.shape[1])
            first = np.tile(parent.first_function[sites], (self.n_cells, 1))
            functions = np.array(element["multicomponent_vector"])
            permutations = element["site_permutations"]
            base = active * n_functions + first
            rows = np.concatenate([base + functions[list(p)] for p in permutations])
            rows, counts = np.unique(np.sort(rows, axis=1), axis=0, return_counts=True)
            parts.append((scale * value / (len(active) * len(permutations)) * counts, rows))
        width = max((rows.shape[1] for _, rows in parts), default=0)
        variables = np.full((sum(len(c) for c, _ in parts), width), -1)
        stop = 0
        for c, rows in parts:
            start, stop = stop, stop + len(c)
            variables[start:stop, : rows.shape[1]] = rows
        coefficients = np.concatenate([c for c, _ in parts] or [np.zeros(0)])
        return coefficients, variables, scale * float(parent.parameters[0])
