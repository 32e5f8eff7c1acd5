"""Reference ln Z of larger Cu-Au cells by two-dimensional parallel tempering, in two halves.

Two independent runs (seeds) on a fine grid of temperatures and chemical potentials that contains
the 99 conditions of ``training.py`` begin from every known ordered phase and from both sides of
every coexistence; ln Z is known where beta = 0 and, at low temperature, from the share of the
time that chains spend in the ground state. A condition counts where the halves agree; both must
lie above the rigorous lower bound of ln Z, the sum over the ordered phases and the configurations
seen. The lowest phase of every condition and the share of kept configurations that have its
composition are listed as well.

    python examples/benchmarks/large_reference.py --sites 128 --out log_z_128.json
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
import warnings
from concurrent.futures import ProcessPoolExecutor

import numpy as np
from common import one_thread, write_json
from training import cuau

from clease_nn.conditions import Conditions
from clease_nn.montecarlo import ParallelTempering

SIZES = {16: (2, 2, 4), 64: (4, 4, 4), 128: (4, 4, 8)}
TEMPERATURES = np.concatenate(  # K; denser where order is lost
    [np.arange(200, 451, 50), np.arange(475, 801, 25), np.arange(850, 1201, 50)]
)
POTENTIALS = {16: 33, 64: 33, 128: 49}
STEPS = {16: 100, 64: 4000, 128: 1600}
KEEP = 50  # steps between configurations that are kept
TOLERANCE = 0.05  # nats; halves that differ by less agree


def fine_grid(sites: int):
    """Lattice, ensemble, the 99 conditions, the fine grid, its shape and potentials, a note."""
    lattice, ensemble, box, grid, note = cuau(SIZES[sites])
    x = np.linspace(-0.12, 0.12, POTENTIALS[sites])
    fine = Conditions.grid(TEMPERATURES, x[:, None] @ box.axes)
    return lattice, ensemble, grid, fine, (len(TEMPERATURES), len(x)), x, note


def half(sites: int, steps: int, seed: int, start: str) -> dict:
    """One run: ln Z with error, lower bound, mean energy and composition of every condition."""
    one_thread()
    lattice, ensemble, _, fine, shape, _, _ = fine_grid(sites)
    started = time.thread_time()
    tempering = ParallelTempering(ensemble, lattice, fine, shape, seed=seed, start=start)
    begun = time.thread_time() - started
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = tempering.run(steps, burn_in=steps // 4, interval=min(KEEP, steps))
    print(f"seed {seed}: {time.thread_time() - started:.0f} s of CPU time", flush=True)
    c = result.configurations
    each = len(c) // len(fine)
    return {
        "log_z": result.log_z.value,
        "error": result.log_z.error,
        "bound": result.lower_bound.numpy(),
        "energy": c.energy.view(-1, each).mean(1).numpy(),
        "first": c.counts()[:, 0].view(-1, each).numpy(),
        "phases": tempering.phases,
        "warnings": [str(w.message) for w in caught],
        "weakest_link": result.weakest_link,
        "swap_acceptance": result.swap_acceptance.tolist(),
        "start_seconds": begun,
        "seconds": time.thread_time() - started,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sites", type=int, default=128, choices=sorted(SIZES))
    parser.add_argument("--steps", type=int, help="measured steps of each half")
    parser.add_argument("--seeds", type=int, nargs=2, default=[11, 12])
    parser.add_argument("--start", default="ordered", choices=["ordered", "grow", "random"])
    parser.add_argument("--processes", type=int, default=1, choices=[1, 2])
    parser.add_argument("--out", help="JSON file")
    parser.add_argument("--short", action="store_true", help="a few seconds, 16 sites")
    args = parser.parse_args()
    one_thread()
    if args.short:
        args.sites, args.steps = 16, 60
    steps = args.steps or STEPS[args.sites]
    lattice, ensemble, grid, fine, shape, x, note = fine_grid(args.sites)
    hundreds = np.flatnonzero(TEMPERATURES % 100 == 0)
    wanted = np.arange(len(fine)).reshape(shape)[hundreds, :: (len(x) - 1) // 8].ravel()
    print(f"{lattice}, {note}; grid {shape}, {steps} steps, starts: {args.start}")
    arguments = [(args.sites, steps, seed, args.start) for seed in args.seeds]
    if args.processes > 1:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(args.processes, spawn) as pool:
            halves = list(pool.map(half, *zip(*arguments, strict=True)))
    else:
        halves = [half(*a) for a in arguments]
    log_z = np.stack([h["log_z"][wanted] for h in halves])
    error = np.stack([h["error"][wanted] for h in halves])
    bound = np.max([h["bound"][wanted] for h in halves], axis=0)
    energy = np.stack([h["energy"][wanted] for h in halves])
    first = np.stack([h["first"][wanted] for h in halves])
    agree = np.abs(log_z[0] - log_z[1]) <= TOLERANCE
    above = (log_z > bound - 0.01).all(0)
    if args.short:
        exact = ensemble.enumerate(lattice).log_z(grid).numpy()
        print(f"largest deviation from enumeration {np.abs(log_z - exact).max():.3f}")
    phases = halves[0]["phases"]
    lowest = None
    if phases is not None:
        of_phase = phases.configurations.counts()[np.unique(phases.phase, return_index=True)[1], 0]
        lowest = of_phase.numpy()[phases.grand_energies(grid).argmin(1)]
    rows = []
    for k in range(len(grid)):
        row = {
            "temperature": float(grid.temperature[k]),
            "c1_0": float(x[wanted[k] % len(x)]),
            "mu": grid.mu[k].tolist(),
            "log_z": log_z[:, k].tolist(),
            "log_z_error": error[:, k].tolist(),
            "lower_bound": float(bound[k]),
            "above_bound": bool(above[k]),
            "agree": bool(agree[k] and above[k]),
            "mean_energy": energy[:, k].tolist(),
            "mean_first_species": first[:, k].mean(1).tolist(),
        }
        if lowest is not None:
            near = np.abs(first[:, k] - lowest[k]) <= 0.05 * lattice.n_sites
            row["ground_state_first_species"] = float(lowest[k])
            row["share_near_ground_state"] = near.mean(1).tolist()
        rows.append(row)
    seconds = [h["seconds"] for h in halves]
    print(
        f"halves agree within {TOLERANCE} nats at {agree.sum()} of {len(agree)} conditions, "
        f"largest difference {np.abs(log_z[0] - log_z[1]).max():.3f}, above the bound at "
        f"{above.sum()}; weakest links {[round(h['weakest_link'], 4) for h in halves]}; "
        f"CPU {np.round(seconds, 1)} s"
    )
    for k in np.flatnonzero(~(agree & above))[:20]:
        r = rows[k]
        print(
            f"  {r['temperature']:.0f} K, c1_0 {r['c1_0']:+.2f}: {np.round(r['log_z'], 3)}, bound "
            f"{r['lower_bound']:.3f}, mean N {np.round(r['mean_first_species'], 1)}"
        )
    for h in halves:
        for text in h["warnings"]:
            print("warning:", text)
    figures = {
        "provenance": {
            "format": "conditions: temperature [K], c1_0 [eV], mu [eV], log_z of both halves, "
            "lower_bound (rigorous), agree (within tolerance and above the bound), means",
            "expansion": note,
            "size": SIZES[args.sites],
            "sites": lattice.n_sites,
            "fine_grid": shape,
            "steps": steps,
            "sweeps_per_step": 4,
            "seeds": args.seeds,
            "start": args.start,
            "tolerance_nats": TOLERANCE,
            "cpu_seconds": seconds,
            "start_cpu_seconds": [h["start_seconds"] for h in halves],
            "weakest_link": [h["weakest_link"] for h in halves],
            "swap_acceptance": [h["swap_acceptance"] for h in halves],
            "warnings": [h["warnings"] for h in halves],
        },
        "conditions": rows,
    }
    write_json(args.out, "large_reference", figures)


if __name__ == "__main__":
    main()
