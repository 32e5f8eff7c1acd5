"""Neural against host chain near a transition: effective samples a second and per energy call.

    python examples/benchmarks/transition.py [--seconds 180] [--load MODEL] [--short] [--out FILE]

64-site Cu-Au (the literature's expansion where CLEASE_NN_REFERENCE names it, else the project's
own). A model is trained first; that time is printed and is no part of the ratios. At each
temperature the chemical potential is the one at which the composition fluctuates most, by the
model's weighted draws; one condition far from transitions stands beside. Compared are

* CLEASE's ``SGCMonteCarlo``. Its autocorrelation time in steps comes from the compiled chain of
  the drop-in, which makes the same moves with the same probabilities, its steps a second from
  CLEASE itself;
* that compiled chain;
* a chain of neural moves alone (independence Metropolis-Hastings);
* weighted independent draws.

An effective sample is one of the composition or of the energy, whichever has fewer. An energy
call is one energy or energy difference, of a flip as of a whole configuration. Single-flip chains
start from pure Au and from pure Cu. Where they disagree at their ends, or are shorter than 50
autocorrelation times, they do not cross between the phases: they are then given one effective
sample, an upper bound.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
import warnings

import numpy as np
import torch
from clease.montecarlo import SGCMonteCarlo
from common import one_thread, write_json
from energies import cuau

from clease_nn import NeuralSGCSampler, TrainedModel
from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.hosts.clease.chemical_potentials import mu_from_chem_pot
from clease_nn.hosts.clease.extraction import energy, lattice
from clease_nn.sampler import NeuralMoves
from clease_nn.sampling import sample
from clease_nn.single_chain import FlipGroups, SingleChain
from clease_nn.statistics import integrated_autocorrelation_time, normalized_ess
from clease_nn.warnings import CleaseNNWarning

TEMPERATURES = (350.0, 500.0, 650.0)
FAR = (1000.0, 0.03)
BOX = {"temps": (200, 1200), "chem_pots": {"c1_0": (-0.12, 0.12)}}


def transition(trained, ensemble, cell, mu_of, temp: float, n: int) -> float:
    """c1_0 at which the composition fluctuates most."""
    best, where = -1.0, 0.0
    for x in np.linspace(-0.1, 0.1, 41):
        c = Conditions([temp], mu_of(x)[None]).repeat(n)
        rng = torch.Generator().manual_seed(1)
        drawn = sample(trained.model, ensemble, cell, c, rng, precision="auto")
        w = torch.softmax(drawn.log_weight, 0)
        gold = (drawn.occupations == 0).double().mean(1)
        variance = float((w * gold**2).sum() - (w * gold).sum() ** 2)
        if variance > best:
            best, where = variance, float(x)
    return where


def effective(series: np.ndarray) -> float:
    """Effective samples of the series with the fewest, series (quantities, length)."""
    length = series.shape[1]
    moving = [v for v in series if np.ptp(v) > 1e-12]
    return min((length / integrated_autocorrelation_time(v) for v in moving), default=1.0)


def flips(ensemble, cell, conditions, seconds: float, seed: int) -> dict:
    """Compiled single-flip chains from both pure species, looked at once a sweep."""
    groups = FlipGroups([(range(cell.n_sites), range(cell.n_species))], cell.allowed)
    n, used, chains = cell.n_sites, 0.0, []
    for a in range(cell.n_species):
        start = np.full(n, a, dtype=np.int8)
        c = ensemble.score(Configurations(cell, conditions, torch.as_tensor(start)[None]))
        chain = SingleChain(ensemble.energy.tables, np.eye(cell.n_species))
        chain.set(conditions.kT.item(), conditions.mu[0].numpy(), groups)
        chain.load(start, -float(c.log_target) * conditions.kT.item())
        chain.seed(np.random.SeedSequence([seed, a]))
        chain.run(2000 * n)
        rows, began = [], time.thread_time()
        while time.thread_time() - began < seconds / cell.n_species:
            for _ in range(1000):
                chain.run(n)
                rows.append((chain.values[0], chain.energy))
        used += time.thread_time() - began
        chains.append(np.array(rows).T)
    sweeps = sum(v.shape[1] for v in chains)
    ess = [effective(v) for v in chains]
    means = np.array([v.mean(1) for v in chains])
    errors = np.sqrt(sum(v.var(1) / max(e, 1.0) for v, e in zip(chains, ess, strict=True)))
    crossing = min(ess) >= 50 and bool((np.abs(means[0] - means[-1]) < 5 * errors + 1e-9).all())
    total = sum(ess) if crossing else 1.0
    return {
        "sweeps": sweeps,
        "crossing": crossing,
        "autocorrelation_sweeps": sweeps / total,
        "effective_per_second": total / used,
        "effective_per_call": total / (sweeps * n),
        "composition": means[:, 0].tolist(),
    }


def neural_chain(trained, ensemble, cell, conditions, start, moves: int, seed: int) -> dict:
    """Independence Metropolis-Hastings with the model's draws."""
    rng = torch.Generator().manual_seed(seed)
    neural = NeuralMoves(trained.model, ensemble, cell, conditions, rng)
    neural.expected = moves
    x, target = (
        start,
        float(
            ensemble.score(
                Configurations(cell, conditions, torch.as_tensor(start)[None])
            ).log_target
        ),
    )
    rows, accepted, kT = [], 0, conditions.kT.item()
    for _ in range(20):
        _, x, target = neural.step(x, target)
    began = time.thread_time()
    for _ in range(moves):
        moved, x, target = neural.step(x, target)
        accepted += moved
        rows.append((float((x == 0).mean()), -kT * target))
    used = time.thread_time() - began
    series = np.array(rows).T
    ess = effective(series)
    return {
        "moves": moves,
        "acceptance": accepted / moves,
        "effective_per_second": ess / used,
        "effective_per_call": ess / moves,
        "composition": float(series[0].mean()),
    }


def weighted(trained, ensemble, cell, conditions, n: int, seed: int) -> dict:
    """Independent draws with importance weights."""
    rng = torch.Generator().manual_seed(seed)
    began = time.thread_time()
    drawn = sample(trained.model, ensemble, cell, conditions.repeat(n), rng, precision="auto")
    used = time.thread_time() - began
    ness = float(normalized_ess(drawn.log_weight))
    w = torch.softmax(drawn.log_weight, 0)
    return {
        "draws": n,
        "ness": ness,
        "effective_per_second": ness * n / used,
        "effective_per_call": ness,
        "composition": float((w * (drawn.occupations == 0).double().mean(1)).sum()),
    }


def host_rate(size, folder, temp: float, x: float, steps: int) -> float:
    """Steps a second of CLEASE itself."""
    atoms, _ = cuau(size, folder)
    random.seed(1)
    mc = SGCMonteCarlo(atoms, temp, ["Au", "Cu"])
    mc.run(1000, chem_pot={"c1_0": x})
    began = time.thread_time()
    mc.run(steps, chem_pot={"c1_0": x})
    rate = steps / (time.thread_time() - began)
    mc.reset_eci()
    return rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="little training, short chains")
    parser.add_argument("--seconds", type=float, default=180, help="of training")
    parser.add_argument("--load", help="a model of this cell, instead of training")
    parser.add_argument("--save", help="where to keep the model")
    parser.add_argument("--out", help="JSON file to write")
    args = parser.parse_args()
    one_thread()
    warnings.simplefilter("ignore", CleaseNNWarning)
    size = (2, 2, 4) if args.short else (4, 4, 4)
    draws, moves, chain_seconds, steps = (
        (64, 100, 0.2, 2000) if args.short else (2000, 3000, 60.0, 50_000)
    )
    with tempfile.TemporaryDirectory() as folder:
        atoms, note = cuau(size, folder)
        cell, ensemble = lattice(atoms), SemiGrandCanonical(energy(atoms))
        began = time.thread_time()
        if args.load:
            trained = TrainedModel.load(args.load)
        else:
            budget = (
                {"max_steps": 10, "validation_samples": 16}
                if args.short
                else {"max_seconds": args.seconds}
            )
            mc = NeuralSGCSampler(atoms, 1000, ["Au", "Cu"], seed=0)
            trained = mc.fit(**BOX, progress=False, seed=0, **budget)
            if args.save:
                trained.save(args.save)
        training = time.thread_time() - began
        print(f"{cell.n_sites} sites, {note}; {training:.0f} s of training")

        def mu_of(x):
            return mu_from_chem_pot(atoms, cell, {"c1_0": x})

        figures: dict = {"expansion": note, "training_seconds": training, "conditions": []}
        points = [
            (t, transition(trained, ensemble, cell, mu_of, t, 16 if args.short else 128))
            for t in TEMPERATURES
        ]
        for temp, x in [*points, FAR]:
            conditions = Conditions([temp], mu_of(x)[None])
            c = sample(trained.model, ensemble, cell, conditions.repeat(64),
                       torch.Generator().manual_seed(5), precision="auto")  # fmt: skip
            start = c.occupations[int(c.log_weight.argmax())].numpy().copy()
            rate = host_rate(size, folder, temp, x, steps)
            single = flips(ensemble, cell, conditions, chain_seconds, 2)
            tau = single["autocorrelation_sweeps"] * cell.n_sites
            row = {
                "temperature": temp,
                "c1_0": x,
                "clease": {
                    "steps_per_second": rate,
                    "effective_per_second": rate / tau,
                    "effective_per_call": 1 / tau,
                },
                "compiled": single,
                "neural chain": neural_chain(trained, ensemble, cell, conditions, start, moves, 3),
                "weighted draws": weighted(trained, ensemble, cell, conditions, draws, 4),
            }
            tau_text = f"{single['autocorrelation_sweeps']:.0f} sweeps of {single['sweeps']}"
            if single["crossing"]:
                print(f"T = {temp:g} K, c1_0 = {x:.3f} eV: single flips forget in {tau_text}")
            else:
                print(
                    f"T = {temp:g} K, c1_0 = {x:.3f} eV: single flips do not cross between the "
                    f"phases in {single['sweeps']} sweeps; theirs are upper bounds"
                )
            for name in ("clease", "compiled", "neural chain", "weighted draws"):
                r, base = row[name], row["clease"]
                r["ratio_per_second"] = r["effective_per_second"] / base["effective_per_second"]
                r["ratio_per_call"] = r["effective_per_call"] / base["effective_per_call"]
                more = ""
                if "composition" in r:
                    values = np.atleast_1d(r["composition"])
                    more = ", <x_Au> " + " and ".join(f"{v:.4f}" for v in values)
                more += f", accepted {r['acceptance']:.2f}" if "acceptance" in r else ""
                more += f", NESS {r['ness']:.2f}" if "ness" in r else ""
                print(
                    f"  {name:15s} {r['effective_per_second']:10.2f} effective samples/s "
                    f"({r['ratio_per_second']:8.2f}x CLEASE), {r['effective_per_call']:9.2e} per "
                    f"energy call ({r['ratio_per_call']:8.1f}x){more}"
                )
            if not args.load and not args.short:
                gain = row["weighted draws"]["effective_per_second"]
                gain -= row["clease"]["effective_per_second"]
                if gain > 0:
                    need = training * row["clease"]["effective_per_second"]
                    row["break_even_effective_samples"] = need
                    print(f"  training pays after {need:.0f} effective samples of CLEASE's chain")
            figures["conditions"].append(row)
    write_json(args.out, "transition", figures)


if __name__ == "__main__":
    main()
