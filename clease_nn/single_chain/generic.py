"""One Metropolis chain of any energy: a full evaluation for every proposed move."""

from __future__ import annotations

import numpy as np
import torch

from clease_nn.energies.protocol import EnergyModel
from clease_nn.lattice import Lattice
from clease_nn.single_chain.abstract import AbstractChain
from clease_nn.single_chain.groups import FlipGroups

__all__ = ["EnergyChain"]


class EnergyChain(AbstractChain):
    """A Metropolis chain that asks an energy for every configuration it considers.

    A trial move takes a random site of a random group of sites and gives it another species of
    that group, both uniformly, and is accepted with probability ``min(1, exp(-dE'/kT))``, as in
    :class:`~clease_nn.single_chain.SingleChain`. Moves that a mask forbids are rejected without
    an evaluation.

    Parameters
    ----------
    energy : EnergyModel
        eV per supercell; called with one configuration at a time.
    lattice : Lattice
    observables : array_like, shape (observables, species), optional
        Site functions whose means over all active sites are followed (``values``).

    Attributes
    ----------
    calls : int
        Energies asked for since construction.

    Examples
    --------
    A single site with two states 0.1 eV apart:

    >>> chain = EnergyChain(lambda lattice, x: 0.1 * x[:, 0].double(), Lattice.square(1), [[0, 1]])
    >>> chain.set(0.1, [0.0, 0.0], FlipGroups([([0], [0, 1])], [[True, True]]))
    >>> chain.load(np.array([0], np.int8), 0.0)
    >>> chain.seed(np.random.SeedSequence(1))
    >>> chain.run(4000)
    >>> bool(abs(chain.sums[2] / chain.steps - 1 / (1 + np.exp(1.0))) < 0.05)
    True
    """

    def __init__(self, energy: EnergyModel, lattice: Lattice, observables=None):
        self._energy, self.lattice = energy, lattice
        self.calls = 0
        self._rng = np.random.default_rng(0)
        self._last: tuple[int, int, int] | None = None
        self._observe(lattice.n_sites, lattice.n_species, observables)

    def set(self, kT: float, mu, groups: FlipGroups) -> None:
        """Set kT (eV), the chemical potential of every species (eV) and the trial moves.

        ``energy`` is E' at the old chemical potentials until :meth:`load` is called.
        """
        self._kT, self._mu, self._groups = float(kT), np.asarray(mu, dtype=float), groups

    def seed(self, sequence: np.random.SeedSequence) -> None:
        """Start the random numbers."""
        self._rng = np.random.default_rng(sequence)

    def run(self, steps: int) -> None:
        """Make trial moves.

        Whatever ends a step early (Ctrl-C, an energy that fails) leaves the chain as it was
        before that step; those before it are counted.

        Raises
        ------
        ValueError
            If an energy is NaN or infinite; errors of the energy itself pass through.
        """
        for _ in range(int(steps)):
            self._step()
            self.add_current()

    def advance(self, steps: int = 1) -> list[tuple[int, int, int]]:
        """Make steps; site, old and new species of the last (old = new: rejected)."""
        self.run(steps)
        return [self._last or (0, int(self.occupations[0]), int(self.occupations[0]))]

    def _step(self) -> None:
        move = self._propose()
        if move is None:
            return
        site, old, new = move
        proposal = self.occupations.copy()
        proposal[site] = new
        if self._groups.allowed[site, new] and not self._groups.forbidden(proposal[None])[0]:
            energy = self._evaluate(proposal)
            if np.log1p(-self._rng.random()) < (self.energy - energy) / self._kT:
                self.occupations[site] = new
                self.energy = energy
                self.values += self._observables[:, new] - self._observables[:, old]
                self.accepted += 1
                self._last = site, old, new
                return
        self._last = site, old, old

    def _propose(self) -> tuple[int, int, int] | None:
        """(site, old, new species), or None where the chosen group cannot move."""
        g, rng = self._groups, self._rng
        if len(g.cumulative):
            k = int(np.searchsorted(g.cumulative[:-1], rng.random(), side="right"))
        else:
            k = int(rng.integers(len(g.site_pointer) - 1))
        sites = g.sites[g.site_pointer[k] : g.site_pointer[k + 1]]
        species = g.species[g.species_pointer[k] : g.species_pointer[k + 1]]
        if not len(sites) or len(species) < 2:
            return None
        site = int(sites[rng.integers(len(sites))])
        old = int(self.occupations[site])
        others = species[species != old]
        return site, old, int(others[rng.integers(len(others))])

    def _evaluate(self, occupations: np.ndarray) -> float:
        """E' of one configuration."""
        self.calls += 1
        x = torch.from_numpy(occupations[None].copy())  # the energy may write into it
        energy = float(torch.as_tensor(self._energy(self.lattice, x)).reshape(-1)[0])
        if not np.isfinite(energy):
            raise ValueError(
                f"the energy of the configuration {occupations.tolist()} is {energy} eV; check "
                "the energy model"
            )
        return energy - float(self._mu[occupations].sum())
