"""Flat tables of a cluster expansion: a polynomial in site functions.

``E = constant + sum_t coefficients[t] * prod_j functions[f_j, occupation[site_j]]`` with every
site at most once in a term. This is what every kernel (batched energies, chains) compiles from.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from clease_nn.lattice import Lattice

__all__ = ["ClusterTables"]


@dataclass(frozen=True, eq=False)
class ClusterTables:
    """A cluster expansion of one supercell, bare numbers only.

    Attributes
    ----------
    n_sites : int
        Active sites.
    functions : ndarray, shape (functions, species)
        Value of every site function on every species.
    constant : float
        Energy that no site changes, eV per supercell.
    pointer : ndarray, shape (terms + 1,), int64
        Term ``t`` owns entries ``pointer[t]:pointer[t + 1]`` of ``variables``.
    variables : ndarray, int64
        ``site * len(functions) + function``, ascending within a term, sites distinct.
    coefficients : ndarray, shape (terms,), float64
        eV.

    Examples
    --------
    A single bond between two spins:

    >>> t = ClusterTables.from_terms(2, [[-1.0, 1.0]], [(0.5, [(0, 0), (1, 0)])])
    >>> t.n_terms, t.coefficients
    (1, array([0.5]))
    """

    n_sites: int
    functions: np.ndarray
    constant: float
    pointer: np.ndarray
    variables: np.ndarray
    coefficients: np.ndarray

    @property
    def n_terms(self) -> int:
        """Number of terms."""
        return len(self.coefficients)

    @property
    def n_functions(self) -> int:
        """Number of site functions."""
        return len(self.functions)

    @classmethod
    def from_terms(
        cls,
        n_sites: int,
        functions,
        terms: Iterable[tuple[float, Iterable[tuple[int, int]]]],
        constant: float = 0.0,
    ) -> ClusterTables:
        """Collect terms ``(coefficient, [(site, function), ...])``.

        A site that occurs several times in a term (a cluster that wraps onto itself) gets the
        product of its functions, as a new function where needed. Constant functions fold into
        the coefficient, equal terms are added (exactly rounded sums), zero terms dropped.

        Raises
        ------
        ValueError
            If a coefficient or function value is not finite, or a site does not exist.
        """
        table = [np.asarray(f, dtype=float) for f in functions]
        if not all(np.isfinite(f).all() for f in table):
            raise ValueError("site functions must be finite")
        product_of: dict[tuple[int, ...], int] = {}
        merged: dict[tuple[int, ...], list[float]] = {}
        constants = [float(constant)]
        constant_value = [float(f[0]) if np.ptp(f) == 0 else None for f in table]
        for coefficient, entries in terms:
            coefficient = float(coefficient)
            if not math.isfinite(coefficient):
                raise ValueError(f"a cluster term has coefficient {coefficient}; it must be finite")
            by_site: dict[int, list[int]] = {}
            for site, function in entries:
                if not 0 <= site < n_sites:
                    raise ValueError(f"a cluster term names site {site}; there are {n_sites}")
                by_site.setdefault(int(site), []).append(int(function))
            key = []
            for site, fs in sorted(by_site.items()):
                if len(fs) > 1:
                    fs = tuple(sorted(fs))
                    if fs not in product_of:
                        value = np.prod([table[f] for f in fs], axis=0)
                        same = [k for k, f in enumerate(table) if np.array_equal(f, value)]
                        product_of[fs] = same[0] if same else len(table)
                        if not same:
                            table.append(value)
                            constant_value.append(float(value[0]) if np.ptp(value) == 0 else None)
                    f = product_of[fs]
                else:
                    f = fs[0]
                if constant_value[f] is not None:
                    coefficient *= constant_value[f]
                else:
                    key.append((site, f))
            if key:
                merged.setdefault(tuple(key), []).append(coefficient)
            else:
                constants.append(coefficient)
        sums = {key: math.fsum(values) for key, values in merged.items()}
        used = sorted({f for key in sums for _, f in key})
        new = {f: k for k, f in enumerate(used)}
        width = len(table[0]) if table else 1
        kept = np.array([table[f] for f in used]).reshape(len(used), width)
        n = len(used)
        items = sorted(
            (tuple(site * n + new[f] for site, f in key), c) for key, c in sums.items() if c != 0.0
        )
        lengths = np.array([len(k) for k, _ in items], dtype=np.int64)
        return cls(
            n_sites=int(n_sites),
            functions=kept,
            constant=math.fsum(constants),
            pointer=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            variables=np.array([v for k, _ in items for v in k], dtype=np.int64),
            coefficients=np.array([c for _, c in items], dtype=float),
        )

    def terms(self):
        """Iterate ``(coefficient, [(site, function), ...])``."""
        for t, c in enumerate(self.coefficients):
            entries = self.variables[self.pointer[t] : self.pointer[t + 1]]
            yield float(c), [divmod(int(v), self.n_functions) for v in entries]

    def interaction_shells(self, lattice: Lattice) -> list[tuple[int, int, float]]:
        """Pair shells, as :meth:`Lattice.pair_shells`, that contain every pair in a common term.

        All shells up to the longest interaction, so that sites in none of them are independent
        given the others, in this and in every larger supercell of the parent lattice.

        Examples
        --------
        >>> t = ClusterTables.from_terms(16, [[-1.0, 1.0]], [(0.5, [(0, 0), (1, 0)])])
        >>> t.interaction_shells(Lattice.square(4))
        [(0, 0, 1.0)]
        """
        self.check_lattice(lattice)
        sites = self.variables // max(self.n_functions, 1)
        linked = np.zeros((self.n_sites, self.n_sites), dtype=bool)
        for a, b in zip(self.pointer[:-1], self.pointer[1:], strict=True):
            linked[np.ix_(sites[a:b], sites[a:b])] = True
        np.fill_diagonal(linked, False)
        if not linked.any():
            return []
        n = 4
        while True:
            shells = lattice.pair_shells(n)
            reached = lattice.relation_matrices(shells) > 0
            if not (linked & ~reached.any(0)).any():
                break
            n *= 2
        # the shortest shells that together cover all linked pairs
        distances = sorted({k[2] for k in shells})
        for d in distances:
            kept = [i for i, k in enumerate(shells) if k[2] <= d]
            if not (linked & ~reached[kept].any(0)).any():
                return [shells[i] for i in kept]
        return shells

    def fold(self, site_to_cell: np.ndarray) -> ClusterTables:
        """Tables of the smaller periodic cell whose copies tile this supercell.

        Parameters
        ----------
        site_to_cell : ndarray, shape (sites,)
            Site of the small cell that every site is a copy of; all have equally many copies.

        Returns
        -------
        ClusterTables
            ``folded(x) == self(x[site_to_cell]) / copies`` for every ``x`` of the small cell.

        Raises
        ------
        ValueError
            If the sites do not have equally many copies.
        """
        site_to_cell = np.asarray(site_to_cell)
        counts = np.bincount(site_to_cell)
        if len(site_to_cell) != self.n_sites or len(set(counts.tolist())) != 1:
            raise ValueError("site_to_cell must give every site of the small cell as many copies")
        copies = int(counts[0])
        return ClusterTables.from_terms(
            len(counts),
            self.functions,
            ((c / copies, [(int(site_to_cell[s]), f) for s, f in e]) for c, e in self.terms()),
            self.constant / copies,
        )

    def check_lattice(self, lattice: Lattice) -> None:
        """Raise ValueError unless the tables fit a lattice."""
        width = self.functions.shape[1] if self.n_functions else lattice.n_species
        if lattice.n_sites != self.n_sites or width != lattice.n_species:
            raise ValueError(
                f"this energy is for {self.n_sites} active sites and {width} species, got "
                f"{lattice!r}; make a new energy from the host for that supercell"
            )

    @property
    def fingerprint(self) -> str:
        """Hash of all numbers, rounded to 12 digits."""
        h = hashlib.sha256()
        for part in (
            np.round(self.functions, 10) + 0.0,
            np.array([round(self.constant, 10) + 0.0]),
            self.pointer,
            self.variables,
            np.round(self.coefficients, 12) + 0.0,
        ):
            h.update(np.ascontiguousarray(part).tobytes())
        return h.hexdigest()[:16]
