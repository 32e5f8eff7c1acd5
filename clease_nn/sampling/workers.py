"""Rows drawn by the workers of an executor, in chunks with random numbers of their own."""

from __future__ import annotations

import functools
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from clease_nn.compute import compute_policy, resolve_precision
from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.executors import Batch, check_executor
from clease_nn.lattice import Lattice
from clease_nn.models import AbstractOccupationModel
from clease_nn.sampling.plain import (
    energy_from_plain,
    model_from_plain,
    plain_energy,
    plain_model,
)

__all__ = ["ChunkedDraw"]

_COLUMNS = ("occupations", "step", "log_prob")


class ChunkedDraw:
    """Completions of the chunks of a batch by an executor, as they come.

    Chunk ``k`` draws with the seed ``[seed, k]``, so that the result is the same for any number
    of workers and any order of their work. Workers get the model as its description and its
    weights and rebuild it; they are sent the energy only if the model needs its fields.

    Parameters
    ----------
    executor : object
        With ``submit`` or ``map``, such as those of ``concurrent.futures``.
    model, ensemble
        As :func:`clease_nn.sampling.complete`.
    chunks : list of Configurations
        Partial configurations.
    seed : int
    threads, precision
        Of every worker.

    Attributes
    ----------
    errors : dict of int to str
        What went wrong with which chunk, after the iteration.

    Raises
    ------
    TypeError
        If the executor cannot work, or something cannot be sent to it.
    ValueError
        If the model cannot be rebuilt.
    """

    def __init__(
        self,
        executor,
        model: AbstractOccupationModel,
        ensemble: SemiGrandCanonical,
        chunks: list[Configurations],
        seed: int,
        threads: int,
        precision: str,
    ):
        energy = plain_energy(ensemble.energy) if model.needs_fields else None
        payload = {
            "token": uuid.uuid4().hex,
            "model": plain_model(model),
            "lattice": chunks[0].lattice.to_dict(),
            "energy": energy,
            "threads": int(threads),
            "precision": resolve_precision(precision),
        }
        remedy = "the model asks this energy for its fields; use a thread pool, or no executor"
        check_executor(executor, energy, remedy=remedy)
        items = [
            {
                "seed": [int(seed), k],
                "occupations": c.occupations.numpy(),
                "temperature": c.conditions.temperature.numpy(),
                "mu": c.conditions.mu.numpy(),
            }
            for k, c in enumerate(chunks)
        ]
        self._chunks = chunks
        self._batch = Batch(executor, functools.partial(draw_chunk, payload), items)
        self.errors: dict[int, str] = {}

    def __iter__(self) -> Iterator[tuple[int, Configurations]]:
        for k, outcome in self._batch:
            if (done := self._read(k, outcome)) is not None:
                yield k, done
        if self._batch.error is not None:
            error = self._batch.error
            self.errors.setdefault(-1, f"the executor died: {type(error).__name__}: {error}")

    def finished(self) -> list[tuple[int, Configurations]]:
        """After an interruption: chunks that were done but not taken yet; nothing more starts."""
        self._batch.stop()
        out = ((k, self._read(k, outcome)) for k, outcome in self._batch.finished())
        return [(k, done) for k, done in out if done is not None]

    def _read(self, k: int, outcome: Mapping[str, Any]) -> Configurations | None:
        if "error" in outcome:
            self.errors[k] = outcome["error"]
            self._batch.stop()
            return None
        columns = {name: torch.as_tensor(outcome[name]) for name in _COLUMNS}
        part = self._chunks[k]
        return Configurations(part.lattice, part.conditions, **columns)


def draw_chunk(payload: Mapping[str, Any], item: Mapping[str, Any]) -> dict[str, Any]:
    """Complete one chunk in a worker: arrays in, arrays out; errors as text under ``"error"``."""
    try:
        lattice, model, fields = _rebuilt(payload)
        seed = np.random.SeedSequence(item["seed"]).generate_state(1, np.uint64)[0]
        rng = torch.Generator().manual_seed(int(seed))
        partial = Configurations(
            lattice,
            Conditions(torch.tensor(item["temperature"]), torch.tensor(item["mu"])),
            torch.tensor(item["occupations"]),
        )
        with compute_policy(payload["threads"], payload["precision"]):
            c = model.complete(partial, rng, fields)
        return {name: getattr(c, name).numpy() for name in _COLUMNS}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


_LAST: dict[str, tuple] = {}  # what this worker has rebuilt, for the chunks that follow


def _rebuilt(payload: Mapping[str, Any]) -> tuple:
    """Lattice, model and fields of a draw."""
    found = _LAST.get(payload["token"])
    if found is None:
        energy = payload["energy"]
        fields = None
        if energy is not None:
            fields = SemiGrandCanonical(energy_from_plain(energy)).fields
        found = Lattice.from_dict(payload["lattice"]), model_from_plain(payload["model"]), fields
        _LAST.clear()
        _LAST[payload["token"]] = found
    return found
