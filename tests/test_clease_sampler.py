"""The drop-in has CLEASE's surface and the exact distribution, with and without neural moves."""

import json
import random

import numpy as np
import pytest
import torch
from clease.datastructures import MCStep, SystemChange
from clease.montecarlo import BinnedBiasPotential, MetaDynamicsSampler, SGCMonteCarlo
from clease.montecarlo.observers import ConcentrationObserver, MCObserver
from clease.montecarlo.trial_move_generator import TrialMoveGenerator
from sampler_helpers import (
    bare_eci,
    binary_atoms,
    exact,
    pooled_z,
    ternary_atoms,
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
