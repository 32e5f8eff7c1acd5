"""Chemical potentials of mchammer: one an element, of which only differences count.

The weight of a configuration is ``exp[-(E - sum_i mu_i N_i)/kT]``. On a sublattice with a fixed
number of sites a common shift of the chemical potentials of its species changes nothing but a
constant. Models are therefore trained and asked in one gauge: the first species (alphabetically)
of every sublattice has chemical potential zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral, Real

import numpy as np
from ase.data import chemical_symbols

from clease_nn.lattice import Lattice

__all__ = ["Gauge"]


class Gauge:
    """The chemical potentials of a lattice whose sublattices share no species.

    Parameters
    ----------
    lattice : Lattice
    others : iterable of str
        Species of inactive sublattices: known, but without any meaning.

    Attributes
    ----------
    reference : ndarray, shape (species,)
        Index of the species that has chemical potential zero on the sublattice of each species.

    Examples
    --------
    >>> gauge = Gauge(Lattice.square(2, species=("Ag", "Au")))
    >>> gauge.fixed(gauge.mu({"Ag": 0.1, "Au": 0.4}))
    array([0. , 0.3])
    """

    def __init__(self, lattice: Lattice, others=()):
        self.species, self.others = lattice.species, tuple(others)
        together = lattice.allowed.T.astype(int) @ lattice.allowed > 0
        self.reference = together.argmax(1)

    @property
    def independent(self) -> list[str]:
        """Species whose chemical potential in the fixed gauge is free."""
        return [s for k, s in enumerate(self.species) if self.reference[k] != k]

    def fixed(self, mu: np.ndarray) -> np.ndarray:
        """(..., species) chemical potentials in the fixed gauge, eV."""
        mu = np.asarray(mu, dtype=float)
        return mu - mu[..., self.reference]

    def mu(self, given: Mapping, needed=None) -> np.ndarray:
        """(species,) chemical potentials in eV from mchammer's form, zero where none is given.

        Parameters
        ----------
        given : mapping
            From symbols or atomic numbers to eV.
        needed : iterable of str, optional
            Species that must be given. Default: none.

        Raises
        ------
        TypeError
            If ``given`` is no such mapping.
        ValueError
            If a species is unknown or missing, or a value is not finite.
        """
        values = self._by_symbol(given)
        for s, x in values.items():
            if not isinstance(x, Real):
                raise TypeError(f"the chemical potential of {s} must be a number in eV, got {x!r}")
            if not math.isfinite(x):
                raise ValueError(f"the chemical potential of {s} must be finite, got {x} eV")
        missing = [s for s in needed or () if s not in values]
        if missing:
            raise ValueError(
                f"the chemical potential of {missing[0]} is missing: trial moves exchange "
                f"{list(needed)}, given are {sorted(values)}; give one to each, 0 for a reference"
            )
        return np.array([float(values.get(s, 0.0)) for s in self.species])

    def axes(self, ranges: Mapping) -> np.ndarray:
        """(keys, species) chemical potentials, in the fixed gauge, for a unit of each key.

        Raises
        ------
        TypeError, ValueError
            As :meth:`mu`; ValueError also for a species of an inactive sublattice.
        """
        keys = list(self._by_symbol(ranges))
        fixed = [s for s in keys if s not in self.species]
        if fixed:
            raise ValueError(
                f"the number of {fixed[0]} atoms cannot change; give ranges of {self.species}"
            )
        return self.fixed(np.eye(len(self.species))[[self.species.index(s) for s in keys]])

    def _by_symbol(self, given) -> dict:
        if not isinstance(given, Mapping) or not given:
            raise TypeError(
                "chemical potentials must be a mapping from elements to eV, such as "
                f"{{'Ag': 0, 'Au': 0.1}}, got {given!r}"
            )
        known = (*self.species, *self.others)
        out = {}
        for key, value in given.items():
            number = isinstance(key, Integral) and 0 <= key < len(chemical_symbols)
            symbol = chemical_symbols[key] if number else key
            if symbol not in known:
                raise ValueError(
                    f"unknown species {key!r} in the chemical potentials; the expansion has "
                    f"{list(known)}"
                )
            out[symbol] = value
        return out
