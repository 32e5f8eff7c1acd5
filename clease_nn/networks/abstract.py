"""What every network is: partial configurations in, logits of every site out."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from clease_nn.configurations import Configurations
from clease_nn.lattice import Lattice

__all__ = ["AbstractNetwork"]


class AbstractNetwork(nn.Module, ABC):
    """Logits of every site and species given the known sites and the conditions.

    A network never sees an energy. Where the energy offers conditional fields, they arrive as a
    tensor (batch, sites, 2 * species) in units of kT: with the unknown sites at their mean field,
    and with all their species alike (``SemiGrandCanonical.fields``).

    Attributes
    ----------
    needs_fields : bool
        Whether ``forward`` must be given fields.
    any_order : bool
        Whether every known site enters the logits of every other; otherwise those before it in
        one order alone.
    """

    needs_fields: bool
    any_order: bool = True

    @abstractmethod
    def forward(self, c: Configurations, fields: Tensor | None) -> Tensor:
        """Logits, shape (batch, sites, species), float32; species not allowed are not masked."""

    @torch.no_grad()
    def at(self, c: Configurations, fields: Tensor | None, site: Tensor) -> Tensor:
        """Logits of one site of each row, (batch, species), without gradients.

        Networks that can compute them faster than all logits do so.
        """
        return self(c, fields)[torch.arange(len(c), device=site.device), site]

    @abstractmethod
    def check_lattice(self, lattice: Lattice) -> None:
        """Raise ValueError if the network does not serve a lattice.

        Reasons are another cell, another parent lattice, or other species.
        """

    def multiplications(self, n_sites: int) -> int:
        """Roughly how many multiplications the logits of one configuration cost.

        Here those of networks that use every weight at every site.
        """
        return n_sites * self.n_weights

    def bytes_per_row(self, n_sites: int) -> int:
        """Roughly the peak memory of the logits of one configuration, without gradients.

        Weights and the geometry of the supercell are not counted. Here a guess that takes the
        weights for those of a few dense layers that serve every site: eight temporaries of the
        width that these would have. Networks that know better do.
        """
        return 32 * n_sites * math.isqrt(self.n_weights)

    @property
    def n_weights(self) -> int:
        """Number of trainable weights."""
        return sum(p.numel() for p in self.parameters())

    @abstractmethod
    def config(self) -> dict:
        """JSON-ready arguments that rebuild the network, with its ``class``."""

    @classmethod
    @abstractmethod
    def from_config(cls, config: dict) -> AbstractNetwork:
        """Rebuild from :meth:`config` without ``class``."""
