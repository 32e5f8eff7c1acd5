"""What an energy model is."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from clease_nn.lattice import Lattice

__all__ = ["EnergyModel"]


@runtime_checkable
class EnergyModel(Protocol):
    """Any callable that scores complete configurations.

    ``energy(lattice, occupations)`` takes occupations (batch, sites), int8, none unknown, and
    returns energies (batch,) in eV per supercell, float64, without mu.N. It must not change its
    input, and a configuration's energy must not depend on the others of the batch.

    Richer models add, with the same arguments:

    ``flip_energies`` -> (batch, sites, species), eV
        E(site := species) - E(now): 0 for the present species, +inf for species not allowed.
    ``partial_fields`` -> (batch, sites, species), eV
        Energy of every species on every site from all terms with that site, for configurations
        with unknown sites; species not allowed read 0. A constant per site is irrelevant. It
        also takes ``means``, (batch, sites, species), float64, or None: with them unknown sites
        carry species with these probabilities, otherwise all allowed ones alike; those of known
        sites are ignored. Derivatives of a model with respect to conditions go through ``means``.

    :func:`~clease_nn.energies.check.check_energy_model` tests all of this.
    """

    def __call__(self, lattice: Lattice, occupations: Tensor) -> Tensor:
        """Energies in eV per supercell, shape (batch,)."""
        ...
