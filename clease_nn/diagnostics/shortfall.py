"""Where the weights of a model are poor, and which phase it draws too often or too seldom."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.diagnostics.regions import Region, regions, where
from clease_nn.diagnostics.shares import PhaseShare, phase_shares, with_error
from clease_nn.statistics import log_mean_exp, normalized_ess
from clease_nn.thermodynamics.groups import name as name_of
from clease_nn.thermodynamics.groups import rows_by_condition, to_numpy
from clease_nn.warnings import LostModeWarning, TrainingWarning

__all__ = ["FEWEST", "PhaseShare", "Region", "Shortfall", "shortfall"]

FEWEST = 10  # draws at a condition
_WANTED = 200  # effective samples
_SHOWN = 3  # regions and phases in words


@dataclass(frozen=True, eq=False)
class Shortfall:
    """Why NESS is low where it is low; ``print`` it.

    ``source.focus(report.conditions, report.gap)`` trains more where the gap is.

    Attributes
    ----------
    conditions : Conditions
    species : tuple of str
    n : ndarray of int, shape (conditions,)
        Draws.
    ness : ndarray, shape (conditions,)
    gap, gap_error : ndarray, shape (conditions,)
        KL(q || p) in nats. Without an independent ln Z it lacks what was never drawn.
    balance : ndarray, shape (conditions,)
        The part of the gap that is wrong shares of phases, ``sum_k q_k ln(q_k / p_k)`` over
        phases of shares ``q_k`` (drawn) and ``p_k``; the rest is poor fit within them (chain rule
        of the relative entropy). nan where phases were not looked for.
    phases : tuple of tuple of PhaseShare
        At every condition that is low, or where there are chains; empty at others.
    low : ndarray of bool, shape (conditions,)
        NESS or gap beyond the limit, or a phase lost.
    limit : float
        NESS below which a condition is low.
    regions : tuple of Region
        Neighbouring low conditions, the largest share of the gap first.
    """

    conditions: Conditions
    species: tuple[str, ...]
    n: np.ndarray
    ness: np.ndarray
    gap: np.ndarray
    gap_error: np.ndarray
    balance: np.ndarray
    phases: tuple[tuple[PhaseShare, ...], ...]
    low: np.ndarray
    limit: float
    regions: tuple[Region, ...]

    def where(self, k: int) -> str:
        """Condition ``k`` in words."""
        return where(self.conditions, self.species, [k])

    def describe(self, region: Region) -> str:
        """Where, how bad, and which phases are out of balance: one sentence."""
        k = region.worst
        worst = f"NESS {self.ness[k]:.2f}, gap {with_error(self.gap[k], self.gap_error[k])} nats"
        if len(region.rows) > 1:
            worst = f"worst {self.where(k)}: {worst}"
        if len(region.rows) == len(self.n):
            text = f"{region.where}: all {len(self.n)} conditions; {worst}"
        else:
            verb = "carry" if len(region.rows) > 1 else "carries"
            text = (
                f"{region.where}: {len(region.rows)} of {len(self.n)} conditions {verb} "
                f"{region.share:.0%} of the KL gap; {worst}"
            )
        if len(self.phases[k]) > 1 and self.gap[k] > 0:
            text += f", {min(self.balance[k] / self.gap[k], 1):.0%} of it wrong balance of phases"
        told = sorted(self.phases[k], key=lambda p: (not p.lost, -abs(p.excess.value)))
        told = [p for p in told if len(told) > 1 or p.lost][:_SHOWN]
        return "; ".join([text, *map(str, told)])

    def remedy(self, region: Region) -> str:
        """What to do about a region, in words."""
        k = region.worst
        if any(p.lost for i in region.rows for p in self.phases[i]):
            return (
                "the weights cannot know of a phase that was never drawn: train with chains that "
                "start from it, or anneal or refine from configurations of it"
            )
        effective = self.ness[k] * self.n[k]
        if self.balance[k] > 0.5 * self.gap[k]:
            first = (
                "train more there (source.focus(report.conditions, report.gap)), or anneal, which "
                "mends shares of phases without training"
            )
        else:
            first = (
                "train longer there (source.focus(report.conditions, report.gap)), or refine, "
                "which equilibrates within phases"
            )
        if effective >= _WANTED:
            return first
        times = _WANTED / effective
        return (
            f"{first}; until then draw {times:.{0 if times >= 10 else 1}f} times as many there "
            f"for {_WANTED} effective samples"
        )

    def problems(self) -> list[tuple[type[Warning], str]]:
        """What a user should know, in words, with the class of the warning; empty if nothing."""
        out = []
        for region in self.regions:
            lost = any(p.lost for i in region.rows for p in self.phases[i])
            out.append(
                (
                    LostModeWarning if lost else TrainingWarning,
                    f"{self.describe(region)}; remedy: {self.remedy(region)}",
                )
            )
        return out

    def warn(self) -> None:
        """Issue a warning for each of :meth:`problems`."""
        for category, text in self.problems():
            warnings.warn(text, category, stacklevel=2)

    def to_rows(self) -> list[dict]:
        """One flat, JSON-ready dictionary a condition, for tables."""
        region_of = {int(i): k for k, r in enumerate(self.regions) for i in r.rows}
        total = self.gap.sum()
        out = []
        for k in range(len(self.n)):
            row = {"temperature": self.conditions.temperature[k].item()}
            row |= {
                f"mu_{s}": m
                for s, m in zip(self.species, self.conditions.mu[k].tolist(), strict=True)
            }
            out.append(
                row
                | {
                    "n": int(self.n[k]),
                    "ness": float(self.ness[k]),
                    "gap": float(self.gap[k]),
                    "gap_error": float(self.gap_error[k]),
                    "share_of_gap": float(self.gap[k] / total) if total > 0 else 0.0,
                    "balance": float(self.balance[k]) if np.isfinite(self.balance[k]) else None,
                    "low": bool(self.low[k]),
                    "region": region_of.get(k),
                }
            )
        return out

    def phase_rows(self) -> list[dict]:
        """One flat, JSON-ready dictionary a phase and condition."""
        out = []
        for k, phases in enumerate(self.phases):
            for p in phases:
                row = {"temperature": self.conditions.temperature[k].item()}
                row |= {
                    f"mu_{s}": m
                    for s, m in zip(self.species, self.conditions.mu[k].tolist(), strict=True)
                }
                row |= {"phase": p.name, "energy_per_site": float(p.energy), "lost": p.lost}
                row |= {
                    f"x_{s}": float(x) for s, x in zip(self.species, p.composition, strict=True)
                }
                for key in ("drawn", "expected", "chains"):
                    e = getattr(p, key)
                    row[key] = None if e is None else float(e.value)
                    row[f"{key}_error"] = None if e is None else float(e.error)
                out.append(row)
        return out

    def __str__(self) -> str:
        if not self.regions:
            return (
                f"nothing to report: NESS {self.ness.min():.2f} or more at all {len(self.n)} "
                f"conditions, KL gap {self.gap.mean():.3f} nats on average"
            )
        lines = [
            f"{int(self.low.sum())} of {len(self.n)} conditions low (NESS below {self.limit:g} or "
            f"as bad a gap, or a phase lost); NESS mean {self.ness.mean():.2f}, "
            f"KL gap {self.gap.mean():.3f} nats on average"
        ]
        for k, region in enumerate(self.regions[:_SHOWN]):
            lines.append(f"{k + 1}. {self.describe(region)}")
            lines.append(f"   Remedy: {self.remedy(region)}")
        if len(self.regions) > _SHOWN:
            rest = sum(r.share for r in self.regions[_SHOWN:])
            lines.append(f"{len(self.regions) - _SHOWN} more regions carry {rest:.0%} of the gap")
        return "\n".join(lines)


def shortfall(
    c: Configurations,
    *,
    chains: Configurations | None = None,
    log_z=None,
    limit: float = 0.5,
    phase_of: Callable[[Configurations], Sequence] | None = None,
) -> Shortfall:
    """Say where a model is poor and which phases it draws too often or too seldom.

    A condition is low where NESS is below ``limit``, where the gap is above that of log-normal
    weights with this NESS, ``-ln(limit) / 2``, by more than four of its errors, or where a phase
    of the chains was never drawn. Low conditions with no other between them are one region.

    Phases are told apart at each condition by valleys in the distribution of composition and
    energy, draws and weights (and chains) taken together; a phase then differs from another by a
    few atoms or a few kT at least, and has at least three rows. Variants of one ordered structure
    are one phase.

    Parameters
    ----------
    c : Configurations
        Weighted draws, scored, at least 10 at each of many conditions.
    chains : Configurations, optional
        Configurations drawn without the model, scored, at some of these conditions: rows of one
        ``chain`` in time order, rows without ``chain`` independent. They alone can show a phase
        that the model never draws.
    log_z : Estimate, Tensor or array_like, shape (conditions,), optional
        Independent ln Z in the order in which conditions first appear in ``c``. Default: that of
        the draws themselves.
    limit : float
        Between 0 and 1.
    phase_of : callable, optional
        Configurations -> one label (text) a row, instead of the valleys: by long-range order, say.

    Raises
    ------
    ValueError
        If rows are not weighted or not scored, are completed from different given sites, a
        condition has fewer than 10 draws or a weight that is not finite, chains are at other
        conditions or of another lattice, or ``log_z`` or labels have another length.

    Examples
    --------
    A model of two states that draws the wrong one nearly always:

    >>> from clease_nn.ensemble import SemiGrandCanonical
    >>> from clease_nn.lattice import Lattice
    >>> lattice, at = Lattice.square(4), Conditions([600.0], [[0.0, 0.0]]).repeat(500)
    >>> rich = torch.arange(500) % 25 == 0
    >>> x = rich[:, None].expand(500, 16).to(torch.int8)
    >>> log_q = torch.where(rich, 0.04, 0.96).double().log()
    >>> flat = SemiGrandCanonical(lambda lattice, x: torch.zeros(len(x)))
    >>> c = flat.score(Configurations(lattice, at, x, log_prob=log_q))
    >>> print(shortfall(c).regions[0].where)
    600 K
    >>> print(*shortfall(c).phases[0], sep="; ")
    Cu-like (x_Cu 1.00): drawn 96.0(9) %, should be 50(6) %; Au-like (x_Cu 0.00): drawn 4.0(9) %, \
should be 50(6) %
    """
    _check(c, limit)
    c = c.to("cpu")
    chains = None if chains is None else chains.to("cpu")
    by_condition = list(rows_by_condition(c))
    at = c.conditions[torch.as_tensor([rows[0] for rows in by_condition])]
    n = len(by_condition)
    if log_z is not None:
        log_z = np.atleast_1d(to_numpy(torch.as_tensor(getattr(log_z, "value", log_z))))
        if log_z.shape != (n,) or not np.isfinite(log_z).all():
            raise ValueError(f"log_z must be {n} finite numbers, one a condition, got {log_z}")
    beside = _beside(c, at, chains)
    ness, gap, error, balance = np.full((4, n), np.nan)
    phases = []
    low = np.zeros(n, dtype=bool)
    for k, rows in enumerate(by_condition):
        part = c[torch.as_tensor(rows)]
        log_w = _log_weights(part)
        ness[k] = normalized_ess(log_w)
        gap[k], error[k] = _gap(log_w, None if log_z is None else log_z[k])
        low[k] = ness[k] < limit or gap[k] > -0.5 * np.log(limit) + 4 * error[k]
        found = ()
        if low[k] or beside[k] is not None:
            found, balance[k] = phase_shares(part, log_w, beside[k], phase_of)
            low[k] |= any(p.lost for p in found)
        phases.append(found)
    return Shortfall(
        at,
        c.lattice.species,
        np.array([len(rows) for rows in by_condition]),
        ness,
        gap,
        error,
        balance,
        tuple(phases),
        low,
        float(limit),
        regions(at, c.lattice.species, gap, low),
    )


# ------------------------------------------------------------------ input
def _check(c, limit) -> None:
    if not isinstance(c, Configurations):
        raise TypeError(f"shortfall reads weighted Configurations, got {type(c).__name__}")
    if not 0 < limit < 1:
        raise ValueError(f"limit is a NESS between 0 and 1, got {limit}")
    if c.log_prob is None or c.log_target is None or c.energy is None:
        raise ValueError(
            "shortfall needs weighted draws: log_prob, energy and log_target; draw them with "
            "sample(), or score them with SemiGrandCanonical(energy).score(c)"
        )


def _log_weights(part: Configurations) -> np.ndarray:
    where = name_of(part.conditions[:1])
    log_w = to_numpy(part.log_weight)
    if len(log_w) < FEWEST:
        raise ValueError(
            f"only {len(log_w)} draws at {where}: shares of phases need at least {FEWEST}, better "
            f"{_WANTED} or more"
        )
    if not np.isfinite(log_w).all():
        raise ValueError(f"a log weight at {where} is NaN or infinite; check log_prob and energy")
    if not part.same_given:
        raise ValueError(
            f"rows at {where} were completed from different given sites; read each set of given "
            "sites separately (Configurations.by_given)"
        )
    return log_w


def _beside(c: Configurations, at: Conditions, chains) -> list[Configurations | None]:
    """Rows of the chains at every condition."""
    if chains is None:
        return [None] * len(at)
    if chains.lattice.fingerprint != c.lattice.fingerprint:
        raise ValueError("chains are of another lattice than the draws")
    if chains.energy is None:
        raise ValueError("chains carry no energy; score them: SemiGrandCanonical(energy).score(c)")
    out = []
    for k in range(len(at)):
        same = (chains.conditions.temperature == at.temperature[k]) & (
            chains.conditions.mu == at.mu[k]
        ).all(1)
        out.append(chains[same] if int(same.sum()) > 1 else None)
    if all(part is None for part in out):
        raise ValueError(
            f"chains have no two rows at any condition of the draws, such as {name_of(at[0])}"
        )
    return out


# ------------------------------------------------------------------ one condition
def _gap(log_w: np.ndarray, log_z: float | None) -> tuple[float, float]:
    """KL(q || p) in nats with its error: against ln Z, or by the draws alone (jackknife)."""
    n = len(log_w)
    if log_z is not None:
        d = np.expm1(log_w - log_z) - (log_w - log_z)
        return float(d.mean()), float(d.std(ddof=1) / np.sqrt(n))
    value = log_mean_exp(log_w).value - log_w.mean()
    w = np.exp(log_w - log_w.max())
    left = np.maximum(w.sum() - w, 1e-300)
    others = np.log(left / (n - 1)) - (log_w.sum() - log_w) / (n - 1)
    # never negative but for rounding
    return max(float(value), 0.0), float(np.sqrt((n - 1) * others.var()))
