"""What the sources share whose rows the model in training draws itself."""

from __future__ import annotations

import numpy as np

from clease_nn.conditions import ConditionRange
from clease_nn.configurations import Configurations
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import Lattice
from clease_nn.sources.abstract import AbstractSource
from clease_nn.sources.independent import independent_chains

__all__ = ["AbstractOwnDraws"]


class AbstractOwnDraws(AbstractSource):
    """A source of rows that the model in training draws, and the ensemble scores one by one.

    Attributes
    ----------
    ensemble, lattice, box
        What to learn, where.
    """

    ensemble: SemiGrandCanonical
    lattice: Lattice
    box: ConditionRange
    _chain_seed: np.random.SeedSequence
    _evaluations: int

    def chain_configurations(self, n_conditions: int, n_each: int) -> Configurations | None:
        """A small parallel tempering run of its own; None where chains would be too expensive.

        Its energies are not counted: no training step sees them.
        """
        return independent_chains(
            self.ensemble, self.lattice, self.box, n_conditions, n_each, self._chain_seed
        )

    @property
    def energy_evaluations(self) -> int:
        """Energies evaluated so far: one for every row drawn."""
        return self._evaluations
