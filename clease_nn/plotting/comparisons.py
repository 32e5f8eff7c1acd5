"""Two results of one quantity: how far they are apart, and in units of their errors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from clease_nn.plotting.style import BLUE, clean, legend, mathematical, styles
from clease_nn.thermodynamics import Comparison

__all__ = ["comparison"]

_UNITS = {
    "grand_potential": "eV per supercell",
    "energy": "eV per supercell",
    "sgc_energy": "eV per supercell",
    "free_energy": "eV per supercell",
    "entropy": "eV/K per supercell",
    "heat_capacity": "eV/K per supercell",
    "composition": "site fraction",
}
_MOST = 6  # temperatures told apart


def comparison(
    axes: Sequence[Axes], found: Comparison, quantity: str, *, against: str | None = None
) -> Sequence[Axes]:
    """Differences of two results with their error bars, and below them the z-scores.

    Of z-scores of independent results with right errors 68 % lie in the inner band of the lower
    axes (one error) and 95 % in the outer one (two).

    Parameters
    ----------
    axes : sequence of two matplotlib.axes.Axes
        For the differences and for the z-scores; best one above the other.
    found : Comparison
        Of :func:`clease_nn.thermodynamics.compare`.
    quantity : str
        One of those it compares.
    against : str, optional
        Coordinate on the horizontal axes, such as ``"temperature"``, ``"mu_Au"`` or ``"x_Au"``.
        Default: the last that varies, which leaves the temperature to tell curves apart.

    Raises
    ------
    ValueError
        If there are not two axes, the comparison has no such quantity or coordinate, or it
        determines no difference.
    """
    axes = list(np.ravel(axes))
    if len(axes) != 2:
        raise ValueError(f"a comparison needs two axes, for differences and z, got {len(axes)}")
    if quantity not in found.quantities:
        raise ValueError(f"{quantity!r} is none of {', '.join(found.quantities)}")
    d = found.quantities[quantity]
    value = np.asarray(d.difference.value, dtype=float)
    n = len(value)
    rows = np.repeat(np.arange(n), value.size // max(n, 1))
    value, error, z = (np.ravel(v) for v in (value, d.difference.error, d.z))
    if not np.isfinite(value).any():
        raise ValueError(f"no difference of {quantity} is determined; there is nothing to draw")
    varying = [k for k, c in d.coordinates.items() if np.ptp(c) > 0]
    against = against or next(
        (k for k in reversed(varying) if k != "temperature"), next(iter(d.coordinates))
    )
    if against not in d.coordinates:
        raise ValueError(f"{against!r} is none of the coordinates {', '.join(d.coordinates)}")
    x = np.asarray(d.coordinates[against], dtype=float)[rows]
    top, bottom = axes
    top.axhline(0.0, color="0.6", lw=0.8, zorder=0)
    for width, shade in ((2, "0.94"), (1, "0.87")):
        bottom.axhspan(-width, width, color=shade, lw=0, zorder=0)
    groups = _groups(d.coordinates, against, rows)
    # side by side, so that bars of several temperatures do not hide one another
    apart = 0.12 * np.diff(np.unique(x)).min(initial=np.ptp(x)) if len(groups) > 1 else 0.0
    for k, (name, mine, colour, marker) in enumerate(groups):
        style = {"color": colour, "ls": "", "marker": marker, "ms": 4}
        seen = mine & np.isfinite(value)
        bars = np.nan_to_num(error[seen])
        at = x[seen] + apart * (k - (len(groups) - 1) / 2)
        top.errorbar(at, value[seen], bars, capsize=2, lw=1, label=name, **style)
        bottom.plot(at, z[seen], **style)
    if not np.isfinite(z[np.isfinite(value)]).any():
        bottom.text(0.5, 0.8, "neither result has errors", transform=bottom.transAxes, ha="center")
    words = f"rms z {d.rms_z:.2f} of {d.n}: {d.verdict}" if d.n else d.verdict
    bottom.text(0.01, 0.97, words, transform=bottom.transAxes, va="top", fontsize="small")
    size = np.nanmax(np.abs(z), initial=3.0) if np.isfinite(z).any() else 3.0
    unit = _UNITS.get(quantity, "")
    label = f"difference of\n{quantity.replace('_', ' ')}"
    top.set_ylabel(f"{label} ({unit})" if unit else label)
    bottom.set(xlabel=_axis(against), ylabel="z", ylim=(-1.15 * size, 1.45 * size))
    legend(top)
    return [clean(ax) for ax in axes]


def _groups(coordinates, against: str, rows):
    """Name, rows, colour and marker of every curve: one a temperature where there are few."""
    t = np.asarray(coordinates.get("temperature", ()), dtype=float)
    found = np.unique(t)
    if against == "temperature" or not 1 < len(found) <= _MOST:
        return [(None, np.ones(len(rows), dtype=bool), BLUE, "o")]
    named = styles([f"{v:g} K" for v in found])
    return [
        (name, t[rows] == v, colour, marker)
        for v, (name, colour, marker) in zip(found, named, strict=True)
    ]


def _axis(name: str) -> str:
    if name == "temperature":
        return "temperature (K)"
    if name.startswith("mu_"):
        return mathematical(f"{name} (eV)")
    return f"site fraction of {name[2:]}" if name.startswith("x_") else name
