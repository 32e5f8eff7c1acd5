"""Batches that the model in training draws itself."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor

from clease_nn.conditions import ConditionRange, Conditions
from clease_nn.configurations import Configurations
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import Lattice
from clease_nn.models import AbstractOccupationModel, Fields
from clease_nn.objectives import CompleteBatch
from clease_nn.schedules import (
    AbstractSchedule,
    UniformRandom,
    require_inside,
    require_schedule_inside,
)
from clease_nn.sources.own_draws import AbstractOwnDraws

__all__ = ["GeneratedSource", "completed_by", "drawn_by", "random_passes"]


def random_passes(steps: Tensor, n: int, rng: np.random.Generator) -> Tensor:
    """``n`` passes of every row, evenly spread over those it has, (batch, n) int64.

    Each pass is chosen equally often on average, without repetition where ``n`` is at most their
    number, so that sums over the passes chosen are unbiased.

    Examples
    --------
    >>> steps = torch.arange(6).repeat(1000, 1)
    >>> passes = random_passes(steps, 2, np.random.default_rng(0))
    >>> bool((passes[:, 0] < 3).all() and (passes[:, 1] >= 3).all())
    True
    """
    rows = len(steps)
    passes = steps.max(1).values.numpy().astype(np.int64) + 1
    offset = (rng.permutation(rows) + rng.random(rows)) / rows
    position = (np.arange(n) + offset[:, None]) / n * passes[:, None]
    return torch.as_tensor(np.minimum(position.astype(np.int64), passes[:, None] - 1))


def completed_by(
    model: AbstractOccupationModel,
    partial: Configurations,
    rng: torch.Generator,
    fields: Fields | None,
) -> Configurations:
    """The unknown sites drawn where the model is, the result on the CPU."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return model.complete(partial.to(device), rng, fields).to("cpu")


def drawn_by(
    model: AbstractOccupationModel,
    ensemble: SemiGrandCanonical,
    lattice: Lattice,
    conditions: Conditions,
    rng: torch.Generator,
) -> Configurations:
    """One scored draw of every row of ``conditions``, in the precision that is set around it."""
    fields = ensemble.fields if model.needs_fields else None
    was_training = model.training
    model.eval()
    try:
        full = completed_by(model, Configurations.unknown(lattice, conditions), rng, fields)
    finally:
        model.train(was_training)
    return ensemble.score(full)


class GeneratedSource(AbstractOwnDraws):
    """Draws of the model in training, scored by the ensemble: no Monte Carlo.

    For :class:`~clease_nn.objectives.Reinforce` and :class:`~clease_nn.objectives.LogVariance`.
    A model that learns from its own draws alone can lose a phase for good and never notice;
    train hot first (:class:`~clease_nn.schedules.Annealing`) and look at the forward check of
    the validation.

    Parameters
    ----------
    ensemble, lattice, box
    schedule : AbstractSchedule, optional
        Conditions of every step. Default uniform in the box.
    n_conditions : int
        Conditions a step; each has the same number of rows, at least 2.
    passes : int, optional
        Random passes of every row that gradients are taken at; default all. Memory and time of
        a gradient are proportional to it. Models that score all passes at once ignore it.
    seed : int or numpy.random.SeedSequence

    Raises
    ------
    ValueError
        If ``n_conditions`` or ``passes`` is not positive, or there are more passes than sites.

    Examples
    --------
    >>> from clease_nn.energies.ising import ising_energy
    >>> from clease_nn.models import AnyOrderARM
    >>> from clease_nn.networks import LatticeConvolution
    >>> lattice = Lattice.square(3)
    >>> box = ConditionRange((20000, 60000), [-0.5], [0.5], [[-1.0, 1.0]])
    >>> model = AnyOrderARM(LatticeConvolution(lattice, box, needs_fields=False))
    >>> ensemble = SemiGrandCanonical(ising_energy(lattice))
    >>> source = GeneratedSource(ensemble, lattice, box, n_conditions=4, passes=3)
    >>> batch = source.batch(20, model)
    >>> batch.group.bincount().tolist(), tuple(batch.passes.shape), source.energy_evaluations
    ([5, 5, 5, 5], (20, 3), 20)
    """

    def __init__(
        self,
        ensemble: SemiGrandCanonical,
        lattice: Lattice,
        box: ConditionRange,
        *,
        schedule: AbstractSchedule | None = None,
        n_conditions: int = 16,
        passes: int | None = None,
        seed: int | np.random.SeedSequence = 0,
    ):
        if n_conditions < 1:
            raise ValueError(f"n_conditions must be at least 1, got {n_conditions}")
        if passes is not None and not 1 <= passes <= lattice.n_sites:
            raise ValueError(
                f"passes must lie between 1 and the {lattice.n_sites} sites, got {passes}; None "
                "takes all"
            )
        sequence = (
            seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
        )
        schedule_seed, draw_seed, pass_seed, self._chain_seed = sequence.spawn(4)
        self.ensemble, self.lattice, self.box = ensemble, lattice, box
        self.schedule = UniformRandom(box, schedule_seed) if schedule is None else schedule
        require_schedule_inside(box, self.schedule)
        self.n_conditions, self.passes = int(n_conditions), passes
        self.generator = torch.Generator().manual_seed(int(draw_seed.generate_state(1)[0]))
        self.rng = np.random.default_rng(pass_seed)
        self._evaluations = 0

    def batch(self, size: int, model: AbstractOccupationModel) -> CompleteBatch:
        """``size // n_conditions`` new draws at each of the next conditions of the schedule.

        Raises
        ------
        ValueError
            If that is less than 2, or the schedule leaves the box.
        """
        each = size // self.n_conditions
        if each < 2:
            raise ValueError(
                f"{size} rows at {self.n_conditions} conditions leave {each} a condition, at least "
                "2 are needed; raise batch_size or lower n_conditions"
            )
        with self.all_or_nothing():
            conditions = self.schedule(self.n_conditions)
            require_inside(self.box, conditions, "condition of the schedule")
            rows = conditions.repeat(each)
            full = drawn_by(model, self.ensemble, self.lattice, rows, self.generator)
        self._evaluations += len(full)
        group = torch.arange(self.n_conditions).repeat_interleave(each)
        passes = None if self.passes is None else random_passes(full.step, self.passes, self.rng)
        fields = self.ensemble.fields if model.needs_fields else None
        return CompleteBatch(full, group, fields, passes)

    def state_dict(self) -> dict:
        """Schedule, generators and counter."""
        return {
            "schedule": self.schedule.state_dict(),
            "generator": self.generator.get_state(),
            "rng": copy.deepcopy(self.rng.bit_generator.state),
            "evaluations": self._evaluations,
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue exactly where :meth:`state_dict` was taken."""
        self.schedule.load_state_dict(state["schedule"])
        self.generator.set_state(state["generator"])
        self.rng.bit_generator.state = state["rng"]
        self._evaluations = int(state["evaluations"])
