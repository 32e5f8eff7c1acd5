"""The same laws for every model with every network: likelihoods, symmetry, files, completion."""

import numpy as np
import pytest
import torch
from toys import SYSTEMS

from clease_nn.configurations import Configurations
from clease_nn.io import TrainedModel
from clease_nn.lattice import UNKNOWN
from clease_nn.models import AnyOrderARM, FixedOrderARM, MarginalizationModel
from clease_nn.networks import MLP, LatticeConvolution, LatticeTransformer, MaskedMLP, PaiNN
from clease_nn.sampling import complete, sample
from clease_nn.statistics import log_mean_exp

NETWORKS = {
    "convolution": lambda lattice, box, fields: LatticeConvolution(
        lattice, box, channels=8, blocks=2, needs_fields=fields
    ),
    "mlp": lambda lattice, box, fields: MLP(lattice, box, width=32, layers=3, needs_fields=fields),
    "painn": lambda lattice, box, fields: PaiNN(
        lattice, box, features=8, layers=2, n_radial=6, needs_fields=fields
    ),
    "transformer": lambda lattice, box, fields: LatticeTransformer(
        lattice, box, width=16, blocks=2, heads=2, needs_fields=fields
    ),
}


def order_of(lattice):
    """An order of the sites that is no raster."""
    return np.random.default_rng(5).permutation(lattice.n_sites)


def masked(lattice, box, fields):
    order = order_of(lattice)
    network = MaskedMLP(lattice, box, order, width=32, layers=3, needs_fields=fields)
    return FixedOrderARM(network, order)


def marginal(name):
    def make(lattice, box, fields):
        return MarginalizationModel(
            NETWORKS[name](lattice, box, fields), NETWORKS[name](lattice, box, False)
        )

    return make


MODELS = {
    **{
        f"any_order-{name}": lambda lattice, box, fields, make=make: AnyOrderARM(
            make(lattice, box, fields)
        )
        for name, make in NETWORKS.items()
    },
    **{
        f"fixed_order-{name}": lambda lattice, box, fields, make=make: FixedOrderARM(
            make(lattice, box, fields), order_of(lattice)
        )
        for name, make in NETWORKS.items()
    },
    "fixed_order-masked_mlp": masked,
    **{f"marginalization-{name}": marginal(name) for name in NETWORKS},
}


def spoilt(name, system, fields, strength=0.3, seed=0):
    """A model with random numbers for every weight that starts at zero: normalised, and wrong."""
    lattice, _, box = system
    torch.manual_seed(seed)
    model = MODELS[name](lattice, box, fields)
    for parameter in model.parameters():
        if parameter.ndim > 1 and not parameter.detach().any():
            torch.nn.init.normal_(parameter, std=strength)
    return model.eval()


@pytest.fixture(params=["ternary-fields", "two_sublattices"])
def case(request):
    """A system, and whether the networks use its fields."""
    system, _, fields = request.param.partition("-")
    return SYSTEMS[system](), bool(fields)


@pytest.fixture(params=sorted(MODELS))
def name(request):
    return request.param


def one(box):
    """A single condition inside the box."""
    return box.at([[0.3] * (1 + box.n_axes)])


def test_probabilities_of_all_states_sum_to_one(name, case):
    """sum_x q(x) = 1 for the steps of one draw."""
    system, fields = case
    lattice, ensemble, box = system
    model = spoilt(name, system, fields)
    states = ensemble.enumerate(lattice).occupations
    full = Configurations(lattice, one(box).repeat(len(states)), states)
    empty = Configurations.unknown(lattice, one(box))
    steps = model.draw_steps(empty, torch.Generator().manual_seed(1)).expand(len(states), -1)
    with torch.no_grad():
        log_q = model.log_prob(full, steps=steps, fields=ensemble.fields)
    assert abs(torch.logsumexp(log_q, 0).item()) < 1e-5
    assert log_q.std() > 0.02  # a flat distribution would show nothing


def test_drawn_log_prob_is_the_recomputed_one(name, case):
    """complete() and log_prob() say the same about the same configuration and steps."""
    system, fields = case
    lattice, ensemble, box = system
    model = spoilt(name, system, fields)
    conditions = box.at(np.random.default_rng(0).random((48, 1 + box.n_axes)))
    partial = Configurations.unknown(lattice, conditions)
    drawn = model.complete(partial, torch.Generator().manual_seed(3), ensemble.fields)
    with torch.no_grad():
        again = model.log_prob(drawn, steps=drawn.step, fields=ensemble.fields)
    assert torch.allclose(drawn.log_prob, again, atol=1e-4, rtol=0)
    allowed = torch.tensor(lattice.allowed)[torch.arange(lattice.n_sites), drawn.occupations.long()]
    assert allowed.all()


@pytest.mark.parametrize(
    "name", [n for n in sorted(MODELS) if "mlp" not in n and "fixed" not in n], indirect=True
)
def test_conditionals_commute_with_translations(name, case):
    """A translated configuration has translated conditionals: all but MLPs and fixed orders."""
    system, _ = case
    lattice, ensemble, box = system
    model = spoilt(name, system, True)
    rng = np.random.default_rng(0)
    states = ensemble.enumerate(lattice).occupations
    occupations = states[torch.as_tensor(rng.choice(len(states), 8))].clone()
    occupations[torch.as_tensor(rng.random(occupations.shape) < 0.5)] = UNKNOWN
    conditions = box.at(rng.random((8, 1 + box.n_axes)))
    c = Configurations(lattice, conditions, occupations)
    with torch.no_grad():
        base = model.log_conditionals(c, ensemble.fields(c))
        for shift in torch.tensor(lattice.translations):
            moved = Configurations(lattice, conditions, occupations[:, shift])
            out = model.log_conditionals(moved, ensemble.fields(moved))
            assert torch.allclose(out, base[:, shift], atol=2e-5)


def test_saved_models_draw_the_same(name, case, tmp_path):
    """A model read from a file gives the same draws with the same likelihoods."""
    system, fields = case
    lattice, ensemble, box = system
    model = spoilt(name, system, fields)
    TrainedModel(model, box).save(tmp_path / "model.nn")
    loaded = TrainedModel.load(tmp_path / "model.nn").model
    assert type(loaded) is type(model) and loaded.config() == model.config()
    empty = Configurations.unknown(lattice, one(box).repeat(8))
    a, b = (
        m.complete(empty, torch.Generator().manual_seed(0), ensemble.fields)
        for m in (model, loaded)
    )
    assert torch.equal(a.occupations, b.occupations) and torch.equal(a.log_prob, b.log_prob)


def test_any_known_sites_are_completed_or_refused(name, case):
    """Known sites stay; a fixed order completes its prefixes, and says why nothing else."""
    system, _ = case
    lattice, ensemble, box = system
    model = spoilt(name, system, True)
    rng = torch.Generator().manual_seed(0)
    full = sample(model, ensemble, lattice, one(box).repeat(16), rng)

    def known(mask):
        occupations = torch.where(mask, full.occupations, UNKNOWN).to(torch.int8)
        return Configurations(lattice, full.conditions, occupations)

    scattered = torch.rand(full.occupations.shape, generator=rng) < 0.5
    if model.any_order:
        cases = [scattered]
    else:
        rank = torch.as_tensor(order_of(lattice)).argsort()
        cases = [rank < k for k in (1, lattice.n_sites // 2, lattice.n_sites)]
        with pytest.raises(ValueError, match="first of its order"):
            complete(model, ensemble, known((rank >= 1).expand_as(scattered)), rng)
    for mask in cases:
        mask = mask.expand_as(scattered)
        out = complete(model, ensemble, known(mask), rng)
        assert (out.occupations == full.occupations)[mask].all() and out.known.all()
        assert (out.step[mask] == -1).all() and (out.step[~mask] >= 0).all()
        assert (out.log_prob[mask.all(1)] == 0).all()


def test_ln_z_of_a_wrong_model_is_unbiased(name):
    """Importance sampling corrects a wrong model: z-scores of ln Z, replicas and conditions."""
    system = SYSTEMS["ternary"]()
    lattice, ensemble, box = system
    model = spoilt(name, system, True, strength=0.05)
    grid = box.at(0.25 + 0.5 * np.random.default_rng(0).random((3, 1 + box.n_axes)))
    exact = ensemble.enumerate(lattice).log_z(grid)
    n, replicas = 600, 10
    drawn = sample(model, ensemble, lattice, grid.repeat(n * replicas),
                   torch.Generator().manual_seed(7), batch_size=2048)  # fmt: skip
    weights = drawn.log_weight.view(len(grid), replicas, n)
    z = []
    for k in range(len(grid)):
        for row in weights[k].numpy():
            estimate = log_mean_exp(row)
            if estimate.ness * n >= 200:
                z.append((estimate.value - exact[k].item()) / estimate.error)
    z = np.array(z)
    assert len(z) >= 20
    # conditions share their draws' seed but no draws: z-scores are independent
    assert abs(z.mean()) < 4 / np.sqrt(len(z))
    assert abs(z.std() - 1) < 4 / np.sqrt(2 * len(z)) + 0.05
