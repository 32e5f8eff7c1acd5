"""Single-site updates of many chains: compiled for cluster expansions, generic for the rest."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch

from clease_nn.energies.tables import ClusterTables
from clease_nn.lattice import Lattice
from clease_nn.montecarlo import kernels
from clease_nn.montecarlo.program import BLOCK, compile_tables

__all__ = ["Engine", "GenericEngine", "TableEngine"]

_EMPTY = np.zeros((0, 0, 0), dtype=np.float32)


class Engine(ABC):
    """Energies and single-site updates of one lattice.

    Attributes
    ----------
    evaluations : int
        Energies evaluated so far.
    """

    evaluations: int = 0

    @abstractmethod
    def new_generators(self, chains: int, rng: np.random.Generator) -> np.ndarray:
        """State of the generators that belong to the chains, uint64."""

    @abstractmethod
    def energies(self, occupations: np.ndarray) -> np.ndarray:
        """Energies (chains,) in eV per supercell, float64."""

    @abstractmethod
    def heat_bath(
        self,
        occupations,
        beta,
        beta_mu,
        clamped,
        sweeps,
        generators,
        rng,
        energy,
        probabilities=_EMPTY,
    ) -> tuple[int, int, np.ndarray | None]:
        """Sweeps in place; returns updates, changes and the energies if they are at hand."""

    @abstractmethod
    def metropolis(
        self, occupations, beta, beta_mu, clamped, sweeps, generators, rng, energy
    ) -> tuple[int, int, np.ndarray | None]:
        """Sweeps in place; returns trials, acceptances and the energies if they are at hand."""


class TableEngine(Engine):
    """Compiled updates of a cluster expansion."""

    def __init__(self, tables: ClusterTables, lattice: Lattice):
        self.compiled = compile_tables(tables, lattice)
        self.lattice = lattice

    def new_generators(self, chains: int, rng: np.random.Generator) -> np.ndarray:
        blocks = -(-chains // BLOCK)
        return rng.integers(0, 2**64, size=(blocks, 4, BLOCK), dtype=np.uint64)

    def energies(self, occupations: np.ndarray) -> np.ndarray:
        p = self.compiled
        out = np.empty(len(occupations))
        kernels.energies(occupations, p.functions, *p.program, p.depth, out)
        self.evaluations += len(occupations)
        return out

    def _arguments(self):
        p = self.compiled
        return (
            p.site_pointer,
            p.group_function,
            *p.program,
            p.functions,
            p.choice_pointer,
            p.choices,
            p.depth,
        )

    def heat_bath(
        self,
        occupations,
        beta,
        beta_mu,
        clamped,
        sweeps,
        generators,
        rng,
        energy,
        probabilities=_EMPTY,
    ):
        n = occupations.shape[1]
        orders = np.tile(np.arange(n, dtype=np.uint64), (len(generators), sweeps, 1))
        rng.permuted(orders, axis=2, out=orders)
        changed = kernels.heat_bath(
            occupations,
            beta,
            beta_mu,
            clamped,
            orders,
            generators,
            *self._arguments(),
            probabilities,
        )
        updates = sweeps * int((~clamped).sum())
        self.evaluations += updates
        return updates, int(changed), None

    def metropolis(self, occupations, beta, beta_mu, clamped, sweeps, generators, rng, energy):
        n = occupations.shape[1]
        orders = _trial_sites(n, len(generators), sweeps, rng)
        attempted, accepted = kernels.metropolis(
            occupations, beta, beta_mu, clamped, orders, generators, *self._arguments()
        )
        self.evaluations += int(attempted)
        return int(attempted), int(accepted), None


def _trial_sites(n_sites: int, blocks: int, sweeps: int, rng) -> np.ndarray:
    """Random sites (blocks, trials, 1); one trial a block is left out with probability 1/2.

    Were every trial made, the parity of the number of flips would be conserved at infinite
    temperature, where each is accepted.
    """
    sites = rng.integers(0, n_sites, size=(blocks, sweeps * n_sites, 1), dtype=np.uint64)
    if sites.shape[1]:
        sites[rng.random(blocks) < 0.5, 0, 0] = n_sites
    return sites


class GenericEngine(Engine):
    """Updates of any batched energy: through its flip energies or through whole energies."""

    def __init__(self, energy, lattice: Lattice):
        self.energy = energy
        self.lattice = lattice
        self.choices = [np.flatnonzero(row) for row in lattice.allowed]
        self.has_flips = hasattr(energy, "flip_energies")

    def new_generators(self, chains: int, rng: np.random.Generator) -> np.ndarray:
        return np.zeros(0, dtype=np.uint64)

    def energies(self, occupations: np.ndarray) -> np.ndarray:
        self.evaluations += len(occupations)
        batch = torch.from_numpy(np.ascontiguousarray(occupations))
        out = torch.as_tensor(self.energy(self.lattice, batch)).detach().cpu().numpy().astype(float)
        if not np.isfinite(out).all():
            raise ValueError(
                f"{int((~np.isfinite(out)).sum())} of {len(out)} energies are not finite; check "
                "the energy model"
            )
        return out

    def _changes(self, occupations, site: int, species: np.ndarray, energy) -> np.ndarray:
        """E(site := species) - E(now), shape (chains, len(species)), eV."""
        rows = np.arange(len(occupations))
        if self.has_flips:
            self.evaluations += len(species) * len(rows)
            batch = torch.from_numpy(occupations)
            flips = torch.as_tensor(self.energy.flip_energies(self.lattice, batch))
            return flips[:, site].cpu().numpy().astype(float)[:, species]
        out = np.zeros((len(rows), len(species)))
        for j, a in enumerate(species):
            differ = np.flatnonzero(occupations[:, site] != a)
            if len(differ):
                trial = occupations[differ]
                trial[:, site] = a
                out[differ, j] = self.energies(trial) - energy[differ]
        return out

    def heat_bath(
        self,
        occupations,
        beta,
        beta_mu,
        clamped,
        sweeps,
        generators,
        rng,
        energy,
        probabilities=_EMPTY,
    ):
        energy = self.energies(occupations) if energy is None else energy.copy()
        updates = changed = 0
        for _ in range(sweeps):
            for site in rng.permutation(self.lattice.n_sites):
                species = self.choices[site]
                rows = np.flatnonzero(~clamped[:, site])
                if len(species) == 1 or len(rows) == 0:
                    continue
                now = occupations[rows]
                delta = self._changes(now, site, species, energy[rows])
                logit = beta_mu[rows][:, species] - beta[rows, None] * delta
                p = np.exp(logit - logit.max(1, keepdims=True))
                p /= p.sum(1, keepdims=True)
                pick = (rng.random((len(rows), 1)) >= np.cumsum(p, 1)[:, :-1]).sum(1)
                if probabilities.size:
                    probabilities[rows[:, None], site, species[None]] += p.astype(np.float32)
                changed += int((species[pick] != now[:, site]).sum())
                updates += len(rows)
                occupations[rows, site] = species[pick]
                energy[rows] += delta[np.arange(len(rows)), pick]
            energy = self._refreshed(occupations, energy)
        return updates, changed, energy

    def _refreshed(self, occupations, energy):
        """Whole energies after a sweep of differences, so that errors do not add up."""
        return self.energies(occupations) if self.has_flips else energy

    def metropolis(self, occupations, beta, beta_mu, clamped, sweeps, generators, rng, energy):
        energy = self.energies(occupations) if energy is None else energy.copy()
        n = self.lattice.n_sites
        attempted = accepted = 0
        for site in _trial_sites(n, 1, sweeps, rng).ravel():
            rows = np.arange(len(occupations)) if site < n else np.zeros(0, dtype=int)
            species = self.choices[site] if len(rows) else rows
            rows = rows[~clamped[rows, site]] if len(species) > 1 else rows[:0]
            if len(rows) == 0:
                continue
            now = occupations[rows]
            old = now[:, site].astype(int)
            position = np.searchsorted(species, old)
            shift = rng.integers(1, len(species), size=len(rows))
            new = species[(position + shift) % len(species)]
            if self.has_flips:
                delta = self._changes(now, site, np.arange(self.lattice.n_species), None)
                delta = delta[np.arange(len(rows)), new]
            else:
                now[:, site] = new
                delta = self.energies(now) - energy[rows]
            x = beta_mu[rows, new] - beta_mu[rows, old] - beta[rows] * delta
            take = rng.random(len(rows)) < np.exp(np.minimum(x, 0.0))
            occupations[rows[take], site] = new[take]
            energy[rows[take]] += delta[take]
            attempted += len(rows)
            accepted += int(take.sum())
        if self.has_flips:
            energy = self.energies(occupations)
        return attempted, accepted, energy
