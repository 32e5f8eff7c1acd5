"""Weighted draws made unweighted, for formats that have no place for weights."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace

import torch

from clease_nn.configurations import Configurations
from clease_nn.sampler.draws import resample_chain
from clease_nn.statistics import normalized_ess
from clease_nn.warnings import LowESSWarning

__all__ = ["by_condition", "is_weighted", "unweighted"]

_START = 128  # draws at most that find the start of a chain
_FEWEST_EFFECTIVE = 20


def is_weighted(c: Configurations) -> bool:
    """Whether rows are draws of a model, to be weighted before they mean anything.

    Examples
    --------
    >>> from clease_nn import Conditions, Lattice
    >>> lattice = Lattice.square(2)
    >>> is_weighted(Configurations.unknown(lattice, Conditions([300.0], [[0.0, 0.0]])))
    False
    """
    return c.log_prob is not None


def by_condition(c: Configurations) -> Iterator[Configurations]:
    """Rows of each distinct condition, in the order of their first appearance."""
    key = torch.cat([c.conditions.temperature[:, None], c.conditions.mu], 1).cpu()
    _, group = torch.unique(key, dim=0, return_inverse=True)
    for k in dict.fromkeys(group.tolist()):
        yield c[(group == k).nonzero()[:, 0].to(c.occupations.device)]


def unweighted(c: Configurations, seed: int) -> Configurations:
    """Equally weighted configurations from weighted draws, condition by condition.

    The draws of a condition are the proposals of an independence Metropolis-Hastings chain with
    acceptance ``min(1, w(new) / w(now))``; a rejected one repeats the row before it. A fifth of
    the draws, 128 at most, is spent on the start of the chain. What remains is worth no more
    than the weighted draws, and says so: its autocorrelation time is that of the repeats.

    Parameters
    ----------
    c : Configurations
        Independent draws with ``log_prob`` and ``log_target``.
    seed : int

    Returns
    -------
    Configurations
        ``chain`` numbers the conditions, rows in time order; ``log_prob`` and ``step`` are None;
        ``provenance`` has ``method``, and lists of ``acceptance``, ``surplus`` and
        ``effective_draws``, one entry a chain.

    Raises
    ------
    ValueError
        If the rows have no weights, or draws of one condition were completed around different
        given sites: their weights have no common normalisation.

    Warns
    -----
    LowESSWarning
        Where the draws are worth fewer than 20 independent ones.
    """
    if not is_weighted(c) or c.log_target is None:
        raise ValueError(
            "only draws with log_prob and log_target can be resampled"
            + ("; score them first" if is_weighted(c) else ": these carry no weights")
        )
    rng = torch.Generator().manual_seed(int(seed))
    parts, details = [], {"acceptance": [], "surplus": [], "effective_draws": []}
    for k, rows in enumerate(by_condition(c.to("cpu"))):
        if not rows.same_given:
            raise ValueError(
                f"draws at {rows.conditions.temperature[0].item():g} K were completed from "
                "different given sites: their weights cannot be compared; resample every set of "
                "given sites separately"
            )
        effective = len(rows) * float(normalized_ess(rows.log_weight))
        if effective < _FEWEST_EFFECTIVE:
            warnings.warn(
                f"{len(rows)} draws at {rows.conditions.temperature[0].item():g} K are worth "
                f"{effective:.1f} independent ones: resampled, repeats prevail. Draw more, or "
                "keep the weights",
                LowESSWarning,
                stacklevel=2,
            )
        chain = resample_chain(rows, rng, len(rows) - min(len(rows) // 5, _START))
        parts.append(replace(chain, chain=torch.full((len(chain),), k)))
        details["acceptance"].append(chain.provenance["acceptance"])
        details["surplus"].append(chain.provenance["surplus"])
        details["effective_draws"].append(effective)
    method = parts[0].provenance["method"]
    out = Configurations.cat(parts)
    return replace(out, provenance={**c.provenance, "method": method, **details})
