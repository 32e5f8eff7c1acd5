"""What two processes do together; ``python two_processes.py FOLDER`` under a launcher.

Every case returns something to write down, and ``test_distributed_training.py`` judges it.
"""

import copy
import hashlib
import json
import sys
import warnings
from dataclasses import replace
from functools import wraps
from pathlib import Path

import torch
import torch.distributed as dist
from training_toys import gradient, ising, model

from clease_nn.io import read_state
from clease_nn.objectives import Reinforce, cross_entropy
from clease_nn.sources import AbstractSource, GeneratedSource, ParallelTemperingSource
from clease_nn.training import Stage, fit, process_seed
from clease_nn.training.processes import Processes
from clease_nn.training.trainer import Trainer


def tempering(system, seed):
    lattice, ensemble, box = system
    return ParallelTemperingSource(ensemble, lattice, box, shape=(4, 4), burn_in=5, seed=seed)


def run(system, stages, steps=None, **options):
    lattice, ensemble, box = system
    return fit(
        ensemble, lattice, box, max_steps=steps, stages=stages, learning_rate=1e-2,
        batch_size=32, progress=False, validation_samples=4,
        model=model("any", lattice, seed=dist.get_rank() if dist.is_initialized() else 0),
        **options,
    )  # fmt: skip


def mixed_stages(system):
    lattice, ensemble, box = system
    own = GeneratedSource(ensemble, lattice, box, n_conditions=4, seed=process_seed(8))
    return [Stage(tempering(system, process_seed(3))), Stage(own, Reinforce())]


def digest(of) -> str:
    """Of all weights."""
    return hashlib.sha256(
        b"".join(p.detach().numpy().tobytes() for p in of.parameters())
    ).hexdigest()


class Rows(AbstractSource):
    """The rows of one batch that are this process's."""

    energy_evaluations = 0

    def __init__(self, batch, rank, size):
        rows = torch.arange(len(batch)).tensor_split(size)[rank]
        named = {name: getattr(batch, name) for name in batch.__dataclass_fields__}
        self._batch = replace(batch, **{k: v[rows] for k, v in named.items() if v is not None})

    def batch(self, size, model):
        return self._batch

    def chain_configurations(self, n_conditions, n_each):
        return None

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def gradients(system, folder, processes):
    """Relative deviation from the gradient of one process with all rows."""
    out = {}
    for accumulate in (1, 3):
        of = model("any", system[0], spoilt=0.3)
        batch = tempering(system, 11).batch(48, of)
        reference = copy.deepcopy(of)
        exact = gradient(cross_entropy(reference, batch)[0], reference)
        source = Rows(batch, processes.rank, processes.size)
        trainer = Trainer(of, [Stage(source)], 24, 1e-3, torch.Generator(), accumulate, processes)
        trainer._gradient(trainer.stages[0])
        zero = [torch.zeros_like(p) if p.grad is None else p.grad for p in of.parameters()]
        own = torch.cat([g.reshape(-1) for g in zero]).double()
        out[f"in {accumulate}"] = float((own - exact).norm() / exact.norm())
    return out


def together(system, folder, processes):
    """Weights and record of a run."""
    trained = run(system, None, 25, checkpoint=folder / "c2")
    stages = run(system, mixed_stages(system), 6)
    return {
        "weights": [digest(trained.model), digest(stages.model)],
        "metadata": json.dumps([trained.metadata, stages.metadata]),
    }


def resumed(system, folder, processes):
    """A run that one process was asked to stop, continued, and one without a break."""
    whole = run(system, mixed_stages(system), 10)
    step = Trainer.step

    def asked(self, progress):
        if self.step_count == 6:  # one step too late: the request counts after it
            self.stop.requested = processes.rank == 1
        return step(self, progress)

    Trainer.step = asked
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            part = run(system, mixed_stages(system), 10, checkpoint=folder / "c")
    finally:
        Trainer.step = step
    again = run(system, mixed_stages(system), 10, checkpoint=folder / "c")
    return {
        "steps": [part.metadata["steps"], again.metadata["steps"]],
        "weights": [digest(whole.model), digest(again.model)],
        "validation": [whole.metadata["validation"], again.metadata["validation"]],
        "told": sum("interrupted after 7 steps" in str(w.message) for w in told),
    }


def failure(system, folder, processes):
    """What both say when one fails in its third step."""
    calls = []

    @wraps(cross_entropy)
    def failing(model, batch):
        calls.append(1)
        if processes.rank == 1 and len(calls) == 4:  # one warms up
            raise ValueError("no licence for the third step")
        return cross_entropy(model, batch)

    path = folder / "failed"
    try:
        run(system, [Stage(tempering(system, process_seed(3)), failing)], 6, checkpoint=path)
    except Exception as error:
        said = [type(error).__name__, str(error), *error.__notes__]
    whole = run(system, [Stage(tempering(system, process_seed(3)))], 6)
    again = run(system, [Stage(tempering(system, process_seed(3)))], 6, checkpoint=path)
    return {"said": said, "weights": [digest(whole.model), digest(again.model)]}


def clocks(system, folder, processes):
    """Steps of a run by seconds where clocks differ."""
    ticks = iter(range(10**6))
    pace = [1.0, 7.0][processes.rank]
    trained = run(
        system, [Stage(tempering(system, process_seed(3)))], max_seconds=9.0,
        clock=lambda: pace * next(ticks),
    )  # fmt: skip
    return {"steps": trained.metadata["steps"], "by": trained.metadata["stopped_by"]}


def same_rows(system, folder, processes):
    """What is said about sources that are the same in both."""
    try:
        run(system, [Stage(tempering(system, 3))], 2)
    except ValueError as error:
        return {"said": str(error)}


def file_of_two(system, folder, processes):
    """What a checkpoint says of the number of processes."""
    state = read_state(folder / "c", "checkpoint")
    return {"processes": state["key"]["number_of_processes"], "others": len(state["other_sources"])}


CASES = (gradients, together, resumed, failure, clocks, same_rows, file_of_two)


def main(folder: Path) -> None:
    """All cases; what each process has to say about them goes to a file of its own."""
    warnings.simplefilter("ignore")
    system = ising()
    processes = Processes()
    out = {case.__name__: case(system, folder, processes) for case in CASES}
    (folder / f"said{processes.rank}.json").write_text(json.dumps(out))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
