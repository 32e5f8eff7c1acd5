"""Exact averages of large cells by refinement: effective samples a second against CLEASE's chains.

    python examples/benchmarks/refine.py --model FILE.nn [--short] [--out FILE]

Cu-Au (the literature's expansion where CLEASE_NN_REFERENCE names it, else the project's own) on
512 and 1000 sites, a model of a smaller cell, one thread. One condition lies far from transitions,
two on the line where CuAu disorders, at the chemical potential where the composition of short
chains fluctuates most. Compared are, at each condition and from the same draws of the model,

* ``refine``: 64 chains as planned by its burn-in;
* ``blocks``: block moves alone; their autocorrelation time is read off the change in one move,
  which overlooks slower parts: an upper bound;
* ``chains``: compiled heat-bath sweeps of 64 chains alone;
* ``clease``: steps a second of ``SGCMonteCarlo`` itself; its autocorrelation time in steps is that
  of the compiled Metropolis chains, which make the same moves with the same probabilities.

An effective sample is one of the energy or of the composition, whichever has fewer, in seconds of
CPU. ``crossing`` says whether all chains together last 50 autocorrelation times; where they do not,
figures are upper bounds. The model's draws, adaptation and burn-in are paid once: ``once_s``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from clease.montecarlo import SGCMonteCarlo
from common import one_thread, write_json
from training import cuau

from clease_nn.conditions import Conditions
from clease_nn.hosts.clease.examples import cuau_emt_atoms, cuau_emt_data
from clease_nn.io import TrainedModel
from clease_nn.models import AnyOrderARM, Coloured
from clease_nn.montecarlo import Chains
from clease_nn.networks import LatticeConvolution
from clease_nn.sampling import Refinement, sample
from clease_nn.statistics import integrated_autocorrelation_time
from clease_nn.warnings import CleaseNNWarning

FAR = (1000.0, 0.03)
NEAR = {550.0: (0.010, 0.022), 650.0: (0.002, 0.014)}  # c1_0 between which CuAu disorders
CHAINS = 64


def effective(series: np.ndarray) -> tuple[float, bool]:
    """Effective samples of (time, chains, quantities), the fewest; whether there are enough."""
    size = series.shape[0] * series.shape[1]
    times = [
        integrated_autocorrelation_time(v) for v in series.transpose(2, 0, 1) if np.ptp(v) > 1e-9
    ]
    tau = max(times, default=1.0)
    return size / tau, size >= 50 * tau and series.shape[0] >= 10 * tau


def observed(chains: Chains) -> np.ndarray:
    """Energy and atoms of the first species, (chains, 2)."""
    return np.column_stack([chains.energy, chains.counts()[:, 0]])


def swept(chains: Chains, method: str, every: int, seconds: float) -> dict:
    """Compiled chains alone for some CPU seconds, looked at every few sweeps."""
    rows, began = [], time.thread_time()
    while time.thread_time() - began < seconds or len(rows) < 16:
        chains.sweep(every, method)
        rows.append(observed(chains))
    used = time.thread_time() - began
    ess, crossing = effective(np.array(rows))
    return {
        "sweeps": len(rows) * every * len(chains),
        "effective_per_second": ess / used,
        "effective_per_sweep": ess / (len(rows) * every * len(chains)),
        "crossing": crossing,
        "energy": float(np.mean([r[:, 0] for r in rows])),
        "seconds": used,
    }


def refined(refinement: Refinement, seconds: float) -> dict:
    """Steps of a refinement that is burnt in, for some CPU seconds."""
    rows, began = [], time.thread_time()
    refinement.moves.reset_counts()
    while time.thread_time() - began < seconds or len(rows) < 16:
        refinement.step()
        rows.append(observed(refinement.chains))
    used = time.thread_time() - began
    ess, crossing = effective(np.array(rows))
    return {
        "steps": len(rows),
        "sweeps_a_step": refinement.sweeps,
        "effective_per_second": ess / used,
        "crossing": crossing,
        "energy": float(np.mean([r[:, 0] for r in rows])),
        "variance": np.array(rows).reshape(-1, 2).var(0).tolist(),
        "seconds": used,
        "block_moves": refinement.moves.report(),
    }


def blocks(refinement: Refinement, moves: int, variance) -> dict:
    """Block moves alone, of 16 of the chains."""
    c, some = refinement.chains.configurations(), torch.arange(16)
    refinement.moves.reset_counts()
    changes, began = np.zeros(2), time.thread_time()
    for _ in range(moves):
        before = np.column_stack([c.energy, c.counts()[:, 0]])
        c, _ = refinement.moves(c, some)
        after = np.column_stack([c.energy, c.counts()[:, 0]])
        changes += ((after - before)[some] ** 2).mean(0)
    used = time.thread_time() - began
    rho = np.clip(1 - changes / moves / (2 * np.array(variance) + 1e-300), 0.0, 1 - 1e-9)
    ess = 16 * moves * float(((1 - rho) / (1 + rho)).min())
    return {
        "moves": 16 * moves,
        "effective_per_second": ess / used,
        "crossing": True,
        "seconds": used,
        "block_moves": refinement.moves.report(),
    }


def transition(ensemble, cell, axes, temp: float, between, sweeps: int) -> float:
    """c1_0 at which the composition of short chains fluctuates most."""
    x = np.linspace(*between, 16)
    chains = Chains(
        ensemble, cell, Conditions.grid([temp], x[:, None] @ axes).repeat(CHAINS // 16), seed=1
    )
    chains.sweep(sweeps)
    rows = []
    for _ in range(64):
        chains.sweep(max(1, sweeps // 64))
        rows.append(chains.counts()[:, 0])
    variance = np.array(rows).reshape(64, 16, -1).transpose(1, 0, 2).reshape(16, -1).var(1)
    return float(x[variance.argmax()])


def host_rate(atoms, temp: float, x: float, steps: int) -> float:
    """Steps a second of CLEASE itself."""
    random.seed(1)
    mc = SGCMonteCarlo(atoms, temp, ["Au", "Cu"])
    mc.run(500, chem_pot={"c1_0": x})
    began = time.thread_time()
    mc.run(steps, chem_pot={"c1_0": x})
    rate = steps / (time.thread_time() - began)
    mc.reset_eci()
    return rate


def condition(model, ensemble, cell, axes, atoms, temp, x, options) -> dict:
    """All routes at one condition."""
    at = Conditions([temp], np.array([[x]]) @ axes).repeat(CHAINS)
    began = time.thread_time()
    rng = torch.Generator().manual_seed(0)
    start = sample(model, ensemble, cell, at, rng, batch_size=16, precision="auto")
    drawing = time.thread_time() - began
    refinement = Refinement(model, ensemble, start, 1, batch_size=16)
    refinement.equilibrate(progress=False)
    once = time.thread_time() - began
    plan = refinement.burn_in["conditions"][0]
    routes = {"refine": refined(refinement, options["seconds"])}
    routes["blocks"] = blocks(refinement, options["block_moves"], routes["refine"]["variance"])
    every = max(1, round(plan["autocorrelation_sweeps"] / 4))
    for name, method in (("chains", "heat_bath"), ("clease", "metropolis")):
        chains = Chains(ensemble, cell, at, refinement.chains.occupations.copy(), seed=2)
        chains.sweep(20 * every, method)
        routes[name] = swept(chains, method, every, options["seconds"])
    rate = host_rate(atoms, temp, x, options["host_steps"])
    per_step = routes["clease"]["effective_per_sweep"] / cell.n_sites
    routes["clease"] |= {"steps_per_second": rate, "effective_per_second": rate * per_step}
    host = routes["clease"]["effective_per_second"]
    for route in routes.values():
        route["over_clease"] = route["effective_per_second"] / host
    figures = {"temperature": temp, "c1_0": x, "plan": plan, "drawing_s": drawing, "once_s": once}
    w = torch.softmax(start.log_weight, 0)
    figures["ness"] = float(1.0 / (w**2).sum() / len(w))
    print(
        f"{cell.n_sites:5d} sites {temp:5.0f} K {x:+.4f} eV: sweeps forget in "
        f"{plan['autocorrelation_sweeps']:.1f}, a block costs {plan['block_cost_sweeps']:.0f} of "
        f"them; NESS of {CHAINS} draws {figures['ness']:.3f}; once {once:.1f} s"
    )
    for name, r in routes.items():
        print(
            f"    {name:<8}{r['effective_per_second']:12.2f} effective/s {r['over_clease']:9.1f}x"
            + ("" if r["crossing"] else "  (too short: an upper bound)")
        )
    for r in routes["blocks"]["block_moves"]:
        if r["attempted"]:
            print(f"        {r['shape']:<7}{r['size']:5d} sites, {r['acceptance']:.2f} accepted")
    return figures | {"routes": routes}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a model trained on a smaller cell (.nn)")
    parser.add_argument("--short", action="store_true", help="a small cell, short chains")
    parser.add_argument("--out", help="JSON file to write")
    args = parser.parse_args()
    one_thread()
    warnings.simplefilter("ignore", CleaseNNWarning)
    if args.model is None and not args.short:
        parser.error("--model is needed, except with --short")
    sizes = [(2, 2, 4)] if args.short else [(8, 8, 8), (10, 10, 10)]
    options = (
        {"seconds": 0.05, "host_steps": 500, "block_moves": 4}
        if args.short
        else {"seconds": 4.0, "host_steps": 20_000, "block_moves": 8}
    )
    figures: dict = {"model": args.model, "chains": CHAINS, "conditions": []}
    for size in sizes:
        cell, ensemble, box, _, note = cuau(size)
        figures["expansion"] = note
        atoms = host_atoms(size)
        model = loaded(args.model, cell, box)
        points = [FAR]
        for temp, between in NEAR.items():
            sweeps = 64 if args.short else 1024
            points.append((temp, transition(ensemble, cell, box.axes, temp, between, sweeps)))
        for temp, x in points[: 2 if args.short else None]:
            figures["conditions"].append(
                {"sites": cell.n_sites}
                | condition(model, ensemble, cell, box.axes, atoms, temp, x, options)
            )
    ratios = [
        (c["temperature"] == FAR[0], c["routes"]["refine"]["over_clease"])
        for c in figures["conditions"]
    ]
    far, near = ([ratio for away, ratio in ratios if away is kind] for kind in (True, False))
    print(f"away from transitions at least {min(far):.0f}x (target 10), near {min(near):.1f}x (1)")
    write_json(args.out, "refine", figures)


def host_atoms(size):
    """The supercell with CLEASE's calculator and the expansion of :func:`training.cuau`."""
    data, folder = cuau_emt_data(), os.environ.get("CLEASE_NN_REFERENCE")
    if folder:
        eci = json.loads((Path(folder) / "cuau_eci.json").read_text())
        data = {**data, "eci": eci}
    return cuau_emt_atoms(size, data)


def loaded(path, cell, box):
    """The model, far sites drawn together; an untrained one where no file is given."""
    if path is None:
        return AnyOrderARM(LatticeConvolution(cell, box, channels=4, blocks=1), order=Coloured())
    model = TrainedModel.load(path).model
    return AnyOrderARM(model.network, order=Coloured()) if model.gate is None else model


if __name__ == "__main__":
    main()
