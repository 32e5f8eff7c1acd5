"""Largest difference between extracted energies and CLEASE's calculator over 50 random expansions.

    python examples/benchmarks/extraction.py [--short] [--out FILE]

Binary, ternary and quaternary alloys, several sublattices, vacancies, background atoms in and
out of the basis, grouped bases, cells so small that clusters wrap onto themselves, supercells
that are no plain repetition, slabs, and all three kinds of basis functions.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, make_supercell
from clease.calculator import attach_calculator
from clease.settings import CEBulk, CECrystal, CESlab, Concentration
from common import one_thread, write_json

from clease_nn.hosts.clease import energy, lattice

GATE = 1e-10  # eV


def _bulk(basis, structure, dia, a=3.8, grouped=None, **kwargs):
    concentration = Concentration(basis_elements=basis, grouped_basis=grouped)
    return CEBulk(concentration, crystalstructure=structure, a=a, max_cluster_dia=dia, **kwargs)


def _perovskite(basis, dia, **kwargs):
    """Five atoms, three Wyckoff positions, cubic."""
    return CECrystal(
        Concentration(basis_elements=basis),
        spacegroup=221,
        basis=[(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0)],
        cellpar=[3.9, 3.9, 3.9, 90, 90, 90],
        max_cluster_dia=dia,
        **kwargs,
    )


def _grouped(dia, **kwargs):
    """Two positions that share their elements and a third with others."""
    return CECrystal(
        Concentration(
            basis_elements=[["Au", "Cu"], ["Ag", "X"], ["Au", "Cu"]], grouped_basis=[(0, 2), (1,)]
        ),
        spacegroup=221,
        basis=[(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0)],
        cellpar=[3.9, 3.9, 3.9, 90, 90, 90],
        max_cluster_dia=dia,
        **kwargs,
    )


def _slab(basis, dia, **kwargs):
    return CESlab(
        bulk("Cu", "fcc", a=3.8, cubic=True),
        (1, 1, 1),
        Concentration(basis_elements=basis),
        size=(2, 2, 2),
        max_cluster_dia=dia,
        **kwargs,
    )


SKEW = [[2, 1, 0], [0, 2, 1], [1, 0, 2]]
LONG = [[1, 1, 0], [-1, 1, 0], [0, 1, 3]]

SYSTEMS = {
    "binary fcc": (lambda **k: _bulk([["Au", "Cu"]], "fcc", (6.0, 4.5, 4.5), **k), (3, 3, 3)),
    "binary fcc, not a repetition": (
        lambda **k: _bulk([["Au", "Cu"]], "fcc", (4.8, 4.0, 4.0), **k),
        SKEW,
    ),
    "binary fcc, wrapping": (lambda **k: _bulk([["Au", "Cu"]], "fcc", (6.0, 4.5), **k), (2, 1, 1)),
    "binary fcc, one site": (lambda **k: _bulk([["Au", "Cu"]], "fcc", (4.0, 4.0), **k), (1, 1, 1)),
    "binary hcp": (lambda **k: _bulk([["Mg", "Zn"]], "hcp", (4.6, 3.9), a=3.2, **k), (2, 2, 2)),
    "ternary fcc": (lambda **k: _bulk([["Ag", "Au", "Cu"]], "fcc", (4.0, 4.0), **k), (2, 2, 3)),
    "ternary fcc, wrapping, not a repetition": (
        lambda **k: _bulk([["Ag", "Au", "Cu"]], "fcc", (4.0, 4.0), **k),
        LONG,
    ),
    "quaternary bcc": (
        lambda **k: _bulk([["Mo", "Nb", "Ta", "W"]], "bcc", (3.4, 3.4), a=3.2, **k),
        (2, 2, 2),
    ),
    "two sublattices": (
        lambda **k: _bulk([["Li", "Mg"], ["O", "S"]], "rocksalt", (4.3, 3.1), a=4.2, **k),
        (2, 2, 2),
    ),
    "two sublattices sharing a species, vacancies": (
        lambda **k: _bulk([["Li", "V", "X"], ["O", "X"]], "rocksalt", (4.3, 3.1), a=4.2, **k),
        (2, 2, 2),
    ),
    "background left out": (
        lambda **k: _bulk(
            [["Li", "V", "X"], ["O"]],
            "rocksalt",
            (4.3, 4.3),
            a=4.2,
            include_background_atoms=False,
            **k,
        ),
        (2, 2, 2),
    ),
    "background included": (
        lambda **k: _bulk(
            [["Li", "V"], ["O"]], "rocksalt", (4.3, 3.1), a=4.2, include_background_atoms=True, **k
        ),
        (2, 2, 2),
    ),
    "fluorite, two backgrounds": (
        lambda **k: _bulk([["Ce", "Zr"], ["O"], ["F"]], "fluorite", (5.6, 4.0), a=5.4, **k),
        (2, 2, 2),
    ),
    "perovskite, two active positions, background": (
        lambda **k: _perovskite([["Sr", "Ca"], ["Ti"], ["O", "X"]], (4.2, 3.0), **k),
        (2, 1, 2),
    ),
    "grouped bases": (lambda **k: _grouped((4.0, 3.0), **k), (2, 2, 1)),
    "slab": (lambda **k: _slab([["Cu", "Au", "X"]], (4.0, 4.0), **k), None),
    "slab, binary": (lambda **k: _slab([["Cu", "X"]], (5.5, 4.0, 4.0), **k), None),
}
BASES = ("polynomial", "trigonometric", "binary_linear")


def build(name: str, basis: str, seed: int, db_name: str, n_eci: int = 40) -> Atoms:
    """Atoms with a Clease calculator: random occupations, random ECIs."""
    make, size = SYSTEMS[name]
    rng = np.random.default_rng(seed)
    settings = make(basis_func_type=basis, db_name=db_name)
    if size is None:
        atoms = settings.atoms.copy()
    else:
        matrix = np.array(size) if np.ndim(size) == 2 else np.diag(size)
        atoms = make_supercell(settings.prim_cell, matrix)
    settings.set_active_template(atoms=atoms)
    names = settings.all_cf_names
    must = ["c0"] + [n for n in names if n.startswith("c1_")]
    rest = [n for n in names if n not in must]
    chosen = must + list(rng.permutation(rest)[:n_eci])
    eci = {str(n): float(rng.normal(0, 0.05)) for n in chosen}
    return attach_calculator(settings, atoms, eci)


def difference(atoms: Atoms, n: int, seed: int) -> float:
    """Largest deviation in eV over ``n`` random configurations."""
    host = lattice(atoms)
    model = energy(atoms)
    rng = np.random.default_rng(seed)
    columns = [rng.choice(np.flatnonzero(row), size=n) for row in host.allowed]
    occupations = np.stack(columns, 1).astype(np.int8)
    expected = []
    for row in occupations:
        atoms.symbols[:] = host.atoms(row).symbols
        expected.append(atoms.get_potential_energy())
    got = model(host, torch.as_tensor(occupations)).numpy()
    return float(np.abs(got - expected).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="every system once, few clusters")
    parser.add_argument("--out", help="write the figures to this JSON file")
    args = parser.parse_args()
    one_thread()
    cases = [
        (name, BASES[(k + turn) % 3])
        for turn in range(1 if args.short else 3)
        for k, name in enumerate(SYSTEMS)
    ]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seed, (name, basis) in enumerate(cases):
            db_name = str(Path(folder) / f"{seed}.db")
            atoms = build(name, basis, seed, db_name, n_eci=10 if args.short else 40)
            worst = difference(atoms, 5 if args.short else 20, seed)
            rows.append({"system": name, "basis": basis, "atoms": len(atoms), "eV": worst})
            print(f"{worst:9.1e} eV  {len(atoms):4d} atoms  {basis:14s} {name}")
    worst = max(row["eV"] for row in rows)
    verdict = "met" if worst <= GATE else "MISSED"
    print(
        f"largest difference over {len(rows)} expansions: {worst:.1e} eV (gate {GATE:g}: {verdict})"
    )
    write_json(args.out, "extraction", {"largest_eV": worst, "expansions": rows})


if __name__ == "__main__":
    main()
