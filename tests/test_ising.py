"""Ising and Potts models against exact partition functions."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk

from clease_nn.energies import (
    check_energy_model,
    ising_conditions,
    ising_energy,
    ising_log_z,
    kaufman_log_z,
    potts_energy,
)
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import Lattice

REFERENCE = os.environ.get("CLEASE_NN_REFERENCE")


@pytest.mark.parametrize("shape", [(1, 3), (2, 2), (2, 5), (3, 3), (3, 4), (4, 4)])
def test_transfer_matrix_equals_enumeration(shape):
    """ln Z by transfer matrix is ln Z by enumeration, also where bonds are doubled."""
    lattice = Lattice.square(*shape)
    exact = SemiGrandCanonical(ising_energy(lattice)).enumerate(lattice)
    for kT, field in [(1.5, 0.3), (2.3, 0.0), (3.5, -0.4)]:
        log_z = float(exact.log_z(ising_conditions(kT, field)))
        assert ising_log_z(*shape, kT, field) == pytest.approx(log_z, abs=1e-9)


def test_antiferromagnet_equals_enumeration():
    """A negative coupling, with negative eigenvalues of the transfer matrix, is exact as well."""
    lattice = Lattice.square(3, 4)
    exact = SemiGrandCanonical(ising_energy(lattice, coupling=-0.7)).enumerate(lattice)
    log_z = float(exact.log_z(ising_conditions(1.1, 0.2)))
    assert ising_log_z(3, 4, 1.1, 0.2, coupling=-0.7) == pytest.approx(log_z, abs=1e-9)


@pytest.mark.parametrize("kT", [1.5, 2 / np.log(1 + np.sqrt(2)), 3.5])
def test_kaufman_equals_transfer_matrix(kT):
    """Kaufman's formula agrees below, at and above the critical temperature."""
    for shape in [(4, 4), (5, 8), (10, 10)]:
        expected = ising_log_z(*shape, kT)
        assert kaufman_log_z(*shape, kT) == pytest.approx(expected, abs=1e-8)


@pytest.mark.skipif(REFERENCE is None, reason="CLEASE_NN_REFERENCE is not set")
def test_literature_grid():
    """Tabulated ln Z are reproduced: up to 10 x 10 in a field, larger lattices without one."""
    with open(Path(REFERENCE) / "ising_exact.csv") as file:
        rows = list(csv.DictReader(file))
    checked = 0
    for row in rows:
        size, kT, field = int(row["L"]), float(row["kT"]), float(row["field"])
        if size <= 12:
            got = ising_log_z(size, size, kT, field)
        elif field == 0.0:
            got = kaufman_log_z(size, size, kT)
        else:
            continue
        assert got == pytest.approx(float(row["logZ"]), abs=2e-8), row
        checked += 1
    assert checked >= 50


def test_field_flips_with_the_spins():
    """ln Z is even in the field."""
    assert ising_log_z(6, 6, 2.0, 0.3) == pytest.approx(ising_log_z(6, 6, 2.0, -0.3), abs=1e-9)


@pytest.mark.parametrize("structure", ["sc", "fcc", "bcc"])
def test_number_of_bonds(structure):
    """A ferromagnetic ground state has coordination / 2 bonds a site on any lattice."""
    coordination = {"sc": 6, "fcc": 12, "bcc": 8}[structure]
    for n in (1, 2, 3):
        atoms = bulk("Cu", structure, a=3.0) * n
        lattice = Lattice.uniform(atoms, ["Au", "Cu"])
        energy = ising_energy(lattice, coupling=0.5)
        e = float(energy(lattice, torch.ones((1, n**3), dtype=torch.int8)))
        assert e == pytest.approx(-0.5 * coordination / 2 * n**3)


def test_energy_models_keep_the_contract():
    """Ising and Potts energies pass the shipped contract check."""
    square = Lattice.square(3, 4)
    assert max(check_energy_model(ising_energy(square), square).values()) < 1e-12
    three = Lattice.square(2, 3, species=("Ag", "Au", "Cu"))
    assert max(check_energy_model(potts_energy(three, 0.3), three).values()) < 1e-12


def test_potts_of_two_species_is_ising():
    """Delta = (1 + s s') / 2 makes the two-state Potts model an Ising model of half coupling."""
    lattice = Lattice.square(4)
    rng = np.random.default_rng(5)
    x = torch.as_tensor(rng.integers(0, 2, (20, 16)), dtype=torch.int8)
    potts = potts_energy(lattice, 1.0)(lattice, x)
    ising = ising_energy(lattice, 0.5)(lattice, x)
    assert torch.allclose(potts, ising - 16.0, atol=1e-12)


def test_bad_input_is_named():
    """Errors name value and remedy."""
    with pytest.raises(ValueError, match="2 species.*potts_energy"):
        ising_energy(Lattice.square(2, species=("Ag", "Au", "Cu")))
    with pytest.raises(ValueError, match="coupling must be finite"):
        ising_energy(Lattice.square(2), float("nan"))
    with pytest.raises(ValueError, match="kT must be positive"):
        ising_log_z(3, 3, 0.0)
    with pytest.raises(ValueError, match="up to 12.*kaufman_log_z"):
        ising_log_z(13, 13, 2.0)
    with pytest.raises(ValueError, match="positive coupling"):
        kaufman_log_z(4, 4, 2.0, coupling=-1.0)
    with pytest.raises(ValueError, match="at least 1 x 1"):
        ising_log_z(0, 4, 2.0)
