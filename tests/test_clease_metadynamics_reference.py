"""Metadynamics of CLEASE, handed over as canonical averages."""

import importlib
import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase.units import kB
from clease.calculator import attach_calculator
from clease.montecarlo import SGCMonteCarlo
from clease.settings import CEBulk, Concentration
from sampler_helpers import binary_atoms, ternary_atoms

from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.errors import NotDeterminedError
from clease_nn.hosts.clease import NeuralSGCSampler, energy, lattice, metadynamics
from clease_nn.lattice import Lattice
from clease_nn.thermodynamics import DensityOfStates, canonical
from clease_nn.warnings import InterruptedWarning

md = importlib.import_module("clease_nn.hosts.clease.metadynamics")

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
    assert unknown.any() and not unknown[[0, -1]].any()
    assert "of 2 runs at 900 K, two are needed; give more sweeps" in found.reasons[0]


def invented(visits, bias=0.0, energy=1.0, failure=""):
    """Runs of three atoms at two temperatures; energies and biases as given."""
    visits = np.asarray(visits, dtype=float)
    bias = np.broadcast_to(bias, visits.shape)
    return [
        [
            md._Run(b, v, np.full(4, energy), np.zeros(4), 10, 1.0, failure)
            for b, v in zip(*both, strict=True)
        ]
        for both in zip(bias, visits, strict=True)
    ]


def combined(parts, failures=("", "")):
    """What becomes of runs of three atoms, whose energies are all 1 eV."""
    host = Lattice.square(3, 1, species=("Au", "Cu"))
    bare = lambda lattice, x: torch.ones(len(x), dtype=torch.float64)  # noqa: E731
    return md._combine(parts, list(failures), host, bare, np.array([500.0, 700.0]), {})


def test_runs_under_different_biases_are_put_together_without_bias():
    """Few visits a run, many runs: the mean of ln Z_N is the exact one within its small error."""
    rng = np.random.default_rng(0)
    log_z = np.log([1, 3, 3, 1])
    bias = log_z + rng.normal(0, 0.7, (2, 300, 4))
    p = np.exp(log_z - bias)
    visits = [[rng.multinomial(12, q / q.sum()) for q in rows] for rows in p]
    parts = invented(visits, bias)
    found = combined(parts)
    kT = kB * found.temperatures[:, None]
    z = found.free_energy.z(1.0 - kT * log_z)[:, 1:3]
    assert np.abs(z).max() < 4.5
    # ln of the visits of a run alone would be off by about -1/2 of 1/3
    assert (found.free_energy.error[:, 1:3] < 0.05 * kT).all()
    few = [combined([r[k : k + 10] for r in parts]).free_energy for k in range(0, 300, 10)]
    z = np.array([f.z(1.0 - kT * log_z)[:, 1:3] for f in few])
    # t of 9 degrees of freedom has rms 1.13; 120 values
    assert 0.8 < np.sqrt((z**2).mean()) < 1.6


def test_energies_without_scatter_have_errors_of_rounding():
    """A composition of one energy: no z-score is made of rounding."""
    parts = invented(np.full((2, 3, 4), 5.0))
    parts[0][1] = replace(parts[0][1], energy=np.full(4, 1.0 + 3e-15))
    e = combined(parts).energy
    assert (np.abs(e.z(1.0)) < 0.1).all() and (e.error[:, 1:3] > 0).all()


def test_supercells_of_one_species_need_no_visits():
    """One of them, seen by two runs, is enough for the constant; without, F is not determined."""
    visits = np.full((2, 3, 4), 5.0)
    visits[0, :, 0] = visits[1, :2, 0] = visits[1, :, 3] = 0.0
    found = combined(invented(visits))
    assert np.isfinite(found.free_energy.value[0]).all()
    assert np.isnan(found.free_energy.value[1, 1:3]).all()
    assert np.isfinite(found.energy.value).all() and (found.free_energy.error[:, [0, 3]] == 0).all()
    [reason] = found.reasons
    assert "free energies at 700 K: 1 of 3 runs visited a supercell of one species" in reason


def test_a_temperature_that_is_given_up_leaves_the_others(tmp_path, monkeypatch):
    """What never becomes flat is not determined, with the reason; the rest is returned."""
    atoms = binary_atoms(tmp_path, scale=0.05)
    run = md._run

    def never_cold(mc, host, increments, flat_limit, sweeps, max_sweeps, file):
        cold = mc.temperature < 500
        return run(mc, host, increments, flat_limit, sweeps, 1 if cold else max_sweeps, file)

    monkeypatch.setattr(md, "_run", never_cold)
    found = metadynamics(atoms, [400.0, 900.0], n_runs=2, sweeps=200, **SHORT)
    assert np.isnan(found.free_energy.value[0, 1:-1]).all()
    assert np.isfinite(found.free_energy.value[1]).all()
    [reason] = found.reasons
    assert reason.startswith("after 1 sweeps at 400 K") and "give more max_sweeps" in reason


def test_interrupt_keeps_finished_temperatures(tmp_path, monkeypatch):
    """After Ctrl-C the temperatures with all their runs are returned; without any it goes on."""
    atoms = binary_atoms(tmp_path, scale=0.05)
    numbers, run, left = atoms.numbers.copy(), md._run, [3]

    def until(*args):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return run(*args)

    monkeypatch.setattr(md, "_run", until)
    options = {"n_runs": 2, "sweeps": 50, **SHORT}
    with pytest.warns(InterruptedWarning, match="1 of 2 temperatures"):
        found = metadynamics(atoms, [900.0, 1500.0], **options)
    assert found.temperatures.tolist() == [900.0] and found.cost.energy_evaluations >= 2 * 50 * 8
    with pytest.raises(KeyboardInterrupt):
        metadynamics(atoms, [900.0, 1500.0], **options)
    assert (atoms.numbers == numbers).all()


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
