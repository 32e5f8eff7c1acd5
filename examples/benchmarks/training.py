"""Train a model from nothing for a fixed CPU time and compare it with exact references.

Systems: ``ising5``, ``ising10`` (exact ln Z by transfer matrix), ``cuau16`` (enumeration),
``cuau64`` (two independent runs of two-dimensional parallel tempering) and ``ternary32`` (a
random fcc expansion; its ln Z is the model's own estimate). Every run appends one JSON line; the
table shows medians over seeds.

    python examples/benchmarks/training.py ising10 --seconds 150 --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from ase.units import kB
from common import machine, one_thread, write_json

from clease_nn.conditions import ConditionRange, Conditions
from clease_nn.diagnostics import kl_gap
from clease_nn.energies.ising import ising_conditions, ising_energy, ising_log_z
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.io import TrainedModel
from clease_nn.lattice import Lattice
from clease_nn.montecarlo import ParallelTempering
from clease_nn.sampling import sample
from clease_nn.statistics import log_mean_exp, normalized_ess, weighted_mean
from clease_nn.training import fit

BUDGETS = {"ising5": 75, "ising10": 150, "cuau16": 60, "cuau64": 180, "ternary32": 180}


@dataclass
class System:
    """A lattice, its ensemble, a range, and conditions with reference ln Z (or None)."""

    lattice: Lattice
    ensemble: SemiGrandCanonical
    box: ConditionRange
    conditions: dict[str, Conditions]
    log_z: dict[str, torch.Tensor | None]
    note: str = ""
    agreeing: torch.Tensor | None = None


def ising(size: int, short: bool, n_random: int = 50) -> System:
    """The grid of the literature and ``n_random`` random conditions beside it."""
    lattice = Lattice.square(size)
    box = ConditionRange((1.5 / kB, 3.5 / kB), [-0.4], [0.4], [[-1.0, 1.0]])
    side = np.array([1.5, 2.5, 3.5] if short else [1.5, 2.0, 2.5, 3.0, 3.5])
    fields = np.array([-0.4, 0.0, 0.4] if short else [-0.4, -0.2, 0.0, 0.2, 0.4])
    rng = np.random.default_rng(2024)
    points = {
        "grid": [(t, h) for t in side for h in fields],
        "random": list(
            zip(rng.uniform(1.5, 3.5, n_random), rng.uniform(-0.4, 0.4, n_random), strict=True)
        ),
    }
    if short or not n_random:
        points.pop("random")
    conditions, log_z = {}, {}
    for name, rows in points.items():
        t, h = np.array(rows).T
        conditions[name] = ising_conditions(t, h)
        exact = [ising_log_z(size, size, a, b) for a, b in rows]
        log_z[name] = torch.tensor(exact, dtype=torch.float64)
    return System(lattice, SemiGrandCanonical(ising_energy(lattice)), box, conditions, log_z)


def cuau(size: tuple[int, int, int]):
    """The literature's expansion where CLEASE_NN_REFERENCE names it, else the project's own."""
    from clease_nn.hosts.clease.chemical_potentials import axes, mu_from_chem_pot
    from clease_nn.hosts.clease.examples import cuau_emt_atoms, cuau_emt_data
    from clease_nn.hosts.clease.extraction import energy, lattice

    data, note = cuau_emt_data(), "the project's own EMT expansion (CLEASE_NN_REFERENCE not set)"
    folder = os.environ.get("CLEASE_NN_REFERENCE")
    if folder:
        eci = json.loads((Path(folder) / "cuau_eci.json").read_text())
        data, note = {**data, "eci": eci}, "the literature's expansion"
    atoms = cuau_emt_atoms(size, data)
    cell = lattice(atoms)
    ensemble = SemiGrandCanonical(energy(atoms))
    box = ConditionRange((200, 1200), [-0.12], [0.12], axes(atoms, cell, ["c1_0"]))
    temperatures, x = np.arange(200, 1201, 100), np.linspace(-0.12, 0.12, 9)
    mu = [mu_from_chem_pot(atoms, cell, {"c1_0": v}) for v in x]
    return cell, ensemble, box, Conditions.grid(temperatures, np.array(mu)), note


def cuau16(short: bool) -> System:
    cell, ensemble, box, grid, note = cuau((2, 2, 4))
    grid = grid[::10] if short else grid
    log_z = ensemble.enumerate(cell).log_z(grid)
    return System(cell, ensemble, box, {"grid": grid}, {"grid": log_z}, note)


def cuau64(short: bool) -> System:
    size = (2, 4, 4) if short else (4, 4, 4)
    cell, ensemble, box, grid, note = cuau(size)
    steps = 200 if short else 4000
    temperatures, x = np.arange(200, 1201, 25), np.linspace(-0.12, 0.12, 33)
    fine = Conditions.grid(temperatures, x[:, None] @ box.axes)
    halves = []
    for seed in (11, 12):
        tempering = ParallelTempering(ensemble, cell, fine, (len(temperatures), len(x)), seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = tempering.run(steps, burn_in=steps // 4, progress=False, interval=steps)
        halves.append(result.log_z.value.reshape(len(temperatures), len(x))[::4, ::4].ravel())
    agree = np.abs(halves[0] - halves[1]) <= (np.inf if short else 0.05)
    note += f"; two-dimensional parallel tempering, halves agree at {agree.sum()} of {len(agree)}"
    rows = torch.as_tensor(np.flatnonzero(agree))
    mean = torch.as_tensor(np.mean(halves, 0))[rows]
    conditions = {"agreeing": grid[rows], "all": grid}
    return System(cell, ensemble, box, conditions, {"agreeing": mean, "all": None}, note, rows)


def ternary32(short: bool) -> System:
    """Random pair and triplet couplings that decay with distance, three species on fcc."""
    from clease.calculator import attach_calculator
    from clease.settings import CEBulk, Concentration

    from clease_nn.hosts.clease.chemical_potentials import axes
    from clease_nn.hosts.clease.extraction import energy, lattice

    folder = tempfile.mkdtemp()
    settings = CEBulk(
        Concentration([["Au", "Cu", "Pd"]]),
        crystalstructure="fcc",
        a=3.8,
        size=(2, 2, 2) if short else (2, 4, 4),
        max_cluster_dia=(4.0, 3.0),
        db_name=str(Path(folder) / "ternary.db"),
    )
    rng = np.random.default_rng(3)
    eci = {}
    for name in settings.all_cf_names:
        body, shell = int(name[1]), int(name.split("_")[1][1:]) if name[1] in "234" else 0
        scale = {0: 0.0, 1: 0.01, 2: 0.02, 3: 0.004}[body] / (1 + shell)
        eci[name] = scale * rng.normal()
    atoms = attach_calculator(settings, settings.atoms.copy(), eci)
    cell = lattice(atoms)
    box = ConditionRange((300, 1500), [-0.1, -0.1], [0.1, 0.1], axes(atoms, cell, ["c1_0", "c1_1"]))
    rng = np.random.default_rng(7)
    conditions = box.at(rng.random((6 if short else 64, 3)))
    note = "random conditions; KL gap against the model's own ln Z"
    return System(
        cell, SemiGrandCanonical(energy(atoms)), box, {"random": conditions}, {"random": None}, note
    )


SYSTEMS = {
    "ising5": lambda short: ising(5 if not short else 4, short),
    "ising10": lambda short: ising(10 if not short else 6, short),
    "cuau16": cuau16,
    "cuau64": cuau64,
    "ternary32": ternary32,
}


def evaluate(trained, system: System, n: int, seed: int) -> dict:
    """KL gap, NESS and catastrophic draws on every set of conditions."""
    out = {}
    for name, conditions in system.conditions.items():
        if name == "agreeing":
            continue  # a part of "all", drawn there
        started = time.thread_time()
        drawn = sample(
            trained.model,
            system.ensemble,
            system.lattice,
            conditions.repeat(n),
            torch.Generator().manual_seed(1000 + seed),
            precision="auto",
        )
        seconds = time.thread_time() - started
        log_w = drawn.log_weight.view(len(conditions), n)
        log_z = system.log_z[name]
        if name == "all" and "agreeing" in system.conditions:
            rows = system.agreeing
            out["agreeing"] = _figures(log_w[rows], system.log_z["agreeing"], n, seconds, drawn)
        out[name] = _figures(log_w, log_z, n, seconds, drawn)
    return out


def _figures(log_w, log_z, n: int, seconds: float, drawn) -> dict:
    """Figures of one set of conditions; without ln Z against the model's own."""
    own = torch.logsumexp(log_w, 1) - np.log(n)
    gap = kl_gap(log_w, own if log_z is None else log_z)
    ness = np.array([normalized_ess(row.numpy()) for row in log_w])
    low = log_w < log_w.median(1, keepdim=True).values - 10
    out = {
        "conditions": len(log_w),
        "samples_per_condition": n,
        "kl_gap_nats": float(gap.mean()),
        "kl_gap_max_nats": float(gap.max()),
        "ness_mean": float(ness.mean()),
        "ness_min": float(ness.min()),
        "catastrophic_share": float(low.double().mean()),
        "milliseconds_per_sample": 1e3 * seconds / len(drawn),
        "kl_gap_map": gap.tolist(),
        "ness_map": ness.tolist(),
    }
    if log_z is not None:
        error = torch.exp(log_w - own[:, None]).std(1) / np.sqrt(n)
        out["log_z_z_score_std"] = float(((own - log_z) / error)[ness * n >= 200].std())
    return out


def z_scores(trained, system: System, replicas: int, n: int) -> dict:
    """Pooled z-scores of ln Z, E and N_0 against enumeration, replica by replica.

    Conditions whose exact distribution leaves too few events among ``n`` samples for an error bar
    are left out and counted.
    """
    conditions = system.conditions["grid"]
    exact = system.ensemble.enumerate(system.lattice)
    counts = (exact.occupations == 0).sum(1).double()
    reference = {
        "log_z": exact.log_z(conditions).numpy(),
        "energy": exact.mean(conditions, exact.energy).numpy(),
        "count": exact.mean(conditions, counts).numpy(),
    }
    variance = exact.mean(conditions, counts**2).numpy() - reference["count"] ** 2
    # an error from n samples needs n > 20 (kurtosis - 1): rare phases have too few events in n
    usable = np.ones(len(conditions), dtype=bool)
    for values in (exact.energy, counts):
        for k in range(len(conditions)):
            p = exact.probabilities(conditions[k])
            d = values - (p * values).sum()
            second = (p * d**2).sum()
            usable[k] &= bool(n * second**2 > 20 * ((p * d**4).sum() - second**2))
    z: dict[str, list[float]] = {name: [] for name in reference}
    left_out = 0
    rng = torch.Generator().manual_seed(77)
    for _ in range(replicas):
        drawn = sample(
            trained.model, system.ensemble, system.lattice, conditions.repeat(n), rng,
            precision="auto",
        )  # fmt: skip
        log_w = drawn.log_weight.view(len(conditions), n).numpy()
        energy = drawn.energy.view(len(conditions), n).numpy()
        number = drawn.counts()[:, 0].view(len(conditions), n).numpy()
        for k in range(len(conditions)):
            if not usable[k] or n * variance[k] < 20 or n * normalized_ess(log_w[k]) < 200:
                left_out += 1
                continue
            for name, e in (
                ("log_z", log_mean_exp(log_w[k])),
                ("energy", weighted_mean(energy[k], log_w[k])),
                ("count", weighted_mean(number[k], log_w[k])),
            ):
                z[name].append(float(e.z(reference[name][k])))
    out = {"replicas": replicas, "samples": n, "left_out": left_out}
    for name, values in z.items():
        out[f"{name}_z_std"] = float(np.std(values)) if values else None
        out[f"{name}_z_mean"] = float(np.mean(values)) if values else None
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("system", nargs="?", default="cuau16", choices=sorted(SYSTEMS))
    parser.add_argument("--seconds", type=float, help="CPU seconds of training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=1000, help="draws a condition")
    parser.add_argument("--only", help="one of the sets of conditions, such as grid")
    parser.add_argument("--replicas", type=int, default=0, help="for z-scores (cuau16)")
    parser.add_argument("--out", help="JSON file")
    parser.add_argument("--model", help="save the model of the last seed here")
    parser.add_argument("--load", help="evaluate this model instead of training one")
    parser.add_argument("--short", action="store_true", help="a few seconds, meaningless figures")
    args = parser.parse_args()
    one_thread()
    warnings.simplefilter("ignore", category=UserWarning)
    if args.short:
        args.seconds, args.seeds, args.samples = 3.0, [0], 50
    seconds = args.seconds if args.seconds is not None else BUDGETS[args.system]
    system = SYSTEMS[args.system](args.short)
    if args.only:
        system.conditions = {args.only: system.conditions[args.only]}
    print(f"{args.system}: {system.lattice}, {system.note}")
    print(f"AMX: {machine()['amx']}, training {seconds:g} CPU seconds, one thread")
    runs = []
    for seed in args.seeds:
        trained = (
            TrainedModel.load(args.load)
            if args.load
            else fit(
                system.ensemble,
                system.lattice,
                system.box,
                max_seconds=seconds,
                seed=seed,
                threads=1,
                clock=time.thread_time,
                progress=False,
                validation_samples=32,
            )
        )
        if args.model:
            trained.save(args.model)
        result = evaluate(trained, system, args.samples, seed)
        run = {
            "seed": seed,
            "steps": trained.metadata["steps"],
            "precision": trained.metadata["precision"],
            "energy_evaluations": trained.metadata["energy_evaluations"],
            "forward_kl_mean_nats": trained.metadata["validation"]["forward_kl_mean_nats"],
            "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            **result,
        }
        if args.replicas and seed == args.seeds[0]:
            run["z_scores"] = z_scores(trained, system, args.replicas, 250)
            print("z-scores:", run["z_scores"])
        runs.append(run)
        for name, r in result.items():
            print(
                f"seed {seed} {name}: KL gap {r['kl_gap_nats']:.4f} nats, NESS mean "
                f"{r['ness_mean']:.4f} minimum {r['ness_min']:.3f}, catastrophic "
                f"{r['catastrophic_share']:.1e}, {r['milliseconds_per_sample']:.2f} ms a sample, "
                f"{run['steps']} steps, {run['peak_memory_mb']:.0f} MB",
                flush=True,
            )
    figures = {"system": args.system, "seconds": seconds, "note": system.note, "runs": runs}
    for name in system.conditions:
        for key in ("kl_gap_nats", "ness_mean", "ness_min", "catastrophic_share"):
            values = [r[name][key] for r in runs]
            figures[f"{name}_{key}"] = float(np.median(values))
            print(f"median {name} {key}: {np.median(values):.4g} (seeds {np.round(values, 4)})")
    write_json(args.out, "training", figures)


if __name__ == "__main__":
    main()
