"""Several processes that train one model: what they agree on, and what only the first does."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["Processes", "process_seed"]

_LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_PATIENCE = timedelta(days=2)  # an energy may take long; a process that dies is seen at once

T = TypeVar("T")


def _place() -> tuple[int, int]:
    """Rank of this process, and how many there are."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    if all(name in os.environ for name in _LAUNCHED):
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return 0, 1


def process_seed(seed: int | np.random.SeedSequence) -> np.random.SeedSequence:
    """A seed of its own for each process that trains together with others.

    For sources that a script makes itself: with the same seed all processes would draw the same
    rows. A process that trains alone gets the sequence of the seed as it is.

    Examples
    --------
    >>> process_seed(3).generate_state(1) == np.random.SeedSequence(3).generate_state(1)
    array([ True])
    """
    sequence = seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
    rank, size = _place()
    if size == 1:
        return sequence
    # not spawn(): the sequence of the caller stays as it is
    return np.random.SeedSequence(
        entropy=sequence.entropy, spawn_key=(*sequence.spawn_key, 2**31 + rank)
    )


class Processes:
    """The processes that train one model, this one among them.

    All of them call the same methods in the same order. One process alone needs no group, and
    everything here is then what it would do anyway.

    Attributes
    ----------
    rank, size : int
    consistent : bool
        Whether all processes stand at the same point of a run, so that a checkpoint can be put
        together.
    """

    def __init__(self):
        self.rank, self.size = _place()
        self.consistent = True
        self._group = None
        if self.size == 1:
            return
        if not dist.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, timeout=_PATIENCE)
            atexit.register(_leave)
        # numbers and states are on the CPU, whatever the gradients are on
        self._group = dist.new_group(backend="gloo", timeout=_PATIENCE)

    @property
    def first(self) -> bool:
        """Whether this is the process that validates, shows progress and writes."""
        return self.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with its gradients averaged over the processes, from rank 0's weights on."""
        if self.size == 1:
            return module
        # an objective may leave parts of a model out; one that is always left out keeps torch from
        # complaining where none is
        device = next(module.parameters()).device
        module.register_parameter("left_out", nn.Parameter(torch.zeros((), device=device)))
        return DistributedDataParallel(module, broadcast_buffers=False, find_unused_parameters=True)

    def largest(self, numbers: Sequence[float]) -> list[float]:
        """The largest of each number over the processes."""
        if self.size == 1:
            return list(numbers)
        out = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(out, dist.ReduceOp.MAX, group=self._group)
        return out.tolist()

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in all of them."""
        if self.size == 1:
            return [value]
        out: list = [None] * self.size
        dist.all_gather_object(out, value, group=self._group)
        return out

    def fail_together(self, error: Exception | None) -> None:
        """Raise in every process if one has failed.

        Raises
        ------
        Exception
            ``error`` itself, where it happened.
        RuntimeError
            In the other processes, with its message.
        """
        if self.size == 1:
            if error is not None:
                raise error
            return
        if not self.largest([float(error is not None)])[0]:
            return
        said = self.gather(None if error is None else f"{type(error).__name__}: {error}")
        if error is not None:
            raise error
        rank, text = next((r, text) for r, text in enumerate(said) if text is not None)
        raise RuntimeError(f"process {rank} of {self.size} failed: {text}")

    def from_first(self, function: Callable[[], T]) -> T:
        """What ``function`` returns in the first process, handed to all; its failure likewise."""
        if self.size == 1:
            return function()
        value, error = None, None
        if self.first:
            try:
                value = function()
            except Exception as raised:
                error = raised
        self.fail_together(error)
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._group)
        return box[0]


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
