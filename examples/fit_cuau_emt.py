"""Fit the project's Cu-Au expansion: CLEASE structures, relaxed with ASE's EMT, ridge regression.

    python examples/fit_cuau_emt.py              # full run, writes cuau_emt.json (minutes)
    python examples/fit_cuau_emt.py --short      # few structures, seconds

The committed ``clease_nn/data/cuau_emt.json`` is the output of the full run. Structures are every
ordered fcc cell of up to five atoms, random 16- and 27-atom cells, and 16-atom ground states of a
first fit. EMT is a cheap stand-in for density functional theory: its Cu-Au has weak ordering and a
large size mismatch, so read the expansion as a realistic test case and not as the real alloy.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
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
from clease.settings import CEBulk, ClusterExpansionSettings, Concentration
from clease.structgen import MaxAttemptReachedError, NewStructures
from clease.tools import update_db

SETTINGS = {
    "crystalstructure": "fcc",
    "a": 3.8,
    "basis_elements": [["Au", "Cu"]],
    "basis_func_type": "polynomial",
    "max_cluster_dia": [6.0, 4.5, 4.5],
}
SIZE = (2, 2, 4)
COLLAPSED = 0.35  # largest displacement in nearest-neighbour distances before a cell is dropped


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="few structures, seconds")
    parser.add_argument("--out", type=Path, help="output file")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    out = args.out or Path("out/cuau_emt_short.json" if args.short else "cuau_emt.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    n_ordered, n_random, n_ground = (2, 6, 2) if args.short else (5, 80, 15)
    random.seed(args.seed)
    np.random.seed(args.seed)  # noqa: NPY002 - the generator that CLEASE draws structures with

    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        settings = CEBulk(
            Concentration(basis_elements=SETTINGS["basis_elements"]),
            crystalstructure=SETTINGS["crystalstructure"],
            a=SETTINGS["a"],
            size=list(SIZE),
            max_cluster_dia=SETTINGS["max_cluster_dia"],
            basis_func_type=SETTINGS["basis_func_type"],
            db_name=str(Path(folder) / "cuau.db"),
        )
        reference = {s: pure_energy(s) for s in ("Au", "Cu")}
        dropped = []

        new = NewStructures(settings, generation_number=0, check_db=False)
        for atoms in ordered_cells(n_ordered):
            new.insert_structure(atoms)
        dropped += calculate(settings, reference)
        cell = settings.prim_cell.copy()
        for generation, size in enumerate([SIZE, (3, 3, 3)], start=1):
            new = NewStructures(settings, generation, struct_per_gen=n_random // 2)
            new.generate_random_structures(atoms=cell.repeat(size))
        dropped += calculate(settings, reference)
        evaluation, alpha, cv = fit(settings)
        report("ordered and random structures", evaluation, alpha, cv)

        new = NewStructures(settings, generation_number=3, struct_per_gen=n_ground)
        for atoms in compositions(cell.repeat(SIZE), n_ground):
            try:
                new.generate_gs_structure(atoms, evaluation.get_eci_dict())
            except MaxAttemptReachedError:
                continue  # the ground state of this composition is known already
        dropped += calculate(settings, reference)
        evaluation, alpha, cv = fit(settings)
        report("with ground states of that fit", evaluation, alpha, cv)

    data = {
        "eci": {name: round(value, 10) for name, value in evaluation.get_eci_dict().items()},
        "settings": SETTINGS,
        "provenance": {
            "script": "examples/fit_cuau_emt.py",
            "energies": "formation energies (eV per atom) relative to fcc Au and Cu, ASE EMT, "
            "cells and positions relaxed to 0.02 eV/angstrom",
            "versions": {"ase": ase.__version__, "clease": str(clease.__version__)},
            "seed": args.seed,
            "structures": len(evaluation.e_dft),
            "structures_dropped": len(dropped),
            "alpha": alpha,
            "cross_validation_meV_per_atom": round(1e3 * cv, 3),
            "rmse_meV_per_atom": round(1e3 * float(evaluation.rmse()), 3),
            "spread_meV_per_atom": round(1e3 * float(np.std(evaluation.e_dft)), 3),
        },
    }
    for name, why in dropped:
        print(f"dropped {name}: {why}")
    out.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {out} after {time.perf_counter() - start:.0f} s")
    ground_states(data)
    return data


# ------------------------------------------------------------------ structures
def ordered_cells(largest: int) -> list[Atoms]:
    """Symmetry-distinct ordered fcc cells of up to ``largest`` atoms.

    Every superlattice (Hermite normal forms) with every occupation; two cells count as the same
    where composition and EMT energy per atom on the ideal lattice agree to 1e-6 eV.
    """
    primitive = bulk("Cu", SETTINGS["crystalstructure"], a=SETTINGS["a"])
    found: dict[tuple, Atoms] = {}
    for n in range(1, largest + 1):
        for matrix in hermite_normal_forms(n):
            cell = make_supercell(primitive, matrix)
            for symbols in product(["Au", "Cu"], repeat=n):
                atoms = cell.copy()
                atoms.set_chemical_symbols(symbols)
                atoms.calc = EMT()
                energy = round(atoms.get_potential_energy() / n, 6)
                share = round(symbols.count("Au") / n, 6)
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


def compositions(cell: Atoms, count: int) -> list[Atoms]:
    """``count`` cells with compositions spread over the whole range, randomly occupied."""
    rng = np.random.default_rng(len(cell) * count)
    cells = []
    for k in range(count):
        n_gold = 1 + round(k * (len(cell) - 2) / max(count - 1, 1))
        symbols = np.array(["Au"] * n_gold + ["Cu"] * (len(cell) - n_gold))
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


def pure_energy(symbol: str) -> float:
    """Energy of the relaxed fcc element in eV per atom."""
    atoms, _ = relax(bulk(symbol, SETTINGS["crystalstructure"], a=SETTINGS["a"]))
    return atoms.get_potential_energy()


def displacement(ideal: Atoms, relaxed: Atoms) -> float:
    """Largest displacement at fixed cell shape, in nearest-neighbour distances."""
    shift = (relaxed.get_scaled_positions() - ideal.get_scaled_positions()) @ ideal.cell
    shift, _ = find_mic(shift, ideal.cell, pbc=True)
    shift -= shift.mean(0)
    nearest = SETTINGS["a"] / np.sqrt(2)
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
def fit(settings: ClusterExpansionSettings) -> tuple[Evaluate, float, float]:
    """Ridge regression with the penalty of the least leave-one-out error."""
    evaluation = Evaluate(settings, fitting_scheme="l2", scoring_scheme="loocv")
    alphas, scores = evaluation.alpha_CV(alpha_min=1e-8, alpha_max=1e-1, num_alpha=29)
    alpha = float(alphas[int(np.argmin(scores))])
    evaluation.set_fitting_scheme("l2", alpha)
    cv = float(evaluation.get_cv_score())
    evaluation.fit()
    return evaluation, alpha, cv


def report(title: str, evaluation: Evaluate, alpha: float, cv: float) -> None:
    print(
        f"{title}: {len(evaluation.e_dft)} structures, {len(evaluation.get_eci_dict())} ECIs, "
        f"alpha {alpha:.1e}, leave-one-out {1e3 * cv:.2f} meV/atom, "
        f"RMSE {1e3 * evaluation.rmse():.2f} meV/atom, "
        f"spread of the energies {1e3 * np.std(evaluation.e_dft):.1f} meV/atom",
        flush=True,
    )


def ground_states(data: dict) -> None:
    """Print the ground states of the 16-site cell over the chemical potential, enumerated."""
    from clease_nn.ensemble import SemiGrandCanonical
    from clease_nn.hosts import clease as host
    from clease_nn.hosts.clease.examples import cuau_emt_atoms

    atoms = cuau_emt_atoms(SIZE, data)
    lattice, energy = host.lattice(atoms), host.energy(atoms)
    states = SemiGrandCanonical(energy).enumerate(lattice)
    gold = (states.occupations == lattice.species.index("Au")).sum(1).numpy()
    energies = states.energy.numpy()
    lowest = np.array([energies[gold == n].min() for n in range(lattice.n_sites + 1)])
    print(f"\nground states of {lattice.n_sites} sites (of {len(energies)} enumerated)")
    print("  Au   meV/site   states   stable for mu_Au - mu_Cu (meV)")
    low = -np.inf
    n = 0
    while True:
        slopes = (lowest[n + 1 :] - lowest[n]) / np.arange(1, lattice.n_sites - n + 1)
        high = slopes.min() if len(slopes) else np.inf
        count = int(((gold == n) & (energies < lowest[n] + 1e-7)).sum())
        print(
            f"  {n:2d} {1e3 * lowest[n] / lattice.n_sites:10.2f} {count:8d}   "
            f"{1e3 * low:8.1f} to {1e3 * high:.1f}"
        )
        if not len(slopes):
            break
        n, low = n + 1 + int(np.flatnonzero(slopes < high + 1e-9)[-1]), high
    mixed = [energies[gold == k].mean() / lattice.n_sites for k in (4, 8, 12)]
    for k, mean in zip((4, 8, 12), mixed, strict=True):
        gain = mean - lowest[k] / lattice.n_sites
        print(f"  {k} Au: lowest state {1e3 * gain:.1f} meV/site below the mean of all states")


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
