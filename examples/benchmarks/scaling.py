"""Cost of a sample against the number of sites, and what shared passes cost in likelihood.

A model of 10 x 10 Ising spins draws from 10 x 10 to 64 x 64, one by one and in coloured passes of
several distances, at zero field below, at and above the critical temperature. The KL gap is
E_q[ln q - ln p] with Kaufman's exact ln Z. ``--cuau MODEL`` does the same for a Cu-Au model on
fcc supercells; nobody knows ln Z there, so the gap is against the largest estimate of the orders
compared, and only differences between orders mean something.

    python examples/benchmarks/scaling.py --model models/ising10.nn --out scaling.json
"""

from __future__ import annotations

import argparse
import math
import time
import warnings

import numpy as np
import torch
from ase.units import kB
from common import machine, one_thread, write_json

from clease_nn.conditions import ConditionRange, Conditions
from clease_nn.energies.ising import ising_conditions, ising_energy, kaufman_log_z
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.io import TrainedModel
from clease_nn.lattice import Lattice
from clease_nn.models import AbstractOccupationModel, BySize, Coloured, OneByOne
from clease_nn.models.orders import AbstractOrder
from clease_nn.sampling import sample
from clease_nn.statistics import normalized_ess
from clease_nn.training import fit

KT = (1.8, 2.27, 3.0)
SIZES = (10, 20, 32, 45, 64)
CUAU_SIZES = ((4, 4, 4), (4, 4, 8), (4, 8, 8), (8, 8, 8))
ORDERS = (OneByOne(), *(Coloured(d) for d in (0.9, 1.3, 1.6)), BySize())  # the default last


def measure(
    model: AbstractOccupationModel,
    order: AbstractOrder,
    ensemble: SemiGrandCanonical,
    lattice: Lattice,
    conditions: Conditions,
    rows: int,
) -> dict:
    """Draw ``rows`` at each condition: passes, CPU milliseconds and log weights."""
    drawing, rng = model.with_order(order), torch.Generator().manual_seed(0)
    sample(drawing.with_order(Coloured(0)), ensemble, lattice, conditions[:1], rng)  # compiled
    started = time.thread_time()
    c = sample(drawing, ensemble, lattice, conditions.repeat(rows), rng, precision="auto")
    seconds = time.thread_time() - started
    return {
        "order": order.config(),
        "sites": lattice.n_sites,
        "rows": len(c),
        "passes": float((c.step.max(1).values + 1).double().mean()),
        "milliseconds_per_sample": 1e3 * seconds / len(c),
        "log_weight": c.log_weight.view(len(conditions), rows),
    }


def with_gap(figures: dict, log_z: torch.Tensor) -> dict:
    """The same with the KL gap a site, its error, and NESS, instead of log weights."""
    log_w = figures.pop("log_weight")
    gap = log_z[:, None] - log_w
    n, sites = log_w.shape[1], figures["sites"]
    figures["kl_gap_per_site"] = float(gap.mean()) / sites
    figures["kl_gap_per_site_error"] = float((gap.var(1) / n).sum().sqrt()) / len(gap) / sites
    figures["kl_gap_nats"] = gap.mean(1).tolist()
    figures["ness"] = [normalized_ess(row.numpy()) for row in log_w]
    return figures


def ising_part(model: AbstractOccupationModel, sizes, work: int) -> list[dict]:
    """Every order on every size; ``work`` rows times sites a condition, fewer one by one."""
    out = []
    for size in sizes:
        lattice = Lattice.square(size)
        ensemble = SemiGrandCanonical(ising_energy(lattice))
        log_z = torch.tensor([kaufman_log_z(size, size, t) for t in KT], dtype=torch.float64)
        for order in ORDERS:
            rows = max(work // size**2, 2)
            if order == OneByOne():
                rows = max(rows * 50 // size**2, 2)
            figures = measure(model, order, ensemble, lattice, ising_conditions(KT, 0.0), rows)
            out.append(with_gap(figures, log_z))
            show(out[-1])
    return out


def cuau_part(model: AbstractOccupationModel, sizes, work: int) -> list[dict]:
    """The same on fcc supercells, against the largest ln Z that any order estimates."""
    from training import cuau

    out = []
    for size in sizes:
        lattice, ensemble, box, _, note = cuau(size)
        conditions = Conditions.grid([400.0, 700.0, 1100.0], np.array([[0.0]]) @ box.axes)
        of_size = []
        for order in ORDERS:
            rows = max(work // lattice.n_sites // (8 if order == OneByOne() else 1), 4)
            of_size.append(measure(model, order, ensemble, lattice, conditions, rows))
        estimates = [f["log_weight"].logsumexp(1) - math.log(f["log_weight"].shape[1])
                     for f in of_size]  # fmt: skip
        for figures in of_size:
            out.append({**with_gap(figures, torch.stack(estimates).amax(0)), "note": note})
            show(out[-1])
    return out


def show(f: dict) -> None:
    """One line of the table."""
    name = ", ".join(str(v) for v in f["order"].values() if not isinstance(v, dict))
    print(
        f"{f['sites']:5d} sites  {name:18s} {f['passes']:7.1f} passes "
        f"{f['milliseconds_per_sample']:9.2f} ms a sample, KL gap a site "
        f"{f['kl_gap_per_site']:.2e} +- {f['kl_gap_per_site_error']:.0e}, "
        f"NESS {' '.join(f'{v:.2f}' for v in f['ness'])}",
        flush=True,
    )


def slopes(figures: list[dict]) -> list[dict]:
    """Log-log slope of time a sample against sites, and gaps over those of one by one."""
    out = []
    for order in ORDERS:
        mine = [f for f in figures if f["order"] == order.config()]
        plain = [f for f in figures if f["order"] == OneByOne().config()]
        ratios = [
            a["kl_gap_per_site"] / b["kl_gap_per_site"] for a, b in zip(mine, plain, strict=True)
        ]
        sites, times = np.log([(f["sites"], f["milliseconds_per_sample"]) for f in mine]).T
        slope = float(np.polyfit(sites, times, 1)[0])
        out.append({"order": order.config(), "slope": slope, "gap_over_one_by_one": ratios})
        print(f"{order}: slope {slope:.2f}, gap over one by one {np.round(ratios, 2).tolist()}")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="an Ising model; default: train one on 10 x 10")
    parser.add_argument("--cuau", help="a Cu-Au model, for a second part")
    parser.add_argument("--seconds", type=float, default=150, help="CPU seconds of training")
    parser.add_argument("--work", type=int, default=40_000, help="rows times sites a condition")
    parser.add_argument("--out", help="JSON file")
    parser.add_argument("--short", action="store_true", help="a few seconds, meaningless figures")
    args = parser.parse_args()
    one_thread()
    warnings.simplefilter("ignore", category=UserWarning)
    size, sizes, cuau_sizes = 10, SIZES, CUAU_SIZES
    if args.short:
        size, sizes, cuau_sizes = 4, (4, 8), ((2, 2, 2), (2, 2, 4))
        args.seconds, args.work = 1.0, 400
    if args.model:
        model = TrainedModel.load(args.model).model
    else:
        lattice = Lattice.square(size)
        box = ConditionRange((1.5 / kB, 3.5 / kB), [-0.4], [0.4], [[-1.0, 1.0]])
        ensemble = SemiGrandCanonical(ising_energy(lattice))
        model = fit(
            ensemble, lattice, box, max_seconds=args.seconds, seed=0, threads=1,
            clock=time.thread_time, progress=False, validation_samples=16,
        ).model  # fmt: skip
    print(f"{machine()['cpu']}, AMX: {machine()['amx']}, one thread, CPU time")
    figures = {"ising": ising_part(model, sizes, args.work)}
    figures["slopes"] = slopes(figures["ising"])
    if args.cuau:
        figures["cuau"] = cuau_part(TrainedModel.load(args.cuau).model, cuau_sizes, args.work)
        figures["cuau_slopes"] = slopes(figures["cuau"])
    write_json(args.out, "scaling", figures)


if __name__ == "__main__":
    main()
