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
from clease_nn.montecarlo.vectors import LANES as BLOCK

__all__ = ["BLOCK", "SitePrograms", "compile_tables"]


OPEN, CLOSE, BRANCH = 0, 1, 2


class _Writer:
    """Collects the operations of many polynomials in flat arrays.

    ``OPEN`` starts a level with ``constant + sum c v`` over its entries, ``CLOSE`` adds a level
    times a variable to the one above, ``BRANCH`` is both at once.
    """

    def __init__(self):
        self.kind: list[int] = []
        self.factor: list[int] = []
        self.constant: list[float] = []
        self.start: list[int] = [0]
        self.variable: list[int] = []
        self.coefficient: list[float] = []
        self.depth = 1

    def _emit(self, kind: int, factor: int, constant: float, leaves: dict[int, float]) -> None:
        self.kind.append(kind)
        self.factor.append(factor)
        self.constant.append(constant)
        self.variable += leaves.keys()
        self.coefficient += leaves.values()
        self.start.append(len(self.variable))

    def polynomial(self, terms: list[tuple[float, tuple[int, ...]]], constant: float = 0.0):
        """Write one polynomial."""
        count = Counter(v for _, term in terms for v in term)
        trie: dict = {None: constant}
        for c, term in terms:
            node = trie
            for v in sorted(term, key=lambda v: (-count[v], v)):
                node = node.setdefault(v, {})
            node[None] = node.get(None, 0.0) + c
        self._node(trie, 0, 1)

    def _node(self, node: dict, factor: int, depth: int) -> None:
        self.depth = max(self.depth, depth)
        children = {v: child for v, child in node.items() if v is not None}
        leaves = {v: child[None] for v, child in children.items() if list(child) == [None]}
        whole = depth > 1 and len(leaves) == len(children)
        self._emit(BRANCH if whole else OPEN, factor, node.get(None, 0.0), leaves)
        if whole:
            return
        for v, child in children.items():
            if v not in leaves:
                self._node(child, v, depth + 1)
        if depth > 1:
            self._emit(CLOSE, factor, 0.0, {})


@dataclass(frozen=True, eq=False)
class SitePrograms:
    """Compiled local energies of every site, and the energy of the whole cell.

    Attributes
    ----------
    site_pointer : ndarray, shape (sites + 1,), uint64
        Site ``i`` has the groups ``site_pointer[i]:site_pointer[i + 1]``, one a site function.
    group_function : ndarray, shape (groups,), uint64
        Function of the site that a group multiplies.
    group_pointer : ndarray, shape (groups + 2,), uint64
        Operations of every group; the last group is the energy of the whole cell.
    kind, factor, constants, start, offset, coefficient : ndarray
        Operation ``k`` has the entries ``start[k]:start[k + 1]`` of ``offset`` (``variable *
        BLOCK``, like ``factor``) and ``coefficient`` (eV).
    functions : ndarray, shape (functions, species), float64
    choice_pointer, choices : ndarray, uint64
        Species allowed on every site.
    depth : int
        Accumulators needed.
    """

    site_pointer: np.ndarray
    group_function: np.ndarray
    group_pointer: np.ndarray
    kind: np.ndarray
    factor: np.ndarray
    constants: np.ndarray
    start: np.ndarray
    offset: np.ndarray
    coefficient: np.ndarray
    functions: np.ndarray
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
            self.factor,
            self.constants,
            self.start,
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
    site_pointer, group_function, group_pointer = [0], [], [0]
    for groups in local:
        for function in sorted(groups):
            writer.polynomial(groups[function])
            group_function.append(function)
            group_pointer.append(len(writer.kind))
        site_pointer.append(len(group_function))
    writer.polynomial(whole, float(tables.constant))
    group_pointer.append(len(writer.kind))

    def integers(values):
        return np.array(values, dtype=np.uint64)

    functions = tables.functions if nf else np.zeros((0, lattice.n_species))
    cache[key] = SitePrograms(
        site_pointer=integers(site_pointer),
        group_function=integers(group_function),
        group_pointer=integers(group_pointer),
        kind=integers(writer.kind),
        factor=integers(writer.factor) * np.uint64(BLOCK),
        constants=np.array(writer.constant, dtype=float),
        start=integers(writer.start),
        offset=integers(writer.variable) * np.uint64(BLOCK),
        coefficient=np.array(writer.coefficient, dtype=float),
        functions=np.ascontiguousarray(functions, dtype=float),
        choice_pointer=integers(np.concatenate([[0], np.cumsum(lattice.allowed.sum(1))])),
        choices=integers(np.nonzero(lattice.allowed)[1]),
        depth=writer.depth + 1,
    )
    return cache[key]
