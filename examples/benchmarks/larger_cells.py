"""Train on a small cell, draw from a larger one; then train on the larger one as well.

Parts: ``ising`` (10 x 10, then 20 x 20; exact ln Z of the 25 conditions of the literature from the
folder CLEASE_NN_REFERENCE) and ``cuau`` (cells that grow to 64 sites, then 128; ln Z from two
files of ``large_reference.py``, where its two halves agree). Every seed trains a model, draws from
its own cell (Cu-Au) and from the larger one, trains there as well and draws again: at every
condition, with KL gap, NESS and the cost of a draw; the last lines are medians.

    python examples/benchmarks/larger_cells.py ising --models models --out ising.json
    python examples/benchmarks/larger_cells.py cuau --log-z log_z_64.json log_z_128.json
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from ase.units import kB
from common import machine, one_thread, write_json
from training import cuau

from clease_nn.conditions import ConditionRange, Conditions
from clease_nn.diagnostics import kl_gap
from clease_nn.energies.ising import ising_conditions, ising_energy, kaufman_log_z
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.io import TrainedModel
from clease_nn.lattice import Lattice
from clease_nn.models import AbstractOrder, BySize, Coloured
from clease_nn.sampling import sample
from clease_nn.sources import MixedSource, ParallelTemperingSource
from clease_nn.statistics import normalized_ess
from clease_nn.training import Stage, fit

PARTS = ("ising", "cuau")
NAMES = ("own", "transfer", "trained")


@dataclass
class Cell:
    """A supercell with its energy, what is asked for there, and reference ln Z (nan: none).

    ``log_z_error`` is half of what separates two estimates of a reference, 0 where it is exact.
    """

    name: str
    lattice: Lattice
    ensemble: SemiGrandCanonical
    box: ConditionRange
    conditions: Conditions
    log_z: np.ndarray
    log_z_error: np.ndarray


def ising(size: int, short: bool) -> Cell:
    """L x L spins at the conditions of the literature."""
    lattice = Lattice.square(size)
    box = ConditionRange((1.5 / kB, 3.5 / kB), [-0.4], [0.4], [[-1.0, 1.0]])
    folder = os.environ.get("CLEASE_NN_REFERENCE")
    rows = []
    if folder and not short:
        with open(Path(folder) / "ising_exact.csv", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if int(row["L"]) == size]
    if rows:
        kT, field, log_z = (
            np.array([float(row[name]) for row in rows]) for name in ("kT", "field", "logZ")
        )
    else:
        kT = np.array([1.5, 2.0, 2.5, 3.0, 3.5])
        field = np.zeros(5)
        log_z = np.array([kaufman_log_z(size, size, t) for t in kT])
    ensemble = SemiGrandCanonical(ising_energy(lattice))
    name = f"Ising {size} x {size}"
    conditions = ising_conditions(kT, field)
    return Cell(name, lattice, ensemble, box, conditions, log_z, np.zeros(len(log_z)))


def alloy(size: tuple[int, int, int], short: bool, file: str | None) -> Cell:
    """Cu-Au at 99 conditions."""
    lattice, ensemble, box, conditions, note = cuau(size)
    log_z, error = np.full(len(conditions), np.nan), np.zeros(len(conditions))
    if file:
        for row in json.loads(Path(file).read_text())["figures"]["conditions"]:
            near = (conditions.temperature - row["temperature"]).abs() < 1e-6
            c1_0 = row["c1_0"] * torch.as_tensor(box.axes[0])
            near &= (conditions.mu - c1_0).abs().max(1).values < 1e-9
            if row["agree"]:
                log_z[near.numpy()] = np.mean(row["log_z"])
                error[near.numpy()] = np.ptp(row["log_z"]) / 2
    if short:
        conditions, log_z, error = conditions[::25], log_z[::25], error[::25]
    name = f"Cu-Au {lattice.n_sites} sites ({note})"
    return Cell(name, lattice, ensemble, box, conditions, log_z, error)


def train(cell: Cell, seconds: float, seed: int, path: Path | None, **options) -> TrainedModel:
    """A model trained for so many CPU seconds of one thread, or the one that is saved there."""
    if path is not None and path.exists():
        return TrainedModel.load(path)
    trained = fit(
        cell.ensemble,
        cell.lattice,
        cell.box,
        max_seconds=seconds,
        seed=seed,
        clock=time.thread_time,
        progress=False,
        validation_samples=32,
        **options,
    )
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        trained.save(path)
    return trained


def evaluate(trained: TrainedModel, cell: Cell, n: int, seed: int, order: AbstractOrder) -> dict:
    """KL gap, NESS, catastrophic draws and cost of a draw over all conditions."""
    rng = torch.Generator().manual_seed(1000 + seed)
    model = trained.model.with_order(order)
    log_w, counts, passes = [], [], []
    started = time.thread_time()
    for k in range(len(cell.conditions)):
        drawn = sample(
            model, cell.ensemble, cell.lattice, cell.conditions[k].repeat(n), rng,
            precision="auto",
        )  # fmt: skip
        log_w.append(drawn.log_weight)
        counts.append(drawn.counts()[:, 0])
        passes.append(float(drawn.step.max(1).values.double().mean()) + 1)
    seconds = time.thread_time() - started
    log_w = torch.stack(log_w)
    own = torch.logsumexp(log_w, 1) - np.log(n)
    known = torch.as_tensor(np.isfinite(cell.log_z))
    reference = torch.where(known, torch.nan_to_num(torch.as_tensor(cell.log_z)), own)
    gap = kl_gap(log_w, reference)
    spread = torch.exp(log_w - own[:, None]).std(1) / np.sqrt(n)
    ness = np.array([normalized_ess(row.numpy()) for row in log_w])
    low = log_w < log_w.median(1, keepdim=True).values - 10
    out = {
        "samples_per_condition": n,
        "conditions": len(gap),
        "with_reference": int(known.sum()),
        "kl_gap_nats": float(gap.mean()),
        "kl_gap_with_reference_nats": float(gap[known].mean()) if known.any() else None,
        "kl_gap_max_nats": float(gap.max()),
        "ness_mean": float(ness.mean()),
        "ness_min": float(ness.min()),
        "catastrophic": int(low.sum()),
        "milliseconds_per_sample": 1e3 * seconds / log_w.numel(),
        "passes": float(np.mean(passes)),
        "kl_gap_map": gap.tolist(),
        "ness_map": ness.tolist(),
        "log_z": own.tolist(),
        "log_z_error": spread.tolist(),
        "composition": [
            float((torch.softmax(row, 0) * x).sum()) / cell.lattice.n_sites
            for row, x in zip(log_w, counts, strict=True)
        ],
    }
    if known.any():
        error = np.hypot(spread.numpy(), np.maximum(cell.log_z_error, 1e-3))
        z = ((own - reference).numpy() / error)[known.numpy()]
        out["log_z_z_rms"] = float(np.sqrt((z**2).mean()))
    return out


def shown(name: str, seed: int, r: dict) -> str:
    return (
        f"seed {seed} {name}: KL gap {r['kl_gap_nats']:.4f} nats, NESS mean {r['ness_mean']:.4f} "
        f"minimum {r['ness_min']:.3f}, {r['catastrophic']} catastrophic of "
        f"{r['conditions'] * r['samples_per_condition']}, {r['passes']:.0f} passes, "
        f"{r['milliseconds_per_sample']:.1f} ms a sample"
    )


def growing(cells: list[Cell], shares: tuple[float, ...], seed: int) -> list[Stage]:
    """One stage a cell, from small to large: what is learnt on few sites costs little there."""
    sources = [
        ParallelTemperingSource(
            c.ensemble, c.lattice, c.box, seed=np.random.SeedSequence([seed, c.lattice.n_sites])
        )
        for c in cells
    ]
    return [Stage(source, share=share) for source, share in zip(sources, shares, strict=True)]


def mixed(small: Cell, large: Cell, share: float, seed: int) -> list[Stage]:
    """One stage in which ``share`` of the batches are of the large cell, the rest of the small."""
    systems = [(c.ensemble, c.lattice) for c in (small, large)]
    source = MixedSource.tempering(
        systems,
        large.box,
        [1 - share, share],
        seed=np.random.SeedSequence([seed, 7]),
        start="ordered",
    )
    return [Stage(source)]


@dataclass(frozen=True)
class Plan:
    """The cells of a part, and the CPU seconds that are spent on them."""

    growing: list[Cell]
    """Cells of the first training, and the shares of its budget."""
    shares: tuple[float, ...]
    large: Cell
    """The cell that is drawn by transfer, and then trained on."""
    seconds: tuple[float, float]


def plan(part: str, short: bool, log_z: tuple[str | None, str | None]) -> Plan:
    if part == "ising":
        small, large = (ising(size, short) for size in ((4, 6) if short else (10, 20)))
        return Plan([small], (1.0,), large, (300, 100))
    sizes = [(2, 2, 4), (2, 4, 4), (4, 4, 4), (4, 4, 8)]
    if short:
        sizes, log_z = [(2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 4)], (None, None)
    *first, large = (
        alloy(size, short, file) for size, file in zip(sizes, (None, None, *log_z), strict=True)
    )
    return Plan(first, (0.1, 0.25, 0.65), large, (380, 200))


def draw_samples(trained, cell: Cell, order: AbstractOrder, spins: bool, path: str) -> None:
    """Samples of some conditions, chosen by their weights."""
    from matplotlib.figure import Figure

    from clease_nn.plotting import sampled_configurations

    if spins:
        kT = (1.5, 2.269, 2.5, 3.5)
        at = ising_conditions(kT, [0.0] * 4)
        options = {"labels": [f"kT = {t:g}" for t in kT], "names": ["up", "down"]}
    else:
        axis, temperatures = torch.as_tensor(cell.box.axes[0]), (200, 400, 600, 1000)
        at = Conditions(temperatures, torch.stack([0.03 * axis] * 4))
        options = {}
    rng = torch.Generator().manual_seed(5)
    model = trained.model.with_order(order)
    c = sample(model, cell.ensemble, cell.lattice, at.repeat(64), rng, precision="auto")
    figure = Figure(figsize=(7.2, 7.2), dpi=120, layout="constrained")
    sampled_configurations(figure.subplots(4, 4), c, **options)
    figure.savefig(path)
    print(f"written: {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", nargs="?", default="ising", choices=PARTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=500, help="draws a condition")
    parser.add_argument("--seconds", type=float, nargs=2, help="CPU seconds on each cell")
    parser.add_argument("--models", type=Path, help="folder: models are kept and found there")
    parser.add_argument("--distance", type=float, help="of the coloured order above 64 sites")
    parser.add_argument("--log-z", nargs=2, default=(None, None), help="of 64 and 128 sites, JSON")
    parser.add_argument("--only", nargs="+", default=NAMES, choices=NAMES, help="draws to make")
    parser.add_argument("--figure", help="draw samples of the last model to this file")
    parser.add_argument("--out", help="JSON file")
    parser.add_argument("--short", action="store_true", help="a few seconds, meaningless figures")
    args = parser.parse_args()
    one_thread()
    warnings.simplefilter("ignore", category=UserWarning)
    many = Coloured() if args.distance is None else Coloured(args.distance)
    order = BySize(few=64, many=many)
    work = plan(args.part, args.short, args.log_z)
    seconds = tuple(args.seconds or work.seconds)
    if args.short:
        seconds, args.seeds, args.samples = (2.0, 2.0), [0], 20
    small, large = work.growing[-1], work.large
    print(f"{args.part}: {small.name}, then {large.name}; AMX: {machine()['amx']}")
    print(f"{seconds[0]:g} and {seconds[1]:g} CPU seconds of training, one thread")
    runs = []
    for seed in args.seeds:
        run = {"seed": seed}

        def kept(which: str, seed=seed) -> Path | None:
            return args.models and args.models / f"{args.part}_{which}_{seed}.nn"

        def look(name: str, trained: TrainedModel, cell: Cell, seed=seed, run=run) -> None:
            if name in args.only:
                run[name] = evaluate(trained, cell, args.samples, seed, order)
                print(shown(name, seed, run[name]), flush=True)

        stages = growing(work.growing, work.shares, seed)
        trained = train(small, seconds[0], seed, kept("small"), stages=stages, focus=True)
        if args.part == "cuau":
            look("own", trained, small)
        look("transfer", trained, large)
        if "trained" in args.only:
            trained = train(
                large, seconds[1], seed, kept("large"), model=trained.model, learning_rate=1e-3,
                stages=mixed(small, large, 0.5, seed), focus=True,
            )  # fmt: skip
            look("trained", trained, large)
        runs.append(run)
    figures = {"part": args.part, "order": order.config(), "seconds": seconds, "runs": runs}
    for name in NAMES:
        for key in ("kl_gap_nats", "ness_mean", "ness_min", "catastrophic", "passes"):
            values = [run[name][key] for run in runs if name in run]
            if values:
                figures[f"{name}_{key}"] = float(np.median(values))
                print(f"median {name} {key}: {np.median(values):.4g} ({np.round(values, 4)})")
    write_json(args.out, "larger_cells", figures)
    if args.figure:
        draw_samples(trained, large, order, args.part.startswith("ising"), args.figure)


if __name__ == "__main__":
    main()
