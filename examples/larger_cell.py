"""Train on small cells, sample a large one, stay exact.

    python examples/larger_cell.py --figure cells.png    # three minutes, 128 sites
    python examples/larger_cell.py --short               # seconds, 16 sites

A model of Cu-Au is trained on cells of 16 and 64 sites and used for one of 128. Pilot draws decide
at every condition whether the model's draws and their weights are enough or have to be annealed,
and the reason is printed. Averages are compared with compiled single-site chains of the large cell.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from clease_nn import Chains, Conditions, Configurations, NeuralSGCSampler, averages
from clease_nn.hosts.clease.examples import cuau_emt_atoms
from clease_nn.warnings import CleaseNNWarning

TEMPERATURES = (300.0, 450.0, 700.0)
C1 = -0.02  # eV: AuCu3 is stable below about 380 K


def main(argv: Sequence[str] | None = None) -> dict:
    """Run the example; its figures, for those who call it."""
    args = _arguments().parse_args(argv)
    if args.short:
        warnings.simplefilter("ignore", CleaseNNWarning)  # a few steps make no good model
    size, cells = ((2, 2, 4), [(2, 2, 2)]) if args.short else ((4, 4, 8), [(2, 2, 4), (4, 4, 4)])
    n = 100 if args.short else 1000
    mc = NeuralSGCSampler(cuau_emt_atoms(size), 450, symbols=["Au", "Cu"], seed=args.seed)
    budget = {"max_steps": 30, "validation_samples": 16} if args.short else {
        "max_seconds": args.seconds
    }  # fmt: skip
    trained = mc.fit(
        temps=(250, 900), chem_pots={"c1_0": (-0.05, 0.03)}, train_on=cells, seed=args.seed,
        progress=not args.short, **budget,
    )  # fmt: skip
    print(
        f"trained on cells of {trained.metadata['cells']} sites in "
        f"{trained.metadata['training_seconds']:.0f} s, used for {mc.lattice.n_sites}"
    )
    drawn = []
    for temperature in TEMPERATURES:
        at = {"temp": temperature, "chem_pot": {"c1_0": C1}}
        print(f"\n{mc.route(n, **at)}")
        drawn.append(mc.sample(n, **at))
    found = averages(_together(drawn))
    chains = averages(_chains(mc, found.conditions, 200 if args.short else 2000))
    print(f"\n{'T (K)':>6} {'':>8} {'<E> (eV/site)':>24} {'x(Au)':>20} {'-kT ln Z (eV/site)':>26}")
    for a, b in zip(found, chains, strict=True):
        potential = a.grand_potential_per_site
        print(f"{a.temperature:6.0f} {'model':>8} {_row(a)} {_pair(potential):>26}")
        print(f"{'':6} {'chains':>8} {_row(b)}")
    if args.figure is not None:
        _figure(args.figure, drawn)
        print(f"\nsamples drawn to {args.figure}")
    z = [(a.energy.value - b.energy.value) / np.hypot(a.energy.error, b.energy.error)
         for a, b in zip(found, chains, strict=True)]  # fmt: skip
    return {"z": z, "ness": [a.ness for a in found]}


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="small cells, a few seconds")
    parser.add_argument("--seconds", type=float, default=120, help="of training (default 120)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--figure", type=Path, help="where to draw samples, such as cells.png")
    return parser


def _together(drawn: list[Configurations]) -> Configurations:
    """Rows of all routes; annealed ones were not drawn in passes."""
    return Configurations.cat(replace(c, step=None) for c in drawn)


def _chains(mc: NeuralSGCSampler, conditions: Conditions, sweeps: int) -> Configurations:
    """Heat-bath chains of the large cell, 64 from random starts at each condition."""
    chains = Chains(mc.ensemble, mc.lattice, conditions.repeat(64), seed=2)
    chains.sweep(sweeps // 2)
    rows = []
    for _ in range(20):
        chains.sweep(max(1, sweeps // 20))
        rows.append(chains.configurations())
    c = Configurations.cat(rows)
    order = torch.argsort(c.chain, stable=True)
    return c[order]


def _row(a) -> str:
    return f"{_pair(a.energy / a.n_sites):>24} {_pair(a.composition[0]):>20}"


def _pair(estimate) -> str:
    return str(estimate).split(" (")[0]


def _figure(path: Path, drawn: list[Configurations]) -> None:
    from matplotlib.figure import Figure

    from clease_nn.plotting import sampled_configurations

    figure = Figure(figsize=(7.2, 6.0), dpi=150, layout="constrained")
    sampled_configurations(figure.subplots(len(drawn), 4), _together(drawn))
    figure.savefig(path)


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
