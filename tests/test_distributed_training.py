"""Laws of training in several processes: two of them on the CPU, by gloo."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from training_toys import ising, model

from clease_nn.compute import resolve_device
from clease_nn.io import ModelFileError
from clease_nn.sources import GeneratedSource
from clease_nn.training import Stage, fit, process_seed
from clease_nn.training.processes import Processes

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What two processes have to say about every case of ``two_processes.py``, and their folder."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    running = [
        subprocess.Popen(
            [sys.executable, HERE / "two_processes.py", folder],
            env={**os.environ, **group, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=HERE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        output = [process.communicate(timeout=300)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], "\n".join(output)
    return [json.loads((folder / f"said{rank}.json").read_text()) for rank in range(2)], folder


@pytest.mark.parametrize("case", ["in 1", "in 3"])
def test_gradients_are_those_of_one_process_with_all_rows(said, case):
    """Each has half the rows, in one part or in three: the gradient is that of all of them."""
    for rank in range(2):
        assert said[0][rank]["gradients"][case] < 1e-5


def test_weights_and_record_are_the_same_everywhere(said):
    """From different weights to begin with, both return the same model and metadata."""
    one, two = (s["together"] for s in said[0])
    assert one == two
    plain, stages = json.loads(one["metadata"])
    assert plain["processes"] == 2 and plain["steps"] == 25
    assert len(plain["looks"]) == 1
    assert len(set(one["weights"])) == 2
    # own draws: 32 rows a step and process, warming up included
    assert stages["stages"][1]["energy_evaluations"] == 2 * 32 * 4


def test_stopped_by_one_and_resumed_is_uninterrupted(said):
    """One process is asked to stop: both do, and continued they end at the bitwise same weights."""
    for s, told in zip(said[0], (1, 0), strict=True):
        case = s["resumed"]
        assert case["steps"] == [7, 10]
        assert case["weights"][0] == case["weights"][1]
        assert case["validation"][0] == case["validation"][1]
        assert case["told"] == told  # by the first alone


def test_an_error_in_one_ends_all_with_its_message(said):
    """Nobody waits for ever, and the checkpoint continues from the step before."""
    one, two = (s["failure"] for s in said[0])
    assert one["said"][0] == "RuntimeError"
    assert one["said"][1] == "process 1 of 2 failed: ValueError: no licence for the third step"
    assert two["said"][:2] == ["ValueError", "no licence for the third step"]
    for s in (one, two):
        assert "training stopped after 2 steps" in s["said"][-1]
        assert s["weights"][0] == s["weights"][1]


def test_the_clock_of_the_first_counts(said):
    """Clocks differ; both stop after the same steps, when the first one's time is up."""
    one, two = (s["clocks"] for s in said[0])
    assert one == two and one["by"] == "seconds" and one["steps"] == 9


def test_sources_that_are_the_same_in_both_are_refused(said):
    """They would draw the same rows twice; the message says how to make them."""
    for s in said[0]:
        assert "draw the same rows from their ParallelTemperingSource" in s["same_rows"]["said"]
        assert "process_seed(seed)" in s["same_rows"]["said"]


def test_a_checkpoint_belongs_to_a_number_of_processes(said):
    """It holds the chains of all; one process alone cannot continue two."""
    assert said[0][0]["file_of_two"] == {"processes": 2, "others": 1}
    lattice, ensemble, box = ising()
    with pytest.raises(ModelFileError, match="another number of processes"):
        fit(
            ensemble, lattice, box, max_steps=6, model=model("any", lattice), batch_size=32,
            learning_rate=1e-2, checkpoint=said[1] / "c2", progress=False,
        )  # fmt: skip


# ------------------------------------------------------------------ one process
def test_one_process_alone_is_no_group(monkeypatch):
    """Everything is what it would be anyway; the seed stays as it is."""
    alone = Processes()
    assert (alone.rank, alone.size, alone.first) == (0, 1, True)
    assert alone.largest([1.0, 2.0]) == [1.0, 2.0] and alone.gather("a") == ["a"]
    assert alone.from_first(lambda: 3) == 3
    with pytest.raises(KeyError):
        alone.fail_together(KeyError("x"))
    module = torch.nn.Linear(1, 1)
    assert alone.wrap(module) is module
    seeds = {}
    for name, value in (("MASTER_ADDR", "a"), ("MASTER_PORT", "1"), ("WORLD_SIZE", "3")):
        monkeypatch.setenv(name, value)
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        seeds[rank] = tuple(process_seed(np.random.SeedSequence(5)).generate_state(4))
    assert len(set(seeds.values())) == 3
    assert tuple(np.random.SeedSequence(5).generate_state(4)) not in seeds.values()


# ------------------------------------------------------------------ devices
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named():
    """The message says what torch sees and what to do, before any work is done."""
    lattice, ensemble, box = ising()
    with pytest.raises(ValueError, match=r"device 'cuda' was asked for, but torch .* sees no GPU"):
        fit(ensemble, lattice, box, max_steps=1, device="cuda")


@pytest.mark.parametrize("device", ["meta", "gpu", "mps"])
def test_other_devices_are_refused(device):
    """By name."""
    with pytest.raises(ValueError, match=f"device '{device}'"):
        resolve_device(device)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("own_draws", [False, True])
def test_training_on_a_gpu_is_that_on_the_cpu(own_draws):
    """In float32, to rounding; the model comes back to the CPU."""
    lattice, ensemble, box = ising()
    out = []
    for device in ("cpu", "cuda"):
        stages = None
        if own_draws:
            stages = [Stage(GeneratedSource(ensemble, lattice, box, n_conditions=4))]
        trained = fit(
            ensemble, lattice, box, max_steps=3, model=model("any", lattice), batch_size=32,
            device=device, precision="float32", stages=stages, progress=False,
        )  # fmt: skip
        out.append(torch.cat([p.reshape(-1) for p in trained.model.parameters()]))
    assert torch.allclose(*out, atol=1e-3)
