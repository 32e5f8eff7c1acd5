"""Straight-line programs for the polynomials of a cluster expansion.

A polynomial ``sum_t c_t prod_j v_j`` is written in nested (Horner) form along a prefix trie:
``x * (c + y * (...) + ...)``. The kernels run such a program for 64 chains side by side.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np

from clease_nn.energies.tables import ClusterTables
from clease_nn.lattice import Lattice

__all__ = ["BLOCK", "SitePrograms", "compile_tables"]

BLOCK = 64
"""Chains that are evaluated side by side."""

PUSH, LEAVES, POP, BRANCH = 0, 1, 2, 3


class _Writer:
    """Collects the operations of many polynomials in flat arrays.

    Operations: ``PUSH`` opens an accumulator with a constant, ``LEAVES`` adds ``sum c v``, ``POP``
    closes an accumulator times a variable, ``BRANCH`` adds ``v0 * (c0 + sum c v)`` at once.
    """

    def __init__(self):
        self.kind: list[int] = []
        self.first: list[int] = []
        self.count: list[int] = []
        self.variable: list[int] = []
        self.coefficient: list[float] = []
        self.depth = 1

    def _emit(self, kind: int, entries: list[tuple[int, float]]) -> None:
        self.kind.append(kind)
        self.first.append(len(self.variable))
        self.count.append(len(entries))
        for variable, coefficient in entries:
            self.variable.append(variable)
            self.coefficient.append(coefficient)

    def polynomial(self, terms: list[tuple[float, tuple[int, ...]]]) -> float:
        """Write one polynomial; returns its constant, which is not written."""
        count = Counter(v for _, term in terms for v in term)
        trie: dict = {}
        for c, term in terms:
            node = trie
            for v in sorted(term, key=lambda v: (-count[v], v)):
                node = node.setdefault(v, {})
            node[None] = node.get(None, 0.0) + c
        self._children(trie, 1)
        return trie.get(None, 0.0)

    def _children(self, node: dict, depth: int) -> None:
        self.depth = max(self.depth, depth)
        leaves = []
        for v, child in node.items():
            if v is None:
                continue
            below = [k for k in child if k is not None]
            if not below:
                leaves.append((v, child[None]))
            elif len(below) <= 4 and all(list(child[k]) == [None] for k in below):
                self._emit(
                    BRANCH, [(v, child.get(None, 0.0))] + [(k, child[k][None]) for k in below]
                )
            else:
                self._emit(PUSH, [(0, child.get(None, 0.0))])
                self._children(child, depth + 1)
                self._emit(POP, [(v, 0.0)])
        while leaves:
            n = 4 if len(leaves) >= 4 else 2 if len(leaves) >= 2 else 1
            self._emit(LEAVES, leaves[:n])
            leaves = leaves[n:]


@dataclass(frozen=True, eq=False)
class SitePrograms:
    """Compiled local energies of every site, and the energy of the whole cell.

    Attributes
    ----------
    site_pointer : ndarray, shape (sites + 1,), uint64
        Site ``i`` has the groups ``site_pointer[i]:site_pointer[i + 1]``, one a site function.
    group_function : ndarray, shape (groups,), uint64
        Function of the site that a group multiplies.
    group_constant : ndarray, shape (groups,), float64, eV
    group_pointer : ndarray, shape (groups + 2,), uint64
        Operations of every group; the last group is the energy of the whole cell.
    kind, first, count, offset, coefficient : ndarray
        Operations and their entries; ``offset`` is ``variable * BLOCK``.
    functions : ndarray, shape (functions, species), float64
    constant : float, eV per supercell
    choice_pointer, choices : ndarray, uint64
        Species allowed on every site.
    depth : int
        Accumulators needed.
    """

    site_pointer: np.ndarray
    group_function: np.ndarray
    group_constant: np.ndarray
    group_pointer: np.ndarray
    kind: np.ndarray
    first: np.ndarray
    count: np.ndarray
    offset: np.ndarray
    coefficient: np.ndarray
    functions: np.ndarray
    constant: float
    choice_pointer: np.ndarray
    choices: np.ndarray
    depth: int

    @property
    def n_sites(self) -> int:
        """Number of active sites."""
        return len(self.site_pointer) - 1

    @property
    def program(self) -> tuple:
        """The arrays the kernels take, in their order."""
        return (
            self.group_pointer,
            self.kind,
            self.first,
            self.count,
            self.offset,
            self.coefficient,
        )


_COMPILED: WeakKeyDictionary = WeakKeyDictionary()


def compile_tables(tables: ClusterTables, lattice: Lattice) -> SitePrograms:
    """Local energies of every site as programs; kept as long as the tables live.

    Raises
    ------
    ValueError
        If the tables do not fit the lattice.
    """
    tables.check_lattice(lattice)
    cache = _COMPILED.setdefault(tables, {})
    key = lattice.allowed.tobytes()
    if key in cache:
        return cache[key]
    n, nf = tables.n_sites, tables.n_functions
    local: list[dict[int, list]] = [{} for _ in range(n)]
    whole = []
    for t, c in enumerate(tables.coefficients.tolist()):
        term = tuple(tables.variables[tables.pointer[t] : tables.pointer[t + 1]].tolist())
        whole.append((c, term))
        for v in term:
            site, function = divmod(v, nf)
            rest = tuple(w for w in term if w != v)
            local[site].setdefault(function, []).append((c, rest))
    writer = _Writer()
    site_pointer, group_function, group_constant, group_pointer = [0], [], [], [0]
    for groups in local:
        for function in sorted(groups):
            group_constant.append(writer.polynomial(groups[function]))
            group_function.append(function)
            group_pointer.append(len(writer.kind))
        site_pointer.append(len(group_function))
    writer.polynomial(whole)
    group_pointer.append(len(writer.kind))

    def integers(values):
        return np.array(values, dtype=np.uint64)

    functions = tables.functions if nf else np.zeros((0, lattice.n_species))
    cache[key] = SitePrograms(
        site_pointer=integers(site_pointer),
        group_function=integers(group_function),
        group_constant=np.array(group_constant, dtype=float),
        group_pointer=integers(group_pointer),
        kind=integers(writer.kind),
        first=integers(writer.first),
        count=integers(writer.count),
        offset=integers(writer.variable) * np.uint64(BLOCK),
        coefficient=np.array(writer.coefficient, dtype=float),
        functions=np.ascontiguousarray(functions, dtype=float),
        constant=float(tables.constant),
        choice_pointer=integers(np.concatenate([[0], np.cumsum(lattice.allowed.sum(1))])),
        choices=integers(np.nonzero(lattice.allowed)[1]),
        depth=writer.depth + 1,
    )
    return cache[key]
