"""The state of a training run and the step that changes it."""

from __future__ import annotations

import contextlib
import hashlib
import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from clease_nn.models import AbstractOccupationModel
from clease_nn.sources import AbstractSource
from clease_nn.training.interrupt import Stop
from clease_nn.training.processes import Processes

__all__ = ["Trainer"]

_CLIP = 5.0
_EMA = 0.99
_WARM_UP = 0.02


class _Loss(nn.Module):
    """An objective as a module, so that gradients of several processes can be averaged."""

    def __init__(self, model: AbstractOccupationModel):
        super().__init__()
        self.model = model

    def forward(self, objective, batch) -> tuple[Tensor, dict[str, float]]:
        return objective(self.model, batch)


class Trainer:
    """Everything that a checkpoint holds and a step changes.

    Parameters
    ----------
    model : AbstractOccupationModel
        On the device where it is trained.
    stages : sequence of Stage
    batch_size : int
        Rows a step and process.
    accumulate : int
        Parts that the rows of a step are taken in.
    learning_rate : float
    rng : torch.Generator
        Draws for looks at NESS and the validation.
    processes : Processes, optional
        Default: this one alone.
    """

    def __init__(
        self,
        model: AbstractOccupationModel,
        stages,
        batch_size: int,
        learning_rate: float,
        rng: torch.Generator,
        accumulate: int = 1,
        processes: Processes | None = None,
    ):
        self.model, self.stages = model, tuple(stages)
        self.ends = np.cumsum([s.share for s in stages]) / sum(s.share for s in stages)
        """Progress at which each stage ends."""
        self.batch_size, self.learning_rate = batch_size, learning_rate
        self.accumulate = accumulate
        self.rng = rng
        self.processes = Processes() if processes is None else processes
        self.stop = Stop(held=self.processes.size > 1)
        self.device = next(model.parameters()).device
        self.loss = self.processes.wrap(_Loss(model))
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(_EMA))
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=1e-4
        )
        self.step_count = 0
        self.stage_steps = [0] * len(self.stages)
        self.seconds = 0.0
        self.resumed = False
        self.history: list[dict] = []
        self.looks: list[dict] = []
        """Conditions, KL gaps and NESS of every look."""

    @property
    def sources(self) -> list[AbstractSource]:
        """Sources of all stages, each once."""
        return list({id(stage.source): stage.source for stage in self.stages}.values())

    def stage_at(self, progress: float) -> int:
        """Number of the stage at ``progress`` (0 to 1) through the budget."""
        return min(int((progress >= self.ends).sum()), len(self.stages) - 1)

    def step(self, progress: float) -> dict[str, float]:
        """One optimiser step at ``progress`` (0 to 1) through the schedule.

        A step that fails, or is broken off, leaves weights and source as they were.
        """
        at = self.stage_at(progress)
        stage = self.stages[at]
        alone = self.processes.size == 1
        try:
            with stage.source.all_or_nothing():
                metrics = self._gradient(stage)
                norm = nn.utils.clip_grad_norm_(self.model.parameters(), _CLIP)
                if not torch.isfinite(norm):  # before it reaches the weights, and a checkpoint
                    self._diverged("gradient", norm)
                self.stop.held = True  # from here on the step is done to its end
            rate = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
            warm = min(1.0, (progress + 1e-3) / _WARM_UP)
            for group in self.optimizer.param_groups:
                group["lr"] = self.learning_rate * rate * warm
            self.optimizer.step()
            self.average.update_parameters(self.model)
            self.step_count += 1
            self.stage_steps[at] += 1
        finally:
            self.stop.held = not alone
        return metrics

    def _gradient(self, stage) -> dict[str, float]:
        """Gradient of one batch, in parts if asked, averaged over the processes."""
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        loss, metrics, error = None, {}, None
        try:
            batch = stage.source.batch(self.batch_size, self.model)
            parts = batch.split(self.accumulate)
            for k, part in enumerate(parts):
                last = k == len(parts) - 1
                share = len(part) / len(batch)
                # the last part averages over the processes what all parts have summed up
                with contextlib.nullcontext() if last else self._own_gradients():
                    loss, own = self.loss(stage.objective, part.to(self.device))
                    if not torch.isfinite(loss):
                        self._diverged("loss", loss)
                    loss = loss * share
                    for name, value in own.items():
                        metrics[name] = metrics.get(name, 0.0) + share * value
                    if not last:
                        loss.backward()
        except Exception as raised:
            error = raised
        self.processes.fail_together(error)
        self.processes.consistent = self.processes.size == 1
        loss.backward()
        self.processes.consistent = True
        return metrics

    def _own_gradients(self):
        """A block whose gradients stay in this process."""
        return self.loss.no_sync() if self.processes.size > 1 else contextlib.nullcontext()

    def _diverged(self, what: str, value) -> None:
        raise FloatingPointError(
            f"the {what} is {value.item()} at step {self.step_count}; lower learning_rate "
            f"(now {self.learning_rate}) or check the energies"
        )

    def warm_up(self) -> None:
        """Compile everything and burn the chains in before the clock starts; no weights change.

        Raises
        ------
        ValueError
            If two processes draw the same rows.
        """
        for stage in self.stages:
            state = stage.source.state_dict() if self.resumed else None
            error, drawn = None, hashlib.sha256()
            try:
                for batch in stage.source.warm_up(self.batch_size, self.model):
                    part = batch.split(self.accumulate)[0].to(self.device)
                    loss, _ = stage.objective(self.model, part)
                    loss.backward()
                    self.optimizer.zero_grad(set_to_none=True)
                    drawn.update(batch.occupations.numpy().tobytes())
            except Exception as raised:
                error = raised
            self.processes.fail_together(error)
            everyone = self.processes.gather(drawn.hexdigest())
            if len(set(everyone)) < len(everyone):
                raise ValueError(
                    f"processes draw the same rows from their {type(stage.source).__name__}: make "
                    "it with seed=process_seed(seed), which differs from process to process"
                )
            if state is not None:
                stage.source.load_state_dict(state)

    def state_dict(self) -> dict | None:
        """What a checkpoint holds, in the first process; None in the others."""
        sources = self.processes.gather([source.state_dict() for source in self.sources])
        if not self.processes.first:
            return None
        return {
            "rng": self.rng.get_state(),
            "config": self.model.config(),
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sources": sources[0],
            "other_sources": sources[1:],
            "step": self.step_count,
            "stage_steps": self.stage_steps,
            "seconds": self.seconds,
            "history": self.history,
            "looks": self.looks,
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue from :meth:`state_dict`."""
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        every = [state["sources"], *state.get("other_sources", [])]
        for source, own in zip(self.sources, every[self.processes.rank], strict=True):
            source.load_state_dict(own)
        self.rng.set_state(state["rng"])
        self.step_count = int(state["step"])
        self.stage_steps = list(state["stage_steps"])
        self.seconds = float(state["seconds"])
        self.resumed = True
        self.history = list(state["history"])
        self.looks = list(state.get("looks", []))
