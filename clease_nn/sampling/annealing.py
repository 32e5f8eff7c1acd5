"""Annealed importance sampling and sequential Monte Carlo from a model's draws to a target."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from tqdm.auto import tqdm

from clease_nn.conditions import ConditionRange, Conditions
from clease_nn.configurations import Configurations
from clease_nn.cost import Cost
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import Lattice
from clease_nn.models import AbstractOccupationModel
from clease_nn.montecarlo.chains import random_occupations
from clease_nn.montecarlo.moves import Move
from clease_nn.sampling.draw import sample
from clease_nn.sampling.drift import DRIFTING, drift
from clease_nn.sampling.paths import (
    conditional_ess,
    equal_lengths,
    interpolate,
    systematic,
    thermodynamic_length,
)
from clease_nn.sampling.walks import Walk
from clease_nn.statistics import normalized_ess
from clease_nn.warnings import InterruptedWarning, LostModeWarning, LowESSWarning

__all__ = ["anneal"]

_PILOT = 64  # rows of a pilot, one block of the compiled chains
_TRIALS = 3  # of the number of steps
_PILOT_SWEEPS = 4  # so many times the sweeps of a step bring a pilot into equilibrium
_LEVELS = 9  # temperatures of the range that may be starts
_FEWEST_EFFECTIVE = 0.1
_AT_ONCE = 2**25  # sites of the configurations walking together


def anneal(
    model: AbstractOccupationModel | None,
    ensemble: SemiGrandCanonical,
    lattice: Lattice,
    conditions: Conditions,
    rng: torch.Generator,
    *,
    n: int = 1000,
    start: Conditions | None = None,
    steps: int | Sequence[float] | None = None,
    sweeps: int = 1,
    moves: Move | None = None,
    population: int = 1,
    ness: float = 0.8,
    max_steps: int = 2000,
    batch_size: int | None = None,
    threads: int = 1,
    precision: str = "float32",
    progress: bool = True,
) -> Configurations:
    """Independent weighted draws at conditions that a model does not serve well by itself.

    Rows begin as draws of the model at a start, where it is good, and follow a path of conditions
    to the target. Exact moves at condition ``k`` take ``x`` to ``x'``; what they change the target
    by is what they change the density by::

        ln q(x') = ln q(x) + ln p_k(x') - ln p_k(x),     p_k = exp(-(E - mu.N)/kT_k)

    and the weight at any later condition is ``p / q`` as ever. This is annealed importance
    sampling [1]_: ``w`` averages to Z without bias, for any path and however badly the moves
    relax, and rows are independent. So ``log_prob`` is all that they have to carry, and every
    function of :mod:`clease_nn.thermodynamics` reads them as it reads plain draws. Short paths
    cost variance only, which NESS shows. Moves at a single condition leave all weights as they
    are: a start at the target needs a model that is good there.

    With ``population > 1`` every row comes from a population of its own (sequential Monte Carlo
    [2]_): its members compete, resampled whenever fewer than half of them are effective, and one
    is taken in the end, with the population's mean weight. Z stays unbiased and rows stay
    independent, each now worth ``population`` walks. It helps where the weights of single walks
    degenerate; otherwise as many single walks say more about averages.

    Parameters
    ----------
    model : AbstractOccupationModel or None
        None: paths begin at infinite temperature with random configurations.
    ensemble, lattice
    conditions : Conditions
        The targets, of any number, also outside the model's trained range.
    rng : torch.Generator
        On the CPU; its state fixes the result.
    n : int
        Rows at each condition, at least 2.
    start : Conditions, optional
        Where rows are drawn, within the trained range: one for all targets or one a target.
        Default: the target itself if a pilot of 64 draws has a NESS of at least ``ness`` there,
        otherwise the nearest higher or lower temperature at which one has, whichever serves
        better in trials of the path; infinite temperature, with random configurations, is tried
        where the model is good nowhere. Draws that leave their weighted averages in a few exact
        sweeps lack a mode: they are no good, whatever their NESS.
    steps : int or sequence of float, optional
        Conditions on the path, evenly spaced in (1/kT, mu/kT), the last one the target: 1 is plain
        importance sampling with the draws of the start. Or their places on the path, ascending
        fractions of it of which the last is 1, as ``provenance["paths"]`` has them. Default: a
        pilot run measures the length of the path, spaces the steps evenly in it, and tries how
        many keep the path's share of the NESS above ``ness``. Pilots are thrown away, so that the
        result is unbiased.
    sweeps : int
        Heat-bath sweeps at each condition; 0 with ``moves`` only.
    moves : Move, optional
        Another exact move after the sweeps, such as blocks that a model redraws.
    population : int
        Walks that compete for each row.
    ness : float
        Normalised effective sample size aimed at, of the start and of the path each.
    max_steps : int
        Limit of the steps that the pilot may choose.
    batch_size, threads, precision
        Of the model's draws, as in :func:`~clease_nn.sampling.sample`.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Configurations
        ``n`` rows a condition, in the order of the conditions. ``provenance["paths"]`` tells of
        every condition the start (K, eV), ``steps`` and their ``fractions`` of the path, NESS of
        ``start_ness``, ``path_ness`` and ``ness`` of the result, its ``drift`` in further sweeps
        in standard errors (None where that cannot be told), ``acceptance`` (share of site updates
        that changed the species), ``move_acceptance``, how often a population was resampled
        (``resamplings``) and how many of its members' first ancestors survive (``survivors``).
        After Ctrl-C the conditions that were finished, with an ``InterruptedWarning``.

    Raises
    ------
    ValueError
        If a number is out of its range, a start lies outside the trained range, conditions belong
        to another lattice, or an energy is not finite.
    KeyboardInterrupt
        If none was finished.

    Warns
    -----
    LowESSWarning
        If NESS stays below 0.1; it says whether start or path are to blame and how many steps
        would do.
    LostModeWarning
        If further exact sweeps carry the rows off their weighted averages by 5 standard errors:
        the start has hardly drawn a mode that matters at the target, and errors are too small.
        Modes behind barriers that sweeps do not cross go unnoticed; compare another start, or
        none (``model=None``).

    References
    ----------
    .. [1] R. M. Neal, Stat. Comput. 11, 125 (2001).
    .. [2] P. Del Moral, A. Doucet, A. Jasra, J. R. Stat. Soc. B 68, 411 (2006).

    Examples
    --------
    From random configurations of a small Ising model to 2 J/kB, without any model:

    >>> from clease_nn.energies.ising import ising_conditions, ising_energy
    >>> from clease_nn.thermodynamics import log_z
    >>> lattice = Lattice.square(4)
    >>> ensemble = SemiGrandCanonical(ising_energy(lattice))
    >>> at = ising_conditions(2.0, 0.1)
    >>> rng = torch.Generator().manual_seed(0)
    >>> c = anneal(None, ensemble, lattice, at, rng, n=1000, steps=40, progress=False)
    >>> bool(abs(log_z(c).z(ensemble.enumerate(lattice).log_z(at))) < 4)
    True
    """
    started = time.perf_counter()
    _check(n, steps, sweeps, moves, population, ness, max_steps)
    box = _trained_range(model)
    if model is None and start is not None:
        raise ValueError(
            "without a model all paths begin at infinite temperature; leave start out, or give a "
            "model to draw there"
        )
    starts = _check_conditions(lattice, conditions, start, box)
    fixed = None if steps is None else _fractions(steps)
    drawing = {"batch_size": batch_size, "threads": threads, "precision": precision}
    task = _Task(model, ensemble, lattice, rng, drawing, sweeps, moves, population, ness)
    parts, paths, paid = [], [], _cost_of(moves)
    bar = tqdm(total=len(conditions), disable=not progress, desc="annealing", unit="condition")
    try:
        for k in range(len(conditions)):
            target = conditions[k]
            given = None if starts is None else starts[k]
            at, fractions = task.plan(given, target, box, fixed, max_steps)
            part, path = task.run(at, target, fractions, n)
            parts.append(part)
            paths.append(path)
            bar.update()
    except KeyboardInterrupt:
        if not parts:
            raise
        warnings.warn(
            f"annealing was interrupted: {len(parts)} of {len(conditions)} conditions are returned",
            InterruptedWarning,
            stacklevel=2,
        )
    finally:
        bar.close()
    _warn(paths, task)
    out = Configurations.cat(parts)
    method = "annealed importance sampling" if population == 1 else "sequential Monte Carlo"
    noted = {"method": method, "population": population, "paths": paths}
    made = {k: v - paid[k] for k, v in _cost_of(moves).items()}
    cost = replace(task.cost + Cost(**made), seconds=time.perf_counter() - started)
    return replace(out, provenance=cost.noted_in(noted))


# ------------------------------------------------------------------ one condition
@dataclass(eq=False)
class _Task:
    """What all conditions share, and what they have cost so far."""

    model: AbstractOccupationModel | None
    ensemble: SemiGrandCanonical
    lattice: Lattice
    rng: torch.Generator
    drawing: dict
    sweeps: int
    moves: Move | None
    population: int
    ness: float

    def __post_init__(self):
        self.cost = Cost()
        self._pilots: dict[tuple, tuple[Configurations, float]] = {}

    def seed(self) -> np.random.SeedSequence:
        return np.random.SeedSequence(int(torch.randint(2**62, (1,), generator=self.rng)))

    def walk(self, drawn: Configurations, at: Conditions) -> Walk:
        return Walk(self.ensemble, drawn, at, self.sweeps, self.moves, self.seed())

    def draw(self, at: Conditions | None, target: Conditions, n: int) -> Configurations:
        """``n`` scored draws at a start; random ones, scored at the target, without a start."""
        if at is None:
            rng = np.random.default_rng(self.seed())
            occupations = torch.from_numpy(random_occupations(self.lattice, n, rng))
            log_prob = torch.full((n,), -self.lattice.log_states, dtype=torch.float64)
            c = Configurations(self.lattice, target.repeat(n), occupations, log_prob=log_prob)
            self.cost += Cost(energy_evaluations=n, attempts_per_site=n)
            return self.ensemble.score(c)
        c = sample(self.model, self.ensemble, self.lattice, at.repeat(n), self.rng, **self.drawing)
        self.cost += replace(c.cost, training_seconds=0.0, training_energy_evaluations=0.0)
        return c.to("cpu")

    def pilot(self, at: Conditions | None, target: Conditions) -> tuple[Configurations, float]:
        """Draws for pilots at a start, made once, and their NESS; 0 where they lack a mode."""
        if at is None:  # random configurations, of weight one there
            return self.draw(at, target, _PILOT), 1.0
        key = (at.temperature.item(), *at.mu[0].tolist())
        if key not in self._pilots:
            c = self.draw(at, target, _PILOT)
            lost = self.drift(c) > DRIFTING
            self._pilots[key] = c, 0.0 if lost else normalized_ess(c.log_weight)
        return self._pilots[key]

    def drift(self, c: Configurations) -> float:
        found, cost = drift(c, self.ensemble, self.seed())
        self.cost += cost
        return found

    def plan(
        self,
        at: Conditions | None,
        target: Conditions,
        box: ConditionRange | None,
        fixed: np.ndarray | None,
        max_steps: int,
    ) -> tuple[Conditions | None, np.ndarray]:
        """Start and fractions of the path to one target, measured as far as they are not given."""
        starts = [at] if at is not None or self.model is None else self.starts(target, box)
        if fixed is not None:
            if len(starts) > 1:
                known = [at for at in starts if at is not None]
                starts = [max(known, key=lambda at: self.pilot(at, target)[1])]
            return starts[0], fixed
        best = None
        for at in starts:
            fractions, path_ness = self.measured(at, target, max_steps)
            found = path_ness * (1.0 if at is None else self.pilot(at, target)[1])
            # of two that are good enough the shorter
            rank = min(found, self.ness**2), -len(fractions)
            if best is None or rank > best[0]:
                best = rank, at, fractions
        return best[1:]

    def starts(self, target: Conditions, box: ConditionRange | None) -> list[Conditions | None]:
        """The target where the model is good there; else it and the best above and below.

        Where the model is good nowhere, infinite temperature too, where random configurations are.
        """

        def found(at: Conditions) -> float:
            return self.pilot(at, target)[1]

        near, above, below = _candidates(target, box)
        if found(near) >= self.ness:
            return [near]
        out: list[Conditions | None] = [near]
        for side in (below, above):
            if side:
                good = (at for at in side if found(at) >= self.ness)
                out.append(next(good, None) or max(side, key=found))
        if not any(found(at) >= self.ness for at in out):
            out.append(None)
        return out

    def measured(
        self, at: Conditions | None, target: Conditions, max_steps: int
    ) -> tuple[np.ndarray, float]:
        """Steps on the straight path from start to target, and the NESS that they had in a trial.

        Were every step to relax all, its length squared over the number of steps would be the
        variance of ln w; trials tell how much more it takes.
        """
        if at is not None and _same(at, target):
            return np.ones(1), 1.0
        drawn = self.pilot(at, target)[0]
        rng = np.random.default_rng(self.seed())
        log_start = _log_start(drawn, at)
        walk = self.walk(drawn, interpolate(at, target, [1.0]))

        def relax(fraction: float, log_factor: np.ndarray) -> np.ndarray:
            walk.keep(systematic(log_factor[None], rng)[0])
            walk.go(interpolate(at, target, [fraction]))
            for _ in range(_PILOT_SWEEPS):
                walk.move()
            return walk.difference(at, target)

        # into equilibrium at the start first: weights of its draws, then the factors of the path
        walk.keep(systematic(log_start[None], rng)[0])
        knots, lengths = thermodynamic_length(walk.difference(at, target), relax)
        self.cost += walk.cost
        allowed = -np.log(self.ness)
        number = int(np.clip(np.ceil(lengths[-1] ** 2 / allowed), 1, max_steps))
        for _ in range(_TRIALS):
            fractions = equal_lengths(knots, lengths, number)
            trial = self.walk(drawn, interpolate(at, target, fractions[:1]))
            trial.follow(interpolate(at, target, fractions), 1, rng)
            self.cost += trial.cost
            found = conditional_ess(trial.log_weight - log_start, log_start)
            if found >= self.ness or number == max_steps:
                break
            factor = np.clip(-np.log(found) / allowed, 1.5, 8.0)
            number = int(min(np.ceil(number * factor), max_steps))
        return fractions, found

    def weighted(self, drawn: Configurations, target: Conditions) -> Configurations:
        """Draws as they are, scored at another condition."""
        c = Configurations(
            self.lattice, target.repeat(len(drawn)), drawn.occupations, log_prob=drawn.log_prob
        )
        log_target = self.ensemble.log_weight(c, drawn.energy)
        return replace(c, energy=drawn.energy, log_target=log_target)

    def run(
        self, at: Conditions | None, target: Conditions, fractions: np.ndarray, n: int
    ) -> tuple[Configurations, dict]:
        """``n`` rows at the target, and what is to be known of their path."""
        path = interpolate(at, target, fractions)
        rows = max(1, _AT_ONCE // (self.lattice.n_sites * self.population))
        parts, walks, start_weights = [], [], []
        for size in _sizes(n, rows):
            drawn = self.draw(at, target, size * self.population)
            start_weights.append(_log_start(drawn, at))
            if len(path) == self.population == 1:  # nothing moves: draws of the start, weighted
                parts.append(self.weighted(drawn, target))
                continue
            walk = self.walk(drawn, path[0])
            rng = np.random.default_rng(self.seed())
            walk.follow(path, self.population, rng)
            parts.append(walk.finish(self.population, rng))
            walks.append(walk)
            self.cost += walk.cost
        c = Configurations.cat(parts)
        log_start = np.concatenate(start_weights)
        told = {
            "start_temperature": None if at is None else at.temperature.item(),
            "start_mu": None if at is None else at.mu[0].tolist(),
            "temperature": target.temperature.item(),
            "mu": target.mu[0].tolist(),
            "steps": len(fractions),
            "fractions": [float(f) for f in fractions],
            "start_ness": normalized_ess(log_start),
            "ness": normalized_ess(c.log_weight),
            "drift": None if np.isnan(found := self.drift(c)) else found,
            "acceptance": _share((w.chains.accepted, w.chains.attempted) for w in walks),
            "move_acceptance": _share((w.moved, w.tried) for w in walks),
        }
        if self.population == 1:
            told["path_ness"] = conditional_ess(c.log_weight.numpy() - log_start, log_start)
        else:
            told["resamplings"] = float(np.mean(np.concatenate([w.resampled for w in walks])))
            told["survivors"] = float(np.mean(np.concatenate([w.survivors for w in walks])))
        return c, told


# ------------------------------------------------------------------ helpers
def _log_start(drawn: Configurations, at: Conditions | None) -> np.ndarray:
    """Log weights of draws at their start; at infinite temperature all configurations weigh 1."""
    return (-drawn.log_prob if at is None else drawn.log_weight).numpy()


def _cost_of(moves: Move | None) -> dict[str, float]:
    """What a move says that it has cost up to now, as far as it counts."""
    return {k: getattr(moves, k, 0.0) for k in ("energy_evaluations", "network_passes")}


def _same(a: Conditions, b: Conditions) -> bool:
    return torch.equal(a.temperature, b.temperature) and torch.equal(a.mu, b.mu)


def _share(pairs: Iterable[tuple[int, int]]) -> float | None:
    """Share of what was tried, None where nothing was."""
    some, tried = np.sum([(0, 0), *pairs], 0)
    return float(some / tried) if tried else None


def _sizes(n: int, most: int) -> Iterator[int]:
    return (min(most, n - k) for k in range(0, n, most))


def _trained_range(model: AbstractOccupationModel | None) -> ConditionRange | None:
    """Conditions that the networks of a model were made for; None where none says."""
    parts = () if model is None else model.modules()
    boxes = [m.box for m in parts if isinstance(getattr(m, "box", None), ConditionRange)]
    return boxes[0] if boxes else None


def _candidates(
    target: Conditions, box: ConditionRange | None
) -> tuple[Conditions, list[Conditions], list[Conditions]]:
    """The target or the point of the range next to it; temperatures above and below, near first."""
    if box is None:
        return target, [], []
    near = target
    if not bool(box.contains(target)):
        x = np.clip(box.coordinates(target), box.low, box.high)
        temperature = np.clip(target.temperature.numpy(), *box.temperature)
        near = Conditions(torch.as_tensor(temperature), torch.as_tensor(x @ box.axes))
    here, levels = np.log(near.temperature.item()), np.linspace(*np.log(box.temperature), _LEVELS)
    apart = 0.25 * (levels[1] - levels[0])
    above, below = levels[levels > here + apart], levels[levels < here - apart][::-1]
    return near, *([Conditions([np.exp(v)], near.mu) for v in side] for side in (above, below))


def _fractions(steps: int | Sequence[float]) -> np.ndarray:
    """Places on a path, from a number of even steps or as they are given."""
    if not np.ndim(steps):
        return np.arange(1, steps + 1) / steps
    found = np.asarray(steps, dtype=float)
    if found.ndim != 1 or found[0] <= 0 or found[-1] != 1 or not (np.diff(found) > 0).all():
        raise ValueError(
            "places on a path are ascending fractions above 0, the last one 1, such as "
            f"[0.5, 1.0]; got {steps!r}"
        )
    return found


def _check(n, steps, sweeps, moves, population, ness, max_steps) -> None:
    if n < 2:
        raise ValueError(f"n must be at least 2 rows a condition for an error, got {n}")
    if steps is not None and (len(steps) if np.ndim(steps) else steps) < 1:
        raise ValueError(
            f"a path needs at least one step, the target itself, got steps={steps}; leave it out "
            "to have the number measured"
        )
    if max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, got {max_steps}")
    if sweeps < 0 or (sweeps == 0 and moves is None):
        raise ValueError(f"sweeps must be at least 1, or 0 with moves, got {sweeps}")
    if population < 1:
        raise ValueError(f"population must be at least 1, got {population}")
    if not 0 < ness < 1:
        raise ValueError(f"ness must lie between 0 and 1, got {ness}")


def _check_conditions(
    lattice: Lattice, conditions: Conditions, start: Conditions | None, box: ConditionRange | None
) -> Conditions | None:
    """The start of every target, or None where it is to be chosen."""
    if len(conditions) == 0:
        raise ValueError("there are no conditions to anneal to")
    for name, given in (("conditions", conditions), ("start", start)):
        if given is not None and given.mu.shape[1] != lattice.n_species:
            raise ValueError(
                f"{name} have {given.mu.shape[1]} chemical potentials, the lattice "
                f"{lattice.n_species} species {lattice.species}"
            )
    if start is None:
        return None
    if len(start) not in (1, len(conditions)):
        raise ValueError(
            f"start must be one condition or one for each of the {len(conditions)} targets, got "
            f"{len(start)}"
        )
    if box is not None and not bool(box.contains(start).all()):
        k = int((~box.contains(start)).nonzero()[0])
        raise ValueError(
            f"start {k}, T = {start.temperature[k].item():g} K, mu = {start.mu[k].tolist()} eV, "
            f"lies outside the trained range, {box.temperature[0]:g} to {box.temperature[1]:g} K "
            f"and {box.low.tolist()} to {box.high.tolist()} eV: draws there are extrapolations. "
            "Start inside; only the targets may lie outside"
        )
    return start if len(start) == len(conditions) else start.repeat(len(conditions))


def _warn(paths: list[dict], task: _Task) -> None:
    """Say in words where weights degenerate, why, and what would help."""
    lost = [p for p in paths if (p["drift"] or 0.0) > DRIFTING]
    if lost:
        worst = max(lost, key=lambda p: p["drift"])
        warnings.warn(
            f"annealed rows lack a mode at {len(lost)} of {len(paths)} conditions: further exact "
            f"sweeps carry them off their weighted averages, the most at {_place(worst)} by "
            f"{worst['drift']:.0f} standard errors. ln Z and averages there are wrong by more than "
            "their errors; start at a higher temperature, or with random configurations "
            "(model=None), or take chains (refine)",
            LostModeWarning,
            stacklevel=3,
        )
    bad = sorted((p for p in paths if p["ness"] < _FEWEST_EFFECTIVE), key=lambda p: p["ness"])
    if not bad:
        return
    warnings.warn(
        f"annealing left a NESS below {_FEWEST_EFFECTIVE:g} at {len(bad)} of {len(paths)} "
        f"conditions; worst: {'; '.join(_doubt(p, task) for p in bad[:3])}",
        LowESSWarning,
        stacklevel=3,
    )


def _place(p: dict) -> str:
    return f"T = {p['temperature']:g} K, mu = {np.round(p['mu'], 4).tolist()} eV"


def _doubt(p: dict, task: _Task) -> str:
    text = f"{_place(p)}: NESS {p['ness']:.3f}"
    if p["start_ness"] < max(_FEWEST_EFFECTIVE, p.get("path_ness", 0.0)):
        return (
            f"{text}, of the start {p['start_ness']:.3f}: start where the model is better, such as "
            "a higher temperature, or train it there"
        )
    if task.population > 1 and p["survivors"] < 2:
        text += (
            f", {p['survivors']:.1f} of {task.population} ancestors survive: larger populations, or"
        )
    allowed = -np.log(task.ness)
    needed = p["steps"] * -np.log(p.get("path_ness", p["ness"])) / allowed
    return (
        f"{text}, the path of {p['steps']} steps is too short: try steps={int(np.ceil(needed))} "
        "or more"
    )
