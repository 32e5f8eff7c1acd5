"""Compiled kernels: 64 chains side by side, one site after the other, one thread."""

from __future__ import annotations

import numpy as np

from clease_nn.compiled import njit
from clease_nn.montecarlo import vectors
from clease_nn.montecarlo.vectors import LANES as BLOCK

__all__ = ["energies", "heat_bath", "metropolis"]

_TO_UNIT = 2.0**-53
_B = np.uint64(BLOCK)


@njit
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


@njit
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


@njit
def _run(first, last, kind, factor, constants, start, offset, coefficient, v, acc):
    """Evaluate a program for 64 chains into ``acc[:64]``.

    ``v`` holds variable ``x`` of chain ``k`` at ``x * 64 + k``, ``acc`` one row an open level.
    """
    one = np.uint64(1)
    top = np.uint64(0)
    vectors.open_sum(
        acc, top, constants[first], start[first], start[first + one], offset, coefficient, v
    )
    a = top
    for op in range(first + one, last):
        begin = start[op]
        end = start[op + one]
        if kind[op] == 2:
            vectors.add_branch(
                acc, a, factor[op], constants[op], begin, end, offset, coefficient, v
            )
        elif kind[op] == 1:
            a -= _B
            vectors.add_product(acc, a, acc, a + _B, v, factor[op])
        else:
            a += _B
            vectors.open_sum(acc, a, constants[op], begin, end, offset, coefficient, v)


@njit
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


@njit
def energies(
    occupations,
    functions,
    group_pointer,
    kind,
    factor,
    constants,
    start,
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
    first = group_pointer[len(group_pointer) - 2]
    last = group_pointer[len(group_pointer) - 1]
    for b0 in range(np.uint64(0), np.uint64(chains), _B):
        m = min(_B, np.uint64(chains) - b0)
        _load(occupations, b0, m, functions, occ, v)
        _run(first, last, kind, factor, constants, start, offset, coefficient, v, acc)
        for k in range(m):
            out[b0 + k] = acc[k]


@njit
def _species_energies(
    i,
    site_pointer,
    group_function,
    group_pointer,
    kind,
    factor,
    constants,
    start,
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
        _run(
            group_pointer[g],
            group_pointer[g + np.uint64(1)],
            kind,
            factor,
            constants,
            start,
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


@njit
def _store(i, n_functions, functions, new, occ, v):
    for k in range(_B):
        occ[i * _B + k] = new[k]
    for f in range(n_functions):
        row = (i * n_functions + f) * _B
        for k in range(_B):
            v[row + k] = functions[f, new[k]]


@njit
def heat_bath(
    occupations,
    beta,
    beta_mu,
    clamped,
    orders,
    state,
    site_pointer,
    group_function,
    group_pointer,
    kind,
    factor,
    constants,
    start,
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
                    group_pointer,
                    kind,
                    factor,
                    constants,
                    start,
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


@njit
def metropolis(
    occupations,
    beta,
    beta_mu,
    clamped,
    orders,
    state,
    site_pointer,
    group_function,
    group_pointer,
    kind,
    factor,
    constants,
    start,
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
                group_pointer,
                kind,
                factor,
                constants,
                start,
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
