"""Figures: axes in, axes out; colours that survive colour blindness and grey printing.

Every function draws into axes of the caller and returns them; figures are made, sized and saved
by the caller. Curves differ in marker as well as in colour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from ase.units import kB
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from clease_nn.statistics import Estimate

__all__ = [
    "condition_map",
    "correlation",
    "figure",
    "ground_states",
    "heat_capacity",
    "histogram",
    "isotherms",
    "symmetry",
    "training_curve",
]

_MARKERS = "osD^vP<>"
_BLUE, _VERMILION = "#0072B2", "#D55E00"  # Okabe and Ito


def figure(width: float = 6.4, height: float = 4.4) -> tuple[Figure, Axes]:
    """A figure with one pair of axes, sized in inches for print, without a screen.

    The figure belongs to no window system: save it with ``figure.savefig``.
    """
    fig = Figure(figsize=(width, height), dpi=150, layout="constrained")
    return fig, fig.subplots()


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
    v = _values(values)
    if v.shape != (len(t), len(m)):
        raise ValueError(
            f"values must have shape {(len(t), len(m))} for {len(t)} temperatures and {len(m)} "
            f"chemical potentials, got {v.shape}"
        )
    low, high = limits if limits is not None else (np.nanmin(v), np.nanmax(v))
    ax.patch.set(hatch="////", edgecolor="0.6")
    mesh = ax.pcolormesh(_edges(m), _edges(t), v, cmap="cividis", vmin=low, vmax=high)
    mesh.set_rasterized(True)
    ax.figure.colorbar(mesh, ax=ax, label=label)
    ax.set(xlabel=mu_label, ylabel="temperature (K)")
    return ax


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
    x = _shaped(composition, (len(temperatures), len(m)), "composition")
    handles = []
    for k, (temperature, colour, marker) in enumerate(_styles(temperatures)):
        # without a reference the symbols are free to tell the curves apart
        own = {"marker": marker, "markersize": 4} if reference is None else {}
        ax.errorbar(m, x.value[k], x.error[k], color=colour, lw=1.5, capsize=2, **own)
        handles.append(Line2D([], [], color=colour, lw=1.5, label=f"{temperature:g} K", **own))
        if reference is None:
            continue
        r = _shaped(reference, x.value.shape, "reference")
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
    return _clean(ax)


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
    c = _shaped(values, (len(labels), len(t)), "values") / (n_sites * kB)
    for k, (name, colour, marker) in enumerate(_styles(labels)):
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
        _from_zero(ax)
    return _clean(ax)


def training_curve(ax: Axes, history: Sequence[Mapping]) -> Axes:
    """Loss and, on a second axis, normalised effective sample size against training time.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
    history : sequence of mappings
        Keys ``seconds`` and ``loss`` (nats per configuration), and ``ness`` where it was
        measured (missing or None elsewhere).

    Raises
    ------
    ValueError
        If the history is empty.
    """
    if not history:
        raise ValueError("the training history is empty; train for at least one step")
    seconds = _column(history, "seconds")
    loss = _column(history, "loss")
    ax.plot(seconds, loss, color=_BLUE, lw=1.2)
    ax.set_xlabel("training time (s)")
    ax.set_ylabel("loss (nats per configuration)", color=_BLUE)
    # the first steps are far off: let the rest be seen
    seen = loss[np.isfinite(loss)]
    if len(seen) > 10:
        low, high = seen.min(), np.quantile(seen[len(seen) // 20 :], 0.99)
        margin = 0.08 * (high - low) or 1.0
        ax.set_ylim(low - margin, high + margin)
    ness = _column(history, "ness")
    measured = np.isfinite(ness)
    if measured.any():
        right = ax.twinx()
        right.plot(
            seconds[measured], ness[measured], color=_VERMILION, marker="s", ms=4, lw=1.2, ls="--"
        )
        right.set_ylabel("NESS", color=_VERMILION)
        right.set_ylim(0, 1.02)
        right.spines["top"].set_visible(False)
    ax.spines["top"].set_visible(False)
    return ax


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
    v = _shaped(values, (len(labels), len(d)), "values")
    ax.axhline(0.0, color="0.7", lw=0.8, zorder=0)
    for k, (name, colour, marker) in enumerate(_styles(labels)):
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
    return _clean(ax)


def histogram(
    ax: Axes,
    edges,
    probability: Estimate,
    *,
    xlabel: str,
    labels: Sequence[str] = ("",),
    exact=None,
) -> Axes:
    """Histograms with an error bar on every bin.

    For a logarithmic axis call ``ax.set_yscale("log")`` before.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
    edges : array_like, shape (bins + 1,)
    probability : Estimate, shape (n, bins)
        Share of each bin; a histogram a row.
    xlabel : str
        Quantity and unit.
    labels : sequence of str, length n
        Name of each histogram; empty for none.
    exact : array_like, shape (n, bins), optional
        Reference values, drawn as black dots.

    Raises
    ------
    ValueError
        If the shapes do not match.
    """
    e = np.asarray(edges, dtype=float)
    p = _shaped(probability, (len(labels), len(e) - 1), "probability")
    centres = (e[1:] + e[:-1]) / 2
    for k, (name, colour, _) in enumerate(_styles(labels)):
        ax.stairs(p.value[k], e, color=colour, lw=1.4, label=name or None)
        ax.stairs(p.value[k], e, color=colour, fill=True, alpha=0.12, lw=0)
        seen = p.value[k] > 0
        bars = {"color": colour, "ls": "", "capsize": 1.5, "lw": 1.0}
        ax.errorbar(centres[seen], p.value[k][seen], p.error[k][seen], **bars)
        if exact is not None:
            reference = np.asarray(exact, dtype=float)[k]
            dots = {"color": "black", "ls": "", "marker": ".", "ms": 4, "zorder": 3}
            shown = reference > 0
            label = "exact" if k == len(labels) - 1 else None
            ax.plot(centres[shown], reference[shown], label=label, **dots)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, fontsize="small")
    ax.set(xlabel=xlabel, ylabel="probability of a bin")
    _from_zero(ax)
    return _clean(ax)


def symmetry(ax: Axes, log_prob, images, *, text: str = "") -> Axes:
    """ln q of images under symmetry against ln q of the configurations.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
    log_prob : array_like, shape (rows,)
        nats, of the configurations.
    images : array_like, shape (rows, n)
        nats, of their images.
    text : str
        Written in a corner, such as R^2.

    Raises
    ------
    ValueError
        If the shapes do not match.
    """
    x, y = _values(log_prob), _values(images)
    if x.ndim != 1 or y.ndim != 2 or len(x) != len(y):
        raise ValueError(f"images must have shape ({len(x)}, n), got {y.shape}")
    low, high = min(x.min(), y.min()), max(x.max(), y.max())
    margin = 0.04 * (high - low) or 0.5
    ends = [low - margin, high + margin]
    ax.plot(ends, ends, color="0.6", lw=0.8, zorder=0)
    x = np.repeat(x, y.shape[1])
    ax.plot(x, y.ravel(), color=_BLUE, ls="", marker="o", ms=3, alpha=0.35, mew=0)
    if text:
        ax.text(0.04, 0.96, text, transform=ax.transAxes, va="top", fontsize="small")
    ax.set(
        xlim=ends,
        ylim=ends,
        aspect="equal",
        xlabel=r"$\ln q$ of a configuration",
        ylabel=r"$\ln q$ of its images",
    )
    return _clean(ax)


def ground_states(
    ax: Axes,
    mus,
    shares,
    random_shares,
    composition,
    *,
    species: str,
    mu_label: str = "chemical potential (eV)",
) -> Axes:
    """Share of samples that hit the ground state, and its composition, against mu.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
        A second vertical axis is added for the composition.
    mus : array_like, shape (m,)
        eV, ascending.
    shares, random_shares : array_like, shape (m,)
        Of the draws, and of a random search; the latter is nearly always zero.
    composition : array_like, shape (m,)
        Share of the active sites that carry ``species`` in the ground state.
    species : str
    mu_label : str
        Label of the horizontal axis, with unit.

    Raises
    ------
    ValueError
        If the shapes do not match.
    """
    m, s, r, x = (np.asarray(v, dtype=float) for v in (mus, shares, random_shares, composition))
    if not m.shape == s.shape == r.shape == x.shape:
        raise ValueError(
            f"all must have one length, got {m.shape}, {s.shape}, {r.shape} and {x.shape}"
        )
    right = ax.twinx()
    right.step(m, x, where="mid", color="0.65", lw=1.5)
    right.set_ylabel(f"site fraction of {species} in the ground state", color="0.4")
    right.set_ylim(-0.03, 1.06)
    right.spines["top"].set_visible(False)
    right.tick_params(colors="0.4")
    ax.set_zorder(right.get_zorder() + 1)
    ax.patch.set_visible(False)
    ax.plot(m, s, color=_BLUE, marker="o", ms=4, lw=1.2, label="model")
    ax.plot(m, r, color=_VERMILION, marker="s", ms=4, lw=1.2, ls="--", label="random search")
    ax.legend(frameon=False, fontsize="small", loc="lower center", ncols=2, bbox_to_anchor=(0.5, 1))
    ax.set(xlabel=mu_label, ylabel="share of samples in the ground state", ylim=(-0.03, 1.06))
    ax.spines["top"].set_visible(False)
    return ax


# ------------------------------------------------------------------ helpers
def _styles(names):
    """Names with dark to light colours of one map and changing markers."""
    shades = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.78, max(len(names), 2)))
    return [(name, shades[k], _MARKERS[k % len(_MARKERS)]) for k, name in enumerate(names)]


def _values(x) -> np.ndarray:
    x = x.value if isinstance(x, Estimate) else x
    return np.asarray(x.cpu() if hasattr(x, "cpu") else x, dtype=float)


def _shaped(estimate: Estimate, shape: tuple[int, int], name: str) -> Estimate:
    value, error = np.asarray(estimate.value), np.asarray(estimate.error)
    if value.shape != shape or error.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {value.shape} and {error.shape}")
    return Estimate(value, error)


def _edges(centres: np.ndarray) -> np.ndarray:
    """Cell borders halfway between centres."""
    if len(centres) == 1:
        half = 0.05 * abs(centres[0]) or 0.5
        return np.array([centres[0] - half, centres[0] + half])
    if not (np.diff(centres) > 0).all():
        raise ValueError("temperatures and chemical potentials of a map must ascend")
    inner = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - inner[0]], inner, [2 * centres[-1] - inner[-1]]])


def _column(history: Sequence[Mapping], key: str) -> np.ndarray:
    return np.array([np.nan if row.get(key) is None else row[key] for row in history], dtype=float)


def _from_zero(ax: Axes) -> None:
    """Let a linear axis begin at zero; a logarithmic one has none."""
    if ax.get_yscale() == "linear":
        ax.set_ylim(bottom=0)


def _clean(ax: Axes) -> Axes:
    ax.spines[["top", "right"]].set_visible(False)
    return ax
