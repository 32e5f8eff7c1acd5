"""Symmetry permutations of sites."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from toys import SYSTEMS

from clease_nn.energies import CalculatorEnergy
from clease_nn.lattice import Lattice
from clease_nn.montecarlo.chains import random_occupations
from clease_nn.symmetry import canonical_occupations, site_permutations, structure_variants


def slab(**kwargs):
    """Two layers of 2 x 2 fcc (111) sites, open along z."""
    atoms = fcc111("Cu", (2, 2, 2), a=3.8, vacuum=4.0, **kwargs)
    return Lattice.uniform(atoms, ["Au", "Cu"])


def cut_cube():
    """A cube of fcc that is periodic in x and y alone: z is not like x."""
    atoms = bulk("Cu", a=3.8, cubic=True)
    atoms.pbc = [True, True, False]
    return Lattice.uniform(atoms, ["Au", "Cu"])


def cluster():
    """An octahedron in empty space, without a cell."""
    corners = 2.6 * np.concatenate([np.eye(3), -np.eye(3)])
    return Lattice.uniform(Atoms("Cu6", corners / np.sqrt(2)), ["Au", "Cu"])


def alloy():
    """fcc with active sites on half of the atoms, background atoms and vacancies allowed."""
    atoms = bulk("Cu", a=3.8, cubic=True) * (1, 1, 2)
    active = np.flatnonzero(atoms.positions[:, 2] < 3.7)
    allowed = np.ones((len(active), 3), dtype=bool)
    allowed[:2, 2] = False
    return Lattice(atoms, active, ["Au", "Cu", "X"], allowed)


LATTICES = {
    "primitive": lambda: Lattice.uniform(bulk("Cu", a=3.8) * (2, 2, 2), ["Au", "Cu"]),
    "tetragonal": lambda: Lattice.uniform(bulk("Cu", a=3.8) * (1, 2, 3), ["Au", "Cu"]),
    "slab": slab,
    "cut_cube": cut_cube,
    "cluster": cluster,
    "alloy": alloy,
}


@pytest.mark.parametrize("name", LATTICES)
def test_permutations_are_a_group(name):
    """Products and inverses of permutations are permutations of the set, the identity first."""
    p = site_permutations(LATTICES[name]())
    n = p.shape[1]
    assert (p[0] == np.arange(n)).all()
    known = {row.tobytes() for row in p}
    assert len(known) == len(p)
    assert all(np.argsort(row).tobytes() in known for row in p)
    rng = np.random.default_rng(0)
    for i, j in rng.integers(len(p), size=(200, 2)):
        assert p[i][p[j]].tobytes() in known


@pytest.mark.parametrize("name", LATTICES)
def test_lattice_translations_are_contained(name):
    """Every lattice translation is a symmetry."""
    lattice = LATTICES[name]()
    known = {row.tobytes() for row in site_permutations(lattice)}
    assert all(t.astype(np.int64).tobytes() in known for t in lattice.translations)


@pytest.mark.parametrize("name", LATTICES)
def test_energies_are_invariant(name):
    """EMT energies of a configuration and of its images agree to 1e-9 eV."""
    lattice = LATTICES[name]()
    p = site_permutations(lattice)
    rng = np.random.default_rng(1)
    energy = CalculatorEnergy(EMT(), symmetry=False)
    for x in random_occupations(lattice, 2, rng):
        images = x[p[rng.choice(len(p), size=min(len(p), 12), replace=False)]]
        e = energy(lattice, torch.from_numpy(np.concatenate([x[None], images])))
        assert float(e.max() - e.min()) < 1e-9


@pytest.mark.parametrize(
    ("name", "order"), [("primitive", 192), ("cluster", 48), ("cut_cube", 8), ("slab", 48)]
)
def test_orders_of_known_groups(name, order):
    """The orders known from group theory.

    Fm-3m and 8 translations, where inversion moves none of 2 x 2 x 2 sites: 48 * 8 / 2; Oh of an
    octahedron: 48; two pairs of sites in two layers: all 8 that keep the layers; p-3m1 and 4
    translations: 12 * 4.
    """
    assert len(site_permutations(LATTICES[name]())) == order


def test_images_keep_sublattices_and_allowed_species():
    """No permutation moves a site to one with other species or of another sublattice."""
    for make in [alloy, lambda: SYSTEMS["two_sublattices"]()[0]]:
        lattice = make()
        p = site_permutations(lattice)
        assert len(p) > 1
        assert (lattice.allowed[p] == lattice.allowed).all()
        assert (lattice.sublattices[p] == lattice.sublattices).all()


def test_magnetic_moments_and_held_atoms_lower_the_symmetry():
    """Antiferromagnetic layers and a fixed bottom layer each leave only part of the group."""
    lattice = slab()
    full = {row.tobytes() for row in site_permutations(lattice)}
    for change in ("moments", "held"):
        atoms = lattice.template.copy()
        if change == "moments":
            atoms.set_initial_magnetic_moments([1.0] * 4 + [2.0] * 4)
        else:
            atoms.set_constraint(FixAtoms(indices=range(4)))
        part = site_permutations(Lattice.uniform(atoms, ["Au", "Cu"]))
        assert len(part) == len(full) / 2
        assert {row.tobytes() for row in part} < full
        assert (part[:, :4] < 4).all()


def test_canonical_form_is_the_smallest_image():
    """It equals the brute-force minimum, is one for all images, and is idempotent."""
    lattice = LATTICES["tetragonal"]()
    p = site_permutations(lattice)
    rng = np.random.default_rng(2)
    x = random_occupations(lattice, 50, rng)
    canonical = canonical_occupations(x, p)
    brute = [min(map(tuple, row[p])) for row in x]
    assert canonical.tolist() == [list(row) for row in brute]
    image = np.take_along_axis(x, p[rng.integers(len(p), size=len(x))], 1)
    assert (canonical_occupations(image, p) == canonical).all()
    assert (canonical_occupations(canonical, p) == canonical).all()


def test_atoms_on_top_of_one_another_are_refused():
    """spglib's silence becomes an error that names the likely cause."""
    atoms = Atoms("Cu2", [[0, 0, 0], [0, 0, 1e-5]], cell=[3, 3, 3], pbc=True)
    with pytest.raises(ValueError, match="on top of one another"):
        site_permutations(Lattice.uniform(atoms, ["Au", "Cu"]))
    with pytest.raises(ValueError, match="on top of one another"):
        structure_variants(Lattice.uniform(atoms, ["Au", "Cu"]), [0, 1])


# ------------------------------------------------------------------ variants of structures
@pytest.mark.parametrize("name", LATTICES)
def test_variants_contain_all_images_and_are_closed(name):
    """Images under the group of the supercell are among them; each variant has the same ones."""
    lattice = LATTICES[name]()
    permutations = site_permutations(lattice)
    for x in random_occupations(lattice, 3, np.random.default_rng(4)):
        variants = structure_variants(lattice, x)
        assert (variants[0] == x).all()
        known = {row.tobytes() for row in variants}
        assert len(known) == len(variants)
        assert {row.tobytes() for row in x[permutations].astype(np.int8)} <= known
        other = structure_variants(lattice, variants[-1])
        assert {row.tobytes() for row in other} == known


def test_a_cubic_supercell_hides_no_variant():
    """Where the supercell is as symmetric as the crystal, images under its group are all."""
    lattice = LATTICES["primitive"]()
    for x in random_occupations(lattice, 5, np.random.default_rng(5)):
        images = np.unique(x[site_permutations(lattice)], axis=0)
        assert len(structure_variants(lattice, x)) == len(images)


def test_variants_have_one_energy():
    """EMT does not tell the orientations apart, in a supercell that does."""
    lattice = Lattice.uniform(bulk("Cu", a=3.8, cubic=True) * (1, 1, 2), ["Au", "Cu"])
    stripes = np.rint(lattice.positions[:, 2] / 1.9).astype(np.int8) % 2
    variants = structure_variants(lattice, stripes)
    assert len(variants) == 6 > len(np.unique(stripes[site_permutations(lattice)], axis=0))
    e = CalculatorEnergy(EMT(), symmetry=False)(lattice, torch.from_numpy(variants))
    assert float(e.max() - e.min()) < 1e-9


@pytest.mark.parametrize("turned", [False, True])
def test_a_slab_stays_a_slab(turned):
    """No variant exchanges layers with rows, however the cell lies in space."""
    atoms = cut_cube().template * (2, 2, 1)
    if turned:
        atoms.rotate(33.0, (1, 2, 3), rotate_cell=True)
        atoms.cell[2] += 0.4 * atoms.cell[0]  # the open direction need not be at right angles
    lattice = Lattice.uniform(atoms, ["Au", "Cu"])
    flat = cut_cube().template * (2, 2, 1)
    layers = np.rint(flat.positions[:, 2] / 1.9).astype(np.int8) % 2
    rows = np.rint(flat.positions[:, 0] / 1.9).astype(np.int8) % 2
    assert len(structure_variants(lattice, layers)) == 2
    assert len(structure_variants(lattice, rows)) == 4


def test_structures_of_other_lengths_are_refused():
    """The message says how many sites there are."""
    with pytest.raises(ValueError, match="8 occupations"):
        structure_variants(LATTICES["primitive"](), np.zeros(9, dtype=int))
