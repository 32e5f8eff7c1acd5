"""CLEASE's metadynamics as a reference: free energy against composition, absolute, with errors."""

from __future__ import annotations

import os
import random
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import clease
import numpy as np
import torch
from ase import Atoms
from ase.units import kB
from clease.montecarlo import BinnedBiasPotential, MetaDynamicsSampler, SGCMonteCarlo
from clease.montecarlo.observers import ConcentrationObserver, MCObserver
from tqdm import tqdm

from clease_nn.errors import NotDeterminedError
from clease_nn.hosts.clease.checks import check_count, check_temperature
from clease_nn.hosts.clease.expansion import check_atoms, refuse_foreign_chemical_potential
from clease_nn.hosts.clease.extraction import energy, lattice
from clease_nn.lattice import Lattice
from clease_nn.statistics import Estimate
from clease_nn.thermodynamics.canonical_averages import CanonicalAverages, label
from clease_nn.warnings import InterruptedWarning

__all__ = ["metadynamics"]

_RESAMPLES = 200
_NEVER_FLAT = 2.0  # the least visited bin never has twice the mean
_CONVERGED = 1e-9  # of ln Z
_ROUNDING = 1e-12  # of an energy: no error of a sum of many is smaller


def metadynamics(
    atoms: Atoms,
    temperatures,
    *,
    sampler: Callable = SGCMonteCarlo,
    n_runs: int = 4,
    seed: int = 0,
    sweeps: int = 2000,
    mod_factor: float = 0.5,
    mod_factor_limit: float = 0.02,
    flat_limit: float = 0.8,
    max_sweeps: int = 20000,
    progress: bool = True,
) -> CanonicalAverages:
    r"""Free energy of a binary at every composition by CLEASE's ``MetaDynamicsSampler``.

    At every temperature, and in several independent runs, a bias :math:`V(N)` on the number of
    atoms is grown until all compositions were visited alike; its increment is halved each time
    this happens, down to ``mod_factor_limit``. Then the bias stays as it is, and the visits
    :math:`h_r(N)` of that time, :math:`n_r` in all, of every run :math:`r` together give

    .. math:: Z_N = \frac{\sum_r h_r(N)}{\sum_r n_r e^{-V_r(N)/kT} / z_r}, \quad
              z_r = \sum_N Z_N e^{-V_r(N)/kT}, \quad F(T, N) = -kT \ln Z_N,

    which is right for any bias: how well it has converged decides on the errors only. The
    factor that is left open follows from the supercells of one species, of which there is one
    configuration each: there F is the energy, exactly, and elsewhere ln Z is shifted by the mean
    of what the two say. Errors are those of the jackknife over runs.

    Parameters
    ----------
    atoms : ase.Atoms
        With a ``Clease`` calculator of a binary. Its numbers change while it runs and are put
        back at the end.
    temperatures : array_like, shape (T,)
        K.
    sampler : callable
        ``sampler(atoms, T, symbols)`` makes the Monte Carlo: CLEASE's ``SGCMonteCarlo`` or
        :class:`clease_nn.NeuralSGCSampler`, which under a bias makes single-site moves too.
    n_runs : int
        Independent runs at each temperature, at least 2: their spread is the error. With n of
        them the error itself is uncertain by a factor of about ``1 +- 1/sqrt(2 (n - 1))``, and
        deviations in units of it follow Student's t distribution of n - 1 degrees of freedom:
        with 4 runs their root mean square is 1.7, not 1.
    seed : int
    sweeps : int
        Length of each run once the bias stays, attempts per atom.
    mod_factor, mod_factor_limit : float
        First and last increment of the bias, in units of kT.
    flat_limit : float
        The least visited composition must have more than this share of the mean.
    max_sweeps : int
        Sweeps after which visits that are not flat are given up, and with them the temperature.
    progress : bool
        Show a progress bar of the runs.

    Returns
    -------
    CanonicalAverages
        nan, with a reason, at compositions that fewer than two runs have visited while the bias
        stayed, and at temperatures that were given up. ``ess`` counts one visit a sweep.
        ``provenance`` has the cost of all runs. After Ctrl-C the temperatures finished so far,
        with an ``InterruptedWarning``.

    Raises
    ------
    NotDeterminedError
        If the visits become flat within ``max_sweeps`` at no temperature.
    KeyboardInterrupt
        After Ctrl-C, if no temperature was finished.
    TypeError, ValueError
        If the input is not what it should be, or the expansion is no binary: with more species
        the concentration of one does not fix the composition.

    Notes
    -----
    Metadynamics: A. Laio and M. Parrinello, PNAS 99, 12562 (2002); visits of several runs put
    together: A. M. Ferrenberg and R. H. Swendsen, Phys. Rev. Lett. 63, 1195 (1989). Energies and
    heat capacities are those of all visits to a composition. All compositions are covered:
    CLEASE draws moves again that leave a smaller range, which is not the ensemble asked for. A
    run that is trapped in one ordering variant of a composition is not told from one that is not;
    where all runs are, the error misses it.

    Examples
    --------
    >>> from clease_nn.hosts.clease.examples import cuau_emt_atoms
    >>> atoms = cuau_emt_atoms((1, 2, 2))
    >>> found = metadynamics(atoms, [900.0], n_runs=2, sweeps=300, progress=False)
    >>> found.free_energy.value.shape, found.species
    ((1, 5), ('Au', 'Cu'))
    >>> bool(abs(found.free_energy.value[0, 0] - atoms.get_potential_energy()) < 1e-9)  # all Cu
    True
    """
    check_atoms(atoms)
    temperatures = np.atleast_1d(np.asarray(temperatures, dtype=float))
    if temperatures.ndim != 1 or not len(temperatures):
        raise ValueError(f"temperatures must have shape (T,), got {temperatures.shape}")
    for t in temperatures.tolist():
        check_temperature(t)
    for name, value, least in (("n_runs", n_runs, 0), ("sweeps", sweeps, 1),
                               ("max_sweeps", max_sweeps, 1)):  # fmt: skip
        check_count(name, value, least)
    if n_runs < 2:
        raise ValueError(
            f"n_runs must be at least 2, got {n_runs}: the error is the spread between runs"
        )
    if not 0 < mod_factor_limit <= mod_factor:
        raise ValueError(
            "mod_factor_limit must be positive and at most mod_factor, got "
            f"{mod_factor_limit} and {mod_factor}"
        )
    if not 0 < flat_limit < 1:
        raise ValueError(f"flat_limit must be between 0 and 1, got {flat_limit}")
    refuse_foreign_chemical_potential(atoms)
    host, bare = lattice(atoms), energy(atoms)
    if host.n_species != 2 or not host.allowed.all():
        raise ValueError(
            "metadynamics of one concentration needs a binary, all of whose active sites may "
            f"carry both species; this expansion has {'/'.join(host.species)} on "
            f"{len(np.unique(host.sublattices))} sublattices"
        )
    increments = [mod_factor]
    while increments[-1] > mod_factor_limit:
        increments.append(max(increments[-1] / 2, mod_factor_limit))
    before, state = atoms.numbers.copy(), random.getstate()
    parts: list[list[_Run]] = []
    try:
        with (
            tempfile.TemporaryDirectory() as scratch,
            tqdm(
                total=len(temperatures) * n_runs, desc="metadynamics", disable=not progress
            ) as bar,
        ):
            file = os.path.join(scratch, "metadynamics.json")
            for k, t in enumerate(temperatures.tolist()):
                runs: list[_Run] = []
                while len(runs) < n_runs:
                    rng = np.random.default_rng([seed, k, len(runs)])
                    numbers = rng.permutation(host.n_sites) < rng.integers(host.n_sites + 1)
                    atoms.symbols[host.site_indices] = np.where(numbers, *host.species)
                    atoms.get_potential_energy()
                    random.seed(int(rng.integers(2**63)))
                    made = sampler(atoms, t, list(host.species))
                    runs.append(_run(made, host, increments, flat_limit, sweeps, max_sweeps, file))
                    if runs[-1].failure:  # the temperature is given up
                        runs += [replace(runs[-1], steps=0, seconds=0.0)] * (n_runs - len(runs))
                    bar.update(len(runs) + n_runs * k - bar.n)
                parts.append(runs)
    except KeyboardInterrupt:
        if not parts:
            raise
        warnings.warn(
            f"metadynamics was interrupted: {len(parts)} of {len(temperatures)} temperatures are "
            "returned",
            InterruptedWarning,
            stacklevel=2,
        )
        temperatures = temperatures[: len(parts)]
    finally:
        random.setstate(state)
        atoms.numbers[:] = before
        atoms.get_potential_energy()
    failures = [next((run.failure for run in runs if run.failure), "") for runs in parts]
    if all(failures):
        raise NotDeterminedError(failures[0])
    return _combine(parts, failures, host, bare, temperatures, {
        "method": "metadynamics",
        "sampler": getattr(sampler, "__name__", type(sampler).__name__),
        "n_runs": n_runs, "seed": seed, "sweeps": sweeps, "mod_factor": mod_factor,
        "mod_factor_limit": mod_factor_limit, "flat_limit": flat_limit,
        "clease": str(clease.__version__),
    })  # fmt: skip


# ------------------------------------------------------------------ one run
@dataclass(frozen=True, eq=False)
class _Run:
    """By number of atoms of the first species: bias over kT, visits, and moments of the energy.

    Energies without a visit are 0. ``failure`` says why there are no visits at all.
    """

    bias: np.ndarray
    visits: np.ndarray
    energy: np.ndarray
    variance: np.ndarray
    steps: int
    seconds: float
    failure: str = ""


class _Energies(MCObserver):
    """Visits and energies without bias, by composition."""

    name = "energies_by_composition"

    def __init__(self, bias: BinnedBiasPotential):
        super().__init__()
        self.bias = bias
        self.origin = np.nan
        self.visits, self.first, self.second = np.zeros((3, bias.nbins))

    def observe_step(self, mc_step) -> None:
        """Called after every step; the concentration has been updated before."""
        x = self.bias.getter.current_conc
        k = self.bias.get_index(x)
        e = mc_step.energy - self.bias.evaluate(x)
        if not self.visits.any():
            self.origin = e  # so that squares lose no digits
        self.visits[k] += 1
        self.first[k] += e - self.origin
        self.second[k] += (e - self.origin) ** 2


def _run(mc, host: Lattice, increments, flat_limit, sweeps, max_sweeps, file) -> _Run:
    begin, steps = time.perf_counter(), 0
    atoms, n = mc.atoms, host.n_sites
    element = host.species[0]
    symbols = np.array(atoms.get_chemical_symbols())
    inactive = (np.delete(symbols, host.site_indices) == element).sum()
    width = 1.0 / len(atoms)
    low = (inactive - 0.5) * width
    getter = ConcentrationObserver(atoms, element)
    # one bin a composition, and one that is never entered: CLEASE leaves the last out of flatness
    bias = BinnedBiasPotential(low, low + (n + 2) * width, n + 2, getter)
    meta = MetaDynamicsSampler(mc, bias, flat_limit=flat_limit, fname=file)
    for increment in increments:
        meta.mod_factor = increment * mc.kT
        meta.visit_hist.zero()
        getter.current_conc = getter.calculate_from_scratch(atoms)  # sums of 1/N drift
        meta.run(max_sweeps=max_sweeps)
        steps += mc.current_step
        if not meta.visit_is_flat():
            visits = meta.visit_hist.get_coeff()[:-1]
            failure = (
                f"after {max_sweeps} sweeps at {mc.temperature:g} K with an increment of "
                f"{increment:g} kT the least visited composition ({element}{visits.argmin()} of "
                f"{n} sites) has {visits.min() / visits.mean():.2f} of the mean number of visits, "
                f"the limit is {flat_limit:g}; give more max_sweeps or a lower flat_limit"
            )
            seconds = time.perf_counter() - begin
            return _Run(*np.zeros((4, n + 1)), steps, seconds, failure)
        bias.values -= bias.values[:-1].min()
    meta.mod_factor, meta.flat_limit = 0.0, _NEVER_FLAT
    seen = _Energies(bias)
    mc.attach(seen)
    getter.current_conc = getter.calculate_from_scratch(atoms)
    meta.run(max_sweeps=sweeps - 1)
    steps += mc.current_step
    visits = seen.visits[:-1]
    some = np.maximum(visits, 1)
    mean = seen.first[:-1] / some
    variance = np.maximum(seen.second[:-1] / some - mean**2, 0.0)
    seconds = time.perf_counter() - begin
    values = np.array(bias.values[:-1]) / mc.kT
    mean = np.where(visits > 0, mean + seen.origin, 0.0)
    return _Run(values, visits, mean, variance, steps, seconds)


# ------------------------------------------------------------------ all runs together
def _combine(parts, failures, host: Lattice, bare, temperatures, provenance) -> CanonicalAverages:
    n_runs, n = len(parts[0]), host.n_sites
    first = np.arange(n + 1)
    counts = np.column_stack([first, n - first])
    pure = torch.tensor([[1] * n, [0] * n], dtype=torch.int8)
    ends = bare(host, pure).numpy()
    kT = kB * temperatures[:, None]
    array = lambda name: np.array([[getattr(r, name) for r in runs] for runs in parts])  # noqa: E731
    bias, visits, energy, variance = map(array, ("bias", "visits", "energy", "variance"))
    visits[[bool(f) for f in failures]] = 0.0
    exact = np.stack([-ends / kT, np.broadcast_to(ends, (len(kT), 2)), np.zeros((len(kT), 2))])

    def together(pick) -> np.ndarray:
        """ln Z_N, mean and variance of the energy from some of the runs, (3, T, M)."""
        h = visits[:, pick]
        total = h.sum(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = (h * energy[:, pick]).sum(1) / total
            off = energy[:, pick] - mean[:, None]
            spread = (h * np.where(h > 0, variance[:, pick] + off**2, 0.0)).sum(1) / total
        log_z = np.array([_log_z(*both) for both in zip(bias[:, pick], h, strict=True)])
        log_z += _mean_known(exact[0] - log_z[:, [0, -1]])[:, None]
        out = np.stack([log_z, mean, spread])
        out[..., [0, -1]] = exact
        return out

    every = np.arange(n_runs)
    value = together(every)
    less = np.stack([together(np.delete(every, r)) for r in every])
    # pseudo-values of the jackknife: their mean scatters as the value does
    single = n_runs * value - (n_runs - 1) * less
    value = np.where(np.isnan(single).any(0), np.nan, value)
    # n - 1 of n runs, drawn with replacement, spread as the mean of n runs does
    rng = np.random.default_rng(0)
    draws = rng.multinomial(
        n_runs - 1, np.full(n_runs, 1.0 / n_runs), size=(len(temperatures), _RESAMPLES)
    ) / (n_runs - 1)
    moved = np.einsum("tbr,rqtm->qtmb", draws, single - single.mean(0))
    error = single.std(0, ddof=1) / np.sqrt(n_runs)
    error[1, :, 1:-1] = np.maximum(error[1, :, 1:-1], _ROUNDING * np.abs(value[1, :, 1:-1]))
    steps = int(array("steps").sum())
    ess = np.where(np.isnan(value[0]), 0.0, visits.sum(1) / n)
    ess[:, [0, -1]] = np.inf
    return CanonicalAverages(
        temperatures,
        host.species,
        n,
        counts,
        value[0],
        Estimate(value[1], error[1]),
        Estimate(value[2], error[2]) / (kT * temperatures[:, None]),
        ess,
        log_z_replicas=moved[0],
        energy_replicas=moved[1],
        reasons=_reasons(failures, visits, temperatures, host.species, counts),
        provenance={
            **provenance,
            "energy_evaluations": steps,
            "attempts_per_site": steps / n,
            "seconds": float(array("seconds").sum()),
        },
    )


def _log_z(bias: np.ndarray, visits: np.ndarray) -> np.ndarray:
    """ln Z_N up to a constant from visits (runs, M) under biases (runs, M); nan without visits."""
    out = np.full(visits.shape[1], np.nan)
    seen = visits.sum(0) > 0
    bias, visits = bias[:, seen], visits[:, seen]
    bias, visits = bias[visits.any(1)], visits[visits.any(1)]
    if not len(visits):
        return out
    h, n = visits.sum(0), visits.sum(1)
    start = np.log(h) + bias.mean(0)
    w = start - bias
    w = np.exp(w - w.max(1, keepdims=True))  # a factor for each run is of no account
    z, change = np.ones(len(h)), np.inf
    while change > _CONVERGED:
        new = h / ((n / (w @ z)) @ w)
        change, z = np.ptp(np.log(new / z)), new
    out[seen] = start + np.log(z)
    return out


def _mean_known(x: np.ndarray) -> np.ndarray:
    """Mean of a row of the two numbers that are not nan; nan if both are."""
    known = ~np.isnan(x)
    return np.where(known, x, 0.0).sum(1) / np.where(known.any(1), known.sum(1), np.nan)


def _reasons(failures, visits, temperatures, species, counts) -> tuple[str, ...]:
    """What is not determined, in words."""
    out = [f for f in failures if f]
    by = (visits > 0).sum(1)  # runs that were there
    for t in np.flatnonzero([not f for f in failures]):
        out += [
            f"{label(species, counts[m])}: visited by {by[t, m]} of {visits.shape[1]} runs at "
            f"{temperatures[t]:g} K, two are needed; give more sweeps"
            for m in np.flatnonzero(by[t, 1:-1] < 2) + 1
        ]
        ends = visits[t][:, [0, -1]].any(1)
        if ends.sum() < 2:
            out.append(
                f"free energies at {temperatures[t]:g} K: {ends.sum()} of {len(ends)} runs "
                "visited a supercell of one species, two are needed; give more sweeps"
            )
    return tuple(out)
