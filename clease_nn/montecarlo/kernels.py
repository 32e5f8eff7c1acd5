"""Compiled kernels: 64 chains side by side, one site after the other, one thread."""

from __future__ import annotations

import numpy as np
from numba import njit

from clease_nn.montecarlo.program import BLOCK

__all__ = ["energies", "heat_bath", "metropolis"]

_FAST = {"contract", "reassoc", "nsz", "arcp"}
_TO_UNIT = 2.0**-53
_B = np.uint64(BLOCK)


def _compiled(function):
    """``numba.njit`` with an on-disk cache where one can be written."""
    try:
        return njit(cache=True, fastmath=_FAST, error_model="numpy")(function)
    except RuntimeError:  # no writable place for the cache
        return njit(fastmath=_FAST, error_model="numpy")(function)


@_compiled
def _uniform(state, u):
    """Fill ``u`` (64,) from xoshiro256+ (Blackman and Vigna 2021), state (4, 64)."""
    for k in range(BLOCK):
        s0, s1, s2, s3 = state[0, k], state[1, k], state[2, k], state[3, k]
        u[k] = np.float64((s0 + s3) >> np.uint64(11)) * _TO_UNIT
        t = s1 << np.uint64(17)
        s2 ^= s0
        s3 ^= s1
        s1 ^= s2
        s0 ^= s3
        s2 ^= t
        s3 = (s3 << np.uint64(45)) | (s3 >> np.uint64(19))
        state[0, k], state[1, k], state[2, k], state[3, k] = s0, s1, s2, s3


@_compiled
def _exp(x):
    """exp(x) for x <= 0, without branches so that loops vectorise; relative error 3e-11."""
    y = max(x, -80.0) * (1.0 / 256.0)
    p = 1.0 + y * 0.1
    p = 1.0 + y * (1.0 / 9.0) * p
    p = 1.0 + y * (1.0 / 8.0) * p
    p = 1.0 + y * (1.0 / 7.0) * p
    p = 1.0 + y * (1.0 / 6.0) * p
    p = 1.0 + y * (1.0 / 5.0) * p
    p = 1.0 + y * 0.25 * p
    p = 1.0 + y * (1.0 / 3.0) * p
    p = 1.0 + y * 0.5 * p
    p = 1.0 + y * p
    p = p * p
    p = p * p
    p = p * p
    p = p * p
    p = p * p
    p = p * p
    p = p * p
    return p * p


@_compiled
def _run(start, stop, kind, first, count, offset, coefficient, v, acc):
    """Evaluate a program for 64 chains; the result is added to ``acc[:64]``.

    ``v`` holds variable ``x`` of chain ``k`` at ``x * 64 + k``, ``acc`` one row an open level.
    """
    a = np.uint64(0)
    one = np.uint64(1)
    for op in range(start, stop):
        f = first[op]
        n = count[op]
        o0 = offset[f]
        c0 = coefficient[f]
        if kind[op] == 3:
            o1 = offset[f + one]
            c1 = coefficient[f + one]
            if n == 2:
                for k in range(_B):
                    acc[a + k] += v[o0 + k] * (c0 + c1 * v[o1 + k])
            elif n == 3:
                o2 = offset[f + np.uint64(2)]
                c2 = coefficient[f + np.uint64(2)]
                for k in range(_B):
                    acc[a + k] += v[o0 + k] * (c0 + c1 * v[o1 + k] + c2 * v[o2 + k])
            elif n == 4:
                o2 = offset[f + np.uint64(2)]
                c2 = coefficient[f + np.uint64(2)]
                o3 = offset[f + np.uint64(3)]
                c3 = coefficient[f + np.uint64(3)]
                for k in range(_B):
                    acc[a + k] += v[o0 + k] * (
                        c0 + c1 * v[o1 + k] + c2 * v[o2 + k] + c3 * v[o3 + k]
                    )
            else:
                o2 = offset[f + np.uint64(2)]
                c2 = coefficient[f + np.uint64(2)]
                o3 = offset[f + np.uint64(3)]
                c3 = coefficient[f + np.uint64(3)]
                o4 = offset[f + np.uint64(4)]
                c4 = coefficient[f + np.uint64(4)]
                for k in range(_B):
                    acc[a + k] += v[o0 + k] * (
                        c0 + c1 * v[o1 + k] + c2 * v[o2 + k] + c3 * v[o3 + k] + c4 * v[o4 + k]
                    )
        elif kind[op] == 1:
            if n == 4:
                o1 = offset[f + one]
                c1 = coefficient[f + one]
                o2 = offset[f + np.uint64(2)]
                c2 = coefficient[f + np.uint64(2)]
                o3 = offset[f + np.uint64(3)]
                c3 = coefficient[f + np.uint64(3)]
                for k in range(_B):
                    acc[a + k] += (c0 * v[o0 + k] + c1 * v[o1 + k]) + (
                        c2 * v[o2 + k] + c3 * v[o3 + k]
                    )
            elif n == 2:
                o1 = offset[f + one]
                c1 = coefficient[f + one]
                for k in range(_B):
                    acc[a + k] += c0 * v[o0 + k] + c1 * v[o1 + k]
            else:
                for k in range(_B):
                    acc[a + k] += c0 * v[o0 + k]
        elif kind[op] == 0:
            a += _B
            for k in range(_B):
                acc[a + k] = c0
        else:
            for k in range(_B):
                acc[a - _B + k] += v[o0 + k] * acc[a + k]
            a -= _B


@_compiled
def _load(occupations, b0, m, functions, occ, v):
    """Occupations and site functions of one block; a short block repeats its last chain."""
    n_functions = np.uint64(functions.shape[0])
    for i in range(np.uint64(occupations.shape[1])):
        for k in range(_B):
            occ[i * _B + k] = occupations[b0 + min(k, m - np.uint64(1)), i]
        for f in range(n_functions):
            row = (i * n_functions + f) * _B
            for k in range(_B):
                v[row + k] = functions[f, occ[i * _B + k]]


@_compiled
def energies(
    occupations,
    functions,
    constant,
    group_pointer,
    kind,
    first,
    count,
    offset,
    coefficient,
    depth,
    out,
):
    """Energies (chains,) of whole configurations (chains, sites), recomputed in float64."""
    chains, n_sites = occupations.shape
    occ = np.empty(n_sites * BLOCK, dtype=np.int8)
    v = np.empty(max(n_sites * functions.shape[0], 1) * BLOCK)
    acc = np.empty(depth * BLOCK)
    start = group_pointer[len(group_pointer) - 2]
    stop = group_pointer[len(group_pointer) - 1]
    for b0 in range(np.uint64(0), np.uint64(chains), _B):
        m = min(_B, np.uint64(chains) - b0)
        _load(occupations, b0, m, functions, occ, v)
        acc[:BLOCK] = constant
        _run(start, stop, kind, first, count, offset, coefficient, v, acc)
        for k in range(m):
            out[b0 + k] = acc[k]


@_compiled
def _species_energies(
    i,
    site_pointer,
    group_function,
    group_constant,
    group_pointer,
    kind,
    first,
    count,
    offset,
    coefficient,
    functions,
    a0,
    a1,
    choices,
    v,
    acc,
    e,
):
    """Local energies of the allowed species of site ``i``, relative to the first of them."""
    for j in range(a0, a1):
        for k in range(_B):
            e[j - a0, k] = 0.0
    for g in range(site_pointer[i], site_pointer[i + np.uint64(1)]):
        constant = group_constant[g]
        for k in range(_B):
            acc[k] = constant
        _run(
            group_pointer[g],
            group_pointer[g + np.uint64(1)],
            kind,
            first,
            count,
            offset,
            coefficient,
            v,
            acc,
        )
        f = group_function[g]
        zero = functions[f, choices[a0]]
        for j in range(a0 + np.uint64(1), a1):
            step = functions[f, choices[j]] - zero
            for k in range(_B):
                e[j - a0, k] += step * acc[k]


@_compiled
def _store(i, n_functions, functions, new, occ, v):
    for k in range(_B):
        occ[i * _B + k] = new[k]
    for f in range(n_functions):
        row = (i * n_functions + f) * _B
        for k in range(_B):
            v[row + k] = functions[f, new[k]]


@_compiled
def heat_bath(
    occupations,
    beta,
    beta_mu,
    clamped,
    orders,
    state,
    site_pointer,
    group_function,
    group_constant,
    group_pointer,
    kind,
    first,
    count,
    offset,
    coefficient,
    functions,
    choice_pointer,
    choices,
    depth,
    probabilities,
):
    """Heat-bath sweeps in place.

    Parameters
    ----------
    occupations : (chains, sites) int8, changed in place
    beta : (chains,) 1/eV; beta_mu : (chains, species)
    clamped : (chains, sites) bool
    orders : (blocks, sweeps, sites) uint64, order of the sites
    state : (blocks, 4, 64) uint64, generators, changed in place
    probabilities : (chains, sites, species) float32 or of size zero
        The conditional probabilities seen are added to it.

    Returns
    -------
    changed : int
        Site updates that changed the species.
    """
    chains, n_sites = occupations.shape
    n_species = beta_mu.shape[1]
    n_functions = np.uint64(functions.shape[0])
    collect = probabilities.size > 0
    one = np.uint64(1)
    dtype = functions.dtype
    occ = np.empty(n_sites * BLOCK, dtype=np.int8)
    v = np.empty(max(n_sites * functions.shape[0], 1) * BLOCK, dtype=dtype)
    acc = np.empty(depth * BLOCK, dtype=dtype)
    e = np.empty((n_species, BLOCK), dtype=dtype)
    w = np.empty((n_species, BLOCK))
    total = np.empty(BLOCK)
    u = np.empty(BLOCK)
    new = np.empty(BLOCK, dtype=np.int8)
    fixed = np.empty((n_sites, BLOCK), dtype=np.bool_)
    b = np.empty(BLOCK)
    bmu = np.empty((n_species, BLOCK))
    sums = np.zeros((n_sites if collect else 1, n_species, BLOCK), dtype=np.float32)
    changed = 0
    for b0 in range(np.uint64(0), np.uint64(chains), _B):
        m = min(_B, np.uint64(chains) - b0)
        block = b0 // _B
        _load(occupations, b0, m, functions, occ, v)
        for k in range(_B):
            chain = b0 + min(k, m - one)
            b[k] = beta[chain]
            for a in range(np.uint64(n_species)):
                bmu[a, k] = beta_mu[chain, a]
            for i in range(np.uint64(n_sites)):
                fixed[i, k] = clamped[chain, i] or k >= m
        sums[:] = 0.0
        for sweep in range(np.uint64(orders.shape[1])):
            for position in range(np.uint64(n_sites)):
                i = orders[block, sweep, position]
                a0 = choice_pointer[i]
                a1 = choice_pointer[i + one]
                if a1 - a0 == 1:
                    continue
                free = False
                for k in range(_B):
                    free |= not fixed[i, k]
                if not free:
                    continue
                _species_energies(
                    i,
                    site_pointer,
                    group_function,
                    group_constant,
                    group_pointer,
                    kind,
                    first,
                    count,
                    offset,
                    coefficient,
                    functions,
                    a0,
                    a1,
                    choices,
                    v,
                    acc,
                    e,
                )
                _uniform(state[block], u)
                if a1 - a0 == 2:
                    s0 = np.int8(choices[a0])
                    s1 = np.int8(choices[a0 + one])
                    for k in range(_B):
                        x = bmu[choices[a0 + one], k] - bmu[choices[a0], k] - b[k] * e[1, k]
                        t = _exp(-abs(x))
                        large = 1.0 / (1.0 + t)
                        w[0, k] = large if x < 0.0 else 1.0 - large
                        w[1, k] = 1.0 - w[0, k]
                        new[k] = s0 if u[k] < w[0, k] else s1
                else:
                    for k in range(_B):
                        total[k] = -1e300
                    for j in range(a1 - a0):
                        s = choices[a0 + j]
                        for k in range(_B):
                            w[j, k] = bmu[s, k] - b[k] * e[j, k]
                            total[k] = max(total[k], w[j, k])
                    for j in range(a1 - a0):
                        for k in range(_B):
                            w[j, k] = _exp(w[j, k] - total[k])
                    for k in range(_B):
                        total[k] = 0.0
                    for j in range(a1 - a0):
                        for k in range(_B):
                            total[k] += w[j, k]
                    for k in range(_B):
                        total[k] = 1.0 / total[k]
                        new[k] = np.int8(choices[a1 - one])
                    for j in range(a1 - a0):
                        for k in range(_B):
                            w[j, k] *= total[k]
                    # from the last species down: the first whose cumulative share exceeds u
                    for j in range(a1 - a0):
                        back = a1 - a0 - one - j
                        s = np.int8(choices[a0 + back])
                        for k in range(_B):
                            below = 0.0
                            for q in range(back + one):
                                below += w[q, k]
                            if u[k] < below:
                                new[k] = s
                if collect:
                    for j in range(a1 - a0):
                        s = choices[a0 + j]
                        for k in range(_B):
                            sums[i, s, k] += np.float32(w[j, k])
                difference = 0
                for k in range(_B):
                    old = occ[i * _B + k]
                    new[k] = old if fixed[i, k] else new[k]
                    difference += new[k] != old
                changed += difference
                if difference > 0:
                    _store(i, n_functions, functions, new, occ, v)
        for k in range(m):
            for i in range(np.uint64(n_sites)):
                occupations[b0 + k, i] = occ[i * _B + k]
                if collect:
                    for a in range(np.uint64(n_species)):
                        probabilities[b0 + k, i, a] += sums[i, a, k]
    return changed


@_compiled
def metropolis(
    occupations,
    beta,
    beta_mu,
    clamped,
    orders,
    state,
    site_pointer,
    group_function,
    group_constant,
    group_pointer,
    kind,
    first,
    count,
    offset,
    coefficient,
    functions,
    choice_pointer,
    choices,
    depth,
):
    """Metropolis trials in place: another allowed species, acceptance min(1, weight ratio).

    Arguments as in :func:`heat_bath`; ``orders`` (blocks, trials, 1) names a site a trial, or
    ``n_sites`` for none. Returns the numbers of attempted and accepted trials.
    """
    chains, n_sites = occupations.shape
    n_species = beta_mu.shape[1]
    n_functions = np.uint64(functions.shape[0])
    one = np.uint64(1)
    dtype = functions.dtype
    occ = np.empty(n_sites * BLOCK, dtype=np.int8)
    v = np.empty(max(n_sites * functions.shape[0], 1) * BLOCK, dtype=dtype)
    acc = np.empty(depth * BLOCK, dtype=dtype)
    e = np.empty((n_species, BLOCK), dtype=dtype)
    u = np.empty(BLOCK)
    new = np.empty(BLOCK, dtype=np.int8)
    fixed = np.empty((n_sites, BLOCK), dtype=np.bool_)
    b = np.empty(BLOCK)
    bmu = np.empty((n_species, BLOCK))
    attempted = 0
    accepted = 0
    for b0 in range(np.uint64(0), np.uint64(chains), _B):
        m = min(_B, np.uint64(chains) - b0)
        block = b0 // _B
        _load(occupations, b0, m, functions, occ, v)
        for k in range(_B):
            chain = b0 + min(k, m - one)
            b[k] = beta[chain]
            for a in range(np.uint64(n_species)):
                bmu[a, k] = beta_mu[chain, a]
            for i in range(np.uint64(n_sites)):
                fixed[i, k] = clamped[chain, i] or k >= m
        for trial in range(np.uint64(orders.shape[1])):
            i = orders[block, trial, 0]
            if i >= n_sites:
                continue
            a0 = choice_pointer[i]
            a1 = choice_pointer[i + one]
            if a1 - a0 == 1:
                continue
            _species_energies(
                i,
                site_pointer,
                group_function,
                group_constant,
                group_pointer,
                kind,
                first,
                count,
                offset,
                coefficient,
                functions,
                a0,
                a1,
                choices,
                v,
                acc,
                e,
            )
            _uniform(state[block], u)
            difference = 0
            tried = 0
            if a1 - a0 == 2:
                s0 = np.int8(choices[a0])
                s1 = np.int8(choices[a0 + one])
                for k in range(_B):
                    old = occ[i * _B + k]
                    x = bmu[choices[a0 + one], k] - bmu[choices[a0], k] - b[k] * e[1, k]
                    x = x if old == s0 else -x
                    take = (u[k] < _exp(min(x, 0.0))) & (not fixed[i, k])
                    other = s1 if old == s0 else s0
                    new[k] = other if take else old
                    difference += take
                    tried += not fixed[i, k]
            else:
                n_other = a1 - a0 - one
                for k in range(_B):
                    old = occ[i * _B + k]
                    present = np.uint64(0)
                    for j in range(a1 - a0):
                        if choices[a0 + j] == old:
                            present = j
                    scaled = u[k] * n_other
                    pick = min(np.uint64(scaled), n_other - one)
                    rest = scaled - pick
                    if pick >= present:
                        pick += one
                    s = np.int8(choices[a0 + pick])
                    x = (
                        bmu[choices[a0 + pick], k]
                        - bmu[choices[a0 + present], k]
                        - b[k] * (e[pick, k] - e[present, k])
                    )
                    take = (rest < _exp(min(x, 0.0))) & (not fixed[i, k])
                    new[k] = s if take else old
                    difference += take
                    tried += not fixed[i, k]
            accepted += difference
            attempted += tried
            if difference > 0:
                _store(i, n_functions, functions, new, occ, v)
        for k in range(m):
            for i in range(np.uint64(n_sites)):
                occupations[b0 + k, i] = occ[i * _B + k]
    return attempted, accepted
