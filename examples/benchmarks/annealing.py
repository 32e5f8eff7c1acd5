"""ln Z and averages of large Ising cells from a small cell's model: transfer and annealing.

``literature``: 20 x 20 at the 25 conditions of the literature, ln Z by annealed draws against the
exact values (the file ``ising_exact.csv`` in the folder CLEASE_NN_REFERENCE; without it the
zero-field conditions, by Kaufman's formula), beside parallel tempering on a grid around them.
``zero_field``: energy, |m| and ln Z without a field in larger cells, exact ln Z and energy by
Kaufman's formula; plain transfer, annealing from the model, and annealing without any model (from
random configurations) side by side.

    python examples/benchmarks/annealing.py --model ising10.nn --out annealing.json
"""

from __future__ import annotations

import argparse
import csv
import os
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from ase.units import kB
from common import one_thread, write_json

from clease_nn.conditions import ConditionRange
from clease_nn.energies.ising import ising_conditions, ising_energy, kaufman_log_z
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.io import TrainedModel
from clease_nn.lattice import Lattice
from clease_nn.models import Coloured
from clease_nn.montecarlo import ParallelTempering
from clease_nn.sampling import anneal, sample
from clease_nn.statistics import log_mean_exp, normalized_ess, weighted_mean
from clease_nn.training import fit

PARTS = ("zero_field", "literature")
KT = (1.5, 2.0, 2.269, 2.5, 3.0, 3.5)
FIELDS = (-0.4, -0.2, 0.0, 0.2, 0.4)


def small_model(path: str | None, seconds: float, size: int):
    """A model of the ``size`` x ``size`` cell, read from a file or trained; far sites together."""
    if path:
        model = TrainedModel.load(path).model
    else:
        lattice = Lattice.square(size)
        box = ConditionRange((1.5 / kB, 3.5 / kB), [-0.4], [0.4], [[-1.0, 1.0]])
        ensemble = SemiGrandCanonical(ising_energy(lattice))
        model = fit(
            ensemble, lattice, box, max_seconds=seconds, seed=0, threads=1, clock=time.thread_time,
            progress=False, validation_samples=16,
        ).model  # fmt: skip
    return model.with_order(Coloured())


def literature_conditions(size: int):
    """Conditions and exact ln Z."""
    folder = os.environ.get("CLEASE_NN_REFERENCE")
    if folder:
        with (Path(folder) / "ising_exact.csv").open() as file:
            rows = [r for r in csv.DictReader(file) if int(r["L"]) == size]
        if rows:
            kT, field, exact = (
                np.array([float(r[k]) for r in rows]) for k in ("kT", "field", "logZ")
            )
            return kT, field, exact
    kT = np.array([1.5, 2.0, 2.5, 3.0, 3.5])
    return kT, np.zeros(5), np.array([kaufman_log_z(size, size, t) for t in kT])


def exact_energy(size: int, kT: float) -> float:
    """-d ln Z / d beta by a central difference of Kaufman's formula, eV."""
    step = 1e-4
    low, high = (kaufman_log_z(size, size, 1.0 / (1.0 / kT + s)) for s in (-step, step))
    return -(high - low) / (2 * step)


def figures(c, n_conditions: int, log_z, energy=None) -> list[dict]:
    """ln Z, energy and |m| of every condition with errors, deviations and NESS."""
    n = len(c) // n_conditions
    out = []
    for k in range(n_conditions):
        part = c[k * n : (k + 1) * n]
        w = part.log_weight.numpy()
        m = np.abs(2.0 * part.counts()[:, 1].numpy() / part.lattice.n_sites - 1.0)
        z, magnetisation = log_mean_exp(w), weighted_mean(m, w)
        row = {
            "kT": part.conditions.kT[0].item(),
            "field": part.conditions.mu[0, 1].item(),
            "ness": normalized_ess(w),
            "log_z": z.value,
            "log_z_error": z.error,
            "log_z_deviation": z.value - float(log_z[k]),
            "magnetisation": magnetisation.value,
            "magnetisation_error": magnetisation.error,
        }
        if energy is not None:
            e = weighted_mean(part.energy.numpy(), w)
            row |= {
                "energy_per_site": e.value / part.lattice.n_sites,
                "energy_error": e.error / part.lattice.n_sites,
                "energy_z": e.z(energy[k]),
            }
        paths = c.provenance.get("paths")
        if paths:
            keys = ("start_temperature", "steps", "start_ness", "path_ness", "acceptance")
            row |= {key: paths[k].get(key) for key in keys}
        out.append(row)
    return out


def summary(name: str, rows: list[dict], seconds: float) -> dict:
    """Figures of one route over all conditions, printed."""
    z = np.array([r["log_z_deviation"] / r["log_z_error"] for r in rows])
    out = {
        "route": name,
        "cpu_seconds": seconds,
        "ness_mean": float(np.mean([r["ness"] for r in rows])),
        "ness_min": float(np.min([r["ness"] for r in rows])),
        "log_z_error_max": float(np.max([r["log_z_error"] for r in rows])),
        "log_z_z_largest": float(np.abs(z).max()),
        "rows": rows,
    }
    print(
        f"{name}: NESS mean {out['ness_mean']:.3f} minimum {out['ness_min']:.3f}, ln Z error at "
        f"most {out['log_z_error_max']:.4f}, |z| at most {out['log_z_z_largest']:.1f}, "
        f"{seconds:.0f} CPU s",
        flush=True,
    )
    for r in rows:
        path = energy = ""
        if "steps" in r:
            start = r["start_temperature"]
            begin = "infinity" if start is None else f"{start * kB:.2f}"
            path = f", from kT {begin} in {r['steps']} steps"
        if "energy_z" in r:
            value = f"{r['energy_per_site']:.5f} +- {r['energy_error']:.5f}"
            energy = f", E/N {value} (z {r['energy_z']:.1f})"
        print(
            f"  kT {r['kT']:.3f} field {r['field']:+.1f}: NESS {r['ness']:.3f}, ln Z off by "
            f"{r['log_z_deviation']:+.4f} +- {r['log_z_error']:.4f}, |m| {r['magnetisation']:.4f} "
            f"+- {r['magnetisation_error']:.4f}{energy}{path}",
            flush=True,
        )
    return out


def timed(function):
    """Result and CPU seconds of this thread."""
    started = time.thread_time()
    return function(), time.thread_time() - started


def literature(model, size: int, n: int, precision: str, steps: int) -> dict:
    """ln Z of all conditions by annealing from the model, and by parallel tempering."""
    kT, field, exact = literature_conditions(size)
    lattice = Lattice.square(size)
    ensemble = SemiGrandCanonical(ising_energy(lattice))
    conditions = ising_conditions(kT, field)
    rng = torch.Generator().manual_seed(11)
    c, seconds = timed(
        lambda: anneal(
            model, ensemble, lattice, conditions, rng, n=n, precision=precision, progress=False
        )
    )
    name = f"{size} x {size}"
    out = {
        "anneal": summary(f"{name} anneal", figures(c, len(conditions), exact), seconds),
        "mean_minus_log_z": float(-exact.mean()),
    }
    # a grid four times as fine holds every condition of the literature
    side, fields = np.linspace(1.5, 3.5, 17), np.linspace(-0.4, 0.4, 17)
    grid = ising_conditions(*(a.ravel() for a in np.meshgrid(side, fields, indexing="ij")))
    result, seconds = timed(
        lambda: ParallelTempering(ensemble, lattice, grid, (17, 17), seed=5).run(
            steps, burn_in=steps // 4, progress=False, interval=steps
        )
    )
    at = [
        int(np.argmin(np.abs(grid.kT.numpy() - t) + np.abs(grid.mu[:, 1].numpy() - h)))
        for t, h in zip(kT, field, strict=True)
    ]
    value, error = result.log_z.value[at], result.log_z.error[at]
    z = (value - exact) / error
    print(
        f"{name} parallel tempering of {len(grid)} conditions: ln Z error at most "
        f"{error.max():.4f}, |z| at most {np.abs(z).max():.1f}, {seconds:.0f} CPU s"
    )
    out["parallel_tempering"] = {
        "cpu_seconds": seconds,
        "log_z_error_max": float(error.max()),
        "log_z_z_largest": float(np.abs(z).max()),
        "log_z_deviation": (value - exact).tolist(),
    }
    return out


def zero_field(model, size: int, n: int, precision: str, max_steps: int, blind: bool) -> dict:
    """Transfer, annealing and, if ``blind``, annealing without a model at zero field."""
    lattice = Lattice.square(size)
    ensemble = SemiGrandCanonical(ising_energy(lattice))
    conditions = ising_conditions(KT, 0.0)
    log_z = [kaufman_log_z(size, size, t) for t in KT]
    energy = [exact_energy(size, t) for t in KT]
    rng = torch.Generator().manual_seed(12)
    out, name = {}, f"{size} x {size}"
    c, seconds = timed(
        lambda: sample(model, ensemble, lattice, conditions.repeat(n), rng, precision=precision)
    )
    rows = figures(c, len(KT), log_z, energy)
    out["transfer"] = summary(f"{name} transfer", rows, seconds)
    routes = {"anneal": model} | ({"without a model": None} if blind else {})
    for route, begin in routes.items():
        c, seconds = timed(
            lambda begin=begin: anneal(
                begin, ensemble, lattice, conditions, rng, n=n, precision=precision,
                max_steps=max_steps, progress=False,
            )
        )  # fmt: skip
        rows = figures(c, len(KT), log_z, energy)
        out[route] = summary(f"{name} {route}", rows, seconds)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="trained on 10 x 10; default: train one")
    parser.add_argument("--seconds", type=float, default=150.0, help="CPU seconds of training")
    parser.add_argument("--samples", type=int, default=700, help="rows a condition at 20 x 20")
    parser.add_argument("--large-samples", type=int, default=256, help="rows at larger sizes")
    parser.add_argument("--max-steps", type=int, default=1500)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--sizes", type=int, nargs="*", default=[32, 64], help="of zero_field")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--out", help="JSON file")
    parser.add_argument("--short", action="store_true", help="a few seconds, meaningless figures")
    args = parser.parse_args()
    one_thread()
    warnings.simplefilter("ignore", category=UserWarning)
    small, middle, tempering_steps = 10, 20, 800
    if args.short:
        small, middle, tempering_steps = 4, 5, 20
        args.seconds, args.samples, args.large_samples = 1.0, 20, 20
        args.max_steps, args.sizes = 20, [6]
    model = small_model(args.model, args.seconds, small)
    out = {}
    for size in args.sizes if "zero_field" in args.parts else ():
        out[str(size)] = zero_field(
            model, size, args.large_samples, args.precision, args.max_steps, size <= 32
        )
        write_json(args.out, "annealing", out)
    if "literature" in args.parts:
        out["literature"] = literature(model, middle, args.samples, args.precision, tempering_steps)
        write_json(args.out, "annealing", out)


if __name__ == "__main__":
    main()
