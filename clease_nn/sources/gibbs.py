"""Batches from persistent chains that the model itself keeps moving."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import torch

from clease_nn.conditions import ConditionRange, Conditions
from clease_nn.configurations import Configurations
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import UNKNOWN, Lattice
from clease_nn.models import AbstractOccupationModel
from clease_nn.montecarlo.chains import random_occupations
from clease_nn.objectives import CompleteBatch
from clease_nn.schedules import (
    AbstractSchedule,
    UniformRandom,
    require_inside,
    require_schedule_inside,
)
from clease_nn.sources.generated import completed_by, random_passes
from clease_nn.sources.own_draws import AbstractOwnDraws

__all__ = ["GibbsSource"]


class GibbsSource(AbstractOwnDraws):
    """Persistent chains, refreshed by block Gibbs moves of the model that is trained.

    Before a batch, ``gibbs_sites`` random sites of every chain in it are forgotten and redrawn
    with the model's conditionals (Liu, Ramadge, Adams, ICML 2024, section 4.3): a few passes
    instead of one for every site, and for a consistent model a move that leaves its distribution
    stationary. Several chains share a condition, so that advantages can be compared; the
    conditions come from a schedule, and a slow one keeps the chains near equilibrium.

    Parameters
    ----------
    ensemble, lattice, box
        What to learn, where. Chains start from uniformly random configurations.
    schedule : AbstractSchedule, optional
        Asked for ``n_conditions`` conditions once a round of all chains. Default
        :class:`~clease_nn.schedules.UniformRandom`, which gives the chains new conditions every
        time; :class:`~clease_nn.schedules.RandomWalk` lets them follow.
    n_chains : int
        Chains in all. A batch takes the next ``size`` of them, all if there are no more, whole
        conditions at a time.
    n_conditions : int
        Conditions at a time; every one has ``n_chains / n_conditions`` chains.
    gibbs_sites : int
        Sites of a chain that are redrawn before it is in a batch.
    positions : int
        Random positions of a random order that every row is looked at, evenly spread over it.
    seed : int or numpy.random.SeedSequence

    Raises
    ------
    ValueError
        If ``gibbs_sites`` is not between 1 and the number of sites, ``n_chains`` is no multiple of
        ``n_conditions`` or less than twice it, or ``positions`` is less than 1.

    Examples
    --------
    >>> from clease_nn.energies.ising import ising_energy
    >>> from clease_nn.models import MarginalizationModel
    >>> from clease_nn.networks import LatticeConvolution
    >>> lattice = Lattice.square(3)
    >>> box = ConditionRange((20000, 60000), [-0.5], [0.5], [[-1.0, 1.0]])
    >>> networks = [LatticeConvolution(lattice, box, needs_fields=False) for _ in range(2)]
    >>> source = GibbsSource(
    ...     SemiGrandCanonical(ising_energy(lattice)), lattice, box, n_chains=32, n_conditions=8,
    ...     gibbs_sites=4, positions=2,
    ... )
    >>> batch = source.batch(16, MarginalizationModel(*networks))
    >>> batch.group.bincount().tolist(), tuple(batch.passes.shape), source.energy_evaluations
    ([4, 4, 4, 4], (16, 2), 16)
    """

    def __init__(
        self,
        ensemble: SemiGrandCanonical,
        lattice: Lattice,
        box: ConditionRange,
        *,
        schedule: AbstractSchedule | None = None,
        n_chains: int = 256,
        n_conditions: int = 16,
        gibbs_sites: int = 10,
        positions: int = 1,
        seed: int | np.random.SeedSequence = 0,
    ):
        if not 1 <= gibbs_sites <= lattice.n_sites:
            raise ValueError(
                f"gibbs_sites must lie between 1 and the {lattice.n_sites} sites of the lattice, "
                f"got {gibbs_sites}"
            )
        if n_conditions < 1 or n_chains % n_conditions or n_chains < 2 * n_conditions:
            raise ValueError(
                f"n_chains must be a multiple of n_conditions and at least twice it, got "
                f"{n_chains} chains at {n_conditions} conditions"
            )
        if positions < 1:
            raise ValueError(f"positions must be at least 1, got {positions}")
        sequence = (
            seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
        )
        start, own, orders, scheduled, self._chain_seed = sequence.spawn(5)
        self.ensemble, self.lattice, self.box = ensemble, lattice, box
        self.n_conditions, self.gibbs_sites = int(n_conditions), int(gibbs_sites)
        self.positions = int(positions)
        self.schedule = UniformRandom(box, scheduled) if schedule is None else schedule
        require_schedule_inside(box, self.schedule)
        self.occupations = torch.from_numpy(
            random_occupations(lattice, n_chains, np.random.default_rng(start))
        )
        self.rng = torch.Generator().manual_seed(int(own.generate_state(1)[0]))
        self.orders = np.random.default_rng(orders)
        self._conditions: Conditions | None = None
        self._next = 0  # condition
        self._evaluations = 0

    @property
    def n_chains(self) -> int:
        """Chains in all."""
        return len(self.occupations)

    def batch(self, size: int, model: AbstractOccupationModel) -> CompleteBatch:
        """The next ``size`` chains, refreshed and scored, each with a random order.

        Rows of a condition stand together; there are at least those of one condition.
        """
        each = self.n_chains // self.n_conditions
        with self.all_or_nothing():
            if self._next == 0:
                self._conditions = self.schedule(self.n_conditions)
                require_inside(self.box, self._conditions, "condition of the schedule")
            first = self._next
            last = min(first + max(round(size / each), 1), self.n_conditions)
            self._next = last % self.n_conditions
            rows = slice(first * each, last * each)
            conditions = self._conditions[first:last].repeat(each)
            occupations = self.occupations[rows]
            forgotten = torch.rand(occupations.shape, generator=self.rng).argsort(1)
            known = forgotten >= self.gibbs_sites
            partial = Configurations(
                self.lattice, conditions, torch.where(known, occupations, UNKNOWN).to(torch.int8)
            )
            fields = self.ensemble.fields if model.needs_fields else None
            full = self.ensemble.score(completed_by(model, partial, self.rng, fields))
        self.occupations[rows] = full.occupations
        self._evaluations += len(full)
        # given sites first, then the drawn ones in their order: all in all a uniformly random order
        steps = torch.where(known, forgotten - self.gibbs_sites, full.step + known.sum(1)[:, None])
        steps = steps.to(torch.int16)
        passes = random_passes(steps, self.positions, self.orders)
        return CompleteBatch(
            replace(full, step=steps),
            torch.arange(last - first).repeat_interleave(each),
            fields,
            passes,
            drawn=~known,
        )

    def state_dict(self) -> dict:
        """Chains, conditions, generators and counters."""
        c = self._conditions
        return {
            "occupations": self.occupations.clone(),
            "conditions": None if c is None else (c.temperature, c.mu),
            "next": self._next,
            "rng": self.rng.get_state(),
            "orders": copy.deepcopy(self.orders.bit_generator.state),
            "schedule": self.schedule.state_dict(),
            "evaluations": self._evaluations,
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue exactly where :meth:`state_dict` was taken."""
        self.occupations = state["occupations"].clone()
        c = state["conditions"]
        self._conditions = None if c is None else Conditions(*c)
        self._next = int(state["next"])
        self.rng.set_state(state["rng"])
        self.orders.bit_generator.state = state["orders"]
        self.schedule.load_state_dict(state["schedule"])
        self._evaluations = int(state["evaluations"])
