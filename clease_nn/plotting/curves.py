"""Curves against chemical potential, temperature and distance, with error bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from ase.units import kB
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from clease_nn.plotting.style import (
    DASHES,
    clean,
    determined,
    from_zero,
    legend,
    mathematical,
    shaped,
    styles,
)
from clease_nn.statistics import Estimate

__all__ = ["correlation", "heat_capacity", "isotherms", "short_range_order"]

_SWEEPS = "^vsD"


def isotherms(
    ax: Axes,
    temperatures,
    mus,
    composition: Estimate,
    *,
    species: str,
    mu_label: str = "chemical potential (eV)",
    label: str = "neural sampler",
    reference: Estimate | Mapping[str, Estimate] | None = None,
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
        Share of the active sites that carry ``species``; NaN is left out.
    species : str
        For the axis label.
    mu_label : str
        Label of the horizontal axis, with unit.
    label, reference_label : str
        Names in the legend.
    reference : Estimate, shape (n, m), or mapping of such, optional
        The same from another calculation, drawn as open symbols; NaN is left out. Several by name,
        such as ``{"Monte Carlo, rising": up, "Monte Carlo, falling": down}``, have a symbol
        each (up to four: triangles upwards, downwards, then square and diamond).

    Raises
    ------
    ValueError
        If the shapes do not match, all values are NaN, or there are more than four references.
    """
    m = np.asarray(mus, dtype=float)
    shape = (len(temperatures), len(m))
    x = determined(shaped(composition, shape, "composition"), "composition")
    several = reference if isinstance(reference, Mapping) else {}
    if len(several) > len(_SWEEPS):
        raise ValueError(f"at most {len(_SWEEPS)} references can be told apart, got {len(several)}")
    handles = []
    for k, (temperature, colour, marker) in enumerate(styles(temperatures)):
        # without a reference the symbols are free to tell the curves apart, else the dashes do
        own = {"marker": marker, "markersize": 4} if reference is None else {}
        own["ls"] = DASHES[k % len(DASHES)] if several else "-"
        ax.errorbar(m, x.value[k], x.error[k], color=colour, lw=1.5, capsize=2, **own)
        handles.append(Line2D([], [], color=colour, lw=1.5, label=f"{temperature:g} K", **own))
        if isinstance(reference, Estimate):
            _symbols(ax, m, shaped(reference, shape, "reference")[k], colour, marker)
            handles[-1].set(marker=marker, markerfacecolor="white", markersize=6)
        for (name, r), symbol in zip(several.items(), _SWEEPS, strict=False):
            _symbols(ax, m, shaped(r, shape, f"reference {name!r}")[k], colour, symbol)
    named = several or ({} if reference is None else {reference_label: reference})
    if named:
        handles.append(Line2D([], [], color="0.3", lw=1.5, label=label))
    for name, symbol in zip(named, _SWEEPS if several else "o", strict=False):
        style = {"color": "0.3", "ls": "", "marker": symbol, "mfc": "white"}
        handles.append(Line2D([], [], label=name, **style))
    legend(ax, handles)
    ax.set(xlabel=mathematical(mu_label), ylabel=f"site fraction of {species}", ylim=(-0.03, 1.03))
    return clean(ax)


def _symbols(ax: Axes, x, y: Estimate, colour, marker: str) -> None:
    style = {"ls": "", "mfc": "white", "ms": 6, "capsize": 3}
    ax.errorbar(x, y.value, y.error, color=colour, marker=marker, **style)


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
    c = determined(shaped(values, (len(labels), len(t)), "values"), "heat capacity")
    c = c / (n_sites * kB)
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
    legend(ax)
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
    v = determined(shaped(values, (len(labels), len(d)), "values"), ylabel)
    ax.axhline(0.0, color="0.7", lw=0.8, zorder=0)
    for k, (name, colour, marker) in enumerate(styles(labels)):
        style = {"color": colour, "marker": marker, "ms": 4, "lw": 1.2, "capsize": 2}
        ax.errorbar(d, v.value[k], v.error[k], label=name or None, **style)
        if exact is not None:
            reference = np.asarray(exact, dtype=float)[k]
            style = {"color": "black", "ls": "", "marker": "x", "ms": 6, "zorder": 3}
            label = "exact" if k == len(labels) - 1 else None
            ax.plot(d, reference, label=label, **style)
    legend(ax)
    ax.set(xlabel="distance (\u00c5)", ylabel=ylabel)
    return clean(ax)


def short_range_order(
    ax: Axes,
    positions,
    values: Estimate,
    distances,
    *,
    xlabel: str = "temperature (K)",
    ylabel: str = "Warren-Cowley parameter",
    exact=None,
) -> Axes:
    """Short-range order of each shell against temperature, composition or chemical potential.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
    positions : array_like, shape (m,)
        In the unit of ``xlabel``.
    values : Estimate, shape (m, shells)
        Dimensionless, with errors; NaN is left out.
    distances : array_like, shape (shells,)
        Distance of each shell in angstrom, for the legend.
    xlabel, ylabel : str
        Of the axes, with units.
    exact : array_like, shape (m, shells), optional
        Reference values, drawn as thin black lines.

    Raises
    ------
    ValueError
        If the shapes do not match, or all values are NaN.
    """
    x, d = np.asarray(positions, dtype=float), np.asarray(distances, dtype=float)
    v = determined(shaped(values, (len(x), len(d)), "values"), ylabel)
    ax.axhline(0.0, color="0.7", lw=0.8, zorder=0)
    handles = []
    for k, (distance, colour, marker) in enumerate(styles(d)):
        style = {"color": colour, "marker": marker, "ms": 4, "lw": 1.4, "capsize": 2}
        name = f"shell {k + 1}, {distance:.2f} \u00c5"
        handles.append(ax.errorbar(x, v.value[:, k], v.error[:, k], label=name, **style))
        if exact is not None:
            reference = np.asarray(exact, dtype=float)[:, k]
            [line] = ax.plot(x, reference, color="black", lw=0.8, ls="--", zorder=3)
    if exact is not None:
        line.set_label("exact")
        handles.append(line)
    legend(ax, handles)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    return clean(ax)
