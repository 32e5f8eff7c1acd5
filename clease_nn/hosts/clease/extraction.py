"""Read a CLEASE calculator: its lattice and its cluster expansion as flat tables.

CLEASE gives the energy ``len(atoms) * sum_name ECI[name] * CF[name]``. The correlation function
of a cluster is the mean over all (atom, figure) pairs of the product of site functions, averaged
over equivalent decorations. That of a singlet is the mean over all sites that are not background,
or over all atoms where the settings include background atoms.
Only public attributes of the settings are read, and the settings are left as they are.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np
from ase import Atoms

from clease_nn.energies.cluster_expansion import ClusterExpansionEnergy
from clease_nn.energies.tables import ClusterTables
from clease_nn.lattice import Lattice

__all__ = ["energy", "lattice", "parent_fingerprint", "supercell"]


def lattice(atoms: Atoms) -> Lattice:
    """Lattice of an Atoms object that has a Clease calculator.

    Active sites are those whose basis offers more than one species; species are in alphabetical
    order; sublattices are the crystallographic ones of the CLEASE settings. The template is
    periodic in all directions, as CLEASE wraps its clusters.

    Parameters
    ----------
    atoms : ase.Atoms
        With a ``clease.calculator.Clease`` calculator attached.

    Raises
    ------
    TypeError
        If ``atoms`` is not an Atoms object or has no Clease calculator.
    ValueError
        If an atom carries a species that the settings do not allow there.

    Examples
    --------
    >>> from clease_nn.hosts.clease.examples import cuau_emt_atoms
    >>> lattice(cuau_emt_atoms((2, 2, 2)))
    Lattice(8 active sites of 8, species Au/Cu, 1 sublattices)
    """
    return _lattice(atoms, _settings_for(atoms))


def _lattice(atoms: Atoms, settings) -> Lattice:
    basis = _basis_of_atoms(settings)
    symbols = atoms.get_chemical_symbols()
    for i, symbol in enumerate(symbols):
        elements = settings.basis_elements[basis[i]]
        if symbol not in elements:
            known = sorted(set(settings.all_elements))
            reason = "" if symbol in known else f"; the CLEASE settings know only {known}"
            raise ValueError(
                f"atom {i} is {symbol}, but this site may carry only {list(elements)}{reason}; "
                "change the atom, or the concentration of the settings"
            )
    sites = np.array(settings.non_background_indices, dtype=np.int64)
    if len(sites) == 0:
        raise ValueError("the CLEASE settings have background sites only; nothing can vary")
    species = sorted({s for i in sites for s in settings.basis_elements[basis[i]]})
    allowed = np.array([[s in settings.basis_elements[basis[i]] for s in species] for i in sites])
    template = Atoms(
        symbols, positions=atoms.positions, cell=atoms.cell, tags=settings.atoms.get_tags()
    )
    template.pbc = True
    return Lattice(template, sites, species, allowed, _sublattice_of_atoms(settings)[sites])


def energy(atoms: Atoms, eci: Mapping[str, float] | None = None) -> ClusterExpansionEnergy:
    """Cluster expansion of an Atoms object that has a Clease calculator.

    Parameters
    ----------
    atoms : ase.Atoms
        With a ``clease.calculator.Clease`` calculator attached.
    eci : mapping of str to float, optional
        ECIs in eV per atom. Default: those of the calculator, as they are now. Give the bare
        ones here where a CLEASE sampler has folded a chemical potential into the calculator's.

    Returns
    -------
    ClusterExpansionEnergy
        For ``lattice(atoms)``; ``metadata`` has ``parent`` (:func:`parent_fingerprint`) and
        ``eci``.

    Raises
    ------
    TypeError
        If ``atoms`` is not an Atoms object or has no Clease calculator.
    ValueError
        If an ECI is not finite or names a cluster that the settings do not have.

    Examples
    --------
    >>> from clease_nn.hosts.clease.examples import cuau_emt_atoms
    >>> atoms = cuau_emt_atoms((2, 2, 2))
    >>> host = lattice(atoms)
    >>> e = energy(atoms)(host, host.occupations(atoms)[None])
    >>> abs(e.item() - atoms.get_potential_energy()) < 1e-10
    True
    """
    settings = _settings_for(atoms)
    return _energy(_lattice(atoms, settings), settings, _checked_eci(atoms, settings, eci))


def _energy(host: Lattice, settings, eci: Mapping[str, float]) -> ClusterExpansionEnergy:
    terms = _Terms(settings, host)
    terms.add(eci)
    tables = ClusterTables.from_terms(host.n_sites, terms.functions, terms.terms, terms.constant)
    return ClusterExpansionEnergy(tables, {"parent": _parent(settings, eci), "eci": dict(eci)})


def supercell(
    atoms: Atoms, cell: Atoms | Sequence[int], eci: Mapping[str, float] | None = None
) -> tuple[Lattice, ClusterExpansionEnergy]:
    """Lattice and energy of another supercell of the expansion behind some atoms.

    Nothing of the calculator or its settings is changed, and no other one is needed.

    Parameters
    ----------
    atoms : ase.Atoms
        With a ``clease.calculator.Clease`` calculator attached.
    cell : ase.Atoms or three integers
        A supercell of the settings' primitive cell (ideal positions, any allowed species), or how
        often to repeat that along its cell vectors.
    eci : mapping of str to float, optional
        As in :func:`energy`.

    Raises
    ------
    TypeError
        As :func:`energy`, or if ``cell`` is neither.
    ValueError
        As :func:`energy`, or if ``cell`` is no supercell of the primitive cell.

    Examples
    --------
    >>> from clease_nn.hosts.clease.examples import cuau_emt_atoms
    >>> small, e = supercell(cuau_emt_atoms((4, 4, 4)), (2, 2, 2))
    >>> small, len(e(small, [[0] * 8]))
    (Lattice(8 active sites of 8, species Au/Cu, 1 sublattices), 1)
    """
    settings = _settings_for(atoms)
    primitive = settings.prim_cell
    if not isinstance(cell, Atoms):
        try:
            size = [int(n) for n in cell]
            whole = len(size) == 3 and all(n > 0 for n in size) and size == [*cell]
        except (TypeError, ValueError):
            whole = False
        if not whole:
            raise TypeError(
                "a cell must be ase.Atoms, or how often to repeat the primitive cell, such as "
                f"(2, 2, 4); got {cell!r}"
            )
        cell = primitive.copy().repeat(size)
    repeats = np.array(cell.cell) @ np.linalg.inv(np.array(primitive.cell))
    n_cells = abs(np.linalg.det(repeats))
    if np.abs(repeats - repeats.round()).max() > 1e-2 or not np.isclose(
        len(cell), n_cells * len(primitive), atol=0.1
    ):
        raise ValueError(
            f"the cell ({len(cell)} atoms, cell vectors {repeats.round(3).tolist()} in those of "
            f"the primitive cell) is no supercell of the primitive cell of these settings "
            f"({len(primitive)} atoms); repeat settings.prim_cell"
        )
    inverse = np.linalg.inv(np.array(primitive.cell))
    apart = (cell.positions[:, None] - primitive.positions) @ inverse
    off = np.abs(apart - apart.round()).max(2).min(1)
    if off.max() > 1e-2:
        raise ValueError(
            f"atom {int(off.argmax())} of the cell lies on no site of the primitive lattice; use "
            "ideal, unrelaxed positions, as of settings.prim_cell repeated"
        )
    plain = Atoms(cell.symbols, positions=cell.positions, cell=cell.cell, pbc=True)
    settings = copy.copy(settings)
    settings.atoms_mng = copy.copy(settings.atoms_mng)
    settings.set_active_template(atoms=plain)
    host = _lattice(settings.atoms, settings)
    return host, _energy(host, settings, _checked_eci(atoms, settings, eci))


def parent_fingerprint(atoms: Atoms, eci: Mapping[str, float] | None = None) -> str:
    """Hash of the ECIs and the parent settings, the same for every supercell.

    It covers the ECIs (eV, rounded to 1e-12), the primitive cell, the basis functions with their
    values, names and diameters of the clusters, and the elements of every basis.

    Raises
    ------
    TypeError, ValueError
        As :func:`energy`.
    """
    settings = _settings_for(atoms)
    return _parent(settings, _checked_eci(atoms, settings, eci))


def _parent(settings, eci: Mapping[str, float]) -> str:
    h = hashlib.sha256()

    def put(*parts):
        for part in parts:
            if isinstance(part, np.ndarray):
                part = (np.round(part.astype(float), 6) + 0.0).tobytes()
            h.update(part if isinstance(part, bytes) else f"{part}|".encode())

    # an ECI of zero is no ECI: CLEASE wants one before it takes a chemical potential
    rounded = {name: round(value, 12) for name, value in eci.items()}
    put(*[f"{name}={rounded[name]:.12f}" for name in sorted(rounded) if rounded[name]])
    primitive = settings.prim_cell
    put(np.array(primitive.cell), primitive.positions, primitive.get_tags())
    put(*primitive.get_chemical_symbols())
    put(settings.basis_func_type.name, bool(settings.include_background_atoms))
    for function in settings.basis_functions:
        put(*sorted(function), np.array([function[s] for s in sorted(function)]))
    clusters = {(c.name, c.group, round(float(c.diameter), 4)) for c in settings.cluster_list}
    put(*sorted(clusters))
    put(*[sorted(elements) for elements in settings.basis_elements])
    return h.hexdigest()[:16]


class _Terms:
    """Collects the terms of all correlation functions, in units of eV per supercell."""

    def __init__(self, settings, host: Lattice):
        self.settings = settings
        self.n_atoms = len(settings.atoms)
        self.n_sites = host.n_sites
        self.n_counted = self.n_atoms if settings.include_background_atoms else self.n_sites
        values = settings.basis_functions
        # a species that only background atoms carry has no value on active sites, and conversely
        self.functions = [[f.get(s, 0.0) for s in host.species] for f in values]
        symbols = host.template.get_chemical_symbols()
        self.on_atom = np.array([[f.get(s, 0.0) for s in symbols] for f in values])
        self.site_of = np.full(self.n_atoms, -1)
        self.site_of[host.site_indices] = np.arange(host.n_sites)
        self.groups = settings.index_by_sublattice
        self.clusters = {(c.name, c.group): c for c in settings.cluster_list}
        self._translation: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.terms: list[tuple[float, list[tuple[int, int]]]] = []
        self.constant = 0.0

    def add(self, eci: Mapping[str, float]) -> None:
        constants = []
        for name, value in eci.items():
            if value == 0.0:
                continue
            if name == "c0":
                constants.append(value * self.n_atoms)
            elif name.startswith("c1_"):
                function = int(name.removeprefix("c1_"))
                weight = value * self.n_atoms / self.n_counted
                self.terms += [(weight, [(s, function)]) for s in range(self.n_sites)]
                if self.settings.include_background_atoms:
                    background = self.on_atom[function, self.site_of < 0]
                    constants.append(weight * math.fsum(background))
            else:
                self._cluster(name, value)
        self.constant = math.fsum(constants)

    def _cluster(self, name: str, value: float) -> None:
        prefix, _, digits = name.rpartition("_")
        decoration = [int(d) for d in digits]
        parts = []
        n_figures = 0
        for group, atoms in enumerate(self.groups):
            cluster = self.clusters.get((prefix, group))
            if cluster is None:
                continue
            figures = np.array(cluster.indices, dtype=np.int64).reshape(-1, cluster.size)
            sites = self._translated(atoms, figures)
            n_figures += len(sites)
            decorations = cluster.equiv_deco(decoration)
            parts += [(sites, np.array(d), 1.0 / len(decorations)) for d in decorations]
        n_functions = len(self.functions)
        rows, factors = [], []
        for atoms, functions, share in parts:
            site = self.site_of[atoms]
            active = site >= 0
            background = np.where(active, 1.0, self.on_atom[functions, atoms])
            rows.append(np.sort(np.where(active, site * n_functions + functions, -1), axis=1))
            factors.append(share * background.prod(1))
        rows, inverse = np.unique(np.concatenate(rows), axis=0, return_inverse=True)
        sums = np.bincount(inverse.ravel(), np.concatenate(factors), minlength=len(rows))
        weight = value * self.n_atoms / n_figures
        for row, total in zip(rows.tolist(), sums.tolist(), strict=True):
            entries = [divmod(variable, n_functions) for variable in row if variable >= 0]
            self.terms.append((weight * total, entries))

    def _translated(self, atoms: list[int], figures: np.ndarray) -> np.ndarray:
        """(atoms * figures, size) atom indices of all copies of the figures."""
        out = np.empty((len(atoms), *figures.shape), dtype=np.int64)
        for k, atom in enumerate(atoms):
            if atom not in self._translation:
                row = self.settings.trans_matrix[atom]
                keys = np.fromiter(row.keys(), np.int64, len(row))
                lookup = np.full(self.n_atoms, -1)
                lookup[keys] = np.fromiter(row.values(), np.int64, len(row))
                self._translation[atom] = lookup
            out[k] = self._translation[atom][figures]
        return out.reshape(-1, figures.shape[1])


# ---------------------------------------------------------------------- reading CLEASE
def _settings_for(atoms: Atoms):
    """The settings of the calculator with ``atoms`` as active template (a copy if need be)."""
    from clease.calculator import Clease
    from clease.calculator.clease_vol_dep import CleaseVolDep

    if not isinstance(atoms, Atoms):
        raise TypeError(f"atoms must be an ase.Atoms object, got {type(atoms).__name__}")
    remedy = (
        "attach one with clease.calculator.attach_calculator(settings, atoms, eci); energies "
        "other than a CLEASE expansion enter as any callable energy(lattice, occupations)"
    )
    calculator = atoms.calc
    if calculator is None:
        raise TypeError(f"atoms has no calculator; {remedy}")
    if not isinstance(calculator, Clease):
        raise TypeError(
            f"the calculator must be clease.calculator.Clease, got {type(calculator).__name__}; "
            f"{remedy}"
        )
    if isinstance(calculator, CleaseVolDep):
        raise TypeError(
            "CleaseVolDep makes the energy depend on the volume and is not a plain cluster "
            f"expansion; {remedy}"
        )
    settings = calculator.settings
    if _matches(settings.atoms, atoms):
        return settings
    # another supercell has become the settings' template since; look at ours in a copy
    settings = copy.copy(settings)
    settings.atoms_mng = copy.copy(settings.atoms_mng)
    settings.set_active_template(atoms=atoms)
    if not _matches(settings.atoms, atoms):
        raise ValueError(
            "the atoms are not in the order CLEASE uses; build them with "
            "clease.calculator.attach_calculator, which sorts them"
        )
    return settings


def _matches(template: Atoms, atoms: Atoms) -> bool:
    return (
        len(template) == len(atoms)
        and np.allclose(template.cell, atoms.cell)
        and np.allclose(template.positions, atoms.positions)
    )


def _basis_of_atoms(settings) -> np.ndarray:
    basis = np.empty(len(settings.atoms), dtype=np.int64)
    for k, indices in enumerate(settings.index_by_basis):
        basis[indices] = k
    return basis


def _sublattice_of_atoms(settings) -> np.ndarray:
    sublattice = np.empty(len(settings.atoms), dtype=np.int64)
    for k, indices in enumerate(settings.index_by_sublattice):
        sublattice[indices] = k
    return sublattice


def _checked_eci(atoms: Atoms, settings, eci: Mapping[str, float] | None) -> dict[str, float]:
    eci = {str(k): float(v) for k, v in (atoms.calc.eci if eci is None else eci).items()}
    bad = [name for name, value in eci.items() if not math.isfinite(value)]
    if bad:
        raise ValueError(f"ECIs must be finite, got {bad[0]} = {eci[bad[0]]} eV")
    unknown = sorted(set(eci) - set(settings.all_cf_names))
    if unknown:
        raise ValueError(
            f"the CLEASE settings have no cluster {unknown[0]!r} ({len(unknown)} of {len(eci)} "
            "ECIs are unknown); use the settings that the ECIs were fitted with (same "
            "max_cluster_dia and basis functions)"
        )
    return eci
