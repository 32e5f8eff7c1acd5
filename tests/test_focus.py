"""Laws of looks at a model in training, and of training more where it is bad."""

import json

import numpy as np
import pytest
import torch
from training_toys import BOX, ising

from clease_nn.diagnostics import kl_gap
from clease_nn.models import AnyOrderARM
from clease_nn.networks import LatticeConvolution
from clease_nn.sampling import sample
from clease_nn.sources import ParallelTemperingSource
from clease_nn.training import Stage, fit
from clease_nn.training.looks import CONDITIONS, draws, focus_map, spread
from clease_nn.training.trainer import Trainer

SYSTEM = ising(3, 3)


def run(steps, seed=0, focus=True, **options):
    lattice, ensemble, box = SYSTEM
    torch.manual_seed(seed)
    model = AnyOrderARM(LatticeConvolution(lattice, box, channels=16, blocks=2, n_shells=2))
    source = ParallelTemperingSource(ensemble, lattice, box, shape=(8, 8), burn_in=5, seed=seed)
    trained = fit(
        ensemble, lattice, box, max_steps=steps, model=model, stages=[Stage(source)],
        batch_size=32, learning_rate=1e-2, focus=focus, progress=False, validation_samples=8,
        **options,
    )  # fmt: skip
    return trained, source


def entry(gap, first, n_draws=16):
    """A look as it is recorded, with gaps given."""
    where = spread(BOX, len(gap), first)
    return {
        "temperature": where.temperature.tolist(),
        "mu": where.mu.tolist(),
        "gap": list(gap),
        "draws": n_draws,
    }


# ------------------------------------------------------------------ looks
def test_looks_have_other_conditions_each_time_and_are_recorded():
    """Seven looks cover the range evenly; the record is JSON and names the step."""
    trained, _ = run(160, focus=False)
    looks = json.loads(json.dumps(trained.metadata["looks"]))
    assert [entry["step"] for entry in looks] == [20, 40, 60, 80, 100, 120, 140]
    assert all(len(entry[k]) == CONDITIONS for entry in looks for k in ("gap", "ness", "mu"))
    t = np.concatenate([entry["temperature"] for entry in looks])
    mu = np.concatenate([[m[1] for m in entry["mu"]] for entry in looks])
    assert len({*zip(t, mu, strict=True)}) == 7 * CONDITIONS
    low, high = BOX.temperature
    for x in (np.log(t / low) / np.log(high / low), mu + 0.5):
        counts = np.histogram(x, 4, (0, 1))[0]
        assert np.abs(counts - 28).max() <= 2
    ness = [h["ness"] for h in trained.metadata["history"] if "ness" in h]
    assert ness == pytest.approx([np.mean(entry["ness"]) for entry in looks])
    assert np.mean(looks[-1]["gap"]) < np.mean(looks[0]["gap"])


@pytest.mark.parametrize("n_sites, n", [(1, 16), (100, 16), (512, 16), (1024, 8), (10**5, 4)])
def test_looks_at_large_lattices_take_fewer_draws(n_sites, n):
    """So that sites times draws do not grow, down to four draws."""
    assert draws(n_sites) == n


# ------------------------------------------------------------------ the map
def test_noise_alone_gives_no_focus():
    """Gaps of one size, measured by 16 draws of Gaussian ln w: the map is flat to a fifth."""
    rng = np.random.default_rng(0)
    looks = [
        entry(0.02 * rng.normal(size=(CONDITIONS, 16)).var(1, ddof=1), CONDITIONS * k)
        for k in range(7)
    ]
    _, gap = focus_map(looks)
    assert len(gap) == 7 * CONDITIONS
    assert gap.max() / gap.min() < 1.2


def test_hard_conditions_stand_out_of_the_noise():
    """Gaps twenty times larger in one corner come out eight times larger at least, in place."""
    rng = np.random.default_rng(1)
    looks = []
    for k in range(7):
        where = spread(BOX, CONDITIONS, CONDITIONS * k)
        hard = ((where.temperature < 35000) & (where.mu[:, 1].abs() < 0.2)).numpy()
        true = np.where(hard, 0.4, 0.02) * 2.0**-k  # and the model improves
        looks.append(entry(true * rng.chisquare(15, CONDITIONS) / 15, CONDITIONS * k))
    where, gap = focus_map(looks)
    hard = ((where.temperature < 35000) & (where.mu[:, 1].abs() < 0.2)).numpy()
    assert gap[hard].mean() > 8 * gap[~hard].mean()
    assert gap.mean() == pytest.approx(np.mean(looks[-1]["gap"]), rel=0.3)


@pytest.mark.parametrize("gap", [np.zeros(4), np.full(4, 0.1), np.array([0.0, 0.0, 0.0, 1.0])])
def test_the_map_is_finite_whatever_was_seen(gap):
    """A perfect model, equal gaps, a single bad condition."""
    _, out = focus_map([entry(gap, 0)])
    assert np.isfinite(out).all() and (out >= 0).all()


def test_impossible_draws_draw_attention():
    """An infinite gap is as bad as the worst; an unknown one spoils neither its look nor others."""
    gap = np.array([0.1, np.inf, 0.4, np.nan])
    where, out = focus_map([entry(gap, 0), entry([0.1, 0.1, 0.4, 0.1], 4)])
    assert len(where) == len(out) == 7 and np.isfinite(out).all()
    assert out[1] == out[:3].max() and out[0] < out[1]
    _, none = focus_map([entry(np.full(4, np.nan), 0)])
    assert np.isnan(none).all()


# ------------------------------------------------------------------ training
def test_sources_are_told_after_every_look(monkeypatch):
    """All looks so far, each time; without focus nothing."""
    told = []
    monkeypatch.setattr(ParallelTemperingSource, "focus", lambda self, c, g: told.append((c, g)))
    run(60, focus=False)
    assert not told
    run(60)
    assert [len(c) for c, _ in told] == [len(g) for _, g in told] == [CONDITIONS, 2 * CONDITIONS]


def test_rows_are_drawn_where_the_gap_is_and_training_stays_right():
    """Chains near large gaps have larger shares, and nowhere does the KL gap blow up."""
    lattice, ensemble, box = SYSTEM
    grid = box.grid(3, 3)
    exact = ensemble.enumerate(lattice).log_z(grid)
    gaps = {}
    for focus in (False, True):
        trained, source = run(240, focus=focus)
        rows = grid.repeat(300)
        c = sample(trained.model, ensemble, lattice, rows, torch.Generator().manual_seed(0))
        gaps[focus] = kl_gap(c.log_weight.view(len(grid), 300), exact).numpy()
    where, gap = focus_map(trained.metadata["looks"])
    assert source.shares.sum() == pytest.approx(1.0)
    assert source.shares.min() > 0.25 / len(source.shares)
    at = source.tempering.conditions.temperature.numpy()
    cold, hot = source.shares[at < np.median(at)].sum(), source.shares[at >= np.median(at)].sum()
    t = where.temperature.numpy()
    assert gap[t < np.median(t)].sum() > 1.5 * gap[t >= np.median(t)].sum()
    assert cold > 1.2 * hot
    assert gaps[True].max() < 2 * gaps[False].max() + 0.01
    assert gaps[True].mean() < 1.5 * gaps[False].mean() + 0.01


def test_a_focussed_run_is_resumed_bitwise(tmp_path, monkeypatch):
    """The map comes back with the looks, and rows are drawn from it as before."""
    whole, _ = run(80)
    step = Trainer.step

    def interrupted(self, progress):
        if self.step_count == 50:
            raise KeyboardInterrupt
        return step(self, progress)

    with monkeypatch.context() as m:
        m.setattr(Trainer, "step", interrupted)
        with pytest.warns(UserWarning, match="interrupted after 50 steps"):
            run(80, checkpoint=tmp_path / "c")
    again, _ = run(80, checkpoint=tmp_path / "c")
    for p, q in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(p, q)
    assert whole.metadata["looks"] == again.metadata["looks"]
