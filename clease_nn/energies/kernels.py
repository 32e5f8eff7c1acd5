"""Compiled kernels for polynomials in site functions (the inner loops of cluster expansions).

The terms of a :class:`~clease_nn.energies.tables.ClusterTables` form a prefix trie: terms that
begin with the same variables share their running product. The kernels walk the trie once for 64
configurations side by side, so that every operation is one vector operation on ``v[variable]``,
the values of one site function on one site. Energies need the products going down only; one
reverse sweep going up gives the derivative with respect to *every* variable. As each site occurs
at most once in a term, that derivative yields every single-site change exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numba import njit

from clease_nn.energies.tables import ClusterTables

__all__ = ["LANES", "Program", "build_program", "compiled", "energies", "fields", "flips"]

LANES = 64
"""Configurations evaluated side by side."""


def compiled(function: Callable) -> Callable:
    """``numba.njit`` with the machine code kept on disk where some cache folder is writable."""
    options = {"fastmath": {"contract", "nsz"}, "nogil": True, "error_model": "numpy"}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # a read-only install without a writable user cache
        return njit(**options)(function)


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

    @property
    def max_depth(self) -> int:
        """Longest prefix."""
        return int(self.depth.max())


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
    terms = sorted(
        (tuple(compact[a:b].tolist()), c)
        for a, b, c in zip(
            tables.pointer[:-1], tables.pointer[1:], tables.coefficients.tolist(), strict=True
        )
    )
    entries: dict[tuple[int, ...], list[tuple[int, float]]] = {(): []}
    for key, coefficient in terms:
        for k in range(1, len(key)):
            entries.setdefault(key[:k], [])
        entries[key[:-1]].append((key[-1], coefficient))
    prefixes = sorted(entries)  # lexicographic order is preorder
    u64 = np.uint64
    return Program(
        depth=np.array([len(p) for p in prefixes], dtype=u64),
        node=np.array([p[-1] if p else 0 for p in prefixes], dtype=u64),
        start=np.concatenate([[0], np.cumsum([len(entries[p]) for p in prefixes])]).astype(u64),
        entry=np.array([v for p in prefixes for v, _ in entries[p]], dtype=u64),
        coefficient=np.array([c for p in prefixes for _, c in entries[p]], dtype=float),
        values=values,
        site=site.astype(u64),
        first=np.searchsorted(site, np.arange(n_sites + 1)).astype(u64),
        forbidden=np.concatenate([~allowed, np.zeros((n_sites, 1), bool)], 1).astype(np.uint8),
        constant=tables.constant,
    )


@compiled
def _load(occupations, begin, count, forbidden, site, values, species, v):
    """Transpose one block into ``species`` (sites, 64) and fill ``v`` (V, 64); count bad sites.

    Unknown sites become species index K (the mean); impossible ones are counted and become 0.
    """
    n_sites = np.uint64(forbidden.shape[0])
    width = np.uint64(forbidden.shape[1])
    lanes = np.uint64(64)
    bad = np.uint64(0)
    flat_forbidden = forbidden.ravel()
    flat_values = values.ravel()
    for b in range(lanes):
        row = occupations[begin + min(b, count - np.uint64(1))]
        for s in range(n_sites):
            a = np.int64(row[s])
            if a == -1:
                a = np.int64(width) - 1
            elif a < 0 or a >= np.int64(width) - 1:
                bad += np.uint64(1)
                a = 0
            bad += np.uint64(flat_forbidden[s * width + np.uint64(a)])
            species[s * lanes + b] = np.uint8(a)
    for k in range(np.uint64(len(site))):
        base = site[k] * lanes
        for b in range(lanes):
            v[k * lanes + b] = flat_values[k * width + np.uint64(species[base + b])]
    return bad


@compiled
def _entry_sums(start, stop, entry, coefficient, v, total):
    """``total[b] = sum of coefficient * v[entry, b]`` over one node's entries."""
    lanes = np.uint64(64)
    one = np.uint64(1)
    for b in range(lanes):
        total[b] = 0.0
    e = start
    while e + np.uint64(8) <= stop:
        c0, c1, c2, c3 = coefficient[e], coefficient[e + 1], coefficient[e + 2], coefficient[e + 3]
        c4, c5 = coefficient[e + 4], coefficient[e + 5]
        c6, c7 = coefficient[e + 6], coefficient[e + 7]
        i0, i1 = entry[e] * lanes, entry[e + one] * lanes
        i2, i3 = entry[e + np.uint64(2)] * lanes, entry[e + np.uint64(3)] * lanes
        i4, i5 = entry[e + np.uint64(4)] * lanes, entry[e + np.uint64(5)] * lanes
        i6, i7 = entry[e + np.uint64(6)] * lanes, entry[e + np.uint64(7)] * lanes
        for b in range(lanes):
            low = c0 * v[i0 + b] + c1 * v[i1 + b] + c2 * v[i2 + b] + c3 * v[i3 + b]
            high = c4 * v[i4 + b] + c5 * v[i5 + b] + c6 * v[i6 + b] + c7 * v[i7 + b]
            total[b] += low + high
        e += np.uint64(8)
    while e + np.uint64(2) <= stop:
        c0, c1 = coefficient[e], coefficient[e + one]
        i0, i1 = entry[e] * lanes, entry[e + one] * lanes
        for b in range(lanes):
            total[b] += c0 * v[i0 + b] + c1 * v[i1 + b]
        e += np.uint64(2)
    if e < stop:
        c0 = coefficient[e]
        i0 = entry[e] * lanes
        for b in range(lanes):
            total[b] += c0 * v[i0 + b]


@compiled
def energies(occupations, program, max_depth, out):
    """Energies into ``out`` (batch,); returns the number of impossible or unknown sites."""
    depth, node, start, entry, coefficient, values, site, first, forbidden, constant = program
    lanes = np.uint64(64)
    one = np.uint64(1)
    batch = np.uint64(len(occupations))
    n_sites = np.uint64(forbidden.shape[0])
    unknown = np.uint8(forbidden.shape[1] - 1)
    species = np.empty(n_sites * lanes, dtype=np.uint8)
    v = np.empty(np.uint64(len(site)) * lanes)
    product = np.ones(np.uint64(max_depth + 1) * lanes)
    total = np.empty(64)
    energy = np.empty(64)
    bad = np.uint64(0)
    begin = np.uint64(0)
    while begin < batch:
        count = min(lanes, batch - begin)
        bad += _load(occupations, begin, count, forbidden, site, values, species, v)
        for k in range(n_sites * lanes):
            bad += np.uint64(species[k] == unknown)
        for b in range(lanes):
            energy[b] = constant
        for i in range(np.uint64(len(depth))):
            d = depth[i] * lanes
            if d:
                x = node[i] * lanes
                for b in range(lanes):
                    product[d + b] = product[d - lanes + b] * v[x + b]
            _entry_sums(start[i], start[i + one], entry, coefficient, v, total)
            for b in range(lanes):
                energy[b] += product[d + b] * total[b]
        for b in range(count):
            out[begin + b] = energy[b]
        begin += lanes
    return bad


@compiled
def _close(k, prefix, product, adjoint, v, gradient):
    """Finish the open node at depth ``k``: hand its adjoint to its variable and its parent."""
    lanes = np.uint64(64)
    x = prefix[k] * lanes
    d = k * lanes
    for b in range(lanes):
        gradient[x + b] += product[d - lanes + b] * adjoint[d + b]
    for b in range(lanes):
        adjoint[d - lanes + b] += v[x + b] * adjoint[d + b]


@compiled
def _gradient(program, product, adjoint, prefix, total, v, gradient):
    """Derivative of the energy with respect to every variable, (V, 64)."""
    depth, node, start, entry, coefficient, values, site, first, forbidden, constant = program
    lanes = np.uint64(64)
    one = np.uint64(1)
    gradient[:] = 0.0
    opened = np.uint64(0)  # deepest open node
    for i in range(np.uint64(len(depth))):
        level = depth[i]
        if level:
            while opened >= level:
                _close(opened, prefix, product, adjoint, v, gradient)
                opened -= one
            x = node[i] * lanes
            d = level * lanes
            prefix[level] = node[i]
            for b in range(lanes):
                product[d + b] = product[d - lanes + b] * v[x + b]
        d = level * lanes
        opened = level
        _entry_sums(start[i], start[i + one], entry, coefficient, v, total)
        for b in range(lanes):
            adjoint[d + b] = total[b]
        for e in range(start[i], start[i + one]):
            c = coefficient[e]
            y = entry[e] * lanes
            for b in range(lanes):
                gradient[y + b] += c * product[d + b]
    while opened >= one:
        _close(opened, prefix, product, adjoint, v, gradient)
        opened -= one


@compiled
def _site_energies(s, first, width, values, gradient, local):
    """``local[a, b]``: energy of species ``a`` on site ``s`` from the terms with that site."""
    lanes = np.uint64(64)
    one = np.uint64(1)
    flat_values = values.ravel()
    for a in range(width - one):
        for b in range(lanes):
            local[a * lanes + b] = 0.0
        for k in range(first[s], first[s + one]):
            f = flat_values[k * width + a]
            for b in range(lanes):
                local[a * lanes + b] += f * gradient[k * lanes + b]


@compiled
def flips(occupations, program, max_depth, out):
    """Energy changes of all single-site changes into ``out`` (batch, sites, species).

    Zero for the present species, +inf for species that are not allowed. Returns the number of
    impossible or unknown sites.
    """
    depth, node, start, entry, coefficient, values, site, first, forbidden, constant = program
    lanes = np.uint64(64)
    batch = np.uint64(len(occupations))
    n_sites = np.uint64(forbidden.shape[0])
    width = np.uint64(forbidden.shape[1])
    one = np.uint64(1)
    species = np.empty(n_sites * lanes, dtype=np.uint8)
    v = np.empty(np.uint64(len(site)) * lanes)
    gradient = np.empty(np.uint64(len(site)) * lanes)
    product = np.ones(np.uint64(max_depth + 1) * lanes)
    adjoint = np.empty(np.uint64(max_depth + 1) * lanes)
    prefix = np.zeros(max_depth + 1, dtype=np.uint64)
    total = np.empty(64)
    local = np.empty(width * lanes)
    bad = np.uint64(0)
    begin = np.uint64(0)
    while begin < batch:
        count = min(lanes, batch - begin)
        bad += _load(occupations, begin, count, forbidden, site, values, species, v)
        for k in range(n_sites * lanes):
            bad += np.uint64(species[k] == np.uint8(width - one))
        if bad:
            return bad
        _gradient(program, product, adjoint, prefix, total, v, gradient)
        for s in range(n_sites):
            _site_energies(s, first, width, values, gradient, local)
            for b in range(count):
                now = local[np.uint64(species[s * lanes + b]) * lanes + b]
                for a in range(width - one):
                    if forbidden[s, a]:
                        out[begin + b, s, a] = np.inf
                    else:
                        out[begin + b, s, a] = local[a * lanes + b] - now
        begin += lanes
    return bad


@compiled
def fields(occupations, program, max_depth, out):
    """Conditional energies of partial configurations into ``out`` (batch, sites, species).

    Variables of unknown sites take their mean; species not allowed read zero. Returns the number
    of impossible sites.
    """
    depth, node, start, entry, coefficient, values, site, first, forbidden, constant = program
    lanes = np.uint64(64)
    batch = np.uint64(len(occupations))
    n_sites = np.uint64(forbidden.shape[0])
    width = np.uint64(forbidden.shape[1])
    one = np.uint64(1)
    species = np.empty(n_sites * lanes, dtype=np.uint8)
    v = np.empty(np.uint64(len(site)) * lanes)
    gradient = np.empty(np.uint64(len(site)) * lanes)
    product = np.ones(np.uint64(max_depth + 1) * lanes)
    adjoint = np.empty(np.uint64(max_depth + 1) * lanes)
    prefix = np.zeros(max_depth + 1, dtype=np.uint64)
    total = np.empty(64)
    local = np.empty(width * lanes)
    bad = np.uint64(0)
    begin = np.uint64(0)
    while begin < batch:
        count = min(lanes, batch - begin)
        bad += _load(occupations, begin, count, forbidden, site, values, species, v)
        if bad:
            return bad
        _gradient(program, product, adjoint, prefix, total, v, gradient)
        for s in range(n_sites):
            _site_energies(s, first, width, values, gradient, local)
            for b in range(count):
                for a in range(width - one):
                    out[begin + b, s, a] = 0.0 if forbidden[s, a] else local[a * lanes + b]
        begin += lanes
    return bad
