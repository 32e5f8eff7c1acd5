"""Which model a CLEASE sampler uses at a condition, and what it says when there is none."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from clease_nn.conditions import Conditions
from clease_nn.hosts.clease.expansion import Expansion, check_model
from clease_nn.io import TrainedModel
from clease_nn.sampler import find_model
from clease_nn.warnings import NoModelWarning, OutOfRangeWarning

__all__ = ["ModelShelf"]


class ModelShelf:
    """The model at hand; looks for another, or has one trained, where it does not serve.

    Parameters
    ----------
    out_of_range : {"warn", "raise"}
    train : bool
        Whether to train where no model is found.

    Attributes
    ----------
    trained : TrainedModel or None
    """

    def __init__(self, out_of_range: str, train: bool):
        self.out_of_range, self.train = out_of_range, train
        self.trained: TrainedModel | None = None
        self._searched: set = set()
        self._warned: set = set()

    def find(
        self, expansion: Expansion, conditions: Conditions, fit: Callable[[], None]
    ) -> TrainedModel | None:
        """The model for one condition; None, after one warning of each kind, if there is none.

        ``fit`` trains one and puts it on the shelf.

        Raises
        ------
        ValueError
            If the condition lies outside the trained range and ``out_of_range="raise"``.
        """
        if self._serves(conditions):
            return self.trained
        key = (expansion.parent, conditions.temperature[0].item(), *conditions.mu[0].tolist())
        if key not in self._searched:
            self._searched.add(key)
            found = find_model(expansion.parent, conditions)
            if found is not None:
                self.trained = check_model(found, expansion)
                return self.trained
        if self.trained is None and self.train:
            fit()
            if self._serves(conditions):
                return self.trained
        if self.trained is None:
            self.warn(
                "no trained model of this expansion was found: exact single-site moves are made. "
                "Train one with fit(), or give model='file.nn'",
                NoModelWarning,
            )
            return None
        box = self.trained.range
        mu = dict(zip(expansion.lattice.species, key[2:], strict=True))
        text = (
            f"T = {key[1]:g} K, mu = {mu} eV lies outside the trained range "
            f"({box.temperature[0]:g} to {box.temperature[1]:g} K, {box.low.tolist()} to "
            f"{box.high.tolist()} eV along the trained axes)"
        )
        if self.out_of_range == "raise":
            raise ValueError(f"{text}; train a wider range with fit() or use out_of_range='warn'")
        self.warn(f"{text}: exact single-site moves are made there", OutOfRangeWarning)
        return None

    def warn(self, text: str, category: type[Warning]) -> None:
        """Warn, once of each kind."""
        if category not in self._warned:
            self._warned.add(category)
            warnings.warn(text, category, stacklevel=6)

    def _serves(self, conditions: Conditions) -> bool:
        return self.trained is not None and bool(self.trained.range.contains(conditions).all())
