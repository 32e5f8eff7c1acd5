"""Laws of the figures of result objects: maps, free energies, hulls, structures and costs."""

from dataclasses import replace

import matplotlib
import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.units import kB
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from toys import SYSTEMS

from clease_nn import plotting
from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.cost import Cost, Route, cost_table
from clease_nn.errors import NotDeterminedError
from clease_nn.phases import Boundary, ChemicalPotentialLine, formation_hull
from clease_nn.statistics import Estimate
from clease_nn.thermodynamics import Averages, DensityOfStates, canonical, compare

matplotlib.use("Agg")

T = np.array([600.0, 900.0, 1500.0])
MU = np.linspace(-0.1, 0.1, 5)


@pytest.fixture(scope="module")
def states():
    """All configurations of 8 fcc sites, two species."""
    lattice, ensemble, _ = SYSTEMS["binary"]()
    return ensemble.enumerate(lattice)


@pytest.fixture(scope="module")
def fixed(states):
    """Exact canonical averages, with deviations as if they had been sampled."""
    c = canonical(DensityOfStates.exact(states), T)
    deviations = np.random.default_rng(0).normal(0, 0.05, (*c.log_z.shape, 20))
    return replace(c, log_z_replicas=deviations, energy_replicas=0 * deviations)


@pytest.fixture(scope="module")
def line(states):
    return ChemicalPotentialLine.exchange(states.lattice, "Au", "Cu")


@pytest.fixture(scope="module")
def averages(states, line):
    """Exact, on the full grid."""
    at = line.at(np.repeat(T, len(MU)), np.tile(MU, len(T)))
    return DensityOfStates.exact(states).averages(at)


@pytest.fixture
def ax():
    """Fresh axes."""
    return Figure(figsize=(6, 4.5), layout="constrained").add_subplot()


def estimate(value, error=0.0):
    value = np.asarray(value, dtype=float)
    return Estimate(value, np.broadcast_to(error, value.shape).astype(float))


def texts(ax):
    return [t.get_text() for t in ax.get_legend().get_texts()]


# ------------------------------------------------------------------ maps
def test_ness_map_finds_the_grid_in_any_order(ax, averages, line):
    """Each condition's NESS stands at its temperature and mu; missing conditions are masked."""
    ness = np.linspace(0.1, 0.9, len(averages))
    some = [replace(a, ness=n) for a, n in zip(averages, ness, strict=True)]
    order = np.random.default_rng(1).permutation(len(some))
    plotting.ness_map(ax, Averages(some[k] for k in order if k != 7), line)
    [mesh] = ax.collections
    expected = np.ma.masked_equal(ness.reshape(3, 5), ness[7])
    np.testing.assert_allclose(mesh.get_array().filled(-1), expected.filled(-1))
    assert mesh.get_clim() == (0, 1)
    assert ax.get_xlabel() == r"$\mu_\mathrm{Au}$ - $\mu_\mathrm{Cu}$ (eV)"
    ax.figure.draw_without_rendering()


def test_a_map_without_numbers_says_so(ax, averages, line):
    """Exact averages have no NESS: words, no colour bar."""
    plotting.ness_map(ax, averages, line)
    assert "not determined" in ax.texts[0].get_text()
    assert len(ax.figure.axes) == 1


def test_heat_capacity_map_is_in_kb_per_site_with_maxima_on_top(ax, averages, line):
    """Values over kB and sites; boundary points with their errors, NaN left out."""
    maximum = Boundary(
        "heat-capacity maximum", ("A", "B"), estimate([700, 800, np.nan], 20.0),
        estimate([-0.05, 0.0, 0.05]), estimate(np.full((3, 2), 0.5)), None, np.ones(3, bool),
    )  # fmt: skip
    plotting.heat_capacity_map(ax, averages, line, boundaries=[maximum])
    c = [a.heat_capacity.value / (8 * kB) for a in averages]
    np.testing.assert_allclose(ax.collections[0].get_array().ravel(), c)
    [drawn] = ax.containers
    np.testing.assert_array_equal(drawn.lines[0].get_ydata(), [700, 800])
    assert texts(ax) == ["heat-capacity maximum, A / B"]


def test_heat_capacity_map_over_composition(ax, fixed, line):
    """Canonical averages stand at the share of the line's species."""
    c = fixed
    plotting.heat_capacity_map(ax, c, line)
    order = np.argsort(c.composition[:, 0])
    expected = c.per_site("heat_capacity").value[:, order] / kB
    np.testing.assert_allclose(ax.collections[0].get_array(), expected)
    assert ax.get_xlabel() == "site fraction of Au"


def test_maps_refuse_conditions_off_the_line(ax, averages, line):
    """What does not lie on the grid is named."""
    three = ChemicalPotentialLine("Au", [1.0, 0.0], [0.0, 0.0], "mu_Au (eV)")
    plotting.ness_map(ax, averages, three)  # only differences matter
    lattice, ensemble, _ = SYSTEMS["ternary"]()
    ternary = DensityOfStates.exact(ensemble.enumerate(lattice))
    off = ternary.averages(Conditions([900.0, 900.0], [[0, 0, 0.0], [0.1, 0.2, 0.0]]))
    other = ChemicalPotentialLine.exchange(lattice, "Au", "Cu")
    with pytest.raises(ValueError, match="condition 1, .* off the line mu_Au - mu_Cu"):
        plotting.ness_map(ax, off, other)
    with pytest.raises(ValueError, match="2 species, the averages have 3"):
        plotting.heat_capacity_map(ax, off, line)
    with pytest.raises(ValueError, match="at least one condition"):
        plotting.ness_map(ax, Averages(), line)
    with pytest.raises(ValueError, match="several compositions have one share of Au"):
        plotting.heat_capacity_map(ax, canonical(ternary, T), other)


# ------------------------------------------------------------------ curves
def test_isotherms_show_sweeps_from_both_sides(ax):
    """Triangles up and down at the values of each sweep, dashes tell the isotherms apart."""
    x = np.linspace(0.1, 0.9, 15).reshape(3, 5)
    up, down = estimate(x - 0.05, 0.01), estimate(x + 0.05, 0.02)
    sweeps = {"rising": up, "falling": down}
    plotting.isotherms(ax, T, MU, estimate(x, 0.005), species="Au", reference=sweeps)
    curve, rising, falling = ax.containers[3:6]
    np.testing.assert_array_equal(curve.lines[0].get_ydata(), x[1])
    np.testing.assert_array_equal(rising.lines[0].get_ydata(), up.value[1])
    np.testing.assert_array_equal(falling.lines[0].get_ydata(), down.value[1])
    assert [c.lines[0].get_marker() for c in (rising, falling)] == ["^", "v"]
    assert len({c.lines[0].get_linestyle() for c in ax.containers[::3]}) == 3
    assert texts(ax)[3:] == ["neural sampler", "rising", "falling"]
    with pytest.raises(ValueError, match="at most 4 references"):
        plotting.isotherms(ax, T, MU, up, species="Au", reference=dict.fromkeys("abcde", up))
    with pytest.raises(ValueError, match=r"reference 'rising' must have shape \(3, 5\)"):
        plotting.isotherms(ax, T, MU, up, species="Au", reference={"rising": up[0]})


def test_short_range_order_has_a_curve_a_shell(ax):
    """Columns against the positions, with error bars, named by distance."""
    v = estimate([[-0.3, 0.2], [-0.2, 0.1], [-0.1, 0.05]], 0.02)
    plotting.short_range_order(ax, T, v, [2.7, 3.8], exact=v.value)
    data, _, (bars,) = ax.containers[1].lines
    np.testing.assert_array_equal(data.get_ydata(), v.value[:, 1])
    np.testing.assert_allclose(bars.get_segments()[0][:, 1], [0.18, 0.22])
    assert texts(ax) == ["shell 1, 2.70 \u00c5", "shell 2, 3.80 \u00c5", "exact"]
    assert ax.get_xlabel() == "temperature (K)"
    with pytest.raises(ValueError, match=r"values must have shape \(3, 3\)"):
        plotting.short_range_order(ax, T, v, [1, 2, 3])


def test_curves_of_nothing_are_refused(ax):
    """Only NaN: there is nothing to draw, and the quantity is named."""
    nothing = estimate(np.full((3, 5), np.nan))
    with pytest.raises(ValueError, match="none of the 15 values of composition"):
        plotting.isotherms(ax, T, MU, nothing, species="Au")
    with pytest.raises(ValueError, match="none of the 15 values of heat capacity"):
        plotting.heat_capacity(ax, MU, nothing, labels="abc")
    with pytest.raises(ValueError, match="none of the 15 values of Warren-Cowley"):
        plotting.short_range_order(ax, T, nothing, MU)
    assert not ax.containers


# ------------------------------------------------------------------ free energy
def tangent(temperature, left, right):
    """A common tangent, and one at a temperature that is not drawn."""
    x = estimate([[left, right], [0.2, 0.3]])
    t, mu = estimate([temperature, 77.0]), estimate([0.0, 0.0])
    return Boundary("common tangent", ("", ""), t, mu, x, None, np.ones(2, bool))


def test_free_energy_of_mixing_in_mev_per_site(ax, fixed):
    """Curves, bands of two errors and tangents are those of the data."""
    c = fixed
    plotting.free_energy(ax, c, [1500, 600], species="Au", tangents=tangent(600, 0.0, 0.5))
    f = c.free_energy_of_mixing() * (1e3 / 8)
    order = np.argsort(c.composition[:, 0])
    curves = [x for x in ax.lines if len(x.get_xdata()) == 9]
    np.testing.assert_allclose(curves[0].get_ydata(), f.value[2, order])
    np.testing.assert_allclose(curves[1].get_ydata(), f.value[0, order])
    bands = [b for b in ax.collections if isinstance(b, PolyCollection)]
    assert len(bands) == 2
    high = (f.value + 2 * f.error)[2, order[4]]
    assert np.isclose(bands[0].get_paths()[0].vertices[:, 1], high).any()
    [touching] = [x for x in ax.lines if x.get_marker() == "|"]
    np.testing.assert_allclose(touching.get_ydata(), f.value[0, order[[0, 4]]])
    assert texts(ax) == ["1500 K", "600 K", "common tangent"]
    assert ax.get_ylabel() == "free energy of mixing (meV per site)"


def test_free_energy_leaves_out_what_is_not_determined(ax, fixed):
    """NaN breaks the curve; a tangent must not touch there; nothing at all is refused."""
    c = fixed
    log_z = c.log_z.copy()
    log_z[:, 3] = np.nan
    plotting.free_energy(ax, replace(c, log_z=log_z), species="Au")
    assert [int(np.isfinite(x.get_ydata()).sum()) for x in ax.lines[1:]] == [8, 8, 8]
    assert all(len(x.get_ydata()) == 9 for x in ax.lines[1:])
    with pytest.raises(ValueError, match="700 K is none of the temperatures"):
        plotting.free_energy(ax, c, [700], species="Au")
    with pytest.raises(ValueError, match="'Ag' is none of"):
        plotting.free_energy(ax, c, species="Ag")
    with pytest.raises(ValueError, match="touches .* where nothing is determined"):
        plotting.free_energy(ax, c, species="Au", tangents=tangent(600, 0.5, 1.2))
    with pytest.raises(NotDeterminedError):
        plotting.free_energy(ax, replace(c, log_z=np.full_like(log_z, np.nan)), species="Au")


# ------------------------------------------------------------------ hull and structures
def test_hull_shows_vertices_with_their_names(ax, states):
    """The line joins the vertices in meV per site; each is named; dots are all compositions."""
    found = formation_hull(states)
    plotting.hull(ax, found, species="Cu")
    dots, corners = ax.lines
    assert len(dots.get_xdata()) == len(found.counts)
    column = found.lattice.species.index("Cu")
    expected = sorted((v.composition[column], 1e3 * v.formation_energy) for v in found.vertices)
    np.testing.assert_allclose(np.column_stack(corners.get_data()), expected)
    assert len(ax.texts) == len(found.vertices)
    assert all("\n$" in t.get_text() for t in ax.texts)
    assert ax.get_ylabel() == "formation energy (meV per site)"
    ax.figure.draw_without_rendering()


def test_hull_refuses_what_a_curve_cannot_show(ax, states):
    """Three species, or a species the lattice lacks."""
    lattice, ensemble, _ = SYSTEMS["ternary"]()
    with pytest.raises(ValueError, match="more than one number"):
        plotting.hull(ax, formation_hull(ensemble.enumerate(lattice)), species="Au")
    with pytest.raises(ValueError, match="'Ag' is none of"):
        plotting.hull(ax, formation_hull(states), species="Ag")


def balls(ax):
    """Face colours of the atoms."""
    return [p.get_facecolor() for p in ax.patches if isinstance(p, Circle)]


def test_structures_colour_atoms_by_species():
    """A ball an atom, the same species the same colour in all axes; background is grey."""
    axes = Figure(layout="constrained").subplots(1, 3)
    atoms = bulk("Cu", cubic=True)
    other = atoms.copy()
    other.symbols[:3] = "Au"
    assert len(plotting.structures(axes, [atoms, other], titles=["a", "b"])) == 3
    colours = [np.unique(balls(ax), axis=0) for ax in axes[:2]]
    assert [len(c) for c in colours] == [1, 2]
    assert [len(balls(ax)) for ax in axes] == [4, 4, 0]
    assert (colours[1] == colours[0][0]).all(1).any()
    assert texts(axes[1]) == ["Au", "Cu"]
    assert axes[0].get_title() == "a"


def test_structures_of_configurations(states):
    """Rows of a batch, every species of the lattice in the legend."""
    lattice = states.lattice
    rows = torch.as_tensor(states.occupations[[0, -1]])
    at = Conditions([900.0], [[0.0, 0.0]]).repeat(2)
    axes = Figure(layout="constrained").subplots(1, 2)
    plotting.structures(axes, Configurations(lattice, at, rows))
    assert texts(axes[1]) == list(lattice.species)
    partial = rows.clone()
    partial[0, 0] = -1
    with pytest.raises(ValueError, match="unknown sites"):
        plotting.structures(axes, Configurations(lattice, at, partial))
    with pytest.raises(ValueError, match="2 configurations need as many axes, got 1"):
        plotting.structures(axes[:1], Configurations(lattice, at, rows))
    with pytest.raises(ValueError, match="as many titles, got 1"):
        plotting.structures(axes, Configurations(lattice, at, rows), titles=["a"])
    with pytest.raises(ValueError, match="no configurations"):
        plotting.structures(axes, [])


# ------------------------------------------------------------------ cost
NEURAL = Route(
    "neural",
    Cost(seconds=10.0, training_seconds=90.0, energy_evaluations=100.0,
         training_energy_evaluations=1000.0),
    100,
    0.1,
)  # fmt: skip
CHAINS = Route("chains", Cost(seconds=100.0, energy_evaluations=5e4), 100, 0.1)


def test_cost_is_training_plus_sampling(ax):
    """At every number of conditions what is paid once and what is paid each."""
    plotting.cost(ax, cost_table([NEURAL, CHAINS], unit="meV"))
    flat, steep = (x for x in ax.lines if x.get_label() in ("neural", "chains"))
    n = flat.get_xdata()
    np.testing.assert_allclose(flat.get_ydata(), 90 + 0.1 * n)
    np.testing.assert_allclose(steep.get_ydata(), n)
    assert ax.get_ylabel() == "wall time (s)"
    assert "0.1 meV" in ax.get_xlabel()


def test_an_early_break_even_is_written_beside_its_mark(ax):
    """In the corner of the axes the number stays within them, off the labels of the ticks."""
    chains = Route("chains", Cost(seconds=9000.0), 100, 0.1)
    table = cost_table([NEURAL, chains])
    assert 1 < table["chains"].pays_conditions[0] < 2
    plotting.cost(ax, table)
    ax.figure.draw_without_rendering()
    [text] = ax.texts
    box, axes = text.get_window_extent(), ax.get_window_extent()
    assert axes.x0 < box.x0 and box.x1 < axes.x1 and axes.y0 < box.y0 and box.y1 < axes.y1


def test_break_even_is_marked_where_the_table_has_it(ax):
    """Lines cross at the table's number of conditions, which is written."""
    table = cost_table([NEURAL, CHAINS])
    plotting.cost(ax, table)
    [mark] = [x for x in ax.lines if x.get_label() == "break-even"]
    np.testing.assert_allclose(mark.get_xdata(), table["chains"].pays_conditions[0])
    assert [t.get_text() for t in ax.texts] == ["100"]


def test_energy_evaluations_are_drawn_likewise(ax):
    """A route without energy evaluations is left out; none at all is refused."""
    free = Route("free", Cost(seconds=1.0), 100, 0.1)
    plotting.cost(ax, cost_table([NEURAL, CHAINS, free]), quantity="energy_evaluations")
    names = texts(ax)
    assert "chains" in names and "free" not in names
    with pytest.raises(ValueError, match="no route of the table has energy_evaluations"):
        plotting.cost(ax, cost_table([free]), quantity="energy_evaluations")
    with pytest.raises(ValueError, match="quantity must be one of"):
        plotting.cost(ax, cost_table([NEURAL, CHAINS]), quantity="watts")


# ------------------------------------------------------------------ comparison
def shifted(averages, error):
    """The averages with compositions off by an error."""
    return Averages(
        replace(a, composition=estimate(a.composition.value + error, error)) for a in averages
    )


def test_comparison_shows_differences_and_z(averages):
    """Bars are one error long, z-scores stand below, temperatures are told apart."""
    top, bottom = Figure().subplots(2, 1)
    found = compare(shifted(averages, 0.01), averages)
    plotting.comparison([top, bottom], found, "composition", against="mu_Au")
    assert len(top.containers) == len(T)
    data, _, (bars,) = top.containers[1].lines
    np.testing.assert_allclose(data.get_ydata(), 0.01)
    np.testing.assert_allclose(bars.get_segments()[2][:, 1], [0.0, 0.02], atol=1e-12)
    np.testing.assert_allclose(data.get_xdata(), MU, atol=0.2 * 0.05)
    z = [x.get_ydata() for x in bottom.lines if x.get_marker() == "o"]
    np.testing.assert_allclose(z, 1.0)
    assert "rms z 1.00 of 15" in bottom.texts[0].get_text()
    assert bottom.get_xlabel() == r"$\mu_\mathrm{Au}$ (eV)"
    assert top.get_ylabel() == "difference of\ncomposition (site fraction)"


def test_comparison_leaves_out_what_is_not_determined(averages):
    """NaN is no point; without errors the verdict is in words; nothing at all is refused."""
    some = list(shifted(averages, 0.01))
    some[0] = replace(some[0], composition=estimate([np.nan, np.nan], np.nan))
    axes = Figure().subplots(2, 1)
    plotting.comparison(
        axes, compare(Averages(some), averages), "composition", against="temperature"
    )
    assert [len(c.lines[0].get_xdata()) for c in axes[0].containers] == [14]
    assert axes[1].get_xlabel() == "temperature (K)"
    plotting.comparison(axes, compare(averages, averages), "energy")
    assert "equal" in [t.get_text() for t in axes[1].texts]
    nothing = estimate(np.full(3, np.nan))
    with pytest.raises(ValueError, match="no difference of value is determined"):
        plotting.comparison(axes, compare(nothing, nothing), "value")


def test_comparison_refuses_what_there_is_not(averages):
    """Axes, quantity and coordinate are named."""
    found = compare(averages, averages)
    axes = Figure().subplots(2, 1)
    with pytest.raises(ValueError, match="two axes, .* got 1"):
        plotting.comparison(axes[:1], found, "energy")
    with pytest.raises(ValueError, match="'colour' is none of log_z"):
        plotting.comparison(axes, found, "colour")
    with pytest.raises(ValueError, match="'x_Ag' is none of the coordinates temperature"):
        plotting.comparison(axes, found, "energy", against="x_Ag")


# ------------------------------------------------------------------ density of states
def test_density_of_states_counts_configurations(ax, states):
    """Weights in all bins add up to all configurations; one without a constant is shifted."""
    exact = DensityOfStates.exact(states)
    rng = np.random.default_rng(0)
    replicas = rng.normal(1, 0.1, (len(exact), 50)).astype(np.float32)
    loose = replace(exact, log_g=exact.log_g - 7, absolute=False, replicas=replicas)
    plotting.density_of_states(ax, {"enumeration": exact, "Wang-Landau": loose}, bins=12)
    first, second = ax.containers
    np.testing.assert_allclose(np.nansum(np.exp(first.lines[0].get_ydata())), 2**8)
    np.testing.assert_allclose(second.lines[0].get_ydata(), first.lines[0].get_ydata())
    bars = [s for s in second.lines[2][0].get_segments() if len(s)]
    lengths = np.diff([s[:, 1] for s in bars])
    assert (lengths > 0).all()
    assert texts(ax) == ["enumeration", "Wang-Landau"]
    assert ax.get_xlabel() == "energy (meV per site)"
    width = 1e3 * np.ptp(exact.energy) / 8 / 12
    assert f"in {width:.2g} meV per site" in ax.get_ylabel()


def test_density_of_states_joins_no_bins_over_a_gap(ax, states):
    """The line is broken where no energy is."""
    e = states.energy.numpy()
    dos = DensityOfStates.exact(states).restricted((e == e.min()) | (e == e.max()))
    plotting.density_of_states(ax, dos, bins=5)
    assert np.isnan(ax.containers[0].lines[0].get_ydata()).tolist() == [False, *[True] * 3, False]
    ax.figure.draw_without_rendering()


def test_density_of_states_refuses_what_it_cannot_hold_together(ax, states):
    """Nothing, no bins, or supercells of different size."""
    exact = DensityOfStates.exact(states)
    lattice, ensemble, _ = SYSTEMS["ternary"]()
    other = DensityOfStates.exact(ensemble.enumerate(lattice))
    with pytest.raises(ValueError, match="no density of states"):
        plotting.density_of_states(ax, {})
    with pytest.raises(ValueError, match="at least 1, got 0"):
        plotting.density_of_states(ax, exact, bins=0)
    with pytest.raises(ValueError, match="differ in size: {'a': 8, 'b': 6}"):
        plotting.density_of_states(ax, {"a": exact, "b": other})
