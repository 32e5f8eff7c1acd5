"""The drop-in has CLEASE's surface and the exact distribution, with and without neural moves."""

import contextlib
import json
import random
import warnings

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.emt import EMT
from clease.calculator import attach_calculator
from clease.datastructures import MCStep, SystemChange
from clease.montecarlo import BiasPotential, BinnedBiasPotential, MetaDynamicsSampler, SGCMonteCarlo
from clease.montecarlo.constraints import FixedIndices
from clease.montecarlo.observers import ConcentrationObserver, MCObserver
from clease.montecarlo.sgc_montecarlo import InvalidChemicalPotentialError
from clease.montecarlo.trial_move_generator import RandomFlip, TrialMoveGenerator
from clease.settings import CEBulk, Concentration
from sampler_helpers import (
    bare_eci,
    binary_atoms,
    exact,
    pooled_z,
    rocksalt_atoms,
    ternary_atoms,
    trained,
)

from clease_nn.hosts.clease.sampler import NeuralSGCSampler
from clease_nn.warnings import NoModelWarning, OutOfRangeWarning

CHEM_POT = {"c1_0": 0.02}
BINARY = ["Au", "Cu"]

pytestmark = [
    pytest.mark.filterwarnings("ignore::clease_nn.warnings.NoModelWarning"),
    pytest.mark.filterwarnings("ignore::clease_nn.warnings.LowESSWarning"),
]


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    """No model of another run is found by accident."""
    monkeypatch.setenv("CLEASE_NN_MODELS", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    random.seed(1)


class Counter(MCObserver):
    """Counts its calls and keeps what it saw."""

    def __init__(self, calc=None):
        self.calc, self.steps, self.energies = calc, [], []

    def observe_step(self, mc_step):
        self.steps.append(mc_step)
        if self.calc is not None:
            self.energies.append((self.calc.energy, mc_step.energy))

    def reset(self):
        self.steps, self.energies = [], []


def replicas(mc, n, steps, **kwargs):
    """Thermodynamic quantities of consecutive runs."""
    out = []
    mc.run(200, call_observers=False, **kwargs)
    for _ in range(n):
        mc.run(steps)
        out.append(mc.get_thermodynamic_quantities())
    return out


@pytest.mark.parametrize("interval", [None, 1])
def test_binary_averages_are_exact(tmp_path, interval):
    """Energy, heat capacity and composition agree with enumeration, whatever the neural moves."""
    atoms = binary_atoms(tmp_path)
    _, x, p, e = exact(atoms, 900, CHEM_POT)
    mc = NeuralSGCSampler(
        atoms, 900, BINARY, observe_singlets=True, neural_interval=interval,
        model=None if interval is None else trained(atoms), seed=7,
    )  # fmt: skip
    steps = 5000 if interval is None else 600
    out = replicas(mc, 20, steps, chem_pot=CHEM_POT)
    mean = float((p * e).sum())
    assert abs(pooled_z([q["energy"] for q in out], mean)) < 4
    share = float((p * (x == 0).double().mean(1)).sum())
    assert abs(pooled_z([q["Au_conc"] for q in out], share)) < 4
    squares = [q["sgc_heat_capacity"] * 8.617333262e-5 * 900**2 + q["energy"] ** 2 for q in out]
    assert abs(pooled_z(squares, float((p * e * e).sum()))) < 4


@pytest.mark.parametrize("interval", [None, 1])
def test_ternary_averages_are_exact(tmp_path, interval):
    """Three species, two chemical potentials."""
    atoms = ternary_atoms(tmp_path)
    chem_pot = {"c1_0": 0.03, "c1_1": -0.02}
    _, x, p, e = exact(atoms, 1200, chem_pot)
    model = None if interval is None else trained(atoms, ("c1_0", "c1_1"))
    mc = NeuralSGCSampler(
        atoms, 1200, ["Au", "Cu", "Pd"], observe_singlets=True, model=model,
        neural_interval=interval, seed=3,
    )  # fmt: skip
    out = replicas(mc, 20, 5000 if interval is None else 500, chem_pot=chem_pot)
    assert abs(pooled_z([q["energy"] for q in out], float((p * e).sum()))) < 4
    for a, name in enumerate(("Au", "Cu", "Pd")):
        share = float((p * (x == a).double().mean(1)).sum())
        assert abs(pooled_z([q[f"{name}_conc"] for q in out], share)) < 4


def test_same_keys_and_numbers_as_the_host(tmp_path):
    """CLEASE's keys, in its order, and its averages within errors."""
    results, keys = [], []
    for cls in (SGCMonteCarlo, NeuralSGCSampler):
        atoms = binary_atoms(tmp_path)
        mc = cls(atoms, 900, symbols=BINARY)
        mc.attach(Counter(), interval=10)
        out = replicas(mc, 12, 2000, chem_pot=CHEM_POT)
        results.append(np.array([[q["energy"], q["accept_rate"]] for q in out]))
        keys.append(list(out[0]))
    assert keys[0] == keys[1]
    a, b = results
    z = (a.mean(0) - b.mean(0)) / np.sqrt((a.var(0, ddof=1) + b.var(0, ddof=1)) / len(a))
    assert np.abs(z).max() < 4


def test_singlets_have_the_hosts_keys(tmp_path):
    """observe_singlets adds the documented keys; E and E' differ by the chemical potential."""
    atoms = binary_atoms(tmp_path)
    mc = NeuralSGCSampler(atoms, 900, BINARY, None, True, seed=1)
    mc.run(1000, chem_pot=CHEM_POT)
    q = mc.get_thermodynamic_quantities()
    assert {"singlet_energy", "singlet_c1_0", "var_singlet_c1_0", "Au_conc", "Cu_conc"} <= set(q)
    bare = q["energy"] + 0.02 * q["singlet_c1_0"] * len(atoms)
    assert q["singlet_energy"] == pytest.approx(bare, abs=1e-12)
    assert q["Au_conc"] + q["Cu_conc"] == pytest.approx(1.0)
    assert all(isinstance(v, (int, float, str)) for v in q.values())


def test_calculator_and_atoms_follow_at_observations(tmp_path):
    """Observers see an up-to-date calculator, and so does the user after the run."""
    atoms = binary_atoms(tmp_path)
    numbers = atoms.numbers
    mc = NeuralSGCSampler(atoms, 900, BINARY, model=trained(atoms), neural_interval=2, seed=2)
    watch = Counter(atoms.calc)
    mc.attach(watch, interval=7)
    mc.run(700, chem_pot=CHEM_POT)
    assert len(watch.steps) == 100 and watch.steps[-1].step == 700
    calculator, step = np.array(watch.energies).T
    assert calculator == pytest.approx(step, abs=1e-10)
    assert len(np.unique(step)) > 10
    assert atoms.numbers is numbers
    assert type(atoms.calc.results) is dict
    assert atoms.calc.energy == pytest.approx(mc.current_energy, abs=1e-10)
    assert atoms.calc.calculate_energy_from_scratch() == pytest.approx(mc.current_energy, abs=1e-9)


def test_moves_are_the_differences_of_consecutive_states(tmp_path):
    """irun yields every step; its moves rebuild the atoms, rejected ones change nothing."""
    atoms = binary_atoms(tmp_path)
    mc = NeuralSGCSampler(atoms, 900, BINARY, model=trained(atoms), neural_interval=0.5, seed=2)
    mc.chemical_potential = CHEM_POT
    copy = atoms.copy()
    names = set()
    for step in mc.irun(300):
        assert isinstance(step, MCStep)
        for change in step.last_move:
            assert copy.symbols[change.index] == change.old_symb
            assert step.move_accepted or change.old_symb == change.new_symb
            change.apply_change(copy)
            names.add(change.name)
        assert (copy.numbers == atoms.numbers).all()
        assert step.energy == pytest.approx(atoms.calc.energy, abs=1e-10)
    assert names == {"flip_move", "neural_move"}
    assert mc.averager.counter == 300
    list(mc.irun(100))
    assert mc.averager.counter == 400


def test_the_way_of_running_does_not_change_the_run(tmp_path):
    """Blocks, blocks shown step by step, and irun: same moves, same averages, same counts."""
    results = []
    for way in ("blocks", "replay", "irun"):
        atoms = binary_atoms(tmp_path)
        mc = NeuralSGCSampler(
            atoms, 900, BINARY, observe_singlets=True, model=trained(atoms), neural_interval=3,
            seed=5,
        )  # fmt: skip
        watch = Counter(atoms.calc)
        if way == "replay":
            mc.attach(watch, 1)
        mc.chemical_potential = CHEM_POT
        list(mc.irun(500)) if way == "irun" else mc.run(500)
        q = mc.get_thermodynamic_quantities()
        numbers = [q[k] for k in ("energy", "accept_rate", "Au_conc", "var_singlet_c1_0")]
        results.append([*atoms.numbers.tolist(), *numbers, mc.mean_energy.mean])
        if way == "replay":
            assert [s.step for s in watch.steps] == list(range(1, 501))
            calculator, step = np.array(watch.energies).T
            assert calculator == pytest.approx(step, abs=1e-10)
            assert sum(s.move_accepted for s in watch.steps) == mc.num_accepted
    assert results[1] == pytest.approx(results[0], abs=1e-9)
    assert results[2] == pytest.approx(results[0], abs=1e-9)


@pytest.mark.parametrize("own", [False, True])
def test_seeds_reproduce_runs(tmp_path, own):
    """random.seed, or the sampler's own seed, fixes a run."""
    energies = []
    for seed in (1, 1, 2):
        atoms = binary_atoms(tmp_path)
        random.seed(0 if own else seed)
        mc = NeuralSGCSampler(atoms, 900, BINARY, seed=seed if own else None)
        mc.run(500, chem_pot=CHEM_POT)
        energies.append(mc.get_thermodynamic_quantities()["energy"])
    assert energies[0] == energies[1] != energies[2]


def test_no_steps_resets_and_sets_the_chemical_potential(tmp_path):
    """run(steps=0, chem_pot=...) is the host's idiom for a fresh start."""
    atoms = binary_atoms(tmp_path)
    before = bare_eci(atoms)
    mc = NeuralSGCSampler(atoms, 900, BINARY, seed=1)
    mc.run(100, True, CHEM_POT)
    mc.run(steps=0, chem_pot={"c1_0": 0.05})
    assert mc.averager.counter == 0 and mc.current_step == 0
    assert atoms.calc.eci["c1_0"] == pytest.approx(before["c1_0"] - 0.05)
    mc.get_thermodynamic_quantities(reset_eci=True)
    assert atoms.calc.eci == before
    mc.run(10)
    assert atoms.calc.eci["c1_0"] == pytest.approx(before["c1_0"] - 0.05)


def test_temperature_changes_clear_the_averages(tmp_path):
    """As in CLEASE; T is an alias, and only positive temperatures are accepted."""
    mc = NeuralSGCSampler(binary_atoms(tmp_path), 900, BINARY, seed=1)
    mc.run(100, chem_pot=CHEM_POT)
    mc.T = 500
    assert mc.temperature == 500 and mc.averager.counter == 0
    assert mc.kT == pytest.approx(500 * 8.617333e-5, rel=1e-6)
    for bad in (0, -5, np.nan):
        with pytest.raises(ValueError, match="positive"):
            mc.temperature = bad
    assert mc.temperature == 500


def test_both_forms_of_the_chemical_potential(tmp_path):
    """{'Au': mu} makes E' = E - mu N_Au exactly, in runs, ECIs and free energies alike."""
    atoms = binary_atoms(tmp_path)
    before = bare_eci(atoms)
    mc = NeuralSGCSampler(atoms, 900, BINARY, observe_singlets=True, model=trained(atoms), seed=1)
    mc.run(300, chem_pot={"Au": 0.04})
    bare = sum(before[k] * v for k, v in atoms.calc.get_cf().items()) * len(atoms)
    n_au = int((atoms.symbols == "Au").sum())
    assert mc.current_energy == pytest.approx(bare - 0.04 * n_au, abs=1e-10)
    q = mc.get_thermodynamic_quantities()
    assert q["mu_Au"] == 0.04
    assert q["singlet_energy"] == pytest.approx(q["energy"] + 0.04 * 8 * q["Au_conc"], abs=1e-10)
    mc.reset_eci()
    assert atoms.calc.eci == before


def test_free_energy_is_exact(tmp_path):
    """-kT ln Z with E' as CLEASE defines it, within its own error, at other conditions too."""
    atoms = binary_atoms(tmp_path)
    eci = bare_eci(atoms)
    mc = NeuralSGCSampler(atoms, 900, BINARY, model=trained(atoms), seed=3)
    mc.run(10, chem_pot={"c1_0": -0.1})
    for temp, chem_pot in ((900, {"c1_0": -0.1}), (1500, {"c1_0": 0.05}), (700, {"Au": 0.03})):
        _, _, p, e = exact(atoms, temp, chem_pot, eci)
        kT = temp * 8.617333262e-5
        reference = float(e[0]) + kT * float(p[0].log())
        f = mc.free_energy(temp=temp, chem_pot=chem_pot, n=1000)
        assert abs(f.z(reference)) < 4 and 0 < f.error < 0.02 and 0.1 < f.ness <= 1


def test_samples_are_weighted_or_a_chain(tmp_path):
    """sample() scores its draws; weighted=False gives an unweighted chain and says so."""
    atoms = binary_atoms(tmp_path)
    mc = NeuralSGCSampler(atoms, 900, BINARY, model=trained(atoms), seed=3)
    c = mc.sample(50, temp=1000, chem_pot=CHEM_POT)
    assert c.log_prob.shape == c.energy.shape == c.log_target.shape == (50,)
    c = mc.sample(50, temp=1000, chem_pot=CHEM_POT, weighted=False)
    assert len(c) == 50 and c.log_prob is None and c.chain is not None
    assert "Metropolis-Hastings" in c.provenance["method"]
    with pytest.raises(ValueError, match="positive integer"):
        mc.sample(0)


def test_metadynamics_runs_and_flattens(tmp_path):
    """CLEASE's metadynamics drives the sampler and finds the free energy of the composition."""
    atoms = binary_atoms(tmp_path, scale=0.02)
    _, x, p, _ = exact(atoms, 1500, CHEM_POT)
    mc = NeuralSGCSampler(atoms, 1500, BINARY, seed=1)
    mc.chemical_potential = CHEM_POT
    getter = ConcentrationObserver(atoms, "Au")
    bias = BinnedBiasPotential(xmin=0.0, xmax=1.0 + 1e-6, nbins=9, getter=getter)
    meta = MetaDynamicsSampler(mc, bias, mod_factor=0.02, fname=str(tmp_path / "m.json"))
    meta.run(max_sweeps=2500)
    assert json.loads((tmp_path / "m.json").read_text())
    assert getter.current_conc == pytest.approx(getter.calculate_from_scratch(atoms))
    values = -np.array(bias.values) / mc.kT
    n_au = (x == 0).sum(1)
    free = -np.array([np.log(float(p[n_au == k].sum())) for k in range(9)])
    inner = slice(2, 7)
    shift = (values - free)[inner]
    assert np.ptp(shift) < 0.8


def test_biases_are_exact(tmp_path):
    """With a bias potential the run samples exp(-(E' + bias)/kT)."""
    atoms = binary_atoms(tmp_path)
    _, x, p, _ = exact(atoms, 1200, CHEM_POT)
    getter = ConcentrationObserver(atoms, "Au")
    bias = BinnedBiasPotential(xmin=0.0, xmax=1.0 + 1e-6, nbins=9, getter=getter)
    bias.values[:] = np.linspace(0, 0.3, 9)
    mc = NeuralSGCSampler(atoms, 1200, BINARY, seed=1)
    mc.add_bias(bias)
    mc.attach(getter, 1)
    shares = []
    mc.run(500, chem_pot=CHEM_POT)
    for _ in range(12):
        mc.run(1500)
        shares.append(mc.get_thermodynamic_quantities()["conc_Au"])
    conc = (x == 0).double().mean(1)
    w = p * (-torch.tensor([bias.evaluate(float(v)) for v in conc]) / mc.kT).exp()
    assert abs(pooled_z(shares, float((w * conc).sum() / w.sum()))) < 4


@pytest.mark.parametrize("interval", [1, 30])
def test_quit_stops_the_run(tmp_path, interval):
    """An observer may end a run; state and averages are those of that step."""
    atoms = binary_atoms(tmp_path)
    mc = NeuralSGCSampler(atoms, 900, BINARY, seed=1)

    class Stop(MCObserver):
        def observe_step(self, step):
            mc.quit = step.step == 30

    mc.attach(Stop(), interval=interval)
    mc.run(1000, chem_pot=CHEM_POT)
    assert mc.current_step == mc.averager.counter == 30
    assert atoms.calc.calculate_energy_from_scratch() == pytest.approx(mc.current_energy, abs=1e-9)


def test_interrupted_run_leaves_a_sound_calculator(tmp_path):
    """After an exception in an observer, atoms and calculator agree and stand-ins are gone."""
    atoms = binary_atoms(tmp_path)
    mc = NeuralSGCSampler(atoms, 900, BINARY, seed=1)

    class Fail(MCObserver):
        def __call__(self, changes):
            raise KeyboardInterrupt

    mc.attach(Fail(), interval=50)
    with pytest.raises(KeyboardInterrupt):
        mc.run(1000, chem_pot=CHEM_POT)
    assert type(atoms.calc.results) is dict
    energy = atoms.calc.energy
    assert atoms.calc.calculate_energy_from_scratch() == pytest.approx(energy, abs=1e-9)


def test_custom_generators_run_at_host_speed(tmp_path):
    """A user's generator is asked for every move; the averages stay exact."""

    class Own(TrialMoveGenerator):
        def __init__(self, atoms):
            super().__init__()
            self.atoms, self.asked = atoms, 0

        def get_single_trial_move(self):
            self.asked += 1
            i = random.randrange(len(self.atoms))
            old = self.atoms.symbols[i]
            return [SystemChange(i, old, "Cu" if old == "Au" else "Au", "own")]

    atoms = binary_atoms(tmp_path)
    _, _, p, e = exact(atoms, 900, CHEM_POT)
    own = Own(atoms)
    mc = NeuralSGCSampler(atoms, 900, BINARY, generator=own)
    out = replicas(mc, 12, 1000, chem_pot=CHEM_POT)
    assert own.asked == 12_200
    assert abs(pooled_z([q["energy"] for q in out], float((p * e).sum()))) < 4


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


# ------------------------------------------------------------------ models
def test_no_model_is_said_once(tmp_path):
    """Without a model: exact single-site moves and one warning."""
    mc = NeuralSGCSampler(binary_atoms(tmp_path), 900, BINARY, seed=1)
    with pytest.warns(NoModelWarning, match=r"fit\(\)"):
        mc.run(10, chem_pot=CHEM_POT)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mc.run(10)
    with pytest.raises(ValueError, match="no model to save"):
        mc.save(tmp_path / "x.nn")
    with pytest.raises(ValueError, match="no trained model"):
        mc.free_energy()


def test_fit_save_and_lookup(tmp_path, monkeypatch):
    """A fitted model is used, saved, found again by its expansion, and by its file name."""
    atoms = binary_atoms(tmp_path)
    mc = NeuralSGCSampler(atoms, 900, BINARY, seed=1)
    options = {"validation_samples": 16, "progress": False, "batch_size": 32}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mc.fit((500, 1500), {"c1_0": (-0.1, 0.1)}, max_steps=5, seed=1, **options)
    mc.run(200, chem_pot=CHEM_POT)
    folder = tmp_path / "models"
    folder.mkdir()
    mc.save(folder / "cuau.nn")
    with pytest.raises(OSError, match="cannot write"):
        mc.save(tmp_path / "missing" / "cuau.nn")
    mc.reset_eci()
    monkeypatch.setenv("CLEASE_NN_MODELS", str(folder))
    for other in (
        NeuralSGCSampler(binary_atoms(tmp_path), 900, BINARY, neural_interval=1, seed=1),
        NeuralSGCSampler(
            binary_atoms(tmp_path, size=(2, 2, 3)), 900, BINARY, neural_interval=1, seed=1,
            model=folder / "cuau.nn",
        ),
    ):  # fmt: skip
        other.run(50, chem_pot=CHEM_POT)
        assert other.neural_schedule.interval == 1
        other.reset_eci()
    with pytest.raises(ValueError, match="another expansion"):
        NeuralSGCSampler(binary_atoms(tmp_path, seed=4), 900, BINARY, model=str(folder / "cuau.nn"))


def test_outside_the_range_single_site_moves_or_an_error(tmp_path):
    """Out of range: one warning and exact moves, or ValueError where asked for."""
    atoms = binary_atoms(tmp_path)
    mc = NeuralSGCSampler(atoms, 200, BINARY, model=trained(atoms), neural_interval=1)
    with pytest.warns(OutOfRangeWarning, match="200 K"):
        mc.run(50, chem_pot=CHEM_POT)
    assert mc.neural_schedule is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mc.run(50)
    mc.temperature = 900
    mc.run(50)
    assert mc.neural_schedule is not None
    mc.reset_eci()
    mc = NeuralSGCSampler(atoms, 200, BINARY, model=trained(atoms), out_of_range="raise")
    with pytest.raises(ValueError, match="trained range"):
        mc.run(50, chem_pot=CHEM_POT)


def test_the_users_own_model_stays(tmp_path, monkeypatch):
    """A model found in a file serves beside the user's own one and never replaces it."""
    atoms = binary_atoms(tmp_path)
    own, wide = trained(atoms, temps=(600.0, 1000.0)), trained(atoms)
    monkeypatch.setattr("clease_nn.hosts.clease.shelf.find_model", lambda *_: wide)
    mc = NeuralSGCSampler(atoms, 900, BINARY, model=own, neural_interval=1, seed=1)
    mc.run(20, chem_pot=CHEM_POT)
    mc.temperature = 1500
    mc.run(20)
    assert mc._moves.model is wide.model and mc.trained is own
    mc.temperature = 900
    mc.run(20)
    assert mc._moves.model is own.model and mc.trained is own
    saved = []
    monkeypatch.setattr(type(own), "save", lambda self, path: saved.append(self))
    mc.save("x.nn")
    assert saved == [own]
    mc.reset_eci()
    mc = NeuralSGCSampler(atoms, 1500, BINARY, model=own, out_of_range="raise")
    with pytest.raises(ValueError, match="trained range"):
        mc.run(20, chem_pot=CHEM_POT)
    with pytest.raises(ValueError, match="trained range"):
        mc.sample(5)
    assert mc.trained is own


def test_a_failed_sample_does_not_silence_the_run(tmp_path):
    """sample() and free_energy() without a model raise; a later run still warns."""
    mc = NeuralSGCSampler(binary_atoms(tmp_path), 900, BINARY, seed=1)
    for draw in (mc.free_energy, lambda **k: mc.sample(5, **k)):
        with pytest.raises(ValueError, match="no trained model"):
            draw(chem_pot=CHEM_POT)
    with pytest.warns(NoModelWarning):
        mc.run(10, chem_pot=CHEM_POT)


def test_samples_outside_the_range_say_so_every_time(tmp_path):
    """The text is about draws, not about moves, and comes with every call."""
    atoms = binary_atoms(tmp_path)
    mc = NeuralSGCSampler(atoms, 200, BINARY, model=trained(atoms), neural_interval=1)
    for _ in range(2):
        with pytest.warns(OutOfRangeWarning, match="was not trained there; see NESS"):
            mc.sample(5, chem_pot=CHEM_POT)
    with pytest.warns(OutOfRangeWarning, match="single-site moves"):
        mc.run(10, chem_pot=CHEM_POT)


def test_free_energies_need_a_chemical_potential(tmp_path):
    """None was ever given: the same error as for a run, not a silent zero."""
    atoms = binary_atoms(tmp_path)
    mc = NeuralSGCSampler(atoms, 900, BINARY, model=trained(atoms))
    for draw in (mc.free_energy, lambda: mc.sample(5), mc.run):
        with pytest.raises(ValueError, match="no chemical potentials given"):
            draw()


def test_the_schedule_says_why(tmp_path):
    """After a run with a model the schedule is there with its reason, moves or no moves."""
    atoms = binary_atoms(tmp_path)
    mc = NeuralSGCSampler(atoms, 2000, BINARY, model=trained(atoms), seed=1)
    mc.run(100, chem_pot=CHEM_POT)
    assert "single-site moves forget in" in mc.neural_schedule.reason
    assert "none in 100 steps" in mc.neural_schedule.reason
    mc.reset_eci()
    mc = NeuralSGCSampler(atoms, 900, BINARY, model=trained(atoms), neural_interval=2, seed=1)
    mc.run(100, chem_pot=CHEM_POT)
    assert "was asked for" in mc.neural_schedule.reason


def test_training_on_demand(tmp_path, monkeypatch):
    """train=dict(...) fits at the first run that finds no model, with just these arguments."""
    atoms = binary_atoms(tmp_path)
    asked = {}

    def fake(self, **arguments):
        asked.update(arguments)
        self._shelf.trained = trained(binary_atoms(tmp_path))

    monkeypatch.setattr(NeuralSGCSampler, "fit", fake)
    arguments = {"temps": (300, 1200), "chem_pots": {"c1_0": (-0.1, 0.1)}, "max_seconds": 1}
    mc = NeuralSGCSampler(atoms, 900, BINARY, train=arguments, neural_interval=1)
    mc.run(20, chem_pot=CHEM_POT)
    assert asked == arguments and mc.neural_schedule is not None
    mc.reset_eci()
    mc = NeuralSGCSampler(atoms, 900, BINARY, train=True, neural_interval=1)
    mc.run(20, chem_pot=CHEM_POT)
    assert asked["temps"] == (450, 1800)


# ------------------------------------------------------------------ bad input
def test_bad_atoms(tmp_path):
    """What is not Atoms with a Clease calculator of its own is refused with a remedy."""
    with pytest.raises(ValueError, match=r"ase.Atoms.*str"):
        NeuralSGCSampler("CuAu", 900, BINARY)
    with pytest.raises(ValueError, match="attach_calculator"):
        NeuralSGCSampler(bulk("Cu"), 900, BINARY)
    emt = bulk("Cu")
    emt.calc = EMT()
    with pytest.raises(ValueError, match=r"EMT.*attach_calculator"):
        NeuralSGCSampler(emt, 900, BINARY)
    atoms = binary_atoms(tmp_path)
    second = atoms.copy()
    second.calc = atoms.calc  # which CLEASE takes to mean: follow these from now on
    with pytest.raises(ValueError, match="another Atoms"):
        NeuralSGCSampler(atoms, 900, BINARY)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"symbols": ["Au", "Zn"]}, "'Zn'.*Au.*Cu"),
        ({"symbols": ["Au"]}, "at least two"),
        ({"temp": 0}, "positive"),
        ({"out_of_range": "ignore"}, "'warn' or 'raise'"),
        ({"neural_interval": -1}, "positive number of sweeps"),
        ({"model": "missing.nn"}, "missing.nn"),
        ({"model": 3}, r"TrainedModel.*got 3"),
        ({"temp": "600"}, "number in K.*'600'"),
        ({"temp": None}, "number in K.*None"),
    ],
)
def test_bad_arguments(tmp_path, kwargs, match):
    """Each bad argument is named."""
    arguments = {"temp": 900, "symbols": BINARY, **kwargs}
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=match):
        NeuralSGCSampler(binary_atoms(tmp_path), **arguments)


def test_bad_chemical_potentials(tmp_path):
    """Unknown names, missing ECIs, NaN and none at all."""
    mc = NeuralSGCSampler(binary_atoms(tmp_path), 900, BINARY)
    with pytest.raises(ValueError, match="no chemical potentials"):
        mc.run(10)
    with pytest.raises(InvalidChemicalPotentialError, match=r"c1_1.*singlets \['c1_0'\]"):
        mc.run(10, chem_pot={"c1_1": 0.1})
    with pytest.raises(ValueError, match="Zn"):
        mc.run(10, chem_pot={"Zn": 0.1})
    with pytest.raises(ValueError, match="finite"):
        mc.run(10, chem_pot={"c1_0": np.nan})
    for bad in ([1], "c1_0", {0: 0.1}):
        with pytest.raises(TypeError, match="must be a mapping"):
            mc.run(10, chem_pot=bad)
        with pytest.raises(TypeError, match="must be a mapping"):
            mc.fit((300, 900), bad)
    with pytest.raises(TypeError, match="c1_0 must be a number in eV, got 'a'"):
        mc.run(10, chem_pot={"c1_0": "a"})
    for bad in (600, (300,), None):
        with pytest.raises(ValueError, match=r"temps must be a pair \(low, high\) in K"):
            mc.fit(bad, {"c1_0": (-0.1, 0.1)})
    with pytest.raises(ValueError, match=r"\(low, high\)"):
        mc.fit((300, 900), {"c1_0": 0.1})
    with pytest.raises(ValueError, match="inverted"):
        mc.fit((300, 900), {"c1_0": (0.1, -0.1)})


def test_bad_numbers_of_steps(tmp_path):
    """Steps and numbers of samples are whole and not negative."""
    mc = NeuralSGCSampler(binary_atoms(tmp_path), 900, BINARY)
    with pytest.raises(ValueError, match="steps must be an integer, 0 or more, got -5"):
        mc.run(-5, chem_pot=CHEM_POT)
    for bad in (1e3, "10", None):
        with pytest.raises(TypeError, match="steps must be an integer"):
            mc.run(bad, chem_pot=CHEM_POT)
        with pytest.raises(TypeError, match="steps must be an integer"):
            mc.irun(bad)
        with pytest.raises(TypeError, match="n must be a positive integer"):
            mc.sample(bad)


def test_folded_chemical_potential_is_detected(tmp_path):
    """Another sampler's chemical potential in the ECIs is refused, not counted twice."""
    atoms = binary_atoms(tmp_path)
    model = trained(atoms)
    other = SGCMonteCarlo(atoms, 900, BINARY)
    other.run(5, chem_pot=CHEM_POT)
    with pytest.raises(ValueError, match=r"SGCMonteCarlo.*reset_eci\(\)"):
        NeuralSGCSampler(atoms, 900, BINARY)
    other.chem_pot_in_eci = False  # as if the other sampler were gone
    with pytest.raises(ValueError, match=r"only in \['c1_0'\].*reset_eci\(\)"):
        NeuralSGCSampler(atoms, 900, BINARY, model=model)
    other.chem_pot_in_eci = True
    other.reset_eci()
    mc = NeuralSGCSampler(atoms, 900, BINARY)
    other.run(5, chem_pot=CHEM_POT)
    with pytest.raises(ValueError, match=r"reset_eci\(\)"):
        mc.run(5, chem_pot=CHEM_POT)


def test_symbols_across_sublattices_are_refused(tmp_path):
    """Elements of one sublattice are not put on the other; the remedies are named."""
    atoms = rocksalt_atoms(tmp_path)
    mc = NeuralSGCSampler(atoms, 900, ["Li", "V", "O", "X"])
    with pytest.raises(ValueError, match=r"cross sublattices.*RandomFlipWithinBasis"):
        mc.run(10, chem_pot={"c1_0": 0.0})


def test_foreign_generator_is_refused(tmp_path):
    """A generator that flips the sites of other atoms is refused."""
    atoms = binary_atoms(tmp_path)
    mc = NeuralSGCSampler(atoms, 900, generator=RandomFlip(BINARY, atoms.copy()))
    with pytest.raises(ValueError, match="another Atoms"):
        mc.run(10, chem_pot=CHEM_POT)
