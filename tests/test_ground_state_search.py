"""Annealed search finds the ground states of enumeration; its yardstick counts fairly."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from toys import SYSTEMS

from clease_nn.energies.ising import ising_energy
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import Lattice
from clease_nn.phases import (
    ChemicalPotentialLine,
    anneal,
    formation_hull,
    ground_state_hull,
    pure_ends,
    random_search,
)

COOLING = np.geomspace(4000, 50, 20)


def lowest(states, mus):
    """Exact ground-state energies by enumeration."""
    counts = np.stack(
        [(states.occupations == a).sum(1) for a in range(states.lattice.n_species)], 1
    )
    return (states.energy.numpy() - mus @ counts.T).min(1)


@pytest.mark.parametrize("name", SYSTEMS)
def test_annealing_reaches_the_lowest_state(name):
    """At every chemical potential the best of a few replicas is the ground state."""
    lattice, ensemble, box = SYSTEMS[name]()
    mus = np.random.default_rng(1).uniform(-0.1, 0.1, (12, box.n_axes)) @ box.axes
    c = anneal(ensemble, lattice, mus, temperatures=COOLING, sweeps=5, replicas=16, seed=2)
    found = (c.energy - (c.conditions.mu * c.counts()).sum(1)).reshape(12, 16).min(1).values
    np.testing.assert_allclose(found, lowest(ensemble.enumerate(lattice), mus), atol=1e-9)
    again = ensemble.score(c)
    np.testing.assert_allclose(c.energy, again.energy, atol=1e-10)
    np.testing.assert_allclose(c.log_target, again.log_target, atol=1e-8)
    assert (c.conditions.temperature == 50).all() and c.chain is None and c.log_prob is None


def test_any_energy_will_do():
    """A plain callable anneals to the same states as the compiled expansion."""
    lattice, ensemble, box = SYSTEMS["binary"]()
    plain = SemiGrandCanonical(lambda lattice, x: ensemble.energy(lattice, x))
    mus = np.linspace(-0.1, 0.1, 3)[:, None] @ box.axes
    c = anneal(plain, lattice, mus, temperatures=COOLING[::2], sweeps=5, replicas=16)
    found = (c.energy - (c.conditions.mu * c.counts()).sum(1)).reshape(3, 16).min(1).values
    np.testing.assert_allclose(found, lowest(ensemble.enumerate(lattice), mus), atol=1e-9)


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_hull_is_found_without_naming_chemical_potentials(name):
    """Annealing where ground states coexist ends at the hull of enumeration."""
    lattice, ensemble, _ = SYSTEMS[name]()
    states = ensemble.enumerate(lattice)
    references = None if lattice.allowed.all() else dict.fromkeys(lattice.species, 0.0)
    exact = formation_hull(states, references=references)
    hull = ground_state_hull(
        ensemble,
        lattice,
        temperatures=COOLING,
        references=references,
        sweeps=5,
        replicas=6,
    )
    mu = np.random.default_rng(0).normal(scale=0.2, size=(40, lattice.n_species))
    np.testing.assert_allclose(hull.grand_potential(mu), exact.grand_potential(mu), atol=1e-9)
    assert [tuple(v.counts) for v in hull.vertices] == [tuple(v.counts) for v in exact.vertices]
    assert hull.provenance["converged"]
    assert hull.cost.energy_evaluations > 0 and hull.cost.attempts_per_site > 0


def test_costs_are_counted():
    """Attempts are sweeps times chains; energies of random search are those asked for."""
    lattice = Lattice.square(4)
    ensemble = SemiGrandCanonical(ising_energy(lattice, -0.05))
    c = anneal(ensemble, lattice, np.zeros((3, 2)), temperatures=[900, 300], sweeps=7, replicas=2)
    assert c.provenance["attempts_per_site"] == 3 * 2 * 2 * 7
    assert c.provenance["energy_evaluations"] >= 3 * 2 * 2 * 7 * 16
    r = random_search(ensemble, lattice, np.zeros((3, 2)), n_energies=12)
    assert r.provenance["energy_evaluations"] == 12 and len(r) == 3
    assert pure_ends(ensemble, lattice).provenance["energy_evaluations"] == 2


def test_random_search_sees_pure_ends_and_keeps_to_allowed_species():
    """Compositions are spread over the simplex, on every sublattice its own species."""
    lattice = Lattice.square(6)
    ensemble = SemiGrandCanonical(ising_energy(lattice, -0.05))
    r = random_search(ensemble, lattice, [[0.0, 9.0], [9.0, 0.0]], n_energies=4000, seed=1)
    assert r.counts().tolist() == [[0, 36], [36, 0]]
    lattice, ensemble, _ = SYSTEMS["two_sublattices"]()
    mus = np.random.default_rng(2).normal(size=(30, 4))
    r = random_search(ensemble, lattice, mus, n_energies=3000)
    assert lattice.allowed[np.arange(lattice.n_sites), r.occupations.numpy()].all()
    np.testing.assert_allclose(
        r.energy - (r.conditions.mu * r.counts()).sum(1),
        lowest(ensemble.enumerate(lattice), mus),
        atol=1e-9,
    )


def test_the_same_seed_finds_the_same():
    """Searches are reproducible."""
    lattice, ensemble, _ = SYSTEMS["ternary"]()
    for search in (
        lambda: anneal(ensemble, lattice, np.zeros((2, 3)), temperatures=[3000], seed=5),
        lambda: random_search(ensemble, lattice, np.zeros((2, 3)), n_energies=5, seed=5),
    ):
        assert torch.equal(search().occupations, search().occupations)


def test_bad_searches_are_refused():
    """Rising temperatures, wrong chemical potentials, nothing to do."""
    lattice, ensemble, _ = SYSTEMS["binary"]()
    zero = np.zeros((1, 2))
    with pytest.raises(ValueError, match="falling"):
        anneal(ensemble, lattice, zero, temperatures=[100, 200])
    with pytest.raises(ValueError, match="falling"):
        anneal(ensemble, lattice, zero, temperatures=[])
    with pytest.raises(ValueError, match="positive"):
        anneal(ensemble, lattice, zero, temperatures=[100, -5])
    with pytest.raises(ValueError, match=r"shape \(n, 2\)"):
        anneal(ensemble, lattice, np.zeros((1, 3)), temperatures=[100])
    with pytest.raises(ValueError, match="sweeps"):
        anneal(ensemble, lattice, zero, temperatures=[100], sweeps=0)
    with pytest.raises(ValueError, match="replicas"):
        anneal(ensemble, lattice, zero, temperatures=[100], replicas=0)
    with pytest.raises(ValueError, match="occupations"):
        anneal(ensemble, lattice, zero, temperatures=[100], occupations=np.zeros((2, 8)))
    with pytest.raises(ValueError, match="n_energies"):
        random_search(ensemble, lattice, zero, n_energies=0)
    with pytest.raises(ValueError, match="max_rounds"):
        ground_state_hull(ensemble, lattice, temperatures=[100], max_rounds=0)
    two, of_two, _ = SYSTEMS["two_sublattices"]()
    with pytest.raises(ValueError, match="references"):
        ground_state_hull(of_two, two, temperatures=[100])
    with pytest.raises(ValueError, match="not finite"):
        bad = SemiGrandCanonical(lambda lattice, x: torch.full((len(x),), np.nan))
        random_search(bad, lattice, zero, n_energies=3)


# ------------------------------------------------------------------ the literature's expansion
@pytest.fixture(scope="module")
def cuau16():
    """16 sites of the Cu-Au expansion of the literature."""
    folder = os.environ.get("CLEASE_NN_REFERENCE")
    if not folder:
        pytest.skip("CLEASE_NN_REFERENCE does not name the folder of the literature's expansion")
    from clease_nn.hosts.clease.examples import cuau_emt_atoms, cuau_emt_data
    from clease_nn.hosts.clease.extraction import energy, lattice

    eci = json.loads((Path(folder) / "cuau_eci.json").read_text())
    atoms = cuau_emt_atoms((2, 2, 4), {**cuau_emt_data(), "eci": eci})
    return lattice(atoms), SemiGrandCanonical(energy(atoms))


PUBLISHED = [-0.14200, -0.01339, 0.06439, 0.06969]  # mu_Cu - mu_Au, eV, enumerated


def test_transitions_of_copper_gold_by_enumeration(cuau16):
    """Four transitions between gold, L1_2, L1_0, L1_2 and copper."""
    lattice, ensemble = cuau16
    hull = formation_hull(ensemble.enumerate(lattice))
    np.testing.assert_allclose(
        hull.transition_chemical_potentials("Au", "Cu"), PUBLISHED, atol=1.5e-5
    )
    groups = [v.structures[0].space_group() for v in hull.vertices]
    assert [g.split()[0] for g in groups] == ["Fm-3m", "Pm-3m", "P4/mmm", "Pm-3m", "Fm-3m"]
    assert [v.degeneracy for v in hull.vertices] == [1, 4, 6, 4, 1]


@pytest.mark.parametrize("seed", range(3))
def test_transitions_of_copper_gold_by_search(cuau16, seed):
    """Annealing finds them too, with energies of a few thousand configurations."""
    lattice, ensemble = cuau16
    hull = ground_state_hull(
        ensemble,
        lattice,
        temperatures=np.geomspace(2000, 50, 20),
        sweeps=10,
        replicas=8,
        seed=seed,
    )
    np.testing.assert_allclose(
        hull.transition_chemical_potentials("Au", "Cu"), PUBLISHED, atol=1.5e-5
    )
    assert hull.cost.energy_evaluations < 4e5
    line = ChemicalPotentialLine.exchange(lattice, "Au", "Cu")
    fine = anneal(
        ensemble,
        lattice,
        line.mu(np.linspace(-0.2, 0.2, 81)),
        temperatures=np.geomspace(2000, 50, 20),
        sweeps=10,
        seed=seed,
    )
    found = formation_hull([fine, pure_ends(ensemble, lattice)])
    np.testing.assert_allclose(
        found.transition_chemical_potentials("Au", "Cu"), PUBLISHED, atol=1e-3
    )
