"""First-order lines: equal grand potentials of the phases' own states."""

from dataclasses import replace
from math import lgamma

import numpy as np
import pytest
from ase.units import kB
from phase_toys import LATTICE, LINE, exact, sampled

from clease_nn.errors import NotDeterminedError
from clease_nn.lattice import Lattice
from clease_nn.phases import (
    ChemicalPotentialLine,
    NoCoexistenceError,
    Phases,
    coexistence,
    identify,
    trace,
)
from clease_nn.thermodynamics import DensityOfStates

PAIR = ("poor", "rich")


def by_amount(dos, cut=8, **kwargs):
    """States with fewer and with more Au atoms than a number."""
    n = dos.counts[:, 1]
    labels = np.select([n < cut, n > cut], [0, 1], -1)
    return Phases.given(dos, labels, PAIR, same_order=True, **kwargs)


# ------------------------------------------------------------------ exact states
@pytest.mark.parametrize("temperature", [150.0, 300.0, 600.0])
def test_a_symmetric_gap_lies_at_zero(temperature):
    """Up and down of an Ising ferromagnet coexist without a field, with mirrored compositions."""
    dos = exact("gap")
    point = coexistence(dos, by_amount(dos), PAIR, LINE, temperature)
    assert abs(point.mu.value) < 1e-10
    assert point.composition.value.sum() == pytest.approx(1, abs=1e-12)
    assert abs(point.slope.value) < 1e-12
    assert point.mu.error == 0 and point.separate


def test_grand_potentials_are_equal():
    """At the point found the restricted densities of states have one ln Z."""
    dos = exact("asymmetric")
    phases = by_amount(dos)
    point = coexistence(dos, phases, PAIR, LINE, 400.0)
    at = LINE.at(400.0, point.mu.value)
    a, b = (phases.restricted(dos, name) for name in PAIR)
    assert a.log_z(at).value[0] == pytest.approx(b.log_z(at).value[0], abs=1e-9)
    for k, part in enumerate((a, b)):
        [own] = part.averages(at)
        assert point.composition.value[k] == pytest.approx(own.composition.value[1], abs=1e-12)
    jump = b.averages(at)[0].entropy.value - a.averages(at)[0].entropy.value
    assert point.entropy_jump.value == pytest.approx(jump, rel=1e-8)


@pytest.mark.parametrize("temperature", [250.0, 500.0])
def test_slope_is_that_of_clausius_and_clapeyron(temperature):
    """The slope from the jumps is the derivative of the line itself."""
    dos = exact("asymmetric")
    phases = by_amount(dos)
    h = 0.1
    low, mid, high = (coexistence(dos, phases, PAIR, LINE, temperature + d) for d in (-h, 0.0, h))
    slope = (high.mu.value - low.mu.value) / (2 * h)
    assert abs(slope) > 1e-7
    assert mid.slope.value == pytest.approx(slope, rel=1e-4)


def test_the_line_may_start_anywhere_and_have_any_gauge():
    """An origin shifts t, a constant added to all chemical potentials changes nothing."""
    dos = exact("asymmetric")
    phases = by_amount(dos)
    t = coexistence(dos, phases, PAIR, LINE, 400.0).mu.value
    moved = ChemicalPotentialLine("Au", [-0.5, 0.5], [0.3, 0.31], "")
    other = coexistence(dos, phases, PAIR, moved, 400.0).mu.value
    assert other == pytest.approx(t - 0.01, abs=1e-10)


def test_differences_of_ln_z_are_enough():
    """Data that know Z up to a factor give the same point."""
    dos = exact("asymmetric")
    relative = replace(dos, log_g=dos.log_g - 7.0, absolute=False)
    points = [coexistence(d, by_amount(d), PAIR, LINE, 400.0) for d in (dos, relative)]
    assert points[0].mu.value == pytest.approx(points[1].mu.value, abs=1e-10)


def test_states_without_occupations_will_do():
    """Densities of states of energies and compositions only have the same lines."""
    dos = exact("asymmetric")
    bare = replace(dos, occupations=None)
    lines = [trace(d, by_amount(d), PAIR, LINE, [300.0, 500.0]) for d in (dos, bare)]
    assert lines[0].to_dict() == lines[1].to_dict()


def test_variants_count_once():
    """At low temperature the line is that of the ground states, not kT ln 2 beside it.

    Antiferromagnet: checkerboard -2 J a site, pure Cu +2 J a site: 64 J between them for 8 atoms;
    both phases have one ground state once the two checkerboards count as one.
    """
    dos = exact("order")
    n = dos.counts[:, 1]
    labels = np.select([n == 0, (dos.energy < -0.63) & (n == 8)], [0, 1], -1)
    assert (labels == 1).sum() == 2
    for g, shift in ((1.0, np.log(2.0)), (2.0, 0.0)):
        phases = Phases.given(dos, labels, PAIR, degeneracy=[1.0, g])
        point = coexistence(dos, phases, PAIR, LINE, 300.0)
        assert point.mu.value == pytest.approx((-1.28 - kB * 300 * shift) / 8, abs=1e-10)


# ------------------------------------------------------------------ samples
def test_errors_from_samples_are_calibrated():
    """Deviations from the exact point are as large as the errors say."""
    temperatures = (400.0, 500.0)
    true = exact("asymmetric")
    labels = {T: coexistence(true, by_amount(true), PAIR, LINE, T) for T in temperatures}
    at = [labels[T].mu.value for T in temperatures]
    ts = [min(at) - 0.01, *at, max(at) + 0.01]
    z = {"mu": [], "x": [], "slope": [], "jump": []}
    for seed in range(32):
        dos = sampled("asymmetric", temperatures, ts, 400, seed, n_resamples=60)
        phases = by_amount(dos)
        for T in temperatures:
            point, ref = coexistence(dos, phases, PAIR, LINE, T), labels[T]
            z["mu"].append(point.mu.z(ref.mu.value))
            z["x"].extend(point.composition.z(ref.composition.value))
            z["slope"].append(point.slope.z(ref.slope.value))
            z["jump"].append(point.entropy_jump.z(ref.entropy_jump.value))
    for name, values in z.items():
        values = np.array(values)
        # 32 independent runs; the numbers of one run are correlated
        assert abs(values.mean()) < 4 / np.sqrt(32), (name, values.mean())
        assert 0.8 < values.std() < 1.2, (name, values.std())
        assert np.abs(values).max() < 5, name


def dome(excess, noise=0.1, replicas=400, repeat=60):
    """Ideal solution and one ordered state of 8 atoms, whose ln g is 16 ln 2 + excess."""
    n = np.concatenate([np.arange(17), [8]])
    log_g = np.append([lgamma(17) - lgamma(k + 1) - lgamma(17 - k) for k in range(17)], 0.0)
    log_g[-1] = 16 * np.log(2) + excess
    shift = np.zeros((18, replicas))
    shift[-1] = noise * np.random.default_rng(1).normal(size=replicas)
    rows = np.repeat(np.arange(18), repeat)
    dos = DensityOfStates(
        LATTICE,
        np.zeros(len(rows)),
        np.stack([16.0 - n, n], 1)[rows],
        log_g[rows] - np.log(repeat),
        replicas=np.exp(shift[rows]).astype(np.float32),
    )
    phases = Phases.given(dos, (rows == 17).astype(int), ["disordered", "ordered"])
    return dos, phases, shift[-1]


@pytest.mark.parametrize("excess", [0.5, 0.08, 0.01])
def test_errors_near_the_top_of_a_dome(excess):
    """They are the spread over the replicas that have the point, and their share is told.

    16 ln(2 cosh(t / 2 kT)) = ln g of the ordered state: t = -2 kT arcosh exp(excess / 16).
    """
    dos, phases, shift = dome(excess)
    point = coexistence(dos, phases, phases.names, LINE, 500.0)
    scale = -2 * kB * 500
    assert point.mu.value == pytest.approx(scale * np.arccosh(np.exp(excess / 16)), abs=1e-9)
    has = excess + shift > 0
    own = scale * np.arccosh(np.exp((excess + shift[has]) / 16))
    assert point.share == pytest.approx(has.mean(), abs=0.005)
    assert point.mu.error == pytest.approx(own.std(ddof=1), rel=0.02)
    # no larger than the way to the top plus that of the noise alone
    assert point.mu.error < abs(point.mu.value) + abs(scale) * np.arccosh(np.exp(0.1 / 16))
    if point.separate:  # on the top itself there is no valley
        line = trace(dos, phases, phases.names, LINE, [500.0])
        assert ("not all replicas" in line.reason) == (not has.all())


def test_a_point_of_few_replicas_is_not_determined():
    """Where most replicas have no coexistence the line is said to end, perhaps."""
    dos, phases, shift = dome(0.001)
    replicas = dos.replicas.copy()
    replicas[phases.labels == 1, : int(0.7 * len(shift))] = 0.5
    few = replace(dos, replicas=replicas)
    with pytest.raises(NotDeterminedError, match=r"replicas of the data only.*Remedy"):
        coexistence(few, phases, phases.names, LINE, 500.0)


def test_a_crossing_on_the_grid_is_one_point():
    """A root where a scan for crossings happens to look counts once."""
    dos = exact("gap")
    # the first of the points looked at is the root itself, and so is the second of a wider range
    for low, high in ((0.0, 0.05), (-0.05 / 398, 0.05)):
        at = replace(dos, sampled=LINE.at(400.0, [low, high]))
        point = coexistence(at, by_amount(at), PAIR, LINE, 400.0)
        assert abs(point.mu.value) < 1e-12


def test_too_few_states_of_a_phase_decide_nothing():
    """A phase with a handful of samples gives no point but the advice to sample it."""
    dos = sampled("gap", [400.0], [-0.01, 0.0, 0.01], 400, 3)
    n = dos.counts[:, 1]
    few = dos.restricted((n < 8) | (np.cumsum(n > 8) <= 20))
    with pytest.raises(NotDeterminedError, match=r"effective states of rich.*Remedy"):
        coexistence(few, by_amount(few), PAIR, LINE, 400.0)


def test_a_phase_never_sampled_decides_nothing():
    """It has no grand potential."""
    dos = exact("gap")
    dos = dos.restricted(dos.counts[:, 1] < 8)
    with pytest.raises(NotDeterminedError, match="rich was never sampled"):
        coexistence(dos, by_amount(dos), PAIR, LINE, 300.0)


# ------------------------------------------------------------------ pairs with two points
def test_a_dome_has_two_sides():
    """The ordered phase meets disorder on either side; the pair's order tells which is meant."""
    dos = exact("order")
    phases = identify(dos, LINE, np.arange(200, 1201, 100))
    left = coexistence(dos, phases, ("disordered", "CuAu"), LINE, 300.0)
    right = coexistence(dos, phases, ("CuAu", "disordered"), LINE, 300.0)
    assert left.mu.value == pytest.approx(-right.mu.value, abs=1e-10)
    assert left.composition.value == pytest.approx(1 - right.composition.value[::-1], abs=1e-9)
    assert (np.diff(left.composition.value) > 0).all()


def test_several_points_need_a_choice():
    """Two crossings of one pair: the nearest is taken, and without a hint they are listed."""
    dos = exact("ideal")
    n = dos.counts[:, 1].astype(int)
    # ln of the weight of n atoms is a parabola; its stretches belong to a and b by turns
    labels = np.where(np.isin(n, (0, 8)), 0, np.where(np.isin(n, (4, 12)), 1, -1))
    bumps = replace(dos, log_g=-(3.0 * (n - 8.0) ** 2) / 16 - np.log(np.bincount(n)[n]))
    phases = Phases.given(bumps, labels, PAIR)
    with pytest.raises(ValueError, match="say which with near="):
        coexistence(bumps, phases, PAIR, LINE, 300.0)
    first, second = (coexistence(bumps, phases, PAIR, LINE, 300.0, near=t) for t in (-1.0, 1.0))
    assert first.mu.value < second.mu.value
    # 0 | 4 and 8 | 12: slopes of the parabola of curvature 3/8 at 2 and 10
    assert first.mu.value == pytest.approx(-kB * 300 * 3 / 8 * 6, abs=1e-3)
    assert second.mu.value == pytest.approx(kB * 300 * 3 / 8 * 2, abs=1e-3)


# ------------------------------------------------------------------ lines
def test_the_traced_line_is_made_of_its_points():
    """Every temperature has the point found alone; the end lies where the valley fills."""
    dos = exact("asymmetric")
    phases = by_amount(dos)
    temperatures = [200.0, 300.0, 400.0, 500.0, 600.0, 700.0, 800.0, 900.0]
    line = trace(dos, phases, PAIR, LINE, temperatures)
    for T, t, x in zip(line.temperature.value, line.mu.value, line.composition.value, strict=True):
        point = coexistence(dos, phases, PAIR, LINE, T)
        assert point.separate
        assert t == pytest.approx(point.mu.value, abs=1e-12)
        assert x == pytest.approx(point.composition.value, abs=1e-12)
    end = line.temperature.value[-1]
    assert 500 < end < 900
    assert not coexistence(dos, phases, PAIR, LINE, end + 5).separate
    assert line.stable.all()
    assert "cannot be told apart" in line.reason
    assert "below 200 K: no temperature was asked for" in line.reason


def test_a_line_does_not_jump_to_another():
    """Where the data end so does the line, though the phases meet elsewhere in their range.

    a and b by turns at 0, 4, 8, 12 atoms: they meet at t = -0.015 eV - 5.4 kT / 4 and at 0.05 eV.
    """
    n = np.arange(0, 16, 4)
    dos = DensityOfStates(
        LATTICE,
        np.array([0.06, 0.0, 0.0, 0.2]),
        np.stack([16.0 - n, n], 1),
        np.array([-5.4, 0.0, 0.0, 0.0]),
        sampled=LINE.at(300.0, [-0.1, 0.1]),
    )
    phases = Phases.given(dos, np.array([0, 1, 0, 1]), ["a", "b"])
    line = trace(dos, phases, ("a", "b"), LINE, np.arange(300, 1000, 100.0))
    kT = kB * line.temperature.value
    assert line.mu.value == pytest.approx(-0.015 - 5.4 * kT / 4, abs=2e-3)
    assert kB * line.temperature.value[-1] == pytest.approx(0.085 * 4 / 5.4, rel=0.02)
    assert "belongs to another line" in line.reason


def test_the_nearest_point_counts_also_if_it_is_poorly_sampled():
    """A hint is not answered with another point."""
    repeat = np.array([10, 100, 100, 100])
    rows = np.repeat(np.arange(4), repeat)
    n = 4 * rows
    dos = DensityOfStates(
        LATTICE,
        np.array([0.06, 0.0, 0.0, 0.2])[rows],
        np.stack([16.0 - n, n], 1),
        np.array([-5.4, 0.0, 0.0, 0.0])[rows] - np.log(repeat)[rows],
        replicas=np.ones((len(rows), 20), np.float32),
        sampled=LINE.at(300.0, [-0.1, 0.1]),
    )
    phases = Phases.given(dos, rows % 2, ["a", "b"])
    assert coexistence(dos, phases, ("a", "b"), LINE, 300.0, near=0.04).mu.value > 0.04
    with pytest.raises(NotDeterminedError, match="10.0 effective states of a"):
        coexistence(dos, phases, ("a", "b"), LINE, 300.0, near=-0.04)


def test_a_third_phase_takes_over():
    """Where half-filled states are made many, the gap is not stable any more."""
    dos = exact("gap")
    n = dos.counts[:, 1]
    dos = replace(dos, log_g=dos.log_g + 20.0 * (n == 8))
    phases = Phases.given(dos, np.select([n < 8, n > 8], [0, 1], 2), [*PAIR, "middle"])
    line = trace(dos, phases, PAIR, LINE, [150.0, 400.0])
    assert abs(line.mu.value).max() < 1e-10
    assert line.stable.tolist() == [True, False]
    assert "not stable from 400 to 400 K, where it is middle" in line.reason


def test_bad_input_is_refused():
    """Unknown phases, wrong labels, temperatures and lines: each message names the culprit."""
    dos = exact("gap")
    phases = by_amount(dos)
    with pytest.raises(ValueError, match="no phase 'liquid'"):
        coexistence(dos, phases, ("poor", "liquid"), LINE, 300.0)
    with pytest.raises(ValueError, match="two different phases"):
        coexistence(dos, phases, ("poor", "poor"), LINE, 300.0)
    with pytest.raises(ValueError, match="positive and finite"):
        coexistence(dos, phases, PAIR, LINE, -300.0)
    with pytest.raises(ValueError, match="near must be a finite"):
        coexistence(dos, phases, PAIR, LINE, 300.0, near=np.nan)
    for origin in ([0.0, np.nan], [np.inf, 0.0]):
        with pytest.raises(ValueError, match="direction and origin must be finite"):
            ChemicalPotentialLine.exchange(dos.lattice, "Au", "Cu", origin=origin)
    with pytest.raises(ValueError, match="65536 labels for 39203 states"):
        coexistence(dos.restricted(dos.counts[:, 1] < 9), phases, PAIR, LINE, 300.0)
    with pytest.raises(NoCoexistenceError, match="rich is the poorer"):
        coexistence(dos, phases, PAIR[::-1], LINE, 300.0)
    with pytest.raises(NoCoexistenceError):
        trace(dos, phases, PAIR[::-1], LINE, [300.0, 400.0])
    with pytest.raises(ValueError, match="positive and finite"):
        trace(dos, phases, PAIR, LINE, [])
    other = ChemicalPotentialLine.exchange(Lattice.square(2, species=("Cu", "Ag")), "Ag", "Cu")
    with pytest.raises(ValueError, match="the line is for"):
        coexistence(dos, phases, PAIR, other, 300.0)


def test_a_temperature_the_data_do_not_reach_is_refused():
    """Far below the sampled temperatures no point is determined."""
    dos = sampled("asymmetric", [900.0], [-0.02, 0.0, 0.02], 200, 5)
    with pytest.raises((NotDeterminedError, NoCoexistenceError)):
        coexistence(dos, by_amount(dos), PAIR, LINE, 60.0)


# ------------------------------------------------------------------ the line itself
def test_positions_along_a_line_ignore_the_gauge():
    """A constant added to all chemical potentials, or a component across, moves nothing."""
    lattice = Lattice.square(2, species=("Cu", "Au", "Ag"))
    line = ChemicalPotentialLine.exchange(lattice, "Au", "Cu", origin=[0.1, 0.0, 0.2])
    at = line.at(300.0, [-0.2, 0.0, 0.3])
    moved = replace(at, mu=at.mu + 0.7)
    assert line.position(at) == pytest.approx([-0.2, 0.0, 0.3], abs=1e-12)
    assert line.position(moved) == pytest.approx([-0.2, 0.0, 0.3], abs=1e-12)
    again = ChemicalPotentialLine.from_dict(line.to_dict())
    assert again.mu(0.3) == pytest.approx(line.mu(0.3)) and again.label == line.label


def test_the_span_is_where_data_are():
    """Sampled conditions bound it; exact states are followed to both ends."""
    dos = sampled("gap", [400.0, 500.0], [-0.02, 0.01], 60, 0)
    assert LINE.span(dos, 300.0) == pytest.approx((-0.02, 0.01))
    low, high = LINE.span(exact("gap"), 900.0)
    x = LINE.composition(exact("gap"))
    ends = exact("gap").mean(x, LINE.at(900.0, [low, high])).value
    assert ends[0] < 0.1 and ends[1] > 0.9
    one = exact("gap").restricted(exact("gap").counts[:, 1] == 3)
    with pytest.raises(ValueError, match="nothing changes"):
        LINE.span(one, 300.0)
