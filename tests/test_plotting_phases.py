"""Laws of the phase diagrams' figures: lines, bands, tie lines and names are the diagram's."""

from dataclasses import replace
from itertools import pairwise

import matplotlib
import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Polygon

from clease_nn import plotting
from clease_nn.lattice import Lattice
from clease_nn.phases import Boundary, ChemicalPotentialLine, PhaseDiagram, ThreePhasePoint
from clease_nn.statistics import Estimate

matplotlib.use("Agg")

LINE = ChemicalPotentialLine.exchange(Lattice.square(2), "Au", "Cu")
T = np.linspace(300.0, 600.0, 7)


def estimate(value, error=0.0):
    value = np.asarray(value, dtype=float)
    return Estimate(value, np.broadcast_to(error, value.shape).astype(float))


def gap(stable=None, phases=("Cu-rich", "Au-rich"), kind="first-order", composition=None):
    """A symmetric miscibility gap that closes upwards."""
    left = 0.02 + 0.4 * ((T - 300) / 300) ** 2
    x = np.stack([left, 1 - left], 1) if composition is None else composition
    stable = np.ones(len(T), bool) if stable is None else stable
    mu = estimate(0.01 + 1e-4 * (T - 300), 0.002)
    return Boundary(kind, phases, estimate(T), mu, estimate(x, 0.01), None, stable)


def diagram(*boundaries, points=(), phases=("Cu-rich", "Au-rich"), undetermined=()):
    return PhaseDiagram(LINE, phases, boundaries, points, undetermined)


@pytest.fixture
def ax():
    """Fresh axes."""
    return Figure(figsize=(6, 4.5)).add_subplot()


def curves(ax):
    """Lines with a marker that are not error bars."""
    return [line for line in ax.lines if line.get_marker() not in ("None", "", "|", "_")]


def test_both_ends_of_the_tie_lines_are_drawn(ax):
    """Against composition a line for each phase, its data the diagram's own."""
    b = gap()
    assert plotting.phase_diagram(ax, diagram(b)) is ax
    left, right = curves(ax)
    np.testing.assert_array_equal(left.get_xdata(), b.composition.value[:, 0])
    np.testing.assert_array_equal(right.get_xdata(), b.composition.value[:, 1])
    np.testing.assert_array_equal(left.get_ydata(), T)
    assert ax.get_xlabel() == "site fraction of Au"
    assert ax.get_ylabel() == "temperature (K)"
    assert ax.get_xlim() == (0, 1)


def test_against_mu_there_is_one_line(ax):
    """Two phases share their chemical potential; its axis names it with its unit."""
    b = gap()
    plotting.phase_diagram(ax, diagram(b), against="mu")
    [line] = curves(ax)
    np.testing.assert_array_equal(line.get_xdata(), b.mu.value)
    assert ax.get_xlabel() == r"$\mu_\mathrm{Au}$ - $\mu_\mathrm{Cu}$ (eV)"


def test_numbers_of_mu_do_not_touch(ax):
    """Chemical potentials of few meV are written with room between them."""
    b = gap()
    narrow = replace(b, mu=estimate(-2e-3 + 0.03 * (b.mu.value - 0.01)))
    plotting.phase_diagram(ax, diagram(narrow), against="mu")
    ax.figure.draw_without_rendering()
    low, high = ax.get_xlim()
    ticks = ax.xaxis.get_major_ticks()
    boxes = [t.label1.get_window_extent() for t in ticks if low <= t.get_loc() <= high]
    assert len(boxes) > 2
    assert all(a.x1 < b.x0 for a, b in pairwise(boxes))


def bands(ax):
    """Outlines of the bands as paths in data coordinates."""
    return [p.get_path() for p in ax.patches if isinstance(p, Polygon)]


def test_bands_reach_two_errors(ax):
    """Along a straight line points within two errors lie in the band, others do not."""
    b = gap()
    plotting.phase_diagram(ax, diagram(b), against="mu")
    [band] = bands(ax)
    x, e = b.mu.value[1:-1], b.mu.error[1:-1]
    for side in (-1, 1):
        assert band.contains_points(np.column_stack([x + side * 1.98 * e, T[1:-1]])).all()
        assert not band.contains_points(np.column_stack([x + side * 2.02 * e, T[1:-1]])).any()


def test_bands_of_both_compositions(ax):
    """Each end of the tie lines has a band of its own width."""
    b = gap(composition=np.stack([0 * T + 0.2, 0 * T + 0.7], 1))
    b = replace(b, composition=estimate(b.composition.value, [0.01, 0.03]))
    plotting.phase_diagram(ax, diagram(b))
    widths = [np.ptp(band.vertices[:, 0]) for band in bands(ax)]
    np.testing.assert_allclose(widths, [0.04, 0.12])


def test_a_level_line_has_no_spikes(ax):
    """Where mu(T) runs level its error diverges, but not the band: T is known there."""
    mu = np.linspace(-0.05, 0.05, 41)
    t = 600 - 4e4 * mu**2
    slope = np.maximum(8e4 * np.abs(mu), 100.0)
    x = np.stack([0.5 + mu] * 2, 1)
    b = Boundary(
        "first-order", ("A1", "L12"), estimate(t), estimate(mu, 3.0 / slope), estimate(x), None,
        np.ones(41, bool),
    )  # fmt: skip
    plotting.phase_diagram(ax, diagram(b, phases=("A1", "L12")), against="mu")
    [band] = bands(ax)
    away = np.abs(mu[1:-1]) > 0.01  # on the top itself the error is no longer linear
    inside, outside = (np.column_stack([mu, t + d])[1:-1] for d in (4.5, 10.0))
    assert band.contains_points(inside[away]).all()
    assert not band.contains_points(outside).any()
    assert np.abs(band.vertices[:, 0]).max() < 0.06


def test_temperatures_with_errors_have_bands_along_temperature(ax):
    """Maxima found at a chosen mu are dashed, with a band above and below."""
    mu = np.linspace(-0.05, 0.05, 5)
    t = 500 - 2e4 * mu**2
    x = np.stack([0.5 + 4 * mu] * 2, 1)
    maximum = Boundary(
        "heat-capacity maximum", ("Cu3Au", "A1"), estimate(t, 7.0), estimate(mu), estimate(x),
        None, np.ones(5, bool),
    )  # fmt: skip
    plotting.phase_diagram(ax, diagram(maximum, phases=("A1", "Cu3Au")))
    [line] = curves(ax)
    assert line.is_dashed()
    [band] = bands(ax)
    v = band.vertices
    assert {np.round(t[2] - 14, 6), np.round(t[2] + 14, 6)} <= set(np.round(v[:, 1], 6))


def test_tie_lines_join_the_two_compositions(ax):
    """Thin horizontal lines from one phase to the other at temperatures of the boundary."""
    b = gap()
    plotting.phase_diagram(ax, diagram(b))
    [ties] = [
        c for c in ax.collections if isinstance(c, LineCollection) and len(c.get_segments()) > 2
    ]
    ends = {t: x for t, x in zip(T, b.composition.value.tolist(), strict=True)}
    for (x0, t0), (x1, t1) in ties.get_segments():
        assert t0 == t1
        assert [x0, x1] == ends[t0]


def test_parts_that_are_not_stable_are_thin_and_without_band(ax):
    """Solid lines hold the stable points only, dotted ones the others and one neighbour."""
    stable = T < 450
    b = gap(stable)
    plotting.phase_diagram(ax, diagram(b), against="mu")
    [line] = curves(ax)
    np.testing.assert_array_equal(line.get_ydata(), T[stable])
    [dotted] = [x for x in ax.lines if x.get_linestyle() == ":"]
    np.testing.assert_array_equal(dotted.get_ydata(), T[stable.sum() - 1 :])
    assert "not stable" in [t.get_text() for t in ax.get_legend().get_texts()]


def test_points_that_are_not_determined_are_left_out(ax):
    """NaN splits a line; what is left keeps its place."""
    x = gap().composition.value.copy()
    x[3] = np.nan
    b = gap(composition=x)
    plotting.phase_diagram(ax, diagram(b))
    drawn = curves(ax)
    assert [len(line.get_xdata()) for line in drawn] == [3, 3, 3, 3]
    assert not any(np.isnan(line.get_xdata()).any() for line in drawn)


def test_three_phases_meet_on_a_horizontal_line(ax):
    """From the outer compositions at one temperature; the boundaries lead up to it."""
    point = ThreePhasePoint(
        ("Cu-rich", "Au-rich", "L"), estimate(620.0, 5.0), estimate(0.042, 0.001),
        estimate([0.44, 0.56, 0.7], 0.01), "eutectoid",
    )  # fmt: skip
    b = gap()
    d = diagram(b, points=(point,), phases=("Cu-rich", "Au-rich", "L"))
    plotting.phase_diagram(ax, d)
    flat = [x for x in ax.lines if np.array_equal(x.get_ydata(), [620, 620])]
    assert [x.get_xdata().tolist() for x in flat] == [[0.44, 0.7]]
    left, right = curves(ax)[:2]
    assert (left.get_xdata()[-1], left.get_ydata()[-1]) == (0.44, 620)
    assert (right.get_xdata()[-1], right.get_ydata()[-1]) == (0.56, 620)


def test_a_distant_point_of_the_same_phases_is_not_joined(ax):
    """A boundary is not drawn to a point far from its end in mu."""
    point = ThreePhasePoint(
        ("Cu-rich", "Au-rich", "L"), estimate(620.0, 5.0), estimate(0.5, 0.001),
        estimate([0.44, 0.56, 0.7], 0.01),
    )  # fmt: skip
    plotting.phase_diagram(ax, diagram(gap(), points=(point,), phases=("Cu-rich", "Au-rich", "L")))
    assert curves(ax)[0].get_ydata()[-1] == 600


@pytest.mark.parametrize("against", ["composition", "mu"])
def test_names_stand_in_their_fields(ax, against):
    """Every phase is named once, on its own side of the boundary."""
    b = gap()
    plotting.phase_diagram(ax, diagram(b), against=against, names={"Cu-rich": "Cu"})
    at = {t.get_text(): t.get_position() for t in ax.texts}
    assert set(at) == {"Cu", "Au-rich"}
    columns = b.composition.value.T if against == "composition" else (b.mu.value, b.mu.value)
    for name, sign, x in zip(("Cu", "Au-rich"), (-1, 1), columns, strict=True):
        position, temperature = at[name]
        assert sign * (position - np.interp(temperature, T, x)) > 0


def test_a_name_too_wide_for_its_field_stands_upright(ax):
    """A line compound is named along its line."""
    narrow = (
        gap(phases=("A", "B"), composition=np.stack([0 * T + 0.02, 0 * T + 0.48], 1)),
        gap(phases=("B", "A"), composition=np.stack([0 * T + 0.53, 0 * T + 0.98], 1)),
    )
    plotting.phase_diagram(
        ax, diagram(*narrow, phases=("A", "B")), names={"A": "", "B": "CuAu-L10"}
    )
    [text] = ax.texts
    assert text.get_rotation() == 90
    assert 0.47 < text.get_position()[0] < 0.54


def test_an_empty_diagram_says_why(ax):
    """No boundary: the axes carry the reasons."""
    plotting.phase_diagram(ax, diagram(undetermined=("CuAu was never sampled below 400 K",)))
    assert "never sampled below 400 K" in ax.texts[0].get_text()
    nothing = gap(composition=np.full((7, 2), np.nan))
    other = Figure().add_subplot()
    plotting.phase_diagram(other, diagram(nothing))
    assert "no boundary is determined" in other.texts[0].get_text()


def test_points_of_another_calculation_lie_on_top(ax):
    """Open symbols with error bars; each name joins the legend, a NaN end leaves the other."""
    plotting.phase_diagram(ax, diagram(gap()))
    x = np.array([[0.1, 0.9], [0.2, np.nan]])
    plotting.boundary_points(ax, estimate([400, 500], 10), estimate(x, 0.02), label="CLEASE")
    low, high = ax.containers[-2:]
    np.testing.assert_array_equal(low.lines[0].get_xdata(), [0.1, 0.2])
    assert low.lines[0].get_markerfacecolor() == "white"
    assert high.has_xerr and high.has_yerr
    texts = [t.get_text() for t in ax.get_legend().get_texts()]
    assert texts == ["first-order", "two phases", "CLEASE"]
    more = estimate([[0.3, 0.7]], 0.02)
    plotting.boundary_points(ax, estimate([550]), more, label="_")
    plotting.boundary_points(ax, estimate([560]), more, label="icet", marker="v")
    texts = [t.get_text() for t in ax.get_legend().get_texts()]
    assert texts == ["first-order", "two phases", "CLEASE", "icet"]


def test_bad_input_is_refused(ax):
    """What is wrong is named before anything is drawn."""
    with pytest.raises(ValueError, match="'composition' or 'mu', got 'x'"):
        plotting.phase_diagram(ax, diagram(gap()), against="x")
    with pytest.raises(ValueError, match=r"names of \['L10'\]"):
        plotting.phase_diagram(ax, diagram(gap()), names={"L10": "CuAu"})
    with pytest.raises(ValueError, match=r"composition of the boundary .* shape \(7, 2\)"):
        plotting.phase_diagram(ax, diagram(gap(composition=np.zeros((3, 2)))))
    with pytest.raises(ValueError, match=r"stable of the boundary .* \(7,\)"):
        plotting.phase_diagram(ax, diagram(gap(stable=np.ones(3, bool))))
    with pytest.raises(ValueError, match="all 2 points of 'MC' are NaN"):
        plotting.boundary_points(ax, estimate([1, 2]), estimate([np.nan, np.nan]), label="MC")
    with pytest.raises(ValueError, match=r"position must have shape \(2,\)"):
        plotting.boundary_points(ax, estimate([1, 2]), estimate([1, 2, 3]), label="MC")
    assert not ax.lines


def test_recipes_are_symbols_with_their_own_name(ax):
    """Kinds that need not be lines are points with error bars, without shading or bands."""
    b = gap(kind="common tangent", phases=("", ""))
    plotting.phase_diagram(ax, diagram(gap(), b))
    left, right = ax.containers
    np.testing.assert_array_equal(left.lines[0].get_xdata(), b.composition.value[:, 0])
    np.testing.assert_array_equal(right.lines[0].get_xdata(), b.composition.value[:, 1])
    assert left.lines[0].get_linestyle() == "None"
    texts = [t.get_text() for t in ax.get_legend().get_texts()]
    assert texts == ["first-order", "common tangent", "two phases"]
    assert {t.get_text() for t in ax.texts} == {"Cu-rich", "Au-rich"}


@pytest.mark.parametrize("against", ["composition", "mu"])
def test_an_ordered_phase_is_named_between_its_neighbours(ax, against):
    """Two boundaries, three fields: the name in the middle lies between the two lines."""
    t = np.linspace(300, 500, 9)
    low = np.stack([0.05 + 0 * t, 0.35 - 0.0002 * (t - 300)], 1)
    first = Boundary(
        "first-order", ("A1", "L10"), estimate(t), estimate(0 * t - 0.05, 0.001),
        estimate(low, 0.005), None, np.ones(9, bool),
    )  # fmt: skip
    second = Boundary(
        "first-order", ("L10", "A1"), estimate(t), estimate(0 * t + 0.05, 0.001),
        estimate(1 - low[:, ::-1], 0.005), None, np.ones(9, bool),
    )  # fmt: skip
    plotting.phase_diagram(ax, diagram(first, second, phases=("A1", "L10")), against=against)
    at = {text.get_text(): text.get_position() for text in ax.texts}
    left, right = (0.35, 0.65) if against == "composition" else (-0.05, 0.05)
    assert left < at["L10"][0] < right
    position, temperature = at["A1"]
    assert temperature > 500 or not left < position < right
