"""Importance-weighted batches from a model's own draws, used several times."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from clease_nn.conditions import ConditionRange, Conditions
from clease_nn.configurations import Configurations
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import UNKNOWN, Lattice
from clease_nn.models import AbstractOccupationModel
from clease_nn.objectives import CompleteBatch, MaskedBatch
from clease_nn.schedules import (
    AbstractSchedule,
    UniformRandom,
    require_inside,
    require_schedule_inside,
)
from clease_nn.sources.generated import drawn_by
from clease_nn.sources.masking import random_known_sites
from clease_nn.sources.own_draws import AbstractOwnDraws

__all__ = ["ReplaySource", "tempered_weights"]

_COLUMNS = ("occupations", "step", "log_prob", "log_target")


def tempered_weights(log_weight: Tensor, min_ness: float) -> tuple[Tensor, Tensor]:
    """Self-normalised weights ``w^a`` of each row, ``a`` the largest power that keeps its NESS.

    Parameters
    ----------
    log_weight : Tensor, shape (conditions, n), float64
        ln w of n draws at each condition.
    min_ness : float
        Normalised effective sample size that the weights keep; 0 leaves them as they are.

    Returns
    -------
    weight : Tensor, shape (conditions, n), float64
        Of sum one in each row.
    power : Tensor, shape (conditions,), float64
        ``a``, at most 1.

    Examples
    --------
    >>> weight, power = tempered_weights(torch.tensor([[0.0, 0.0], [0.0, 50.0]]).double(), 0.75)
    >>> bool(power[0] == 1), bool(power[1] < 1)
    (True, True)
    """

    def weights(power: Tensor) -> Tensor:
        return torch.softmax(power[:, None] * log_weight, 1)

    def enough(power: Tensor) -> Tensor:
        return 1.0 / (weights(power).square().sum(1) * log_weight.shape[1]) >= min_ness

    high = torch.ones(len(log_weight), dtype=torch.float64)
    low = torch.where(enough(high), 1.0, 0.0).to(torch.float64)
    for _ in range(30):  # NESS falls with the power
        middle = (low + high) / 2
        good = enough(middle)
        low, high = torch.where(good, middle, low), torch.where(good, high, middle)
    return weights(low), low


class ReplaySource(AbstractOwnDraws):
    """A model's own draws, weighted to stand for the ensemble, and replayed: no Monte Carlo.

    For energies without flip energies, with :func:`~clease_nn.objectives.cross_entropy`. Every
    ``every`` batches the model in training draws new rows, equally many at each of
    ``n_conditions`` conditions of the schedule; their weights ``w = f/q`` are normalised among
    the rows that were drawn together at one condition. The last ``keep`` draws are kept, and a
    batch is picked among them with probabilities proportional to the weights, so that all rows
    of a batch count alike. A kept row keeps the ln q it was drawn with: its weight stays right
    while the model moves on.

    A model far from the ensemble would put all weight on single rows. Weights are therefore
    raised to the largest power ``a <= 1`` that keeps their normalised effective sample size at
    ``min_ness``: the model is trained towards ``q^(1-a) f^a``, a point on the way from itself
    to the ensemble (annealed importance sampling). Where ``a`` has reached 1 the training is
    towards the ensemble itself; :attr:`powers` tells.

    Parameters
    ----------
    ensemble, lattice, box
    schedule : AbstractSchedule, optional
        Conditions of every draw. Default uniform in the box.
    n_conditions : int
        Conditions a draw; each has the same number of rows, at least 2.
    every : int
        Batches a draw. Energies are evaluated for one row in ``every``.
    keep : int
        Draws that are kept.
    min_ness : float
        In [0, 1); 0 never tempers the weights.
    seed : int or numpy.random.SeedSequence

    Attributes
    ----------
    powers : Tensor, shape (n_conditions,), or None
        Powers of the last draw.

    Raises
    ------
    ValueError
        If a number is not positive or ``min_ness`` outside of [0, 1).

    Examples
    --------
    >>> from clease_nn.models import AnyOrderARM
    >>> from clease_nn.networks import LatticeConvolution
    >>> lattice = Lattice.square(3)
    >>> box = ConditionRange((600, 900), [-0.1], [0.1], [[-1.0, 1.0]])
    >>> model = AnyOrderARM(LatticeConvolution(lattice, box, needs_fields=False))
    >>> ensemble = SemiGrandCanonical(lambda lattice, x: 0.01 * x.double().sum(1))
    >>> source = ReplaySource(ensemble, lattice, box, n_conditions=4, every=2)
    >>> for _ in range(4):
    ...     batch = source.batch(64, model)
    >>> source.energy_evaluations, tuple(batch.targets.shape)
    (128, (64, 9, 2))
    """

    def __init__(
        self,
        ensemble: SemiGrandCanonical,
        lattice: Lattice,
        box: ConditionRange,
        *,
        schedule: AbstractSchedule | None = None,
        n_conditions: int = 16,
        every: int = 2,
        keep: int = 8,
        min_ness: float = 0.3,
        seed: int | np.random.SeedSequence = 0,
    ):
        for name, value in (("n_conditions", n_conditions), ("every", every), ("keep", keep)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 <= min_ness < 1:
            raise ValueError(f"min_ness must lie in [0, 1), got {min_ness}")
        sequence = (
            seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
        )
        schedule_seed, draw_seed, pick_seed, self._chain_seed = sequence.spawn(4)
        self.ensemble, self.lattice, self.box = ensemble, lattice, box
        self.schedule = UniformRandom(box, schedule_seed) if schedule is None else schedule
        require_schedule_inside(box, self.schedule)
        self.n_conditions, self.every, self.keep = int(n_conditions), int(every), int(keep)
        self.min_ness = float(min_ness)
        self.generator = torch.Generator().manual_seed(int(draw_seed.generate_state(1)[0]))
        self.rng = np.random.default_rng(pick_seed)
        self.powers: Tensor | None = None
        self._kept: list[tuple[Configurations, Tensor]] = []
        self._batches = 0
        self._evaluations = 0

    def batch(self, size: int, model: AbstractOccupationModel) -> MaskedBatch | CompleteBatch:
        """``size`` rows of the draws at hand, masked for models of any order, else complete.

        Raises
        ------
        ValueError
            If a draw of ``size`` rows leaves less than 2 a condition, or the schedule leaves the
            box.
        """
        if self._batches % self.every == 0:
            self._draw(size, model)
        self._batches += 1
        full = Configurations.cat(c for c, _ in self._kept)
        cumulative = torch.cat([w.ravel() for _, w in self._kept]).cumsum(0).numpy()
        strata = (np.arange(size) + self.rng.random()) / size * cumulative[-1]
        rows = np.minimum(np.searchsorted(cumulative, strata, side="right"), len(full) - 1)
        rows = torch.as_tensor(rows)
        full = replace(full[rows], log_prob=None)  # of the model as it was
        fields = self.ensemble.fields if model.needs_fields else None
        if not model.any_order:
            each = np.concatenate([np.full(len(w), w.shape[1]) for _, w in self._kept])
            number = torch.arange(len(each)).repeat_interleave(torch.as_tensor(each))[rows]
            return CompleteBatch(full, torch.unique(number, return_inverse=True)[1], fields)
        known, weight = random_known_sites(size, self.lattice.n_sites, self.rng)
        occupations = torch.where(torch.as_tensor(known), full.occupations, UNKNOWN)
        partial = Configurations(self.lattice, full.conditions, occupations.to(torch.int8))
        species = torch.arange(self.lattice.n_species)
        targets = (full.occupations[:, :, None] == species).to(torch.float32)
        fields = None if fields is None else fields(partial)
        return MaskedBatch(partial, targets, fields, torch.as_tensor(weight))

    def _draw(self, size: int, model: AbstractOccupationModel) -> None:
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
            drawn = drawn_by(model, self.ensemble, self.lattice, rows, self.generator)
        self._evaluations += len(drawn)
        log_weight = drawn.log_weight.view(self.n_conditions, each)
        weight, self.powers = tempered_weights(log_weight, self.min_ness)
        self._kept = [*self._kept, (replace(drawn, energy=None), weight)][-self.keep :]

    def state_dict(self) -> dict:
        """Schedule, generators, counters and the draws that are kept."""
        return {
            "schedule": self.schedule.state_dict(),
            "generator": self.generator.get_state(),
            "rng": copy.deepcopy(self.rng.bit_generator.state),
            "kept": [
                {
                    "temperature": c.conditions.temperature,
                    "mu": c.conditions.mu,
                    "weight": weight,
                    **{name: getattr(c, name) for name in _COLUMNS},
                }
                for c, weight in self._kept
            ],
            "powers": self.powers,
            "batches": self._batches,
            "evaluations": self._evaluations,
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue exactly where :meth:`state_dict` was taken."""
        self.schedule.load_state_dict(state["schedule"])
        self.generator.set_state(state["generator"])
        self.rng.bit_generator.state = state["rng"]
        self._kept = []
        for block in state["kept"]:
            columns = {name: block[name] for name in _COLUMNS}
            conditions = Conditions(block["temperature"], block["mu"])
            c = Configurations(self.lattice, conditions, **columns)
            self._kept.append((c, block["weight"]))
        self.powers = state["powers"]
        self._batches = int(state["batches"])
        self._evaluations = int(state["evaluations"])
