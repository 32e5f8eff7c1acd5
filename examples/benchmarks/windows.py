"""Draw a larger cell window by window with a model of a small one, beside using it directly.

Parts: ``ising`` (20 x 20 from 10 x 10, the convolution, which could also be used directly; exact
ln Z of the 25 conditions of the literature in the folder CLEASE_NN_REFERENCE), ``bound`` (the same
from a multilayer perceptron, which serves its own cell only) and ``cuau`` (4 x 4 x 8 Cu-Au from
2 x 2 x 4 and 4 x 4 x 4; ln Z from ``large_reference.py``, elsewhere the estimate of direct use
from 4 x 4 x 4). A line gives the stride, order and margin of the windows, the KL gap in nats a
configuration, NESS and the CPU time of a draw.

    python examples/benchmarks/windows.py --samples 200 --out windows.json
    python examples/benchmarks/windows.py --parts cuau --log-z log_z_128.json
"""

from __future__ import annotations

import argparse
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from common import one_thread, write_json
from larger_cells import Cell, alloy, ising, train

from clease_nn.diagnostics import kl_gap
from clease_nn.models import AnyOrderARM, WindowedModel
from clease_nn.networks import MLP
from clease_nn.sampling import sample
from clease_nn.statistics import normalized_ess

PARTS = ("ising", "bound", "cuau")
PUBLISHED = {  # Du, Liu, Gomez-Bombarelli: out-painting of 20 x 20 from 10 x 10, mean of 25
    "ising": 3.58,
}
# stride, order, margin
ISING = [
    (7, "raster", 0),
    (7, "random", 0),
    (3, "raster", 0),
    (5, "raster", 0),
    (10, "raster", 0),
    (7, "raster", 1),
    (6, "raster", 2),
    (6, "random", 2),
    (4, "raster", 3),
]
BOUND = [(7, "raster", 0), (7, "raster", 1), (6, "raster", 2)]
FROM_16 = [((1, 1, 4), "raster", 0), ((1, 1, 3), "raster", 0), ((1, 1, 2), "raster", (0, 0, 1))]
FROM_64 = [((3, 3, 3), "raster", 0), ((1, 1, 2), "raster", (0, 0, 1))]
SHORT = [(2, "raster", 0), (2, "random", 1)]


def measured(name: str, model, cell: Cell, n: int, seed: int, **more) -> dict:
    """One line of the table."""
    started = time.thread_time()
    model.check_lattice(cell.lattice)
    placing = time.thread_time() - started
    drawn = sample(
        model,
        cell.ensemble,
        cell.lattice,
        cell.conditions.repeat(n),
        torch.Generator().manual_seed(1000 + seed),
        batch_size=1024,
        precision="auto",
    )
    seconds = time.thread_time() - started - placing
    log_w = drawn.log_weight.view(-1, n)
    own = torch.logsumexp(log_w, 1) - np.log(n)
    log_z = torch.as_tensor(np.where(np.isfinite(cell.log_z), cell.log_z, own))
    gap = kl_gap(log_w, log_z)
    ness = np.array([normalized_ess(row.numpy()) for row in log_w])
    if isinstance(model, WindowedModel):
        more["windows"] = len(model.windows(cell.lattice))
    r = {
        "name": name,
        **more,
        "samples_per_condition": n,
        "kl_gap_nats": float(gap.mean()),
        "kl_gap_max_nats": float(gap.max()),
        "reverse_kl_nats": float((log_z - log_w.mean(1)).mean()),
        "ness_mean": float(ness.mean()),
        "ness_min": float(ness.min()),
        "passes": float(drawn.step.max(1).values.double().mean()) + 1,
        "milliseconds_per_sample": 1e3 * seconds / len(drawn),
        "placing_seconds": placing,
        "kl_gap_map": gap.tolist(),
        "ness_map": ness.tolist(),
        "log_z": own.tolist(),
    }
    print(
        f"{name:<52} KL gap {r['kl_gap_nats']:7.3f} (largest {r['kl_gap_max_nats']:6.2f}) nats, "
        f"NESS {r['ness_mean']:.3f} / {r['ness_min']:.3f}, {r['passes']:.0f} passes, "
        f"{r['milliseconds_per_sample']:.1f} ms",
        flush=True,
    )
    return r


def windows(name: str, trained, small: Cell, cell: Cell, settings, n: int, seed: int) -> list[dict]:
    """A line for every way of laying windows."""
    rows = []
    for stride, order, margin in settings:
        model = WindowedModel(trained.model.eval(), small.lattice, stride, order, margin)
        text = f"{name}, stride {stride}, {order}, margin {margin}"
        rows.append(measured(text, model, cell, n, seed, stride=stride, order=order, margin=margin))
    return rows


def ising_part(args, bound: bool) -> list[dict]:
    """20 x 20 from 10 x 10."""
    small, large = (ising(k, args.short) for k in ((4, 8) if args.short else (10, 20)))
    settings = SHORT if args.short else (BOUND if bound else ISING)
    if bound:
        torch.manual_seed(args.seed)
        network = MLP(small.lattice, small.box, width=16 if args.short else 512)
        trained = train(small, args.seconds, args.seed, args.bound, model=AnyOrderARM(network))
        name = "MLP"
    else:
        trained = train(small, args.seconds, args.seed, args.model)
        name = "convolution"
    rows = [measured(f"{name}, its own cell", trained.model, small, args.samples, args.seed)]
    if not bound:
        text = f"{name}, used directly"
        rows.append(measured(text, trained.model, large, args.samples, args.seed))
    return rows + windows(name, trained, small, large, settings, args.samples, args.seed)


def cuau_part(args) -> list[dict]:
    """4 x 4 x 8 Cu-Au from 2 x 2 x 4 and from 4 x 4 x 4."""
    shapes = ((2, 2, 2), (2, 2, 4), (2, 2, 4)) if args.short else ((2, 2, 4), (4, 4, 4), (4, 4, 8))
    cells = [
        alloy(shape, args.short, args.log_z if k == 2 else None) for k, shape in enumerate(shapes)
    ]
    large, n, rows = cells[2], args.samples, []
    for k, path, settings in ((1, args.cuau64, FROM_64), (0, args.cuau16, FROM_16)):
        small = cells[k]
        if args.short and k == 1:
            continue
        name = f"from {small.lattice.n_sites} sites"
        trained = train(small, args.seconds, args.seed, path)
        rows.append(measured(f"{name}, used directly", trained.model, large, n, args.seed))
        if not np.isfinite(large.log_z).all():  # the first line is that of the better model
            own = np.where(np.isfinite(large.log_z), large.log_z, rows[0]["log_z"])
            large = replace(large, log_z=own)
        settings = [(1, "raster", 0)] if args.short else settings
        rows += windows(name, trained, small, large, settings, n, args.seed)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--samples", type=int, default=200, help="draws a condition")
    parser.add_argument("--seconds", type=float, default=300.0, help="CPU seconds of training each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", type=Path, help="model of 10 x 10: read, or trained and kept")
    parser.add_argument("--bound", type=Path, help="the same for the multilayer perceptron")
    parser.add_argument("--cuau16", type=Path, help="the same for 2 x 2 x 4 Cu-Au")
    parser.add_argument("--cuau64", type=Path, help="the same for 4 x 4 x 4 Cu-Au")
    parser.add_argument("--log-z", help="JSON file of large_reference.py for 128 sites")
    parser.add_argument("--out", help="JSON file")
    parser.add_argument("--short", action="store_true", help="a few seconds, meaningless figures")
    args = parser.parse_args()
    one_thread()
    warnings.simplefilter("ignore", category=UserWarning)
    if args.short:
        args.seconds, args.samples = 0.5, 10
    figures: dict = {"seconds": args.seconds, "seed": args.seed, "published_kl_gap": PUBLISHED}
    for part in args.parts:
        figures[part] = cuau_part(args) if part == "cuau" else ising_part(args, part == "bound")
        write_json(args.out, "windows", figures)
    if "cuau" in args.parts:
        note = args.log_z or "the estimate of the model of 4 x 4 x 4 used directly"
        figures["cuau_log_z"] = note
        print(f"Cu-Au: ln Z from {note}")
        write_json(args.out, "windows", figures)


if __name__ == "__main__":
    main()
