"""Neural moves: Metropolis-Hastings moves with the proposals of a model.

A neural move is an independence (or block) Metropolis-Hastings move with the proposals of an
any-order model. Its ln q depends on the order sigma in which sites are drawn, so sigma is part of
the state: the extended target is ``w(x) u(sigma)``, u not depending on x. A fresh sigma for the
present state is a Gibbs move; a proposal ``(y, sigma')`` has probability ``u(sigma') q(y; sigma')``
and is accepted with probability ``min(1, W(y, sigma') / W(x, sigma))``,
``W = exp(log_target - log q)``. The chain samples the exact Boltzmann distribution whatever the
model; the model decides only how often a move is accepted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np
import torch

from clease_nn.compute import compute_policy
from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import UNKNOWN, Lattice
from clease_nn.models import AbstractOccupationModel
from clease_nn.sampler.orders import obstacle
from clease_nn.sampling import complete
from clease_nn.sampling.regions import SHAPES, Regions

__all__ = ["NeuralMoves"]

_COMPACT = 100  # free sites beyond which a scattered block is many single sites


class NeuralMoves:
    """Exact Metropolis-Hastings moves at one condition with a model's proposals.

    Parameters
    ----------
    model : AbstractOccupationModel
        Normalised proposals; need not be good.
    ensemble : SemiGrandCanonical
    lattice : Lattice
    conditions : Conditions
        One row.
    rng : torch.Generator
    reachable : ndarray of bool, shape (sites, species), optional
        Species that the chain may put on each site; other proposals are rejected. Sites with
        fewer than two are given to the model as they are. Default: what the lattice allows.
    forbidden : callable, optional
        Says of configurations (batch, sites), int8, which of them the chain must not enter,
        (batch,) bool; such proposals are rejected.
    block_size : int, optional
        Redraw that many sites a move instead of all: a random or a compact set, a compact one
        where more than 100 sites may change.
    batch_size : int
        Most proposals drawn together.

    Raises
    ------
    ValueError
        If there is not one condition, or the model has one order of drawing and cannot redraw
        these sites, or a block, around the others.

    Notes
    -----
    Sites that cannot change must carry what they carried in the first :meth:`step`;
    :meth:`propose` sees that they have changed and draws anew. Networks run
    on one thread: the work is small, and the moves do not depend on the number of threads.
    """

    def __init__(
        self,
        model: AbstractOccupationModel,
        ensemble: SemiGrandCanonical,
        lattice: Lattice,
        conditions: Conditions,
        rng: torch.Generator,
        *,
        reachable: np.ndarray | None = None,
        forbidden: Callable[[np.ndarray], np.ndarray] | None = None,
        block_size: int | None = None,
        batch_size: int = 128,
    ):
        if len(conditions) != 1:
            raise ValueError(f"neural moves need one condition, got {len(conditions)}")
        self.model, self.ensemble, self.lattice = model, ensemble, lattice
        self.conditions, self.rng, self.batch_size = conditions, rng, batch_size
        reachable = lattice.allowed if reachable is None else reachable
        self.reachable = np.array(reachable)
        free = self.reachable.sum(1) > 1
        reason = obstacle(model, lattice, free, block_size)
        if reason is not None:
            raise ValueError(reason)
        self.free = torch.as_tensor(np.flatnonzero(free))
        self._mask = torch.as_tensor(self.reachable)
        self.forbidden = forbidden
        self.block_size = block_size
        self.expected = batch_size
        """Moves still to come: no more proposals than that are drawn ahead."""
        self.acceptance = 0.0
        """Acceptance probability of the last move."""
        self._ahead: deque = deque()
        self._unscored: deque = deque()
        self._known: tuple[torch.Tensor, float] | None = None
        self._proposed: tuple[torch.Tensor, float] | None = None
        self._around: bytes | None = None
        self._regions = Regions(lattice, self.free)
        self._fields = ensemble.fields if model.needs_fields else None

    def step(self, occupations: np.ndarray, log_target: float) -> tuple[bool, np.ndarray, float]:
        """One move from a configuration (sites,) with known ``-(E - mu.N)/kT``.

        Returns
        -------
        accepted : bool
        occupations : ndarray, shape (sites,), int8
            The next configuration, the same one where the move was rejected.
        log_target : float
            Its ``-(E - mu.N)/kT``.
        """
        x = torch.as_tensor(np.array(occupations, dtype=np.int8))
        if self.block_size is None:
            y, log_q_y, log_target_y = self._global_proposal(x)
            log_q_x = self._log_q(x)
        else:
            y, log_q_y, log_target_y, log_q_x = self._block_proposal(x)
        log_ratio = (log_target_y - log_q_y) - (log_target - log_q_x)
        self.acceptance = float(np.exp(min(0.0, log_ratio)))
        self.expected = max(self.expected - 1, 1)
        if float(torch.rand(1, generator=self.rng, dtype=torch.float64)) >= self.acceptance:
            return False, occupations, log_target
        if self.block_size is None:
            self._known = (y, log_q_y)
        return True, y.numpy(), log_target_y

    def draw(self, occupations: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Fresh global proposals around the fixed sites of a configuration.

        Returns
        -------
        occupations : ndarray, shape (n, sites), int8
        log_weights : ndarray, shape (n,)
        energies : ndarray, shape (n,)
            E - mu.N in eV; infinite where the chain cannot go.
        """
        c = self._draw(torch.as_tensor(np.array(occupations, dtype=np.int8)), n)
        log_target = self._restricted(c)
        energies = -log_target * self.conditions.kT.item()
        return c.occupations.numpy(), (log_target - c.log_prob).numpy(), energies.numpy()

    def energy(self, occupations: np.ndarray) -> float:
        """E - mu.N of a configuration (sites,) in eV."""
        x = torch.as_tensor(np.array(occupations, dtype=np.int8))
        c = self.ensemble.score(Configurations(self.lattice, self.conditions, x[None]))
        return -float(c.log_target) * self.conditions.kT.item()

    # ------------------------------------------------------------------ global proposals
    def _partial(self, x: torch.Tensor, n: int) -> Configurations:
        given = x.clone()
        given[self.free] = UNKNOWN
        return Configurations(self.lattice, self.conditions.repeat(n), given.repeat(n, 1))

    def _draw(self, x: torch.Tensor, n: int) -> Configurations:
        return complete(
            self.model,
            self.ensemble,
            self._partial(x, n),
            self.rng,
            batch_size=self.batch_size,
            threads=1,
        )

    def _restricted(self, c: Configurations) -> torch.Tensor:
        """log_target, -inf where the chain cannot go."""
        return torch.where(self._inside(c.occupations), c.log_target, -torch.inf)

    def _inside(self, occupations: torch.Tensor) -> torch.Tensor:
        """(batch,) bool: nothing in the configurations (batch, sites) is out of reach."""
        index = occupations[:, self.free].long()
        inside = self._mask[self.free][torch.arange(len(self.free)), index].all(1)
        if self.forbidden is not None:
            inside &= ~torch.as_tensor(self.forbidden(occupations.numpy()))
        return inside

    def _global_proposal(self, x):
        if not self._ahead:
            c = self._draw(x, min(self.batch_size, max(self.expected, 1)))
            self._ahead.extend(
                zip(c.occupations, c.log_prob.tolist(), self._restricted(c).tolist(), strict=True)
            )
        return self._ahead.popleft()

    def _log_q(self, x: torch.Tensor) -> float:
        """ln q of the present state in a fresh order, or as drawn if it is the last proposal."""
        if self._known is None or not torch.equal(self._known[0], x):
            self._known = (x, self._score(x, self.free))
        return self._known[1]

    def _score(self, x: torch.Tensor, drawn: torch.Tensor) -> float:
        given = x.clone()
        given[drawn] = UNKNOWN
        partial = Configurations(self.lattice, self.conditions, given[None])
        steps = self.model.draw_steps(partial, self.rng)
        return self._score_with(x, steps)

    @torch.no_grad()
    def _score_with(self, x: torch.Tensor, steps: torch.Tensor) -> float:
        full = Configurations(self.lattice, self.conditions, x[None])
        with compute_policy(threads=1):
            return float(self.model.log_prob(full, steps=steps, fields=self._fields))

    # ------------------------------------------------------------------ block proposals
    def _cleared(self, x: torch.Tensor) -> Configurations:
        """A configuration with a block of unknown sites."""
        given = x.clone()
        if len(self.free) > _COMPACT:
            size, shape = torch.tensor([self.block_size]), torch.tensor([SHAPES.index("ball")])
            given[self._regions.draw(size, shape, self.rng)[0]] = UNKNOWN
        else:
            given[self._regions.one(self.block_size, self.rng)] = UNKNOWN
        return Configurations(self.lattice, self.conditions, given[None])

    def _block_proposal(self, x: torch.Tensor):
        c = complete(self.model, self.ensemble, self._cleared(x), self.rng, threads=1)
        log_q_x = self._score_with(x, c.step)
        return c.occupations[0], float(c.log_prob), float(self._restricted(c)), log_q_x

    # ------------------------------------------------------------------ for other chains
    def propose(self, occupations: np.ndarray) -> tuple[np.ndarray, float]:
        """A proposal from a configuration x (sites,), for a chain that decides by itself.

        No energy is evaluated. Call :meth:`accepted` if the chain takes it: a global proposal
        then need not be scored again.

        Returns
        -------
        occupations : ndarray, shape (sites,), int8
            The proposal y; possibly x itself.
        log_ratio : float
            ln q(x|y) - ln q(y|x), to be added to ln w(y) - ln w(x); -inf if y cannot be reached.
        """
        x = torch.as_tensor(np.array(occupations, dtype=np.int8))
        if self.block_size is not None:
            c = self._drawn(self._cleared(x))
            y, log_q_y = c.occupations[0], float(c.log_prob)
            log_q_x = self._score_with(x, c.step)
        else:
            around = np.delete(x.numpy(), self.free.numpy()).tobytes()
            if around != self._around:  # what was drawn ahead was for other fixed sites
                self._unscored.clear()
                self._known, self._around = None, around
            if not self._unscored:
                n = min(self.batch_size, max(self.expected, 1))
                c = self._drawn(self._partial(x, n))
                self._unscored.extend(zip(c.occupations, c.log_prob.tolist(), strict=True))
            y, log_q_y = self._unscored.popleft()
            log_q_x = self._log_q(x)
            self._proposed = (y, log_q_y)
        self.expected = max(self.expected - 1, 1)
        return y.numpy(), log_q_x - log_q_y if self._inside(y[None])[0] else -np.inf

    def accepted(self) -> None:
        """Say that the last proposal of :meth:`propose` was accepted."""
        self._known, self._proposed = self._proposed or self._known, None

    def _drawn(self, partial: Configurations) -> Configurations:
        """The model's completion, without energies."""
        training = self.model.training
        self.model.eval()
        try:
            with compute_policy(threads=1):
                return self.model.complete(partial, self.rng, self._fields)
        finally:
            self.model.train(training)
