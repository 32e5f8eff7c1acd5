"""A plain ASE calculator in CLEASE's interface: averages and free energies against enumeration.

    python examples/benchmarks/any_energy.py [--short] [--seconds S] [--out FILE]

EMT on 16 fcc sites with fixed positions, Au and Cu. ``fit`` learns a surrogate and a model; draws
weighted with the true energy and runs of the sampler are then compared with the enumeration of
all 65536 configurations, over a grid of temperatures and chemical potentials: every replica and
condition gives one z-score, whose standard deviation should be one.
"""

from __future__ import annotations

import argparse
import time
import warnings

import numpy as np
from ase.build import bulk
from ase.calculators.emt import EMT
from common import one_thread, write_json

from clease_nn.conditions import Conditions
from clease_nn.energies.calculator import CalculatorEnergy
from clease_nn.hosts.clease import NeuralSGCSampler
from clease_nn.hosts.clease.recorder import ConfigurationRecorder
from clease_nn.thermodynamics import averages

TEMPERATURES = (400.0, 600.0, 800.0, 1000.0, 1200.0)  # K
MU = (0.05, 0.15, 0.2, 0.25, 0.35)  # of Au, eV
CHAIN_CONDITIONS = ((500.0, 0.2), (700.0, 0.15), (700.0, 0.25), (1000.0, 0.1), (1000.0, 0.3))


def reference(mc) -> dict:
    """Exact ln Z, mean share of Au and its variance at every condition, by enumeration."""
    states = mc.ensemble.enumerate(mc.lattice)
    share = (states.occupations == 0).double().mean(1)
    out = {}
    for temp, mu in [*((t, m) for t in TEMPERATURES for m in MU), *CHAIN_CONDITIONS]:
        at = Conditions([temp], [[mu, 0.0]])
        mean, square = (float(states.mean(at, v)[0]) for v in (share, share**2))
        out[temp, mu] = float(states.log_z(at)[0]), mean, square - mean**2
    return out


def usable(n: float, variance: float, n_sites: int) -> bool:
    """Whether ``n`` samples see enough events for an error bar."""
    return n >= 200 and n * variance * n_sites**2 >= 20


def draws(mc, exact: dict, replicas: int, n: int) -> dict:
    """z-scores of ln Z and composition from weighted draws."""
    z, left_out = {"log_z": [], "composition": []}, 0
    ness = []
    for temp in TEMPERATURES:
        for mu in MU:
            log_z, share, variance = exact[temp, mu]
            for _ in range(replicas):
                [row] = averages(mc.sample(n, temp, {"Au": mu}))
                ness.append(row.log_z.ness)
                if not usable(n * row.log_z.ness, variance, mc.lattice.n_sites):
                    left_out += 1
                    continue
                z["log_z"].append(float(row.log_z.z(log_z)))
                z["composition"].append(float(row.composition[0].z(share)))
    return {**summary(z), "left_out": left_out, "ness_mean": float(np.mean(ness)),
            "ness_min": float(np.min(ness))}  # fmt: skip


def runs(mc, exact: dict, replicas: int, steps: int) -> dict:
    """z-scores of the composition of runs, errors with the autocorrelation time."""
    z, left_out, accepted = {"composition": []}, 0, []
    recorder = ConfigurationRecorder(mc)
    mc.attach(recorder)
    for temp, mu in CHAIN_CONDITIONS:
        _, share, variance = exact[temp, mu]
        mc.temperature = temp
        mc.run(50, chem_pot={"Au": mu}, call_observers=False)
        for _ in range(replicas):
            mc.run(steps)
            [row] = averages(recorder.configurations())
            accepted.append(mc.current_accept_rate)
            if not usable(steps * row.composition[0].ness, variance, mc.lattice.n_sites):
                left_out += 1
                continue
            z["composition"].append(float(row.composition[0].z(share)))
    return {**summary(z), "left_out": left_out, "acceptance": float(np.mean(accepted))}


def summary(z: dict) -> dict:
    """Standard deviation, mean and number of z-scores."""
    out = {}
    for name, values in z.items():
        out[f"{name}_z_std"] = float(np.std(values)) if values else None
        out[f"{name}_z_mean"] = float(np.mean(values)) if values else None
        out[f"{name}_z_count"] = len(values)
    return out


def main() -> None:
    """Train, compare with enumeration, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="of training")
    parser.add_argument("--replicas", type=int, default=20)
    parser.add_argument("--samples", type=int, default=250, help="draws a replica and condition")
    parser.add_argument("--steps", type=int, default=400, help="of a run")
    parser.add_argument("--out", help="JSON file")
    parser.add_argument("--short", action="store_true", help="a few seconds, meaningless figures")
    args = parser.parse_args()
    if args.short:
        args.seconds, args.replicas, args.samples, args.steps = 3.0, 1, 100, 40
    one_thread()
    warnings.simplefilter("ignore")
    energy = CalculatorEnergy(EMT())
    atoms = bulk("Cu", a=3.85) * (4, 2, 2)
    mc = NeuralSGCSampler(atoms, 800, ["Au", "Cu"], energy=energy, seed=1)
    start = time.perf_counter()
    box = {"temps": (400, 1200), "chem_pots": {"Au": (0.0, 0.4)}}
    mc.fit(**box, max_seconds=args.seconds, seed=1, progress=False)
    figures = {"fit_seconds": time.perf_counter() - start, "training_calls": energy.calls}
    print(f"{mc.surrogate_report}; {figures['fit_seconds']:.0f} s")
    start = time.perf_counter()
    exact = reference(mc)
    figures["structures_of_enumeration"] = energy.calls - figures["training_calls"]
    figures["enumeration_seconds"] = time.perf_counter() - start
    print(f"enumeration: {energy.calls} structures up to symmetry")
    figures["draws"] = draws(mc, exact, args.replicas, args.samples)
    print("weighted draws:", {k: np.round(v, 3) for k, v in figures["draws"].items() if v})
    figures["runs"] = runs(mc, exact, args.replicas, args.steps)
    print("runs:", {k: np.round(v, 3) for k, v in figures["runs"].items() if v})
    write_json(args.out, "any_energy", figures)


if __name__ == "__main__":
    main()
