"""Autoregressive model with one order of drawing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from clease_nn.configurations import Configurations
from clease_nn.lattice import Lattice
from clease_nn.models.abstract import AbstractOccupationModel, Fields, conditionals
from clease_nn.networks import AbstractNetwork, MaskedMLP, network_from_config

__all__ = ["FixedOrderARM"]


class FixedOrderARM(AbstractOccupationModel):
    """Autoregressive model that draws the sites in one fixed order.

    ``ln q(x) = sum_t ln q(x at position t | x at positions < t)`` (SEGAL, Damewood et al., npj
    Comput. Mater. 2022). Known sites can only be the first of the order: other partial
    configurations are refused, :class:`AnyOrderARM` completes them.

    Any network serves. With a :class:`~clease_nn.networks.MaskedMLP` without fields ``log_prob``
    is one pass (``passes`` is ignored) and drawing computes every unit of the network once.

    Parameters
    ----------
    network : AbstractNetwork
    order : sequence of int, shape (sites,), or "raster", optional
        Sites in the order in which they are drawn; ``"raster"``: as they are numbered. Default
        the order of the network, where it has one, otherwise raster.

    Raises
    ------
    ValueError
        If the order is no permutation, or not that of the network.

    Examples
    --------
    >>> from clease_nn.conditions import ConditionRange
    >>> lattice = Lattice.square(2)
    >>> box = ConditionRange((300, 900), [-0.1], [0.1], [[-1.0, 1.0]])
    >>> model = FixedOrderARM(MaskedMLP(lattice, box, [3, 1, 0, 2], width=16))
    >>> c = Configurations.unknown(lattice, box.grid(1, 1))
    >>> drawn = model.complete(c, torch.Generator().manual_seed(0))
    >>> drawn.step
    tensor([[2, 1, 3, 0]], dtype=torch.int16)
    >>> drawn.log_prob
    tensor([-2.7726], dtype=torch.float64)
    """

    any_order = False

    def __init__(self, network: AbstractNetwork, order: Sequence[int] | str | None = None):
        super().__init__()
        if isinstance(order, str):
            if order != "raster":
                raise ValueError(f'the order must be "raster" or a permutation, got {order!r}')
            order = None if not isinstance(network, MaskedMLP) else range(network.n_sites)
        elif order is None and isinstance(network, MaskedMLP):
            order = network.order
        if order is not None:
            order = [int(i) for i in order]
            if sorted(order) != list(range(len(order))):
                raise ValueError(f"the order must hold every site once, got {order}")
            if isinstance(network, MaskedMLP) and order != network.order:
                raise ValueError(
                    f"the network was made for the order {network.order}, the model for {order}; "
                    "make both with the same, or leave the model's out"
                )
        self.network = network
        self.order = order

    @property
    def needs_fields(self) -> bool:
        """Whether fields must be handed to :meth:`complete` and :meth:`log_prob`."""
        return self.network.needs_fields

    @property
    def _in_one_pass(self) -> bool:
        """Whether one pass gives every conditional of a full configuration."""
        return isinstance(self.network, MaskedMLP) and not self.needs_fields

    def log_conditionals(self, c: Configurations, fields: Tensor | None) -> Tensor:
        """ln q(species | sites before it) of every site, (batch, sites, species), float64.

        Meant for the first unknown site of each row; with a ``MaskedMLP`` without fields for
        every site whose predecessors are known.
        """
        logits = self.network(c, fields)
        return conditionals(logits, c.lattice.allowed_mask(logits.device))

    def log_conditionals_at(self, c: Configurations, fields: Tensor | None, site: Tensor) -> Tensor:
        """ln q(species | known sites) of one site of each row, (batch, species), float64."""
        with torch.no_grad():
            logits = self.network.at(c, fields, site)
        return conditionals(logits, c.lattice.allowed_mask(logits.device)[site])

    def draw_steps(self, c: Configurations, rng: torch.Generator) -> Tensor:
        """Rank of each unknown site among those of its row, (batch, sites) int16, -1 if known.

        Raises
        ------
        ValueError
            If the known sites are not the first of the order; the message names the first site
            out of order.
        """
        return self._steps(c.known, c.lattice)

    def log_prob(
        self,
        full: Configurations,
        *,
        steps: Tensor,
        fields: Fields | None = None,
        passes: Tensor | None = None,
        chunk: int = 512,
    ) -> Tensor:
        """ln q of the sites with ``steps >= 0`` given the others, shape (batch,), float64.

        As :meth:`AbstractOccupationModel.log_prob`; one pass where the network allows.

        Raises
        ------
        ValueError
            If a site is unknown, fields are needed and absent, or the steps are not those that
            :meth:`draw_steps` gives.
        """
        self._check_steps(steps, full.lattice)
        if not self._in_one_pass:
            return super().log_prob(full, steps=steps, fields=fields, passes=passes, chunk=chunk)
        if not bool(full.known.all()):
            raise ValueError("log_prob needs full configurations; complete them first")
        log_q = self.log_conditionals(full, None)
        log_q = log_q.gather(2, full.occupations.long()[:, :, None])[:, :, 0]
        return log_q.masked_fill(steps.to(log_q.device) < 0, 0.0).sum(1)

    def _evaluator(self, partial: Configurations, steps: Tensor, fields: Fields | None) -> Callable:
        """Conditionals of one pass after another; each unit of a masked network once."""
        self._check_steps(steps, partial.lattice)
        n_known = partial.known.sum(1)
        if not self._in_one_pass or not bool((n_known == n_known[:1]).all()):
            return super()._evaluator(partial, steps, fields)
        units = self.network.incremental(partial)
        allowed = partial.lattice.allowed_mask(partial.occupations.device)
        return lambda c, row, site: conditionals(units.next(c), allowed[site])

    def check_lattice(self, lattice: Lattice) -> None:
        """Raise ValueError if the network or the order is one of another lattice."""
        super().check_lattice(lattice)
        self._check_length(lattice.n_sites)

    def _check_length(self, n: int) -> None:
        if self.order is not None and len(self.order) != n:
            raise ValueError(
                f"this model has an order of {len(self.order)} sites, asked for {n}; make one "
                'with an order of this lattice, or with order="raster"'
            )

    def _steps(self, known: Tensor, lattice: Lattice) -> Tensor:
        """Steps of rows with these known sites; see :meth:`draw_steps`."""
        n = lattice.n_sites
        self._check_length(n)
        position = torch.arange(n, device=known.device)
        order = position if self.order is None else torch.tensor(self.order, device=known.device)
        n_known = known.sum(1, keepdim=True)
        ordered = known[:, order]
        late = ordered & (position >= n_known)
        if bool(late.any()):
            row, at = (int(i) for i in late.nonzero()[0])
            first = int((~ordered[row]).nonzero()[0])
            raise ValueError(
                f"site {int(order[at])} of row {row} is known, but site {int(order[first])}, "
                "which comes before it in the order of this model, is not; FixedOrderARM needs "
                "the known sites to be the first of its order: use AnyOrderARM, or an order that "
                "starts with the known sites"
            )
        steps = (position - n_known).clamp(min=-1)
        return torch.empty_like(steps).index_copy_(1, order, steps).to(torch.int16)

    def _check_steps(self, steps: Tensor, lattice: Lattice) -> None:
        expected = self._steps(steps < 0, lattice)
        wrong = expected != steps
        if bool(wrong.any()):
            row, site = (int(i) for i in wrong.nonzero()[0])
            raise ValueError(
                f"site {site} of row {row} has step {int(steps[row, site])}, in the order of this "
                f"model it is {int(expected[row, site])}; use the steps that draw_steps gives, or "
                "AnyOrderARM for other orders"
            )

    def config(self) -> dict:
        """JSON-ready description."""
        return {"class": "FixedOrderARM", "network": self.network.config(), "order": self.order}

    @classmethod
    def from_config(cls, config: dict) -> FixedOrderARM:
        """Rebuild from :meth:`config` without ``class``."""
        return cls(network_from_config(config["network"]), config["order"])
