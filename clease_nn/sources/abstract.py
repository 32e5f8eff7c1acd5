"""What every source of training batches offers."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np

from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.models import AbstractOccupationModel
from clease_nn.objectives import CompleteBatch, MaskedBatch

__all__ = ["AbstractSource"]


class AbstractSource(ABC):
    """A stateful, resumable stream of training batches."""

    @abstractmethod
    def batch(self, size: int, model: AbstractOccupationModel) -> MaskedBatch | CompleteBatch:
        """The next batch of about ``size`` rows for the model that is being trained."""

    def warm_up(
        self, size: int, model: AbstractOccupationModel
    ) -> Iterator[MaskedBatch | CompleteBatch]:
        """Batches of every kind that will come: what is compiled and burnt in before training."""
        yield self.batch(size, model)

    @abstractmethod
    def chain_configurations(self, n_conditions: int, n_each: int) -> Configurations | None:
        """Configurations independent of any model, for validation; None if there are none.

        ``n_conditions`` conditions spread over the range, ``n_each`` rows at each, chain by
        chain, rows in time order.
        """

    def focus(self, conditions: Conditions, gap: np.ndarray) -> None:  # noqa: B027
        """Learn where the model was measured to be bad; sources that cannot choose do nothing.

        Parameters
        ----------
        conditions : Conditions
            Where it was measured.
        gap : ndarray, shape (conditions,)
            KL gap there in nats. Rows of later batches are drawn in proportion to it, with a
            floor.
        """

    @property
    @abstractmethod
    def energy_evaluations(self) -> int:
        """Energies evaluated so far (a single-site energy difference counts as one)."""

    @abstractmethod
    def state_dict(self) -> dict:
        """Everything that an exact continuation needs."""

    @abstractmethod
    def load_state_dict(self, state: dict) -> None:
        """Continue from :meth:`state_dict`."""

    @contextlib.contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """A block that leaves the state as it was if it fails or is interrupted.

        For energies that fail: the same configurations are asked for when training goes on, so
        that those that were computed are not lost and none is stepped around.
        """
        before = self.state_dict()
        try:
            yield
        except BaseException:
            self.load_state_dict(before)
            raise
