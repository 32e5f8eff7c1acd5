"""ln Z at low temperature from the time that chains spend in the ground state."""

from __future__ import annotations

import numpy as np

from clease_nn.conditions import Conditions
from clease_nn.montecarlo.ordered import MOST_VARIANTS, OrderedPhases

__all__ = ["GroundStates"]

_CLEAR = 3.0  # in ln of the weight: phases closer than that to the best make its share uncertain
_LEAST = 0.1  # share of the time in the ground state below which it is no help
_EQUAL = 1e-6  # eV


class GroundStates:
    """Known terms of the partition function, and how much of it they are.

    If ``G`` is a set of configurations, all known, and ``P(G)`` the share of the time that a
    chain spends in it, then ``ln Z = ln sum_G w - ln P(G)``. At low temperature, where the ground
    state is most of ``Z``, that needs no way up to infinite temperature. ``G`` is the ordered
    phase of largest weight at each condition, in all its known variants, unless another one comes
    close, or it has more variants than are kept.

    Chains must reach the rest of ``Z``: one that never leaves a variant, or a phase, while others
    weigh as much, gives too small a ``ln Z``. :func:`~clease_nn.montecarlo.log_z.anchored` compares
    with what neighbours on the grid say.

    Parameters
    ----------
    phases : OrderedPhases
    conditions : Conditions
        Of the chains.
    """

    def __init__(self, phases: OrderedPhases, conditions: Conditions):
        kT = conditions.kT.cpu().numpy()
        first = np.unique(phases.phase, return_index=True)[1]
        energy = phases.configurations.energy.numpy()
        same = np.abs(energy - energy[first][phases.phase]) < _EQUAL
        variants = np.bincount(phases.phase[same], minlength=len(phases))
        log_weight = np.log(variants) - phases.grand_energies(conditions) / kT[:, None]
        order = np.sort(log_weight, axis=1)
        self.best = log_weight.argmax(1)
        self.log_weight = order[:, -1]
        self.clear = (np.bincount(phases.phase) < MOST_VARIANTS)[self.best]
        if order.shape[1] > 1:
            self.clear &= order[:, -1] - order[:, -2] > _CLEAR
        self.energy = energy[first][self.best]
        rows = phases.configurations.occupations.numpy()[same]
        self._phase_of = {
            x.tobytes(): int(p) for x, p in zip(rows, phases.phase[same], strict=True)
        }

    def visited(self, occupations: np.ndarray, energy: np.ndarray) -> np.ndarray:
        """(chains,) bool: the configuration is one of those counted at its condition."""
        near = self.clear & (np.abs(energy - self.energy) < _EQUAL)
        out = np.zeros(len(near), dtype=bool)
        for k in np.flatnonzero(near):
            out[k] = self._phase_of.get(occupations[k].tobytes(), -1) == self.best[k]
        return out

    def log_z(self, visits: np.ndarray) -> tuple[np.ndarray, ...]:
        """ln Z where the ground state is visited often enough.

        Parameters
        ----------
        visits : ndarray of bool, shape (time, chains)

        Returns
        -------
        chains : ndarray of int
            Which they are.
        log_z : ndarray, shape (len(chains),)
        influence : ndarray, shape (time, len(chains))
            Contribution of every time to the error, mean zero.
        variance : ndarray, shape (len(chains),)
            If all times were independent.
        """
        share = visits.mean(0)
        chains = np.flatnonzero(share >= _LEAST)
        p = share[chains]
        influence = (p - visits[:, chains]) / p
        return chains, self.log_weight[chains] - np.log(p), influence, (1 - p) / (p * len(visits))
