"""Phases at one condition: how often they are drawn, and how often they should be."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from ase.formula import Formula

from clease_nn.configurations import Configurations
from clease_nn.diagnostics.basins import basins
from clease_nn.statistics import Estimate, series_mean, weighted_mean
from clease_nn.thermodynamics.groups import to_numpy

__all__ = ["PhaseShare", "phase_shares", "with_error"]

_MISSED = 5.0  # draws expected of a phase that has none, from which on it counts as lost
_CLOSE = 0.06  # of the site fractions of a simple compound


@dataclass(frozen=True, eq=False)
class PhaseShare:
    """One phase at one condition: how often it is drawn, and how often it should be.

    Attributes
    ----------
    name : str
        Such as ``"AuCu-like (x_Au 0.50)"``; ``"lower energy"`` and so on tell phases of one
        composition apart.
    composition : ndarray, shape (species,)
        Mean share of the active sites.
    energy : float
        Mean energy in eV per active site.
    drawn : Estimate
        Share of the draws.
    expected : Estimate
        Share by the importance weights: zero where nothing was drawn, whatever the truth.
    excess : Estimate
        ``drawn - expected``, its error with their correlation.
    chains : Estimate or None
        Share of configurations that the model had no hand in.
    lost : bool
        Never drawn, although the chains make five draws or more of it likely.
    """

    name: str
    composition: np.ndarray
    energy: float
    drawn: Estimate
    expected: Estimate
    excess: Estimate
    chains: Estimate | None = None
    lost: bool = False

    def __str__(self) -> str:
        if self.lost:
            return f"{self.name}: never drawn, chains say {_percent(self.chains)}"
        text = f"{self.name}: drawn {_percent(self.drawn)}, should be {_percent(self.expected)}"
        return text if self.chains is None else f"{text} (chains {_percent(self.chains)})"


def phase_shares(
    part: Configurations, log_w: np.ndarray, chains: Configurations | None, phase_of
) -> tuple[tuple[PhaseShare, ...], float]:
    """Phases of one condition, the most drawn first, and the gap between them in nats.

    Arguments as :func:`~clease_nn.diagnostics.shortfall`, for the rows of one condition.
    """
    everything = part if chains is None else _together(part, chains)
    n = len(part)
    w = np.exp(log_w - log_w.max())
    w /= w.sum()
    mass = np.full(n, 1 / n) + np.minimum(w, 10 / n)
    if chains is not None:
        mass = np.concatenate([mass, np.full(len(chains), 2 / len(chains))])
    counts = everything.counts().cpu().numpy()
    energy = to_numpy(everything.energy)
    if phase_of is None:
        labels = basins(counts, energy / part.conditions.kT[0].item(), mass)
        names = None
    else:
        names, labels = np.unique(np.asarray(phase_of(everything)).astype(str), return_inverse=True)
        if labels.shape != (len(everything),):
            raise ValueError(
                f"phase_of must give one label a row, {len(everything)}, got {labels.shape}"
            )
    out = []
    for label in range(labels.max() + 1):
        here = labels == label
        x = counts[here] / part.lattice.n_sites
        inside = here[:n].astype(float)
        q, p = inside.mean(), float(w @ inside)
        influence = (inside - q) / n - w * (inside - p)
        found = None
        if chains is not None:
            found = _chain_share(chains, here[n:].astype(float))
        share = mass[here] / mass[here].sum()
        out.append(
            PhaseShare(
                "" if names is None else str(names[label]),
                share @ x,
                float(share @ energy[here] / part.lattice.n_sites),
                Estimate(q, float(np.sqrt(q * (1 - q) / (n - 1)))),
                weighted_mean(inside, log_w),
                Estimate(q - p, float(np.sqrt(n / (n - 1) * influence @ influence))),
                found,
                bool(found is not None and q == 0 and n * found.value > _MISSED
                     and found.value > 3 * found.error),
            )
        )  # fmt: skip
    if names is None:
        out = _named(out, part.lattice.species)
    out.sort(key=lambda s: -s.drawn.value)
    balance = sum(
        s.drawn.value * np.log(s.drawn.value / max(s.expected.value, 1e-300))
        for s in out
        if s.drawn.value > 0
    )
    return tuple(out), max(float(balance), 0.0)


def _together(part: Configurations, chains: Configurations) -> Configurations:
    columns = ("lattice", "conditions", "occupations", "energy")
    return Configurations.cat(
        Configurations(**{k: getattr(p, k) for k in columns}) for p in (part, chains)
    )


def _chain_share(chains: Configurations, inside: np.ndarray) -> Estimate:
    label = np.arange(len(chains)) if chains.chain is None else chains.chain.cpu().numpy()
    mean = series_mean([inside[label == k] for k in np.unique(label)])
    # a phase that fills all rows, or none, has no variance to see
    return mean if np.ptp(inside) else Estimate(mean.value, 0.0)


# ------------------------------------------------------------------ names
def _named(found: list[PhaseShare], species) -> list[PhaseShare]:
    names = [_name(p.composition, species) for p in found]
    out = []
    for k, p in enumerate(found):
        alike = sorted(found[i].energy for i in range(len(found)) if names[i] == names[k])
        rank = "" if len(alike) == 1 else ", lower energy" if p.energy == alike[0] else (
            ", higher energy" if p.energy == alike[-1] else ", medium energy"
        )  # fmt: skip
        out.append(replace(p, name=names[k] + rank))
    return out


def _name(x: np.ndarray, species) -> str:
    """The simplest compound of about this composition, and the composition itself."""
    fractions = ", ".join(f"x_{s} {v:.2f}" for s, v in zip(species[:-1], x[:-1], strict=True))
    for parts in (1, 2, 3, 4):
        counts = np.round(x * parts)
        if counts.sum() == parts and np.abs(x - counts / parts).max() < _CLOSE:
            atoms = {s: int(m) for s, m in zip(species, counts, strict=True) if m}
            formula = Formula.from_dict(atoms).reduce()[0].format("metal")
            return f"{formula}-like ({fractions})" if fractions else f"{formula}-like"
    return fractions


def with_error(value: float, error: float) -> str:
    """0.83(5)"""
    if not (np.isfinite(error) and error > 0):
        return f"{value:.3g}"
    digits = int(np.clip(-np.floor(np.log10(error)), 0, 6))
    if round(error * 10**digits) == 10:
        digits = max(digits - 1, 0)
    shown = f"{error:.0f}" if digits == 0 else f"{round(error * 10**digits)}"
    return f"{value:.{digits}f}({shown})"


def _percent(share: Estimate) -> str:
    return f"{with_error(100 * share.value, 100 * share.error)} %"
