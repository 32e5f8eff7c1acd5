"""Laws of refinement: exact averages whatever the model, held sites, seeds, interruption."""

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from refine_toys import TINY, coloured, six_binary, spoilt
from tqdm.auto import tqdm

from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.models import AnyOrderARM, FixedOrderARM
from clease_nn.networks import LatticeConvolution, MaskedMLP
from clease_nn.sampling import Refinement, complete, refine, sample
from clease_nn.sampling.refine import _unweighted
from clease_nn.thermodynamics import averages
from clease_nn.warnings import ChainWarning, InterruptedWarning, LowESSWarning


@pytest.fixture(autouse=True)
def quiet():
    """Short chains may read as too short; that is not what is tested here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LowESSWarning)
        warnings.simplefilter("ignore", ChainWarning)
        yield


def start_of(lattice, ensemble, model, conditions, n, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return sample(model, ensemble, lattice, conditions.repeat(n), rng)


@pytest.mark.parametrize(
    ("system", "block_rate"), [*((name, 1.0) for name in sorted(TINY)), ("binary", None)]
)
def test_averages_agree_with_enumeration(system, block_rate):
    """Energies and compositions from a spoilt model's draws are exact within their errors."""
    lattice, ensemble, box = TINY[system]()
    conditions = Conditions([2500.0, 5000.0], box.at([[0.5] * (1 + box.n_axes)]).mu.repeat(2, 1))
    exact = ensemble.enumerate(lattice)
    share = (exact.occupations == 1).double().mean(1)
    want = exact.mean(conditions, torch.stack([exact.energy, share], 1))
    model = coloured(lattice, box)
    z = []
    for seed in range(3):
        start = start_of(lattice, ensemble, model, conditions, 8, seed)
        refinement = Refinement(model, ensemble, start, seed, sweeps=1)
        refinement.equilibrate(progress=False)
        if block_rate is not None:
            refinement.block_rate[:] = block_rate
        c = refinement.run(40, progress=False)
        if block_rate is not None:
            assert sum(row["attempted"] for row in c.provenance["block_moves"]) == 16 * 40
        for k, a in enumerate(averages(c)):
            z.append(a.energy.z(float(want[k, 0])))
            z.append((a.composition.value[1] - float(want[k, 1])) / a.composition.error[1])
    assert np.abs(z).max() < 4.8
    assert 0.4 < np.std(z) < 1.8  # of twelve


def test_held_sites_are_refined_around():
    """Sites given to the model stay, and the average energy is that of the constrained ensemble."""
    lattice, ensemble, box = six_binary()
    exact = ensemble.enumerate(lattice)
    condition = box.at([[0.4, 0.5]])
    given = torch.full((64, 6), -1, dtype=torch.int8)
    given[:, 1], given[:, 4] = 1, 0
    partial = Configurations(lattice, condition.repeat(64), given)
    inside = (exact.occupations[:, 1] == 1) & (exact.occupations[:, 4] == 0)
    p = torch.where(inside, exact.probabilities(condition), 0.0)
    want = float((p * exact.energy).sum() / p.sum())
    model = spoilt(lattice, box)
    drawn = complete(model, ensemble, partial, torch.Generator().manual_seed(1))
    for start in (partial, drawn):
        c = refine(model, ensemble, start, 60, seed=3, sweeps=1, progress=False)
        assert (c.occupations[:, 1] == 1).all() and (c.occupations[:, 4] == 0).all()
        assert abs(averages(c)[0].energy.z(want)) < 4.5
    free = Configurations(lattice, drawn.conditions, drawn.occupations)
    clamped = torch.zeros(1, 6, dtype=torch.bool)
    clamped[0, [1, 4]] = True
    c = refine(model, ensemble, free, 20, clamped=clamped, sweeps=1, progress=False)
    assert (c.occupations[:, 1] == 1).all() and (c.occupations[:, 4] == 0).all()


def test_other_energies_are_refined():
    """An energy that is no cluster expansion gives the same averages."""
    lattice, ensemble, box = six_binary()
    plain = SemiGrandCanonical(lambda la, o: ensemble.energy(la, o))
    condition = box.at([[0.5, 0.5]])
    exact = ensemble.enumerate(lattice)
    model = spoilt_without_fields(lattice, box)
    start = start_of(lattice, plain, model, condition, 16)
    c = refine(model, plain, start, 25, sweeps=2, progress=False)
    energy = averages(c)[0].energy
    assert abs(energy.z(float(exact.mean(condition, exact.energy)[0]))) < 4.5


def spoilt_without_fields(lattice, box):
    net = LatticeConvolution(lattice, box, channels=4, blocks=1, needs_fields=False)
    torch.nn.init.normal_(net.head.weight, std=0.3)
    return AnyOrderARM(net)


def test_rows_are_chains_in_time_order_with_their_conditions_and_scores():
    """Every chain keeps its condition; energies and targets are those of the rows."""
    lattice, ensemble, box = six_binary()
    model = spoilt(lattice, box)
    start = start_of(lattice, ensemble, model, box.grid(2, 2), 3)
    c = refine(model, ensemble, start, 5, sweeps=1, progress=False)
    assert c.chain.tolist() == list(range(12)) * 5
    assert torch.equal(c.conditions.mu, start.conditions.mu.repeat(5, 1))
    again = ensemble.score(c)
    assert torch.allclose(c.energy, again.energy) and torch.allclose(c.log_target, again.log_target)
    assert c.log_prob is None and c.step is None
    notes = json.loads(json.dumps(c.provenance))
    assert len(notes["block_moves"]) == 12
    assert {"size", "acceptance", "shape", "temperature", "mu"} <= set(notes["block_moves"][0])
    assert len(notes["burn_in"]["conditions"]) == 4
    assert c.cost.network_passes > 0 and c.cost.energy_evaluations > len(c)


def test_blocks_are_frequent_where_sweeps_are_slow():
    """Where sweeps do not cross between two states, block moves get about half of the time."""
    lattice, ensemble, box = six_binary()
    model = spoilt(lattice, box)
    r = Refinement(model, ensemble, start_of(lattice, ensemble, model, box.grid(1, 1), 8))
    r._adapt(tqdm(disable=True))
    fast, slow = (r._plan(np.array([t])) for t in (1.0, 1e9))
    assert slow[0]["blocks_pay"] and not fast[0]["blocks_pay"]
    assert fast[0]["sweeps_between_blocks"] > 10 * slow[0]["sweeps_between_blocks"]


def test_the_seed_fixes_everything_and_a_state_continues():
    """Equal seeds give equal rows; a saved state continues bit by bit."""
    lattice, ensemble, box = six_binary()
    model = spoilt(lattice, box)
    start = start_of(lattice, ensemble, model, box.grid(2, 1), 6)
    runs = [refine(model, ensemble, start, 8, seed=s, progress=False) for s in (1, 1, 2)]
    assert torch.equal(runs[0].occupations, runs[1].occupations)
    assert not torch.equal(runs[0].occupations, runs[2].occupations)
    first = Refinement(model, ensemble, start, 1)
    a = first.run(3, progress=False)
    state = first.state_dict()
    b = first.run(5, progress=False)
    second = Refinement(model, ensemble, start, 7)
    second.load_state_dict(state)
    assert torch.equal(second.run(5, progress=False).occupations, b.occupations)
    joined = torch.cat([a.occupations, b.occupations])
    assert torch.equal(joined, runs[0].occupations)


def test_an_interrupted_run_keeps_what_was_finished(monkeypatch):
    """Ctrl-C returns the steps that were finished, with a warning; none at all raises."""
    lattice, ensemble, box = six_binary()
    model = spoilt(lattice, box)
    start = start_of(lattice, ensemble, model, box.grid(1, 1), 4)
    r = Refinement(model, ensemble, start)
    r.equilibrate(progress=False)
    step = r.step
    calls = []

    def interrupted():
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        step()

    monkeypatch.setattr(r, "step", interrupted)
    with pytest.warns(InterruptedWarning, match="3 of 10 configurations"):
        c = r.run(10, progress=False)
    assert len(c) == 12
    assert len(r.run(2, progress=False)) == 8  # goes on
    calls[:] = [1] * 3
    with pytest.raises(KeyboardInterrupt):
        r.run(2, progress=False)


def test_starts_are_resampled_by_weight_within_their_condition():
    """Copies follow the weights; where one weight carries all, half of the rows still count."""
    lattice, ensemble, box = six_binary()
    conditions = box.at([[0.2, 0.5], [0.8, 0.5]]).repeat(400)
    torch.manual_seed(0)
    occupations = torch.randint(2, (800, 6)).to(torch.int8)
    c = ensemble.score(Configurations(lattice, conditions, occupations))
    rng = torch.Generator().manual_seed(0)
    flat = replace(c, log_prob=c.log_target.clone())
    same, _ = _unweighted(ensemble, flat, None, rng)
    assert torch.equal(same.occupations, c.occupations)
    # two kinds of rows, one with three times the weight of the other
    heavy = occupations[:, 0] == 1
    w = replace(c, log_prob=c.log_target - torch.where(heavy, np.log(3.0), 0.0))
    got, _ = _unweighted(ensemble, w, None, rng)
    assert torch.equal(got.conditions.temperature, conditions.temperature)
    for at in (slice(0, 400), slice(400, 800)):
        n = float(heavy[at].sum())
        share = 3 * n / (3 * n + 400 - n)
        assert abs(float((got.occupations[at, 0] == 1).double().sum()) - 400 * share) < 15
    one = replace(c, log_prob=c.log_target - 500.0 * (torch.arange(800) == 7))
    got, _ = _unweighted(ensemble, one, None, rng)
    copies = (got.occupations[:400] == one.occupations[7]).all(1).sum()
    assert copies < 350 and len(got.occupations[:400].unique(dim=0)) > 30


def test_bad_input_is_refused():
    """Errors name the value and the remedy."""
    lattice, ensemble, box = six_binary()
    model = spoilt(lattice, box)
    start = start_of(lattice, ensemble, model, box.grid(1, 1), 4)
    with pytest.raises(ValueError, match="n_samples must be at least 1, got 0"):
        refine(model, ensemble, start, 0)
    with pytest.raises(ValueError, match="sweeps must be at least 1, got 0"):
        refine(model, ensemble, start, 1, sweeps=0)
    with pytest.raises(ValueError, match="no configurations"):
        refine(model, ensemble, start[torch.tensor([], dtype=torch.int64)], 1)
    with pytest.raises(ValueError, match="one order of drawing"):
        refine(FixedOrderARM(MaskedMLP(lattice, box, width=8)), ensemble, start, 1)
    with pytest.raises(ValueError, match="clamped must have shape"):
        refine(model, ensemble, start, 1, clamped=torch.zeros(3, 6, dtype=torch.bool))
    with pytest.raises(ValueError, match="nothing can change in row 0"):
        refine(model, ensemble, start, 1, clamped=torch.ones(1, 6, dtype=torch.bool))
    with pytest.raises(ValueError, match="shapes must be some of"):
        refine(model, ensemble, start, 1, shapes=("cube",))
    with pytest.raises(MemoryError, match="rows of 6 sites"):
        refine(model, ensemble, start, 1, batch_size=10**9)
