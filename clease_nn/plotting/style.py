"""Colours, markers and helpers that every figure shares."""

from __future__ import annotations

import re
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from clease_nn.statistics import Estimate

__all__ = ["figure"]

BLUE, VERMILION, GREEN = "#0072B2", "#D55E00", "#009E73"
# Okabe and Ito, ordered so that neighbours differ in grey too; yellow is too light for lines
PALETTE = (BLUE, VERMILION, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP<>"
DASHES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (8, 2)))
WIDE = 2.0  # standard errors that a band reaches to both sides


def figure(width: float = 6.4, height: float = 4.4) -> tuple[Figure, Axes]:
    """A figure with one pair of axes, sized in inches for print, without a screen.

    The figure belongs to no window system: save it with ``figure.savefig``.
    """
    fig = Figure(figsize=(width, height), dpi=150, layout="constrained")
    return fig, fig.subplots()


def styles(names: Sequence):
    """Names with dark to light colours of one map and changing markers: for ordered curves."""
    shades = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.78, max(len(names), 2)))
    return [(name, shades[k], MARKERS[k % len(MARKERS)]) for k, name in enumerate(names)]


def kinds(names: Sequence):
    """Names with colours of the palette and changing markers: for curves without an order."""
    return [
        (name, PALETTE[k % len(PALETTE)], MARKERS[k % len(MARKERS)]) for k, name in enumerate(names)
    ]


def light(colour, share: float = 0.3) -> tuple[float, float, float]:
    """The colour mixed with white: opaque, so that bands that meet do not darken."""
    return tuple(share * c + 1 - share for c in to_rgb(colour))


def values_of(x) -> np.ndarray:
    """Numbers of an estimate, a tensor or a sequence."""
    x = x.value if isinstance(x, Estimate) else x
    return np.asarray(x.cpu() if hasattr(x, "cpu") else x, dtype=float)


def shaped(estimate: Estimate, shape: tuple[int, ...], name: str) -> Estimate:
    """Value and error as arrays of a shape.

    Raises
    ------
    ValueError
        If they have another.
    """
    value, error = np.asarray(estimate.value, float), np.asarray(estimate.error, float)
    if value.shape != shape or error.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {value.shape} and {error.shape}")
    return Estimate(value, error)


def determined(estimate: Estimate, name: str) -> Estimate:
    """The estimate itself.

    Raises
    ------
    ValueError
        If there is nothing to draw: no value, or only NaN.
    """
    if not np.isfinite(estimate.value).any():
        raise ValueError(
            f"there is nothing to draw: none of the {np.size(estimate.value)} values of {name} is "
            "determined"
        )
    return estimate


def edges(centres: np.ndarray) -> np.ndarray:
    """Cell borders halfway between centres."""
    if len(centres) == 1:
        half = 0.05 * abs(centres[0]) or 0.5
        return np.array([centres[0] - half, centres[0] + half])
    if not (np.diff(centres) > 0).all():
        raise ValueError("temperatures and chemical potentials of a map must ascend")
    inner = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - inner[0]], inner, [2 * centres[-1] - inner[-1]]])


def from_zero(ax: Axes) -> None:
    """Let a linear axis begin at zero; a logarithmic one has none."""
    if ax.get_yscale() == "linear":
        ax.set_ylim(bottom=0)


def clean(ax: Axes) -> Axes:
    """Without the frame's upper and right side."""
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def legend(ax: Axes, handles=None, **where) -> None:
    """A legend without frame, where there is anything to name."""
    handles = ax.get_legend_handles_labels()[0] if handles is None else handles
    if handles:
        ax.legend(handles=handles, **{"frameon": False, "fontsize": "small", **where})


def above(ax: Axes) -> dict:
    """Where a legend of many entries goes: above the axes, in columns that fit their width."""
    where = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "columnspacing": 1.2}
    if 72 * ax.get_position().width * ax.figure.get_size_inches()[0] > 250:
        return {**where, "ncols": 3}
    return {**where, "ncols": 2, "fontsize": 7, "handlelength": 1.6}


def say(ax: Axes, text: str) -> None:
    """Words in the middle of axes that would otherwise be empty."""
    ax.text(
        0.5,
        0.5,
        text,
        transform=ax.transAxes,
        ha="center",
        va="center",
        fontsize="small",
        color="0.3",
        wrap=True,
    )


def chemical(formula: str) -> str:
    """A formula with subscripts.

    >>> chemical("Cu3Au")
    'Cu$_{3}$Au'
    """
    return re.sub(r"(\d+)", r"$_{\1}$", formula)


def mathematical(label: str) -> str:
    """``mu_Au - mu_Cu (eV)`` with Greek letters and subscripts.

    >>> mathematical("mu_Au - mu_Cu (eV)")
    '$\\\\mu_\\\\mathrm{Au}$ - $\\\\mu_\\\\mathrm{Cu}$ (eV)'
    """
    return re.sub(r"mu_(\w+)", r"$\\mu_\\mathrm{\1}$", label)
