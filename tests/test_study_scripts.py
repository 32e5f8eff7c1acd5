"""The study scripts in their short mode, and the expansions they stand on."""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from clease_nn import phases
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.hosts import clease as host
from clease_nn.hosts.clease import examples
from clease_nn.thermodynamics import DensityOfStates
from clease_nn.warnings import CleaseNNWarning

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def scripts():
    """The folder of the examples can be imported from."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        yield
    for name in ("phase_study", "agpd_miscibility_gap", "cuau_ordering", "fit_emt_expansion"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def studied(scripts, tmp_path_factory):
    """The folder that the short study of the miscibility gap has filled."""
    from agpd_miscibility_gap import main

    folder = tmp_path_factory.mktemp("study")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CleaseNNWarning)
        main(["--short", "--out", str(folder)])
    return folder


def test_short_study_of_the_miscibility_gap(studied):
    """From one call to figures and a JSON file; the gap of 16 sites is where enumeration has it."""
    for name in ("agpd_phase_diagram.png", "agpd_thermodynamics.png", "agpd.nn"):
        assert (studied / name).stat().st_size > 10_000
    result = json.loads((studied / "agpd.json").read_text())
    diagram = phases.PhaseDiagram.from_dict(result["diagram"])
    assert diagram.phases == ("Ag-poor", "Ag-rich")
    [boundary] = diagram.boundaries
    cell = examples.agpd_emt_atoms((2, 2, 4))
    states = SemiGrandCanonical(host.energy(cell)).enumerate(host.lattice(cell))
    exact = DensityOfStates.exact(states)
    share = diagram.line.composition(exact)
    labels = phases.Phases.given(exact, (share > 0.56).astype(int), diagram.phases)
    k = int(boundary.temperature.value.argmin())
    expected = phases.coexistence(
        exact, labels, diagram.phases, diagram.line, float(boundary.temperature.value[k])
    )
    assert abs(boundary.mu.value[k] - expected.mu.value) < 4.5 * boundary.mu.error[k]
    z = (boundary.composition.value[k] - expected.composition.value) / boundary.composition.error[k]
    assert np.abs(z).max() < 4.5
    assert [row["route"] for row in result["cost"]] == ["neural sampler", "CLEASE, both directions"]


@pytest.mark.filterwarnings("ignore::clease_nn.warnings.CleaseNNWarning")
def test_a_study_goes_on_with_a_model(studied, tmp_path, monkeypatch, capsys):
    """A model in a file is not trained again; an expansion in a file is studied likewise."""
    import phase_study

    monkeypatch.setattr(phase_study.NeuralSGCSampler, "fit", None)
    (tmp_path / "own.json").write_text(json.dumps(examples.agpd_emt_data()))
    options = ["--short", "--expansion", str(tmp_path / "own.json"), "--temps", "500", "800"]
    options += ["--c1", "-0.01", "0.02", "--out", str(tmp_path), "--samples", "50"]
    phase_study.main([*options, "--model", str(studied / "agpd.nn")])
    assert "neural sampler" in capsys.readouterr().out
    assert (tmp_path / "own_phase_diagram.png").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::clease_nn.warnings.CleaseNNWarning")
def test_short_study_of_ordering(scripts, tmp_path):
    """The ordered phase is among those found, and its line has both flanks."""
    from cuau_ordering import main

    diagram = phases.PhaseDiagram.from_dict(main(["--short", "--out", str(tmp_path)])["diagram"])
    assert "AuCu3" in diagram.phases
    flanks = [b for b in diagram.boundaries if b.kind == "heat-capacity maximum"]
    assert len(flanks) == 2
    assert flanks[0].phases == flanks[1].phases[::-1]


def test_silver_and_palladium_demix():
    """The pure crystals are the only ground states, and all mixtures of 16 sites lie above."""
    atoms = examples.agpd_emt_atoms((2, 2, 4))
    states = SemiGrandCanonical(host.energy(atoms)).enumerate(host.lattice(atoms))
    hull = phases.formation_hull(states)
    assert [v.degeneracy for v in hull.vertices] == [1, 1]
    mixed = hull.formation_energy[(hull.counts > 0).all(1)]
    assert mixed.min() > 3e-3  # eV per site
    assert mixed.max() < 40e-3


def test_fit_refuses_one_element_twice(scripts, capsys):
    """Two different metals are needed, and a positive scale of the weights."""
    from fit_emt_expansion import main

    with pytest.raises(SystemExit):
        main(["--elements", "Ag", "Ag"])
    assert "two different" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--elements", "Ag", "Pd", "--hull", "0"])
    assert "--hull must be positive" in capsys.readouterr().err
