"""Laws of the multilayer perceptron; those all networks share are in ``test_model_laws``."""

import numpy as np
import pytest
import torch
from toys import SYSTEMS, binary

from clease_nn.compute import compute_policy
from clease_nn.configurations import Configurations
from clease_nn.io import TrainedModel
from clease_nn.lattice import UNKNOWN, Lattice
from clease_nn.models import AnyOrderARM
from clease_nn.networks import MLP


def spoilt_model(lattice, box, *, seed=0, needs_fields=True, strength=0.3):
    """A model with random weights in its head: normalised, and rather wrong."""
    torch.manual_seed(seed)
    net = MLP(lattice, box, width=24, layers=3, needs_fields=needs_fields)
    torch.nn.init.normal_(net.head.weight, std=strength)
    torch.nn.init.normal_(net.head.bias, std=strength)
    return AnyOrderARM(net)


def partial_states(lattice, ensemble, box, n=32):
    """Random configurations with random sets of unknown sites at random conditions."""
    rng = np.random.default_rng(0)
    states = ensemble.enumerate(lattice).occupations
    occupations = states[torch.as_tensor(rng.choice(len(states), n))].clone()
    occupations[torch.as_tensor(rng.random(occupations.shape) < 0.5)] = UNKNOWN
    return Configurations(lattice, box.at(rng.random((n, 1 + box.n_axes))), occupations)


@pytest.fixture(params=sorted(SYSTEMS))
def system(request):
    return SYSTEMS[request.param]()


@pytest.mark.parametrize("needs_fields", [True, False])
def test_probabilities_of_all_states_sum_to_one(system, needs_fields):
    """For a fixed schedule of steps, ties included, sum_x q(x) = 1."""
    lattice, ensemble, box = system
    model = spoilt_model(lattice, box, needs_fields=needs_fields)
    fields = ensemble.fields if needs_fields else None
    states = ensemble.enumerate(lattice).occupations
    full = Configurations(lattice, box.at([[0.3] * (1 + box.n_axes)]).repeat(len(states)), states)
    rng = np.random.default_rng(1)
    for steps in (rng.permutation(lattice.n_sites), rng.integers(0, 3, lattice.n_sites)):
        rows = torch.as_tensor(steps, dtype=torch.int16).expand(len(states), -1)
        with torch.no_grad():
            total = torch.logsumexp(model.log_prob(full, steps=rows, fields=fields), 0)
        assert abs(total.item()) < 1e-5


@pytest.mark.parametrize("needs_fields", [True, False])
def test_drawn_log_prob_is_the_recomputed_one(system, needs_fields):
    """complete() of any partial configuration and log_prob() agree; known sites stay."""
    lattice, ensemble, box = system
    model = spoilt_model(lattice, box, needs_fields=needs_fields)
    fields = ensemble.fields if needs_fields else None
    partial = partial_states(lattice, ensemble, box)
    drawn = model.complete(partial, torch.Generator().manual_seed(3), fields)
    again = model.log_prob(drawn, steps=drawn.step, fields=fields).detach()
    assert torch.allclose(drawn.log_prob, again, atol=1e-4, rtol=0)
    assert (drawn.occupations == partial.occupations)[partial.known].all()


@pytest.mark.parametrize("needs_fields", [True, False])
def test_logits_of_one_site_are_those_of_forward(system, needs_fields):
    """at() computes a part of what forward() computes."""
    lattice, ensemble, box = system
    net = spoilt_model(lattice, box, needs_fields=needs_fields).network
    c = partial_states(lattice, ensemble, box)
    fields = ensemble.fields(c) if needs_fields else None
    site = torch.arange(len(c)) % lattice.n_sites
    with torch.no_grad():
        full = net(c, fields)
    assert torch.allclose(net.at(c, fields, site), full[torch.arange(len(c)), site], atol=1e-5)


def test_half_precision_changes_little():
    """bfloat16 products leave logits within their rounding, and float32."""
    lattice, ensemble, box = binary()
    net = spoilt_model(lattice, box).network
    c = partial_states(lattice, ensemble, box)
    fields, site = ensemble.fields(c), torch.arange(len(c)) % lattice.n_sites
    with torch.no_grad():
        full = net(c, fields)
        with compute_policy(precision="bfloat16"):
            half, at = net(c, fields), net.at(c, fields, site)
    assert half.dtype == at.dtype == torch.float32
    scale = full.abs().max()
    assert (half - full).abs().max() < 0.02 * scale
    assert (at - full[torch.arange(len(c)), site]).abs().max() < 0.02 * scale


def test_untrained_network_is_the_physical_prior():
    """The head starts at zero: what remains is mean field * (fraction known)."""
    lattice, ensemble, box = binary()
    c = partial_states(lattice, ensemble, box)
    fields = ensemble.fields(c)
    expected = fields[:, :, : lattice.n_species] * c.known.float().mean(1)[:, None, None]
    with torch.no_grad():
        assert torch.allclose(MLP(lattice, box, width=8)(c, fields), expected)


def test_mean_over_passes_is_the_full_log_prob():
    """log_prob at some passes is unbiased: over all single passes its mean is the full value."""
    lattice, _, box = binary()
    model = spoilt_model(lattice, box, needs_fields=False)
    c = Configurations.unknown(lattice, box.grid(2, 2))
    drawn = model.complete(c, torch.Generator().manual_seed(0))
    with torch.no_grad():
        full = model.log_prob(drawn, steps=drawn.step)
        single = [
            model.log_prob(drawn, steps=drawn.step, passes=torch.full((len(drawn), 1), t))
            for t in range(lattice.n_sites)
        ]
    assert torch.allclose(torch.stack(single).mean(0), full, atol=1e-5)


@pytest.mark.parametrize("needs_fields", [True, False])
def test_every_parameter_gets_a_gradient(needs_fields):
    """No part of the network is disconnected."""
    lattice, ensemble, box = binary()
    model = spoilt_model(lattice, box, needs_fields=needs_fields)
    rng = torch.Generator().manual_seed(0)
    fields = ensemble.fields if needs_fields else None
    drawn = model.complete(Configurations.unknown(lattice, box.grid(2, 2)), rng, fields)
    model.log_prob(drawn, steps=drawn.step, fields=fields).sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.abs().max() > 0, name


@pytest.mark.parametrize("needs_fields", [True, False])
def test_saved_model_is_the_same_model(system, needs_fields, tmp_path):
    """A model file gives back the same conditionals without a lattice at hand."""
    lattice, ensemble, box = system
    model = spoilt_model(lattice, box, needs_fields=needs_fields)
    TrainedModel(model, box).save(tmp_path / "model")
    again = TrainedModel.load(tmp_path / "model").model
    c = partial_states(lattice, ensemble, box)
    fields = ensemble.fields(c) if needs_fields else None
    with torch.no_grad():
        assert torch.equal(model.log_conditionals(c, fields), again.log_conditionals(c, fields))
    assert again.config() == model.config()


def test_another_cell_is_refused():
    """A network of one cell does not guess what to do with another."""
    _, _, box = binary()
    small, large = Lattice.square(5), Lattice.square(10)
    model = AnyOrderARM(MLP(small, box, width=8, needs_fields=False))
    c = Configurations.unknown(large, box.grid(1, 1))
    with pytest.raises(ValueError, match=r"of 25 sites, asked for .* of 100; use LatticeConv"):
        model.complete(c, torch.Generator())


def test_fields_are_asked_for():
    """A network made for fields does not go on without."""
    lattice, _, box = binary()
    c = Configurations.unknown(lattice, box.grid(1, 1))
    with pytest.raises(ValueError, match="fields"):
        MLP(lattice, box, width=8)(c, None)


@pytest.mark.parametrize("sizes", [{"width": 0}, {"layers": 0}])
def test_sizes_must_be_positive(sizes):
    """A network without units is refused by name."""
    lattice, _, box = binary()
    with pytest.raises(ValueError, match="width and layers must be positive"):
        MLP(lattice, box, **sizes)
