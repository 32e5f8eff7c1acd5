"""Geometry and networks on large supercells: the same numbers, in memory that grows like N."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from ase.build import bulk, fcc111
from toys import SYSTEMS

from clease_nn.conditions import ConditionRange, Conditions
from clease_nn.configurations import Configurations
from clease_nn.lattice import Lattice
from clease_nn.networks import LatticeConvolution, PaiNN
from clease_nn.networks.neighbours import Neighbours

BOX = ConditionRange((300, 900), [-0.1], [0.1], [[-1.0, 1.0]])
LATTICES = {
    "square": lambda: Lattice.square(5, 4),
    "wrapping": lambda: Lattice.square(1, 2),
    "skew": lambda: Lattice.uniform(bulk("Au", a=3.8) * (3, 2, 4), ["Au", "Cu"]),
    "slab": lambda: Lattice.uniform(fcc111("Au", (3, 3, 3), vacuum=6), ["Au", "Cu"]),
    "sublattices": lambda: SYSTEMS["two_sublattices"]()[0],
}


@pytest.mark.parametrize("name", LATTICES)
def test_relation_lists_are_counts_of_periodic_images(name):
    """Lists and matrices agree with a count over explicit periodic images."""
    lattice = LATTICES[name]()
    keys = lattice.pair_shells(3)
    lists = lattice.relation_lists(keys)
    matrices = lattice.relation_matrices(keys)
    n = lattice.n_sites
    assert lists.shape == (len(keys) * n, n)
    assert np.array_equal(lists.toarray().reshape(len(keys), n, n), matrices)
    pbc, cell = lattice.template.pbc, lattice.template.cell.complete()
    shifts = np.stack(np.meshgrid(*(range(-9, 10) if p else [0] for p in pbc)), -1).reshape(-1, 3)
    images = shifts @ cell
    for i in range(n):
        v = lattice.positions[None] - lattice.positions[i] + images[:, None]
        d = np.linalg.norm(v, axis=2)
        for (a, b, distance), matrix in zip(keys, matrices, strict=True):
            expected = (np.abs(d - distance) < 3e-3).sum(0) * (lattice.sublattices == b)
            assert np.array_equal(matrix[i], expected * (lattice.sublattices[i] == a))


@pytest.mark.parametrize("name", LATTICES)
def test_relations_of_no_shells_are_empty(name):
    """No keys, no rows."""
    lattice = LATTICES[name]()
    assert lattice.relation_lists([]).shape == (0, lattice.n_sites)
    assert lattice.relation_matrices([]).shape == (0, lattice.n_sites, lattice.n_sites)


@pytest.mark.parametrize("channels", [1, 7, 16, 40])
@pytest.mark.parametrize("name", LATTICES)
def test_sums_over_neighbours_are_products_with_the_matrices(name, channels):
    """Values, gradients, one site alone and counts of flags, from lists and from matrices."""
    lattice = LATTICES[name]()
    keys = lattice.pair_shells(3)
    counts = torch.as_tensor(lattice.relation_matrices(keys))
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(5, lattice.n_sites, channels, generator=generator, requires_grad=True)
    w = torch.randn(5, lattice.n_sites, len(keys), channels, generator=generator)
    expected = torch.einsum("sij,bjc->bisc", counts, u)
    (grad,) = torch.autograd.grad((expected * w).sum(), u)
    flags = torch.rand(37, lattice.n_sites, generator=generator) < 0.5
    site = torch.randint(lattice.n_sites, (5,), generator=generator)
    for made in (Neighbours(lattice.relation_lists(keys)), Neighbours(counts.numpy())):
        found = made(u)
        assert torch.allclose(found, expected, atol=1e-5)
        assert torch.allclose(torch.autograd.grad((found * w).sum(), u)[0], grad, atol=1e-5)
        at = made.at(u.detach(), site)
        assert torch.allclose(at, expected[torch.arange(5), site], atol=1e-5)
        shares = torch.einsum("sij,bj->bis", counts, flags.float())
        assert torch.equal(made.of_flags(flags), shares)


def test_compressed_matrix_of_other_devices_gives_the_same(monkeypatch):
    """Devices without the compiled sums take a full matrix or a compressed one: equal sums."""
    lattice = LATTICES["skew"]()
    lists = lattice.relation_lists(lattice.pair_shells(3))
    u = torch.randn(4, lattice.n_sites, 6, generator=torch.Generator().manual_seed(0))
    expected = Neighbours(lists)(u).flatten(1, 2)
    full = Neighbours(lists)._matrix(u.device, u.dtype)
    monkeypatch.setattr("clease_nn.networks.neighbours._DENSE", 0)
    compressed = Neighbours(lists)._matrix(u.device, u.dtype)
    assert full.layout == torch.strided and compressed.layout == torch.sparse_coo
    columns = u.transpose(0, 1).reshape(lattice.n_sites, -1)
    for matrix in (full, compressed):
        found = (matrix @ columns).view(-1, 4, 6).transpose(0, 1)
        assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("name", LATTICES)
def test_random_translations_are_even(name):
    """They are rows of the table of all translations, each as often (chi-square)."""
    lattice = LATTICES[name]()
    table = {row.tobytes(): k for k, row in enumerate(lattice.translations)}
    drawn = lattice.random_translations(200 * len(table), np.random.default_rng(1))
    counts = np.bincount([table[row.tobytes()] for row in drawn], minlength=len(table))
    chi, degrees = ((counts - 200) ** 2 / 200).sum(), len(table) - 1
    assert chi < degrees + 5 * np.sqrt(2 * degrees) + 10


@pytest.mark.parametrize("family", [LatticeConvolution, PaiNN])
def test_logits_of_a_replica_are_those_of_its_cell(family):
    """4096 sites that repeat 64: equal logits wherever totals that depend on N vanish."""
    small, large = Lattice.square(8), Lattice.square(64)
    torch.manual_seed(0)
    if family is PaiNN:
        network = family(small, BOX, features=16, layers=2, needs_fields=False)
    else:
        network = family(small, BOX, channels=16, blocks=2, needs_fields=False)
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(0.2 * torch.randn_like(p))
    x = torch.full((64,), -1, dtype=torch.int8)
    at = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    x[at[:20]], x[at[20:40]] = 0, 1  # as many of each: no excess
    conditions = Conditions(torch.tensor([500.0]), torch.zeros(1, 2))
    cells = (small, x.view(8, 8)), (large, x.view(8, 8).tile(8, 8))
    with torch.no_grad():
        one, many = (
            network(Configurations(lattice, conditions, y.reshape(1, -1)), None)
            for lattice, y in cells
        )
    tiled = one.view(8, 8, 2).tile(8, 8, 1).view(1, -1, 2)
    assert one.std() > 1e-2 and torch.allclose(many, tiled, atol=2e-5)


FORWARD = """
import re, torch
torch.set_num_threads(1)
from clease_nn.conditions import ConditionRange
from clease_nn.configurations import Configurations
from clease_nn.lattice import Lattice
from clease_nn.networks import LatticeConvolution
from clease_nn.models import AnyOrderARM
size, batch = 64, 12
lattice = Lattice.square(size)
box = ConditionRange((300, 900), [-0.1], [0.1], [[-1.0, 1.0]])
tiny = Lattice.square(2)
network = LatticeConvolution(tiny, box, n_shells=4)
def forward(lattice, rows):
    c = Configurations(lattice, box.grid(1, 1).repeat(rows),
                       torch.randint(-1, 2, (rows, lattice.n_sites)).to(torch.int8))
    with torch.no_grad():
        network(c, torch.randn(rows, lattice.n_sites, 4))
    if rows == 1:
        AnyOrderARM(network).draw_steps(c, torch.Generator())
def peak():  # of this process alone; ru_maxrss starts at that of the parent
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
forward(tiny, 1)
start = peak()
forward(lattice, 1)
first = peak()
forward(lattice, batch)
print(first - start, (peak() - first) / batch, network.bytes_per_row(size**2))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read as on Linux")
def test_memory_of_4096_sites():
    """Geometry, order and one row stay far below one matrix of sites by sites (335 MB of shells).

    And a row more takes what ``bytes_per_row`` says within a factor of 2.5.
    """
    done = subprocess.run(
        [sys.executable, "-c", FORWARD], capture_output=True, text=True, check=True, timeout=300
    )
    geometry, row, expected = map(float, done.stdout.split())
    assert geometry < 150e6
    assert 1 / 2.5 < row / expected < 2.5


def test_a_guess_of_memory_grows_with_sites_and_weights():
    """Networks that do not say what they need are taken for dense layers at every site."""
    from clease_nn.networks import AbstractNetwork

    narrow, wide = (LatticeConvolution(Lattice.square(4), BOX, channels=c) for c in (16, 64))
    guess = AbstractNetwork.bytes_per_row
    assert guess(narrow, 64) * 4 == guess(narrow, 256) < guess(wide, 256)
