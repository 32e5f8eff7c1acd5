"""Laws of symmetry-adapted cluster functions."""

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.data import chemical_symbols
from toys import SYSTEMS, random_expansion

from clease_nn.energies.check import check_energy_model
from clease_nn.energies.cluster_basis import ClusterBasis, site_functions
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import Lattice
from clease_nn.montecarlo.chains import random_occupations
from clease_nn.symmetry import canonical_occupations


def states(lattice):
    """All configurations of a small lattice."""
    zero = SemiGrandCanonical(lambda lattice, x: torch.zeros(len(x)))
    return zero.enumerate(lattice).occupations.numpy()


def small_cells():
    """Cells of at most 8 sites whose clusters of all sizes can be listed."""
    rocksalt = bulk("NaCl", "rocksalt", a=4.2) * (2, 1, 1)
    first = np.array(rocksalt.symbols) == "Na"
    allowed = np.where(first[:, None], [[0, 1, 1, 1]], [[1, 0, 0, 1]]).astype(bool)
    return {
        "fcc": Lattice.uniform(bulk("Au", a=3.8, cubic=True), ["Au", "Cu"]),
        "skew": Lattice.uniform(bulk("Au", a=3.8) * (3, 2, 1), ["Au", "Cu"]),
        "ternary": Lattice.square(2, species=("Au", "Cu", "Ag")),
        "sublattices": Lattice(rocksalt, np.arange(4), ("Ag", "Au", "Cu", "X"), allowed),
        "one site": Lattice.uniform(bulk("Au", a=3.8), ["Au", "Cu", "Ag"]),
    }


@pytest.mark.parametrize("name", SYSTEMS)
def test_features_are_invariant_under_symmetry(name):
    """Every symmetry of the supercell leaves every feature as it is."""
    lattice, _, _ = SYSTEMS[name]()
    basis = ClusterBasis(lattice)
    x = random_occupations(lattice, 5, np.random.default_rng(0))
    for permutation in basis.permutations:
        assert np.allclose(basis.features(x[:, permutation]), basis.features(x), atol=1e-12)


@pytest.mark.parametrize("name", SYSTEMS)
def test_energy_is_linear_in_the_coefficients(name):
    """The expansion's energy is features times coefficients, and keeps an energy's contract."""
    lattice, _, _ = SYSTEMS[name]()
    basis = ClusterBasis(lattice)
    rng = np.random.default_rng(1)
    c = rng.normal(size=basis.n_features)
    x = random_occupations(lattice, 50, rng)
    energy = basis.energy(c)
    got = energy(lattice, torch.from_numpy(x)).numpy()
    assert np.allclose(got, basis.features(x) @ c, atol=1e-11)
    check_energy_model(energy, lattice)


@pytest.mark.parametrize("name", small_cells())
def test_all_clusters_span_every_symmetric_energy(name):
    """With all sizes and no cutoff there are as many features as distinct configurations."""
    lattice = small_cells()[name]
    basis = ClusterBasis(lattice, {size: np.inf for size in range(2, lattice.n_sites + 1)})
    x = states(lattice)
    distinct, which = np.unique(
        canonical_occupations(x, basis.permutations), axis=0, return_inverse=True
    )
    assert basis.n_features == len(distinct)
    energy = np.random.default_rng(2).normal(size=len(distinct))[which.ravel()]
    c = np.linalg.lstsq(basis.features(x), energy, rcond=None)[0]
    found = basis.energy(c)(lattice, torch.from_numpy(x)).numpy()
    assert np.allclose(found, energy, atol=1e-10)


@pytest.mark.parametrize("name", small_cells())
def test_features_are_orthogonal_over_all_configurations(name):
    """<Phi_o Phi_p> is zero for different orbits and one over the number of clusters for equal."""
    lattice = small_cells()[name]
    basis = ClusterBasis(lattice, {2: np.inf, 3: np.inf})
    f = basis.features(states(lattice))
    assert np.allclose(f.T @ f / len(f), np.diag(1 / basis.multiplicities), atol=1e-12)


def test_a_pair_expansion_of_the_lattice_is_reproduced():
    """A translation-invariant energy within the cutoffs lies in the span where it is symmetric."""
    lattice = Lattice.uniform(bulk("Au", a=3.8, cubic=True) * (2, 1, 1), ["Au", "Cu"])
    basis = ClusterBasis(lattice, {2: 6.0, 3: 6.0})
    x = states(lattice)
    e = random_expansion(lattice, seed=3)(lattice, torch.from_numpy(x)).numpy()
    f = basis.features(x)
    c = np.linalg.lstsq(f, e, rcond=None)[0]
    assert np.allclose(f @ c, e, atol=1e-10)


def test_multiplicities_of_fcc():
    """64 fcc sites have 6, 3, 12 pairs a site in the first shells and 8 nearest triangles."""
    lattice = Lattice.uniform(bulk("Au", a=4.0) * (4, 4, 4), ["Au", "Cu"])
    basis = ClusterBasis(lattice, {2: 5.0, 3: 2.9, 4: 2.9})
    assert basis.multiplicities.tolist() == [1, 64, 384, 192, 768, 512, 128]
    assert basis.sizes.tolist() == [0, 1, 2, 2, 2, 3, 4]
    assert np.allclose(basis.diameters[2:5], [np.sqrt(8), 4.0, np.sqrt(24)])


def test_images_of_one_set_are_one_cluster():
    """A cell smaller than the interaction has every set of its sites once."""
    lattice = Lattice.uniform(bulk("Au", a=3.8, cubic=True), ["Au", "Cu"])
    basis = ClusterBasis(lattice, {2: 20.0})
    assert basis.multiplicities.tolist() == [1, 4, 6]


def test_sites_without_choice_have_no_functions():
    """A site with one allowed species is in no cluster."""
    lattice = Lattice(
        bulk("NaCl", "rocksalt", a=4.2), [0, 1], ("Au", "Cu"), [[True, True], [True, False]]
    )
    assert site_functions(lattice)[1] == [[0], []]
    assert ClusterBasis(lattice).n_features == 2


@pytest.mark.parametrize("m", [2, 3, 4, 6])
def test_site_functions_are_orthonormal(m):
    """The functions of m species have mean 0 and unit covariance under the uniform distribution."""
    f, _ = site_functions(Lattice.square(2, species=chemical_symbols[1 : m + 1]))
    assert np.allclose(f.mean(1), 0, atol=1e-14)
    assert np.allclose(f @ f.T / m, np.eye(m - 1), atol=1e-14)


@pytest.mark.parametrize("cutoffs", [{1: 3.0}, {2: 0.0}, {2: -1.0}, {2: np.nan}, {2.5: 3.0}])
def test_bad_cutoffs_are_named(cutoffs):
    """Sizes below two and cutoffs that are no positive distances are refused."""
    with pytest.raises(ValueError, match="cutoffs must map sizes"):
        ClusterBasis(Lattice.square(2), cutoffs)


def test_bad_occupations_are_named():
    """Unknown sites, species not allowed and wrong shapes are refused, by row and site."""
    basis = ClusterBasis(Lattice.square(2))
    with pytest.raises(ValueError, match="site 1 of configuration 0 carries -1"):
        basis.features([[0, -1, 0, 1]])
    with pytest.raises(ValueError, match=r"\(batch, 4\)"):
        basis.features([0, 1, 0, 1])
    with pytest.raises(ValueError, match="coefficients are needed"):
        basis.energy([1.0])


def test_too_many_clusters_are_refused():
    """A basis that would fill the memory says which cutoff to shorten."""
    lattice = Lattice.uniform(bulk("Au", a=3.8) * (8, 8, 8), ["Au", "Cu"])
    with pytest.raises(ValueError, match="shorter"):
        ClusterBasis(lattice, {5: 9.0}, permutations=np.arange(512)[None])


@pytest.mark.parametrize(
    ("size", "shells"), [((1, 1, 1), 0), ((2, 1, 1), 1), ((2, 2, 4), 3), ((4, 4, 4), 2)]
)
def test_default_cutoffs_grow_from_the_shells_of_the_cell(size, shells):
    """Quadruplets reach two shells, three where they are few, never more than the cell has."""
    a = 4.0
    lattice = Lattice.uniform(bulk("Au", a=a) * size, ["Au", "Cu"])
    cutoffs = ClusterBasis(lattice).cutoffs
    if shells == 0:
        assert cutoffs == {}
    else:
        assert cutoffs[4] == pytest.approx(a * np.sqrt(shells / 2), abs=1e-3)
