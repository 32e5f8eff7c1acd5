"""A straight line through the space of chemical potentials, along which one scans."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase.units import kB

from clease_nn.conditions import Conditions
from clease_nn.lattice import Lattice
from clease_nn.thermodynamics import DensityOfStates

__all__ = ["ChemicalPotentialLine", "check_temperatures"]


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

    Raises
    ------
    ValueError
        If a number is not finite, there is not one for each species, or the direction changes no
        difference of chemical potentials.

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
        if not (np.isfinite(self.direction).all() and np.isfinite(self.origin).all()):
            raise ValueError(
                f"direction and origin must be finite, got {self.direction} and {self.origin} eV"
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

    def amount(self, dos: DensityOfStates) -> np.ndarray:
        """What t couples to: ``direction . N`` of every state, shape (states,).

        Raises
        ------
        ValueError
            If the lattice of the states has other species than the line.
        """
        if len(self.direction) != dos.lattice.n_species or self.species not in dos.lattice.species:
            raise ValueError(
                f"the line is for {len(self.direction)} species, {self.species!r} among them; the "
                f"lattice has {dos.lattice.species}"
            )
        return dos.counts @ self.direction

    def composition(self, dos: DensityOfStates) -> np.ndarray:
        """Share of the active sites that carry the line's species, shape (states,)."""
        return dos.counts[:, dos.lattice.species.index(self.species)] / dos.lattice.n_sites

    def position(self, conditions: Conditions) -> np.ndarray:
        """The t whose chemical potentials are nearest, up to a constant, shape (conditions,).

        Examples
        --------
        >>> line = ChemicalPotentialLine.exchange(Lattice.square(2), "Au", "Cu")
        >>> line.position(Conditions([300.0], [[-0.25, 0.25]])).tolist()
        [0.5]
        """
        direction = self.direction - self.direction.mean()
        origin = self.origin - self.origin.mean()
        relative = conditions.relative_mu().cpu().numpy() - origin
        return relative @ direction / (direction @ direction)

    def span(self, dos: DensityOfStates, temperature: float) -> tuple[float, float]:
        """Between which t there is something to see.

        The range of the conditions that were sampled, or, where none are noted, the range over
        which the amount goes from its smallest to its greatest value.
        """
        if dos.sampled is not None and len(dos.sampled):
            t = self.position(dos.sampled)
            if np.ptp(t) > 0:
                return float(t.min()), float(t.max())
        kT = kB * temperature
        amount, bins = np.unique(np.round(self.amount(dos), 9), return_inverse=True)
        log_w = dos.log_weights(self.at(temperature, 0.0))
        top = np.full(len(amount), -np.inf)
        np.maximum.at(top, bins, log_w)
        if len(amount) < 2:
            raise ValueError("all states have one amount: nothing changes along this line")
        ends = []
        for sign in (-1.0, 1.0):
            end, t = amount[0] if sign < 0 else amount[-1], sign * kT
            while True:
                a = top + t * amount / kT
                p = np.exp(a - a.max())
                if abs(p @ amount / p.sum() - end) < 1e-3 * np.ptp(amount):
                    break
                t *= 1.5
            ends.append(t)
        return ends[0], ends[1]

    def to_dict(self) -> dict:
        """JSON-ready description, inverse of :meth:`from_dict`."""
        return {
            "species": self.species,
            "direction": self.direction.tolist(),
            "origin": self.origin.tolist(),
            "label": self.label,
        }

    @classmethod
    def from_dict(cls, data: dict) -> ChemicalPotentialLine:
        """Rebuild from :meth:`to_dict`."""
        return cls(data["species"], data["direction"], data["origin"], data["label"])


def check_temperatures(temperatures) -> np.ndarray:
    """Distinct temperatures [K], ascending."""
    t = np.unique(np.atleast_1d(np.asarray(temperatures, dtype=float)))
    if not len(t) or not (np.isfinite(t).all() and (t > 0).all()):
        raise ValueError(f"temperatures must be positive and finite [K], got {temperatures}")
    return t
