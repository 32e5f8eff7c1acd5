"""Grids and lines of conditions, in the names that hosts have for chemical potentials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from numbers import Real

import numpy as np

from clease_nn.lattice import Lattice
from clease_nn.phases import ChemicalPotentialLine

__all__ = ["potential_grid", "potential_line", "temperature_grid"]


def temperature_grid(temps) -> list[float]:
    """Temperatures as a list of floats.

    Parameters
    ----------
    temps : float or array_like, shape (n,)
        K.

    Raises
    ------
    TypeError
        If they are no numbers.
    ValueError
        If there is none, or one is not positive and finite.

    Examples
    --------
    >>> temperature_grid(range(300, 500, 100))
    [300.0, 400.0]
    """
    t = _numbers("temps", temps, "K, such as [300, 600, 900]")
    bad = t[~(t > 0)]
    if len(bad):
        raise ValueError(f"temperatures must be positive, got {bad[0]:g} K")
    return t.tolist()


def potential_grid(chem_pots: Mapping | Sequence[Mapping]) -> list[dict]:
    """Chemical potentials of many conditions, one dict each, from either form.

    Parameters
    ----------
    chem_pots : mapping of name to array_like, or sequence of mappings
        All combinations of the arrays, the last name varying fastest; or a list that is taken as
        it is. eV.

    Raises
    ------
    TypeError
        If it is neither, or a value is no number.
    ValueError
        If there is nothing in it, or a value is not finite.

    Examples
    --------
    >>> potential_grid({"Au": [0.0, 0.1], "Pd": 0.2})
    [{'Au': 0.0, 'Pd': 0.2}, {'Au': 0.1, 'Pd': 0.2}]
    >>> potential_grid([{"c1_0": -0.02}, {"c1_0": 0.02}])
    [{'c1_0': -0.02}, {'c1_0': 0.02}]
    """
    form = "such as {'c1_0': [-0.02, 0, 0.02]} or [{'c1_0': -0.02}, {'c1_0': 0.02}]"
    if isinstance(chem_pots, Mapping):
        if not chem_pots:
            raise ValueError(f"chem_pots is empty; give chemical potentials in eV, {form}")
        columns = [_numbers(f"chem_pots[{k!r}]", v, "eV") for k, v in chem_pots.items()]
        return [
            dict(zip(chem_pots, (float(v) for v in row), strict=True)) for row in product(*columns)
        ]
    if isinstance(chem_pots, (str, Real)) or not isinstance(chem_pots, Sequence):
        raise TypeError(f"chem_pots must be a mapping or a list of mappings, {form}")
    if not len(chem_pots):
        raise ValueError(f"chem_pots is empty; give chemical potentials in eV, {form}")
    for given in chem_pots:
        if not isinstance(given, Mapping):
            raise TypeError(f"each of chem_pots must be a mapping, {form}; got {given!r}")
    return [dict(given) for given in chem_pots]


def potential_line(
    lattice: Lattice, name: str, axis: np.ndarray, origin: np.ndarray, against: str | None = None
) -> ChemicalPotentialLine:
    """The line along which the chemical potential called ``name`` varies.

    Parameters
    ----------
    lattice : Lattice
    name : str
        An element, or another name that the host has for a chemical potential.
    axis : ndarray, shape (species,)
        Change of all chemical potentials for 1 eV of ``name``.
    origin : ndarray, shape (species,)
        The others; eV.
    against : str, optional
        Measure from the chemical potential of this element: t is the difference.

    Raises
    ------
    ValueError
        If ``against`` is unknown or is ``name``, or ``name`` is not an element but ``against`` is
        given.
    """
    species = lattice.species
    if against is None:
        # of the element that gains most; in a binary there is no other choice
        gains = name if name in species else species[int(np.argmax(axis))]
        label = f"mu_{name} (eV)" if name in species else f"{name} (eV)"
        return ChemicalPotentialLine(gains, axis, origin, label)
    if name not in species:
        raise ValueError(f"{name!r} is no element of {list(species)}: against= has no meaning")
    start = np.array(origin, dtype=float)
    if against in species:
        start[species.index(name)] = start[species.index(against)]
    return ChemicalPotentialLine.exchange(lattice, name, against, start)


def _numbers(name: str, values, unit: str) -> np.ndarray:
    """(n,) finite floats."""
    try:
        out = np.atleast_1d(np.asarray(values, dtype=float))
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be numbers in {unit}, got {values!r}") from error
    if out.ndim != 1:
        raise ValueError(f"{name} must be a number or one-dimensional, got shape {out.shape}")
    if not len(out):
        raise ValueError(f"{name} is empty; give numbers in {unit}")
    if not np.isfinite(out).all():
        raise ValueError(f"{name} must be finite, got {out[~np.isfinite(out)][0]}")
    return out
