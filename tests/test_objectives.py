"""Laws of objectives: unbiased gradients, by enumeration; zero where the model is exact."""

from dataclasses import replace

import pytest
import torch
from training_toys import BOX, every_row, gradient, ising, model, z_scores

from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.objectives import (
    CompleteBatch,
    LogVariance,
    MaskedBatch,
    Reinforce,
    any_order_cross_entropy,
    cross_entropy,
)
from clease_nn.schedules import FixedGrid
from clease_nn.sources import GeneratedSource, ReplaySource

TWO = BOX.at([[0.1, 0.3], [0.7, 0.9]])


def generated(kind, passes=None, conditions=TWO, seed=0):
    """A model with some structure, and its own draws at fixed conditions."""
    lattice, ensemble, box = ising()
    of = model(kind, lattice, spoilt=0.7)
    source = GeneratedSource(
        ensemble, lattice, box, schedule=FixedGrid(conditions), n_conditions=len(conditions),
        passes=passes, seed=seed,
    )  # fmt: skip
    return of, ensemble, source


def kl_gradient(of, ensemble, lattice, conditions):
    """Exact gradient of KL(q || p), averaged over orders and conditions."""
    total = 0.0
    for k in range(len(conditions)):
        c = every_row(of, ensemble, lattice, conditions[k])
        orders = len(c) / len(ensemble.enumerate(lattice).occupations)
        log_q = of.log_prob(c, steps=c.step)
        q = log_q.detach().exp() / orders
        total = total + gradient((q * (log_q.detach() - c.log_target) * log_q).sum(), of)
    return total / len(conditions)


@pytest.mark.parametrize("kind, passes", [("any", None), ("any", 2), ("any", 1), ("fixed", None)])
def test_reinforce_is_unbiased(kind, passes):
    """Leave-one-out gradients average to the exact gradient of KL(q || p): z-test."""
    of, ensemble, source = generated(kind, passes)
    objective = Reinforce("leave_one_out")
    grads = []
    for _ in range(150):
        loss, _ = objective(of, source.batch(32, of))
        grads.append(gradient(loss, of))
    exact = kl_gradient(of, ensemble, source.lattice, TWO)
    assert exact.norm() > 0.1
    assert z_scores(torch.stack(grads), exact).abs().max() < 4.5


def test_log_variance_on_own_draws_is_twice_the_divergence():
    """Its expected gradient on draws of the model is 2 grad KL(q || p) (Richter et al. 2020)."""
    of, ensemble, source = generated("any", 2)
    grads = []
    for _ in range(150):
        loss, _ = LogVariance()(of, source.batch(32, of))
        grads.append(gradient(loss, of))
    exact = 2 * kl_gradient(of, ensemble, source.lattice, TWO)
    assert z_scores(torch.stack(grads), exact).abs().max() < 4.5


def test_log_variance_is_the_gradient_of_the_variance():
    """For rows from anywhere the gradient is that of the written-out variance."""
    lattice, ensemble, _ = ising()
    of = model("any", lattice, spoilt=0.7)
    rng = torch.Generator().manual_seed(0)
    c = Configurations(lattice, TWO.repeat(6), torch.randint(0, 2, (12, 4), generator=rng))
    steps = of.draw_steps(Configurations.unknown(lattice, TWO.repeat(6)), rng)
    c = ensemble.score(replace(c, step=steps))
    group = torch.arange(2).repeat_interleave(6)
    loss, metrics = LogVariance()(of, CompleteBatch(c, group))
    r = (of.log_prob(c, steps=steps) - c.log_target).view(2, 6)
    explicit = r.var(1).mean()
    assert metrics["loss"] == pytest.approx(explicit.item(), rel=1e-6)
    a, b = gradient(loss, of), gradient(explicit, of)
    assert torch.allclose(a, b, atol=1e-5 * b.norm())


@pytest.mark.parametrize(
    "objective, drawn",
    [
        (Reinforce(), True),
        (Reinforce("leave_one_out"), True),
        (LogVariance(), True),
        (LogVariance(), False),
    ],
)
def test_single_passes_add_up_to_all_of_them(objective, drawn):
    """The mean of the gradients at pass 0, 1, ... of all rows is the gradient at all passes."""
    of, _, source = generated("any")
    batch = source.batch(16, of)
    if not drawn:
        batch = replace(batch, full=replace(batch.full, log_prob=None))
    whole = gradient(objective(of, batch)[0], of)
    parts = [
        gradient(objective(of, replace(batch, passes=torch.full((16, 1), t)))[0], of)
        for t in range(4)
    ]
    assert torch.allclose(sum(parts) / 4, whole, atol=1e-4 * whole.norm())


@pytest.mark.parametrize("advantage", ["standardized", "grand_potential"])
def test_advantages_differ_by_a_factor_a_condition(advantage):
    """At one condition all advantages give parallel gradients."""
    of, _, source = generated("any", conditions=TWO[0])
    batch = source.batch(32, of)
    a = gradient(Reinforce(advantage)(of, batch)[0], of)
    b = gradient(Reinforce("leave_one_out")(of, batch)[0], of)
    assert torch.dot(a, b) / (a.norm() * b.norm()) > 1 - 1e-6
    r = batch.full.log_prob - batch.full.log_target
    n = len(r)
    factor = 1 / r.std() if advantage == "standardized" else 1 / r.mean().abs()
    assert a.norm() / b.norm() == pytest.approx(float(factor) * (n - 1) / n, rel=1e-5)


def test_standardised_advantages_weigh_conditions_alike():
    """A condition with 100 times the energies contributes as much as it did."""
    of, _, source = generated("any")
    batch = source.batch(64, of)
    scaled = batch.full.log_target.clone()
    r = batch.full.log_prob - batch.full.log_target
    scaled[:32] = batch.full.log_prob[:32] - 100 * r[:32]
    other = replace(batch, full=replace(batch.full, log_target=scaled))
    a, b = (gradient(Reinforce()(of, x)[0], of) for x in (batch, other))
    assert torch.allclose(a, b, atol=1e-6 * a.norm())


def test_objectives_vanish_at_the_exact_model():
    """Where every ln q - ln f is the same there is nothing to learn, sample by sample."""
    lattice, _, box = ising()
    of = model("fixed", lattice, spoilt=0.7)
    at = TWO[0]

    def energy(lattice, occupations):  # the model's own: -kT ln q
        c = Configurations(lattice, at.repeat(len(occupations)), occupations)
        unknown = Configurations.unknown(lattice, c.conditions)
        steps = of.draw_steps(unknown, torch.Generator())
        with torch.no_grad():
            return -at.kT * of.log_prob(c, steps=steps) + (at.mu * c.counts()).sum(1)

    source = GeneratedSource(
        SemiGrandCanonical(energy), lattice, box, schedule=FixedGrid(at), n_conditions=1
    )
    batch = source.batch(64, of)
    for objective in (Reinforce("leave_one_out"), Reinforce("grand_potential"), LogVariance()):
        loss, metrics = objective(of, batch)
        assert gradient(loss, of).norm() < 1e-4
        assert abs(metrics["loss"]) < 1e-4 or metrics["spread"] < 1e-5


def test_cross_entropy_of_complete_rows_is_the_forward_divergence():
    """With exact weights on every state: loss - entropy = KL(p || q), gradient -sum p grad ln q."""
    lattice, ensemble, _ = ising()
    of = model("fixed", lattice, spoilt=0.7)
    c = every_row(of, ensemble, lattice, TWO[0])
    p = torch.softmax(c.log_target, 0)
    batch = CompleteBatch(c, torch.arange(len(c)), weight=p * len(c))
    loss, metrics = cross_entropy(of, batch)
    kl = (p * (p.log() - c.log_prob)).sum()
    assert metrics["loss"] - float(-(p * p.log()).sum()) == pytest.approx(float(kl), rel=1e-5)
    exact = gradient(-(p * of.log_prob(c, steps=c.step)).sum(), of)
    assert torch.allclose(gradient(loss, of), exact, atol=1e-5 * exact.norm())


def test_cross_entropy_serves_masked_rows_too():
    """Masked batches are scored by the any-order likelihood."""
    lattice, ensemble, box = ising()
    of = model("any", lattice, spoilt=0.7)
    batch = ReplaySource(ensemble, lattice, box, n_conditions=4).batch(32, of)
    assert isinstance(batch, MaskedBatch)
    a, b = cross_entropy(of, batch), any_order_cross_entropy(of, batch)
    assert a[1] == b[1] and torch.equal(a[0], b[0])


@pytest.mark.parametrize("kind", ["any", "fixed"])
def test_importance_weighted_cross_entropy_is_unbiased(kind):
    """Untempered weights: gradients average to -sum_x p(x) grad ln q(x), over orders: z-test.

    Weights normalised among n rows are off by O(1/n), far below the error here.
    """
    lattice, ensemble, box = ising()
    of = model(kind, lattice, spoilt=0.3)
    source = ReplaySource(
        ensemble, lattice, box, schedule=FixedGrid(TWO), n_conditions=2, every=1, keep=1,
        min_ness=0.0,
    )  # fmt: skip
    grads = [gradient(cross_entropy(of, source.batch(1024, of))[0], of) for _ in range(60)]
    exact = 0.0
    for k in range(2):
        c = every_row(of, ensemble, lattice, TWO[k])
        p = torch.softmax(c.log_target, 0)  # every order alike
        exact = exact + gradient(-(p * of.log_prob(c, steps=c.step)).sum(), of) / 2
    assert exact.norm() > 0.1
    assert z_scores(torch.stack(grads), exact).abs().max() < 4.5


@pytest.mark.parametrize("objective", [Reinforce(), LogVariance()])
def test_lonely_rows_are_refused(objective):
    """One row a condition has nothing to be compared with; the message says what to do."""
    of, _, source = generated("any")
    batch = source.batch(4, of)
    lonely = replace(batch, group=torch.tensor([0, 0, 0, 1]))
    with pytest.raises(ValueError, match=r"condition 1 .*has 1 row.*n_conditions"):
        objective(of, lonely)


@pytest.mark.parametrize("objective", [Reinforce(), LogVariance()])
def test_rows_without_scores_are_refused(objective):
    """Masked batches and unscored rows are named with their remedy."""
    of, ensemble, source = generated("any")
    batch = source.batch(8, of)
    masked = ReplaySource(ensemble, source.lattice, BOX, n_conditions=4).batch(8, of)
    unscored = replace(batch, full=replace(batch.full, log_target=None))
    for bad in (masked, unscored):
        with pytest.raises(ValueError, match="GeneratedSource"):
            objective(of, bad)
    with pytest.raises(ValueError, match="draw_steps"):
        cross_entropy(of, replace(batch, full=replace(batch.full, step=None)))


def test_unknown_advantages_are_named():
    """The message lists the choices."""
    with pytest.raises(ValueError, match=r"leave_one_out.*got 'none'"):
        Reinforce("none")


def test_a_vanishing_spread_gives_no_gradient():
    """No energies at all and an untrained network: uniform is exact, standardised or not."""
    lattice, _, box = ising()
    flat = SemiGrandCanonical(lambda lattice, x: torch.zeros(len(x), dtype=torch.float64))
    of = model("any", lattice)
    source = GeneratedSource(
        flat, lattice, box, schedule=FixedGrid(Conditions([30000.0], [[0.0, 0.0]])), n_conditions=1
    )
    loss, metrics = Reinforce()(of, source.batch(32, of))
    assert metrics["spread"] < 1e-12 and gradient(loss, of).norm() < 1e-3
