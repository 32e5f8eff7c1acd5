"""Drawing many rows: room in memory, workers, interruptions, and nothing at all."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest
import torch
from toys import SYSTEMS

from clease_nn import compute
from clease_nn.configurations import Configurations
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import Lattice
from clease_nn.models import AnyOrderARM
from clease_nn.networks import LatticeConvolution
from clease_nn.sampling import DrawError, complete, sample
from clease_nn.sampling import draw as draw_module
from clease_nn.sampling.memory import bytes_per_row, rows_at_once
from clease_nn.sampling.plain import (
    energy_from_plain,
    plain_energy,
)
from clease_nn.warnings import InterruptedWarning

_COLUMNS = ("occupations", "step", "log_prob", "energy", "log_target")


def made(name="binary", fields=True):
    """Model with random weights, ensemble, lattice and range of a toy."""
    lattice, ensemble, box = SYSTEMS[name]()
    torch.manual_seed(0)
    network = LatticeConvolution(lattice, box, channels=8, blocks=1, needs_fields=fields)
    torch.nn.init.normal_(network.head.weight, 0, 0.1)
    return AnyOrderARM(network), ensemble, lattice, box


def rng(seed=0):
    """A generator."""
    return torch.Generator().manual_seed(seed)


def same(a, b):
    """Whether all columns agree bit by bit."""
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in _COLUMNS)


# ------------------------------------------------------------------ memory
def test_an_asked_batch_that_does_not_fit_is_refused_before_anything_is_drawn(monkeypatch):
    """The message says what is needed, what there is and what fits; the random stream stays."""
    model, ensemble, lattice, box = made()
    each = bytes_per_row(model, lattice)
    monkeypatch.setattr("clease_nn.sampling.memory.available_memory", lambda device: 10 * each)
    generator = rng()
    before = generator.get_state()
    conditions = box.grid(1, 1).repeat(64)
    with pytest.raises(MemoryError, match=r"32 rows of 8 sites .* 10 fit: use batch_size=10"):
        sample(model, ensemble, lattice, conditions, generator, batch_size=32)
    assert torch.equal(before, generator.get_state())
    assert len(sample(model, ensemble, lattice, conditions, generator, batch_size=10)) == 64


def test_not_even_one_row_is_said(monkeypatch):
    """A cell that is too large for the machine is refused, not tried."""
    model, _, lattice, _ = made()
    monkeypatch.setattr("clease_nn.sampling.memory.available_memory", lambda device: 10)
    with pytest.raises(MemoryError, match="not even one fits"):
        rows_at_once(model, lattice)


@pytest.mark.parametrize(("rows", "expected"), [(2, 1), (20, 10), (100_000, 256)])
def test_default_batch_takes_half_of_the_memory(monkeypatch, rows, expected):
    """As many rows as fit into half of it, and never more than pay."""
    model, _, lattice, _ = made()
    each = bytes_per_row(model, lattice)
    monkeypatch.setattr("clease_nn.sampling.memory.available_memory", lambda device: rows * each)
    assert rows_at_once(model, lattice) == expected


def test_unknown_memory_is_no_obstacle(monkeypatch):
    """Where nobody tells, the batch is as it always was, or as asked for."""
    model, _, lattice, _ = made()
    monkeypatch.setattr("clease_nn.sampling.memory.available_memory", lambda device: None)
    assert rows_at_once(model, lattice) == 256
    assert rows_at_once(model, lattice, 7) == 7


def test_memory_grows_with_the_cell():
    """A larger cell needs more a row."""
    model, _, _, box = made()
    cells = [Lattice.square(n, species=("Au", "Cu")) for n in (4, 8)]
    model = AnyOrderARM(LatticeConvolution(cells[0], box, needs_fields=False))
    small, large = (bytes_per_row(model, cell) for cell in cells)
    assert 3 * small < large < 5 * small


@pytest.mark.parametrize("size", [0, -3])
def test_a_batch_has_rows(size):
    """A batch size below one is refused."""
    model, ensemble, lattice, box = made()
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        sample(model, ensemble, lattice, box.grid(1, 1), rng(), batch_size=size)


def test_memory_of_the_machine_and_of_control_groups_is_read(tmp_path):
    """The nearest limit counts, of both versions; what is absent or unlimited does not."""
    info = tmp_path / "meminfo"
    info.write_text("MemTotal:  4000 kB\nMemAvailable:  3000 kB\n")
    assert compute._machine_memory(info) == 3000 * 1024
    assert (compute._machine_memory(tmp_path / "none") or 1) > 0
    groups = tmp_path / "cgroup"
    groups.write_text("4:memory:/job/step\n3:cpuset:/\n0::/user/run\n")
    step, job, run = (tmp_path / p for p in ("memory/job/step", "memory/job", "user/run"))
    for folder, names, limit, used in (
        (step, ("memory.limit_in_bytes", "memory.usage_in_bytes"), 9000, 1000),
        (job, ("memory.limit_in_bytes", "memory.usage_in_bytes"), 5000, 2000),
        (run, ("memory.max", "memory.current"), "max", 10),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / names[0]).write_text(f"{limit}\n")
        (folder / names[1]).write_text(f"{used}\n")
        (folder / "memory.stat").write_text("total_inactive_file 500\ninactive_file 500\n")
    assert compute._group_memory(groups, tmp_path) == 3500
    (run / "memory.max").write_text("1200\n")
    assert compute._group_memory(groups, tmp_path) == 1690
    assert compute._group_memory(tmp_path / "none", tmp_path) is None
    assert compute.available_memory() is None or compute.available_memory() > 0


# ------------------------------------------------------------------ batches
def test_no_rows_are_no_problem():
    """Nothing to draw gives a scored batch without rows."""
    model, ensemble, lattice, box = made()
    c = sample(model, ensemble, lattice, box.grid(1, 1)[:0], rng())
    assert len(c) == len(c.log_weight) == len(c.energy) == 0
    assert c.step.shape == c.occupations.shape == (0, lattice.n_sites)


@pytest.mark.parametrize("name", SYSTEMS)
def test_any_batch_size_draws_from_one_distribution(name):
    """ln Z of any batch size agrees with enumeration; sizes differ in random numbers alone."""
    model, ensemble, lattice, box = made(name)
    at = box.grid(1, 1)
    exact = float(ensemble.enumerate(lattice).log_z(at))
    for size in (None, 90):
        c = sample(model, ensemble, lattice, at.repeat(300), rng(size or 1), batch_size=size)
        w = (c.log_weight - exact).exp().numpy()
        assert abs(w.mean() - 1) < 4.5 * w.std(ddof=1) / np.sqrt(len(w))


# ------------------------------------------------------------------ executors
@pytest.fixture(scope="module")
def processes():
    """Two worker processes, spawned."""
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


def test_workers_draw_the_same_whatever_their_number(processes):
    """One thread, two threads and two processes give the same rows, bit by bit."""
    model, ensemble, lattice, box = made("two_sublattices")
    conditions = box.grid(2, 2).repeat(10)
    drawn = []
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(2) as two:
        for executor in (one, two, processes):
            drawn.append(
                sample(
                    model, ensemble, lattice, conditions, rng(3), batch_size=9, executor=executor
                )
            )
    assert same(drawn[0], drawn[1])
    assert same(drawn[0], drawn[2])
    again = model.log_prob(drawn[2], steps=drawn[2].step, fields=ensemble.fields)
    assert torch.allclose(again.detach(), drawn[2].log_prob, atol=1e-5)
    assert torch.equal(drawn[2].conditions.mu, conditions.mu)
    assert drawn[2].provenance["energy_evaluations"] == 40


def test_workers_keep_known_sites():
    """A partial configuration is completed by workers as by the caller."""
    model, ensemble, lattice, box = made()
    x = torch.full((12, 8), -1, dtype=torch.int8)
    x[:, :3] = 1
    partial = Configurations(lattice, box.grid(1, 1).repeat(12), x)
    with ThreadPoolExecutor(2) as pool:
        c = complete(model, ensemble, partial, rng(), batch_size=5, executor=pool)
    assert (c.occupations[:, :3] == 1).all()
    assert (c.step[:, :3] == -1).all()
    assert c.known.all()
    assert ensemble.score(c).energy.tolist() == c.energy.tolist()


class Dying:
    """An executor of this thread whose task number ``at`` fails, or is interrupted."""

    def __init__(self, at, error):
        self.at, self.error = at, error

    def map(self, task, items):
        """Results one by one."""
        for k, item in enumerate(items):
            if k == self.at:
                raise self.error
            yield task(item)


def test_a_worker_that_fails_names_the_rows_and_keeps_the_rest(monkeypatch):
    """An error in one chunk is reported with its rows; what was drawn is in the error."""
    model, ensemble, lattice, box = made()
    real = AnyOrderARM.complete

    def failing(self, partial, *args, **kwargs):
        if len(partial) == 4:  # the last chunk
            raise RuntimeError("out of paper")
        return real(self, partial, *args, **kwargs)

    monkeypatch.setattr(AnyOrderARM, "complete", failing)
    with ThreadPoolExecutor(1) as pool, pytest.raises(DrawError, match="rows 20 to 23") as info:
        sample(
            model, ensemble, lattice, box.grid(1, 1).repeat(24), rng(), batch_size=10, executor=pool
        )
    assert "out of paper" in str(info.value)
    assert "20 of 24 rows" in str(info.value)
    assert len(info.value.finished.log_weight) == 20


def test_an_executor_that_dies_is_reported():
    """Rows that are missing are named; finished ones are kept."""
    model, ensemble, lattice, box = made()
    conditions = box.grid(1, 1).repeat(24)
    with pytest.raises(DrawError, match=r"rows 10 to 19, 20 to 23 are missing .*no power") as info:
        sample(
            model, ensemble, lattice, conditions, rng(), batch_size=10,
            executor=Dying(1, OSError("no power")),
        )  # fmt: skip
    assert len(info.value.finished) == 10
    with pytest.raises(DrawError) as info:
        sample(model, ensemble, lattice, conditions, rng(), executor=Dying(0, OSError("no power")))
    assert info.value.finished is None


def test_interrupted_drawing_returns_what_was_finished(monkeypatch):
    """Ctrl-C with an executor or a progress bar keeps finished chunks and says so."""
    model, ensemble, lattice, box = made()
    conditions = box.grid(1, 1).repeat(24)
    with pytest.warns(InterruptedWarning, match="10 of 24 rows"):
        c = sample(
            model, ensemble, lattice, conditions, rng(), batch_size=10,
            executor=Dying(1, KeyboardInterrupt()),
        )  # fmt: skip
    assert len(c) == 10
    real, calls = draw_module._serial, []

    def serial(*args):
        for k, part in real(*args):
            if k == 2:
                raise KeyboardInterrupt
            calls.append(k)
            yield k, part

    monkeypatch.setattr(draw_module, "_serial", serial)
    with pytest.warns(InterruptedWarning, match="20 of 24 rows"):
        c = sample(model, ensemble, lattice, conditions, rng(), batch_size=10, progress=True)
    assert len(c) == 20
    with pytest.raises(KeyboardInterrupt):
        sample(model, ensemble, lattice, conditions, rng(), batch_size=10)


def test_what_cannot_be_sent_is_refused_at_once(processes):
    """An energy that cannot be pickled, with fields, and an executor that is none."""
    model, ensemble, lattice, box = made()
    local = SemiGrandCanonical(lambda lattice, occupations: None)
    with pytest.raises(TypeError, match="use a thread pool, or no executor"):
        sample(model, local, lattice, box.grid(1, 1), rng(), executor=processes)
    with pytest.raises(TypeError, match="executor must have submit or map"):
        sample(model, ensemble, lattice, box.grid(1, 1), rng(), executor=3)


def test_plain_forms_rebuild_what_they_were_made_of():
    """Expansions survive as bare numbers, other energies as they are."""
    for make in SYSTEMS.values():
        _, ensemble, _ = make()
        energy = energy_from_plain(plain_energy(ensemble.energy))
        assert energy.fingerprint == ensemble.energy.fingerprint
    other = object()
    assert energy_from_plain(plain_energy(other)) is other
