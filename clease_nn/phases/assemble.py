"""The phase diagram along a line: all pairs, three-phase points, and what is open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, permutations
from math import nan

import numpy as np
from ase.units import kB
from scipy.optimize import brentq

from clease_nn.errors import NotDeterminedError
from clease_nn.phases.coexistence import crossings
from clease_nn.phases.diagram import Boundary, PhaseDiagram, ThreePhasePoint
from clease_nn.phases.labels import Phases
from clease_nn.phases.line import ChemicalPotentialLine, check_temperatures
from clease_nn.phases.maxima import heat_capacity_maxima
from clease_nn.phases.projection import Landscape
from clease_nn.phases.trace import follow, margin
from clease_nn.statistics import Estimate
from clease_nn.thermodynamics import DensityOfStates

__all__ = ["phase_diagram", "three_phase_points"]

_MOST_MAXIMA = 9
_SAME_TRANSITION = 0.25  # relative distance of a maximum from equal grand potentials
_STEP = 0.5  # K, for derivatives of compositions


def phase_diagram(
    dos: DensityOfStates,
    phases: Phases,
    line: ChemicalPotentialLine,
    temperatures: Sequence[float],
) -> PhaseDiagram:
    """Phase diagram along a line of chemical potentials.

    The first-order lines of all pairs of phases are traced
    (:func:`~clease_nn.phases.trace`), points where three phases coexist are found where such
    lines meet, and lines that are nowhere stable are left out. Where two kinds of order have one
    grand potential but no valley between them, ordering is continuous as far as the supercell
    tells, and the maxima of the heat capacity at these chemical potentials are given instead
    (:func:`~clease_nn.phases.heat_capacity_maxima`), those within a quarter of the temperature
    at which the grand potentials are equal: others belong to another transition.

    Which line is stable follows from the best values of the grand potentials; the errors of the
    three-phase points say how certain the ends of stable lines are. Degeneracies and the long-range
    order at which a state counts as ordered are those of ``phases``: label the states once more
    with another threshold (:func:`~clease_nn.phases.identify`) to see what depends on it.

    Parameters
    ----------
    dos : DensityOfStates
    phases : Phases
        Labels of its states (:func:`~clease_nn.phases.identify`).
    line : ChemicalPotentialLine
    temperatures : sequence of float
        K; lines may end, and three phases meet, between them.

    Returns
    -------
    PhaseDiagram

    Raises
    ------
    ValueError
        If the labels belong to other states, or there are no temperatures.

    Examples
    --------
    >>> from clease_nn.energies.ising import ising_energy
    >>> from clease_nn.ensemble import SemiGrandCanonical
    >>> from clease_nn.lattice import Lattice
    >>> from clease_nn.phases import identify
    >>> lattice = Lattice.square(4)
    >>> states = SemiGrandCanonical(ising_energy(lattice, 0.02)).enumerate(lattice)
    >>> dos = DensityOfStates.exact(states)
    >>> line = ChemicalPotentialLine.exchange(lattice, "Au", "Cu")
    >>> temperatures = [300, 400, 500, 600]
    >>> print(phase_diagram(dos, identify(dos, line, temperatures), line, temperatures))
    phases along mu_Au - mu_Cu (eV): Au-poor, Au-rich
    first-order, Au-poor + Au-rich: 300-600 K
    """
    temperatures = check_temperatures(temperatures)
    landscape = Landscape(dos, phases, line)
    undetermined = [
        f"{name} was never sampled"
        for k, name in enumerate(phases.names)
        if not (phases.labels == k).any()
    ]
    boundaries, open_questions, continuous = _boundaries(landscape, temperatures)
    points = three_phase_points(landscape, boundaries)
    if points:
        # lines meet exactly where three phases do
        more = np.unique([*temperatures, *(float(p.temperature.value) for p in points)])
        boundaries, open_questions, continuous = _boundaries(landscape, more)
    maxima, lost = _maxima(landscape, continuous, temperatures)
    open_questions += lost
    kept = [b for b in boundaries if b.stable.any()] + maxima
    return PhaseDiagram(
        line=line,
        phases=phases.names,
        boundaries=tuple(replace(b, provenance={}) for b in kept),
        points=tuple(points),
        undetermined=tuple(undetermined + open_questions),
        provenance=dict(dos.provenance),
    )


def three_phase_points(
    landscape: Landscape, boundaries: Sequence[Boundary]
) -> list[ThreePhasePoint]:
    """Points at which three phases have one grand potential and no other a lower one.

    Looked for along every line of two phases, where the grand potential of a third crosses.
    """
    found: list[ThreePhasePoint] = []
    for names in combinations(landscape.phases.names, 3):
        for b in boundaries:
            if not set(b.phases) < set(names):
                continue
            [third] = set(names) - set(b.phases)
            for point in _along(landscape, b, third):
                known = any(
                    set(p.phases) == set(names)
                    and abs(p.temperature.value - point.temperature.value) < 1.0
                    for p in found
                )
                if not known:
                    found.append(point)
    return sorted(found, key=lambda p: float(p.temperature.value))


# ------------------------------------------------------------------ parts
def _boundaries(landscape: Landscape, temperatures):
    """Lines of all pairs, what is open, and where ordering is continuous: (pair, t) each."""
    present = [n for n in landscape.phases.names if landscape.phases.mask(n).any()]
    kinds = dict(zip(landscape.phases.names, landscape.phases.kinds, strict=True))
    boundaries, undetermined, continuous = [], [], []
    for pair in permutations(present, 2):
        found = follow(landscape, pair, temperatures)
        if isinstance(found.line, Boundary):
            boundaries.append(found.line)
        elif isinstance(found.line, NotDeterminedError):
            undetermined.append(f"{pair[0]} + {pair[1]}: {found.line}")
        if kinds[pair[0]] != kinds[pair[1]] and found.filled:
            continuous.append((pair, found.filled))
    return boundaries, undetermined, continuous


def _maxima(landscape: Landscape, continuous, temperatures):
    """Maxima of the heat capacity where phases of different order cannot be told apart.

    And, in words, where there is none near the temperature of equal grand potentials.
    """
    out: list[Boundary] = []
    lost: list[str] = []
    for pair, filled in continuous:
        filled = sorted(filled, key=lambda where: where[1])
        chosen = np.unique(np.linspace(0, len(filled) - 1, _MOST_MAXIMA).round().astype(int))
        near, t = np.array([filled[k] for k in chosen]).T
        if len(temperatures) < 2:
            lost.append(
                f"{' + '.join(pair)}: no valley between them at {near[0]:.4g} K; maxima of the "
                "heat capacity need a range of temperatures"
            )
            continue
        ends = (
            max(float(temperatures[0]), (1 - _SAME_TRANSITION) * near.min()),
            min(float(temperatures[-1]), (1 + _SAME_TRANSITION) * near.max()),
        )
        line = heat_capacity_maxima(landscape.dos, landscape.line, t, ends, phases=pair)
        keep = np.abs(line.temperature.value / near - 1) < _SAME_TRANSITION  # nan is not
        if keep.any():
            names = ("temperature", "mu", "composition")
            parts = {name: getattr(line, name)[keep] for name in names}
            out.append(replace(line, **parts, stable=line.stable[keep]))
        if not keep.all():
            lost.append(
                f"{' + '.join(pair)}: no valley between them near {near[~keep].min():.4g} to "
                f"{near[~keep].max():.4g} K, and no maximum of the heat capacity there"
            )
    return out, lost


def _along(landscape: Landscape, b: Boundary, third: str) -> list[ThreePhasePoint]:
    """Three-phase points on one line of two phases."""

    def excess(temperature, near):
        """ln Z of the third phase minus that of the two, where the two coexist; and t."""
        parts = [landscape.projection(name, temperature) for name in b.phases]
        roots = crossings(landscape, *parts, temperature)
        if not roots:
            return nan, nan
        t = min(roots, key=lambda t: abs(t - near))
        own = parts[0].log_z(t)[0]
        return float(landscape.projection(third, temperature).log_z(t)[0] - own), t

    if landscape.projection(third, float(b.temperature.value[0])) is None:
        return []
    temperatures = b.temperature.value

    def guess(temperature):
        return float(np.interp(temperature, temperatures, b.mu.value))

    f = []
    for T, t in zip(temperatures, b.mu.value, strict=True):
        first, other = landscape.projection(b.phases[0], T), landscape.projection(third, T)
        f.append(float(other.log_z(t)[0] - first.log_z(t)[0]))
    out = []
    for k in range(len(f) - 1):
        if np.sign(f[k]) == np.sign(f[k + 1]):
            continue
        try:
            T = brentq(lambda T: excess(T, guess(T))[0], *temperatures[k : k + 2], xtol=1e-6)
        except ValueError:  # the two phases lose one another on the way
            continue
        t = excess(T, guess(T))[1]
        point = _point(landscape, (*b.phases, third), T, t)
        if margin(landscape, (*b.phases, third), T, t)[0] <= 0 and point is not None:
            out.append(point)
    return out


def _point(landscape: Landscape, names, T: float, t: float) -> ThreePhasePoint | None:
    """The point with errors: linear in what replicas change at the point itself."""
    parts = [landscape.projection(n, T) for n in names]
    if min(p.ess([t])[0] for p in parts) < 50:
        return None
    order = np.argsort([p.at(t)[2][1] for p in parts])
    names, parts = tuple(names[k] for k in order), [parts[k] for k in order]
    kT = kB * T
    states = [p.at(t) for p in parts]
    amount = np.array([s[1] for s in states])
    energy = np.array([s[2][0] for s in states]) - t * amount
    x = np.array([s[2][1] for s in states])
    jacobian = _jacobian(energy, amount, kT)
    # along the line of the outer two the middle one gains ln Z on heating: eutectoid
    kind, gain = "", _gain(jacobian)
    if landscape.dos.is_exact:
        zero = np.zeros(3)
        error = (0.0, 0.0, zero)
        certain = gain != 0
    else:
        at_t = [p.replicas(np.full(landscape.dos.replicas.shape[1], t)) for p in parts]
        f = np.stack([z[0] for z in at_t])
        shift = -np.linalg.solve(jacobian, f[1:] - f[0])
        moved = [p.replicas(t + shift[1])[2][:, 1] for p in parts]
        warmer = [landscape.projection(n, T + _STEP).at(t)[2][1] for n in names]
        by_t = (np.array(warmer) - x) / _STEP
        moved = np.stack(moved) + by_t[:, None] * shift[0]
        error = (shift[0].std(ddof=1), shift[1].std(ddof=1), moved.std(1, ddof=1))
        own = np.stack([s[2][:, 0] - t * s[1] for s in at_t])
        amounts = np.stack([s[1] for s in at_t])
        gains = [_gain(_jacobian(e, a, kT)) for e, a in zip(own.T, amounts.T, strict=True)]
        certain = abs(gain) > 2 * np.std(gains, ddof=1)
    if certain:
        kind = "eutectoid" if gain > 0 else "peritectoid"
    return ThreePhasePoint(
        phases=names,
        temperature=Estimate(float(T), float(error[0]), nan),
        mu=Estimate(float(t), float(error[1]), nan),
        composition=Estimate(x, error[2], nan),
        kind=kind,
    )


def _jacobian(energy: np.ndarray, amount: np.ndarray, kT: float) -> np.ndarray:
    """Derivatives of ln Z of the second and third phase minus the first by (T, t), (2, 2)."""
    rows = np.column_stack([energy * kB / kT**2, amount / kT])
    return rows[1:] - rows[0]


def _gain(jacobian: np.ndarray) -> float:
    """d/dT of ln Z of the middle phase minus the outer two, along the line of these two."""
    slope = -jacobian[1, 0] / jacobian[1, 1]
    return float(jacobian[0, 0] + jacobian[0, 1] * slope)
