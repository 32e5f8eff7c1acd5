"""Laws of the figures: what is drawn is what was given, with units on every axis."""

import warnings

import matplotlib
import numpy as np
import pytest
from ase.units import kB
from matplotlib.figure import Figure

from clease_nn import plotting
from clease_nn.statistics import Estimate

matplotlib.use("Agg")

T = np.array([300.0, 600.0, 1200.0])
MU = np.linspace(-0.1, 0.1, 9)
X = 1 / (1 + np.exp(-2 * MU / (kB * T[:, None])))


@pytest.fixture
def ax():
    """Fresh axes."""
    return Figure(figsize=(5, 4), layout="constrained").add_subplot()


def test_condition_map_shows_values_at_their_conditions(ax):
    """The colour array is the values, the cells surround their conditions."""
    assert plotting.condition_map(ax, T, MU, Estimate(X, 0 * X), "site fraction of Au") is ax
    [mesh] = ax.collections
    np.testing.assert_array_equal(mesh.get_array(), X)
    assert ax.get_ylim()[0] < 300 < 1200 < ax.get_ylim()[1]
    assert ax.get_xlabel().endswith("(eV)")
    assert ax.get_ylabel() == "temperature (K)"
    assert ax.figure.axes[1].get_ylabel() == "site fraction of Au"


def test_condition_map_of_one_condition_and_holes(ax):
    """A single row is drawn, NaN does not spoil the colours."""
    plotting.condition_map(ax, [300], [0.0, 0.1], [[np.nan, 0.3]], "NESS", limits=(0, 1))
    assert ax.collections[0].get_clim() == (0, 1)
    ax.figure.draw_without_rendering()


def test_isotherms_draw_both_calculations(ax):
    """A line a temperature with errors, the reference as symbols only."""
    ours = Estimate(X, 0.01 + 0 * X)
    plotting.isotherms(ax, T, MU, ours, species="Au", reference=ours, reference_label="CLEASE")
    assert len(ax.containers) == 6
    texts = [t.get_text() for t in ax.get_legend().get_texts()]
    assert texts == ["300 K", "600 K", "1200 K", "neural sampler", "CLEASE"]
    assert ax.get_ylabel() == "site fraction of Au"
    line, symbols = (container.lines[0] for container in ax.containers[:2])
    np.testing.assert_array_equal(line.get_ydata(), X[0])
    assert symbols.get_linestyle() == "None"


def test_heat_capacity_is_shown_in_kb_per_site(ax):
    """Extensive eV/K become kB per site, errors alike."""
    c = Estimate(np.array([[16 * kB, 32 * kB, 8 * kB]]), np.full((1, 3), 1.6 * kB))
    plotting.heat_capacity(ax, T, c, n_sites=16, exact=c.value)
    line, _, (bars,) = ax.containers[0].lines
    np.testing.assert_allclose(line.get_ydata(), [1, 2, 0.5])
    np.testing.assert_allclose(bars.get_segments()[0][:, 1], [0.9, 1.1])
    assert "per site" in ax.get_ylabel()


def test_training_curve_takes_gaps(ax):
    """NESS is drawn where it was measured only, on its own axis from 0 to 1."""
    history = [{"step": k, "seconds": 0.1 * k, "loss": 3 + 1 / (k + 1)} for k in range(50)]
    history[-1]["ness"] = 0.9
    history[-2]["ness"] = None
    plotting.training_curve(ax, history)
    right = ax.figure.axes[1]
    np.testing.assert_array_equal(right.lines[0].get_ydata(), [0.9])
    assert ax.get_xlabel() == "training time (s)"
    assert len(ax.lines[0].get_xdata()) == 50


def test_correlation_draws_errors_and_reference(ax):
    """A curve a row against distance, the reference named once."""
    v = Estimate(np.array([[1.0, -0.3, 0.2], [0.9, -0.1, 0.0]]), np.full((2, 3), 0.05))
    plotting.correlation(ax, [0, 2.7, 3.8], v, labels=["250 K", "500 K"], exact=v.value)
    line, _, (bars,) = ax.containers[1].lines
    np.testing.assert_array_equal(line.get_ydata(), v.value[1])
    np.testing.assert_allclose(bars.get_segments()[1][:, 1], [-0.15, -0.05])
    texts = [t.get_text() for t in ax.get_legend().get_texts()]
    assert sorted(texts) == ["250 K", "500 K", "exact"]
    assert "\u00c5" in ax.get_xlabel()


def test_histogram_draws_every_bin_and_errors_where_seen(ax):
    """Stairs are the probabilities; empty bins have no bar."""
    p = Estimate(np.array([[0.25, 0.0, 0.75]]), np.array([[0.1, 0.0, 0.1]]))
    plotting.histogram(ax, [0, 1, 2, 4], p, xlabel="energy (eV per site)", exact=p.value)
    np.testing.assert_array_equal(ax.patches[0].get_data().values, p.value[0])
    assert len(ax.containers[0].lines[0].get_xdata()) == 2
    assert ax.get_legend().get_texts()[0].get_text() == "exact"


def test_histograms_differ_in_dashes(ax):
    """In grey print their colours would not tell them apart."""
    p = Estimate(np.array([[0.25, 0.75], [0.5, 0.5], [1.0, 0.0]]), np.full((3, 2), 0.1))
    plotting.histogram(ax, [0, 1, 2], p, xlabel="x", labels=["a", "b", "c"])
    assert len({patch.get_linestyle() for patch in ax.patches[::2]}) == 3
    with pytest.raises(ValueError, match="none of the 2 values of probability"):
        nothing = Estimate(np.full((1, 2), np.nan), np.zeros((1, 2)))
        plotting.histogram(ax, [0, 1, 2], nothing, xlabel="x")


def test_logarithmic_axes_and_negative_values_stay_whole(ax):
    """No limit at zero where the axis has none, or where it would hide a negative value."""
    log = Figure(figsize=(5, 4)).add_subplot()
    log.set_yscale("log")
    p = Estimate(np.array([[0.5, 0.499, 0.001]]), np.full((1, 3), 0.0005))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plotting.histogram(log, [0, 1, 2, 3], p, xlabel="energy (eV per site)")
    assert 0 < log.get_ylim()[0] < 0.001
    c = Estimate(np.array([[-1e-5, 2e-5]]), np.full((1, 2), 1e-6))
    plotting.heat_capacity(ax, [300, 600], c)
    assert ax.get_ylim()[0] < -1e-5 / kB


def test_symmetry_and_ground_states_show_what_is_given(ax):
    """Every image is a point; shares and composition stand on axes of their own."""
    plotting.symmetry(ax, [-3.0, -1.0], [[-3.1, -2.9], [-1.0, -1.2]], text="R2")
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), [-3.1, -2.9, -1.0, -1.2])
    assert ax.get_xlim() == ax.get_ylim()
    other = Figure(layout="constrained").add_subplot()
    shares = 0 * MU + 0.9, 0 * MU
    plotting.ground_states(other, MU, *shares, X[0], species="Au", mu_label="mu_Au (eV)")
    assert other.get_xlabel() == r"$\mu_\mathrm{Au}$ (eV)"
    np.testing.assert_array_equal(other.lines[0].get_ydata(), 0 * MU + 0.9)
    assert "Au" in other.figure.axes[1].get_ylabel()
    other.figure.draw_without_rendering()


def test_wrong_shapes_are_refused(ax):
    """Shapes and their remedy are named before anything is drawn."""
    with pytest.raises(ValueError, match=r"\(3, 9\)"):
        plotting.condition_map(ax, T, MU, X.T, "x")
    with pytest.raises(ValueError, match=r"composition must have shape \(3, 9\)"):
        plotting.isotherms(ax, T, MU, Estimate(X.T, X.T), species="Au")
    with pytest.raises(ValueError, match="ascend"):
        plotting.condition_map(ax, T[::-1], MU, X, "x")
    with pytest.raises(ValueError, match="history is empty"):
        plotting.training_curve(ax, [])
    with pytest.raises(ValueError, match=r"values must have shape \(1, 2\)"):
        plotting.correlation(ax, [0, 1], Estimate(X, X))
    with pytest.raises(ValueError, match=r"probability must have shape \(1, 2\)"):
        plotting.histogram(ax, [0, 1, 2], Estimate(X, X), xlabel="x")
    with pytest.raises(ValueError, match=r"images must have shape \(2, n\)"):
        plotting.symmetry(ax, [0, 1], [0, 1])
    with pytest.raises(ValueError, match="one length"):
        plotting.ground_states(ax, MU, MU, MU, MU[:2], species="Au")
