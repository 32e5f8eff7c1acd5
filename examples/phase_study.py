"""From a cluster expansion to its phase diagram: train, draw, read everything off, check, plot.

    python examples/phase_study.py --expansion cuau_emt.json --temps 150 600 --c1 -0.05 0.03

does for any binary CLEASE expansion (a file as examples/fit_emt_expansion.py writes it) what
examples/agpd_miscibility_gap.py and examples/cuau_ordering.py do for the project's own two. It
prints the boundaries with their errors and what all has cost, and writes two figures and a JSON
file. CLEASE's own Monte Carlo, started on both sides of every boundary, is on top.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from math import nan
from pathlib import Path

import numpy as np
from clease.montecarlo import SGCMonteCarlo
from matplotlib.figure import Figure

from clease_nn import Estimate, NeuralSGCSampler, phases, plotting, thermodynamics
from clease_nn.cost import Cost, Route, cost_table
from clease_nn.errors import NotDeterminedError
from clease_nn.hosts.clease.examples import emt_atoms
from clease_nn.hosts.clease.recorder import ConfigurationRecorder
from clease_nn.statistics import series_mean


def main(argv: Sequence[str] | None = None) -> dict:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--expansion", type=Path, required=True, help="JSON: eci and settings")
    parser.add_argument("--temps", type=float, nargs=2, required=True, help="range in K")
    parser.add_argument("--c1", type=float, nargs=2, required=True, help="range of c1_0 in eV")
    parser.add_argument("--size", type=int, nargs=3, default=(4, 4, 4), help="primitive cells")
    args = parser.parse_args(argv)
    data = json.loads(args.expansion.read_text(encoding="utf-8"))
    return study(args.expansion.stem, data, args, temps=args.temps, c1=args.c1, size=args.size)


def arguments(description: str) -> argparse.ArgumentParser:
    """The options that all studies share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--short", action="store_true", help="small cell, seconds of training")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for what is made")
    parser.add_argument("--seconds", type=float, default=240.0, help="of training")
    parser.add_argument("--samples", type=int, default=80, help="draws at each condition")
    parser.add_argument("--model", type=Path, help="a model to use; made if there is no such file")
    parser.add_argument("--seed", type=int, default=1)
    return parser


def study(
    name: str,
    data: dict,
    args: argparse.Namespace,
    *,
    temps: tuple[float, float],
    c1: tuple[float, float],
    size: tuple[int, int, int] = (4, 4, 4),
    grid: Sequence[float] | None = None,
    isotherms: Sequence[float] | None = None,
    order: Sequence[float] = (),
    ordered: str = "",
) -> dict:
    """Train, draw, find the phases, check with CLEASE's Monte Carlo, and draw the figures.

    Parameters
    ----------
    name : str
        Of the files.
    data : dict
        Expansion: ``eci`` and ``settings``.
    args : Namespace
        Of :func:`arguments`.
    temps, c1 : (low, high)
        K; eV of CLEASE's ``c1_0``.
    size : tuple of int
        Primitive cells.
    grid : sequence of float, optional
        ``c1_0`` [eV] at which configurations are drawn, densest where phases coexist. Default:
        15 over the range.
    isotherms : sequence of float, optional
        Temperatures [K] of isotherms and free energies. Default: three over the range.
    order : sequence of float
        ``c1_0`` [eV] at which maxima of the heat capacity are looked for: an order-disorder line.
    ordered : str
        The phase below that line.
    """
    start = time.perf_counter()
    elements = data["settings"]["basis_elements"][0]
    size = (2, 2, 4) if args.short else size
    n_temps = 5 if args.short else 10
    grid = np.linspace(*c1, 5 if args.short else 15) if grid is None or args.short else grid
    isotherms = np.linspace(*temps, 5)[1:4] if isotherms is None else np.asarray(isotherms)
    args.out.mkdir(parents=True, exist_ok=True)

    sampler = trained_sampler(name, data, size, elements, args, temps, c1)
    drawn = sampler.sample_grid(args.samples, np.geomspace(*temps, n_temps), {"c1_0": grid})
    dos = thermodynamics.density_of_states(drawn)
    line = sampler.line("c1_0")

    ends = phases.pure_ends(sampler.ensemble, sampler.lattice)
    hull = phases.formation_hull([drawn, ends])
    found = phases.identify(dos, line)
    diagram = phases.phase_diagram(dos, found, line, np.linspace(*temps, 9 if args.short else 24))
    if len(order):
        dome = order_line(dos, found, line, order, temps, ordered)
        others = [b for b in diagram.boundaries if b.kind != "heat-capacity maximum"]
        diagram = replace(diagram, boundaries=(*others, *dome))

    host = HostChains(data, size, line.species, args.seed, sweeps=20 if args.short else 300)
    lines = [b for b in diagram.boundaries if b.slope is not None]
    ties = [host.both_sides(dos, found, line, b) for b in lines]
    mus = np.linspace(*c1, 13 if args.short else 49)
    curves = compositions(dos, line, isotherms, mus)
    rising, falling, spent = host.sweep(isotherms, mus, every=4)
    table = costs(dos, curves, rising, falling, spent)

    print(f"\n{hull}\n\n{found}\n\n{boundary_table(diagram)}\n\n{table}")
    print("examples/benchmarks/phase_map.py sets parallel tempering beside these two")
    picture = phase_figure(diagram, ties)
    picture.savefig(args.out / f"{name}_phase_diagram.png", dpi=120)
    picture = other_figure(dos, line, diagram, hull, isotherms, mus, curves, rising, falling, table)
    picture.savefig(args.out / f"{name}_thermodynamics.png", dpi=90)
    result = {
        "diagram": diagram.to_dict(),
        "hull": hull.to_rows(),
        "isotherms": {
            "temperatures": list(map(float, isotherms)),
            "c1_0": mus.tolist(),
            "neural": as_json(curves),
            "monte_carlo_rising": as_json(rising),
            "monte_carlo_falling": as_json(falling),
        },
        "monte_carlo_at_boundaries": [
            {"phases": b.phases, "temperature": t.value.tolist(), "composition": as_json(x)}
            for b, (t, x) in zip(lines, ties, strict=True)
        ],
        "cost": [] if table is None else table.to_rows(),
        "seconds": time.perf_counter() - start,
    }
    text = json.dumps(result, indent=1)
    (args.out / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    print(f"\nwrote {args.out / name}*.png and .json after {result['seconds']:.0f} s")
    return result


def trained_sampler(name, data, size, elements, args, temps, c1) -> NeuralSGCSampler:
    """A sampler with a model of the whole range, trained unless a file has one."""
    model = args.model or args.out / f"{name}.nn"
    known = args.model is not None and model.exists()
    sampler = NeuralSGCSampler(
        emt_atoms(data, size),
        temps[1],
        symbols=elements,
        seed=args.seed,
        neural_interval=None,
        model=model if known else None,
    )
    if not known:
        short = {"max_steps": 150, "validation_samples": 16}
        options = short if args.short else {"max_seconds": args.seconds}
        sampler.fit(temps=temps, chem_pots={"c1_0": c1}, seed=args.seed, **options)
        sampler.save(model)
    return sampler


def order_line(dos, found, line, mus, temps, ordered: str) -> list[phases.Boundary]:
    """Both flanks of an order-disorder line, from maxima of the heat capacity."""
    mus = np.asarray(mus)
    outside = next(name for name in found.names if name not in found.structures)
    maxima = phases.heat_capacity_maxima(dos, line, mus, temps)
    if not maxima.stable.any():
        return []
    top = int(np.nanargmax(maxima.temperature.value))
    flanks = (slice(None, top + 1), (outside, ordered)), (slice(top, None), (ordered, outside))
    return [
        replace(
            maxima,
            phases=pair,
            temperature=maxima.temperature[rows],
            mu=maxima.mu[rows],
            composition=maxima.composition[rows],
            stable=maxima.stable[rows],
        )
        for rows, pair in flanks
    ]


# ------------------------------------------------------------------ the host's Monte Carlo
class HostChains:
    """Short runs of CLEASE's ``SGCMonteCarlo``, and what they have cost.

    Parameters
    ----------
    data, size
        Expansion and primitive cells.
    species : str
        Whose share of the sites is measured.
    seed : int
        Of the configurations that runs start from.
    sweeps : int
        Of a run; a fifth as many go before it.
    """

    def __init__(self, data: dict, size, species: str, seed: int, sweeps: int):
        self.atoms, self.species, self.sweeps = emt_atoms(data, size), species, sweeps
        self.elements = data["settings"]["basis_elements"][0]
        self.rng = np.random.default_rng(seed)

    def run(self, temperature: float, symbols, path) -> tuple[list[Estimate], Cost]:
        """Mean shares of the species at one ``c1_0`` after another, and the cost of all.

        Parameters
        ----------
        symbols : str or sequence of str
            What the atoms are at first.
        path : sequence of float
            eV.
        """
        atoms = self.atoms
        atoms.symbols[:] = symbols
        mc = SGCMonteCarlo(atoms, float(temperature), symbols=self.elements)
        recorder, shares, cost = None, [], []
        for c1 in path:
            potential = {"c1_0": float(c1)}
            mc.run(self.sweeps // 5 * len(atoms), chem_pot=potential, call_observers=False)
            if recorder is None:
                recorder = ConfigurationRecorder(mc)
                mc.attach(recorder, interval=len(atoms))
            mc.run(self.sweeps * len(atoms), chem_pot=potential)
            c = recorder.configurations()
            column = c.lattice.species.index(self.species)
            shares.append(series_mean(c.counts()[:, column].numpy() / c.lattice.n_sites))
            cost.append(recorder.cost)
        mc.reset_eci()
        return shares, Cost.sum(cost)

    def sweep(self, temperatures, mus, every: int) -> tuple[Estimate, Estimate, Cost]:
        """Isotherms from pure crystals on, with rising and with falling ``c1_0``, (T, mu).

        Runs are made at every few of the ``mus`` only; the others are nan.
        """
        found, total = [], []
        poor = next(e for e in self.elements if e != self.species)
        run = np.arange(0, len(mus), every)
        for first, path in ((poor, run), (self.species, run[::-1])):
            value, error = np.full((2, len(temperatures), len(mus)), nan)
            for k, temperature in enumerate(temperatures):
                shares, cost = self.run(temperature, first, mus[path])
                value[k, path] = [e.value for e in shares]
                error[k, path] = [e.error for e in shares]
                total.append(cost)
            found.append(Estimate(value, error, nan))
        return *found, Cost.sum(total)

    def both_sides(self, dos, found, line, boundary) -> tuple[Estimate, Estimate]:
        """Where chains stay that start in either phase where both coexist.

        Six temperatures at most, where the weight between the phases is below a fiftieth of
        the lower peak: elsewhere chains of a small cell go back and forth between them.

        Returns
        -------
        temperatures : Estimate, shape (n,)
        compositions : Estimate, shape (n, 2)
        """
        points = []
        for k in np.flatnonzero(boundary.stable):
            t, mu = float(boundary.temperature.value[k]), float(boundary.mu.value[k])
            pair = phases.coexistence(dos, found, boundary.phases, line, t, near=mu)
            if pair.valley.value < 0.02:
                points.append((t, mu))
        few = np.unique(np.linspace(0, len(points) - 1, 6).astype(int)) if points else []
        points = [points[k] for k in few]
        rows = []
        for temperature, at in points:
            log_w = dos.log_weights(line.at(temperature, at))
            ends = []
            for phase in boundary.phases:
                log_p = np.where(found.mask(phase), log_w, -np.inf)
                p = np.exp(log_p - log_p.max())
                start = dos.occupations[self.rng.choice(len(p), p=p / p.sum())]
                symbols = np.array(dos.lattice.species)[start.numpy()]
                [share], _ = self.run(temperature, symbols, [at])
                ends.append(share)
            rows.append(stacked(ends))
        temperatures = np.array([t for t, _ in points])
        ends = stacked(rows) if rows else Estimate(np.empty((0, 2)), np.empty((0, 2)), nan)
        return Estimate(temperatures, 0 * temperatures, nan), ends


# ------------------------------------------------------------------ numbers
def stacked(estimates: Sequence[Estimate]) -> Estimate:
    """One estimate of arrays."""
    value, error = (np.array([getattr(e, k) for e in estimates]) for k in ("value", "error"))
    return Estimate(value, error, nan)


def as_json(e: Estimate) -> dict:
    """Lists, with None for what is not determined."""

    def plain(x):
        return np.where(np.isfinite(x), np.asarray(x, dtype=object), None).tolist()

    return {"value": plain(e.value), "error": plain(e.error)}


def compositions(dos, line, temperatures, mus) -> Estimate:
    """Mean share of the line's species at all pairs (T, mu), nan where not determined."""
    value = np.full((len(temperatures), len(mus)), nan)
    error = value.copy()
    share = line.composition(dos)
    for k, temperature in enumerate(temperatures):
        conditions = line.at(temperature, mus)
        known = dos.determined(conditions)
        if known.any():
            e = dos.mean(share, conditions[np.flatnonzero(known)])
            value[k, known], error[k, known] = e.value, e.error
    return Estimate(value, error, nan)


def costs(dos, curves: Estimate, rising: Estimate, falling: Estimate, spent: Cost):
    """Both routes at equal error of the composition, where the host's two directions agree."""
    ran = np.isfinite(rising.value) & np.isfinite(curves.value)
    gap = np.abs(rising.value - falling.value)
    agree = ran & (gap <= np.minimum(4 * np.hypot(rising.error, falling.error), 0.02))
    agree &= rising.error > 0
    n = int(ran.sum())
    if not agree.any():
        return None

    def rms(e: Estimate) -> float:
        return max(float(np.sqrt(np.mean(e.error[agree] ** 2))), 1e-9)

    stuck = f"{n - agree.sum()} of {n} conditions left out: its two directions differ there"
    return cost_table(
        [
            Route("neural sampler", dos.cost, n, rms(curves), "all draws serve every condition"),
            Route("CLEASE, both directions", spent, n, rms(rising) / 2**0.5, stuck),
        ],
        unit="in the composition",
    )


def boundary_table(diagram: phases.PhaseDiagram) -> str:
    """The boundaries as text."""
    lines = [f"{'T (K)':>16} {diagram.line.label:>20} {'compositions':>32}  phases"]
    for b in diagram.boundaries:
        for k in range(len(b.stable)):
            if not np.isfinite(b.temperature.value[k]):
                continue
            t, mu, x = b.temperature[k], b.mu[k], b.composition[k]
            same = b.slope is None
            ends = [f"{v:.4f} +- {e:.4f}" for v, e in zip(x.value, x.error, strict=True)]
            lines.append(
                f"{t.value:8.1f} +- {np.nan_to_num(t.error):4.1f} {mu.value:11.5f} +- "
                f"{np.nan_to_num(mu.error):.5f} {ends[0] if same else '  '.join(ends):>32}  "
                f"{' + '.join(b.phases)}{'' if b.stable[k] else ' (not stable)'}"
            )
        lines.append(f"    {b.kind}: {b.reason}")
    lines += map(str, diagram.points)
    return "\n".join([*lines, *(f"not determined: {text}" for text in diagram.undetermined)])


# ------------------------------------------------------------------ pictures
def phase_figure(diagram: phases.PhaseDiagram, ties) -> Figure:
    """Temperature against composition and against chemical potential."""
    figure = Figure(figsize=(10.5, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    plotting.phase_diagram(left, diagram)
    if any(len(t.value) for t, _ in ties):
        temperature = np.concatenate([t.value for t, _ in ties])
        value = np.concatenate([x.value for _, x in ties])
        error = np.concatenate([x.error for _, x in ties])
        ends, exact = Estimate(value, error, nan), Estimate(temperature, 0 * temperature, nan)
        plotting.boundary_points(left, exact, ends, label="CLEASE Monte Carlo from either phase")
    plotting.phase_diagram(right, diagram, against="mu")
    right.locator_params(axis="x", nbins=6)
    return figure


def other_figure(
    dos, line, diagram, hull, isotherms, mus, curves, rising, falling, table
) -> Figure:
    """Isotherms, free energies, hull and cost."""
    figure = Figure(figsize=(10.5, 8.4), layout="constrained")
    (a, b), (c, d) = figure.subplots(2, 2)
    plotting.isotherms(
        a, isotherms, mus, curves, species=line.species, mu_label=line.label,
        reference={"CLEASE, rising": rising, "CLEASE, falling": falling},
    )  # fmt: skip
    a.locator_params(axis="x", nbins=6)
    canonical = thermodynamics.canonical(dos, isotherms)
    try:
        plotting.free_energy(
            b,
            canonical,
            species=line.species,
            tangents=tangents(canonical, line, diagram),
            pure_energies=dict(zip(hull.lattice.species, map(float, hull.references), strict=True)),
        )
    except NotDeterminedError as error:
        b.set_title(str(error), fontsize=7, wrap=True)
    b.set_ylim(top=b.get_ylim()[0] + 1.4 * np.ptp(b.get_ylim()))  # room for the legend
    plotting.hull(c, hull, species=line.species)
    if table is not None:
        plotting.cost(d, table)
    return figure


def tangents(canonical, line, diagram) -> phases.Boundary:
    """Common tangents at the temperatures of first-order lines; others are noise of F(x)."""
    found = phases.common_tangent(canonical, line.species, min_width=4.5 / canonical.n_sites)
    keep = np.zeros(len(found.stable), bool)
    for b in diagram.boundaries:
        if b.slope is not None:
            low, high = b.temperature.value[b.stable].min(), b.temperature.value[b.stable].max()
            keep |= (low <= found.temperature.value) & (found.temperature.value <= high)
    rows = np.flatnonzero(keep)
    return replace(
        found,
        temperature=found.temperature[rows],
        mu=found.mu[rows],
        composition=found.composition[rows],
        stable=found.stable[rows],
    )


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
