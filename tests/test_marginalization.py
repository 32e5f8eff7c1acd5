"""Laws of the marginalization model, its objective and the Gibbs chains that feed it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toys import SYSTEMS, binary, ternary

from clease_nn.configurations import Configurations
from clease_nn.diagnostics import kl_gap
from clease_nn.io import TrainedModel, read_state, write_state
from clease_nn.lattice import UNKNOWN
from clease_nn.models import AnyOrderARM, MarginalizationModel
from clease_nn.networks import MLP, AbstractNetwork, LatticeConvolution
from clease_nn.objectives import CompleteBatch, MarginalConsistency
from clease_nn.sampling import sample
from clease_nn.schedules import FixedGrid, RandomWalk
from clease_nn.sources import GibbsSource
from clease_nn.statistics import log_mean_exp


class Exact(AbstractNetwork):
    """Conditionals of an enumerated ensemble; read out at the known sites, its marginals.

    ``constant`` is added to ln p of every set of two or more known sites: self-consistent except
    where the second site is drawn.
    """

    needs_fields = False

    def __init__(self, ensemble, lattice, constant=0.0):
        super().__init__()
        self.exact, self.constant = ensemble.enumerate(lattice), constant
        self.scale = torch.nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, c, fields):
        states, k = self.exact.occupations, c.lattice.n_species
        number = torch.stack([(states == a).sum(1) for a in range(k)]).double()
        target = (c.conditions.mu @ number - self.exact.energy) / c.conditions.kT[:, None]
        log_z = torch.logsumexp(target, 1, keepdim=True)
        match = ((states == c.occupations[:, None]) | ~c.known[:, None]).all(2)
        p = (target - log_z).exp() * match  # (batch, states)
        now = p.sum(1).log()
        species = torch.arange(k)
        joint = p @ (states[:, :, None] == species).double().flatten(1)
        logits = joint.view(len(c), -1, k).clamp(min=1e-300).log() - now[:, None, None]
        known = c.known.sum(1)
        uniform = c.lattice.allowed_mask(now.device).sum(1).double().log()
        # the model adds up the known sites and subtracts ln(allowed): undo both
        now = now + self.constant * (known >= 2)
        share = (now[:, None] + (uniform * c.known).sum(1, keepdim=True)) / known[:, None]
        spread = share[:, :, None] * (c.occupations[:, :, None] == species)
        return self.scale * torch.where(c.known[:, :, None], spread, logits)

    def check_lattice(self, lattice):
        """Made for one lattice; tests ask for no other."""

    def config(self):
        raise NotImplementedError

    @classmethod
    def from_config(cls, config):
        raise NotImplementedError


def exact_model(ensemble, lattice, constant=0.0):
    return MarginalizationModel(Exact(ensemble, lattice), Exact(ensemble, lattice, constant))


def spoilt_model(lattice, box, *, fields=True, strength=0.1, seed=0):
    """Random numbers in both heads."""
    torch.manual_seed(seed)
    networks = [
        LatticeConvolution(lattice, box, channels=8, blocks=2, needs_fields=fields)
        for _ in range(2)
    ]
    for network in networks:
        torch.nn.init.normal_(network.head.weight, std=strength)
    return MarginalizationModel(*networks)


def mlps(lattice, box, *, width=64, seed=0):
    torch.manual_seed(seed)
    return MarginalizationModel(
        *(MLP(lattice, box, width=width, layers=2, needs_fields=False) for _ in range(2))
    )


def draws(system, n, seed=0):
    """Exact configurations of the ensemble with random orders, groups of ``n`` at 3 conditions."""
    lattice, ensemble, box = system
    exact = ensemble.enumerate(lattice)
    rng = torch.Generator().manual_seed(seed)
    conditions = box.at(np.random.default_rng(seed).random((3, 1 + box.n_axes)))
    rows = torch.cat(
        [torch.multinomial(exact.probabilities(conditions[k]), n, True, generator=rng)
         for k in range(3)]
    )  # fmt: skip
    full = Configurations(lattice, conditions.repeat(n), exact.occupations[rows])
    steps = torch.rand(full.occupations.shape, generator=rng).argsort(1).to(torch.int16)
    passes = torch.randint(lattice.n_sites, (len(full), 2), generator=rng)
    full = replace(ensemble.score(full), step=steps)
    return CompleteBatch(full, torch.arange(3).repeat_interleave(n), None, passes)


@pytest.fixture(params=sorted(SYSTEMS))
def system(request):
    return SYSTEMS[request.param]()


# ------------------------------------------------------------------ model
@pytest.mark.parametrize("fields", [True, False])
def test_marginal_of_no_known_site_is_one(system, fields):
    """The boundary condition holds exactly, whatever the weights and conditions."""
    lattice, ensemble, box = system
    model = spoilt_model(lattice, box, fields=fields, strength=1.0)
    empty = Configurations.unknown(lattice, box.grid(3, 3))
    assert (model.log_marginal(empty, ensemble.fields) == 0).all()
    one = empty.occupations.clone()
    one[:, 0] = int(np.flatnonzero(lattice.allowed[0])[0])
    assert (model.log_marginal(replace(empty, occupations=one), ensemble.fields) != 0).all()


def test_a_new_model_is_uniform_and_consistent(system):
    """Heads at zero: marginals and conditionals of the uniform distribution, without fields."""
    lattice, _, box = system
    batch = draws(system, 8)
    model = spoilt_model(lattice, box, fields=False, strength=0.0)
    full = batch.full
    assert torch.allclose(
        model.log_marginal(full), torch.tensor(-lattice.log_states, dtype=torch.float64)
    )
    assert model.inconsistency(full, full.step, batch.passes).abs().max() < 1e-12


@pytest.mark.parametrize("fields", [True, False])
def test_probabilities_of_all_states_sum_to_one(system, fields):
    """The conditional is normalised by construction; the marginal is not."""
    lattice, ensemble, box = system
    model = spoilt_model(lattice, box, fields=fields)
    states = ensemble.enumerate(lattice).occupations
    full = Configurations(lattice, box.at([[0.3] * (1 + box.n_axes)]).repeat(len(states)), states)
    steps = torch.randperm(lattice.n_sites, generator=torch.Generator().manual_seed(1))
    rows = steps.to(torch.int16).expand(len(states), -1)
    with torch.no_grad():
        log_q = model.log_prob(full, steps=rows, fields=ensemble.fields)
        log_p = model.log_marginal(full, ensemble.fields)
    assert abs(torch.logsumexp(log_q, 0)) < 1e-5
    assert abs(torch.logsumexp(log_p, 0)) > 0.01


def test_log_z_does_not_depend_on_the_marginal_and_is_unbiased():
    """Draws and weights are those of the conditional: a spoilt marginal changes no bit of them."""
    lattice, ensemble, box = binary()
    model = spoilt_model(lattice, box, strength=0.05)
    twin = MarginalizationModel(model.conditional, spoilt_model(lattice, box, seed=1).marginal)
    torch.nn.init.normal_(twin.marginal.head.weight, std=10.0)
    grid = box.at([[0.8, 0.3], [0.8, 0.7], [1.0, 0.5], [0.9, 0.1]])

    def draw(m, n):
        rng = torch.Generator().manual_seed(7)
        return sample(m, ensemble, lattice, grid.repeat(n), rng, batch_size=2048)

    few, same = draw(model, 50), draw(twin, 50)
    assert torch.equal(few.occupations, same.occupations)
    assert torch.equal(few.log_weight, same.log_weight)
    n, replicas = 400, 20
    exact = ensemble.enumerate(lattice).log_z(grid)
    z = []
    for k, rows in enumerate(draw(model, n * replicas).log_weight.view(len(grid), replicas, n)):
        for row in rows:
            estimate = log_mean_exp(row.numpy())
            if estimate.ness * n >= 200:
                z.append((estimate.value - exact[k].item()) / estimate.error)
    z = np.array(z)
    assert len(z) >= 20
    # the standard deviation of n normal numbers deviates by 1 / sqrt(2 n)
    assert abs(z.mean()) < 4 / np.sqrt(len(z)) and abs(z.std() - 1) < 4 / np.sqrt(2 * len(z)) + 0.05


def test_config_rebuilds_the_model(tmp_path):
    """config() and the weights say everything, marginals included."""
    lattice, ensemble, box = binary()
    model = spoilt_model(lattice, box)
    TrainedModel(model, box, {}).save(tmp_path / "model.nn")
    twin = TrainedModel.load(tmp_path / "model.nn").model
    full = draws(binary(), 4).full
    with torch.no_grad():
        values = [m.log_marginal(full, ensemble.fields) for m in (model, twin)]
    assert torch.equal(*values)


# ------------------------------------------------------------------ objective
@pytest.mark.parametrize("toy", [binary, ternary])
def test_exact_marginals_are_the_minimum(toy):
    """With exact networks the inconsistency is zero, and so is every gradient: ln p - ln f is
    the same for all rows of a condition."""
    lattice, ensemble, _ = toy()
    model = exact_model(ensemble, lattice)
    batch = draws(toy(), 6)
    loss, metrics = MarginalConsistency()(model, batch)
    loss.backward()
    assert metrics["inconsistency"] < 1e-9 and metrics["spread"] < 1e-9
    assert all(p.grad.abs() < 1e-6 for p in model.parameters())


def test_reinforce_gradient_vanishes_in_expectation_for_exact_marginals():
    """Standardised advantages of pure rounding noise average to nothing: no systematic pull.

    A wrong constant in ln p is invisible to the KL term and seen by consistency at the first
    positions, which hang on the boundary ln p(nothing known) = 0.
    """
    lattice, ensemble, _ = binary()
    batch = draws(binary(), 6)
    model = exact_model(ensemble, lattice, constant=0.3)
    _, metrics = MarginalConsistency()(model, batch)
    assert metrics["spread"] < 1e-9
    gap = model.inconsistency(
        batch.full, batch.full.step, torch.arange(lattice.n_sites).expand(len(batch.full), -1)
    )
    expected = torch.zeros(lattice.n_sites, dtype=torch.float64)
    expected[1] = -0.3
    assert torch.allclose(gap, expected.expand_as(gap), atol=1e-9)


def test_kl_term_is_the_gradient_of_half_the_variance():
    """Autograd through half the variance of ln p - ln f within each condition agrees."""
    lattice, _, box = binary()
    batch = draws(binary(), 8)
    model = spoilt_model(lattice, box, fields=False)
    weight = 1e-9  # consistency out of the way
    loss, _ = MarginalConsistency(weight)(model, batch)
    loss.backward()
    found = model.marginal.head.weight.grad.clone()
    model.zero_grad()
    difference = (model.log_marginal(batch.full) - batch.full.log_target).view(3, 8)
    (0.5 * difference.var(1, correction=0).mean()).backward()
    assert torch.allclose(found, model.marginal.head.weight.grad, rtol=1e-4, atol=1e-6)


def test_standardised_advantages_do_not_see_the_scale_of_the_energy():
    """Divided by their standard deviation per condition, advantages have spread one."""
    lattice, _, box = binary()
    batch = draws(binary(), 8)
    model = spoilt_model(lattice, box, fields=False, strength=0.0)
    gradients = []
    for factor in (1.0, 50.0):
        full = replace(batch.full, log_target=batch.full.log_target * factor)
        loss, _ = MarginalConsistency(1e-9, standardise=True)(model, replace(batch, full=full))
        model.zero_grad()
        loss.backward()
        gradients.append(model.marginal.head.weight.grad.clone())
    assert gradients[0].abs().max() > 1e-3
    assert torch.allclose(*gradients, rtol=1e-3, atol=1e-6)


def test_block_term_is_the_gradient_of_the_squared_inconsistency_of_the_block():
    """With every position looked at, autograd through the likelihood of the block agrees."""
    lattice, ensemble, box = binary()
    model = spoilt_model(lattice, box, fields=False)
    source = GibbsSource(
        ensemble, lattice, box, n_chains=24, n_conditions=3, gibbs_sites=5, positions=8, seed=3
    )
    batch = source.batch(24, model)
    assert torch.equal(batch.passes[0], torch.arange(8))
    full, drawn = batch.full, batch.drawn
    assert torch.equal(drawn, full.step >= 3) and (drawn.sum(1) == 5).all()
    gradients = []
    for block in (0.0, 7.0):
        model.zero_grad()
        MarginalConsistency(1.0, block=block)(model, batch)[0].backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    model.zero_grad()
    steps = torch.where(drawn, full.step, -1)
    given = replace(full, occupations=torch.where(drawn, UNKNOWN, full.occupations).to(torch.int8))
    log_q = model.log_prob(full, steps=steps)
    assert torch.allclose(log_q.detach(), full.log_prob, atol=1e-4)
    gap = model.log_marginal(given) + log_q - model.log_marginal(full)
    (7.0 * gap.square().mean()).backward()
    for p, without, with_block in zip(model.parameters(), *gradients, strict=True):
        scale = 1e-3 * float(p.grad.abs().max()) + 1e-6
        assert torch.allclose(with_block - without, p.grad, rtol=1e-3, atol=scale)


def test_passes_of_a_step_do_not_grow_with_the_number_of_sites():
    """A step sees rows * positions partial configurations, whatever the number of sites."""
    seen = []
    for toy in (binary, ternary):
        lattice, _, box = toy()
        model = spoilt_model(lattice, box, fields=False)
        rows = []
        for part in (model.conditional, model.marginal):
            part.register_forward_hook(lambda _, args, out, rows=rows: rows.append(len(args[0])))
        MarginalConsistency()(model, draws(toy(), 8))
        seen.append(sum(rows))
    assert (
        seen == [24 * 2 * 3 + 24] * 2
    )  # 2 positions: one conditional, two marginals; then ln p(x)


def test_every_parameter_gets_a_gradient():
    """Both networks are trained; the boundary needs no parameter."""
    lattice, ensemble, box = binary()
    model = spoilt_model(lattice, box)
    batch = replace(draws(binary(), 8), fields=ensemble.fields)
    MarginalConsistency()(model, batch)[0].backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.abs().max() > 0, name


# ------------------------------------------------------------------ Gibbs chains
def test_gibbs_moves_with_exact_conditionals_keep_the_exact_distribution():
    """Chains that start in equilibrium stay there: z-scores of energies and compositions."""
    lattice, ensemble, box = ternary()
    exact = ensemble.enumerate(lattice)
    conditions = box.at([[0.2, 0.3, 0.6]])
    n = 600
    source = GibbsSource(
        ensemble, lattice, box, schedule=FixedGrid(conditions), n_chains=n, n_conditions=1,
        gibbs_sites=3, seed=1,
    )  # fmt: skip
    p = exact.probabilities(conditions)
    rng = torch.Generator().manual_seed(0)
    source.occupations = exact.occupations[torch.multinomial(p, n, True, generator=rng)].clone()
    start = source.occupations.clone()
    model = exact_model(ensemble, lattice)
    for _ in range(2):
        batch = source.batch(n, model)
    assert (batch.full.occupations != start).any(1).double().mean() > 0.3
    values = torch.cat([exact.energy[:, None], (exact.occupations == 0).double()], 1)
    seen = torch.cat([batch.full.energy[:, None], (batch.full.occupations == 0).double()], 1)
    mean = p @ values
    z = (seen.mean(0) - mean) / (((values - mean) ** 2).T @ p / n).sqrt()
    assert (z.abs() < 4.5).all()


def test_gibbs_batches_are_complete_scored_and_grouped(system):
    """Rows are full, allowed and scored; a condition's rows stand together; rounds take turns."""
    lattice, ensemble, box = system
    source = GibbsSource(
        ensemble, lattice, box, n_chains=48, n_conditions=6, gibbs_sites=2, positions=3, seed=2
    )
    model = spoilt_model(lattice, box)
    before = source.occupations.clone()
    first, second = source.batch(24, model), source.batch(24, model)
    for batch in (first, second):
        c = batch.full
        assert torch.equal(batch.group, torch.arange(3).repeat_interleave(8))
        assert torch.allclose(c.log_target, ensemble.score(c).log_target)
        allowed = torch.tensor(lattice.allowed)[torch.arange(lattice.n_sites), c.occupations.long()]
        assert allowed.all()
        assert torch.equal(c.step.sort(1).values[0].long(), torch.arange(lattice.n_sites))
        assert batch.passes.shape == (24, 3) and (batch.passes < lattice.n_sites).all()
        assert len(torch.unique(c.conditions.temperature)) == 3
    changed = (torch.cat([first.full.occupations, second.full.occupations]) != before).sum(1)
    assert changed.max() <= 2 and changed.sum() > 0
    assert source.energy_evaluations == 48


def test_resumed_gibbs_chains_continue_bitwise(tmp_path):
    """state_dict, through a file and in the middle of a round, fixes all that follows."""
    lattice, ensemble, box = binary()
    model = spoilt_model(lattice, box)

    def new():
        walk = RandomWalk(box, temperature_step=100.0, mu_step=0.02, seed=3)
        return GibbsSource(
            ensemble, lattice, box, schedule=walk, n_chains=24, n_conditions=6, gibbs_sites=3
        )

    source = new()
    source.batch(8, model)
    write_state(tmp_path / "state", "checkpoint", source.state_dict())
    twin = new()
    twin.batch(24, model)
    twin.load_state_dict(read_state(tmp_path / "state", "checkpoint"))
    for _ in range(4):
        a, b = source.batch(8, model), twin.batch(8, model)
        assert torch.equal(a.full.occupations, b.full.occupations)
        assert torch.equal(a.full.log_target, b.full.log_target)
        assert torch.equal(a.full.step, b.full.step) and torch.equal(a.passes, b.passes)
    assert source.energy_evaluations == twin.energy_evaluations


# ------------------------------------------------------------------ training
def test_training_lowers_the_gap_and_joins_marginal_and_likelihood():
    """A short training lowers the KL gap and brings log_marginal to log_prob.

    After a few steps the two differ by a nat: what log_marginal says is no weight.
    """
    lattice, ensemble, box = binary()
    grid = box.grid(2, 2)
    exact = ensemble.enumerate(lattice).log_z(grid)
    model, objective = mlps(lattice, box), MarginalConsistency()
    source = GibbsSource(ensemble, lattice, box, n_chains=64, n_conditions=8, gibbs_sites=3)
    optimizer = torch.optim.Adam(model.parameters())

    def gap_and_differences():
        c = sample(model, ensemble, lattice, grid.repeat(200), torch.Generator().manual_seed(0))
        with torch.no_grad():
            difference = model.log_marginal(c) - c.log_prob
        gap = kl_gap(c.log_weight.view(len(grid), -1), exact).mean()
        return (
            float(gap),
            float(difference.square().mean().sqrt()),
            float(difference.abs().median()),
        )

    seen = []
    for step in range(501):
        if step in (0, 10, 500):
            seen.append(gap_and_differences())
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / 501)
        loss, _ = objective(model, source.batch(64, model))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    (start, _, _), (_, early, typical), (end, _, late) = seen
    assert end < 0.2 * start, seen
    assert early > 0.8 and late < 0.5 * typical, seen


# ------------------------------------------------------------------ bad input
def source_with(**options):
    lattice, ensemble, box = binary()
    return GibbsSource(ensemble, lattice, box, **options)


@pytest.mark.parametrize("sites", [0, 9])
def test_more_gibbs_sites_than_sites_are_refused(sites):
    """The message names both numbers."""
    with pytest.raises(ValueError, match=rf"8 sites.*got {sites}"):
        source_with(gibbs_sites=sites)


@pytest.mark.parametrize(
    "options",
    [{"n_chains": 10, "n_conditions": 10}, {"n_chains": 10, "n_conditions": 4}, {"positions": 0}],
)
def test_chains_that_cannot_be_compared_are_refused(options):
    """Conditions need two chains or more, all the same number; positions are positive."""
    with pytest.raises(ValueError, match="at least"):
        source_with(gibbs_sites=4, **options)


@pytest.mark.parametrize("weight", [0.0, -1.0, np.inf, np.nan])
def test_weights_of_consistency_are_positive(weight):
    """Without consistency nothing trains the conditional."""
    with pytest.raises(ValueError, match="positive"):
        MarginalConsistency(weight)


def test_other_models_and_batches_are_refused():
    """The objective says which model and source it belongs to."""
    lattice, _, box = binary()
    model = spoilt_model(lattice, box, fields=False)
    batch = draws(binary(), 4)
    with pytest.raises(TypeError, match="AnyOrderARM"):
        MarginalConsistency()(AnyOrderARM(model.conditional), batch)
    with pytest.raises(ValueError, match="GibbsSource"):
        MarginalConsistency()(model, replace(batch, passes=None))
    with pytest.raises(ValueError, match="block"):
        MarginalConsistency(block=1.0)(model, batch)
    with pytest.raises(ValueError, match="block"):
        MarginalConsistency(block=-1.0)
    with pytest.raises(ValueError, match="at least 2"):
        MarginalConsistency()(model, replace(batch, group=torch.arange(12)))


def test_incomplete_rows_and_missing_fields_are_refused():
    """Clear errors instead of numbers without meaning; one network cannot play both parts."""
    lattice, _, box = binary()
    batch = draws(binary(), 4)
    model = spoilt_model(lattice, box)
    with pytest.raises(ValueError, match="fields"):
        model.log_marginal(batch.full)
    occupations = batch.full.occupations.clone()
    occupations[0, 0] = UNKNOWN
    with pytest.raises(ValueError, match="full"):
        model.inconsistency(
            replace(batch.full, occupations=occupations), batch.full.step, batch.passes
        )
    with pytest.raises(ValueError, match="two networks"):
        MarginalizationModel(model.conditional, model.conditional)
