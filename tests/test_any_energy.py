"""CLEASE's interface for any energy: ASE calculators, callables, icet; exact averages."""

import inspect
import random

import numpy as np
import pytest
import torch
from any_energy_helpers import (
    BINARY,
    MU,
    TEMP,
    biased_model,
    cell,
    check_averages,
    emt_energies,
    exact,
    replicas,
    table_energy,
)
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from clease.datastructures import SystemChange
from clease.montecarlo import BinnedBiasPotential
from clease.montecarlo.constraints import FixedIndices
from clease.montecarlo.observers import (
    ConcentrationObserver,
    LowestEnergyStructure,
    MCObserver,
    SGCObserver,
)
from clease.montecarlo.trial_move_generator import TrialMoveGenerator
from sampler_helpers import binary_atoms, pooled_z

from clease_nn.conditions import Conditions
from clease_nn.energies.calculator import CalculatorEnergy
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.hosts.clease import EnergySampler, NeuralSGCSampler
from clease_nn.hosts.clease.system import active_lattice
from clease_nn.lattice import Lattice
from clease_nn.single_chain import EnergyChain, FlipGroups

pytestmark = [
    pytest.mark.usefixtures("nowhere"),
    pytest.mark.filterwarnings("ignore::clease_nn.warnings.NoModelWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:spglib"),
]


# ------------------------------------------------------------------ the chain
def test_chain_of_any_energy_samples_the_boltzmann_distribution():
    """Sums of E', E'^2 and the observables agree with enumeration, masks and groups included."""
    lattice = Lattice.square(2, 2, species=("Au", "Cu", "Pd"))
    values = torch.as_tensor(np.random.default_rng(1).normal(0, 0.1, 81))

    def energy(lattice, x):
        return values[x.long() @ 3 ** torch.arange(4)]

    mask = lattice.allowed.copy()
    mask[0, 2] = False
    groups = FlipGroups([([0, 1, 2], [0, 1, 2]), ([3], [0, 2])], mask)
    states = SemiGrandCanonical(energy).enumerate(lattice)
    at = Conditions.from_kT([0.1], [[0.0, 0.05, -0.03]])
    x = states.occupations.numpy()
    inside = groups.reachable[np.arange(4), x].all(1)
    p = np.where(inside, states.probabilities(at).numpy(), 0)
    p /= p.sum()
    e = -states.log_target(at).numpy() * 0.1
    gold = (x == 0).mean(1)
    reference = [p @ e, p @ e**2, p @ gold, p @ gold**2, p @ (gold * e)]
    chain, means = EnergyChain(energy, lattice, [[1, 0, 0]]), []
    chain.set(0.1, at.mu[0].numpy(), groups)
    chain.load(np.zeros(4, np.int8), float(e[0]))
    for seed in range(20):
        chain.seed(np.random.SeedSequence(seed))
        chain.run(50)
        chain.clear()
        chain.run(1500)
        means.append(chain.sums / chain.steps)
    z = (np.mean(means, 0) - reference) / (np.std(means, 0, ddof=1) / np.sqrt(20))
    assert np.abs(z).max() < 4
    assert chain.calls <= 20 * 1550


# ------------------------------------------------------------------ averages
def test_the_name_serves_any_calculator():
    """One class name: CLEASE's calculator or another; isinstance holds; signatures are shown."""
    atoms = cell()
    atoms.calc = EMT()
    mc = NeuralSGCSampler(atoms, TEMP, symbols=BINARY, seed=1, neural_interval=None)
    assert isinstance(mc, EnergySampler) and isinstance(mc, NeuralSGCSampler)
    numbers, positions = atoms.numbers, atoms.positions.copy()
    mc.run(60, chem_pot=MU)
    assert atoms.numbers is numbers and (atoms.positions == positions).all()
    n_au = int((atoms.symbols == "Au").sum())
    fresh = atoms.copy()
    fresh.calc = EMT()
    assert mc.current_energy == pytest.approx(fresh.get_potential_energy() - 0.2 * n_au, abs=1e-9)
    assert list(inspect.signature(NeuralSGCSampler).parameters)[:3] == ["atoms", "temp", "symbols"]


def test_plain_chain_of_an_ase_calculator_is_exact():
    """Averages of a run with an EMT calculator on the atoms agree with enumeration."""
    lattice = active_lattice(cell(), BINARY)
    x, p, e, _ = exact(table_energy, lattice)
    atoms = cell()
    atoms.calc = EMT()
    mc = NeuralSGCSampler(atoms, TEMP, symbols=BINARY, seed=2, neural_interval=None)
    check_averages(replicas(mc, 16, 800), x, p, e)


@pytest.mark.parametrize("interval", [None, "auto", 0.5])
def test_averages_are_exact_with_a_poor_model(interval):
    """Whatever the neural moves, energy, heat capacity and composition are exact."""
    lattice = active_lattice(cell(), BINARY)
    x, p, e, _ = exact(table_energy, lattice)
    model = None if interval is None else biased_model(lattice)
    mc = NeuralSGCSampler(
        cell(), TEMP, symbols=BINARY, energy=table_energy, model=model, seed=3,
        neural_interval=interval,
    )  # fmt: skip
    check_averages(replicas(mc, 20, 800), x, p, e)
    assert (mc.neural_schedule is None) == (interval is None)


def test_free_energy_is_exact():
    """-kT ln Z of the true energy within its own error, at the present and other conditions."""
    lattice = active_lattice(cell(), BINARY)
    mc = NeuralSGCSampler(
        cell(), TEMP, symbols=BINARY, energy=table_energy, model=biased_model(lattice), seed=3
    )
    for temp, mu in ((TEMP, MU), (1500, {"Au": -0.1, "Cu": 0.05})):
        f = mc.free_energy(temp=temp, chem_pot=mu, n=4000)
        assert abs(f.z(exact(table_energy, lattice, temp, mu)[3])) < 4 and f.error < 0.05


def test_thermodynamic_quantities_are_flat_and_complete():
    """CLEASE's keys, concentrations always, chemical potentials by element; scalars only."""
    mc = NeuralSGCSampler(
        cell(), TEMP, BINARY, None, True, energy=table_energy, seed=1, neural_interval=None
    )
    mc.run(300, chem_pot=MU)
    q = mc.get_thermodynamic_quantities(reset_eci=True)
    keys = ["energy", "sgc_energy", "sgc_heat_capacity", "temperature", "n_mc_steps", "accept_rate"]
    assert list(q)[:6] == keys
    assert {"Au_conc", "Cu_conc", "mu_Au", "mu_Cu", "var_Au_conc", "energy_calls"} <= set(q)
    assert q["mu_Au"] == 0.2 and q["mu_Cu"] == 0.0 and q["n_mc_steps"] == 300
    assert q["energy_calls"] <= 302
    assert q["singlet_energy"] == pytest.approx(q["energy"] + 0.2 * 8 * q["Au_conc"], abs=1e-9)
    assert all(isinstance(v, (int, float, str)) for v in q.values())


# ------------------------------------------------------------------ CLEASE's features
class Watch(MCObserver):
    """Keeps the steps it sees, with the atoms."""

    def __init__(self, atoms):
        self.atoms, self.steps, self.numbers = atoms, [], []

    def observe_step(self, mc_step):
        self.steps.append(mc_step)
        self.numbers.append(self.atoms.numbers.copy())


@pytest.mark.parametrize("interval", [1, 7, 20])
def test_observers_see_the_state_of_their_step(interval):
    """At any interval, step number, energy, atoms and last move belong together."""
    atoms = cell()
    lattice = active_lattice(atoms, BINARY)
    mc = NeuralSGCSampler(
        atoms, TEMP, BINARY, energy=table_energy, seed=1, model=biased_model(lattice),
        neural_interval=0.4,
    )  # fmt: skip
    watch, lowest = Watch(atoms), LowestEnergyStructure(atoms)
    mc.attach(watch, interval)
    mc.attach(lowest, interval)
    mc.run(140, chem_pot=MU)
    assert [s.step for s in watch.steps] == list(range(interval, 141, interval))
    e = []
    for step, numbers in zip(watch.steps, watch.numbers, strict=True):
        then = Atoms(numbers=numbers, cell=atoms.cell, positions=atoms.positions, pbc=True)
        x = lattice.occupations(then)
        e.append(float(table_energy(lattice, torch.as_tensor(x)[None])) - 0.2 * (x == 0).sum())
        assert step.energy == pytest.approx(e[-1], abs=1e-9)
        for change in step.last_move:
            assert step.move_accepted or change.old_symb == change.new_symb
            assert then.symbols[change.index] == change.new_symb
    assert lowest.lowest_energy == pytest.approx(min(e), abs=1e-9)


def test_the_way_of_running_does_not_change_the_run():
    """Blocks, observed steps and irun make the same moves and averages."""
    results = []
    for way in ("blocks", "observed", "irun"):
        atoms = cell()
        mc = NeuralSGCSampler(
            atoms, TEMP, BINARY, energy=table_energy, seed=4, neural_interval=0.5,
            model=biased_model(active_lattice(atoms, BINARY)),
        )  # fmt: skip
        if way == "observed":
            mc.attach(Watch(atoms), 1)
        mc.chemical_potential = MU
        list(mc.irun(200)) if way == "irun" else mc.run(200)
        q = mc.get_thermodynamic_quantities()
        results.append([*atoms.numbers, q["energy"], q["Au_conc"], q["accept_rate"]])
        assert mc.averager.counter == 200
    assert results[1] == pytest.approx(results[0], abs=1e-9)
    assert results[2] == pytest.approx(results[0], abs=1e-9)


def test_constraints_biases_and_own_generators():
    """Clamps hold; biases and a user's generator run at the host's speed and stay exact."""
    lattice = active_lattice(cell(), BINARY)
    x, p, e, _ = exact(table_energy, lattice)
    atoms = cell()
    mc = NeuralSGCSampler(atoms, TEMP, BINARY, energy=table_energy, seed=1, neural_interval=None)
    mc.generator.add_constraint(FixedIndices([0, 1]))
    mc.run(300, chem_pot=MU)
    assert (atoms.symbols[:2] == "Cu").all()

    getter = ConcentrationObserver(atoms, "Au")
    bias = BinnedBiasPotential(xmin=0.0, xmax=1.0 + 1e-6, nbins=9, getter=getter)
    bias.values[:] = np.linspace(0, 0.4, 9)
    mc = NeuralSGCSampler(atoms, TEMP, BINARY, energy=table_energy, seed=1, neural_interval=None)
    mc.add_bias(bias)
    mc.attach(getter, 1)
    conc = (x == 0).double().mean(1)
    w = p * (-torch.tensor([bias.evaluate(float(v)) for v in conc]) / mc.kT).exp()
    out = replicas(mc, 12, 600)
    assert abs(pooled_z([q["conc_Au"] for q in out], float((w * conc).sum() / w.sum()))) < 4

    class Own(TrialMoveGenerator):
        def get_single_trial_move(self):
            i = random.randrange(8)
            old = atoms.symbols[i]
            return [SystemChange(i, old, "Cu" if old == "Au" else "Au", "own")]

    mc = NeuralSGCSampler(atoms, TEMP, BINARY, Own(), energy=table_energy)
    check_averages(replicas(mc, 12, 800), x, p, e)


def test_temperature_and_seeds():
    """Setting T clears the averages; a seed, or random.seed, fixes a run."""
    energies = []
    for own in (True, True, False, False):
        random.seed(5)
        mc = NeuralSGCSampler(
            cell(), TEMP, BINARY, energy=table_energy, seed=7 if own else None,
            neural_interval=None,
        )  # fmt: skip
        mc.run(100, chem_pot=MU)
        energies.append(mc.get_thermodynamic_quantities()["energy"])
    assert energies[0] == energies[1] and energies[2] == energies[3]
    mc.T = 500
    assert mc.temperature == 500 and mc.averager.counter == 0
    mc.run(0, chem_pot={"Cu": 0.1})
    assert mc.get_thermodynamic_quantities()["mu_Cu"] == 0.1


def test_chemical_potentials_changed_under_way_act_from_the_next_step():
    """As in CLEASE: whatever is set during irun holds from then on."""
    atoms = cell()
    mc = NeuralSGCSampler(atoms, TEMP, BINARY, energy=table_energy, seed=7, neural_interval=None)
    mc.chemical_potential = {"Au": -5.0}
    for k, _ in enumerate(mc.irun(400)):
        if k == 200:
            assert (atoms.symbols == "Cu").all()
            mc.chemical_potential = {"Au": 5.0}
    assert (atoms.symbols == "Au").all()
    assert mc.current_energy == pytest.approx(emt_energies()[0] - 8 * 5.0, abs=1e-9)


# ------------------------------------------------------------------ sites
def test_active_sites_and_sublattices():
    """Atoms of other elements stay; sites that symmetry does not join are other sublattices."""
    atoms = bulk("NaCl", "rocksalt", a=4.2) * 2
    lattice = active_lattice(atoms, ["Na", "X", "K"])
    assert lattice.n_sites == 8 and lattice.species == ("K", "Na", "X")
    lattice = active_lattice(atoms, ["Na", "Cl"])
    assert lattice.n_sites == 16 and len(np.unique(lattice.sublattices)) == 1
    slab = bulk("Cu", cubic=True) * (1, 1, 2)
    slab.center(vacuum=5, axis=2)
    slab.pbc = (True, True, False)
    assert len(np.unique(active_lattice(slab, BINARY).sublattices)) == 2


def test_a_lattice_says_what_each_site_may_carry():
    """With lattice=, sites differ in what they may carry, and moves respect it."""
    atoms = bulk("NaCl", "rocksalt", a=4.2) * (2, 1, 1)
    cations = np.array(atoms.symbols) == "Na"
    species = ("Br", "Cl", "K", "Na")
    allowed = np.where(cations[:, None], [[0, 0, 1, 1]], [[1, 1, 0, 0]]).astype(bool)
    lattice = Lattice(atoms, np.arange(4), species, allowed)

    def energy(lattice, x):
        return 0.05 * (x == 0).sum(1).double() * (x == 2).sum(1)

    mc = NeuralSGCSampler(atoms, 900, energy=energy, lattice=lattice, seed=1, neural_interval=None)
    x, p, _, _ = exact(energy, lattice, 900, {"K": 0.05})
    out = replicas(mc, 12, 800, {"K": 0.05})
    share = float((p * (x == 2).double().mean(1)).sum())
    assert abs(pooled_z([q["K_conc"] for q in out], share)) < 4
    with pytest.raises(ValueError, match="positions of atoms differ"):
        moved = atoms.copy()
        moved.positions += 0.1
        NeuralSGCSampler(moved, 900, energy=energy, lattice=lattice)


def test_vacancies_are_a_species():
    """ "X" among the symbols: atoms come and go, averages of the calculator are exact."""
    atoms = bulk("Cu", a=3.6, cubic=True)
    atoms.calc = EMT()
    mc = NeuralSGCSampler(atoms, 12000, ["Cu", "X"], seed=1, neural_interval=None)
    mu = {"Cu": 0.2}
    x, p, e, _ = exact(CalculatorEnergy(EMT()), mc.lattice, 12000, mu)
    out = replicas(mc, 12, 300, mu)
    assert abs(pooled_z([q["energy"] for q in out], float((p * e).sum()))) < 4
    share = float((p * (x == 1).double().mean(1)).sum())
    assert abs(pooled_z([q["X_conc"] for q in out], share)) < 4


# ------------------------------------------------------------------ bad input
def test_atoms_changed_behind_the_sampler_are_refused():
    """Moved atoms, another calculator, a foreign element: the next run says so."""
    atoms = cell()
    atoms.calc = EMT()
    mc = NeuralSGCSampler(atoms, TEMP, BINARY, seed=1, neural_interval=None)
    mc.run(5, chem_pot=MU)
    atoms.calc = EMT()
    with pytest.raises(ValueError, match="another calculator"):
        mc.run(5)
    mc = NeuralSGCSampler(atoms, TEMP, BINARY, seed=1, neural_interval=None)
    atoms.positions[0] += 0.1
    with pytest.raises(ValueError, match="cell or positions of atoms differ"):
        mc.run(5, chem_pot=MU)
    atoms.positions[0] -= 0.1
    atoms.symbols[3] = "Ag"
    with pytest.raises(ValueError, match="atom 3 is Ag"):
        mc.run(5, chem_pot=MU)


def test_changed_parameters_of_the_calculator_are_refused():
    """Energies computed before would mix with those of the changed calculator."""
    atoms = cell()
    atoms.calc = EMT()
    mc = NeuralSGCSampler(atoms, TEMP, symbols=BINARY, seed=1, neural_interval=None)
    mc.run(5, chem_pot=MU)
    atoms.calc.set(asap_cutoff=True)
    for call in (lambda: mc.run(5), lambda: mc.fit((600, 900), {"Au": (0.0, 0.1)})):
        with pytest.raises(ValueError, match="parameter 'asap_cutoff' .* was false .* is true"):
            call()
    atoms.calc.set(asap_cutoff=False)
    mc.run(5)


def test_an_energy_may_write_into_its_argument():
    """Runs and draws are those of the same energy that leaves its argument alone."""

    def careless(lattice, x):
        out = table_energy(lattice, x)
        x.neg_().add_(1)
        return out

    out = []
    for energy in (table_energy, careless):
        lattice = active_lattice(cell(), BINARY)
        mc = NeuralSGCSampler(
            cell(), TEMP, BINARY, energy=energy, seed=6, model=biased_model(lattice)
        )
        mc.run(60, chem_pot=MU)
        q = mc.get_thermodynamic_quantities()
        out.append((q["energy"], q["Au_conc"], mc.free_energy(n=50).value))
        chain = EnergyChain(energy, lattice)
        chain.set(0.1, [0.2, 0.0], FlipGroups([(range(8), [0, 1])], lattice.allowed))
        chain.load(np.zeros(8, np.int8), float(emt_energies()[0]) - 8 * 0.2)
        chain.run(60)
        out[-1] += tuple(chain.sums)
    assert out[0] == out[1]


@pytest.mark.parametrize("observed", [False, True])
def test_a_constant_of_the_energy_changes_no_average_but_the_energy(observed):
    """With 17 million eV added, as in totals of all electrons, the heat capacity stays."""
    out = []
    for constant in (0.0, 1.7e7):
        mc = NeuralSGCSampler(
            cell(), TEMP, symbols=BINARY, seed=5, neural_interval=None,
            energy=lambda lattice, x, c=constant: table_energy(lattice, x) + c,
        )  # fmt: skip
        if observed:
            mc.attach(ConcentrationObserver(mc.atoms, element="Au"))
        mc.run(300, chem_pot=MU)
        for _ in mc.irun(50):
            pass
        q = mc.get_thermodynamic_quantities()
        assert mc.averager.energy.mean == q["energy"]
        assert mc.mean_energy.mean == pytest.approx(q["energy"], abs=1e-6)
        out.append((q["energy"] - constant, 1e3 * q["sgc_heat_capacity"], q["Au_conc"]))
    assert out[1] == pytest.approx(out[0], abs=1e-6)


def test_bad_input_is_refused(tmp_path):
    """Wrong symbols, lattices, energies and observers: the value and the remedy."""
    atoms = cell()
    with pytest.raises(ValueError, match="atoms has no calculator"):
        NeuralSGCSampler(atoms, 900, BINARY)
    for symbols, match in (
        (["Au"], "at least two symbols"),
        (["Au", "Ag"], "no atom carries one of the symbols"),
        (["Cu", "Qq"], "'Qq' is no chemical symbol"),
    ):
        with pytest.raises(ValueError, match=match):
            NeuralSGCSampler(atoms, 900, symbols, energy=table_energy)
    shaped = NeuralSGCSampler(atoms, 900, BINARY, energy=lambda lattice, x: torch.zeros(len(x), 1))
    with pytest.raises(ValueError, match="returned shape"):
        shaped.run(1, chem_pot=MU)
    with pytest.raises(TypeError, match="must be callable"):
        NeuralSGCSampler(atoms, 900, BINARY, energy=3)
    mc = NeuralSGCSampler(atoms, 900, BINARY, energy=table_energy)
    with pytest.raises(ValueError, match="no chemical potentials given"):
        mc.run(10)
    for chem_pot, error, match in (
        ({"c1_0": 0.1}, ValueError, "unknown chemical potential 'c1_0'"),
        ({"Au": np.nan}, ValueError, "must be finite"),
        ({"Au": "x"}, TypeError, "must be a number"),
    ):
        with pytest.raises(error, match=match):
            mc.run(10, chem_pot=chem_pot)
    with pytest.raises(TypeError, match="needs correlation functions"):
        mc.attach(SGCObserver(binary_atoms(tmp_path).calc))
    with pytest.raises(TypeError, match="no singlets"):
        mc.singlet2composition([0.1])
    with pytest.raises(ValueError, match="no trained model"):
        mc.free_energy(chem_pot=MU)
