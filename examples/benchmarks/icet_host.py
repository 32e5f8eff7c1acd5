"""icet as a host: exactness of extracted energies, and speed against mchammer.

    python examples/benchmarks/icet_host.py [--short] [--out FILE]

Thirty random expansions: binary to quaternary, several sublattices, inactive ones, vacancies,
skew supercells and cells so small that clusters wrap onto themselves.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, make_supercell
from common import one_thread, write_json
from icet import ClusterExpansion, ClusterSpace
from icet.input_output.logging_tools import set_log_config
from mchammer.calculators import ClusterExpansionCalculator

from clease_nn.hosts.mchammer import energy, lattice

GATE = 1e-10  # eV


def _perovskite() -> Atoms:
    sites = [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    return Atoms("SrTiO3", scaled_positions=sites, cell=[3.9] * 3, pbc=True)


FCC, BCC = bulk("Au", "fcc", a=4.0), bulk("W", "bcc", a=3.2)
HCP = bulk("Ti", "hcp", a=2.95, c=4.7)
SALT = bulk("MgO", "rocksalt", a=4.2)
SKEW = [[3, 1, 0], [0, 2, 1], [1, 0, 3]]
LEFT = [[-1, 1, 1], [1, -1, 1], [1, 1, -1]]
LONG = [[1, 1, 0], [-1, 1, 0], [0, 1, 3]]
TWO_BY_TWO = [["Mg", "Zn"], ["O", "S"]]

SYSTEMS = {
    "binary fcc": (FCC, [6.0, 5.0, 4.5], ["Ag", "Au"], (4, 4, 2), None),
    "binary fcc, skew": (FCC, [6.0, 5.0], ["Ag", "Au"], SKEW, None),
    "binary fcc, conventional cell": (FCC, [6.0, 5.0], ["Ag", "Au"], LEFT, None),
    "binary fcc, wrapping": (FCC, [6.0, 5.0, 4.5], ["Ag", "Au"], (2, 1, 1), None),
    "binary fcc, one site": (FCC, [6.0, 5.0, 4.5], ["Ag", "Au"], (1, 1, 1), None),
    "binary hcp": (HCP, [5.0, 4.5], ["Al", "Ti"], (2, 2, 2), None),
    "ternary fcc": (FCC, [6.0, 4.5, 4.5], ["Ag", "Au", "Pd"], (2, 2, 3), None),
    "ternary fcc, wrapping": (FCC, [6.0, 5.0, 5.0], ["Ag", "Au", "Pd"], (2, 2, 1), None),
    "ternary hcp, vacancies, skew": (HCP, [5.0, 4.0, 4.0], ["Al", "Ti", "X"], LONG, None),
    "quaternary bcc": (BCC, [5.0, 4.0], ["Mo", "Nb", "Ta", "W"], (2, 2, 2), None),
    "quaternary fcc, one site": (FCC, [6.0, 5.0, 4.1], ["Ag", "Au", "Pd", "X"], (1, 1, 1), None),
    "two sublattices": (SALT, [6.0, 4.5], TWO_BY_TWO, (2, 2, 2), None),
    "two sublattices, 2 and 3 species": (
        SALT, [6.0, 4.5, 4.3], [["Mg", "Zn"], ["O", "S", "Se"]], (2, 2, 1), 1.0,
    ),
    "inactive sublattice, vacancies": (
        SALT, [6.0, 4.5, 4.3], [["Mg", "Zn", "X"], ["O"]], (2, 2, 2), 3.3,
    ),
    "perovskite, wrapping": (
        _perovskite(), [4.5, 4.0], [["Sr", "Ca", "Ba"], ["Ti"], *[["O", "X"]] * 3], (2, 2, 1), None,
    ),
}  # fmt: skip


def build(name: str, seed: int) -> tuple[Atoms, ClusterExpansionCalculator]:
    """Supercell with random occupations and shuffled atoms, and its calculator.

    Parameters are random; a tenth of them is zero.
    """
    primitive, cutoffs, symbols, size, scaling = SYSTEMS[name]
    rng = np.random.default_rng(seed)
    space = ClusterSpace(primitive, cutoffs, symbols)
    parameters = rng.normal(size=len(space)) * (rng.random(len(space)) > 0.1)
    expansion = ClusterExpansion(space, parameters)
    matrix = np.array(size) if np.ndim(size) == 2 else np.diag(size)
    atoms = make_supercell(expansion.primitive_structure, matrix)
    atoms = atoms[rng.permutation(len(atoms))]
    atoms.numbers = configurations(space.get_sublattices(atoms), atoms.numbers, 1, rng)[0]
    return atoms, ClusterExpansionCalculator(atoms, expansion, scaling=scaling)


def configurations(sublattices, numbers: np.ndarray, n: int, rng) -> np.ndarray:
    """(n, atoms) random atomic numbers that the sublattices allow."""
    out = np.tile(numbers, (n, 1))
    for sublattice in sublattices:
        shape = (n, len(sublattice.indices))
        out[:, sublattice.indices] = rng.choice(sublattice.atomic_numbers, shape)
    return out


def difference(atoms: Atoms, calculator, n: int, seed: int) -> float:
    """Largest deviation from ``calculate_total`` in eV over ``n`` random configurations."""
    host, model = lattice(atoms, calculator), energy(atoms, calculator)
    rng = np.random.default_rng(seed)
    numbers = configurations(calculator.sublattices, atoms.numbers, n, rng)
    expected = [calculator.calculate_total(occupations=row) for row in numbers]
    rows = []
    for row in numbers:
        atoms = atoms.copy()
        atoms.numbers = row
        rows.append(host.occupations(atoms))
    got = model(host, torch.as_tensor(np.stack(rows))).numpy()
    return float(np.abs(got - expected).max())


def exactness(short: bool) -> dict:
    """Differences of two random expansions a system (one with ``short``)."""
    rows = []
    for seed, name in enumerate(list(SYSTEMS) * (1 if short else 2)):
        atoms, calculator = build(name, seed)
        worst = difference(atoms, calculator, 5 if short else 20, seed)
        rows.append({"system": name, "atoms": len(atoms), "eV": worst})
        print(f"{worst:9.1e} eV  {len(atoms):4d} atoms  {name}")
    worst = max(row["eV"] for row in rows)
    verdict = "met" if worst <= GATE else "MISSED"
    print(
        f"largest difference over {len(rows)} expansions: {worst:.1e} eV (gate {GATE:g}: {verdict})"
    )
    return {"largest_eV": worst, "expansions": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="few expansions and repeats")
    parser.add_argument("--out", help="write the figures to this JSON file")
    args = parser.parse_args()
    one_thread()
    set_log_config(level="ERROR")
    figures = {"extraction": exactness(args.short)}
    write_json(args.out, "icet_host", figures)


if __name__ == "__main__":
    main()
