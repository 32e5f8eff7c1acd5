"""Phase diagrams: temperature against composition or chemical potential."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from clease_nn.phases import Boundary, PhaseDiagram, ThreePhasePoint
from clease_nn.plotting.fields import place_names
from clease_nn.plotting.style import (
    BLUE,
    GREEN,
    VERMILION,
    WIDE,
    legend,
    light,
    mathematical,
    say,
    shaped,
)
from clease_nn.statistics import Estimate

__all__ = ["boundary_points", "phase_diagram"]

_KINDS = {
    "first-order": (BLUE, "o", "-"),
    "heat-capacity maximum": (VERMILION, "s", (0, (5, 2))),
    "susceptibility maximum": ("#CC79A7", "D", (0, (2, 1.5))),
}
_OTHERS = (("#E69F00", "v"), ("#000000", "P"), ("#56B4E9", "<"), ("#009E73", ">"))
_ABOVE = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncols": 3}
_TIES = 6  # tie lines shown of a boundary


def phase_diagram(
    ax: Axes,
    diagram: PhaseDiagram,
    *,
    against: str = "composition",
    names: Mapping[str, str] | None = None,
) -> Axes:
    """Boundaries with bands of two standard errors, tie lines, and the phases' names.

    First-order lines are solid, maxima of a response function dashed (in a finite cell they are
    near a second-order line, not on it), temperatures of three phases horizontal. Against
    composition, regions of two phases are shaded and crossed by tie lines. Parts of a boundary
    that a third phase undercuts (``stable`` false) are thin and dotted, without a band; points
    that are NaN are left out. Where nothing is determined the axes say why.

    Boundaries of other kinds (the published recipes of :mod:`clease_nn.phases.published`) are
    symbols with error bars of one standard error: what they give need not be a line.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
        The vertical axis is the temperature in K.
    diagram : PhaseDiagram
    against : str
        ``"composition"``, the share of sites with the species of the line, or ``"mu"``, the
        position along the line in eV.
    names : mapping, optional
        What to write for a phase of the diagram; the empty string writes nothing.

    Raises
    ------
    ValueError
        If ``against`` is neither, a boundary has arrays of different lengths, or ``names`` knows
        a phase that the diagram has not.

    See Also
    --------
    boundary_points : points of another calculation on top.
    """
    if against not in ("composition", "mu"):
        raise ValueError(f"against must be 'composition' or 'mu', got {against!r}")
    unknown = set(names or {}) - set(diagram.phases)
    if unknown:
        raise ValueError(f"names of {sorted(unknown)}, but the phases are {diagram.phases}")
    for b in diagram.boundaries:
        _check(b)
    if against == "composition":
        ax.set(xlabel=f"site fraction of {diagram.line.species}", xlim=(0, 1))
    else:
        ax.set_xlabel(mathematical(diagram.line.label))
    ax.set_ylabel("temperature (K)")
    seen = [b for b in diagram.boundaries if _determined(b).any()]
    if not seen and not diagram.points:
        why = "\n".join(diagram.undetermined) or "it has no boundaries"
        say(ax, f"no boundary is determined:\n{why}")
        return ax
    draw = _draw_in_composition if against == "composition" else _draw_in_mu
    lines = [b for b in seen if b.kind in _KINDS]
    fields = [f for b in lines for f in draw(ax, b, diagram.points)]
    recipes = tuple(dict.fromkeys(b.kind for b in seen if b.kind not in _KINDS))
    for b in seen:
        if b.kind in recipes:
            _draw_symbols(ax, b, against, *_OTHERS[recipes.index(b.kind) % len(_OTHERS)])
    for point in diagram.points:
        _draw_point(ax, point, against)
    _limits(ax, seen, diagram.points, against)
    texts = {p: (names or {}).get(p, p) for p in diagram.phases}
    place_names(ax, fields, texts, _regions(lines, diagram.points, against))
    _name_lines(ax, seen, diagram.points, against)
    return ax


def boundary_points(
    ax: Axes,
    temperature: Estimate,
    position: Estimate,
    *,
    label: str,
    colour: str = "black",
    marker: str = "^",
) -> Axes:
    """Boundary points of another calculation, such as a host's Monte Carlo, as open symbols.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
        With a phase diagram; its legend is made anew.
    temperature : Estimate, shape (n,)
        K.
    position : Estimate, shape (n,) or (n, 2)
        Compositions, or eV along the line of chemical potentials; two columns are both ends of
        tie lines. NaN is left out.
    label : str
        For the legend.
    colour, marker : str
        Of matplotlib.

    Raises
    ------
    ValueError
        If the shapes do not match, or all points are NaN.
    """
    t = shaped(temperature, np.shape(temperature.value), "temperature")
    n = len(np.atleast_1d(t.value))
    shape = (n, 2) if np.ndim(position.value) == 2 else (n,)
    x = shaped(position, shape, "position")
    columns = x.value.reshape(n, -1).T, x.error.reshape(n, -1).T
    if not (
        np.isfinite(x.value) & np.isfinite(t.value.reshape(-1, *[1] * (x.value.ndim - 1)))
    ).any():
        raise ValueError(f"all {n} points of {label!r} are NaN; there is nothing to draw")
    old = ax.get_legend()
    handles = list(old.legend_handles) if old is not None else []
    for value, error in zip(*columns, strict=True):
        drawn = ax.errorbar(
            value,
            t.value,
            xerr=_or_none(error),
            yerr=_or_none(t.error),
            ls="",
            color=colour,
            marker=marker,
            mfc="white",
            ms=5.5,
            capsize=2,
            lw=1,
            zorder=6,
        )
    drawn.set_label(label)
    legend(ax, [*handles, drawn], **_ABOVE)
    return ax


# ------------------------------------------------------------------ pieces
def _check(b: Boundary) -> None:
    n = len(np.atleast_1d(b.temperature.value))
    for name, estimate, shape in (
        ("temperature", b.temperature, (n,)),
        ("mu", b.mu, (n,)),
        ("composition", b.composition, (n, 2)),
    ):
        shaped(estimate, shape, f"{name} of the boundary {' - '.join(b.phases)}")
    if np.shape(b.stable) != (n,):
        raise ValueError(
            f"stable of the boundary {' - '.join(b.phases)} must have shape {(n,)}, got "
            f"{np.shape(b.stable)}"
        )


def _determined(b: Boundary) -> np.ndarray:
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
            if near.all() and gap[0] * ahead[0] >= 0:
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
    colour, marker, dashes = _KINDS.get(b.kind, _KINDS["first-order"])
    t, t_error, x, x_error = _curve(b, run, points, column)
    x_error, t_error = np.nan_to_num(x_error), np.nan_to_num(t_error)
    band = {"color": light(colour), "lw": 0, "zorder": 2}
    if x_error.any() and len(t) > 1:
        ax.fill_betweenx(t, x - WIDE * x_error, x + WIDE * x_error, **band)
    if t_error.any() and len(t) > 1:
        order = np.argsort(x)
        low, high = (t - WIDE * t_error)[order], (t + WIDE * t_error)[order]
        ax.fill_between(x[order], low, high, **band)
    if len(t) == 1:
        bars = {"xerr": _or_none(x_error), "yerr": _or_none(t_error), "capsize": 2}
        ax.errorbar(x, t, color=colour, ls="", zorder=3, **bars)
    every = max(1, len(t) // 12)
    style = {"color": colour, "ls": dashes, "lw": 1.6, "marker": marker, "ms": 3.5, "zorder": 3}
    ax.plot(x, t, markevery=(every // 2, every), **style)
    return t, x


def _dotted(ax: Axes, b: Boundary, column) -> None:
    """Parts that are not stable, joined to their stable neighbours."""
    x = b.mu.value if column is None else b.composition.value[:, column]
    known = _determined(b)
    for run in _runs(known & ~np.asarray(b.stable, bool)):
        near = np.arange(max(run[0] - 1, 0), min(run[-1] + 2, len(x)))
        near = near[known[near]]
        ax.plot(x[near], b.temperature.value[near], color="0.55", lw=0.8, ls=":", zorder=1.5)


def _sides(b: Boundary) -> tuple[str, str]:
    """Phases left and right; a line within one phase bounds none."""
    return b.phases if b.phases[0] != b.phases[1] else ("", "")


def _draw_in_composition(ax: Axes, b: Boundary, points):
    out = []
    first_order = b.kind == "first-order"
    columns = (0, 1) if first_order else (0,)
    for column in columns:
        _dotted(ax, b, column)
    for run in _runs(_determined(b) & np.asarray(b.stable, bool)):
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


def _draw_in_mu(ax: Axes, b: Boundary, points):
    out = []
    _dotted(ax, b, None)
    for run in _runs(_determined(b) & np.asarray(b.stable, bool)):
        line = _line(ax, b, run, points, None)
        out += [(name, *line, side) for name, side in zip(_sides(b), (-1, 1), strict=True)]
    return out


def _draw_symbols(ax: Axes, b: Boundary, against: str, colour: str, marker: str) -> None:
    shown = _determined(b) & np.asarray(b.stable, bool)
    t = b.temperature[shown]
    columns = [b.mu] if against == "mu" else [b.composition[:, s] for s in (0, 1)]
    if against == "composition" and np.array_equal(columns[0].value, columns[1].value, True):
        columns = columns[:1]
    label = b.kind
    for x in columns:
        bars = {"xerr": _or_none(x.error[shown]), "yerr": _or_none(t.error), "capsize": 2}
        style = {"color": colour, "marker": marker, "ls": "", "ms": 4.5, "lw": 1, "zorder": 3}
        ax.errorbar(x.value[shown], t.value, label=label, **bars, **style)
        label = None


def _draw_point(ax: Axes, p: ThreePhasePoint, against: str) -> None:
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


def _regions(boundaries, points, against: str) -> list[np.ndarray]:
    """Polygons (position, temperature) of two phases, which carry no phase's name."""
    if against == "mu":
        return []
    out = []
    for b in boundaries:
        if b.kind != "first-order":
            continue
        for run in _runs(_determined(b) & np.asarray(b.stable, bool)):
            t, _, left, _ = _curve(b, run, points, 0)
            _, _, right, _ = _curve(b, run, points, 1)
            sides = np.column_stack([left, t]), np.column_stack([right, t])[::-1]
            out.append(np.concatenate(sides))
    return out


def _limits(ax: Axes, boundaries, points, against: str) -> None:
    t = np.concatenate(
        [b.temperature.value[_determined(b)] for b in boundaries]
        + [[p.temperature.value] for p in points]
    )
    low, high = t.min(), t.max()
    ax.set_ylim(low if high > low else low - 50, high + max(0.22 * (high - low), 50))
    if against == "mu":
        x = np.concatenate(
            [b.mu.value[_determined(b)] for b in boundaries] + [[p.mu.value] for p in points]
        )
        room = max(0.25 * np.ptp(x), 0.01)
        ax.set_xlim(x.min() - room, x.max() + room)


def _name_lines(ax: Axes, boundaries, points, against: str) -> None:
    handles = []
    for kind, (colour, marker, dashes) in _KINDS.items():
        if any(b.kind == kind for b in boundaries):
            style = {"color": colour, "marker": marker, "ls": dashes, "ms": 3.5, "lw": 1.6}
            handles.append(Line2D([], [], label=kind, **style))
    found, names = ax.get_legend_handles_labels()
    handles += dict(zip(names, found, strict=True)).values()
    if points:
        ls = "" if against == "mu" else "-"
        handles.append(Line2D([], [], color=GREEN, marker="D", ls=ls, ms=4, label="three phases"))
    if against == "composition" and any(b.kind == "first-order" for b in boundaries):
        handles.append(Patch(color="0.93", label="two phases"))
    if any((~np.asarray(b.stable, bool) & _determined(b)).any() for b in boundaries):
        handles.append(Line2D([], [], color="0.55", lw=0.8, ls=":", label="not stable"))
    legend(ax, handles, **_ABOVE)


def _or_none(error):
    return np.nan_to_num(error) if np.any(np.nan_to_num(error)) else None
