"""Expensive energies at two levels, icet expansions and failing energies in CLEASE's interface."""

import warnings
from dataclasses import asdict

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
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from clease.montecarlo import BinnedBiasPotential
from clease.montecarlo.observers import ConcentrationObserver
from sampler_helpers import FieldModel, pooled_z

from clease_nn.conditions import ConditionRange
from clease_nn.energies.ising import ising_energy
from clease_nn.hosts.clease import NeuralSGCSampler
from clease_nn.hosts.clease.guided import expansion_to_json
from clease_nn.hosts.clease.system import active_lattice
from clease_nn.io import TrainedModel
from clease_nn.lattice import Lattice
from clease_nn.surrogate import fit_surrogate
from clease_nn.warnings import LowESSWarning

pytestmark = [
    pytest.mark.usefixtures("nowhere"),
    pytest.mark.filterwarnings("ignore::clease_nn.warnings.NoModelWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:spglib"),
]


# ------------------------------------------------------------------ icet
def icet_calculator():
    """A random pair and triplet expansion of Ag-Au on 8 sites."""
    icet = pytest.importorskip("icet")
    calculators = pytest.importorskip("mchammer.calculators")
    space = icet.ClusterSpace(bulk("Au", a=4.0), [4.3, 3.0], ["Ag", "Au"])
    parameters = np.random.default_rng(3).normal(0, 0.02, len(space))
    return calculators.ClusterExpansionCalculator(
        bulk("Au", a=4.0) * 2, icet.ClusterExpansion(space, parameters)
    )


@pytest.mark.filterwarnings("ignore:.*self-interact.*")
@pytest.mark.parametrize("interval", [None, 1])
def test_icet_expansions_are_exact(interval):
    """from_mchammer: compiled and neural averages and free energy of a mchammer calculator."""
    calculator = icet_calculator()
    mc = NeuralSGCSampler.from_mchammer(
        calculator, TEMP, symbols=["Ag", "Au"], seed=1, neural_interval=interval
    )
    if interval is not None:
        model = biased_model(mc.lattice)
        key = {"parent_fingerprint": mc.ensemble.energy.metadata["parent"]}
        mc = NeuralSGCSampler.from_mchammer(
            calculator, TEMP, seed=1, neural_interval=interval,
            model=TrainedModel(model.model, model.range, key),
        )  # fmt: skip
    states = mc.ensemble.enumerate(mc.lattice)
    x = states.occupations
    for row in (0, 77, 255):
        numbers = mc.lattice.atoms(x[row].numpy()).numbers
        assert calculator.calculate_total(occupations=numbers) == pytest.approx(
            float(states.energy[row]), abs=1e-10
        )
    x, p, e, f = exact(mc.ensemble.energy, mc.lattice, TEMP, {"Ag": 0.03})
    out = replicas(mc, 20, 4000 if interval is None else 800, {"Ag": 0.03})
    assert abs(pooled_z([q["energy"] for q in out], float((p * e).sum()))) < 4
    share = float((p * (x == 0).double().mean(1)).sum())
    assert abs(pooled_z([q["Ag_conc"] for q in out], share)) < 4
    assert mc.energy_calls is None
    if interval is not None:
        assert abs(mc.free_energy(chem_pot={"Ag": 0.03}, n=3000).z(f)) < 4


@pytest.mark.filterwarnings("ignore:.*self-interact.*")
def test_icet_sublattices_move_within_themselves():
    """Two sublattices with species of their own, vacancies among them: exact averages."""
    icet = pytest.importorskip("icet")
    calculators = pytest.importorskip("mchammer.calculators")
    primitive = bulk("MgO", "rocksalt", a=4.2)
    space = icet.ClusterSpace(primitive, [4.3], [["Mg", "Zn"], ["O", "S", "X"]])
    parameters = np.random.default_rng(5).normal(0, 0.03, len(space))
    calculator = calculators.ClusterExpansionCalculator(
        primitive * (3, 1, 1), icet.ClusterExpansion(space, parameters)
    )
    mc = NeuralSGCSampler.from_mchammer(calculator, TEMP, seed=1, neural_interval=None)
    assert mc.lattice.species == ("Mg", "O", "S", "X", "Zn")
    mu = {"Zn": 0.05, "X": -0.03}
    x, p, e, _ = exact(mc.ensemble.energy, mc.lattice, TEMP, mu)
    out = replicas(mc, 16, 4000, mu)
    assert abs(pooled_z([q["energy"] for q in out], float((p * e).sum()))) < 4
    for k, name in enumerate(mc.lattice.species):
        share = float((p * (x == k).double().mean(1)).sum())
        assert abs(pooled_z([q[f"{name}_conc"] for q in out], share)) < 4


@pytest.mark.filterwarnings("ignore:.*self-interact.*")
@pytest.mark.filterwarnings("ignore::clease_nn.warnings.TrainingWarning")
@pytest.mark.filterwarnings("ignore::clease_nn.warnings.LostModeWarning")
def test_models_of_icet_expansions_serve_other_supercells(tmp_path, monkeypatch):
    """fit through from_mchammer; a larger supercell of the expansion finds the saved model."""
    calculator = icet_calculator()
    mc = NeuralSGCSampler.from_mchammer(calculator, TEMP, seed=1)
    mc.fit((600, 1500), {"Ag": (-0.1, 0.1)}, max_steps=3, validation_samples=16, progress=False)
    mc.save(tmp_path / "agau.nn")
    monkeypatch.setenv("CLEASE_NN_MODELS", str(tmp_path))
    larger = NeuralSGCSampler.from_mchammer(
        calculator.cluster_expansion, TEMP, structure=bulk("Au", a=4.0) * (2, 2, 3), seed=1
    )
    larger.run(100, chem_pot={"Ag": 0.03})
    assert larger.lattice.n_sites == 12 and larger.trained is not None


def test_what_is_no_calculator_of_icet_is_refused():
    """from_mchammer names what it wants."""
    pytest.importorskip("icet")
    with pytest.raises(TypeError, match="ClusterExpansionCalculator, got EMT"):
        NeuralSGCSampler.from_mchammer(EMT(), 300)


# ------------------------------------------------------------------ two levels
@pytest.mark.filterwarnings("ignore::clease_nn.warnings.TrainingWarning")
@pytest.mark.filterwarnings("ignore::clease_nn.warnings.LostModeWarning")
@pytest.mark.filterwarnings("ignore::clease_nn.warnings.LowESSWarning")
def test_two_levels_give_the_true_energys_averages(tmp_path, monkeypatch):
    """After fit on a poor surrogate runs, free energies and a reloaded model are exact."""
    lattice = active_lattice(cell(), BINARY)
    x, p, e, f = exact(table_energy, lattice)

    class Known:
        """The energy with an identity."""

        fingerprint = "emt"
        __call__ = staticmethod(table_energy)

    mc = NeuralSGCSampler(cell(), TEMP, BINARY, energy=Known(), seed=1)
    mc.fit(
        (600, 1500), {"Au": (0.0, 0.4)}, surrogate={"cutoffs": {2: 2.8}, "max_calls": 8},
        max_steps=20, validation_samples=16, progress=False,
    )  # fmt: skip
    assert mc.energy_calls == mc.surrogate_report.true_calls <= 8
    wrong = mc.surrogate(lattice, x) - torch.as_tensor(emt_energies())
    assert wrong.std() > 0.01
    check_averages(replicas(mc, 12, 120), x, p, e)
    assert mc.neural_schedule.steps(8) == 20 and "forget in" in mc.neural_schedule.reason
    estimate = mc.free_energy(chem_pot=MU, n=800)
    assert abs(estimate.z(f)) < 4 and 0.02 < estimate.ness < 1
    q = mc.get_thermodynamic_quantities()
    assert q["energy_calls"] == mc.energy_calls > 1000 and 0 < q["surrogate_error"] < 0.1

    (tmp_path / "models").mkdir()
    mc.save(tmp_path / "models" / "emt.nn")
    monkeypatch.setenv("CLEASE_NN_MODELS", str(tmp_path / "models"))
    again = NeuralSGCSampler(cell(), TEMP, BINARY, energy=Known(), seed=1)
    again.run(50, chem_pot=MU)
    assert again.surrogate.fingerprint == mc.surrogate.fingerprint
    assert str(again.surrogate_report) == str(mc.surrogate_report)
    assert 0 < again.energy_calls <= 60
    other = NeuralSGCSampler(cell(), TEMP, BINARY, energy=table_energy, seed=1)
    other.run(10, chem_pot=MU)
    assert other.trained is None


@pytest.mark.filterwarnings("ignore::clease_nn.warnings.TrainingWarning")
@pytest.mark.filterwarnings("ignore::clease_nn.warnings.LostModeWarning")
def test_fit_chooses_what_to_train_on():
    """surrogate=None trains on the energy itself, as energies with flips do; bad ones fail."""
    lattice = Lattice.square(2)
    atoms = lattice.atoms(np.zeros(4, int))
    short = {"max_steps": 2, "validation_samples": 16, "progress": False}
    box = ((9000, 20000), {"Au": (-0.1, 0.1)})

    def energy(lattice, x):
        return 0.1 * (x[:, 0] == x[:, 1]).double()

    mc = NeuralSGCSampler(atoms, 9000, BINARY, energy=energy, seed=1)
    mc.fit(*box, surrogate=None, **short)
    assert mc.surrogate is None and not mc.trained.model.needs_fields
    fitted = fit_surrogate(energy, mc.lattice, mc.trained.range, max_calls=4, seed=1)
    mc.fit(*box, surrogate=fitted, **short)
    assert mc.surrogate is fitted.energy and mc.surrogate_report is fitted.report
    train = {"temps": box[0], "chem_pots": box[1], "surrogate": {"max_calls": 4}, **short}
    later = NeuralSGCSampler(atoms, 9000, BINARY, energy=energy, seed=1, train=train)
    later.run(5, chem_pot={"Au": 0.0})
    assert later.surrogate is not None and later.trained is not None
    rich = NeuralSGCSampler(atoms, 9000, BINARY, energy=ising_energy(mc.lattice), seed=1)
    rich.fit(*box, **short)
    box_of = mc.trained.range
    with pytest.raises(ValueError, match="needs the fields of an energy that offers none"):
        NeuralSGCSampler(
            atoms, 9000, BINARY, energy=energy, model=TrainedModel(FieldModel(), box_of)
        )
    with pytest.raises(TypeError, match="surrogate must be"):
        mc.fit(*box, surrogate=3, **short)
    with pytest.raises(ValueError, match="needs no surrogate"):
        NeuralSGCSampler(atoms, 9000, BINARY, energy=fitted.energy).fit(
            *box, surrogate=fitted, **short
        )
    with pytest.raises(ValueError, match="unknown chemical potential 'c1_0'"):
        mc.fit((9000, 20000), {"c1_0": (-0.1, 0.1)}, **short)


@pytest.mark.filterwarnings("ignore::clease_nn.warnings.TrainingWarning")
@pytest.mark.filterwarnings("ignore::clease_nn.warnings.LostModeWarning")
def test_a_surrogate_that_proposes_in_vain_is_reported():
    """A run in which hardly any energy is accepted says so in words; others do not."""
    lattice = active_lattice(cell(), BINARY)
    mc = NeuralSGCSampler(cell(), TEMP, BINARY, energy=table_energy, seed=1, neural_interval=None)
    box = ConditionRange((600, 1500), [0.0], [0.4], [[1.0, 0.0]])

    def upside_down(lattice, x):
        return 10 * (x == 1).sum(1).double()

    short = {"max_steps": 2, "validation_samples": 16, "progress": False}
    wrong = fit_surrogate(upside_down, lattice, box, max_calls=8, seed=1)
    mc.fit((600, 1500), {"Au": (0.0, 0.4)}, surrogate=wrong, **short)
    with pytest.warns(LowESSWarning, match="of 100 energies [0-4] were accepted at 900 K"):
        mc.run(100, chem_pot={"Au": -0.5})
    mc.fit((600, 1500), {"Au": (0.0, 0.4)}, surrogate={"max_calls": 12}, **short)
    with warnings.catch_warnings():
        warnings.simplefilter("error", LowESSWarning)
        mc.run(100, chem_pot=MU)


@pytest.mark.filterwarnings("ignore::clease_nn.warnings.TrainingWarning")
@pytest.mark.filterwarnings("ignore::clease_nn.warnings.LostModeWarning")
def test_a_second_fit_goes_on_from_the_structures_of_the_first():
    """No structure is paid for twice, also by an energy without a memory."""
    asked = []

    def energy(lattice, x):
        asked.extend(row.tobytes() for row in x.numpy())
        return table_energy(lattice, x)

    mc = NeuralSGCSampler(cell(), TEMP, BINARY, energy=energy, seed=1)
    short = {"max_steps": 2, "validation_samples": 16, "progress": False}
    fits = []
    for seed in (1, 2):
        options = {"max_calls": 6, "target_error": 1e-6}
        mc.fit((600, 1500), {"Au": (0.0, 0.4)}, surrogate=options, seed=seed, **short)
        fits.append(mc.surrogate_report)
        done = len(asked)
    assert len(set(asked)) == len(asked) == done == sum(f.true_calls for f in fits)
    assert fits[1].n_structures == done > fits[0].n_structures


def test_more_neural_moves_where_the_surrogate_is_stuck():
    """Between two deep minima every few steps are neural moves, elsewhere every twentieth."""
    lattice = Lattice.square(4, species=BINARY)
    flips = ising_energy(lattice, 0.03)

    def energy(lattice, x):
        return flips(lattice, x)

    box = ConditionRange((300, 3000), [-0.01], [0.01], [[1.0, 0.0]])
    fitted = fit_surrogate(energy, lattice, box, max_calls=40, seed=1)
    state = {"energy": expansion_to_json(fitted.energy), "report": asdict(fitted.report)}
    model = TrainedModel(FieldModel(1.0), box, {"surrogate": state})
    atoms = lattice.atoms(np.zeros(16, int))
    mc = NeuralSGCSampler(atoms, 2500, BINARY, energy=energy, model=model, seed=1)
    steps = []
    for temp in (2500, 350):
        mc.temperature = temp
        mc.run(40, chem_pot={"Au": 0.0})
        steps.append(mc.neural_schedule.steps(16))
    assert "do not forget" in mc.neural_schedule.reason
    assert steps[0] == 20 > steps[1] >= 2


# ------------------------------------------------------------------ failures
class Moody(Calculator):
    """EMT that fails, or returns NaN, for one composition."""

    implemented_properties = ("energy",)

    def __init__(self, how):
        super().__init__()
        self.how, self.emt = how, EMT()

    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        """As EMT."""
        self.results = {"energy": float(self.emt.get_potential_energy(atoms))}
        if self.how and (atoms.symbols == "Au").sum() == 3:
            if self.how == "raise":
                raise RuntimeError("no convergence")
            self.results["energy"] = float("nan")


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("how", ["nan", "raise", "interrupt"])
def test_a_failing_energy_names_the_configuration_and_the_run_goes_on(how, biased):
    """State and averages are those before the failure; irun resumes, averages exact."""
    state = {"how": how}

    def energy(lattice, x):
        if state["how"] and (x == 0).sum() == 3:
            if how == "raise":
                raise RuntimeError("no convergence")
            if how == "interrupt":
                raise KeyboardInterrupt("Au3Cu5")
            return torch.full((len(x),), torch.nan)
        return table_energy(lattice, x)

    atoms = cell()
    lattice = active_lattice(atoms, BINARY)
    mc = NeuralSGCSampler(atoms, 2000, BINARY, energy=energy, seed=1, neural_interval=None)
    if biased:
        getter = ConcentrationObserver(atoms, "Au")
        bias = BinnedBiasPotential(xmin=0.0, xmax=1.0 + 1e-6, nbins=2, getter=getter)
        mc.add_bias(bias)
    with pytest.raises((ValueError, RuntimeError, KeyboardInterrupt)) as caught:
        mc.run(5000, chem_pot={"Au": 0.5})
    text = " ".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
    assert "Au3Cu5" in text
    n = mc.averager.counter
    assert 0 < n == mc.current_step < 5000
    x = lattice.occupations(atoms)
    assert (x == 0).sum() in (2, 4)
    own = float(table_energy(lattice, torch.as_tensor(x)[None])) - 0.5 * (x == 0).sum()
    assert mc.current_energy == pytest.approx(own, abs=1e-9)
    state["how"] = ""
    list(mc.irun(50))
    assert mc.averager.counter == n + 50


@pytest.mark.parametrize("how", ["nan", "raise"])
def test_failures_of_a_calculator_are_named(how):
    """The same with a calculator on the atoms."""
    atoms = cell()
    atoms.calc = Moody(how)
    mc = NeuralSGCSampler(atoms, 2000, BINARY, seed=1, neural_interval=None)
    with pytest.raises((ValueError, RuntimeError)) as caught:
        mc.run(2000, chem_pot={"Au": 0.5})
    text = " ".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
    assert "Au3Cu5" in text or "Cu5Au3" in text
    assert int((atoms.symbols == "Au").sum()) in (2, 4)
