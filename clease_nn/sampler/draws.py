"""Unweighted chains from a model's weighted draws."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import torch

from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import Lattice
from clease_nn.models import AbstractOccupationModel
from clease_nn.sampling import sample
from clease_nn.statistics import normalized_ess
from clease_nn.warnings import LowESSWarning

__all__ = ["draw_chain", "resample_chain"]

_SURPLUS = (128, 4096)  # draws before an unweighted chain: at least, at most
_SURPLUS_ESS = 40


def resample_chain(c: Configurations, rng: torch.Generator, n: int) -> Configurations:
    """Unweighted configurations from weighted ones: an independence Metropolis-Hastings chain.

    Parameters
    ----------
    c : Configurations
        Independent draws at one condition with ``log_prob`` and ``log_target``, at least ``n``
        of them. Half of the surplus gives the start of the chain, drawn by weight; the chain
        goes through the other half before its first row.
    n : int
        Length of the chain; a rejected proposal repeats the row before it.

    Returns
    -------
    Configurations
        ``chain`` is 0 everywhere, ``log_prob`` None, rows in time order.
    """
    if not 1 <= n <= len(c):
        raise ValueError(f"n must lie between 1 and the {len(c)} draws given, got {n}")
    log_w = c.log_weight
    start = len(c) - n
    pool = (start + 1) // 2
    log_u = torch.rand(len(c), generator=rng, dtype=torch.float64).log().tolist()
    if pool:
        at = int(torch.multinomial((log_w[:pool] - log_w[:pool].max()).exp(), 1, generator=rng))
    else:
        at = 0
    rows = []
    accepted = 0
    log_w = log_w.tolist()
    for k in range(pool, len(c)):
        if log_u[k] < log_w[k] - log_w[at]:
            at = k
            accepted += k >= start
        if k >= start:
            rows.append(at)
    provenance = {
        **c.provenance,
        "method": "independence Metropolis-Hastings chain, unweighted",
        "acceptance": accepted / n,
        "surplus": start,
    }
    out = replace(c[torch.as_tensor(rows)], log_prob=None, step=None)
    return replace(out, chain=torch.zeros(n, dtype=torch.int64), provenance=provenance)


def draw_chain(
    model: AbstractOccupationModel,
    ensemble: SemiGrandCanonical,
    lattice: Lattice,
    conditions: Conditions,
    n: int,
    rng: torch.Generator,
    *,
    precision: str = "auto",
) -> Configurations:
    """Unweighted configurations at one condition, however few are asked for.

    The surplus that :func:`resample_chain` starts from has 40 effective samples by its own
    weights: a poor model costs more draws, up to a limit, and then gives a ``LowESSWarning``.

    Parameters
    ----------
    conditions : Conditions
        One row.
    n : int
        Length of the chain.

    Returns
    -------
    Configurations
        As :func:`resample_chain`; ``provenance`` has ``surplus`` (draws before the chain) and
        ``effective_draws`` (effective number of all draws).
    """

    def draw(k: int) -> Configurations:
        rows = conditions.repeat(k)
        return sample(model, ensemble, lattice, rows, rng, precision=precision)

    surplus, wanted = None, _SURPLUS[0]
    while surplus is None or len(surplus) < wanted:
        parts = [] if surplus is None else [surplus]
        surplus = Configurations.cat([*parts, draw(wanted - sum(map(len, parts)))])
        needed = np.ceil(_SURPLUS_ESS / normalized_ess(surplus.log_weight))
        wanted = int(np.clip(needed, *_SURPLUS))
    c = Configurations.cat([surplus, draw(n)])
    effective = len(c) * float(normalized_ess(c.log_weight))
    if effective < max(_SURPLUS_ESS / 2, 0.05 * n):
        warnings.warn(
            f"{n} unweighted configurations come from {len(c)} draws of the model that are worth "
            f"{effective:.1f} independent ones: repeats prevail and the first may be off; train "
            "longer or on a narrower range, or use weighted draws and look at their errors",
            LowESSWarning,
            stacklevel=3,
        )
    out = resample_chain(c, rng, n)
    return replace(out, provenance={**out.provenance, "effective_draws": effective})
