"""Rows of one condition: grouping, refusals, and averages of either kind of data."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from math import isnan

import numpy as np
import torch

from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.statistics import (
    Estimate,
    integrated_autocorrelation_time,
    normalized_ess,
    pareto_k,
    series_covariance,
    series_mean,
    weighted_covariance,
    weighted_mean,
)
from clease_nn.warnings import LowESSWarning

__all__ = [
    "Group",
    "autocorrelation_time",
    "groups",
    "name",
    "rows_by_condition",
    "stack",
    "to_numpy",
]

_FEWEST_SAMPLES = 10
_FEWEST_EFFECTIVE = 200
_LOWEST_NESS = 0.1
_HIGHEST_K = 0.7
_HARMLESS_NESS = 0.98  # above it a tail, however shaped, carries next to no weight
_HIGHEST_SHARE = 0.99


@dataclass(frozen=True, eq=False)
class Group:
    """Rows of one condition: weighted (``log_w``) or chains (``pieces``, positions in rows)."""

    rows: np.ndarray
    condition: Conditions
    log_w: np.ndarray | None = None
    pieces: list[np.ndarray] | None = None

    @property
    def name(self) -> str:
        return name(self.condition)

    def mean(self, v: np.ndarray) -> Estimate:
        """Average of (rows, ...) values."""
        if self.log_w is not None:
            return weighted_mean(v, self.log_w)
        columns = v.reshape(len(v), -1).T
        parts = stack([series_mean([x[p] for p in self.pieces]) for x in columns])
        shape = v.shape[1:]
        value, error = (np.reshape(a, shape) for a in (parts.value, parts.error))
        # a column that never changes, such as an empty bin, says nothing about the correlation
        moving = np.ptp(columns, axis=1) > 0
        ness = np.where(moving | ~moving.any(), parts.ness, 1.0)
        return Estimate(value[()], error[()], float(np.min(ness)))

    def covariance(self, v: np.ndarray) -> Estimate:
        """Covariance matrix of (rows, d) values."""
        if self.log_w is not None:
            return weighted_covariance(v, self.log_w)
        d = v.shape[1]
        pieces = [[x[p] for p in self.pieces] for x in v.T]
        value, error = np.zeros((d, d)), np.zeros((d, d))
        for a in range(d):
            for b in range(a, d):
                e = series_covariance(pieces[a], pieces[b])
                value[a, b] = value[b, a] = e.value
                error[a, b] = error[b, a] = e.error
        return Estimate(value, error)


def name(condition: Conditions) -> str:
    """One condition in words."""
    mu = ", ".join(f"{m:.4g}" for m in condition.mu[0].tolist())
    return f"T = {condition.temperature[0].item():g} K, mu = ({mu}) eV"


def rows_by_condition(c: Configurations) -> Iterator[np.ndarray]:
    if len(c) == 0:
        raise ValueError("there are no configurations")
    key = torch.cat([c.conditions.temperature[:, None], c.conditions.mu], 1).cpu().numpy()
    _, first, inverse = np.unique(key, axis=0, return_index=True, return_inverse=True)
    by_condition = np.split(
        np.argsort(inverse.ravel(), kind="stable"), np.cumsum(np.bincount(inverse.ravel()))[:-1]
    )
    return (by_condition[k] for k in np.argsort(first))


def groups(c: Configurations, scored: bool = False) -> list[Group]:
    """Rows of every condition, checked; warns of low effective sample sizes.

    Raises
    ------
    TypeError, ValueError
        As :func:`~clease_nn.thermodynamics.averages`.
    """
    if not isinstance(c, Configurations):
        raise TypeError(
            f"averages are taken of Configurations, got {type(c).__name__}; a density of states "
            "has averages(conditions) of its own"
        )
    if not bool(c.known.all()):
        raise ValueError("configurations have unknown sites; complete them before averaging")
    if c.log_prob is not None and c.chain is not None:
        raise ValueError(
            "configurations carry both log_prob (weighted draws) and chain (unweighted): these do "
            "not mix; drop one with dataclasses.replace(c, log_prob=None) or (c, chain=None)"
        )
    if c.log_prob is None and c.chain is None:
        raise ValueError(
            "configurations carry neither log_prob (weighted draws) nor chain; for independent "
            "unweighted draws set chain=torch.arange(len(c))"
        )
    needed = ["log_target"] if c.log_prob is not None else []
    needed = ["energy", "log_target"] if scored else needed
    if any(getattr(c, name) is None for name in needed):
        raise ValueError(
            "configurations carry no energy or log_target; score them first: "
            "SemiGrandCanonical(energy).score(c)"
        )
    log_w = chain = None
    if c.log_prob is None:
        chain = c.chain.cpu().numpy()
    else:
        log_w = to_numpy(c.log_weight)
    finite = torch.isfinite(c.energy + c.log_target).cpu().numpy() if scored else None
    found, doubts = [], []
    for rows in rows_by_condition(c):
        condition = c.conditions[torch.as_tensor(rows[:1])]
        if chain is None:
            g = Group(rows, condition, log_w=log_w[rows])
            _check_given_sites(c, g)
        else:
            order = np.argsort(chain[rows], kind="stable")
            starts = np.flatnonzero(np.diff(chain[rows][order])) + 1
            g = Group(rows, condition, pieces=np.split(order, starts))
        if len(rows) < _FEWEST_SAMPLES:
            raise ValueError(
                f"only {len(rows)} samples at {g.name}: no error can be given; draw at least "
                f"{_FEWEST_SAMPLES}, better {_FEWEST_EFFECTIVE} or more"
            )
        if scored and not finite[rows].all():
            raise ValueError(f"an energy at {g.name} is NaN or infinite; check the energy model")
        doubt = _doubt_weights(g) if chain is None else _doubt_chains(c, g)
        found.append(g)
        if doubt is not None:
            doubts.append(doubt)
    if doubts:
        doubts.sort(key=lambda d: d[0])
        remedy = (
            "draw more samples, or train the model longer around these conditions"
            if chain is None
            else "run the chains longer, or use ParallelTempering"
        )
        warnings.warn(
            f"{len(doubts)} of {len(found)} conditions cannot be trusted within their errors; "
            f"worst: {'; '.join(text for _, text in doubts[:3])}. Remedy: {remedy}",
            LowESSWarning,
            stacklevel=3,
        )
    return found


def _doubt_weights(g: Group) -> tuple[float, str] | None:
    w = g.log_w
    n = len(w)
    if not np.isfinite(w).all():
        raise ValueError(f"a log weight at {g.name} is NaN or infinite; check log_prob and energy")
    share = 1.0 / np.exp(w - w.max()).sum()
    if share > _HIGHEST_SHARE:
        raise ValueError(
            f"one of {n} samples carries {share:.1%} of the weight at {g.name}: the model does "
            "not describe this condition; train it there, or use chains"
        )
    ness, k = normalized_ess(w), pareto_k(w)
    reasons = []
    if n * ness < _FEWEST_EFFECTIVE:
        reasons.append(f"{n * ness:.0f} effective of {n} samples (want {_FEWEST_EFFECTIVE})")
    elif ness < _LOWEST_NESS:
        reasons.append(f"NESS {ness:.3f} (want {_LOWEST_NESS})")
    if not isnan(k) and k > _HIGHEST_K and ness < _HARMLESS_NESS:
        reasons.append(f"weight tail k-hat {k:.2f} (want at most {_HIGHEST_K})")
    return (n * ness, f"{g.name}: {', '.join(reasons)}") if reasons else None


def autocorrelation_time(c: Configurations, g: Group) -> float:
    """Longest of the autocorrelation times of the counts and, where known, of E - mu.N."""
    part = c[torch.as_tensor(g.rows, device=c.occupations.device)]
    series = list(part.counts().cpu().numpy().T)
    if part.log_target is not None:
        series.append(to_numpy(part.log_target))
    # a species that never changes says nothing about the correlation
    moving = [x for x in series if np.ptp(x) > 0] or series[-1:]
    return max(integrated_autocorrelation_time([x[p] for p in g.pieces]) for x in moving)


def _doubt_chains(c: Configurations, g: Group) -> tuple[float, str] | None:
    ess = len(g.rows) / autocorrelation_time(c, g)
    if ess >= _FEWEST_EFFECTIVE:
        return None
    return ess, (
        f"{g.name}: {ess:.0f} effective of {len(g.rows)} chain samples (want {_FEWEST_EFFECTIVE})"
    )


def _check_given_sites(c: Configurations, g: Group) -> None:
    """Draws around given sites describe one restricted ensemble only if all share these sites."""
    if c.step is None:
        return
    if not c[torch.as_tensor(g.rows, device=c.occupations.device)].same_given:
        raise ValueError(
            f"rows at {g.name} were completed from different given sites; average every set of "
            "given sites separately (Configurations.by_given), or unweighted as chains"
        )


def stack(parts: list[Estimate]) -> Estimate:
    return Estimate(*(np.stack([getattr(p, n) for p in parts]) for n in ("value", "error", "ness")))


def to_numpy(x: torch.Tensor) -> np.ndarray:
    return x.detach().to(torch.float64).cpu().numpy()
