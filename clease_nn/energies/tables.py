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
from scipy.sparse import csr_array

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
        n_f = len(functions)
        coefficients, flat, lengths = [], [], []
        for coefficient, entries in terms:
            before = len(flat)
            for site, function in entries:
                if not 0 <= site < n_sites:
                    raise ValueError(f"a cluster term names site {site}; there are {n_sites}")
                if not 0 <= function < n_f:
                    raise ValueError(f"a cluster term names function {function}; there are {n_f}")
                flat.append(int(site) * n_f + int(function))
            coefficients.append(float(coefficient))
            lengths.append(len(flat) - before)
        variables = np.full((len(lengths), max(lengths, default=0)), -1)
        variables[np.arange(variables.shape[1]) < np.array(lengths, int)[:, None]] = flat
        return cls.from_arrays(n_sites, functions, coefficients, variables, constant)

    @classmethod
    def from_arrays(
        cls, n_sites: int, functions, coefficients, variables, constant: float = 0.0
    ) -> ClusterTables:
        """The same from arrays, for expansions of many terms.

        Parameters
        ----------
        n_sites : int
        functions : array_like, shape (functions, species)
        coefficients : array_like, shape (terms,)
            eV.
        variables : array_like of int, shape (terms, most sites of a term)
            ``site * len(functions) + function``, in any order, filled up with -1.
        constant : float

        Raises
        ------
        ValueError
            As :meth:`from_terms`.

        Examples
        --------
        >>> a = ClusterTables.from_arrays(2, [[-1.0, 1.0]], [0.5, 0.1], [[1, 0], [1, -1]])
        >>> b = ClusterTables.from_terms(
        ...     2, [[-1.0, 1.0]], [(0.5, [(0, 0), (1, 0)]), (0.1, [(1, 0)])]
        ... )
        >>> a.fingerprint == b.fingerprint
        True
        """
        table = [np.asarray(f, dtype=float) for f in functions]
        if not all(np.isfinite(f).all() for f in table):
            raise ValueError("site functions must be finite")
        coefficients = np.array(coefficients, dtype=float)
        if not np.isfinite(coefficients).all():
            bad = coefficients[~np.isfinite(coefficients)][0]
            raise ValueError(f"a cluster term has coefficient {bad}; it must be finite")
        rows = np.array(variables, dtype=np.int64)
        if rows.size and rows.max() >= n_sites * len(table):
            site = rows.max() // max(len(table), 1)
            raise ValueError(f"a cluster term names site {site}; there are {n_sites}")
        absent = np.iinfo(np.int64).max
        rows = np.sort(np.where(rows < 0, absent, rows), axis=1)
        site, function = np.divmod(rows, max(len(table), 1))
        function[rows == absent] = -1
        _simplify(table, coefficients, site, function)
        keys = np.where(function < 0, -1, site * len(table) + function)
        return cls._merged(n_sites, table, keys, coefficients, constant)

    @classmethod
    def _merged(cls, n_sites, table, keys, coefficients, constant) -> ClusterTables:
        """Tables of terms ``keys`` (terms, width), ascending, then -1, equal ones added."""
        free = (keys < 0).all(1)
        constants = [float(constant), *coefficients[free].tolist()]
        keys, coefficients = keys[~free], coefficients[~free]
        if len(keys):
            order = np.lexsort(keys.T[::-1])
            keys, coefficients = keys[order], coefficients[order]
        first = np.ones(len(keys), dtype=bool)
        first[1:] = (keys[1:] != keys[:-1]).any(1)
        start = np.flatnonzero(first)
        stop = np.append(start[1:], len(keys))
        sums = coefficients[start]
        for t in np.flatnonzero(stop - start > 1):
            sums[t] = math.fsum(coefficients[start[t] : stop[t]])
        keys = keys[start]
        present = keys >= 0
        site, function = np.divmod(keys, max(len(table), 1))
        used = np.unique(function[present])
        site = site * len(used) + np.searchsorted(used, function)
        kept, present = sums != 0.0, present[sums != 0.0]
        width = len(table[0]) if table else 1
        return cls(
            n_sites=int(n_sites),
            functions=np.array([table[f] for f in used]).reshape(len(used), width),
            constant=math.fsum(constants),
            pointer=np.concatenate([[0], np.cumsum(present.sum(1))]).astype(np.int64),
            variables=site[kept][present],
            coefficients=sums[kept],
        )

    def terms(self):
        """Iterate ``(coefficient, [(site, function), ...])``."""
        for t, c in enumerate(self.coefficients):
            entries = self.variables[self.pointer[t] : self.pointer[t + 1]]
            yield float(c), [divmod(int(v), self.n_functions) for v in entries]

    def direct_energies(self, occupations: np.ndarray) -> np.ndarray:
        """(batch,) eV of occupations (batch, sites), term by term.

        For a few configurations; kernels are faster for many, but have to be laid out first.

        Examples
        --------
        >>> t = ClusterTables.from_terms(2, [[-1.0, 1.0]], [(0.5, [(0, 0), (1, 0)])])
        >>> t.direct_energies(np.array([[0, 1], [1, 1]]))
        array([-0.5,  0.5])
        """
        if not self.n_terms:
            return np.full(len(occupations), self.constant)
        site, function = np.divmod(self.variables, self.n_functions)
        products = (
            np.multiply.reduceat(self.functions[function, x[site]], self.pointer[:-1])
            for x in np.asarray(occupations)
        )
        return np.array([self.constant + self.coefficients @ p for p in products])

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
        size = np.diff(self.pointer)
        pairs = [np.empty((0, 2), dtype=np.int64)]
        for m in np.unique(size):
            of_term = sites[self.pointer[:-1][size == m][:, None] + np.arange(m)]
            two = np.stack(np.broadcast_arrays(of_term[:, :, None], of_term[:, None, :]), -1)
            pairs.append(np.unique(two.reshape(-1, 2), axis=0))
        pairs = np.unique(np.concatenate(pairs), axis=0)
        pairs = pairs[pairs[:, 0] != pairs[:, 1]]
        if not len(pairs):
            return []
        shape = (self.n_sites, self.n_sites)
        linked = csr_array((np.ones(len(pairs), dtype=np.int64), tuple(pairs.T)), shape=shape)

        def missed(shells) -> int:
            lists = lattice.relation_lists(shells).tocoo()
            place = (lists.row % self.n_sites, lists.col)
            reached = csr_array((np.ones(lists.nnz, dtype=np.int64), place), shape=shape)
            return len(pairs) - linked.multiply(reached > 0).nnz

        n = 4
        while missed(shells := lattice.pair_shells(n)):
            n *= 2
        # the shortest shells that together cover all linked pairs
        distances = sorted({k[2] for k in shells})
        for d in distances:
            kept = [k for k in shells if k[2] <= d]
            if not missed(kept):
                return kept
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
        size = np.diff(self.pointer)
        present = np.arange(size.max(initial=0)) < size[:, None]
        rows = np.full(present.shape, -1, dtype=np.int64)
        site, function = np.divmod(self.variables, max(self.n_functions, 1))
        rows[present] = site_to_cell[site] * self.n_functions + function
        return ClusterTables.from_arrays(
            len(counts), self.functions, self.coefficients / copies, rows, self.constant / copies
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


def _simplify(table: list[np.ndarray], coefficients, site, function) -> None:
    """Fold constant functions and products of functions of one site, in place.

    ``site`` and ``function`` (terms, width) are sorted; absent entries have function -1. Products
    become new functions in ``table``; a constant multiplies the coefficient.
    """
    constant_value = [float(f[0]) if np.ptp(f) == 0 else None for f in table]
    is_constant = np.array([*(v is not None for v in constant_value), False])
    twice = (site[:, 1:] == site[:, :-1]) & (function[:, 1:] >= 0)
    odd = np.flatnonzero(twice.any(1) | is_constant[function].any(1))
    product_of: dict[tuple[int, ...], int] = {}
    entries = zip(odd.tolist(), site[odd].tolist(), function[odd].tolist(), strict=True)
    for t, sites, functions in entries:
        by_site: dict[int, list[int]] = {}
        for s, f in zip(sites, functions, strict=True):
            if f >= 0:
                by_site.setdefault(s, []).append(f)
        column = 0
        function[t] = -1
        for s, fs in by_site.items():
            f, key = fs[0], tuple(fs)
            if len(fs) > 1:
                if key not in product_of:
                    value = np.prod([table[k] for k in fs], axis=0)
                    same = [k for k, g in enumerate(table) if np.array_equal(g, value)]
                    product_of[key] = same[0] if same else len(table)
                    if not same:
                        table.append(value)
                        constant_value.append(float(value[0]) if np.ptp(value) == 0 else None)
                f = product_of[key]
            if constant_value[f] is not None:
                coefficients[t] *= constant_value[f]
            else:
                site[t, column], function[t, column] = s, f
                column += 1
