"""Second-order lines: maxima of the heat capacity and of the susceptibility over temperature.

A finite supercell has no second-order transition, only maxima. They lie near the transition of
the infinite crystal, each quantity at a temperature of its own, and move towards it as
``L^(-1/nu)`` with the edge length L: run several sizes before a number is called T_C. A broad
maximum (Schottky anomaly, short-range order) belongs to no transition at all, and a first-order
transition makes a maximum as well: :func:`~clease_nn.phases.coexistence` tells these apart.

References
----------
A. E. Ferdinand, M. E. Fisher, Phys. Rev. 185, 832 (1969): maxima of finite Ising lattices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import nan

import numpy as np
from scipy.optimize import minimize_scalar

from clease_nn.phases.convex import composition_axes
from clease_nn.phases.diagram import Boundary
from clease_nn.phases.line import ChemicalPotentialLine
from clease_nn.statistics import Estimate
from clease_nn.thermodynamics import DensityOfStates

__all__ = ["heat_capacity_maxima", "susceptibility_maxima"]

_TINY = np.finfo(float).tiny
_FLAT = 1e-9  # relative change over the range below which there is no maximum


def heat_capacity_maxima(
    dos: DensityOfStates,
    line: ChemicalPotentialLine,
    t,
    temperatures: tuple[float, float],
    *,
    constant: str = "mu",
    n_temperatures: int = 41,
    phases: tuple[str, str] = ("", ""),
) -> Boundary:
    """Temperature of the heat-capacity maximum at each position along a line.

    ``C = Var(E - mu.N)/(kB T^2)`` at constant chemical potentials; ``constant="composition"``
    takes away what follows the composition,
    ``[Var(E) - Cov(E, N) Cov(N, N)^+ Cov(N, E)]/(kB T^2)`` (see
    :func:`~clease_nn.thermodynamics.constant_composition_heat_capacity`), still along constant
    chemical potentials. For the maximum at one fixed composition hand over
    ``dos.restricted(mask)`` of the states with that composition.

    Temperatures are continuous: a grid brackets the maxima, a bounded search refines them, the
    error is the shift of the maximum over the replicas (linear response: in the noise of the
    slope over the curvature). See the module for what a maximum does not tell.

    Parameters
    ----------
    dos : DensityOfStates
    line : ChemicalPotentialLine
    t : array_like, shape (points,)
        Positions along the line, eV.
    temperatures : (low, high)
        K, where to look.
    constant : {"mu", "composition"}
    n_temperatures : int
        Points of the bracketing grid, equal ratios apart; maxima closer than two spacings count
        as one.
    phases : tuple of two str
        Names for the result, in the order of the compositions.

    Returns
    -------
    Boundary
        Of kind ``"heat-capacity maximum"``. ``composition`` holds the mean composition at the
        maximum twice, for there is no tie line. Where the maximum is not determined all is nan;
        ``reason`` says why, and lists lower maxima.

    Raises
    ------
    ValueError
        If the range of temperatures is empty or the line does not fit the lattice.

    Examples
    --------
    >>> from clease_nn.energies.ising import ising_energy
    >>> from clease_nn.ensemble import SemiGrandCanonical
    >>> from clease_nn.lattice import Lattice
    >>> lattice = Lattice.square(4)
    >>> model = SemiGrandCanonical(ising_energy(lattice, coupling=-0.02))
    >>> dos = DensityOfStates.exact(model.enumerate(lattice))
    >>> line = ChemicalPotentialLine.exchange(lattice, "Au", "Cu")
    >>> found = heat_capacity_maxima(dos, line, [0.0, 9.0], (200.0, 2000.0))
    >>> found.temperature.value.round(1).tolist(), found.composition.value[0].round(6).tolist()
    ([566.1, nan], [0.5, 0.5])
    """
    if constant not in ("mu", "composition"):
        raise ValueError(f'constant must be "mu" or "composition", got {constant!r}')
    basis = composition_axes(np.unique(dos.counts, axis=0))
    columns = np.zeros((dos.lattice.n_species, 0)) if constant == "mu" else basis.T

    def capacity(covariance, temperature):
        cross, others = covariance[0, 1:], covariance[1:, 1:]
        explained = cross @ np.linalg.pinv(others, rcond=1e-9, hermitian=True) @ cross
        return (covariance[0, 0] - explained) / temperature**2

    kind = "heat-capacity maximum"
    return _maxima(dos, line, t, temperatures, kind, columns, capacity, n_temperatures, phases)


def susceptibility_maxima(
    dos: DensityOfStates,
    line: ChemicalPotentialLine,
    t,
    temperatures: tuple[float, float],
    *,
    n_temperatures: int = 41,
    phases: tuple[str, str] = ("", ""),
) -> Boundary:
    """Temperature of the maximum of ``Var(N)/(n_sites kT)``, N of the line's species.

    The susceptibility of the composition, ``dx/dt``, shows the end of a miscibility gap; order
    at constant composition does not show in it. At coexistence itself a finite cell visits both
    phases, so that the variance keeps growing on cooling and there is no maximum: look beside
    it. Otherwise as :func:`heat_capacity_maxima`.

    Parameters
    ----------
    dos, line, t, temperatures, n_temperatures, phases
        As for :func:`heat_capacity_maxima`.

    Returns
    -------
    Boundary
        Of kind ``"susceptibility maximum"``.
    """
    column = np.zeros((dos.lattice.n_species, 1))
    if line.species in dos.lattice.species:
        column[dos.lattice.species.index(line.species)] = 1.0

    def susceptibility(covariance, temperature):
        return covariance[1, 1] / temperature

    kind = "susceptibility maximum"
    return _maxima(dos, line, t, temperatures, kind, column, susceptibility, n_temperatures, phases)


# ------------------------------------------------------------------ one line
def _maxima(dos, line, t, temperatures, kind, columns, quantity, n_grid, phases) -> Boundary:
    low, high = (float(v) for v in temperatures)
    if not (0 < low < high and np.isfinite(high)):
        raise ValueError(f"temperatures must be (low, high) with 0 < low < high, got {low}, {high}")
    if n_grid < 5:
        raise ValueError(f"n_temperatures must be at least 5, got {n_grid}")
    if line.species not in dos.lattice.species or len(line.direction) != dos.lattice.n_species:
        raise ValueError(
            f"the line of {line.species!r} and {len(line.direction)} species does not fit the "
            f"lattice with {dos.lattice.species}"
        )
    t = np.atleast_1d(np.asarray(t, dtype=float))
    if t.ndim != 1 or not len(t) or not np.isfinite(t).all():
        raise ValueError(f"positions along the line must be finite numbers, got {t}")
    name = kind.removesuffix(" maximum")
    notes, rows = [], []
    for position in t:
        curve = _Curve(dos, line, position, columns, quantity)
        row, note = curve.highest(np.geomspace(low, high, n_grid), name)
        rows.append(row)
        notes += [f"t = {position:.6g} eV: {text}" for text in note]
    value, error, x, x_error = np.array(rows).T
    n = dos.lattice.n_sites
    return Boundary(
        kind=kind,
        phases=phases,
        temperature=Estimate(value, error),
        mu=Estimate(t, np.zeros(len(t))),
        composition=Estimate(np.stack([x, x], 1), np.stack([x_error, x_error], 1)),
        slope=None,
        stable=np.isfinite(value),
        reason="; ".join([f"maxima of a supercell of {n} sites, which has no transition", *notes]),
        provenance=dict(dos.provenance),
    )


class _Curve:
    """A response function of temperature at one position along the line."""

    def __init__(self, dos, line, position: float, columns: np.ndarray, quantity: Callable):
        self.dos, self.line, self.position, self.quantity = dos, line, position, quantity
        self.exact = replace(dos, replicas=None)
        mu = line.mu(position)[0]
        self.share = line.composition(dos)
        self.y = np.column_stack([dos.energy - dos.counts @ mu, dos.counts @ columns])

    def moments(self, temperature: float, replicas: bool = False):
        """Means of the composition, y, and products of y about a typical value."""
        dos = self.dos if replicas else self.exact
        condition = self.line.at(temperature, self.position)
        y = self.y - self.y[int(np.argmax(dos.log_weights(condition)))]
        products = (y[:, :, None] * y[:, None, :]).reshape(len(y), -1)
        values = np.column_stack([self.share, y, products])
        return dos.moments(values, condition, check=False)

    def log(self, mean: np.ndarray, temperature: float) -> float:
        """Logarithm of the response from the means."""
        d = self.y.shape[1]
        covariance = mean[1 + d :].reshape(d, d) - np.outer(mean[1 : 1 + d], mean[1 : 1 + d])
        return float(np.log(max(self.quantity(covariance, temperature), _TINY)))

    def __call__(self, temperature: float) -> float:
        return self.log(self.moments(temperature).mean, temperature)

    def highest(self, grid: np.ndarray, name: str) -> tuple[tuple, list[str]]:
        """(T, error, x, error) of the highest maximum, and what there is to tell about it."""
        none = (nan, nan, nan, nan)
        known = self.dos.determined(self.line.at(grid, self.position))
        if known.sum() < 3:
            return none, [f"the data determine the {name} at {known.sum()} of {len(grid)} points"]
        v = np.full(len(grid), nan)
        v[known] = [self(temperature) for temperature in grid[known]]
        top = np.nanmax(v)
        if top - np.nanmin(v) < _FLAT or top <= np.log(_TINY) + 1:
            return none, [f"the {name} is flat"]
        inner = v[1:-1]
        peaks = 1 + np.flatnonzero((inner > v[:-2]) & (inner >= v[2:]))
        notes = []
        edge = int(np.nanargmax(v))
        if edge not in peaks:
            whole = edge in (0, len(grid) - 1)
            where = "the range" if whole else "what the data determine"
            notes.append(f"it is highest at the edge {grid[edge]:.4g} K of {where}")
            if not len(peaks):
                return none, [f"the maximum lies at the edge {grid[edge]:.4g} K of {where}"]
        found = sorted((self._refine(grid[k - 1], grid[k + 1]) for k in peaks), reverse=True)
        notes += [f"a lower maximum at {temperature:.4g} K" for _, temperature in found[1:]]
        row, problem = self._with_error(found[0][1])
        if problem is None and row[1] > grid[-1] - grid[0]:
            row, problem = none, f"its error of {row[1]:.2g} K exceeds the range"
        return row, notes + ([] if problem is None else [problem])

    def _refine(self, low: float, high: float) -> tuple[float, float]:
        found = minimize_scalar(
            lambda temperature: -self(temperature),
            bounds=(low, high),
            method="bounded",
            options={"xatol": 1e-7 * high},
        )
        return -float(found.fun), float(found.x)

    def _with_error(self, temperature: float) -> tuple[tuple, str | None]:
        """Error of a maximum: the change of slope in each replica over the curvature."""
        here = self.moments(temperature, replicas=True)
        middle = self.log(here.mean, temperature)
        h = 1e-3 * temperature
        for _ in range(2):
            ends = (temperature - h, temperature + h)
            sides = [self.log(self.moments(e).mean, e) for e in ends]
            curvature = (sum(sides) - 2 * middle) / h**2
            if not curvature < 0:
                return (nan, nan, nan, nan), f"the maximum near {temperature:.4g} K is flat"
            h = float(np.clip(0.1 / np.sqrt(-curvature), 1e-4 * temperature, 0.05 * temperature))
        if self.dos.is_exact:
            return (temperature, 0.0, here.mean[0], 0.0), None
        left, right = (self.moments(e, replicas=True) for e in ends)
        slope = self.log(right.mean, ends[1]) - self.log(left.mean, ends[0])
        slopes = [
            self.log(b, ends[1]) - self.log(a, ends[0])
            for a, b in zip(left.replicas, right.replicas, strict=True)
        ]
        width = ends[1] - ends[0]
        shift = -(np.array(slopes) - slope) / width / curvature
        drift = (right.mean[0] - left.mean[0]) / width
        x = here.replicas[:, 0] + drift * shift
        return (temperature, np.std(shift, ddof=1), here.mean[0], np.std(x, ddof=1)), None
