"""Where chains begin: grown from small cells, or in ordered phases, from both sides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from ase import Atoms

from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.cost import Cost
from clease_nn.energies.tables import ClusterTables
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import Lattice
from clease_nn.montecarlo.chains import make_engine, random_occupations
from clease_nn.montecarlo.frozen import Basin, explore
from clease_nn.montecarlo.growth import growth_stages, small_lattice
from clease_nn.montecarlo.ordered import OrderedPhases, ordered_phases

__all__ = ["Folded", "given_occupations", "ordered_start", "small_cells"]

_GROW_ABOVE = 32  # sites; smaller cells order from random starts
_SWEEPS = 24  # from every candidate, before their free energies are compared
_SAME_COMPOSITION = 0.03  # a site; candidates closer than that, and in energy, are one phase
_ENTROPY = 0.1  # k a site; as much as the entropies of two phases may well differ


@dataclass(frozen=True, eq=False)
class Folded:
    """A cluster expansion of a small periodic cell; the chains need nothing but its tables."""

    tables: ClusterTables


def small_cells(ensemble: SemiGrandCanonical, lattice: Lattice):
    """Ensemble, lattice and map of every stage of growth, smallest first; empty if there is none.

    The map (sites of the next larger cell,) says which site of the small cell each is a copy of.
    Only for cluster expansions on more than 32 sites.
    """
    tables = getattr(ensemble.energy, "tables", None)
    if lattice.n_sites <= _GROW_ABOVE or not isinstance(tables, ClusterTables):
        return []
    stages = growth_stages(lattice)
    out = []
    larger = np.arange(lattice.n_sites)
    for stage in stages[::-1]:
        first = np.unique(larger, return_index=True)[1]
        onto = stage[first]
        tables = tables.fold(onto)
        out.append((SemiGrandCanonical(Folded(tables)), small_lattice(lattice, stage), onto))
        larger = stage
    return out[::-1]


def given_occupations(lattice: Lattice, start) -> np.ndarray:
    """Occupations (n, sites) of Configurations or of a sequence of Atoms of the supercell.

    Raises
    ------
    TypeError
        If ``start`` is neither.
    ValueError
        If they belong to another lattice, or there are none.
    """
    if isinstance(start, Configurations):
        if start.lattice.fingerprint != lattice.fingerprint:
            raise ValueError(
                f"start has configurations of {start.lattice!r}, the chains are on {lattice!r}"
            )
        out = start.occupations.cpu().numpy()
    elif isinstance(start, Sequence) and all(isinstance(a, Atoms) for a in start):
        out = np.array([lattice.occupations(a) for a in start]).reshape(-1, lattice.n_sites)
    else:
        raise TypeError(
            "start must be 'grow', 'ordered', 'random', Configurations or a list of Atoms, got "
            f"{type(start).__name__}"
        )
    if not len(out):
        raise ValueError("start has no configuration; give at least one, or 'ordered'")
    return out


def quenched(engine, conditions: Conditions, occupations, rng) -> np.ndarray:
    """Configurations cooled to where every site carries the species of lowest energy."""
    x = np.array(occupations, dtype=np.int8, order="C")
    cold = Conditions(torch.full((len(x),), 1.0), conditions.mu)
    return np.unique(explore(engine, cold, x, 8, rng).occupations, axis=0)


def ordered_start(
    ensemble: SemiGrandCanonical,
    lattice: Lattice,
    conditions: Conditions,
    shape: tuple[int, ...],
    rng: np.random.Generator,
    grown: np.ndarray | None = None,
    given: np.ndarray | None = None,
) -> tuple[np.ndarray, OrderedPhases, Cost]:
    r"""Begin every chain in the best phase known; near coexistences from both sides.

    Candidates of a condition are the two ordered phases of lowest ``E - mu.N``
    (:func:`~clease_nn.montecarlo.ordered.ordered_phases`, each in a random one of its variants),
    the grown configuration and a random one. From each go some sweeps, which give it an
    approximate free energy

    .. math:: F = \langle E - \mu N \rangle + k_B T \sum_i \sum_a p_{ia} \ln p_{ia}

    with the mean probabilities ``p`` of every site. The lowest is taken; but where another one, of
    another composition or energy, lies less than 0.1 kT a site higher, neighbours on the grid
    take the two in turn: where phases coexist, chains come from both sides.

    Parameters
    ----------
    ensemble, lattice, conditions, shape
        Those of the chains.
    rng : numpy.random.Generator
    grown : ndarray, shape (conditions, sites), optional
        One more candidate for every condition; quenched, they are phases as well.
    given : ndarray, shape (n, sites), optional
        More phases.

    Returns
    -------
    occupations : ndarray, shape (conditions, sites), int8
    phases : OrderedPhases
    cost : Cost
    """
    engine = make_engine(ensemble, lattice)
    more = [] if given is None else [given]
    if grown is not None:
        more.append(quenched(engine, conditions, grown, rng))
    phases = ordered_phases(ensemble, lattice, conditions, np.concatenate(more) if more else None)
    n = len(conditions)
    ranked = np.argsort(phases.grand_energies(conditions), axis=1, kind="stable")[:, :2]
    starts = [phases.draw(ranked[:, k], rng) for k in range(ranked.shape[1])]
    starts.append(random_occupations(lattice, n, rng))
    if grown is not None:
        starts.append(grown)
    basins = [
        explore(engine, conditions, np.array(x, dtype=np.int8, order="C"), _SWEEPS, rng)
        for x in starts
    ]
    pick = _from_both_sides(basins, conditions, lattice.n_sites, shape)
    occupations = np.stack([b.occupations for b in basins])[pick, np.arange(n)]
    cost = Cost(
        energy_evaluations=float(engine.evaluations + phases.energy_evaluations),
        attempts_per_site=float(n * (_SWEEPS * len(starts) + (8 if grown is not None else 0))),
    )
    return occupations, phases, cost


def _from_both_sides(basins: list[Basin], conditions: Conditions, n_sites: int, shape):
    """Candidate of every condition: the best, or in turn with the best of another phase."""
    kT = conditions.kT.cpu().numpy()
    mu = conditions.mu.cpu().numpy()
    free = np.stack([b.grand_energy - kT * b.entropy for b in basins])
    counts = np.stack([b.counts for b in basins])
    energy = np.stack([b.grand_energy for b in basins]) + (counts * mu).sum(2)
    best = free.argmin(0)
    rows = np.arange(len(kT))
    moved = np.abs(counts - counts[best, rows]).max(2) > _SAME_COMPOSITION * n_sites
    other = moved | (np.abs(energy - energy[best, rows]) > _ENTROPY * kT * n_sites)
    near = free - free[best, rows] < _ENTROPY * kT * n_sites
    alternative = np.where(other & near, free, np.inf)
    second = alternative.argmin(0)
    # the two in an order that neighbours share: by composition, by energy where it is the same
    label = counts @ np.arange(counts.shape[2])
    apart = label[second, rows] - label[best, rows]
    swapped = np.where(moved[second, rows], apart, energy[second, rows] - energy[best, rows]) < 0
    odd = np.stack(np.unravel_index(rows, shape)).sum(0) % 2 == 1
    use = (odd != swapped) & np.isfinite(alternative.min(0))
    return np.where(use, second, best)
