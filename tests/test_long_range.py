"""Laws of long-range order: one for every variant, the same for equivalent configurations."""

import numpy as np
import pytest
import torch
from ase.build import bulk
from toys import two_sublattices
from weighted_states import assert_standard, drawn, mixture

from clease_nn.conditions import Conditions
from clease_nn.energies.ising import ising_energy
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import Lattice
from clease_nn.symmetry import site_permutations
from clease_nn.thermodynamics import DensityOfStates, long_range_order, order_parameter

FCC = Lattice.uniform(bulk("Au", cubic=True) * 2, ["Au", "Cu"])
BOARD = np.indices((4, 4)).sum(0).ravel() % 2


def layers(lattice, a=4.08):
    """L1_0: alternating (001) planes."""
    return np.rint(lattice.positions[:, 2] / (a / 2)).astype(int) % 2


def corners(lattice, a=4.08):
    """L1_2: one of the four simple cubic sublattices."""
    return (np.rint(lattice.positions / (a / 2)).astype(int) % 2 == 0).all(1).astype(int)


@pytest.mark.parametrize(("make", "n"), [(layers, 6), (corners, 4)])
def test_every_variant_is_perfectly_ordered(make, n):
    """CuAu has six variants in a cubic cell, Cu3Au four; each reads 1 and finds itself."""
    structure = make(FCC)
    images = structure[site_permutations(FCC)]
    found = order_parameter(images, FCC, structure)
    assert len(found.variants) == n and (found.variants[0] == structure).all()
    np.testing.assert_allclose(found.value, 1, rtol=1e-12)
    assert (found.variants[found.variant] == images).all()


def test_a_long_supercell_hides_no_domain():
    """Domains of CuAu along all axes read 1, where only two axes of the supercell are alike."""
    cell = Lattice.uniform(bulk("Au", cubic=True) * (2, 2, 4), ["Au", "Cu"])
    domains = [np.rint(cell.positions[:, k] / 2.04).astype(int) % 2 for k in range(3)]
    for structure in domains:
        found = order_parameter([*domains, 1 - domains[0]], cell, structure)
        assert len(found.variants) == 6
        np.testing.assert_allclose(found.value, 1, rtol=1e-12)


def test_nothing_is_more_ordered_than_the_structure():
    """At most 1, and never below the mean over variants, which is near zero."""
    x = np.random.default_rng(0).integers(0, 2, size=(500, 32))
    x[:, :16] *= np.random.default_rng(1).integers(0, 2, size=(500, 1))
    for make in (layers, corners):
        value = long_range_order(x, FCC, make(FCC))
        assert (value < 1).all() and (value > -1e-12).all()


def test_equivalent_configurations_have_the_same_order():
    """A symmetry operation changes the variant, not the order."""
    x = np.random.default_rng(2).integers(0, 2, size=(50, 32))
    structure = layers(FCC)
    value = long_range_order(x, FCC, structure)
    permutations = site_permutations(FCC)
    for k in (1, len(permutations) // 2, len(permutations) - 1):
        np.testing.assert_allclose(long_range_order(x[:, permutations[k]], FCC, structure), value)
        image = structure[permutations[k]]
        np.testing.assert_allclose(long_range_order(x, FCC, image), value)


def test_checkerboard_order_is_the_staggered_magnetisation():
    """|sum_i (-1)^i s_i| / N for two species on the square lattice."""
    cell = Lattice.square(4)
    states = SemiGrandCanonical(ising_energy(cell, -0.02)).enumerate(cell)
    value = long_range_order(states.occupations, cell, BOARD)
    spins = 2 * states.occupations.numpy() - 1
    np.testing.assert_allclose(value, np.abs(spins @ (2 * BOARD - 1)) / 16, atol=1e-12)
    dos = DensityOfStates.exact(states)
    at = Conditions([100.0, 1e5], [[0.0, 0.0]] * 2)
    cold, hot = dos.mean(value, at).value
    assert cold > 0.999
    # without interactions the mean of |m| over 16 spins: 16 binom(16, 8) / 2^16 / 16
    assert hot == pytest.approx(12870 / 65536, rel=0.02)


def test_order_of_samples_is_that_of_all_states():
    """Averages of the order parameter are read like any observable's, with their errors."""
    cell = Lattice.square(4)
    states = SemiGrandCanonical(ising_energy(cell, -0.02)).enumerate(cell)
    at = Conditions.grid([400.0, 600.0, 900.0], [[0.0, x] for x in (-0.05, 0.0, 0.02)])
    exact = DensityOfStates.exact(states).mean(
        long_range_order(states.occupations, cell, BOARD), at
    )
    rng, z, q = np.random.default_rng(3), [], mixture(states, at)
    for _ in range(22):
        dos = drawn(states, q, 2000, rng)
        z.append(dos.mean(long_range_order(dos.occupations, cell, BOARD), at).z(exact.value))
    assert_standard(z)


def test_three_species_and_partial_order():
    """Swapping two atoms of the perfect structure lowers the order by their share."""
    cell = Lattice.square(3, species=("Cu", "Au", "Ag"))
    stripes = np.indices((3, 3))[0].ravel()
    found = order_parameter([stripes], cell, stripes)
    assert found.value[0] == pytest.approx(1) and len(found.variants) == 12
    swapped = stripes.copy()
    swapped[[0, 3]] = swapped[[3, 0]]
    # 7 of 9 sites agree; agreement is 1, chance 1/3: (7/9 - 1/3) / (1 - 1/3)
    assert long_range_order([swapped], cell, stripes)[0] == pytest.approx(2 / 3)


def test_sublattices_are_ordered_on_their_own():
    """Each sublattice is compared with its own composition."""
    cell, _, _ = two_sublattices()
    structure = cell.allowed.argmax(1)
    first = np.flatnonzero(cell.sublattices == cell.sublattices[0])
    other = np.flatnonzero(cell.allowed[first[0]])[1]
    structure[first[:2]] = other
    found = order_parameter([structure], cell, structure)
    assert found.value[0] == pytest.approx(1)
    second = np.flatnonzero(cell.sublattices != cell.sublattices[0])
    changed = structure.copy()
    changed[second] = np.flatnonzero(cell.allowed[second[0]])[1]
    # the second sublattice is uniform in the structure: what it carries is no order
    assert long_range_order([changed], cell, structure)[0] == pytest.approx(1)


def test_bad_structures_are_refused():
    """Other lengths, structures without order, unknown sites, species that cannot be there."""
    cell = Lattice.square(4)
    x = BOARD[None]
    with pytest.raises(ValueError, match="the structure must have 16 sites"):
        long_range_order(x, cell, BOARD[:9])
    with pytest.raises(ValueError, match="must have 16 sites"):
        long_range_order(BOARD, cell, BOARD)
    with pytest.raises(ValueError, match="no order"):
        long_range_order(x, cell, np.zeros(16, dtype=int))
    with pytest.raises(ValueError, match="-1 is unknown"):
        long_range_order(x - 1, cell, BOARD)
    with pytest.raises(ValueError, match="site 0 of row 0 carries 2"):
        long_range_order(x, cell, BOARD + 2)
    with pytest.raises(ValueError, match="must be integers"):
        long_range_order(x * 0.5, cell, BOARD)
    with pytest.raises(ValueError, match="no configurations"):
        long_range_order(torch.zeros((0, 16), dtype=torch.int8), cell, BOARD)
    split, _, _ = two_sublattices()
    with pytest.raises(ValueError, match="may carry only"):
        long_range_order(np.zeros((1, 8), dtype=int), split, split.allowed.argmax(1))
