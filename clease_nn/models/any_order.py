"""Any-order autoregressive model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from clease_nn.compiled import njit
from clease_nn.configurations import Configurations
from clease_nn.lattice import Lattice
from clease_nn.models.abstract import (
    AbstractOccupationModel,
    check_any_order,
    conditionals,
)
from clease_nn.models.orders import AbstractOrder, BySize, order_from_config
from clease_nn.networks import AbstractNetwork, network_from_config
from clease_nn.networks.neighbours import Neighbours

__all__ = ["AnyOrderARM"]


class AnyOrderARM(AbstractOccupationModel):
    """Any-order autoregressive model: one network for every order of drawing.

    The network gives the conditional of each unknown site for any set of known sites; sites are
    drawn in an order that is random for every configuration (Uria et al., ICML 2014; Hoogeboom
    et al., ICLR 2022), one by one in small cells, in large ones many far from each other in one
    pass. ``log_prob`` is that of the order in ``step``.

    With ``gate``, sites whose whole interaction range is known take the physical conditional,
    which is then exact, and a random maximal set of mutually non-interacting sites is drawn last
    in one pass: fewer passes on lattices with short-ranged interactions, no change on others.

    Parameters
    ----------
    network : AbstractNetwork
    gate : sequence of (sublattice, sublattice, distance), optional
        Pair shells that contain every interaction (``ClusterTables.interaction_shells``).
    order : AbstractOrder, optional
        Which sites share a pass. Default: ``BySize()``.

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
        self.order = BySize() if order is None else order
        self.gate = None if gate is None else [(int(a), int(b), float(d)) for a, b, d in gate]
        self._linked: dict[str, Neighbours] = {}

    def with_order(self, order: AbstractOrder) -> AnyOrderARM:
        """The same model, with the same weights, drawing in other passes.

        Examples
        --------
        >>> from clease_nn.conditions import ConditionRange
        >>> from clease_nn.lattice import Lattice
        >>> from clease_nn.models import Coloured
        >>> from clease_nn.networks import LatticeConvolution
        >>> lattice = Lattice.square(2)
        >>> box = ConditionRange((300, 900), [-0.1], [0.1], [[-1.0, 1.0]])
        >>> model = AnyOrderARM(LatticeConvolution(lattice, box, needs_fields=False))
        >>> fast = model.with_order(Coloured(distance=0.9))
        >>> fast.network is model.network, fast.order.distance
        (True, 0.9)
        """
        out = type(self)(self.network, self.gate, order)
        return out.train(self.training)

    def _interacting(self, lattice: Lattice) -> Neighbours:
        """Which other sites each site interacts with."""
        if lattice.fingerprint not in self._linked:
            counts = lattice.relation_lists(self.gate).tocoo()
            site = counts.row % lattice.n_sites
            other = site != counts.col
            pairs = np.unique(np.column_stack([site, counts.col])[other], axis=0)
            linked = csr_array(
                (np.ones(len(pairs), dtype=np.int64), (pairs[:, 0], pairs[:, 1])),
                shape=(lattice.n_sites, lattice.n_sites),
            )
            self._linked[lattice.fingerprint] = Neighbours(linked)
        return self._linked[lattice.fingerprint]

    def _gated(self, c: Configurations, logits: Tensor, fields: Tensor | None, site=None):
        """Logits with the physical ones wherever a site's whole interaction range is known."""
        if self.gate is None:
            return logits
        open_range = self._interacting(c.lattice).of_flags(~c.known)[:, :, 0] > 0
        if site is None:
            own = fields[:, :, : logits.shape[-1]]
            return torch.where(open_range[..., None], logits, own.to(logits))
        rows = torch.arange(len(c), device=site.device)
        own = fields[rows, site, : logits.shape[-1]]
        return torch.where(open_range[rows, site][:, None], logits, own.to(logits))

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
        """Passes of the unknown sites in the model's order, (batch, sites) int16, -1 where known.

        With a gate, a random maximal set of non-interacting sites shares the last pass instead.
        """
        steps = self.order.steps(c.known, c.lattice, rng)
        if self.gate is None or not steps.numel():
            return steps
        pointer, index = self._interacting(c.lattice).lists
        out = steps.cpu().numpy().copy()
        _last_together(out, pointer.astype(np.int64), index.astype(np.int64))
        return torch.from_numpy(out).to(steps.device)

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


@njit
def _last_together(steps, pointer, index):  # pragma: no cover
    """Move a maximal set of sites that are not linked into one last pass, in place.

    Sites that would come last are taken first; passes left without sites are closed up.
    """
    batch, n = steps.shape
    for b in range(batch):
        row = steps[b]
        order = np.argsort(row, kind="mergesort")[::-1]
        taken = np.zeros(n, dtype=np.bool_)
        barred = row < 0
        used = np.zeros(n + 1, dtype=np.int64)
        for i in order:
            if not barred[i]:
                taken[i] = True
                barred[i] = True
                for k in range(pointer[i], pointer[i + 1]):
                    barred[index[k]] = True
        for i in range(n):
            if row[i] >= 0 and not taken[i]:
                used[row[i]] = 1
        passes = 0
        for t in range(n + 1):
            if used[t]:
                used[t] = passes
                passes += 1
        for i in range(n):
            if row[i] >= 0:
                row[i] = passes if taken[i] else used[row[i]]
