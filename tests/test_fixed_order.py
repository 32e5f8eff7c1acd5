"""Laws of models with one order of drawing, and of the masked network made for them.

Those that every model shares, ln Z among them, are in ``test_model_laws``.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toys import SYSTEMS, binary

from clease_nn.compute import compute_policy
from clease_nn.configurations import Configurations
from clease_nn.io import TrainedModel
from clease_nn.lattice import UNKNOWN, Lattice
from clease_nn.models import FixedOrderARM
from clease_nn.networks import MLP, LatticeConvolution, MaskedMLP

KINDS = ["masked", "masked_fields", "mlp", "convolution"]


def order_of(lattice):
    """An order that is not raster."""
    return np.random.default_rng(3).permutation(lattice.n_sites).tolist()


def spoil(head, strength):
    torch.nn.init.normal_(head, std=strength)


def spoilt_model(lattice, box, kind="masked", *, strength=0.3, seed=0):
    """A model with random weights in its head: normalised, and rather wrong."""
    torch.manual_seed(seed)
    order = order_of(lattice)
    if kind.startswith("masked"):
        net = MaskedMLP(
            lattice, box, order, width=29, layers=3, needs_fields=kind == "masked_fields"
        )
        spoil(net.head, strength)
        spoil(net.conditions.weight, strength / 4)
        return FixedOrderARM(net)
    if kind == "mlp":
        net = MLP(lattice, box, width=24, layers=2)
    else:
        net = LatticeConvolution(lattice, box, channels=8, blocks=2)
    spoil(net.head.weight, strength)
    return FixedOrderARM(net, order)


def with_prefix(lattice, ensemble, box, n_known, seed=0):
    """Random configurations at random conditions, of which only a prefix is known."""
    rng = np.random.default_rng(seed)
    n_known = np.asarray(n_known)
    states = ensemble.enumerate(lattice).occupations
    occupations = states[torch.as_tensor(rng.choice(len(states), len(n_known)))].clone()
    rank = np.argsort(order_of(lattice))
    occupations[torch.as_tensor(rank >= n_known[:, None])] = UNKNOWN
    return Configurations(lattice, box.at(rng.random((len(n_known), 1 + box.n_axes))), occupations)


@pytest.fixture(params=sorted(SYSTEMS))
def system(request):
    return SYSTEMS[request.param]()


# ------------------------------------------------------------------ the masked network
@pytest.mark.parametrize("width", [5, 29])
def test_later_sites_never_enter(system, width):
    """Changing the site at a position leaves all logits up to that position as they were."""
    lattice, ensemble, box = system
    order = order_of(lattice)
    torch.manual_seed(0)
    net = MaskedMLP(lattice, box, order, width=width, layers=3)
    spoil(net.head, 1.0)
    c = with_prefix(lattice, ensemble, box, [lattice.n_sites] * 16)
    with torch.no_grad():
        before = net(c, None)
        for t, site in enumerate(order):
            occupations = c.occupations.clone()
            occupations[:, site] = (occupations[:, site] + 1) % lattice.n_species
            after = net(replace(c, occupations=occupations), None)
            assert torch.equal(after[:, order[: t + 1]], before[:, order[: t + 1]])


def test_earlier_sites_enter():
    """Every site is seen by every later one when the layers are wide enough."""
    lattice, ensemble, box = binary()
    model = spoilt_model(lattice, box)
    order = order_of(lattice)
    c = with_prefix(lattice, ensemble, box, [lattice.n_sites] * 4)
    with torch.no_grad():
        before = model.network(c, None)
        for t, site in enumerate(order):
            occupations = c.occupations.clone()
            occupations[:, site] = 1 - occupations[:, site]
            after = model.network(replace(c, occupations=occupations), None)
            assert ((after != before)[:, order[t + 1 :]].any(2)).all()


def test_conditions_enter_every_site():
    """Logits of every site depend on temperature and on mu."""
    lattice, _, box = binary()
    net = spoilt_model(lattice, box).network
    a, b, c = box.at([[0.2, 0.3], [0.7, 0.3], [0.2, 0.8]])[:3], None, None
    logits = net(Configurations.unknown(lattice, a), None)
    b, c = (logits[0] - logits[1]).abs(), (logits[0] - logits[2]).abs()
    assert (b > 0).all() and (c > 0).all()


@pytest.mark.parametrize("width", [5, 29])
@pytest.mark.parametrize("n_known", [0, 3])
def test_incremental_logits_are_those_of_forward(system, n_known, width):
    """Site after site, from any prefix: what forward gives, each unit computed once."""
    lattice, ensemble, box = system
    torch.manual_seed(0)
    net = MaskedMLP(lattice, box, order_of(lattice), width=width, layers=3)
    spoil(net.head, 0.5)
    spoil(net.conditions.weight, 0.1)
    n = lattice.n_sites
    full = with_prefix(lattice, ensemble, box, [n] * 16)
    with torch.no_grad():
        expected = net(full, None)
    units = net.incremental(with_prefix(lattice, ensemble, box, [n_known] * 16))
    for t in range(n_known, n):
        logits = units.next(with_prefix(lattice, ensemble, box, [t] * 16))
        assert torch.allclose(logits, expected[:, net.order[t]], atol=1e-5)
    assert units.position == n


def test_half_precision_changes_little():
    """bfloat16 products leave logits within their rounding, and float32; drawing alike."""
    lattice, ensemble, box = binary()
    model = spoilt_model(lattice, box)
    full = with_prefix(lattice, ensemble, box, [lattice.n_sites] * 64)
    with torch.no_grad(), compute_policy(precision="float32"):
        expected = model.network(full, None)
    with torch.no_grad(), compute_policy(precision="bfloat16"):
        half = model.network(full, None)
        drawn = model.complete(
            Configurations.unknown(lattice, full.conditions), torch.Generator().manual_seed(0)
        )
        again = model.log_prob(drawn, steps=drawn.step)
    assert half.dtype == torch.float32
    assert (half - expected).abs().max() < 0.02 * expected.abs().max()
    assert (drawn.log_prob - again).abs().max() < 0.02 * expected.abs().max() * lattice.n_sites


# ------------------------------------------------------------------ the model
@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_of_all_states_sum_to_one(system, kind):
    """In its order sum_x q(x) = 1; given a prefix the sum over completions is one."""
    lattice, ensemble, box = system
    model = spoilt_model(lattice, box, kind)
    fields = ensemble.fields if model.needs_fields else None
    states = ensemble.enumerate(lattice).occupations
    order = order_of(lattice)
    for n_known in (0, 2):
        given = order[:n_known]
        rows = states[(states[:, given] == states[7, given]).all(1)]
        full = Configurations(lattice, box.at([[0.3] * (1 + box.n_axes)]).repeat(len(rows)), rows)
        held = full.occupations.clone()
        held[:, order[n_known:]] = UNKNOWN
        steps = model.draw_steps(replace(full, occupations=held), torch.Generator())
        with torch.no_grad():
            total = torch.logsumexp(model.log_prob(full, steps=steps, fields=fields), 0)
        assert abs(total.item()) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mixed", [False, True])
def test_drawn_log_prob_is_the_recomputed_one(system, kind, mixed):
    """Drawing and scoring agree for prefixes of one and of several lengths; known sites stay."""
    lattice, ensemble, box = system
    model = spoilt_model(lattice, box, kind)
    fields = ensemble.fields if model.needs_fields else None
    n_known = np.arange(32) % (lattice.n_sites + 1) if mixed else [2] * 32
    partial = with_prefix(lattice, ensemble, box, n_known)
    drawn = model.complete(partial, torch.Generator().manual_seed(0), fields)
    again = model.log_prob(drawn, steps=drawn.step, fields=fields).detach()
    assert torch.allclose(drawn.log_prob, again, atol=1e-4, rtol=0)
    assert drawn.known.all()
    assert (drawn.occupations == partial.occupations)[partial.known].all()
    assert torch.equal(drawn.step < 0, partial.known)
    allowed = torch.tensor(lattice.allowed)[torch.arange(lattice.n_sites), drawn.occupations.long()]
    assert allowed.all()


def test_incremental_drawing_draws_what_the_generic_loop_draws():
    """The same seed gives the same configurations with and without reuse of units."""
    lattice, ensemble, box = binary()
    model = spoilt_model(lattice, box)
    partial = with_prefix(lattice, ensemble, box, [1] * 64)
    fast = model.complete(partial, torch.Generator().manual_seed(0))
    model._evaluator = super(FixedOrderARM, model)._evaluator
    slow = model.complete(partial, torch.Generator().manual_seed(0))
    assert torch.equal(fast.occupations, slow.occupations)
    assert torch.allclose(fast.log_prob, slow.log_prob, atol=1e-5)


@pytest.mark.parametrize("kind", ["masked", "mlp"])
def test_mean_over_passes_is_the_full_log_prob(kind):
    """log_prob at some passes is unbiased: over all single passes its mean is the full value."""
    lattice, ensemble, box = binary()
    model = spoilt_model(lattice, box, kind)
    fields = ensemble.fields if model.needs_fields else None
    partial = with_prefix(lattice, ensemble, box, [3] * 8)
    drawn = model.complete(partial, torch.Generator().manual_seed(0), fields)
    options = {"steps": drawn.step, "fields": fields}
    with torch.no_grad():
        full = model.log_prob(drawn, **options)
        single = [
            model.log_prob(drawn, passes=torch.full((len(drawn), 1), t), **options)
            for t in range(lattice.n_sites - 3)
        ]
    assert torch.allclose(torch.stack(single).mean(0), full, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_gets_a_gradient(kind):
    """No part of the network is disconnected."""
    lattice, ensemble, box = binary()
    model = spoilt_model(lattice, box, kind)
    fields = ensemble.fields if model.needs_fields else None
    c = Configurations.unknown(lattice, box.grid(2, 2))
    drawn = model.complete(c, torch.Generator().manual_seed(0), fields)
    model.log_prob(drawn, steps=drawn.step, fields=fields).sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.abs().max() > 0, name


@pytest.mark.parametrize("kind", KINDS)
def test_saved_model_is_the_same_model(system, kind, tmp_path):
    """A model file gives back order and likelihoods without a lattice at hand."""
    lattice, ensemble, box = system
    model = spoilt_model(lattice, box, kind)
    fields = ensemble.fields if model.needs_fields else None
    TrainedModel(model, box).save(tmp_path / "model")
    again = TrainedModel.load(tmp_path / "model").model
    full = with_prefix(lattice, ensemble, box, [lattice.n_sites] * 16)
    blank = Configurations.unknown(lattice, full.conditions)
    steps = model.draw_steps(blank, torch.Generator())
    assert torch.equal(again.draw_steps(blank, torch.Generator()), steps)
    with torch.no_grad():
        a, b = (m.log_prob(full, steps=steps, fields=fields) for m in (model, again))
    assert torch.equal(a, b) and again.config() == model.config()


def test_steps_are_ranks_in_the_order():
    """The unknown sites of a row are drawn in the model's order, from step 0 on."""
    lattice, ensemble, box = binary()
    order = order_of(lattice)
    partial = with_prefix(lattice, ensemble, box, [0, 3, lattice.n_sites])
    steps = spoilt_model(lattice, box).draw_steps(partial, torch.Generator())[:, order].tolist()
    assert steps == [[0, 1, 2, 3, 4, 5, 6, 7], [-1, -1, -1, 0, 1, 2, 3, 4], [-1] * 8]


# ------------------------------------------------------------------ refusals
@pytest.mark.parametrize("kind", ["masked", "mlp"])
def test_known_sites_that_are_no_prefix_are_refused(kind):
    """Completing around a late site names it, the missing one, and the remedy."""
    lattice, ensemble, box = binary()
    model = spoilt_model(lattice, box, kind)
    order = order_of(lattice)
    partial = with_prefix(lattice, ensemble, box, [2, 2])
    partial.occupations[1, order[5]] = 1
    message = rf"site {order[5]} of row 1 is known, but site {order[2]}, .*AnyOrderARM"
    with pytest.raises(ValueError, match=message):
        model.complete(partial, torch.Generator(), ensemble.fields)
    full = with_prefix(lattice, ensemble, box, [8, 8])
    steps = torch.where(partial.known, -1, 0)
    with pytest.raises(ValueError, match=message):
        model.log_prob(full, steps=steps, fields=ensemble.fields)


@pytest.mark.parametrize("kind", ["masked", "mlp"])
def test_steps_of_another_order_are_refused(kind):
    """Neither drawing nor scoring pretends to follow other steps."""
    lattice, ensemble, box = binary()
    model = spoilt_model(lattice, box, kind)
    full = with_prefix(lattice, ensemble, box, [8])
    steps = torch.arange(8, dtype=torch.int16)[None]
    with pytest.raises(ValueError, match="in the order of this model it is"):
        model.log_prob(full, steps=steps, fields=ensemble.fields)
    blank = Configurations.unknown(lattice, full.conditions)
    with pytest.raises(ValueError, match="in the order of this model it is"):
        model.complete(blank, torch.Generator(), ensemble.fields, steps=steps)


def test_unknown_sites_are_not_scored():
    """log_prob of a partial configuration is refused."""
    lattice, ensemble, box = binary()
    model = spoilt_model(lattice, box)
    partial = with_prefix(lattice, ensemble, box, [3])
    with pytest.raises(ValueError, match="complete them first"):
        model.log_prob(partial, steps=model.draw_steps(partial, torch.Generator()))


def test_orders_must_be_orders_and_agree():
    """No site twice or missing, no other word than raster, no other order than the network's."""
    lattice, _, box = binary()
    net = MaskedMLP(lattice, box, order_of(lattice), width=16)
    with pytest.raises(ValueError, match="each of the 8 sites once"):
        MaskedMLP(lattice, box, [0, 1, 1, 2, 3, 4, 5, 6], width=16)
    with pytest.raises(ValueError, match="every site once"):
        FixedOrderARM(MLP(lattice, box, width=16), [0, 0, 1])
    with pytest.raises(ValueError, match='must be "raster" or a permutation'):
        FixedOrderARM(net, "random")
    for order in ("raster", range(8)):
        with pytest.raises(ValueError, match="make both with the same"):
            FixedOrderARM(net, order)
    assert FixedOrderARM(net, order_of(lattice)).order == FixedOrderARM(net).order


def test_another_cell_is_refused():
    """Neither an order nor a masked network serves another supercell; raster does."""
    _, _, box = binary()
    small, large = Lattice.square(5), Lattice.square(10)
    c = Configurations.unknown(large, box.grid(1, 1))
    with pytest.raises(ValueError, match="an order of 25 sites, asked for 100"):
        FixedOrderARM(MaskedMLP(small, box, width=16)).complete(c, torch.Generator())
    with pytest.raises(ValueError, match=r"of 25 sites, asked for .* of 100; use LatticeConv"):
        MaskedMLP(small, box, width=16)(c, None)
    network = LatticeConvolution(small, box, channels=4, blocks=1, needs_fields=False)
    assert FixedOrderARM(network).complete(c, torch.Generator()).known.all()


def test_incremental_logits_are_refused_where_they_cannot_be():
    """Rows with several prefixes, and fields, have no common next site or cheap logits."""
    lattice, ensemble, box = binary()
    net = spoilt_model(lattice, box).network
    with pytest.raises(ValueError, match="same prefix"):
        net.incremental(with_prefix(lattice, ensemble, box, [2, 3]))
    with pytest.raises(ValueError, match="fields"):
        spoilt_model(lattice, box, "masked_fields").network.incremental(
            with_prefix(lattice, ensemble, box, [2])
        )


@pytest.mark.parametrize("sizes", [{"width": 0}, {"layers": 0}])
def test_sizes_must_be_positive(sizes):
    """A network without units is refused by name."""
    lattice, _, box = binary()
    with pytest.raises(ValueError, match="width and layers must be positive"):
        MaskedMLP(lattice, box, **sizes)
