"""Thermodynamic conditions: temperature [K] and chemical potentials [eV] of every species."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from ase.units import kB
from torch import Tensor

__all__ = ["ConditionRange", "Conditions"]


@dataclass(frozen=True, eq=False)
class Conditions:
    """A batch of (temperature, chemical potentials).

    Chemical potentials are stored as given: a constant added to all species shifts every energy
    ``E - mu.N`` by the same amount per site and therefore belongs to ``ln Z``. Networks only ever
    see gauge-free differences (:meth:`relative_mu`).

    Parameters
    ----------
    temperature : Tensor, shape (batch,)
        Temperature in K, float64, positive and finite.
    mu : Tensor, shape (batch, species)
        Chemical potential of every species of the lattice in eV, float64, finite.

    Raises
    ------
    ValueError
        If a temperature is not positive and finite, a chemical potential is not finite, or the
        shapes do not match.

    Examples
    --------
    >>> c = Conditions([300.0, 600.0], [[0.0, 0.1], [0.0, 0.2]])
    >>> len(c), c.mu.shape
    (2, torch.Size([2, 2]))
    """

    temperature: Tensor
    mu: Tensor

    def __post_init__(self):
        temperature = torch.atleast_1d(torch.as_tensor(self.temperature, dtype=torch.float64))
        mu = torch.atleast_2d(torch.as_tensor(self.mu, dtype=torch.float64))
        if temperature.ndim != 1 or mu.ndim != 2 or len(temperature) != len(mu):
            raise ValueError(
                "temperature must have shape (batch,) and mu (batch, species); got "
                f"{tuple(temperature.shape)} and {tuple(mu.shape)}"
            )
        bad = ~(torch.isfinite(temperature) & (temperature > 0))
        if bad.any():
            raise ValueError(
                f"temperature must be positive and finite, got {temperature[bad][0].item()} K"
            )
        if not torch.isfinite(mu).all():
            raise ValueError("chemical potentials must be finite, got NaN or infinity")
        object.__setattr__(self, "temperature", temperature)
        object.__setattr__(self, "mu", mu)

    @classmethod
    def from_kT(cls, kT, mu) -> Conditions:
        """Conditions from kT in eV instead of a temperature in K."""
        return cls(torch.as_tensor(kT, dtype=torch.float64) / kB, mu)

    @classmethod
    def grid(cls, temperatures, mus) -> Conditions:
        """All pairs of ``temperatures`` (n,) and ``mus`` (m, species); temperature varies slowest.

        Examples
        --------
        >>> len(Conditions.grid([300, 600], [[0, 0.0], [0, 0.1], [0, 0.2]]))
        6
        """
        t = torch.atleast_1d(torch.as_tensor(temperatures, dtype=torch.float64))
        m = torch.atleast_2d(torch.as_tensor(mus, dtype=torch.float64))
        return cls(t.repeat_interleave(len(m)), m.repeat(len(t), 1))

    @staticmethod
    def cat(parts) -> Conditions:
        """Concatenate along the batch."""
        parts = list(parts)
        return Conditions(
            torch.cat([p.temperature for p in parts]), torch.cat([p.mu for p in parts])
        )

    @property
    def kT(self) -> Tensor:
        """Thermal energy in eV, shape (batch,)."""
        return self.temperature * kB

    @property
    def beta(self) -> Tensor:
        """Inverse thermal energy in 1/eV, shape (batch,)."""
        return 1.0 / self.kT

    def relative_mu(self) -> Tensor:
        """Chemical potentials minus their mean over species, eV, shape (batch, species)."""
        return self.mu - self.mu.mean(1, keepdim=True)

    def repeat(self, n: int) -> Conditions:
        """Every row ``n`` times in a row (like ``repeat_interleave``)."""
        return Conditions(self.temperature.repeat_interleave(n), self.mu.repeat_interleave(n, 0))

    def to(self, device) -> Conditions:
        """The same conditions on another torch device."""
        return Conditions(self.temperature.to(device), self.mu.to(device))

    def __len__(self) -> int:
        return len(self.temperature)

    def __getitem__(self, index) -> Conditions:
        if isinstance(index, int):
            index = slice(index, index + 1) if index != -1 else slice(-1, None)
        return Conditions(self.temperature[index], self.mu[index])


@dataclass(frozen=True, eq=False)
class ConditionRange:
    """A box of temperatures and chemical potentials.

    A point of the box is ``(T, x_1 ... x_d)`` and its chemical potentials are ``x @ axes``: an
    axis per independent chemical potential. In CLEASE an axis is one singlet name (``c1_0``).

    Parameters
    ----------
    temperature : (low, high)
        Temperatures in K, ``0 < low < high``.
    low, high : array_like, shape (d,)
        Ends of the box along each axis in eV, ``low < high``.
    axes : array_like, shape (d, species)
        Chemical potentials of all species for a unit step along each axis (dimensionless). Their
        differences between species must be linearly independent.

    Raises
    ------
    TypeError
        If a range is not made of numbers.
    ValueError
        If a range is empty, inverted, not finite, or T <= 0, or the axes are dependent.

    Examples
    --------
    >>> box = ConditionRange((300, 1200), [-0.1], [0.1], [[0.0, 1.0]])
    >>> box.at([[0.0, 0.5]]).temperature
    tensor([300.], dtype=torch.float64)
    >>> box.contains(Conditions([600.0, 100.0], [[0, 0.0], [0, 0.0]]))
    tensor([ True, False])
    """

    temperature: tuple[float, float]
    low: np.ndarray
    high: np.ndarray
    axes: np.ndarray

    def __post_init__(self):
        try:
            t = np.asarray(self.temperature, dtype=float)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"temperature range must be two numbers (low, high) in K, got {self.temperature!r}"
            ) from error
        low, high = (np.atleast_1d(np.asarray(v, dtype=float)) for v in (self.low, self.high))
        axes = np.atleast_2d(np.asarray(self.axes, dtype=float))
        if t.shape != (2,) or not np.isfinite(t).all():
            raise ValueError(f"temperature range must be (low, high) in K, got {self.temperature}")
        if t[0] <= 0 or t[1] <= t[0]:
            raise ValueError(
                f"temperature range must have 0 < low < high, got {t.tolist()} K; swap or widen it"
            )
        if low.shape != high.shape or axes.shape[0] != len(low):
            raise ValueError(
                f"low {low.shape}, high {high.shape} and axes {axes.shape} do not match"
            )
        if not (np.isfinite(low).all() and np.isfinite(high).all() and np.isfinite(axes).all()):
            raise ValueError("chemical potential ranges must be finite")
        if (high <= low).any():
            raise ValueError(
                f"chemical potential range is empty or inverted: low {low}, high {high} eV; swap "
                "or widen it"
            )
        if np.linalg.matrix_rank(axes - axes.mean(1, keepdims=True)) < len(axes):
            raise ValueError(
                f"the {len(axes)} chemical potentials of the range are not independent: only "
                "differences between species matter, so leave one out (of all elements, say)"
            )
        object.__setattr__(self, "temperature", (float(t[0]), float(t[1])))
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)
        object.__setattr__(self, "axes", axes)

    @property
    def n_axes(self) -> int:
        """Number of independent chemical potentials."""
        return len(self.low)

    def at(self, unit) -> Conditions:
        """Conditions at points of the unit cube, shape (batch, 1 + n_axes).

        Column 0 runs over temperature, geometrically (equal ratios), the others linearly.
        """
        u = np.atleast_2d(np.asarray(unit, dtype=float))
        t0, t1 = self.temperature
        temperature = t0 * (t1 / t0) ** u[:, 0]
        x = self.low + (self.high - self.low) * u[:, 1:]
        return Conditions(torch.as_tensor(temperature), torch.as_tensor(x @ self.axes))

    def grid(self, n_temperatures: int, n_mu: int) -> Conditions:
        """Regular grid including the ends, ``n_mu`` points along every axis."""
        sides = [
            np.linspace(0, 1, n) if n > 1 else np.array([0.5])
            for n in (n_temperatures, *[n_mu] * self.n_axes)
        ]
        mesh = np.meshgrid(*sides, indexing="ij")
        return self.at(np.stack([m.ravel() for m in mesh], 1))

    def coordinates(self, conditions: Conditions) -> np.ndarray:
        """(batch, n_axes) coordinates x whose ``x @ axes`` has the same mu differences."""
        axes = self.axes - self.axes.mean(1, keepdims=True)
        relative = conditions.relative_mu().cpu().numpy()
        return relative @ np.linalg.pinv(axes)

    def contains(self, conditions: Conditions, tolerance: float = 1e-6) -> Tensor:
        """(batch,) bool: temperature and chemical potential differences lie in the box."""
        t = conditions.temperature.cpu().numpy()
        x = self.coordinates(conditions)
        axes = self.axes - self.axes.mean(1, keepdims=True)
        relative = conditions.relative_mu().cpu().numpy()
        slack = tolerance * (1 + np.abs(self.high) + np.abs(self.low))
        inside = (t >= self.temperature[0] * (1 - tolerance)) & (
            t <= self.temperature[1] * (1 + tolerance)
        )
        inside &= ((x >= self.low - slack) & (x <= self.high + slack)).all(1)
        inside &= np.abs(x @ axes - relative).max(1) <= tolerance * (1 + np.abs(relative).max(1))
        return torch.as_tensor(inside)

    def to_dict(self) -> dict:
        """JSON-ready description, inverse of :meth:`from_dict`."""
        return {
            "temperature": list(self.temperature),
            "low": self.low.tolist(),
            "high": self.high.tolist(),
            "axes": self.axes.tolist(),
        }

    @classmethod
    def from_dict(cls, data: dict) -> ConditionRange:
        """Rebuild from :meth:`to_dict`."""
        return cls(tuple(data["temperature"]), data["low"], data["high"], data["axes"])
