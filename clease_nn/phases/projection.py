"""Phases at one temperature, summed over the states that a line of chemical potentials moves alike.

Along ``mu(t) = origin + t direction`` the weight of a state changes by ``exp(t a / kT)`` with
``a = direction . N`` its amount. Summed once over all states of equal amount, a phase's ln Z, its
averages and those of every replica are small sums at any t.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from ase.units import kB
from scipy.sparse import csr_matrix

from clease_nn.phases.labels import Phases
from clease_nn.phases.line import ChemicalPotentialLine
from clease_nn.thermodynamics import DensityOfStates

__all__ = ["Landscape", "Projection", "by_amount"]

_NEGLIGIBLE = 1e-10  # of the heaviest state of an amount


def _log_sum(a: np.ndarray, axis: int) -> np.ndarray:
    """Logarithm of a sum of exponentials; -inf where all are."""
    top = np.maximum(a.max(axis, keepdims=True), -1e300)
    with np.errstate(divide="ignore"):
        return np.log(np.exp(a - top).sum(axis)) + top.squeeze(axis)


class Projection:
    """One phase at one temperature along a line.

    Parameters
    ----------
    dos : DensityOfStates
    rows : ndarray of int
        States of the phase.
    amount, bins : ndarray, shape (K,) and (len(rows),)
        Distinct ``direction . N`` of these states, ascending, and which of them each has.
    log_weight : ndarray, shape (states,)
        Of every state of ``dos`` at t = 0.
    values : ndarray, shape (states, d)
        What is averaged.
    kT : float
        eV.
    degeneracy : float
        By which the weight of every state is divided.

    Attributes
    ----------
    amount : ndarray, shape (K,)
    log_weight : ndarray, shape (K,)
        Log of the summed weight of every amount at t = 0.
    mean : ndarray, shape (K, d)
        Of the values.
    """

    def __init__(
        self, dos: DensityOfStates, rows, amount, bins, log_weight, values, kT, degeneracy=1.0
    ):
        self.kT, self.amount = kT, amount
        log_weight = log_weight[rows] - np.log(degeneracy)
        top = np.full(len(self.amount), -np.inf)
        np.maximum.at(top, bins, log_weight)
        w = np.exp(log_weight - top[bins])
        keep = w > _NEGLIGIBLE
        self._rows, bins, w = rows[keep], bins[keep], w[keep]
        n, k = len(self._rows), len(self.amount)
        self._sum = csr_matrix((w, (bins, np.arange(n))), shape=(k, n))
        total = np.bincount(bins, w, k)
        self.log_weight = top + np.log(total)
        self.mean = self._sum @ values[self._rows] / total[:, None]
        self._total, self._bins, self._values = total, bins, values
        self._replicas = dos.replicas
        if dos.is_exact:
            self.log_square = np.full(k, -np.inf)
        else:
            tau = 1.0 if dos.inefficiency is None else dos.inefficiency[self._rows]
            self.log_square = 2 * top + np.log(np.bincount(bins, w**2 * tau, k))

    def __len__(self) -> int:
        return len(self.amount)

    @property
    def ess_of_amounts(self) -> np.ndarray:
        """Effective states of every amount, shape (K,)."""
        with np.errstate(over="ignore"):
            return np.exp(2 * self.log_weight - self.log_square)

    def log_z(self, t) -> np.ndarray:
        """ln Z at every t, shape (len(t),)."""
        t = np.atleast_1d(np.asarray(t, dtype=float))
        return _log_sum(self.log_weight + t[:, None] * self.amount / self.kT, 1)

    def ess(self, t) -> np.ndarray:
        """Effective states at every t, shape (len(t),)."""
        t = np.atleast_1d(np.asarray(t, dtype=float))
        square = _log_sum(self.log_square + 2 * t[:, None] * self.amount / self.kT, 1)
        with np.errstate(over="ignore"):
            return np.exp(2 * self.log_z(t) - square)

    def at(self, t: float) -> tuple[float, float, np.ndarray]:
        """ln Z, mean amount, mean values (d,) at one t."""
        a = self.log_weight + t * self.amount / self.kT
        log_z = _log_sum(a, 0)
        p = np.exp(a - log_z)
        return float(log_z), float(p @ self.amount), p @ self.mean

    @cached_property
    def _resampled(self) -> tuple[np.ndarray, np.ndarray]:
        """Log of the factors (K, R) and shifts of the means (K, R, d) of every replica."""
        r = np.asarray(self._replicas[self._rows], dtype=np.float32)
        matrix = self._sum.astype(np.float32)
        factor = (matrix @ r).astype(float) / self._total[:, None]
        shifts = []
        for v, mean in zip(self._values[self._rows].T, self.mean.T, strict=True):
            centred = (v - mean[self._bins]).astype(np.float32)
            d = (matrix.multiply(centred[None]).tocsr() @ r).astype(float) / self._total[:, None]
            shifts.append(d / np.maximum(factor, 1e-300))
        with np.errstate(divide="ignore"):
            return np.log(factor), np.stack(shifts, 2)

    def replicas(self, t) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As :meth:`at` for every replica, each at a t of its own: (R,), (R,), (R, d)."""
        log_factor, shift = self._resampled
        a = self.log_weight[:, None] + log_factor + self.amount[:, None] * t / self.kT
        log_z = _log_sum(a, 0)
        p = np.exp(a - log_z)
        mean = np.einsum("kr,krd->rd", p, self.mean[:, None] + shift)
        return log_z, self.amount @ p, mean


def by_amount(amount: np.ndarray, log_g: np.ndarray, rows: np.ndarray):
    """Rows with weight, their distinct amounts, and which of them each row has."""
    rows = rows[np.isfinite(log_g[rows])]
    return (rows, *np.unique(np.round(amount[rows], 9), return_inverse=True))


class Landscape:
    """Every phase along one line, at any temperature; remembers what it has summed.

    The values of its projections are ``E - origin . N`` (eV per supercell) and the share of the
    line's species.

    Parameters
    ----------
    dos : DensityOfStates
    phases : Phases
    line : ChemicalPotentialLine

    Raises
    ------
    ValueError
        If labels and states, or line and lattice, do not belong together.
    """

    def __init__(self, dos: DensityOfStates, phases: Phases, line: ChemicalPotentialLine):
        if len(phases.labels) != len(dos):
            raise ValueError(
                f"there are {len(phases.labels)} labels for {len(dos)} states; label the states "
                "of this density of states"
            )
        self.dos, self.phases, self.line = dos, phases, line
        self.amount = line.amount(dos)
        self.values = np.column_stack(
            [dos.energy - dos.counts @ line.origin, line.composition(dos)]
        )
        self._parts = [
            by_amount(self.amount, dos.log_g, np.flatnonzero(phases.labels == k))
            for k in range(len(phases.names))
        ]
        self._known: dict[float, list[Projection | None]] = {}
        self._spans: dict[float, tuple[float, float]] = {}

    def log_weights(self, temperature: float) -> np.ndarray:
        """Of every state at t = 0, shape (states,)."""
        return self.dos.log_weights(self.line.at(temperature, 0.0))

    def span(self, temperature: float) -> tuple[float, float]:
        """Range of t, as :meth:`ChemicalPotentialLine.span`."""
        if temperature not in self._spans:
            self._spans[temperature] = self.line.span(self.dos, temperature)
        return self._spans[temperature]

    def projections(self, temperature: float) -> list[Projection | None]:
        """One for every phase; None where it has no states."""
        temperature = float(temperature)
        if temperature not in self._known:
            w = self.log_weights(temperature)
            if len(self._known) > 200:
                self._known.clear()
            self._known[temperature] = [
                Projection(self.dos, *part, w, self.values, kB * temperature, g)
                if len(part[0])
                else None
                for part, g in zip(self._parts, self.phases.degeneracy, strict=True)
            ]
        return self._known[temperature]

    def projection(self, name: str, temperature: float) -> Projection | None:
        """Of one phase."""
        return self.projections(temperature)[self.phases.index(name)]
