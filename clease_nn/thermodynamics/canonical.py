"""Free energy at fixed composition, by exact projection of semi-grand canonical data.

Every state has a composition, so that the sum over states of one temperature falls into parts,

    Z(T, mu) = sum_N Z_N(T) exp(mu.N / kT),      Z_N(T) = sum_{i: N_i = N} g_i exp(-E_i / kT),

and ``F(T, N) = -kT ln Z_N`` is the Helmholtz free energy of the supercell with N atoms of each
species. Nothing is integrated, and no chemical potential appears.
"""

from __future__ import annotations

import warnings
from math import nan

import numpy as np
from ase.units import kB

from clease_nn.conditions import Conditions
from clease_nn.lattice import Lattice
from clease_nn.statistics import Estimate
from clease_nn.thermodynamics.canonical_averages import CanonicalAverages, label, spread
from clease_nn.thermodynamics.density_of_states import (
    DOUBTFUL,
    FEWEST,
    DensityOfStates,
    require_density_of_states,
)
from clease_nn.warnings import LowESSWarning

__all__ = ["canonical"]

_CHUNK = 2**20  # weights held at a time


def canonical(dos: DensityOfStates, temperatures) -> CanonicalAverages:
    """Free energy, energy, entropy and heat capacity at every composition of the supercell.

    The pure supercells, and other compositions with a single configuration, have ``F = E``
    exactly: seen once, they carry no error. A binary lists all compositions that the lattice can
    have, several components those that occur in the data.

    Parameters
    ----------
    dos : DensityOfStates
    temperatures : array_like, shape (T,)
        K.

    Returns
    -------
    CanonicalAverages
        nan, with a reason, where fewer than 50 effective states have a composition.

    Raises
    ------
    TypeError
        If ``dos`` is no density of states.
    ValueError
        If a temperature is not positive and finite.

    Warns
    -----
    LowESSWarning
        If fewer than 200 effective states, but enough to say something, have a composition.

    Examples
    --------
    Nine sites without interactions: Z_N is the number of ways to place the atoms.

    >>> from clease_nn.energies.ising import ising_energy
    >>> from clease_nn.ensemble import SemiGrandCanonical
    >>> lattice = Lattice.square(3)
    >>> free = SemiGrandCanonical(ising_energy(lattice, 0.0)).enumerate(lattice)
    >>> found = canonical(DensityOfStates.exact(free), [300.0, 600.0])
    >>> np.exp(found.log_z[0]).round(6).tolist()
    [1.0, 9.0, 36.0, 84.0, 126.0, 126.0, 84.0, 36.0, 9.0, 1.0]
    >>> found.at_composition({"Au": 1 / 3}).counts.tolist()
    [[6, 3]]
    """
    require_density_of_states(dos)
    t = np.atleast_1d(np.asarray(temperatures, dtype=float))
    if t.ndim != 1 or len(t) == 0:
        raise ValueError(f"temperatures must be one or more numbers in K, got shape {t.shape}")
    kT = Conditions(t, np.zeros((len(t), dos.lattice.n_species))).kT.numpy()
    seen = np.flatnonzero(np.isfinite(dos.log_g))
    if len(seen) == 0:
        raise ValueError("no state of the density of states has a weight")
    integers = np.rint(dos.counts[seen]).astype(np.int64)
    occurring, inverse = np.unique(integers, axis=0, return_inverse=True)
    inverse = inverse.ravel()
    by_composition = np.split(
        seen[np.argsort(inverse, kind="stable")], np.cumsum(np.bincount(inverse))[:-1]
    )
    rows_of = dict(zip(map(tuple, occurring.tolist()), by_composition, strict=True))
    counts = _binary_compositions(dos.lattice) if dos.lattice.n_species == 2 else occurring
    shape = (len(t), len(counts))
    n_replicas = 0 if dos.is_exact else dos.replicas.shape[1]
    log_z, energy, variance = (np.full(shape, nan) for _ in range(3))
    ess = np.zeros(shape)
    deviations = np.zeros((3, *shape, n_replicas), dtype=np.float32)
    reasons = []
    for m, n in enumerate(counts):
        title = label(dos.lattice.species, n)
        rows = rows_of.get(tuple(n.tolist()))
        if rows is None:
            reasons.append(f"{title}: never sampled")
            continue
        if dos.absolute and _single_configuration(dos, rows[0]):
            energy[:, m] = _levels(dos, rows[:1])
            log_z[:, m] = -energy[:, m] / kT
            variance[:, m] = 0.0
            ess[:, m] = np.inf
            continue
        out = _project(dos, rows, kT)
        log_z[:, m], energy[:, m], variance[:, m], ess[:, m] = out[:4]
        deviations[:, :, m] = out[4]
        poor = ess[:, m] < FEWEST
        if poor.any():
            log_z[poor, m] = energy[poor, m] = variance[poor, m] = nan
            reasons.append(f"{title}: {_too_few(t[poor], ess[poor, m])}")
    _warn_of_few(t, dos.lattice.species, counts, ess)
    ness = nan if dos.is_exact else np.where(np.isinf(ess), nan, np.minimum(ess / len(dos), 1.0))
    d = None if dos.is_exact else deviations
    scale = 1.0 / (kB * t[:, None] ** 2)
    return CanonicalAverages(
        temperatures=t,
        species=dos.lattice.species,
        n_sites=dos.lattice.n_sites,
        counts=counts,
        log_z=log_z,
        energy=Estimate(energy, spread(energy, None if d is None else d[1]), ness),
        heat_capacity=Estimate(variance, spread(variance, None if d is None else d[2]), ness)
        * scale,
        ess=ess,
        log_z_replicas=None if d is None else d[0],
        energy_replicas=None if d is None else d[1],
        absolute=dos.absolute,
        reasons=tuple(reasons),
        provenance=dos.provenance,
    )


def _project(dos: DensityOfStates, rows: np.ndarray, kT: np.ndarray):
    """ln Z, <E>, Var(E) and effective states of some rows, (T,) each, and their deviations."""
    e, log_g = _levels(dos, rows), dos.log_g[rows]
    tau = 1.0 if dos.inefficiency is None else dos.inefficiency[rows]
    r = None if dos.is_exact else dos.replicas[rows]
    n_t = len(kT)
    log_z, mean, variance, ess = (np.empty(n_t) for _ in range(4))
    deviations = np.empty((3, n_t, 0 if r is None else r.shape[1]), dtype=np.float32)
    size = max(1, _CHUNK // len(rows))
    for k in range(0, n_t, size):
        s = slice(k, k + size)
        w = log_g - e / kT[s, None]
        top = w.max(1)
        w = np.exp(w - top[:, None])
        total = w.sum(1)
        w /= total[:, None]
        log_z[s] = top + np.log(total)
        mean[s] = e[0] + w @ (e - e[0])
        d = e - mean[s, None]
        variance[s] = (w * d**2).sum(1)
        ess[s] = np.inf if r is None else 1.0 / (w**2 * tau).sum(1)
        if r is None:
            continue
        # one sample less: the mean is that of the same data
        shrink = 1.0 - 1.0 / np.maximum(ess[s], 2.0)
        # centred, so that single precision of the replicas is enough
        terms = [w, w * d, w * (d**2 - variance[s, None])]
        share, first, second = (x.astype(np.float32) @ r for x in terms)
        share = np.maximum(share, np.finfo(np.float32).tiny)
        first, second = first / share, second / share
        deviations[:, s] = np.log(share), first, (second - first**2) / shrink[:, None]
        variance[s] /= shrink
    return log_z, mean, variance, ess, deviations


def _warn_of_few(temperatures, species, counts: np.ndarray, ess: np.ndarray) -> None:
    few = (ess >= FEWEST) & (ess < DOUBTFUL)
    if not few.any():
        return
    k, m = np.unravel_index(np.argmin(np.where(few, ess, np.inf)), ess.shape)
    warnings.warn(
        f"at {few.sum()} of {few.size} temperatures and compositions fewer than {DOUBTFUL:.0f} "
        f"effective states know the free energy: errors there cannot be trusted; worst: "
        f"{label(species, counts[m])} at {temperatures[k]:g} K with {ess[k, m]:.0f}. Remedy: "
        "sample at chemical potentials that favour these compositions",
        LowESSWarning,
        stacklevel=3,
    )


def _levels(dos: DensityOfStates, rows: np.ndarray) -> np.ndarray:
    """Energies of states, equal where they differ by rounding: one level has no variance."""
    return np.round(dos.energy[rows], 12)


def _binary_compositions(lattice: Lattice) -> np.ndarray:
    """All numbers of atoms that a lattice of two species can have, shape (M, 2)."""
    n = lattice.n_sites
    fewest, most = n - int(lattice.allowed[:, 1].sum()), int(lattice.allowed[:, 0].sum())
    first = np.arange(fewest, most + 1)
    return np.stack([first, n - first], 1)


def _single_configuration(dos: DensityOfStates, row: int) -> bool:
    """Whether a state's configuration is the only one of the lattice with its composition.

    Two configurations of one composition differ by cycles of exchanges: sites with a turn to b,
    others from b to c, ... and back to a. There is no other one if species, joined where a site
    may change from the first to the second, form no cycle.
    """
    if (dos.counts[row] == dos.lattice.n_sites).any():
        return True
    if dos.occupations is None or dos.lattice.allowed.all():
        return False
    species = np.arange(dos.lattice.n_species)
    x = dos.occupations[row].cpu().numpy()
    carried = (x[:, None] == species).astype(int)
    turns = carried.T @ (dos.lattice.allowed & (carried == 0)) > 0
    walks = np.linalg.matrix_power(turns.astype(float), len(species))
    return not walks.any()


def _too_few(temperatures: np.ndarray, ess: np.ndarray) -> str:
    low, high = temperatures.min(), temperatures.max()
    where = f"at {low:g} K" if low == high else f"between {low:g} and {high:g} K"
    return f"at most {ess.max():.0f} effective states {where} (need {FEWEST:.0f})"
