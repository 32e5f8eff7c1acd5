"""``fit``: from an ensemble, a lattice and a range of conditions to a trained model."""

from __future__ import annotations

import contextlib
import math
import os
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import clease_nn
from clease_nn.compute import compute_policy, resolve_device, resolve_precision
from clease_nn.conditions import ConditionRange
from clease_nn.diagnostics import validate
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.io import TrainedModel
from clease_nn.lattice import Lattice
from clease_nn.models import AbstractOccupationModel, AnyOrderARM
from clease_nn.networks import LatticeConvolution
from clease_nn.sources import ParallelTemperingSource
from clease_nn.training.checkpoint import resume, run_key
from clease_nn.training.interrupt import interruptible
from clease_nn.training.looks import distinct, spread
from clease_nn.training.loop import excused, train
from clease_nn.training.processes import Processes, process_seed
from clease_nn.training.stage import Stage
from clease_nn.training.trainer import Trainer
from clease_nn.warnings import TrainingWarning

__all__ = ["fit"]

_UNCHECKED = (
    "no independent chains: a lost mode cannot be seen. The energy offers neither cluster tables "
    "nor flip_energies, so the model was compared with its own draws alone; compare it with "
    "validate() and configurations of your own"
)


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
    accumulate: int = 1,
    learning_rate: float = 4e-3,
    focus: bool = False,
    checkpoint: str | os.PathLike | None = None,
    validation_samples: int = 128,
    progress: bool = True,
    threads: int = 1,
    precision: str = "auto",
    device: str | torch.device = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> TrainedModel:
    """Train a model over a whole range of conditions.

    The default is an :class:`~clease_nn.models.AnyOrderARM` with a
    :class:`~clease_nn.networks.LatticeConvolution`, fed by parallel tempering with Rao-Blackwell
    targets; AdamW with a cosine schedule over the budget and an exponential average of the
    weights. Compilation and burn-in of the chains are not counted in ``max_seconds``.

    Ctrl-C ends training after the present step: the checkpoint is written and what there is, is
    validated and returned; a second Ctrl-C skips the validation.

    Several processes train one model together where a launcher has started them,
    ``torchrun --nproc-per-node 2 script.py``, or ``torch.distributed`` is initialised: each has
    chains of its own, gradients are averaged after every step, and all return the same model. The
    first one validates, shows progress and writes the checkpoint; an error in one ends all.

    Parameters
    ----------
    ensemble, lattice, box
        What to learn, where. With sources of several cells, the cell that is validated: that of
        the last stage's source.
    max_seconds : float, optional
        Budget of ``clock`` seconds; the schedule is fitted to it. At least one of ``max_seconds``
        and ``max_steps``.
    max_steps : int, optional
        Budget of optimiser steps. A run limited by steps alone is bitwise reproducible and
        resumable on one machine, thread count and number of processes.
    target_ness : float, optional
        Stop once the mean NESS of a look (8 looks a run) reaches it. Looks take few draws and read
        NESS too high; one that reaches the target is repeated with eight times as many.
    seed : int
    model : AbstractOccupationModel, optional
        Start from this one (its weights are changed in place).
    stages : sequence of Stage, optional
        Sources and objectives, one after another, each for its share of the budget: warm up by
        one, finish by another. Learning rate, optimiser and average go on through all of them.
        Default one stage: cross entropy on a
        :class:`~clease_nn.sources.ParallelTemperingSource`. In several processes, make sources
        with ``seed=process_seed(seed)``.
    batch_size : int, optional
        Rows a step (and process); default the power of two nearest to 1024 / sqrt(sites), at
        least 32.
    accumulate : int
        Parts that the rows of a step are taken in, one after another: memory for the gradient is
        that of one part, the gradient that of all. Rows of one condition stay together where an
        objective compares them.
    learning_rate : float
        At the top of the schedule.
    focus : bool
        Draw more rows at conditions where looks have found a large KL gap; for sources that
        can choose.
    checkpoint : path, optional
        Written every 30 seconds and at the end; if the file exists, training continues from it.
        A write that fails is a warning, training goes on.
    validation_samples : int
        Draws at each of 24 conditions in the final validation, at least 2. An energy that fails
        there is a warning, and the model comes without validation.
    threads : int
        Torch threads; the arrays are too small to gain from more than a few.
    precision : str
        ``"auto"`` trains in bfloat16 where the device has instructions for it.
    device : str or torch.device
        Where the model is trained: ``"cpu"``, ``"cuda"`` (one GPU, or one a process), ``"cuda:1"``.
        Chains and validation run on the CPU, and the model comes back there.
    clock : callable
        Seconds for ``max_seconds``; ``time.thread_time`` counts CPU time of this thread.

    Returns
    -------
    TrainedModel
        With ``metadata["validation"]``, ``metadata["history"]``, ``metadata["looks"]`` (NESS and
        KL gap by condition) and ``metadata["stages"]``. ``metadata["energy_evaluations"]`` counts
        those that training steps learnt from, in all processes; looks (256 each, 7 a run) and the
        validation (``24 * validation_samples``) come on top.

    Raises
    ------
    ValueError
        If no budget is given, one is not positive, there are no stages, the last one is of
        another cell, the device is not there, or processes draw the same rows.
    FloatingPointError
        If the loss or its gradient is not finite; the checkpoint holds the weights before.
    ModelFileError
        If the checkpoint belongs to another energy, lattice, range, network, seed, batch size,
        learning rate, number of processes or other stages.
    RuntimeError
        If another process has failed, with its message.
    """
    if max_seconds is None and max_steps is None:
        raise ValueError("give fit a budget: max_seconds, max_steps, or both")
    for name, value in (
        ("max_seconds", max_seconds),
        ("max_steps", max_steps),
        ("batch_size", batch_size),
        ("accumulate", accumulate),
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
    device = resolve_device(device)
    sequence = np.random.SeedSequence(seed)
    weight_seed, source_seed, check_seed = sequence.spawn(3)
    precision = resolve_precision(precision, device)
    with compute_policy(threads, precision, device):
        if model is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(weight_seed.generate_state(1)[0]))
                network = LatticeConvolution(lattice, box, needs_fields=ensemble.has_fields)
            model = AnyOrderARM(network)
        if stages is None:
            own = process_seed(source_seed)
            stages = [Stage(ParallelTemperingSource(ensemble, lattice, box, seed=own))]
        if not stages:
            raise ValueError("fit needs at least one stage, got none; None takes the default one")
        _check_cell(stages[-1].source, lattice)
        processes = Processes()
        rng = torch.Generator().manual_seed(int(check_seed.generate_state(1)[0]))
        trainer = Trainer(
            model.to(device), stages, batch_size, learning_rate, rng, accumulate, processes
        )
        key = run_key(trainer, ensemble, lattice, box, seed)
        if checkpoint is not None and processes.from_first(Path(checkpoint).exists):
            error = None
            try:
                resume(trainer, checkpoint, key)
            except Exception as raised:
                error = raised
            processes.fail_together(error)
        with interruptible(trainer.stop):
            trainer.warm_up()
            stopped = train(
                trainer, ensemble, lattice, box, max_seconds=max_seconds, max_steps=max_steps,
                target_ness=target_ness, focus=focus, checkpoint=checkpoint, key=key,
                progress=progress, clock=clock,
            )  # fmt: skip
            final = trainer.average.module.to("cpu")
            final.eval()

            def validated():
                with contextlib.suppress(KeyboardInterrupt), excused("the model was not validated"):
                    if trainer.stop.at_once:
                        return None
                    chains = stages[-1].source.chain_configurations(24, 8)
                    where = spread(box, 24) if chains is None else distinct(chains)
                    return validate(
                        final, ensemble, chains, where, validation_samples, rng, lattice=lattice
                    )
                return None

            report = processes.from_first(validated)
    unchecked = report is not None and report.forward_kl is None
    if progress and processes.first:
        tqdm.write(
            f"trained {trainer.step_count} steps in {trainer.seconds:.0f} s ({precision}); "
            f"{report or 'not validated'}" + ("; " + _UNCHECKED if unchecked else "")
        )
    if report is not None and processes.first:
        report.warn()
    if unchecked and processes.first:
        warnings.warn(_UNCHECKED, TrainingWarning, stacklevel=2)
    evaluations = processes.gather([source.energy_evaluations for source in trainer.sources])
    metadata = {
        **{k: key[k] for k in ("energy_fingerprint", "lattice_fingerprint", "range")},
        "n_sites": lattice.n_sites,
        "species": list(lattice.species),
        "seed": seed,
        "stopped_by": stopped,
        "training_seconds": trainer.seconds,
        "steps": trainer.step_count,
        "precision": precision,
        "processes": processes.size,
        "energy_evaluations": sum(map(sum, evaluations)),
        "stages": _stages(trainer, np.sum(evaluations, 0)),
        "independent_chains": report is not None and not unchecked,
        "validation": None if report is None else report.summary(),
        "history": trainer.history,
        "looks": trainer.looks,
        "versions": {"clease_nn": clease_nn.__version__, "torch": torch.__version__},
    }
    return TrainedModel(final, box, processes.from_first(lambda: metadata))


def _check_cell(source, lattice: Lattice) -> None:
    """Refuse a last stage whose chains could not validate the model on this lattice."""
    cell = getattr(source, "lattice", lattice)
    if cell.fingerprint != lattice.fingerprint:
        raise ValueError(
            f"fit was given a lattice of {lattice.n_sites} sites, and the source of the last "
            f"stage is of another one, of {cell.n_sites}: hand fit the lattice and ensemble of "
            "that source, the largest of a mixed one"
        )


def _stages(trainer: Trainer, evaluations) -> list[dict]:
    """JSON-ready record of every stage."""
    count = {id(s): int(n) for s, n in zip(trainer.sources, evaluations, strict=True)}
    return [
        {
            "source": stage.name[0],
            "objective": stage.name[1],
            "share": stage.share,
            "steps": steps,
            "energy_evaluations": count[id(stage.source)],
        }
        for stage, steps in zip(trainer.stages, trainer.stage_steps, strict=True)
    ]
