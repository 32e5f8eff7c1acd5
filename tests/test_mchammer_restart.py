"""The mchammer drop-in: containers, restarts and random numbers."""

import json
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("icet")

from mchammer.data_containers.data_container import DataContainer
from mchammer.ensembles import SemiGrandCanonicalEnsemble
from mchammer_helpers import rows, system, trained

from clease_nn import NeuralSGCEnsemble
from clease_nn.sampler.keyed import KeyedMoves

T = 900.0
MU = {"Ag": 0.0, "Au": 0.05}


def make(name="binary", mu=MU, host=False, **options):
    atoms, calculator = system(name)
    if host:
        return SemiGrandCanonicalEnsemble(atoms, calculator, T, mu, **options)
    options.setdefault("neural_interval", None)
    return NeuralSGCEnsemble(atoms, calculator, T, mu, **options)


def with_model(interval=2.0, **options):
    atoms, calculator = system()
    model = trained(atoms, calculator)
    return NeuralSGCEnsemble(
        atoms, calculator, T, MU, model=model, neural_interval=interval, **options
    )


def last_state(path):
    return DataContainer.read(str(path))._last_state


def test_containers_open_without_this_package(tmp_path):
    """A file written here is read by plain mchammer where this package does not exist."""
    mc = with_model(random_seed=1, dc_filename=str(tmp_path / "run.dc"))
    mc.run(400)
    code = (
        "import sys; sys.modules['clease_nn'] = None\n"
        "from mchammer import DataContainer\n"
        f"dc = DataContainer.read({str(tmp_path / 'run.dc')!r})\n"
        "print(dc.get_average('Au_count'), len(dc.get('trajectory')), dc.metadata['method'])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    mean, n, *method = out.stdout.split()
    assert float(mean) == pytest.approx(mc.data_container.get_average("Au_count"))
    assert int(n) == 51 and "neural" in method


def test_metadata_are_plain_json():
    """Provenance is JSON; the parameters are those of mchammer and nothing else."""
    mc = with_model("auto", random_seed=1)
    mc.run(100)
    assert json.loads(json.dumps(dict(mc.data_container.metadata)))["chain"]["step"] == 100
    assert set(mc.data_container.ensemble_parameters) == {
        "temperature", "mu_Ag", "mu_Au", "n_atoms",
    }  # fmt: skip


@pytest.mark.parametrize("interval", [None, 1.5, "auto"])
@pytest.mark.parametrize("first", [80, 83, 5])
def test_restart_goes_on_bit_by_bit(interval, first, tmp_path):
    """run(a), a file, run(b) is run(a + b), wherever a lies between rows and neural moves."""
    start = make if interval is None else lambda **k: with_model(interval, **k)
    whole = start(random_seed=9)
    whole.run(400)
    part = start(random_seed=9, dc_filename=str(tmp_path / "run.dc"))
    part.run(first)
    again = start(random_seed=77, dc_filename=str(tmp_path / "run.dc"))
    assert again.step == first
    again.run(400 - first)
    assert rows(again) == rows(whole)
    assert np.array_equal(again.configuration.occupations, whole.configuration.occupations)
    if interval == 1.5:
        assert again.data_container.metadata["chain"] == whole.data_container.metadata["chain"]


def test_two_runs_are_one():
    """run(a) and then run(b) on the same object is run(a + b)."""
    whole, parts = with_model(random_seed=2), with_model(random_seed=2)
    whole.run(300)
    for steps in (37, 3, 200, 60):
        parts.run(steps)
    assert rows(parts) == rows(whole)


def test_many_short_runs_draw_no_more_than_a_long_one(monkeypatch):
    """Proposals that were drawn ahead are kept from one run to the next."""
    draws = []
    draw = KeyedMoves._draw
    monkeypatch.setattr(
        KeyedMoves, "_draw", lambda self, x, n: (draws.append(n), draw(self, x, n))[1]
    )
    short, long = with_model(random_seed=2), with_model(random_seed=2)
    long.run(800)
    expected, draws[:] = list(draws), []
    for _ in range(50):
        short.run(16)
    assert draws == expected


def test_a_schedule_that_was_asked_for_is_not_taken_for_a_plan(tmp_path):
    """A restart with "auto" plans where the run before had a given interval."""
    path = str(tmp_path / "run.dc")
    with_model(2.0, random_seed=1, dc_filename=path).run(80)
    mc = with_model("auto", dc_filename=path)
    mc.run(80)
    assert "asked for" not in mc.neural_schedule.reason


def test_seeds_fix_runs():
    """The same seed gives the same rows, another one others."""
    runs = []
    for seed in (1, 1, 2):
        mc = with_model(random_seed=seed)
        mc.run(200)
        runs.append(rows(mc))
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("first", [40, 43])
def test_mchammer_goes_on_with_our_container(first, tmp_path):
    """mchammer restarts from a file written here, at its step and configuration."""
    path = str(tmp_path / "run.dc")
    ours = with_model(random_seed=3, dc_filename=path)
    ours.run(first)
    host = make(host=True, dc_filename=path)
    assert host.step == first
    assert np.array_equal(host.configuration.occupations, ours.configuration.occupations)
    host.run(80 - first)
    assert [r["mctrial"] for r in rows(host)] == list(range(0, 81, 8))
    assert rows(host)[: len(rows(ours))] == rows(ours)


@pytest.mark.parametrize("first", [40, 43])
def test_we_go_on_with_the_container_of_mchammer(first, tmp_path):
    """A run of mchammer is gone on with here, and by mchammer again."""
    path = str(tmp_path / "run.dc")
    host = make(host=True, random_seed=3, dc_filename=path)
    host.run(first)
    ours = with_model(dc_filename=path)
    assert ours.step == first
    assert np.array_equal(host.configuration.occupations, ours.configuration.occupations)
    ours.run(80 - first)
    assert rows(ours)[: len(rows(host))] == rows(host)
    third = make(host=True, dc_filename=path)
    third.run(40)
    assert [r["mctrial"] for r in rows(third)] == list(range(0, 121, 8))


def test_random_numbers_are_not_used_twice(tmp_path):
    """After steps of mchammer the chain goes on with fresh random numbers."""
    path = str(tmp_path / "run.dc")
    make(random_seed=3, dc_filename=path).run(40)
    make(host=True, dc_filename=path).run(40)
    seed = DataContainer.read(path).metadata["chain"]["seed"]
    ours = make(dc_filename=path)
    ours.run(8)
    assert ours.data_container.metadata["chain"]["seed"] != seed


def test_neural_moves_of_another_interval_have_fresh_random_numbers(tmp_path, monkeypatch):
    """A restart with another interval, which numbers the moves anew, repeats none of them."""
    used = []
    restart = KeyedMoves._restart
    monkeypatch.setattr(
        KeyedMoves, "_restart", lambda m, *key: (used.append((m._seed, *key)), restart(m, *key))[1]
    )
    for interval in (1.0, 3.0, 2.0):
        with_model(interval, random_seed=1, dc_filename=str(tmp_path / "run.dc")).run(240)
    decisions = [key for key in used if key[1] == 1]
    assert len(decisions) == 30 + 10 + 15 == len(set(decisions))


def test_container_of_other_parameters_is_refused(tmp_path):
    """mchammer's own error names the parameters that differ."""
    path = str(tmp_path / "run.dc")
    make(dc_filename=path).run(8)
    with pytest.raises(ValueError, match="Ensemble parameters do not match"):
        make(mu={"Ag": 0.0, "Au": 0.06}, dc_filename=path)


def test_interrupted_run_is_consistent_and_goes_on(monkeypatch):
    """Ctrl-C within a block takes it back; going on gives the run without interruption."""
    whole, mc = with_model(random_seed=4), with_model(random_seed=4)
    whole.run(400)
    mc.run(50)
    written = mc.calculator.set_occupations
    calls = []

    def interrupted(occupations):
        calls.append(1)
        if len(calls) == 12:
            raise KeyboardInterrupt
        written(occupations)

    monkeypatch.setattr(mc.calculator, "set_occupations", interrupted)
    with pytest.raises(KeyboardInterrupt):
        mc.run(350)
    assert 50 < mc.step < 400
    assert np.array_equal(mc.calculator.cpp_calc.occupations, mc.configuration.occupations)
    mc.run(400 - mc.step)
    assert np.array_equal(mc.configuration.occupations, whole.configuration.occupations)
    assert rows(mc)[-1] == rows(whole)[-1]
