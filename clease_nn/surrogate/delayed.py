"""Delayed acceptance: many moves of a cheap surrogate, then one true energy."""

from __future__ import annotations

import numpy as np
import torch

from clease_nn.energies.cluster_expansion import ClusterExpansionEnergy
from clease_nn.energies.protocol import EnergyModel
from clease_nn.lattice import Lattice
from clease_nn.single_chain import AbstractChain, FlipGroups, SingleChain
from clease_nn.statistics import integrated_autocorrelation_time

__all__ = ["DelayedAcceptanceChain"]

_PILOT, _SWEEPS = 512, 16  # recorded points of the pilot run, sweeps between them at first
_LONGEST = 20_000  # surrogate moves a site and step at most
_TIMES = 3  # autocorrelation times between two true energies


class DelayedAcceptanceChain(AbstractChain):
    r"""A chain of an expensive energy whose proposals are stretches of a surrogate's chain.

    A step from ``x`` makes ``inner`` Metropolis moves under the surrogate energy
    :math:`\tilde E`, which lead to ``y``; then one true energy decides with probability

    .. math:: \min\{1, \exp(-[(E(y) - \tilde E(y)) - (E(x) - \tilde E(x))] / kT)\}

    so that :math:`\exp(-(E - \mu N)/kT)` is stationary whatever the surrogate [1]_ [2]_. A poor
    surrogate costs acceptance, never correctness. A stretch that ends where it began needs no
    true energy.

    Why: one move of :class:`~clease_nn.single_chain.SingleChain` chooses a group, a site and a
    species from distributions that do not depend on ``x`` and accepts by Metropolis, hence its
    kernel K obeys detailed balance with the surrogate's weights :math:`\tilde w`; so does
    :math:`K^m`, for :math:`\tilde w(x) K^m(x, y) = \tilde w(y) K^m(y, x)` follows by moving the
    factors over one by one. As a proposal of Metropolis and Hastings its ratio
    :math:`w(y) K^m(y, x) / (w(x) K^m(x, y))` is therefore
    :math:`[w(y) / \tilde w(y)] / [w(x) / \tilde w(x)]`, the chemical potentials cancelling.
    (A sequence of different kernels A, B would have to be palindromic, A B A.)

    Parameters
    ----------
    energy : EnergyModel
        The true energy, eV per supercell; called with one configuration at a time.
    surrogate : ClusterExpansionEnergy
        Any expansion of the same lattice: fitted here or by a host code.
    lattice : Lattice
    observables : array_like, shape (observables, species), optional
        Site functions whose means over all active sites are followed (``values``).
    inner : int, optional
        Surrogate moves a step. Default: three autocorrelation times (energy and counts) of the
        surrogate's own chain, at least four a site, measured by a pilot run the first time a
        condition is met. The condition keeps it: a length that followed the state would break
        detailed balance.

    Attributes
    ----------
    true_calls : int
        True energies asked for since construction (a cache behind them not considered).
    inner : int or None
        Surrogate moves a step; None until the first run at a condition.

    Raises
    ------
    TypeError
        If the surrogate is not a cluster expansion.
    ValueError
        If ``inner`` is below 1 or the surrogate belongs to another lattice.

    References
    ----------
    .. [1] J. A. Christen, C. Fox, J. Comput. Graph. Stat. 14, 795 (2005).
    .. [2] J. S. Liu, Monte Carlo Strategies in Scientific Computing (2001), section 9.4.3:
       the surrogate transition method.

    Examples
    --------
    A single site whose surrogate has the wrong sign:

    >>> from clease_nn.energies.tables import ClusterTables
    >>> surrogate = ClusterExpansionEnergy(
    ...     ClusterTables.from_terms(1, [[0.0, 1.0]], [(-0.1, [(0, 0)])]))
    >>> lattice = Lattice.square(1)
    >>> chain = DelayedAcceptanceChain(
    ...     lambda lattice, x: 0.1 * x[:, 0].double(), surrogate, lattice, [[0.0, 1.0]], inner=1)
    >>> chain.set(0.1, [0.0, 0.0], FlipGroups([([0], [0, 1])], [[True, True]]))
    >>> chain.load(np.array([0], np.int8), 0.0)
    >>> chain.seed(np.random.SeedSequence(1))
    >>> chain.run(4000)
    >>> bool(abs(chain.sums[2] / chain.steps - 1 / (1 + np.exp(1.0))) < 0.05)
    True
    """

    def __init__(
        self,
        energy: EnergyModel,
        surrogate: ClusterExpansionEnergy,
        lattice: Lattice,
        observables=None,
        inner: int | None = None,
    ):
        if not isinstance(surrogate, ClusterExpansionEnergy):
            raise TypeError(
                "surrogate must be a ClusterExpansionEnergy (the .energy of a fitted Surrogate), "
                f"got {type(surrogate).__name__}"
            )
        if inner is not None and inner < 1:
            raise ValueError(f"inner must be at least 1 surrogate move, got {inner}")
        surrogate.tables.check_lattice(lattice)
        self._true, self._surrogate, self.lattice = energy, surrogate, lattice
        self._given = inner is not None
        self.inner = int(inner) if self._given else None
        self._lengths: dict[tuple, int] = {}
        self._chain = SingleChain(surrogate.tables)
        self._rng = np.random.default_rng(0)
        self._pilot_seed = np.random.SeedSequence(0)
        self._groups: FlipGroups | None = None
        self.true_calls = 0
        self._cheap: float | None = None
        self._observe(lattice.n_sites, lattice.n_species, observables)

    def set(self, kT: float, mu, groups: FlipGroups) -> None:
        """Set kT (eV), the chemical potential of every species (eV) and the trial moves.

        ``energy`` is E' at the old chemical potentials until :meth:`load` is called.
        """
        self._kT, self._groups = float(kT), groups
        self._mu = np.asarray(mu, dtype=float)
        self._chain.set(kT, self._mu, groups)
        self._cheap = None
        self._condition = (self._kT, self._mu.tobytes(), groups.reachable.tobytes())
        if not self._given:
            self.inner = self._lengths.get(self._condition)

    def seed(self, sequence: np.random.SeedSequence) -> None:
        """Start the random numbers."""
        for_chain, for_decisions, self._pilot_seed = sequence.spawn(3)
        self._chain.seed(for_chain)
        self._rng = np.random.default_rng(for_decisions)

    def load(self, occupations: np.ndarray, energy: float) -> None:
        """Go to another configuration whose E' (eV) is known.

        Raises
        ------
        ValueError
            If E' is not finite.
        """
        super().load(occupations, energy)
        self._cheap = None

    def run(self, steps: int) -> None:
        """Make steps of ``inner`` surrogate moves and at most one true energy each.

        Whatever ends a step early (Ctrl-C, an energy that fails) leaves the chain as it was
        before that step.

        Raises
        ------
        ValueError
            If a true energy is NaN or infinite; errors of the energy itself pass through.
        """
        if self._cheap is None:
            self._cheap = self._surrogate_energy(self.occupations)
        if self.inner is None:
            self.inner = self._lengths[self._condition] = self._measure_inner()
        chain = self._chain
        for _ in range(int(steps)):
            chain.load(self.occupations, self._cheap)
            chain.run(self.inner)
            if (chain.occupations != self.occupations).any():
                new = chain.occupations.copy()
                energy = self._true_energy(new)
                change = (energy - chain.energy) - (self.energy - self._cheap)
                if np.log1p(-self._rng.random()) < -change / self._kT:
                    self.occupations[:] = new
                    self.energy, self._cheap = energy, chain.energy
                    self.values[:] = self._observables[:, new].sum(1)
                    self.accepted += 1
            self.add_current()

    # ------------------------------------------------------------------ energies
    def _true_energy(self, occupations: np.ndarray) -> float:
        """E' of one configuration."""
        self.true_calls += 1
        x = torch.from_numpy(occupations[None].copy())
        energy = float(torch.as_tensor(self._true(self.lattice, x)).reshape(-1)[0])
        if not np.isfinite(energy):
            raise ValueError(
                f"the energy of the configuration {occupations.tolist()} is {energy}; check the "
                "energy model"
            )
        return energy - float(self._mu[occupations].sum())

    def _surrogate_energy(self, occupations: np.ndarray) -> float:
        """E' of the surrogate."""
        x = torch.from_numpy(occupations[None].copy())
        return float(self._surrogate(self.lattice, x)[0]) - float(self._mu[occupations].sum())

    # ------------------------------------------------------------------ length of a stretch
    def _measure_inner(self) -> int:
        """Moves between independent configurations of the surrogate, from a pilot chain.

        The pilot starts from the present configuration, with random numbers of its own, and is
        lengthened until it holds many autocorrelation times.
        """
        n = self.lattice.n_sites
        pilot = SingleChain(self._surrogate.tables, np.eye(self.lattice.n_species))
        pilot.set(self._kT, self._mu, self._groups)
        pilot.seed(self._pilot_seed.spawn(1)[0])
        pilot.load(self.occupations, self._cheap)
        stride = _SWEEPS * n
        while True:
            pilot.run(_PILOT * stride // 4)
            rows = np.empty((_PILOT, 1 + self.lattice.n_species))
            for k in range(_PILOT):
                pilot.run(stride)
                rows[k] = pilot.energy, *pilot.values
            moving = rows[:, np.ptp(rows, axis=0) > 1e-9]
            # a pilot that never moves has seen nothing yet
            tau = max((integrated_autocorrelation_time(c) for c in moving.T), default=_PILOT)
            wanted = stride * (1 if tau < 1.2 else int(np.ceil(_TIMES * tau)))
            if tau < _PILOT / 30 or wanted >= _LONGEST * n:
                return min(wanted, _LONGEST * n)
            stride *= 4
