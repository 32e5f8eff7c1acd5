"""Training: one loop for every model, source and objective."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

import clease_nn
from clease_nn.compute import compute_policy, resolve_precision
from clease_nn.conditions import ConditionRange, Conditions
from clease_nn.configurations import Configurations
from clease_nn.diagnostics import validate
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.io import ModelFileError, TrainedModel, read_state, write_state
from clease_nn.lattice import Lattice
from clease_nn.models import AbstractOccupationModel, AnyOrderARM
from clease_nn.montecarlo.chains import random_occupations
from clease_nn.networks import LatticeConvolution
from clease_nn.objectives import cross_entropy
from clease_nn.sources import AbstractSource, ParallelTemperingSource
from clease_nn.warnings import TrainingWarning

__all__ = ["Stage", "fit"]

_CLIP = 5.0
_EMA = 0.99
_WARM_UP = 0.02
_CHECKS = 8  # looks at NESS during a run
_CHECKPOINT_SECONDS = 30.0
_UNCHECKED = (
    "no independent chains: a lost mode cannot be seen. The energy offers neither cluster tables "
    "nor flip_energies, so the model was compared with its own draws alone; compare it with "
    "validate() and configurations of your own"
)


@dataclass(frozen=True, eq=False)
class Stage:
    """Part of a training run: where its batches come from, and what is minimised on them.

    Attributes
    ----------
    source : AbstractSource
    objective : callable
        ``objective(model, batch) -> (loss, metrics)``, one of :mod:`clease_nn.objectives` or
        another; it must fit the batches of the source.
    share : float
        Of the budget, in units of the sum of the shares of all stages.

    Raises
    ------
    ValueError
        If ``share`` is not positive and finite.
    """

    source: AbstractSource
    objective: Callable = cross_entropy
    share: float = 1.0

    def __post_init__(self):
        if not 0 < self.share < math.inf:
            raise ValueError(f"the share of a stage must be positive and finite, got {self.share}")

    @property
    def name(self) -> tuple[str, str]:
        """Class of the source, and the objective with its settings."""
        objective = self.objective
        if is_dataclass(objective):
            return type(self.source).__name__, repr(objective)
        name = getattr(objective, "__name__", type(objective).__name__)
        return type(self.source).__name__, name


class _Trainer:
    """State of a run: everything that a checkpoint holds and a step changes."""

    def __init__(self, model, stages, batch_size, learning_rate, rng):
        self.model, self.stages = model, tuple(stages)
        self.ends = np.cumsum([s.share for s in stages]) / sum(s.share for s in stages)
        """Progress at which each stage ends."""
        self.batch_size, self.learning_rate = batch_size, learning_rate
        self.rng = rng
        """Draws for looks at NESS and the validation."""
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(_EMA))
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=1e-4
        )
        self.step_count = 0
        self.stage_steps = [0] * len(self.stages)
        self.seconds = 0.0
        self.resumed = False
        self.history: list[dict] = []

    @property
    def sources(self) -> list[AbstractSource]:
        """Sources of all stages, each once."""
        return list({id(stage.source): stage.source for stage in self.stages}.values())

    def stage_at(self, progress: float) -> int:
        """Number of the stage at ``progress`` (0 to 1) through the budget."""
        return min(int((progress >= self.ends).sum()), len(self.stages) - 1)

    def step(self, progress: float) -> dict[str, float]:
        """One optimiser step at ``progress`` (0 to 1) through the schedule."""
        at = self.stage_at(progress)
        stage = self.stages[at]
        batch = stage.source.batch(self.batch_size, self.model)
        self.model.train()
        loss, metrics = stage.objective(self.model, batch)
        if not torch.isfinite(loss):
            self._diverged("loss", loss)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), _CLIP)
        if not torch.isfinite(norm):  # before it reaches the weights, and a checkpoint of them
            self._diverged("gradient", norm)
        rate = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        warm = min(1.0, (progress + 1e-3) / _WARM_UP)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * rate * warm
        self.optimizer.step()
        self.average.update_parameters(self.model)
        self.step_count += 1
        self.stage_steps[at] += 1
        return metrics

    def _diverged(self, what: str, value) -> None:
        raise FloatingPointError(
            f"the {what} is {value.item()} at step {self.step_count}; lower learning_rate "
            f"(now {self.learning_rate}) or check the energies"
        )

    def state_dict(self) -> dict:
        return {
            "rng": self.rng.get_state(),
            "config": self.model.config(),
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sources": [source.state_dict() for source in self.sources],
            "step": self.step_count,
            "stage_steps": self.stage_steps,
            "seconds": self.seconds,
            "history": self.history,
        }

    def load_state_dict(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        for source, source_state in zip(self.sources, state["sources"], strict=True):
            source.load_state_dict(source_state)
        self.rng.set_state(state["rng"])
        self.step_count = int(state["step"])
        self.stage_steps = list(state["stage_steps"])
        self.seconds = float(state["seconds"])
        self.resumed = True
        self.history = list(state["history"])


class _Stop:
    """Whether the user asked to stop."""

    requested = False


@contextlib.contextmanager
def _interruptible() -> Iterator[_Stop]:
    """The first Ctrl-C asks to stop after the present step, the second stops at once.

    Outside the main thread, where Python allows no handlers, Ctrl-C works as usual.
    """
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.getsignal(signal.SIGINT)

    def ask(number, frame):
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True

    signal.signal(signal.SIGINT, ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def fit(
    ensemble: SemiGrandCanonical,
    lattice: Lattice,
    box: ConditionRange,
    *,
    max_seconds: float | None = None,
    max_steps: int | None = None,
    target_ness: float | None = None,
    seed: int = 0,
    model: AbstractOccupationModel | None = None,
    stages: Sequence[Stage] | None = None,
    batch_size: int | None = None,
    learning_rate: float = 4e-3,
    checkpoint: str | os.PathLike | None = None,
    validation_samples: int = 128,
    progress: bool = True,
    threads: int = 1,
    precision: str = "auto",
    clock: Callable[[], float] = time.perf_counter,
) -> TrainedModel:
    """Train a model over a whole range of conditions.

    The default is an :class:`~clease_nn.models.AnyOrderARM` with a
    :class:`~clease_nn.networks.LatticeConvolution`, fed by parallel tempering with Rao-Blackwell
    targets; AdamW with a cosine schedule over the budget and an exponential average of the
    weights. Compilation and burn-in of the chains are not counted in ``max_seconds``.

    Ctrl-C ends training after the present step: the checkpoint is written and what there is, is
    validated and returned; a second Ctrl-C skips the validation.

    Parameters
    ----------
    ensemble, lattice, box
        What to learn, where.
    max_seconds : float, optional
        Budget of ``clock`` seconds; the schedule is fitted to it. At least one of ``max_seconds``
        and ``max_steps``.
    max_steps : int, optional
        Budget of optimiser steps. A run limited by steps alone is bitwise reproducible and
        resumable on one machine and thread count.
    target_ness : float, optional
        Stop once the mean NESS of a look (8 looks a run) reaches it. Looks take few draws and read
        NESS too high; one that reaches the target is repeated with 128 draws a condition.
    seed : int
    model : AbstractOccupationModel, optional
        Start from this one (its weights are changed in place).
    stages : sequence of Stage, optional
        Sources and objectives, one after another, each for its share of the budget: warm up by
        one, finish by another. Learning rate, optimiser and average go on through all of them.
        Default one stage: cross entropy on a
        :class:`~clease_nn.sources.ParallelTemperingSource`.
    batch_size : int, optional
        Rows a step; default the power of two nearest to 1024 / sqrt(sites), at least 32.
    learning_rate : float
        At the top of the schedule.
    checkpoint : path, optional
        Written every 30 seconds and at the end; if the file exists, training continues from it.
        A write that fails is a warning, training goes on.
    validation_samples : int
        Draws at each of 24 conditions in the final validation, at least 2. An energy that fails
        there is a warning, and the model comes without validation.
    threads : int
        Torch threads; the arrays are too small to gain from more than a few.
    precision : str
        ``"auto"`` trains in bfloat16 where the CPU has instructions for it.
    clock : callable
        Seconds for ``max_seconds``; ``time.thread_time`` counts CPU time of this thread.

    Returns
    -------
    TrainedModel
        With ``metadata["validation"]``, ``metadata["history"]`` and ``metadata["stages"]``.
        ``metadata["energy_evaluations"]`` counts those that training steps learnt from; looks at
        NESS (256 each, 7 a run) and the validation (``24 * validation_samples``) come on top.

    Raises
    ------
    ValueError
        If no budget is given, one is not positive, or there are no stages.
    FloatingPointError
        If the loss or its gradient is not finite; the checkpoint holds the weights before.
    ModelFileError
        If the checkpoint belongs to another energy, lattice, range, network, seed, batch size,
        learning rate or other stages.
    """
    if max_seconds is None and max_steps is None:
        raise ValueError("give fit a budget: max_seconds, max_steps, or both")
    for name, value in (
        ("max_seconds", max_seconds),
        ("max_steps", max_steps),
        ("batch_size", batch_size),
        ("learning_rate", learning_rate),
    ):
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")
    if batch_size is None:
        batch_size = 2 ** max(round(math.log2(1024 / math.sqrt(lattice.n_sites))), 5)
    if validation_samples < 2:
        raise ValueError(f"validation_samples must be at least 2, got {validation_samples}")
    if target_ness is not None and not 0 < target_ness <= 1:
        raise ValueError(f"target_ness must lie in (0, 1], got {target_ness}")
    if checkpoint is not None and not Path(checkpoint).resolve().parent.is_dir():
        raise FileNotFoundError(f"the folder of the checkpoint {checkpoint} does not exist")
    sequence = np.random.SeedSequence(seed)
    weight_seed, source_seed, check_seed = sequence.spawn(3)
    precision = resolve_precision(precision)
    with compute_policy(threads, precision):
        if model is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(weight_seed.generate_state(1)[0]))
                network = LatticeConvolution(lattice, box, needs_fields=ensemble.has_fields)
            model = AnyOrderARM(network)
        if stages is None:
            stages = [Stage(ParallelTemperingSource(ensemble, lattice, box, seed=source_seed))]
        if not stages:
            raise ValueError("fit needs at least one stage, got none; None takes the default one")
        rng = torch.Generator().manual_seed(int(check_seed.generate_state(1)[0]))
        trainer = _Trainer(model, stages, batch_size, learning_rate, rng)
        key = {
            "energy_fingerprint": getattr(ensemble.energy, "fingerprint", None),
            "energies": _probe(ensemble, lattice),
            "lattice_fingerprint": lattice.fingerprint,
            "range": box.to_dict(),
            "seed": seed,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "stages": [list(stage.name) for stage in stages],
        }
        if checkpoint is not None and Path(checkpoint).exists():
            _resume(trainer, checkpoint, key)
        with _interruptible() as stop:
            _warm_up(trainer)
            stopped = _loop(
                trainer, ensemble, lattice, box, max_seconds, max_steps, target_ness, checkpoint,
                key, progress, clock, stop,
            )  # fmt: skip
            final = trainer.average.module
            final.eval()
            report = None
            with contextlib.suppress(KeyboardInterrupt), _excused("the model was not validated"):
                chains = stages[-1].source.chain_configurations(24, 8)
                where = _spread(box, 24) if chains is None else _distinct(chains)
                report = validate(
                    final, ensemble, chains, where, validation_samples, rng, lattice=lattice
                )
    unchecked = report is not None and report.forward_kl is None
    if progress:
        tqdm.write(
            f"trained {trainer.step_count} steps in {trainer.seconds:.0f} s ({precision}); "
            f"{report or 'not validated'}" + ("; " + _UNCHECKED if unchecked else "")
        )
    if report is not None:
        report.warn()
    if unchecked:
        warnings.warn(_UNCHECKED, TrainingWarning, stacklevel=2)
    metadata = {
        **{k: key[k] for k in ("energy_fingerprint", "lattice_fingerprint", "range")},
        "n_sites": lattice.n_sites,
        "species": list(lattice.species),
        "seed": seed,
        "stopped_by": stopped,
        "training_seconds": trainer.seconds,
        "steps": trainer.step_count,
        "precision": precision,
        "energy_evaluations": sum(source.energy_evaluations for source in trainer.sources),
        "stages": _stages(trainer),
        "independent_chains": report is not None and not unchecked,
        "validation": None if report is None else report.summary(),
        "history": trainer.history,
        "versions": {"clease_nn": clease_nn.__version__, "torch": torch.__version__},
    }
    return TrainedModel(final, box, metadata)


def _loop(
    trainer, ensemble, lattice, box, max_seconds, max_steps, target_ness, checkpoint, key, progress,
    clock, stop,
) -> str:  # fmt: skip
    """Train until a limit; returns which: "seconds", "steps", "target_ness" or "interrupt"."""

    def done() -> float:
        by_time = trainer.seconds / max_seconds if max_seconds is not None else 0.0
        by_steps = trainer.step_count / max_steps if max_steps is not None else 0.0
        return max(by_time, by_steps)

    bar = tqdm(
        total=100, disable=not progress, desc=_description(trainer, done()), unit="%",
        smoothing=0.05, mininterval=0.5,
        bar_format="{desc}: {percentage:3.0f}%|{bar:24}| {elapsed}<{remaining}{postfix}",
    )  # fmt: skip
    bar.update(int(100 * done()))
    next_check = (math.floor(done() * _CHECKS) + 1) / _CHECKS
    ness = trainer.history[-1].get("ness") if trainer.history else None
    last_saved = clock()
    recent: list[dict] = []
    stopped = None
    try:
        while done() < 1.0:
            if stop.requested:
                raise KeyboardInterrupt
            started = clock()
            recent.append(trainer.step(done()))
            trainer.seconds += clock() - started
            now = done()
            if trainer.step_count % 20 == 0 or now >= 1.0:
                recent = [m for m in recent if m.keys() == recent[-1].keys()]  # of one stage
                metrics = {k: sum(m[k] for m in recent) / len(recent) for k in recent[0]}
                recent.clear()
                entry = {"step": trainer.step_count, "seconds": trainer.seconds, **metrics}
                if now >= next_check and now < 1.0:
                    with _excused("no look at NESS"):
                        seen = _quick_ness(trainer, ensemble, lattice, box, 16)
                        if target_ness is not None and seen >= target_ness:
                            seen = _quick_ness(trainer, ensemble, lattice, box, 128)
                        ness = entry["ness"] = seen
                    next_check = (math.floor(now * _CHECKS) + 1) / _CHECKS
                trainer.history.append(entry)
                bar.update(int(100 * min(now, 1.0)) - bar.n)
                bar.set_description_str(_description(trainer, now), refresh=False)
                shown = {"loss": f"{metrics['loss']:.3f}", "step": trainer.step_count}
                if ness is not None:
                    shown["NESS"] = f"{ness:.2f}"
                bar.set_postfix(shown, refresh=False)
                if target_ness is not None and ness is not None and ness >= target_ness:
                    stopped = "target_ness"
                    break
            if checkpoint is not None and clock() - last_saved > _CHECKPOINT_SECONDS:
                _save(trainer, checkpoint, key)
                last_saved = clock()
    except KeyboardInterrupt:
        stopped = "interrupt"
        warnings.warn(
            f"training was interrupted after {trainer.step_count} steps; the model so far is "
            "returned" + (f" and {checkpoint} continues it" if checkpoint is not None else ""),
            TrainingWarning,
            stacklevel=3,
        )
    except Exception as error:
        kept = "with checkpoint= a file would continue it"
        if checkpoint is not None:
            kept = f"{checkpoint} continues it"
        error.add_note(f"training stopped after {trainer.step_count} steps; {kept}")
        raise
    finally:
        bar.close()
        if checkpoint is not None:
            _save(trainer, checkpoint, key)
    if stopped is None:
        by_time = max_seconds is not None and trainer.seconds >= max_seconds
        stopped = "seconds" if by_time else "steps"
    return stopped


@contextlib.contextmanager
def _excused(what: str) -> Iterator[None]:
    """A block that may fail, with a warning: what was trained is not lost to a single energy."""
    try:
        yield
    except Exception as error:
        warnings.warn(f"{what}: {type(error).__name__}: {error}", TrainingWarning, stacklevel=4)


def _description(trainer: _Trainer, progress: float) -> str:
    """What the progress bar says: which stage of how many, where there are several."""
    n = len(trainer.stages)
    return "training" if n == 1 else f"training, stage {trainer.stage_at(progress) + 1}/{n}"


def _stages(trainer: _Trainer) -> list[dict]:
    """JSON-ready record of every stage."""
    return [
        {
            "source": stage.name[0],
            "objective": stage.name[1],
            "share": stage.share,
            "steps": steps,
            "energy_evaluations": stage.source.energy_evaluations,
        }
        for stage, steps in zip(trainer.stages, trainer.stage_steps, strict=True)
    ]


def _save(trainer: _Trainer, checkpoint, key: dict) -> None:
    try:
        write_state(checkpoint, "checkpoint", {"key": key, **trainer.state_dict()})
    except OSError as error:
        warnings.warn(f"no checkpoint: {error}", TrainingWarning, stacklevel=4)


def _probe(ensemble: SemiGrandCanonical, lattice: Lattice) -> list[float]:
    """Energies of a few configurations, eV: tells energies without a fingerprint apart."""
    rng = np.random.default_rng(0)
    occupations = torch.from_numpy(random_occupations(lattice, 4, rng))
    return [round(float(e), 6) for e in ensemble.energy(lattice, occupations)]


def _resume(trainer: _Trainer, checkpoint, key: dict) -> None:
    state = read_state(checkpoint, "checkpoint")
    before = state["key"].get("stages", [])
    if before != key["stages"]:
        raise ModelFileError(
            f"checkpoint {checkpoint} was written for other stages: {len(before)}, "
            f"{_listed(before)}; this run has {len(key['stages'])}, {_listed(key['stages'])}; "
            "name another file, remove it or train with the same stages"
        )
    for name, value in key.items():
        if state["key"].get(name) != value:
            raise ModelFileError(
                f"checkpoint {checkpoint} was written for another {name.replace('_', ' ')}; name "
                "another file or remove it"
            )
    if state["config"] != trainer.model.config():
        raise ModelFileError(
            f"checkpoint {checkpoint} holds another network; use the same model or another file"
        )
    try:
        trainer.load_state_dict(state)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ModelFileError(
            f"checkpoint {checkpoint} holds sources of other settings, such as another schedule "
            f"({type(error).__name__}: {error}); train with the same, or name another file"
        ) from error


def _listed(stages: list[list[str]]) -> str:
    return " then ".join(f"{objective} on {source}" for source, objective in stages) or "none named"


def _warm_up(trainer: _Trainer) -> None:
    """Compile everything and burn the chains in before the clock starts; changes no weights."""
    for stage in trainer.stages:
        state = stage.source.state_dict() if trainer.resumed else None
        for batch in stage.source.warm_up(trainer.batch_size, trainer.model):
            loss, _ = stage.objective(trainer.model, batch)
            loss.backward()
            trainer.optimizer.zero_grad(set_to_none=True)
        if state is not None:
            stage.source.load_state_dict(state)


def _quick_ness(trainer: _Trainer, ensemble, lattice, box: ConditionRange, n: int) -> float:
    """Mean NESS of ``n`` draws at each of 16 conditions: a look, not a result."""
    model = trainer.average.module
    report = validate(model, ensemble, None, _spread(box, 16), n, trainer.rng, lattice=lattice)
    return float(report.ness.mean())


def _spread(box: ConditionRange, n: int) -> Conditions:
    """``n`` conditions that cover the box evenly."""
    sobol = torch.quasirandom.SobolEngine(1 + box.n_axes, scramble=False)
    return box.at(sobol.draw(n + 1)[1:].numpy())


def _distinct(c: Configurations) -> Conditions:
    """Distinct conditions in the order of first appearance."""
    keys = torch.cat([c.conditions.temperature[:, None], c.conditions.mu], 1).numpy()
    _, first = np.unique(keys, axis=0, return_index=True)
    return c.conditions[torch.as_tensor(np.sort(first))]
