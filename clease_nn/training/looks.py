"""Looks at a model in training: NESS and KL gap at a few conditions, and where to train more."""

from __future__ import annotations

import copy

import numpy as np
import torch

from clease_nn.conditions import ConditionRange, Conditions
from clease_nn.configurations import Configurations
from clease_nn.diagnostics import validate
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import Lattice
from clease_nn.models import AbstractOccupationModel

__all__ = ["CONDITIONS", "distinct", "draws", "focus_map", "look", "spread"]

CONDITIONS = 16
"""Conditions of a look."""

_DRAWS, _FEWEST = 16, 4
_LARGE = 512  # sites from which on there are fewer draws
_SURE = 8  # times as many before a run is ended by what a look has seen
_NOISE = 2.0  # of the logarithm of a gap, over the root of the number of draws


def spread(box: ConditionRange, n: int, skip: int = 0) -> Conditions:
    """``n`` conditions that cover the box evenly; with ``skip``, those that follow so many."""
    sobol = torch.quasirandom.SobolEngine(1 + box.n_axes, scramble=False)
    return box.at(sobol.draw(skip + n + 1)[skip + 1 :].numpy())


def distinct(c: Configurations) -> Conditions:
    """Distinct conditions in the order of first appearance."""
    keys = torch.cat([c.conditions.temperature[:, None], c.conditions.mu], 1).numpy()
    _, first = np.unique(keys, axis=0, return_index=True)
    return c.conditions[torch.as_tensor(np.sort(first))]


def draws(n_sites: int) -> int:
    """Draws at each condition of a look: fewer on large lattices, for about the same cost."""
    return int(np.clip(_DRAWS * _LARGE / n_sites, _FEWEST, _DRAWS))


def look(
    model: AbstractOccupationModel,
    ensemble: SemiGrandCanonical,
    lattice: Lattice,
    box: ConditionRange,
    before: int,
    target_ness: float | None,
    rng: torch.Generator,
) -> dict:
    """NESS and KL gap of a few draws at 16 conditions, JSON-ready: a look, not a result.

    Drawn on the CPU, in the passes that the model draws in.

    Parameters
    ----------
    before : int
        Looks taken before; each has other conditions, and together they cover the range finely.
    target_ness : float, optional
        A mean NESS that reaches it is measured again with more draws.
    """
    if next(model.parameters()).device.type != "cpu":
        model = copy.deepcopy(model).cpu()
    n = draws(lattice.n_sites)
    where = spread(box, CONDITIONS, CONDITIONS * before)
    report = validate(model, ensemble, None, where, n, rng, lattice=lattice)
    if target_ness is not None and report.ness.mean() >= target_ness:
        report = validate(model, ensemble, None, where, _SURE * n, rng, lattice=lattice)
    return {
        "draws": n,
        "temperature": where.temperature.tolist(),
        "mu": where.mu.tolist(),
        "gap": report.reverse_kl.tolist(),
        "ness": report.ness.tolist(),
    }


def focus_map(looks: list[dict]) -> tuple[Conditions, np.ndarray]:
    """Where the model was bad, from all looks: conditions, and KL gaps in nats.

    Gaps of earlier looks are brought to the mean of the last one, since the model has improved;
    all are drawn towards their geometric mean by the share of their spread that noise alone
    would make. Infinite gaps count as the largest of their look, unknown ones (nan) are left out.
    """
    kept = []
    for entry in looks:
        gap = np.array(entry["gap"], dtype=float)
        finite = np.isfinite(gap)
        # an impossible draw is at least as bad as the worst of the others
        gap[gap == np.inf] = gap[finite].max(initial=1.0)
        rows = ~np.isnan(gap)
        if rows.any():
            kept.append(
                [gap[rows], np.array(entry["temperature"])[rows], np.array(entry["mu"])[rows]]
            )
    if not kept:
        return Conditions(looks[-1]["temperature"], looks[-1]["mu"]), np.array(looks[-1]["gap"])
    gaps, temperature, mu = zip(*kept, strict=True)
    level = np.mean(gaps[-1])
    relative = [gap / max(np.mean(gap), 1e-12) for gap in gaps]
    log_gap = np.log(np.maximum(np.concatenate(relative), 1e-2))
    spread_of = log_gap.var()
    shrink = max(0.0, 1.0 - _NOISE**2 / looks[-1]["draws"] / spread_of) if spread_of > 0 else 0.0
    mean = log_gap.mean()
    gap = level * np.exp(mean + shrink * (log_gap - mean))
    return Conditions(np.concatenate(temperature), np.concatenate(mu)), gap
