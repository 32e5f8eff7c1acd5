"""Laws of models: normalised, drawn = recomputed, equivariant, exact after weighting."""

import numpy as np
import pytest
import torch
from ase.units import kB
from toys import SYSTEMS, binary

from clease_nn.conditions import ConditionRange
from clease_nn.configurations import Configurations
from clease_nn.energies.ising import ising_energy
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import UNKNOWN, Lattice
from clease_nn.models import AnyOrderARM, MarginalizationModel
from clease_nn.networks import LatticeConvolution, MaskedMLP, network_from_config
from clease_nn.sampling import complete, sample
from clease_nn.statistics import log_mean_exp


def spoilt_model(lattice, box, *, seed=0, needs_fields=True, strength=0.7):
    """A model with random weights in its head: normalised, and rather wrong."""
    torch.manual_seed(seed)
    net = LatticeConvolution(lattice, box, channels=8, blocks=2, needs_fields=needs_fields)
    torch.nn.init.normal_(net.head.weight, std=strength)
    return AnyOrderARM(net)


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
    conditions = box.at([[0.3] * (1 + box.n_axes)])
    rng = np.random.default_rng(1)
    for steps in (rng.permutation(lattice.n_sites), rng.integers(0, 3, lattice.n_sites)):
        full = Configurations(lattice, conditions.repeat(len(states)), states)
        rows = torch.as_tensor(steps, dtype=torch.int16).expand(len(states), -1)
        with torch.no_grad():
            total = torch.logsumexp(model.log_prob(full, steps=rows, fields=fields), 0)
        assert abs(total.item()) < 1e-5


def test_conditional_probabilities_sum_to_one_given_known_sites():
    """With known sites held, the probabilities of all completions sum to one."""
    lattice, ensemble, box = binary()
    model = spoilt_model(lattice, box)
    states = ensemble.enumerate(lattice).occupations
    given = torch.tensor([1, 0, 1])
    rows = states[(states[:, :3] == given).all(1)]
    steps = torch.tensor([-1, -1, -1, 4, 0, 2, 1, 3], dtype=torch.int16).expand(len(rows), -1)
    full = Configurations(lattice, box.at([[0.5, 0.2]]).repeat(len(rows)), rows)
    with torch.no_grad():
        total = torch.logsumexp(model.log_prob(full, steps=steps, fields=ensemble.fields), 0)
    assert abs(total.item()) < 1e-5


def test_drawn_log_prob_is_the_recomputed_one(system):
    """complete() and log_prob() say the same about the same configuration and steps."""
    lattice, ensemble, box = system
    model = spoilt_model(lattice, box)
    rng = torch.Generator().manual_seed(3)
    partial = Configurations.unknown(lattice, box.at(np.random.default_rng(0).random(
        (64, 1 + box.n_axes))))  # fmt: skip
    drawn = model.complete(partial, rng, ensemble.fields)
    again = model.log_prob(drawn, steps=drawn.step, fields=ensemble.fields).detach()
    assert torch.allclose(drawn.log_prob, again, atol=1e-4, rtol=0)
    allowed = torch.tensor(lattice.allowed)[torch.arange(lattice.n_sites), drawn.occupations.long()]
    assert allowed.all()


def test_draws_follow_log_prob(system):
    """Frequencies of drawn states agree with their probabilities (chi-square, fixed order)."""
    lattice, ensemble, box = system
    model = spoilt_model(lattice, box, strength=0.3)
    n = 4000
    conditions = box.at([[0.5] * (1 + box.n_axes)])
    order = torch.randperm(lattice.n_sites, generator=torch.Generator().manual_seed(0))
    partial = Configurations.unknown(lattice, conditions.repeat(n))
    drawn = model.complete(
        partial,
        torch.Generator().manual_seed(1),
        ensemble.fields,
        steps=order.to(torch.int16).expand(n, -1),
    )
    states = ensemble.enumerate(lattice).occupations
    full = Configurations(lattice, conditions.repeat(len(states)), states)
    steps = order.to(torch.int16).expand(len(states), -1)
    with torch.no_grad():
        p = model.log_prob(full, steps=steps, fields=ensemble.fields).exp().numpy()
    radix = np.cumprod([1, *[lattice.n_species] * (lattice.n_sites - 1)])
    code = states.numpy().astype(int) @ radix
    index = {int(c): k for k, c in enumerate(code)}
    seen = np.bincount(
        [index[int(c)] for c in drawn.occupations.numpy().astype(int) @ radix], minlength=len(p)
    )
    common = n * p >= 5
    chi2 = (((seen - n * p) ** 2) / (n * p))[common].sum()
    rest, expected = seen[~common].sum(), n * p[~common].sum()
    chi2 += (rest - expected) ** 2 / max(expected, 1e-9)
    dof = common.sum()
    assert abs(chi2 - dof) < 5 * np.sqrt(2 * dof)


def test_known_sites_stay(system):
    """complete() keeps what it was given and marks it with step -1."""
    lattice, ensemble, box = system
    model = spoilt_model(lattice, box)
    full = sample(model, ensemble, lattice, box.at([[0.5] * (1 + box.n_axes)]).repeat(32),
                  torch.Generator().manual_seed(0))  # fmt: skip
    known = torch.rand(full.occupations.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    known[0] = True
    partial = Configurations(
        lattice, full.conditions, torch.where(known, full.occupations, UNKNOWN).to(torch.int8)
    )
    out = complete(model, ensemble, partial, torch.Generator().manual_seed(2))
    assert (out.occupations == full.occupations)[known].all()
    assert (out.step[known] == -1).all() and (out.step[~known] >= 0).all()
    assert out.known.all() and out.log_prob[0] == 0


def test_same_seed_same_samples():
    """The generator's state fixes the result; another seed gives another."""
    lattice, ensemble, box = binary()
    model = spoilt_model(lattice, box)
    draws = [
        sample(model, ensemble, lattice, box.grid(2, 2).repeat(4), torch.Generator().manual_seed(s))
        for s in (5, 5, 6)
    ]
    assert torch.equal(draws[0].occupations, draws[1].occupations)
    assert not torch.equal(draws[0].occupations, draws[2].occupations)


def test_logits_commute_with_translations(system):
    """A translated configuration has translated conditionals."""
    lattice, ensemble, box = system
    model = spoilt_model(lattice, box)
    rng = np.random.default_rng(0)
    states = ensemble.enumerate(lattice).occupations
    occupations = states[torch.as_tensor(rng.choice(len(states), 16))].clone()
    occupations[torch.as_tensor(rng.random(occupations.shape) < 0.5)] = UNKNOWN
    conditions = box.at(rng.random((16, 1 + box.n_axes)))
    c = Configurations(lattice, conditions, occupations)
    with torch.no_grad():
        base = model.log_conditionals(c, ensemble.fields(c))
        for shift in torch.tensor(lattice.translations):
            moved = Configurations(lattice, conditions, occupations[:, shift])
            out = model.log_conditionals(moved, ensemble.fields(moved))
            assert torch.allclose(out, base[:, shift], atol=1e-5)


def test_weights_serve_other_supercells():
    """The same weights evaluate on a larger cell of the same parent, and refuse another parent."""
    lattice, _, box = binary()
    from ase.build import bulk

    model = spoilt_model(lattice, box, needs_fields=False)
    large = Lattice.uniform(bulk("Au", a=3.8) * (3, 3, 4), ["Au", "Cu"])
    c = Configurations.unknown(large, box.grid(1, 1))
    assert model.complete(c, torch.Generator()).known.all()
    other = Lattice.uniform(bulk("Au", a=5.0) * (3, 3, 3), ["Au", "Cu"])
    with pytest.raises(ValueError, match="parent"):
        model.complete(Configurations.unknown(other, box.grid(1, 1)), torch.Generator())


def test_replicated_configuration_has_replicated_logits():
    """On a periodic pattern a larger cell gives the logits of the smaller one.

    Local parts only: features that grow with the number of sites are switched off by mu = 0 and
    a configuration with equally many known species.
    """
    box = ConditionRange((600, 2400), [-0.1], [0.1], [[1.0, -1.0]])
    small, large = Lattice.square(4), Lattice.square(8)
    model = spoilt_model(small, box, needs_fields=False)
    pattern = torch.tensor([[0, 1, -1, -1], [1, 0, -1, -1], [-1, -1, 0, 1], [-1, -1, 1, 0]])
    conditions = box.at([[0.5, 0.5]])
    a = Configurations(small, conditions, pattern.reshape(1, -1))
    b = Configurations(large, conditions, pattern.repeat(2, 2).reshape(1, -1))
    with torch.no_grad():
        out_a = model.log_conditionals(a, None).view(4, 4, 2)
        out_b = model.log_conditionals(b, None).view(8, 8, 2)
    assert torch.allclose(out_b, out_a.repeat(2, 2, 1), atol=1e-5)


def test_log_z_of_a_spoilt_model_is_unbiased(system):
    """Importance sampling corrects a wrong model: z-scores of Z over replicas and conditions."""
    lattice, ensemble, box = system
    model = spoilt_model(lattice, box, strength=0.1)
    grid = box.grid(2, 2)
    exact = ensemble.enumerate(lattice).log_z(grid)
    n, replicas = 600, 20
    z = []
    drawn = sample(model, ensemble, lattice, grid.repeat(n * replicas),
                   torch.Generator().manual_seed(7), batch_size=2048)  # fmt: skip
    weights = drawn.log_weight.view(len(grid), replicas, n)
    for k in range(len(grid)):
        for r in range(replicas):
            estimate = log_mean_exp(weights[k, r].numpy())
            if estimate.ness * n >= 200:
                z.append((estimate.value - exact[k].item()) / estimate.error)
    z = np.array(z)
    assert len(z) >= 20
    assert abs(z.mean()) < 4 / np.sqrt(len(z)) and 0.8 < z.std() < 1.2


def test_every_parameter_gets_a_gradient():
    """No part of the network is disconnected."""
    lattice, ensemble, box = binary()
    model = spoilt_model(lattice, box)
    rng = torch.Generator().manual_seed(0)
    drawn = model.complete(Configurations.unknown(lattice, box.grid(2, 2)), rng, ensemble.fields)
    model.log_prob(drawn, steps=drawn.step, fields=ensemble.fields).sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.abs().max() > 0, name


def test_network_config_rebuilds_the_same_function():
    """config() and the weights say everything."""
    lattice, ensemble, box = binary()
    model = spoilt_model(lattice, box)
    twin = network_from_config(model.network.config())
    twin.load_state_dict(model.network.state_dict())
    c = Configurations.unknown(lattice, box.grid(2, 2))
    with torch.no_grad():
        assert torch.equal(twin(c, ensemble.fields(c)), model.network(c, ensemble.fields(c)))


def test_missing_fields_are_refused():
    """A model trained with fields does not run without them."""
    lattice, _, box = binary()
    model = spoilt_model(lattice, box)
    with pytest.raises(ValueError, match="fields"):
        model.complete(Configurations.unknown(lattice, box.grid(1, 1)), torch.Generator())


# ------------------------------------------------------------------ gate
def ising_with_gate():
    lattice = Lattice.square(4)
    energy = ising_energy(lattice)
    box = ConditionRange((2.0 / kB, 4.0 / kB), [-0.3], [0.3], [[-1.0, 1.0]])
    model = spoilt_model(lattice, box)
    gated = AnyOrderARM(model.network, energy.tables.interaction_shells(lattice))
    return lattice, SemiGrandCanonical(energy), box, gated


def test_gate_draws_non_interacting_sites_last_in_one_pass():
    """Sites that share a pass do not interact, and no further site could have joined them."""
    lattice, _, box, model = ising_with_gate()
    linked = lattice.relation_matrices([(0, 0, 1.0)])[0] > 0
    c = Configurations.unknown(lattice, box.grid(1, 1).repeat(200))
    steps = model.draw_steps(c, torch.Generator().manual_seed(0)).numpy()
    for row in steps:
        last = row == row.max()
        assert not linked[np.ix_(last, last)].any()
        assert linked[last].any(0)[~last].all()
        assert sorted(row[~last]) == list(range((~last).sum()))
    first = np.concatenate([np.flatnonzero(row == row.max()) for row in steps])
    seen = np.bincount(first, minlength=16)
    assert np.abs(seen - seen.mean()).max() < 4.5 * np.sqrt(seen.mean())


def test_gate_is_exact_where_the_interaction_range_is_known():
    """Given the rest of the lattice, drawing a gated set has the exact conditional likelihood."""
    lattice, ensemble, box, model = ising_with_gate()
    exact = ensemble.enumerate(lattice)
    condition = box.at([[0.3, 0.4]])
    checkerboard = torch.tensor([(k // 4 + k % 4) % 2 == 0 for k in range(16)])
    given = torch.randint(0, 2, (16,), generator=torch.Generator().manual_seed(1))
    match = (exact.occupations[:, ~checkerboard] == given[~checkerboard]).all(1)
    rows = exact.occupations[match]
    steps = torch.where(checkerboard, 0, -1).to(torch.int16).expand(len(rows), -1)
    full = Configurations(lattice, condition.repeat(len(rows)), rows)
    with torch.no_grad():
        log_q = model.log_prob(full, steps=steps, fields=ensemble.fields)
    expected = exact.log_target(condition)[match].log_softmax(0)
    assert torch.allclose(log_q, expected, atol=1e-5)


def test_gated_model_is_normalised_and_consistent():
    """Sum over states is one with the last sites together; drawn equals recomputed."""
    lattice, ensemble, box, model = ising_with_gate()
    states = ensemble.enumerate(lattice).occupations
    condition = box.at([[0.5, 0.5]])
    partial = Configurations.unknown(lattice, condition.repeat(64))
    drawn = model.complete(partial, torch.Generator().manual_seed(0), ensemble.fields)
    again = model.log_prob(drawn, steps=drawn.step, fields=ensemble.fields).detach()
    assert torch.allclose(drawn.log_prob, again, atol=1e-4)
    given = torch.arange(16) < 7
    rows = states[(states[:, given] == drawn.occupations[0, given]).all(1)]
    full = Configurations(lattice, condition.repeat(len(rows)), rows)
    held = Configurations(lattice, condition, torch.where(given, drawn.occupations[:1], UNKNOWN))
    steps = model.draw_steps(held, torch.Generator().manual_seed(2)).expand(len(rows), -1)
    with torch.no_grad():
        total = torch.logsumexp(model.log_prob(full, steps=steps, fields=ensemble.fields), 0)
    assert abs(total.item()) < 1e-4


def test_gate_without_fields_is_refused():
    """A gate without physical conditionals would toss a coin."""
    lattice, _, box = binary()
    net = LatticeConvolution(lattice, box, needs_fields=False)
    with pytest.raises(ValueError, match="needs_fields=True"):
        AnyOrderARM(net, [(0, 0, 2.687)])


def test_steps_to_draw_by_belong_to_the_unknown_sites():
    """A known site is never redrawn, an unknown one never left out."""
    lattice, _, box = binary()
    model = spoilt_model(lattice, box, needs_fields=False)
    c = Configurations(lattice, box.at([[0.5, 0.5]]), [[0, 1, -1, -1, -1, -1, -1, -1]])
    for steps in (torch.arange(8)[None], torch.full((1, 8), -1), torch.arange(6)[None]):
        with pytest.raises(ValueError, match="-1 where a site is known"):
            model.complete(c, torch.Generator(), steps=steps)
    ordered = torch.arange(-2, 6).clamp(min=-1)[None]
    assert torch.equal(model.complete(c, torch.Generator(), steps=ordered).step, ordered)


@pytest.mark.parametrize("chunk", [1, 7, 8, 1000])
def test_chunks_do_not_matter(chunk):
    """Passes are evaluated in pieces of any size with the same result."""
    lattice, ensemble, box = binary()
    model = spoilt_model(lattice, box)
    c = Configurations.unknown(lattice, box.grid(2, 2))
    drawn = model.complete(c, torch.Generator().manual_seed(0), ensemble.fields)
    with torch.no_grad():
        out = model.log_prob(drawn, steps=drawn.step, fields=ensemble.fields, chunk=chunk)
    assert torch.allclose(out, drawn.log_prob, atol=1e-5)


def test_a_masked_network_is_refused_where_any_sites_may_be_known():
    """It would ignore known sites that come late in its order."""
    lattice, _, box = binary()
    masked = MaskedMLP(lattice, box, width=8)
    other = LatticeConvolution(lattice, box, needs_fields=False)
    for make in (lambda: AnyOrderARM(masked), lambda: MarginalizationModel(masked, other)):
        with pytest.raises(ValueError, match="MaskedMLP .* use FixedOrderARM"):
            make()
