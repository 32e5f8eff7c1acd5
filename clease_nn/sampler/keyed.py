"""Neural moves whose random numbers depend on a seed and the number of the move alone."""

from __future__ import annotations

from collections import deque

import numpy as np
import torch

from clease_nn.conditions import Conditions
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import Lattice
from clease_nn.models import AbstractOccupationModel
from clease_nn.sampler.moves import NeuralMoves

__all__ = ["KeyedMoves"]

_BATCH = 32
_PROPOSAL, _DECISION = 0, 1


class KeyedMoves(NeuralMoves):
    """Neural moves that can be gone on with from any step, whatever was drawn ahead before.

    Move number k of a chain uses random numbers made from the seed and k. A run that is stopped,
    written to a file and restarted therefore makes the moves of an uninterrupted one, bit by bit.
    Proposals are drawn in batches that begin at fixed numbers: 1, 2, 4, ..., 32, 64, 96, ...

    Parameters
    ----------
    model, ensemble, lattice, conditions
        As :class:`NeuralMoves`.
    seed : int
        Any non-negative integer.
    **options
        ``reachable``, ``forbidden`` and ``block_size`` of :class:`NeuralMoves`.
    """

    def __init__(
        self,
        model: AbstractOccupationModel,
        ensemble: SemiGrandCanonical,
        lattice: Lattice,
        conditions: Conditions,
        seed: int,
        **options,
    ):
        super().__init__(
            model, ensemble, lattice, conditions, torch.Generator(), batch_size=_BATCH, **options
        )
        self._seed = int(seed)
        self._batch: tuple | None = None
        self._drawn_ahead: list = []

    def move(
        self, number: int, occupations: np.ndarray, log_target: float
    ) -> tuple[bool, np.ndarray, float]:
        """Move number 1, 2, ... of the chain; otherwise as :meth:`step`."""
        x = torch.as_tensor(np.array(occupations, dtype=np.int8))
        if self.block_size is None:
            self._ahead = deque([self._numbered_proposal(number, x)])
        self._known = None  # what was known of the present state may have come before a restart
        self._restart(_DECISION, number)
        return self.step(occupations, log_target)

    def proposal(self, number: int, occupations: np.ndarray) -> tuple[np.ndarray, float]:
        """Proposal number 1, 2, ... for a chain that decides by itself; as :meth:`propose`."""
        x = torch.as_tensor(np.array(occupations, dtype=np.int8))
        self._known = None
        if self.block_size is not None:
            self._restart(_DECISION, number)
            return self.propose(occupations)
        y, log_q_y, log_target_y = self._numbered_proposal(number, x)
        self._restart(_DECISION, number)
        log_ratio = self._log_q(x) - log_q_y if np.isfinite(log_target_y) else -np.inf
        return y.numpy(), log_ratio

    def _numbered_proposal(self, number: int, x: torch.Tensor):
        start, size = _batch_of(number)
        fixed = x.clone()
        fixed[self.free] = 0
        key = start, fixed.numpy().tobytes()
        if self._batch != key:
            self._restart(_PROPOSAL, start)
            c = self._draw(x, size)
            self._drawn_ahead = list(
                zip(c.occupations, c.log_prob.tolist(), self._restricted(c).tolist(), strict=True)
            )
            self._batch = key
        return self._drawn_ahead[number - start]

    def _restart(self, purpose: int, number: int) -> None:
        words = np.random.SeedSequence([self._seed, purpose, int(number)])
        self.rng.manual_seed(int(words.generate_state(1, np.uint64)[0]))


def _batch_of(number: int) -> tuple[int, int]:
    """First number and size of the batch that a move belongs to.

    >>> [_batch_of(k) for k in (1, 3, 31, 32, 63, 64)]
    [(1, 1), (2, 2), (16, 16), (32, 32), (32, 32), (64, 32)]
    """
    size = min(1 << (number.bit_length() - 1), _BATCH)
    return number - number % size, size
