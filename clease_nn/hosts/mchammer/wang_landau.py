"""mchammer's Wang-Landau sampling as a reference: densities of states, absolute and with errors."""

from __future__ import annotations

import itertools
import math
import os
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path

import icet
import numpy as np
import torch
from ase import Atoms
from ase.data import atomic_numbers
from icet import ClusterExpansion
from mchammer.calculators import ClusterExpansionCalculator
from mchammer.ensembles import WangLandauEnsemble
from scipy.special import gammaln, logsumexp
from tqdm import tqdm

from clease_nn.errors import NotDeterminedError
from clease_nn.hosts.mchammer import extraction
from clease_nn.hosts.mchammer.private import property_scaling, trajectory
from clease_nn.lattice import Lattice
from clease_nn.thermodynamics.density_of_states import DensityOfStates

__all__ = ["wang_landau"]

_MOVES = {"swap": 2, "flip": 1}  # sites that one attempt would change
_ROWS_PER_CHECK = 100
_CHECKS_PER_PIECE = 10
_WRITE_PERIOD = 60.0  # s
_RESAMPLES = 200


def wang_landau(
    structure: Atoms,
    calculator,
    energy_spacing: float,
    *,
    compositions=None,
    trial_move: str = "swap",
    n_runs: int = 4,
    seed: int = 0,
    fill_factor_limit: float = 1e-6,
    flatness_limit: float = 0.8,
    flatness_check_interval: int | None = None,
    max_trial_steps: int | None = None,
    folder: str | os.PathLike | None = None,
    executor=None,
    progress: bool = True,
) -> DensityOfStates:
    r"""Density of states of an icet expansion by mchammer's ``WangLandauEnsemble``.

    Swaps sample every composition by itself, flips sample all compositions in one run. Several
    independent runs of each are averaged; their spread is the error. The weights are normalised
    by the exact number of configurations, so that ln Z is absolute.

    Parameters
    ----------
    structure : ase.Atoms
        Supercell; the species of its active sites do not matter.
    calculator : mchammer.calculators.ClusterExpansionCalculator
        Made for that supercell.
    energy_spacing : float
        Width of the energy bins, eV per supercell. See Notes.
    compositions : array_like, shape (M, species), optional
        Active sites with each species of ``lattice(structure, calculator).species``. Default: all
        that are possible. Only with swaps.
    trial_move : {"swap", "flip"}
        Flips are cheaper where all compositions are wanted but blind to those that are rare among
        all configurations: compositions near the pure ends may be missed altogether, and what was
        missed by all runs has no error.
    n_runs : int
        Independent runs, at least 2. With n of them the error itself is uncertain by a factor of
        about ``1 +- 1/sqrt(2 (n - 1))``, and deviations in units of it follow Student's t
        distribution of n - 1 degrees of freedom: with 4 runs their root mean square is 1.7, with
        6 it is 1.3.
    seed : int
    fill_factor_limit, flatness_limit, flatness_check_interval
        As in ``WangLandauEnsemble``.
    max_trial_steps : int, optional
        Steps in all after which a run that has not converged is given up.
    folder : path, optional
        Where the data containers are kept. Runs found there go on, those finished are only read;
        an interrupted call loses the last minute or so. The name of a file contains the
        energy's fingerprint, composition, spacing, seed and number of the run.
    executor : concurrent.futures.Executor or alike, optional
        Its ``map`` makes the runs, in processes (mchammer's random numbers are global in one).
    progress : bool
        Show a progress bar of the runs.

    Returns
    -------
    DensityOfStates
        Without occupations. Bins whose energies differ are represented by two states each (see
        Notes). ``provenance`` has the cost of all runs; a swap attempts to change two sites.

    Raises
    ------
    NotDeterminedError
        If a run has not converged within ``max_trial_steps``.
    TypeError, ValueError
        If the input is not what it should be; the message says what to do.

    Notes
    -----
    The algorithm is that of F. Wang and D. P. Landau, Phys. Rev. Lett. 86, 2050 (2001). Its fill
    factor is halved at every flat histogram, so its error does not vanish with longer runs but
    saturates (R. E. Belardinelli and V. D. Pereyra, J. Chem. Phys. 127, 184105 (2007)): of what
    all runs have in common, the spread between them tells nothing. Bins that no run has found,
    ground states of larger cells above all, are missing in the same silent way. The limits of
    energy that mchammer offers are not, as parts of the range cannot be normalised.

    In a bin all configurations count alike, which is wrong by the width of the bin: energies of
    configurations recorded in it, on average 100 of all bins together per flatness check, give
    mean, variance and skewness of its energies, and two states with weights that have these three
    (Gaussian quadrature) stand for it. What is left is small where ``energy_spacing`` is below
    kT at the lowest temperature asked for. The effective number of states that supports a
    condition counts these recorded configurations.

    Examples
    --------
    >>> from ase.build import bulk
    >>> from icet import ClusterExpansion, ClusterSpace
    >>> from mchammer.calculators import ClusterExpansionCalculator
    >>> from clease_nn.conditions import Conditions
    >>> space = ClusterSpace(bulk("Au"), [4.3], ["Ag", "Au"])
    >>> expansion = ClusterExpansion(space, [0, 0, 0.1, -0.02])
    >>> cell = expansion.primitive_structure.repeat((2, 2, 1))
    >>> calculator = ClusterExpansionCalculator(cell, expansion)
    >>> dos = wang_landau(cell, calculator, 0.02, fill_factor_limit=0.1,
    ...                   flatness_check_interval=400, progress=False)
    >>> round(float(dos.log_z(Conditions([1e9], [[0.0, 0.0]])).value[0] / np.log(2)), 3)
    4.0
    """
    _check(energy_spacing, trial_move, fill_factor_limit, flatness_limit)
    for name, value, least in (
        ("n_runs", n_runs, 2),
        ("seed", seed, 0),
        ("flatness_check_interval", flatness_check_interval, 1),
        ("max_trial_steps", max_trial_steps, 1),
    ):
        _check_whole(name, value, least)
    host = extraction.lattice(structure, calculator)
    energy = extraction.energy(structure, calculator)
    wanted = _compositions(host, compositions, trial_move)
    every = flatness_check_interval
    interval = 1000 * len(structure) if every is None else every
    options = {
        "energy_spacing": float(energy_spacing),
        "trial_move": trial_move,
        "fill_factor_limit": float(fill_factor_limit),
        "flatness_limit": float(flatness_limit),
        "flatness_check_interval": int(interval),
    }
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch if folder is None else folder)
        place.mkdir(parents=True, exist_ok=True)
        jobs = []
        if executor is not None:
            calculator = _Expansion.of(calculator, Path(scratch) / "expansion.ce")
        for k, run in itertools.product(range(len(wanted)), range(n_runs)):
            counts = wanted[k]
            if counts is not None and _log_configurations(host, counts) == 0:
                continue
            rng = np.random.default_rng([seed, run, *([] if counts is None else counts)])
            start = structure.copy()
            start.symbols[host.site_indices] = _random_species(host, counts, rng)
            name = "all" if counts is None else "".join(
                f"{s}{n}" for s, n in zip(host.species, counts, strict=True)
            )  # fmt: skip
            stem = f"{energy.fingerprint}-{host.fingerprint}-{name}"
            path = place / f"{stem}-{trial_move}-{energy_spacing:g}-{seed}-{run}.dc"
            job = _Job(
                k, start, calculator, str(path), int(rng.integers(2**53)), options,
                max_trial_steps, trial_move == "flip",
            )  # fmt: skip
            jobs.append(job)
        runs = (map if executor is None else executor.map)(_run, jobs)
        runs = list(tqdm(runs, total=len(jobs), desc="Wang-Landau runs", disable=not progress))
    for job, run in zip(jobs, runs, strict=True):
        if not run.converged:
            raise NotDeterminedError(
                f"the Wang-Landau run {Path(job.path).stem} has a fill factor of "
                f"{run.fill_factor:g} after {run.steps} steps, above the limit "
                f"{fill_factor_limit:g}; give more max_trial_steps (runs kept in a folder go on "
                "where they stopped), larger energy bins or a lower flatness_limit"
            )
    rng = np.random.default_rng([seed, n_runs])
    parts = []
    for k, counts in enumerate(wanted):
        mine = [run for job, run in zip(jobs, runs, strict=True) if job.index == k]
        parts.append(_combine(mine, host, counts, float(energy_spacing), rng) if mine
                     else _single(host, counts, energy))  # fmt: skip
    steps = sum(run.steps for run in runs)
    return DensityOfStates(
        host,
        np.concatenate([p.energy for p in parts]),
        np.concatenate([p.counts for p in parts]),
        np.concatenate([p.log_g for p in parts]),
        replicas=np.concatenate([p.replicas for p in parts]).astype(np.float32),
        inefficiency=np.concatenate([1.0 / p.samples for p in parts]),
        provenance={
            "method": "Wang-Landau",
            "energy_evaluations": steps + sum(len(run.potential) for run in runs),
            "attempts_per_site": steps * _MOVES[trial_move] / host.n_sites,
            "seconds": sum(run.seconds for run in runs),
            "n_runs": n_runs,
            "seed": seed,
            "icet": icet.__version__,
            **options,
        },
    )


# ------------------------------------------------------------------ what is asked for
def _check(energy_spacing, trial_move, fill_factor_limit, flatness_limit) -> None:
    if not (np.isfinite(energy_spacing) and energy_spacing > 0):
        raise ValueError(f"energy_spacing must be positive and finite, got {energy_spacing} eV")
    if trial_move not in _MOVES:
        raise ValueError(f"trial_move must be 'swap' or 'flip', got {trial_move!r}")
    if not 0 < fill_factor_limit < 1:
        raise ValueError(f"fill_factor_limit must be between 0 and 1, got {fill_factor_limit}")
    if not 0 < flatness_limit < 1:
        raise ValueError(
            f"flatness_limit must be between 0 and 1, got {flatness_limit}: no histogram has all "
            "bins above its mean"
        )


def _check_whole(name: str, value, least: int) -> None:
    """TypeError or ValueError unless a whole number is large enough; None is left out."""
    if value is None:
        return
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if value < least:
        why = "; the error is the spread between runs" if name == "n_runs" else ""
        raise ValueError(f"{name} must be at least {least}, got {value}{why}")


def _groups(host: Lattice) -> list[tuple[np.ndarray, np.ndarray]]:
    """(species, sites) of the active sites that may carry the same species."""
    rows, kind = np.unique(host.allowed, axis=0, return_inverse=True)
    return [(np.flatnonzero(row), np.flatnonzero(kind.ravel() == k)) for k, row in enumerate(rows)]


def _compositions(host: Lattice, compositions, trial_move: str) -> list[np.ndarray | None]:
    if trial_move == "flip":
        if compositions is not None:
            raise ValueError(
                "flips visit all compositions in one run: leave out compositions=, or use "
                "trial_move='swap'"
            )
        return [None]
    possible = list(_all_compositions(host))
    if compositions is None:
        return possible
    asked = np.asarray(compositions)
    if asked.ndim != 2 or asked.shape[1] != host.n_species or not len(asked):
        raise ValueError(
            f"compositions must be numbers of sites with each of {'/'.join(host.species)}, shape "
            f"(M, {host.n_species}), got shape {asked.shape}"
        )
    known = {tuple(c) for c in possible}
    for row in asked.tolist():
        if tuple(row) not in known:
            raise ValueError(
                f"the composition {dict(zip(host.species, row, strict=True))} is impossible on "
                f"{host.n_sites} active sites; e.g. {possible[len(possible) // 2].tolist()} is "
                "possible"
            )
    if len({tuple(row) for row in asked.tolist()}) < len(asked):
        raise ValueError("a composition is asked for twice")
    return list(asked.astype(np.int64))


def _all_compositions(host: Lattice) -> Iterator[np.ndarray]:
    """Numbers of sites with each species, the first species of a group rising fastest."""
    choices = []
    for species, sites in _groups(host):
        rows = []
        for bars in itertools.combinations(range(len(sites) + len(species) - 1), len(species) - 1):
            ends = np.array([-1, *bars, len(sites) + len(species) - 1])
            row = np.zeros(host.n_species, dtype=np.int64)
            row[species] = np.diff(ends) - 1
            rows.append(row)
        choices.append(rows)
    for rows in itertools.product(*choices):
        yield sum(rows)


def _log_configurations(host: Lattice, counts) -> float:
    """ln of the number of configurations of a composition; of all for None."""
    if counts is None:
        return host.log_states
    total = 0.0
    for species, sites in _groups(host):
        total += gammaln(len(sites) + 1) - gammaln(counts[species] + 1.0).sum()
    return float(total) if total > 1e-9 else 0.0


def _random_species(host: Lattice, counts, rng: np.random.Generator) -> list[str]:
    """Symbols of the active sites: a random configuration of a composition, or any."""
    out = np.zeros(host.n_sites, dtype=np.int64)
    for species, sites in _groups(host):
        if counts is None:
            out[sites] = rng.choice(species, len(sites))
        else:
            out[sites] = rng.permutation(np.repeat(species, counts[species]))
    return [host.species[s] for s in out]


# ------------------------------------------------------------------ one run
@dataclass(frozen=True, eq=False)
class _Job:
    index: int
    structure: Atoms
    calculator: object
    path: str
    seed: int
    options: dict
    max_trial_steps: int | None
    keep_occupations: bool


@dataclass(frozen=True, eq=False)
class _Expansion:
    """A calculator on its way to another process: icet's objects travel as files only."""

    path: str
    scaling: float

    @classmethod
    def of(cls, calculator: ClusterExpansionCalculator, path: Path) -> _Expansion:
        calculator.cluster_expansion.write(str(path))
        return cls(str(path), property_scaling(calculator))

    def calculator(self, structure: Atoms) -> ClusterExpansionCalculator:
        expansion = ClusterExpansion.read(self.path)
        return ClusterExpansionCalculator(structure, expansion, scaling=self.scaling)


@dataclass(frozen=True, eq=False)
class _Run:
    """What a finished run says: entropy of its bins, and configurations it has recorded."""

    entropy: dict[int, float]
    potential: np.ndarray
    occupations: np.ndarray | None  # (rows, atoms) atomic numbers
    steps: int
    seconds: float
    fill_factor: float
    converged: bool


def _run(job: _Job) -> _Run:
    """Begin or go on with a run until it has converged, and read its container."""
    state = random.getstate()  # mchammer seeds the generator of the whole process
    check = job.options["flatness_check_interval"]
    rows = max(1, check // _ROWS_PER_CHECK)
    most = math.inf if job.max_trial_steps is None else job.max_trial_steps
    calculator = job.calculator
    if isinstance(calculator, _Expansion):
        calculator = calculator.calculator(job.structure)
    try:
        ensemble = WangLandauEnsemble(
            job.structure,
            calculator,
            dc_filename=job.path if os.path.exists(job.path) else None,
            random_seed=job.seed,
            data_container_write_period=math.inf,
            ensemble_data_write_interval=rows,
            trajectory_write_interval=rows if job.keep_occupations else np.inf,
            **job.options,
        )
        spent = ensemble.data_container.metadata
        written = time.perf_counter()
        while not ensemble.converged and ensemble.step < most:
            begin = time.perf_counter()
            ensemble.run(int(min(check * _CHECKS_PER_PIECE, most - ensemble.step)))
            now = time.perf_counter()
            spent["seconds"] = spent.get("seconds", 0.0) + now - begin
            if ensemble.converged or ensemble.step >= most or now - written > _WRITE_PERIOD:
                ensemble.write_data_container(job.path)
                written = now
    finally:
        random.setstate(state)
    container = ensemble.data_container
    entropy = container.get_entropy()
    # while the fill factor is large the walker is pushed about; records of that time are left out
    late = [
        step
        for step, fill in zip(*container.fill_factor_history.to_numpy().T, strict=True)
        if fill <= math.sqrt(job.options["fill_factor_limit"])
    ]
    first = min(late) if late else 0
    if job.keep_occupations:
        table = {row["mctrial"]: row for row in trajectory(container) if row["mctrial"] >= first}
        potential = np.array([row["potential"] for row in table.values()])
        occupations = np.array([row["occupations"] for row in table.values()])
    else:
        table = container.data.drop_duplicates("mctrial")
        potential = table.potential.to_numpy(dtype=float)[table.mctrial >= first]
        occupations = None
    return _Run(
        dict(zip(entropy.index.tolist(), entropy.entropy.tolist(), strict=True)),
        potential,
        occupations,
        int(ensemble.step),
        float(spent["seconds"]),
        float(ensemble.fill_factor),
        bool(ensemble.converged),
    )


# ------------------------------------------------------------------ all runs together
@dataclass(frozen=True, eq=False)
class _States:
    energy: np.ndarray
    counts: np.ndarray
    log_g: np.ndarray
    replicas: np.ndarray
    samples: np.ndarray


def _single(host: Lattice, counts: np.ndarray, energy) -> _States:
    """The only configuration of a composition."""
    occupations = np.zeros((1, host.n_sites), dtype=np.int8)
    for species, sites in _groups(host):
        occupations[:, sites] = species[np.argmax(counts[species])]
    e = energy(host, torch.as_tensor(occupations)).numpy()
    return _States(
        e, counts[None], np.zeros(1), np.ones((1, _RESAMPLES)), np.full(1, 1e9)
    )  # fmt: skip


def _combine(
    runs: Sequence[_Run], host: Lattice, counts, spacing: float, rng: np.random.Generator
) -> _States:
    """Mean of the runs' weights, their bootstrap, and the energies within the bins."""
    n = len(runs)
    bins = np.array(sorted(set().union(*(run.entropy for run in runs))))
    log_g = np.full((n, len(bins)), -np.inf)
    for r, run in enumerate(runs):
        found = np.searchsorted(bins, list(run.entropy))
        log_g[r, found] = list(run.entropy.values())
        log_g[r] += _log_configurations(host, counts) - logsumexp(log_g[r])
    # what every run has seen in the bins, by composition
    potential = np.concatenate([run.potential for run in runs])
    where = np.searchsorted(bins, np.round(potential / spacing).astype(np.int64))
    run_of = np.repeat(np.arange(n), [len(run.potential) for run in runs])
    if counts is None:
        numbers = np.concatenate([run.occupations for run in runs])[:, host.site_indices]
        z = [atomic_numbers[s] for s in host.species]
        seen = np.stack([(numbers == a).sum(1) for a in z], 1)
    else:
        seen = np.broadcast_to(counts, (len(potential), host.n_species))
    keys = np.column_stack([where, seen])
    inside = where < len(bins)
    inside[inside] &= bins[where[inside]] == np.round(potential[inside] / spacing)
    keys, potential, run_of = keys[inside], potential[inside], run_of[inside]
    cells, cell = np.unique(keys, axis=0, return_inverse=True)
    order = np.split(
        np.argsort(cell.ravel(), kind="stable"), np.cumsum(np.bincount(cell.ravel()))[:-1]
    )
    # states: (bin, counts, energy), and how many of each run's records speak for them
    states, records = [], []
    for k, rows in zip(cells, order, strict=True) if len(cells) else ():
        e = potential[rows]
        low, high = _nodes(e)
        up = np.zeros(len(e)) if high == low else (e - low) / (high - low)
        for energy, part in ((low, 1 - up), (high, up)) if high > low else ((low, 1 - up),):
            states.append((k[0], k[1:], energy))
            records.append(np.bincount(run_of[rows], part, minlength=n))
    if counts is not None:  # bins of which nothing was recorded
        for b in np.setdiff1d(np.arange(len(bins)), cells[:, 0]):
            states.append((b, counts, bins[b] * spacing))
            records.append(np.zeros(n))
    at = np.array([s[0] for s in states])
    records = np.maximum(np.array(records), 0.0).T
    # share of a state in its bin, run by run; a run without records there takes those of all
    in_bin = np.stack([np.bincount(at, r, minlength=len(bins))[at] for r in records])
    total = in_bin.sum(0)
    pooled = np.where(total > 0, records.sum(0) / np.maximum(total, 1e-300), 1.0)
    share = np.where(in_bin > 0, records / np.maximum(in_bin, 1e-300), pooled)
    with np.errstate(divide="ignore"):
        log_each = log_g[:, at] + np.log(share)
    mean = logsumexp(log_each, axis=0) - np.log(n)
    keep = np.flatnonzero(np.isfinite(mean))
    factor = np.exp(log_each[:, keep] - mean[keep])
    # n - 1 of n runs, drawn with replacement, spread as the mean of n runs does
    draws = rng.multinomial(n - 1, np.full(n, 1.0 / n), size=_RESAMPLES) / (n - 1)
    return _States(
        np.array([s[2] for s in states])[keep],
        np.array([s[1] for s in states])[keep],
        mean[keep],
        (draws @ factor).T,
        np.maximum(records.sum(0)[keep], 1.0),
    )


def _nodes(e: np.ndarray) -> tuple[float, float]:
    """Two energies that, with weights, have the mean, variance and skewness of many."""
    mean, sigma = e.mean(), e.std()
    if sigma < 1e-9:
        return float(mean), float(mean)
    half = ((e - mean) ** 3).mean() / sigma**3 / 2
    root = math.sqrt(1 + half**2)
    return float(mean + sigma * (half - root)), float(mean + sigma * (half + root))
