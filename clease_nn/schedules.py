"""Schedules of conditions: at which temperatures and chemical potentials a training step is made.

A schedule is called once a step, ``schedule(n)``, and returns the conditions of that step. It is
stateful and resumable. Temperatures are in K; a step given in the literature as kT in eV is
divided by Boltzmann's constant, ``step / ase.units.kB``.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod

import numpy as np
import torch

from clease_nn.conditions import ConditionRange, Conditions

__all__ = [
    "AbstractSchedule",
    "Annealing",
    "FixedGrid",
    "RandomWalk",
    "UniformRandom",
    "require_inside",
    "require_schedule_inside",
]


def require_inside(box: ConditionRange, conditions: Conditions, what: str = "condition") -> None:
    """Refuse conditions outside of ``box``.

    Raises
    ------
    ValueError
        Naming the first condition that is outside, and the limits.

    Examples
    --------
    >>> box = ConditionRange((300, 900), [-0.1], [0.1], [[-1.0, 1.0]])
    >>> require_inside(box, box.grid(2, 2))
    >>> require_inside(box, Conditions([200.0], [[0.0, 0.0]]))
    Traceback (most recent call last):
    ...
    ValueError: condition 0 (200 K, relative mu [0.0, 0.0] eV) lies outside of the box (300 to ...
    """
    outside = ~box.contains(conditions)
    if not outside.any():
        return
    k = int(outside.nonzero()[0])
    mu = [round(m, 6) for m in conditions.relative_mu()[k].tolist()]
    raise ValueError(
        f"{what} {k} ({conditions.temperature[k].item():g} K, relative mu {mu} eV) lies outside "
        f"of the box ({box.temperature[0]:g} to {box.temperature[1]:g} K, {box.low.tolist()} to "
        f"{box.high.tolist()} eV along {box.axes.tolist()}); widen the box or leave it out"
    )


def require_schedule_inside(box: ConditionRange, schedule: AbstractSchedule) -> None:
    """Refuse a schedule that may leave ``box`` at some time, before it does.

    A schedule of one's own that knows of no box cannot be seen through.

    Raises
    ------
    ValueError
        Naming a condition that the schedule may reach, and the limits.
    """
    extremes = schedule.extremes()
    if extremes is not None:
        require_inside(box, extremes, "extreme condition of the schedule")


def _generator(seed: int | np.random.SeedSequence) -> np.random.Generator:
    sequence = seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
    return np.random.default_rng(sequence)


class AbstractSchedule(ABC):
    """Conditions of one training step after another; stateful and resumable.

    Attributes
    ----------
    box : ConditionRange or None
        All conditions lie in it; None where the schedule knows of no box.
    """

    box: ConditionRange | None

    def extremes(self) -> Conditions | None:
        """Conditions that span all that the schedule may reach; None where that is not known."""
        return None if self.box is None else self.box.grid(2, 2)

    @abstractmethod
    def __call__(self, n: int) -> Conditions:
        """Conditions of the next training step, ``n`` rows."""

    @abstractmethod
    def state_dict(self) -> dict:
        """Everything that an exact continuation needs."""

    @abstractmethod
    def load_state_dict(self, state: dict) -> None:
        """Continue from :meth:`state_dict`."""


class FixedGrid(AbstractSchedule):
    """The given conditions, over and over.

    Parameters
    ----------
    conditions : Conditions
    box : ConditionRange, optional
        Refuse conditions outside of it.
    permuted : bool
        Go through the grid in a new random order every time instead of as given.
    seed : int or numpy.random.SeedSequence
        Of the random orders.

    Raises
    ------
    ValueError
        If there are no conditions or one is outside of the box.

    Examples
    --------
    >>> schedule = FixedGrid(Conditions([300.0, 600.0, 900.0], [[0.0, 0.0]] * 3))
    >>> schedule(2).temperature, schedule(2).temperature
    (tensor([300., 600.], dtype=torch.float64), tensor([900., 300.], dtype=torch.float64))
    """

    def __init__(
        self,
        conditions: Conditions,
        box: ConditionRange | None = None,
        *,
        permuted: bool = False,
        seed: int | np.random.SeedSequence = 0,
    ):
        if len(conditions) == 0:
            raise ValueError("a fixed grid needs at least 1 condition, got 0")
        if box is not None:
            require_inside(box, conditions, "condition of the grid")
        self.conditions, self.box, self.permuted = conditions, box, permuted
        self.rng = _generator(seed)
        self._left = np.zeros(0, dtype=np.int64)

    def extremes(self) -> Conditions:
        """The grid."""
        return self.conditions

    def __call__(self, n: int) -> Conditions:
        """The next ``n`` conditions of the grid."""
        size = len(self.conditions)
        while len(self._left) < n:
            order = self.rng.permutation(size) if self.permuted else np.arange(size)
            self._left = np.concatenate([self._left, order])
        rows, self._left = self._left[:n], self._left[n:]
        return self.conditions[torch.as_tensor(rows)]

    def state_dict(self) -> dict:
        """What is left of the present round, and the generator."""
        return {"left": self._left.copy(), "rng": copy.deepcopy(self.rng.bit_generator.state)}

    def load_state_dict(self, state: dict) -> None:
        """Continue exactly where :meth:`state_dict` was taken."""
        self._left = np.asarray(state["left"], dtype=np.int64).copy()
        self.rng.bit_generator.state = state["rng"]


def _at(box: ConditionRange, points: np.ndarray) -> Conditions:
    """Conditions at points (n, 1 + axes): temperature in K, then coordinates in eV."""
    return Conditions(torch.as_tensor(points[:, 0]), torch.as_tensor(points[:, 1:] @ box.axes))


def _limits(box: ConditionRange) -> tuple[np.ndarray, np.ndarray]:
    low = np.concatenate([[box.temperature[0]], box.low])
    return low, np.concatenate([[box.temperature[1]], box.high])


class UniformRandom(AbstractSchedule):
    """Independent conditions, uniform in the temperature and in every chemical potential.

    Parameters
    ----------
    box : ConditionRange
    seed : int or numpy.random.SeedSequence

    Examples
    --------
    >>> box = ConditionRange((300, 900), [-0.1], [0.1], [[-1.0, 1.0]])
    >>> bool(box.contains(UniformRandom(box, seed=1)(100)).all())
    True
    """

    def __init__(self, box: ConditionRange, seed: int | np.random.SeedSequence = 0):
        self.box = box
        self.rng = _generator(seed)

    def __call__(self, n: int) -> Conditions:
        """``n`` new points of the box."""
        low, high = _limits(self.box)
        return _at(self.box, low + (high - low) * self.rng.random((n, len(low))))

    def state_dict(self) -> dict:
        """The generator."""
        return {"rng": copy.deepcopy(self.rng.bit_generator.state)}

    def load_state_dict(self, state: dict) -> None:
        """Continue exactly where :meth:`state_dict` was taken."""
        self.rng.bit_generator.state = state["rng"]


class RandomWalk(AbstractSchedule):
    """Walkers that drift through the box with Gaussian steps and are reflected at its faces.

    Conditions of successive steps are close to one another, so that persistent chains can follow
    them (Du et al., AI4Mat 2024). Walkers start uniformly in the box, which reflected steps keep
    so: each walker is uniform at every time.

    Parameters
    ----------
    box : ConditionRange
    temperature_step : float
        Standard deviation of a step in K (``sigma / ase.units.kB`` for a sigma of kT in eV),
        positive and at most the width of the box.
    mu_step : float or array_like, shape (axes,)
        Standard deviation of a step along every axis of the box in eV, likewise.
    seed : int or numpy.random.SeedSequence

    Raises
    ------
    ValueError
        If a step is not positive or larger than the box.

    Examples
    --------
    >>> box = ConditionRange((300, 900), [-0.1], [0.1], [[-1.0, 1.0]])
    >>> walk = RandomWalk(box, temperature_step=50.0, mu_step=0.02, seed=1)
    >>> first, second = walk(4), walk(4)
    >>> bool(((first.temperature - second.temperature).abs() < 300).all())
    True
    """

    def __init__(
        self,
        box: ConditionRange,
        temperature_step: float,
        mu_step: float | np.ndarray,
        seed: int | np.random.SeedSequence = 0,
    ):
        low, high = _limits(box)
        mu_step = np.asarray(mu_step, dtype=float)
        if mu_step.ndim and mu_step.shape != (box.n_axes,):
            raise ValueError(
                f"mu_step must be one number or {box.n_axes}, one an axis of the box, got shape "
                f"{mu_step.shape}"
            )
        steps = np.concatenate([[temperature_step], np.broadcast_to(mu_step, box.n_axes)])
        names = ["temperature_step"] + ["mu_step"] * box.n_axes
        units = ["K"] + ["eV"] * box.n_axes
        for name, unit, step, width in zip(names, units, steps, high - low, strict=True):
            if not 0 < step <= width:
                raise ValueError(
                    f"{name} must be positive and at most the width of the box, {width:g} {unit}; "
                    f"got {step:g} {unit}"
                )
        self.box, self.steps = box, steps
        self.rng = _generator(seed)
        self._walkers = np.zeros((0, len(low)))

    def __call__(self, n: int) -> Conditions:
        """Where the first ``n`` walkers are; they then move on, others wait."""
        low, high = _limits(self.box)
        new = max(0, n - len(self._walkers))
        start = low + (high - low) * self.rng.random((new, len(low)))
        self._walkers = np.concatenate([self._walkers, start])
        out = _at(self.box, self._walkers[:n].copy())
        moved = self._walkers[:n] + self.steps * self.rng.normal(size=(n, len(low)))
        width = high - low
        folded = np.mod(moved - low, 2 * width)  # reflections at both ends have this period
        self._walkers[:n] = low + np.minimum(folded, 2 * width - folded)
        return out

    def state_dict(self) -> dict:
        """Walkers and generator."""
        rng = copy.deepcopy(self.rng.bit_generator.state)
        return {"walkers": self._walkers.copy(), "rng": rng}

    def load_state_dict(self, state: dict) -> None:
        """Continue exactly where :meth:`state_dict` was taken."""
        self._walkers = np.asarray(state["walkers"], dtype=float).copy()
        self.rng.bit_generator.state = state["rng"]


class Annealing(AbstractSchedule):
    """Another schedule's conditions, no colder than a temperature that falls step by step.

    At step t (from 0) a condition's temperature is ``max(T, start * rate**t)``: training starts
    where the ensemble has one phase only, which keeps a model that learns from its own draws from
    committing itself to one of several.

    Parameters
    ----------
    schedule : AbstractSchedule
    start : float
        Lowest temperature of the first step in K, inside of the box.
    rate : float
        Factor a step, in (0, 1]. ``(T_low / start)**(1 / n)`` reaches ``T_low`` after n steps.

    Raises
    ------
    ValueError
        If ``start`` is not positive or outside of the box of the schedule, or ``rate`` outside of
        (0, 1].

    Examples
    --------
    >>> grid = FixedGrid(Conditions([300.0, 900.0], [[0.0, 0.0]] * 2))
    >>> schedule = Annealing(grid, start=800.0, rate=0.5)
    >>> [schedule(2).temperature.tolist() for _ in range(3)]
    [[800.0, 900.0], [400.0, 900.0], [300.0, 900.0]]
    """

    def __init__(self, schedule: AbstractSchedule, start: float, rate: float):
        self.box = schedule.box
        if not (np.isfinite(start) and start > 0):
            raise ValueError(f"the start of the annealing must be positive, got {start:g} K")
        if self.box is not None and not self.box.temperature[0] <= start <= self.box.temperature[1]:
            low, high = self.box.temperature
            raise ValueError(
                f"the start of the annealing must lie in the box, {low:g} to {high:g} K; got "
                f"{start:g} K"
            )
        if not 0 < rate <= 1:
            raise ValueError(f"the rate of the annealing must lie in (0, 1], got {rate:g}")
        self.schedule, self.start, self.rate = schedule, float(start), float(rate)
        self.step = 0

    def extremes(self) -> Conditions | None:
        """Those of the inner schedule, and as the annealing begins."""
        c = self.schedule.extremes()
        if c is None:
            return None
        return Conditions.cat([c, Conditions(c.temperature.clamp_min(self.start), c.mu)])

    def __call__(self, n: int) -> Conditions:
        """Conditions of the inner schedule, at least as hot as the annealing is now."""
        conditions = self.schedule(n)
        floor = self.start * self.rate**self.step
        self.step += 1
        return Conditions(conditions.temperature.clamp_min(floor), conditions.mu)

    def state_dict(self) -> dict:
        """The inner schedule's state and the step."""
        return {"schedule": self.schedule.state_dict(), "step": self.step}

    def load_state_dict(self, state: dict) -> None:
        """Continue exactly where :meth:`state_dict` was taken."""
        self.schedule.load_state_dict(state["schedule"])
        self.step = int(state["step"])
