"""Reproduce the tables of the papers on autoregressive and marginalization models.

A cell is a system, a model, a network, an objective and a budget of CPU seconds. Every finished
cell appends one JSON line to the results file, which is part of the repository; tables and curves
are made from that file.

    python examples/benchmarks/published.py run --system ising5 --model any_order --network mlp \\
        --objective reinforce --seconds 600 --set width=1024
    python examples/benchmarks/published.py all      # the published table, about two hours
    python examples/benchmarks/published.py table
    python examples/benchmarks/published.py plot --out curves.png
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import tempfile
import time
import warnings
from pathlib import Path

from common import machine, one_thread
from published_cells import (
    MODELS,
    NETWORKS,
    NOTES,
    OBJECTIVES,
    PAPERS,
    PUBLISHED,
    SETS,
    Cell,
    build,
    check,
    hyperparameters,
    load_system,
)

RESULTS = Path(__file__).with_name("published.jsonl")
LOOKS = (1 / 16, 1 / 8, 1 / 4, 1 / 2)  # of the budget
LOOK_SAMPLES = 32  # draws a condition


# ------------------------------------------------------------------ running a cell
class Looks:
    """An objective that is watched: at marked times the model is evaluated, off the clock.

    ``fit`` averages the weights; so does this, since ``fit`` hands out its average only at the end.
    """

    def __init__(self, system, name: str, seconds: float, seed: int):
        self.system, self.name = system, name
        self.seed = seed
        self.marks = [share * seconds for share in LOOKS]
        self.paused = self.started = 0.0
        self.calls = -1  # the first call compiles, before the clock starts
        self.average = None
        self.curve: list[dict] = []

    def clock(self) -> float:
        """CPU seconds of this thread without those of looks."""
        return time.thread_time() - self.paused

    def watch(self, objective):
        """The same objective, watched."""

        def watched(model, batch):
            self._before(model)
            return objective(model, batch)

        return watched

    def _before(self, model) -> None:
        from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

        self.calls += 1
        begin = time.thread_time()
        if self.calls == 1:
            self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99))
            self.started = self.clock()
        elif self.calls > 1:
            self.average.update_parameters(model)
        if self.calls > 0 and self.marks and self.clock() - self.started >= self.marks[0]:
            elapsed = self.clock() - self.started
            self.marks = [m for m in self.marks if m > elapsed]
            figures = evaluate(
                self.average.module, self.system, self.name, LOOK_SAMPLES, 500 + self.seed
            )
            self.curve.append({"steps": self.calls - 1, **figures})
        self.paused += time.thread_time() - begin


def evaluate(model, system, name: str, n: int, seed: int) -> dict:
    """Figures of one set of conditions from ``n`` draws at each."""
    import numpy as np
    import torch

    from clease_nn.diagnostics import kl_gap
    from clease_nn.sampling import sample
    from clease_nn.statistics import normalized_ess

    conditions, log_z = system.conditions[name], system.log_z[name]
    rng = torch.Generator().manual_seed(seed)
    rows = conditions.repeat(n)
    drawn = sample(model, system.ensemble, system.lattice, rows, rng, precision="auto")
    log_f = drawn.log_target.view(-1, n)
    log_p = drawn.log_prob.view(-1, n)
    log_w = log_f - log_p - log_z[:, None]
    ness = np.array([normalized_ess(row.numpy()) for row in log_w])

    def error(values) -> float:
        return float((values.var(1) / n).sum().sqrt() / len(values))

    return {
        "conditions": len(conditions),
        "samples_per_condition": n,
        "log_p_minus_log_f": float((log_p - log_f).mean()),
        "minus_log_f": float(-log_f.mean()),
        "log_p": float(log_p.mean()),
        "exact": float(-log_z.mean()),
        "kl_gap": float(kl_gap(log_w, torch.zeros_like(log_z)).mean()),
        "kl_gap_error": error(torch.expm1(log_w) - log_w),
        "plain_gap": float(-log_w.mean()),
        "plain_gap_error": error(log_w),
        "kl_gap_max": float(kl_gap(log_w, torch.zeros_like(log_z)).max()),
        "ness_mean": float(ness.mean()),
        "ness_min": float(ness.min()),
    }


def run(cell: Cell, seed: int, samples: int, short: bool = False) -> dict:
    """Train a cell and evaluate it: the record of one finished cell."""
    import numpy as np

    from clease_nn.training import Stage, fit

    check(cell)
    settings = hyperparameters(cell)
    system = load_system(cell.system, short)
    try:
        model, stages, batch_size = build(cell, system, settings, seed)
    except ValueError as error:
        raise SystemExit(f"{cell.name}: {error}") from error
    looks = Looks(system, cell.system, cell.seconds, seed)
    trained = fit(
        system.ensemble,
        system.lattice,
        system.box,
        model=model,
        stages=[Stage(s.source, looks.watch(s.objective), s.share) for s in stages],
        batch_size=batch_size,
        learning_rate=settings["learning_rate"],
        max_seconds=cell.seconds,
        seed=seed,
        clock=looks.clock,
        validation_samples=2,
        progress=False,
    )
    done = trained.metadata
    steps, seconds = zip(
        (0, 0.0), *((h["step"], h["seconds"]) for h in done["history"]), strict=True
    )
    for point in looks.curve:  # fit's own count, which leaves its looks at NESS out as well
        point["cpu_seconds"] = float(np.interp(point["steps"], steps, seconds))
    record = {
        "system": cell.system,
        "model": cell.model,
        "network": cell.network,
        "objective": cell.objective,
        "seconds": cell.seconds,
        "seed": seed,
        "hyperparameters": settings,
        "short": short,
        "note": "short mode: a smaller cell, figures mean nothing" if short else system.note,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine(),
        "cpu_seconds": done["training_seconds"],
        "steps": done["steps"],
        "energy_evaluations": done["energy_evaluations"],
        "precision": done["precision"],
        "parameters": sum(p.numel() for p in trained.model.parameters()),
        "network_config": trained.model.config(),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "curve": looks.curve,
        "sets": {},
    }
    for name in system.conditions:
        started = time.thread_time()
        figures = evaluate(trained.model, system, name, samples, 1000 + seed)
        figures["evaluation_cpu_seconds"] = time.thread_time() - started
        record["sets"][name] = figures
    return record


def append(record: dict, results: Path) -> None:
    """One more line in the results file."""
    results.parent.mkdir(parents=True, exist_ok=True)
    with results.open("a", encoding="utf-8") as f:
        f.write(json.dumps(record) + "\n")


def load(results: Path) -> list[dict]:
    """Records of a results file; none if it is not there."""
    if not results.exists():
        return []
    return [json.loads(line) for line in results.read_text("utf-8").splitlines() if line.strip()]


def run_all(results: Path, samples: int) -> None:
    """The published cells that the results file does not hold yet, one after another."""
    for cell in PUBLISHED:
        wanted = (cell.system, cell.model, cell.network, cell.objective, cell.seconds)
        keys = ("system", "model", "network", "objective", "seconds")
        settings = hyperparameters(cell)
        if any(
            tuple(r[k] for k in keys) == wanted and r["hyperparameters"] == settings
            for r in load(results)
        ):
            print(f"{cell.name}: in {results} already", flush=True)
            continue
        print(f"{cell.name}: {cell.seconds:g} CPU seconds", flush=True)
        record = run(cell, 0, samples)
        append(record, results)
        print_rows([record])


# ------------------------------------------------------------------ tables and curves
HEADER = (
    "| model, network, objective | CPU s | steps | energies | parameters | draws | "
    "<log p - log f> | -<log f> | <log p> | KL gap | plain gap | NESS mean, min | papers |"
)


def row(record: dict, name: str) -> str:
    """One row of the table."""
    r, s = record, record["sets"][name]
    papers = PAPERS.get((r["model"], r["network"].removeprefix("masked_")), {}).get(name)
    if papers is None or r["short"] or r["objective"] not in ("reinforce", "marginal"):
        beside = ""
    elif name.startswith("ising"):
        beside = f"{papers:.2f} ({papers - s['exact']:+.2f})"
    else:
        beside = f"{papers:.2f}"
    cells = (
        f"{r['model']}, {r['network']}, {r['objective']}" + f", seed {r['seed']}" * bool(r["seed"]),
        f"{r['cpu_seconds']:.0f}",
        f"{r['steps']}",
        f"{r['energy_evaluations']:.2g}",
        f"{r['parameters']:,}",
        f"{s['samples_per_condition']}",
        f"{s['log_p_minus_log_f']:.4f}",
        f"{s['minus_log_f']:.3f}",
        f"{s['log_p']:.3f}",
        f"{s['kl_gap']:.4f} ± {s['kl_gap_error']:.4f}",
        f"{s['plain_gap']:.4f} ± {s['plain_gap_error']:.4f}",
        f"{s['ness_mean']:.3f}, {s['ness_min']:.3f}",
        beside,
    )
    return "| " + " | ".join(cells) + " |"


def print_rows(records: list[dict]) -> None:
    """Tables of all sets of conditions that the records hold, best KL gap last."""
    for name, title in SETS.items():
        chosen = [r for r in records if name in r["sets"]]
        if not chosen:
            continue
        note = chosen[0]["note"]
        print(f"\n**{title}**, exact limit {chosen[0]['sets'][name]['exact']:.4f}", end="")
        print(f" ({note})\n" if note else "\n")
        print(HEADER)
        print("|" + "---|" * (HEADER.count("|") - 1))
        for r in sorted(chosen, key=lambda r: (MODELS.index(r["model"]), r["network"])):
            print(row(r, name))
    print(flush=True)


def latest(records: list[dict]) -> list[dict]:
    """The last record of every cell, budget and seed."""
    keys = ("system", "model", "network", "objective", "seconds", "seed")
    return list({tuple(r[k] for k in keys): r for r in records}.values())


def plot(records: list[dict], out: Path) -> None:
    """KL gap against CPU time, one panel a system, every curve labelled at its end."""
    from matplotlib.figure import Figure

    # Okabe and Ito
    colours = {"fixed_order": "#009E73", "any_order": "#0072B2", "marginalization": "#D55E00"}
    lines = {"mlp": "-", "masked_mlp": "-", "transformer": "--", "painn": ":", "convolution": "-."}
    names = [n for n in SETS if any(r["system"] == n for r in records)]
    if not names:
        raise SystemExit("no records to plot; run a cell first")
    figure = Figure(figsize=(5.2 * len(names), 4.4), dpi=150, layout="constrained")
    for ax, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        ends = []
        for r in (r for r in records if r["system"] == name):
            points = [(p["cpu_seconds"], p["kl_gap"], p["kl_gap_error"]) for p in r["curve"]]
            last = r["sets"][name]
            points.append((r["cpu_seconds"], last["kl_gap"], last["kl_gap_error"]))
            t, gap, error = zip(*points, strict=True)
            low = [min(e, 0.7 * g) for e, g in zip(error, gap, strict=True)]
            ax.errorbar(
                t, gap, (low, error), marker="o", markersize=3.5, linewidth=1.3,
                color=colours[r["model"]], linestyle=lines[r["network"]],
            )  # fmt: skip
            label = f"{r['model'].replace('_', ' ')}, {r['network']}, {r['objective']}"
            ends.append((gap[-1], t[-1], label.replace("_", " "), colours[r["model"]]))
        ax.set(
            xscale="log", yscale="log", title=SETS[name], xlabel="CPU time (s)",
            ylabel="KL gap to the exact ln Z (nats)",
        )  # fmt: skip
        ax.set_xlim(right=ax.get_xlim()[1] * 12)  # room for the labels
        ends.sort()
        bottom, top = (math.log10(y) for y in ax.get_ylim())
        gap = 0.045 * (top - bottom)  # labels at least a line apart, and none above the frame
        places = [math.log10(end[0]) for end in ends]
        for k in range(1, len(places)):
            places[k] = max(places[k], places[k - 1] + gap)
        places[-1] = min(places[-1], top - gap)
        for k in reversed(range(len(places) - 1)):
            places[k] = min(places[k], places[k + 1] - gap)
        for (y, t, label, colour), place in zip(ends, places, strict=True):
            at = (t * 1.25, 10**place)
            ax.annotate(label, (t, y), at, fontsize=7, color=colour, va="center")
        ax.grid(alpha=0.3, which="major")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)
    print(f"written: {out}")


# ------------------------------------------------------------------ command line
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="two tiny cells, figures mean nothing")
    commands = parser.add_subparsers(dest="command")
    one = commands.add_parser("run", help="train and evaluate one cell")
    one.add_argument("--system", required=True, choices=[n for n in SETS if n != "cuau16_papers"])
    one.add_argument("--model", required=True, choices=MODELS)
    one.add_argument("--network", required=True, choices=sorted(NETWORKS))
    one.add_argument("--objective", required=True, choices=sorted(OBJECTIVES))
    one.add_argument("--seconds", type=float, required=True, help="CPU seconds of training")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
        help="hyperparameters; those of a published cell are taken over",
    )  # fmt: skip
    everything = commands.add_parser("all", help="the cells of the published table not yet run")
    for command in (one, everything):
        command.add_argument("--samples", type=int, default=1000, help="draws a condition")
    table = commands.add_parser("table", help="print the table")
    curves = commands.add_parser("plot", help="KL gap against CPU time")
    curves.add_argument("--out", type=Path, required=True, help="image file")
    for command in (one, everything, table, curves):
        command.add_argument("--results", type=Path, default=RESULTS, help="JSON lines")
    args = parser.parse_args()
    if args.short:
        short()
    elif args.command == "table":
        print_rows(latest(load(args.results)))
        print(NOTES)
    elif args.command == "plot":
        plot(latest(load(args.results)), args.out)
    elif args.command == "all":
        prepare()
        run_all(args.results, args.samples)
    elif args.command == "run":
        prepare()
        record = run(cell_of(args), args.seed, args.samples)
        append(record, args.results)
        print_rows([record])
    else:
        parser.error("say run, all, table or plot, or --short")


def cell_of(args) -> Cell:
    """The cell of the command line, on top of the settings of the published one if there is one."""
    settings = {}
    for c in PUBLISHED:
        if (c.system, c.model, c.network, c.objective) == (
            args.system, args.model, args.network, args.objective,
        ):  # fmt: skip
            settings = dict(c.settings)
    for item in args.set:
        key, sign, value = item.partition("=")
        if not sign:
            raise SystemExit(f"--set takes KEY=VALUE, got {item!r}")
        settings[key] = value
    cell = Cell(args.system, args.model, args.network, args.objective, args.seconds, settings)
    check(cell)
    hyperparameters(cell)
    if args.seconds <= 0 or args.samples < 2:
        raise SystemExit("--seconds must be positive and --samples at least 2")
    return cell


def prepare() -> None:
    """One thread, and no warnings about models that are meant to be compared, not used."""
    one_thread()
    warnings.simplefilter("ignore", category=UserWarning)


def short() -> None:
    """Two tiny cells through everything, in a temporary results file."""
    prepare()
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "published.jsonl"
        for cell in (
            Cell("ising5", "any_order", "convolution", "cross_entropy", 0.5),
            Cell("ising5", "any_order", "mlp", "reinforce", 0.5, {"width": 32, "layers": 2}),
        ):
            append(run(cell, 0, 20, short=True), results)
        print_rows(latest(load(results)))
        plot(load(results), Path(folder) / "curves.png")
    print(NOTES)


if __name__ == "__main__":
    main()
