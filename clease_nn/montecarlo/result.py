"""What a parallel tempering run hands back."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import numpy as np
import torch

from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.cost import Cost
from clease_nn.statistics import Estimate
from clease_nn.warnings import ChainWarning

__all__ = ["TemperingResult", "named"]


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
    frozen : ndarray of bool, shape (conditions,), optional
        Conditions whose chain was frozen when the measured part began, although frozen chains
        had been replaced twice. None: not tested.
    move_acceptance : ndarray, shape (moves, conditions)
        Share of accepted moves of each further kind in the measured part.
    conflict : ndarray, shape (conditions,), optional
        What the share of the time in the ground state moved ln Z by, where that is more than four
        errors of ln Z without it; zero elsewhere. Part of the error of ``log_z``.
    """

    configurations: Configurations
    conditions: Conditions
    log_z: Estimate | None
    lower_bound: torch.Tensor | None
    swap_acceptance: np.ndarray
    weakest_link: float
    energy_evaluations: int
    frozen: np.ndarray | None = None
    move_acceptance: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    conflict: np.ndarray | None = None

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
        """Warn (ChainWarning) of chains that do not exchange, froze or missed a phase.

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
        if self.frozen is not None and self.frozen.any():
            warnings.warn(
                f"{int(self.frozen.sum())} of {len(self.frozen)} chains were frozen when the "
                f"measured part began: {named(self.conditions, np.flatnonzero(self.frozen))}. Use "
                "start='ordered', a longer burn-in or a denser grid",
                ChainWarning,
                stacklevel=3,
            )
        if self.conflict is not None and self.conflict.any():
            size = np.abs(self.conflict)
            bad = np.argsort(-size, kind="stable")[: np.count_nonzero(size)]
            warnings.warn(
                f"ln Z from the share of the ground state and from exchanges with hotter chains "
                f"differ by up to {size.max():.2f} at {len(bad)} of {len(size)} conditions: "
                f"{named(self.conditions, bad)}: chains did not reach all variants or phases; the "
                "error holds the difference. Use more steps or a denser grid",
                ChainWarning,
                stacklevel=3,
            )
        bad = np.flatnonzero(self.below_bound())
        if len(bad):
            short = self.lower_bound.numpy() - self.log_z.value
            bad = bad[np.argsort(-short[bad], kind="stable")]
            warnings.warn(
                f"ln Z lies below its rigorous lower bound at {len(bad)} of {len(self.conditions)} "
                f"conditions, by up to {short[bad[0]]:.2f}: {named(self.conditions, bad)}: the "
                "chains missed the stable phase there. Use start='ordered', start from "
                "configurations of that phase, use a denser grid or more steps",
                ChainWarning,
                stacklevel=3,
            )


def named(conditions: Conditions, rows: np.ndarray, most: int = 5) -> str:
    """Some conditions in words, for warnings.

    Examples
    --------
    >>> named(Conditions([300.0, 400.0], [[0.0, 0.1]] * 2), np.array([0, 1]), most=1)
    '300 K, mu [0.0, 0.1] eV and 1 more'
    """
    words = [
        f"{float(conditions.temperature[k]):.0f} K, mu "
        f"{np.round(conditions.mu[k].cpu().numpy(), 6).tolist()} eV"
        for k in rows[:most]
    ]
    rest = len(rows) - len(words)
    return "; ".join(words) + (f" and {rest} more" if rest > 0 else "")
