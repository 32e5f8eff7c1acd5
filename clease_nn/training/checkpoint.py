"""Checkpoints: written whole, and continued only by the run that wrote them."""

from __future__ import annotations

import warnings

import numpy as np
import torch

from clease_nn.conditions import ConditionRange
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.io import ModelFileError, read_state, write_state
from clease_nn.lattice import Lattice
from clease_nn.montecarlo.chains import random_occupations
from clease_nn.training.trainer import Trainer
from clease_nn.warnings import TrainingWarning

__all__ = ["resume", "run_key", "save"]


def run_key(
    trainer: Trainer, ensemble: SemiGrandCanonical, lattice: Lattice, box: ConditionRange, seed: int
) -> dict:
    """What makes a run the same run."""
    return {
        "energy_fingerprint": getattr(ensemble.energy, "fingerprint", None),
        "energies": _probe(ensemble, lattice),
        "lattice_fingerprint": lattice.fingerprint,
        "range": box.to_dict(),
        "seed": seed,
        "batch_size": trainer.batch_size,
        "learning_rate": trainer.learning_rate,
        "stages": [list(stage.name) for stage in trainer.stages],
        "number_of_processes": trainer.processes.size,
    }


def _probe(ensemble: SemiGrandCanonical, lattice: Lattice) -> list[float]:
    """Energies of a few configurations, eV: tells energies without a fingerprint apart."""
    rng = np.random.default_rng(0)
    occupations = torch.from_numpy(random_occupations(lattice, 4, rng))
    return [round(float(e), 6) for e in ensemble.energy(lattice, occupations)]


def save(trainer: Trainer, checkpoint, key: dict) -> None:
    """Write the state of all processes to one file; a write that fails is a warning."""
    state = trainer.state_dict()
    if state is None:
        return
    try:
        write_state(checkpoint, "checkpoint", {"key": key, **state})
    except OSError as error:
        warnings.warn(f"no checkpoint: {error}", TrainingWarning, stacklevel=4)


def resume(trainer: Trainer, checkpoint, key: dict) -> None:
    """Continue from a file; only the first process needs to see it.

    Raises
    ------
    ModelFileError
        If the file belongs to another run.
    """
    state = trainer.processes.from_first(lambda: read_state(checkpoint, "checkpoint"))
    written = {"number_of_processes": 1, **state["key"]}
    before = written.get("stages", [])
    if before != key["stages"]:
        raise ModelFileError(
            f"checkpoint {checkpoint} was written for other stages: {len(before)}, "
            f"{_listed(before)}; this run has {len(key['stages'])}, {_listed(key['stages'])}; "
            "name another file, remove it or train with the same stages"
        )
    for name, value in key.items():
        if written.get(name) != value:
            raise ModelFileError(
                f"checkpoint {checkpoint} was written for another {name.replace('_', ' ')}; name "
                "another file or remove it"
            )
    if state["config"] != trainer.model.config():
        raise ModelFileError(
            f"checkpoint {checkpoint} holds another network; use the same model or another file"
        )
    try:
        trainer.load_state_dict(state)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ModelFileError(
            f"checkpoint {checkpoint} holds sources of other settings, such as another schedule "
            f"({type(error).__name__}: {error}); train with the same, or name another file"
        ) from error


def _listed(stages: list[list[str]]) -> str:
    return " then ".join(f"{objective} on {source}" for source, objective in stages) or "none named"
