"""Energies of ASE calculators: values, symmetry, relaxation, cache, executors."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.constraints import FixAtoms, FixCom, FixedLine
from ase.db import connect
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS, FIRE
from calculators import Pairs, stretch_z, unpicklable
from toys import two_sublattices

from clease_nn.conditions import Conditions
from clease_nn.energies import CalculatorEnergy, ExecutorError, Relaxation, check_energy_model
from clease_nn.energies.calculator.relaxation import collapse
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import Lattice
from clease_nn.montecarlo import Chains
from clease_nn.montecarlo.chains import random_occupations


def fcc(size=(1, 1, 2), a=3.8):
    return Lattice.uniform(bulk("Cu", a=a, cubic=True) * size, ["Au", "Cu"])


def configurations(lattice, n, seed=0):
    return torch.from_numpy(random_occupations(lattice, n, np.random.default_rng(seed)))


def direct(lattice, occupations, calculator=EMT):
    """Energies without any of our machinery."""
    out = []
    for row in occupations.numpy():
        atoms = lattice.atoms(row)
        atoms = atoms[[i for i, s in enumerate(atoms.symbols) if s != "X"]]
        atoms.calc = calculator()
        out.append(atoms.get_potential_energy())
    return torch.tensor(out, dtype=torch.float64)


def spawned(workers=1):
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


# ------------------------------------------------------------------ values
def test_energies_are_those_of_the_calculator():
    """Energies of 30 configurations equal get_potential_energy to 1e-9 eV."""
    lattice = fcc()
    x = configurations(lattice, 30)
    e = CalculatorEnergy(EMT())(lattice, x)
    assert e.dtype == torch.float64
    assert torch.allclose(e, direct(lattice, x), atol=1e-9, rtol=0)


def test_contract_holds():
    """The energy model contract holds for a calculator and for a factory of calculators."""
    lattice = fcc((1, 1, 1))
    for calculator in (EMT(), EMT, partial(EMT, asap_cutoff=True)):
        assert check_energy_model(CalculatorEnergy(calculator), lattice, n=4)["batch"] < 1e-9


def test_vacancies_are_deleted():
    """Structures contain no "X"; energies are those without it; no atom at all is zero."""
    lattice = Lattice.uniform(bulk("Cu", a=3.8, cubic=True), ["Cu", "X"])
    x = torch.tensor([[0, 0, 0, 1], [0, 1, 1, 1], [1, 1, 1, 1]], dtype=torch.int8)
    energy = CalculatorEnergy(EMT())
    e = energy(lattice, x)
    assert torch.allclose(e[:2], direct(lattice, x[:2]), atol=1e-9, rtol=0)
    assert e[2] == 0
    assert [len(a) for a in energy.structures(lattice, x)] == [3, 1, 0]
    assert energy.calls == 2


def test_user_objects_are_left_alone():
    """Neither the template nor the occupations nor the calculator's atoms are changed."""
    lattice = fcc((1, 1, 1))
    x = configurations(lattice, 3)
    positions, before = lattice.template.positions.copy(), x.clone()
    relax = Relaxation(filter=FrechetCellFilter, fmax=0.1)
    CalculatorEnergy(EMT(), relax=relax)(lattice, x)
    assert (lattice.template.positions == positions).all()
    assert lattice.template.calc is None
    assert torch.equal(x, before)


def test_chains_and_enumeration_run_on_a_calculator():
    """A semi-grand canonical ensemble of a plain calculator works, each structure paid once."""
    lattice = fcc((1, 1, 1))
    energy = CalculatorEnergy(EMT())
    ensemble = SemiGrandCanonical(energy)
    exact = ensemble.enumerate(lattice)
    assert energy.calls == 5  # Cu4, Cu3Au, Cu2Au2, CuAu3, Au4
    conditions = Conditions([800.0] * 64, [[0.0, 0.0]] * 64)
    chains = Chains(ensemble, lattice, conditions, seed=3)
    chains.sweep(40)
    gold = chains.counts()[:, 0]
    mean = float(exact.mean(conditions[0], (exact.occupations == 0).sum(1))[0])
    assert abs(gold.mean() - mean) < 4 * max(gold.std(), 0.3) / 8
    assert energy.calls == 5


# ------------------------------------------------------------------ symmetry and duplicates
@pytest.mark.parametrize("symmetry", [True, False])
def test_structures_are_computed_once(symmetry):
    """Calls count the distinct structures; with symmetry all images share one; hits the rest."""
    lattice = fcc()
    x = configurations(lattice, 1)
    images = x[0][torch.from_numpy(lattice.translations)]
    batch = torch.cat([images, images, x])
    energy = CalculatorEnergy(EMT(), symmetry=symmetry)
    e = energy(lattice, batch)
    distinct = 1 if symmetry else len(torch.unique(images, dim=0))
    assert energy.calls == distinct
    assert (energy.requested, energy.hits) == (len(batch), len(batch) - distinct)
    assert torch.allclose(e, direct(lattice, x).expand(len(e)), atol=1e-9, rtol=0)
    energy(lattice, x)
    assert energy.calls == distinct


def test_symmetric_energies_agree_with_direct_ones_on_sublattices():
    """Two sublattices with vacancies, any pair energy: shared energies equal direct ones."""
    lattice = two_sublattices()[0]
    x = configurations(lattice, 40)
    energy = CalculatorEnergy(Pairs())
    assert torch.allclose(energy(lattice, x), direct(lattice, x, Pairs), atol=1e-9, rtol=0)
    assert energy.calls < 40


def test_equal_lattices_share_energies_and_others_do_not():
    """A second Lattice object of the same cell costs nothing; another lattice constant does."""
    energy = CalculatorEnergy(EMT())
    x = configurations(fcc(), 3)
    energy(fcc(), x)
    calls = energy.calls
    energy(fcc(), x)
    assert energy.calls == calls
    e = energy(fcc(a=3.9), x)
    assert energy.calls == 2 * calls
    assert torch.allclose(e, direct(fcc(a=3.9), x), atol=1e-9, rtol=0)


# ------------------------------------------------------------------ relaxation
@pytest.mark.parametrize("cell", [False, True])
def test_relaxed_energies_equal_a_direct_relaxation(cell):
    """Energy and structure equal BFGS run by hand on the representative, to 1e-9 eV."""
    lattice = fcc()
    x = configurations(lattice, 3, seed=2)
    relax = Relaxation(filter=FrechetCellFilter if cell else None, fmax=0.02)
    energy = CalculatorEnergy(EMT(), relax=relax)
    e = energy(lattice, x)
    for k, atoms in enumerate(energy.structures(lattice, x)):
        atoms.calc = EMT()
        assert BFGS(FrechetCellFilter(atoms) if cell else atoms, logfile=None).run(fmax=0.02)
        assert e[k] == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
        relaxed = energy.relaxed(lattice, x[k])
        assert np.allclose(relaxed.positions, atoms.positions, atol=1e-9)
        assert np.allclose(relaxed.cell, atoms.cell, atol=1e-9)
    assert energy.steps > 0


def test_equivalent_configurations_relax_to_one_energy():
    """Relaxing an image by itself gives the representative's energy within the convergence."""
    lattice = fcc()
    x = configurations(lattice, 1, seed=2)
    image = x[:, torch.from_numpy(lattice.translations[3])]
    relax = Relaxation(filter=FrechetCellFilter, fmax=0.002)
    one = CalculatorEnergy(EMT(), relax=relax)(lattice, x)
    other = CalculatorEnergy(EMT(), relax=relax, symmetry=False)(lattice, image)
    assert float(one - other) == pytest.approx(0, abs=1e-5)


def test_filter_functions_break_symmetry():
    """A function may hide a mask: images by rotation have energies of their own."""
    lattice = fcc((2, 1, 1))
    x = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1], [0, 1, 1, 0, 1, 1, 1, 1]], dtype=torch.int8)
    relax = Relaxation(filter=stretch_z, fmax=0.05)
    e = CalculatorEnergy(EMT(), relax=relax)(lattice, x)
    expected = CalculatorEnergy(EMT(), relax=relax, symmetry=False)(lattice, x)
    assert torch.equal(e, expected)
    assert CalculatorEnergy(EMT(), relax=Relaxation(filter=FrechetCellFilter))._permutations(
        lattice
    ).shape[0] > 1  # fmt: skip


def test_constraints_reach_the_calculator():
    """Also those that indexing of Atoms would lose."""
    atoms = bulk("Cu", a=3.8, cubic=True)
    atoms.set_constraint(FixCom())
    lattice = Lattice.uniform(atoms, ["Au", "Cu"])
    [structure] = CalculatorEnergy(EMT()).structures(lattice, torch.tensor([[0, 1, 1, 1]]))
    assert len(structure.constraints) == 1


def test_optimizer_and_partial_filter_are_used():
    """FIRE with a masked filter leaves the masked strains at zero; only duplicates are shared."""
    lattice = fcc((1, 1, 1))
    relax = Relaxation(FIRE, partial(FrechetCellFilter, mask=[0, 0, 1, 0, 0, 0]), fmax=0.05)
    energy = CalculatorEnergy(EMT(), relax=relax)
    x = torch.tensor([[0, 1, 1, 1], [1, 0, 1, 1]], dtype=torch.int8)
    energy(lattice, x)
    assert energy.calls == 2
    cell = energy.relaxed(lattice, x[0]).cell.array
    assert np.allclose(cell[:2], lattice.template.cell.array[:2], atol=1e-9)
    assert abs(cell[2, 2] - 3.8) > 0.01


@pytest.mark.parametrize("constraint", [FixAtoms([0]), FixedLine(0, [1, 0, 0])])
def test_constraints_of_the_template_hold(constraint):
    """Constrained atoms stay, and symmetry does not mix them with free ones."""
    atoms = bulk("Cu", a=3.8, cubic=True)
    atoms.positions[1:, 2] += 0.05
    atoms.set_constraint(constraint)
    lattice = Lattice.uniform(atoms, ["Au", "Cu"])
    energy = CalculatorEnergy(EMT(), relax=Relaxation())
    x = torch.tensor([[0, 1, 1, 1], [1, 0, 1, 1]], dtype=torch.int8)
    energy(lattice, x)
    assert energy.calls == 2
    moved = energy.relaxed(lattice, x[1]).positions - atoms.positions
    assert np.allclose(moved[0, 1:], 0, atol=1e-12)


def test_collapse_is_seen_through_strain_and_shift():
    """A sheared, swollen and shifted cell with small displacements is intact."""
    lattice = fcc((1, 1, 2))
    rng = np.random.default_rng(0)
    atoms = lattice.template.copy()
    atoms.set_cell(atoms.cell.array @ (1.06 * np.eye(3) + 0.02 * rng.normal(size=(3, 3))), True)
    atoms.positions += [3.0, -2.0, 0.7] + 0.1 * rng.normal(size=(8, 3))
    assert collapse(lattice.template, np.arange(8), atoms, 0.14) is None


def test_collapse_names_atom_and_site():
    """An atom next to a vacancy that moves into it has left its site; so has a Bain strain."""
    lattice = fcc((1, 1, 2))
    occupied = np.arange(1, 8)
    atoms = lattice.template[occupied]
    atoms.positions[0] += 0.8 * (lattice.template.positions[0] - atoms.positions[0])
    assert "ended 2.15 angstrom from there and 0.5" in collapse(
        lattice.template, occupied, atoms, 0.14
    )
    bcc = lattice.template.copy()
    bcc.set_cell(bcc.cell.array @ np.diag([2 ** (1 / 6), 2 ** (1 / 6), 2 ** (-1 / 3)]), True)
    assert "strain of 0.28" in collapse(lattice.template, np.arange(8), bcc, 0.14)


# ------------------------------------------------------------------ cache
def test_cache_gives_back_everything(tmp_path):
    """A second session computes nothing; energies and relaxed structures are those of the first."""
    lattice, other = fcc(), fcc((1, 1, 1))
    x = configurations(lattice, 4, seed=5)
    relax = Relaxation(filter=FrechetCellFilter, fmax=0.05)
    path = tmp_path / "energies.db"
    first = CalculatorEnergy(EMT(), relax=relax, cache=path)
    e = first(lattice, x)
    first(other, x[:, :4])
    again = CalculatorEnergy(EMT, relax=relax, cache=path)
    assert torch.equal(again(lattice, x), e)
    assert torch.equal(again(other, x[:, :4]), first(other, x[:, :4]))
    assert (again.calls, again.hits) == (0, 8)
    one, two = first.relaxed(lattice, x[0]), again.relaxed(lattice, x[0])
    assert np.allclose(one.positions, two.positions, atol=1e-12)
    assert one.info["occupation"] == two.info["occupation"]


def test_cache_is_a_database_that_ase_reads(tmp_path):
    """Rows are structures with their energies."""
    lattice = fcc()
    x = configurations(lattice, 6)
    energy = CalculatorEnergy(EMT(), cache=tmp_path / "energies.db")
    energy(lattice, x)
    rows = list(connect(tmp_path / "energies.db").select())
    assert len(rows) == energy.calls
    for row in rows:
        atoms = row.toatoms()
        stored = atoms.get_potential_energy()
        atoms.calc = EMT()
        assert atoms.get_potential_energy() == pytest.approx(stored, abs=1e-9)


def test_cache_without_symmetry_serves_one_with_it(tmp_path):
    """Rows are brought to the representative when they are read."""
    lattice = fcc()
    x = configurations(lattice, 3)
    path = tmp_path / "energies.db"
    e = CalculatorEnergy(EMT(), symmetry=False, cache=path)(lattice, x)
    energy = CalculatorEnergy(EMT(), cache=path)
    image = x[:, torch.from_numpy(lattice.translations[5])]
    assert torch.allclose(energy(lattice, image), e, atol=1e-9, rtol=0)
    assert energy.calls == 0


def test_cache_without_symmetry_gives_relaxed_structures(tmp_path):
    """The structure found is the image that was computed, under its own occupation."""
    lattice = fcc()
    x = configurations(lattice, 1)
    relax, path = Relaxation(fmax=0.1), tmp_path / "energies.db"
    CalculatorEnergy(EMT(), relax=relax, symmetry=False, cache=path)(lattice, x)
    energy = CalculatorEnergy(EMT(), relax=relax, cache=path)
    image = x[0, torch.from_numpy(lattice.translations[5])]
    atoms = energy.relaxed(lattice, image)
    assert energy.calls == 0
    assert atoms.info["occupation"] == x[0].tolist()
    assert lattice.occupations(atoms).tolist() == x[0].tolist()


@pytest.mark.parametrize("what", ["moments", "tags", "info"])
def test_cache_tells_templates_apart(what, tmp_path):
    """Initial magnetic moments, tags, a total charge: cells have entries of their own."""
    path = tmp_path / "energies.db"
    other = fcc().template
    if what == "moments":
        other.set_initial_magnetic_moments([1.0] * 8)
    elif what == "tags":
        other.set_tags([1] * 8)
    else:
        other.info["charge"] = 1
    x = configurations(fcc(), 2)
    CalculatorEnergy(EMT(), cache=path)(fcc(), x)
    energy = CalculatorEnergy(EMT(), cache=path)
    energy(Lattice.uniform(other, ["Au", "Cu"]), x)
    assert energy.calls == 2


def test_steps_may_be_raised_on_the_same_cache(tmp_path):
    """The limit on steps does not decide an energy: a cache outlives a change of it."""
    lattice, path = fcc((1, 1, 1)), tmp_path / "energies.db"
    x = torch.tensor([[0, 1, 1, 1]], dtype=torch.int8)
    relax = Relaxation(filter=FrechetCellFilter, max_steps=100)
    CalculatorEnergy(EMT(), relax=relax, cache=path)(lattice, x)
    relax = Relaxation(filter=FrechetCellFilter, max_steps=300)
    energy = CalculatorEnergy(EMT(), relax=relax, cache=path)
    energy(lattice, x)
    assert energy.calls == 0


# ------------------------------------------------------------------ identity
def test_fingerprints_follow_what_decides_the_energy():
    """Class, parameters, relaxation, name and weights change it; other settings do not."""
    same = [CalculatorEnergy(c, retries=r) for c, r in [(EMT(), 1), (EMT, 2)]]
    assert same[0].fingerprint == same[1].fingerprint
    network = LennardJones()
    network.model = torch.nn.Linear(2, 2)
    trained = LennardJones()
    trained.model = torch.nn.Linear(2, 2)
    committee = LennardJones()
    committee.models = [torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)]
    different = [
        same[0],
        CalculatorEnergy(EMT(asap_cutoff=True)),
        CalculatorEnergy(LennardJones()),
        CalculatorEnergy(LennardJones(sigma=2.0)),
        CalculatorEnergy(network),
        CalculatorEnergy(trained),
        CalculatorEnergy(committee),
        CalculatorEnergy(EMT(), relax=Relaxation()),
        CalculatorEnergy(EMT(), relax=Relaxation(fmax=0.01)),
        CalculatorEnergy(EMT(), relax=Relaxation(FIRE)),
        CalculatorEnergy(EMT(), relax=Relaxation(filter=FrechetCellFilter)),
        CalculatorEnergy(EMT(), relax=Relaxation(filter=stretch_z)),
        CalculatorEnergy(EMT(), name="EMT of my own"),
    ]
    assert len({e.fingerprint for e in different}) == len(different)


def test_nameless_functions_have_no_fingerprint():
    """Two lambdas look alike: energies relaxed with them are not kept under one name."""
    for relax in (
        Relaxation(lambda atoms, **k: BFGS(atoms, **k)),
        Relaxation(filter=lambda atoms: FrechetCellFilter(atoms)),
        Relaxation(filter=partial(lambda atoms, mask: atoms, mask=1)),
    ):
        energy = CalculatorEnergy(EMT(), relax=relax, name="EMT")
        with pytest.raises(ValueError, match="function of a module"):
            _ = energy.fingerprint


# ------------------------------------------------------------------ executors
def test_threads_have_calculators_of_their_own():
    """Four threads that share one calculator object give the energies of one thread."""
    lattice = fcc()
    x = configurations(lattice, 60)
    with ThreadPoolExecutor(4) as pool:
        energy = CalculatorEnergy(EMT(), executor=pool, symmetry=False)
        assert torch.allclose(energy(lattice, x), direct(lattice, x), atol=1e-9, rtol=0)


def test_spawned_processes_compute_what_cannot_be_pickled():
    """A module's factory serves calculators that cannot be sent."""
    lattice = fcc((1, 1, 1))
    x = configurations(lattice, 8)
    with spawned() as pool:
        energy = CalculatorEnergy(unpicklable, executor=pool, relax=Relaxation())
        e = energy(lattice, x)
        expected = CalculatorEnergy(EMT(), relax=Relaxation())(lattice, x)
        assert torch.allclose(e, expected, atol=1e-9, rtol=0)


def test_executor_with_map_alone():
    """Anything with a map will do."""

    class Mapper:
        def map(self, function, items):
            return map(function, items)

    lattice = fcc()
    x = configurations(lattice, 80)
    energy = CalculatorEnergy(EMT(), executor=Mapper(), symmetry=False)
    assert torch.allclose(energy(lattice, x), direct(lattice, x), atol=1e-9, rtol=0)
    assert energy.calls == len(torch.unique(x, dim=0))


def test_pool_of_multiprocessing_gives_results_one_by_one():
    """Of a pool that fails in the middle, what came before is kept."""

    class Pool:
        def map(self, function, items):
            raise AssertionError("would give all or nothing")

        def imap(self, function, items):
            for k, item in enumerate(items):
                if k == 3:
                    raise OSError("a worker is gone")
                yield function(item)

    energy = CalculatorEnergy(EMT(), executor=Pool(), symmetry=False)
    with pytest.raises(ExecutorError, match="3 of .* finished and kept"):
        energy(fcc(), configurations(fcc(), 8))
    assert energy.calls == 3


def test_dask_client():
    """A dask.distributed client is an executor."""
    distributed = pytest.importorskip("distributed", reason="needs the extra dask")
    lattice = fcc()
    x = configurations(lattice, 12)
    options = {"processes": False, "dashboard_address": None, "n_workers": 1}
    with distributed.LocalCluster(threads_per_worker=2, **options) as cluster:
        with distributed.Client(cluster) as client:
            energy = CalculatorEnergy(EMT(), executor=client)
            assert torch.allclose(energy(lattice, x), direct(lattice, x), atol=1e-9, rtol=0)


def test_progress_bar_counts_structures(capsys):
    """The bar is on standard error and ends at the number of structures."""
    energy = CalculatorEnergy(EMT(), progress=True)
    energy(fcc(), configurations(fcc(), 3))
    assert f"{energy.calls}/{energy.calls}" in capsys.readouterr().err


def test_relaxed_needs_a_relaxation():
    """Asking for relaxed structures at fixed positions is an error, a lone atom is not."""
    lattice = Lattice.uniform(Atoms("Cu", cell=[3, 3, 3], pbc=True), ["Au", "Cu"])
    with pytest.raises(ValueError, match="relax="):
        CalculatorEnergy(EMT()).relaxed(lattice, [0])
    assert len(CalculatorEnergy(EMT(), relax=Relaxation()).relaxed(lattice, [0])) == 1
