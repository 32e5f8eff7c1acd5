"""What a host's drop-in needs of a chain."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from clease_nn.single_chain.groups import FlipGroups

__all__ = ["AbstractChain"]


class AbstractChain(ABC):
    """A Markov chain of single configurations at one condition, with sums over its steps.

    A subclass fills the attributes below; every step adds to ``sums``.

    Attributes
    ----------
    occupations : ndarray, shape (sites,), int8
    energy : float
        E' = E - mu.N of ``occupations``, eV.
    values : ndarray, shape (observables,)
        Means of the observed site functions over all active sites.
    steps, accepted : int
        Counted since :meth:`clear`.
    sums : ndarray
        Sums over steps since :meth:`clear`: E', E'^2, then for every observable s, s^2 and s E',
        E' counted from ``reference``.
    reference : float
        eV. Near E' it keeps the digits of the variance where energies are totals of all electrons.
        Compiled chains leave it at 0.
    """

    occupations: np.ndarray
    energy: float
    values: np.ndarray
    steps: int
    accepted: int
    sums: np.ndarray
    reference: float = 0.0

    def _observe(self, n_sites: int, n_species: int, observables) -> None:
        """Set up what is followed: site functions (observables, species), or None."""
        table = np.zeros((0, n_species)) if observables is None else observables
        self._observables = np.atleast_2d(np.asarray(table, dtype=float)) / n_sites
        self.occupations = np.zeros(n_sites, dtype=np.int8)
        self.values = np.zeros(len(self._observables))
        self.sums = np.zeros(2 + 3 * len(self._observables))
        self.energy = 0.0
        self.clear()

    @abstractmethod
    def set(self, kT: float, mu, groups: FlipGroups) -> None:
        """Set kT (eV), the chemical potential of every species (eV) and the trial moves."""

    @abstractmethod
    def seed(self, sequence: np.random.SeedSequence) -> None:
        """Start the random numbers."""

    def load(self, occupations: np.ndarray, energy: float) -> None:
        """Go to another configuration whose E' (eV) is known.

        Raises
        ------
        ValueError
            If E' is not finite.
        """
        if not np.isfinite(energy):
            raise ValueError(f"a chain cannot start from the energy {energy}")
        self.occupations[:] = occupations
        self.energy = float(energy)
        self.values[:] = self._observables[:, self.occupations].sum(1)

    @abstractmethod
    def run(self, steps: int) -> None:
        """Make steps."""

    def advance(self, steps: int = 1) -> list[tuple[int, int, int]]:
        """Make steps; the changes of the last one as (site, old, new species), at least one.

        A rejected step is a single change with old = new.
        """
        self.run(steps - 1)
        before = self.occupations.copy()
        self.run(1)
        changed = np.flatnonzero(before != self.occupations)
        sites = changed if len(changed) else [0]
        return [(int(k), int(before[k]), int(self.occupations[k])) for k in sites]

    def clear(self) -> None:
        """Forget sums and counters, keep the configuration."""
        self.sums[:] = 0.0
        self.steps = self.accepted = 0

    def add_current(self) -> None:
        """Count the present configuration as one step (made by another kind of move)."""
        e, s = self.energy - self.reference, self.values
        self.sums[:2] += e, e * e
        self.sums[2:] += np.stack([s, s * s, s * e], 1).ravel()
        self.steps += 1
