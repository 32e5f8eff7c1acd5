"""Configurations that no model had a hand in, for the validation of models trained without."""

from __future__ import annotations

import numpy as np

from clease_nn.conditions import ConditionRange
from clease_nn.configurations import Configurations
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import Lattice
from clease_nn.montecarlo.chains import make_engine
from clease_nn.montecarlo.engines import TableEngine
from clease_nn.sources.tempering import ParallelTemperingSource

__all__ = ["independent_chains"]


def independent_chains(
    ensemble: SemiGrandCanonical,
    lattice: Lattice,
    box: ConditionRange,
    n_conditions: int,
    n_each: int,
    seed: int | np.random.SeedSequence = 0,
) -> Configurations | None:
    """Rows of a small parallel tempering run, see ``AbstractSource.chain_configurations``.

    None where single-site energy differences are as expensive as whole energies: an energy
    without cluster tables and without ``flip_energies``.
    """
    engine = make_engine(ensemble, lattice)
    if not (isinstance(engine, TableEngine) or engine.has_flips):
        return None
    side = max(2, round(144 ** (1 / (1 + box.n_axes))))
    shape = (side,) * (1 + box.n_axes)
    source = ParallelTemperingSource(ensemble, lattice, box, shape=shape, burn_in=100, seed=seed)
    return source.chain_configurations(n_conditions, n_each)
