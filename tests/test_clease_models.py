"""The CLEASE drop-in: models, their lookup and range, and bad input."""

import warnings

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from clease.montecarlo import SGCMonteCarlo
from clease.montecarlo.sgc_montecarlo import InvalidChemicalPotentialError
from clease.montecarlo.trial_move_generator import RandomFlip
from sampler_helpers import (
    binary_atoms,
    rocksalt_atoms,
    trained,
)

from clease_nn.hosts.clease.sampler import NeuralSGCSampler
from clease_nn.warnings import NoModelWarning, OutOfRangeWarning

CHEM_POT = {"c1_0": 0.02}
BINARY = ["Au", "Cu"]

pytestmark = [
    pytest.mark.usefixtures("nowhere"),
    pytest.mark.filterwarnings("ignore::clease_nn.warnings.NoModelWarning"),
    pytest.mark.filterwarnings("ignore::clease_nn.warnings.LowESSWarning"),
]


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
    with pytest.raises(ValueError, match="another energy"):
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
    monkeypatch.setattr("clease_nn.sampler.service.find_model", lambda *_: wide)
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


@pytest.mark.parametrize("train", ["yes", {"temps": (300, 900)}])
def test_wrong_training_is_refused_at_once(train, tmp_path):
    """What train= cannot mean is refused when the sampler is made, not at its first run."""
    with pytest.raises(TypeError, match="temps and chem_pots among them"):
        NeuralSGCSampler(binary_atoms(tmp_path), 900, BINARY, train=train)


def test_training_on_demand(tmp_path, monkeypatch):
    """train=dict(...) fits at the first run that finds no model, with just these arguments."""
    atoms = binary_atoms(tmp_path)
    asked = {}

    def fake(self, **arguments):
        asked.update(arguments)
        self._models.own = trained(binary_atoms(tmp_path))

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
    """What is not Atoms with a calculator of its own is refused with a remedy."""
    with pytest.raises(ValueError, match=r"ase.Atoms.*str"):
        NeuralSGCSampler("CuAu", 900, BINARY)
    with pytest.raises(ValueError, match="attach_calculator"):
        NeuralSGCSampler(bulk("Cu"), 900, BINARY)
    emt = bulk("Cu")
    emt.calc = EMT()
    with pytest.raises(ValueError, match=r"EMT.*attach_calculator"):
        type("Own", (NeuralSGCSampler,), {})(emt, 900, BINARY)  # the name itself takes any
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
