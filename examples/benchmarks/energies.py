"""Energies and single-site energy changes a second, as ratios to CLEASE's calculator.

    python examples/benchmarks/energies.py [--short] [--out FILE]

Cu-Au on the fcc lattice with pairs to 6.0 and triplets and quadruplets to 4.5 angstrom, batches
of 1024 configurations, one thread, the ratio measured in the same run. The expansion is
``cuau_eci.json`` in the folder named by CLEASE_NN_REFERENCE; without it random ECIs on the same
clusters, which cost the same.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from clease.calculator import attach_calculator
from clease.datastructures import SystemChange
from clease.settings import CEBulk, Concentration
from common import best_seconds, one_thread, write_json

from clease_nn.energies import ClusterExpansionEnergy
from clease_nn.hosts.clease import energy, lattice

BATCH = 1024
GATE, AIM = 300, 500  # energies a second over CLEASE's, 64 sites


def cuau(size: tuple[int, int, int], folder: str):
    """Cu-Au supercell with a Clease calculator, and where its ECIs come from."""
    settings = CEBulk(
        Concentration(basis_elements=[["Au", "Cu"]]),
        crystalstructure="fcc",
        a=3.8,
        size=list(size),
        max_cluster_dia=(6.0, 4.5, 4.5),
        db_name=str(Path(folder) / "cuau.db"),
    )
    reference = os.environ.get("CLEASE_NN_REFERENCE")
    if reference:
        eci = json.loads((Path(reference) / "cuau_eci.json").read_text())
        source = "cuau_eci.json"
    else:
        rng = np.random.default_rng(0)
        eci = {name: float(rng.normal(0, 0.01)) for name in settings.all_cf_names}
        source = "random ECIs (CLEASE_NN_REFERENCE is not set)"
    return attach_calculator(settings, settings.prim_cell * size, eci), source


def measure(size: tuple[int, int, int], folder: str, repeats: int) -> dict:
    atoms, source = cuau(size, folder)
    host, model = lattice(atoms), energy(atoms)
    rng = np.random.default_rng(1)
    x = torch.as_tensor(rng.integers(0, 2, (BATCH, host.n_sites)), dtype=torch.int8)

    # CLEASE: whole new configurations, then single-site changes of one configuration
    n_host = 20
    numbers = [host.atoms(row).numbers for row in x[:n_host].numpy()]
    atoms.get_potential_energy()
    expected = np.empty(n_host)

    def host_energies():
        for k, z in enumerate(numbers):
            atoms.numbers[:] = z  # the quickest way: in place, then the calculator directly
            expected[k] = atoms.calc.get_potential_energy()

    host_seconds = best_seconds(host_energies, 2 * repeats) / n_host
    atoms.calc.clear_history()
    other = {"Au": "Cu", "Cu": "Au"}
    now = atoms.get_chemical_symbols()
    changes = [[SystemChange(i, s, other[s], "flip")] for i, s in enumerate(now)]

    def host_flips():
        for change in changes:
            atoms.calc.get_energy_given_change(change)

    host_flip_seconds = best_seconds(host_flips, 2 * repeats) / len(changes)

    got = model(host, x[:n_host]).numpy()  # also compiles
    model.flip_energies(host, x[:64])
    model.partial_fields(host, x[:64])
    seconds = best_seconds(lambda: model(host, x), repeats) / BATCH
    flip_seconds = best_seconds(lambda: model.flip_energies(host, x), repeats)
    half = torch.where(torch.as_tensor(rng.random(x.shape) < 0.5), x, -1).to(torch.int8)[:256]
    plain = ClusterExpansionEnergy(model.tables, backend="torch")
    return {
        "sites": host.n_sites,
        "terms": model.tables.n_terms,
        "expansion": source,
        "largest_difference_eV": float(np.abs(got - expected).max()),
        "energies_per_s": 1 / seconds,
        "clease_energies_per_s": 1 / host_seconds,
        "energies_ratio": host_seconds / seconds,
        "flip_energies_per_s": BATCH * host.n_sites / flip_seconds,
        "clease_flip_energies_per_s": 1 / host_flip_seconds,
        "flips_ratio": host_flip_seconds * BATCH * host.n_sites / flip_seconds,
        "partial_fields_256_ms": 1e3
        * best_seconds(lambda: model.partial_fields(host, half), repeats),
        "torch_energies_per_s": BATCH / best_seconds(lambda: plain(host, x), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="fewer repeats")
    parser.add_argument("--out", help="write the figures to this JSON file")
    args = parser.parse_args()
    one_thread()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size in [(4, 4, 4), (4, 4, 8)]:
            row = measure(size, folder, 5 if args.short else 50)
            rows.append(row)
            print(
                f"{row['sites']} sites, {row['terms']} terms, {row['expansion']}\n"
                f"  energies       {row['energies_per_s']:12,.0f} /s   "
                f"CLEASE {row['clease_energies_per_s']:9,.0f} /s   "
                f"ratio {row['energies_ratio']:6.0f}\n"
                f"  flip energies  {row['flip_energies_per_s']:12,.0f} /s   "
                f"CLEASE {row['clease_flip_energies_per_s']:9,.0f} /s   "
                f"ratio {row['flips_ratio']:6.0f}\n"
                f"  torch energies {row['torch_energies_per_s']:12,.0f} /s\n"
                f"  partial fields of 256 configurations: {row['partial_fields_256_ms']:.2f} ms\n"
                f"  largest difference to CLEASE: {row['largest_difference_eV']:.1e} eV"
            )
    ratio = rows[0]["energies_ratio"]
    verdict = "met" if ratio >= GATE else "MISSED"
    print(f"energies at 64 sites over CLEASE: {ratio:.0f}x (gate {GATE}x: {verdict}, aim {AIM}x)")
    write_json(args.out, "energies", {"batch": BATCH, "systems": rows})


if __name__ == "__main__":
    main()
