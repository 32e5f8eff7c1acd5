"""Checks of what a script hands to a CLEASE sampler: the value, the limit and the remedy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral, Real

__all__ = ["check_chemical_potential", "check_count", "check_temperature", "potential_value"]


def check_temperature(value) -> None:
    """Raise unless the value is a temperature in K.

    Raises
    ------
    TypeError
        If it is not a number.
    ValueError
        If it is not positive and finite.
    """
    if not isinstance(value, Real):
        raise TypeError(f"the temperature must be a number in K, such as 600, got {value!r}")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"the temperature must be positive and finite, got {value} K")


def check_count(name: str, value, least: int) -> None:
    """Raise unless the value is a whole number, ``least`` or more.

    Raises
    ------
    TypeError
        If it is not an integer.
    ValueError
        If it is too small.
    """
    kind = "a positive integer" if least else "an integer, 0 or more"
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{name} must be {kind}, got {value!r}; int() makes one of a number")
    if value < least:
        raise ValueError(f"{name} must be {kind}, got {value}")


def check_chemical_potential(
    chem_pot, name: str = "chem_pot", form: str = "{'c1_0': 0.03} or {'Au': 0.06}"
) -> None:
    """Raise TypeError unless chemical potentials are a mapping with names for keys."""
    if not isinstance(chem_pot, Mapping) or not all(isinstance(k, str) for k in chem_pot):
        raise TypeError(
            f"{name} must be a mapping from singlets or elements to eV, such as {form}, got "
            f"{chem_pot!r}"
        )


def potential_value(name: str, value) -> float:
    """A chemical potential in eV as a float.

    Raises
    ------
    TypeError
        If it is no number.
    ValueError
        If it is not finite.
    """
    try:
        value = float(value)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"the chemical potential of {name} must be a number in eV, got {value!r}"
        ) from error
    if not math.isfinite(value):
        raise ValueError(f"the chemical potential of {name} is {value} eV; it must be finite")
    return value
