"""Surrogates of expensive energies that travel with the models trained on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from clease_nn.energies.cluster_expansion import ClusterExpansionEnergy
from clease_nn.energies.tables import ClusterTables
from clease_nn.io import TrainedModel
from clease_nn.sampler import System
from clease_nn.surrogate import SurrogateReport

__all__ = ["GuidedSystem", "expansion_from_json", "expansion_to_json"]

_ARRAYS = ("functions", "pointer", "variables", "coefficients")


def expansion_to_json(energy: ClusterExpansionEnergy) -> dict[str, Any]:
    """A cluster expansion as plain numbers."""
    tables = energy.tables
    arrays = {name: getattr(tables, name).tolist() for name in _ARRAYS}
    return {"n_sites": tables.n_sites, "constant": tables.constant, **arrays}


def expansion_from_json(state: Mapping[str, Any]) -> ClusterExpansionEnergy:
    """The inverse of :func:`expansion_to_json`.

    Examples
    --------
    >>> tables = ClusterTables.from_terms(2, [[-1.0, 1.0]], [(0.5, [(0, 0), (1, 0)])])
    >>> energy = ClusterExpansionEnergy(tables)
    >>> expansion_from_json(expansion_to_json(energy)).fingerprint == energy.fingerprint
    True
    """
    types = (float, np.int64, np.int64, float)
    arrays = {k: np.array(state[k], dtype=t) for k, t in zip(_ARRAYS, types, strict=True)}
    arrays["functions"] = np.atleast_2d(arrays["functions"])
    return ClusterExpansionEnergy(
        ClusterTables(state["n_sites"], constant=state["constant"], **arrays)
    )


class GuidedSystem(System):
    """A system whose energy takes over the surrogate that comes with a model.

    ``ensemble.energy`` is a :class:`~clease_nn.hosts.clease.evaluation.WatchedEnergy`.
    """

    def check(self, trained: TrainedModel) -> TrainedModel:
        """As :meth:`System.check`; the surrogate saved with the model is used from now on.

        Raises
        ------
        ValueError
            Also if the model needs the fields of a surrogate and there is none.
        """
        trained = super().check(trained)
        state, energy = trained.metadata.get("surrogate"), self.ensemble.energy
        if state is not None:
            surrogate = expansion_from_json(state["energy"])
            surrogate.tables.check_lattice(self.lattice)
            if energy.surrogate is None or energy.surrogate.fingerprint != surrogate.fingerprint:
                energy.guide(surrogate, SurrogateReport(**state["report"]))
        elif trained.model.needs_fields and not self.ensemble.has_fields:
            raise ValueError(
                "the model needs the fields of an energy that offers none, and no surrogate was "
                "saved with it; train one for this energy with fit()"
            )
        return trained
