"""Pieces of phase diagrams: lines, bands, tie lines and points, each with what it borders on."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from clease_nn.phases import Boundary, ThreePhasePoint
from clease_nn.plotting.style import BLUE, GREEN, VERMILION, WIDE, light

KINDS = {
    "first-order": (BLUE, "o", "-"),
    "heat-capacity maximum": (VERMILION, "s", (0, (5, 2))),
    "susceptibility maximum": ("#CC79A7", "D", (0, (2, 1.5))),
}
OTHERS = (("#E69F00", "v"), ("#000000", "P"), ("#56B4E9", "<"), ("#009E73", ">"))
_TIES = 6  # tie lines shown of a boundary


def known(b: Boundary) -> np.ndarray:
    """(points,) bool: no part of a point is NaN."""
    finite = np.isfinite(b.temperature.value) & np.isfinite(b.mu.value)
    return finite & np.isfinite(b.composition.value).all(1)


def _runs(mask) -> list[np.ndarray]:
    """Indices of every unbroken run of true."""
    where = np.flatnonzero(mask)
    return np.split(where, np.flatnonzero(np.diff(where) > 1) + 1) if len(where) else []


def _ends(b: Boundary, run: np.ndarray, points) -> tuple[list, list]:
    """Three-phase points that the run leads to, before its first and after its last point."""
    both = np.column_stack([b.temperature.value, b.mu.value])
    found = [], []
    if len(run) < 2:
        return found
    steps = np.abs(np.diff(both[run], axis=0))
    for p in points:
        if not set(b.phases) <= set(p.phases):
            continue
        at = np.array([p.temperature.value, p.mu.value])
        sure = np.nan_to_num([p.temperature.error, p.mu.error])
        for end, inner, out in ((run[0], run[1], found[0]), (run[-1], run[-2], found[1])):
            gap, ahead = at - both[end], both[end] - both[inner]
            near = np.abs(gap) <= 2 * np.median(steps, axis=0) + 4 * sure
            if near.all() and gap[0] * ahead[0] > 0:
                out.append(p)
    return found[0][:1], found[1][:1]


def _curve(b: Boundary, run: np.ndarray, points, column: int | None):
    """Temperature, position and their errors along a run; column None is mu."""

    def of(p: ThreePhasePoint):
        at = p.mu if column is None else p.composition[p.phases.index(b.phases[column])]
        return [p.temperature.value, p.temperature.error, at.value, at.error]

    before, after = _ends(b, run, points)
    at = b.mu if column is None else b.composition[:, column]
    rows = np.column_stack([b.temperature.value, b.temperature.error, at.value, at.error])[run]
    rows = np.array([*map(of, before), *rows, *map(of, after)], dtype=float)
    return rows.T


def _line(ax: Axes, b: Boundary, run, points, column):
    """One stable line with its band; temperatures and positions."""
    colour, marker, dashes = KINDS[b.kind]
    t, t_error, x, x_error = _curve(b, run, points, column)
    x_error, t_error = np.nan_to_num(x_error), np.nan_to_num(t_error)
    if len(t) > 1 and (x_error.any() or t_error.any()):
        ax.fill(*_band(ax, t, t_error, x, x_error), color=light(colour), lw=0, zorder=2)
    if len(t) == 1:
        bars = {"xerr": or_none(x_error), "yerr": or_none(t_error), "capsize": 2}
        ax.errorbar(x, t, color=colour, ls="", zorder=3, **bars)
    every = max(1, len(t) // 12)
    style = {"color": colour, "ls": dashes, "lw": 1.6, "marker": marker, "ms": 3.5, "zorder": 3}
    ax.plot(x, t, markevery=(every // 2, every), **style)
    return t, x


def _band(ax: Axes, t, t_error, x, x_error) -> tuple[np.ndarray, np.ndarray]:
    """Outline of all curves within two errors, (positions, temperatures).

    Where a line runs level its position at a temperature is hardly known, but its temperature is:
    only the part of an error that is normal to the line moves the line. Of the two segments that
    meet at a point the more level one tells how much: near the top of a dome the steeper one
    belongs to temperatures far below.
    """
    width, height = np.ptp(ax.get_xlim()), np.ptp(ax.get_ylim())
    steps = np.diff(np.column_stack([x / width, t / height]), axis=0)
    normal = np.column_stack([steps[:, 1], -steps[:, 0]])
    normal /= np.maximum(np.linalg.norm(normal, axis=1), 1e-12)[:, None]
    before, after = np.insert(normal, 0, normal[0], 0), np.append(normal, normal[-1:], 0)
    middle = before + after
    middle /= np.maximum(np.linalg.norm(middle, axis=1), 1e-12)[:, None]
    part = np.minimum(np.abs(before[:, 0]), np.abs(after[:, 0]))
    size = np.hypot(part * x_error / width, middle[:, 1] * t_error / height)
    dx, dt = (WIDE * size[:, None] * middle * [width, height]).T
    return np.concatenate([x + dx, (x - dx)[::-1]]), np.concatenate([t + dt, (t - dt)[::-1]])


def _dotted(ax: Axes, b: Boundary, column) -> None:
    """Parts that are not stable, joined to their stable neighbours."""
    x = b.mu.value if column is None else b.composition.value[:, column]
    there = known(b)
    for run in _runs(there & ~np.asarray(b.stable, bool)):
        near = np.arange(max(run[0] - 1, 0), min(run[-1] + 2, len(x)))
        near = near[there[near]]
        ax.plot(x[near], b.temperature.value[near], color="0.55", lw=0.8, ls=":", zorder=1.5)


def _sides(b: Boundary) -> tuple[str, str]:
    """Phases left and right; a line within one phase bounds none."""
    return b.phases if b.phases[0] != b.phases[1] else ("", "")


def draw_in_composition(ax: Axes, b: Boundary, points) -> list[tuple]:
    """Both ends of the tie lines, or the one line of a maximum.

    Returns
    -------
    list of (phase, temperatures, positions, side)
        On which side of a line a phase lies: -1 left, 1 right.
    """
    out = []
    first_order = b.kind == "first-order"
    columns = (0, 1) if first_order else (0,)
    for column in columns:
        _dotted(ax, b, column)
    for run in _runs(known(b) & np.asarray(b.stable, bool)):
        lines = [_line(ax, b, run, points, column) for column in columns]
        if first_order:
            (t, left), (_, right) = lines
            ax.fill_betweenx(t, left, right, color="0.93", lw=0, zorder=0)
            shown = np.unique(np.linspace(0, len(run) - 1, min(_TIES, len(run))).astype(int))
            ends = b.composition.value[run[shown]]
            ax.hlines(b.temperature.value[run[shown]], *ends.T, color="0.7", lw=0.7, zorder=1)
        out += [
            (_sides(b)[side], *lines[side if first_order else 0], -1 if side == 0 else 1)
            for side in (0, 1)
        ]
    return out


def draw_in_mu(ax: Axes, b: Boundary, points) -> list[tuple]:
    """As :func:`draw_in_composition`, the one line that two phases share."""
    out = []
    _dotted(ax, b, None)
    for run in _runs(known(b) & np.asarray(b.stable, bool)):
        line = _line(ax, b, run, points, None)
        out += [(name, *line, side) for name, side in zip(_sides(b), (-1, 1), strict=True)]
    return out


def draw_symbols(ax: Axes, b: Boundary, against: str, colour: str, marker: str) -> list:
    """Points of a recipe; where they are."""
    shown = known(b) & np.asarray(b.stable, bool)
    t = b.temperature[shown]
    columns = [b.mu] if against == "mu" else [b.composition[:, s] for s in (0, 1)]
    if against == "composition" and np.array_equal(columns[0].value, columns[1].value, True):
        columns = columns[:1]
    label = b.kind
    for x in columns:
        bars = {"xerr": or_none(x.error[shown]), "yerr": or_none(t.error), "capsize": 2}
        style = {"color": colour, "marker": marker, "ls": "", "ms": 4.5, "lw": 1, "zorder": 3}
        ax.errorbar(x.value[shown], t.value, label=label, **bars, **style)
        label = None
    return [(x.value[shown], t.value) for x in columns]


def draw_point(ax: Axes, p: ThreePhasePoint, against: str) -> None:
    """Three phases: a horizontal line with its band over composition, a point over mu."""
    t, error = p.temperature.value, np.nan_to_num(p.temperature.error)
    style = {"color": GREEN, "zorder": 4}
    if against == "mu":
        bars = {"xerr": np.nan_to_num(p.mu.error), "yerr": error, "capsize": 2}
        ax.errorbar(p.mu.value, t, marker="D", ms=5, ls="", **bars, **style)
        return
    x = np.asarray(p.composition.value, dtype=float)
    ends = [np.nanmin(x), np.nanmax(x)]
    low, high = t - WIDE * error, t + WIDE * error
    if error:
        ax.fill_between(ends, low, high, color=light(GREEN), lw=0, zorder=1.8)
    ax.plot(ends, [t, t], lw=1.6, **style)
    ax.errorbar(x, 0 * x + t, xerr=np.nan_to_num(p.composition.error), ls="", marker="D", ms=4,
                capsize=2, **style)  # fmt: skip


def regions(boundaries, points, against: str) -> list[np.ndarray]:
    """Polygons (position, temperature) of two phases, which carry no phase's name."""
    if against == "mu":
        return []
    out = []
    for b in boundaries:
        if b.kind != "first-order":
            continue
        for run in _runs(known(b) & np.asarray(b.stable, bool)):
            t, _, left, _ = _curve(b, run, points, 0)
            _, _, right, _ = _curve(b, run, points, 1)
            sides = np.column_stack([left, t]), np.column_stack([right, t])[::-1]
            out.append(np.concatenate(sides))
    return out


def or_none(error):
    """Errors, or None where there are none at all: no caps without a bar."""
    return np.nan_to_num(error) if np.any(np.nan_to_num(error)) else None
