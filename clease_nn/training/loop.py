"""The loop: steps, looks at NESS, checkpoints, until a limit is reached."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator

from tqdm import tqdm

from clease_nn.conditions import ConditionRange
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import Lattice
from clease_nn.training.checkpoint import save
from clease_nn.training.looks import focus_map, look
from clease_nn.training.trainer import Trainer
from clease_nn.warnings import TrainingWarning

__all__ = ["excused", "train"]

_CHECKS = 8  # looks at NESS during a run
_CHECKPOINT_SECONDS = 30.0
_RECORD_STEPS = 20


@contextlib.contextmanager
def excused(what: str) -> Iterator[None]:
    """A block that may fail, with a warning: what was trained is not lost to a single energy."""
    try:
        yield
    except Exception as error:
        warnings.warn(f"{what}: {type(error).__name__}: {error}", TrainingWarning, stacklevel=4)


def train(
    trainer: Trainer,
    ensemble: SemiGrandCanonical,
    lattice: Lattice,
    box: ConditionRange,
    *,
    max_seconds: float | None,
    max_steps: int | None,
    target_ness: float | None,
    focus: bool,
    checkpoint,
    key: dict,
    progress: bool,
    clock: Callable[[], float],
) -> str:
    """Train until a limit; returns which: "seconds", "steps", "target_ness" or "interrupt"."""
    processes, stop = trainer.processes, trainer.stop

    def done() -> float:
        by_time = trainer.seconds / max_seconds if max_seconds is not None else 0.0
        by_steps = trainer.step_count / max_steps if max_steps is not None else 0.0
        return max(by_time, by_steps)

    def agree(seconds: float) -> tuple[bool, bool]:
        """The first process's clock counts; anyone may stop. (to stop, to write a checkpoint)"""
        due = checkpoint is not None and clock() - last_saved > _CHECKPOINT_SECONDS
        own = [seconds, float(due)] if processes.first else [0.0, 0.0]
        trainer.seconds, due, stopping = processes.largest([*own, float(stop.requested)])
        return bool(stopping), bool(due)

    shown = progress and processes.first
    bar = tqdm(
        total=100, disable=not shown, desc=_description(trainer, done()), unit="%",
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
        stopping, _ = agree(trainer.seconds)
        while done() < 1.0:
            if stopping:
                raise KeyboardInterrupt
            started = clock()
            recent.append(trainer.step(done()))
            stopping, due = agree(trainer.seconds + clock() - started)
            now = done()
            if trainer.step_count % _RECORD_STEPS == 0 or now >= 1.0:
                recent = [m for m in recent if m.keys() == recent[-1].keys()]  # of one stage
                metrics = {k: sum(m[k] for m in recent) / len(recent) for k in recent[0]}
                recent.clear()
                entry = {"step": trainer.step_count, "seconds": trainer.seconds, **metrics}
                if now >= next_check and now < 1.0:
                    seen = _look(trainer, ensemble, lattice, box, target_ness, focus)
                    if seen is not None:
                        ness = entry["ness"] = seen
                    next_check = (math.floor(now * _CHECKS) + 1) / _CHECKS
                trainer.history.append(entry)
                bar.update(int(100 * min(now, 1.0)) - bar.n)
                bar.set_description_str(_description(trainer, now), refresh=False)
                said = {"loss": f"{metrics['loss']:.3f}", "step": trainer.step_count}
                if ness is not None:
                    said["NESS"] = f"{ness:.2f}"
                bar.set_postfix(said, refresh=False)
                if target_ness is not None and ness is not None and ness >= target_ness:
                    stopped = "target_ness"
                    break
            if due:
                save(trainer, checkpoint, key)
                last_saved = clock()
    except KeyboardInterrupt:
        stopped = "interrupt"
        if processes.first:
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
        if checkpoint is not None and processes.consistent:
            save(trainer, checkpoint, key)
    if stopped is None:
        by_time = max_seconds is not None and trainer.seconds >= max_seconds
        stopped = "seconds" if by_time else "steps"
    return stopped


def _look(trainer, ensemble, lattice, box, target_ness, focus: bool) -> float | None:
    """Mean NESS; what was seen is recorded and handed to the sources. None if energies fail."""

    def first() -> dict | None:
        with excused("no look at NESS"):
            model = trainer.average.module
            return look(model, ensemble, lattice, box, len(trainer.looks), target_ness, trainer.rng)
        return None

    seen = trainer.processes.from_first(first)
    if seen is None:
        return None
    trainer.looks.append({"step": trainer.step_count, **seen})
    if focus:
        where, gap = focus_map(trainer.looks)
        for source in trainer.sources:
            source.focus(where, gap)
    return sum(seen["ness"]) / len(seen["ness"])


def _description(trainer: Trainer, progress: float) -> str:
    """What the progress bar says: which stage of how many, where there are several."""
    n = len(trainer.stages)
    return "training" if n == 1 else f"training, stage {trainer.stage_at(progress) + 1}/{n}"
