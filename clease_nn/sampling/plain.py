"""What a worker needs as bare numbers and text: energies and models without classes.

Arguments of another process are pickled. A pickled class is bound to the version that wrote it;
dictionaries of arrays are not, and the version that reads them rebuilds its own classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from clease_nn.energies.cluster_expansion import ClusterExpansionEnergy
from clease_nn.energies.tables import ClusterTables
from clease_nn.models import AbstractOccupationModel, model_from_config

__all__ = [
    "energy_from_plain",
    "model_from_plain",
    "plain_energy",
    "plain_model",
]

_TABLES = ("functions", "pointer", "variables", "coefficients")


def plain_energy(energy) -> Any:
    """A cluster expansion as a dictionary of arrays; any other energy as it is."""
    if type(energy) is not ClusterExpansionEnergy:
        return energy
    tables = energy.tables
    return {
        "n_sites": tables.n_sites,
        "constant": tables.constant,
        **{name: np.asarray(getattr(tables, name)) for name in _TABLES},
    }


def energy_from_plain(state: Any):
    """The inverse of :func:`plain_energy`."""
    return ClusterExpansionEnergy(ClusterTables(**state)) if isinstance(state, dict) else state


def plain_model(model: AbstractOccupationModel) -> dict[str, Any]:
    """A model's description and its weights as arrays; :func:`model_from_plain` rebuilds it.

    Raises
    ------
    ValueError
        If the model is none of this package, which workers could not rebuild.
    """
    config = model.config()
    try:
        model_from_config(config)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{type(model).__name__} cannot be rebuilt by other workers ({error}); leave the "
            "executor out"
        ) from error
    weights = {k: v.detach().cpu().numpy() for k, v in model.state_dict().items()}
    return {"config": config, "weights": weights}


def model_from_plain(state: Mapping[str, Any]) -> AbstractOccupationModel:
    """The inverse of :func:`plain_model`, ready to draw."""
    model = model_from_config(state["config"])
    model.load_state_dict({k: torch.as_tensor(v) for k, v in state["weights"].items()})
    return model.eval()
