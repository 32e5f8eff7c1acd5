"""Orders of drawing: which sites share a pass, and that the density stays exact."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111
from toys import SYSTEMS

from clease_nn.configurations import Configurations
from clease_nn.distances import neighbour, surroundings
from clease_nn.lattice import Lattice
from clease_nn.models import (
    AnyOrderARM,
    BySize,
    Coloured,
    MarginalizationModel,
    OneByOne,
    model_from_config,
)
from clease_nn.models.orders import order_from_config, random_order
from clease_nn.networks import LatticeConvolution


def cluster():
    """27 atoms in no order, no translation, not periodic."""
    positions = np.random.default_rng(3).random((27, 3)) * 8
    return Lattice.uniform(Atoms("Au27", positions), ["Au", "Cu"])


def chain():
    """A periodic row of 30 sites."""
    return Lattice.square(30, 1)


LATTICES = {
    "chain": chain,
    "square": lambda: Lattice.square(7, 6),
    "skew": lambda: Lattice.uniform(bulk("Au", a=3.8) * (4, 3, 5), ["Au", "Cu"]),
    "slab": lambda: Lattice.uniform(fcc111("Au", (4, 4, 3), vacuum=6), ["Au", "Cu"]),
    "hcp": lambda: Lattice.uniform(bulk("Mg") * (4, 3, 2), ["Mg", "Al"]),
    "sublattices": lambda: two_sublattices((3, 3, 3)),
    "cluster": cluster,
    "wrapping": lambda: Lattice.uniform(bulk("Au", a=3.8) * (1, 2, 2), ["Au", "Cu"]),
}


def two_sublattices(repeat):
    atoms = bulk("NaCl", "rocksalt", a=4.2) * repeat
    first = (np.array(atoms.symbols) == "Na")[:, None]
    allowed = np.where(first, [[0, 1, 1, 0]], [[1, 0, 0, 1]])
    return Lattice(atoms, np.arange(len(atoms)), ("Ag", "Au", "Cu", "X"), allowed)


def distances(lattice):
    """(sites, sites) distances by another route."""
    atoms = Atoms(
        positions=lattice.positions,
        cell=lattice.template.cell.complete(),
        pbc=lattice.template.pbc,
    )
    return atoms.get_all_distances(mic=True)


def some_known(lattice, seed=0):
    """Rows with none, few, most and all sites known at random, and a ball of unknown ones."""
    share = torch.tensor([0.0, 0.1, 0.5, 0.95, 1.0, 1.0])[:, None]
    generator = torch.Generator().manual_seed(seed)
    known = torch.rand(6, lattice.n_sites, generator=generator) < share
    d = torch.as_tensor(distances(lattice)[0])
    known[5] = d > d.sort().values[lattice.n_sites // 2]
    return known


@pytest.mark.parametrize("name", LATTICES)
def test_surroundings_are_all_sites_by_distance(name):
    """Around every site stand all sites, each at its distance, the nearest first."""
    lattice = LATTICES[name]()
    around = surroundings(lattice)
    expected = distances(lattice)
    for i in range(lattice.n_sites):
        sites = [neighbour(around, i, k) for k in range(lattice.n_sites)]
        assert sites[0] == i and sorted(sites) == list(range(lattice.n_sites))
        d = around.distance[around.kind[i]]
        assert np.abs(expected[i, sites] - d).max() < 2e-3 and (np.diff(d) >= 0).all()


@pytest.mark.parametrize("order", [Coloured(), Coloured(0.7, 3), Coloured(2.0, 8), Coloured(0)])
@pytest.mark.parametrize("name", LATTICES)
def test_sites_of_a_pass_are_as_far_from_each_other_as_promised(name, order):
    """d_ij >= distance * max(r_i, r_j) for all pairs of a pass, r to the k-th nearest known site.

    And no site that could have joined a pass was left out; every unknown site comes once.
    """
    lattice = LATTICES[name]()
    d, known = distances(lattice), some_known(lattice)
    steps = order.steps(known, lattice, torch.Generator().manual_seed(1))
    assert torch.equal(steps < 0, known)
    for row, before in zip(steps.numpy(), known.numpy().copy(), strict=True):
        for t in range(row.max() + 1):
            ranked = np.sort(np.where(before, d, np.inf), axis=1)
            r = (
                ranked[:, order.neighbours - 1]
                if before.size >= order.neighbours
                else d[0] + np.inf
            )
            now = np.flatnonzero(row == t)
            assert len(now) >= 1 and (len(now) == 1 or np.isfinite(r[now]).all())
            with np.errstate(invalid="ignore"):
                limit = np.nan_to_num(order.distance * np.maximum.outer(r, r), nan=np.inf)
            if order.distance == 0 and np.isfinite(r).all():
                limit[:] = 0.0
            pairs = d[np.ix_(now, now)] - limit[np.ix_(now, now)]
            assert (pairs[~np.eye(len(now), dtype=bool)] > -2e-3).all()
            later = np.flatnonzero(row > t)
            assert ((d - limit)[np.ix_(later, now)].min(1, initial=-1.0) < 2e-3).all()
            before[now] = True


def test_passes_grow_like_the_logarithm_of_the_sites():
    """Each fourfold number of sites adds about as many passes; one by one would multiply them."""
    passes = []
    for size in (8, 16, 32, 64):
        lattice = Lattice.square(size)
        known = torch.zeros(4, lattice.n_sites, dtype=torch.bool)
        steps = Coloured().steps(known, lattice, torch.Generator().manual_seed(0))
        passes.append(float((steps.max(1).values + 1).double().mean()))
    added = np.diff(passes)
    assert (added > 0).all() and added[-1] < 1.5 * added[0] and passes[-1] < 3 * passes[0]


def test_passes_do_not_depend_on_the_size_around_a_block():
    """A ball drawn anew takes as many passes in a large cell as in a small one."""
    passes = []
    for size in (12, 48):
        lattice = Lattice.square(size)
        around = surroundings(lattice)
        ball = [neighbour(around, 5, k) for k in range(49)]
        known = torch.ones(50, lattice.n_sites, dtype=torch.bool)
        known[:, ball] = False
        steps = Coloured().steps(known, lattice, torch.Generator().manual_seed(0))
        passes.append((steps.max(1).values + 1).double())
    z = (passes[0].mean() - passes[1].mean()) / np.sqrt(sum(float(p.var()) / 50 for p in passes))
    assert abs(z) < 4.5 and passes[1].max() < 35


@pytest.mark.parametrize("order", [OneByOne(), Coloured(), BySize(20, Coloured(0.9))])
def test_the_same_seed_gives_the_same_steps(order):
    """Steps follow from the state of the generator alone; the state of numpy does not enter."""
    lattice = Lattice.square(6)
    known = some_known(lattice)
    draws = []
    for seed in (1, 2):
        np.random.seed(seed)  # noqa: NPY002
        before = np.random.get_state()[1].copy()  # noqa: NPY002
        draws.append(order.steps(known, lattice, torch.Generator().manual_seed(7)))
        assert (np.random.get_state()[1] == before).all()  # noqa: NPY002
    other = order.steps(known, lattice, torch.Generator().manual_seed(8))
    assert torch.equal(*draws) and not torch.equal(draws[0], other)


def test_first_sites_are_even_and_orders_are_random():
    """Every site is as often the first; rows differ."""
    lattice = Lattice.square(4)
    known = torch.zeros(4000, 16, dtype=torch.bool)
    steps = Coloured(0.9, 2).steps(known, lattice, torch.Generator().manual_seed(0))
    counts = (steps == 0).sum(0).double()
    chi = float(((counts - 250) ** 2 / 250).sum())
    assert chi < 50 and len(torch.unique(steps, dim=0)) > 1000  # chi-square, 15 degrees


def test_few_sites_are_drawn_one_by_one():
    """BySize is random_order, bit for bit, up to its limit, row by row, and Coloured above."""
    lattice = Lattice.square(6)
    known = torch.zeros(3, 36, dtype=torch.bool)
    known[1, :16] = True
    small, rng = BySize(36), torch.Generator().manual_seed(3)
    expected = random_order(known, torch.Generator().manual_seed(3))
    assert torch.equal(small.steps(known, lattice, rng), expected)
    mixed = BySize(20).steps(known, lattice, rng)
    assert mixed.max(1).values.tolist()[1] == 19 and mixed[[0, 2]].max() < 35


@pytest.mark.parametrize("make", ["any_order", "marginalization"])
@pytest.mark.parametrize("name", SYSTEMS)
def test_density_sums_to_one_in_fixed_passes(name, make):
    """The sum over all states of q is 1 for coloured steps; around known sites, over the rest."""
    lattice, ensemble, box = SYSTEMS[name]()
    model = wild(lattice, box, make)
    states = ensemble.enumerate(lattice).occupations
    rng = torch.Generator().manual_seed(0)
    for given in (0, 2):
        known = torch.zeros(1, lattice.n_sites, dtype=torch.bool)
        known[:, :given] = True
        rows = states[(states[:, :given] == states[0, :given]).all(1)]
        steps = Coloured(0.9, 2).steps(known, lattice, rng)
        assert int(steps.max()) + 1 < lattice.n_sites - given
        c = Configurations(lattice, box.grid(1, 1).repeat(len(rows)), rows)
        with torch.no_grad():
            log_q = model.log_prob(
                c, steps=steps.expand(len(rows), -1), fields=ensemble.fields, chunk=4096
            )
        assert abs(float(log_q.logsumexp(0))) < 1e-9


@pytest.mark.parametrize("make", ["any_order", "marginalization"])
def test_likelihood_as_drawn_is_that_of_the_steps(make):
    """log_prob of coloured draws around known sites equals log_prob recomputed."""
    lattice = Lattice.square(8)
    from clease_nn.energies.ising import ising_energy
    from clease_nn.ensemble import SemiGrandCanonical

    box = SYSTEMS["binary"]()[2]
    ensemble = SemiGrandCanonical(ising_energy(lattice, 0.1))
    model = wild(lattice, box, make).with_order(Coloured())
    occupations = torch.full((8, 64), -1, dtype=torch.int8)
    occupations[4:, ::3] = 1
    partial = Configurations(lattice, box.grid(8, 1), occupations)
    c = model.complete(partial, torch.Generator().manual_seed(0), ensemble.fields)
    assert int(c.step.max()) < 40 and torch.equal(c.step < 0, partial.known)
    with torch.no_grad():
        again = model.log_prob(c, steps=c.step, fields=ensemble.fields)
    assert (again - c.log_prob).abs().max() < 1e-4


def test_steps_do_not_depend_on_the_species():
    """Only which sites are known enters, so that q(x | given) is one distribution."""
    lattice, _, box = SYSTEMS["binary"]()
    model = wild(lattice, box, "any_order").with_order(Coloured(0.9, 2))
    occupations = torch.tensor([[0, 0, 0, -1, -1, -1, -1, -1], [1, 0, 1, -1, -1, -1, -1, -1]])
    rows = [Configurations(lattice, box.grid(1, 1), x[None]) for x in occupations]
    steps = [model.draw_steps(c, torch.Generator().manual_seed(5)) for c in rows]
    assert torch.equal(*steps)


@pytest.mark.parametrize("order", [OneByOne(), Coloured(0.9, 2)])
def test_a_gate_draws_a_set_without_interactions_last(order):
    """Its sites do not interact, every other unknown site does with one of them, none is lost."""
    lattice = Lattice.square(6)
    box = SYSTEMS["binary"]()[2]
    shells = lattice.pair_shells(1)
    network = LatticeConvolution(lattice, box, channels=4, blocks=1)
    model = AnyOrderARM(network, shells, order)
    known = some_known(lattice)[:4]
    partial = Configurations(lattice, box.grid(4, 1), torch.where(known, 0, -1))
    steps = model.draw_steps(partial, torch.Generator().manual_seed(0))
    linked = torch.as_tensor(lattice.relation_matrices(shells)[0] > 0)
    assert torch.equal(steps < 0, known)
    for row in steps:
        last = row == row.max()
        assert not (linked[last][:, last]).any()
        assert linked[(row >= 0) & ~last][:, last].any(1).all()
        assert torch.equal(torch.unique(row[row >= 0]), torch.arange(int(row.max()) + 1))


def wild(lattice, box, make):
    """A model with weights far from their start."""
    networks = [LatticeConvolution(lattice, box, channels=8, blocks=1) for _ in range(2)]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for network in networks:
            for p in network.parameters():
                p.copy_(0.3 * torch.randn(p.shape, generator=generator))
    return AnyOrderARM(networks[0]) if make == "any_order" else MarginalizationModel(*networks)


@pytest.mark.parametrize("make", ["any_order", "marginalization"])
def test_models_keep_their_order(make):
    """config() rebuilds the order; without one, as in old files, it is the default."""
    lattice, _, box = SYSTEMS["binary"]()
    model = wild(lattice, box, make)
    assert model.order == BySize()
    for order in (OneByOne(), Coloured(0.8, 4), BySize(50, Coloured(2.0, 3))):
        other = model.with_order(order)
        assert model_from_config(other.config()).order == order
        mine, its = model.parameters(), other.parameters()
        assert all(a is b for a, b in zip(mine, its, strict=True))
    config = model.config()
    del config["order"]
    assert model_from_config(config).order == BySize()


def test_bad_orders_are_refused():
    """Errors name the value and the limit."""
    with pytest.raises(ValueError, match="distance must be a number of 0 or more, got -1"):
        Coloured(distance=-1)
    with pytest.raises(ValueError, match="distance must be a number of 0 or more, got nan"):
        Coloured(distance=float("nan"))
    with pytest.raises(ValueError, match="neighbours must be a positive integer, got 0"):
        Coloured(neighbours=0)
    with pytest.raises(ValueError, match="neighbours must be a positive integer, got 2.5"):
        Coloured(neighbours=2.5)
    with pytest.raises(ValueError, match="few must be a number of sites, 0 or more, got -1"):
        BySize(-1)
    with pytest.raises(ValueError, match="order 'Spiral' is not known"):
        order_from_config({"class": "Spiral"})
    with pytest.raises(ValueError, match="numbered up to 32767, too few to draw 40000 sites"):
        random_order(torch.zeros(1, 40000, dtype=torch.bool), torch.Generator())
