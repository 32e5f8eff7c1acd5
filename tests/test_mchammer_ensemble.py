"""Laws of the mchammer drop-in: rows, intervals, observers, containers and restarts."""

import warnings

import numpy as np
import pytest
from ase.units import kB

pytest.importorskip("icet")

from icet.tools import ConstituentStrain
from mchammer.calculators import ConstituentStrainCalculator, TargetVectorCalculator
from mchammer.data_containers.data_container import DataContainer
from mchammer.ensembles import SemiGrandCanonicalEnsemble
from mchammer.observers import ClusterExpansionObserver, SiteOccupancyObserver
from mchammer_helpers import rows, system, trained

from clease_nn import NeuralSGCEnsemble
from clease_nn.warnings import NoModelWarning

T = 900.0
MU = {"Ag": 0.0, "Au": 0.05}


def make(name="binary", mu=MU, host=False, **options):
    atoms, calculator = system(name)
    if host:
        return SemiGrandCanonicalEnsemble(atoms, calculator, T, mu, **options)
    options.setdefault("neural_interval", None)
    return NeuralSGCEnsemble(atoms, calculator, T, mu, **options)


def with_model(interval=2.0, **options):
    atoms, calculator = system()
    model = trained(atoms, calculator)
    return NeuralSGCEnsemble(
        atoms, calculator, T, MU, model=model, neural_interval=interval, **options
    )


def last_state(path):
    return DataContainer.read(str(path))._last_state


# ---------------------------------------------------------------------- rows
def test_positional_arguments_are_those_of_mchammer():
    """All arguments work by position, in mchammer's order."""
    atoms, calculator = system()
    arguments = (atoms, calculator, T, MU, 2 * kB, "tag", 5, None, 60.0, 4, 8, [1.0], None)
    host = SemiGrandCanonicalEnsemble(*arguments)
    ours = NeuralSGCEnsemble(*arguments, neural_interval=None)
    assert ours.ensemble_parameters == host.ensemble_parameters
    assert (ours.boltzmann_constant, ours.user_tag, ours.random_seed) == (2 * kB, "tag", 5)
    ours.run(8)
    host.run(8)
    assert [list(r) for r in rows(ours)] == [list(r) for r in rows(host)]


@pytest.mark.parametrize("name", ["binary", "inactive"])
def test_rows_are_those_of_mchammer(name):
    """The same columns in the same rows, the first of the initial structure."""
    mu = MU if name == "binary" else {"Mg": 0.0, "Zn": 0.05}
    options = {"ensemble_data_write_interval": 4, "trajectory_write_interval": 6}
    ours, host = make(name, mu, **options), make(name, mu, host=True, **options)
    start = ours.structure
    for mc in (ours, host):
        mc.run(50)
    ours, host = rows(ours), rows(host)
    assert [(r["mctrial"], set(r)) for r in ours] == [(r["mctrial"], set(r)) for r in host]
    assert ours[0] == host[0]
    assert ours[0]["occupations"] == start.numbers.tolist()


def test_rows_describe_the_configuration():
    """Potential and counts are those of the occupations in the row, without mu."""
    mc = make("salt", {"Mg": 0.0, "Zn": 0.1, "O": 0.0, "S": -0.1}, random_seed=1)
    mc.run(400)
    for row in rows(mc):
        numbers = np.array(row["occupations"])
        assert row["potential"] == mc.calculator.calculate_total(occupations=numbers)
        counts = [row[f"{s}_count"] for s in ("Mg", "Zn", "O", "S")]
        assert counts == [(numbers == z).sum() for z in (12, 30, 8, 16)]


def test_acceptance_ratio_counts_accepted_steps_of_the_interval():
    """The acceptance ratio is the share of steps accepted since the last row."""

    def written(every):
        mc = make(
            ensemble_data_write_interval=every, trajectory_write_interval=every, random_seed=3
        )
        mc.run(300)
        return rows(mc)

    every_step = written(1)
    ratios = np.array([row["acceptance_ratio"] for row in every_step])
    occupations = np.array([row["occupations"] for row in every_step])
    assert np.array_equal(ratios[1:], (occupations[1:] != occupations[:-1]).any(1))
    for k, row in enumerate(written(50)[1:]):
        assert row["acceptance_ratio"] == pytest.approx(ratios[50 * k + 1 : 50 * k + 51].mean())


def test_acceptance_ratio_counts_a_neural_move_as_one_step():
    """With neural moves alone the ratio is that of the neural moves."""
    mc = with_model(1 / 8, ensemble_data_write_interval=300, random_seed=3)
    mc.run(300)
    record = mc.data_container.metadata["chain"]
    assert record["neural_moves"] == 300 > record["neural_accepted"] > 30
    assert mc.data_container.get("acceptance_ratio")[1] == record["neural_accepted"] / 300


@pytest.mark.parametrize("interval", [None, 2.0, "auto"])
def test_rows_do_not_depend_on_how_often_they_are_written(interval):
    """Intervals and observers look at a chain, they do not change it."""
    trajectories = []
    for every in (8, 12):
        options = {
            "random_seed": 4, "trajectory_write_interval": every,
            "ensemble_data_write_interval": every,
        }  # fmt: skip
        mc = make(**options) if interval is None else with_model(interval, **options)
        mc.run(240)
        trajectories.append({r["mctrial"]: r["occupations"] for r in rows(mc)})
    common = trajectories[0].keys() & trajectories[1].keys()
    assert len(common) == 11
    assert all(trajectories[0][k] == trajectories[1][k] for k in common)


def test_attributes_are_right_after_a_run():
    """Structure, configuration, calculator and step agree after run and between runs."""
    mc = with_model(random_seed=5)
    for steps in (3, 50, 1000):
        mc.run(steps)
        numbers = mc.configuration.occupations
        assert np.array_equal(mc.structure.numbers, numbers)
        assert np.array_equal(mc.calculator.cpp_calc.occupations, numbers)
        change = mc.calculator.calculate_change(
            sites=[2], current_occupations=numbers, new_site_occupations=[126 - numbers[2]]
        )
        other = numbers.copy()
        other[2] = 126 - numbers[2]
        totals = [mc.calculator.calculate_total(occupations=x) for x in (numbers, other)]
        assert change == pytest.approx(totals[1] - totals[0], abs=1e-10)
        sites = mc.configuration.get_occupations_on_sublattice(0)
        assert sorted(sites) == sorted(numbers.tolist())
    assert mc.step == 1053


def test_configuration_changed_by_the_user_is_followed():
    """A run starts from what the user put into the ensemble."""
    mc = make(random_seed=6)
    mc.run(100)
    numbers = mc.configuration.occupations
    mc.update_occupations([0], [126 - int(numbers[0])])
    numbers[0] = 126 - numbers[0]
    mc.run(1)
    assert (mc.configuration.occupations != numbers).sum() <= 1


def test_observers_see_the_configuration_of_the_row():
    """Observers attached to the ensemble report what the occupations of the row say."""
    mc = make(random_seed=7, trajectory_write_interval=4)
    expansion = mc.calculator.cluster_expansion
    space = expansion.get_cluster_space_copy()
    mc.attach_observer(ClusterExpansionObserver(expansion, interval=4), tag="energy")
    sites = {"first": [0, 1], "rest": list(range(2, 8))}
    mc.attach_observer(SiteOccupancyObserver(space, mc.structure, sites, interval=8))
    mc.run(200)
    seen = 0
    for row in rows(mc):
        structure = mc.structure
        structure.numbers = row["occupations"]
        assert row["energy"] == pytest.approx(expansion.predict(structure), abs=1e-10)
        if row["mctrial"] % 8 == 0:
            seen += 1
            share = np.mean(structure.numbers[2:] == 79)
            assert row["sof_rest_Au"] == pytest.approx(share)
    assert seen == 26


def test_boltzmann_constant_is_honoured():
    """Only the product of temperature and Boltzmann constant counts."""
    atoms, calculator = system()
    a = NeuralSGCEnsemble(atoms, calculator, T, MU, random_seed=8, neural_interval=None)
    b = NeuralSGCEnsemble(
        atoms, calculator, 0.5 * T, MU, 2 * kB, random_seed=8, neural_interval=None
    )
    for mc in (a, b):
        mc.run(400)
    assert rows(a) == rows(b)


def test_zero_temperature_goes_downhill():
    """At zero temperature no move uphill is accepted, as in mchammer."""
    atoms, calculator = system()
    mc = NeuralSGCEnsemble(atoms, calculator, 0, {"Ag": 0, "Au": 0.0}, random_seed=1)
    mc.run(400)
    potential = mc.data_container.get("potential")
    assert (np.diff(potential) <= 1e-12).all() and potential[-1] < potential[0]


SCRIPT = """
from {module} import {name} as SemiGrandCanonicalEnsemble
from mchammer import DataContainer

results = []
for temperature in (900, 500):
    for dmu in (-0.1, 0.0, 0.1):
        name = f"sgc-T{{temperature}}-dmu{{dmu:+.3f}}.dc"
        mc = SemiGrandCanonicalEnsemble(
            structure=structure,
            calculator=calculator,
            temperature=temperature,
            dc_filename=name,
            chemical_potentials={{"Ag": 0, "Au": dmu}},
            random_seed=7,
        )
        mc.run(number_of_trial_steps=len(structure) * 300)
        container = DataContainer.read(name)
        start = 20 * len(structure)
        parameters = container.ensemble_parameters
        row = dict(temperature=parameters["temperature"],
                   dmu=parameters["mu_Au"] - parameters["mu_Ag"],
                   acceptance_ratio=container.get_average("acceptance_ratio", start=start))
        for tag in ("Au_count", "potential"):
            out = container.analyze_data(tag, start=start)
            row[tag], row[tag + "_error"] = out["mean"], out["error_estimate"]
        results.append(row)
"""


def test_the_loop_of_a_script_runs_unchanged_but_for_the_import(tmp_path, monkeypatch):
    """A loop over conditions as in mchammer's tutorials gives the same averages with both."""
    tables = []
    classes = {
        "mchammer.ensembles": "SemiGrandCanonicalEnsemble", "clease_nn": "NeuralSGCEnsemble",
    }  # fmt: skip
    for module, name in classes.items():
        folder = tmp_path / module
        folder.mkdir()
        monkeypatch.chdir(folder)
        structure, calculator = system()
        scope = {"structure": structure, "calculator": calculator}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NoModelWarning)
            exec(SCRIPT.format(module=module, name=name), scope)
        tables.append(scope["results"])
    theirs, ours = tables
    assert len(list((tmp_path / "clease_nn").glob("*.dc"))) == 6
    for a, b in zip(theirs, ours, strict=True):
        assert (a["temperature"], a["dmu"]) == (b["temperature"], b["dmu"])
        assert abs(a["acceptance_ratio"] - b["acceptance_ratio"]) < 0.06
        for tag in ("Au_count", "potential"):
            sigma = np.hypot(a[tag + "_error"], b[tag + "_error"]) / 1.96
            assert abs(a[tag] - b[tag]) < 4 * sigma


def test_rare_rows_do_not_slow_a_run_with_a_small_common_interval(monkeypatch):
    """Where no row is due, the configuration is not brought up to date."""
    mc = make(ensemble_data_write_interval=100, trajectory_write_interval=99)
    written = mc.configuration.set_occupations
    calls = []
    monkeypatch.setattr(
        mc.configuration, "set_occupations", lambda x: (calls.append(1), written(x))
    )
    mc.run(990)
    assert mc.observer_interval == 1
    assert [r["mctrial"] for r in rows(mc)] == sorted({*range(0, 990, 100), *range(0, 991, 99)})
    assert len(calls) <= len(rows(mc))


# ---------------------------------------------------------------------- other calculators
def strain_calculator():
    atoms, calculator = system()
    expansion = calculator.cluster_expansion
    strain = ConstituentStrain(
        supercell=atoms,
        primitive_structure=expansion.primitive_structure,
        chemical_symbols=["Ag", "Au"],
        concentration_symbol="Ag",
        strain_energy_function=lambda k, c: 0.02 * c * (1 - c),
    )
    return atoms, ConstituentStrainCalculator(strain, expansion)


def test_constituent_strain_is_left_to_mchammer():
    """A calculator that is more than an expansion gives mchammer's own rows, with a warning."""
    atoms, calculator = strain_calculator()
    host = SemiGrandCanonicalEnsemble(atoms, calculator, T, MU, random_seed=5)
    host.run(64)
    with pytest.warns(NoModelWarning, match="ConstituentStrainCalculator.*own speed"):
        ours = NeuralSGCEnsemble(atoms, calculator, T, MU, random_seed=5)
    ours.run(64)
    assert rows(ours) == rows(host)
    with pytest.raises(TypeError, match="more than a cluster expansion"):
        ours.fit((300, 900), {"Au": (0, 1)})


def test_calculators_without_energy_differences_are_refused():
    """A calculator that cannot give differences cannot drive a chain, and is refused at once."""
    atoms, calculator = system()
    space = calculator.cluster_expansion.get_cluster_space_copy()
    target = TargetVectorCalculator(atoms, space, np.zeros(len(space)))
    with pytest.raises(TypeError, match="TargetVectorCalculator gives no energy differences"):
        NeuralSGCEnsemble(atoms, target, T, MU)


def test_own_trial_steps_are_honoured():
    """A subclass with trial steps of its own gets those."""

    class Lazy(NeuralSGCEnsemble):
        def _do_trial_step(self):
            return 0

    atoms, calculator = system()
    mc = Lazy(atoms, calculator, T, MU, neural_interval=None)
    mc.run(100)
    assert mc.structure == atoms


@pytest.mark.parametrize("method", ["do_sgc_flip", "get_random_sublattice_index"])
def test_methods_of_trial_steps_are_honoured(method):
    """A subclass that changes any part of a trial step gets that, and hears what it costs."""
    asked = []

    def own(self, *args, **kwargs):
        asked.append(1)
        if method == "do_sgc_flip":
            kwargs["allowed_sites"] = [0, 1]
        return getattr(SemiGrandCanonicalEnsemble, method)(self, *args, **kwargs)

    cls = type("Mine", (NeuralSGCEnsemble,), {method: own})
    atoms, calculator = system()
    with pytest.warns(NoModelWarning, match=f"Mine has a {method} of its own"):
        mc = cls(atoms, calculator, T, {"Ag": 0.0, "Au": 0.0}, random_seed=1)
    mc.run(200)
    assert len(asked) == 200
    if method == "do_sgc_flip":
        assert np.array_equal(mc.structure.numbers[2:], atoms.numbers[2:])


def test_conditions_changed_between_rows_are_followed():
    """A subclass that cools while it runs is at the temperature it says."""

    class Quench(NeuralSGCEnsemble):
        def _run(self, steps):
            if self.step >= 400:
                self._ensemble_parameters["temperature"] = 1e-9
            super()._run(steps)

    atoms, calculator = system()
    mc = Quench(atoms, calculator, 1e5, {"Ag": 0.0, "Au": 0.0}, neural_interval=None, random_seed=1)
    mc.run(1200)
    potential = mc.data_container.get("potential")
    assert (np.diff(potential[:50]) > 0).any()
    assert (np.diff(potential[50:]) <= 1e-12).all()


# ---------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mu": {"Ag": 0.0}}, ValueError, "potential of Au is missing"),
        ({"mu": {"Ag": 0.0, "Au": 0.0, "Pd": 1.0}}, ValueError, "unknown species 'Pd'"),
        ({"mu": {"Ag": 0.0, "Qq": 0.0}}, ValueError, "unknown species 'Qq'"),
        ({"mu": {"Ag": 0.0, "Au": np.nan}}, ValueError, "of Au must be finite"),
        ({"mu": {"Ag": 0.0, "Au": "high"}}, TypeError, "of Au must be a number"),
        ({"mu": [0.0, 0.1]}, TypeError, "mapping from elements"),
        ({"temperature": -5.0}, ValueError, "temperature must be zero or positive"),
        ({"temperature": "hot"}, TypeError, "temperature must be a number"),
        ({"boltzmann_constant": 0.0}, ValueError, "boltzmann_constant must be positive"),
        ({"sublattice_probabilities": [0.5, 0.5]}, ValueError, "one number for each of the 1"),
        ({"sublattice_probabilities": [0.0]}, ValueError, "not all zero"),
        ({"sublattice_probabilities": [-1.0]}, ValueError, "not negative"),
        ({"neural_interval": -1.0}, ValueError, "neural_interval"),
        ({"out_of_range": "ignore"}, ValueError, "out_of_range"),
        ({"train": "yes"}, TypeError, "train must be True, False or a dict"),
        ({"train": {"temp": (300, 900)}}, TypeError, "temps and chem_pots among them"),
        ({"model": 5}, TypeError, "model must be"),
    ],
)
def test_bad_arguments_are_refused_at_once(options, error, message):
    """Wrong arguments are named before anything runs."""
    atoms, calculator = system()
    options = dict(options)
    mu, temperature = options.pop("mu", MU), options.pop("temperature", T)
    with pytest.raises(error, match=message):
        NeuralSGCEnsemble(atoms, calculator, temperature, mu, **options)


def test_inactive_sublattices_cannot_be_chosen():
    """A probability for a sublattice where nothing can change is refused."""
    with pytest.raises(ValueError, match="sublattice of O has the probability"):
        make("inactive", {"Mg": 0, "Zn": 0, "O": 0}, sublattice_probabilities=[0.5, 0.5])


def test_frozen_species_need_no_chemical_potential():
    """Species of frozen sublattices need no chemical potential, as in mchammer."""
    mc = make("salt", {"Mg": 0.0, "Zn": 0.1}, sublattice_probabilities=[1.0, 0.0])
    mc.run(50)
    assert rows(mc)[-1]["S_count"] == rows(mc)[0]["S_count"]


def test_structure_of_other_species_is_refused():
    """A structure with a species that the expansion does not allow is refused by name."""
    atoms, calculator = system()
    atoms.symbols[3] = "Pd"
    with pytest.raises(ValueError, match="atom 3 is Pd"):
        NeuralSGCEnsemble(atoms, calculator, T, MU)


def test_calculator_of_another_supercell_is_refused():
    """The calculator must belong to the structure."""
    atoms, _ = system()
    _, calculator = system(size=(4, 2, 1))
    with pytest.raises(ValueError, match="structure of the ensemble"):
        NeuralSGCEnsemble(atoms, calculator, T, MU)


def test_calculator_that_was_changed_is_read_again():
    """Rows and moves follow the energies that a calculator has now."""
    atoms, calculator = system()
    before = NeuralSGCEnsemble(atoms, calculator, T, MU, neural_interval=None)
    calculator._parameters[:] *= 2
    after = NeuralSGCEnsemble(atoms, calculator, T, MU, neural_interval=None)
    x = after.lattice.occupations(atoms)[None]
    e = after.ensemble.energy.tables.direct_energies(x)[0]
    assert e == pytest.approx(calculator.calculate_total(occupations=atoms.numbers), abs=1e-10)
    assert e == pytest.approx(2 * before.ensemble.energy.tables.direct_energies(x)[0], abs=1e-10)


def test_steps_must_be_an_integer():
    """mchammer's own check of the number of steps comes through."""
    with pytest.raises(TypeError, match="must be an integer"):
        make().run(10.0)


def test_no_warning_without_need():
    """neural_interval=None asks for no model and warns of none."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", NoModelWarning)
        make().run(10)
    with pytest.warns(NoModelWarning, match="no trained model"):
        make(neural_interval="auto").run(10)
