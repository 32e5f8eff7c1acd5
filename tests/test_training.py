"""Laws of training: unbiased targets, improvement, exact resume, honest files and warnings."""

import json
import os
import signal
import threading
import warnings
from dataclasses import replace
from functools import wraps

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from toys import SYSTEMS, binary, random_expansion

from clease_nn.configurations import Configurations
from clease_nn.diagnostics import Validation, kl_gap, validate
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.io import ModelFileError, TrainedModel, read_state, write_state
from clease_nn.models import AnyOrderARM
from clease_nn.networks import LatticeConvolution
from clease_nn.objectives import MaskedBatch, any_order_cross_entropy
from clease_nn.sampling import sample
from clease_nn.sources import ParallelTemperingSource, random_known_sites
from clease_nn.training import Stage, fit
from clease_nn.warnings import LostModeWarning, TrainingWarning


def small_model(lattice, box, seed=0):
    torch.manual_seed(seed)
    return AnyOrderARM(LatticeConvolution(lattice, box, channels=16, blocks=2, n_shells=2))


def small_source(ensemble, lattice, box, seed=0):
    shape = (6,) * (1 + box.n_axes)
    return ParallelTemperingSource(ensemble, lattice, box, shape=shape, burn_in=20, seed=seed)


def quick_fit(system, steps, seed=0, objective=any_order_cross_entropy, **options):
    lattice, ensemble, box = system
    return fit(
        ensemble, lattice, box, max_steps=steps, seed=seed, model=small_model(lattice, box, seed),
        stages=[Stage(small_source(ensemble, lattice, box, seed), objective)], batch_size=64,
        progress=False, validation_samples=16, **options,
    )  # fmt: skip


# ------------------------------------------------------------------ sources and objectives
@pytest.mark.parametrize("name", sorted(SYSTEMS))
def test_targets_are_unbiased_conditionals(name):
    """Targets average to the exact p(species | known sites): z-test over sites.

    Rows are grouped over all conditions: the mean of (target - exact) vanishes.
    """
    lattice, ensemble, box = SYSTEMS[name]()
    source = small_source(ensemble, lattice, box)
    exact = ensemble.enumerate(lattice)
    differences = []
    for _ in range(6):
        batch = source.batch(40, small_model(lattice, box))
        for k in range(40):
            row = batch.partial[k]
            p = torch.exp(exact.log_target(row.conditions))
            known = row.known[0]
            match = (exact.occupations[:, known] == row.occupations[0, known]).all(1)
            p = p * match
            p = p / p.sum()
            for site in (~known).nonzero()[:, 0].tolist():
                marginal = torch.stack(
                    [p[exact.occupations[:, site] == a].sum() for a in range(lattice.n_species)]
                )
                differences.append((batch.targets[k, site].double() - marginal)[0].item())
    d = np.array(differences)
    # sites of a row are correlated: judge by an error that allows for it
    error = d.std() / np.sqrt(6 * 40)
    assert abs(d.mean()) < 4 * error


@pytest.mark.parametrize("n_sites", [1, 2, 8, 64])
def test_numbers_of_known_sites_count_alike_by_weight(n_sites):
    """Weighted, every number of known sites has the same share; unweighted, few are more often."""
    rng = np.random.default_rng(0)
    known, weight = random_known_sites(200_000, n_sites, rng)
    number = known.sum(1)
    assert number.max() == n_sites - 1
    share = np.bincount(number, weights=weight, minlength=n_sites) / len(number)
    seen = np.bincount(number, minlength=n_sites)
    assert np.allclose(share, 1 / n_sites, rtol=0.02)
    assert n_sites == 1 or seen[0] > seen[-1]
    assert np.abs(known.mean(0) - known.mean()).max() < 0.01  # no site is preferred


def test_cross_entropy_with_exact_targets_is_least_for_the_exact_model():
    """excess = KL >= 0, and zero for the model whose conditionals are the targets."""
    lattice, ensemble, box = binary()
    model = small_model(lattice, box)
    source = small_source(ensemble, lattice, box)
    batch = source.batch(32, model)
    with torch.no_grad():
        own = model.log_conditionals(batch.partial, batch.fields).exp().float()
    _, metrics = any_order_cross_entropy(model, MaskedBatch(batch.partial, own, batch.fields))
    assert abs(metrics["excess"]) < 1e-4
    torch.nn.init.normal_(model.network.head.weight)
    _, metrics = any_order_cross_entropy(model, MaskedBatch(batch.partial, own, batch.fields))
    assert metrics["excess"] > 0.01


# ------------------------------------------------------------------ training
@pytest.mark.parametrize("name", sorted(SYSTEMS))
def test_training_improves_and_ln_z_is_exact(name):
    """A short training lowers the KL gap, and weights give the exact ln Z within errors."""
    lattice, ensemble, box = SYSTEMS[name]()
    grid = box.grid(2, 2)
    exact = ensemble.enumerate(lattice).log_z(grid)
    before = small_model(lattice, box)
    trained = quick_fit((lattice, ensemble, box), 400, learning_rate=1e-2)
    gaps = []
    for model in (before, trained.model):
        c = sample(model, ensemble, lattice, grid.repeat(500), torch.Generator().manual_seed(0))
        log_w = c.log_weight.view(len(grid), 500)
        gaps.append(float(kl_gap(log_w, exact).mean()))
    w = torch.exp(log_w - exact[:, None])
    z = (w.mean(1) - 1) / (w.std(1) / np.sqrt(500))
    assert gaps[1] < 0.3 * gaps[0] and gaps[1] < 0.1
    assert (z.abs() < 4.5).all()


def test_steps_fix_the_result_bitwise():
    """The same seed and steps give the same weights; another seed does not."""
    a, b, c = (quick_fit(binary(), 12, seed=s) for s in (3, 3, 4))
    first = [dict(m.model.named_parameters())["network.weights"] for m in (a, b, c)]
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])


def test_interrupted_and_resumed_is_uninterrupted(tmp_path, monkeypatch):
    """Ctrl-C at step 10 and resuming ends at the bitwise same weights as one run of 20 steps."""
    from clease_nn.training.trainer import Trainer

    whole = quick_fit(binary(), 20, seed=1)
    step = Trainer.step

    def interrupted(self, progress):
        if self.step_count == 10:
            raise KeyboardInterrupt
        return step(self, progress)

    path = tmp_path / "run.ckpt"
    with monkeypatch.context() as m:
        m.setattr(Trainer, "step", interrupted)
        with pytest.warns(TrainingWarning, match="interrupted after 10 steps"):
            part = quick_fit(binary(), 20, seed=1, checkpoint=path)
    assert part.metadata["steps"] == 10 and part.metadata["stopped_by"] == "interrupt"
    resumed = quick_fit(binary(), 20, seed=1, checkpoint=path)
    assert resumed.metadata["steps"] == 20
    for (name, p), (_, q) in zip(
        whole.model.named_parameters(), resumed.model.named_parameters(), strict=True
    ):
        assert torch.equal(p, q), name


def test_interrupts_inside_a_step_resume_exactly(tmp_path):
    """SIGINT in the middle of a step lets the step finish: resuming is bitwise exact."""
    whole = quick_fit(binary(), 12, seed=2)
    calls = []

    @wraps(any_order_cross_entropy)  # a checkpoint knows objectives by their names
    def objective(model, batch):
        calls.append(1)
        if len(calls) == 6:  # one call compiles, so this is inside step 5
            os.kill(os.getpid(), signal.SIGINT)
        return any_order_cross_entropy(model, batch)

    path = tmp_path / "c"
    with pytest.warns(TrainingWarning, match="interrupted"):
        part = quick_fit(binary(), 12, seed=2, checkpoint=path, objective=objective)
    assert part.metadata["steps"] == 5 and part.metadata["validation"] is not None
    resumed = quick_fit(binary(), 12, seed=2, checkpoint=path)
    for p, q in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(p, q)
    assert resumed.metadata["validation"] == whole.metadata["validation"]


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_second_interrupt_leaves_the_source_where_the_weights_are(tmp_path, where):
    """Two SIGINT within a step stop at once; the step is done again, bitwise, when resumed."""
    whole = quick_fit(binary(), 8, seed=2)
    calls = []

    def twice(gradient=None):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    @wraps(any_order_cross_entropy)
    def objective(model, batch):
        loss, metrics = any_order_cross_entropy(model, batch)
        calls.append(1)
        if len(calls) == 6:  # one call compiles, so this is inside step 5
            if where == "forward":
                twice()
            loss.register_hook(twice)
        return loss, metrics

    path = tmp_path / "c"
    with pytest.warns(TrainingWarning, match="interrupted after 4 steps"):
        part = quick_fit(binary(), 8, seed=2, checkpoint=path, objective=objective)
    assert part.metadata["validation"] is None  # skipped
    resumed = quick_fit(binary(), 8, seed=2, checkpoint=path)
    for p, q in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_failing_checkpoint_does_not_stop_training(tmp_path, monkeypatch):
    """A full disk is a warning; the model is returned."""

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(TrainingWarning, match=r"no checkpoint.*No space left"):
        out = quick_fit(binary(), 3, checkpoint=tmp_path / "c")
    assert out.metadata["steps"] == 3


@pytest.mark.parametrize("change", [{"seed": 5}, {"learning_rate": 1e-3}])
def test_checkpoint_of_other_settings_is_refused(tmp_path, change):
    """Another seed or learning rate is another run."""
    quick_fit(binary(), 2, checkpoint=tmp_path / "c")
    with pytest.raises(ModelFileError, match=next(iter(change)).replace("_", " ")):
        quick_fit(binary(), 4, checkpoint=tmp_path / "c", **change)


def test_checkpoint_of_another_callable_is_refused(tmp_path):
    """Energies without a fingerprint are told apart by their values."""
    lattice, _, box = binary()
    for scale, ok in ((0.01, True), (0.02, False)):

        def energy(lattice, occupations, scale=scale):
            return scale * occupations.double().sum(1)

        def run(energy=energy):
            model = AnyOrderARM(
                LatticeConvolution(lattice, box, channels=16, blocks=1, needs_fields=False)
            )
            ensemble = SemiGrandCanonical(energy)
            source = ParallelTemperingSource(ensemble, lattice, box, shape=(2, 2), burn_in=1)
            return fit(
                ensemble, lattice, box, max_steps=1, model=model, batch_size=8, progress=False,
                stages=[Stage(source)],
                checkpoint=tmp_path / "c", validation_samples=4,
            )  # fmt: skip

        if ok:
            run()
        else:
            with pytest.raises(ModelFileError, match="another energies"):
                run()


def test_a_real_signal_stops_training_and_keeps_the_model(tmp_path):
    """SIGINT during training returns a usable model and leaves a checkpoint."""
    timer = threading.Timer(3.0, os.kill, (os.getpid(), signal.SIGINT))
    lattice, ensemble, box = binary()
    quick_fit((lattice, ensemble, box), 1)  # compile first
    timer.start()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = quick_fit((lattice, ensemble, box), 10**6, checkpoint=tmp_path / "c")
    assert out.metadata["stopped_by"] == "interrupt"
    assert read_state(tmp_path / "c", "checkpoint")["step"] == out.metadata["steps"]


def test_seconds_limit_a_run_and_compilation_does_not_count():
    """A clock that the test turns: the budget is used up by steps alone."""
    ticks = iter(range(10**6))
    out = quick_fit(binary(), None, max_seconds=10, clock=lambda: 0.5 * next(ticks))
    assert out.metadata["stopped_by"] == "seconds"
    assert out.metadata["training_seconds"] == pytest.approx(10, abs=0.5)


def test_target_ness_stops_early():
    """A reached target ends training before the budget."""
    out = quick_fit(binary(), 400, target_ness=0.05)
    assert out.metadata["stopped_by"] == "target_ness" and out.metadata["steps"] < 400


@pytest.mark.parametrize(
    "options, match",
    [
        ({}, "budget"),
        ({"max_seconds": 0}, "max_seconds must be positive"),
        ({"max_steps": -3}, "max_steps must be positive"),
        ({"max_steps": 3, "batch_size": 0}, "batch_size"),
        ({"max_steps": 3, "target_ness": 1.5}, "target_ness"),
        ({"max_steps": 3, "threads": 0}, "threads"),
        ({"max_steps": 3, "precision": "float8"}, "precision"),
    ],
)
def test_bad_arguments_are_named(options, match):
    """Every limit is checked before work starts."""
    lattice, ensemble, box = binary()
    with pytest.raises(ValueError, match=match):
        fit(ensemble, lattice, box, progress=False, **options)


def test_checkpoint_folder_must_exist(tmp_path):
    """An impossible checkpoint is refused before hours are spent."""
    lattice, ensemble, box = binary()
    with pytest.raises(FileNotFoundError, match="folder"):
        fit(ensemble, lattice, box, max_steps=1, checkpoint=tmp_path / "no" / "c")


def test_checkpoint_of_another_energy_is_refused(tmp_path):
    """Resuming with other couplings would silently mix two problems."""
    lattice, _, box = binary()
    quick_fit(binary(), 2, checkpoint=tmp_path / "c")
    other = SemiGrandCanonical(random_expansion(lattice, seed=9))
    with pytest.raises(ModelFileError, match="another energy"):
        quick_fit((lattice, other, box), 4, checkpoint=tmp_path / "c")


def test_energies_that_turn_nan_stop_training():
    """A broken energy is named, not trained on."""
    lattice, _ensemble, box = binary()

    class Broken:
        def __call__(self, lattice, occupations):
            return torch.full((len(occupations),), torch.nan, dtype=torch.float64)

    with pytest.raises((ValueError, FloatingPointError), match=r"nan|finite"):
        quick_fit((lattice, SemiGrandCanonical(Broken()), box), 2)


# ------------------------------------------------------------------ validation
def test_forward_kl_sees_a_lost_mode():
    """A model that never draws one phase has NESS near 1; the forward check warns in words."""
    lattice, ensemble, box = binary()
    trained = quick_fit((lattice, ensemble, box), 150)
    exact = ensemble.enumerate(lattice)
    grid = box.grid(1, 3)

    class OnePhase(type(trained.model)):
        def log_conditionals(self, c, fields):
            log_q = super().log_conditionals(c, fields)
            return (log_q + torch.tensor([9.0, -9.0])).log_softmax(-1)

        def log_conditionals_at(self, c, fields, site):
            log_q = super().log_conditionals_at(c, fields, site)
            return (log_q + torch.tensor([9.0, -9.0])).log_softmax(-1)

    lost = OnePhase(trained.model.network)
    rng = np.random.default_rng(0)
    rows = [
        Configurations(
            lattice,
            grid[k].repeat(64),
            exact.occupations[
                torch.as_tensor(rng.choice(256, 64, p=exact.probabilities(grid[k]).numpy()))
            ],
        )
        for k in range(3)
    ]
    chains = Configurations.cat(rows)
    good = validate(trained.model, ensemble, chains, grid, 64, torch.Generator())
    bad = validate(lost, ensemble, chains, grid, 64, torch.Generator(), log_z=exact.log_z(grid))
    assert not any(issubclass(c, LostModeWarning) for c, _ in good.problems())
    assert any(issubclass(c, LostModeWarning) for c, _ in bad.problems())
    assert (bad.mean_weight < -0.02).any()
    with pytest.warns(LostModeWarning):
        bad.warn()


def test_catastrophic_draws_are_counted():
    """Draws with ln w more than 10 below the median are reported."""
    from clease_nn.conditions import Conditions

    v = Validation(
        Conditions([300.0], [[0.0, 0.0]]), 100, np.zeros(1), np.zeros(1), np.array([0.9]),
        np.array([0.3]), np.array([0.01]),
    )  # fmt: skip
    assert any("catastrophic" in text for _, text in v.problems())
    assert "0.900" in str(v)


# ------------------------------------------------------------------ files
def test_saved_model_is_the_same_model(tmp_path):
    """log_prob, range and metadata survive; the file holds tensors and JSON only."""
    lattice, ensemble, box = binary()
    trained = quick_fit((lattice, ensemble, box), 5)
    trained.save(tmp_path / "m.nn")
    again = TrainedModel.load(tmp_path / "m.nn")
    conditions = box.grid(2, 2)
    draws = [
        sample(m.model, ensemble, lattice, conditions, torch.Generator().manual_seed(0))
        for m in (trained, again)
    ]
    assert torch.equal(draws[0].log_prob, draws[1].log_prob)
    assert again.range.to_dict() == box.to_dict()
    assert json.loads(json.dumps(again.metadata)) == again.metadata
    assert [p.name for p in tmp_path.iterdir()] == ["m.nn"]


def test_bad_files_are_named(tmp_path):
    """Truncated, foreign, newer, of another kind, absent: each has its own words."""
    lattice, _ensemble, box = binary()
    trained = TrainedModel(small_model(lattice, box), box, {})
    path = tmp_path / "m.nn"
    trained.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelFileError, match="truncated"):
        TrainedModel.load(path)
    path.write_bytes(b"not a model at all")
    with pytest.raises(ModelFileError, match=r"truncated or not"):
        TrainedModel.load(path)
    save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(ModelFileError, match="not one of clease_nn"):
        TrainedModel.load(path)
    save_file({"x": torch.zeros(2)}, path, metadata={"kind": "model", "format": "99",
              "clease_nn": "9.0", "state": "{}"})  # fmt: skip
    with pytest.raises(ModelFileError, match=r"format 99.*update"):
        TrainedModel.load(path)
    write_state(path, "checkpoint", {"a": 1})
    with pytest.raises(ModelFileError, match="checkpoint, not a model"):
        TrainedModel.load(path)
    with pytest.raises(FileNotFoundError):
        TrainedModel.load(tmp_path / "none")


def test_weights_of_another_network_are_refused(tmp_path):
    """A file whose weights do not fit what it describes says to train again."""
    lattice, _, box = binary()
    model = small_model(lattice, box)
    weights = model.state_dict()
    name = next(iter(weights))
    weights[name] = weights[name][:-1]
    state = {"config": model.config(), "weights": weights, "range": box.to_dict(), "metadata": {}}
    write_state(tmp_path / "old.nn", "model", state)
    with pytest.raises(ModelFileError, match="do not fit its network.*train the model again"):
        TrainedModel.load(tmp_path / "old.nn")


def test_unwritable_path_and_full_disk_leave_the_old_file(tmp_path, monkeypatch):
    """A failed write keeps what was there and names path, reason and remedy."""
    lattice, _, box = binary()
    trained = TrainedModel(small_model(lattice, box), box, {})
    path = tmp_path / "m.nn"
    trained.save(path)
    before = path.read_bytes()

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"m\.nn.*No space left.*another path"):
        trained.save(path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(OSError, match="cannot write"):
        trained.save(tmp_path / "missing" / "m.nn")


def test_nested_states_survive_files(tmp_path):
    """Tensors, arrays, numbers, text, None, lists and non-string keys come back."""
    state = {
        "a": torch.arange(3),
        "b": np.ones((2, 2), dtype=np.uint64),
        "c": [1, 2.5, None, {"d": True}],
        3: "text",
        "big": 2**100,
    }
    write_state(tmp_path / "s", "checkpoint", state)
    out = read_state(tmp_path / "s", "checkpoint")
    assert torch.equal(out["a"], state["a"]) and (out["b"] == state["b"]).all()
    assert out["b"].dtype == np.uint64
    assert out["c"] == state["c"] and out[3] == "text" and out["big"] == 2**100


def test_more_configurations_in_replace_are_independent():
    """Frozen batches: replacing a column never changes the original."""
    lattice, _ensemble, box = binary()
    c = Configurations.unknown(lattice, box.grid(1, 2))
    d = replace(c, occupations=torch.zeros(2, 8))
    assert not c.known.any() and d.known.all()
