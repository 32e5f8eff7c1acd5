"""The CLEASE drop-in: what is changed while a run is under way acts from the next step."""

import contextlib

import numpy as np
import pytest
from clease.calculator import attach_calculator
from clease.montecarlo import BiasPotential
from clease.montecarlo.constraints import FixedIndices
from clease.montecarlo.observers import MCObserver
from clease.montecarlo.trial_move_generator import RandomFlip
from clease.settings import CEBulk, Concentration
from sampler_helpers import (
    binary_atoms,
    exact,
    pooled_z,
    trained,
)

from clease_nn.hosts.clease.sampler import NeuralSGCSampler

CHEM_POT = {"c1_0": 0.02}
BINARY = ["Au", "Cu"]

pytestmark = [
    pytest.mark.usefixtures("nowhere"),
    pytest.mark.filterwarnings("ignore::clease_nn.warnings.NoModelWarning"),
    pytest.mark.filterwarnings("ignore::clease_nn.warnings.LowESSWarning"),
]


# ------------------------------------------------------------------ changes under way
class Act(MCObserver):
    """Does something at one of its calls."""

    def __init__(self, act, at=1):
        self.act, self.at, self.calls = act, at, 0

    def observe_step(self, mc_step):
        self.calls += 1
        if self.calls == self.at:
            self.act()


class OnlyGold(BiasPotential):
    """1 eV for every atom of Cu."""

    def __init__(self, atoms):
        self.atoms = atoms

    def initialize_bias(self, *args):
        """Nothing to keep."""

    def __call__(self, changes):
        return self.calculate_from_scratch(self.atoms)

    def calculate_from_scratch(self, atoms):
        return float((atoms.symbols == "Cu").sum())


def changed_at(way, mc, act, steps):
    """Compositions of Au after each of ``steps`` steps, ``act`` happening after the 50th."""
    seen = []

    class Watch(MCObserver):
        def observe_step(self, step):
            seen.append((mc.atoms.numbers == 79).mean())

    if way == "irun":
        for k, _ in enumerate(mc.irun(steps), 1):
            seen.append((mc.atoms.numbers == 79).mean())
            if k == 50:
                act()
        return np.array(seen)
    interval = 1 if way == "replay" else 25
    mc.attach(Watch(), interval)
    mc.attach(Act(act, 50 // interval), interval)
    mc.run(steps)
    return np.array(seen)


@pytest.mark.filterwarnings("ignore::clease_nn.warnings.OutOfRangeWarning")
@pytest.mark.parametrize("interval", [None, 1])
@pytest.mark.parametrize("way", ["irun", "replay", "blocks"])
@pytest.mark.parametrize("what", ["T", "chem_pot", "bias", "fixed", "generator"])
def test_changes_under_way_act_from_the_next_step(tmp_path, what, way, interval):
    """Whatever a user or an observer changes during a run holds from the next step on."""
    atoms = binary_atoms(tmp_path, scale=0.001)
    model = None if interval is None else trained(atoms)
    mc = NeuralSGCSampler(atoms, 900, BINARY, model=model, neural_interval=interval, seed=1)
    mc.chemical_potential = {"c1_0": -0.01}
    frozen = []

    def act():
        if what == "T":
            mc.temperature = 3
        elif what == "chem_pot":
            mc.chemical_potential = {"c1_0": 2.0}
        elif what == "bias":
            mc.add_bias(OnlyGold(atoms))
        elif what == "fixed":
            mc.generator.add_constraint(FixedIndices(range(1, 8)))
            frozen.append(atoms.numbers[1:].copy())
        else:
            mc.generator = RandomFlip(BINARY, atoms, indices=[0])
            frozen.append(atoms.numbers[1:].copy())

    seen = changed_at(way, mc, act, 600)
    assert len(seen) == (24 if way == "blocks" else 600)
    assert 0 < seen[: len(seen) // 12 + 2].mean() < 1
    end = {"T": 0.0, "chem_pot": 1.0, "bias": 1.0}.get(what)
    if end is not None:
        assert (seen[len(seen) // 2 :] == end).all()
    else:
        assert (atoms.numbers[1:] == frozen[0]).all()
    energy = sum(b.calculate_from_scratch(atoms) for b in mc.bias_potentials)
    energy += atoms.calc.calculate_energy_from_scratch()
    assert mc.current_energy == pytest.approx(energy, abs=1e-8)
    assert mc.averager.counter == (550 if what == "T" else 600)


@pytest.mark.parametrize("interval", [1, 100])
def test_cooling_observers_do_not_hang(tmp_path, interval):
    """A run makes the steps it was asked for, though every temperature resets the count."""
    atoms = binary_atoms(tmp_path)
    mc = NeuralSGCSampler(atoms, 900, BINARY, neural_interval=None, seed=1)

    class Cool(MCObserver):
        calls = 0

        def observe_step(self, step):
            self.calls += 1
            mc.temperature *= 0.999

    cool = Cool()
    mc.attach(cool, interval)
    mc.run(1000, chem_pot=CHEM_POT)
    assert cool.calls == 1000 // interval
    assert mc.temperature == pytest.approx(900 * 0.999**cool.calls)


def test_averages_after_a_change_are_exact(tmp_path):
    """Averages since a temperature set by an observer are those of that temperature."""
    atoms = binary_atoms(tmp_path)
    _, _, p, e = exact(atoms, 900, CHEM_POT)
    energies = []
    for seed in range(12):
        mc = NeuralSGCSampler(atoms, 5000, BINARY, neural_interval=None, seed=seed)

        def cool(mc=mc):
            mc.temperature = 900

        mc.attach(Act(cool, 7), 3)
        mc.run(4000, chem_pot=CHEM_POT)
        energies.append(mc.get_thermodynamic_quantities()["energy"])
        assert mc.averager.counter == 3979
        mc.reset_eci()
    assert abs(pooled_z(energies, float((p * e).sum()))) < 4


@pytest.mark.parametrize("error", [False, True])
def test_going_on_after_a_stop(tmp_path, error):
    """After quit or an exception among steps shown one by one, the next step starts there."""
    atoms = binary_atoms(tmp_path)
    mc = NeuralSGCSampler(atoms, 900, BINARY, neural_interval=None, seed=1)

    def stop():
        if error:
            raise KeyboardInterrupt
        mc.quit = True

    mc.attach(Act(stop, 30), 1)
    with pytest.raises(KeyboardInterrupt) if error else contextlib.nullcontext():
        mc.run(1000, chem_pot=CHEM_POT)
    mc.quit = False
    for _ in range(20):
        before = atoms.numbers.copy()
        step = mc._mc_step(False)
        assert (before != atoms.numbers).sum() <= 1
        exact_energy = atoms.calc.calculate_energy_from_scratch()
        assert step.energy == pytest.approx(exact_energy, abs=1e-9)
    assert mc.current_step == 50


@pytest.mark.parametrize("background", [False, True])
def test_singlets_are_those_of_the_calculator(tmp_path, background):
    """Averages of singlets count background atoms where CLEASE's correlation functions do."""
    settings = CEBulk(
        Concentration(basis_elements=[["Au", "Cu"], ["Mg"]]), crystalstructure="rocksalt",
        a=4.2, size=[2, 2, 2], max_cluster_dia=(4.0,), db_name=str(tmp_path / "s.db"),
        include_background_atoms=background,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    eci = {n: 0.05 * rng.normal() for n in settings.all_cf_names}
    atoms = attach_calculator(settings, settings.prim_cell.repeat((2, 2, 2)), eci)
    mc = NeuralSGCSampler(atoms, 900, BINARY, None, True, neural_interval=None, seed=1)
    names = [k for k in eci if k.startswith("c1_")]
    rows = []

    class Watch(MCObserver):
        def observe_step(self, step):
            cf = atoms.calc.get_cf()
            rows.append([cf[k] for k in names])

    mc.attach(Watch(), 1)
    mc.run(300, chem_pot=dict.fromkeys(names, 0.02))
    q = mc.get_thermodynamic_quantities()
    mean, var = np.mean(rows, 0), np.var(rows, 0)
    assert [q[f"singlet_{k}"] for k in names] == pytest.approx(mean, abs=1e-10)
    assert [q[f"var_singlet_{k}"] for k in names] == pytest.approx(var, abs=1e-10)
    bare = q["energy"] + len(atoms) * 0.02 * mean.sum()
    assert q["singlet_energy"] == pytest.approx(bare, abs=1e-10)
