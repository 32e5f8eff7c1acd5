"""Laws of reading CLEASE: energies, lattices, fingerprints and chemical potentials."""

import importlib.util
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from clease.calculator import attach_calculator
from clease.corr_func import CorrFunction
from clease.montecarlo import SGCMonteCarlo
from clease.settings import CEBulk, Concentration

from clease_nn.energies import check_energy_model
from clease_nn.hosts import clease as host

_BENCHMARKS = Path(__file__).parents[1] / "examples" / "benchmarks"


def _benchmark():
    """The random expansions of the benchmark, shared with it."""
    sys.path.insert(0, str(_BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location(
            "extraction_benchmark", _BENCHMARKS / "extraction.py"
        )
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(_BENCHMARKS))
    return module


BENCHMARK = _benchmark()


def make(name, tmp_path, basis="polynomial", seed=0):
    return BENCHMARK.build(name, basis, seed, str(tmp_path / "clease.db"), n_eci=12)


def occupations(lattice, n, seed=0):
    rng = np.random.default_rng(seed)
    columns = [rng.choice(np.flatnonzero(row), size=n) for row in lattice.allowed]
    return torch.as_tensor(np.stack(columns, 1).astype(np.int8))


@pytest.mark.parametrize(
    ("name", "basis"),
    [(n, BENCHMARK.BASES[k % 3]) for k, n in enumerate(BENCHMARK.SYSTEMS)],
)
def test_energies_equal_the_calculator(name, basis, tmp_path):
    """Extracted energies equal those of CLEASE's calculator to 1e-10 eV."""
    assert BENCHMARK.difference(make(name, tmp_path, basis), 5, seed=1) < 1e-10


def test_contract(tmp_path):
    """Extracted energies pass the shipped contract check."""
    atoms = make("two sublattices sharing a species, vacancies", tmp_path)
    lattice = host.lattice(atoms)
    assert max(check_energy_model(host.energy(atoms), lattice, n=4).values()) < 1e-10


def test_lattice_has_the_sites_of_the_settings(tmp_path):
    """Active sites, species, allowed species and sublattices are those of the settings."""
    atoms = make("perovskite, two active positions, background", tmp_path)
    settings = atoms.calc.settings
    lattice = host.lattice(atoms)
    assert lattice.species == ("Ca", "O", "Sr", "X")
    assert lattice.site_indices.tolist() == settings.non_background_indices
    position = {int(atom): k for k, atom in enumerate(lattice.site_indices)}
    for elements, atoms_of_basis in zip(
        settings.basis_elements, settings.index_by_basis, strict=True
    ):
        for atom in set(atoms_of_basis) & set(position):
            allowed = {
                s
                for s, ok in zip(lattice.species, lattice.allowed[position[atom]], strict=True)
                if ok
            }
            assert allowed == set(elements)
    groups = settings.index_by_sublattice
    for site, atom in enumerate(lattice.site_indices):
        assert atom in groups[lattice.sublattices[site]]
    x = occupations(lattice, 1)[0].numpy()
    assert np.array_equal(lattice.occupations(lattice.atoms(x)), x)


def test_settings_and_atoms_are_left_alone(tmp_path):
    """Reading changes neither atoms, nor ECIs, nor the active template."""
    atoms = make("binary fcc", tmp_path)
    settings = atoms.calc.settings
    before = (atoms.copy(), dict(atoms.calc.eci), settings.atoms, atoms.get_potential_energy())
    lattice = host.lattice(atoms)
    host.energy(atoms)(lattice, occupations(lattice, 3))
    assert atoms == before[0] and atoms.calc.eci == before[1] and settings.atoms is before[2]
    assert atoms.get_potential_energy() == before[3]


def test_another_active_template_does_not_matter(tmp_path):
    """A supercell is read correctly after another one has become the settings' template."""
    atoms = make("binary fcc", tmp_path)
    lattice, energy = host.lattice(atoms), host.energy(atoms)
    settings = atoms.calc.settings
    small = settings.prim_cell * (2, 2, 2)
    settings.set_active_template(atoms=small)
    template = settings.atoms
    assert host.lattice(atoms).fingerprint == lattice.fingerprint
    assert host.energy(atoms).fingerprint == energy.fingerprint
    assert settings.atoms is template and len(template) == 8


def test_parent_fingerprint_ignores_the_supercell(tmp_path):
    """One parent, many supercells: one key; other ECIs or basis functions: another key."""
    settings = CEBulk(
        Concentration([["Au", "Cu"]]),
        crystalstructure="fcc",
        a=3.8,
        max_cluster_dia=(4.5, 4.0),
        db_name=str(tmp_path / "a.db"),
    )
    eci = {"c0": 0.1, "c1_0": -0.02, "c2_d0000_0_00": 0.015}
    keys, energies = [], []
    for size in [(2, 2, 2), (3, 2, 2)]:
        atoms = attach_calculator(settings, settings.prim_cell * size, eci)
        keys.append(host.parent_fingerprint(atoms))
        energies.append(host.energy(atoms).fingerprint)
    assert keys[0] == keys[1] and energies[0] != energies[1]
    assert host.energy(atoms).metadata["parent"] == keys[0]
    assert host.parent_fingerprint(atoms, {**eci, "c2_d0001_0_00": 0.0}) == keys[0]
    changed = {**eci, "c1_0": -0.021}
    assert host.parent_fingerprint(atoms, changed) != keys[0]
    settings.basis_func_type = "trigonometric"
    assert host.parent_fingerprint(atoms) != keys[0]


def test_bare_ecis_can_be_given(tmp_path):
    """Explicit ECIs are used instead of those into which a sampler folded its potential."""
    atoms = make("binary fcc", tmp_path)
    bare = dict(atoms.calc.eci)
    lattice, expected = host.lattice(atoms), host.energy(atoms)
    SGCMonteCarlo(atoms, 600, symbols=["Au", "Cu"]).run(10, chem_pot={"c1_0": 0.1})
    x = occupations(lattice, 4)
    assert torch.equal(host.energy(atoms, eci=bare)(lattice, x), expected(lattice, x))
    assert not torch.allclose(host.energy(atoms)(lattice, x), expected(lattice, x))


# ---------------------------------------------------------------------- chemical potentials
@pytest.mark.parametrize("basis", BENCHMARK.BASES)
@pytest.mark.parametrize(
    ("name", "symbols"),
    [
        ("binary fcc", ["Au", "Cu"]),
        ("ternary fcc", ["Ag", "Au", "Cu"]),
        ("background left out", ["Li", "V", "X"]),
        ("background included", ["Li", "V"]),
    ],
)
def test_chemical_potentials_equal_the_sampler(name, symbols, basis, tmp_path):
    """E - sum mu equals the energy SGCMonteCarlo reports, offset included, along its path."""
    atoms = make(name, tmp_path, basis)
    lattice, energy = host.lattice(atoms), host.energy(atoms)
    names = [n for n in atoms.calc.eci if n.startswith("c1_")]
    chem_pot = {n: 0.07 * (k + 1) for k, n in enumerate(names)}
    mu = host.mu_from_chem_pot(atoms, lattice, chem_pot)
    random.seed(3)
    mc = SGCMonteCarlo(atoms, 5000, symbols=symbols)
    for steps in (0, 1, 20, 100):
        mc.run(steps, chem_pot=chem_pot)
        x = lattice.occupations(mc.atoms)
        e = float(energy(lattice, torch.as_tensor(x)[None]))
        assert mc.current_energy == pytest.approx(e - mu[x].sum(), abs=1e-10)


@pytest.mark.parametrize("name", ["binary fcc", "ternary fcc", "background included"])
def test_chem_pot_from_mu_is_the_inverse(name, tmp_path):
    """Back and forth keeps every difference between species."""
    atoms = make(name, tmp_path)
    lattice = host.lattice(atoms)
    mu = np.random.default_rng(0).normal(0, 0.2, lattice.n_species)
    settings = atoms.calc.settings
    back = host.mu_from_chem_pot(settings, lattice, host.chem_pot_from_mu(settings, lattice, mu))
    np.testing.assert_allclose(back - back[0], mu - mu[0], atol=1e-12)


def test_factor_two_of_the_polynomial_basis(tmp_path):
    """For Au/Cu c1_0 = x means mu_Au - mu_Cu = 2x, and twice that if half the sites count."""
    atoms = make("binary fcc", tmp_path)
    lattice = host.lattice(atoms)
    mu = host.mu_from_chem_pot(atoms, lattice, {"c1_0": 0.1})
    assert mu[0] - mu[1] == pytest.approx(0.2)
    settings = CEBulk(
        Concentration([["Au", "Cu"], ["O"]]),
        crystalstructure="rocksalt",
        a=4.2,
        size=[2, 2, 2],
        max_cluster_dia=(3.1,),
        db_name=str(tmp_path / "b.db"),
    )
    atoms = attach_calculator(settings, settings.prim_cell * (2, 2, 2), {"c0": 0.0, "c1_0": 0.0})
    mu = host.mu_from_chem_pot(atoms, host.lattice(atoms), {"c1_0": 0.1})
    assert mu[0] - mu[1] == pytest.approx(0.4)


def test_element_form_and_axes(tmp_path):
    """Elements are taken as they are, missing ones 0; axes are unit steps of either form."""
    atoms = make("ternary fcc", tmp_path)
    lattice = host.lattice(atoms)
    mu = host.mu_from_chem_pot(atoms, lattice, {"Cu": 0.3, "Ag": -0.1})
    assert mu.tolist() == [-0.1, 0.0, 0.3]
    assert host.axes(atoms, lattice, ["Cu"]).tolist() == [[0.0, 0.0, 1.0]]
    names = ["c1_0", "c1_1"]
    rows = host.axes(atoms, lattice, names)
    chem_pot = dict(zip(names, [0.2, -0.5], strict=True))
    np.testing.assert_allclose(
        np.array([0.2, -0.5]) @ rows, host.mu_from_chem_pot(atoms, lattice, chem_pot)
    )


def test_bad_chemical_potentials_are_named(tmp_path):
    """Unknown and mixed names, values that are not finite, wrong objects."""
    atoms = make("binary fcc", tmp_path)
    lattice = host.lattice(atoms)
    for bad in ("Ni", "c1_1", "c2_d0000_0_00"):
        with pytest.raises(ValueError, match=f"unknown chemical potential '{bad}'.*c1_0.*Au"):
            host.mu_from_chem_pot(atoms, lattice, {bad: 0.1})
        with pytest.raises(ValueError, match=f"unknown chemical potential '{bad}'"):
            host.axes(atoms, lattice, [bad])
    with pytest.raises(ValueError, match="mix singlets and elements"):
        host.mu_from_chem_pot(atoms, lattice, {"c1_0": 0.1, "Au": 0.1})
    with pytest.raises(ValueError, match="mix singlets and elements"):
        host.axes(atoms, lattice, ["c1_0", "Au"])
    with pytest.raises(ValueError, match="must be finite"):
        host.mu_from_chem_pot(atoms, lattice, {"Au": np.nan})
    with pytest.raises(ValueError, match="2 finite numbers"):
        host.chem_pot_from_mu(atoms, lattice, [0.0])
    with pytest.raises(ValueError, match="at least one"):
        host.axes(atoms, lattice, [])
    with pytest.raises(TypeError, match="Clease calculator or CLEASE settings"):
        host.mu_from_chem_pot(Atoms("Au"), lattice, {"Au": 0.1})


# ---------------------------------------------------------------------- bad input
def test_only_atoms_with_a_clease_calculator():
    """Other objects and calculators are refused with what to use instead."""
    with pytest.raises(TypeError, match=r"must be an ase.Atoms object, got str"):
        host.energy("Au")
    with pytest.raises(TypeError, match="no calculator; attach one"):
        host.lattice(bulk("Au"))
    atoms = bulk("Au")
    atoms.calc = EMT()
    with pytest.raises(TypeError, match="got EMT; attach one with clease.calculator"):
        host.energy(atoms)


def test_unknown_elements_are_named(tmp_path):
    """Elements foreign to the settings or to the site, which CLEASE evaluates silently."""
    atoms = make("two sublattices", tmp_path)
    sites = atoms.calc.settings.index_by_basis
    atoms.symbols[sites[0][1]] = "Fe"
    with pytest.raises(ValueError, match=f"atom {sites[0][1]} is Fe.*Li.*settings know only"):
        host.lattice(atoms)
    atoms.symbols[sites[0][1]] = "O"
    with pytest.raises(
        ValueError, match=r"is O, but this site may carry only \['Li', 'Mg'\]; change"
    ):
        host.energy(atoms)


def test_bad_ecis_are_named(tmp_path):
    """Clusters that the settings do not have, and ECIs that are not finite."""
    atoms = make("binary fcc", tmp_path)
    with pytest.raises(ValueError, match="no cluster 'c5_d0000_0_00000'.*max_cluster_dia"):
        host.energy(atoms, eci={"c0": 0.0, "c5_d0000_0_00000": 0.1})
    with pytest.raises(ValueError, match="finite, got c0 = nan eV"):
        host.energy(atoms, eci={"c0": float("nan")})
    with pytest.raises(ValueError, match="no cluster 'c1_7'"):
        host.parent_fingerprint(atoms, eci={"c1_7": 0.1})


def test_atoms_in_another_order_are_refused(tmp_path):
    """Positions must be in CLEASE's order: no silent permutation of sites."""
    atoms = make("binary fcc", tmp_path)
    atoms.positions = atoms.positions[np.random.default_rng(0).permutation(len(atoms))]
    with pytest.raises(ValueError, match="not in the order CLEASE uses"):
        host.lattice(atoms)


def test_correlation_functions_one_by_one(tmp_path):
    """A single ECI of 1 eV gives len(atoms) times that correlation function."""
    atoms = make("grouped bases", tmp_path)
    lattice = host.lattice(atoms)
    x = occupations(lattice, 1)
    structure = lattice.atoms(x[0].numpy())
    names = list(atoms.calc.eci)
    cf = CorrFunction(atoms.calc.settings).get_cf_by_names(structure, names)
    for name in names:
        e = float(host.energy(atoms, eci={name: 1.0})(lattice, x))
        assert e == pytest.approx(len(atoms) * cf[name], abs=1e-10)
