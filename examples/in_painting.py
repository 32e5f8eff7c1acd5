"""An ordered nucleus in a Cu-Au crystal: how probable it is, and what it does to its surroundings.

    python examples/in_painting.py            # two minutes
    python examples/in_painting.py --short    # 16 sites, seconds

One gold atom and its twelve nearest neighbours, all copper, are the nucleus of the ordered phase
AuCu3, in which gold atoms are second neighbours. The sites of the nucleus are held, the model
draws all others: at a temperature where the crystal is ordered and at one where it is not. The
mean weight of such draws over that of free ones is the probability of the nucleus; the weights
correct the shares of gold on the shells around it.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from ase.units import kB
from matplotlib.figure import Figure

from clease_nn import Conditions, NeuralSGCSampler, diagnostics, plotting, thermodynamics
from clease_nn.hosts.clease.examples import cuau_emt_atoms
from clease_nn.plotting.style import MARKERS, PALETTE, above, clean, legend
from clease_nn.sampling import complete, held, sample
from clease_nn.warnings import CleaseNNWarning

TEMPERATURES = (250.0, 500.0)  # K: AuCu3 orders at 380 K
C1_0 = -0.008  # eV, where AuCu3 is stable
SHELLS = 5


def main(argv: Sequence[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="a small cell, a few seconds")
    parser.add_argument("--seconds", type=float, default=60.0, help="of training")
    parser.add_argument("--samples", type=int, default=1000, help="at each temperature")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the picture")
    args = parser.parse_args(argv)
    if args.short:
        warnings.simplefilter("ignore", CleaseNNWarning)  # of what 100 steps have not learnt
    n = 200 if args.short else args.samples

    atoms = cuau_emt_atoms((2, 2, 4) if args.short else (4, 4, 4))
    mc = NeuralSGCSampler(atoms, 400, symbols=["Au", "Cu"])
    trained = mc.fit(
        temps=(200, 600),
        chem_pots={"c1_0": (-0.03, 0.012)},
        max_seconds=None if args.short else args.seconds,
        max_steps=100 if args.short else None,
        seed=1,
        validation_samples=16 if args.short else 64,
        progress=not args.short,
    )
    at: Conditions = mc.line("c1_0").at(TEMPERATURES, C1_0)

    # the nucleus, as any Atoms object with the atoms that are to be held
    centre = 0
    distance = atoms.get_distances(centre, np.arange(len(atoms)), mic=True)
    nearest = distance[distance > 0.1].min()
    nucleus = atoms.copy()
    nucleus.symbols[:] = "Cu"
    nucleus.symbols[centre] = "Au"
    mask = distance < 1.1 * nearest

    rng = torch.Generator().manual_seed(2)
    partial = held(mc.lattice, at.repeat(n), atoms=nucleus, keep=mask)
    around = complete(trained.model, mc.ensemble, partial, rng)
    free = sample(trained.model, mc.ensemble, mc.lattice, at.repeat(n), rng)

    ln_p = thermodynamics.log_probability(around, free)
    given = partial.occupations[0]
    present = ((free.occupations == given) | (given < 0)).all(1)
    counted = thermodynamics.mean(free, present)
    shells = list_of_shells(distance)
    gold = {
        "around the nucleus": gold_on_shells(around, shells),
        "around any site": gold_on_shells(free, shells[:1] * len(shells), everywhere=True),
    }

    print(f"\nnucleus of {int(mask.sum())} sites of {len(atoms)}, c1_0 = {C1_0} eV")
    print(f"{'T (K)':>6} {'ln P(nucleus)':>16} {'-kT ln P (eV)':>16} {'counted ln P':>14}")
    for k, t in enumerate(TEMPERATURES):
        work = ln_p[k] * (-kB * t)
        seen = counted[k]
        known = seen.value > 3 * seen.error > 0
        text = f"{np.log(seen.value):.2f}" if known else "too rare"
        print(f"{t:6.0f} {pair(ln_p[k]):>16} {pair(work):>16} {text:>14}")
    print("\nshare of gold by distance from the centre, held and drawn around it")
    print(f"{'T (K)':>6} " + " ".join(f"{distance[s].mean():>12.2f} A" for s in shells))
    for k, t in enumerate(TEMPERATURES):
        row = gold["around the nucleus"]
        print(f"{t:6.0f} " + " ".join(f"{pair(row[k, j]):>14}" for j in range(len(shells))))
    print(f"\n{diagnostics.shortfall(around)}")

    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "in_painting.png"
    picture(around, gold, [distance[s].mean() for s in shells]).savefig(path, dpi=110)
    print(f"picture: {path}")
    return {
        "ln_p": ln_p.value.tolist(),
        "ln_p_error": ln_p.error.tolist(),
        "gold": gold["around the nucleus"].value.tolist(),
    }


def list_of_shells(distance: np.ndarray) -> list[np.ndarray]:
    """Masks of the atoms at each distance from the centre, the nearest first."""
    values = np.unique(distance.round(3))[1 : SHELLS + 1]
    return [np.abs(distance - v) < 2e-3 for v in values]


def gold_on_shells(c, shells: list[np.ndarray], everywhere: bool = False):
    """Weighted share of gold on each shell, Estimate (temperatures, shells)."""
    is_gold = (c.occupations == c.lattice.species.index("Au")).double().numpy()
    columns = [is_gold.mean(1) if everywhere else is_gold[:, s].mean(1) for s in shells]
    return thermodynamics.mean(c, np.stack(columns, 1))


def pair(e) -> str:
    return f"{float(e.value):.3f}+-{float(e.error):.3f}"


def picture(around, gold: dict, distances: list[float]) -> Figure:
    """A completion at each temperature, and gold against the distance from the centre."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    *crystals, ax = figure.subplots(1, 3, width_ratios=[1, 1, 1.5])
    n = len(around) // len(TEMPERATURES)
    best = [k * n + int(around.log_weight[k * n : (k + 1) * n].argmax()) for k in range(2)]
    titles = [f"{t:.0f} K" for t in TEMPERATURES]
    plotting.structures(crystals, around[best], titles=titles)
    for k, t in enumerate(TEMPERATURES):
        row, bulk = gold["around the nucleus"][k], gold["around any site"][k]
        ax.errorbar(
            distances, row.value, row.error, marker=MARKERS[k], color=PALETTE[k], capsize=2,
            label=f"{t:.0f} K",
        )  # fmt: skip
        ax.axhline(bulk.value[0], color=PALETTE[k], ls=":", lw=1, label=f"{t:.0f} K, crystal")
    ax.set(xlabel="distance from the centre (angstrom)", ylabel="share of gold", ylim=(-0.03, 1.03))
    legend(clean(ax), **above(ax))
    return figure


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
