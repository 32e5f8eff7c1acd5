"""True energies a sample: two-level sampling of a relaxed calculator against plain Metropolis.

    python examples/benchmarks/two_level.py [--short] [--out FILE]

fcc Au-Cu, 16 sites, EMT with relaxed positions. All configurations are computed once (652 up to
symmetry), so that averages are exact and any number of energy calls can be counted without waiting
for them. A surrogate is fitted where the sampler goes; then, at conditions that include the maxima
of the heat capacity along two chemical potentials (order against disorder), the table shows the
energies a chain asks for per effective sample (the slowest of E - mu.N and composition decides) of

* ``metropolis``: single-site Metropolis with the true energy,
* ``two levels``: delayed acceptance with the fitted surrogate,
* ``coarse``: delayed acceptance with a poor one, pairs and nearest triangles fitted to 30 energies.

``calls``: no duplicate is forgiven. ``distinct``: configurations that differ by symmetry in as many
steps as make 200 effective samples, what a cache would compute (at most 652 here). z: mean minus
exact average, in errors, of E - mu.N and composition; ``z surr.``: the same against the exact
averages of the surrogate, which are wrong where it is large. A chain of fewer than 50 effective
samples is too short for either. NESS: of importance weights with the
true energy, for exact draws of the surrogate and for draws of a model trained on it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from ase.build import bulk
from ase.calculators.emt import EMT
from common import one_thread, write_json

from clease_nn.conditions import ConditionRange, Conditions
from clease_nn.energies.calculator import CalculatorEnergy, Relaxation
from clease_nn.ensemble import Enumeration, SemiGrandCanonical
from clease_nn.lattice import Lattice
from clease_nn.sampling import sample
from clease_nn.single_chain import EnergyChain, FlipGroups
from clease_nn.statistics import (
    integrated_autocorrelation_time,
    normalized_ess,
    series_mean,
)
from clease_nn.surrogate import DelayedAcceptanceChain, Surrogate, fit_surrogate
from clease_nn.symmetry import canonical_occupations, site_permutations
from clease_nn.thermodynamics import averages
from clease_nn.training import fit

AIM = 3.0  # true energies an effective sample
EFFECTIVE, FEWEST = 200, 50  # effective samples: of "distinct"; for an error bar
BOX = ConditionRange((150.0, 1200.0), [-0.4], [0.4], [[0.5, -0.5]])


class Table:
    """The true energy by look-up: as many calls as one likes."""

    def __init__(self, exact: Enumeration, fields):
        self.partial_fields = fields  # what the model trained on the surrogate asks for
        self._powers = 2 ** torch.arange(exact.lattice.n_sites)
        self._energy = torch.empty(len(exact.energy), dtype=torch.float64)
        self._energy[exact.occupations.long() @ self._powers] = exact.energy

    def __call__(self, lattice: Lattice, occupations: torch.Tensor) -> torch.Tensor:
        """Energies in eV."""
        return self._energy[occupations.long() @ self._powers]


class Recorder:
    """Keeps every configuration that an energy is asked for."""

    def __init__(self, energy):
        self.energy, self.asked = energy, []

    def __call__(self, lattice: Lattice, occupations: torch.Tensor) -> torch.Tensor:
        """Energies in eV."""
        self.asked += list(occupations.numpy().copy())
        return self.energy(lattice, occupations)


def conditions_of(exact: Enumeration) -> list[tuple[str, Conditions]]:
    """Peaks of the heat capacity along two chemical potentials, and a hot and a cool place."""
    temperatures = np.arange(160.0, 1000.0, 10.0)
    rows = []
    for mu in (-0.2, 0.2):
        capacity = []
        for t in temperatures:
            c = Conditions([t], [[mu / 2, -mu / 2]])
            p, log_target = exact.probabilities(c), exact.log_target(c)
            capacity.append(float((p * log_target**2).sum() - (p * log_target).sum() ** 2))
        rows.append(("ordering", float(temperatures[int(np.argmax(capacity))]), mu))
    rows += [("cool", 300.0, 0.0), ("hot", 1000.0, 0.0)]
    return [(name, Conditions([t], [[mu / 2, -mu / 2]])) for name, t, mu in rows]


def exact_means(exact: Enumeration, c: Conditions) -> tuple[float, float]:
    """<E - mu.N> in eV and the share of the second species."""
    share = exact.occupations.double().mean(1)
    n = share * exact.lattice.n_sites
    e = exact.energy - c.mu[0, 0] * (exact.lattice.n_sites - n) - c.mu[0, 1] * n
    return float(exact.mean(c, e)), float(exact.mean(c, share))


def measure(chain, recorder, lattice, permutations, c, steps, references, seed) -> dict:
    """Run a chain from a random configuration; calls, distinct structures, z-scores."""
    mu = c.mu[0].numpy()
    chain.seed(np.random.SeedSequence(seed))
    chain.set(float(c.kT[0]), mu, FlipGroups([(range(lattice.n_sites), [0, 1])], lattice.allowed))
    x = np.random.default_rng(seed).integers(2, size=lattice.n_sites).astype(np.int8)
    chain.load(x, float(recorder.energy(lattice, torch.from_numpy(x[None]))[0]) - mu[x].sum())
    chain.run(steps // 20)
    recorder.asked.clear()
    accepted, start = chain.accepted, time.perf_counter()
    rows, calls = np.empty((steps, 2)), np.empty(steps, dtype=int)
    for k in range(steps):
        chain.run(1)
        rows[k] = chain.energy, chain.values[0]
        calls[k] = len(recorder.asked)
    tau = max(integrated_autocorrelation_time(v) for v in rows.T)
    enough = min(int(np.ceil(EFFECTIVE * tau)), steps)
    asked = np.array(recorder.asked[: calls[enough - 1]])
    distinct = len(np.unique(canonical_occupations(asked, permutations), axis=0))
    means = [series_mean(v) for v in rows.T]
    return {
        "inner": getattr(chain, "inner", None),
        "acceptance": (chain.accepted - accepted) / steps,
        "tau": tau,
        "calls_per_effective": float(calls[-1] / (steps / tau)),
        "distinct": distinct,
        "distinct_per_effective": distinct / (enough / tau),
        "z": {
            name: [float(m.z(v)) for m, v in zip(means, values, strict=True)]
            for name, values in references.items()
        },
        "seconds": time.perf_counter() - start,
    }


def error_where_sampled(exact: Enumeration, surrogate: Surrogate, c: Conditions) -> dict:
    """Error over the true distribution, and NESS of exact draws of the surrogate."""
    deviation = surrogate.energy(exact.lattice, exact.occupations) - exact.energy
    p, beta = exact.probabilities(c), float(c.beta[0])
    log_w = beta * deviation
    q = torch.softmax(p.log() - log_w, 0)
    w = torch.exp(log_w - log_w.max())
    return {
        "rmse_eV_per_site": float((p * deviation**2).sum().sqrt()) / exact.lattice.n_sites,
        "mean_abs_kT": float((p * deviation.abs()).sum()) * beta,
        "ness_exact_draws": float((q * w).sum() ** 2 / (q * w**2).sum()),
    }


def main(short: bool, out: str | None) -> None:
    """Measure, print, write and check the aim."""
    one_thread()
    lattice = Lattice.uniform(bulk("Au", a=3.8) * (2, 2, 2 if short else 4), ["Au", "Cu"])
    permutations = site_permutations(lattice)
    with tempfile.TemporaryDirectory() as scratch:
        paid = CalculatorEnergy(
            EMT(), relax=Relaxation(fmax=0.01), cache=Path(scratch) / "energies.db"
        )
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            surrogate = fit_surrogate(paid, lattice, BOX, seed=1)
        fit_seconds, fit_calls = time.perf_counter() - start, paid.calls
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            coarse = fit_surrogate(
                paid, lattice, BOX, max_calls=30, cutoffs={2: 9.0, 3: 3.0}, seed=1
            )
        exact = SemiGrandCanonical(paid).enumerate(lattice)
    table = Table(exact, surrogate.energy.partial_fields)
    true = SemiGrandCanonical(table)
    print(f"EMT relaxed, {lattice.n_sites} sites, {paid.calls} configurations up to symmetry")
    print(f"fitted: {surrogate.report}, {fit_calls} relaxations, {fit_seconds:.0f} s")
    print(f"coarse: {coarse.report}")
    model = fit(
        SemiGrandCanonical(surrogate.energy),
        lattice,
        BOX,
        max_seconds=3 if short else 60,
        seed=0,
        progress=False,
    ).model

    figures = {
        "fit": {**vars(surrogate.report), "relaxations": fit_calls, "seconds": fit_seconds},
        "coarse_fit": vars(coarse.report),
        "conditions": [],
    }
    surrogates = {"two levels": surrogate, "coarse": coarse}
    tables = {k: SemiGrandCanonical(s.energy).enumerate(lattice) for k, s in surrogates.items()}
    print(
        f"{'condition':<26}{'chain':<12}{'inner':>7}{'accept':>8}{'tau':>8}{'calls':>8}"
        f"{'distinct':>10}{'z E, x':>13}{'z surr.':>15}"
    )
    for k, (name, c) in enumerate(conditions_of(exact)):
        t, mu = float(c.temperature[0]), float(c.mu[0, 0] - c.mu[0, 1])
        row = {"name": name, "temperature": t, "mu": mu, "chains": {}}
        row["surrogate"] = {n: error_where_sampled(exact, s, c) for n, s in surrogates.items()}
        label = f"{name} {t:.0f} K, {mu:+.1f} eV"
        for kind in ("metropolis", *surrogates):
            recorder = Recorder(table)
            references = {"true": exact_means(exact, c)}
            if kind == "metropolis":
                chain = EnergyChain(recorder, lattice, [[0.0, 1.0]])
                steps = 5000 if short else 150_000
            else:
                references["surrogate"] = exact_means(tables[kind], c)
                cheap = surrogates[kind].energy
                chain = DelayedAcceptanceChain(recorder, cheap, lattice, [[0.0, 1.0]])
                steps = 800 if short else 10_000
            r = measure(chain, recorder, lattice, permutations, c, steps, references, 10 + k)
            row["chains"][kind] = r
            z = ["{:+.1f} {:+.1f}".format(*v) for v in r["z"].values()]
            if steps < FEWEST * r["tau"]:
                z = ["too short"]
            print(
                f"{label:<26}{kind:<12}{r['inner'] or '-':>7}{r['acceptance']:>8.2f}"
                f"{r['tau']:>8.1f}{r['calls_per_effective']:>8.2f}{r['distinct']:>10d}"
                f"{z[0]:>13}{z[1] if len(z) > 1 else '-':>15}"
            )
            label = ""
        rng = torch.Generator().manual_seed(k)
        draws = sample(model, true, lattice, c.repeat(500 if short else 4000), rng)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            [a] = averages(draws)
        means = exact_means(exact, c)
        row["model"] = {
            "ness": normalized_ess(draws.log_weight),
            "z": [
                float(a.sgc_energy.z(means[0])),
                float(a.composition[1].z(means[1])),
                float(a.log_z.z(float(exact.log_z(c)))),
            ],
        }
        figures["conditions"].append(row)
    print(
        f"\n{'condition':<26}{'rmse meV/site':>14}{'|dE|/kT':>9}{'NESS exact draws':>18}"
        f"{'NESS model':>12}{'z E, x, ln Z':>18}"
    )
    for row in figures["conditions"]:
        e, m = row["surrogate"]["two levels"], row["model"]
        label = f"{row['name']} {row['temperature']:.0f} K, {row['mu']:+.1f} eV"
        z = " ".join(f"{v:+.1f}" for v in m["z"])
        print(
            f"{label:<26}{1e3 * e['rmse_eV_per_site']:>14.2f}{e['mean_abs_kT']:>9.2f}"
            f"{e['ness_exact_draws']:>18.3f}{m['ness']:>12.3f}{z:>18}"
        )
    worst = max(r["chains"]["two levels"]["calls_per_effective"] for r in figures["conditions"])
    gain = [
        r["chains"]["metropolis"]["calls_per_effective"]
        / r["chains"]["two levels"]["calls_per_effective"]
        for r in figures["conditions"]
    ]
    figures["worst_calls_per_effective"] = worst
    figures["gain"] = gain
    met = worst <= AIM
    print(
        f"true energies an effective sample: {worst:.2f} at worst, {min(gain):.0f} to "
        f"{max(gain):.0f} times fewer than Metropolis; aim {AIM:g}: {'met' if met else 'MISSED'}"
    )
    print(f"({exact.energy.numel()} configurations of so small a cell could also be enumerated.)")
    write_json(out, "two_level", figures)
    if not met:
        sys.exit(1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="8 sites, fewer steps")
    parser.add_argument("--out", help="write the figures to this JSON file")
    options = parser.parse_args()
    main(options.short, str(Path(options.out).resolve()) if options.out else None)
