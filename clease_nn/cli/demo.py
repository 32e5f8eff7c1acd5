"""The demonstration: one expansion, one training, a grid of conditions, exact values beside."""

from __future__ import annotations

import json
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from clease.montecarlo import SGCMonteCarlo

from clease_nn import plotting, thermodynamics
from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.hosts.clease.examples import cuau_emt_atoms
from clease_nn.hosts.clease.sampler import NeuralSGCSampler
from clease_nn.statistics import Estimate, integrated_autocorrelation_time

TEMPERATURES = (300, 400, 500, 700, 1000)
CHEM_POTS = (-0.08, -0.065, -0.05, -0.035, -0.02, -0.005, 0.01, 0.025, 0.04)
SHOWN = (-0.05, -0.02, 0.01)  # columns of the printed table; the file has all
_HEADER = f"{'T':>5} {'c1_0':>6} |{'x(Au)':^25}|{'E (meV/site)':^25}|{'C (kB/site)':^23}|" + (
    f"{'Phi (meV/site)':^27}| NESS"
)
_AU = 0  # Au is the first species of the lattice
KB_MEV = 8.617333262e-2


def run_demo(out: Path, *, seconds: float, seed: int, short: bool) -> None:
    """Run everything and write table, figures and model into ``out``."""
    atoms = cuau_emt_atoms((2, 2, 4))
    n_sites = len(atoms)
    print(
        f"Cu-Au cluster expansion (fitted to EMT with CLEASE), {n_sites} sites, 2^{n_sites} states"
    )
    mc = NeuralSGCSampler(atoms, 600, symbols=["Au", "Cu"], seed=seed)
    trained = mc.fit(
        temps=(min(TEMPERATURES), max(TEMPERATURES)),
        chem_pots={"c1_0": (min(CHEM_POTS), max(CHEM_POTS))},
        max_seconds=seconds,
        seed=seed,
        threads=1,
    )
    meta = trained.metadata
    n = 200 if short else 1000
    started = time.perf_counter()
    points = [(t, x) for t in TEMPERATURES for x in CHEM_POTS]
    drawn = [mc.sample(n, temp=t, chem_pot={"c1_0": x}) for t, x in points]
    neural_seconds = time.perf_counter() - started
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        averages = [_averages(c) for c in drawn]
    ensemble, lattice = mc.ensemble, mc.lattice
    exact = _exact(ensemble, lattice, Conditions.cat(c.conditions[:1] for c in drawn))
    _print_table(averages, exact, n_sites)
    if caught:
        print(f"{len(caught)} of {len(drawn)} conditions carry a warning, the first: ")
        print(f"  {caught[0].message}")
    if None in averages:
        print(f"{averages.count(None)} conditions are not determined: train longer")
    z = _z_scores(averages, exact)
    print(
        f"differences to exact in standard errors, {len(z['x'])} conditions that fluctuate: "
        + ", ".join(f"{k} rms {np.sqrt(np.mean(np.square(s))):.2f}" for k, s in z.items())
    )

    host_steps = 2_000 if short else 20_000
    host, host_seconds = _host(atoms, host_steps)
    _print_cost(meta, neural_seconds, n * len(drawn), host_seconds, host_steps)
    rows = [
        {"temperature": t, "c1_0": x, **({} if a is None else a.to_dict())}
        for (t, x), a in zip(points, averages, strict=True)
    ]
    (out / "table.json").write_text(json.dumps(rows, indent=1) + "\n")
    _figures(out, averages, host, meta["history"])
    model_path = out / "cuau.nn"
    mc.save(model_path)
    print(f"\nwritten to {out}: composition.png, ness.png, isotherms.png, training.png, table.json")
    print(_LINES.format(model=model_path))


_LINES = """
In your own CLEASE script change one line and add one:

    from clease_nn import NeuralSGCSampler as SGCMonteCarlo    # was: from clease.montecarlo import SGCMonteCarlo
    mc = SGCMonteCarlo(atoms, 600, symbols=["Au", "Cu"])       # atoms.calc is a Clease calculator
    mc.fit(temps=(300, 1000), chem_pots={{"c1_0": (-0.08, 0.04)}}, max_seconds=120, seed=1)   # once
    mc.run(5000, chem_pot={{"c1_0": 0.03}})                      # as before
    mc.get_thermodynamic_quantities()                          # as before
    mc.free_energy(temp=600, chem_pot={{"c1_0": 0.03}})          # absolute, with an error bar
    mc.save("cuau.nn")                                         # later: SGCMonteCarlo(..., model="cuau.nn")

All conditions at once, phase boundaries included: mc.density_of_states(80, temps, chem_pots); README shows the way
from there to a phase diagram.

The model of this run is {model}."""  # noqa: E501


def _averages(c: Configurations):
    """Averages at one condition, or None where thermodynamics refuses to give any."""
    try:
        return thermodynamics.averages(c)[0]
    except ValueError:
        return None


def _exact(ensemble, lattice, conditions: Conditions) -> dict[str, np.ndarray]:
    """Exact averages by enumeration, one value a condition."""
    states = ensemble.enumerate(lattice)
    au = (states.occupations == lattice.species.index("Au")).sum(1).double()
    counts = torch.stack([(states.occupations == a).sum(1) for a in range(lattice.n_species)], 1)
    capacity = []
    for k in range(len(conditions)):
        c = conditions[k]
        sgc = states.energy - counts.double() @ c.mu[0]
        mean = states.mean(c, torch.stack([sgc, sgc**2], 1))[0]
        capacity.append((mean[1] - mean[0] ** 2) / (c.kT[0] * c.temperature[0]))
    return {
        "x": states.mean(conditions, au).numpy() / lattice.n_sites,
        "energy": states.mean(conditions, states.energy).numpy(),
        "heat_capacity": torch.stack(capacity).numpy(),
        "grand_potential": (-conditions.kT * states.log_z(conditions)).numpy(),
    }


def _z_scores(averages, exact) -> dict[str, np.ndarray]:
    exact = {k: v[[a is not None for a in averages]] for k, v in exact.items()}
    averages = [a for a in averages if a is not None]
    au = _AU
    estimates = {
        "x": [a.composition[au] for a in averages],
        "energy": [a.energy for a in averages],
        "grand_potential": [a.grand_potential for a in averages],
    }
    out = {}
    for name, values in estimates.items():
        z = np.array([e.z(x) for e, x in zip(values, exact[name], strict=True)], dtype=float)
        # a phase without fluctuations has no error to compare with
        moving = np.array([a.count_covariance.value[au, au] * a.n > 20 for a in averages])
        out[name] = z[moving]
    return out


def _print_table(averages, exact, n_sites: int) -> None:
    print("\nvalue(error) exact; C at constant chemical potential; Phi = -kT ln Z")
    print(_HEADER)
    au = _AU
    for k, a in enumerate(averages):
        x_mu = CHEM_POTS[k % len(CHEM_POTS)]
        if x_mu not in SHOWN:
            continue
        if a is None:
            print(f"{TEMPERATURES[k // len(CHEM_POTS)]:5.0f} {x_mu:6.3f} | not determined")
            continue
        columns = [
            (a.composition[au], 1.0, exact["x"][k], 4),
            (a.energy, 1e3 / n_sites, exact["energy"][k], 2),
            (a.heat_capacity, 1e3 / n_sites / KB_MEV, exact["heat_capacity"][k], 3),
            (a.grand_potential, 1e3 / n_sites, exact["grand_potential"][k], 3),
        ]
        text = " | ".join(
            f"{float(e.value) * s:.{d}f}({float(e.error) * s:.{d}f}) {x * s:.{d}f}".center(w)
            for (e, s, x, d), w in zip(columns, (23, 23, 21, 25), strict=True)
        )
        print(f"{a.temperature:5.0f} {x_mu:6.3f} | {text} | {a.ness:.2f}")


def _host(atoms, steps: int):
    """CLEASE's own sampler at the same conditions: composition with errors, and seconds."""
    mc = SGCMonteCarlo(atoms, TEMPERATURES[0], symbols=["Au", "Cu"])
    value = np.empty((len(TEMPERATURES), len(CHEM_POTS)))
    error = np.empty_like(value)
    started = time.perf_counter()
    for i, t in enumerate(TEMPERATURES):
        for j, x in enumerate(CHEM_POTS):
            mc.temperature = t
            mc.run(steps // 10, chem_pot={"c1_0": x}, call_observers=False)
            series = np.fromiter(
                ((atoms.numbers == 79).mean() for _ in mc.irun(steps)), dtype=float, count=steps
            )
            tau = max(integrated_autocorrelation_time(series), 1.0)
            value[i, j] = series.mean()
            error[i, j] = series.std() * np.sqrt(tau / steps)
    seconds = time.perf_counter() - started
    mc.reset_eci()
    return Estimate(value, error, np.full_like(value, np.nan)), seconds


def _print_cost(meta, neural_seconds, n_drawn, host_seconds, host_steps) -> None:
    n = len(TEMPERATURES) * len(CHEM_POTS)
    print(f"\ncost                    {'energy evaluations':>20} {'seconds':>9}")
    print(
        f"training, once          {meta['energy_evaluations']:>20,} {meta['training_seconds']:9.1f}"
    )
    print(f"{n} conditions, neural   {n_drawn:>20,} {neural_seconds:9.1f}")
    print(f"{n} conditions, CLEASE   {n * host_steps:>20,} {host_seconds:9.1f}")
    print(
        "A single-site energy difference counts as one evaluation. For so cheap an energy and so "
        "small a cell Monte Carlo is quick too;\nwhat it does not give are absolute ln Z, "
        "conditions between the grid points, and error bars without autocorrelation."
    )


def _figures(out: Path, averages, host: Estimate, history) -> None:
    shape = (len(TEMPERATURES), len(CHEM_POTS))

    def table(of):
        return np.array([np.nan if a is None else of(a) for a in averages]).reshape(shape)

    x = Estimate(
        table(lambda a: a.composition.value[_AU]),
        table(lambda a: a.composition.error[_AU]),
        table(lambda a: a.ness),
    )
    label = "chemical potential c1_0 (eV)"
    fig, ax = plotting.figure()
    plotting.condition_map(
        ax, TEMPERATURES, CHEM_POTS, x, "share of Au", mu_label=label, limits=(0, 1)
    )
    fig.savefig(out / "composition.png")
    fig, ax = plotting.figure()
    plotting.condition_map(ax, TEMPERATURES, CHEM_POTS, x.ness, "NESS", mu_label=label,
                           limits=(0, 1))  # fmt: skip
    fig.savefig(out / "ness.png")
    fig, ax = plotting.figure()
    plotting.isotherms(
        ax, TEMPERATURES, CHEM_POTS, x, species="Au", mu_label=label, reference=host,
        reference_label="CLEASE SGCMonteCarlo",
    )  # fmt: skip
    fig.savefig(out / "isotherms.png")
    fig, ax = plotting.figure()
    plotting.training_curve(ax, history)
    fig.savefig(out / "training.png")
