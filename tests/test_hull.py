"""Laws of the hull: nothing below it, a Legendre transform, structures and degeneracies."""

from functools import cache

import numpy as np
import pytest
import torch
from ase.build import bulk
from toys import SYSTEMS

from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.energies.ising import ising_energy
from clease_nn.ensemble import Enumeration, SemiGrandCanonical
from clease_nn.errors import NotDeterminedError
from clease_nn.lattice import Lattice
from clease_nn.phases import formation_hull, pure_ends
from clease_nn.thermodynamics import DensityOfStates

SQUARE = Lattice.square(4)
CHECKER = SemiGrandCanonical(ising_energy(SQUARE, -0.05))
FCC = Lattice.uniform(bulk("Au", a=4.0, cubic=True), ["Au", "Cu"])


def toy(name):
    """Enumeration of a toy, with references where there are no pure ends."""
    lattice, ensemble, _ = SYSTEMS[name]()
    references = None if lattice.allowed.all() else dict.fromkeys(lattice.species, 0.0)
    return ensemble.enumerate(lattice), references


TOYS = {name: toy(name) for name in SYSTEMS}


@cache
def toy_hull(name):
    """The hull of all states of a toy."""
    states, references = TOYS[name]
    return formation_hull(states, references=references)


@pytest.mark.parametrize("name", TOYS)
def test_every_state_lies_on_or_above_the_hull(name):
    """Distances are not negative, zero at the vertices, and agree with mixtures of vertices."""
    hull = toy_hull(name)
    by_mixture = [hull.hull_energy(x) for x in hull.composition]
    assert (hull.formation_energy - by_mixture).min() > -1e-9
    np.testing.assert_allclose(hull.distance, hull.formation_energy - by_mixture, atol=1e-9)
    vertices = [tuple(v.counts) for v in hull.vertices]
    rows = [tuple(n) in vertices for n in hull.counts]
    np.testing.assert_allclose(hull.distance[rows], 0.0, atol=1e-10)


@pytest.mark.parametrize("name", TOYS)
def test_grand_potential_is_the_legendre_transform(name):
    """The lowest E - mu.N of all states is reached at a vertex, at every chemical potential."""
    states, _ = TOYS[name]
    hull = toy_hull(name)
    mu = np.random.default_rng(0).normal(scale=0.3, size=(50, states.lattice.n_species))
    counts = np.stack([(states.occupations == a).sum(1) for a in range(mu.shape[1])], 1)
    lowest = (states.energy.numpy() - mu @ counts.T).min(1)
    np.testing.assert_allclose(hull.grand_potential(mu), lowest, atol=1e-10)
    at_vertices = [v.energy - m @ v.counts for v, m in zip(hull.ground_state(mu), mu, strict=True)]
    np.testing.assert_allclose(at_vertices, lowest, atol=1e-6)


@pytest.mark.parametrize("name", TOYS)
def test_ground_states_coexist_at_transitions(name):
    """At a transition the grand potentials of its vertices are equal, and none is lower."""
    hull = toy_hull(name)
    assert hull.transitions
    met = set()
    for t in hull.transitions:
        of_vertices = [hull.vertices[k].energy - t.mu @ hull.vertices[k].counts for k in t.vertices]
        np.testing.assert_allclose(of_vertices, hull.grand_potential(t.mu)[0], atol=1e-9)
        met.update(t.vertices)
    assert met == set(range(len(hull.vertices)))


@pytest.mark.parametrize("name", TOYS)
def test_degeneracies_sum_to_the_states_of_that_energy(name):
    """Orbits of the structures of a vertex are all its states of lowest energy."""
    states, _ = TOYS[name]
    hull = toy_hull(name)
    counts = np.stack(
        [(states.occupations == a).sum(1) for a in range(states.lattice.n_species)], 1
    )
    for v in hull.vertices:
        same = (counts == v.counts).all(1) & (states.energy.numpy() <= v.energy + 1e-6)
        assert v.degeneracy == same.sum()
        for s in v.structures:
            e = states.energy[(states.occupations == torch.as_tensor(s.occupations)).all(1)]
            assert float(e) == pytest.approx(v.energy, abs=1e-6)


def test_more_states_never_raise_the_hull():
    """Rows added to the data lower the hull, or leave it."""
    states, _ = TOYS["ternary"]
    ends = (states.occupations == states.occupations[:, :1]).all(1)
    rng = np.random.default_rng(3)
    kept = ends.numpy().copy()
    before = np.full(20, np.inf)
    compositions = rng.dirichlet(np.ones(3), 20)
    for _ in range(5):
        part = Enumeration(states.lattice, states.occupations[kept], states.energy[kept])
        hull = formation_hull(part)
        now = np.array([hull.hull_energy(x) for x in compositions])
        assert (now <= before + 1e-10).all()
        before = now
        kept[rng.integers(0, len(kept), 60)] = True


def test_a_sum_over_sites_has_no_ground_states_but_the_ends():
    """All energies on one plane: two vertices, one transition, distances of zero."""
    energy = lambda lattice, x: 0.1 * (x == 1).sum(1).to(torch.float64)  # noqa: E731
    states = SemiGrandCanonical(energy).enumerate(SQUARE)
    hull = formation_hull(states)
    assert len(hull.vertices) == 2
    np.testing.assert_allclose(hull.transition_chemical_potentials("Au", "Cu"), [0.1], atol=1e-9)
    np.testing.assert_allclose(hull.distance, 0.0, atol=1e-10)
    three = Lattice.square(3, 2, species=("Au", "Cu", "Ag"))
    hull = formation_hull(SemiGrandCanonical(energy).enumerate(three))
    assert len(hull.vertices) == 3 and len(hull.transitions) == 1
    assert hull.transitions[0].difference("Cu", "Ag") == pytest.approx(0.1)


def test_structures_carry_their_space_groups():
    """L1_2, L1_0 and the ends on four fcc sites; the checkerboard is a smaller square."""
    pairs = SemiGrandCanonical(ising_energy(FCC, -0.02))
    hull = formation_hull(pairs.enumerate(FCC))
    names = {v.structures[0].formula: v.structures[0].space_group() for v in hull.vertices}
    assert names == {
        "Au": "Fm-3m (225)",
        "Au3Cu": "Pm-3m (221)",
        "AuCu": "P4/mmm (123)",
        "AuCu3": "Pm-3m (221)",
        "Cu": "Fm-3m (225)",
    }
    assert [v.degeneracy for v in hull.vertices] == [1, 4, 6, 4, 1]
    assert [len(v.structures[0].primitive()) for v in hull.vertices] == [1, 4, 2, 4, 1]
    checker = formation_hull(CHECKER.enumerate(SQUARE)).vertices[1]
    [structure] = checker.structures
    assert (structure.degeneracy, structure.space_group()) == (2, "P4/mmm (123)")
    assert structure.atoms.get_chemical_formula() == "Au8Cu8"


def test_domains_of_one_structure_are_one_where_the_supercell_is_not_symmetric():
    """CuAu along the long axis of 1 x 1 x 2 cubes is the same structure as along the others."""
    lattice = Lattice.uniform(bulk("Au", a=4.0, cubic=True) * (1, 1, 2), ["Au", "Cu"])
    hull = formation_hull(SemiGrandCanonical(ising_energy(lattice, -0.02)).enumerate(lattice))
    [ordered] = [v for v in hull.vertices if v.composition[0] == 0.5]
    by_group = {s.space_group(): s.degeneracy for s in ordered.structures}
    assert len(by_group) == len(ordered.structures)
    assert by_group["P4/mmm (123)"] == 6


def test_all_kinds_of_data_make_the_same_hull():
    """Enumeration, density of states, configurations and pieces of them."""
    states = CHECKER.enumerate(SQUARE)
    at = Conditions([300.0], [[0.0, 0.0]])
    c = Configurations(
        SQUARE, at.repeat(len(states.energy)), states.occupations, energy=states.energy
    )
    expected = str(formation_hull(states))
    for data in (DensityOfStates.exact(states), c, [c[:30000], c[30000:]], [states, c]):
        assert str(formation_hull(data)) == expected


def test_costs_add_up():
    """The hull knows what its data have cost."""
    states = CHECKER.enumerate(SQUARE)
    ends = pure_ends(CHECKER, SQUARE)
    hull = formation_hull([DensityOfStates.exact(states), ends])
    assert hull.cost.energy_evaluations == 2**16 + 2


def test_given_references_shift_formation_energies_and_enter_the_hull():
    """A reference far below all states makes every other one unstable."""
    states = CHECKER.enumerate(SQUARE)
    inner = (states.occupations != states.occupations[:, :1]).any(1)
    part = Enumeration(SQUARE, states.occupations[inner], states.energy[inner])
    whole = formation_hull(states)
    same = formation_hull(part, references={"Cu": -0.1 * -1, "Au": 0.1})
    np.testing.assert_allclose(same.formation_energy, whole.formation_energy, atol=1e-10)
    low = formation_hull(part, references={"Cu": -5.0, "Au": 0.1})
    assert [v.structures[0].formula for v in low.vertices] == ["Cu", "Au"]
    assert low.distance.max() > 2


def test_rows_and_table_show_the_same():
    """One row a composition; vertices carry structures and space group."""
    hull = formation_hull(CHECKER.enumerate(SQUARE))
    rows = hull.to_rows()
    assert len(rows) == 17 and sum(r["vertex"] for r in rows) == 3
    [checker] = [r for r in rows if r["vertex"] and r["x_Au"] == 0.5]
    assert checker["degeneracy"] == 2 and checker["space_group"] == "P4/mmm (123)"
    assert f"{1e3 * checker['formation_energy']:.3f}" in str(hull)


def test_missing_ends_are_named():
    """A pure end that was never sampled is no guess."""
    states = CHECKER.enumerate(SQUARE)
    part = Enumeration(SQUARE, states.occupations[:-1], states.energy[:-1])
    with pytest.raises(NotDeterminedError, match="pure Au was never sampled"):
        formation_hull(part)
    one = Enumeration(SQUARE, states.occupations[5:6], states.energy[5:6])
    with pytest.raises(NotDeterminedError, match="pure Cu was never sampled"):
        formation_hull(one)
    two, _ = TOYS["two_sublattices"]
    with pytest.raises(NotDeterminedError, match="may not fill all active sites"):
        formation_hull(two)


def test_one_composition_has_one_vertex_and_no_transition():
    """Only one pure end, with the other species' reference unused."""
    lattice = Lattice.square(2)
    states = SemiGrandCanonical(ising_energy(lattice)).enumerate(lattice)
    two = TOYS["two_sublattices"][0]
    rows = torch.tensor([0, 0])
    part = Enumeration(two.lattice, two.occupations[rows], two.energy[rows])
    hull = formation_hull(part, references=dict.fromkeys(two.lattice.species, 0.0))
    assert len(hull.vertices) == 1 and not hull.transitions
    assert hull.distance.tolist() == [0.0]
    assert str(hull)
    with pytest.raises(NotDeterminedError, match="never sampled"):
        formation_hull(Enumeration(lattice, states.occupations[:1], states.energy[:1]))


def test_species_on_different_sublattices_do_not_exchange():
    """The difference of their chemical potentials is not determined, and it says so."""
    hull = toy_hull("two_sublattices")
    hull.transition_chemical_potentials("Au", "Cu")
    with pytest.raises(NotDeterminedError, match="never takes the place"):
        hull.transition_chemical_potentials("Au", "Ag")


def test_bad_data_are_refused():
    """Empty, unscored, unknown, infinite, mixed or foreign data are named."""
    states = CHECKER.enumerate(SQUARE)
    at = Conditions([300.0], [[0.0, 0.0]])
    c = Configurations(SQUARE, at.repeat(5), states.occupations[:5], energy=states.energy[:5])
    with pytest.raises(ValueError, match="got none"):
        formation_hull([])
    with pytest.raises(ValueError, match="got none"):
        formation_hull(c[:0])
    for bad, kind in (([1], "int"), (None, "NoneType"), ("states", "str")):
        with pytest.raises(TypeError, match=f"got {kind}"):
            formation_hull(bad)
    with pytest.raises(ValueError, match="no energy"):
        formation_hull(Configurations(SQUARE, at, states.occupations[:1]))
    with pytest.raises(ValueError, match="unknown sites"):
        formation_hull(
            Configurations(SQUARE, at, -torch.ones((1, 16), dtype=torch.int8), energy=torch.ones(1))
        )
    with pytest.raises(ValueError, match="1 of 2 energies"):
        formation_hull(Enumeration(SQUARE, states.occupations[:2], torch.tensor([0.0, np.nan])))
    with pytest.raises(ValueError, match="different lattices"):
        formation_hull([states, TOYS["binary"][0]])
    with pytest.raises(ValueError, match="none of the species"):
        formation_hull(states, references={"Ag": 0.0})
    with pytest.raises(ValueError, match="must be finite"):
        formation_hull(states, references={"Au": np.nan})
    with pytest.raises(ValueError, match="tolerance"):
        formation_hull(states, tolerance=-1.0)
    with pytest.raises(ValueError, match="no occupations"):
        formation_hull(DensityOfStates(SQUARE, np.zeros(1), np.array([[16.0, 0.0]]), np.zeros(1)))


def test_bad_questions_are_refused():
    """Compositions outside the simplex and unknown species."""
    hull = formation_hull(CHECKER.enumerate(SQUARE))
    for bad in ([0.5, 0.6], [-0.1, 1.1], [1.0], [np.nan, 1.0]):
        with pytest.raises(ValueError):
            hull.hull_energy(bad)
    with pytest.raises(ValueError, match="none of"):
        hull.transition_chemical_potentials("Ag", "Cu")
    with pytest.raises(ValueError, match="chemical potentials"):
        hull.grand_potential([0.0, 0.0, 0.0])
    with pytest.raises(ValueError, match="must be finite"):
        hull.ground_state([np.nan, 0.0])
