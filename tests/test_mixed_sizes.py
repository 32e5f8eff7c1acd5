"""Laws of training on cells of several sizes, and of rows taken in parts."""

import numpy as np
import pytest
import torch
from training_toys import BOX, ising, model

from clease_nn.diagnostics import kl_gap
from clease_nn.energies.ising import ising_energy
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import Lattice
from clease_nn.models import AnyOrderARM
from clease_nn.networks import LatticeConvolution
from clease_nn.objectives import LogVariance, Reinforce, cross_entropy
from clease_nn.sampling import sample
from clease_nn.sources import (
    GeneratedSource,
    MixedSource,
    ParallelTemperingSource,
    ReplaySource,
)
from clease_nn.training import Stage, fit
from clease_nn.training.trainer import Trainer

SMALL, LARGE = ising(2, 2), ising(4, 3)


def convolution(lattice, seed=0):
    torch.manual_seed(seed)
    network = LatticeConvolution(lattice, BOX, channels=16, blocks=2, n_shells=2)
    return AnyOrderARM(network)


def source_of(system, seed=0):
    lattice, ensemble, box = system
    return ParallelTemperingSource(ensemble, lattice, box, shape=(6, 6), burn_in=5, seed=seed)


def mixed(shares=(0.7, 0.3), seed=0):
    systems = [(SMALL[1], SMALL[0]), (LARGE[1], LARGE[0])]
    return MixedSource.tempering(systems, BOX, shares, seed, shape=(6, 6), burn_in=5)


def train(source, steps, of=None, system=LARGE, **options):
    lattice, ensemble, box = system
    return fit(
        ensemble, lattice, box, max_steps=steps, model=convolution(SMALL[0]) if of is None else of,
        stages=[Stage(source)], batch_size=24, learning_rate=1e-2, progress=False,
        validation_samples=16, **options,
    )  # fmt: skip


def gap(of, system, n=400):
    """Mean KL gap against enumeration over four conditions."""
    lattice, ensemble, box = system
    grid = box.grid(2, 2)
    c = sample(of, ensemble, lattice, grid.repeat(n), torch.Generator().manual_seed(0))
    exact = ensemble.enumerate(lattice).log_z(grid)
    return float(kl_gap(c.log_weight.view(len(grid), n), exact).mean())


# ------------------------------------------------------------------ shares
@pytest.mark.parametrize("shares", [(0.7, 0.3), (5, 1), (1, 1)])
def test_shares_are_kept_and_steps_cost_the_same(shares):
    """Each source has given its share to within one batch; rows times sites are always 288."""
    source = mixed(shares)
    of = convolution(SMALL[0])
    share = np.array(shares) / sum(shares)
    taken = np.zeros(2)
    for n in range(1, 21):
        batch = source.batch(24, of)
        k = [SMALL[0].n_sites, LARGE[0].n_sites].index(batch.partial.lattice.n_sites)
        assert batch.partial.occupations.numel() == 24 * 12
        taken[k] += 1
        assert np.abs(taken - n * share).max() < 1
    assert source.energy_evaluations == sum(s.energy_evaluations for s in source.sources) > 0


def test_the_largest_cell_is_validated_and_both_are_warmed_up():
    """Whatever the order of the parts."""
    for parts in ([SMALL, LARGE], [LARGE, SMALL]):
        source = MixedSource([(source_of(system), 1) for system in parts])
        assert source.lattice is LARGE[0]
        assert source.chain_configurations(4, 2).lattice is LARGE[0]
        warm = [batch.partial.lattice.n_sites for batch in source.warm_up(8, convolution(SMALL[0]))]
        assert sorted(warm) == [4, 12]


def test_seeds_of_the_cells_differ_and_repeat():
    """Cells get random numbers of their own; the same seed gives the same batches."""
    of = convolution(SMALL[0])
    one, two, other = (mixed((1, 1), seed) for seed in (3, 3, 4))
    for _ in range(2):
        rows = [s.batch(8, of).partial.occupations for s in (one, two, other)]
        assert torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2])
    twins = MixedSource.tempering([(SMALL[1], SMALL[0])] * 2, BOX, (1, 1), shape=(6, 6), burn_in=1)
    rows = [twins.batch(8, of).partial.occupations for _ in range(2)]
    assert not torch.equal(*rows)


def test_conditions_to_focus_on_reach_every_source(monkeypatch):
    """Where the large cell was found hard, the small ones are drawn more often too."""
    seen = []
    monkeypatch.setattr(ParallelTemperingSource, "focus", lambda self, c, g: seen.append((c, g)))
    where, g = BOX.grid(2, 2), np.arange(4.0)
    mixed().focus(where, g)
    assert len(seen) == 2 and all(c is where and h is g for c, h in seen)


# ------------------------------------------------------------------ resume
def test_interrupted_and_resumed_is_uninterrupted(tmp_path, monkeypatch):
    """Stopped at an odd step, a run ends at the bitwise same weights and validation."""
    whole = train(mixed(), 12)
    step = Trainer.step

    def interrupted(self, progress):
        if self.step_count == 5:
            raise KeyboardInterrupt
        return step(self, progress)

    with monkeypatch.context() as m:
        m.setattr(Trainer, "step", interrupted)
        with pytest.warns(UserWarning, match="interrupted after 5 steps"):
            train(mixed(), 12, checkpoint=tmp_path / "c")
    again = train(mixed(), 12, checkpoint=tmp_path / "c")
    for p, q in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(p, q)
    assert whole.metadata["validation"] == again.metadata["validation"]
    assert again.metadata["n_sites"] == 12
    assert again.metadata["stages"][0]["source"] == "MixedSource"


def test_a_state_of_other_parts_is_refused():
    """One source more or less."""
    with pytest.raises(ValueError, match="the state is of 1 sources, there are 2"):
        mixed().load_state_dict({"sources": [{}], "taken": [0]})


# ------------------------------------------------------------------ learning
def test_one_set_of_weights_learns_both_cells(monkeypatch):
    """In as many steps, the gap on either cell is below that of a model of the other one alone."""
    monkeypatch.setattr("clease_nn.training.trainer._EMA", 0.9)
    steps = 200
    both = train(mixed((1, 1)), steps).model
    small = train(source_of(SMALL), steps, system=SMALL).model
    large = train(source_of(LARGE), steps).model
    assert gap(both, LARGE) < 0.5 * gap(small, LARGE)
    assert gap(both, SMALL) < gap(large, SMALL)
    for system in (SMALL, LARGE):
        assert gap(both, system) < 0.1 * gap(convolution(SMALL[0]), system)


# ------------------------------------------------------------------ rows in parts
KINDS = {
    "tempering any": ("any", lambda s: source_of(s), cross_entropy),
    "tempering fixed": ("fixed", lambda s: source_of(s), cross_entropy),
    "replay": ("fixed", lambda s: ReplaySource(s[1], s[0], s[2], n_conditions=8), cross_entropy),
    "reinforce": (
        "any",
        lambda s: GeneratedSource(s[1], s[0], s[2], n_conditions=8, passes=3),
        Reinforce(),
    ),
    "log variance": (
        "fixed",
        lambda s: GeneratedSource(s[1], s[0], s[2], n_conditions=8),
        LogVariance(),
    ),
}


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("parts", [3, 100])
def test_rows_in_parts_give_the_gradient_of_all(kind, parts):
    """To rounding of float32, for every objective and more parts than there are rows."""
    system = ising()
    name, make, objective = KINDS[kind]
    gradients, losses = [], []
    for accumulate in (1, parts):
        of = model(name, system[0], spoilt=0.3)
        stage = Stage(make(system), objective)
        trainer = Trainer(of, [stage], 32, 1e-3, torch.Generator(), accumulate)
        losses.append(trainer._gradient(stage)["loss"])
        zero = [torch.zeros_like(p) if p.grad is None else p.grad for p in of.parameters()]
        gradients.append(torch.cat([g.reshape(-1) for g in zero]))
    one, many = gradients
    assert (one - many).norm() < 2e-5 * one.norm()
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_rows_of_a_condition_stay_together():
    """Parts of complete batches hold whole groups, all rows once; of masked ones, any rows."""
    lattice, ensemble, box = ising()
    of = model("any", lattice)
    batch = GeneratedSource(ensemble, lattice, box, n_conditions=5).batch(30, of)
    parts = batch.split(2)
    assert [len(part) for part in parts] in ([12, 18], [18, 12])
    assert all((part.group.bincount() == 6).all() for part in parts)
    rows = torch.cat([part.full.log_prob for part in parts])
    assert torch.equal(rows.sort().values, batch.full.log_prob.sort().values)
    masked = source_of((lattice, ensemble, box)).batch(10, of)
    assert [len(part) for part in masked.split(4)] == [3, 3, 2, 2]
    assert torch.equal(torch.cat([p.targets for p in masked.split(4)]), masked.targets)


# ------------------------------------------------------------------ bad input
def test_parts_must_make_sense():
    """None, no share, one twice, other species, a source of no lattice, too few shares."""
    own = source_of(SMALL)
    with pytest.raises(ValueError, match="at least one source, got none"):
        MixedSource([])
    for share in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="must be positive and finite, got"):
            MixedSource([(own, share)])
    with pytest.raises(ValueError, match="given twice"):
        MixedSource([(own, 1), (own, 2)])
    other = Lattice.square(2, species=("Pd", "Pt"))
    stranger = ParallelTemperingSource(SemiGrandCanonical(ising_energy(other)), other, BOX)
    with pytest.raises(ValueError, match=r"same species.*Cu.*Pd"):
        MixedSource([(own, 1), (stranger, 1)])
    with pytest.raises(TypeError, match="object has no `lattice`"):
        MixedSource([(object(), 1)])
    with pytest.raises(ValueError, match="2 cells need as many shares, got 1"):
        mixed([1])


def test_fit_wants_the_largest_cell():
    """Another one could not be validated; said before training."""
    with pytest.raises(ValueError, match=r"lattice of 4 sites, .* of 12: hand fit"):
        train(mixed(), 1, system=SMALL)
    with pytest.raises(ValueError, match="accumulate must be positive, got 0"):
        train(mixed(), 1, accumulate=0)
