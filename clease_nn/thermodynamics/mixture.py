"""One estimator for samples of many conditions: weighted draws and chains, together."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch

from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.errors import NotDeterminedError
from clease_nn.statistics import Estimate
from clease_nn.thermodynamics.agreement import (
    disagreement,
    warn_of_chains,
    warn_of_disagreement,
)
from clease_nn.thermodynamics.density_of_states import DensityOfStates
from clease_nn.thermodynamics.groups import name
from clease_nn.thermodynamics.multistate import MultistateLikelihood, connected
from clease_nn.thermodynamics.pooling import Pool
from clease_nn.warnings import LowESSWarning

__all__ = ["density_of_states", "start", "states_of"]

_CONTRADICTION = 8.0  # standard errors between the two ways to know ln Z
_FEWEST_EFFECTIVE = 20.0  # samples of one condition, for an honest error of their weights
_LOWEST_NESS = 0.15  # below it z-scores of enumerated systems spread by 1.3 to 1.5
_LINK = 4.0  # effective samples that two groups of conditions must share: ln Z to 0.5


def density_of_states(
    c: Configurations | Sequence[Configurations],
    *,
    known: tuple[Conditions, Estimate] | None = None,
    n_resamples: int = 100,
    seed: int = 0,
) -> DensityOfStates:
    """Combine samples of many conditions into one density of states.

    Ratios of the partition functions follow from the overlap of conditions (the multistate Bennett
    acceptance ratio, for weighted samples with their effective numbers), their absolute values from
    the mean importance weights. Both enter one likelihood (:mod:`~.multistate`): precise weights
    keep every ln Z where it was measured and act as control variates on all averages, poor ones
    leave the ratios to the overlap. On an enumerated 4 x 4 Ising model (15 conditions, NESS 0.99 /
    0.85 / 0.58) the errors of ln Z were 0.7, 0.4 and 0.4 times those of single conditions and 0.1,
    0.3 and 0.6 times those of the acceptance ratio with one common constant; those of energies
    0.1 to 0.2 times those of single conditions.

    Errors come from a Bayesian bootstrap of rows within every condition, of blocks within chains,
    of blocks of time common to all chains of a run with one chain a condition (they may have
    exchanged configurations); every replica is solved anew.

    Parameters
    ----------
    c : Configurations or sequence of Configurations
        Scored, each either weighted (``log_prob``) or chains (``chain``), all of one lattice.
    known : (Conditions, Estimate), optional
        ln Z at some of the sampled conditions, with errors taken as fully correlated: the
        reference of chains, which know ratios of Z only. Conditions that overlap with weighted
        draws need none, and take none.
    n_resamples : int
        Replicas behind the errors, at least 2.
    seed : int
        Of the resampling.

    Returns
    -------
    DensityOfStates
        One state a row of ``c``. Its provenance says how many rows, parts and replicas there are;
        up to a tenth of ``n_resamples`` is left out where resampled data have no solution.

    Raises
    ------
    ValueError
        As :func:`~clease_nn.thermodynamics.averages`, and if there are no data, lattices differ,
        or ``known`` names no sampled condition.
    NotDeterminedError
        If the conditions of chains fall apart into groups that share too few states to know the
        ratio of their Z, or mean weights contradict the overlap of the samples.

    Warns
    -----
    ChainWarning
        If the own means of a chain are more than 8 of its standard errors away from those of all
        data at its condition: it is stuck in one phase or too short.
    LostModeWarning
        If the mean weight of a condition is more than 4 standard errors below what the draws of
        all other weighted conditions show: a phase is missing there. A phase that no condition
        has seen cannot be noticed.
    LowESSWarning
        If weighted draws of a condition have fewer than 20 effective samples or a NESS below 0.15:
        errors of such weights are underestimated, and neighbours do not mend it. If mean weights
        scatter twice as much about what other conditions say as their errors do, or these had to
        be enlarged to find a solution at all.

    Examples
    --------
    >>> from clease_nn.ensemble import SemiGrandCanonical
    >>> from clease_nn.lattice import Lattice
    >>> zero = SemiGrandCanonical(lambda lattice, x: torch.zeros(len(x)))
    >>> at = Conditions([600.0, 600.0], [[0.0, 0.0], [0.0, 0.03]])
    >>> x = torch.randint(2, (1000, 9), generator=torch.Generator().manual_seed(0))
    >>> c = Configurations(
    ...     Lattice.square(3), at.repeat(500), x, log_prob=torch.full((1000,), -9 * np.log(2))
    ... )
    >>> dos = density_of_states(zero.score(c))
    >>> never_sampled = Conditions([600.0], [[0.0, 0.015]])
    >>> exact = 9 * np.log(1 + np.exp(0.015 * never_sampled.beta[0].item()))
    >>> bool(abs(dos.log_z(never_sampled)[0].z(exact)) < 3)
    True
    """
    if n_resamples < 2:
        raise ValueError(f"errors need at least two replicas, got n_resamples = {n_resamples}")
    pool = Pool.of(c)
    sets, at = pool.sets, pool.conditions
    _warn_of_poor_weights(sets)
    weight = pool.of_rows([s.effective * s.weight for s in sets])
    model, state = states_of(pool)
    measured = np.array([s.log_z for s in sets])
    precision = np.array([0.0 if np.isnan(s.log_z) else s.precision for s in sets])

    found = None if known is None else _match(at, *known)
    f = model.ratios(start(pool, found))
    shared = model.shared(f, model.effective) * np.outer(model.effective, model.effective)
    anchors, absolute = _anchors(at, shared, precision, found)
    f = _smooth(f, shared, measured, precision)
    apart, apart_error = disagreement(model, sets, state, f)
    rng = np.random.default_rng(seed)
    factors, log_z = pool.resampled(n_resamples, rng)
    resampled = _summed(weight, factors, state)
    f, multipliers, f_replicas, ratio, solved, trust = _joint(
        model, f, measured, precision, resampled, log_z
    )
    _check_agreement(sets, f, measured, precision)
    warn_of_disagreement(sets, apart, apart_error)
    levels = np.concatenate([pool.energy[:, None], pool.counts], 1)
    warn_of_chains(model, sets, levels, f, multipliers)
    if trust < 1:
        _warn_of_less_trust(sets, trust, np.sqrt(precision) * (f - measured))
    factors = factors[:, solved]
    factors /= ratio[state][:, solved]
    shift = np.zeros(len(sets))
    noise = rng.standard_normal(n_resamples)[solved]
    for group, index, value, error in anchors:
        share = error**-2.0 / (error**-2.0).sum()
        shift[group] = share @ (value - f[index])
        moved = share @ (error[:, None] * noise - f_replicas[index] + f[index, None])
        for k in group:
            factors[sets[k].rows] *= np.exp(moved).astype(np.float32)
    log_g = np.log(weight, where=weight > 0, out=np.full(len(weight), -np.inf))
    log_g += pool.of_rows(shift) - model.log_mixture(f, multipliers)[state]
    return DensityOfStates(
        pool.lattice,
        pool.energy,
        pool.counts,
        log_g,
        occupations=pool.occupations,
        replicas=factors,
        inefficiency=pool.of_rows([s.tau for s in sets]),
        absolute=absolute,
        sampled=at,
        provenance=pool.provenance | {"replicas": int(solved.sum())},
    )


def _warn_of_poor_weights(sets) -> None:
    poor = [s for s in sets if s.error < np.inf and _is_poor(s)]
    if poor:
        worst = min(poor, key=lambda s: s.effective)
        warnings.warn(
            f"weighted draws of {len(poor)} of {len(sets)} conditions have fewer than "
            f"{_FEWEST_EFFECTIVE:.0f} effective samples or a NESS below {_LOWEST_NESS}; worst: "
            f"{worst.effective:.0f} of {len(worst.rows)} at {name(worst.condition)}. Errors there "
            "may be a third too small. Remedy: draw more samples, or train the model longer there",
            LowESSWarning,
            stacklevel=3,
        )


def _is_poor(s) -> bool:
    return s.effective < max(_FEWEST_EFFECTIVE, _LOWEST_NESS * len(s.rows))


def _warn_of_less_trust(sets, trust: float, apart: np.ndarray) -> None:
    k = int(np.nanargmax(np.abs(apart)))
    warnings.warn(
        "mean weights and overlap of the samples have no common solution within the errors of the "
        f"weights; these were taken as {trust**-0.5:.1f} times larger. Most doubtful: "
        f"{name(sets[k].condition)} ({abs(apart[k]):.1f} standard errors off). Remedy: draw more "
        "samples, or train the model longer there",
        LowESSWarning,
        stacklevel=3,
    )


def states_of(pool: Pool) -> tuple[MultistateLikelihood, np.ndarray]:
    """One state for all rows of one energy and composition, and the state of every row."""
    weight = pool.of_rows([s.effective * s.weight for s in pool.sets])
    key = np.concatenate([np.round(pool.energy, 9)[:, None], pool.counts], 1)
    _, first, state = np.unique(key, axis=0, return_index=True, return_inverse=True)
    # states in the order of the sets: neighbours share conditions, which the chunks exploit
    place = np.empty(len(weight), dtype=int)
    place[np.concatenate([s.rows for s in pool.sets])] = np.arange(len(weight))
    order = np.argsort(place[first])
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    first, state = first[order], rank[state.ravel()]
    at = pool.conditions
    model = MultistateLikelihood(
        pool.energy[first],
        pool.counts[first],
        at.beta.cpu().numpy(),
        at.mu.cpu().numpy(),
        np.bincount(state, weight, len(first)),
        np.array([s.effective for s in pool.sets]),
    )
    return model, state


def _summed(weight: np.ndarray, factors: np.ndarray, state: np.ndarray) -> np.ndarray:
    """Resampled weights of the states, shape (states, replicas), float32."""
    order = np.argsort(state, kind="stable")
    starts = np.flatnonzero(np.diff(state[order], prepend=-1))
    out = np.empty((len(starts), factors.shape[1]), dtype=np.float32)
    for r in range(factors.shape[1]):
        out[:, r] = np.add.reduceat((weight * factors[:, r])[order], starts)
    return out


# ------------------------------------------------------------------ ln Z
def start(pool: Pool, known=None) -> np.ndarray:
    """ln Z of weighted draws and those known; else by the trapezoidal rule from the nearest."""
    f = np.array([s.log_z for s in pool.sets])
    if known is not None:
        index, value, _ = known
        f[index] = np.where(np.isnan(f[index]), value, f[index])
    beta, mu = pool.conditions.beta[:, None], pool.conditions.mu
    point = torch.cat([-beta, beta * mu], 1).cpu().numpy()
    values = np.concatenate([pool.energy[:, None], pool.counts], 1)
    slope = np.stack([s.weight @ values[s.rows] for s in pool.sets])
    scaled = point / np.maximum(np.ptp(point, axis=0), 1e-9)
    done = ~np.isnan(f)
    if not done.any():
        f[0], done[0] = 0.0, True
    nearest = np.full(len(f), -1)
    distance = np.full(len(f), np.inf)
    fresh = np.flatnonzero(done)
    while not done.all():
        for k in fresh:
            d = ((scaled - scaled[k]) ** 2).sum(1)
            closer = d < distance
            nearest[closer], distance[closer] = k, d[closer]
        k = int(np.argmin(np.where(done, np.inf, distance)))
        j = nearest[k]
        f[k] = f[j] + 0.5 * (slope[j] + slope[k]) @ (point[k] - point[j])
        done[k] = True
        fresh = [k]
    return f


def _anchors(at, shared, precision, known):
    """Groups of chains whose ln Z come from outside, and whether all ln Z are absolute.

    An anchor is a group of conditions, those of them that are known, their ln Z and errors.
    """
    index, value, error = (np.empty(0, int), np.empty(0), np.empty(0)) if known is None else known
    joined = connected(shared, _LINK)
    anchors, free = [], []
    for group in joined:
        if not (precision[group] > 0).any():
            here = np.isin(index, group)
            if here.any():
                anchors.append((group, index[here], value[here], error[here]))
            else:
                free.append(group)
    if free and len(joined) > 1:
        other = next(g for g in joined if g is not free[0])
        raise NotDeterminedError(_apart(at, free[0], other))
    return anchors, not free


def _match(at: Conditions, conditions: Conditions, log_z: Estimate):
    """Sampled conditions whose ln Z is known, with values and errors."""
    values, errors = np.ravel(log_z.value), np.ravel(log_z.error)
    if not (np.isfinite(values).all() and np.isfinite(errors).all() and (errors >= 0).all()):
        raise ValueError(
            "known needs finite ln Z with finite errors that are not negative; leave out "
            "conditions that are not known"
        )
    if len(conditions) != len(values):
        raise ValueError(f"known has {len(conditions)} conditions and {len(values)} values of ln Z")
    index, found = [], []
    for k in range(len(at)):
        same = (conditions.temperature - at.temperature[k]).abs() < 1e-9 * at.temperature[k]
        same &= ((conditions.mu - at.mu[k]).abs() < 1e-9).all(1)
        for j in torch.nonzero(same).ravel().tolist()[:1]:
            index.append(k)
            found.append(j)
    if not index:
        raise ValueError(
            "known names no condition that was sampled; hand over ln Z at one of the conditions "
            f"of the configurations, such as {name(at[0])}"
        )
    return np.array(index), values[found], np.maximum(errors[found], 1e-6)


def _apart(at: Conditions, a: np.ndarray, b: np.ndarray) -> str:
    point = np.concatenate([at.beta[:, None], at.beta[:, None] * at.relative_mu()], 1)
    scaled = point / np.maximum(np.ptp(point, axis=0), 1e-9)
    d = ((scaled[a][:, None] - scaled[b][None]) ** 2).sum(-1)
    i, j = np.unravel_index(np.argmin(d), d.shape)
    one, two = at[int(a[i])], at[int(b[j])]
    beta = 0.5 * (one.beta + two.beta)
    bmu = 0.5 * (one.beta[:, None] * one.mu + two.beta[:, None] * two.mu)
    between = Conditions.from_kT(1 / beta, bmu / beta[:, None])
    return (
        f"{len(a)} of {len(at)} conditions (such as {name(one)}) share too few states with "
        f"{len(b)} others (the nearest is {name(two)}) to know the ratio of their partition "
        f"functions. Remedy: sample in between, at {name(between)}, or hand over ln Z of both "
        "groups as `known`"
    )


def _smooth(f, shared, measured, precision) -> np.ndarray:
    """Best linear combination of ratios and measurements, the start of the joint solution."""
    k = precision > 0
    if not k.any():
        return f
    laplacian = np.diag(shared.sum(1)) - shared
    values, vectors = np.linalg.eigh(laplacian)
    # the variance of what is not determined: as good as infinite
    inverse = np.where(values > 1e-6, 1.0 / np.maximum(values, 1e-6), 1e6)
    covariance = (vectors * inverse) @ vectors.T
    d = (measured - f)[k]
    gain = np.linalg.solve(covariance[np.ix_(k, k)] + np.diag(1 / precision[k]), d)
    return f + covariance[:, k] @ gain


def _check_agreement(sets, f, measured, precision) -> None:
    """Mean weights and the overlap with other conditions must tell the same ln Z."""
    known = precision > 0
    apart = np.where(known, np.abs(f - np.where(known, measured, 0.0)) * np.sqrt(precision), 0.0)
    k = int(np.argmax(apart))
    if apart[k] > _CONTRADICTION:
        raise NotDeterminedError(
            f"at {name(sets[k].condition)} the mean weight says ln Z = {measured[k]:.3f} +- "
            f"{precision[k] ** -0.5:.3f}, which contradicts {f[k]:.3f} by its overlap with other "
            "conditions: a phase that was never drawn there, or a log_prob of other draws. Train "
            "the model longer there, or leave this condition out"
        )


def _joint(model, f, measured, precision, weights, resampled):
    """The joint solution and its replicas; measurements against the samples are trusted less."""
    measured = np.where(precision > 0, measured, 0.0)
    for trust in (1.0, 0.3, 0.1, 0.03, 0.01, 0.001):
        try:
            g, c = model.joint(f, measured, trust * precision)
        except RuntimeError:
            continue
        replicas, ratio, solved = model.replicas(g, c, trust * precision, weights, resampled)
        if solved.mean() > 0.9:
            return g, c, replicas[:, solved], ratio, solved, trust
    if (precision > 0).any():
        raise NotDeterminedError(
            "ln Z from the mean weights contradict the overlap of the samples; check that log_prob "
            "is that of the draws, or draw more"
        )
    raise NotDeterminedError(
        f"the ratios of Z of {len(f)} conditions could not be solved from the overlap of their "
        "chains, which is too small somewhere; hand over ln Z of all of them as `known`, run "
        "longer, or sample at conditions in between"
    )
