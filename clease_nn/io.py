"""Files: tensors and JSON in one safetensors file, written whole or not at all, never pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

import clease_nn
from clease_nn.conditions import ConditionRange
from clease_nn.cost import Cost
from clease_nn.files import replacing
from clease_nn.models import AbstractOccupationModel, model_from_config

__all__ = ["ModelFileError", "TrainedModel", "read_state", "write_state"]

FORMAT = 1
"""Version of the file format; newer files are refused."""


class ModelFileError(ValueError):
    """A file is truncated, not of this package, or written by a newer version."""


# ------------------------------------------------------------------ nested states in one file
def _flatten(value, path: str, tensors: dict[str, Tensor]):
    if isinstance(value, Tensor):
        tensors[path] = value.detach().cpu().contiguous().clone()
        return {"__tensor__": path}
    if isinstance(value, np.ndarray):
        tensors[path] = torch.from_numpy(np.ascontiguousarray(value).copy())
        return {"__array__": path}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {"__items__": [[k, _flatten(v, f"{path}.{k}", tensors)] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        return [_flatten(v, f"{path}.{i}", tensors) for i, v in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"cannot write {type(value).__name__} at {path or 'the top'}")


def _unflatten(value, tensors: dict[str, Tensor]):
    if isinstance(value, list):
        return [_unflatten(v, tensors) for v in value]
    if isinstance(value, dict):
        if "__tensor__" in value:
            return tensors[value["__tensor__"]]
        if "__array__" in value:
            return tensors[value["__array__"]].numpy()
        return {k: _unflatten(v, tensors) for k, v in value["__items__"]}
    return value


def write_state(path: str | os.PathLike, kind: str, state: Mapping) -> None:
    """Write a nested dict of tensors, arrays and plain values.

    The file appears under its name only when it is complete.

    Raises
    ------
    OSError
        If the folder does not exist or is not writable, or the disk is full; what stood under
        ``path`` before is untouched.
    """
    tensors: dict[str, Tensor] = {}
    tree = _flatten(state, "", tensors)
    header = {
        "kind": kind,
        "format": str(FORMAT),
        "clease_nn": clease_nn.__version__,
        "state": json.dumps(tree),
    }
    payload = save(tensors or {"empty": torch.zeros(1)}, metadata=header)
    with replacing(path) as temporary:
        temporary.write_bytes(payload)


def read_state(path: str | os.PathLike, kind: str) -> dict:
    """Read what :func:`write_state` wrote.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ModelFileError
        If the file is truncated, foreign, of another kind, or of a newer format.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        with safe_open(path, framework="pt") as f:
            header = f.metadata() or {}
            if "kind" not in header:
                raise ModelFileError(f"{path} is a safetensors file, but not one of clease_nn")
            if int(header["format"]) > FORMAT:
                raise ModelFileError(
                    f"{path} has format {header['format']}, written by clease_nn "
                    f"{header['clease_nn']}; this version reads up to {FORMAT}: update clease_nn"
                )
            if header["kind"] != kind:
                raise ModelFileError(f"{path} holds a {header['kind']}, not a {kind}")
            tensors = {name: f.get_tensor(name) for name in f.keys()}
        return _unflatten(json.loads(header["state"]), tensors)
    except (SafetensorError, json.JSONDecodeError, KeyError) as error:
        raise ModelFileError(
            f"{path} is truncated or not a clease_nn file ({error}); train again or take a backup"
        ) from error


# ------------------------------------------------------------------ trained models
@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A model with what it was trained for.

    Attributes
    ----------
    model : AbstractOccupationModel
    range : ConditionRange
        Conditions it was trained for.
    metadata : dict
        JSON-ready: ``energy_fingerprint``, ``lattice_fingerprint``, species, number of sites,
        ``validation``, ``history``, versions, seed, and whatever a host adds (such as
        ``parent_fingerprint``).
    """

    model: AbstractOccupationModel
    range: ConditionRange
    metadata: dict = field(default_factory=dict)

    @property
    def cost(self) -> Cost:
        """What training has cost, paid once; validation and compilation not counted."""
        return Cost(
            training_seconds=float(self.metadata.get("training_seconds", 0.0)),
            training_energy_evaluations=float(self.metadata.get("energy_evaluations", 0.0)),
        )

    def save(self, path: str | os.PathLike) -> None:
        """Write weights and JSON to one file (safetensors).

        Raises
        ------
        OSError
            If the path cannot be written.
        """
        write_state(
            path,
            "model",
            {
                "config": self.model.config(),
                "weights": self.model.state_dict(),
                "range": self.range.to_dict(),
                "metadata": self.metadata,
            },
        )

    @classmethod
    def load(cls, path: str | os.PathLike) -> TrainedModel:
        """Read a model file.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ModelFileError
            If the file is truncated, foreign, or newer than this version.
        """
        state = read_state(path, "model")
        try:
            model, weights = model_from_config(state["config"]), state["weights"]
            box = ConditionRange.from_dict(state["range"])
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ModelFileError(f"{path} does not describe a model: {error}") from error
        try:
            model.load_state_dict(weights)
        except (RuntimeError, TypeError) as error:
            raise ModelFileError(
                f"the weights in {path} do not fit its network, which an earlier version of "
                f"clease_nn may have built otherwise; train the model again: {error}"
            ) from error
        model.eval()
        return cls(model, box, dict(state["metadata"]))
