"""Wall time of a CLEASE script with the drop-in, over the same script with CLEASE's sampler.

    python examples/benchmarks/drop_in.py [--short] [--out FILE]

``run(100_000)`` of 64-site Cu-Au with one observer every 100 steps, far from transitions: without
a model, with one (trained here first, its time is not part of the ratio) that is used as often as
the pilot run says, with neural moves forced every 500 sweeps, and CLEASE's ``SGCMonteCarlo`` in
the same process, one thread. Beside each its effective samples a second of
the composition. Compilation is done before; the pilot run that schedules the neural moves
happens once per condition and is part of the first run, which is shown by itself.
The expansion is that of ``energies.py``.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
import warnings

import numpy as np
from clease.montecarlo import SGCMonteCarlo
from clease.montecarlo.observers import MCObserver
from common import one_thread, write_json
from energies import cuau

from clease_nn import NeuralSGCSampler
from clease_nn.statistics import integrated_autocorrelation_time
from clease_nn.warnings import CleaseNNWarning

CONDITIONS = [(1000.0, 0.03), (1200.0, -0.05)]
GATE, AIM = 0.5, 0.1


class Composition(MCObserver):
    """Share of gold atoms, every time it is called."""

    def __init__(self, atoms):
        self.atoms, self.values = atoms, []

    def __call__(self, changes):
        self.values.append(float((self.atoms.numbers == 79).mean()))

    def reset(self):
        self.values = []


def measure(mc, watch, steps: int, chem_pot: dict, repeats: int) -> dict:
    """Seconds of the first and of the later runs, effective samples a second."""
    first = time.perf_counter()
    mc.run(steps, chem_pot=chem_pot)
    first = time.perf_counter() - first
    seconds, effective = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        mc.run(steps, chem_pot=chem_pot)
        seconds.append(time.perf_counter() - start)
        series = np.array(watch.values)
        effective.append(len(series) / integrated_autocorrelation_time(series) / seconds[-1])
    return {
        "first_seconds": first,
        "seconds": float(np.median(seconds)),
        "effective_samples_per_second": float(np.median(effective)),
        "energy": mc.get_thermodynamic_quantities()["energy"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="less training, fewer steps")
    parser.add_argument("--out", help="JSON file to write")
    args = parser.parse_args()
    one_thread()
    warnings.simplefilter("ignore", CleaseNNWarning)
    steps, repeats = (20_000, 1) if args.short else (100_000, 3)
    figures: dict = {"steps": steps, "gate": GATE, "aim": AIM, "conditions": []}
    with tempfile.TemporaryDirectory() as folder:
        size = (4, 4, 4)
        atoms, figures["expansion"] = cuau(size, folder)
        trainer = NeuralSGCSampler(atoms, 1000, ["Au", "Cu"], seed=0)
        budget = {"max_steps": 10, "validation_samples": 16} if args.short else {"max_seconds": 60}
        trained = trainer.fit(
            temps=(500, 1200), chem_pots={"c1_0": (-0.12, 0.12)}, progress=False, **budget
        )
        trainer.run(1000, chem_pot={"c1_0": 0.03})  # compiles
        for temp, x in CONDITIONS:
            chem_pot, row = {"c1_0": x}, {"temperature": temp, "c1_0": x}
            for name, make, options in (
                ("clease", SGCMonteCarlo, {}),
                ("without model", NeuralSGCSampler, {"neural_interval": None}),
                ("with model", NeuralSGCSampler, {"model": trained}),
                ("every 500 sweeps", NeuralSGCSampler, {"model": trained, "neural_interval": 500}),
            ):
                atoms, _ = cuau(size, folder)
                random.seed(1)
                mc = make(atoms, temp, ["Au", "Cu"], **options)
                watch = Composition(atoms)
                mc.attach(watch, interval=100)
                row[name] = measure(mc, watch, steps, chem_pot, repeats)
                schedule = getattr(mc, "neural_schedule", None)
                row[name]["neural_moves"] = 0
                if schedule is not None:
                    row[name]["neural_moves"] = steps // schedule.steps(len(atoms))
                    row[name]["neural_interval_sweeps"] = schedule.interval
                    row[name]["autocorrelation_sweeps"] = schedule.autocorrelation
                mc.reset_eci()
            print(f"T = {temp:g} K, c1_0 = {x:g} eV, run({steps}) with an observer every 100")
            for name in ("clease", "without model", "with model", "every 500 sweeps"):
                r = row[name]
                r["ratio"] = r["seconds"] / row["clease"]["seconds"]
                r["first_ratio"] = r["first_seconds"] / row["clease"]["seconds"]
                print(
                    f"  {name:16s} {r['seconds']:8.3f} s  ratio {r['ratio']:6.3f} "
                    f"(first run {r['first_ratio']:6.3f})  "
                    f"{r['effective_samples_per_second']:9.0f} effective samples/s  "
                    f"energy {r['energy']:9.4f} eV, {r['neural_moves']} neural moves"
                )
            figures["conditions"].append(row)
    worst = max(r["every 500 sweeps"]["ratio"] for r in figures["conditions"])
    figures["worst_ratio"] = worst
    print(f"worst ratio with forced neural moves {worst:.3f} (gate {GATE}, aim {AIM})")
    write_json(args.out, "drop_in", figures)


if __name__ == "__main__":
    main()
