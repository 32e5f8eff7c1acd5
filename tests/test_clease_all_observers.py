"""Every observer that CLEASE has, by name: exact averages or records equal to what happened.

``test_clease_observers`` holds further laws of the classes that the drop-in corrects.
"""

import importlib
import inspect
import pkgutil
from types import SimpleNamespace

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.io import Trajectory
from clease.montecarlo import observers as module
from clease.montecarlo.observers import (
    AcceptanceRate,
    ConcentrationObserver,
    CorrelationFunctionObserver,
    DiffractionObserver,
    EnergyEvolution,
    EnergyPlotUpdater,
    EntropyProductionRate,
    LowestEnergyStructure,
    MCObserver,
    MoveObserver,
    MultiStateSGCConcObserver,
    SGCObserver,
    SGCState,
    SiteOrderParameter,
    Snapshot,
)
from sampler_helpers import binary_atoms, exact, pooled_z, ternary_atoms, trained

from clease_nn.conditions import Conditions
from clease_nn.energies import CalculatorEnergy
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.hosts.clease.sampler import NeuralSGCSampler
from clease_nn.lattice import Lattice

TEMPERATURE = 900
LARGEST_Z = 6  # once in 10,000 at the 11 degrees of freedom of 12 runs
SYSTEMS = {
    "binary": (binary_atoms, ["Au", "Cu"], {"c1_0": 0.02}),
    "ternary": (ternary_atoms, ["Au", "Cu", "Pd"], {"c1_0": 0.02, "c1_1": -0.03}),
}


class System:
    """A sampler that mixes single-site and neural moves, with its exact reference."""

    temperature, steps = TEMPERATURE, 1500

    def __init__(self, name, folder):
        build, self.symbols, self.chem_pot = SYSTEMS[name]
        self.atoms = build(folder, **({"size": (2, 2, 1)} if name == "ternary" else {}))
        self.host, self.x, p, e = exact(self.atoms, TEMPERATURE, self.chem_pot)
        self.p, self.e = p.numpy(), e.numpy()
        self.start = self.atoms.copy()
        self.options = {
            "model": trained(self.atoms, tuple(self.chem_pot)), "neural_interval": 10
        }  # fmt: skip

    def begin(self):
        """A new sampler, from the same start."""
        self.atoms.numbers = self.start.numbers
        self.mc = NeuralSGCSampler(
            self.atoms, self.temperature, self.symbols, seed=11, **self.options
        )

    def share(self, symbol):
        """(states,) share of the sites that carry a species."""
        return (self.x.numpy() == self.host.species.index(symbol)).mean(1)

    def singlets(self):
        """(states, singlets) mean site functions."""
        functions = self.atoms.calc.settings.basis_functions
        table = np.array([[f[s] for s in self.host.species] for f in functions])
        return table[:, self.x.numpy()].mean(2).T

    def collect(self, read, factor=1):
        """What ``read`` gives after each of 12 consecutive runs."""
        self.mc.run(400, call_observers=False, chem_pot=self.chem_pot)
        out = []
        for _ in range(12):
            self.mc.run(factor * self.steps)
            out.append(read())
        return np.array(out)

    def z(self, values, per_state):
        """Largest |z| of replicas (n, ...) against the mean over states (states, ...)."""
        reference = self.p @ np.asarray(per_state, dtype=float)
        return np.max(np.abs(pooled_z_columns(values, reference)))


class AnyEnergy(System):
    """The same interface on an ASE calculator; every step costs an energy."""

    temperature, steps = 2500, 400

    def __init__(self):
        self.symbols, self.chem_pot = ["Au", "Cu"], {"Au": 0.15}
        self.atoms = bulk("Cu", a=3.8) * (2, 2, 2)
        self.atoms.calc = EMT()
        energy = CalculatorEnergy(EMT())
        self.start = self.atoms.copy()
        self.options = {"energy": energy, "neural_interval": None}
        self.host = Lattice.uniform(self.atoms, self.symbols)
        states = SemiGrandCanonical(energy).enumerate(self.host)
        mu = [self.chem_pot.get(s, 0.0) for s in self.host.species]
        at = Conditions([self.temperature], [mu])
        self.x, self.p = states.occupations, states.probabilities(at).numpy()
        self.e = (-states.log_target(at) * at.kT[0]).numpy()


def pooled_z_columns(values, reference):
    """z of the mean of replicas, column by column."""
    values = np.asarray(values, dtype=float).reshape(len(values), -1)
    return [pooled_z(v, r) for v, r in zip(values.T, np.ravel(reference), strict=True)]


@pytest.fixture(scope="module", params=[*SYSTEMS, "any energy"])
def built(request, tmp_path_factory):
    if request.param == "any energy":
        return AnyEnergy()
    return System(request.param, tmp_path_factory.mktemp("system"))


@pytest.fixture
def system(built, tmp_path, monkeypatch):
    monkeypatch.setenv("CLEASE_NN_MODELS", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    built.begin()
    yield built
    built.mc.reset_eci()


# ------------------------------------------------------------------ one check an observer
def acceptance(s):
    """The share of accepted steps."""
    observer, moves = AcceptanceRate(), MoveObserver(s.start)
    s.mc.attach(observer)
    s.mc.attach(moves)
    s.mc.run(1000, chem_pot=s.chem_pot)
    assert observer.rate == np.mean([step.move_accepted for step in moves.steps])
    assert 0.05 < observer.rate < 0.95


def concentration(s):
    """Mean and variance of the share of every species."""
    observers = [ConcentrationObserver(s.atoms, e) for e in s.symbols]
    for observer in observers:
        s.mc.attach(observer)
    values = s.collect(
        lambda: [o.get_averages()[f"conc_{e}"] for o, e in zip(observers, s.symbols, strict=True)]
    )
    assert s.z(values, np.stack([s.share(e) for e in s.symbols], 1)) < LARGEST_Z
    for observer in observers:
        assert observer.current_conc == pytest.approx(observer.calculate_from_scratch(s.atoms))


def correlation_functions(s):
    """The average of every correlation function of the expansion."""
    names = sorted(s.atoms.calc.get_cf())
    observer = CorrelationFunctionObserver(s.atoms.calc, names)
    s.mc.attach(observer, interval=3)
    per_state = np.array([[cf[name] for name in names] for cf in all_functions(s)])
    values = s.collect(lambda: [observer.get_averages()[f"cf_{name}"] for name in names], factor=2)
    moving = per_state.std(0) > 1e-12
    assert s.z(values[:, moving], per_state[:, moving]) < LARGEST_Z
    assert np.allclose(values[:, ~moving], per_state[0, ~moving])


def all_functions(s):
    """CLEASE's own correlation functions of every state."""
    from clease.corr_func import CorrFunction

    calculate = CorrFunction(s.atoms.calc.settings)
    return [calculate.get_cf(s.host.atoms(row)) for row in s.x.numpy()]


def diffraction(s):
    """The mean structure amplitude of a reflection of the cell."""
    k = 2 * np.pi * s.atoms.cell.reciprocal()[0]
    observer = DiffractionObserver(s.atoms, k, ["Au"], s.symbols, name="s")
    s.mc.attach(observer)
    phase = np.exp(1j * s.atoms.positions @ k) / len(s.atoms)
    per_state = (s.x.numpy() == s.host.species.index("Au")) @ phase
    values = s.collect(lambda: observer.avg / observer.num_updates)
    assert s.z(np.stack([values.real, values.imag], 1)[:, :1], per_state.real[:, None]) < LARGEST_Z
    assert s.mc.get_thermodynamic_quantities()["s"] == pytest.approx(abs(values[-1]))


def energy_evolution(s):
    """The energy of every step, whose mean is the exact one."""
    observer = EnergyEvolution(s.mc)
    s.mc.attach(observer)
    values = s.collect(lambda: np.mean(observer.energies))
    assert len(observer.energies) == s.steps
    assert s.z(values, s.e) < LARGEST_Z
    state = (s.x.numpy() == s.host.occupations(s.atoms)).all(1)
    assert observer.energies[-1] == pytest.approx(s.e[state][0])
    assert observer.mean_energies[-1] == pytest.approx(values[-1])


def energy_plot(s):
    """Called with the running mean of an EnergyEvolution."""
    evolution = EnergyEvolution(s.mc)
    graph, plot = SimpleNamespace(), SimpleNamespace()
    s.mc.attach(evolution, 10)
    s.mc.attach(EnergyPlotUpdater(evolution, graph, plot), interval=100)
    s.mc.run(500, chem_pot=s.chem_pot)
    expected = [e - evolution.mean_energies[0] for e in evolution.mean_energies]
    assert [y for _, y in plot.points] == pytest.approx(expected)
    assert graph.xmax == len(expected) + 1


def lowest_energy(s):
    """The lowest step of the run, with its structure and correlation functions."""
    has_functions = not isinstance(s, AnyEnergy)
    lowest = LowestEnergyStructure(s.atoms, track_cf=has_functions)
    evolution = EnergyEvolution(s.mc)
    s.mc.attach(lowest)
    s.mc.attach(evolution)
    s.mc.run(2000, chem_pot=s.chem_pot)
    assert lowest.lowest_energy == min(evolution.energies)
    assert lowest.lowest_energy == pytest.approx(s.e.min(), abs=1e-9)  # so short a run finds it
    state = (s.x.numpy() == s.host.occupations(lowest.emin_atoms)).all(1)
    assert s.e[state][0] == pytest.approx(lowest.lowest_energy)
    if has_functions:
        cf = all_functions(s)[int(np.argmax(state))]
        assert lowest.lowest_energy_cf == pytest.approx(dict(cf))


def base_class(s):
    """An observer of the user's own sees every state it is called at."""

    class Gold(MCObserver):
        def __init__(self, atoms):
            self.atoms, self.values = atoms, []

        def __call__(self, system_changes):
            self.values.append((self.atoms.numbers == 79).mean())

        def reset(self):
            self.values = []

    observer = Gold(s.atoms)
    s.mc.attach(observer, interval=2)
    values = s.collect(lambda: np.mean(observer.values))
    assert len(observer.values) == s.steps // 2
    assert s.z(values, s.share("Au")) < LARGEST_Z


def moves(s):
    """Replaying the moves gives the states; accepted ones alone too."""
    everything, accepted = MoveObserver(s.start), MoveObserver(s.start, only_accept=True)
    s.mc.attach(everything)
    s.mc.attach(accepted)
    s.mc.run(400, chem_pot=s.chem_pot)
    assert len(everything.steps) == 400 > len(accepted.steps)
    for observer in (everything, accepted):
        last = observer.reconstruct()[-1]
        assert (last.numbers == s.atoms.numbers).all()
        states = s.host.occupations(last)
        at = (s.x.numpy() == states).all(1)
        assert s.e[at][0] == pytest.approx(observer.steps[-1].energy)


def other_states(s):
    """Singlets at another temperature and chemical potential, reweighted exactly."""
    eci = dict(s.atoms.calc.eci)
    target = SGCState(1100, {name: 0.01 for name in s.chem_pot})
    observer = MultiStateSGCConcObserver(SGCState(TEMPERATURE, s.chem_pot), [target], s.atoms.calc)
    s.mc.attach(observer, interval=5)
    values = s.collect(lambda: list(observer.get_averages().values()), factor=3)
    p = exact(s.atoms, target.temp, target.chem_pot, eci)[2].numpy()
    reference = p @ s.singlets()
    assert np.max(np.abs(pooled_z_columns(values, reference))) < LARGEST_Z


def sgc_averages(s):
    """CLEASE's own averager, attached by the user: energies, singlets and their products."""
    observer = SGCObserver(s.atoms.calc, observe_singlets=True)
    s.mc.attach(observer)

    def read():
        q, n = observer.quantities, observer.counter
        assert n == s.steps
        return [q.energy.mean, q.energy_sq.mean, *(q.singlets / n), *(q.singlets_sq / n),
                *(q.singl_eng / n)]  # fmt: skip

    values = s.collect(read)
    singlets = s.singlets()
    per_state = np.column_stack([s.e, s.e**2, singlets, singlets**2, singlets * s.e[:, None]])
    assert s.z(values, per_state) < LARGEST_Z


def site_order(s):
    """The number of sites that differ from the start."""
    observer = SiteOrderParameter(s.atoms)
    s.mc.attach(observer)
    start = s.host.occupations(s.start)
    values = s.collect(lambda: observer.get_averages()["site_order_average"])
    assert s.z(values, (s.x.numpy() != start).sum(1)) < LARGEST_Z


def snapshot(s):
    """Every frame is the state at the step it was written, with the energy."""
    observer, all_moves = Snapshot(s.atoms, "frames.traj"), MoveObserver(s.start)
    s.mc.attach(observer, interval=40)
    s.mc.attach(all_moves)
    s.mc.run(400, chem_pot=s.chem_pot)
    observer.close()
    rebuilt = all_moves.reconstruct()
    frames = Trajectory("frames.traj")
    assert len(frames) == 10
    for k, frame in enumerate(frames):
        assert (frame.numbers == rebuilt[40 * k + 39].numbers).all()
        if not isinstance(s, AnyEnergy):  # CLEASE's calculator holds the energy of every state
            energy = all_moves.steps[40 * k + 39].energy
            assert frame.get_potential_energy() == pytest.approx(energy)


CHECKS = {
    AcceptanceRate: acceptance,
    ConcentrationObserver: concentration,
    CorrelationFunctionObserver: correlation_functions,
    DiffractionObserver: diffraction,
    EnergyEvolution: energy_evolution,
    EnergyPlotUpdater: energy_plot,
    LowestEnergyStructure: lowest_energy,
    MCObserver: base_class,
    MoveObserver: moves,
    MultiStateSGCConcObserver: other_states,
    SGCObserver: sgc_averages,
    SiteOrderParameter: site_order,
    Snapshot: snapshot,
}
# of kinetic Monte Carlo, which has events and no semi-grand canonical steps
ELSEWHERE = {EntropyProductionRate}
# used by observers, never attached
PARTS = {"BufferedArray", "DiffractionUpdater", "SGCQuantities", "SGCState"}


# these need correlation functions
OF_EXPANSIONS = {CorrelationFunctionObserver, MultiStateSGCConcObserver, SGCObserver}


@pytest.mark.parametrize("observer", CHECKS, ids=lambda cls: cls.__name__)
def test_observer(observer, system):
    """Attached to the drop-in, the observer holds what its description promises."""
    if isinstance(system, AnyEnergy) and observer in OF_EXPANSIONS:
        stand_in = observer.__new__(observer)
        with pytest.raises(TypeError, match="needs correlation functions"):
            system.mc.attach(stand_in)
    else:
        CHECKS[observer](system)


def test_every_observer_of_the_host_is_checked():
    """A class of the host's observer modules without a check here is a gap."""
    found = set()
    for info in pkgutil.iter_modules(module.__path__):
        part = importlib.import_module(f"{module.__name__}.{info.name}")
        classes = inspect.getmembers(part, inspect.isclass)
        found |= {name for name, cls in classes if cls.__module__ == part.__name__}
    known = {cls.__name__ for cls in [*CHECKS, *ELSEWHERE]}
    assert found - PARTS <= known, f"no check for {sorted(found - PARTS - known)}"
    assert known <= found, f"no longer in CLEASE: {sorted(known - found)}"
