"""Ordered phases of a supercell: the ground states of the small periodic cells that tile it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import numpy as np
import torch

from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations, species_counts
from clease_nn.energies.tables import ClusterTables
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import Lattice
from clease_nn.montecarlo.cells import PeriodicCells, hermite, reduced
from clease_nn.montecarlo.chains import check_occupations, make_engine
from clease_nn.montecarlo.engines import TableEngine
from clease_nn.montecarlo.growth import small_lattice

__all__ = ["MOST_VARIANTS", "OrderedPhases", "ordered_phases"]

MOST_VARIANTS = 512
"""Configurations of one phase that are kept, at most."""

_DIGITS = 7  # energies per site (eV) that agree to so many digits are those of one phase
_EQUAL = 1e-6  # eV; translations of a configuration differ by less
_FEW = 16  # with fewer variants than that translations are added
_KEPT = 4096  # configurations of one small cell that are kept, at most
_POTENTIALS = 256  # chemical potentials that are looked at, at most


@dataclass(frozen=True, eq=False)
class OrderedPhases:
    """Ordered configurations of a supercell, grouped into phases.

    Attributes
    ----------
    configurations : Configurations
        Every variant of every phase (all its translations and orientations that fit the supercell,
        512 at most), scored at a condition at which the phase is wanted.
    phase : ndarray of int, shape (configurations,)
        Phase of each; 0 to ``len(self) - 1``.
    energy_evaluations : int
        What the search has cost.
    """

    configurations: Configurations
    phase: np.ndarray
    energy_evaluations: int = 0

    def __len__(self) -> int:
        return int(self.phase.max()) + 1

    def grand_energies(self, conditions: Conditions) -> np.ndarray:
        """``E - mu.N`` of every phase in eV per supercell, shape (conditions, phases)."""
        first = np.unique(self.phase, return_index=True)[1]
        rows = self.configurations[torch.from_numpy(first)]
        mu = conditions.mu.cpu().numpy()
        return rows.energy.numpy() - mu @ rows.counts().numpy().T

    def draw(self, phase: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """An evenly random variant of each phase asked for, shape (len(phase), sites), int8."""
        order = np.argsort(self.phase, kind="stable")
        start = np.searchsorted(self.phase[order], np.arange(len(self) + 1))
        number = np.diff(start)[phase]
        pick = start[phase] + (rng.random(len(phase)) * number).astype(np.int64)
        return self.configurations.occupations.numpy()[order[pick]]


def ordered_phases(
    ensemble: SemiGrandCanonical,
    lattice: Lattice,
    conditions: Conditions,
    given: Configurations | np.ndarray | None = None,
    *,
    per_condition: int = 3,
    max_states: int = 2**16,
) -> OrderedPhases:
    """Ground states of the small periodic cells of a supercell, at all mu of some conditions.

    All configurations of all cells of 1, 2, 3, ... primitive cells that tile the supercell are
    enumerated, in all orientations, as long as there are no more than ``max_states`` of them.
    Kept are the ``per_condition`` phases of lowest ``E - mu.N`` at each chemical potential: those
    that can be stable at low temperature, and their competitors. Energies other than cluster
    expansions are not enumerated; there the pure species and given structures are the phases.

    Parameters
    ----------
    ensemble : SemiGrandCanonical
    lattice : Lattice
    conditions : Conditions
    given : Configurations or array_like, shape (n, sites), optional
        Further candidates: structures known from elsewhere, or quenched from chains. Their
        translations count as variants.
    per_condition : int
        At least 1.
    max_states : int
        The default holds cells of up to 8 binary sites and takes seconds; 2**22 those of
        16 sites in supercells that are not too large.

    Returns
    -------
    OrderedPhases

    Raises
    ------
    ValueError
        If a given configuration is incomplete or not allowed, or ``per_condition`` is not
        positive.

    Examples
    --------
    >>> from clease_nn.energies.ising import ising_energy
    >>> lattice = Lattice.square(4)
    >>> antiferromagnet = SemiGrandCanonical(ising_energy(lattice, coupling=-1.0))
    >>> condition = Conditions([300.0], [[0.0, 0.0]])
    >>> phases = ordered_phases(antiferromagnet, lattice, condition)
    >>> ground = phases.grand_energies(condition)[0].argmin()
    >>> rows = phases.configurations[torch.from_numpy(phases.phase == ground)]
    >>> len(rows), rows.energy[0].item()
    (2, -32.0)
    """
    if per_condition < 1:
        raise ValueError(f"per_condition must be at least 1, got {per_condition}")
    mu = np.unique(conditions.mu.cpu().numpy(), axis=0)
    mu = mu[np.unique(np.linspace(0, len(mu) - 1, min(len(mu), _POTENTIALS)).astype(int))]
    tables = getattr(ensemble.energy, "tables", None)
    engine = make_engine(ensemble, lattice)
    states, evaluations = [_pure(lattice)], 0
    if isinstance(tables, ClusterTables):
        found, evaluations = _enumerated(tables, lattice, mu, per_condition, max_states)
        states += found
    if given is not None:
        given = given.occupations.cpu().numpy() if isinstance(given, Configurations) else given
        given = np.atleast_2d(np.asarray(given))
        states.append(check_occupations(lattice, given, len(given)))
    every = np.unique(np.concatenate(states), axis=0)
    energy = engine.energies(every)
    phase, wanted = _lowest_phases(energy, _counts(every, lattice), mu, per_condition)
    rng = np.random.default_rng(0)
    rows = []
    for g in wanted:
        variants = every[phase == g]
        if len(variants) < _FEW:  # given or quenched: their translations belong to the phase
            moved = lattice.random_translations(min(4 * lattice.n_sites, MOST_VARIANTS), rng)
            images = np.unique(variants[:, moved].reshape(-1, lattice.n_sites), axis=0)
            alike = np.abs(engine.energies(images) - energy[phase == g].min()) < _EQUAL
            variants = np.unique(np.concatenate([variants, images[alike]]), axis=0)
        rows.append(variants[rng.permutation(len(variants))[:MOST_VARIANTS]])
    occupations = torch.from_numpy(np.concatenate(rows))
    number = np.repeat(np.arange(len(rows)), [len(r) for r in rows])
    energy = engine.energies(occupations.numpy())
    at = (energy - mu @ _counts(occupations.numpy(), lattice).T).argmin(0)
    wherever = Conditions(
        torch.full((len(mu),), float(conditions.temperature.min())), torch.from_numpy(mu)
    )
    c = Configurations(lattice, wherever[torch.from_numpy(at)], occupations)
    energy = torch.from_numpy(energy)
    c = replace(c, energy=energy, log_target=ensemble.log_weight(c, energy))
    return OrderedPhases(c, number, evaluations + engine.evaluations)


def _counts(occupations: np.ndarray, lattice: Lattice) -> np.ndarray:
    return species_counts(torch.from_numpy(occupations), lattice.n_species).numpy()


def _pure(lattice: Lattice) -> np.ndarray:
    """One species on all sites that may carry it, shape (species, sites)."""
    first = lattice.allowed.argmax(1)
    rows = [np.where(lattice.allowed[:, a], a, first) for a in range(lattice.n_species)]
    return np.array(rows, dtype=np.int8)


def _lowest_phases(energy, counts, mu, per_condition):
    """Phase of every row, and the phases that are among the lowest at some mu.

    Rows of one energy and composition are one phase.
    """
    code = np.unique(counts, axis=0, return_inverse=True)[1].ravel()
    level = np.round(energy / counts[0].sum() * 10**_DIGITS).astype(np.int64)
    level -= level.min()
    key = code * (level.max() + 1) + level
    first, phase = np.unique(key, return_index=True, return_inverse=True)[1:]
    grand = energy[first] - mu @ counts[first].T
    few = min(per_condition, len(first))
    lowest = np.argpartition(grand, few - 1, axis=1)[:, :few]
    return phase.ravel(), np.unique(lowest)


def _enumerated(tables, lattice, mu, per_condition, max_states):
    """Lowest configurations of all small cells, copied into the supercell, and the cost."""
    cells = PeriodicCells.of(lattice)
    motifs = np.unique(cells.motif, return_index=True)[1]
    per_primitive = prod(lattice.allowed[motifs].sum(1).tolist())
    chosen, total = [], 0
    for size in range(1, cells.n_primitive + 1):
        number = per_primitive**size
        if total + number > max_states:
            break
        of_size = list(cells.of_size(size))
        total += number * len(of_size)
        if total > max_states:
            break
        chosen += [(size, cell) for cell in of_size]
    eye = np.eye(len(cells.supercell), dtype=np.int64)
    halfway: dict[int, tuple] = {}
    out, evaluations = [], 0
    for size, cell in chosen:
        # the cell also tiles one of `repeat` primitive cells a side: folding twice is cheaper
        repeat = next(r for r in range(1, size + 1) if not reduced(r * eye, cell).any())
        if repeat not in halfway:
            onto = cells.labels(hermite(np.concatenate([cells.supercell, repeat * eye])))
            halfway[repeat] = tables.fold(onto), np.unique(onto, return_index=True)[1]
        folded, sites = halfway[repeat]
        stage = cells.labels(cell)
        small = small_lattice(lattice, stage)
        engine = TableEngine(folded.fold(stage[sites]), small)
        states = _all_states(small.allowed)
        energy = engine.energies(states)
        phase, wanted = _lowest_phases(energy, _counts(states, small), mu, per_condition)
        kept = states[np.isin(phase, wanted)]
        out.append(kept[:_KEPT][:, stage])
        evaluations += engine.evaluations
    return out, evaluations


def _all_states(allowed: np.ndarray) -> np.ndarray:
    """All configurations of a few sites, shape (states, sites), int8."""
    mesh = np.meshgrid(*[np.flatnonzero(row).astype(np.int8) for row in allowed], indexing="ij")
    return np.ascontiguousarray(np.stack([m.ravel() for m in mesh], 1))
