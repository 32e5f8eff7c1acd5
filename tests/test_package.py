"""The installed package: version, metadata, cost of importing it, its own expansion."""

import importlib
import json
import re
import subprocess
import sys
from importlib.metadata import metadata, version
from pathlib import Path

import numpy as np
import pytest

import clease_nn

ROOT = Path(__file__).parents[1]
PUBLIC = {
    "ClusterExpansionEnergy",
    "ConditionRange",
    "Conditions",
    "Configurations",
    "Estimate",
    "Lattice",
    "NeuralSGCSampler",
    "ParallelTempering",
    "SemiGrandCanonical",
}


def test_one_version():
    """Package, metadata and citation state the same version."""
    assert version("clease_nn") == clease_nn.__version__
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^version: (.*)$", citation, re.MULTILINE)[1] == clease_nn.__version__


def test_metadata_states_licence_and_hosts():
    """Metadata carry licence, supported Python and icet as an extra only."""
    meta = metadata("clease_nn")
    assert meta["License-Expression"] == "MIT"
    assert meta["Requires-Python"] == ">=3.11"
    icet = [r for r in meta.get_all("Requires-Dist") if r.startswith("icet")]
    assert icet and all("extra" in r for r in icet)


def test_constraints_pin_the_torch_that_the_makefile_installs():
    """Makefile and constraints agree on torch, or set-up cannot resolve."""
    pin = re.search(r"^torch==\S+$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[0]
    assert pin in (ROOT / "Makefile").read_text()


def test_import_pulls_in_no_host_and_no_front_end():
    """Importing the package imports neither hosts nor plotting nor the command line's library."""
    code = "import sys, json, clease_nn; print(json.dumps(sorted(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in json.loads(out.stdout)}
    assert not loaded & {"clease", "icet", "mchammer", "matplotlib", "click"}


def test_public_names_exist():
    """Every public name can be got, and those that the documentation promises are public."""
    assert set(clease_nn.__all__) >= PUBLIC
    assert all(hasattr(clease_nn, name) for name in clease_nn.__all__)


def documented_modules() -> list[str]:
    return re.findall(r"automodule:: (\S+)", (ROOT / "docs/api.md").read_text())


@pytest.mark.parametrize("name", documented_modules())
def test_documented_names_exist(name):
    """A module on the API page can be imported and has all that it lists."""
    module = importlib.import_module(name)
    assert module.__doc__
    assert all(hasattr(module, member) for member in module.__all__)


def test_public_names_are_documented():
    """Every public name is described on the API page."""
    listed = {n for m in documented_modules() for n in importlib.import_module(m).__all__}
    assert set(clease_nn.__all__) <= listed


@pytest.mark.parametrize("size", [(2, 2, 4), (3, 2, 1), (4, 4, 4)])
def test_committed_expansion_in_any_supercell(size):
    """A supercell of any size carries the committed ECIs."""
    from clease_nn.hosts.clease.examples import cuau_emt_atoms, cuau_emt_data

    atoms = cuau_emt_atoms(size)
    assert len(atoms) == np.prod(size)
    assert set(atoms.symbols) == {"Cu"}
    eci = cuau_emt_data()["eci"]
    assert {k: v for k, v in dict(atoms.calc.eci).items() if v} == pytest.approx(eci)


def test_cuau_ground_states_are_the_ordered_alloys():
    """Enumerated 16 sites: Cu, Cu3Au (4 variants), CuAu (6) and Au are stable, nothing else."""
    from clease_nn.ensemble import SemiGrandCanonical
    from clease_nn.hosts import clease as host
    from clease_nn.hosts.clease.examples import cuau_emt_atoms

    atoms = cuau_emt_atoms((2, 2, 4))
    lattice = host.lattice(atoms)
    states = SemiGrandCanonical(host.energy(atoms)).enumerate(lattice)
    n_gold = (states.occupations == lattice.species.index("Au")).sum(1).numpy()
    energies = states.energy.numpy()
    stable = {}
    for mu in np.linspace(-0.3, 0.3, 1201):  # mu_Au - mu_Cu, eV
        k = np.argmin(energies - mu * n_gold)
        same = (n_gold == n_gold[k]) & (energies < energies[k] + 1e-8)
        stable[int(n_gold[k])] = int(same.sum())
    assert stable == {0: 1, 4: 4, 8: 6, 16: 1}


@pytest.mark.parametrize("size", [(2, 2), (2, 2, 0), (2, 2, 1.5)])
def test_size_of_the_example_cell_is_checked(size):
    """A size that is no three positive integers is named in the error."""
    from clease_nn.hosts.clease.examples import cuau_emt_atoms

    with pytest.raises(ValueError, match="three positive integers"):
        cuau_emt_atoms(size)
