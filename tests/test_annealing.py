"""Laws of annealing: unbiased Z for every path, honest errors, rows read as ordinary draws."""

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from annealing_toys import Blind, MeanField, MetropolisMove
from toys import SYSTEMS, binary

from clease_nn.conditions import Conditions
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.sampling import anneal, sample
from clease_nn.sampling import annealing as annealing_module
from clease_nn.sampling.block_moves import BlockMoves
from clease_nn.sampling.paths import (
    equal_lengths,
    interpolate,
    systematic,
    thermodynamic_length,
)
from clease_nn.statistics import normalized_ess
from clease_nn.thermodynamics import averages, log_z, mean
from clease_nn.warnings import InterruptedWarning, LowESSWarning

REPLICAS, ROWS = 20, 200
POINTS = np.array([0.3, 0.5, 0.7, 0.9])


def made(name):
    """Lattice, ensemble and a range of which a crude model knows every phase."""
    lattice, ensemble, box = SYSTEMS[name]()
    factor = {"binary": 2.0, "ternary": 2.0, "two_sublattices": 5.0}[name]
    return lattice, ensemble, replace(box, temperature=tuple(factor * t for t in box.temperature))


@pytest.fixture(params=sorted(SYSTEMS))
def system(request):
    return made(request.param)


def targets(box):
    """Four conditions spread over a range."""
    unit = np.stack([np.roll(POINTS, 2 * k) for k in range(1 + box.n_axes)], 1)
    return box.at(unit)


def hot(box):
    """A start far from all of them."""
    return box.at([[0.8] + [0.4] * box.n_axes])


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def quiet(*args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LowESSWarning)
        return anneal(*args, progress=False, **kwargs)


PATHS = {
    "two steps": {"steps": 2},
    "six steps": {"steps": 6, "sweeps": 2},
    "populations": {"steps": 3, "population": 3},
    "larger populations": {"steps": 2, "population": 6},
}


@pytest.mark.parametrize(
    ("system_name", "name"),
    [
        *((s, name) for s in sorted(SYSTEMS) for name in ("six steps", "populations")),
        ("binary", "two steps"),
        ("ternary", "larger populations"),
    ],
)
def test_z_is_unbiased_and_errors_are_honest(system_name, name):
    """For every path mean(w) = Z, and ln Z, E and N_0 scatter as much as their errors say."""
    lattice, ensemble, box = made(system_name)
    conditions, exact = targets(box), ensemble.enumerate(lattice)
    n = REPLICAS * ROWS
    c = quiet(
        MeanField(box), ensemble, lattice, conditions, rng(3), n=n, start=hot(box), **PATHS[name]
    )
    ratio = (c.log_weight.view(len(conditions), n) - exact.log_z(conditions)[:, None]).exp()
    z = (ratio.mean(1) - 1) / (ratio.std(1) / np.sqrt(n))
    assert (z.abs() < 4.5).all()
    counts = (exact.occupations == 0).sum(1).double()
    want = exact.log_z(conditions), *(exact.mean(conditions, v) for v in (exact.energy, counts))
    scores = []
    for k in range(REPLICAS):
        rows = torch.arange(n).view(REPLICAS, ROWS)[k]
        part = c[(torch.arange(len(conditions))[:, None] * n + rows).ravel()]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LowESSWarning)
            found = averages(part)
            number = mean(part, part.counts()[:, 0])
        for j, a in enumerate(found):
            scores.append(
                (
                    a.log_z.z(want[0][j]),
                    a.energy.z(want[1][j]),
                    number[j].z(want[2][j]),
                )
            )
    scores = np.array(scores)
    assert len(scores) >= 40
    assert (np.abs(scores.mean(0)) * np.sqrt(len(scores)) < 4.5).all()
    assert ((scores.std(0) > 0.8) & (scores.std(0) < 1.2)).all()


def test_measured_paths_are_unbiased_from_chosen_starts(system):
    """Start and steps from pilots, targets below the trained range: mean(w) = Z."""
    lattice, ensemble, box = system
    low = Conditions(box.at([[0.0] + [0.5] * box.n_axes]).temperature * 0.6, targets(box).mu[:1])
    conditions = Conditions.cat([low, targets(box)])
    c = quiet(MeanField(box, 0.4), ensemble, lattice, conditions, rng(5), n=1000)
    exact = ensemble.enumerate(lattice).log_z(conditions)
    assert (np.abs(log_z(c).z(exact)) < 4.5).all()
    paths = c.provenance["paths"]
    assert all(box.temperature[0] * 0.999 <= p["start_temperature"] for p in paths)
    assert np.mean([p["ness"] for p in paths]) > 0.5


def test_energies_without_tables_are_annealed_alike():
    """An energy that is a mere function gives the same ln Z, with a model that sees no energy."""
    lattice, ensemble, box = binary()
    plain = SemiGrandCanonical(lambda lattice, x: ensemble.energy(lattice, x))
    conditions = targets(box)[:2]
    c = quiet(Blind(box), plain, lattice, conditions, rng(1), n=600, start=hot(box), steps=4)
    assert (np.abs(log_z(c).z(ensemble.enumerate(lattice).log_z(conditions))) < 4.5).all()


def test_random_configurations_need_no_model(system):
    """Without a model paths begin at infinite temperature: ln Z is exact within errors."""
    lattice, ensemble, box = system
    conditions = targets(box)
    c = quiet(None, ensemble, lattice, conditions, rng(2), n=2000, steps=8)
    assert (np.abs(log_z(c).z(ensemble.enumerate(lattice).log_z(conditions))) < 4.5).all()
    assert c.provenance["paths"][0]["start_temperature"] is None


def test_one_step_is_plain_importance_sampling():
    """A path of one step gives the draws of the start, bitwise, weighted for the target."""
    lattice, ensemble, box = binary()
    model, start = MeanField(box), hot(box)
    drawn = sample(model, ensemble, lattice, start.repeat(50), rng(4))
    for target in (start, targets(box)[:1]):
        c = quiet(model, ensemble, lattice, target, rng(4), n=50, start=start, steps=1)
        assert torch.equal(c.occupations, drawn.occupations)
        assert torch.equal(c.log_prob, drawn.log_prob)
        there = ensemble.score(replace(drawn, conditions=target.repeat(50)))
        assert torch.equal(c.log_weight, there.log_weight)


def test_paths_that_are_given_are_followed():
    """Fractions of an earlier result make the same path; a bare number spaces them evenly."""
    lattice, ensemble, box = binary()
    places = [0.1, 0.35, 1.0]
    c = quiet(
        MeanField(box), ensemble, lattice, targets(box)[:1], rng(), n=1000, start=hot(box),
        steps=places,
    )  # fmt: skip
    assert c.provenance["paths"][0]["fractions"] == places
    assert abs(log_z(c).z(ensemble.enumerate(lattice).log_z(targets(box)[:1]))[0]) < 4.5
    even = quiet(None, ensemble, lattice, targets(box)[:1], rng(), n=2, steps=4)
    assert even.provenance["paths"][0]["fractions"] == [0.25, 0.5, 0.75, 1.0]


def test_moves_at_one_condition_leave_every_weight():
    """Start and target the same: configurations move on, weights stay."""
    lattice, ensemble, box = binary()
    model, start = MeanField(box), hot(box)
    drawn = sample(model, ensemble, lattice, start.repeat(50), rng(4))
    c = quiet(model, ensemble, lattice, start, rng(4), n=50, start=start, steps=6)
    assert torch.allclose(c.log_weight, drawn.log_weight, rtol=0, atol=1e-9)
    assert not torch.equal(c.occupations, drawn.occupations)


def test_more_steps_make_smaller_errors():
    """Four times the steps, fewer and fewer weights lost."""
    lattice, ensemble, box = binary()
    cold = Conditions([300.0], box.at([[0.0, 0.6]]).mu)
    ness = [
        normalized_ess(
            quiet(
                None, ensemble, lattice, cold, rng(6), n=1000, steps=steps
            ).log_weight
        )
        for steps in (2, 8, 32, 128)
    ]  # fmt: skip
    assert (np.diff(ness) > 0.02).all()
    assert ness[-1] > 0.9


def test_log_prob_serves_other_conditions_too():
    """exp(-log_prob) weighs every state evenly: Z of another condition is unbiased as well."""
    lattice, ensemble, box = binary()
    first, other = targets(box)[2], targets(box)[3]
    for population in (1, 4):
        c = quiet(
            MeanField(box), ensemble, lattice, first, rng(7), n=3000, start=hot(box), steps=4,
            population=population,
        )  # fmt: skip
        there = ensemble.score(replace(c, conditions=other.repeat(3000)))
        assert abs(log_z(there).z(ensemble.enumerate(lattice).log_z(other))[0]) < 4.5


@pytest.mark.filterwarnings("ignore::clease_nn.warnings.LowESSWarning")
@pytest.mark.parametrize("blocks", [False, True])
def test_further_moves_keep_the_target(blocks):
    """With other exact moves instead of sweeps ln Z and energy stay right, and cost is counted."""
    lattice, ensemble, box = binary()
    moves = (
        BlockMoves(MeanField(box), ensemble, lattice, rng(1), size=4)
        if blocks
        else MetropolisMove(ensemble)
    )
    conditions, exact = targets(box), ensemble.enumerate(lattice)
    n = 400 if blocks else 1500
    c = quiet(
        MeanField(box), ensemble, lattice, conditions, rng(8), n=n, start=hot(box), steps=5,
        sweeps=0, moves=moves,
    )  # fmt: skip
    assert (np.abs(log_z(c).z(exact.log_z(conditions))) < 4.5).all()
    energy = [a.energy.z(exact.mean(conditions[k], exact.energy)[0]) for k, a in
              enumerate(averages(c))]  # fmt: skip
    assert (np.abs(energy) < 4.5).all()
    assert all(0 < p["move_acceptance"] <= 1 for p in c.provenance["paths"])
    assert c.cost.network_passes >= getattr(moves, "network_passes", 0) >= 16 * blocks


def test_populations_rescue_degenerate_walks():
    """Where single walks keep few effective rows, rows of populations keep many."""
    lattice, ensemble, box = binary()
    cold = Conditions([250.0], box.at([[0.0, 0.9]]).mu)
    single, many = (
        quiet(None, ensemble, lattice, cold, rng(9), n=500, steps=6, population=p) for p in (1, 16)
    )
    assert normalized_ess(many.log_weight) > 2 * normalized_ess(single.log_weight)
    [path] = many.provenance["paths"]
    assert path["resamplings"] > 0
    assert 1 <= path["survivors"] < 16


def test_systematic_resampling_keeps_expectations():
    """Every member is kept m W times on average, and never more than one time off."""
    generator = np.random.default_rng(0)
    log_w = generator.normal(size=(3, 7))
    w = np.exp(log_w) / np.exp(log_w).sum(1, keepdims=True)
    kept = np.array(
        [
            [np.bincount(row, minlength=7) for row in systematic(log_w, generator)]
            for _ in range(4000)
        ]
    )
    assert (np.abs(kept - 7 * w) < 1 + 1e-9).all()
    share = 7 * w % 1  # variance of a count between two whole numbers
    error = np.sqrt(share * (1 - share) / 4000)
    assert (np.abs(kept.mean(0) - 7 * w) < 4.5 * error + 1e-12).all()


def test_paths_are_straight_in_ln_w():
    """ln w at a fraction f is (1 - f) ln w(start) + f ln w(target), and ends at the target."""
    lattice, ensemble, box = binary()
    start, target = hot(box), targets(box)[0]
    x = ensemble.enumerate(lattice)
    fractions = [0.25, 0.5, 1.0]
    path = interpolate(start, target, fractions)
    for k, f in enumerate(fractions):
        expected = (1 - f) * x.log_target(start) + f * x.log_target(target)
        assert torch.allclose(x.log_target(path[k]), expected, rtol=0, atol=1e-9)
        from_random = x.log_target(interpolate(None, target, [f]))
        assert torch.allclose(from_random, f * x.log_target(target), rtol=0, atol=1e-9)
    assert torch.equal(path[2].temperature, target.temperature)
    assert torch.equal(path[2].mu, target.mu)


def test_length_of_a_path_between_gaussians_is_exact():
    """ln w(target) - ln w(start) of constant spread s: the length is s, in even steps."""
    generator, s, n = np.random.default_rng(1), 4.0, 20000

    def relax(fraction, log_factor):
        return generator.normal(fraction * s**2, s, n)

    knots, lengths = thermodynamic_length(generator.normal(0.0, s, n), relax)
    assert knots[-1] == 1.0
    assert abs(lengths[-1] / s - 1) < 0.05
    assert np.allclose(equal_lengths(knots, lengths, 5), np.arange(1, 6) / 5, atol=0.03)


def test_results_follow_from_the_seed():
    """The same generator state gives the same rows, another one others."""
    lattice, ensemble, box = binary()
    runs = [
        quiet(MeanField(box), ensemble, lattice, targets(box)[:2], rng(s), n=20, population=2)
        for s in (1, 1, 2)
    ]
    assert torch.equal(runs[0].occupations, runs[1].occupations)
    assert torch.equal(runs[0].log_prob, runs[1].log_prob)
    assert not torch.equal(runs[0].occupations, runs[2].occupations)


def test_result_tells_of_every_path_and_its_cost(monkeypatch):
    """Rows in the order of the conditions, whatever walks at once; JSON-ready provenance."""
    monkeypatch.setattr(annealing_module, "_AT_ONCE", 8 * 7)
    lattice, ensemble, box = binary()
    conditions = targets(box)
    c = quiet(MeanField(box), ensemble, lattice, conditions, rng(), n=20, start=hot(box), steps=3)
    assert torch.equal(c.conditions.mu, conditions.repeat(20).mu)
    assert c.chain is None
    assert c.step is None
    paths = json.loads(json.dumps(c.provenance))["paths"]
    assert [p["steps"] for p in paths] == [3] * 4
    assert all(0 < p["path_ness"] <= 1 and 0 < p["acceptance"] < 1 for p in paths)
    # two sweeps of 8 sites of 80 rows, and energies of whole configurations
    assert c.cost.attempts_per_site >= 4 * 20 * 2
    assert c.cost.energy_evaluations >= 4 * 20 * 2 * 8


def test_degenerate_weights_are_told_in_words():
    """Short paths say how many steps would do; bad starts say that they are bad."""
    lattice, ensemble, box = binary()
    cold = Conditions([60.0], box.at([[0.0, 0.9]]).mu)
    with pytest.warns(LowESSWarning, match=r"path of 2 steps is too short: try steps=\d+"):
        anneal(None, ensemble, lattice, cold, rng(), n=300, steps=2, progress=False)
    wrong = MeanField(box, softness=-2.0)
    with pytest.warns(LowESSWarning, match="start where the model is better"):
        anneal(
            wrong, ensemble, lattice, hot(box), rng(), n=300, start=box.at([[0.0, 1.0]]), steps=2,
            progress=False,
        )  # fmt: skip


def test_interruption_keeps_finished_conditions(monkeypatch):
    """After Ctrl-C finished conditions come back with a warning; with none it goes on up."""
    lattice, ensemble, box = binary()
    run, calls = annealing_module._Task.run, []

    def interrupted(self, *args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run(self, *args)

    monkeypatch.setattr(annealing_module._Task, "run", interrupted)
    arguments = (MeanField(box), ensemble, lattice, targets(box), rng())
    with pytest.warns(InterruptedWarning, match="2 of 4 conditions"):
        c = anneal(*arguments, n=20, start=hot(box), steps=2, progress=False)
    assert len(c) == 40
    calls[:] = [(), ()]
    with pytest.raises(KeyboardInterrupt):
        anneal(*arguments, n=20, start=hot(box), steps=2, progress=False)
