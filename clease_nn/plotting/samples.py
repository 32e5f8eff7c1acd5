"""What samples look like: histograms, symmetry of their likelihood, ground states among them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from clease_nn.plotting.style import (
    BLUE,
    DASHES,
    VERMILION,
    clean,
    determined,
    from_zero,
    legend,
    mathematical,
    shaped,
    styles,
    values_of,
)
from clease_nn.statistics import Estimate

__all__ = ["ground_states", "histogram", "symmetry"]


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
        If the shapes do not match, or all values are NaN.
    """
    e = np.asarray(edges, dtype=float)
    p = shaped(probability, (len(labels), len(e) - 1), "probability")
    determined(p, "probability")
    centres = (e[1:] + e[:-1]) / 2
    for k, (name, colour, _) in enumerate(styles(labels)):
        dashes = DASHES[k % len(DASHES)]
        ax.stairs(p.value[k], e, color=colour, lw=1.4, ls=dashes, label=name or None)
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
    legend(ax)
    ax.set(xlabel=xlabel, ylabel="probability of a bin")
    from_zero(ax)
    return clean(ax)


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
    x, y = values_of(log_prob), values_of(images)
    if x.ndim != 1 or y.ndim != 2 or len(x) != len(y):
        raise ValueError(f"images must have shape ({len(x)}, n), got {y.shape}")
    low, high = min(x.min(), y.min()), max(x.max(), y.max())
    margin = 0.04 * (high - low) or 0.5
    ends = [low - margin, high + margin]
    ax.plot(ends, ends, color="0.6", lw=0.8, zorder=0)
    x = np.repeat(x, y.shape[1])
    ax.plot(x, y.ravel(), color=BLUE, ls="", marker="o", ms=3, alpha=0.35, mew=0)
    if text:
        ax.text(0.04, 0.96, text, transform=ax.transAxes, va="top", fontsize="small")
    ax.set(
        xlim=ends,
        ylim=ends,
        aspect="equal",
        xlabel=r"$\ln q$ of a configuration",
        ylabel=r"$\ln q$ of its images",
    )
    return clean(ax)


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
    ax.plot(m, s, color=BLUE, marker="o", ms=4, lw=1.2, label="model")
    ax.plot(m, r, color=VERMILION, marker="s", ms=4, lw=1.2, ls="--", label="random search")
    legend(ax, loc="lower center", ncols=2, bbox_to_anchor=(0.5, 1))
    ax.set(
        xlabel=mathematical(mu_label),
        ylabel="share of samples in the ground state",
        ylim=(-0.03, 1.06),
    )
    ax.spines["top"].set_visible(False)
    return ax
