"""Configurations that walk along a path of conditions and know their density there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.cost import Cost
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.montecarlo import Chains
from clease_nn.montecarlo.moves import Move
from clease_nn.sampling.paths import systematic

__all__ = ["Walk"]

_RESAMPLE_BELOW = 0.5  # NESS of a population


class Walk:
    """Configurations on their way along a path, with the density that they have there."""

    def __init__(
        self,
        ensemble: SemiGrandCanonical,
        drawn: Configurations,
        at: Conditions,
        sweeps: int,
        moves: Move | None,
        seed: np.random.SeedSequence,
    ):
        self.sweeps, self.moves = sweeps, moves
        self.log_prob = drawn.log_prob.cpu().numpy().copy()
        self.chains = Chains(
            ensemble, drawn.lattice, at.repeat(len(drawn)), drawn.occupations, seed=seed
        )
        self.moved = self.tried = 0
        self.resampled = self.survivors = np.zeros(0)

    @property
    def cost(self) -> Cost:
        return replace(self.chains.cost, seconds=0.0)

    def go(self, at: Conditions) -> None:
        self.chains.conditions = at.repeat(len(self.chains))

    def log_target(self) -> np.ndarray:
        return self.chains.configurations().log_target.numpy()

    @property
    def log_weight(self) -> np.ndarray:
        return self.log_target() - self.log_prob

    def keep(self, order: np.ndarray) -> None:
        self.chains.permute(order)
        self.log_prob = self.log_prob[order]

    def difference(self, at: Conditions | None, target: Conditions) -> np.ndarray:
        """ln w(target) - ln w(start) of the present configurations."""
        self.go(target)
        there = self.log_target()
        if at is None:
            return there
        self.go(at)
        return there - self.log_target()

    def move(self) -> None:
        """Exact moves of all rows at the present condition."""
        if self.sweeps:
            self.chains.sweep(self.sweeps)
        if self.moves is not None:
            c, accepted = self.moves(self.chains.configurations())
            self.chains.occupations = c.occupations
            self.moved += int(accepted.sum())
            self.tried += len(accepted)

    def follow(self, path: Conditions, population: int, rng: np.random.Generator) -> None:
        """Walk to the last condition; what moves change the target by they change ln q by."""
        ancestor = np.arange(len(self.chains))
        self.resampled = np.zeros(len(ancestor) // population)
        for k in range(len(path)):
            self.go(path[k])
            if k == len(path) - 1:
                break
            before = self.log_target()
            if population > 1:
                order = self._compete(before, population, rng)
                ancestor, before = ancestor[order], before[order]
            self.move()
            self.log_prob += self.log_target() - before
        families = np.sort(ancestor.reshape(-1, population), 1)
        self.survivors = 1 + (np.diff(families, axis=1) > 0).sum(1)

    def _compete(self, log_target: np.ndarray, population: int, rng) -> np.ndarray:
        """Resample populations with few effective members; the mean weight stays."""
        log_w = (log_target - self.log_prob).reshape(-1, population)
        mean, effective = _mean_and_ness(log_w)
        few = np.flatnonzero(effective < _RESAMPLE_BELOW)
        order = np.arange(log_w.size)
        if len(few):
            chosen = systematic(log_w[few], rng) + few[:, None] * population
            order.reshape(-1, population)[few] = chosen
            self.keep(order)
            rows = (few[:, None] * population + np.arange(population)).ravel()
            self.log_prob[rows] = log_target[order][rows] - np.repeat(mean[few], population)
            self.resampled[few] += 1
        return order

    def finish(self, population: int, rng: np.random.Generator) -> Configurations:
        """The rows as weighted draws: of each population one, with its mean weight."""
        c = self.chains.configurations()
        log_prob = self.log_prob
        if population > 1:
            log_target = c.log_target.numpy()
            log_w = (log_target - log_prob).reshape(-1, population)
            first = np.arange(len(log_w)) * population
            rows = first + _pick(log_w, rng)
            log_prob = log_target[rows] - _mean_and_ness(log_w)[0]
            c = c[torch.from_numpy(rows)]
        return replace(c, chain=None, log_prob=torch.from_numpy(log_prob), provenance={})


def _mean_and_ness(log_w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logarithm of the mean weight of every population, and its NESS."""
    top = log_w.max(1)
    w = np.exp(log_w - top[:, None])
    return top + np.log(w.mean(1)), w.mean(1) ** 2 / (w**2).mean(1)


def _pick(log_w: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One column of every row, drawn in proportion to its weight."""
    cumulative = np.exp(log_w - log_w.max(1, keepdims=True)).cumsum(1)
    u = rng.random((len(log_w), 1)) * cumulative[:, -1:]
    return np.minimum((u >= cumulative).sum(1), log_w.shape[1] - 1)
