"""Metadynamics of CLEASE, handed over as canonical averages."""

import json
import random

import numpy as np
import pytest
from clease.calculator import attach_calculator
from clease.montecarlo import SGCMonteCarlo
from clease.settings import CEBulk, Concentration
from sampler_helpers import binary_atoms, ternary_atoms

from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.errors import NotDeterminedError
from clease_nn.hosts.clease import NeuralSGCSampler, energy, lattice, metadynamics
from clease_nn.thermodynamics import DensityOfStates, canonical

pytestmark = [
    pytest.mark.usefixtures("nowhere"),
    pytest.mark.filterwarnings("ignore::clease_nn.warnings.NoModelWarning"),
]

T = [600.0, 1500.0]
SHORT = {"mod_factor_limit": 0.1, "flat_limit": 0.6, "progress": False}


def exact(atoms, temperatures):
    """Canonical averages of all configurations."""
    states = SemiGrandCanonical(energy(atoms)).enumerate(lattice(atoms))
    return canonical(DensityOfStates.exact(states), temperatures)


def check(found, reference, worst):
    """Every quantity agrees within ``worst`` of its errors, and the errors are not idle."""
    assert (found.counts == reference.counts).all()
    assert not found.reasons
    for name, floor in {"free_energy": 1e-9, "energy": 1e-9, "entropy": 1e-12,
                        "heat_capacity": 1e-12}.items():  # fmt: skip
        a, b = getattr(found, name), getattr(reference, name).value
        assert (np.abs(a.value - b) < worst * a.error + floor).all(), name
        assert a.error.max() < 0.1 * np.ptp(b)
    z = found.free_energy.z(reference.free_energy.value)[:, 1:-1]
    assert 0.2 < np.sqrt((z**2).mean()) < 3


def test_agrees_with_enumeration(tmp_path):
    """F, E, S and C at every composition of 8 sites and two temperatures are the exact ones."""
    atoms = binary_atoms(tmp_path, scale=0.05)
    found = metadynamics(atoms, T, n_runs=8, sweeps=500, **SHORT)
    # |t| of 7 degrees of freedom is above 15 with a probability of 1.4e-6
    check(found, exact(atoms, T), 15)


def test_pure_supercells_are_exact(tmp_path):
    """The constant: supercells of one species have F = E without error."""
    atoms = binary_atoms(tmp_path, scale=0.05)
    found = metadynamics(atoms, [900.0], n_runs=2, sweeps=200, **SHORT)
    for end in (0, -1):
        atoms.symbols[:] = found.species[int(np.argmax(found.counts[end]))]
        assert found.free_energy.value[0, end] == pytest.approx(atoms.get_potential_energy())
        assert found.free_energy.error[0, end] == 0
        assert np.isinf(found.ess[0, end])


def test_the_neural_sampler_is_an_engine_too(tmp_path):
    """NeuralSGCSampler in place of SGCMonteCarlo gives the same free energies."""
    atoms = binary_atoms(tmp_path, scale=0.05)
    found = metadynamics(atoms, [900.0], sampler=NeuralSGCSampler, n_runs=4, sweeps=300, **SHORT)
    # |t| of 3 degrees of freedom is above 40 with a probability of 3e-5
    check(found, exact(atoms, [900.0]), 40)
    assert found.provenance["sampler"] == "NeuralSGCSampler"


def test_background_atoms_are_not_counted(tmp_path):
    """Where half of the sites carry one of the two elements for good, they are left out."""
    settings = CEBulk(
        Concentration(basis_elements=[["Cu", "Au"], ["Au"]]), crystalstructure="rocksalt", a=4.0,
        size=[1, 2, 2], max_cluster_dia=[3.5], db_name=str(tmp_path / "r.db"),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    eci = {name: float(rng.normal(0, 0.05)) for name in sorted(settings.all_cf_names)}
    atoms = attach_calculator(settings, settings.prim_cell.copy().repeat((1, 2, 2)), eci)
    found = metadynamics(atoms, [900.0], n_runs=4, sweeps=300, **SHORT)
    assert found.n_sites == 4
    check(found, exact(atoms, [900.0]), 40)


def test_atoms_and_random_numbers_are_left_as_they_were(tmp_path):
    """Atoms, their energy and the state of ``random`` do not change; one seed, one result."""
    atoms = binary_atoms(tmp_path, scale=0.05)
    atoms.symbols[:3] = "Au"
    e, numbers, eci = atoms.get_potential_energy(), atoms.numbers.copy(), dict(atoms.calc.eci)
    state = random.getstate()
    runs = [metadynamics(atoms, [900.0], n_runs=2, sweeps=100, seed=4, **SHORT) for _ in range(2)]
    assert (atoms.numbers == numbers).all() and atoms.calc.eci == eci
    assert atoms.get_potential_energy() == pytest.approx(e)
    assert random.getstate() == state
    assert np.array_equal(runs[0].log_z, runs[1].log_z)
    cost = runs[0].cost
    assert cost.energy_evaluations >= 2 * 100 * 8
    assert cost.attempts_per_site == cost.energy_evaluations / 8
    assert json.dumps(dict(runs[0].provenance))


def test_what_was_not_visited_is_not_determined(tmp_path):
    """One sweep cannot visit nine compositions: nan with a reason."""
    atoms = binary_atoms(tmp_path, scale=0.05)
    found = metadynamics(atoms, [900.0], n_runs=2, sweeps=1, **SHORT)
    unknown = np.isnan(found.free_energy.value[0])
    assert unknown.any()
    assert len(found.reasons) >= 1 and "not visited by every run at 900 K" in found.reasons[0]


def test_bad_input(tmp_path):
    """What cannot be is refused with its value and a remedy."""
    atoms = binary_atoms(tmp_path)
    with pytest.raises(NotDeterminedError, match="after 1 sweeps at 900 K"):
        metadynamics(atoms, [900.0], max_sweeps=1, progress=False)
    with pytest.raises(ValueError, match="n_runs must be at least 2"):
        metadynamics(atoms, [900.0], n_runs=1)
    with pytest.raises(ValueError, match="temperature must be positive"):
        metadynamics(atoms, [-900.0])
    with pytest.raises(ValueError, match="mod_factor_limit"):
        metadynamics(atoms, [900.0], mod_factor=0.01, mod_factor_limit=0.1)
    with pytest.raises(ValueError, match="flat_limit"):
        metadynamics(atoms, [900.0], flat_limit=1.0)
    with pytest.raises(ValueError, match="sweeps"):
        metadynamics(atoms, [900.0], sweeps=0)
    with pytest.raises(ValueError, match="needs a binary"):
        metadynamics(ternary_atoms(tmp_path), [900.0])
    mc = SGCMonteCarlo(atoms, 900.0, ["Au", "Cu"])
    mc.run(1, chem_pot={"c1_0": 0.1})
    with pytest.raises(ValueError, match="reset_eci"):
        metadynamics(atoms, [900.0])
