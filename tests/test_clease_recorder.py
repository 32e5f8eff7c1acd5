"""The recorder: what a CLEASE run visited, with conditions, energies and errors."""

import random

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.emt import EMT
from clease.montecarlo import Montecarlo, SGCMonteCarlo
from clease.montecarlo.bias_potential import BiasPotential
from clease.montecarlo.trial_move_generator import RandomFlipWithinBasis
from sampler_helpers import binary_atoms, exact, rocksalt_atoms, ternary_atoms

from clease_nn.conditions import Conditions
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.hosts.clease import NeuralSGCSampler, energy, mu_from_chem_pot
from clease_nn.hosts.clease.recorder import ConfigurationRecorder
from clease_nn.thermodynamics import averages

pytestmark = pytest.mark.filterwarnings(
    "ignore::clease_nn.warnings.NoModelWarning", "ignore::clease_nn.warnings.LowESSWarning"
)
SYSTEMS = {
    "binary": (binary_atoms, ["Au", "Cu"], {"c1_0": 0.02}),
    "ternary": (ternary_atoms, ["Au", "Cu", "Pd"], {"c1_0": 0.02, "c1_1": -0.03}),
}


@pytest.fixture(autouse=True)
def no_models(tmp_path, monkeypatch):
    monkeypatch.setenv("CLEASE_NN_MODELS", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("sampler", [SGCMonteCarlo, NeuralSGCSampler])
@pytest.mark.parametrize("system", SYSTEMS)
def test_energies_are_bare_and_targets_those_of_the_run(system, sampler, tmp_path):
    """E, without mu.N, and ln p of every recorded row equal direct evaluation."""
    build, symbols, chem_pot = SYSTEMS[system]
    atoms = build(tmp_path)
    ensemble = SemiGrandCanonical(energy(atoms))
    mc = sampler(atoms, 900, symbols)
    recorder = ConfigurationRecorder(mc)
    mc.attach(recorder, interval=3)
    mc.run(90, chem_pot=chem_pot)
    c = recorder.configurations()
    scored = ensemble.score(c)
    assert len(c) == 30
    assert torch.allclose(scored.energy, c.energy, atol=1e-9)
    assert torch.allclose(scored.log_target, c.log_target, atol=1e-7)
    assert (c.occupations[-1].numpy() == c.lattice.occupations(atoms)).all()
    assert np.allclose(c.conditions.mu[0], mu_from_chem_pot(atoms, c.lattice, chem_pot))


def test_chemical_potentials_by_element(tmp_path):
    """The drop-in's second form of chemical potentials gives bare energies too."""
    atoms = binary_atoms(tmp_path)
    ensemble = SemiGrandCanonical(energy(atoms))
    mc = NeuralSGCSampler(atoms, 900, ["Au", "Cu"], seed=1)
    recorder = ConfigurationRecorder(mc)
    mc.attach(recorder)
    mc.run(50, chem_pot={"Au": 0.04})
    c = recorder.configurations()
    assert torch.allclose(ensemble.score(c).energy, c.energy, atol=1e-9)


def test_two_sublattices(tmp_path):
    """Two sublattices of which one is sampled: energies stay right."""
    atoms = rocksalt_atoms(tmp_path)
    ensemble = SemiGrandCanonical(energy(atoms))
    sites = [i for i, s in enumerate(atoms.symbols) if s == "Li"]
    generator = RandomFlipWithinBasis([["Li", "V"]], atoms, [sites])
    mc = NeuralSGCSampler(atoms, 900, ["Li", "V"], generator, seed=1)
    recorder = ConfigurationRecorder(mc)
    mc.attach(recorder)
    mc.run(50, chem_pot={"c1_0": 0.01})
    c = recorder.configurations()
    assert torch.allclose(ensemble.score(c).energy, c.energy, atol=1e-9)


def test_any_energy():
    """A sampler of an ASE calculator is recorded with its energies."""
    atoms = bulk("Cu", a=3.8, cubic=True)
    atoms.calc = EMT()
    mc = NeuralSGCSampler(atoms, 3000, ["Au", "Cu"], seed=1, neural_interval=None)
    recorder = ConfigurationRecorder(mc)
    mc.attach(recorder, interval=2)
    mc.run(60, chem_pot={"Au": 0.2})
    c = recorder.configurations()
    assert len(c) == 30 and len(torch.unique(c.energy)) > 2
    for k in (0, 11, 29):
        frame = c.atoms(k)
        frame.calc = EMT()
        assert frame.get_potential_energy() == pytest.approx(c.energy[k].item(), abs=1e-8)
    gold = c.counts()[:, c.lattice.species.index("Au")]
    assert torch.allclose(c.log_target, -(c.energy - 0.2 * gold) / c.conditions.kT)


@pytest.mark.parametrize("sampler", [SGCMonteCarlo, NeuralSGCSampler])
def test_averages_with_errors(sampler, tmp_path):
    """Averages of recorded runs agree with enumeration within their errors."""
    atoms = binary_atoms(tmp_path)
    _, x, p, _ = exact(atoms, 900, {"c1_0": 0.02})
    reference = float((p * (x == 0).double().mean(1)).sum())
    mc = sampler(atoms, 900, ["Au", "Cu"])
    recorder = ConfigurationRecorder(mc)
    mc.attach(recorder, interval=4)
    random.seed(3)
    z = []
    mc.run(300, chem_pot={"c1_0": 0.02})
    for _ in range(12):
        mc.run(2400)
        [a] = averages(recorder.configurations())
        z.append(a.composition[0].z(reference))
    assert abs(np.mean(z)) < 4 / np.sqrt(12)
    assert 0.4 < np.std(z) < 1.8


def test_rows_know_their_conditions(tmp_path):
    """irun goes on recording at other conditions, run begins anew."""
    atoms = binary_atoms(tmp_path)
    mc = NeuralSGCSampler(atoms, 900, ["Au", "Cu"], seed=1)
    recorder = ConfigurationRecorder(mc)
    with pytest.raises(ValueError, match="nothing was recorded"):
        recorder.configurations()
    mc.attach(recorder)
    mc.run(20, chem_pot={"c1_0": 0.02})
    mc.temperature = 1200
    mc.chemical_potential = {"c1_0": -0.02}
    for _ in mc.irun(10):
        pass
    c = recorder.configurations()
    assert c.conditions.temperature.tolist() == [900.0] * 20 + [1200.0] * 10
    lattice = c.lattice
    second = mu_from_chem_pot(atoms, lattice, {"c1_0": -0.02})
    assert torch.allclose(c.conditions[25].mu[0], Conditions([1.0], second[None]).mu[0])
    mc.run(5)
    assert len(recorder.configurations()) == 5


def test_runs_of_other_ensembles_are_refused(tmp_path):
    """Canonical runs and biased ones belong to no chemical potential."""
    atoms = binary_atoms(tmp_path)
    atoms.symbols[0] = "Au"
    with pytest.raises(TypeError, match="semi-grand canonical"):
        ConfigurationRecorder(Montecarlo(atoms, 900))

    class Flat(BiasPotential):
        def __call__(self, system_changes):
            return 0.0

        def calculate_from_scratch(self, atoms):
            return 0.0

    mc = SGCMonteCarlo(atoms, 900, ["Au", "Cu"])
    mc.add_bias(Flat())
    mc.attach(ConfigurationRecorder(mc))
    with pytest.raises(ValueError, match="biased run"):
        mc.run(5, chem_pot={"c1_0": 0.02})
