"""Stages: which batches, and what is minimised on them, for how long."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass

from clease_nn.objectives import cross_entropy
from clease_nn.sources import AbstractSource

__all__ = ["Stage"]


@dataclass(frozen=True, eq=False)
class Stage:
    """Part of a training run: where its batches come from, and what is minimised on them.

    Attributes
    ----------
    source : AbstractSource
    objective : callable
        ``objective(model, batch) -> (loss, metrics)``, one of :mod:`clease_nn.objectives` or
        another; it must fit the batches of the source.
    share : float
        Of the budget, in units of the sum of the shares of all stages.

    Raises
    ------
    ValueError
        If ``share`` is not positive and finite.
    """

    source: AbstractSource
    objective: Callable = cross_entropy
    share: float = 1.0

    def __post_init__(self):
        if not 0 < self.share < math.inf:
            raise ValueError(f"the share of a stage must be positive and finite, got {self.share}")

    @property
    def name(self) -> tuple[str, str]:
        """Class of the source, and the objective with its settings."""
        objective = self.objective
        if is_dataclass(objective):
            return type(self.source).__name__, repr(objective)
        name = getattr(objective, "__name__", type(objective).__name__)
        return type(self.source).__name__, name
