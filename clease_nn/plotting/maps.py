"""Maps over temperature and chemical potential."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from clease_nn.plotting.style import edges, values_of

__all__ = ["condition_map"]


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
        NaN is drawn hatched.
    label : str
        Quantity and unit, beside the colour bar.
    mu_label : str
        Label of the horizontal axis, with unit.
    limits : (low, high), optional
        Ends of the colours. Default: those of the values.

    Raises
    ------
    ValueError
        If the shapes do not match.
    """
    t, m = (np.asarray(x, dtype=float) for x in (temperatures, mus))
    v = values_of(values)
    if v.shape != (len(t), len(m)):
        raise ValueError(
            f"values must have shape {(len(t), len(m))} for {len(t)} temperatures and {len(m)} "
            f"chemical potentials, got {v.shape}"
        )
    low, high = limits if limits is not None else (np.nanmin(v), np.nanmax(v))
    ax.patch.set(hatch="////", edgecolor="0.6")
    mesh = ax.pcolormesh(edges(m), edges(t), v, cmap="cividis", vmin=low, vmax=high)
    mesh.set_rasterized(True)
    ax.figure.colorbar(mesh, ax=ax, label=label)
    ax.set(xlabel=mu_label, ylabel="temperature (K)")
    return ax
