"""Maps over temperature and chemical potential or composition."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase.units import kB
from matplotlib.axes import Axes
from matplotlib.patheffects import Normal, Stroke

from clease_nn.phases import Boundary, ChemicalPotentialLine
from clease_nn.plotting.style import VERMILION, above, edges, legend, mathematical, say, values_of
from clease_nn.thermodynamics import Averages

__all__ = ["condition_map", "heat_capacity_map", "ness_map"]

_OFF = 1e-6  # eV by which a condition may lie off a line


def condition_map(
    ax: Axes,
    temperatures,
    mus,
    values,
    label: str,
    *,
    mu_label: str = "chemical potential (eV)",
    limits: tuple[float, float] | None = None,
) -> Axes:
    """Map of a quantity over temperature and chemical potential.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
    temperatures : array_like, shape (n,)
        K, ascending; the vertical axis.
    mus : array_like, shape (m,)
        eV, ascending; the horizontal axis.
    values : array_like or Estimate, shape (n, m)
        NaN is drawn hatched; where all are, the axes say so.
    label : str
        Quantity and unit, beside the colour bar.
    mu_label : str
        Label of the horizontal axis, with unit.
    limits : (low, high), optional
        Ends of the colours. Default: those of the values.

    Raises
    ------
    ValueError
        If the shapes do not match, or there is no condition.
    """
    t, m = (np.asarray(x, dtype=float) for x in (temperatures, mus))
    v = values_of(values)
    if v.shape != (len(t), len(m)):
        raise ValueError(
            f"values must have shape {(len(t), len(m))} for {len(t)} temperatures and {len(m)} "
            f"chemical potentials, got {v.shape}"
        )
    if not v.size:
        raise ValueError("a map needs at least one condition, got none")
    known = v[np.isfinite(v)]
    low, high = limits or ((known.min(), known.max()) if known.size else (0.0, 1.0))
    ax.patch.set(hatch="////", edgecolor="0.6")
    mesh = ax.pcolormesh(
        edges(m), edges(t), np.ma.masked_invalid(v), cmap="cividis", vmin=low, vmax=high
    )
    mesh.set_rasterized(True)
    if known.size:
        ax.figure.colorbar(mesh, ax=ax, label=label)
    else:
        say(ax, f"{label}:\nnot determined at any condition")
    ax.set(xlabel=mathematical(mu_label), ylabel="temperature (K)")
    return ax


def ness_map(ax: Axes, averages: Averages, line: ChemicalPotentialLine) -> Axes:
    """Normalised effective sample size of every condition, from 0 to 1.

    Conditions of the grid that are missing are hatched. No NESS sees a phase that was never
    drawn.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
    averages : Averages
        Of conditions along the line at any temperatures, in any order.
    line : ChemicalPotentialLine

    Raises
    ------
    ValueError
        If there are no conditions, or one does not lie on the line.
    """
    t, mu, ness = _on_grid(averages, line, [a.ness for a in averages])
    return condition_map(ax, t, mu, ness, "NESS", mu_label=line.label, limits=(0.0, 1.0))


def heat_capacity_map(
    ax: Axes,
    averages,
    line: ChemicalPotentialLine,
    *,
    boundaries: Sequence[Boundary] = (),
) -> Axes:
    """Heat capacity in kB per site, with its maxima or other boundaries on top.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
    averages : Averages or CanonicalAverages
        Along the line: at constant chemical potential, over T and mu. Or canonical: at constant
        composition, over T and the share of the line's species.
    line : ChemicalPotentialLine
    boundaries : sequence of Boundary
        Drawn with error bars; points that are not stable or NaN are left out.

    Raises
    ------
    ValueError
        If there are no conditions, one does not lie on the line, or the compositions of canonical
        averages do not differ in the share of the species.
    """
    if isinstance(averages, Averages):
        c = [a.heat_capacity.value / (a.n_sites * kB) for a in averages]
        t, x, c = _on_grid(averages, line, c)
        label = line.label
    else:
        if line.species not in averages.species:
            raise ValueError(f"species {line.species!r} is none of {averages.species}")
        t = np.asarray(averages.temperatures, dtype=float)
        x = np.asarray(averages.composition)[:, averages.species.index(line.species)]
        order, rows = np.argsort(x), np.argsort(t)
        if len(np.unique(x.round(9))) < len(x):
            raise ValueError(
                f"several compositions have one share of {line.species}; pick those along a line"
            )
        c = values_of(averages.heat_capacity)[rows][:, order] / (averages.n_sites * kB)
        t, x, label = t[rows], x[order], f"site fraction of {line.species}"
    condition_map(ax, t, x, c, r"heat capacity ($k_\mathrm{B}$ per site)", mu_label=label)
    outline = [Stroke(linewidth=3.2, foreground="black"), Normal()]
    for k, b in enumerate(boundaries):
        sides = [b.mu] if isinstance(averages, Averages) else [b.composition[:, s] for s in (0, 1)]
        shown = np.asarray(b.stable, dtype=bool) & np.isfinite(b.temperature.value)
        for side in sides[: 2 if b.kind == "first-order" else 1]:
            drawn = ax.errorbar(
                side.value[shown],
                b.temperature.value[shown],
                xerr=np.nan_to_num(side.error[shown]),
                yerr=np.nan_to_num(b.temperature.error[shown]),
                color="white",
                ecolor=VERMILION,
                marker="osD^v"[k % 5],
                mfc=VERMILION,
                mec="white",
                ms=5,
                lw=1.6,
                capsize=2,
            )
            drawn.lines[0].set_path_effects(outline)
        phases = " / ".join(dict.fromkeys(p for p in b.phases if p))
        drawn.set_label(f"{b.kind}, {phases}" if phases else b.kind)
    legend(ax, **{**above(ax), "ncols": 1})
    return ax


# ------------------------------------------------------------------ grids
def _on_grid(averages: Averages, line: ChemicalPotentialLine, values):
    """Temperatures, positions along the line and values (n, m), NaN where none was given."""
    if not len(averages):
        raise ValueError("a map needs at least one condition, got none")
    temperature = np.round([a.temperature for a in averages], 6)
    mu = np.stack([np.asarray(a.mu, dtype=float) for a in averages])
    if mu.shape[1] != len(line.direction):
        raise ValueError(
            f"the line has {len(line.direction)} species, the averages have {mu.shape[1]}"
        )
    # only differences between species matter
    direction = line.direction - line.direction.mean()
    away = mu - line.origin
    away = away - away.mean(1, keepdims=True)
    position = away @ direction / (direction @ direction)
    off = np.abs(away - position[:, None] * direction).max(1)
    if off.max() > _OFF:
        k = int(off.argmax())
        raise ValueError(
            f"condition {k}, mu = {mu[k].tolist()} eV, lies {off[k]:.2g} eV off the line "
            f"{line.label}; pick the conditions along it"
        )
    t, row = np.unique(temperature, return_inverse=True)
    x, column = np.unique(np.round(position, 9), return_inverse=True)
    out = np.full((len(t), len(x)), np.nan)
    out[row, column] = values
    return t, x, out
