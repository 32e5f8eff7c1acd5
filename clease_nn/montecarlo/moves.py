"""What a move of many chains is: exact, and blind to who proposes it."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from clease_nn.configurations import Configurations

__all__ = ["Move"]


class Move(Protocol):
    """One exact move of every row, each at its own conditions.

    Whatever it does leaves ``exp(-(E - mu.N)/kT)`` of every row stationary, so that moves of
    different kinds may follow each other: single-site sweeps, exchanges, blocks that a model
    redraws.
    """

    def __call__(self, c: Configurations) -> tuple[Configurations, Tensor]:
        """The next configurations, and which rows have accepted.

        Parameters
        ----------
        c : Configurations
            Complete and scored (``energy``, ``log_target``).

        Returns
        -------
        Configurations
            Scored; rows that rejected are as they were.
        Tensor, shape (batch,), bool
        """
        ...
