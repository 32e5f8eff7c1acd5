"""Laws of cluster expansion energies: kernels and torch against a plain numpy sum."""

import itertools
import pickle

import numpy as np
import pytest
import torch
from ase import Atoms

from clease_nn.energies import ClusterExpansionEnergy, ClusterTables, check_energy_model
from clease_nn.lattice import Lattice

BACKENDS = ["numba", "torch"]
SPECIES = ("Ag", "Au", "Cu", "X")


def random_system(seed, n_sites=9, n_terms=60, max_order=5):
    """Random polynomial on sites with different allowed species (at least one each)."""
    rng = np.random.default_rng(seed)
    allowed = rng.random((n_sites, 4)) < 0.6
    allowed[np.arange(n_sites), rng.integers(0, 4, n_sites)] = True
    atoms = Atoms(["Au"] * n_sites, rng.random((n_sites, 3)) * 9, cell=np.eye(3) * 9, pbc=True)
    lattice = Lattice(atoms, np.arange(n_sites), SPECIES, allowed)
    functions = rng.normal(size=(3, 4))
    terms = []
    for _ in range(n_terms):
        order = rng.integers(1, max_order + 1)
        sites = rng.integers(0, n_sites, order)  # may repeat: a cluster that wraps
        terms.append((rng.normal(), [(int(s), int(rng.integers(0, 3))) for s in sites]))
    tables = ClusterTables.from_terms(n_sites, functions, terms, constant=rng.normal())

    def oracle(x):
        constant = tables.constant + 0.0
        phi = tables.functions
        return np.array(
            [
                constant
                + sum(c * np.prod([phi[f, row[s]] for s, f in e]) for c, e in tables.terms())
                for row in np.asarray(x)
            ]
        )

    return lattice, tables, oracle


def draw(lattice, n, seed=0):
    rng = np.random.default_rng(seed)
    columns = [rng.choice(np.flatnonzero(row), size=n) for row in lattice.allowed]
    return torch.as_tensor(np.stack(columns, 1).astype(np.int8))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(4))
def test_energies_equal_the_plain_sum(backend, seed):
    """Energies equal the sum over terms written in numpy, any order, any number of species."""
    lattice, tables, oracle = random_system(seed)
    x = draw(lattice, 70)
    got = ClusterExpansionEnergy(tables, backend=backend)(lattice, x)
    assert got.dtype == torch.float64
    np.testing.assert_allclose(got.numpy(), oracle(x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(3))
def test_contract(backend, seed):
    """Batch equals single, input unmutated, flips and fields equal differences of energies."""
    lattice, tables, _ = random_system(seed + 10)
    report = check_energy_model(ClusterExpansionEnergy(tables, backend=backend), lattice)
    assert set(report) == {"batch", "flips", "fields"}
    assert max(report.values()) < 1e-10


@pytest.mark.parametrize("backend", BACKENDS)
def test_present_and_forbidden_species(backend):
    """A change to the present species costs exactly 0, to a forbidden one +inf, its field is 0."""
    lattice, tables, _ = random_system(12)
    energy = ClusterExpansionEnergy(tables, backend=backend)
    x = draw(lattice, 80)
    flips = energy.flip_energies(lattice, x)
    assert torch.equal(flips.gather(2, x.long()[:, :, None]), torch.zeros((80, 9, 1)).double())
    allowed = torch.tensor(lattice.allowed)
    assert bool(torch.isinf(flips[:, ~allowed]).all()) and bool(
        torch.isfinite(flips[:, allowed]).all()
    )
    assert not energy.partial_fields(lattice, x)[:, ~allowed].any()


@pytest.mark.parametrize("seed", range(3))
def test_backends_agree_on_partial_configurations(seed):
    """Kernels and torch give the same conditional energies to 1e-10 eV."""
    lattice, tables, _ = random_system(seed + 20, n_sites=12, n_terms=200)
    x = draw(lattice, 100, seed)
    hide = np.random.default_rng(seed).random(x.shape) < 0.5
    x[torch.as_tensor(hide)] = -1
    kernel = ClusterExpansionEnergy(tables).partial_fields(lattice, x)
    plain = ClusterExpansionEnergy(tables, backend="torch").partial_fields(lattice, x)
    assert torch.allclose(kernel, plain, rtol=0, atol=1e-10)


def test_partial_fields_are_averages_over_the_unknown():
    """Fields are energy differences averaged over all states of the other unknown sites."""
    lattice, tables, _ = random_system(3, n_sites=5, n_terms=40)
    energy = ClusterExpansionEnergy(tables)
    x = draw(lattice, 1, seed=4)[0]
    unknown = [0, 2, 3]
    partial = x.clone()
    partial[unknown] = -1
    fields = energy.partial_fields(lattice, partial[None])[0]
    for site in range(5):
        others = [s for s in unknown if s != site]
        choices = [np.flatnonzero(lattice.allowed[s]) for s in others]
        means = []
        for a in np.flatnonzero(lattice.allowed[site]):
            states = []
            for values in itertools.product(*choices):
                state = x.clone()
                state[others] = torch.as_tensor(np.array(values, dtype=np.int8))
                state[site] = int(a)
                states.append(state)
            means.append(float(energy(lattice, torch.stack(states)).mean()))
        got = fields[site, torch.tensor(lattice.allowed[site])]
        expected = torch.tensor(means, dtype=torch.float64)
        assert torch.allclose(got - got[0], expected - expected[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("n", [0, 1, 63, 64, 65, 130])
def test_any_batch_size(n):
    """Blocks of 64 are invisible: every batch size gives the energies of its rows."""
    lattice, tables, oracle = random_system(5)
    energy = ClusterExpansionEnergy(tables)
    x = draw(lattice, n)
    assert np.allclose(energy(lattice, x).numpy(), oracle(x), rtol=0, atol=1e-10)
    assert energy.flip_energies(lattice, x).shape == (n, 9, 4)
    assert energy.partial_fields(lattice, x).shape == (n, 9, 4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_does_not_depend_on_its_batch(backend):
    """Kernel results are bitwise the same wherever a configuration stands in a batch."""
    lattice, tables, _ = random_system(6)
    energy = ClusterExpansionEnergy(tables, backend=backend)
    x = draw(lattice, 100)
    together = energy(lattice, x)
    alone = torch.cat([energy(lattice, row[None]) for row in x])
    if backend == "numba":
        assert torch.equal(together, alone)
    assert torch.allclose(together, alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_terms_the_energy_is_constant(backend):
    """Tables without terms: the constant, zero changes."""
    lattice = Lattice.square(2)
    tables = ClusterTables.from_terms(4, [[-1.0, 1.0]], [], constant=0.7)
    energy = ClusterExpansionEnergy(tables, backend=backend)
    x = draw(lattice, 3)
    assert torch.equal(energy(lattice, x), torch.full((3,), 0.7, dtype=torch.float64))
    assert torch.equal(energy.flip_energies(lattice, x), torch.zeros((3, 4, 2)).double())
    assert torch.equal(energy.partial_fields(lattice, x), torch.zeros((3, 4, 2)).double())


def test_any_integer_type_and_layout():
    """Other integer types, strided tensors and numpy arrays give the same energies."""
    lattice, tables, _ = random_system(7)
    energy = ClusterExpansionEnergy(tables)
    x = draw(lattice, 20)
    expected = energy(lattice, x)
    for other in (x.long(), x.to(torch.uint8), x.T.contiguous().T, x.numpy()):
        assert torch.equal(energy(lattice, other), expected)


def test_means_follow_the_lattice():
    """The same energy on a lattice that allows other species uses that lattice's means."""
    lattice, tables, _ = random_system(8)
    energy = ClusterExpansionEnergy(tables)
    unknown = torch.full((1, 9), -1, dtype=torch.int8)
    first = energy.partial_fields(lattice, unknown)
    free = Lattice.uniform(lattice.template, SPECIES)
    fresh = ClusterExpansionEnergy(tables).partial_fields(free, unknown)
    assert torch.equal(energy.partial_fields(free, unknown), fresh)
    assert torch.equal(energy.partial_fields(lattice, unknown), first)


def test_pickled_energy_is_the_same():
    """An energy travels to another process."""
    lattice, tables, _ = random_system(9)
    energy = ClusterExpansionEnergy(tables, {"parent": "abc"})
    x = draw(lattice, 5)
    expected = energy(lattice, x)
    copy = pickle.loads(pickle.dumps(energy))
    assert torch.equal(copy(lattice, x), expected)
    assert copy.fingerprint == energy.fingerprint and copy.metadata == {"parent": "abc"}


@pytest.mark.parametrize("backend", BACKENDS)
def test_impossible_occupations_are_named(backend):
    """Unknown, out of range and forbidden species are errors that name site and species."""
    lattice, tables, _ = random_system(1)
    energy = ClusterExpansionEnergy(tables, backend=backend)
    calls = (energy, energy.flip_energies)
    site, species = np.argwhere(~lattice.allowed)[0]

    bad = draw(lattice, 3)
    bad[2, 4] = -1
    for call in calls:
        with pytest.raises(ValueError, match="site 4 of configuration 2 is unknown"):
            call(lattice, bad)
    bad[2, 4] = 4
    for call in (*calls, energy.partial_fields):
        with pytest.raises(ValueError, match="site 4 of configuration 2 has occupation 4"):
            call(lattice, bad)
    bad = draw(lattice, 3)
    bad[1, site] = int(species)
    message = f"site {site} of configuration 1 carries {SPECIES[species]}"
    for call in (*calls, energy.partial_fields):
        with pytest.raises(ValueError, match=message):
            call(lattice, bad)


def test_bad_arguments_are_named():
    """Wrong lattice, shape, type, tables and backend."""
    lattice, tables, _ = random_system(2)
    energy = ClusterExpansionEnergy(tables)
    with pytest.raises(ValueError, match="this energy is for 9 active sites"):
        energy(Lattice.square(3), torch.zeros((1, 9), dtype=torch.int8))
    with pytest.raises(ValueError, match=r"must have shape \(batch, 9\)"):
        energy(lattice, torch.zeros(9, dtype=torch.int8))
    with pytest.raises(ValueError, match="must be integers"):
        energy(lattice, torch.zeros((1, 9)))
    with pytest.raises(TypeError, match="ClusterTables"):
        ClusterExpansionEnergy([1.0])
    with pytest.raises(ValueError, match="backend must be one of"):
        ClusterExpansionEnergy(tables, backend="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu_gives_the_same_numbers():
    """Occupations on a GPU are evaluated there, to 1e-10 eV."""
    lattice, tables, _ = random_system(11)
    energy = ClusterExpansionEnergy(tables)
    x = draw(lattice, 50)
    assert energy(lattice, x.cuda()).is_cuda
    for call in (energy, energy.flip_energies, energy.partial_fields):
        assert torch.allclose(call(lattice, x.cuda()).cpu(), call(lattice, x), atol=1e-10)


def test_tables_from_arrays_are_those_from_terms():
    """Sites several times in a term, constants, equal and empty terms: both ways, one table."""
    rng = np.random.default_rng(4)
    functions = [[-1.0, 0.5, 2.0], [3.0, 3.0, 3.0], [0.0, 1.0, -1.0]]
    sizes = rng.integers(0, 5, 200)
    terms = [(rng.normal(), rng.integers(0, (4, 3), (k, 2)).tolist()) for k in sizes]
    variables = np.full((200, 4), -1)
    for row, (_, entries) in zip(variables, terms, strict=True):
        row[: len(entries)] = [3 * site + f for site, f in entries]
    rng.permuted(variables, axis=1, out=variables)
    tables = ClusterTables.from_terms(4, functions, terms, 0.25)
    arrays = ClusterTables.from_arrays(4, functions, [c for c, _ in terms], variables, 0.25)
    assert arrays.fingerprint == tables.fingerprint
    x = rng.integers(0, 3, (20, 4))
    phi = np.array(functions)
    direct = [
        0.25 + sum(c * np.prod([phi[f, y[s]] for s, f in entries]) for c, entries in terms)
        for y in x
    ]
    assert np.allclose(tables.direct_energies(x), direct, rtol=0, atol=1e-10)


def test_partial_fields_with_means():
    """Fields are averages over independent species of unknown sites; kernels and torch agree."""
    lattice, tables, _ = random_system(3, n_sites=5, n_terms=40)
    energy, plain = ClusterExpansionEnergy(tables), ClusterExpansionEnergy(tables, backend="torch")
    x = draw(lattice, 70, seed=4)
    rng = np.random.default_rng(5)
    x[torch.as_tensor(rng.random(x.shape) < 0.5)] = -1
    means = torch.as_tensor(rng.random((*x.shape, lattice.n_species)))
    means = means * torch.tensor(lattice.allowed)
    means = means / means.sum(-1, keepdim=True)
    fields = energy.partial_fields(lattice, x, means)
    assert torch.allclose(fields, plain.partial_fields(lattice, x, means), rtol=0, atol=1e-10)
    alike = torch.tensor(lattice.allowed).double()
    alike = alike / alike.sum(-1, keepdim=True)
    by_default = energy.partial_fields(lattice, x, alike.expand_as(means))
    assert torch.allclose(by_default, energy.partial_fields(lattice, x), rtol=0, atol=1e-10)
    for k in range(3):
        unknown = (x[k] < 0).nonzero()[:, 0].tolist()
        for site in range(5):
            others = [s for s in unknown if s != site]
            levels = []
            for a in np.flatnonzero(lattice.allowed[site]):
                total = 0.0
                choices = [np.flatnonzero(lattice.allowed[s]) for s in others]
                for values in itertools.product(*choices):
                    state = x[k].clone()
                    state[others] = torch.as_tensor(np.array(values, dtype=np.int8))
                    state[site] = int(a)
                    p = np.prod(
                        [float(means[k, s, v]) for s, v in zip(others, values, strict=True)]
                    )
                    total += p * float(energy(lattice, state[None]))
                levels.append(total)
            got = fields[k, site, torch.tensor(lattice.allowed[site])]
            expected = torch.tensor(levels, dtype=torch.float64)
            assert torch.allclose(got - got[0], expected - expected[0], rtol=0, atol=1e-10)


def test_partial_fields_are_differentiable_in_the_means():
    """The gradient with respect to means is that of the polynomial."""
    lattice, tables, _ = random_system(3, n_sites=5, n_terms=40)
    energy = ClusterExpansionEnergy(tables)
    x = draw(lattice, 3, seed=4)
    x[:, ::2] = -1
    means = torch.as_tensor(np.random.default_rng(0).random((3, 5, lattice.n_species)))
    means.requires_grad_()
    assert torch.autograd.gradcheck(lambda m: energy.partial_fields(lattice, x, m), means)


def test_derivatives_keep_little():
    """Nothing the size of the terms is kept for derivatives: it is computed anew."""
    lattice, tables, _ = random_system(3, n_sites=5, n_terms=40)
    energy, x = ClusterExpansionEnergy(tables), torch.full((8, 5), -1, dtype=torch.int8)
    means = torch.full((8, 5, lattice.n_species), 0.5, dtype=torch.float64, requires_grad=True)
    kept = []

    def pack(tensor):
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        energy.partial_fields(lattice, x, means)
    assert sum(kept) <= 2 * means.numel()


def test_bad_means():
    """Means of another shape are refused."""
    lattice, tables, _ = random_system(3, n_sites=5, n_terms=40)
    with pytest.raises(ValueError, match=r"means must have shape \(2, 5"):
        ClusterExpansionEnergy(tables).partial_fields(
            lattice, draw(lattice, 2, seed=4), torch.ones(2, 5)
        )
