"""Data containers: opened by plain icet, exact within its own errors, and read back."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase.build import bulk

icet = pytest.importorskip("icet")

from icet import ClusterExpansion, ClusterSpace  # noqa: E402
from mchammer import DataContainer  # noqa: E402
from mchammer.calculators import ClusterExpansionCalculator  # noqa: E402
from mchammer.ensembles import CanonicalEnsemble, SemiGrandCanonicalEnsemble  # noqa: E402

from clease_nn import thermodynamics  # noqa: E402
from clease_nn.conditions import Conditions  # noqa: E402
from clease_nn.configurations import Configurations  # noqa: E402
from clease_nn.ensemble import SemiGrandCanonical  # noqa: E402
from clease_nn.hosts import mchammer as host  # noqa: E402
from clease_nn.hosts.mchammer.containers import (  # noqa: E402
    from_data_container,
    to_data_container,
)

MU = {"Ag": 0.0, "Au": 0.05}
TEMPERATURE = 1500.0


@pytest.fixture(scope="module")
def system():
    """8 sites of Ag-Au: structure, expansion, lattice, ensemble."""
    primitive = bulk("Au")
    space = ClusterSpace(primitive, [4.3], ["Ag", "Au"])
    expansion = ClusterExpansion(space, [0, 0.01, 0.02, -0.005])
    structure = primitive.repeat(2)
    lattice = host.lattice(structure, expansion)
    return structure, expansion, lattice, SemiGrandCanonical(host.energy(structure, expansion))


@pytest.fixture(scope="module")
def rocksalt():
    """Ag/Au on one sublattice, O on an inactive one."""
    primitive = bulk("AgO", "rocksalt", a=4.2)
    space = ClusterSpace(primitive, [4.5], [["Ag", "Au"], ["O"]])
    expansion = ClusterExpansion(space, [0.1, 0.02, *[0.03] * (len(space) - 2)])
    structure = primitive.repeat(2)
    lattice = host.lattice(structure, expansion)
    return structure, expansion, lattice, SemiGrandCanonical(host.energy(structure, expansion))


def draws(system, n, seed=0, temperature=TEMPERATURE):
    """Weighted uniform draws at one condition."""
    _, _, lattice, ensemble = system
    at = Conditions([temperature], [[MU[s] for s in lattice.species]]).repeat(n)
    x = np.random.default_rng(seed).integers(2, size=(n, lattice.n_sites))
    log_prob = torch.full((n,), -lattice.log_states, dtype=torch.float64)
    c = Configurations(lattice, at, torch.as_tensor(x), log_prob=log_prob, provenance={"seed": 1})
    return ensemble.score(c)


def averages(system):
    """Exact potential and gold count."""
    _, _, lattice, ensemble = system
    states = ensemble.enumerate(lattice)
    at = Conditions([TEMPERATURE], [[MU[s] for s in lattice.species]])
    gold = (states.occupations == lattice.species.index("Au")).sum(1)
    return [float(states.mean(at, v)) for v in (states.energy, gold)]


def test_container_opens_in_icet_and_analyses_to_the_exact_averages(system, tmp_path):
    """Averages over the file agree with enumeration within analyze_data's own errors."""
    exact = averages(system)
    z = []
    for seed in range(16):
        dc = to_data_container(draws(system, 800, seed), resample=seed)
        dc.write(str(tmp_path / "run.dc"))
        read = DataContainer.read(str(tmp_path / "run.dc"))
        for tag, value in zip(("potential", "Au_count"), exact, strict=True):
            summary = read.analyze_data(tag)
            error = summary["error_estimate"] / 1.96  # icet's is a 95 % interval
            z.append((summary["mean"] - value) / error)
    z = np.reshape(z, (16, 2))
    assert (np.abs(z.mean(0)) < 4 / 4).all()
    assert (0.5 < z.std(0)).all() and (z.std(0) < 1.6).all()


def test_rows_are_the_hosts(system, rocksalt):
    """Tags, parameters and every row's values are what the host's ensemble writes."""
    for structure, expansion, lattice, ensemble in (system, rocksalt):
        c = draws((structure, expansion, lattice, ensemble), 300)
        dc = to_data_container(c, resample=2)
        calculator = ClusterExpansionCalculator(structure, expansion)
        mc = SemiGrandCanonicalEnsemble(structure, calculator, TEMPERATURE, MU, random_seed=1)
        mc.run(40)
        theirs = mc.data_container
        assert set(dc.observables) == set(theirs.observables)
        assert dc.ensemble_parameters == theirs.ensemble_parameters
        assert set(theirs.metadata) <= set(dc.metadata)
        steps, frames = dc.get("mctrial", "trajectory")
        assert (np.diff(steps) == len(structure)).all()
        for k in (0, 17, 100):
            row = dc._data_list[k]
            numbers = frames[k].numbers
            assert row["potential"] == pytest.approx(
                calculator.calculate_total(occupations=numbers), abs=1e-10
            )
            for s in sorted(set(structure.symbols) | {"Ag"}):
                assert row[f"{s}_count"] == (np.array(frames[k].symbols) == s).sum()
        moved = [(a.numbers != b.numbers).any() for a, b in itertools.pairwise(frames)]
        assert dc.get("acceptance_ratio")[1:].tolist() == [float(m) for m in moved]
        assert "unweighted" in dc.metadata["method"]
        assert dc.metadata["provenance"]["seed"] == 1


@pytest.mark.filterwarnings("ignore::clease_nn.warnings.NoModelWarning")
@pytest.mark.parametrize("ensemble", [SemiGrandCanonicalEnsemble, host.NeuralSGCEnsemble])
def test_ensembles_go_on_from_a_written_container(ensemble, system, tmp_path):
    """A file of ours restarts mchammer's ensemble and ours; the rows stay evenly spaced."""
    structure, expansion, _, _ = system
    path = str(tmp_path / "run.dc")
    dc = to_data_container(draws(system, 200), resample=4)
    dc.write(path)
    calculator = ClusterExpansionCalculator(structure, expansion)
    mc = ensemble(structure, calculator, TEMPERATURE, MU, dc_filename=path)
    assert mc.step == (len(dc.data) - 1) * 8
    assert (mc.structure.numbers == dc.get("trajectory")[-1].numbers).all()
    mc.run(80)
    read = DataContainer.read(path)
    assert len(read.data) > len(dc.data)
    assert np.isfinite(read.analyze_data("potential")["error_estimate"])


def test_reading_gives_back_what_was_written(system):
    """Conditions, sites, energies and weights come back; thermodynamics reads them."""
    _, _, lattice, _ = system
    c = draws(system, 2000)
    dc = to_data_container(c, resample=4)
    back = from_data_container(dc, lattice)
    frames = dc.get("trajectory")
    assert (back.occupations[3].numpy() == lattice.occupations(frames[3])).all()
    assert back.energy.tolist() == dc.get("potential").tolist()
    scored = system[3].score(back)
    assert torch.allclose(scored.log_target, back.log_target, atol=1e-9)
    assert len(from_data_container(dc, lattice, start=80)) == len(back) - 10
    [a] = thermodynamics.averages(back)
    assert a.log_z is None and a.temperature == TEMPERATURE


@pytest.mark.filterwarnings("ignore::clease_nn.warnings.LowESSWarning")
def test_runs_of_the_host_are_read_with_errors(system):
    """Averages of the host's own runs agree with enumeration within our errors."""
    structure, expansion, lattice, _ = system
    exact = averages(system)
    z = []
    for seed in range(10):
        mc = SemiGrandCanonicalEnsemble(
            structure, ClusterExpansionCalculator(structure, expansion), TEMPERATURE, MU,
            random_seed=seed,
        )  # fmt: skip
        mc.run(6000)
        [a] = thermodynamics.averages(from_data_container(mc.data_container, lattice, start=80))
        gold = a.composition[lattice.species.index("Au")]
        z.append([a.energy.z(exact[0]), gold.z(exact[1] / lattice.n_sites)])
    z = np.array(z)
    assert (np.abs(z.mean(0)) < 4 / np.sqrt(10)).all()
    assert (np.abs(z) < 5).all()


def test_species_without_chemical_potential_may_be_frozen():
    """Chemical potentials that the host did not need are taken as zero."""
    primitive = bulk("AgCu", "cesiumchloride", a=3.0)
    space = ClusterSpace(primitive, [3.1], [["Ag", "Au"], ["Cu", "Pd"]])
    expansion = ClusterExpansion(space, np.linspace(-0.02, 0.03, len(space)))
    structure = primitive.repeat(2)
    mc = SemiGrandCanonicalEnsemble(
        structure, ClusterExpansionCalculator(structure, expansion), 900.0, MU,
        sublattice_probabilities=[1.0, 0.0], random_seed=1,
    )  # fmt: skip
    mc.run(160)
    lattice = host.lattice(structure, expansion)
    c = from_data_container(mc.data_container, lattice)
    ensemble = SemiGrandCanonical(host.energy(structure, expansion))
    assert torch.allclose(ensemble.score(c).log_target, c.log_target, atol=1e-8)
    assert c.conditions.mu[0].tolist() == [0.0, 0.05, 0.0, 0.0]


def test_runs_without_energies_or_trajectory(system):
    """Rows without potential give a chain without energies; no occupations at all is an error."""
    structure, expansion, lattice, _ = system
    options = {"random_seed": 1, "ensemble_data_write_interval": 16}
    calculator = ClusterExpansionCalculator(structure, expansion)
    mc = SemiGrandCanonicalEnsemble(structure, calculator, TEMPERATURE, MU, **options)
    mc.run(160)
    c = from_data_container(mc.data_container, lattice)
    assert len(c) == 21 and c.energy is None
    with pytest.raises(ValueError, match="trajectory_write_interval"):
        from_data_container(mc.data_container, lattice, start=1000)


def test_bad_input_to_a_container(system):
    """Several conditions or chains, weights, missing energies and unknown sites are refused."""
    c = draws(system, 40)
    hot = draws(system, 40, temperature=1800.0)
    with pytest.raises(ValueError, match="one condition, these rows to 2"):
        to_data_container(Configurations.cat([c, hot]), resample=1)
    with pytest.raises(ValueError, match="no place for weights"):
        to_data_container(c)
    with pytest.raises(ValueError, match="needs energies"):
        to_data_container(replace(c, energy=None))
    chains = replace(c, log_prob=None, chain=torch.arange(40) % 2)
    with pytest.raises(ValueError, match="one chain in time order"):
        to_data_container(chains)
    assert len(to_data_container(chains[chains.chain == 0]).data) == 20
    partial = replace(chains[:20], chain=None, occupations=chains.occupations[:20].clone())
    partial.occupations[3, 0] = -1
    with pytest.raises(ValueError, match="unknown sites"):
        to_data_container(partial)


def test_bad_input_from_a_container(system, rocksalt):
    """Canonical runs and containers of another supercell or other species are named."""
    structure, expansion, lattice, _ = system
    calculator = ClusterExpansionCalculator(structure, expansion)
    mixed = structure.copy()
    mixed.symbols[:3] = "Ag"
    mc = CanonicalEnsemble(mixed, calculator, TEMPERATURE)
    with pytest.raises(ValueError, match="semi-grand canonical"):
        from_data_container(mc.data_container, lattice)
    dc = to_data_container(draws(system, 40), resample=1)
    with pytest.raises(ValueError, match="8 atoms, the lattice 16"):
        from_data_container(dc, rocksalt[2])
    one = dict(dc.ensemble_parameters)
    del one["mu_Ag"]
    dc._ensemble_parameters, whole = one, dc._ensemble_parameters
    with pytest.raises(ValueError, match="number of Ag atoms changed"):
        from_data_container(dc, lattice)
    dc._ensemble_parameters = whole
    dc._data_list[2]["occupations"][1] = 29
    with pytest.raises(ValueError, match="atom 1 is Cu"):
        from_data_container(dc, lattice)
