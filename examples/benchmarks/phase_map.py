"""A phase map of 64-site Cu-Au: train and sample against CLEASE with integration, at equal error.

    python examples/benchmarks/phase_map.py [--seconds 240] [--model FILE] [--short] [--out FILE]

Grand potential per site and composition at 41 chemical potentials x 15 temperatures, by

* draws of a model (trained here for ``--seconds``, or read from a file that knows how long its
  training took), corrected by their weights and combined (``density_of_states``); and, for
  comparison, each condition by its own draws alone;
* CLEASE's ``SGCMonteCarlo``, one run a condition, integrated from pure Cu. Its time is
  **extrapolated from a pilot**: steps a second from CLEASE itself on two isotherms in both
  directions; errors per step from chains of the drop-in on all isotherms, which make the same
  moves with the same probabilities in compiled code, and which are compared with the pilot;
* these compiled chains by themselves, with the same integration;
* parallel tempering over the whole map, with absolute ln Z.

Every route is scaled to the error of the first, which falls as one over the square root of the
time; training is paid once. Errors are root mean squares of the standard errors over the
conditions at least 2kT/N away from a transition (a maximum of the composition's variance above
that of the best ideal solution, from all draws combined) where chains that come from both sides
agree; those where they do not are listed apart. The host is charged for one direction only,
without equilibration, and not for what integration adds: steps between two points of the path,
hysteresis, and the noise of all points of the path that are not compared. That bias is printed
beside, since no number of steps removes it. Ratios on the isotherms without any hysteresis are
printed too, and the errors of the first route are held against a second set of draws.

All times are CPU seconds of one thread, taken in one run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from clease.montecarlo import SGCMonteCarlo
from common import one_thread, write_json

from clease_nn import TrainedModel
from clease_nn.conditions import ConditionRange, Conditions
from clease_nn.configurations import Configurations
from clease_nn.cost import Cost, Route, cost_table
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.hosts.clease.chemical_potentials import axes
from clease_nn.hosts.clease.examples import cuau_emt_atoms, cuau_emt_data
from clease_nn.hosts.clease.extraction import energy, lattice
from clease_nn.hosts.clease.recorder import ConfigurationRecorder
from clease_nn.montecarlo import ParallelTempering
from clease_nn.sampling import sample
from clease_nn.single_chain import FlipGroups, SingleChain
from clease_nn.thermodynamics import (
    averages,
    density_of_states,
    excitation_log_z,
    hysteresis,
    integrate_grand_potential,
)
from clease_nn.training import fit

BOX = (-0.12, 0.12)  # c1_0, eV
AIM = 20.0
LOOSER = (1.0, 2.0, 5.0, 10.0)
QUANTITIES = {"grand potential": "meV/site", "composition": "at.%"}


class Map:
    """The system, its grid of conditions, and figures on it; arrays are (temperatures, mu)."""

    def __init__(self, size, n_temperatures: int, n_mu: int, coldest: float = 200.0):
        data = cuau_emt_data()
        self.note = "the project's own EMT expansion (CLEASE_NN_REFERENCE not set)"
        folder = os.environ.get("CLEASE_NN_REFERENCE")
        if folder:
            eci = json.loads((Path(folder) / "cuau_eci.json").read_text())
            data, self.note = {**data, "eci": eci}, "the literature's expansion"
        self.size, self.data = size, data
        atoms = self.atoms()
        self.cell, self.ensemble = lattice(atoms), SemiGrandCanonical(energy(atoms))
        self.axis = axes(atoms, self.cell, ["c1_0"])
        self.temperatures = np.linspace(coldest, 1200, n_temperatures)
        self.x = np.linspace(*BOX, n_mu)
        self.conditions = Conditions.grid(self.temperatures, self.x[:, None] @ self.axis)
        self.shape = (n_temperatures, n_mu)

    def atoms(self):
        """A supercell for CLEASE."""
        return cuau_emt_atoms(self.size, self.data)

    def row(self, t: int, reverse: bool = False) -> list[int]:
        """Conditions of an isotherm in the order of the chemical potential."""
        rows = [t * len(self.x) + k for k in range(len(self.x))]
        return rows[::-1] if reverse else rows

    def errors(self, grand_potential, composition) -> dict[str, np.ndarray]:
        """Errors per site in the units of QUANTITIES, flat."""
        return {
            "grand potential": 1e3 * np.ravel(grand_potential),
            "composition": 1e2 * np.ravel(composition),
        }


def timed(function):
    """What a function returns and its CPU seconds."""
    began = time.process_time()
    out = function()
    return out, time.process_time() - began


def gold(found) -> tuple[np.ndarray, np.ndarray]:
    """Composition (species 0) and its error from averages."""
    return (
        np.array([a.composition.value[0] for a in found]),
        np.array([a.composition.error[0] for a in found]),
    )


# ------------------------------------------------------------------ routes
def neural(system: Map, trained, draws: int, seed: int) -> dict:
    """Weighted draws at every condition, read by condition and combined."""
    rng = torch.Generator().manual_seed(seed)
    parts = trained.model, system.ensemble, system.cell
    sample(*parts, system.conditions[:8], rng, precision="auto")  # compiles
    drawn, seconds = timed(
        lambda: sample(*parts, system.conditions.repeat(draws), rng, precision="auto")
    )
    found, by_one = timed(lambda: averages(drawn))
    phi = [a.grand_potential_per_site for a in found]

    def combine():
        dos = density_of_states(drawn)
        known = dos.determined(system.conditions)
        at = system.conditions[torch.as_tensor(known)]
        log_z, x = dos.log_z(at), dos.mean(dos.counts[:, 0] / system.cell.n_sites, at)
        per_site = log_z * (-at.kT.numpy() / system.cell.n_sites)
        out = np.full((4, len(known)), np.nan)
        out[:, known] = per_site.value, per_site.error, x.value, x.error
        return dos, known, out

    (dos, known, (value, error, x, x_error)), together = timed(combine)

    def cost(reading: float) -> Cost:
        return trained.cost + replace(drawn.cost, seconds=seconds + reading)

    return {
        "dos": dos,
        "known": known,
        "phi": value,
        "composition": x,
        "errors": system.errors(error, x_error),
        "cost": cost(together),
        "errors of each": system.errors([e.error for e in phi], gold(found)[1]),
        "cost of each": cost(by_one),
        "seconds": {"draw": seconds, "read each": by_one, "combine": together},
        "ness": np.array([a.ness for a in found]),
    }


def tempering(system: Map, steps: int, seed: int) -> dict:
    """Parallel tempering over the map."""

    def run():
        chains = ParallelTempering(
            system.ensemble, system.cell, system.conditions, system.shape, seed=seed
        )
        result = chains.run(steps, interval=2 if steps > 400 else 1)
        return result, averages(result.configurations)

    (result, found), seconds = timed(run)
    phi = result.log_z * (-system.conditions.kT.numpy() / system.cell.n_sites)
    return {
        "phi": phi.value,
        "composition": gold(found)[0],
        "errors": system.errors(phi.error, gold(found)[1]),
        "cost": Cost.from_provenance({**result.cost.to_dict(), "seconds": seconds}),
    }


def compiled_chains(system: Map, sweeps: int, burn_in: int, reverse: bool, seed: int) -> dict:
    """One compiled chain an isotherm, from one condition to the next, starting pure."""
    cell, n = system.cell, system.cell.n_sites
    groups = FlipGroups([(range(n), range(cell.n_species))], cell.allowed)
    chain = SingleChain(system.ensemble.energy.tables)
    sequence = np.random.SeedSequence([seed, reverse])
    visited, used = {}, 0.0
    for t in range(system.shape[0]):
        state = np.full(n, 0 if reverse else 1, dtype=np.int8)
        for k in system.row(t, reverse):
            at = system.conditions[k]
            kT = at.kT.item()
            began = time.process_time()
            start = system.ensemble.score(Configurations(cell, at, torch.as_tensor(state)[None]))
            chain.set(kT, at.mu[0].numpy(), groups)
            chain.load(state, -float(start.log_target) * kT)
            if k == system.row(t, reverse)[0]:
                chain.seed(sequence.spawn(1)[0])
            chain.run(burn_in * n)
            rows, energies = np.empty((sweeps, n), dtype=np.int8), np.empty(sweeps)
            for s in range(sweeps):
                chain.run(n)
                rows[s], energies[s] = chain.occupations, chain.energy
            state = rows[-1].copy()
            used += time.process_time() - began
            visited[k] = (rows, energies)
    order = sorted(visited)
    return {
        "averages": chain_averages(system, order, [visited[k] for k in order]),
        "seconds": used * sweeps / (sweeps + burn_in),
        "steps": sweeps * n * len(order),
    }


def chain_averages(system: Map, order, visits):
    """Averages of conditions from configurations and E - mu.N of chains."""
    sweeps = len(visits[0][1])
    at = system.conditions[order].repeat(sweeps)
    sgc = torch.as_tensor(np.concatenate([e for _, e in visits]))
    c = Configurations(
        system.cell,
        at,
        torch.as_tensor(np.concatenate([rows for rows, _ in visits])),
        log_target=-sgc / at.kT,
        chain=torch.zeros(len(at), dtype=torch.int64),
    )
    c = Configurations(
        c.lattice, at, c.occupations, energy=sgc + (c.counts() * at.mu).sum(1),
        log_target=c.log_target, chain=c.chain,
    )  # fmt: skip
    return averages(c)


def pilot(system: Map, isotherms, sweeps: int, burn_in: int, seed: int) -> dict:
    """CLEASE along isotherms in both directions: steps a second and averages."""
    random.seed(seed)
    n, used, steps, out = system.cell.n_sites, 0.0, 0, {}
    for t in isotherms:
        for reverse in (False, True):
            atoms = system.atoms()
            atoms.numbers[:] = 79 if reverse else 29
            mc = SGCMonteCarlo(atoms, float(system.temperatures[t]), ["Au", "Cu"])
            recorder = ConfigurationRecorder(mc)
            parts = []
            for k in system.row(t, reverse):
                potential = {"c1_0": float(system.x[k % len(system.x)])}
                began = time.process_time()
                mc.run(burn_in * n, chem_pot=potential)
                if recorder not in [obs for _, obs in mc.observers]:
                    mc.attach(recorder, interval=n)
                mc.run(sweeps * n, chem_pot=potential)
                used += time.process_time() - began
                steps += (burn_in + sweeps) * n
                parts.append(recorder.configurations())
            mc.reset_eci()
            out[t, reverse] = averages(Configurations.cat(parts))
    return {"rate": steps / used, "averages": out, "steps": steps}


def integrated(system: Map, found, reverse: bool) -> dict:
    """ln Z of all conditions by integration: up 1/kT in the pure phase, then along isotherms."""
    first = [system.row(t, reverse)[0] for t in range(system.shape[0])]
    pure = np.full(system.cell.n_sites, 0 if reverse else 1)
    start = excitation_log_z(
        system.ensemble, system.cell, pure, system.conditions[first[0]]
    )[0]  # fmt: skip
    edge = integrate_grand_potential([found[k] for k in first], start)
    value, error = np.empty(len(found)), np.empty(len(found))
    for t in range(system.shape[0]):
        rows = system.row(t, reverse)
        path = integrate_grand_potential([found[k] for k in rows], edge.log_z[t])
        value[rows] = path.grand_potential_per_site.value
        error[rows] = path.grand_potential_per_site.error
    return {"phi": value, "phi_error": error}


# ------------------------------------------------------------------ where transitions are
def quiet(found, keep):
    """Averages whose errors are zero where they are not to be charged for."""

    def sure(e):
        return replace(e, error=np.zeros_like(e.error)[()])

    return [
        a if kept else replace(a, composition=sure(a.composition), sgc_energy=sure(a.sgc_energy))
        for a, kept in zip(found, keep, strict=True)
    ]


def transitions(system: Map, dos) -> list[list[float]]:
    """Chemical potentials of transitions on every isotherm, c1_0 in eV.

    By the free energy at every composition, from which any chemical potential follows.
    """
    n = system.cell.n_sites
    atoms = np.rint(dos.counts[:, 0]).astype(int)
    step = float(system.axis[0, 0] - system.axis[0, 1])  # of mu_Au - mu_Cu for 1 eV of c1_0
    fine = np.linspace(*BOX, 40 * (len(system.x) - 1) + 1)
    number = np.arange(n + 1)
    found = []
    for temperature in system.temperatures:
        kT = Conditions([temperature], [[0.0, 0.0]]).kT.item()
        log_p = np.full(n + 1, -np.inf)
        np.logaddexp.at(log_p, atoms, dos.log_g - dos.energy / kT)
        weight = log_p + fine[:, None] * step * number / kT
        weight = np.exp(weight - weight.max(1, keepdims=True))
        weight /= weight.sum(1, keepdims=True)
        mean = weight @ number
        variance = weight @ number**2 - mean**2
        peak = (variance[1:-1] >= variance[:-2]) & (variance[1:-1] > variance[2:])
        found.append(fine[1:-1][peak & (variance[1:-1] > n / 4)].tolist())
    return found


def far(system: Map, found) -> np.ndarray:
    """(conditions,) bool: at least 2kT/N away from a transition."""
    step = abs(float(system.axis[0, 0] - system.axis[0, 1]))
    out = np.ones(system.shape, dtype=bool)
    kT = system.conditions.kT.numpy().reshape(system.shape)
    for t, values in enumerate(found):
        for v in values:
            out[t] &= np.abs(system.x - v) * step >= 2 * kT[t] / system.cell.n_sites
    return out.ravel()


def rms(x) -> float:
    return float(np.sqrt(np.mean(np.square(x))))


# ------------------------------------------------------------------ all together
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=240, help="of training")
    parser.add_argument("--model", help="a trained model of this cell, instead of training")
    parser.add_argument("--draws", type=int, default=40, help="a condition")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="JSON file to write")
    parser.add_argument("--short", action="store_true", help="a small cell, meaningless figures")
    args = parser.parse_args()
    one_thread()
    warnings.simplefilter("ignore")
    if args.short:
        system, draws = Map((2, 2, 4), 3, 7, 800.0), 100
        steps, sweeps, burn_in, isotherms, host = 60, 60, 10, (1,), (12, 3)
    else:
        system, draws = Map((4, 4, 4), 15, 41), args.draws
        steps, sweeps, burn_in, isotherms, host = 2000, 600, 100, (8, 12), (60, 15)
    total, n = len(system.conditions), system.cell.n_sites
    print(f"{n} sites, {system.note}; {system.shape[1]} chemical potentials x {system.shape[0]} "
          f"temperatures, CPU seconds of one thread")  # fmt: skip
    if args.model:
        trained = TrainedModel.load(args.model)
    else:
        box = ConditionRange((200, 1200), [BOX[0]], [BOX[1]], system.axis)
        budget = (
            {"max_steps": 100, "validation_samples": 16}
            if args.short
            else {"max_seconds": args.seconds}
        )
        trained = fit(
            system.ensemble, system.cell, box, seed=args.seed, threads=1, progress=False,
            clock=time.process_time, **budget,
        )  # fmt: skip
    net = neural(system, trained, draws, args.seed + 1)
    print(f"neural: {trained.cost.training_seconds:.0f} s of training, {draws} draws a condition "
          f"in {net['cost'].seconds:.0f} s, NESS mean {net['ness'].mean():.3f} minimum "
          f"{net['ness'].min():.3f}", flush=True)  # fmt: skip
    found = transitions(system, net["dos"])
    pt = tempering(system, steps, args.seed + 2)
    print(f"parallel tempering: {steps} steps in {pt['cost'].seconds:.0f} s", flush=True)
    up, down = (compiled_chains(system, sweeps, burn_in, r, args.seed + 3) for r in (False, True))
    print(f"compiled chains: {sweeps} sweeps a condition in {up['seconds']:.0f} s a direction",
          flush=True)  # fmt: skip
    first = pilot(system, isotherms, *host, args.seed + 4)
    print(f"CLEASE: {first['rate']:.0f} steps/s over {first['steps']} steps of the pilot")

    # where both directions agree
    branches = np.zeros(system.shape, dtype=bool)
    for t in range(system.shape[0]):
        rows = system.row(t)
        pair = hysteresis(
            [up["averages"][k] for k in rows], [down["averages"][k] for k in rows[::-1]]
        )
        branches[t] = pair.branches
    away = far(system, found)
    good = away & ~branches.ravel() & net["known"]
    print(f"{total} conditions: {int((~away).sum())} within 2kT/N of a transition; chains from "
          f"both sides disagree at {int(branches.sum())} (apart); "
          f"{int((~net['known']).sum())} not determined by the draws; "
          f"{int(good.sum())} compared")  # fmt: skip
    for t, temperature in enumerate(system.temperatures):
        if found[t] or branches[t].any():
            where = ", ".join(f"{v:.4f}" for v in found[t]) or "none"
            apart = ", ".join(f"{v:.3f}" for v in system.x[branches[t]]) or "none"
            print(
                f"  {temperature:6.1f} K: transitions at c1_0 = {where} eV; hysteresis at {apart}"
            )

    # the pilot against its compiled twin, where neither is metastable
    z = []
    for t in isotherms:
        rows = system.row(t)
        there, back = (first["averages"][t, r] for r in (False, True))
        agree = good[rows] & ~hysteresis(there, back).mask
        for host_averages, twin in ((there, up), (list(back)[::-1], down)):
            (x, ex), (y, ey) = gold(host_averages), gold([twin["averages"][k] for k in rows])
            z += list(((x - y) / np.maximum(np.hypot(ex, ey), 1e-12))[agree & (ex > 0)])
    print(f"the pilot against its compiled twin: z-scores of the composition {np.mean(z):+.2f} "
          f"+- {np.std(z):.2f} over {len(z)} conditions")  # fmt: skip

    charged = integrated(system, up["averages"], False)
    one = integrated(system, quiet(up["averages"], good), False)
    chain_errors = system.errors(one["phi_error"], gold(up["averages"])[1])
    with_all = rms(1e3 * charged["phi_error"][good])
    without = rms(chain_errors["grand potential"][good])
    print(f"integrated error of the chains {without:.4f} meV/site; {with_all:.4f} with the noise "
          f"of the points that are not compared")  # fmt: skip
    clean = good & np.repeat(~branches.any(1), system.shape[1])
    work = Cost(energy_evaluations=up["steps"], attempts_per_site=up["steps"] / n)
    host_cost = Cost.sum([work, Cost(seconds=up["steps"] / first["rate"])])
    twin_cost = Cost.sum([work, Cost(seconds=up["seconds"])])
    figures: dict = {
        "expansion": system.note, "sites": n, "shape": system.shape, "draws": draws,
        "compared": int(good.sum()), "near_transition": int((~away).sum()),
        "hysteretic": int(branches.sum()), "clease_steps_per_second": first["rate"],
        "twin_z_std": float(np.std(z)), "transitions": found,
        "training_seconds": trained.cost.training_seconds,
        "ness_mean": float(net["ness"].mean()), "ness_min": float(net["ness"].min()),
    }  # fmt: skip
    ratios = []
    for quantity, unit in QUANTITIES.items():
        routes = [
            Route("train + sample", net["cost"], total, rms(net["errors"][quantity][good])),
            Route("the same, uncombined", net["cost of each"], total,
                  rms(net["errors of each"][quantity][good])),
            Route("CLEASE + integration", host_cost, total, rms(chain_errors[quantity][good]),
                  "time extrapolated from a pilot, statistical error alone"),
            Route("compiled chains + integration", twin_cost, total,
                  rms(chain_errors[quantity][good]), "statistical error alone"),
            Route("parallel tempering", pt["cost"], total, rms(pt["errors"][quantity][good])),
        ]  # fmt: skip
        print(f"\n{quantity} per site,", cost_table(routes, unit=unit))
        if clean.any():
            there = [
                replace(r, error=rms(e[quantity][clean]))
                for r, e in zip(
                    routes,
                    (
                        net["errors"],
                        net["errors of each"],
                        chain_errors,
                        chain_errors,
                        pt["errors"],
                    ),
                    strict=True,
                )
            ]
            table = cost_table(there, unit=unit)
            figures[f"{quantity} without hysteresis"] = table.to_rows()
            print(f"  isotherms without hysteresis, at {table.error:.3g} {unit}: " + ", ".join(
                f"{r.route.name} {r.ratio:.3g}x" for r in table.rows[1:]))  # fmt: skip
        by_error = {}
        for factor in LOOSER:
            table = cost_table(routes, error=factor * routes[0].error, unit=unit)
            by_error[f"{table.error:.4g} {unit}"] = {r.route.name: r.seconds for r in table.rows}
            if factor == 1.0:
                figures[quantity] = table.to_rows()
                ratios.append(table["CLEASE + integration"].ratio)
            print(f"  at {table.error:.3g} {unit}: " + ", ".join(
                f"{r.route.name} {r.ratio:.3g}x" for r in table.rows[1:]))  # fmt: skip
        figures[f"{quantity} seconds by error"] = by_error
    # are the errors right, and what does integration add
    second = neural(system, trained, max(draws // 2, 20), args.seed + 5)
    checks = {}
    for name, other in (("a second set of draws", second), ("parallel tempering", pt)):
        for quantity, key, scale in (
            ("grand potential", "phi", 1e3),
            ("composition", "composition", 1e2),
        ):
            spread = np.hypot(net["errors"][quantity], other["errors"][quantity])
            seen = good & (spread > 0) & np.isfinite(spread)
            off = scale * (net[key] - other[key])[seen]
            checks[f"{quantity}, {name}"] = [rms(off), rms(spread[seen]), rms(off / spread[seen])]
            print(f"{quantity} against {name}: {rms(off):.4f} {QUANTITIES[quantity]}, expected "
                  f"{rms(spread[seen]):.4f}, z-scores {rms(off / spread[seen]):.2f}")  # fmt: skip
    bias = {}
    for name, chains, reverse in (("from Cu", up, False), ("from Au", down, True)):
        off = 1e3 * (integrated(system, chains["averages"], reverse)["phi"] - net["phi"])
        noise = rms(chain_errors["grand potential"][clean]) if clean.any() else np.nan
        bias[name] = {"compared": rms(off[good]), "clean": rms(off[clean]) if clean.any() else None}
        print(f"integration {name}: off by {bias[name]['compared']:.3f} meV/site where compared, "
              f"{bias[name]['clean'] or np.nan:.3f} (statistical error {noise:.3f}) on isotherms "
              f"without hysteresis; more steps do not remove it")  # fmt: skip
    figures |= {
        "checks": checks,
        "integrated_error_with_all_points": with_all,
        "without_hysteresis": int(clean.sum()),
        "integration_bias_meV_per_site": bias,
        "ratio": min(ratios),
    }
    print(f"CLEASE over train + sample: {ratios[0]:.1f}x for the grand potential, {ratios[1]:.1f}x "
          f"for the composition (aim {AIM:g}x)")  # fmt: skip
    write_json(args.out, "phase_map", figures)


if __name__ == "__main__":
    main()
