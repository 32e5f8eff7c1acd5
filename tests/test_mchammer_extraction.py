"""Laws of reading icet: energies, lattices, fingerprints, and what is refused."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk

pytest.importorskip("icet")

import icet
from icet import ClusterExpansion, ClusterSpace
from icet.tools import ConstituentStrain
from mchammer.calculators import ClusterExpansionCalculator, ConstituentStrainCalculator

from clease_nn.energies import check_energy_model
from clease_nn.hosts import mchammer as host

_BENCHMARKS = Path(__file__).parents[1] / "examples" / "benchmarks"


def _benchmark():
    """The random expansions of the benchmark, shared with it."""
    sys.path.insert(0, str(_BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location(
            "icet_host_benchmark", _BENCHMARKS / "icet_host.py"
        )
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(_BENCHMARKS))
    return module


BENCHMARK = _benchmark()


def occupations(lattice, n, seed=0):
    rng = np.random.default_rng(seed)
    columns = [rng.choice(np.flatnonzero(row), size=n) for row in lattice.allowed]
    return torch.as_tensor(np.stack(columns, 1).astype(np.int8))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", BENCHMARK.SYSTEMS)
def test_energies_equal_calculate_total(name, seed):
    """Extracted energies equal those of icet's calculator to 1e-10 eV."""
    assert BENCHMARK.difference(*BENCHMARK.build(name, seed), 5, seed=1) < 1e-10


def test_contract():
    """Extracted energies pass the shipped contract check."""
    atoms, calculator = BENCHMARK.build("inactive sublattice, vacancies", 3)
    lattice = host.lattice(atoms, calculator)
    assert max(check_energy_model(host.energy(atoms, calculator), lattice, n=4).values()) < 1e-10


def test_single_flips_equal_calculate_change():
    """Energies of single flips equal mchammer's calculate_change."""
    atoms, calculator = BENCHMARK.build("two sublattices, 2 and 3 species", 4)
    lattice, energy = host.lattice(atoms, calculator), host.energy(atoms, calculator)
    x = lattice.occupations(atoms)
    flips = energy.flip_energies(lattice, torch.as_tensor(x)[None])[0].numpy()
    calculator.set_occupations(atoms.numbers)
    for site, atom in enumerate(lattice.site_indices):
        for a in np.flatnonzero(lattice.allowed[site]):
            number = lattice.atoms(np.where(np.arange(len(x)) == site, a, x)).numbers[atom]
            change = calculator.calculate_change(
                sites=[int(atom)],
                current_occupations=atoms.numbers,
                new_site_occupations=[int(number)],
            )
            assert abs(change - flips[site, a]) < 1e-10


def test_expansion_and_calculator_agree():
    """An expansion means the number of atoms times its prediction, as in a calculator."""
    atoms, calculator = BENCHMARK.build("binary hcp", 5)
    expansion = calculator.cluster_expansion
    a, b = host.energy(atoms, expansion), host.energy(atoms, calculator)
    assert a.fingerprint == b.fingerprint
    lattice = host.lattice(atoms, expansion)
    e = a(lattice, torch.as_tensor(lattice.occupations(atoms))[None]).item()
    assert abs(e - len(atoms) * expansion.predict(atoms)) < 1e-10


def test_lattice_has_the_sites_of_the_cluster_space():
    """Active sites, allowed species and crystallographic sublattices are those of icet."""
    atoms, calculator = BENCHMARK.build("perovskite, wrapping", 6)
    lattice = host.lattice(atoms, calculator)
    assert lattice.species == ("Ba", "Ca", "O", "Sr", "X")
    active = sorted(i for s in calculator.sublattices.active_sublattices for i in s.indices)
    assert lattice.site_indices.tolist() == active
    for site, atom in enumerate(active):
        allowed = {s for s, ok in zip(lattice.species, lattice.allowed[site], strict=True) if ok}
        assert allowed == set(calculator.sublattices.get_allowed_symbols_on_site(atom))
    assert len(set(lattice.sublattices)) == 2
    x = occupations(lattice, 1)[0].numpy()
    assert np.array_equal(lattice.occupations(lattice.atoms(x)), x)


def test_sites_of_equal_species_but_different_symmetry_are_two_sublattices():
    """Sublattices are told apart by symmetry, not by their species alone."""
    sites = [[0, 0, 0], [0, 0, 0.3], [0, 0, 0.7]]
    primitive = Atoms("Cu3", scaled_positions=sites, cell=[3, 3, 9], pbc=True)
    space = ClusterSpace(primitive, [3.5], ["Au", "Cu"])
    expansion = ClusterExpansion(space, np.arange(len(space)))
    lattice = host.lattice(space.primitive_structure.repeat((2, 1, 1)), expansion)
    assert sorted(np.bincount(lattice.sublattices)) == [2, 4]


def test_parent_fingerprint_ignores_the_supercell_and_zero_parameters():
    """One parent, many supercells: one key; other parameters or scalings: another key."""
    primitive = bulk("Au")
    space = ClusterSpace(primitive, [4.3], ["Ag", "Au"])
    expansion = ClusterExpansion(space, [0.1, 0.0, 0.2, 0.0])
    key = host.parent_fingerprint(expansion)
    for n in (1, 2):
        structure = primitive.repeat(n)
        calculator = ClusterExpansionCalculator(structure, expansion)
        assert host.parent_fingerprint(calculator) == key
        assert host.energy(structure, calculator).metadata["parent"] == key
    scaled = ClusterExpansionCalculator(structure, expansion, scaling=1.0)
    other = ClusterExpansion(space, [0.1, 0.0, 0.2, 0.01])
    wider = ClusterExpansion(ClusterSpace(primitive, [4.3], ["Ag", "Pd"]), [0.1, 0.0, 0.2, 0.0])
    keys = {key, *map(host.parent_fingerprint, (scaled, other, wider))}
    assert len(keys) == 4


def test_merged_orbits_are_read():
    """Orbits that the user has merged keep the energy of icet's calculator."""
    space = ClusterSpace(BENCHMARK.HCP, [5.0], ["Al", "Ti"])
    pairs = [k - 1 for k, row in enumerate(space.as_list) if row["order"] == 2]
    space.merge_orbits({pairs[0]: [pairs[1]]})
    expansion = ClusterExpansion(space, np.linspace(0.1, 1.0, len(space)))
    atoms = space.primitive_structure.repeat((3, 2, 2))
    calculator = ClusterExpansionCalculator(atoms, expansion)
    assert BENCHMARK.difference(atoms, calculator, 5, seed=1) < 1e-10


GOLD = bulk("Au")
EXPANSION = ClusterExpansion(ClusterSpace(GOLD, [4.3], ["Ag", "Au"]), [0, 0, 0.1, -0.02])


def test_species_of_another_expansion_are_refused():
    """A species that the expansion does not know is named, with what it knows."""
    with pytest.raises(ValueError, match=r"atom 0 is Pd.*knows only \['Ag', 'Au'\]"):
        host.lattice(bulk("Pd", a=GOLD.cell.cellpar()[0] * 2**0.5).repeat(2), EXPANSION)


@pytest.mark.parametrize(
    ("structure", "message"),
    [
        (bulk("Au", a=4.5).repeat(2), "no supercell"),
        (bulk("Au").repeat(2)[:5], "no supercell"),
    ],
)
def test_another_lattice_is_refused(structure, message):
    """A structure that the primitive cell does not tile is refused."""
    with pytest.raises(ValueError, match=message):
        host.energy(structure, EXPANSION)


def test_displaced_atoms_are_refused():
    """A relaxed structure is refused, in words that ask for ideal positions."""
    structure = GOLD.repeat(2)
    structure.positions[3] += 0.3
    with pytest.raises(ValueError, match="ideal"):
        host.energy(structure, EXPANSION)


def test_other_objects_are_refused():
    """What is neither an expansion nor a plain calculator is refused by its type."""
    with pytest.raises(TypeError, match="icet.ClusterExpansion"):
        host.energy(GOLD, "expansion.ce")
    with pytest.raises(TypeError, match="ase.Atoms"):
        host.energy("structure.xyz", EXPANSION)


def test_calculators_with_more_than_an_expansion_are_refused():
    """A calculator that adds constituent strain is no plain cluster expansion."""
    supercell = GOLD.repeat((1, 1, 2))
    strain = ConstituentStrain(
        supercell=supercell,
        primitive_structure=GOLD,
        chemical_symbols=["Ag", "Au"],
        concentration_symbol="Ag",
        strain_energy_function=lambda c, k: 0.0,
    )
    calculator = ConstituentStrainCalculator(strain, EXPANSION)
    with pytest.raises(TypeError, match="ConstituentStrainCalculator is more than"):
        host.energy(supercell, calculator)


def test_infinite_parameters_are_refused():
    """Parameters that are not finite are named."""
    expansion = ClusterExpansion(EXPANSION.get_cluster_space_copy(), [0, np.nan, 0, 0])
    with pytest.raises(ValueError, match="nan at index 1"):
        host.energy(GOLD, expansion)


@pytest.mark.parametrize("version", ["3.1", "5.0", "unknown"])
def test_unsupported_versions_of_icet_are_refused(version, monkeypatch):
    """Another major version of icet is refused with the range that is supported."""
    monkeypatch.setattr(icet, "__version__", version)
    with pytest.raises(ImportError, match=r">=4,<5"):
        host.energy(GOLD, EXPANSION)


def test_without_icet_the_extra_is_named():
    """Where icet is missing the import says what to install."""
    code = (
        "import sys; sys.modules['icet'] = None\n"
        "try:\n    import clease_nn.hosts.mchammer\n"
        "except ImportError as e:\n    print(e)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'clease_nn[icet]'" in out.stdout
