"""One estimator for samples of many conditions: weighted draws and chains, together."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.cost import Cost
from clease_nn.errors import NotDeterminedError
from clease_nn.lattice import Lattice
from clease_nn.statistics import Estimate, log_mean_exp
from clease_nn.thermodynamics.density_of_states import DensityOfStates, name
from clease_nn.thermodynamics.groups import autocorrelation_time, groups, to_numpy
from clease_nn.thermodynamics.multistate import MultistateLikelihood, connected
from clease_nn.thermodynamics.resampling import bootstrap_factors, chain_blocks
from clease_nn.warnings import LowESSWarning

__all__ = ["density_of_states"]

_LINK = 4.0  # effective samples that two groups of conditions must share: ln Z to 0.5
_SHARPEST = 3.0  # error of ln Z times effective samples


@dataclass(frozen=True, eq=False)
class _Set:
    """Samples of one condition from one source, rows next to each other in the pool."""

    condition: Conditions
    rows: slice
    weight: np.ndarray  # of sum one
    effective: float
    tau: float
    blocks: np.ndarray
    inflation: float
    log_z: float = np.nan  # from the mean weight
    error: float = np.inf

    @property
    def precision(self) -> float:
        """Inverse variance of ln Z, bounded: more is of no use to so few samples."""
        return max(self.error, _SHARPEST / self.effective) ** -2


def density_of_states(
    c: Configurations | Sequence[Configurations],
    *,
    known: tuple[Conditions, Estimate] | None = None,
    n_resamples: int = 100,
    seed: int = 0,
) -> DensityOfStates:
    """Combine samples of many conditions into one density of states.

    Parameters
    ----------
    c : Configurations or sequence of Configurations
        Scored, each either weighted (``log_prob``) or chains (``chain``), all of one lattice.
    known : (Conditions, Estimate), optional
        ln Z at some of the sampled conditions, with errors taken as fully correlated: the
        reference of chains, which know ratios of Z only. Weighted draws need none.
    n_resamples : int
        Replicas behind the errors, at least 2.
    seed : int
        Of the resampling.

    Returns
    -------
    DensityOfStates
        One state a row of ``c``.

    Raises
    ------
    ValueError
        As :func:`~clease_nn.thermodynamics.averages`, and if there are no data, lattices differ,
        or ``known`` names no sampled condition.
    NotDeterminedError
        If the conditions of chains fall apart into groups that share too few states to know the
        ratio of their Z.
    """
    parts = [c] if isinstance(c, Configurations) else list(c)
    lattice = _one_lattice(parts)
    if n_resamples < 2:
        raise ValueError(f"errors need at least two replicas, got n_resamples = {n_resamples}")
    sets, rows, energy, counts = _pool(parts)
    at = Conditions.cat(s.condition for s in sets)
    beta, mu = at.beta.cpu().numpy(), at.mu.cpu().numpy()
    n = np.array([s.effective for s in sets])
    weight = np.concatenate([s.effective * s.weight for s in sets])
    # one state of the likelihood for all rows of one energy and composition
    key = np.concatenate([np.round(energy, 9)[:, None], counts], 1)
    _, first, state = np.unique(key, axis=0, return_index=True, return_inverse=True)
    first, state = _in_order(first, state.ravel())
    total = np.bincount(state, weight, len(first))
    model = MultistateLikelihood(energy[first], counts[first], beta, mu, total, n)

    measured = np.array([s.log_z for s in sets])
    precision = np.array([0.0 if np.isnan(s.log_z) else s.precision for s in sets])
    f = model.ratios(_start(sets, energy, counts, beta, mu))
    shared = model.shared(f, n) * np.outer(n, n)
    anchor, anchor_error, absolute = _anchors(sets, at, shared, measured, precision, known)
    f = _smooth(f, shared, n, measured, precision)
    rng = np.random.default_rng(seed)
    factors = np.empty((len(energy), n_resamples), dtype=np.float32)
    log_z = np.empty((len(sets), n_resamples))
    for k, s in enumerate(sets):
        b = bootstrap_factors(s.blocks, s.inflation, n_resamples, rng)
        mean = s.weight @ b
        log_z[k] = s.log_z + np.log(mean)
        # the weight expected beyond the largest one seen is not in resampled weights
        unseen = np.sqrt(max(s.error**2 - log_z[k].var(), 0.0)) if s.error < np.inf else 0.0
        log_z[k] += unseen * rng.standard_normal(n_resamples)
        factors[s.rows] = b / mean.astype(np.float32)
    resampled = np.zeros((len(first), n_resamples), dtype=np.float32)
    order = np.argsort(state, kind="stable")
    starts = np.flatnonzero(np.diff(state[order], prepend=-1))
    for r in range(n_resamples):
        resampled[:, r] = np.add.reduceat((weight * factors[:, r])[order], starts)
    f, mult, f_replicas, ratio, solved = _joint(model, f, measured, precision, resampled, log_z)
    factors = factors[:, solved] / ratio[state][:, solved]
    shift = np.zeros(len(sets))
    noise = rng.standard_normal(n_resamples)[solved]
    for group, value, error in zip(*anchor, anchor_error, strict=True):
        pinned = np.flatnonzero(np.isfinite(error))
        weights = error[pinned] ** -2.0
        weights /= weights.sum()
        f_pinned, v_pinned = f[group[pinned]], value[pinned]
        shift[group] = weights @ (v_pinned - f_pinned)
        moved = weights @ (
            error[pinned, None] * noise - f_replicas[group[pinned]] + f_pinned[:, None]
        )
        for k in group:
            factors[sets[k].rows] *= np.exp(moved).astype(np.float32)
    log_g = np.log(weight, where=weight > 0, out=np.full(len(weight), -np.inf))
    log_g -= model.log_mixture(f, mult)[state]
    sizes = [len(s.weight) for s in sets]
    log_g += np.repeat(shift, sizes)
    back = np.argsort(rows)  # to the order of c
    return DensityOfStates(
        lattice,
        energy[back],
        counts[back],
        log_g[back],
        occupations=torch.cat([p.occupations.cpu() for p in parts]),
        replicas=factors[back],
        inefficiency=np.repeat([s.tau for s in sets], sizes)[back],
        absolute=absolute,
        sampled=at,
        provenance=_provenance(parts, len(energy)),
    )


# ------------------------------------------------------------------ reading
def _one_lattice(parts: list[Configurations]) -> Lattice:
    if not parts or not any(len(p) for p in parts):
        raise ValueError("there are no configurations to combine")
    for p in parts:
        if not isinstance(p, Configurations):
            raise TypeError(f"expected Configurations, got {type(p).__name__}")
        if p.lattice.fingerprint != parts[0].lattice.fingerprint:
            raise ValueError(
                "configurations of different lattices do not combine: a density of states belongs "
                "to one supercell; combine each separately"
            )
    return parts[0].lattice


def _pool(parts: list[Configurations]):
    """Sets, and for their rows the place in the parts, energy and counts."""
    sets, rows, start = [], [], 0
    for p in parts:
        before, picked = start, []
        with warnings.catch_warnings():
            # few samples of one condition are no fault where neighbours help
            warnings.simplefilter("ignore", LowESSWarning)
            found = groups(p, scored=True)
        for g in found:
            n = len(g.rows)
            place = slice(start, start + n)
            start += n
            if g.log_w is not None:
                log_z = log_mean_exp(g.log_w)
                w = np.exp(g.log_w - g.log_w.max())
                w /= w.sum()
                picked.append(g.rows)
                sets.append(
                    _Set(
                        g.condition,
                        place,
                        w,
                        float(1 / (w**2).sum()),
                        1.0,
                        np.arange(n),
                        1.0,
                        float(log_z.value),
                        float(log_z.error),
                    )
                )
            else:
                tau = autocorrelation_time(p, g)
                picked.append(g.rows[np.concatenate(g.pieces)])
                blocks, inflation = chain_blocks([len(x) for x in g.pieces], tau)
                sets.append(
                    _Set(g.condition, place, np.full(n, 1 / n), n / tau, tau, blocks, inflation)
                )
        rows.append(before + np.concatenate(picked))
    rows = np.concatenate(rows)
    energy = np.concatenate([to_numpy(p.energy) for p in parts])[rows]
    counts = np.concatenate([p.counts().cpu().numpy() for p in parts])[rows]
    return sets, rows, energy, counts


def _in_order(first: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """States numbered in the order in which they appear: neighbours stay neighbours."""
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return first[order], rank[state]


def _provenance(parts: list[Configurations], rows: int) -> dict:
    cost = Cost.sum(Cost.from_provenance(p.provenance) for p in parts)
    return {"rows": rows, "parts": len(parts)} | cost.to_dict()


# ------------------------------------------------------------------ ln Z
def _start(sets, energy, counts, beta, mu) -> np.ndarray:
    """ln Z of weighted draws; of chains by the trapezoidal rule from the nearest one known."""
    f = np.array([s.log_z for s in sets])
    point = np.concatenate([-beta[:, None], beta[:, None] * mu], 1)
    values = np.concatenate([energy[:, None], counts], 1)
    slope = np.stack([s.weight @ values[s.rows] for s in sets])
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


def _anchors(sets, at, shared, measured, precision, known):
    """Groups of chains whose ln Z come from outside, and whether all ln Z are absolute."""
    value, error = np.full(len(sets), np.nan), np.full(len(sets), np.inf)
    if known is not None:
        _match(sets, at, known, value, error)
    bound = precision > 0
    joined = connected(shared, _LINK)
    free = [g for g in joined if not bound[g].any() and np.isnan(value[g]).all()]
    if free and len(joined) > 1:
        other = next(g for g in joined if g is not free[0])
        raise NotDeterminedError(_apart(at, free[0], other))
    anchored = [g for g in joined if not bound[g].any() and not np.isnan(value[g]).all()]
    return (
        (anchored, [value[g] for g in anchored]),
        [error[g] for g in anchored],
        not free,
    )


def _match(sets, at, known, value, error) -> None:
    conditions, log_z = known
    if len(conditions) != np.size(log_z.value):
        raise ValueError(
            f"known has {len(conditions)} conditions and {np.size(log_z.value)} values of ln Z"
        )
    found = False
    for k in range(len(at)):
        same = (conditions.temperature - at.temperature[k]).abs() < 1e-9 * at.temperature[k]
        same &= ((conditions.mu - at.mu[k]).abs() < 1e-9).all(1)
        for j in torch.nonzero(same).ravel().tolist()[:1]:
            found = True
            value[k] = np.ravel(log_z.value)[j]
            error[k] = max(float(np.ravel(log_z.error)[j]), 1e-6)
    if not found:
        raise ValueError(
            "known names no condition that was sampled; hand over ln Z at one of the conditions "
            f"of the configurations, such as {name(at[0])}"
        )


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


def _smooth(f, shared, n, measured, precision) -> np.ndarray:
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
            return g, c, replicas[:, solved], ratio, solved
    raise NotDeterminedError(
        "ln Z from the mean weights contradict the overlap of the samples; check that log_prob is "
        "that of the draws, or draw more"
    )
