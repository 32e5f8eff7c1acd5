"""Calculators, executors and caches that misbehave are reported, and nothing computed is lost."""

import os
import pickle
import resource
import sqlite3
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.db import connect
from ase.filters import FrechetCellFilter
from calculators import (
    Deadly,
    Drifting,
    Interrupted,
    Meddling,
    NotANumber,
    Pairs,
    Refusing,
    Slow,
    Unpicklable,
    deadly,
)
from test_calculator_energy import configurations, direct, fcc, spawned

from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.energies import (
    CacheError,
    CalculatorEnergy,
    CalculatorError,
    ExecutorError,
    Failure,
    Relaxation,
)
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.export import write
from clease_nn.lattice import Lattice
from clease_nn.warnings import CalculatorWarning

# 0 to 4 gold atoms on four sites
X = torch.tensor(np.tril(np.ones((5, 4)), -1)[::-1].copy() == 0).to(torch.int8)
LATTICE = fcc((1, 1, 1))
BAD = int(((X == 0).sum(1) == 2).nonzero()[0])
GOOD = [k for k in range(5) if k != BAD]


# ------------------------------------------------------------------ single structures
def test_failure_is_named_and_the_rest_survives():
    """The error names formula, occupation and exception; a repeated call pays the rest once."""
    energy = CalculatorEnergy(Refusing(), retries=0)
    with pytest.raises(CalculatorError, match="the density did not converge") as caught:
        energy(LATTICE, X)
    (failure,) = caught.value.failures
    assert isinstance(failure, Failure)
    assert failure.formula == "Au2Cu2"
    assert failure.occupation == (0, 0, 1, 1)
    assert "Au2Cu2, occupation [0, 0, 1, 1]" in str(caught.value)
    first = energy.calls
    assert caught.value.remaining == len(X) - first
    with pytest.raises(CalculatorError) as caught:  # what failed comes last now
        energy(LATTICE, X)
    assert caught.value.remaining == 0
    e = energy(LATTICE, X[GOOD])
    assert energy.calls == len(X) + 1
    assert torch.allclose(e, direct(LATTICE, X[GOOD]), atol=1e-9, rtol=0)


def test_retries_are_made_and_counted():
    """A calculator that fails twice succeeds with two retries, not with one."""
    with pytest.raises(CalculatorError):
        CalculatorEnergy(Refusing(times=2), retries=1)(LATTICE, X)
    energy = CalculatorEnergy(Refusing(times=2), retries=2)
    e = energy(LATTICE, X)
    assert energy.calls == len(X) + 2
    assert torch.allclose(e, direct(LATTICE, X), atol=1e-9, rtol=0)


def test_tolerated_failure_reads_nan_and_no_ensemble_takes_it():
    """Within max_failures the call warns and returns NaN there, which scoring refuses."""
    energy = CalculatorEnergy(NotANumber(), max_failures=1)
    with pytest.warns(CalculatorWarning, match="Au2Cu2.*not finite: the calculator returned nan"):
        e = energy(LATTICE, X)
    assert torch.isnan(e[BAD])
    assert torch.allclose(e[GOOD], direct(LATTICE, X[GOOD]), atol=1e-9, rtol=0)
    c = Configurations(LATTICE, Conditions([500.0] * len(X), [[0.0, 0.0]] * len(X)), X)
    with pytest.warns(CalculatorWarning), pytest.raises(ValueError, match="nan"):
        SemiGrandCanonical(energy).score(c)


def test_nan_is_fatal_by_default():
    """NaN counts as a failure after the retries."""
    energy = CalculatorEnergy(NotANumber())
    with pytest.raises(CalculatorError, match="not finite"):
        energy(LATTICE, X[[BAD]])
    assert energy.calls == 2
    assert [f.kind for f in energy.failures] == ["not finite"]


@pytest.mark.parametrize(
    ("what", "named"),
    [
        ("numbers", "atomic numbers"),
        ("positions", "positions"),
        ("cell", "cell"),
        ("length", "number of atoms"),
    ],
)
@pytest.mark.parametrize("relax", [None, Relaxation(fmax=0.5)])
def test_calculator_that_changes_the_atoms(what, named, relax):
    """Every change of the Atoms handed over is found and named, and the template stays."""
    energy = CalculatorEnergy(Meddling(what), relax=relax)
    before = LATTICE.template.copy()
    with pytest.raises(CalculatorError, match=f"changed the .*{named}"):
        energy(LATTICE, X[[1]])
    assert LATTICE.template == before
    assert energy.calls == 1


def test_calculator_changed_behind_its_energies():
    """Energies of other parameters are neither given nor mixed with those kept."""
    calculator = LennardJones(rc=4.0)
    energy = CalculatorEnergy(calculator)
    energy(LATTICE, X)
    energy(LATTICE, X)
    calculator.set(epsilon=3.0)
    with pytest.raises(ValueError, match="parameters of LennardJones have changed.*a new"):
        energy(LATTICE, X)
    calculator.set(epsilon=1.0)
    energy(LATTICE, X)
    assert energy.calls == 5


def test_relaxation_that_does_not_converge_is_no_energy():
    """Too few steps: a failure that names the limit, not paid a second time."""
    energy = CalculatorEnergy(EMT(), relax=Relaxation(filter=FrechetCellFilter, max_steps=2))
    for _ in range(2):
        with pytest.raises(CalculatorError, match=r"0.02 eV/angstrom after 2 steps; raise"):
            energy(LATTICE, X[[1]])
    assert energy.calls == 1


def test_collapse_is_no_energy_and_is_remembered(tmp_path):
    """An atom driven from its site is named; the file remembers it, so that nobody pays again."""
    lattice = Lattice.uniform(bulk("Cu", a=3.8, cubic=True), ["Au", "Cu", "X"])
    x = torch.tensor([[0, 1, 1, 2]], dtype=torch.int8)
    options = {"relax": Relaxation(fmax=0.1, max_steps=50), "symmetry": False}
    energy = CalculatorEnergy(Drifting(), cache=tmp_path / "e.db", **options)
    with pytest.raises(CalculatorError, match="Au of site 0 ended .* from site 3; .* another"):
        energy(lattice, x)
    again = CalculatorEnergy(Drifting(), cache=tmp_path / "e.db", max_failures=1, **options)
    with pytest.warns(CalculatorWarning, match="AuCu2.*collapsed"):
        assert torch.isnan(again(lattice, x)[0])
    assert again.calls == 0


def test_interruption_keeps_what_is_computed(tmp_path):
    """Ctrl-C in the fourth structure: three are in memory and on disk."""
    calculator = Interrupted()
    energy = CalculatorEnergy(calculator, cache=tmp_path / "e.db")
    with pytest.raises(KeyboardInterrupt):
        energy(LATTICE, X)
    assert len(list(connect(tmp_path / "e.db").select())) == 3
    calculator.done = -10
    energy(LATTICE, X)
    assert energy.calls == 5


@pytest.mark.parametrize(
    ("occupations", "message"),
    [
        ([[0, 1, 1]], r"shape \(batch, 4\)"),
        ([[0.0, 1.0, 1.0, 1.0]], "integers"),
        ([[0, 1, -1, 1]], "site 2 of configuration 0 carries species -1"),
        ([[0, 1, 2, 1]], "site 2 .* species 2"),
    ],
)
def test_bad_occupations(occupations, message):
    """Shapes, types, unknown and impossible species are refused."""
    with pytest.raises(ValueError, match=message):
        CalculatorEnergy(EMT())(LATTICE, torch.tensor(occupations))


def test_bad_arguments():
    """No calculator, settings of another type or sign, and species that are no elements."""
    with pytest.raises(TypeError, match="ASE calculator"):
        CalculatorEnergy("EMT")
    with pytest.raises(TypeError, match="atoms.calc"):
        CalculatorEnergy(LATTICE.template)
    with pytest.raises(TypeError, match="must be a Relaxation"):
        CalculatorEnergy(EMT(), relax=True)
    with pytest.raises(ValueError, match="retries must not be negative"):
        CalculatorEnergy(EMT(), retries=-1)
    with pytest.raises(ValueError, match="fmax must be positive"):
        Relaxation(fmax=0)
    with pytest.raises(ValueError, match="no chemical symbols"):
        lattice = Lattice.uniform(LATTICE.template, ["Cu", "up"])
        CalculatorEnergy(EMT())(lattice, torch.zeros((1, 4), dtype=torch.int8))


# ------------------------------------------------------------------ executors
def test_unpicklable_calculator_is_refused_before_the_work():
    """Process executors ask for a factory at once; threads that cannot copy say so too."""
    with spawned() as pool:
        for bad in (Unpicklable(), lambda: EMT()):
            with pytest.raises(TypeError, match="pass a function of a module"):
                CalculatorEnergy(bad, executor=pool)
    with ThreadPoolExecutor(1) as threads:
        energy = CalculatorEnergy(Unpicklable(), executor=threads)
        with pytest.raises(CalculatorError, match="cannot pickle"):
            energy(LATTICE, X)


def test_no_executor():
    """Something without map and submit is refused."""
    with pytest.raises(TypeError, match="submit or map"):
        CalculatorEnergy(EMT(), executor=4)


def test_executor_that_dies():
    """What was finished is kept, the error says how many remain, another call goes on."""
    order = [*GOOD, BAD]
    with spawned() as pool:
        energy = CalculatorEnergy(deadly, executor=pool, name="EMT")
        with pytest.raises(ExecutorError, match="4 of 5 structures .* 1 remain") as caught:
            energy(LATTICE, X[order])
    assert caught.value.remaining == 1
    assert energy.calls == 4
    with pytest.raises(ExecutorError, match="0 of 1"):  # the pool is shut down
        energy(LATTICE, X)
    energy.executor = None
    energy.calculator = EMT
    assert torch.allclose(energy(LATTICE, X), direct(LATTICE, X), atol=1e-9, rtol=0)
    assert energy.calls == 5


def test_failures_in_threads_stop_the_rest():
    """Past max_failures nothing more is started, what runs is kept, the count of both is right."""
    x = configurations(fcc(), 40)
    with ThreadPoolExecutor(2) as pool:
        energy = CalculatorEnergy(lambda: Refusing(2), executor=pool, retries=0, symmetry=False)
        with pytest.raises(CalculatorError) as caught:
            energy(fcc(), x)
    n = len(torch.unique(x, dim=0))
    assert energy.calls + caught.value.remaining == n


def test_dask_finishes_what_it_has_begun():
    """A failure stops what waits; structures that workers are computing are not thrown away."""
    distributed = pytest.importorskip("distributed", reason="needs the extra dask")
    options = {"processes": False, "dashboard_address": None, "n_workers": 1}
    with distributed.LocalCluster(threads_per_worker=3, **options) as cluster:
        with distributed.Client(cluster) as client:
            energy = CalculatorEnergy(Slow(), executor=client, retries=0)
            with pytest.raises(CalculatorError):
                energy(LATTICE, X[[BAD, 0, 1]])
            assert energy.calls == 3
            energy(LATTICE, X[[0, 1]])
            assert energy.calls == 3


# ------------------------------------------------------------------ caches
def test_cache_of_another_calculator_or_relaxation(tmp_path):
    """Both descriptions stand in the error."""
    path = tmp_path / "e.db"
    CalculatorEnergy(EMT(), cache=path)(LATTICE, X)
    for calculator, relax in [(LennardJones(), None), (EMT(), Relaxation())]:
        with pytest.raises(CacheError, match=r"another calculator(.|\n)*EMT(.|\n)*fixed position"):
            CalculatorEnergy(calculator, relax=relax, cache=path)


def test_cache_of_another_lattice_is_not_used(tmp_path):
    """Energies of a cell with another lattice constant are computed anew."""
    path = tmp_path / "e.db"
    CalculatorEnergy(EMT(), cache=path)(LATTICE, X)
    other = fcc((1, 1, 1), a=3.7)
    energy = CalculatorEnergy(EMT(), cache=path)
    assert torch.allclose(energy(other, X), direct(other, X), atol=1e-9, rtol=0)
    assert energy.calls == 5


def test_calculator_without_parameters_needs_a_name_for_a_cache(tmp_path):
    """Two calculators of the class could not be told apart: say so, and take a name."""
    with pytest.raises(ValueError, match="name="):
        CalculatorEnergy(Pairs(), cache=tmp_path / "e.db")
    CalculatorEnergy(Pairs(), cache=tmp_path / "e.db", name="pairs 1")
    with pytest.raises(CacheError, match="pairs 1(.|\n)*pairs 2"):
        CalculatorEnergy(Pairs(), cache=tmp_path / "e.db", name="pairs 2")
    CalculatorEnergy(Pairs())(LATTICE, X)  # without a file nobody asks


@pytest.mark.parametrize("keep", [0.3, 0.8])
def test_truncated_cache(tmp_path, keep):
    """A damaged file is an error with a remedy, not fewer energies."""
    path = tmp_path / "e.db"
    CalculatorEnergy(EMT(), cache=path)(fcc(), configurations(fcc(), 60))
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(CacheError, match="damaged or no database"):
        CalculatorEnergy(EMT(), cache=path)(fcc(), configurations(fcc(), 60))


def test_file_of_something_else(tmp_path):
    """Text, somebody's database of structures and a missing folder are refused."""
    text = tmp_path / "notes.db"
    text.write_text("not a database " * 100)
    with pytest.raises(CacheError, match="damaged or no database"):
        CalculatorEnergy(EMT(), cache=text)
    structures = tmp_path / "structures.db"
    connect(structures).write(LATTICE.template)
    exported = tmp_path / "exported.db"
    write(exported, Configurations(LATTICE, Conditions([500.0], [[0.0, 0.0]]), X[[1]]))
    for file in (structures, exported):
        with pytest.raises(CacheError, match="something else"):
            CalculatorEnergy(EMT(), cache=file)
    with pytest.raises(CacheError, match="folder"):
        CalculatorEnergy(EMT(), cache=tmp_path / "nowhere" / "e.db")


def test_full_disk_keeps_energies_in_memory(tmp_path, monkeypatch):
    """The call stops with the remedy; the next one pays nothing again and writes everything."""
    path = tmp_path / "e.db"
    energy = CalculatorEnergy(EMT(), cache=path)

    def full(*args, **kwargs):
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as m:
        m.setattr(type(energy.cache._db), "write", full)
        with pytest.raises(CacheError, match="free some space.*kept in memory"):
            energy(LATTICE, X)
        calls = energy.calls
        assert calls > 0
    assert torch.allclose(energy(LATTICE, X), direct(LATTICE, X), atol=1e-9, rtol=0)
    assert energy.calls == 5
    assert len(list(connect(path).select())) == 5


def test_file_that_cannot_grow(tmp_path):
    """The system's own limit: the remedy is space, and nothing is paid for twice."""
    path, lattice = tmp_path / "e.db", fcc()
    x = configurations(lattice, 40)
    energy = CalculatorEnergy(EMT(), cache=path, symmetry=False)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize(path) + 4096, hard))
    try:
        with pytest.raises(CacheError, match="free some space.*kept in memory"):
            energy(lattice, x)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    energy(lattice, x)
    again = CalculatorEnergy(EMT(), cache=path, symmetry=False)
    again(lattice, x)
    assert (energy.calls, again.calls) == (len(torch.unique(x, dim=0)), 0)


def test_interruption_while_writing(tmp_path, monkeypatch):
    """Ctrl-C when SQLite has just written: it is Ctrl-C that comes out, and nothing is lost."""
    path = tmp_path / "e.db"
    energy = CalculatorEnergy(EMT(), cache=path)
    database = type(energy.cache._db)
    leave, done = database.__exit__, []

    def interrupted(self, *error):
        if not done:
            done.append(self.connection.commit())
            raise KeyboardInterrupt
        return leave(self, *error)

    monkeypatch.setattr(database, "__exit__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        energy(LATTICE, X)
    assert energy.calls >= 1
    again = CalculatorEnergy(EMT(), cache=path)
    again(LATTICE, X)
    assert again.calls == len(X) - energy.calls


@pytest.mark.parametrize("theirs", [EMT, LennardJones])
def test_two_processes_make_one_cache(theirs, tmp_path, monkeypatch):
    """The slower one shares the file of the faster, or is told that it is of another one."""
    path, link = tmp_path / "e.db", os.link

    def slower(source, target):
        monkeypatch.setattr(os, "link", link)
        CalculatorEnergy(theirs(), cache=path)(LATTICE, X)
        link(source, target)

    monkeypatch.setattr(os, "link", slower)
    if theirs is EMT:
        energy = CalculatorEnergy(EMT(), cache=path)
        energy(LATTICE, X)
        assert energy.calls == 0
    else:
        with pytest.raises(CacheError, match="LennardJones(.|\n)*EMT"):
            CalculatorEnergy(EMT(), cache=path)
    assert [p.name for p in tmp_path.iterdir()] == ["e.db"]


def test_locked_cache(tmp_path, monkeypatch):
    """A file held by another process is named as such, and served once it is free."""
    path = tmp_path / "e.db"
    energy = CalculatorEnergy(EMT(), cache=path)
    monkeypatch.setattr(
        type(energy.cache._db), "_connect", lambda self: sqlite3.connect(path, timeout=0.05)
    )
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(CacheError, match="another process holds it"):
        CalculatorEnergy(EMT(), cache=None)  # independent of the lock
        energy(LATTICE, X)
    other.execute("COMMIT")
    other.close()
    assert torch.allclose(energy(LATTICE, X), direct(LATTICE, X), atol=1e-9, rtol=0)
    assert len(list(connect(path).select())) == 5


def test_failures_survive_pickling():
    """Errors can travel between processes with their lists."""
    error = CalculatorError("text", (Failure("Cu", (0,), "error", "why"),), 3)
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.args, copy.failures, copy.remaining) == (error.args, error.failures, 3)


def test_deadly_is_deadly():
    """The calculator of the tests above is EMT for other structures."""
    e = CalculatorEnergy(Deadly())(LATTICE, X[GOOD])
    assert torch.allclose(e, direct(LATTICE, X[GOOD]), atol=1e-9, rtol=0)
