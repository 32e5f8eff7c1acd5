"""The command line: the demonstration runs, files are explained, bad input is named."""

import json

from click.testing import CliRunner
from toys import binary

from clease_nn.cli import main
from clease_nn.io import TrainedModel
from clease_nn.models import AnyOrderARM
from clease_nn.networks import LatticeConvolution


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def test_demo_writes_table_figures_and_model(tmp_path):
    """The short demonstration goes from expansion to figures, with exact values beside."""
    out = tmp_path / "out"
    result = run("demo", "--short", "--out", out)
    assert result.exit_code == 0, result.output
    names = {"composition.png", "ness.png", "isotherms.png", "training.png", "table.json"}
    assert {p.name for p in out.iterdir()} == names | {"cuau.nn"}
    rows = json.loads((out / "table.json").read_text())
    assert len(rows) == 45
    assert all(r.get("grand_potential_error", 1) > 0 for r in rows)
    assert "NeuralSGCSampler as SGCMonteCarlo" in result.output
    info = run("info", out / "cuau.nn")
    assert info.exit_code == 0
    assert json.loads(info.output)["n_sites"] == 16


def test_bad_arguments_of_the_demo(tmp_path):
    """A budget that is not positive and a folder that cannot be made are named."""
    assert "positive" in run("demo", "--seconds", "-1", "--out", tmp_path / "x").output
    (tmp_path / "file").write_text("")
    result = run("demo", "--short", "--out", tmp_path / "file" / "x")
    assert result.exit_code != 0 and "--out" in result.output


def test_info_on_a_foreign_file(tmp_path):
    """A file that is no model is refused with its name; a model says what it is for."""
    path = tmp_path / "m.nn"
    path.write_text("hello")
    result = run("info", path)
    assert result.exit_code == 1 and "m.nn" in result.output
    lattice, _, box = binary()
    net = LatticeConvolution(lattice, box, channels=16, blocks=1)
    TrainedModel(AnyOrderARM(net), box, {"species": ["Au", "Cu"]}).save(path)
    shown = json.loads(run("info", path).output)
    assert shown["species"] == ["Au", "Cu"]
    assert (shown["model"], shown["networks"]) == ("AnyOrderARM", ["LatticeConvolution"])


def test_info_shows_the_report_of_a_surrogate(tmp_path):
    """A model that was trained on a surrogate says how good that is, not what it is."""
    lattice, _, box = binary()
    net = LatticeConvolution(lattice, box, channels=16, blocks=1)
    report = {"n_structures": 44, "true_calls": 44}
    surrogate = {"energy": {"coefficients": [0.5] * 1000}, "report": report}
    path = tmp_path / "m.nn"
    TrainedModel(AnyOrderARM(net), box, {"surrogate": surrogate}).save(path)
    assert json.loads(run("info", path).output)["surrogate"] == report
