"""CLEASE's observers on the drop-in: their own objects hold the exact averages."""

import numpy as np
import pytest
from clease.montecarlo import SGCMonteCarlo
from clease.montecarlo.observers import (
    AcceptanceRate,
    ConcentrationObserver,
    CorrelationFunctionObserver,
    DiffractionObserver,
    EnergyEvolution,
    LowestEnergyStructure,
    MoveObserver,
    MultiStateSGCConcObserver,
    SGCState,
    SiteOrderParameter,
    Snapshot,
)
from sampler_helpers import binary_atoms, exact, pooled_z, trained

from clease_nn.hosts.clease.sampler import NeuralSGCSampler

CHEM_POT = {"c1_0": 0.02}
TEMPERATURE = 900
pytestmark = pytest.mark.filterwarnings("ignore::clease_nn.warnings.NoModelWarning")


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Atoms, exact reference and a sampler that mixes single-site and neural moves."""
    monkeypatch.setenv("CLEASE_NN_MODELS", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    atoms = binary_atoms(tmp_path)
    reference = exact(atoms, TEMPERATURE, CHEM_POT)
    mc = NeuralSGCSampler(
        atoms, TEMPERATURE, ["Au", "Cu"], model=trained(atoms), neural_interval=10, seed=11
    )
    return atoms, reference, mc


def collect(mc, key, n=12, steps=1500):
    """Averages under ``key`` of consecutive runs."""
    mc.run(300, call_observers=False, chem_pot=CHEM_POT)
    out = []
    for _ in range(n):
        mc.run(steps)
        out.append(mc.get_thermodynamic_quantities()[key])
    return out


def test_concentration(system):
    """Rejected steps count; mean and variance are exact."""
    atoms, (_, x, p, _), mc = system
    observer = ConcentrationObserver(atoms, "Au")
    mc.attach(observer, interval=1)
    conc = (x == 0).double().mean(1)
    mean = float((p * conc).sum())
    assert abs(pooled_z(collect(mc, "conc_Au"), mean)) < 4
    variance = float((p * conc**2).sum()) - mean**2
    assert observer.get_averages()["conc_var_Au"] == pytest.approx(variance, rel=0.3)
    assert observer.current_conc == pytest.approx(observer.calculate_from_scratch(atoms))


def test_acceptance(system):
    """The observer counts accepted moves: it says what the sampler says."""
    _, _, mc = system
    observer = AcceptanceRate()
    mc.attach(observer, interval=1)
    mc.run(2000, chem_pot=CHEM_POT)
    assert 0.1 < observer.rate < 0.95
    assert observer.rate == mc.current_accept_rate
    assert mc.get_thermodynamic_quantities()["accept_rate"] == observer.rate


def test_diffraction(system):
    """|<S(k)>| of a reflection agrees with enumeration."""
    atoms, (_, x, p, _), mc = system
    k = np.array([0.0, 0.0, 2 * np.pi / 3.8])
    observer = DiffractionObserver(atoms, k, ["Au"], ["Au", "Cu"], name="s")
    mc.attach(observer, interval=1)
    phase = np.exp(1j * atoms.positions @ k) / len(atoms)
    mean = (p.numpy()[:, None] * (x.numpy() == 0)).sum(0) @ phase
    values = []
    mc.run(300, call_observers=False, chem_pot=CHEM_POT)
    for _ in range(12):
        mc.run(1500)
        values.append((observer.avg / observer.num_updates).real)
    assert abs(pooled_z(values, mean.real)) < 4
    assert mc.get_thermodynamic_quantities()["s"] == pytest.approx(
        abs(observer.avg / observer.num_updates)
    )


def test_site_order(system):
    """Sites differing from the start, also where all of them do."""
    atoms, (_, x, p, _), mc = system
    observer = SiteOrderParameter(atoms)  # all Cu
    mc.attach(observer, interval=1)
    n_au = (x == 0).double().sum(1)
    assert abs(pooled_z(collect(mc, "site_order_average"), float((p * n_au).sum()))) < 4
    mc.reset_eci()
    mc.run(500, chem_pot={"c1_0": 0.3})  # nearly pure Au: every site differs
    assert observer.get_averages()["site_order_average"] > 7


def test_other_states(system):
    """Singlets at another temperature and chemical potential, reweighted exactly."""
    atoms, (host, x, _, _), mc = system
    mc.reset_eci()
    eci = dict(atoms.calc.eci)
    states = [SGCState(1100, {"c1_0": 0.0}), SGCState(900, {"c1_0": 0.05})]
    observer = MultiStateSGCConcObserver(SGCState(TEMPERATURE, CHEM_POT), states, atoms.calc)
    mc.attach(observer, interval=5)
    mc.run(300, call_observers=False, chem_pot=CHEM_POT)
    values = []
    for _ in range(12):
        mc.run(3000)
        values.append(list(observer.get_averages().values()))
    phi = np.array([atoms.calc.settings.basis_functions[0][s] for s in host.species])
    singlet = phi[x.numpy()].mean(1)
    for k, state in enumerate(states):
        p = exact(atoms, state.temp, state.chem_pot, eci)[2].numpy()
        assert abs(pooled_z([v[k] for v in values], p @ singlet)) < 4.5


def test_correlation_functions(system):
    """The chosen correlation functions, also after a reset, read from an updated calculator."""
    atoms, (host, x, p, _), mc = system
    names = ["c1_0"]
    observer = CorrelationFunctionObserver(atoms.calc, names)
    mc.attach(observer, interval=5)
    phi = np.array([atoms.calc.settings.basis_functions[0][s] for s in host.species])
    reference = float(p.numpy() @ phi[x.numpy()].mean(1))
    assert abs(pooled_z(collect(mc, "cf_c1_0", steps=4000), reference)) < 4
    assert list(observer.get_averages()) == ["cf_c1_0"]


def test_energies_structures_and_files(system, tmp_path):
    """EnergyEvolution, LowestEnergyStructure, MoveObserver and Snapshot see consistent states."""
    from ase.io import Trajectory

    atoms, (_, _, _, e), mc = system
    evolution, lowest = EnergyEvolution(mc), LowestEnergyStructure(atoms)
    moves, snapshot = MoveObserver(atoms), Snapshot(atoms, str(tmp_path / "s.traj"))
    for observer, interval in ((evolution, 1), (lowest, 1), (moves, 1), (snapshot, 50)):
        mc.attach(observer, interval)
    mc.run(500, chem_pot=CHEM_POT)
    snapshot.close()
    assert len(evolution.energies) == 500
    assert lowest.lowest_energy == min(evolution.energies) >= float(e.min()) - 1e-9
    rebuilt = moves.reconstruct()
    assert (rebuilt[-1].numbers == atoms.numbers).all()
    frames = Trajectory(str(tmp_path / "s.traj"))
    assert len(frames) == 10
    for k, frame in enumerate(frames):
        assert (frame.numbers == rebuilt[50 * (k + 1) - 1].numbers).all()
        assert frame.get_potential_energy() == pytest.approx(evolution.energies[50 * k + 49])


def test_users_objects_are_listed(system):
    """iter_observers gives what was attached, not what stands in for it."""
    atoms, _, mc = system
    observer = ConcentrationObserver(atoms, "Au")
    mc.attach(observer)
    assert list(mc.iter_observers())[-1] is observer
    with pytest.raises(ValueError, match="interval"):
        mc.attach(ConcentrationObserver(atoms, "Au"), interval=2)


def test_observers_of_the_host_stay_the_hosts(tmp_path):
    """Attaching to CLEASE's own sampler is untouched by ours."""
    atoms = binary_atoms(tmp_path)
    mc = SGCMonteCarlo(atoms, 900, ["Au", "Cu"])
    observer = AcceptanceRate()
    mc.attach(observer)
    mc.run(50, chem_pot=CHEM_POT)
    assert observer.rate == 1.0
