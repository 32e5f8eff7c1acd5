"""Free energy against composition, with common tangents."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from clease_nn.errors import NotDeterminedError
from clease_nn.phases import Boundary
from clease_nn.plotting.style import WIDE, above, clean, legend, light, styles
from clease_nn.thermodynamics import CanonicalAverages

__all__ = ["free_energy"]


def free_energy(
    ax: Axes,
    canonical: CanonicalAverages,
    temperatures=None,
    *,
    species: str,
    tangents: Boundary | None = None,
    pure_energies: Mapping[str, float] | None = None,
) -> Axes:
    """Free energy of mixing per site against composition at several temperatures.

    Symbols are the compositions that the supercell has, bands two standard errors; where a
    composition is not determined the curve is broken.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
    canonical : CanonicalAverages
        Whose compositions differ in the share of one species against one other.
    temperatures : array_like, optional
        K, those of ``canonical`` to draw. Default: all.
    species : str
        Whose share of the active sites is the horizontal axis.
    tangents : Boundary, optional
        Of :func:`clease_nn.phases.common_tangent` for the same species: black lines between the
        compositions it touches at the temperatures that are drawn.
    pure_energies : mapping of str to float, optional
        eV per site, as :meth:`~clease_nn.thermodynamics.CanonicalAverages.free_energy_of_mixing`
        takes them.

    Raises
    ------
    ValueError
        If a temperature or the species is none of the data's, several compositions have one share
        of it, or a tangent touches where nothing is determined.
    NotDeterminedError
        If a pure end is not determined, or nothing is at the temperatures.
    """
    if species not in canonical.species:
        raise ValueError(f"species {species!r} is none of {canonical.species}")
    known = np.asarray(canonical.temperatures, dtype=float)
    chosen = known if temperatures is None else np.atleast_1d(np.asarray(temperatures, float))
    rows = [_row(known, t) for t in chosen]
    touched = [] if tangents is None else tangents.composition.value
    at_t = np.array([] if tangents is None else tangents.temperature.value)
    x = canonical.composition[:, canonical.species.index(species)]
    if len(np.unique(x.round(9))) < len(x):
        raise ValueError(
            f"several compositions have one share of {species}; a curve needs those along one line"
        )
    order = np.argsort(x)
    f = canonical.free_energy_of_mixing(pure_energies) * (1e3 / canonical.n_sites)
    x, value, error = x[order], f.value[rows][:, order], f.error[rows][:, order]
    if not np.isfinite(value).any():
        reasons = "; ".join(canonical.reasons[:3]) or "too few samples"
        raise NotDeterminedError(f"no free energy is determined at {chosen.tolist()} K: {reasons}")
    handles = []
    ax.axhline(0.0, color="0.75", lw=0.8, zorder=0)
    for k, (t, colour, marker) in enumerate(styles(chosen)):
        seen = np.isfinite(value[k])
        at, low = x[seen], value[k][seen]
        # nan breaks curve and band where compositions are not determined
        width = WIDE * np.where(seen, np.nan_to_num(error[k]), np.nan)
        if np.nansum(width) > 0:
            band = value[k] - width, value[k] + width
            ax.fill_between(x, *band, color=light(colour[:3]), lw=0, zorder=1)
        name = f"{t:g} K"
        handles += ax.plot(x, value[k], color=colour, marker=marker, ms=3.5, lw=1.4, label=name)
        for ends in (touched[i] for i in np.flatnonzero(np.abs(at_t - t) < 1e-6)):
            if not (len(at) and at[0] - 1e-9 <= ends.min() and ends.max() <= at[-1] + 1e-9):
                raise ValueError(
                    f"a tangent at {t:g} K touches x = {ends.tolist()}, where nothing is determined"
                )
            touch = np.interp(ends, at, low)
            ax.plot(ends, touch, color="black", lw=1.1, marker="|", ms=9, zorder=4)
    if len(at_t):
        style = {"color": "black", "lw": 1.1, "marker": "|", "ms": 9}
        handles.append(Line2D([], [], label="common tangent", **style))
    legend(ax, handles, **above(ax))
    ax.set(xlabel=f"site fraction of {species}", ylabel="free energy of mixing (meV per site)")
    return clean(ax)


def _row(known: np.ndarray, temperature) -> int:
    """Where a temperature stands."""
    k = int(np.argmin(np.abs(known - float(temperature))))
    if abs(known[k] - float(temperature)) > 1e-6:
        raise ValueError(f"{temperature:g} K is none of the temperatures {known.tolist()} K")
    return k
