"""What a parallel tempering run hands back."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch

from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.cost import Cost
from clease_nn.statistics import Estimate
from clease_nn.warnings import ChainWarning

__all__ = ["TemperingResult"]


@dataclass(frozen=True, eq=False)
class TemperingResult:
    """What a parallel tempering run found.

    Attributes
    ----------
    configurations : Configurations
        Unweighted configurations, chain by chain, rows of a chain in time order; ``chain`` is the
        index of the condition in ``conditions``.
    conditions : Conditions
        Conditions of the grid, the last axis fastest.
    log_z : Estimate or None
        ln Z of every condition with one standard error, autocorrelation included.
    lower_bound : Tensor or None
        Rigorous lower bound of ln Z from the lowest configurations seen and their translations.
    swap_acceptance : ndarray, shape (axes,)
        Share of exchanges accepted along temperature and each chemical potential.
    weakest_link : float
        Share of exchanges accepted by the weakest pair of neighbours that is needed to join all
        conditions; far smaller than its neighbours' it separates two phases.
    energy_evaluations : int
        All of the run's, as ``cost`` has it; a single-site energy difference counts as one.
    """

    configurations: Configurations
    conditions: Conditions
    log_z: Estimate | None
    lower_bound: torch.Tensor | None
    swap_acceptance: np.ndarray
    weakest_link: float
    energy_evaluations: int

    @property
    def cost(self) -> Cost:
        """What the run has cost: growth of the starts, burn-in and the ladder included."""
        return self.configurations.cost

    def below_bound(self, sigmas: float = 4.0) -> np.ndarray:
        """(conditions,) bool: ln Z lies below its lower bound by so many errors.

        There the chains certainly missed the stable phase. False everywhere without ln Z.
        """
        if self.log_z is None:
            return np.zeros(len(self.conditions), dtype=bool)
        short = self.lower_bound.numpy() - self.log_z.value
        return short > sigmas * self.log_z.error + 1e-6

    def warn(self, n_steps: int) -> None:
        """Warn (ChainWarning) of a grid that hardly exchanges and of ln Z below its bound.

        Parameters
        ----------
        n_steps : int
            Steps of the run.
        """
        if self.weakest_link * n_steps < 10:
            warnings.warn(
                f"parts of the grid exchanged only {self.weakest_link:.1%} of the times "
                f"(mean along the axes: {np.round(self.swap_acceptance, 3)}); ln Z and its "
                "error are not reliable. Use a finer grid or more steps",
                ChainWarning,
                stacklevel=3,
            )
        bad = np.flatnonzero(self.below_bound())
        if len(bad):
            short = self.lower_bound.numpy() - self.log_z.value
            k = bad[np.argmax(short[bad])]
            warnings.warn(
                f"ln Z lies below its rigorous lower bound at {len(bad)} of {len(self.conditions)} "
                f"conditions, by {short[k]:.2f} at {float(self.conditions.temperature[k]):.0f} K, "
                f"mu {self.conditions.mu[k].tolist()} eV: the chains missed the stable phase "
                "there. Start from other configurations, use a denser grid or more steps",
                ChainWarning,
                stacklevel=3,
            )
