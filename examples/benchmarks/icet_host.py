"""icet as a host: exactness of extracted energies, and speed against mchammer.

    python examples/benchmarks/icet_host.py [--short] [--out FILE]

Exactness: thirty random expansions, binary to quaternary, several sublattices, inactive ones,
vacancies, skew supercells and cells so small that clusters wrap onto themselves.

Speed: a random expansion of fcc with pairs to 6 angstrom and triplets and quadruplets to 4.5, one
thread, ours and mchammer's in the same process. Energies of a batch over ``calculate_total`` one
by one; single-site updates of many chains over trial steps of ``SemiGrandCanonicalEnsemble``; and
the drop-in itself over that class, ``run()`` with the same intervals. Compilation is not counted.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, make_supercell
from common import best_seconds, one_thread, write_json
from icet import ClusterExpansion, ClusterSpace
from icet.input_output.logging_tools import set_log_config
from mchammer.calculators import ClusterExpansionCalculator
from mchammer.ensembles import SemiGrandCanonicalEnsemble

from clease_nn.conditions import Conditions
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.hosts.mchammer import NeuralSGCEnsemble, energy, lattice
from clease_nn.montecarlo import Chains

GATE = 1e-10  # eV
ENERGIES_GATE, CHAINS_GATE = 50, 150  # times mchammer
BATCH, CHAINS = 1024, 1024
TEMPERATURE = 600.0  # K
MU = {"Au": 0.0, "Cu": 0.02}


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


def cuau(size: tuple[int, int, int]) -> tuple[Atoms, ClusterExpansionCalculator]:
    """Cu-Au supercell, half of it gold, with a random expansion."""
    primitive = bulk("Au", "fcc", a=3.8)
    space = ClusterSpace(primitive, [6.0, 4.5, 4.5], ["Au", "Cu"])
    parameters = np.random.default_rng(0).normal(0, 0.01, len(space))
    atoms = primitive.repeat(size)
    atoms.symbols[: len(atoms) // 2] = "Cu"
    return atoms, ClusterExpansionCalculator(atoms, ClusterExpansion(space, parameters))


def energies(repeats: int) -> dict:
    """Energies a second at 64 sites."""
    atoms, calculator = cuau((4, 4, 4))
    host, model = lattice(atoms, calculator), energy(atoms, calculator)
    x = np.random.default_rng(1).integers(0, 2, (BATCH, host.n_sites)).astype(np.int8)
    numbers = [host.atoms(row).numbers for row in x[:50]]
    x = torch.as_tensor(x)
    model(host, x)
    ours = BATCH / best_seconds(lambda: model(host, x), 4 * repeats)

    def one_by_one():
        for row in numbers:
            calculator.calculate_total(occupations=row)

    theirs = len(numbers) / best_seconds(one_by_one, 20 * repeats)
    print(f"{len(atoms)} sites, {model.tables.n_terms} terms, batch {BATCH}, one thread")
    print(f"calculate_total             {theirs:12,.0f} energies/s")
    print(f"ours                        {ours:12,.0f} energies/s = {ours / theirs:.0f}x")
    return {"energies_per_s": ours, "calculate_total_per_s": theirs, "ratio": ours / theirs}


def chains(short: bool) -> dict:
    """Single-site updates a second at 128 sites: many chains, and the drop-in."""
    atoms, calculator = cuau((4, 4, 8))
    host = lattice(atoms, calculator)
    mu = np.tile([MU[s] for s in host.species], (CHAINS, 1))
    conditions = Conditions(np.full(CHAINS, TEMPERATURE), mu)
    many = Chains(SemiGrandCanonical(energy(atoms, calculator)), host, conditions, seed=0)
    out = {}
    for method in ("metropolis", "heat_bath"):
        many.sweep(10, method)
        seconds = best_seconds(lambda m=method: many.sweep(8, m), 2 if short else 5)
        out[f"{method}_per_s"] = CHAINS * len(atoms) * 8 / seconds
    n = len(atoms) * (20 if short else 100)
    runs = {
        "mchammer, rows every sweep": (SemiGrandCanonicalEnsemble, len(atoms), n),
        "mchammer, rows every 100 sweeps": (SemiGrandCanonicalEnsemble, 100 * len(atoms), n),
        "drop-in, rows every sweep": (NeuralSGCEnsemble, len(atoms), 5 * n),
        "drop-in, rows every 100 sweeps": (NeuralSGCEnsemble, 100 * len(atoms), 50 * n),
    }
    for name, (kind, interval, steps) in runs.items():
        ours = {"neural_interval": None} if kind is NeuralSGCEnsemble else {}
        mc = kind(
            atoms, calculator, TEMPERATURE, MU, random_seed=1,
            ensemble_data_write_interval=interval, trajectory_write_interval=interval, **ours,
        )  # fmt: skip
        mc.run(1000)
        repeats = 4 if short else 8
        out[name] = steps / best_seconds(lambda mc=mc, k=steps: mc.run(k), repeats)
    best = max(out["mchammer, rows every sweep"], out["mchammer, rows every 100 sweeps"])
    out["chains_ratio"] = out["metropolis_per_s"] / best
    for k in ("every sweep", "every 100 sweeps"):
        out[f"drop_in_ratio, rows {k}"] = out[f"drop-in, rows {k}"] / out[f"mchammer, rows {k}"]
    print(f"{len(atoms)} sites, {CHAINS} chains at {TEMPERATURE:.0f} K")
    for name in (*runs, "metropolis_per_s", "heat_bath_per_s"):
        print(f"{name:<32} {out[name] / 1e6:8.3f} M updates/s = {out[name] / best:.0f}x")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="few expansions and repeats")
    parser.add_argument("--out", help="write the figures to this JSON file")
    args = parser.parse_args()
    one_thread()
    set_log_config(level="ERROR")
    figures = {
        "extraction": exactness(args.short),
        "energies": energies(2 if args.short else 5),
        "chains": chains(args.short),
    }
    write_json(args.out, "icet_host", figures)
    met = {
        f"difference <= {GATE:g} eV": figures["extraction"]["largest_eV"] <= GATE,
        f"energies >= {ENERGIES_GATE}x": figures["energies"]["ratio"] >= ENERGIES_GATE,
        f"chains >= {CHAINS_GATE}x": figures["chains"]["chains_ratio"] >= CHAINS_GATE,
    }
    print(", ".join(f"{name}: {'met' if ok else 'MISSED'}" for name, ok in met.items()))
    if not all(met.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
