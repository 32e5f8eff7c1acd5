"""Laws of the lattice Transformer: symmetry, positions, files, refusals."""

import numpy as np
import pytest
import torch
from ase.build import bulk, make_supercell
from toys import SYSTEMS, binary, ternary

from clease_nn.compute import compute_policy
from clease_nn.configurations import Configurations
from clease_nn.diagnostics import kl_gap
from clease_nn.io import TrainedModel
from clease_nn.lattice import UNKNOWN, Lattice
from clease_nn.models import AnyOrderARM
from clease_nn.networks import LatticeTransformer
from clease_nn.networks.waves import site_coordinates, wave_vectors
from clease_nn.sampling import sample
from clease_nn.sources import ParallelTemperingSource
from clease_nn.training import Stage, fit


def skew_slab():
    """More waves along single axes than a head has room for, many of them even."""
    atoms = make_supercell(bulk("Ti"), [[3, 2, 3], [-1, -2, 0], [3, -1, 3]])
    atoms.pbc = [True, True, False]
    return Lattice.uniform(atoms, ["Au", "Cu"])


LARGER = {
    "square_4x4": lambda: Lattice.square(4),
    "fcc_16": lambda: Lattice.uniform(bulk("Au", a=3.8) * (2, 2, 4), ["Au", "Cu"]),
    "skew_slab_18": skew_slab,
    "fcc_cubic_32": lambda: Lattice.uniform(bulk("Au", a=3.8, cubic=True) * 2, ["Au", "Cu"]),
}


def spoilt(lattice, box, *, needs_fields=False, seed=0):
    """A small network with random numbers for every weight that starts at zero."""
    torch.manual_seed(seed)
    net = LatticeTransformer(lattice, box, width=32, blocks=2, heads=2, needs_fields=needs_fields)
    for weight in (net.head[-1].weight, net.modulate.weight):
        torch.nn.init.normal_(weight, std=0.3)
    return net


def partial(lattice, box, n=8, seed=0):
    """Random configurations at random conditions, about half of the sites known."""
    rng = np.random.default_rng(seed)
    occupations = np.array(
        [[rng.choice(np.flatnonzero(a)) for a in lattice.allowed] for _ in range(n)]
    )
    occupations[rng.random(occupations.shape) < 0.5] = UNKNOWN
    conditions = box.at(rng.random((n, 1 + box.n_axes)))
    return Configurations(lattice, conditions, torch.as_tensor(occupations))


@pytest.fixture(params=sorted(SYSTEMS))
def system(request):
    return SYSTEMS[request.param]()


def translated_and_expected(net, c, fields):
    with torch.no_grad():
        base = net(c, fields(c))
        for shift in torch.tensor(c.lattice.translations):
            moved = Configurations(c.lattice, c.conditions, c.occupations[:, shift])
            yield net(moved, fields(moved)), base[:, shift]


# ------------------------------------------------------------------ symmetry and positions
def test_logits_commute_with_translations(system):
    """A translated configuration has translated logits."""
    lattice, ensemble, box = system
    net = spoilt(lattice, box, needs_fields=True)
    for out, expected in translated_and_expected(net, partial(lattice, box), ensemble.fields):
        assert torch.allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize("name", sorted(LARGER))
def test_logits_commute_with_translations_of_larger_cells(name):
    """The same where there are more waves than axes."""
    lattice, box = LARGER[name](), binary()[2]
    net = spoilt(lattice, box)
    for out, expected in translated_and_expected(net, partial(lattice, box), lambda c: None):
        assert torch.allclose(out, expected, atol=1e-5)


def test_positions_of_known_sites_matter():
    """The same known species at another distance, or in another direction, give other logits."""
    lattice, box = Lattice.square(5), binary()[2]
    net = spoilt(lattice, box)
    for block in net.blocks:  # an untrained network attends to all sites nearly alike
        torch.nn.init.normal_(block.qkv.weight, std=0.2)
    occupations = torch.full((4, 25), UNKNOWN)
    for row, site in enumerate((1, 2, 5, 6)):  # of site 0: two distances along two axes
        occupations[row, site] = 1
    c = Configurations(lattice, box.at([[0.5, 0.5]]).repeat(4), occupations)
    with torch.no_grad():
        logits = net(c, None)[:, 0, 0]
    gaps = (logits[:, None] - logits).abs() + torch.eye(4)
    assert gaps.min() > 1e-4


@pytest.mark.parametrize("name", sorted(LARGER))
def test_waves_of_a_head_tell_all_sites_apart(name):
    """With one pair for every axis and more, no two sites have the same phases."""
    coordinates, metric = site_coordinates(LARGER[name]())
    vectors = wave_vectors(coordinates, metric, 2, 8)
    for head in vectors:
        phase = np.exp(2j * np.pi * coordinates @ head.T)
        apart = np.abs(phase[:, None] - phase[None]).max(-1)
        assert (apart + 9 * np.eye(len(phase)) > 0.5).all()


def test_ends_of_an_axis_that_is_not_periodic_differ():
    """A slab has no symmetry across itself: its outer layers see one another at a distance."""
    atoms = bulk("Au", "sc", a=3.0) * (2, 2, 3)
    atoms.pbc = [True, True, False]
    lattice, box = Lattice.uniform(atoms, ["Au", "Cu"]), binary()[2]
    coordinates, _ = site_coordinates(lattice)
    assert coordinates[:, 2].min() == 0 and np.isclose(coordinates[:, 2].max(), 0.5)
    net = spoilt(lattice, box)
    for out, expected in translated_and_expected(net, partial(lattice, box), lambda c: None):
        assert torch.allclose(out, expected, atol=1e-5)


# ------------------------------------------------------------------ as a function
@pytest.mark.parametrize("needs_fields", [True, False])
def test_logits_at_a_site_are_those_of_forward(system, needs_fields):
    """at() is forward() at the asked sites."""
    lattice, ensemble, box = system
    net = spoilt(lattice, box, needs_fields=needs_fields)
    c = partial(lattice, box, 32)
    fields = ensemble.fields(c) if needs_fields else None
    site = torch.randint(0, lattice.n_sites, (32,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = net(c, fields)[torch.arange(32), site]
    assert torch.allclose(net.at(c, fields, site), expected, atol=1e-5)


def test_bfloat16_rounds_and_no_more():
    """Under autocast logits stay float32 and near those without, forward and at one site."""
    lattice, box = Lattice.square(4), binary()[2]
    net = spoilt(lattice, box)
    c, site = partial(lattice, box), torch.arange(8)
    with torch.no_grad():
        exact = net(c, None)
        with compute_policy(precision="bfloat16"):
            rounded, at = net(c, None), net.at(c, None, site)
    assert rounded.dtype == at.dtype == torch.float32
    scale = exact.std().item()
    assert (rounded - exact).abs().max() < 0.1 * scale
    assert (at - exact[torch.arange(8), site]).abs().max() < 0.1 * scale


def test_every_parameter_gets_a_gradient(system):
    """No part of the network is disconnected."""
    lattice, ensemble, box = system
    net = spoilt(lattice, box, needs_fields=True)
    c = partial(lattice, box)
    net(c, ensemble.fields(c)).square().sum().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None and p.grad.abs().max() > 0, name


def test_training_lowers_the_kl_gap():
    """A short run on a system that can be enumerated beats the untrained network by far."""
    lattice, ensemble, box = ternary()
    grid = box.at([[0.6, 0.4, 0.6], [0.8, 0.7, 0.3], [1.0, 0.5, 0.5]])
    log_z = ensemble.enumerate(lattice).log_z(grid)

    def gap(model):
        rng = torch.Generator().manual_seed(0)
        drawn = sample(model, ensemble, lattice, grid.repeat(200), rng)
        return kl_gap(drawn.log_weight.view(len(grid), -1), log_z).mean().item()

    torch.manual_seed(0)
    net = LatticeTransformer(lattice, box, width=32, blocks=2, heads=2, needs_fields=False)
    model = AnyOrderARM(net)
    before = gap(model)
    source = ParallelTemperingSource(ensemble, lattice, box, shape=(4, 4, 4), burn_in=5, seed=0)
    fit(
        ensemble, lattice, box, max_steps=60, model=model, stages=[Stage(source)], batch_size=64,
        progress=False, validation_samples=2,
    )  # fmt: skip
    assert gap(model) < 0.5 * before  # the average of its weights lags behind


# ------------------------------------------------------------------ files and refusals
def test_saved_models_give_the_same_logits(system, tmp_path):
    """A network read from a file, without a lattice at hand, is the same function."""
    lattice, ensemble, box = system
    model = AnyOrderARM(spoilt(lattice, box, needs_fields=True))
    TrainedModel(model, box).save(tmp_path / "model.nn")
    loaded = TrainedModel.load(tmp_path / "model.nn").model
    c = partial(lattice, box)
    with torch.no_grad():
        a, b = (m.log_conditionals(c, ensemble.fields(c)) for m in (model, loaded))
    assert torch.equal(a, b) and loaded.config() == model.config()


def test_another_supercell_is_refused():
    """The error names both cells and what serves every supercell."""
    box = binary()[2]
    net = spoilt(Lattice.square(3), box)
    other = Lattice.square(4)
    with pytest.raises(ValueError, match="LatticeConvolution") as error:
        net(Configurations.unknown(other, box.grid(1, 1)), None)
    assert other.fingerprint in str(error.value) and Lattice.square(3).fingerprint in str(
        error.value
    )
    with pytest.raises(ValueError, match="9 sites"):
        net.check_lattice(other)


def test_missing_fields_are_refused():
    """A network made for fields does not run without them."""
    lattice, _, box = binary()
    with pytest.raises(ValueError, match="needs_fields=True"):
        spoilt(lattice, box, needs_fields=True)(partial(lattice, box), None)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"width": 30, "heads": 4}, "heads must divide width"),
        ({"width": 12, "heads": 4}, "must be even"),
        ({"blocks": 0}, "positive"),
        ({"max_sites": 15}, "16 sites is more than max_sites = 15"),
    ],
)
def test_impossible_sizes_are_refused(options, words):
    """Errors name the value, the limit and the remedy."""
    with pytest.raises(ValueError, match=words):
        LatticeTransformer(Lattice.square(4), binary()[2], **options)
