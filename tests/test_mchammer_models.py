"""Laws of models in the mchammer drop-in: fit, free energy, samples, look-up, ranges."""

import numpy as np
import pytest
from ase.units import kB

pytest.importorskip("icet")

from mchammer_helpers import exact, rows, system, trained

from clease_nn import NeuralSGCEnsemble, averages
from clease_nn.warnings import NoModelWarning, OutOfRangeWarning

T = 900.0
MU = {"Ag": 0.0, "Au": 0.05}


@pytest.fixture(autouse=True)
def no_files(tmp_path, monkeypatch):
    """Models are looked for in an empty folder."""
    monkeypatch.setenv("CLEASE_NN_MODELS", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def make(name="binary", mu=MU, t=T, species="Au", **options):
    atoms, calculator = system(name)
    model = options.pop("model", None) or trained(atoms, calculator, species)
    return NeuralSGCEnsemble(atoms, calculator, t, mu, random_seed=1, model=model, **options)


def exact_free_energy(mc, t, mu):
    """-kT ln Z by enumeration, E and mu.N apart."""
    host, x, _, e = exact(mc.structure, mc.calculator, t, mu)
    mu_n = np.array([mu.get(s, 0.0) for s in host.species])[x].sum(1)
    log_w = -(e - mu_n) / (kB * t)
    top = log_w.max()
    return -kB * t * (top + np.log(np.exp(log_w - top).sum()))


@pytest.mark.parametrize(
    ("name", "species", "mu"),
    [
        ("binary", "Au", {"Ag": 0.0, "Au": 0.05}),
        ("binary", "Ag", {"Ag": 0.2, "Au": 0.25}),
        ("vacancies", ("Ag", "Au"), {"Ag": 0.1, "Au": -0.05, "X": 0.02}),
        ("salt", ("Zn", "O"), {"Mg": 0.3, "Zn": 0.35, "O": -0.2, "S": -0.25}),
    ],
)
def test_free_energy_is_exact_in_any_gauge(name, species, mu):
    """-kT ln Z agrees with enumeration, whatever is common to the chemical potentials."""
    mc = make(name, mu, species=species)
    z = []
    for t in (600.0, 900.0, 1500.0):
        e = mc.free_energy(t, mu, n=1000)
        z.append((e.value - exact_free_energy(mc, t, mu)) / e.error)
    assert np.abs(z).max() < 3.5


def test_samples_belong_to_the_conditions_asked_for():
    """Weighted draws give exact averages; their conditions and weights are those asked for."""
    mu = {"Mg": 0.3, "Zn": 0.35, "O": -0.2, "S": -0.25}
    mc = make("salt", mu, species=("Zn", "O"))
    c = mc.sample(2000)
    assert c.conditions.mu[0].tolist() == [mu[s] for s in mc.lattice.species]
    rescored = mc.ensemble.score(c)
    assert np.allclose(rescored.log_target, c.log_target, atol=1e-9)
    _, _, p, e = exact(mc.structure, mc.calculator, T, mu)
    [a] = averages(c)
    assert abs(a.energy.z(p @ e)) < 4
    chain = mc.sample(50, weighted=False)
    assert chain.log_prob is None and len(chain) == 50


def test_temperatures_scale_with_the_boltzmann_constant():
    """The free energy depends on the product of temperature and Boltzmann constant."""
    a = make().free_energy(n=500)
    b = make(t=0.5 * T, boltzmann_constant=2 * kB).free_energy(n=500)
    assert a.value == pytest.approx(b.value, abs=1e-12)


def test_fit_serves_the_ensemble_and_the_next_ones(tmp_path):
    """A fitted model makes neural moves here and in later ensembles of the calculator."""
    atoms, calculator = system(seed=5)
    mc = NeuralSGCEnsemble(atoms, calculator, T, MU, random_seed=1, neural_interval=8.0)
    assert mc.trained is None and mc.neural_schedule is None
    model = mc.fit((600, 1800), {"Au": (-0.2, 0.2)}, max_steps=2, progress=False)
    assert mc.trained is model
    mc.run(256)
    assert mc.data_container.metadata["chain"]["neural_moves"] == 4
    assert mc.neural_schedule.interval == 8.0
    other = NeuralSGCEnsemble(atoms, calculator, 1000.0, MU, neural_interval=8.0)
    assert other.trained is model
    mc.save(tmp_path / "model.nn")
    found = NeuralSGCEnsemble(*system(seed=5), T, MU, model=tmp_path / "model.nn")
    assert found.trained.range.temperature == (600, 1800)


def test_saved_model_is_found(tmp_path):
    """A model saved in a searched folder is found by the expansion, in another supercell too."""
    atoms, calculator = system(seed=6)
    mc = NeuralSGCEnsemble(atoms, calculator, T, MU)
    mc.fit((600, 1800), {"Ag": (-0.2, 0.2)}, max_steps=2, progress=False)
    mc.save(tmp_path / "model.nn")
    atoms, calculator = system(seed=6, size=(3, 2, 1))
    other = NeuralSGCEnsemble(atoms, calculator, T, MU, neural_interval=4.0)
    other.run(48)
    assert other.trained is not None
    assert other.data_container.metadata["chain"]["neural_moves"] == 2


def test_train_on_demand():
    """train= makes a model at the first run where there is none."""
    atoms, calculator = system(seed=7)
    train = {"temps": (500, 1500), "chem_pots": {"Au": (-0.2, 0.2)}, "max_steps": 2}
    mc = NeuralSGCEnsemble(
        atoms, calculator, T, MU, train={**train, "progress": False}, neural_interval=4.0
    )
    assert mc.trained is None
    mc.run(64)
    assert mc.trained.range.temperature == (500, 1500)
    assert mc.data_container.metadata["chain"]["neural_moves"] == 2


def test_auto_schedule_says_why():
    """The schedule is planned at the first run, kept, and tells its reason."""
    mc = make()
    mc.run(16)
    schedule = mc.neural_schedule
    assert "sweeps" in schedule.reason
    mc.run(500)
    assert mc.neural_schedule is schedule


def test_outside_the_range_single_site_moves_are_made():
    """Out of range: a warning and exact single-site moves, or an error for the strict."""
    mc = make(t=5000.0)
    with pytest.warns(OutOfRangeWarning, match="T = 5000 K"):
        mc.run(64)
    assert mc.data_container.metadata["chain"]["neural_moves"] == 0
    with pytest.raises(ValueError, match="out_of_range='warn'"):
        make(t=5000.0, out_of_range="raise").run(64)


def test_without_a_model_it_says_so_once():
    """No model: one warning, and no samples."""
    atoms, calculator = system(seed=8)
    mc = NeuralSGCEnsemble(atoms, calculator, T, MU)
    with pytest.warns(NoModelWarning) as caught:
        mc.run(16)
        mc.run(16)
    assert len([w for w in caught if w.category is NoModelWarning]) == 1
    with pytest.raises(ValueError, match="no trained model"):
        mc.sample(5)
    with pytest.raises(ValueError, match="no model to save"):
        mc.save("model.nn")


def test_model_of_another_expansion_is_refused():
    """A model belongs to its expansion."""
    atoms, calculator = system(seed=1)
    with pytest.raises(ValueError, match="another energy"):
        NeuralSGCEnsemble(atoms, calculator, T, MU, model=trained(*system(seed=2)))


@pytest.mark.parametrize(
    "restriction",
    [
        {"sublattice_probabilities": [1.0, 0.0]},
        {"sublattice_probabilities": [0.0, 1.0]},
    ],
)
def test_restricted_ensembles_have_no_samples(restriction):
    """A model draws all configurations: frozen sublattices have no free energy here."""
    mu = {"Mg": 0.0, "Zn": 0.1, "O": 0.0, "S": 0.0}
    mc = make("salt", mu, species=("Zn", "O"), **restriction)
    with pytest.raises(ValueError, match="restrict"):
        mc.free_energy()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (((300,), {"Au": (0, 1)}), ValueError, "pair"),
        (((900, 300), {"Au": (0, 1)}), ValueError, "low < high"),
        (((300, 900), {"Pd": (0, 1)}), ValueError, "unknown species 'Pd'"),
        (((300, 900), {"Au": 0.1}), ValueError, "range of Au"),
        (((300, 900), {"Au": (0, 1), "Ag": (0, 1)}), ValueError, "not independent"),
        (((300, 900), ["Au"]), TypeError, "mapping"),
    ],
)
def test_wrong_ranges_are_refused(arguments, error, message):
    """A range that is empty, inverted or unknown is refused before training."""
    with pytest.raises(error, match=message):
        make().fit(*arguments, max_steps=1)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0,), ValueError, "positive integer"),
        ((2.5,), TypeError, "positive integer"),
        ((5, -300.0), ValueError, "temperature"),
        ((5, 300.0, {"Pd": 0.1}), ValueError, "unknown species"),
    ],
)
def test_wrong_requests_are_refused(arguments, error, message):
    """Wrong arguments of sample are named."""
    with pytest.raises(error, match=message):
        make().sample(*arguments)


def test_names_are_those_of_the_package():
    """The drop-in is a public name of the package and of its host."""
    import clease_nn
    from clease_nn.hosts import mchammer

    assert clease_nn.NeuralSGCEnsemble is mchammer.NeuralSGCEnsemble
    assert len(rows(make())) == 0
