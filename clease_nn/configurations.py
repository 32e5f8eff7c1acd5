"""Configurations: the one type that travels between models, ensembles and thermodynamics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from clease_nn.conditions import Conditions
from clease_nn.cost import Cost, merge_provenance
from clease_nn.lattice import UNKNOWN, Lattice

__all__ = ["Configurations", "species_counts"]


def species_counts(occupations: Tensor, n_species: int) -> Tensor:
    """How many sites carry each species, shape (batch, species), float64.

    Examples
    --------
    >>> species_counts(torch.tensor([[0, 1, 1], [0, 0, 0]]), 2).tolist()
    [[1.0, 2.0], [3.0, 0.0]]
    """
    return torch.stack([(occupations == a).sum(1) for a in range(n_species)], 1).to(torch.float64)


@dataclass(frozen=True, eq=False)
class Configurations:
    """A batch of (partial) configurations of one lattice, each at its own conditions.

    Attributes
    ----------
    lattice : Lattice
    conditions : Conditions
        (batch,) temperatures [K] and (batch, species) chemical potentials [eV].
    occupations : Tensor, shape (batch, sites), int8
        Index into ``lattice.species``; ``UNKNOWN`` (-1) where a site is not drawn.
    step : Tensor, shape (batch, sites), int16, optional
        Pass in which a site was drawn (ties: drawn in one pass), -1 where it was given.
    log_prob : Tensor, shape (batch,), float64, optional
        ln q of the drawn sites given the given ones, as drawn.
    energy : Tensor, shape (batch,), float64, optional
        Energy in eV per supercell (without mu.N).
    log_target : Tensor, shape (batch,), float64, optional
        ``-(E - mu.N) / kT``.
    chain : Tensor, shape (batch,), int64, optional
        Chain of origin, rows in time order; None for independent draws.
    provenance : Mapping
        JSON-ready: method, seeds, and what the data have cost under the names of
        :class:`~clease_nn.cost.Cost`. A slice keeps the cost of the whole run it was cut from;
        :meth:`cat` adds the costs of different runs.

    Examples
    --------
    >>> lattice = Lattice.square(2)
    >>> c = Configurations.unknown(lattice, Conditions([300.0], [[0.0, 0.0]]))
    >>> c.known.any().item(), len(c)
    (False, 1)
    """

    lattice: Lattice
    conditions: Conditions
    occupations: Tensor
    step: Tensor | None = None
    log_prob: Tensor | None = None
    energy: Tensor | None = None
    log_target: Tensor | None = None
    chain: Tensor | None = None
    provenance: Mapping = field(default_factory=dict)

    def __post_init__(self):
        occupations = torch.as_tensor(self.occupations)
        if occupations.dtype != torch.int8:
            occupations = occupations.to(torch.int8)
        object.__setattr__(self, "occupations", occupations)
        n = len(self.conditions)
        if occupations.shape != (n, self.lattice.n_sites):
            raise ValueError(
                f"occupations must have shape ({n}, {self.lattice.n_sites}) for {n} conditions, "
                f"got {tuple(occupations.shape)}"
            )
        if self.conditions.mu.shape[1] != self.lattice.n_species:
            raise ValueError(
                f"conditions have {self.conditions.mu.shape[1]} chemical potentials, the lattice "
                f"{self.lattice.n_species} species"
            )

    @classmethod
    def unknown(cls, lattice: Lattice, conditions: Conditions) -> Configurations:
        """Configurations without any known site."""
        shape = (len(conditions), lattice.n_sites)
        occupations = torch.full(shape, UNKNOWN, dtype=torch.int8, device=conditions.mu.device)
        return cls(lattice, conditions, occupations)

    @property
    def known(self) -> Tensor:
        """(batch, sites) bool: the site carries a species."""
        return self.occupations != UNKNOWN

    @property
    def log_weight(self) -> Tensor:
        """(batch,) ``log_target - log_prob``: unnormalised log importance weight, float64."""
        if self.log_prob is None or self.log_target is None:
            raise ValueError("log_weight needs log_prob and log_target; score the configurations")
        return self.log_target - self.log_prob

    @property
    def cost(self) -> Cost:
        """What the data have cost, as far as ``provenance`` tells; of a slice, the whole run."""
        return Cost.from_provenance(self.provenance)

    @property
    def given(self) -> Tensor:
        """(batch, sites) int8: what the rows were drawn around, ``UNKNOWN`` on drawn sites.

        Nothing where there is no ``step``.
        """
        if self.step is None:
            return torch.full_like(self.occupations, UNKNOWN)
        return torch.where(self.step < 0, self.occupations, UNKNOWN).to(torch.int8)

    @property
    def same_given(self) -> bool:
        """Whether all rows were drawn around the same given sites, with the same species there.

        Only then do weights of rows at one condition share their normalisation.
        """
        if self.step is None or not len(self):
            return True
        given = self.given
        return bool((given == given[0]).all())

    def by_given(self) -> list[Configurations]:
        """Rows drawn around the same given sites, apart from others, in order of appearance.

        Each part is one restricted ensemble, which :mod:`clease_nn.thermodynamics` can read.

        Examples
        --------
        >>> at = Conditions([300.0] * 3, [[0.0, 0.0]] * 3)
        >>> step = torch.tensor([[-1, 0]] * 3)
        >>> c = Configurations(Lattice.square(1, 2), at, [[0, 1], [1, 1], [0, 0]], step)
        >>> [part.occupations.tolist() for part in c.by_given()]
        [[[0, 1], [0, 0]], [[1, 1]]]
        """
        if not len(self):
            return []
        _, label = torch.unique(self.given, dim=0, return_inverse=True)
        return [self[label == k] for k in dict.fromkeys(label.tolist())]

    def counts(self) -> Tensor:
        """(batch, species) float64: how many active sites carry each species."""
        return species_counts(self.occupations, self.lattice.n_species)

    def __len__(self) -> int:
        return len(self.occupations)

    def __getitem__(self, index) -> Configurations:
        if isinstance(index, int):
            index = slice(index, index + 1) if index != -1 else slice(-1, None)
        parts = {
            name: getattr(self, name)[index] for name in _ROWS if getattr(self, name) is not None
        }
        return replace(self, **parts)

    @staticmethod
    def cat(parts: Iterable[Configurations]) -> Configurations:
        """Concatenate batches of one lattice; optional columns must be in all or in none.

        Costs in the provenance are added, other entries kept where all parts agree
        (:func:`~clease_nn.cost.merge_provenance`); slices of one result cost what it did, once.
        """
        parts = list(parts)
        if not parts:
            raise ValueError("nothing to concatenate")
        if any(p.lattice.fingerprint != parts[0].lattice.fingerprint for p in parts):
            raise ValueError("configurations of different lattices cannot be concatenated")
        out = {"conditions": Conditions.cat(p.conditions for p in parts)}
        for name in _ROWS[1:]:
            column = [getattr(p, name) for p in parts]
            if any(v is None for v in column) and any(v is not None for v in column):
                raise ValueError(f"{name} is present in some parts only")
            out[name] = None if column[0] is None else torch.cat(column)
        out["provenance"] = merge_provenance([p.provenance for p in parts])
        return replace(parts[0], **out)

    def to(self, device) -> Configurations:
        """The same batch on another torch device."""
        parts = {
            name: getattr(self, name).to(device)
            for name in _ROWS
            if getattr(self, name) is not None
        }
        return replace(self, **parts)

    def atoms(self, row: int):
        """Atoms object of one row."""
        return self.lattice.atoms(self.occupations[row].cpu().numpy())


_ROWS = [f.name for f in fields(Configurations) if f.name not in ("lattice", "provenance")]
