"""Laws of condition schedules: inside of the box, the promised distribution, exact continuation."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from clease_nn.conditions import ConditionRange, Conditions
from clease_nn.io import read_state, write_state
from clease_nn.schedules import (
    Annealing,
    FixedGrid,
    RandomWalk,
    UniformRandom,
    require_inside,
    require_schedule_inside,
)

BOX = ConditionRange((300, 1200), [-0.1, 0.0], [0.1, 0.4], [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


def grid(n=5):
    return BOX.at(np.random.default_rng(0).random((n, 3)))


SCHEDULES = {
    "grid": lambda: FixedGrid(grid(), BOX),
    "permuted": lambda: FixedGrid(grid(), BOX, permuted=True, seed=3),
    "uniform": lambda: UniformRandom(BOX, seed=3),
    "walk": lambda: RandomWalk(BOX, 100.0, [0.05, 0.1], seed=3),
    "annealing": lambda: Annealing(RandomWalk(BOX, 100.0, 0.05, seed=3), 1000.0, 0.9),
}


def same(a: Conditions, b: Conditions) -> bool:
    return torch.equal(a.temperature, b.temperature) and torch.equal(a.mu, b.mu)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_every_condition_lies_in_the_box(name):
    """Also with steps as wide as the box and long walks."""
    schedule = SCHEDULES[name]()
    for n in (1, 4, 4, 7, 2):
        conditions = schedule(n)
        assert len(conditions) == n and BOX.contains(conditions).all()


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_continued_from_a_file_is_uninterrupted(name, tmp_path):
    """A schedule continued from its state gives the bitwise same conditions."""
    a, b = SCHEDULES[name](), SCHEDULES[name]()
    for n in (3, 4):
        a(n)
    write_state(tmp_path / "s", "schedule", a.state_dict())
    b.load_state_dict(read_state(tmp_path / "s", "schedule"))
    for n in (4, 4, 6):
        assert same(a(n), b(n))


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_a_state_is_a_picture_not_a_window(name):
    """Going on does not change a state that was taken."""
    schedule, other = SCHEDULES[name](), SCHEDULES[name]()
    schedule(4)
    state = schedule.state_dict()
    first = schedule(4)
    schedule(4)
    other.load_state_dict(state)
    assert same(other(4), first)


def test_a_grid_is_gone_through_in_order_and_again():
    """Cyclic, also where a call takes more than a round."""
    conditions = grid(5)
    schedule = FixedGrid(conditions)
    seen = Conditions.cat([schedule(3), schedule(9), schedule(3)])
    assert same(seen, conditions[torch.arange(15) % 5])


def test_a_permuted_grid_visits_everything_equally_often():
    """Each round holds every condition once, in another order."""
    conditions = grid(5)
    schedule = FixedGrid(conditions, permuted=True)
    rounds = [schedule(5).temperature for _ in range(20)]
    want = conditions.temperature.sort().values
    assert all(torch.equal(r.sort().values, want) for r in rounds)
    assert len({tuple(r.tolist()) for r in rounds}) > 5


@pytest.mark.parametrize("make", [SCHEDULES["uniform"], SCHEDULES["walk"]])
def test_random_conditions_are_uniform(make):
    """Kolmogorov-Smirnov test of temperature and every coordinate, late in the run.

    Independent walkers at one late time are independent samples.
    """
    schedule = make()
    for _ in range(40):
        conditions = schedule(2000)
    x = np.column_stack([conditions.temperature.numpy(), BOX.coordinates(conditions)])
    low = np.array([300, -0.1, 0.0])
    width = np.array([900, 0.2, 0.4])
    for column in ((x - low) / width).T:
        assert kstest(column, "uniform").pvalue > 1e-4


def test_a_single_walker_covers_the_box_in_the_long_run():
    """Time averages of one walker are those of the uniform distribution."""
    walk = RandomWalk(BOX, 300.0, [0.1, 0.2], seed=0)
    t = np.array([walk(1).temperature.item() for _ in range(6000)])
    # about 10 steps to forget: an error of 260 / sqrt(600) = 11 K
    assert abs(t.mean() - 750) < 45
    assert abs(t.std() - 900 / np.sqrt(12)) < 30


def test_steps_of_a_walk_have_the_given_size():
    """Far from the faces steps are Gaussian of the standard deviations given."""
    walk = RandomWalk(BOX, 9.0, [0.002, 0.004], seed=0)
    a, b = walk(5000), walk(5000)
    difference = BOX.coordinates(b) - BOX.coordinates(a)
    inside = (a.temperature > 350) & (a.temperature < 1150)
    assert (b.temperature - a.temperature)[inside].std().item() == pytest.approx(9.0, rel=0.05)
    assert difference[:, 0].std() == pytest.approx(0.002, rel=0.05)
    assert difference[:, 1].std() == pytest.approx(0.004, rel=0.05)


@pytest.mark.parametrize(
    "schedule, inside",
    [
        (RandomWalk(BOX, 100.0, 0.05), False),
        (Annealing(RandomWalk(BOX, 100.0, 0.05), 1000.0, 0.9), False),
        (FixedGrid(BOX.at([[0.4, 0.5, 0.5]]), BOX), True),
        (Annealing(FixedGrid(BOX.at([[0.4, 0.5, 0.5]])), 550.0, 0.9), True),
        (Annealing(FixedGrid(BOX.at([[0.4, 0.5, 0.5]])), 800.0, 0.9), False),
    ],
)
def test_a_schedule_that_may_leave_a_box_is_refused_before_it_does(schedule, inside):
    """Hours of training may pass before a walk in a wider box comes to its end."""
    smaller = ConditionRange((400, 600), [-0.1, 0.0], [0.1, 0.4], BOX.axes)
    with nullcontext() if inside else pytest.raises(ValueError, match=r"schedule \d+ \("):
        require_schedule_inside(smaller, schedule)


def test_annealing_is_a_falling_floor():
    """max(T, start * rate**step), mu untouched; the inner schedule is reached in the end."""
    inner, outer = UniformRandom(BOX, seed=5), Annealing(UniformRandom(BOX, seed=5), 900.0, 0.8)
    for step in range(12):
        a, b = inner(50), outer(50)
        assert torch.equal(b.temperature, a.temperature.clamp_min(900.0 * 0.8**step))
        assert torch.equal(a.mu, b.mu)
    assert same(a, b)


@pytest.mark.parametrize(
    "make, match",
    [
        (lambda: FixedGrid(grid()[:0]), "at least 1 condition"),
        (lambda: FixedGrid(Conditions([200.0], [[0, 0, 0]]), BOX), r"200 K.*300 to 1200 K"),
        (lambda: RandomWalk(BOX, 0.0, 0.1), r"temperature_step.*900 K.*got 0 K"),
        (lambda: RandomWalk(BOX, 1000.0, 0.1), r"temperature_step.*900 K.*got 1000 K"),
        (lambda: RandomWalk(BOX, 10.0, -0.1), r"mu_step must be positive.*got -0.1 eV"),
        (lambda: RandomWalk(BOX, 10.0, 0.3), r"mu_step.*0.2 eV; got 0.3 eV"),
        (lambda: RandomWalk(BOX, 10.0, [0.1, 0.1, 0.1]), r"one number or 2"),
        (lambda: Annealing(UniformRandom(BOX), 1300.0, 0.9), r"300 to 1200 K; got 1300 K"),
        (lambda: Annealing(UniformRandom(BOX), 100.0, 0.9), r"300 to 1200 K; got 100 K"),
        (lambda: Annealing(FixedGrid(grid()), -1.0, 0.9), r"must be positive, got -1 K"),
        (lambda: Annealing(UniformRandom(BOX), 900.0, 1.1), r"\(0, 1\], got 1.1"),
        (lambda: Annealing(UniformRandom(BOX), 900.0, 0.0), r"\(0, 1\], got 0"),
        (lambda: require_inside(BOX, Conditions([400.0], [[0.5, 0, 0]])), "outside of the box"),
    ],
)
def test_what_would_leave_the_box_is_refused(make, match):
    """The message names value and limit."""
    with pytest.raises(ValueError, match=match):
        make()
