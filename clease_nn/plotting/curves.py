"""Curves against chemical potential, temperature and distance, with error bars."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase.units import kB
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from clease_nn.plotting.style import clean, from_zero, shaped, styles
from clease_nn.statistics import Estimate

__all__ = ["correlation", "heat_capacity", "isotherms"]


def isotherms(
    ax: Axes,
    temperatures,
    mus,
    composition: Estimate,
    *,
    species: str,
    mu_label: str = "chemical potential (eV)",
    label: str = "neural sampler",
    reference: Estimate | None = None,
    reference_label: str = "Monte Carlo",
) -> Axes:
    """Composition against chemical potential at several temperatures, with error bars.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
    temperatures : array_like, shape (n,)
        K; a curve each.
    mus : array_like, shape (m,)
        eV.
    composition : Estimate, shape (n, m)
        Share of the active sites that carry ``species``.
    species : str
        For the axis label.
    mu_label : str
        Label of the horizontal axis, with unit.
    label, reference_label : str
        Names in the legend.
    reference : Estimate, shape (n, m), optional
        The same from another calculation, drawn as open symbols; NaN is left out.

    Raises
    ------
    ValueError
        If the shapes do not match.
    """
    m = np.asarray(mus, dtype=float)
    x = shaped(composition, (len(temperatures), len(m)), "composition")
    handles = []
    for k, (temperature, colour, marker) in enumerate(styles(temperatures)):
        # without a reference the symbols are free to tell the curves apart
        own = {"marker": marker, "markersize": 4} if reference is None else {}
        ax.errorbar(m, x.value[k], x.error[k], color=colour, lw=1.5, capsize=2, **own)
        handles.append(Line2D([], [], color=colour, lw=1.5, label=f"{temperature:g} K", **own))
        if reference is None:
            continue
        r = shaped(reference, x.value.shape, "reference")
        ax.errorbar(
            m,
            r.value[k],
            r.error[k],
            color=colour,
            ls="",
            marker=marker,
            mfc="white",
            ms=6,
            capsize=3,
        )
        handles[-1].set(marker=marker, markerfacecolor="white", markersize=6)
    if reference is not None:
        handles.append(Line2D([], [], color="0.3", lw=1.5, label=label))
        symbols = {"color": "0.3", "ls": "", "marker": "o", "mfc": "white"}
        handles.append(Line2D([], [], label=reference_label, **symbols))
    ax.legend(handles=handles, frameon=False, fontsize="small")
    ax.set(xlabel=mu_label, ylabel=f"site fraction of {species}", ylim=(-0.03, 1.03))
    return clean(ax)


def heat_capacity(
    ax: Axes,
    temperatures,
    values: Estimate,
    *,
    labels: Sequence[str] = ("",),
    n_sites: int = 1,
    exact=None,
) -> Axes:
    """Heat capacity at constant chemical potential against temperature, with error bars.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
    temperatures : array_like, shape (m,)
        K.
    values : Estimate, shape (n, m)
        eV/K per supercell; a curve a row.
    labels : sequence of str, length n
        Name of each curve; empty for none.
    n_sites : int
        Active sites of the supercell; the axis shows kB per site. 1 if ``values`` are per site.
    exact : array_like, shape (n, m), optional
        Reference values in eV/K per supercell, drawn as thin dashed lines.

    Raises
    ------
    ValueError
        If the shapes do not match.
    """
    t = np.asarray(temperatures, dtype=float)
    c = shaped(values, (len(labels), len(t)), "values") / (n_sites * kB)
    for k, (name, colour, marker) in enumerate(styles(labels)):
        ax.errorbar(
            t,
            c.value[k],
            c.error[k],
            color=colour,
            marker=marker,
            ms=4,
            lw=1.5,
            capsize=2,
            label=name or None,
        )
        if exact is not None:
            reference = np.asarray(exact, dtype=float)[k] / (n_sites * kB)
            ax.plot(t, reference, color="black", lw=0.8, ls="--", label="" if k else "exact")
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, fontsize="small")
    ax.set(xlabel="temperature (K)", ylabel=r"heat capacity ($k_\mathrm{B}$ per site)")
    # the derivative of a bad model may be negative: it must be seen
    if np.nanmin(c.value) >= 0:
        from_zero(ax)
    return clean(ax)


def correlation(
    ax: Axes,
    distances,
    values: Estimate,
    *,
    labels: Sequence[str] = ("",),
    ylabel: str = "connected correlation",
    exact=None,
) -> Axes:
    """Connected correlation against distance, with error bars.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
    distances : array_like, shape (m,)
        angstrom.
    values : Estimate, shape (n, m)
        Dimensionless; a curve a row.
    labels : sequence of str, length n
        Name of each curve; empty for none.
    ylabel : str
        Quantity, such as ``"spin correlation"``.
    exact : array_like, shape (n, m), optional
        Reference values, drawn as black crosses.

    Raises
    ------
    ValueError
        If the shapes do not match.
    """
    d = np.asarray(distances, dtype=float)
    v = shaped(values, (len(labels), len(d)), "values")
    ax.axhline(0.0, color="0.7", lw=0.8, zorder=0)
    for k, (name, colour, marker) in enumerate(styles(labels)):
        style = {"color": colour, "marker": marker, "ms": 4, "lw": 1.2, "capsize": 2}
        ax.errorbar(d, v.value[k], v.error[k], label=name or None, **style)
        if exact is not None:
            reference = np.asarray(exact, dtype=float)[k]
            style = {"color": "black", "ls": "", "marker": "x", "ms": 6, "zorder": 3}
            label = "exact" if k == len(labels) - 1 else None
            ax.plot(d, reference, label=label, **style)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, fontsize="small")
    ax.set(xlabel="distance (\u00c5)", ylabel=ylabel)
    return clean(ax)
