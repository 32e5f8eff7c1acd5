"""Fit an expansion of a binary fcc alloy: CLEASE structures, relaxed with EMT, ridge regression.

    python examples/fit_emt_expansion.py --elements Cu Au              # minutes
    python examples/fit_emt_expansion.py --elements Ag Pd --hull 0.03
    python examples/fit_emt_expansion.py --elements Cu Au --short      # few structures, seconds

The committed ``clease_nn/data/cuau_emt.json`` and ``agpd_emt.json`` are the outputs of the first
two (the former was made when this script could do Cu-Au only). Structures are every
ordered fcc cell of up to five atoms, random 16- and 27-atom cells, and 16-atom ground states of a
first fit; cells that relax off the fcc lattice are dropped. EMT is a cheap stand-in for density
functional theory: its Cu-Au has weak ordering and a large size mismatch, its Ag-Pd demixes, which
the real alloy does not do; so read the expansions as realistic test cases and not as the alloys.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import ase
import clease
import numpy as np
from ase import Atoms
from ase.build import bulk, make_supercell
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.filters import FrechetCellFilter
from ase.geometry import find_mic
from ase.optimize import BFGS
from clease import Evaluate
from clease.regression import Tikhonov
from clease.settings import CEBulk, ClusterExpansionSettings, Concentration
from clease.structgen import MaxAttemptReachedError, NewStructures
from clease.tools import update_db

from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.hosts import clease as host
from clease_nn.hosts.clease.examples import emt_atoms

ELEMENTS = ("Al", "Ni", "Cu", "Pd", "Ag", "Pt", "Au")  # the metals of ASE's EMT, all fcc
SIZE = (2, 2, 4)
COLLAPSED = 0.35  # largest displacement in nearest-neighbour distances before a cell is dropped


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--elements", nargs=2, choices=ELEMENTS, default=("Cu", "Au"))
    parser.add_argument(
        "--hull",
        type=float,
        default=0.01,
        help="energy above the hull (eV per atom) at which a structure counts 1/e in the fit; "
        "where a solution lies far above it, about the energy of mixing",
    )
    parser.add_argument("--short", action="store_true", help="few structures, seconds")
    parser.add_argument("--out", type=Path, help="output file")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    elements = sorted(args.elements)
    if len(set(elements)) < 2:
        parser.error(f"--elements needs two different ones, got {elements[0]} twice")
    if not args.hull > 0:
        parser.error(f"--hull must be positive, got {args.hull}")
    name = "".join(args.elements).lower() + "_emt"
    out = args.out or Path(f"out/{name}_short.json" if args.short else f"{name}.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    n_ordered, n_random, n_ground = (2, 6, 2) if args.short else (5, 80, 15)
    random.seed(args.seed)
    np.random.seed(args.seed)  # noqa: NPY002 - the generator that CLEASE draws structures with

    start = time.perf_counter()
    relaxed = {s: relax(bulk(s, "fcc", cubic=True))[0] for s in elements}
    reference = {s: a.get_potential_energy() / len(a) for s, a in relaxed.items()}
    spacing = round(float(np.mean([a.cell.lengths()[0] for a in relaxed.values()])), 1)
    given = {
        "crystalstructure": "fcc",
        "a": spacing,
        "basis_elements": [elements],
        "basis_func_type": "polynomial",
        "max_cluster_dia": [6.0, 4.5, 4.5],
    }
    with tempfile.TemporaryDirectory() as folder:
        settings = CEBulk(
            Concentration(basis_elements=given["basis_elements"]),
            crystalstructure=given["crystalstructure"],
            a=given["a"],
            size=list(SIZE),
            max_cluster_dia=given["max_cluster_dia"],
            basis_func_type=given["basis_func_type"],
            db_name=str(Path(folder) / f"{name}.db"),
        )
        dropped = []

        new = NewStructures(settings, generation_number=0, check_db=False)
        for atoms in ordered_cells(n_ordered, elements, spacing):
            new.insert_structure(atoms)
        dropped += calculate(settings, reference)
        cell = settings.prim_cell.copy()
        for generation, size in enumerate([SIZE, (3, 3, 3)], start=1):
            new = NewStructures(settings, generation, struct_per_gen=n_random // 2)
            new.generate_random_structures(atoms=cell.repeat(size))
        dropped += calculate(settings, reference)
        first = fit(settings, args.hull)
        print(f"ordered and random cells: {first}", flush=True)

        new = NewStructures(settings, generation_number=3, struct_per_gen=n_ground)
        for atoms in compositions(cell.repeat(SIZE), n_ground, elements):
            try:
                new.generate_gs_structure(atoms, first.eci)
            except MaxAttemptReachedError:
                continue  # the ground state of this composition is known already
        dropped += calculate(settings, reference)
        final = fit(settings, args.hull)
        print(f"with ground states of that fit: {final}", flush=True)

    data = {
        "eci": {name: round(float(value), 10) for name, value in final.eci.items()},
        "settings": given,
        "provenance": {
            "script": "examples/fit_emt_expansion.py",
            "energies": "formation energies (eV per atom) relative to fcc "
            f"{' and '.join(elements)}, ASE EMT, cells and positions relaxed to 0.02 eV/angstrom",
            "versions": {"ase": ase.__version__, "clease": str(clease.__version__)},
            "seed": args.seed,
            "structures": final.structures,
            "structures_dropped": len(dropped),
            "weights": f"exp(-(energy above the hull) / {args.hull:g} eV)",
            "alpha": final.alpha,
            "spread_meV_per_atom": round(1e3 * final.spread, 3),
            "rmse_meV_per_atom": round(1e3 * final.rmse, 3),
            "leave_one_out_meV_per_atom": round(1e3 * final.leave_one_out, 3),
            "leave_one_out_low_meV_per_atom": round(1e3 * final.leave_one_out_low, 3),
        },
    }
    for name, why in dropped:
        print(f"dropped {name}: {why}")
    out.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {out} after {time.perf_counter() - start:.0f} s")
    ground_states(data)
    return data


# ------------------------------------------------------------------ structures
def ordered_cells(largest: int, elements: list[str], spacing: float) -> list[Atoms]:
    """Symmetry-distinct ordered fcc cells of up to ``largest`` atoms.

    Every superlattice (Hermite normal forms) with every occupation; two cells count as the same
    where composition and EMT energy per atom on the ideal lattice agree to 1e-6 eV.
    """
    primitive = bulk(elements[0], "fcc", a=spacing)
    found: dict[tuple, Atoms] = {}
    for n in range(1, largest + 1):
        for matrix in hermite_normal_forms(n):
            cell = make_supercell(primitive, matrix)
            for symbols in product(elements, repeat=n):
                atoms = cell.copy()
                atoms.set_chemical_symbols(symbols)
                atoms.calc = EMT()
                energy = round(atoms.get_potential_energy() / n, 6)
                share = round(symbols.count(elements[0]) / n, 6)
                atoms.calc = None
                found.setdefault((share, energy), atoms)
    return list(found.values())


def hermite_normal_forms(n: int) -> list[np.ndarray]:
    """All superlattices of ``n`` primitive cells, rows as lattice vectors (PRB 77, 224115)."""
    return [
        np.array([[a, 0, 0], [b, c, 0], [d, e, n // (a * c)]])
        for a in range(1, n + 1)
        for c in range(1, n + 1)
        if n % (a * c) == 0
        for b in range(a)
        for d in range(a)
        for e in range(c)
    ]


def compositions(cell: Atoms, count: int, elements: list[str]) -> list[Atoms]:
    """``count`` cells with compositions spread over the whole range, randomly occupied."""
    rng = np.random.default_rng(len(cell) * count)
    cells = []
    for k in range(count):
        n_first = 1 + round(k * (len(cell) - 2) / max(count - 1, 1))
        symbols = np.array([elements[0]] * n_first + [elements[1]] * (len(cell) - n_first))
        atoms = cell.copy()
        atoms.set_chemical_symbols(rng.permutation(symbols).tolist())
        cells.append(atoms)
    return cells


# ------------------------------------------------------------------ energies
def relax(atoms: Atoms) -> tuple[Atoms, bool]:
    """Cell and positions relaxed with EMT; whether the forces converged to 0.02 eV/angstrom."""
    atoms = atoms.copy()
    atoms.calc = EMT()
    converged = BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=0.02, steps=300)
    return atoms, bool(converged)


def displacement(ideal: Atoms, relaxed: Atoms) -> float:
    """Largest displacement at fixed cell shape, in nearest-neighbour distances."""
    shift = (relaxed.get_scaled_positions() - ideal.get_scaled_positions()) @ ideal.cell
    shift, _ = find_mic(shift, ideal.cell, pbc=True)
    shift -= shift.mean(0)
    nearest = (ideal.get_volume() / len(ideal) * 4) ** (1 / 3) / np.sqrt(2)
    return float(np.linalg.norm(shift, axis=1).max() / nearest)


def calculate(settings: ClusterExpansionSettings, reference: dict) -> list[tuple[str, str]]:
    """Relax every structure that has no energy yet; (name, reason) of those dropped."""
    dropped = []
    with settings.connect() as con:
        rows = [(r.id, r.name, r.toatoms()) for r in con.select(converged=False)]
    for uid, name, ideal in rows:
        if name in ("template", "primitive_cell"):
            continue
        relaxed, converged = relax(ideal)
        moved = displacement(ideal, relaxed)
        if not converged or moved > COLLAPSED:
            why = f"moved {moved:.2f} of a bond" if converged else "relaxation did not converge"
            dropped.append((name, why))
            with settings.connect() as con:
                con.delete([uid])
            continue
        energy = relaxed.get_potential_energy() - sum(reference[s] for s in relaxed.symbols)
        relaxed.calc = SinglePointCalculator(relaxed, energy=energy)
        update_db(uid_initial=uid, final_struct=relaxed, db_name=settings.db_name)
    return dropped


# ------------------------------------------------------------------ fit
class WeightedRidge(Tikhonov):
    """Ridge regression in which every structure has a weight."""

    def __init__(self, alpha: float, weights: np.ndarray):
        super().__init__(alpha=alpha, normalize=False)
        self.weights = weights

    @property
    def weight_matrix(self) -> np.ndarray:
        return np.diag(self.weights)


@dataclass(frozen=True)
class Fit:
    """A fitted expansion with its errors, energies in eV per atom."""

    eci: dict[str, float]
    alpha: float
    structures: int
    spread: float
    rmse: float
    leave_one_out: float
    leave_one_out_low: float
    hull: float

    def __str__(self) -> str:
        return (
            f"{self.structures} structures, {len(self.eci)} ECIs, alpha {self.alpha:.1e}; "
            f"spread of the energies {1e3 * self.spread:.1f} meV/atom, RMSE {1e3 * self.rmse:.1f}, "
            f"leave-one-out {1e3 * self.leave_one_out:.1f} (structures up to {1e3 * self.hull:.0f} "
            f"meV/atom above the hull: {1e3 * self.leave_one_out_low:.1f})"
        )


def fit(settings: ClusterExpansionSettings, hull: float) -> Fit:
    """Weighted ridge regression, the penalty chosen by the weighted leave-one-out error.

    The weight of a structure is ``exp(-(energy above the hull) / hull)``: layered Cu-Au cells
    with coherency strain lie 50 meV/atom up, short clusters cannot describe them, and unweighted
    they spoil the pure elements and ordered phases that decide the thermodynamics.
    """
    evaluation = Evaluate(settings, fitting_scheme="l2")
    matrix, energies = evaluation.cf_matrix, evaluation.e_dft
    share = np.round((1 + matrix[:, evaluation.cf_names.index("c1_0")]) / 2, 6)
    above = energies - np.interp(share, *lower_hull(share, energies))
    weights = np.exp(-above / hull)

    def left_out(alpha: float) -> np.ndarray:
        """Error of every structure in the fit to all others."""
        out = np.empty(len(energies))
        for i in range(len(energies)):
            keep = np.arange(len(energies)) != i
            eci = WeightedRidge(alpha, weights[keep]).fit(matrix[keep], energies[keep])
            out[i] = matrix[i] @ eci - energies[i]
        return out

    errors = {float(a): left_out(float(a)) for a in np.logspace(-7, 0, 15)}
    alpha = min(errors, key=lambda a: float(weights @ errors[a] ** 2))
    evaluation.set_fitting_scheme(WeightedRidge(alpha, weights))
    evaluation.fit()
    residual = matrix @ evaluation.get_eci() - energies
    return Fit(
        eci=evaluation.get_eci_dict(),
        alpha=alpha,
        structures=len(energies),
        spread=float(np.std(energies)),
        rmse=rms(residual),
        leave_one_out=rms(errors[alpha]),
        leave_one_out_low=rms(errors[alpha][above < hull]),
        hull=hull,
    )


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


def lower_hull(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corners of the lower convex hull of points (x, y), from the least x to the largest."""
    corners: list[tuple[float, float]] = []
    for px, py in sorted((v, y[x == v].min()) for v in np.unique(x)):
        while len(corners) > 1:
            (ax, ay), (bx, by) = corners[-2:]
            if (by - ay) * (px - ax) < (py - ay) * (bx - ax):
                break
            corners.pop()
        corners.append((px, py))
    return np.array([c[0] for c in corners]), np.array([c[1] for c in corners])


def ground_states(data: dict) -> None:
    """Print the ground states of the 16-site cell over the chemical potential, enumerated."""
    atoms = emt_atoms(data, SIZE)
    lattice, energy = host.lattice(atoms), host.energy(atoms)
    first, second = data["settings"]["basis_elements"][0]
    states = SemiGrandCanonical(energy).enumerate(lattice)
    n_first = (states.occupations == lattice.species.index(first)).sum(1).numpy()
    energies = states.energy.numpy() / lattice.n_sites
    corners, lowest = lower_hull(n_first, energies)
    slopes = 1e3 * lattice.n_sites * np.diff(lowest) / np.diff(corners)
    edges = [-np.inf, *slopes, np.inf]
    print(f"\nground states of {lattice.n_sites} sites (all {len(energies)} states enumerated)")
    print(
        f"  {first}   meV/site   states   below the mean of its composition   "
        f"mu_{first} - mu_{second} (meV)"
    )
    for k, (n, e) in enumerate(zip(corners, lowest, strict=True)):
        here = energies[n_first == n]
        print(
            f"  {n:2.0f} {1e3 * e:10.2f} {(here < e + 1e-9).sum():8d} "
            f"{1e3 * (here.mean() - e):20.1f} {edges[k]:26.1f} to {edges[k + 1]:.1f}"
        )


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
