"""Compiled kernels for polynomials in site functions (the inner loops of cluster expansions).

The terms of a :class:`~clease_nn.energies.tables.ClusterTables` form a prefix trie: terms that
begin with the same variables share their running product. The kernels walk the trie once for 64
configurations side by side, so that every operation is one vector operation on ``v[variable]``,
the values of one site function on one site. Energies need the products going down only; one
reverse sweep going up gives the derivative with respect to *every* variable. As each site occurs
at most once in a term, that derivative yields every single-site change exactly.
"""

from __future__ import annotations

import heapq
from typing import NamedTuple

import numpy as np

from clease_nn.compiled import njit
from clease_nn.energies import vectors
from clease_nn.energies.tables import ClusterTables

__all__ = ["Program", "build_program", "energies", "fields", "flips"]

_LANES = np.uint64(vectors.LANES)
_ONE = np.uint64(1)
_TOP = np.uint64(0)
_NO_MEANS = np.empty((0, 0, 0))


class Program(NamedTuple):
    """A trie in preorder, flat.

    An interior node is a proper prefix of some term. Its *entries* are the terms that are one
    variable longer. ``V`` variables are those that occur in some term, sorted by site.

    Attributes
    ----------
    depth, node : ndarray, shape (nodes,), uint64
        Number of variables of the prefix and its last variable (0 for the root).
    start : ndarray, shape (nodes + 1,), uint64
        Node ``i`` owns entries ``start[i]:start[i + 1]``.
    entry : ndarray, uint64
        Last variable of each term.
    coefficient : ndarray, float64
        Its coefficient, eV.
    values : ndarray, shape (V, species + 1), float64
        Value of every variable on every species; last column its mean over allowed species.
    site : ndarray, shape (V,), uint64
        Site of every variable.
    first : ndarray, shape (sites + 1,), uint64
        Site ``s`` owns variables ``first[s]:first[s + 1]``.
    forbidden : ndarray, shape (sites, species + 1), uint8
        1 where a species is not allowed; last column 0.
    constant : float
        eV.
    """

    depth: np.ndarray
    node: np.ndarray
    start: np.ndarray
    entry: np.ndarray
    coefficient: np.ndarray
    values: np.ndarray
    site: np.ndarray
    first: np.ndarray
    forbidden: np.ndarray
    constant: float


def build_program(tables: ClusterTables, allowed: np.ndarray) -> Program:
    """Lay out tables for the kernels.

    Parameters
    ----------
    tables : ClusterTables
    allowed : ndarray of bool, shape (sites, species)
        Species allowed on every site; sets the means that stand for unknown sites.
    """
    used = np.unique(tables.variables)
    compact = np.searchsorted(used, tables.variables)
    site, function = np.divmod(used, max(tables.n_functions, 1))
    n_sites, n_species = allowed.shape
    values = np.empty((len(used), n_species + 1))
    if len(used):
        values[:, :-1] = tables.functions[function]
        ok = allowed[site]
        values[:, -1] = np.where(ok, values[:, :-1], 0.0).sum(1) / ok.sum(1)
    bounds = zip(tables.pointer[:-1], tables.pointer[1:], strict=True)
    terms = [tuple(compact[a:b].tolist()) for a, b in bounds]
    nodes: list[_Node] = []
    _grow((), list(zip(terms, tables.coefficients.tolist(), strict=True)), nodes)
    u64 = np.uint64
    return Program(
        depth=np.array([len(prefix) for prefix, _ in nodes], dtype=u64),
        node=np.array([prefix[-1] if prefix else 0 for prefix, _ in nodes], dtype=u64),
        start=np.concatenate([[0], np.cumsum([len(e) for _, e in nodes])]).astype(u64),
        entry=np.array([v for _, e in nodes for v, _ in e], dtype=u64),
        coefficient=np.array([c for _, e in nodes for _, c in e], dtype=float),
        values=values,
        site=site.astype(u64),
        first=np.searchsorted(site, np.arange(n_sites + 1)).astype(u64),
        forbidden=np.concatenate([~allowed, np.zeros((n_sites, 1), bool)], 1).astype(np.uint8),
        constant=tables.constant,
    )


_Term = tuple[tuple[int, ...], float]
_Node = tuple[tuple[int, ...], list[tuple[int, float]]]


def _grow(prefix: tuple[int, ...], terms: list[_Term], nodes: list[_Node]) -> None:
    """Append the node ``prefix`` and everything below it, in preorder.

    ``terms`` are what follows the prefix. The variable that most of them share becomes the next
    branch, then the one that most of the rest share, and so on (a greedy multivariate Horner
    scheme): fewer nodes than in the order of the sites (a sixth on fcc Cu-Au).
    """
    nodes.append((prefix, [(key[0], c) for key, c in terms if len(key) == 1]))
    rest = {t: key for t, (key, _) in enumerate(terms) if len(key) > 1}
    users: dict[int, set[int]] = {}
    for t, key in rest.items():
        for variable in key:
            users.setdefault(variable, set()).add(t)
    heap = [(-len(u), variable) for variable, u in users.items()]
    heapq.heapify(heap)
    while rest:
        count, variable = heapq.heappop(heap)
        left = len(users[variable])
        if left != -count:  # out of date: some users went into an earlier branch
            if left:
                heapq.heappush(heap, (-left, variable))
            continue
        branch = []
        for t in sorted(users[variable]):
            key = rest.pop(t)
            for other in key:
                users[other].discard(t)
            branch.append((tuple(v for v in key if v != variable), terms[t][1]))
        _grow((*prefix, variable), branch, nodes)


@njit
def _load(occupations, begin, count, program, species, v):
    """Transpose one block into ``species`` (sites, 64) and ``v`` (V, 64).

    Unknown sites become species index K (the mean). Returns the numbers of impossible and of
    unknown sites.
    """
    n_sites = np.uint64(program.forbidden.shape[0])
    width = np.uint64(program.forbidden.shape[1])
    forbidden = program.forbidden.ravel()
    values = program.values.ravel()
    mean = np.int64(width) - 1
    impossible = np.uint64(0)
    unknown = np.uint64(0)
    for b in range(_LANES):
        row = occupations[begin + min(b, count - _ONE)]
        for s in range(n_sites):
            a = np.int64(row[s])
            if a == -1:
                a = mean
                unknown += _ONE
            elif a < 0 or a >= mean:
                a = 0
                impossible += _ONE
            impossible += np.uint64(forbidden[s * width + np.uint64(a)])
            species[s * _LANES + b] = np.uint8(a)
    for k in range(np.uint64(len(program.site))):
        base = program.site[k] * _LANES
        for b in range(_LANES):
            v[k * _LANES + b] = values[k * width + np.uint64(species[base + b])]
    return impossible, unknown


@njit
def energies(occupations, program, out):
    """Energies into ``out`` (batch,); False if a site is unknown or impossible."""
    batch = np.uint64(len(occupations))
    n_nodes = np.uint64(len(program.depth))
    species = np.empty(np.uint64(program.forbidden.shape[0]) * _LANES, dtype=np.uint8)
    v = np.empty(np.uint64(len(program.site)) * _LANES)
    running = np.ones((program.depth.max() + _ONE) * _LANES)
    total = np.empty(_LANES)
    energy = np.empty(_LANES)
    begin = np.uint64(0)
    while begin < batch:
        count = min(_LANES, batch - begin)
        impossible, unknown = _load(occupations, begin, count, program, species, v)
        if impossible or unknown:
            return False
        energy[:] = program.constant
        for i in range(n_nodes):
            d = program.depth[i] * _LANES
            if d:
                vectors.product(running, d, running, d - _LANES, v, program.node[i] * _LANES)
            vectors.weighted_sum(
                program.start[i],
                program.start[i + _ONE],
                program.entry,
                program.coefficient,
                v,
                total,
                _TOP,
            )
            vectors.add_product(energy, _TOP, running, d, total, _TOP)
        for b in range(count):
            out[begin + b] = energy[b]
        begin += _LANES
    return True


@njit
def _close(k, prefix, running, adjoint, v, gradient):
    """Finish the open node at depth ``k``: hand its adjoint to its variable and its parent."""
    x = prefix[k] * _LANES
    d = k * _LANES
    vectors.add_product(gradient, x, running, d - _LANES, adjoint, d)
    vectors.add_product(adjoint, d - _LANES, v, x, adjoint, d)


@njit
def _differentiate(program, running, adjoint, prefix, v, gradient):
    """Derivative of the energy with respect to every variable, (V, 64).

    Going down the trie the running products are formed and the entries served; coming back up,
    a node's adjoint (the derivative with respect to its product) is complete.
    """
    gradient[:] = 0.0
    opened = np.uint64(0)  # depth of the deepest open node
    for i in range(np.uint64(len(program.depth))):
        level = program.depth[i]
        d = level * _LANES
        if level:
            while opened >= level:
                _close(opened, prefix, running, adjoint, v, gradient)
                opened -= _ONE
            prefix[level] = program.node[i]
            vectors.product(running, d, running, d - _LANES, v, program.node[i] * _LANES)
        opened = level
        vectors.weighted_sum_and_spread(
            program.start[i],
            program.start[i + _ONE],
            program.entry,
            program.coefficient,
            v,
            adjoint,
            d,
            gradient,
            running,
            d,
        )
    while opened >= _ONE:
        _close(opened, prefix, running, adjoint, v, gradient)
        opened -= _ONE


@njit
def _site_energies(s, program, gradient, local):
    """``local[a, b]``: energy of species ``a`` on site ``s`` from the terms with that site."""
    width = np.uint64(program.forbidden.shape[1])
    values = program.values.ravel()
    for a in range(width - _ONE):
        for b in range(_LANES):
            local[a * _LANES + b] = 0.0
        for k in range(program.first[s], program.first[s + _ONE]):
            f = values[k * width + a]
            for b in range(_LANES):
                local[a * _LANES + b] += f * gradient[k * _LANES + b]


@njit
def _average(means, begin, count, program, species, v):
    """Variables of unknown sites in ``v`` become their averages over ``means``."""
    width = np.uint64(program.forbidden.shape[1])
    values = program.values.ravel()
    unknown = np.uint8(width - _ONE)
    for k in range(np.uint64(len(program.site))):
        s = program.site[k]
        for b in range(_LANES):
            if species[s * _LANES + b] == unknown:
                row = begin + min(b, count - _ONE)
                average = 0.0
                for a in range(width - _ONE):
                    average += means[row, s, a] * values[k * width + a]
                v[k * _LANES + b] = average


@njit
def _sweep(occupations, means, program, out, relative):
    """Site energies of all blocks; ``relative`` to the present species, or as they are."""
    batch = np.uint64(len(occupations))
    n_sites = np.uint64(program.forbidden.shape[0])
    n_species = np.uint64(program.forbidden.shape[1] - 1)
    species = np.empty(n_sites * _LANES, dtype=np.uint8)
    v = np.empty(np.uint64(len(program.site)) * _LANES)
    gradient = np.empty(np.uint64(len(program.site)) * _LANES)
    running = np.ones((program.depth.max() + _ONE) * _LANES)
    adjoint = np.empty((program.depth.max() + _ONE) * _LANES)
    prefix = np.zeros(program.depth.max() + _ONE, dtype=np.uint64)
    local = np.empty(n_species * _LANES)
    begin = np.uint64(0)
    while begin < batch:
        count = min(_LANES, batch - begin)
        impossible, unknown = _load(occupations, begin, count, program, species, v)
        if impossible or (relative and unknown):
            return False
        if unknown and len(means):
            _average(means, begin, count, program, species, v)
        _differentiate(program, running, adjoint, prefix, v, gradient)
        for s in range(n_sites):
            _site_energies(s, program, gradient, local)
            for b in range(count):
                now = 0.0
                if relative:
                    now = local[np.uint64(species[s * _LANES + b]) * _LANES + b]
                for a in range(n_species):
                    if program.forbidden[s, a]:
                        out[begin + b, s, a] = np.inf if relative else 0.0
                    else:
                        out[begin + b, s, a] = local[a * _LANES + b] - now
        begin += _LANES
    return True


def flips(occupations, program, out):
    """Energies of all single-site changes into ``out`` (batch, sites, species).

    Zero for the present species, +inf for species not allowed. False if a site is unknown or
    impossible.
    """
    return _sweep(occupations, _NO_MEANS, program, out, True)


def fields(occupations, program, out, means=None):
    """Conditional energies of partial configurations into ``out`` (batch, sites, species).

    Variables of unknown sites take their mean over the allowed species, or over ``means``
    (batch, sites, species), float64; species not allowed read zero. False if a site is
    impossible.
    """
    return _sweep(occupations, _NO_MEANS if means is None else means, program, out, False)
