"""Single-site updates a second of many chains over those of CLEASE's SGCMonteCarlo.run.

    CLEASE_NN_REFERENCE=DIR python examples/benchmarks/chains.py [--short] [--out FILE]

Cu-Au expansion of the literature (cuau_eci.json), 128 sites, one thread, both in the same run. An
update is one trial at one site; CLEASE's and the Metropolis kernel's trials propose the other
species, the heat bath draws from the conditional distribution. Also timed: the training targets
(heat-bath probabilities) and steps of parallel tempering, exchanges included. Compilation is not
counted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from clease.calculator import attach_calculator
from clease.montecarlo import SGCMonteCarlo
from clease.settings import CEBulk, Concentration
from common import best_seconds, one_thread, write_json

from clease_nn.conditions import ConditionRange, Conditions
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.hosts.clease import axes, energy, lattice
from clease_nn.montecarlo import Chains, ParallelTempering, heat_bath_probabilities

GATE, AIM = 60, 120
CHAINS = 1024
TEMPERATURE = 600.0  # K


def cuau(folder: Path):
    """The 128-site cell with a CLEASE calculator."""
    eci = json.loads((folder / "cuau_eci.json").read_text(encoding="utf-8"))
    settings = CEBulk(
        Concentration(basis_elements=[["Au", "Cu"]]),
        crystalstructure="fcc",
        a=3.8,
        size=[4, 4, 8],
        max_cluster_dia=(6.0, 4.5, 4.5),
    )
    return attach_calculator(settings, settings.atoms.copy(), eci)


def main(short: bool, out: str | None) -> None:
    """Measure, print, write and check the gate."""
    one_thread()
    folder = os.environ.get("CLEASE_NN_REFERENCE")
    if not folder or not (Path(folder) / "cuau_eci.json").exists():
        print("skipped: set CLEASE_NN_REFERENCE to the folder that holds cuau_eci.json")
        return
    folder = Path(folder).resolve()
    repeats = 2 if short else 5
    steps = 20_000 if short else 100_000
    figures = {}
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        atoms = cuau(folder)
        sites, ensemble = lattice(atoms), SemiGrandCanonical(energy(atoms))
        axis = axes(atoms, sites, ["c1_0"])
        conditions = Conditions(np.full(CHAINS, TEMPERATURE), np.zeros((CHAINS, 2)))
        chains = Chains(ensemble, sites, conditions, seed=0)
        for method in ("heat_bath", "metropolis"):
            chains.sweep(10, method)
            seconds = best_seconds(lambda m=method: chains.sweep(8, m), repeats)
            figures[f"{method}_per_s"] = CHAINS * sites.n_sites * 8 / seconds
        rng = np.random.default_rng(0)
        known = rng.random((256, sites.n_sites)) < 0.5
        arguments = (
            ensemble,
            sites,
            conditions[:256],
            chains.occupations[:256].copy(),
            known,
            8,
            rng,
        )
        heat_bath_probabilities(*arguments)
        seconds = best_seconds(lambda: heat_bath_probabilities(*arguments), repeats)
        figures["targets_ns_a_site_update"] = seconds / (256 * sites.n_sites * 8) * 1e9
        box = ConditionRange((200, 1200), [-0.12], [0.12], axis)
        start = time.perf_counter()
        tempering = ParallelTempering(ensemble, sites, box, shape=(32, 32), seed=0, jitter=True)
        figures["grown_start_s"] = time.perf_counter() - start
        tempering.step()
        figures["tempering_step_ms"] = best_seconds(tempering.step, 3 * repeats) * 1e3

        monte_carlo = SGCMonteCarlo(atoms, TEMPERATURE, symbols=["Au", "Cu"])
        monte_carlo.run(2000, chem_pot={"c1_0": 0.0})
        start = time.perf_counter()
        monte_carlo.run(steps, chem_pot={"c1_0": 0.0})
        figures["clease_per_s"] = steps / (time.perf_counter() - start)
        os.chdir(folder)
    for method in ("heat_bath", "metropolis"):
        figures[f"{method}_ratio"] = figures[f"{method}_per_s"] / figures["clease_per_s"]
    print(f"{sites.n_sites} sites, {CHAINS} chains at {TEMPERATURE:.0f} K, one thread")
    print(f"CLEASE SGCMonteCarlo.run    {figures['clease_per_s'] / 1e6:8.3f} M updates/s")
    for method in ("heat_bath", "metropolis"):
        rate, ratio = figures[f"{method}_per_s"], figures[f"{method}_ratio"]
        print(f"{method:<27} {rate / 1e6:8.1f} M updates/s = {ratio:.0f}x")
    print(
        f"training targets            {figures['targets_ns_a_site_update']:8.1f} ns a site update"
    )
    print(
        f"tempering step, 1024 chains {figures['tempering_step_ms']:8.1f} ms (4 sweeps, exchanges)"
    )
    print(f"grown start                 {figures['grown_start_s']:8.1f} s")
    met = figures["metropolis_ratio"] >= GATE
    print(f"gate {GATE}x: {'met' if met else 'MISSED'} (aim {AIM}x)")
    write_json(out, "chains", figures)
    if not met:
        sys.exit(1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="fewer repeats")
    parser.add_argument("--out", help="write the figures to this JSON file")
    options = parser.parse_args()
    main(options.short, str(Path(options.out).resolve()) if options.out else None)
