"""Where the weights of a model are poor, and the phases behind it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.patheffects import Normal, Stroke

from clease_nn.diagnostics import Shortfall
from clease_nn.phases import ChemicalPotentialLine
from clease_nn.plotting.maps import _on_grid, condition_map
from clease_nn.plotting.style import BLUE, GREEN, VERMILION, above, clean, edges, legend, say

__all__ = ["gap_map", "phase_shares"]

_BAR = 0.26  # height, three a phase


def gap_map(ax: Axes, report: Shortfall, line: ChemicalPotentialLine) -> Axes:
    """KL gap of every condition, regions that are low outlined, the worst one thick.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
    report : Shortfall
        Of conditions along the line at any temperatures, in any order; those of the grid that are
        missing are hatched.
    line : ChemicalPotentialLine

    Raises
    ------
    ValueError
        If a condition does not lie on the line.
    """
    at = [
        SimpleNamespace(temperature=t, mu=m)
        for t, m in zip(
            report.conditions.temperature.tolist(), report.conditions.mu.numpy(), strict=True
        )
    ]
    t, x, gap = _on_grid(at, line, report.gap)
    region = np.full(len(at), -1)
    for k, r in enumerate(report.regions):
        region[r.rows] = k
    region = np.nan_to_num(_on_grid(at, line, region)[2], nan=-1).astype(int)
    condition_map(ax, t, x, gap, "KL gap (nats)", mu_label=line.label, limits=(0.0, _top(gap)))
    for k in reversed(range(len(report.regions))):
        borders = _borders(region == k, edges(x), edges(t))
        width = 2.2 if k == 0 else 1.0
        outline = LineCollection(borders, colors=VERMILION, linewidths=width, zorder=3)
        outline.set_path_effects([Stroke(linewidth=width + 1.6, foreground="white"), Normal()])
        outline.set_capstyle("round")
        ax.add_collection(outline)
    return ax


def phase_shares(ax: Axes, report: Shortfall, n: int = 3) -> Axes:
    """Shares of the phases at the worst condition of each region: drawn, and as they should be.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
    report : Shortfall
    n : int
        Regions shown, the largest share of the gap first.

    Raises
    ------
    ValueError
        If ``n`` is below 1.
    """
    if n < 1:
        raise ValueError(f"at least one region must be shown, got n = {n}")
    shown = [r.worst for r in report.regions[:n] if report.phases[r.worst]]
    clean(ax)
    if not shown:
        ax.set(xticks=[], yticks=[])
        say(ax, "nothing to report: no condition is low")
        return ax
    kinds = [("drawn", BLUE, ""), ("expected", VERMILION, "//"), ("chains", GREEN, "..")]
    words = {"drawn": "drawn", "expected": "should be, by weights", "chains": "by chains"}
    place, labels, titles = 0.0, {}, []
    bars: dict[str, list] = {name: [] for name, _, _ in kinds}
    for k in shown:
        titles.append((place, report.where(k)))
        place += 0.6
        for p in report.phases[k]:
            have = [name for name, _, _ in kinds if getattr(p, name) is not None]
            for j, name in enumerate(have):
                bars[name].append((place + _BAR * (j - (len(have) - 1) / 2), getattr(p, name)))
            labels[place] = p.name + (" (lost)" if p.lost else "")
            place += 1.0
        place += 0.3
    for name, colour, hatch in kinds:
        if bars[name]:
            y, shares = zip(*bars[name], strict=True)
            ax.barh(
                y,
                [100 * s.value for s in shares],
                _BAR,
                xerr=[100 * s.error for s in shares],
                color=colour,
                hatch=hatch,
                edgecolor="white",
                linewidth=0,
                error_kw={"lw": 1, "capsize": 2, "ecolor": "0.2"},
                label=words[name],
            )
    for y, text in titles:
        ax.text(0.0, y, text, ha="left", va="center", fontsize="small", fontweight="bold")
    ax.set_yticks(list(labels), list(labels.values()))
    ax.tick_params(axis="y", length=0)
    ax.set(xlim=(0, 105), ylim=(place - 0.4, -0.5), xlabel="share of the phase (%)")
    legend(ax, **above(ax))
    return ax


def _top(gap: np.ndarray) -> float:
    """End of the colours; a map of zeros needs one too."""
    return max(float(np.nanmax(gap)), 1e-3)


def _borders(inside: np.ndarray, x: np.ndarray, y: np.ndarray) -> list:
    """Sides of the cells (rows along y, columns along x) that separate inside from outside."""
    padded = np.pad(inside, 1)
    out = []
    for i, j in zip(*np.nonzero(padded[:, 1:] != padded[:, :-1]), strict=True):
        out.append([(x[j], y[i - 1]), (x[j], y[i])])
    for i, j in zip(*np.nonzero(padded[1:] != padded[:-1]), strict=True):
        out.append([(x[j - 1], y[i]), (x[j], y[i])])
    return out
