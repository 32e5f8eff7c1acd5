"""Laws of the equivariant message passing network."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111
from scipy.spatial.transform import Rotation
from toys import SYSTEMS, binary, two_sublattices

from clease_nn.compute import compute_policy
from clease_nn.conditions import ConditionRange
from clease_nn.configurations import Configurations
from clease_nn.diagnostics import kl_gap
from clease_nn.io import TrainedModel
from clease_nn.lattice import UNKNOWN, Lattice
from clease_nn.models import AnyOrderARM
from clease_nn.networks import network_from_config
from clease_nn.networks.painn import PaiNN
from clease_nn.sampling import sample
from clease_nn.sources import ParallelTemperingSource
from clease_nn.symmetry import site_permutations
from clease_nn.training import Stage, fit

BOX = ConditionRange((600, 2400), [-0.1], [0.1], [[1.0, -1.0]])


def spoilt_network(lattice, box, *, seed=0, strength=0.7, **options):
    """Random weights in the head too."""
    torch.manual_seed(seed)
    options = {"features": 8, "layers": 2, "n_radial": 6, "needs_fields": False, **options}
    network = PaiNN(lattice, box, **options)
    torch.nn.init.normal_(network.head.weight, std=strength)
    return network


def partial_configurations(lattice, box, n=12, seed=0):
    """Random species on about half of the sites, at random conditions."""
    rng = np.random.default_rng(seed)
    occupations = np.array([[rng.choice(np.flatnonzero(a)) for a in lattice.allowed]
                            for _ in range(n)])  # fmt: skip
    occupations[rng.random(occupations.shape) < 0.5] = UNKNOWN
    return Configurations(
        lattice, box.at(rng.random((n, 1 + box.n_axes))), torch.as_tensor(occupations)
    )


def bulk_cell():
    """18 fcc sites (in a cell of two repeats d and -d are one site and no vector is left)."""
    return Lattice.uniform(bulk("Au", a=3.8) * (3, 3, 2), ["Au", "Cu"])


def slab():
    """3 layers of fcc (111), no periodicity along the third direction."""
    return Lattice.uniform(fcc111("Au", (2, 2, 3), a=4.0, vacuum=5.0), ["Au", "Cu"])


def cluster():
    """An octahedron with a centre, no periodicity at all."""
    corners = 2.8 * np.concatenate([np.eye(3), -np.eye(3), np.zeros((1, 3))])
    return Lattice.uniform(Atoms("Au7", corners), ["Au", "Cu"])


@pytest.fixture(params=sorted(SYSTEMS))
def system(request):
    return SYSTEMS[request.param]()


# ------------------------------------------------------------------ symmetry
@pytest.mark.parametrize("needs_fields", [True, False])
def test_logits_commute_with_translations(system, needs_fields):
    """A translated configuration has translated logits."""
    lattice, ensemble, box = system
    network = spoilt_network(lattice, box, needs_fields=needs_fields)
    c = partial_configurations(lattice, box)
    with torch.no_grad():
        base = network(c, ensemble.fields(c))
        for shift in torch.tensor(lattice.translations):
            moved = Configurations(lattice, c.conditions, c.occupations[:, shift])
            out = network(moved, ensemble.fields(moved))
            assert torch.allclose(out, base[:, shift], atol=2e-5)


@pytest.mark.parametrize(
    "lattice",
    [binary()[0], two_sublattices()[0], Lattice.square(4), slab(), cluster()],
    ids=["fcc", "rocksalt", "square", "slab", "cluster"],
)
def test_logits_commute_with_the_space_group(lattice):
    """A rotated, reflected or translated configuration has logits moved alike."""
    axes = np.zeros((1, lattice.n_species))
    axes[0, 0] = 1.0
    box = ConditionRange((600, 2400), [-0.1], [0.1], axes)
    network = spoilt_network(lattice, box)
    c = partial_configurations(lattice, box, 6)
    operations = site_permutations(lattice)
    assert len(operations) > len(lattice.translations)
    rng = np.random.default_rng(0)
    with torch.no_grad():
        base = network(c, None)
        for k in rng.choice(len(operations), min(len(operations), 40), replace=False):
            g = torch.tensor(operations[k])
            out = network(Configurations(lattice, c.conditions, c.occupations[:, g]), None)
            assert torch.allclose(out, base[:, g], atol=2e-5)


@pytest.mark.parametrize("lattice", [bulk_cell(), slab(), cluster()], ids=["bulk", "slab", "none"])
def test_vectors_rotate_with_the_lattice_and_logits_stay(lattice):
    """Turning positions and cell turns the vector features and leaves the logits."""
    turn = Rotation.random(random_state=3).as_matrix()
    atoms = lattice.template.copy()
    atoms.set_cell(np.array(atoms.cell) @ turn.T)
    atoms.positions = lattice.template.positions @ turn.T
    turned = Lattice.uniform(atoms, lattice.species)
    network = spoilt_network(lattice, BOX)
    c = partial_configurations(lattice, BOX)
    d = Configurations(turned, c.conditions, c.occupations)
    vectors = []
    with torch.no_grad():
        assert torch.allclose(network(d, None), network(c, None), atol=2e-5)
        for x in (c, d):
            vectors.append(network.hidden(x, None)[1])
    expected = torch.einsum("xy,bsyf->bsxf", torch.tensor(turn, dtype=torch.float32), vectors[0])
    assert vectors[0].abs().max() > 0.1
    assert torch.allclose(vectors[1], expected, atol=2e-5)


def test_replicated_configuration_has_replicated_logits():
    """On a periodic pattern a larger cell gives the logits of the smaller one.

    Inputs that grow with the number of sites are switched off by mu = 0 and a configuration with
    equally many known species. The larger cell is summed in several blocks of sites.
    """
    box = ConditionRange((600, 2400), [-0.1], [0.1], [[1.0, -1.0]])
    small, large = Lattice.square(4), Lattice.square(16)
    network = spoilt_network(small, box)
    pattern = torch.tensor([[0, 1, -1, -1], [1, 0, -1, -1], [-1, -1, 0, 1], [-1, -1, 1, 0]])
    conditions = box.at([[0.5, 0.5]])
    a = Configurations(small, conditions, pattern.reshape(1, -1))
    b = Configurations(large, conditions, pattern.repeat(4, 4).reshape(1, -1))
    with torch.no_grad():
        out_a = network(a, None).view(4, 4, 2)
        out_b = network(b, None).view(16, 16, 2)
    assert torch.allclose(out_b, out_a.repeat(4, 4, 1), atol=2e-5)


def test_images_of_small_cells_are_counted_separately():
    """One site that is its own neighbour hears what a site of the replicated cell hears."""
    one = Lattice.uniform(bulk("Au", a=3.8), ["Au", "Cu"])
    many = Lattice.uniform(bulk("Au", a=3.8) * (3, 3, 3), ["Au", "Cu"])
    network = spoilt_network(one, BOX)
    conditions = BOX.at([[0.3, 0.5]])  # mu = 0: nothing grows with the number of sites
    with torch.no_grad():
        a, _ = network.hidden(Configurations.unknown(one, conditions), None)
        b, _ = network.hidden(Configurations.unknown(many, conditions), None)
    assert torch.allclose(b, a.expand(-1, 27, -1), atol=2e-5)


def test_directions_without_periodicity_have_no_neighbours():
    """Changing a site changes the logits of what is near it through the cell, not across vacuum."""
    chain = Atoms("Au8", [[2.5 * k, 0, 0] for k in range(8)], cell=[20, 9, 9], pbc=[1, 0, 0])
    open_chain = chain.copy()
    open_chain.pbc = False
    change = []
    for atoms in (chain, open_chain):
        lattice = Lattice.uniform(atoms, ["Au", "Cu"])
        network = spoilt_network(lattice, BOX, cutoff=3.0, layers=1)
        rows = torch.full((2, 8), UNKNOWN)
        rows[0, 0], rows[1, 3] = 0, 0  # the totals agree
        c = Configurations(lattice, BOX.at([[0.5, 0.5]]).repeat(2), rows)
        with torch.no_grad():
            logits = network(c, None)
        change.append((logits[0] - logits[1]).abs().amax(-1) > 1e-6)
    assert change[0].tolist() == [True, True, True, True, True, False, False, True]
    assert change[1].tolist() == [True, True, True, True, True, False, False, False]


# ------------------------------------------------------------------ as a function
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize(
    "lattice",
    [SYSTEMS["binary"]()[0], two_sublattices()[0], Lattice.square(12), slab(), cluster()],
    ids=["fcc", "rocksalt", "square", "slab", "cluster"],
)
def test_logits_of_one_site_are_those_of_all(lattice, layers):
    """at() agrees with forward() wherever the site lies."""
    box = ConditionRange((600, 2400), [-0.1], [0.1], np.eye(1, lattice.n_species))
    network = spoilt_network(lattice, box, layers=layers, needs_fields=True)
    c = partial_configurations(lattice, box, 24)
    rng = torch.Generator().manual_seed(0)
    fields = torch.randn(24, lattice.n_sites, 2 * lattice.n_species, generator=rng)
    site = torch.randint(lattice.n_sites, (24,), generator=rng)
    with torch.no_grad():
        every = network(c, fields)[torch.arange(24), site]
        assert torch.allclose(network.at(c, fields, site), every, atol=2e-5)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_every_parameter_gets_a_gradient(layers):
    """No part of the network is disconnected."""
    lattice, ensemble, box = two_sublattices()
    network = spoilt_network(lattice, box, needs_fields=True, layers=layers)
    c = partial_configurations(lattice, box)
    network(c, ensemble.fields(c)).square().sum().backward()
    for name, p in network.named_parameters():
        assert p.grad is not None and p.grad.abs().max() > 0, name


def test_file_and_config_rebuild_the_same_function(system, tmp_path):
    """config() and the weights say everything, also through a file."""
    lattice, ensemble, box = system
    network = spoilt_network(lattice, box, needs_fields=True)
    TrainedModel(AnyOrderARM(network), box, {}).save(tmp_path / "m.safetensors")
    twin = network_from_config(network.config())
    twin.load_state_dict(network.state_dict())
    loaded = TrainedModel.load(tmp_path / "m.safetensors").model.network
    c = partial_configurations(lattice, box)
    f = ensemble.fields(c)
    with torch.no_grad():
        assert torch.equal(twin(c, f), network(c, f))
        assert torch.equal(loaded(c, f), network(c, f))


def test_rows_do_not_depend_on_their_company(monkeypatch):
    """Large batches are evaluated in pieces with the same result."""
    lattice, ensemble, box = binary()
    network = spoilt_network(lattice, box, needs_fields=True)
    c = partial_configurations(lattice, box, 11)
    with torch.no_grad():
        whole = network(c, ensemble.fields(c))
        monkeypatch.setattr("clease_nn.networks.painn._TEMPORARY", 4 * 3 * 8 * lattice.n_sites)
        assert torch.allclose(network(c, ensemble.fields(c)), whole, atol=1e-6)


def test_bfloat16_is_close_and_logits_are_float32(system):
    """Half precision of the products costs a percent of the logits' size."""
    lattice, ensemble, box = system
    network = spoilt_network(lattice, box, needs_fields=True)
    c = partial_configurations(lattice, box)
    f = ensemble.fields(c)
    with torch.no_grad():
        exact = network(c, f)
        with torch.autocast("cpu", torch.bfloat16):
            half = network(c, f)
    assert half.dtype == torch.float32
    assert (half - exact).norm() < 0.03 * exact.norm()


def test_training_lowers_the_kl_gap():
    """A short run on parallel tempering data comes closer to the exact distribution."""
    lattice, ensemble, box = binary()
    grid = box.grid(2, 2)
    exact = ensemble.enumerate(lattice).log_z(grid)

    def gap(model):
        drawn = sample(model, ensemble, lattice, grid.repeat(200), torch.Generator().manual_seed(5))
        return float(kl_gap(drawn.log_weight.view(len(grid), 200), exact).mean())

    torch.manual_seed(0)
    model = AnyOrderARM(PaiNN(lattice, box, features=16, layers=2, n_radial=8))
    before = gap(model)
    source = ParallelTemperingSource(ensemble, lattice, box, shape=(6, 6), burn_in=20, seed=0)
    trained = fit(
        ensemble, lattice, box, max_steps=120, model=model, stages=[Stage(source)], batch_size=64,
        progress=False, validation_samples=16,
    )  # fmt: skip
    after = gap(trained.model)
    assert after < 0.5 * before


def test_compute_policy_runs_it():
    """The package's own policy of precision evaluates the network."""
    lattice, _, box = binary()
    with compute_policy(1, "bfloat16"), torch.no_grad():
        out = PaiNN(lattice, box, needs_fields=False)(
            Configurations.unknown(lattice, box.grid(1, 1)), None
        )
    assert (out == 0).all()


# ------------------------------------------------------------------ refusals
@pytest.mark.parametrize(
    "options, message",
    [
        ({"features": 0}, "positive, got 0"),
        ({"layers": -1}, "positive, got 64, -1"),
        ({"n_radial": 0}, "positive"),
        ({"cutoff": -2.0}, "cutoff .* angstrom, got -2.0"),
        ({"cutoff": float("nan")}, "cutoff .* got nan"),
        ({"cutoff": 2.0}, "cutoff of 2 angstrom, the nearest is 2.687 .*larger cutoff"),
    ],
)
def test_impossible_sizes_are_refused(options, message):
    """The message names the value and the remedy."""
    lattice, _, box = binary()
    with pytest.raises(ValueError, match=message):
        PaiNN(lattice, box, **options)


@pytest.mark.parametrize("cutoff", [1.0, 1.0 + 1e-9, 1.0005])
def test_a_shell_at_the_cutoff_is_beyond_it(cutoff):
    """Where the filters end there is nothing to hear: no division by a vanishing envelope."""
    with pytest.raises(ValueError, match="no site has a neighbour within the cutoff of 1"):
        PaiNN(Lattice.square(3), BOX, cutoff=cutoff)


def test_a_lattice_without_neighbours_is_refused():
    """A single site without images has nobody to hear."""
    lattice = Lattice.uniform(Atoms("Au", cell=[5, 5, 5], pbc=False), ["Au", "Cu"])
    with pytest.raises(ValueError, match="single site"):
        PaiNN(lattice, BOX)


def test_weights_serve_other_supercells_but_no_other_lattice():
    """A larger cell of the parent works; no neighbours or other species are refused."""
    lattice, _, box = binary()
    network = spoilt_network(lattice, box)
    large = Lattice.uniform(bulk("Au", a=3.8) * (3, 3, 4), ["Au", "Cu"])
    c = Configurations.unknown(large, box.grid(1, 1))
    assert AnyOrderARM(network).complete(c, torch.Generator()).known.all()
    network.check_lattice(large)
    for other, message in (
        (Lattice.uniform(bulk("Au", a=9.5) * (2, 2, 2), ["Au", "Cu"]), "another parent"),
        (Lattice.uniform(bulk("Au", a=3.8) * (2, 2, 2), ["Au", "Ag"]), "species"),
        (Lattice(bulk("Au", a=3.8) * (2, 2, 2), range(8), ["Au", "Cu"], np.ones((8, 2)),
                 [0, 1] * 4), "2"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            network.check_lattice(other)
        with pytest.raises(ValueError, match=message):
            network(Configurations.unknown(other, box.grid(1, 1)), None)


def test_missing_fields_are_refused():
    """A network made with fields does not run without them."""
    lattice, _, box = binary()
    with pytest.raises(ValueError, match="fields"):
        PaiNN(lattice, box)(Configurations.unknown(lattice, box.grid(1, 1)), None)


@pytest.mark.parametrize("rows", [1, 2, 4, 6])
def test_one_site_asked_in_few_rows(rows):
    """`at` equals forward where no row asks for a site of one of the sublattices."""
    lattice, ensemble, box = two_sublattices()
    network = PaiNN(lattice, box, features=8, layers=2, n_radial=6).eval()
    torch.nn.init.normal_(network.head.weight)
    conditions = box.at(np.random.default_rng(0).random((rows, 1 + box.n_axes)))
    c = Configurations.unknown(lattice, conditions)
    site = torch.zeros(rows, dtype=torch.int64)
    fields = ensemble.fields(c)
    with torch.no_grad():
        everywhere = network(c, fields)[torch.arange(rows), site]
        assert torch.allclose(network.at(c, fields, site), everywhere, atol=1e-5)
