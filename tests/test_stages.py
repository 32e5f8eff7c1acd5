"""Laws of training in stages: every way of training improves, stages switch, resume is exact."""

import math

import numpy as np
import pytest
import torch
from training_toys import ising, model

from clease_nn.diagnostics import kl_gap
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.io import ModelFileError, read_state
from clease_nn.objectives import LogVariance, Reinforce, cross_entropy
from clease_nn.sampling import sample
from clease_nn.schedules import Annealing, FixedGrid, RandomWalk
from clease_nn.sources import GeneratedSource, ParallelTemperingSource, ReplaySource
from clease_nn.training import Stage, fit
from clease_nn.training.trainer import Trainer
from clease_nn.warnings import TrainingWarning


def tempering(system, seed=0):
    lattice, ensemble, box = system
    return ParallelTemperingSource(ensemble, lattice, box, shape=(6, 6), burn_in=20, seed=seed)


def generated(system, **options):
    lattice, ensemble, box = system
    return GeneratedSource(ensemble, lattice, box, n_conditions=8, **options)


def replay(system, **options):
    lattice, ensemble, box = system
    return ReplaySource(ensemble, lattice, box, n_conditions=8, **options)


def run(system, stages, steps, kind="any", batch_size=64, learning_rate=1e-2, **options):
    lattice, ensemble, box = system
    return fit(
        ensemble, lattice, box, max_steps=steps, model=model(kind, lattice, width=32),
        stages=stages, batch_size=batch_size, learning_rate=learning_rate, progress=False,
        validation_samples=16, **options,
    )  # fmt: skip


def gaps(system, of):
    """Mean KL gap against enumeration, and the largest z of ln Z."""
    lattice, ensemble, box = system
    grid = box.grid(2, 2)
    exact = ensemble.enumerate(lattice).log_z(grid)
    c = sample(of, ensemble, lattice, grid.repeat(300), torch.Generator().manual_seed(0))
    log_w = c.log_weight.view(len(grid), 300)
    w = torch.exp(log_w - exact[:, None])
    z = (w.mean(1) - 1) / (w.std(1) / np.sqrt(300))
    return float(kl_gap(log_w, exact).mean()), float(z.abs().max())


WAYS = {
    "standardized": ("any", lambda s: [Stage(generated(s, passes=3), Reinforce())]),
    "leave_one_out": ("fixed", lambda s: [Stage(generated(s), Reinforce("leave_one_out"))]),
    "grand_potential": ("fixed", lambda s: [Stage(generated(s), Reinforce("grand_potential"))]),
    "log_variance": ("fixed", lambda s: [Stage(generated(s), LogVariance())]),
    "replay any": ("any", lambda s: [Stage(replay(s))]),
    "replay fixed": ("fixed", lambda s: [Stage(replay(s))]),
    "tempering fixed": ("fixed", lambda s: [Stage(tempering(s))]),
}


@pytest.fixture
def short_average(monkeypatch):
    """Weights averaged over about ten steps: the usual hundred are more than these runs have."""
    monkeypatch.setattr("clease_nn.training.trainer._EMA", 0.9)


@pytest.mark.parametrize("way", sorted(WAYS))
def test_every_way_of_training_lowers_the_kl_gap(way, short_average):
    """A short training on four sites: gap far below the untrained one, ln Z exact within errors."""
    system = ising()
    kind, stages = WAYS[way]
    before, _ = gaps(system, model(kind, system[0], width=32))
    trained = run(system, stages(system), 100, kind, learning_rate=2e-2)
    after, z = gaps(system, trained.model)
    assert after < 0.2 * before and after < 0.3
    assert z < 4.5


def test_stages_switch_at_their_shares():
    """Shares 1 : 3 of 40 steps are 10 and 30; names and energies are recorded."""
    system = ising()
    seen = []

    def watched(model, batch):
        seen.append("second")
        return cross_entropy(model, batch)

    first = generated(system)
    stages = [Stage(first, Reinforce(), 1.0), Stage(tempering(system), watched, 3.0)]
    done = run(system, stages, 40).metadata
    assert [s["steps"] for s in done["stages"]] == [10, 30]
    assert len(seen) == 31  # one call compiles
    assert done["stages"][0]["source"] == "GeneratedSource"
    assert done["stages"][0]["objective"] == repr(Reinforce())
    assert done["stages"][1]["objective"] == "watched"
    assert done["stages"][0]["energy_evaluations"] == 11 * 64
    assert done["energy_evaluations"] == sum(s["energy_evaluations"] for s in done["stages"])


def test_a_source_of_two_stages_counts_once():
    """Warm up and finish on the same draws: one state, one count."""
    system = ising()
    source = generated(system)
    done = run(system, [Stage(source, Reinforce()), Stage(source, LogVariance())], 8).metadata
    assert done["energy_evaluations"] == source.energy_evaluations == 10 * 64
    assert [s["steps"] for s in done["stages"]] == [4, 4]


def test_warm_up_by_one_finish_by_another(short_average):
    """Parallel tempering first, then the model's own draws on an annealed random walk."""
    system = ising()
    schedule = Annealing(RandomWalk(system[2], 3000.0, 0.1), 50000.0, 0.9)
    stages = [
        Stage(tempering(system)),
        Stage(generated(system, passes=3, schedule=schedule), Reinforce("leave_one_out")),
    ]
    trained = run(system, stages, 100)
    gap, z = gaps(system, trained.model)
    assert gap < 0.2 and z < 4.5
    assert math.isfinite(trained.metadata["validation"]["forward_kl_mean_nats"])


def several(system):
    return [
        Stage(generated(system, passes=2), Reinforce()),
        Stage(replay(system, every=2, keep=3)),
        Stage(generated(system, passes=2, seed=5), LogVariance()),
    ]


@pytest.fixture(scope="module")
def uninterrupted():
    """Runs of 16 steps without a break, by kind of model."""
    system = ising()
    return {kind: run(system, several(system), 16, kind) for kind in ("any", "fixed")}


@pytest.mark.parametrize("kind, at", [("any", 2), ("any", 8), ("fixed", 7), ("fixed", 14)])
def test_interrupted_and_resumed_is_uninterrupted(tmp_path, monkeypatch, uninterrupted, kind, at):
    """Interrupted in any stage, or between two, a run ends at the bitwise same weights."""
    system, whole = ising(), uninterrupted[kind]
    step = Trainer.step

    def interrupted(self, progress):
        if self.step_count == at:
            raise KeyboardInterrupt
        return step(self, progress)

    with monkeypatch.context() as m:
        m.setattr(Trainer, "step", interrupted)
        with pytest.warns(TrainingWarning, match=f"interrupted after {at} steps"):
            run(system, several(system), 16, kind, checkpoint=tmp_path / "c")
    resumed = run(system, several(system), 16, kind, checkpoint=tmp_path / "c")
    for p, q in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(p, q)
    for name in ("stages", "validation"):
        assert whole.metadata[name] == resumed.metadata[name]


def test_an_interrupt_before_the_first_step_resumes_exactly(tmp_path, monkeypatch):
    """Warming up is not repeated by a run that goes on from step 0."""
    system = ising()
    whole = run(system, several(system), 4)

    def interrupted(self, progress):
        raise KeyboardInterrupt

    with monkeypatch.context() as m, pytest.warns(TrainingWarning, match="after 0 steps"):
        m.setattr(Trainer, "step", interrupted)
        run(system, several(system), 4, checkpoint=tmp_path / "c")
    resumed = run(system, several(system), 4, checkpoint=tmp_path / "c")
    for p, q in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.fixture(scope="module")
def checkpoint_of_several(tmp_path_factory):
    """A checkpoint of three stages; whoever is refused leaves it as it is."""
    path = tmp_path_factory.mktemp("stages") / "c"
    run(ising(), several(ising()), 2, checkpoint=path)
    return path


@pytest.mark.parametrize(
    "change, match",
    [
        (lambda s: [Stage(generated(s), Reinforce())], r"other stages: 3, .*; this run has 1"),
        (lambda s: several(s)[::-1], r"LogVariance\(\) on GeneratedSource then"),
        (lambda s: [several(s)[0], several(s)[0], several(s)[2]], "cross_entropy on ReplaySource"),
        (
            lambda s: [Stage(generated(s), Reinforce("leave_one_out")), *several(s)[1:]],
            "leave_one_out",
        ),
    ],
)
def test_checkpoint_of_other_stages_is_refused(checkpoint_of_several, change, match):
    """Another number, order, source, objective or setting of one; both lists are named."""
    system = ising()
    with pytest.raises(ModelFileError, match=match):
        run(system, change(system), 4, checkpoint=checkpoint_of_several)


def test_without_independent_chains_a_lost_mode_cannot_be_seen(capsys):
    """An energy that chains cannot use cheaply: the report says so, and a warning."""
    lattice, ensemble, box = ising()
    bare = SemiGrandCanonical(lambda lattice, x: ensemble.energy(lattice, x))
    with pytest.warns(TrainingWarning, match="no independent chains: a lost mode cannot be seen"):
        out = run((lattice, bare, box), [Stage(replay((lattice, bare, box)))], 20)
    assert "forward_kl_mean_nats" not in out.metadata["validation"]
    assert out.metadata["independent_chains"] is False


def test_a_run_needs_stages():
    """An empty list is refused; so is a share that is not positive."""
    system = ising()
    with pytest.raises(ValueError, match="at least one stage"):
        run(system, [], 1)
    for share in (0, math.inf, math.nan):
        with pytest.raises(ValueError, match="share of a stage must be positive and finite, got"):
            Stage(generated(system), Reinforce(), share)


def test_a_gradient_that_is_not_finite_reaches_no_weights(tmp_path):
    """The run ends with an error; the checkpoint holds the finite weights before that step."""
    system = ising()

    def diverging(model, batch):
        loss, metrics = cross_entropy(model, batch)
        return torch.sqrt(loss - loss.detach()) + loss, metrics  # sqrt'(0) is infinite

    stages = [Stage(generated(system), cross_entropy), Stage(generated(system), diverging)]
    with pytest.raises(FloatingPointError, match=r"gradient is (nan|inf) at step 4; lower"):
        run(system, stages, 8, checkpoint=tmp_path / "c")
    state = read_state(tmp_path / "c", "checkpoint")
    assert state["step"] == 4
    assert all(torch.isfinite(p).all() for p in state["model"].values())


def test_checkpoint_of_sources_with_other_settings_is_refused(tmp_path):
    """Another schedule, and one source of two stages instead of two."""
    system = ising()
    run(system, [Stage(generated(system), Reinforce())] * 2, 2, checkpoint=tmp_path / "c")
    source = generated(system)
    for stages in (
        [Stage(source, Reinforce()), Stage(generated(system), Reinforce())],
        [Stage(generated(system, schedule=FixedGrid(system[2].grid(2, 2))), Reinforce())] * 2,
    ):
        with pytest.raises(ModelFileError, match="sources of other settings"):
            run(system, stages, 4, checkpoint=tmp_path / "c")


@pytest.mark.parametrize("source", [generated, replay])
def test_training_goes_on_with_the_configurations_whose_energies_failed(tmp_path, source):
    """A run that an energy ended, continued, is bitwise one in which it never failed."""
    lattice, ensemble, box = ising()
    calls = []

    def failing(lattice, occupations):
        calls.append(occupations.clone())
        if len(calls) == 5:  # one probe, one to warm up: in the third step
            raise RuntimeError("the code crashed")
        return ensemble.energy(lattice, occupations)

    bare = lattice, SemiGrandCanonical(failing), box
    every = {"every": 1} if source is replay else {}
    objective = cross_entropy if source is replay else Reinforce()

    def go(of, **options):
        return run(of, [Stage(source(of, **every), objective)], 6, **options)

    with pytest.raises(RuntimeError, match="the code crashed") as raised:
        go(bare, checkpoint=tmp_path / "c")
    assert "after 2 steps" in raised.value.__notes__[-1]
    failed = calls[4]
    calls[:] = calls[:2]  # never again the fifth
    calls.extend([failed] * 4)
    resumed = go(bare, checkpoint=tmp_path / "c")
    assert any(torch.equal(failed, c) for c in calls[6:])
    whole = go((lattice, SemiGrandCanonical(lambda *a: ensemble.energy(*a)), box))
    for p, q in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_energies_that_fail_in_a_validation_cost_no_model():
    """The trained weights are returned with a warning, as they are where nothing fails."""
    lattice, ensemble, box = ising()
    calls = []

    def failing(lattice, occupations):
        calls.append(len(occupations))
        if len(calls) > 6:  # a probe, one to warm up, four steps
            raise RuntimeError("the code crashed")
        return ensemble.energy(lattice, occupations)

    bare = lattice, SemiGrandCanonical(failing), box
    with pytest.warns(TrainingWarning, match="not validated: RuntimeError: the code crashed"):
        trained = run(bare, [Stage(generated(bare), Reinforce())], 4)
    whole = run((lattice, ensemble, box), [Stage(generated(ising()), Reinforce())], 4)
    assert trained.metadata["validation"] is None
    for p, q in zip(whole.model.parameters(), trained.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_validation_needs_two_samples():
    """Refused before training."""
    lattice, ensemble, box = ising()
    with pytest.raises(ValueError, match="validation_samples must be at least 2, got 1"):
        fit(ensemble, lattice, box, max_steps=1, validation_samples=1)
