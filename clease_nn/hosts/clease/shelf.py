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
        The user's own model: given or fitted. Never replaced by one that was found.
    found : TrainedModel or None
        The last one that was found in a file.
    """

    def __init__(self, out_of_range: str, train: bool):
        self.out_of_range, self.train = out_of_range, train
        self.trained: TrainedModel | None = None
        self.found: TrainedModel | None = None
        self._searched: set = set()
        self._warned: set = set()

    @property
    def at_hand(self) -> TrainedModel | None:
        """The user's own model, or else the one found."""
        return self.found if self.trained is None else self.trained

    def lookup(
        self,
        expansion: Expansion,
        conditions: Conditions,
        fit: Callable[[], None] | None = None,
        search: bool = True,
    ) -> TrainedModel | None:
        """The model that was trained for one condition, or None.

        Own models go first, then the one found before, then files (if ``search``), then ``fit``,
        which trains one and puts it on the shelf.

        Raises
        ------
        ValueError
            If the condition lies outside the range of the own model (or of the one found) and
            ``out_of_range="raise"``.
        """
        strict = self.out_of_range == "raise"
        if _serves(self.trained, conditions):
            return self.trained
        if self.trained is not None and strict:
            raise ValueError(self._strict(expansion, conditions))
        if _serves(self.found, conditions):
            return self.found
        key = (expansion.parent, conditions.temperature[0].item(), *conditions.mu[0].tolist())
        if search and key not in self._searched:
            self._searched.add(key)
            found = find_model(expansion.parent, conditions)
            if found is not None:
                self.found = check_model(found, expansion)
                return self.found
        if self.trained is None and self.train and search and fit is not None:
            fit()
            if _serves(self.trained, conditions):
                return self.trained
        if strict and self.at_hand is not None:
            raise ValueError(self._strict(expansion, conditions))
        return None

    def complain(self, expansion: Expansion, conditions: Conditions) -> None:
        """Say, once, that :meth:`lookup` found no model for a condition."""
        if self.at_hand is None:
            self.warn(
                "no trained model of this expansion was found: exact single-site moves are made. "
                "Train one with fit(), or give model='file.nn'",
                NoModelWarning,
            )
        else:
            text = self.outside(expansion, conditions)
            self.warn(f"{text}: exact single-site moves are made there", OutOfRangeWarning)

    def outside(self, expansion: Expansion, conditions: Conditions) -> str:
        """That a condition is outside the range of the model at hand, in words."""
        box = self.at_hand.range
        mu = dict(zip(expansion.lattice.species, conditions.mu[0].tolist(), strict=True))
        return (
            f"T = {conditions.temperature[0].item():g} K, mu = {mu} eV lies outside the trained "
            f"range ({box.temperature[0]:g} to {box.temperature[1]:g} K, {box.low.tolist()} to "
            f"{box.high.tolist()} eV along the trained axes)"
        )

    def _strict(self, expansion: Expansion, conditions: Conditions) -> str:
        text = self.outside(expansion, conditions)
        return f"{text}; train a wider range with fit() or use out_of_range='warn'"

    def warn(self, text: str, category: type[Warning]) -> None:
        """Warn, once with each text."""
        if text not in self._warned:
            self._warned.add(text)
            warnings.warn(text, category, stacklevel=6)


def _serves(trained: TrainedModel | None, conditions: Conditions) -> bool:
    return trained is not None and bool(trained.range.contains(conditions).all())
