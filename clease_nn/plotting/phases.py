"""Phase diagrams: temperature against composition or chemical potential."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from clease_nn.phases import Boundary, PhaseDiagram
from clease_nn.plotting.boundaries import (
    KINDS,
    OTHERS,
    draw_in_composition,
    draw_in_mu,
    draw_point,
    draw_symbols,
    known,
    or_none,
    regions,
)
from clease_nn.plotting.fields import place_names
from clease_nn.plotting.style import (
    GREEN,
    above,
    legend,
    mathematical,
    say,
    shaped,
)
from clease_nn.statistics import Estimate

__all__ = ["boundary_points", "phase_diagram"]


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

    Examples
    --------
    >>> from clease_nn import phases
    >>> from clease_nn.energies.ising import ising_energy
    >>> from clease_nn.ensemble import SemiGrandCanonical
    >>> from clease_nn.lattice import Lattice
    >>> from clease_nn.plotting import figure
    >>> from clease_nn.thermodynamics import DensityOfStates
    >>> lattice = Lattice.square(4)
    >>> states = SemiGrandCanonical(ising_energy(lattice, 0.02)).enumerate(lattice)
    >>> dos = DensityOfStates.exact(states)
    >>> line = phases.ChemicalPotentialLine.exchange(lattice, "Au", "Cu")
    >>> found = phases.identify(dos, line, [300, 450])
    >>> fig, ax = figure()
    >>> ax = phase_diagram(ax, phases.phase_diagram(dos, found, line, [300, 375, 450]))
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['first-order', 'two phases']
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
        ax.locator_params(axis="x", nbins=6)  # numbers with many digits would touch
    ax.set_ylabel("temperature (K)")
    seen = [b for b in diagram.boundaries if known(b).any()]
    if not seen and not diagram.points:
        why = "\n".join(diagram.undetermined) or "it has no boundaries"
        say(ax, f"no boundary is determined:\n{why}")
        return ax
    _limits(ax, seen, diagram.points, against)
    draw = draw_in_composition if against == "composition" else draw_in_mu
    lines = [b for b in seen if b.kind in KINDS]
    fields = [f for b in lines for f in draw(ax, b, diagram.points)]
    recipes = tuple(dict.fromkeys(b.kind for b in seen if b.kind not in KINDS))
    symbols = []
    for b in seen:
        if b.kind in recipes:
            style = OTHERS[recipes.index(b.kind) % len(OTHERS)]
            symbols += draw_symbols(ax, b, against, *style)
    for point in diagram.points:
        draw_point(ax, point, against)
    texts = {p: (names or {}).get(p, p) for p in diagram.phases}
    place_names(ax, fields, texts, regions(lines, diagram.points, against), symbols)
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
        For the legend; none for an empty one or one that begins with an underscore.
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
    style = {"ls": "", "color": colour, "marker": marker, "mfc": "white", "ms": 5.5}
    for value, error in zip(*columns, strict=True):
        bars = {"xerr": or_none(error), "yerr": or_none(t.error), "capsize": 2, "lw": 1}
        ax.errorbar(value, t.value, zorder=6, **bars, **style)
    if label and not label.startswith("_"):
        old = ax.get_legend()
        handles = [] if old is None else list(old.legend_handles)
        legend(ax, [*handles, Line2D([], [], label=label, **style)], **above(ax))
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


def _limits(ax: Axes, boundaries, points, against: str) -> None:
    t = np.concatenate(
        [b.temperature.value[known(b)] for b in boundaries]
        + [[p.temperature.value] for p in points]
    )
    low, high = t.min(), t.max()
    ax.set_ylim(low if high > low else low - 50, high + max(0.22 * (high - low), 50))
    if against == "mu":
        x = np.concatenate(
            [b.mu.value[known(b)] for b in boundaries] + [[p.mu.value] for p in points]
        )
        room = max(0.25 * np.ptp(x), 0.01)
        ax.set_xlim(x.min() - room, x.max() + room)


def _name_lines(ax: Axes, boundaries, points, against: str) -> None:
    handles = []
    for kind, (colour, marker, dashes) in KINDS.items():
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
    if any((~np.asarray(b.stable, bool) & known(b)).any() for b in boundaries):
        handles.append(Line2D([], [], color="0.55", lw=0.8, ls=":", label="not stable"))
    legend(ax, handles, **above(ax))
