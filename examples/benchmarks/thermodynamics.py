"""Thermodynamics of many conditions against exact references.

* ``cuau16``: ln Z, composition, heat capacity and entropy at the sampled conditions and between
  them, and the free energy F(x, T) of every composition, against enumeration;
* ``hull``: transition chemical potentials at T -> 0 from draws at low temperature, from annealed
  chains and from random search, against enumeration;
* ``ising10``: coexistence and heat-capacity maximum of the Ising model read as an alloy, against
  symmetry and the transfer matrix; ``ising20`` draws the larger cell with the same model;
* ``cuau64``: the phase diagram from the model's draws against that from parallel tempering.

    python examples/benchmarks/thermodynamics.py cuau16 --seconds 120
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from ase.units import kB
from common import one_thread, write_json
from matplotlib.figure import Figure
from scipy.optimize import minimize_scalar
from training import cuau, ising

from clease_nn import phases, plotting, thermodynamics
from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.energies.ising import ising_energy, ising_log_z, kaufman_log_z
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.io import TrainedModel
from clease_nn.lattice import Lattice
from clease_nn.montecarlo import ParallelTempering
from clease_nn.phases import ChemicalPotentialLine
from clease_nn.sampling import sample
from clease_nn.statistics import normalized_ess
from clease_nn.thermodynamics import DensityOfStates
from clease_nn.training import fit

BUDGETS = {"cuau16": 120, "hull": 120, "ising10": 240, "ising20": 240, "cuau64": 420}


def trained(name: str, ensemble, lattice, box, args, folder: Path | None):
    """A model of the budget, from the folder if it is there, else trained (and put there)."""
    if args.short:
        return None
    path = None if folder is None else folder / f"{name}.nn"
    if path is not None and path.exists():
        found = TrainedModel.load(path)
        if found.metadata["energy_fingerprint"] != ensemble.energy.fingerprint:
            raise SystemExit(f"{path} was trained on another energy; remove it, or name a folder")
        return found
    out = fit(
        ensemble, lattice, box, max_seconds=args.seconds, seed=0, threads=1, clock=time.thread_time,
        progress=False, validation_samples=32,
    )  # fmt: skip
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        out.save(path)
    return out


def draw(model, ensemble, lattice, conditions, n: int, seed: int):
    """``n`` weighted draws at every condition; of the exact distribution without a model."""
    rng = torch.Generator().manual_seed(seed)
    if model is None:
        states = ensemble.enumerate(lattice)
        p = [states.probabilities(conditions[k]) for k in range(len(conditions))]
        rows = [torch.multinomial(q, n, replacement=True, generator=rng) for q in p]
        log_prob = torch.cat([q[r].log() for q, r in zip(p, rows, strict=True)])
        x = states.occupations[torch.cat(rows)]
        return ensemble.score(Configurations(lattice, conditions.repeat(n), x, log_prob=log_prob))
    return sample(model.model, ensemble, lattice, conditions.repeat(n), rng, precision="auto")


# ------------------------------------------------------------------ 16 sites
def cuau16(args, folder) -> dict:
    lattice, ensemble, box, _, note = cuau((2, 2, 4))
    print(note)
    model = trained("cuau16", ensemble, lattice, box, args, folder)
    x = np.linspace(-0.12, 0.12, 9)
    temperatures = np.arange(200, 1201, 200 if args.short else 100)
    sampled = Conditions.grid(temperatures, x[:, None] @ box.axes)
    middle = Conditions.grid(
        (temperatures[1:] + temperatures[:-1]) / 2, ((x[1:] + x[:-1]) / 2)[:, None] @ box.axes
    )
    exact = DensityOfStates.exact(ensemble.enumerate(lattice))
    places = {"sampled": sampled, "between": middle}
    truth = {name: exact.averages(c) for name, c in places.items()}
    f_temperatures = np.arange(300, 1201, 450 if args.short else 50)
    f_exact = thermodynamics.canonical(exact, f_temperatures)
    quantities = {
        "log_z": lambda a: a.log_z,
        "composition": lambda a: a.composition[0],
        "heat_capacity": lambda a: a.heat_capacity,
        "entropy": lambda a: a.entropy,
    }
    z = {(q, p): [] for q in quantities for p in places}
    f_z, f_worst, f_rms, single, left, open_f = [], [], [], {}, 0, 0
    for replica in range(args.replicas):
        drawn = draw(model, ensemble, lattice, sampled, args.samples, 100 + replica)
        dos = thermodynamics.density_of_states(drawn, seed=replica)
        for place, conditions in places.items():
            enough = dos.ess(conditions) >= 200
            left += int((~enough).sum())
            rows = np.flatnonzero(enough)
            got = dos.averages(conditions[torch.as_tensor(rows)])
            for k, a in zip(rows, got, strict=True):
                t = truth[place][k]
                # an error of the composition needs events: rare phases have too few in n draws
                varies = len(drawn) * float(t.count_covariance.value[0, 0]) / len(sampled) >= 20
                for q, read in quantities.items():
                    if q in ("log_z", "entropy") or varies:
                        z[q, place].append(float(read(a).z(read(t).value)))
        if replica == 0:
            single = gain(drawn, dos, sampled, truth["sampled"])
        f = thermodynamics.canonical(dos, f_temperatures)
        known = np.isfinite(f.free_energy.value)
        difference = np.where(known, f.free_energy.value - f_exact.free_energy.value, np.nan)
        open_f += int((~known).sum())
        f_rms.append(float(np.sqrt(np.nanmean(difference**2))) / lattice.n_sites)
        f_worst.append(float(np.nanmax(np.abs(difference))) / lattice.n_sites)
        error = f.free_energy.error
        f_z += list((difference / np.where(error > 0, error, np.nan))[known])
    out = {"replicas": args.replicas, "samples_per_condition": args.samples, "left_out": left}
    for (q, p), values in z.items():
        out[f"{q}_{p}"] = summary(values)
        s = out[f"{q}_{p}"]
        print(f"{q:14s} {p:8s}: z std {s['std']:.2f} mean {s['mean']:+.2f} of {s['n']}")
    f_z = [v for v in f_z if np.isfinite(v)]
    out |= {"free_energy": summary(f_z), "single": single}
    out |= {"free_energy_undetermined": open_f / args.replicas}
    out |= {"free_energy_largest_meV_per_site": 1e3 * float(np.median(f_worst))}
    out |= {"free_energy_worst_replica_meV_per_site": 1e3 * float(np.max(f_worst))}
    out |= {"free_energy_rms_meV_per_site": 1e3 * float(np.mean(f_rms))}
    print(
        f"F(x, T >= 300 K): z std {out['free_energy']['std']:.2f}; largest difference "
        f"{out['free_energy_largest_meV_per_site']:.3f} meV/site (median of replicas; worst "
        f"{out['free_energy_worst_replica_meV_per_site']:.3f}), rms "
        f"{out['free_energy_rms_meV_per_site']:.4f}; undetermined "
        f"{out['free_energy_undetermined']:.1f} of {f_exact.free_energy.value.size}"
    )
    print(f"error of one condition's draws alone over that of all: {single}")
    return out


def gain(drawn, dos, conditions, truth) -> dict:
    """How much larger the rms error of each condition's own draws is than that of all together."""
    known = dos.determined(conditions)
    joint = dos.averages(conditions[torch.as_tensor(np.flatnonzero(known))])
    alone = [a for a, ok in zip(thermodynamics.averages(drawn), known, strict=True) if ok]
    truth = [a for a, ok in zip(truth, known, strict=True) if ok]
    out = {}
    for q, read in (
        ("log_z", lambda a: float(a.log_z.value)),
        ("composition", lambda a: float(a.composition.value[0])),
        ("heat_capacity", lambda a: float(a.heat_capacity.value)),
    ):
        t = np.array([read(a) for a in truth])
        rms = [np.sqrt(np.mean((np.array([read(a) for a in r]) - t) ** 2)) for r in (alone, joint)]
        out[q] = float(rms[0] / rms[1])
    return out


def summary(values) -> dict:
    v = np.asarray(values, dtype=float)
    return {"n": len(v), "std": float(np.std(v)), "mean": float(np.mean(v))}


# ------------------------------------------------------------------ ground states
def hull(args, folder) -> dict:
    lattice, ensemble, box, _, note = cuau((2, 2, 4))
    print(note)
    model = trained("cuau16", ensemble, lattice, box, args, folder)
    exact = phases.formation_hull(ensemble.enumerate(lattice))
    truth = exact.transition_chemical_potentials("Au", "Cu")
    print(f"enumerated mu_Au - mu_Cu: {np.round(truth, 5)} eV")
    cold = Conditions.grid([200.0], np.linspace(-0.12, 0.12, 41)[:, None] @ box.axes)
    ends = phases.pure_ends(ensemble, lattice)
    drawn = draw(model, ensemble, lattice, cold, max(args.samples // 10, 5), 1)
    calls = len(drawn) + len(ends)
    falling = np.geomspace(2400, 60, 8 if args.short else 24)
    routes = {
        "draws of the model at 200 K": phases.formation_hull([drawn, ends]),
        "annealing where ground states change": phases.ground_state_hull(
            ensemble, lattice, temperatures=falling, replicas=8, sweeps=5
        ),
        "random search, as many energies": phases.formation_hull(
            [
                phases.random_search(ensemble, lattice, cold.mu.numpy(), n_energies=calls, seed=1),
                ends,
            ]
        ),
    }
    out = {"enumerated": truth.tolist()}
    for name, found in routes.items():
        mu = found.transition_chemical_potentials("Au", "Cu")
        worst = float(np.abs(mu - truth).max()) if len(mu) == len(truth) else None
        cost = found.cost.energy_evaluations
        out[name] = {"mu_Au_minus_mu_Cu": mu.tolist(), "largest_error_eV": worst, "energies": cost}
        miss = "other structures" if worst is None else f"largest error {1e3 * worst:.2g} meV"
        print(f"{name} ({cost:.0f} energies): {np.round(mu, 5)} eV, {miss}")
    return out


# ------------------------------------------------------------------ Ising as an alloy
def ising10(args, folder, size: int = 10) -> dict:
    system = ising(4 if args.short else 10, True, 0)
    model = trained("ising10", system.ensemble, system.lattice, system.box, args, folder)
    lattice = Lattice.square(4 if args.short else size)
    ensemble = SemiGrandCanonical(ising_energy(lattice))
    return ising_figures(model, ensemble, lattice, args)


def ising20(args, folder) -> dict:
    return ising10(args, folder, size=20)


def ising_figures(model, ensemble, lattice, args) -> dict:
    side = lattice.n_sites**0.5
    kT = np.linspace(1.5, 3.5, 5 if args.short else 17)
    field = np.array([-0.4, -0.2, -0.05, 0.0, 0.05, 0.2, 0.4])
    line = ChemicalPotentialLine.exchange(lattice, lattice.species[1], lattice.species[0])
    grid = Conditions(
        np.repeat(kT, len(field)) / kB, line.mu(np.tile(2 * field, len(kT)))
    )  # exp[(sum s s' + field sum s)/kT] is t = 2 field
    drawn = draw(model, ensemble, lattice, grid, args.samples, 11)
    dos = thermodynamics.density_of_states(drawn)
    share = dos.counts[:, 1] / lattice.n_sites
    labels = np.where(share > 0.5, 1, np.where(share < 0.5, 0, -1))
    parted = phases.Phases.given(dos, labels, ("poor", "rich"))
    boundary = phases.trace(dos, parted, ("poor", "rich"), line, np.linspace(1.5, 2.2, 8) / kB)
    t = boundary.mu
    z = t.value / t.error
    peak = phases.heat_capacity_maxima(dos, line, [0.0], (1.6 / kB, 3.4 / kB)).temperature * kB
    exact = exact_peak(lattice)
    out = {
        "sites": lattice.n_sites,
        "ness_mean": float(np.mean([a.ness for a in thermodynamics.averages(drawn)])),
        "coexistence_largest_mu_eV": float(np.abs(t.value).max()),
        "coexistence_error_eV": float(np.max(t.error)),
        "coexistence_z_rms": float(np.sqrt(np.mean(z**2))),
        "peak_kT": float(peak.value[0]),
        "peak_kT_error": float(peak.error[0]),
        "peak_kT_exact": exact,
        "peak_z": float((peak.value[0] - exact) / peak.error[0]),
    }
    print(
        f"{side:.0f} x {side:.0f}: coexistence at |mu| <= {out['coexistence_largest_mu_eV']:.1e} J "
        f"(largest error {out['coexistence_error_eV']:.1e}), {len(z)} temperatures; heat capacity "
        f"largest at kT = {out['peak_kT']:.4f} +- {out['peak_kT_error']:.4f}, exact {exact:.4f} "
        f"(z {out['peak_z']:+.2f}); NESS {out['ness_mean']:.3f}"
    )
    return out


def exact_peak(lattice: Lattice) -> float:
    """kT of the largest heat capacity without field, from differences of the exact ln Z."""
    n = round(lattice.n_sites**0.5)

    def heat_capacity(kT):
        beta, d = 1.0 / kT, 1e-3
        log_z = (
            (lambda b: kaufman_log_z(n, n, 1 / b))
            if n > 12
            else (lambda b: ising_log_z(n, n, 1 / b))
        )
        return beta**2 * (log_z(beta + d) - 2 * log_z(beta) + log_z(beta - d)) / d**2

    found = minimize_scalar(lambda kT: -heat_capacity(kT), bounds=(1.8, 3.0), method="bounded")
    return float(found.x)


# ------------------------------------------------------------------ 64 sites
def cuau64(args, folder) -> dict:
    lattice, ensemble, box, _, note = cuau((2, 2, 4) if args.short else (4, 4, 4))
    print(note)
    model = trained("cuau64", ensemble, lattice, box, args, folder)
    line = ChemicalPotentialLine.exchange(lattice, "Au", "Cu")
    temperatures = np.linspace(200, 950, 6 if args.short else 16)
    x = np.linspace(-0.12, 0.12, 11 if args.short else 41)
    conditions = Conditions.grid(temperatures, x[:, None] @ box.axes)
    drawn = draw(model, ensemble, lattice, conditions, max(args.samples // 3, 20), 5)
    ness = [normalized_ess(w) for w in drawn.log_weight.view(len(conditions), -1).numpy()]
    hull = phases.formation_hull([drawn, phases.pure_ends(ensemble, lattice)])
    print(hull)
    ordered = {
        v.structures[0].formula: v.structures[0].occupations
        for v in hull.vertices
        if len(np.unique(v.structures[0].occupations)) > 1
    }
    asked = np.arange(220, 901, 85 if args.short else 20)
    fields = line_positions(box, line, np.linspace(-0.11, 0.11, 4 if args.short else 12))
    found = {}
    for name, dos in {
        "model": thermodynamics.density_of_states(drawn),
        "parallel tempering": tempering(ensemble, lattice, box, args),
    }.items():
        found[name] = (
            diagram(dos, line, asked, ordered),
            phases.heat_capacity_maxima(dos, line, fields, (asked[0], 900)),
        )
        print(f"-- {name}, {dos.cost.seconds:.0f} s of sampling\n{found[name][0]}", flush=True)
        if name == "model":
            other = [diagram(dos, line, asked, ordered, t) for t in (0.45, 0.55)]
    out = {"sites": lattice.n_sites, "ness_mean": float(np.mean(ness))}
    out |= boundaries_apart(*(found[name][0] for name in found))
    out |= maxima_apart(*(found[name][1] for name in found))
    for p in found["model"][0].points:
        moved = [float(q.temperature.value - p.temperature.value) for d in other for q in d.points
                 if set(q.phases) == set(p.phases)]  # fmt: skip
        if moved:
            out[f"three phases {' + '.join(p.phases)}, by the threshold (K)"] = max(map(abs, moved))
    for key, value in out.items():
        print(f"{key}: {value:.4g}")
    out["diagrams"] = {name: f[0].to_rows() for name, f in found.items()}
    if args.figure:
        picture(args.figure, found["model"][0], found["parallel tempering"][0])
    return out


def picture(path: Path, found, reference) -> None:
    """Lines of the model, points of parallel tempering, over composition and over mu."""
    figure = Figure(figsize=(10.5, 4.8), dpi=110, layout="constrained")
    for ax, against in zip(figure.subplots(1, 2), ("composition", "mu"), strict=True):
        plotting.phase_diagram(ax, found, against=against)
        label = "parallel tempering"
        for b in reference.boundaries:
            if b.kind != "first-order":
                continue
            x = b.composition if against == "composition" else b.mu
            plotting.boundary_points(ax, b.temperature[b.stable], x[b.stable], label=label)
            label = ""
    figure.savefig(path)
    print(f"written: {path}")


def diagram(dos, line, temperatures, ordered, threshold: float = 0.5):
    """Phase diagram with states ordered above one threshold, the same for all data."""
    found = phases.identify(dos, line, temperatures, structures=ordered, threshold=threshold)
    return phases.phase_diagram(dos, found, line, temperatures)


def tempering(ensemble, lattice, box, args) -> DensityOfStates:
    """Parallel tempering in both directions, every second temperature of its grid combined."""
    t, x = np.arange(200, 1201, 100 if args.short else 25), np.linspace(-0.12, 0.12, 41)
    x = np.union1d(x, np.arange(0.0312, 0.0367, 0.0011))  # where Au3Cu is stable, if at all
    fine = Conditions.grid(t, x[:, None] @ box.axes)
    steps = 100 if args.short else 6000
    run = ParallelTempering(ensemble, lattice, fine, (len(t), len(x)), seed=11)
    result = run.run(steps, burn_in=steps // 4, interval=steps // 60)
    every = np.arange(len(fine)).reshape(len(t), len(x))[::2].ravel()
    c = result.configurations
    kept = c[torch.as_tensor(np.isin(c.chain.numpy(), every))]
    return thermodynamics.density_of_states(kept, known=(result.conditions, result.log_z))


def line_positions(box, line, x) -> np.ndarray:
    """Positions along the line of the box's own chemical potentials."""
    mu = x[:, None] @ box.axes
    return (
        (mu - mu.mean(1, keepdims=True))
        @ (line.direction - line.direction.mean())
        / ((line.direction - line.direction.mean()) @ line.direction)
    )


def boundaries_apart(a, b) -> dict:
    """Largest differences of two diagrams along lines that both have, and z-scores."""
    dx, dmu, zx, zmu = [], [], [], []
    other = {line.phases: line for line in b.boundaries}
    for one in a.boundaries:
        two = other.get(one.phases)
        if two is None:
            print(f"only the model has {one.phases}")
            continue
        for i in np.flatnonzero(one.stable):
            j = np.flatnonzero(np.abs(two.temperature.value - one.temperature.value[i]) < 1e-6)
            if len(j) == 0 or not two.stable[j[0]]:
                continue
            x1, e1 = one.composition.value[i], one.composition.error[i]
            x2, e2 = two.composition.value[j[0]], two.composition.error[j[0]]
            dx += list(x1 - x2)
            zx += list((x1 - x2) / np.hypot(e1, e2))
            dmu.append(one.mu.value[i] - two.mu.value[j[0]])
            zmu.append(dmu[-1] / np.hypot(one.mu.error[i], two.mu.error[j[0]]))
    out = {"boundary_points": len(dmu), "boundary_points_of_model": points(a)}
    if dmu:
        out |= {
            "composition_largest_difference": float(np.abs(dx).max()),
            "composition_z_rms": float(np.sqrt(np.mean(np.square(zx)))),
            "composition_within_two_errors": float(np.mean(np.abs(zx) < 2)),
            "mu_largest_difference_eV": float(np.abs(dmu).max()),
            "mu_z_rms": float(np.sqrt(np.mean(np.square(zmu)))),
        }
    for p in a.points:
        same = [q for q in b.points if set(q.phases) == set(p.phases)]
        name = " + ".join(p.phases)
        out[f"three phases {name} (K)"] = float(p.temperature.value)
        if same:
            d = float(p.temperature.value - same[0].temperature.value)
            out[f"three phases {name}, difference (K)"] = d
    return out


def points(diagram) -> int:
    return int(sum(b.stable.sum() for b in diagram.boundaries))


def maxima_apart(a, b) -> dict:
    """Differences of the temperatures of heat-capacity maxima at the same fields."""
    d = a.temperature.value - b.temperature.value
    error = np.hypot(a.temperature.error, b.temperature.error)
    for k in np.flatnonzero(np.isfinite(d)):
        print(
            f"largest heat capacity at {float(a.mu.value[k]):+.4f} eV: {a.temperature[k]} K, "
            f"parallel tempering {b.temperature[k]} K"
        )
    out = {"heat_capacity_maxima": int(np.isfinite(d).sum())}
    sharp = np.isfinite(d) & (error < 10)
    if sharp.any():
        out |= {
            "maxima_known_to_10_K": int(sharp.sum()),
            "their_largest_difference_K": float(np.abs(d[sharp]).max()),
            "their_z_rms": float(np.sqrt(np.mean((d[sharp] / error[sharp]) ** 2))),
        }
    return out


# ------------------------------------------------------------------ main
PARTS = {
    "cuau16": cuau16,
    "hull": hull,
    "ising10": ising10,
    "ising20": ising20,
    "cuau64": cuau64,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; default all")
    parser.add_argument("--seconds", type=float, help="CPU seconds of training")
    parser.add_argument("--samples", type=int, default=300, help="draws a condition")
    parser.add_argument("--replicas", type=int, default=20, help="of cuau16")
    parser.add_argument("--models", type=Path, help="folder to keep models in, and to find them")
    parser.add_argument("--figure", type=Path, help="PNG of the phase diagrams of cuau64")
    parser.add_argument("--out", help="JSON file")
    parser.add_argument("--short", action="store_true", help="16 sites, exact draws, no model")
    args = parser.parse_args()
    unknown = set(args.parts) - set(PARTS)
    if unknown:
        parser.error(f"no such part: {sorted(unknown)}; choose from {sorted(PARTS)}")
    one_thread()
    warnings.simplefilter("ignore", category=UserWarning)
    if args.short:
        args.samples, args.replicas = 60, 1
    figures, budget = {}, args.seconds
    for part in args.parts or PARTS:
        args.seconds = BUDGETS[part] if budget is None else budget
        started = time.thread_time()
        training = "exact draws" if args.short else f"{args.seconds:g} CPU seconds of training"
        print(f"== {part}, {training}", flush=True)
        figures[part] = PARTS[part](args, args.models)
        figures[part]["cpu_seconds"] = time.thread_time() - started
    write_json(args.out, "thermodynamics", figures)


if __name__ == "__main__":
    main()
