"""The published recipes find what they were made for, and their known faults are visible."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toys import SYSTEMS

from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.energies.ising import ising_energy
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import Lattice
from clease_nn.phases import ChemicalPotentialLine, heat_capacity_maxima
from clease_nn.phases.published import (
    alpha_shape,
    common_tangent,
    greatest_composition_jump,
    heat_capacity_peak,
    lowest_temperature,
)
from clease_nn.statistics import Estimate
from clease_nn.thermodynamics import Averages, DensityOfStates, canonical

LATTICE = Lattice.square(4)
GAP = SemiGrandCanonical(ising_energy(LATTICE, 0.02))
STATES = GAP.enumerate(LATTICE)
DOS = DensityOfStates.exact(STATES)
LINE = ChemicalPotentialLine.exchange(LATTICE, "Au", "Cu")
FEW = Lattice.square(4, 3)
SMALL = DensityOfStates.exact(SemiGrandCanonical(ising_energy(FEW, 0.02)).enumerate(FEW))
T = np.linspace(200, 800, 7)


def grid(temperatures, t):
    """Conditions, in no particular order."""
    at = Conditions.grid(temperatures, LINE.mu(t))
    return at[torch.as_tensor(np.random.default_rng(0).permutation(len(at)))]


def test_recipes_keep_the_cost_of_their_data():
    """What the averages or free energies have cost is that of the line drawn from them."""
    averages = SMALL.averages(grid(T, [0.0, 0.1, 0.2]))
    free = canonical(SMALL, T[:2])
    for b in (
        greatest_composition_jump(averages, LINE),
        heat_capacity_peak(averages, LINE),
        common_tangent(free),
        heat_capacity_maxima(SMALL, LINE, [0.1], (200.0, 1500.0)),
    ):
        assert b.cost.energy_evaluations == 4096


def test_conditions_without_a_number_are_left_out():
    """A heat capacity or composition that is NaN is no largest one."""
    hot = np.linspace(200, 1500, 7)
    averages = list(SMALL.averages(Conditions.grid(hot, LINE.mu([0.0, 0.1]))))
    true = heat_capacity_peak(Averages(averages), LINE).temperature.value
    [k] = [
        i
        for i, a in enumerate(averages)
        if a.temperature == hot[-1] and abs(a.mu[1] - a.mu[0] - 0.1) < 1e-9
    ]
    assert np.isfinite(true).all() and (true < hot[-2]).all()
    spoilt = averages.copy()
    spoilt[k] = replace(averages[k], heat_capacity=Estimate(np.nan, np.nan))
    assert heat_capacity_peak(Averages(spoilt), LINE).temperature.value.tolist() == true.tolist()
    spoilt[k] = replace(averages[k], composition=averages[k].composition * np.nan)
    jump = greatest_composition_jump(Averages(spoilt), LINE)
    assert np.isfinite(jump.mu.value).tolist() == [True] * 6 + [False]
    assert "1500 K: 1 positions" in jump.reason


# ------------------------------------------------------------------ composition jump
def test_the_greatest_jump_of_a_symmetric_gap_is_at_zero():
    """Below the critical point the composition jumps in the middle, from poor to rich."""
    t = np.linspace(-0.05, 0.05, 10)
    found = greatest_composition_jump(SMALL.averages(grid(T, t)), LINE)
    np.testing.assert_allclose(found.temperature.value, T)
    np.testing.assert_allclose(found.mu.value, 0.0, atol=1e-9)
    np.testing.assert_allclose(found.mu.error, (t[1] - t[0]) / 2)
    x = found.composition.value
    np.testing.assert_allclose(x.sum(1), 1.0, atol=1e-9)
    assert (x[:, 0] < x[:, 1]).all() and (np.diff(x[:, 1] - x[:, 0]) < 0).all()
    assert found.stable.all() and "above a critical point too" in found.reason


def test_a_window_moves_the_jump():
    """The recipe looks within its window only, and tells of temperatures without data there."""
    c = SMALL.averages(grid(T, np.linspace(-0.05, 0.05, 11)[3:]))
    found = greatest_composition_jump(c, LINE, (0.015, 0.06))
    np.testing.assert_allclose(found.mu.value, 0.025, atol=1e-9)
    empty = greatest_composition_jump(c, LINE, (0.045, 0.06))
    assert np.isnan(empty.mu.value).all() and not empty.stable.any()
    assert "1 positions within the window" in empty.reason


def test_the_direction_of_the_line_does_not_matter():
    """Compositions are those of the line's species, ascending, either way."""
    c = SMALL.averages(grid(T[:3], np.linspace(-0.05, 0.05, 10)))
    back = ChemicalPotentialLine("Au", [0.0, -1.0], [0.0, 0.0], "minus mu_Au (eV)")
    a, b = greatest_composition_jump(c, LINE), greatest_composition_jump(c, back)
    np.testing.assert_allclose(a.mu.value, -b.mu.value, atol=1e-9)
    np.testing.assert_allclose(a.composition.value, b.composition.value)


# ------------------------------------------------------------------ heat capacity
def test_the_peak_on_the_grid_brackets_the_maximum():
    """Exact data: the true maximum lies between the neighbours, the parabola is closer."""
    t = np.array([0.0, 0.01])
    temperatures = np.arange(300.0, 901.0, 40.0)
    averages = SMALL.averages(grid(temperatures, t))
    exact = heat_capacity_maxima(SMALL, LINE, t, (300, 900)).temperature.value
    coarse = heat_capacity_peak(averages, LINE)
    fine = heat_capacity_peak(averages, LINE, parabola=True)
    np.testing.assert_allclose(coarse.mu.value, t)
    np.testing.assert_allclose(coarse.temperature.error, 40.0)
    assert (np.abs(coarse.temperature.value - exact) < 40.0).all()
    assert (np.abs(fine.temperature.value - exact) < 5.0).all()
    np.testing.assert_allclose(fine.temperature.error, 0.0, atol=1e-9)


def test_a_parabola_is_found_exactly_with_the_errors_of_its_points():
    """Three points of a parabola; the error is that of repeated noise."""
    grid_t = np.array([400.0, 450.0, 520.0])
    [a] = SMALL.averages(LINE.at(400.0, 0.0))
    exact = 1.0 - 1e-5 * (grid_t - 460.0) ** 2

    def peak(values, error=0.001):
        rows = [
            replace(a, temperature=temperature, heat_capacity=Estimate(v, error))
            for temperature, v in zip(grid_t, values, strict=True)
        ]
        return heat_capacity_peak(Averages(rows), LINE, parabola=True).temperature

    assert peak(exact).value[0] == pytest.approx(460.0)
    rng = np.random.default_rng(1)
    tops = [peak(exact + 0.001 * rng.normal(size=3)).value[0] for _ in range(500)]
    assert np.std(tops) / peak(exact).error[0] == pytest.approx(1.0, abs=0.15)


def test_a_peak_at_the_end_of_the_grid_is_none():
    """The largest value at an end says nothing about a maximum."""
    found = heat_capacity_peak(SMALL.averages(grid([600.0, 700.0, 800.0], [0.0])), LINE)
    assert np.isnan(found.temperature.value).all() and "end 600 K" in found.reason


# ------------------------------------------------------------------ common tangent
@pytest.mark.parametrize("species", ["Cu", "Au"])
def test_the_tangent_of_a_symmetric_gap(species):
    """Exact F(x): one interval, symmetric about 1/2, horizontal, narrower with temperature."""
    temperatures = np.array([300.0, 700.0, 750.0, 800.0, 1500.0])
    found = common_tangent(canonical(DOS, temperatures), species)
    assert found.temperature.value[-1] < 1500.0  # none above the critical point
    np.testing.assert_allclose(found.mu.value, 0.0, atol=1e-10)
    np.testing.assert_allclose(found.composition.value.sum(1), 1.0, atol=1e-12)
    width = np.diff(found.composition.value)[:, 0]
    assert width[0] == 1.0 and (np.diff(width) <= 0).all() and width[-1] < 1.0
    np.testing.assert_allclose(found.mu.error, 0.0)
    np.testing.assert_allclose(found.composition.error, 0.0)


def test_the_tangent_lies_below_the_free_energy():
    """At every composition F is on or above the line through the two tangent points."""
    c = canonical(DOS, [500.0])
    found = common_tangent(c, "Au")
    f, n = c.free_energy.value[0], c.counts[:, 1]
    left, right = found.composition.value[0] * c.n_sites
    line = f[n == round(left)][0] + found.mu.value[0] * (n - left)
    assert (f - line).min() > -1e-10
    assert abs(f[n == round(right)][0] - line[n == round(right)][0]) < 1e-10


def tangent_of_samples(seed, states=STATES, dos=DOS, n=8000):
    """Canonical averages of weighted draws at coexistence and either side."""
    rng = np.random.default_rng(seed)
    at = LINE.at(750.0, [0.0])
    p = states.probabilities(at).numpy()
    counts = dos.counts[:, 1].astype(int)
    # even over compositions, so that the gap is known too
    share = np.bincount(counts, p)
    q = p / share[counts]
    q /= q.sum()
    pick = rng.choice(len(p), size=n, p=q)
    bootstrap = rng.multinomial(n, np.full(n, 1 / n), 50).T.astype(np.float32)
    log_g = -np.log(n * q[pick])
    sample = DensityOfStates(
        LATTICE,
        dos.energy[pick],
        dos.counts[pick],
        log_g,
        occupations=states.occupations[pick],
        replicas=bootstrap,
    )
    return common_tangent(canonical(sample, [750.0]), "Au", min_width=0.3)


def test_errors_of_the_tangent_cover():
    """The slope of sampled free energies agrees with symmetry within its error."""
    exact = common_tangent(canonical(DOS, [750.0]), "Au", min_width=0.3)
    z = []
    for seed in range(60):
        found = tangent_of_samples(seed)
        assert len(found.mu) == 1
        z.append(found.mu.z(0.0)[0])
        off = np.abs(found.composition.value - exact.composition.value)
        assert (off < 4.5 * np.hypot(found.composition.error, 1 / 16)).all()
    assert np.abs(z).max() < 4.5 and 0.8 < np.std(z) < 1.2, np.std(z)


def test_compositions_without_data_are_told():
    """An interval over compositions that were not sampled is given with a warning in words."""
    counts = DOS.counts[:, 1]
    part = DOS.restricted((counts < 6) | (counts > 9))
    found = common_tangent(canonical(part, [500.0]), "Au")
    assert "F is not determined everywhere between x = " in found.reason
    two = DOS.restricted((counts == 0) | (counts == 16))
    found = common_tangent(canonical(two, [500.0]), "Au")
    assert len(found.mu) == 0 and "F is determined at 2 compositions" in found.reason


def test_tangents_belong_to_two_species():
    """Ternaries and unknown species are refused."""
    lattice, ensemble, _ = SYSTEMS["ternary"]()
    dos = DensityOfStates.exact(ensemble.enumerate(lattice))
    with pytest.raises(ValueError, match="two species"):
        common_tangent(canonical(dos, [500.0]))
    with pytest.raises(ValueError, match="none of"):
        common_tangent(canonical(DOS, [500.0]), "Ag")
    with pytest.raises(ValueError, match="min_width"):
        common_tangent(canonical(DOS, [500.0]), "Au", min_width=np.nan)


# ------------------------------------------------------------------ lowest temperature
def test_the_lowest_sample_of_each_composition():
    """One row a composition, at the lowest temperature, of the lowest energy there."""
    rng = np.random.default_rng(2)
    rows = torch.as_tensor(rng.integers(0, len(STATES.energy), 3000))
    temperature = rng.choice([300.0, 400.0, 500.0], 3000)
    at = Conditions(temperature, np.zeros((3000, 2)))
    c = GAP.score(Configurations(LATTICE, at, STATES.occupations[rows]))
    found = lowest_temperature(c)
    counts, n = c.counts()[:, 0].numpy(), found.counts()[:, 0].numpy()
    assert sorted(set(counts)) == n.tolist()
    for k, value in enumerate(n):
        same = counts == value
        low = temperature[same].min()
        assert found.conditions.temperature[k] == low
        assert found.energy[k] == c.energy.numpy()[same & (temperature == low)].min()
    plain = lowest_temperature(replace(c, energy=None, log_target=None))
    assert torch.equal(plain.conditions.temperature, found.conditions.temperature)


def test_a_gap_stays_empty():
    """Samples of a separating alloy see the middle at high temperature only."""
    rng = np.random.default_rng(3)
    at = Conditions.grid([150.0, 300.0, 600.0, 1200.0], LINE.mu(np.linspace(-0.1, 0.1, 9)))
    parts = []
    for k in range(len(at)):
        pick = rng.choice(len(STATES.energy), 200, p=STATES.probabilities(at[k]).numpy())
        parts.append(Configurations(LATTICE, at[k : k + 1].repeat(200), STATES.occupations[pick]))
    found = lowest_temperature(Configurations.cat(parts))
    lowest = dict(
        zip(found.counts()[:, 1].tolist(), found.conditions.temperature.tolist(), strict=True)
    )
    assert lowest[0] == lowest[16] == 150.0 and lowest[7] >= 600.0


def test_no_samples_and_unknown_sites_are_refused():
    """Nothing is the lowest of nothing."""
    at = Conditions([300.0], [[0.0, 0.0]])
    with pytest.raises(ValueError, match="no configurations"):
        lowest_temperature(Configurations.unknown(LATTICE, at)[:0])
    with pytest.raises(ValueError, match="unknown sites"):
        lowest_temperature(Configurations.unknown(LATTICE, at))


# ------------------------------------------------------------------ alpha shape
def test_an_outline_closes():
    """Every point of an outline has an even number of edges, whatever the radius."""
    points = np.random.default_rng(4).random((300, 2)) * [1.0, 900.0]
    for radius in (0.05, 0.1, 0.3, np.inf):
        edges = alpha_shape(points, radius)
        assert len(edges) and (np.bincount(edges.ravel()) % 2 == 0).all()


def test_a_dent_is_seen_by_a_small_radius_only():
    """Points of a ring: the hole has an outline if the radius is smaller than it."""
    angle = np.random.default_rng(5).random(2000) * 2 * np.pi
    r = np.sqrt(np.random.default_rng(6).uniform(0.64, 1.0, 2000))
    points = np.stack([r * np.cos(angle), r * np.sin(angle)], 1)
    inside = lambda edges: (np.linalg.norm(points[edges], axis=2) < 0.85).all(1).sum()  # noqa: E731
    assert inside(alpha_shape(points, 0.08)) > 20
    assert inside(alpha_shape(points, np.inf)) == 0


def test_the_outline_does_not_depend_on_units():
    """Kelvin or millikelvin, shares or percent."""
    points = np.random.default_rng(7).random((60, 2))
    a, b = alpha_shape(points, 0.2), alpha_shape(points * [100, 1e6] + 5, 0.2)
    assert np.array_equal(a, b)


def test_clouds_without_an_area_are_refused():
    """Lines, too few points, NaN and wrong radii."""
    line = np.stack([np.arange(5.0), np.arange(5.0)], 1)
    for bad in (line, line * [1, 0], line[:2], line.ravel(), np.full((4, 2), np.nan)):
        with pytest.raises(ValueError, match="outline"):
            alpha_shape(bad, 1.0)
    with pytest.raises(ValueError, match="radius"):
        alpha_shape(np.eye(3)[:, :2], 0.0)


# ------------------------------------------------------------------ bad input
@pytest.mark.parametrize("recipe", [greatest_composition_jump, heat_capacity_peak])
def test_averages_must_lie_on_the_line(recipe):
    """Empty data, other species and other lines are refused."""
    with pytest.raises(ValueError, match="no averages"):
        recipe(Averages(), LINE)
    c = SMALL.averages(grid([400.0], [0.0, 0.1]))
    foreign = ChemicalPotentialLine("Ag", [0.0, 1.0], [0.0, 0.0], "mu_Ag (eV)")
    with pytest.raises(ValueError, match="none of"):
        recipe(c, foreign)
    lattice, ensemble, _ = SYSTEMS["ternary"]()
    dos = DensityOfStates.exact(ensemble.enumerate(lattice))
    off = dos.averages(Conditions([3000.0, 3000.0], [[0.0, 0.0, 0.0], [0.0, 0.0, 0.1]]))
    with pytest.raises(ValueError, match="off the line"):
        recipe(off, ChemicalPotentialLine.exchange(lattice, "Au", "Cu"))


def test_an_empty_window_is_refused():
    """low < high."""
    with pytest.raises(ValueError, match="window"):
        greatest_composition_jump(SMALL.averages(grid([400.0], [0.0, 0.1])), LINE, (0.1, 0.1))
