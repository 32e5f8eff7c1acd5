"""Any-order autoregressive model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clease_nn.configurations import Configurations
from clease_nn.lattice import Lattice
from clease_nn.models.abstract import (
    AbstractOccupationModel,
    check_any_order,
    conditionals,
)
from clease_nn.models.orders import AbstractOrder, OneByOne, order_from_config
from clease_nn.networks import AbstractNetwork, network_from_config

__all__ = ["AnyOrderARM"]


class AnyOrderARM(AbstractOccupationModel):
    """Any-order autoregressive model: one network for every order of drawing.

    The network gives the conditional of each unknown site for any set of known sites; sites are
    drawn one by one in an order that is uniformly random for every configuration (Uria et al.,
    ICML 2014; Hoogeboom et al., ICLR 2022). ``log_prob`` is that of the order in ``step``.

    With ``gate``, sites whose whole interaction range is known take the physical conditional,
    which is then exact, and a random maximal set of mutually non-interacting sites is drawn last
    in one pass: fewer passes on lattices with short-ranged interactions, no change on others.

    Parameters
    ----------
    network : AbstractNetwork
    gate : sequence of (sublattice, sublattice, distance), optional
        Pair shells that contain every interaction (``ClusterTables.interaction_shells``).
    order : AbstractOrder, optional
        Which sites share a pass. Default: none, one by one. Not with a gate, which has its own.

    Raises
    ------
    ValueError
        If a gate is given to a network without fields: it would toss a coin for the last sites;
        or the network sees known sites in one order only.

    Examples
    --------
    >>> from clease_nn.conditions import ConditionRange
    >>> from clease_nn.lattice import Lattice
    >>> from clease_nn.networks import LatticeConvolution
    >>> lattice = Lattice.square(2)
    >>> box = ConditionRange((300, 900), [-0.1], [0.1], [[-1.0, 1.0]])
    >>> model = AnyOrderARM(LatticeConvolution(lattice, box, needs_fields=False))
    >>> c = Configurations.unknown(lattice, box.grid(1, 2))
    >>> model.complete(c, torch.Generator().manual_seed(0)).log_prob
    tensor([-2.7726, -2.7726], dtype=torch.float64)
    """

    def __init__(
        self,
        network: AbstractNetwork,
        gate: Sequence[tuple[int, int, float]] | None = None,
        order: AbstractOrder | None = None,
    ):
        super().__init__()
        check_any_order(network)
        if gate is not None and not network.needs_fields:
            raise ValueError(
                "a gate needs the physical conditionals; make the network with needs_fields=True"
            )
        self.network = network
        self.order = OneByOne() if order is None else order
        self.gate = None if gate is None else [(int(a), int(b), float(d)) for a, b, d in gate]
        self._linked: dict[str, Tensor] = {}

    def _interacting(self, lattice: Lattice, device) -> Tensor:
        """(sites, sites) float32: 1 where two different sites interact."""
        if lattice.fingerprint not in self._linked:
            linked = torch.as_tensor(lattice.relation_matrices(self.gate).sum(0) > 0)
            self._linked[lattice.fingerprint] = linked.fill_diagonal_(False).to(torch.float32)
        return self._linked[lattice.fingerprint].to(device)

    def _gated(self, c: Configurations, logits: Tensor, fields: Tensor | None, site=None):
        """Logits with the physical ones wherever a site's whole interaction range is known."""
        if self.gate is None:
            return logits
        linked = self._interacting(c.lattice, logits.device)
        unknown = (~c.known).to(torch.float32)
        if site is None:
            open_range = unknown @ linked > 0
            return torch.where(open_range[..., None], logits, fields.to(logits))
        open_range = (unknown * linked[site]).sum(1) > 0
        own = fields[torch.arange(len(c), device=site.device), site]
        return torch.where(open_range[:, None], logits, own.to(logits))

    @property
    def needs_fields(self) -> bool:
        """Whether fields must be handed to :meth:`complete` and :meth:`log_prob`."""
        return self.network.needs_fields

    def log_conditionals(self, c: Configurations, fields: Tensor | None) -> Tensor:
        """ln q(species | known sites) of every site, (batch, sites, species), float64."""
        logits = self._gated(c, self.network(c, fields).to(torch.float64), fields)
        return conditionals(logits, c.lattice.allowed_mask(logits.device))

    def log_conditionals_at(self, c: Configurations, fields: Tensor | None, site: Tensor) -> Tensor:
        """ln q(species | known sites) of one site of each row, (batch, species), float64."""
        logits = self.network.at(c, fields, site).to(torch.float64)
        logits = self._gated(c, logits, fields, site)
        return conditionals(logits, c.lattice.allowed_mask(logits.device)[site])

    def draw_steps(self, c: Configurations, rng: torch.Generator) -> Tensor:
        """A uniformly random order of the unknown sites of every row, (batch, sites) int16.

        With a gate, a random maximal set of non-interacting sites shares the last pass.
        """
        known = c.known
        if self.gate is None:
            return self.order.steps(known, c.lattice, rng)
        key = torch.rand(known.shape, generator=rng).to(known.device)
        key = key + self._last_together(c, key)
        rank = key.masked_fill(known, 3.0).argsort(1).argsort(1)
        first = (key < 1.0) & ~known
        rank = torch.minimum(rank, first.sum(1, keepdim=True))
        return torch.where(known, -1, rank).to(torch.int16)

    def _last_together(self, c: Configurations, key: Tensor) -> Tensor:
        """(batch, sites) float32: 1 on a random maximal set of non-interacting unknown sites."""
        linked = self._interacting(c.lattice, key.device)
        free = (~c.known).to(torch.float32)
        chosen = torch.zeros_like(free)
        rows = torch.arange(len(c), device=key.device)
        for site in key.argsort(1).flip(1).T:  # the sites that would come last, first
            take = free[rows, site]
            chosen[rows, site] = take
            free = free * (1 - take[:, None] * linked[site])
        return chosen

    def config(self) -> dict:
        """JSON-ready description."""
        gate = None if self.gate is None else [list(k) for k in self.gate]
        return {
            "class": "AnyOrderARM",
            "network": self.network.config(),
            "gate": gate,
            "order": self.order.config(),
        }

    @classmethod
    def from_config(cls, config: dict) -> AnyOrderARM:
        """Rebuild from :meth:`config` without ``class``."""
        order = order_from_config(config["order"]) if "order" in config else None
        return cls(network_from_config(config["network"]), config["gate"], order)
