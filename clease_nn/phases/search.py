"""States of lowest ``E - mu.N``: annealed chains, and random search as the yardstick.

A hull is found best where its ground states change: :func:`ground_state_hull` anneals at these
chemical potentials until nothing new appears there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from time import perf_counter

import numpy as np
import torch

from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations, species_counts
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import Lattice
from clease_nn.montecarlo.chains import Chains, random_occupations
from clease_nn.phases.hull import Hull, formation_hull

__all__ = ["anneal", "ground_state_hull", "pure_ends", "random_search"]

_BATCH = 65536


def anneal(
    ensemble: SemiGrandCanonical,
    lattice: Lattice,
    mus,
    *,
    temperatures,
    sweeps: int = 20,
    replicas: int = 4,
    occupations=None,
    seed: int | np.random.SeedSequence = 0,
) -> Configurations:
    """Cool many chains at many chemical potentials; what each has seen of lowest ``E - mu.N``.

    All chains run side by side, ``replicas`` at each chemical potential, with ``sweeps`` heat-bath
    sweeps at every temperature. In the end a state seen at one chemical potential is tried at all
    the others of its replica, so that replicas stay independent searches. Any energy that
    :class:`~clease_nn.montecarlo.Chains` runs will do. Single-site moves freeze into antiphase
    domains in large cells: more replicas, slower cooling, or starts from known ordered structures
    help; no search proves that there is nothing lower.

    Parameters
    ----------
    ensemble : SemiGrandCanonical
    lattice : Lattice
    mus : array_like, shape (n, species)
        Chemical potentials in eV, such as
        :meth:`ChemicalPotentialLine.mu <clease_nn.phases.ChemicalPotentialLine.mu>` gives them.
    temperatures : array_like
        K, falling; the last should leave the ground state only (kT far below the gaps).
    sweeps : int
        Sweeps at each temperature.
    replicas : int
        Chains at each chemical potential.
    occupations : array_like, shape (n * replicas, sites), optional
        Where to start. Default: uniformly random.
    seed : int or numpy.random.SeedSequence

    Returns
    -------
    Configurations
        Row ``k * replicas + r``: the lowest state known to replica ``r`` at chemical potential
        ``k``, scored, at the last temperature. They are minima, no sample: ``chain`` and
        ``log_prob`` are not set, so that nobody averages them.

    Raises
    ------
    ValueError
        If temperatures are not falling and positive, chemical potentials do not fit the lattice,
        or ``sweeps`` or ``replicas`` is less than 1.

    References
    ----------
    S. Kirkpatrick, C. D. Gelatt, M. P. Vecchi, Science 220, 671 (1983).

    Examples
    --------
    >>> from clease_nn.energies.ising import ising_energy
    >>> lattice = Lattice.square(4)
    >>> model = SemiGrandCanonical(ising_energy(lattice, coupling=-0.05))
    >>> c = anneal(model, lattice, [[0.0, 0.0]], temperatures=[2000, 1000, 500, 250, 100])
    >>> round(float(c.energy.min()), 6), c.counts()[c.energy.argmin()].tolist()
    (-1.6, [8.0, 8.0])
    """
    mus = _chemical_potentials(lattice, mus)
    temperatures = np.atleast_1d(np.asarray(temperatures, dtype=float))
    if temperatures.ndim != 1 or not len(temperatures) or not (np.diff(temperatures) < 0).all():
        raise ValueError(f"temperatures must be falling, highest first, got {temperatures} K")
    for name, number in (("sweeps", sweeps), ("replicas", replicas)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    start = perf_counter()
    mu = torch.as_tensor(mus.repeat(replicas, 0))
    at = [Conditions(np.full(len(mu), t), mu) for t in temperatures]
    chains = Chains(ensemble, lattice, at[0], occupations, seed=seed)
    best, energy = chains.occupations.copy(), chains.energy.copy()
    lowest = energy - (chains.counts() * mu.numpy()).sum(1)
    for condition in at:
        chains.conditions = condition
        chains.sweep(sweeps)
        now = chains.energy - (chains.counts() * mu.numpy()).sum(1)
        if not np.isfinite(now).all():
            raise ValueError("an energy is NaN or infinite; check the energy model")
        better = now < lowest
        best[better], lowest[better] = chains.occupations[better], now[better]
        energy[better] = chains.energy[better]
    counts = species_counts(torch.from_numpy(best), lattice.n_species).numpy()
    for r in range(replicas):
        rows = np.arange(r, len(best), replicas)
        chosen = rows[(energy[rows] - mus @ counts[rows].T).argmin(1)]
        best[rows], energy[rows] = best[chosen], energy[chosen]
    c = Configurations(lattice, at[-1], torch.from_numpy(best))
    energy = torch.from_numpy(energy)
    return replace(
        c,
        energy=energy,
        log_target=ensemble.log_weight(c, energy),
        provenance={
            "method": "annealing",
            "energy_evaluations": int(chains.energy_evaluations),
            "attempts_per_site": chains.attempted / lattice.n_sites,
            "seconds": perf_counter() - start,
            "temperatures": [float(temperatures[0]), float(temperatures[-1]), len(temperatures)],
            "sweeps": int(sweeps),
            "replicas": int(replicas),
        },
    )


def ground_state_hull(
    ensemble: SemiGrandCanonical,
    lattice: Lattice,
    *,
    temperatures,
    start: Configurations | None = None,
    sweeps: int = 20,
    replicas: int = 16,
    max_rounds: int = 20,
    tolerance: float = 1e-6,
    references: Mapping[str, float] | None = None,
    seed: int = 0,
) -> Hull:
    """Ground states at all chemical potentials, by annealing where those known change.

    Begins with the pure ends (:func:`pure_ends`). Wherever ground states known coexist, another
    one would show as a state of lower ``E - mu.N``: chains are annealed there, what they find
    joins the hull, and so on until nothing new appears. Ground states of however narrow a range
    of chemical potentials are found so, if :func:`anneal` finds the lowest state of one condition.

    Parameters
    ----------
    ensemble, lattice, temperatures, sweeps, replicas
        As for :func:`anneal`.
    start : Configurations, optional
        Scored states that are known, such as structures of the literature.
    max_rounds : int
        Rounds of annealing, at most.
    tolerance, references
        As for :func:`~clease_nn.phases.formation_hull`.
    seed : int

    Returns
    -------
    Hull
        ``provenance["rounds"]`` counts the rounds, ``provenance["converged"]`` tells whether the
        last found nothing new.

    Raises
    ------
    NotDeterminedError, ValueError
        As :func:`~clease_nn.phases.formation_hull` and :func:`anneal`.

    Examples
    --------
    >>> from clease_nn.energies.ising import ising_energy
    >>> lattice = Lattice.square(4)
    >>> model = SemiGrandCanonical(ising_energy(lattice, coupling=-0.05))
    >>> hull = ground_state_hull(model, lattice, temperatures=[3000, 1500, 750, 375, 100])
    >>> [v.structures[0].formula for v in hull.vertices], hull.provenance["converged"]
    (['Cu', 'AuCu', 'Au'], True)
    """
    if max_rounds < 1:
        raise ValueError(f"max_rounds must be at least 1, got {max_rounds}")
    parts = [pure_ends(ensemble, lattice)] + ([] if start is None else [start])
    options = {"references": references, "tolerance": tolerance}
    hull = formation_hull(parts, **options)
    seeds = iter(np.random.SeedSequence(seed).spawn(max_rounds))
    done: list[np.ndarray] = []
    rounds, converged = 0, not hull.transitions
    while rounds < max_rounds and not converged:
        new = [t.mu for t in hull.transitions if not _contains(done, t.mu)]
        found = anneal(
            ensemble,
            lattice,
            new,
            temperatures=temperatures,
            sweeps=sweeps,
            replicas=replicas,
            seed=next(seeds),
        )
        parts.append(found)
        done += new
        rounds += 1
        hull = formation_hull(parts, **options)
        converged = all(_contains(done, t.mu) for t in hull.transitions)
    return replace(
        hull, provenance={**hull.provenance, "rounds": rounds, "converged": bool(converged)}
    )


def random_search(
    ensemble: SemiGrandCanonical,
    lattice: Lattice,
    mus,
    *,
    n_energies: int,
    temperature: float = 300.0,
    seed: int | np.random.SeedSequence = 0,
) -> Configurations:
    """The lowest ``E - mu.N`` among random configurations: the yardstick of any search.

    Every configuration is tried at every chemical potential. Half of them are uniformly random;
    for the other half the shares of the species are drawn first, evenly over all compositions,
    because uniformly random configurations all but never come near a pure end.

    Parameters
    ----------
    ensemble : SemiGrandCanonical
    lattice : Lattice
    mus : array_like, shape (n, species)
        eV.
    n_energies : int
        Energies to evaluate, as many as the search that is judged has evaluated.
    temperature : float
        K, of the conditions in the result; the search knows none.
    seed : int or numpy.random.SeedSequence

    Returns
    -------
    Configurations
        The best for every chemical potential, scored.

    Raises
    ------
    ValueError
        If ``n_energies`` is less than 1, or an energy is NaN or infinite.

    Examples
    --------
    >>> from clease_nn.energies.ising import ising_energy
    >>> lattice = Lattice.square(2)
    >>> model = SemiGrandCanonical(ising_energy(lattice, coupling=-0.05))
    >>> c = random_search(model, lattice, [[0.0, 0.0], [0.0, 9.0]], n_energies=100)
    >>> c.counts().tolist()
    [[2.0, 2.0], [0.0, 4.0]]
    """
    mus = _chemical_potentials(lattice, mus)
    if n_energies < 1:
        raise ValueError(f"n_energies must be at least 1, got {n_energies}")
    start = perf_counter()
    rng = np.random.default_rng(seed)
    conditions = Conditions(np.full(len(mus), float(temperature)), mus)
    lowest = np.full(len(mus), np.inf)
    best = np.zeros((len(mus), lattice.n_sites), dtype=np.int8)
    energy = np.zeros(len(mus))
    for first in range(0, n_energies, _BATCH):
        n = min(_BATCH, n_energies - first)
        x = np.concatenate(
            [random_occupations(lattice, (n + 1) // 2, rng), _any_composition(lattice, n // 2, rng)]
        )
        c = ensemble.score(Configurations(lattice, conditions[:1].repeat(n), x))
        e, counts = c.energy.cpu().numpy(), c.counts().cpu().numpy()
        for k, mu in enumerate(mus):
            h = e - counts @ mu
            row = int(h.argmin())
            if h[row] < lowest[k]:
                lowest[k], best[k], energy[k] = h[row], x[row], e[row]
    c = Configurations(lattice, conditions, torch.from_numpy(best))
    energy = torch.from_numpy(energy)
    return replace(
        c,
        energy=energy,
        log_target=ensemble.log_weight(c, energy),
        provenance={
            "method": "random search",
            "energy_evaluations": int(n_energies),
            "attempts_per_site": float(n_energies),
            "seconds": perf_counter() - start,
        },
    )


def pure_ends(ensemble: SemiGrandCanonical, lattice: Lattice) -> Configurations:
    """The corners of all compositions: all sites with one species, for every species, scored.

    Where sites differ in what they may carry, each kind of site is filled with one species, in
    all combinations. A hull needs these ends; a search within a window of chemical potentials
    may miss them.

    Raises
    ------
    ValueError
        If an energy is NaN or infinite.

    Examples
    --------
    >>> lattice = Lattice.square(2, species=("Cu", "Au", "Ag"))
    >>> zero = SemiGrandCanonical(lambda lattice, x: torch.zeros(len(x)))
    >>> pure_ends(zero, lattice).occupations.tolist()
    [[0, 0, 0, 0], [1, 1, 1, 1], [2, 2, 2, 2]]
    """
    kinds, kind = np.unique(lattice.allowed, axis=0, return_inverse=True)
    corners = np.array(list(product(*(np.flatnonzero(row) for row in kinds))))
    x = corners[:, kind.ravel()].astype(np.int8)
    n = len(x)
    at = Conditions(np.full(n, 300.0), np.zeros((n, lattice.n_species)))
    c = ensemble.score(Configurations(lattice, at, x))
    return replace(c, provenance={"method": "pure ends", "energy_evaluations": n})


def _chemical_potentials(lattice: Lattice, mus) -> np.ndarray:
    mus = np.atleast_2d(np.asarray(mus, dtype=float))
    if mus.ndim != 2 or mus.shape[1] != lattice.n_species or not len(mus):
        raise ValueError(
            f"chemical potentials must have shape (n, {lattice.n_species}), one for each of "
            f"{lattice.species}, got {mus.shape}"
        )
    return mus


def _contains(done: list[np.ndarray], mu: np.ndarray) -> bool:
    return any(np.abs(mu - other).max() < 1e-9 for other in done)


def _any_composition(lattice: Lattice, n: int, rng: np.random.Generator) -> np.ndarray:
    """(n, sites) random configurations whose shares of species are even over the simplex."""
    share = rng.dirichlet(np.ones(lattice.n_species), n)[:, None, :] * lattice.allowed
    edges = np.cumsum(share, 2)
    u = rng.random((n, lattice.n_sites, 1)) * edges[:, :, -1:]
    return (u >= edges).sum(2).astype(np.int8)
