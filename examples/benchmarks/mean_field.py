"""How much of a conditional distribution physics alone knows: equal shares against the mean field.

Equilibrium configurations of Cu-Au on 64 sites with some sites known; the exact conditionals of
the unknown ones by heat-bath sweeps with the known sites clamped, in two independent halves, so
that the noise of the sweeps cancels on average. Printed: KL divergence a site, in nats, of softmax
of the physical logits of ``SemiGrandCanonical.fields`` with the unknown sites at equal shares and
at their mean field, and of a trained model.

    python examples/benchmarks/mean_field.py --model cuau64.nn --out mean_field.json
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from common import one_thread, write_json
from training import cuau

from clease_nn.conditions import ConditionRange
from clease_nn.configurations import Configurations
from clease_nn.io import TrainedModel
from clease_nn.lattice import UNKNOWN
from clease_nn.montecarlo import ParallelTempering, heat_bath_probabilities

C1_0 = -0.03
"""Chemical potential of CLEASE, eV: between Cu3Au and CuAu."""


def equilibrium(ensemble, lattice, box, temperatures, rows: int, steps: int, rng):
    """Configurations of tempered chains at the temperatures asked for, (temperatures, rows)."""
    narrow = ConditionRange(box.temperature, [C1_0 - 1e-3], [C1_0 + 1e-3], box.axes)
    chains = ParallelTempering(
        ensemble, lattice, narrow, shape=(32, 3), seed=int(rng.integers(2**31)), start="ordered"
    )
    for _ in range(steps):
        chains.step()
    kept = [[] for _ in temperatures]
    while min(len(k) for k in kept) < rows:
        for _ in range(5):
            chains.step()
        for found, t in zip(kept, temperatures, strict=True):
            nearest = int((chains.conditions.temperature - t).abs().argmin())
            found.append(chains.occupations[nearest].copy())
    at = [int((chains.conditions.temperature - t).abs().argmin()) for t in temperatures]
    return [
        Configurations(
            lattice, chains.conditions[k].repeat(rows), torch.as_tensor(np.array(found[:rows]))
        )
        for k, found in zip(at, kept, strict=True)
    ]


def divergences(c: Configurations, known, ensemble, model, sweeps: int, rng) -> dict[str, float]:
    """KL divergence a site of each approximation, binary alloys."""
    halves = [
        np.asarray(
            heat_bath_probabilities(
                ensemble, c.lattice, c.conditions, c.occupations, known, sweeps, rng
            )[0]
        )[..., 0]
        for _ in range(2)
    ]
    x = torch.where(torch.as_tensor(known), c.occupations, UNKNOWN).to(torch.int8)
    partial = Configurations(c.lattice, c.conditions, x)
    fields = ensemble.fields(partial)
    own = {"equal shares": fields[..., 2:], "mean field": fields[..., :2]}
    q = {name: torch.softmax(logits.double(), -1)[..., 0].numpy() for name, logits in own.items()}
    if model is not None:
        with torch.no_grad():
            q["model"] = model.log_conditionals(partial, fields)[..., 0].exp().numpy()
    p = sum(halves) / 2
    variance = np.maximum(p * (1 - p), 1e-3)
    return {
        name: float(((v - halves[0]) * (v - halves[1]) / variance / 2)[~known].mean())
        for name, v in q.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a model trained on this expansion")
    parser.add_argument("--rows", type=int, default=96, help="configurations")
    parser.add_argument("--sweeps", type=int, default=800, help="of each half")
    parser.add_argument("--out", help="JSON file")
    parser.add_argument("--short", action="store_true", help="a few seconds, meaningless figures")
    args = parser.parse_args()
    one_thread()
    size = (2, 2, 4) if args.short else (4, 4, 4)
    if args.short:
        args.rows, args.sweeps = 8, 20
    lattice, ensemble, box, _, note = cuau(size)
    model = TrainedModel.load(args.model).model.eval() if args.model else None
    rng = np.random.default_rng(0)
    temperatures = (600.0, 800.0, 1000.0, 1200.0)
    print(f"Cu-Au, {lattice.n_sites} sites, {note}, c1_0 = {C1_0} eV; KL divergence a site (nats)")
    table = []
    cells = equilibrium(
        ensemble, lattice, box, temperatures, args.rows, 20 if args.short else 400, rng
    )
    for c in cells:
        for share in (0.25, 0.5, 0.7, 0.9):
            number = round(share * lattice.n_sites)
            known = rng.random((args.rows, lattice.n_sites)).argsort(1).argsort(1) < number
            row = divergences(c, known, ensemble, model, args.sweeps, rng)
            at = float(c.conditions.temperature[0])
            table.append({"temperature": at, "known": number, **row})
            print(
                f"{at:5.0f} K, {number:3d} known: "
                + ", ".join(f"{name} {value:.1e}" for name, value in row.items()),
                flush=True,
            )
    unknown = Configurations.unknown(lattice, c.conditions[:1].repeat(128))
    ensemble.fields(unknown)
    started = time.thread_time()
    for _ in range(10):
        ensemble.fields(unknown)
    cost = 100 * (time.thread_time() - started)
    print(f"fields of 128 configurations: {cost:.2f} ms")
    write_json(args.out, "mean_field", {"table": table, "fields_128_ms": cost})


if __name__ == "__main__":
    main()
