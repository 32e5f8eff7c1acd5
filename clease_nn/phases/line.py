"""A straight line through the space of chemical potentials, along which one scans."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clease_nn.conditions import Conditions
from clease_nn.lattice import Lattice

__all__ = ["ChemicalPotentialLine"]


@dataclass(frozen=True, eq=False)
class ChemicalPotentialLine:
    """Chemical potentials ``mu(t) = origin + t direction``, t in eV.

    Attributes
    ----------
    species : str
        The species whose share of the sites is the composition along the line.
    direction : ndarray, shape (species,)
        Change of every chemical potential for 1 eV.
    origin : ndarray, shape (species,)
        eV.
    label : str
        What t is, for axes of pictures.

    Examples
    --------
    >>> line = ChemicalPotentialLine.exchange(Lattice.square(2), "Au", "Cu")
    >>> line.label
    'mu_Au - mu_Cu (eV)'
    >>> line.at(300.0, [0.1]).mu.tolist()  # of the species Cu, Au
    [[0.0, 0.1]]
    """

    species: str
    direction: np.ndarray
    origin: np.ndarray
    label: str

    def __post_init__(self):
        object.__setattr__(self, "direction", np.asarray(self.direction, dtype=float))
        object.__setattr__(self, "origin", np.asarray(self.origin, dtype=float))
        if self.direction.shape != self.origin.shape or self.direction.ndim != 1:
            raise ValueError(
                "direction and origin need one number a species, got shapes "
                f"{self.direction.shape} and {self.origin.shape}"
            )
        if not np.ptp(self.direction) > 0:
            raise ValueError("the direction changes no difference of chemical potentials")

    @classmethod
    def exchange(
        cls, lattice: Lattice, species: str, against: str, origin=None
    ) -> ChemicalPotentialLine:
        """The line along which ``mu_species - mu_against`` is t (for ``origin`` zero).

        Raises
        ------
        ValueError
            If the lattice lacks a species.
        """
        for s in (species, against):
            if s not in lattice.species:
                raise ValueError(f"species {s!r} is none of {lattice.species}")
        if species == against:
            raise ValueError(f"two different species are exchanged, got {species!r} twice")
        direction = np.zeros(lattice.n_species)
        direction[lattice.species.index(species)] = 1.0
        origin = np.zeros(lattice.n_species) if origin is None else origin
        return cls(species, direction, origin, f"mu_{species} - mu_{against} (eV)")

    def mu(self, t) -> np.ndarray:
        """Chemical potentials at every t, shape (len(t), species), eV."""
        return self.origin + np.atleast_1d(np.asarray(t, dtype=float))[:, None] * self.direction

    def at(self, temperature, t) -> Conditions:
        """Conditions at temperatures [K] and positions t [eV], paired after broadcasting."""
        temperature, t = np.broadcast_arrays(np.atleast_1d(temperature), np.atleast_1d(t))
        return Conditions(temperature.astype(float), self.mu(t))
