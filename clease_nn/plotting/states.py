"""Densities of states: how many configurations there are at each energy."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes

from clease_nn.plotting.style import clean, kinds, legend
from clease_nn.statistics import Estimate
from clease_nn.thermodynamics import DensityOfStates

__all__ = ["density_of_states"]


def density_of_states(
    ax: Axes,
    found: DensityOfStates | Mapping[str, DensityOfStates],
    *,
    bins: int = 40,
) -> Axes:
    """Logarithm of the number of configurations in bins of energy, with error bars.

    All are binned alike, so that routes can be held against each other; the line is broken where
    bins are empty. One that is known up to a constant is shifted: its largest bin is put on that
    of the first.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
    found : DensityOfStates, or mapping of names to such
        Of supercells with the same number of sites.
    bins : int
        Equal bins between the lowest and the highest energy of all.

    Raises
    ------
    ValueError
        If there is none, numbers of sites differ, or ``bins`` < 1.
    """
    sources = {"": found} if isinstance(found, DensityOfStates) else dict(found)
    if not sources:
        raise ValueError("there is no density of states to draw")
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    sites = {name: dos.lattice.n_sites for name, dos in sources.items()}
    if len(set(sites.values())) > 1:
        raise ValueError(f"supercells differ in size: {sites}; draw them in axes of their own")
    [n] = set(sites.values())
    every = np.concatenate([d.energy[np.isfinite(d.log_g)] for d in sources.values()]) / n
    width = max(np.ptp(every), 1e-6)
    edges = every.min() - 1e-6 * width + width * (1 + 2e-6) * np.linspace(0, 1, int(bins) + 1)
    centres = 1e3 * (edges[1:] + edges[:-1]) / 2
    top = None
    for k, (name, colour, marker) in enumerate(kinds(tuple(sources))):
        e = _binned(sources[name], edges * n)
        peak = np.nanmax(e.value)
        top = peak if top is None else top
        if k and not sources[name].absolute:
            e = e + (top - peak)
        style = {"color": colour, "marker": marker, "ms": 3.5, "lw": 1.2, "capsize": 2}
        style |= {"ls": "" if k else "-", "label": name or None}
        ax.errorbar(centres, e.value, np.where(np.isfinite(e.value), e.error, np.nan), **style)
    legend(ax)
    first = next(iter(sources.values()))
    constant = "" if first.absolute else " + constant"
    bin_width = f"{1e3 * width / int(bins):.2g} meV"
    ax.set(
        xlabel="energy (meV per site)",
        ylabel=rf"$\ln$ of configurations in {bin_width} per site{constant}",
    )
    return clean(ax)


def _binned(dos: DensityOfStates, edges: np.ndarray) -> Estimate:
    """ln of the weight in every bin; NaN where no state is."""
    n = len(edges) - 1
    where = np.clip(np.searchsorted(edges, dos.energy, side="right") - 1, 0, n - 1)
    highest = np.full(n, -np.inf)
    np.maximum.at(highest, where, dos.log_g)
    weight = np.exp(dos.log_g - np.where(np.isfinite(highest), highest, 0.0)[where])
    total = np.bincount(where, weight, n)
    with np.errstate(divide="ignore"):
        value = np.where(total > 0, highest + np.log(total), np.nan)
    if dos.replicas is None:
        return Estimate(value, np.zeros(n))
    moved = np.stack([np.bincount(where, weight * r, n) for r in np.asarray(dos.replicas, float).T])
    # linear in the weights: a bin that a resample lost has a large error, not an infinite one
    error = np.std(moved / np.where(total > 0, total, 1.0), axis=0, ddof=1)
    return Estimate(value, error)
