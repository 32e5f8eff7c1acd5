"""Laws of the diagnosis: planted defects are found where they are and named as what they are."""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from clease_nn import thermodynamics
from clease_nn.conditions import ConditionRange, Conditions
from clease_nn.configurations import Configurations
from clease_nn.diagnostics import shortfall, validate
from clease_nn.diagnostics.basins import basins
from clease_nn.energies.ising import ising_energy
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import Lattice
from clease_nn.models import AnyOrderARM
from clease_nn.networks import LatticeConvolution
from clease_nn.warnings import LostModeWarning, TrainingWarning

LATTICE = Lattice.square(3, 4)
ENSEMBLE = SemiGrandCanonical(ising_energy(LATTICE))
# two phases, poor and rich in gold, balance at mu = 0 below 26000 K
TEMPERATURES = [16000.0, 18000.0, 20000.0, 40000.0]
MUS = [-0.1, -0.05, 0.0, 0.05, 0.1]
GRID = Conditions.grid(TEMPERATURES, [[0.0, m] for m in MUS])
# where the model is wrong: two lowest temperatures, mu -0.05 and 0
DEFECT = [1, 2, 6, 7]


@cache
def states():
    return ENSEMBLE.enumerate(LATTICE)


@cache
def gold():
    return states().occupations.sum(1)


def rich(c):
    """Labels of the two phases."""
    return np.where(c.occupations.sum(1) > 6, "rich", "poor")


def log_p(at):
    return states().log_target(at).log_softmax(0)


def wrong(at, share):
    """The exact distribution but for the share of the rich phase."""
    log_q, inside = log_p(at), gold() > 6
    p = log_q[inside].logsumexp(0)
    factor = torch.where(inside, np.log(share) - p, np.log(1 - share) - torch.log1p(-p.exp()))
    return log_q + factor


def draw(log_q, at, n, generator):
    index = torch.multinomial(log_q.exp(), n, replacement=True, generator=generator)
    x = states().occupations[index]
    return ENSEMBLE.score(Configurations(LATTICE, at.repeat(n), x, log_prob=log_q[index]))


def draws(share_of=None, n=200, seed=0, grid=GRID):
    """Exact draws of all conditions; ``share_of``: those that are wrong, {row: share}."""
    generator = torch.Generator().manual_seed(seed)
    share_of = share_of or {}
    return Configurations.cat(
        draw(
            wrong(grid[k], share_of[k]) if k in share_of else log_p(grid[k]),
            grid[k],
            n,
            generator,
        )
        for k in range(len(grid))
    )


def as_chains(c, n_chains=10):
    """Independent rows as short chains."""
    return replace(c, log_prob=None, chain=torch.arange(len(c)) % n_chains)


PLANTED = {k: 0.04 for k in DEFECT}


def test_shares_are_the_exact_ones_within_errors():
    """Drawn, expected and their difference scatter about the exact shares as their errors say."""
    at = GRID[torch.tensor([1, 2, 7])]
    shares = [0.15, 0.2, 0.25]
    inside = gold() > 6
    exact = [log_p(at[k])[inside].exp().sum().item() for k in range(3)]
    log_qs = [wrong(at[k], q) for k, q in enumerate(shares)]
    z = {"drawn": [], "expected": [], "excess": []}
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        c = Configurations.cat(draw(log_qs[k], at[k], 500, generator) for k in range(3))
        report = shortfall(c, limit=0.999, phase_of=rich)
        for phases, q, p in zip(report.phases, shares, exact, strict=True):
            [found] = [s for s in phases if s.name == "rich"]
            z["drawn"].append(found.drawn.z(q))
            z["expected"].append(found.expected.z(p))
            z["excess"].append(found.excess.z(q - p))
            assert sum(s.drawn.value for s in phases) == pytest.approx(1)
            assert sum(s.expected.value for s in phases) == pytest.approx(1)
            assert sum(s.excess.value for s in phases) == pytest.approx(0)
    for scores in z.values():
        assert 0.8 < np.std(scores) < 1.2
        assert abs(np.mean(scores)) < 0.35
        assert np.abs(scores).max() < 4.5


@pytest.mark.parametrize("given", [False, True])
def test_the_gap_is_the_relative_entropy(given):
    """gap is KL(q || p) within errors, by the draws alone or against an independent ln Z."""
    at = GRID[torch.tensor([1, 2, 7])]
    shares = [0.15, 0.2, 0.25]
    log_qs = [wrong(at[k], q) for k, q in enumerate(shares)]
    exact = [(q.exp() * (q - log_p(at[k]))).sum().item() for k, q in enumerate(log_qs)]
    log_z = states().log_z(at)
    z = []
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        c = Configurations.cat(draw(log_qs[k], at[k], 500, generator) for k in range(3))
        report = shortfall(c, log_z=log_z if given else None)
        z.append((report.gap - exact) / report.gap_error)
    assert 0.8 < np.std(z) < 1.2
    assert np.abs(np.mean(z)) < 0.35
    assert np.abs(z).max() < 4.5


def test_the_gap_between_phases_is_all_of_a_wrong_balance():
    """Where only the shares are wrong, the chain rule leaves nothing within the phases."""
    report = shortfall(draws(PLANTED), phase_of=rich)
    for k in DEFECT:
        assert report.balance[k] == pytest.approx(report.gap[k], rel=1e-6)
    # a distribution at another temperature is wrong within its phases too
    at = GRID[17]
    hotter = Conditions(at.temperature * 1.8, at.mu)
    c = draw(log_p(hotter), at, 400, torch.Generator().manual_seed(1))
    report = shortfall(c, phase_of=rich, limit=0.999)
    assert 0 <= report.balance[0] < 0.2 * report.gap[0]
    assert "refine" in shortfall(c, limit=0.999).remedy(report.regions[0])


def test_the_region_is_where_the_defect_is():
    """One region holds the planted conditions and no other, and the words name its box."""
    report = shortfall(draws(PLANTED))
    assert np.flatnonzero(report.low).tolist() == DEFECT
    [region] = report.regions
    assert region.rows.tolist() == DEFECT
    assert region.where == "16000-18000 K, mu_Cu - mu_Au +0.000..+0.050 eV"
    assert region.share > 0.99
    text = str(report)
    assert "4 of 20 conditions carry 100% of the KL gap" in text
    assert "wrong balance of phases" in text and "source.focus" in text


def test_regions_apart_are_named_apart():
    """Two defects with good conditions in between are two regions, the worse one first."""
    two = {0: 0.9, 1: 0.9, 2: 0.04, 18: 0.01}
    report = shortfall(draws(two))
    assert [r.rows.tolist() for r in report.regions] == [[0, 1, 2], [18]]
    assert sum(r.share for r in report.regions) == pytest.approx(1, abs=0.02)
    assert report.regions[1].where == "40000 K, mu_Cu - mu_Au -0.050 eV"


def test_regions_need_no_grid():
    """Scattered conditions: those next to one another are one region."""
    box = ConditionRange((16000, 40000), [-0.1], [0.1], [[0.0, 1.0]])
    rng = np.random.default_rng(2)
    scattered = box.at(np.concatenate([rng.random((40, 2)), [[0.01, 0.5]]]))
    t = np.log(scattered.temperature.numpy() / 16000) / np.log(2.5)
    near = np.flatnonzero(np.hypot(t, scattered.mu[:, 1].numpy() / 0.2) < 0.35)
    assert len(near) > 2
    report = shortfall(draws({int(k): 0.04 for k in near}, grid=scattered))
    assert sorted(np.concatenate([r.rows for r in report.regions])) == sorted(near)
    assert len(report.regions) == 1


def test_phases_are_found_and_named_by_themselves():
    """Valleys of the composition tell the two phases apart; words say which is drawn too seldom."""
    report = shortfall(draws(PLANTED))
    for k in DEFECT:
        poor, much = report.phases[k]
        assert poor.name.startswith("Cu-like (x_Cu ") and much.name.startswith("Au-like")
        inside = gold() > 6
        exact = log_p(GRID[k])[inside].exp().sum().item()
        assert abs(much.drawn.z(0.04)) < 4 and abs(much.expected.z(exact)) < 4
        assert much.excess.value < 0 < poor.excess.value
        assert much.composition[1] > 0.85 and not much.lost
    assert "Au-like (x_Cu 0.0" in str(report) and "should be" in str(report)


def test_a_perfect_model_gives_nothing_to_report():
    """No region, no problem, no phases looked for; chains that agree change nothing."""
    c = draws()
    report = shortfall(c)
    assert str(report).startswith("nothing to report: NESS 1.00")
    assert report.regions == () and report.problems() == [] and not any(report.phases)
    assert np.allclose(report.gap, 0, atol=1e-9)
    report = shortfall(c, chains=as_chains(draws(seed=1)))
    assert report.problems() == []
    assert all(not s.lost for phases in report.phases for s in phases)


@pytest.mark.parametrize("n", [20, 64, 500])
def test_fluctuations_are_no_phases(n):
    """One phase of any width with weights of any spread stays one."""
    rng = np.random.default_rng(n)
    split = 0
    for k in range(100):
        sites, x = [(16, 0.5), (64, 0.3), (512, 0.4), (8, 0.02)][k % 4]
        counts = rng.binomial(sites, x, n)
        energy = rng.normal(0, np.sqrt(sites), n) - 0.3 * counts
        w = np.exp(rng.normal(0, (0.3, 1.0, 2.0)[k % 3], n))
        labels = basins(np.stack([counts, sites - counts], 1), energy, 1 / n + w / w.sum())
        split += labels.max() > 0
    assert split == 0


def test_phases_of_one_composition_are_told_apart_by_energy():
    """A separated and an ordered configuration of equal composition are two phases."""
    lattice = Lattice.square(4)
    ordered = (torch.arange(16) + torch.arange(16) // 4) % 2
    separated = torch.arange(16) // 8
    x = torch.where((torch.arange(100) < 10)[:, None], ordered, separated)
    at = Conditions([3000.0], [[0.0, 0.0]]).repeat(100)
    log_q = torch.where(torch.arange(100) < 10, 0.1, 0.9).double().log()
    ising = ising_energy(lattice)
    ordering = SemiGrandCanonical(lambda lattice, x: -0.1 * ising(lattice, x))
    c = ordering.score(Configurations(lattice, at, x, log_prob=log_q))
    much, seldom = shortfall(c).phases[0]
    assert much.name == "AuCu-like (x_Cu 0.50), higher energy"
    assert seldom.name == "AuCu-like (x_Cu 0.50), lower energy"
    assert seldom.drawn.value == pytest.approx(0.1) and seldom.expected.value > 0.99


def test_a_lost_phase_is_named_from_chains():
    """Without a draw of it NESS is one; independent chains tell which phase is missing."""
    at = GRID[2]
    only_poor = log_p(at).masked_fill(gold() > 6, -np.inf).log_softmax(0)
    c = draw(only_poor, at, 400, torch.Generator().manual_seed(1))
    assert shortfall(c).ness[0] > 0.999 and not shortfall(c).regions
    chains = as_chains(draw(log_p(at), at, 300, torch.Generator().manual_seed(2)))
    report = shortfall(c, chains=chains)
    [lost] = [s for s in report.phases[0] if s.lost]
    exact = log_p(at)[gold() > 6].exp().sum().item()
    assert lost.drawn.value == lost.expected.value == 0
    assert abs(lost.chains.z(exact)) < 4
    assert lost.name.startswith("Au-like (x_Cu 0.0")
    [(category, text)] = report.problems()
    assert category is LostModeWarning
    assert "never drawn, chains say" in text and "start from it" in text
    with pytest.warns(LostModeWarning, match="never drawn"):
        report.warn()
    # an independent ln Z sees the gap, if not the phase
    report = shortfall(c, log_z=states().log_z(at))
    assert report.gap[0] == pytest.approx(-np.log(1 - exact) - exact, abs=0.02)


def test_a_phase_that_chains_share_is_not_lost():
    """With few draws, none of a rare phase is no proof."""
    at = GRID[2]
    c = draw(wrong(at, 0.01), at, 40, torch.Generator().manual_seed(1))
    chains = as_chains(draw(wrong(at, 0.05), at, 200, torch.Generator().manual_seed(2)))
    report = shortfall(c, chains=chains, phase_of=rich)
    assert not any(s.lost for s in report.phases[0])


def test_the_gap_is_what_sources_focus_on():
    """conditions and gap go to AbstractSource.focus as they are."""
    from clease_nn.sources import ParallelTemperingSource

    report = shortfall(draws(PLANTED))
    box = ConditionRange((16000, 40000), [-0.1], [0.1], [[0.0, 1.0]])
    source = ParallelTemperingSource(ENSEMBLE, LATTICE, box, shape=(3, 3), burn_in=1, seed=1)
    source.focus(report.conditions, report.gap)
    assert (report.gap >= 0).all() and len(report.gap) == len(report.conditions)


def test_rows_are_flat_and_json_ready():
    """Tables of conditions and of phases hold plain numbers."""
    c = draws(PLANTED)
    report = shortfall(c, chains=as_chains(draws(seed=1))[: 3 * 200])
    rows, phases = report.to_rows(), report.phase_rows()
    assert json.loads(json.dumps([rows, phases], allow_nan=False)) == [rows, phases]
    assert len(rows) == 20 and sum(r["share_of_gap"] for r in rows) == pytest.approx(1)
    assert [k for k, r in enumerate(rows) if r["region"] is not None] == DEFECT
    assert rows[0]["balance"] is not None and rows[15]["balance"] is None
    assert {"mu_Au", "x_Au", "drawn", "expected_error", "chains"} <= set(phases[0])


def test_order_of_rows_does_not_matter():
    """Shuffled rows give the same report but for the order of the conditions."""
    c = draws(PLANTED)
    order = torch.randperm(len(c), generator=torch.Generator().manual_seed(1))
    a, b = shortfall(c), shortfall(c[order])
    place = [
        int(((a.conditions.temperature == t) & (a.conditions.mu == m).all(1)).nonzero()[0])
        for t, m in zip(b.conditions.temperature, b.conditions.mu, strict=True)
    ]
    assert np.allclose(a.gap[place], b.gap)
    assert sorted(place[i] for i in b.regions[0].rows) == a.regions[0].rows.tolist()


def test_validation_says_why():
    """The warning of a low NESS carries the region and its phases; a good model has no report."""
    torch.manual_seed(0)
    box = ConditionRange((16000, 40000), [-0.1], [0.1], [[0.0, 1.0]])
    model = AnyOrderARM(LatticeConvolution(LATTICE, box, needs_fields=False))
    at = box.grid(2, 2)
    chains = Configurations.cat(
        draw(log_p(at[k]), at[k], 40, torch.Generator().manual_seed(k)) for k in range(4)
    )
    chains = replace(chains, log_prob=None, energy=None, log_target=None)
    report = validate(model, ENSEMBLE, chains, at, 100, torch.Generator().manual_seed(1))
    assert report.shortfall is not None
    words = " ".join(text for _, text in report.problems())
    assert "all 4 conditions" in words and "remedy" in words and "16000" in words
    categories = {category for category, _ in report.problems()}
    assert TrainingWarning in categories
    hot = box.at([[1.0, 0.5]])
    free = SemiGrandCanonical(lambda lattice, x: torch.zeros(len(x)))
    good = validate(model, free, None, hot, 100, torch.Generator(), lattice=LATTICE)
    assert good.shortfall is None and good.problems() == []


# ------------------------------------------------------------------ bad input
def test_bad_input_is_refused():
    """Unweighted, unscored, too few, mixed or foreign rows are named with the remedy."""
    c = draws(n=20, grid=GRID[:2])
    with pytest.raises(TypeError, match="got Averages"):
        with np.errstate(all="ignore"), pytest.warns():
            shortfall(thermodynamics.averages(c))
    with pytest.raises(ValueError, match="limit"):
        shortfall(c, limit=1.5)
    with pytest.raises(ValueError, match="weighted draws"):
        shortfall(as_chains(c))
    with pytest.raises(ValueError, match="score them"):
        shortfall(replace(c, energy=None))
    with pytest.raises(ValueError, match="only 9 draws at T = 16000 K"):
        shortfall(c[11:])
    with pytest.raises(ValueError, match="no configurations"):
        shortfall(c[:0])
    spoilt = c.log_prob.clone()
    spoilt[3] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinite"):
        shortfall(replace(c, log_prob=spoilt))
    steps = torch.arange(12).expand(40, 12).clone()
    steps[5:, 0] = -1
    with pytest.raises(ValueError, match="by_given"):
        shortfall(replace(c, step=steps))
    with pytest.raises(ValueError, match="log_z must be 2"):
        shortfall(c, log_z=[1.0])
    with pytest.raises(ValueError, match="one label a row"):
        shortfall(c, phase_of=lambda c: ["a"], limit=0.9999999, chains=as_chains(c))


def test_chains_that_do_not_fit_are_refused():
    """Chains of another lattice, at other conditions or without energies."""
    c = draws(n=20, grid=GRID[:2])
    with pytest.raises(ValueError, match="no two rows"):
        shortfall(c, chains=as_chains(draws(n=20, grid=GRID[3:4])))
    with pytest.raises(ValueError, match="no energy"):
        shortfall(c, chains=replace(as_chains(c), energy=None))
    other = Lattice.square(2)
    foreign = Configurations(other, GRID[:1].repeat(5), torch.zeros(5, 4), energy=torch.zeros(5))
    with pytest.raises(ValueError, match="another lattice"):
        shortfall(c, chains=foreign)
