"""The semi-grand canonical ensemble: the only place where -(E - mu.N)/kT is written."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations, species_counts
from clease_nn.lattice import Lattice

__all__ = ["SemiGrandCanonical"]

# steps towards the mean field: on Cu-Au from 400 to 1200 K enough from a quarter of known sites on;
# damping keeps species from changing sides together on lattices that order
_MEAN_FIELD_STEPS = 4
_MEAN_FIELD_DAMPING = 0.2


@dataclass(frozen=True)
class SemiGrandCanonical:
    """Boltzmann weights ``exp(-(E - sum_i mu_i N_i) / kT)`` of an energy model.

    Parameters
    ----------
    energy : EnergyModel
        Callable ``energy(lattice, occupations) -> (batch,)`` in eV per supercell.

    Examples
    --------
    >>> lattice = Lattice.square(2)
    >>> zero = SemiGrandCanonical(lambda lattice, occupations: torch.zeros(len(occupations)))
    >>> exact = zero.enumerate(lattice)
    >>> exact.log_z(Conditions([300.0], [[0.0, 0.0]])).exp().round()
    tensor([16.], dtype=torch.float64)
    """

    energy: object

    def score(self, c: Configurations) -> Configurations:
        """The same batch with ``energy`` and ``log_target`` filled in (float64).

        Raises
        ------
        ValueError
            If a site is unknown or an energy is NaN or infinite; the message names the row.
        """
        if not bool(c.known.all()):
            raise ValueError("cannot score configurations with unknown sites; complete them first")
        energy = torch.as_tensor(self.energy(c.lattice, c.occupations), dtype=torch.float64)
        bad = ~torch.isfinite(energy)
        if bad.any():
            row = int(bad.nonzero()[0])
            raise ValueError(
                f"the energy of configuration {row}, occupations {c.occupations[row].tolist()}, "
                f"is {energy[row].item()} ({int(bad.sum())} of {len(c)} are not finite); check "
                "the energy model"
            )
        return replace(c, energy=energy, log_target=self.log_weight(c, energy))

    @staticmethod
    def log_weight(c: Configurations, energy: Tensor) -> Tensor:
        """(batch,) ``-(E - mu.N)/kT`` for energies already known, float64."""
        mu = c.conditions.mu.to(energy.device)
        return -(energy - (mu * c.counts()).sum(1)) / c.conditions.kT.to(energy.device)

    @property
    def has_fields(self) -> bool:
        """Whether the energy offers conditional energies of partial configurations."""
        return hasattr(self.energy, "partial_fields")

    def fields(self, c: Configurations) -> Tensor:
        """Physical logits of every site given the known ones, shape (batch, sites, 2 * species).

        ``-(E_i(a) - mu_a)/kT`` in units of kT, float32, twice: with the unknown sites at their
        mean field, and with all their species alike. The mean over allowed species is zero,
        species not allowed read zero. With all other sites known a softmax over the allowed
        species is, of both, the exact conditional.

        The mean field is the fixed point ``p_i = softmax(-(E_i[p] - mu)/kT)`` of the unknown
        sites around the known ones, after a few damped steps that start from equal shares.

        Raises
        ------
        ValueError
            If the energy has no ``partial_fields``.
        TypeError
            If they do not take ``means``.
        """
        if not self.has_fields:
            raise ValueError(
                f"fields were asked for, and {type(self.energy).__name__} has no partial_fields: "
                "use an energy that offers them, such as the one that the model was trained on, or "
                "a model that needs none (needs_fields=False)"
            )
        allowed = c.lattice.allowed_mask(c.occupations.device).T[:, None]
        barred = torch.where(allowed, 0.0, -torch.inf).to(torch.float64)
        alike = field = self._logits(c, None)
        means = None
        for _ in range(_MEAN_FIELD_STEPS):
            field = field + barred
            p = torch.exp(field - field.amax(0))
            p = p / sum(p.unbind())
            means = p if means is None else torch.lerp(p, means, _MEAN_FIELD_DAMPING)
            field = self._logits(c, means.permute(1, 2, 0))
        planes = []
        for logits in (field, alike):
            logits = torch.where(allowed, logits, 0.0)
            planes.append((logits - sum(logits.unbind()) / allowed.sum(0)) * allowed)
        return torch.cat(planes).permute(1, 2, 0).to(torch.float32).contiguous()

    def _logits(self, c: Configurations, means: Tensor | None) -> Tensor:
        """``-(E_i(a) - mu_a)/kT``, shape (species, batch, sites), float64."""
        try:
            e = self.energy.partial_fields(c.lattice, c.occupations, means=means)
        except TypeError as error:
            raise TypeError(
                f"partial_fields of {type(self.energy).__name__} cannot be called with means "
                f"(see EnergyModel; check_energy_model tests it): {error}"
            ) from error
        e = e.to(torch.float64).permute(2, 0, 1).contiguous()  # one plane a species: fast sums
        mu, kT = c.conditions.mu.T[:, :, None].to(e), c.conditions.kT[:, None].to(e)
        return (mu - e) / kT

    def enumerate(self, lattice: Lattice, limit: float = 2**22, batch: int = 65536) -> Enumeration:
        """All configurations of a small lattice with their energies.

        Raises
        ------
        ValueError
            If the lattice has more than ``limit`` configurations, or an energy is NaN or
            infinite; the message names the state.
        """
        if lattice.log_states > np.log(limit) + 1e-9:
            raise ValueError(
                f"the lattice has exp({lattice.log_states:.1f}) configurations, more than the "
                f"limit {limit:.0f}; use ParallelTempering for ln Z instead"
            )
        choices = [np.flatnonzero(row).astype(np.int8) for row in lattice.allowed]
        sizes = np.array([len(c) for c in choices])
        total = int(np.prod(sizes, dtype=np.int64))
        rest = np.arange(total, dtype=np.int64)
        occupations = np.empty((total, lattice.n_sites), dtype=np.int8)
        for i in range(lattice.n_sites):
            occupations[:, i] = choices[i][rest % sizes[i]]
            rest //= sizes[i]
        states = torch.as_tensor(occupations)
        energy = torch.cat(
            [
                torch.as_tensor(self.energy(lattice, states[k : k + batch]), dtype=torch.float64)
                for k in range(0, total, batch)
            ]
        )
        bad = ~torch.isfinite(energy)
        if bad.any():
            row = int(bad.nonzero()[0])
            raise ValueError(
                f"the energy of state {row}, occupations {states[row].tolist()}, is "
                f"{energy[row].item()} ({int(bad.sum())} of {total} are not finite); check the "
                "energy model"
            )
        return Enumeration(lattice, states, energy)


@dataclass(frozen=True, eq=False)
class Enumeration:
    """Every configuration of a small lattice: the exact reference.

    Attributes
    ----------
    occupations : Tensor, shape (states, sites), int8
    energy : Tensor, shape (states,), float64, eV per supercell
    """

    lattice: Lattice
    occupations: Tensor
    energy: Tensor

    def log_target(self, conditions: Conditions) -> Tensor:
        """``-(E - mu.N)/kT`` of every state at one condition, shape (states,)."""
        if len(conditions) != 1:
            raise ValueError(f"one condition at a time, got {len(conditions)}")
        counts = species_counts(self.occupations, self.lattice.n_species)
        return -(self.energy - counts @ conditions.mu[0]) / conditions.kT[0]

    def log_z(self, conditions: Conditions) -> Tensor:
        """Exact ln Z at each condition, shape (conditions,)."""
        rows = (conditions[k] for k in range(len(conditions)))
        return torch.stack([torch.logsumexp(self.log_target(row), 0) for row in rows])

    def probabilities(self, conditions: Conditions) -> Tensor:
        """Exact Boltzmann probability of every state at one condition, shape (states,)."""
        return torch.softmax(self.log_target(conditions), 0)

    def mean(self, conditions: Conditions, values: Tensor) -> Tensor:
        """Exact average of ``values`` (states, ...) at each condition, (conditions, ...)."""
        v = values.to(torch.float64)
        rows = (conditions[k] for k in range(len(conditions)))
        return torch.stack([torch.tensordot(self.probabilities(row), v, 1) for row in rows])
