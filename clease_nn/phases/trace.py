"""First-order lines followed over temperature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clease_nn.errors import NotDeterminedError
from clease_nn.phases.coexistence import (
    Coexistence,
    NoCoexistenceError,
    crossings,
    find_coexistence,
)
from clease_nn.phases.diagram import Boundary
from clease_nn.phases.labels import Phases
from clease_nn.phases.line import ChemicalPotentialLine, check_temperatures
from clease_nn.phases.projection import Landscape
from clease_nn.statistics import Estimate
from clease_nn.thermodynamics import DensityOfStates
from clease_nn.thermodynamics.groups import stack

__all__ = ["Followed", "follow", "margin", "trace"]

_REFINEMENTS = 5  # bisections of the step in which a line ends
_EQUAL = 1e-6  # differences of ln Z that count as none
_CLEARLY = 3.0  # differences of ln Z that settle which phase is stable


def trace(
    dos: DensityOfStates,
    phases: Phases,
    pair: tuple[str, str],
    line: ChemicalPotentialLine,
    temperatures: Sequence[float],
) -> Boundary:
    """Follow the coexistence of two phases over temperature.

    Every next point is looked for where the Clausius-Clapeyron slope of the last one leads. The
    line ends where the phases no longer have one grand potential anywhere, where they cannot be
    told apart (see :class:`~clease_nn.phases.coexistence.Coexistence`), or where the data end; it
    never goes on along another line of the same phases. The step in which it ends is halved five
    times. Where a third phase has a lower grand potential the line goes on, marked as not stable.

    Parameters
    ----------
    dos : DensityOfStates
    phases : Phases
        Labels of its states.
    pair : tuple of two str
        The phase poorer in the line's species first.
    line : ChemicalPotentialLine
    temperatures : sequence of float
        K, at least one.

    Returns
    -------
    Boundary
        Of the longest run of temperatures at which the phases coexist; ``reason`` says why it
        ends on both sides.

    Raises
    ------
    ValueError
        As :func:`~clease_nn.phases.coexistence`, or if there are no temperatures.
    NoCoexistenceError
        If the phases meet at none of the temperatures.
    NotDeterminedError
        If they seem to, but the data decide it at none.

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
    >>> phases = identify(dos, line, [300, 500, 700])
    >>> b = trace(dos, phases, ("Au-poor", "Au-rich"), line, [300, 400, 500, 700])
    >>> b.composition.value[:3, 0].round(3).tolist()
    [0.003, 0.016, 0.058]
    >>> bool(500 < b.temperature.value[-1] < 700)
    True
    """
    found = follow(Landscape(dos, phases, line), pair, check_temperatures(temperatures))
    if isinstance(found.line, Exception):
        raise found.line
    return found.line


@dataclass(frozen=True, eq=False)
class Followed:
    """A line of two phases, or the error that says why there is none.

    ``filled`` are the temperatures [K] and positions [eV] at which the two have the lowest grand
    potentials, both the same, but cannot be told apart.
    """

    line: Boundary | ValueError
    filled: tuple[tuple[float, float], ...]


class _FilledError(NotDeterminedError):
    """Two phases of one grand potential are no two phases."""

    def __init__(self, text: str, where: tuple[float, float]):
        super().__init__(text)
        self.where = where


def follow(landscape: Landscape, pair: tuple[str, str], temperatures: np.ndarray) -> Followed:
    """As :func:`trace`, on sums that are shared between calls; returns errors."""
    found: list[Coexistence | Exception] = []
    last = None
    for temperature in temperatures:
        found.append(_attempt(landscape, pair, temperature, last))
        if isinstance(found[-1], Coexistence):
            last = found[-1]
    good = np.array([isinstance(p, Coexistence) for p in found])
    filled = tuple(p.where for p in found if isinstance(p, _FilledError))
    if not good.any():
        undecided = [p for p in found if isinstance(p, NotDeterminedError)]
        return Followed(undecided[0] if undecided else found[0], filled)
    first, end = max(_runs(good), key=lambda run: run[1] - run[0])
    points = found[first:end]
    below, points = _end(landscape, pair, points, found, first - 1, temperatures, down=True)
    above, points = _end(landscape, pair, points, found, end, temperatures, down=False)
    stable, rivals = _stability(landscape, points)
    left_out = int(good.sum()) - (end - first)
    words = [_range_in_words(points, stable, rivals)]
    words.append(f"below {points[0].temperature:.4g} K: {below}")
    words.append(f"above {points[-1].temperature:.4g} K: {above}")
    partial = [p for p in points if p.share < 1]
    if partial:
        words.append(
            f"from {partial[0].temperature:.4g} to {partial[-1].temperature:.4g} K not all "
            f"replicas have this point ({min(p.share for p in partial):.0%} or more), and errors "
            "are the spread of those that have"
        )
    if left_out:
        words.append(f"{left_out} further temperatures beyond a break are left out")
    line = Boundary(
        kind="first-order",
        phases=tuple(pair),
        temperature=Estimate(np.array([p.temperature for p in points]), np.zeros(len(points))),
        mu=stack([p.mu for p in points]),
        composition=stack([p.composition for p in points]),
        slope=stack([p.slope for p in points]),
        stable=stable,
        reason="; ".join(words),
        provenance=dict(landscape.dos.provenance),
    )
    return Followed(line, filled)


def margin(landscape: Landscape, names, temperature: float, t: float) -> tuple[float, str]:
    """ln Z of the best other phase minus that of the first of ``names``, and its name."""
    projections = landscape.projections(temperature)
    own = projections[landscape.phases.index(names[0])].log_z(t)[0]
    best, rival = -np.inf, ""
    for name, p in zip(landscape.phases.names, projections, strict=True):
        if p is not None and name not in names and p.log_z(t)[0] - own > best:
            best, rival = float(p.log_z(t)[0] - own), name
    return best, rival


# ------------------------------------------------------------------ parts
def _attempt(landscape, pair, temperature: float, last: Coexistence | None):
    """The point at one temperature, or why there is none."""
    near, best, rival = None, -np.inf, ""
    if last is not None:
        near = last.mu.value + last.slope.value * (temperature - last.temperature)
    parts = [landscape.projection(name, temperature) for name in pair]
    if all(p is not None for p in parts):
        roots = crossings(landscape, *parts, temperature)
        if near is not None:
            roots = sorted(roots, key=lambda t: abs(t - near))[:1]
        if roots:
            margins = [(*margin(landscape, pair, temperature, t), t) for t in roots]
            best, rival, near = min(margins)
    try:
        point = find_coexistence(landscape, pair, temperature, near)
    except NotDeterminedError as error:
        if best > _CLEARLY:
            return NoCoexistenceError(
                f"{pair[0]} and {pair[1]} do not coexist at {temperature:.4g} K: {rival} has the "
                "lower grand potential where they might (from few samples of them)"
            )
        return error
    except NoCoexistenceError as error:
        return error
    if not point.separate:
        if best > _CLEARLY:
            return NoCoexistenceError(
                f"{pair[0]} and {pair[1]} cannot be told apart at {temperature:.4g} K, where "
                f"{rival} has the lower grand potential"
            )
        return _FilledError(
            f"{pair[0]} and {pair[1]} cannot be told apart at {temperature:.4g} K: between them "
            f"the weight is {point.valley.value:.2f} +- {point.valley.error:.2f} of the lower "
            "peak; either the transition is continuous here, or the supercell or the number of "
            "samples is too small to tell",
            (point.temperature, point.mu.value),
        )
    if last is not None and not _same_line(landscape, last, point):
        return NoCoexistenceError(
            f"the line leaves the range of the data or ends before {temperature:.4g} K; the point "
            f"of {pair[0]} and {pair[1]} there, {point.mu.value:.4g} eV, belongs to another line"
        )
    return point


def _same_line(landscape, last: Coexistence, point: Coexistence) -> bool:
    """Whether a point continues a line, and not another that the phases have beside it."""
    parts = [landscape.projection(name, last.temperature) for name in last.phases]
    earlier = crossings(landscape, *parts, last.temperature)
    back = point.mu.value - last.slope.value * (point.temperature - last.temperature)
    nearest = min(earlier, key=lambda t: abs(t - back), default=last.mu.value)
    return abs(nearest - last.mu.value) <= 1e-9


def _runs(good: np.ndarray) -> list[tuple[int, int]]:
    """Start and end of every run of true."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], good.astype(int), [0]])))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _end(landscape, pair, points, found, k: int, temperatures, down: bool):
    """Why the line ends there, and the points with those that bisecting the last step adds."""
    if not 0 <= k < len(found):
        return "no temperature was asked for", points
    error, outside = found[k], float(temperatures[k])
    for _ in range(_REFINEMENTS):
        inner = points[0] if down else points[-1]
        middle = 0.5 * (inner.temperature + outside)
        p = _attempt(landscape, pair, middle, inner)
        if isinstance(p, Coexistence):
            points = [p, *points] if down else [*points, p]
        else:
            error, outside = p, middle
    return str(error), points


def _stability(landscape, points: list[Coexistence]) -> tuple[np.ndarray, list[str]]:
    """Whether no other phase is lower at every point, and which one is."""
    stable, rivals = [], []
    for p in points:
        best, rival = margin(landscape, p.phases, p.temperature, p.mu.value)
        stable.append(best <= _EQUAL)
        rivals.append(rival)
    return np.array(stable), rivals


def _range_in_words(points: list[Coexistence], stable: np.ndarray, rivals: list[str]) -> str:
    if stable.all():
        return "stable throughout"
    words = []
    for start, end in _runs(~stable):
        names = ", ".join(dict.fromkeys(rivals[start:end]))
        low, high = points[start].temperature, points[end - 1].temperature
        words.append(f"not stable from {low:.4g} to {high:.4g} K, where it is {names}")
    return "; ".join(words)
