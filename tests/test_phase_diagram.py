"""Phase diagrams: all lines, points of three phases, and what they are written as."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase.units import kB
from phase_toys import LINE, exact, sampled

from clease_nn.cost import Cost
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import Lattice
from clease_nn.phases import (
    Boundary,
    ChemicalPotentialLine,
    PhaseDiagram,
    Phases,
    identify,
    phase_diagram,
    trace,
)
from clease_nn.thermodynamics import DensityOfStates

NAMES = ("a", "b", "c")
AMOUNT = np.array([2.0, 8.0, 14.0])


def three_levels(energy, log_g, noise=0.0, replicas=100):
    """Phases a, b, c of one energy and one composition each: ln Z = g - (E - t n)/kT."""
    counts = np.stack([16 - AMOUNT, AMOUNT], 1)
    # many states a phase, so that it is supported
    repeat = 200
    rng = np.random.default_rng(0)
    factors = None
    if noise:
        shift = noise * rng.normal(size=(3, replicas))
        factors = np.exp(np.repeat(shift, repeat, 0)).astype(np.float32)
    dos = DensityOfStates(
        exact("ideal").lattice,
        np.repeat(np.asarray(energy, float), repeat),
        np.repeat(counts, repeat, 0),
        np.repeat(np.asarray(log_g, float), repeat) - np.log(repeat),
        replicas=factors,
        provenance={"energy_evaluations": 600},
    )
    return dos, Phases.given(dos, np.repeat(np.arange(3), repeat), NAMES)


def meeting(energy, log_g):
    """Where the three have one ln Z: linear in kT and t."""
    e, g = np.asarray(energy, float), np.asarray(log_g, float)
    left = np.column_stack([g[1:] - g[0], AMOUNT[1:] - AMOUNT[0]])
    kT, t = np.linalg.solve(left, e[1:] - e[0])
    return kT / kB, t


@pytest.mark.parametrize(
    ("energy", "log_g", "kind"),
    [
        ([0.0, 0.12, 0.05], [0.0, 4.0, 1.0], "eutectoid"),
        ([0.0, -0.05, 0.05], [0.0, -1.0, 1.0], "peritectoid"),
    ],
)
def test_three_phases_meet_where_their_grand_potentials_do(energy, log_g, kind):
    """The middle phase of a eutectoid is stable above it, that of a peritectoid below."""
    dos, phases = three_levels(energy, log_g)
    T, t = meeting(energy, log_g)
    diagram = phase_diagram(dos, phases, LINE, np.arange(100, 1200, 100.0))
    [point] = diagram.points
    assert point.phases == NAMES and point.kind == kind
    assert point.temperature.value == pytest.approx(T, abs=1e-4)
    assert point.mu.value == pytest.approx(t, abs=1e-8)
    assert point.composition.value == pytest.approx(AMOUNT / 16)
    assert f"{kind}, a + b + c" in str(diagram)
    # every line reaches the point, and no stable part goes beyond it
    spans = {b.phases: b.temperature.value[b.stable] for b in diagram.boundaries}
    assert set(spans) == {("a", "b"), ("b", "c"), ("a", "c")}
    for pair, found in spans.items():
        end = found.max() if (pair == ("a", "c")) == (kind == "eutectoid") else found.min()
        assert end == pytest.approx(T, abs=1e-4)


def test_errors_of_a_three_phase_point():
    """The spread over the replicas is that of the points which the replicas would have."""
    energy, log_g, noise = [0.0, 0.12, 0.05], [0.0, 4.0, 1.0], 0.02
    dos, phases = three_levels(energy, log_g, noise)
    [point] = phase_diagram(dos, phases, LINE, np.arange(100, 1200, 100.0)).points
    shifts = np.log(dos.replicas[::200]).astype(float)
    own = np.array([meeting(energy, np.array(log_g) + s) for s in shifts.T])
    assert point.temperature.error == pytest.approx(own[:, 0].std(ddof=1), rel=0.05)
    assert point.mu.error == pytest.approx(own[:, 1].std(ddof=1), rel=0.05)
    assert point.kind == "eutectoid"


def test_a_miscibility_gap_is_one_line():
    """An Ising ferromagnet: one line at zero, nothing else, nothing open."""
    dos = exact("gap")
    temperatures = np.arange(200, 901, 100)
    diagram = phase_diagram(dos, identify(dos, LINE, temperatures), LINE, temperatures)
    [line] = diagram.boundaries
    assert line.kind == "first-order" and line.phases == ("Au-poor", "Au-rich")
    assert "no two phases" not in str(diagram)
    assert np.abs(line.mu.value).max() < 1e-10
    assert (np.diff(line.composition.value[:, 0]) > 0).all()
    assert not diagram.points and not diagram.undetermined
    assert diagram.cost == Cost(energy_evaluations=65536)


def test_a_diagram_without_boundary_says_so():
    """One phase has no boundary; the text does not merely end."""
    dos = exact("ideal")
    diagram = phase_diagram(dos, identify(dos, LINE, [300, 600]), LINE, [300, 600])
    assert not diagram.boundaries and "no two phases coexist" in str(diagram)


def test_a_dome_is_symmetric():
    """An antiferromagnet: both sides of the ordered phase mirror one another."""
    dos = exact("order")
    temperatures = np.arange(150, 351, 50)
    diagram = phase_diagram(dos, identify(dos, LINE, [200, 400]), LINE, temperatures)
    lines = {b.phases: b for b in diagram.boundaries if b.kind == "first-order"}
    left, right = lines["disordered", "CuAu"], lines["CuAu", "disordered"]
    assert left.mu.value == pytest.approx(-right.mu.value, abs=1e-9)
    assert left.slope.value == pytest.approx(-right.slope.value, abs=1e-9)
    assert left.stable.all() and right.stable.all()


def test_continuous_order_is_a_maximum_of_the_heat_capacity():
    """Where the antiferromagnet orders without a valley, its heat-capacity maxima are the line."""
    dos = exact("order")
    temperatures = np.arange(200, 801, 100)
    phases = identify(dos, LINE, [300])
    phases = replace(phases, labels=(phases.order[:, 0] > 0.5).astype(int))
    diagram = phase_diagram(dos, phases, LINE, temperatures)
    lines = [b for b in diagram.boundaries if b.kind == "heat-capacity maximum"]
    assert {b.phases for b in lines} == {("disordered", "CuAu"), ("CuAu", "disordered")}
    left, right = sorted(lines, key=lambda b: b.mu.value[0])
    assert left.temperature.value == pytest.approx(right.temperature.value[::-1], rel=1e-4)
    assert (left.temperature.value < 570).all()  # without a field it is at 566 K
    assert left.slope is None
    PhaseDiagram.from_dict(diagram.to_dict())
    assert len(diagram.to_rows()) == sum(len(b.stable) for b in diagram.boundaries)


def test_maxima_far_from_equal_grand_potentials_are_left_out():
    """Where little order counts as a phase, equal grand potentials are far above the maximum."""
    dos = exact("order")
    phases = identify(dos, LINE, [300])
    phases = replace(phases, labels=(phases.order[:, 0] > 0.3).astype(int))
    diagram = phase_diagram(dos, phases, LINE, np.arange(300, 801, 100))
    assert all(b.kind == "first-order" for b in diagram.boundaries)
    assert all("no maximum of the heat capacity there" in text for text in diagram.undetermined)
    assert len(diagram.undetermined) == 2


@pytest.fixture(scope="module")
def ternary():
    """All states of 3 x 3 sites of which three may carry Ag; like neighbours attract."""
    allowed = np.ones((9, 3), bool)
    allowed[3:, 2] = False
    square = Lattice.square(3, species=("Cu", "Au", "Ag"))
    lattice = Lattice(square.template, np.arange(9), square.species, allowed, np.zeros(9, int))

    def energy(lattice, occupations):
        x = torch.as_tensor(occupations).reshape(-1, 3, 3)
        return -0.04 * sum((x == x.roll(1, k)).double().sum((1, 2)) for k in (1, 2))

    return lattice, SemiGrandCanonical(energy).enumerate(lattice)


def test_a_ternary_along_a_line(ternary):
    """With Ag at a fixed chemical potential Cu and Au coexist where symmetry says: at zero.

    The compositions are those of the phases' own states; without Ag the line is the binary's.
    """
    lattice, states = ternary
    dos = DensityOfStates.exact(states)
    temperatures = [200.0, 300.0, 400.0]
    found = {}
    for silver in (-0.02, -9.0):
        line = ChemicalPotentialLine.exchange(lattice, "Au", "Cu", origin=[0.0, 0.0, silver])
        # mu_Au rises and mu_Cu falls: what Ag replaces does not matter to the symmetry
        line = ChemicalPotentialLine("Au", [-0.5, 0.5, 0.0], line.origin, line.label)
        phases = identify(dos, line, temperatures)
        assert phases.names == ("Au-poor", "Au-rich")
        [found[silver]] = phase_diagram(dos, phases, line, temperatures).boundaries
        b = found[silver]
        assert np.abs(b.mu.value).max() < 1e-9 and b.stable.all()
        at = line.at(b.temperature.value, b.mu.value)
        for k, name in enumerate(phases.names):
            own = phases.restricted(dos, name).averages(at)
            x = [a.composition.value[1] for a in own]
            assert b.composition.value[:, k] == pytest.approx(x, abs=1e-9)
    with_silver, without = found[-0.02], found[-9.0]
    # Ag takes places of Au in the rich phase
    assert with_silver.composition.value[0, 1] < without.composition.value[0, 1]
    binary = dos.restricted(dos.counts[:, 2] == 0)
    line = ChemicalPotentialLine("Au", [-0.5, 0.5, 0.0], np.zeros(3), "")
    [b] = phase_diagram(binary, identify(binary, line, temperatures), line, temperatures).boundaries
    assert b.composition.value == pytest.approx(without.composition.value, abs=1e-6)


def test_lines_from_samples_cover_the_exact_ones():
    """A whole diagram from draws: every point of the line within its error of the exact one."""
    ts = [-0.055, -0.035, -0.025, -0.015, 0.0]
    dos = sampled("asymmetric", [350.0, 450.0, 550.0], ts, 400, 7)
    temperatures = [350.0, 400.0, 450.0, 500.0, 550.0]
    n = exact("asymmetric").counts[:, 1]
    cut = identify(dos, LINE).labels  # its cut, taken to the exact states
    edge = dos.counts[cut == 0, 1].max(), dos.counts[cut == 1, 1].min()
    labels = np.select([n <= edge[0], n >= edge[1]], [0, 1], -1)
    true = Phases.given(exact("asymmetric"), labels, ("Au-poor", "Au-rich"), same_order=True)
    [found] = phase_diagram(dos, identify(dos, LINE), LINE, temperatures).boundaries
    [reference] = phase_diagram(exact("asymmetric"), true, LINE, temperatures).boundaries
    keep = np.isin(found.temperature.value, temperatures)
    same = np.isin(reference.temperature.value, found.temperature.value[keep])
    assert keep.sum() >= 4
    assert np.abs(found.mu[keep].z(reference.mu.value[same])).max() < 4.5
    assert np.abs(found.composition[keep].z(reference.composition.value[same])).max() < 4.5


def test_what_is_open_is_listed():
    """A phase never sampled, and a pair that the data do not decide."""
    dos = exact("gap")
    n = dos.counts[:, 1]
    labels = np.select([n < 8, n > 8], [0, 1], -1)
    phases = Phases.given(dos, labels, ["poor", "rich", "ordered"])
    diagram = phase_diagram(dos, phases, LINE, [300.0])
    assert diagram.undetermined == ("ordered was never sampled",)
    few = sampled("gap", [400.0], [-0.01, 0.0, 0.01], 400, 3)
    n = few.counts[:, 1]
    few = few.restricted((n < 8) | (np.cumsum(n > 8) <= 20))
    phases = Phases.given(few, (few.counts[:, 1] > 8).astype(int), ["poor", "rich"])
    diagram = phase_diagram(few, phases, LINE, [400.0])
    assert not diagram.boundaries
    assert "effective states of rich" in diagram.undetermined[0]
    assert "not determined: poor + rich" in str(diagram)


# ------------------------------------------------------------------ written and read
def diagram():
    """A small one with everything in it."""
    dos, phases = three_levels([0.0, 0.12, 0.05], [0.0, 4.0, 1.0], noise=0.02)
    return phase_diagram(dos, phases, LINE, np.arange(100, 1200, 200.0))


def test_a_diagram_survives_its_file(tmp_path):
    """Every number comes back; NaN are kept, and the file is plain JSON."""
    first = diagram()
    lines = list(first.boundaries)
    lines[0] = replace(lines[0], slope=None)
    lines[1].mu.error[0] = np.nan
    first = replace(first, boundaries=tuple(lines), undetermined=("a question",))
    first.save(tmp_path / "diagram.json")
    again = PhaseDiagram.load(tmp_path / "diagram.json")
    assert again.to_dict() == first.to_dict() and str(again) == str(first)
    assert again.boundaries[0].slope is None
    assert np.isnan(again.boundaries[1].mu.error[0])
    assert again.boundaries[2].stable.dtype == bool
    assert again.cost == first.cost
    assert again.points[0].temperature.z(first.points[0].temperature.value) == 0
    json.loads((tmp_path / "diagram.json").read_text(), parse_constant=pytest.fail)


def test_a_boundary_remembers_what_it_cost():
    """Alone it has the provenance of its data, within a diagram the diagram has; both are saved."""
    dos, phases = three_levels([0.0, 0.12, 0.05], [0.0, 4.0, 1.0])
    alone = trace(dos, phases, NAMES[:2], LINE, [800.0, 900.0])
    assert alone.cost == Cost(energy_evaluations=600) == Boundary.from_dict(alone.to_dict()).cost
    whole = phase_diagram(dos, phases, LINE, [800.0, 900.0])
    assert whole.cost == alone.cost and not any(b.provenance for b in whole.boundaries)


def test_boundaries_of_unequal_lengths_are_refused():
    """One number for each point."""
    b = diagram().boundaries[0]
    with pytest.raises(ValueError, match="composition of the boundary"):
        replace(b, composition=b.mu)
    with pytest.raises(ValueError, match="two phases"):
        replace(b, phases=NAMES)


def test_rows_are_flat_and_json_ready():
    """One for every point of a line and every three-phase point, all with the same keys."""
    d = diagram()
    rows = d.to_rows()
    assert len(rows) == sum(len(b.stable) for b in d.boundaries) + len(d.points)
    assert len({tuple(row) for row in rows}) == 1
    json.dumps(rows, allow_nan=False)
    assert rows[-1]["kind"] == "eutectoid" and rows[-1]["phase_3"] == "c"
    assert rows[0]["x_3"] is None and rows[0]["slope"] is not None


def test_files_of_other_things_are_refused(tmp_path):
    """No JSON, no diagram, no folder: each in words."""
    path = tmp_path / "x.json"
    path.write_text("no json")
    with pytest.raises(ValueError, match="not JSON"):
        PhaseDiagram.load(path)
    diagram().save(path)
    text = path.read_text()
    path.write_text(text[: len(text) // 2])
    with pytest.raises(ValueError, match=r"x\.json is not JSON, or is cut off"):
        PhaseDiagram.load(path)
    path.write_bytes(b"\x80\x02\xff" * 9)
    with pytest.raises(ValueError, match="not JSON"):
        PhaseDiagram.load(path)
    for other in ({}, [], None, 3, "text", {"line": []}):
        path.write_text(json.dumps(other))
        with pytest.raises(ValueError, match=r"x\.json: this is no phase diagram"):
            PhaseDiagram.load(path)
    good = json.loads(text)
    good["boundaries"][0]["mu"]["value"].pop()
    path.write_text(json.dumps(good))
    with pytest.raises(ValueError, match=r"no phase diagram: mu of the boundary .* points"):
        PhaseDiagram.load(path)
    with pytest.raises(OSError, match="cannot write"):
        diagram().save(tmp_path / "nowhere" / "x.json")


def test_bad_input_is_refused():
    """Labels of other states, no temperatures."""
    dos, phases = three_levels([0.0, 0.12, 0.05], [0.0, 4.0, 1.0])
    with pytest.raises(ValueError, match="600 labels for 400 states"):
        phase_diagram(dos.restricted(phases.labels > 0), phases, LINE, [300.0])
    with pytest.raises(ValueError, match="positive and finite"):
        phase_diagram(dos, phases, LINE, [])
