"""Networks and models on slabs, clusters, chains, single sites, skew cells, up to four species."""

import copy
import itertools
import json

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, make_supercell

from clease_nn.compute import compute_policy
from clease_nn.conditions import ConditionRange, Conditions
from clease_nn.configurations import Configurations
from clease_nn.lattice import UNKNOWN, Lattice
from clease_nn.models import AnyOrderARM, FixedOrderARM, MarginalizationModel
from clease_nn.networks import (
    MLP,
    LatticeConvolution,
    LatticeTransformer,
    MaskedMLP,
    PaiNN,
    network_from_config,
)

SPECIES = ("Au", "Cu", "Ag", "X")


def uniform(atoms, n_species=2):
    return Lattice.uniform(atoms, SPECIES[:n_species])


def background():
    """Four species, vacancies among them, on the cations of wurtzite; the anions stay."""
    atoms = bulk("ZnS", "wurtzite", a=3.8) * (1, 2, 1)
    sites = np.flatnonzero(atoms.symbols == "Zn")
    return Lattice(atoms, sites, SPECIES, np.ones((len(sites), 4)))


def one_choice():
    """Rocksalt whose anion sites are active but may carry one species only."""
    atoms = bulk("NaCl", "rocksalt", a=4.2) * (2, 1, 1)
    allowed = np.where((atoms.symbols == "Na")[:, None], [[1, 1, 1, 0]], [[0, 0, 0, 1]])
    return Lattice(atoms, range(len(atoms)), SPECIES, allowed)


LATTICES = {
    "slab": lambda: uniform(fcc111("Au", (2, 1, 3), a=4.0, vacuum=5.0)),
    "cluster": lambda: uniform(
        Atoms("Au5", [[0, 0, 0], [2.8, 0, 0], [0, 2.8, 0], [2.8, 2.8, 0], [1.4, 1.4, 2.0]])
    ),
    "single site": lambda: uniform(bulk("Au", a=3.8), 3),
    "skew": lambda: uniform(make_supercell(bulk("Au", a=3.8), [[1, 2, 0], [0, 1, 3], [1, 0, 1]])),
    "sheared": lambda: uniform(
        make_supercell(bulk("Au", "sc", a=3.0), [[5, 0, 0], [2, 1, 0], [0, 0, 1]])
    ),
    "chain": lambda: uniform(
        Atoms("Au5", [[2.5 * k, 0, 0] for k in range(5)], cell=[12.5, 0, 0], pbc=[1, 0, 0])
    ),
    "sheet": lambda: uniform(
        Atoms(
            "Au4", [[0, 0, 0], [1, 0, 0], [0.5, 0.8, 0], [1.5, 0.8, 0]],
            cell=[[2, 0, 0], [1, 1.6, 0], [0, 0, 0]], pbc=[1, 1, 0],
        )
    ),
    "background": background,
    "one choice": one_choice,
}  # fmt: skip

NETWORKS = {
    "convolution": lambda *a, **k: LatticeConvolution(*a, channels=16, blocks=2, **k),
    "mlp": lambda *a, **k: MLP(*a, width=16, layers=2, **k),
    "masked_mlp": lambda *a, **k: MaskedMLP(*a, width=16, layers=2, **k),
    "painn": lambda *a, **k: PaiNN(*a, features=8, layers=2, n_radial=6, **k),
    "transformer": lambda *a, **k: LatticeTransformer(*a, width=16, blocks=2, heads=2, **k),
}


@pytest.fixture(params=sorted(LATTICES))
def lattice(request):
    return LATTICES[request.param]()


@pytest.fixture(params=sorted(NETWORKS))
def name(request):
    return request.param


def box_of(lattice):
    return ConditionRange((600, 2400), [-0.1], [0.1], np.eye(1, lattice.n_species))


def spoilt(name, lattice, needs_fields=False):
    """Random numbers for every weight that starts at zero."""
    torch.manual_seed(0)
    network = NETWORKS[name](lattice, box_of(lattice), needs_fields=needs_fields).eval()
    for parameter in network.parameters():
        if parameter.ndim > 1 and not parameter.detach().any():
            torch.nn.init.normal_(parameter, std=0.4)
    return network


def some_fields(c):
    """Any function of the known sites will do."""
    rng = torch.Generator().manual_seed(5)
    k, n = c.lattice.n_species, c.lattice.n_sites
    known = (c.occupations[:, :, None] == torch.arange(k)).float().flatten(1)
    weight = torch.randn(n * k, 2 * n * k, generator=rng)
    return torch.tanh(known @ weight).view(len(c), n, 2 * k)


def all_states(lattice):
    choices = [np.flatnonzero(a) for a in lattice.allowed]
    return torch.tensor(list(itertools.product(*choices)), dtype=torch.int8)


def partial(lattice, n=12):
    """Random configurations at random conditions, about half of the sites known."""
    rng = np.random.default_rng(0)
    states = all_states(lattice)
    occupations = states[torch.as_tensor(rng.choice(len(states), n))].clone()
    occupations[torch.as_tensor(rng.random(occupations.shape) < 0.5)] = UNKNOWN
    return Configurations(lattice, box_of(lattice).at(rng.random((n, 2))), occupations)


def models(network):
    if not network.any_order:
        return [FixedOrderARM(network)]
    return [AnyOrderARM(network), FixedOrderARM(network)]


@pytest.mark.parametrize("fields", [some_fields, None], ids=["fields", "none"])
def test_logits_of_one_site_are_those_of_forward(name, lattice, fields):
    """at() is forward() at that site; both are finite and float32, also in half precision."""
    network = spoilt(name, lattice, fields is not None)
    c = partial(lattice)
    f = None if fields is None else fields(c)
    rows = torch.arange(len(c))
    site = rows % lattice.n_sites
    with torch.no_grad():
        logits = network(c, f)
        assert torch.isfinite(logits).all() and logits.shape == (12, *lattice.allowed.shape)
        assert torch.allclose(network.at(c, f, site), logits[rows, site], atol=2e-5)
        with compute_policy(precision="bfloat16"):
            half = network(c, f), network.at(c, f, site)
    assert logits.dtype == half[0].dtype == half[1].dtype == torch.float32
    assert (half[1] - half[0][rows, site]).abs().max() < 0.1 * logits.abs().max()


@pytest.mark.parametrize("where", ["inside", "outside"])
def test_probabilities_of_all_states_sum_to_one(name, lattice, where):
    """sum_x q(x) = 1 in the order of a draw, also far outside of the box of conditions."""
    network = spoilt(name, lattice, True)
    states = all_states(lattice)
    at = box_of(lattice).at([[0.3, 0.6]])
    if where == "outside":
        at = Conditions([20.0], 2.0 - 4.0 * np.eye(1, lattice.n_species))
    full = Configurations(lattice, at.repeat(len(states)), states)
    for model in models(network):
        empty = Configurations.unknown(lattice, at)
        steps = model.draw_steps(empty, torch.Generator().manual_seed(1)).expand(len(states), -1)
        with torch.no_grad():
            total = model.log_prob(full, steps=steps, fields=some_fields).logsumexp(0)
        assert abs(total.item()) < 1e-5


@pytest.mark.parametrize("name", ["convolution", "painn", "transformer"], indirect=True)
def test_logits_commute_with_translations(name, lattice):
    """A translated configuration has translated logits."""
    network, c = spoilt(name, lattice), partial(lattice)
    with torch.no_grad():
        base = network(c, None)
        for shift in torch.tensor(lattice.translations):
            moved = Configurations(lattice, c.conditions, c.occupations[:, shift])
            assert torch.allclose(network(moved, None), base[:, shift], atol=2e-5)


def test_nothing_to_draw(name, lattice):
    """No rows, and rows without an unknown site: shapes hold and ln q is zero."""
    network = spoilt(name, lattice, True)
    c = partial(lattice)
    none, no_site = c[:0], torch.zeros(0, dtype=torch.int64)
    k = lattice.n_species
    assert network(none, some_fields(none)).shape == (0, lattice.n_sites, k)
    assert network.at(none, some_fields(none), no_site).shape == (0, k)
    known = Configurations(lattice, c.conditions[:4], all_states(lattice)[[0, 1, -2, -1]])
    others = [MarginalizationModel(network, copy.deepcopy(network))] if network.any_order else []
    for model in models(network) + others:
        for given in (known[:0], known):
            out = model.complete(given, torch.Generator(), some_fields)
            assert torch.equal(out.occupations, given.occupations)
            assert torch.equal(out.log_prob, torch.zeros(len(given), dtype=torch.float64))
            again = model.log_prob(out, steps=out.step, fields=some_fields)
            assert torch.equal(again, out.log_prob)


def test_copies_and_configs_are_the_same_function(name, lattice):
    """A deep copy, also of a network in use, and one from JSON and weights give the same logits."""
    network, c = spoilt(name, lattice, True), partial(lattice)
    f = some_fields(c)
    with torch.no_grad():
        expected = network(c, f)
        twin = network_from_config(json.loads(json.dumps(network.config())))
        twin.load_state_dict(network.state_dict())
        assert torch.equal(twin.eval()(c, f), expected)
        assert torch.equal(copy.deepcopy(network)(c, f), expected)
    assert set(network.state_dict()) == {n for n, _ in network.named_parameters()}


@pytest.mark.parametrize("a", [3.615, 4.085, 4.05])
def test_noise_of_the_last_digits_makes_no_other_cell(a):
    """Positions halfway between two rounded values, as a/2 of copper, are still the same cell."""
    atoms = bulk("Cu", a=a) * (2, 2, 2)
    lattice = uniform(atoms)
    network = MLP(lattice, box_of(lattice), width=8, layers=1)
    rng = np.random.default_rng(0)
    for noise in (1e-15, 1e-12, 1e-9):
        moved = atoms.copy()
        moved.positions += noise * rng.choice([-1, 1], moved.positions.shape)
        network.check_lattice(uniform(moved))
