"""Laws of lattice, conditions, configurations and ensemble."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111
from toys import SYSTEMS, binary

from clease_nn.conditions import ConditionRange, Conditions
from clease_nn.configurations import Configurations
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import Lattice


# ------------------------------------------------------------------ lattice
@pytest.mark.parametrize(
    "atoms, expected",
    [
        (bulk("Au", a=3.8) * (2, 2, 4), 16),
        (bulk("Au", a=3.8, cubic=True) * (2, 2, 2), 32),
        (bulk("NaCl", "rocksalt", a=4.2) * (3, 2, 1), 6),
        (fcc111("Au", (3, 3, 2), vacuum=5.0), 9),
        (Atoms("Au2", [[0, 0, 0], [0, 0, 2.0]], cell=[4, 4, 4], pbc=True), 2),
        (Atoms("Au3", [[0, 0, 0], [1, 1, 0], [0, 1.5, 0.3]], cell=[4, 4, 4], pbc=False), 1),
    ],
)
def test_translations_form_a_group_that_keeps_neighbours(atoms, expected):
    """Translations are permutations, closed under composition, and commute with pair shells."""
    lattice = Lattice(
        atoms, np.arange(len(atoms)), ["Au", "Cu"], np.ones((len(atoms), 2)),
        sublattices=np.unique(atoms.numbers, return_inverse=True)[1],
    )  # fmt: skip
    shifts = lattice.translations
    assert len(shifts) == expected
    assert (shifts[0] == np.arange(len(atoms))).all()
    known = {tuple(s) for s in shifts}
    assert len(known) == expected
    assert all(tuple(a[b]) in known for a in shifts for b in shifts)
    for matrix in lattice.relation_matrices(lattice.pair_shells(2)):
        for s in shifts:
            assert np.array_equal(matrix[np.ix_(s, s)], matrix)


def test_translations_of_a_supercell_that_is_no_repetition():
    """A skew supercell has as many translations as it has primitive cells."""
    from ase.build import make_supercell

    atoms = make_supercell(bulk("Au", a=3.8), [[2, 1, 0], [0, 2, 1], [1, 0, 3]])
    assert len(Lattice.uniform(atoms, ["Au", "Cu"]).translations) == len(atoms)


def test_pair_shells_mean_the_same_in_every_supercell():
    """Keys and coordination numbers do not depend on the cell; tiny cells count images."""
    cells = [(4, 4, 4), (2, 2, 4), (1, 1, 1)]
    lattices = [Lattice.uniform(bulk("Au", a=3.8) * c, ["Au", "Cu"]) for c in cells]
    keys = lattices[0].pair_shells(4)
    for lattice in lattices:
        assert lattice.pair_shells(4) == keys
        degree = lattice.relation_matrices(keys).sum(2)
        assert (degree == np.array([[12], [6], [24], [12]])).all()


def test_atoms_and_occupations_are_inverse():
    """Background atoms and vacancies survive the round trip."""
    atoms = bulk("NaCl", "rocksalt", a=4.2) * (2, 1, 1)
    sites = [i for i, s in enumerate(atoms.symbols) if s == "Na"]
    lattice = Lattice(atoms, sites, ["Au", "X"], np.ones((2, 2)))
    out = lattice.atoms([1, 0])
    assert out.get_chemical_symbols() == ["X", "Cl", "Au", "Cl"]
    assert lattice.occupations(out).tolist() == [1, 0]


def test_wrong_atoms_are_named():
    """Errors name the atom, what it is and what it may be."""
    lattice = Lattice.uniform(bulk("Au", a=3.8) * (2, 1, 1), ["Au", "Cu"])
    wrong = bulk("Au", a=3.8) * (2, 1, 1)
    wrong.symbols[1] = "Ag"
    with pytest.raises(ValueError, match=r"atom 1 is Ag.*Au.*Cu"):
        lattice.occupations(wrong)
    with pytest.raises(ValueError, match="3 sites"):
        lattice.occupations(bulk("Au", a=3.8) * (3, 1, 1))
    with pytest.raises(TypeError, match=r"ase\.Atoms"):
        Lattice("Au", [0], ["Au", "Cu"], [[1, 1]])
    with pytest.raises(ValueError, match="distinct"):
        Lattice(wrong, [0, 0], ["Au", "Cu"], np.ones((2, 2)))
    with pytest.raises(ValueError, match="at least one allowed"):
        Lattice(wrong, [0, 1], ["Au", "Cu"], [[1, 1], [0, 0]])


# ------------------------------------------------------------------ conditions
@pytest.mark.parametrize("temperature", [0.0, -1.0, np.nan, np.inf])
def test_temperatures_must_be_positive(temperature):
    """T <= 0, NaN and infinity are refused and named."""
    with pytest.raises(ValueError, match="positive"):
        Conditions([temperature], [[0.0, 0.0]])


@pytest.mark.parametrize(
    "temperature, low, high, match",
    [
        ((900, 300), [-0.1], [0.1], "low < high"),
        ((300, 300), [-0.1], [0.1], "low < high"),
        ((0, 300), [-0.1], [0.1], "0 < low"),
        ((300, 900), [0.1], [-0.1], "inverted"),
        ((300, 900), [0.1], [0.1], "empty"),
        ((300, 900), [np.nan], [0.1], "finite"),
        ((300,), [-0.1], [0.1], r"\(low, high\)"),
    ],
)
def test_bad_ranges_are_refused(temperature, low, high, match):
    """Empty, inverted and non-finite ranges are refused with the reason."""
    with pytest.raises(ValueError, match=match):
        ConditionRange(temperature, low, high, [[1.0, 0.0]])


def test_dependent_axes_are_refused():
    """Chemical potentials of all elements fix one direction twice."""
    with pytest.raises(ValueError, match="leave one out"):
        ConditionRange((300, 900), [0, 0], [0.1, 0.1], [[1, 0], [0, 1]])
    with pytest.raises(TypeError, match="two numbers"):
        ConditionRange("hot", [0], [0.1], [[1, 0]])


def test_range_knows_its_own_points_in_any_gauge():
    """Every point of the box is contained, whatever constant is added to mu; outside is not."""
    box = ConditionRange((300, 900), [-0.1, 0.0], [0.1, 0.2], [[1, 0, -1], [0, 2, 1]])
    inside = box.at(np.random.default_rng(0).random((50, 3)))
    shifted = Conditions(inside.temperature, inside.mu + 7.3)
    assert box.contains(inside).all() and box.contains(shifted).all()
    assert not box.contains(Conditions(inside.temperature * 4, inside.mu)).any()
    assert not box.contains(Conditions(inside.temperature, inside.mu * 10 + 1 * box.axes[0])).all()
    again = ConditionRange.from_dict(box.to_dict())
    assert again.contains(inside).all()


# ------------------------------------------------------------------ configurations
def test_cat_and_index_keep_all_columns():
    """Splitting and joining a scored batch changes nothing."""
    lattice, ensemble, box = binary()
    states = ensemble.enumerate(lattice).occupations[:10]
    c = ensemble.score(Configurations(lattice, box.at(np.full((10, 2), 0.5)), states))
    again = Configurations.cat([c[:3], c[3:7], c[torch.arange(7, 10)]])
    assert torch.equal(again.occupations, c.occupations)
    assert torch.equal(again.log_target, c.log_target)
    with pytest.raises(ValueError, match="in some parts only"):
        Configurations.cat([c[:3], Configurations(lattice, box.grid(1, 1), states[:1])])


# ------------------------------------------------------------------ ensemble
@pytest.mark.parametrize("name", sorted(SYSTEMS))
def test_fields_are_exact_conditionals(name):
    """With all other sites known, softmax of the fields is the exact conditional."""
    lattice, ensemble, box = SYSTEMS[name]()
    exact = ensemble.enumerate(lattice)
    condition = box.at([[0.2] * (1 + box.n_axes)])
    rng = np.random.default_rng(0)
    rows = torch.as_tensor(rng.choice(len(exact.occupations), 20))
    c = Configurations(lattice, condition.repeat(20), exact.occupations[rows])
    fields = ensemble.fields(c)
    for k in range(20):
        site = int(rng.integers(lattice.n_sites))
        flips = c.occupations[k].repeat(lattice.n_species, 1)
        flips[:, site] = torch.arange(lattice.n_species, dtype=torch.int8)
        ok = torch.tensor(lattice.allowed[site])
        variants = Configurations(lattice, condition.repeat(int(ok.sum())), flips[ok])
        expected = torch.softmax(ensemble.score(variants).log_target, 0)
        for logits in fields[k, site].view(2, -1):
            got = torch.softmax(logits[ok].double(), 0)
            assert torch.allclose(got, expected, atol=1e-5)


def test_constant_in_mu_shifts_log_z_by_number_of_sites():
    """Z(mu + c) = Z(mu) exp(N c / kT): the absolute offset is kept."""
    lattice, ensemble, box = binary()
    a = box.grid(2, 2)
    b = Conditions(a.temperature, a.mu + 0.05)
    exact = ensemble.enumerate(lattice)
    shift = 0.05 * lattice.n_sites / a.kT
    assert torch.allclose(exact.log_z(b), exact.log_z(a) + shift)


def test_energies_that_are_not_finite_are_named():
    """NaN energies stop the work and name the first configuration."""

    def broken(lattice, occupations):
        energy = torch.zeros(len(occupations), dtype=torch.float64)
        energy[2] = torch.nan
        return energy

    lattice, _, box = binary()
    c = Configurations(lattice, box.grid(2, 2), torch.zeros(4, 8))
    with pytest.raises(ValueError, match=r"configuration 2, .* is nan \(1 of 4"):
        SemiGrandCanonical(broken).score(c)
    with pytest.raises(ValueError, match=r"state 2, .* is nan \(1 of 256"):
        SemiGrandCanonical(broken).enumerate(lattice)


def test_too_many_states_to_enumerate():
    """Enumeration states the size and the alternative."""
    lattice = Lattice.square(6)
    with pytest.raises(ValueError, match="ParallelTempering"):
        SemiGrandCanonical(lambda lattice, x: torch.zeros(len(x))).enumerate(lattice)
