"""Marginalization model: one network for marginals beside one for conditionals."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from clease_nn.configurations import Configurations
from clease_nn.lattice import UNKNOWN
from clease_nn.models.abstract import (
    AbstractOccupationModel,
    Fields,
    check_any_order,
    conditionals,
)
from clease_nn.models.orders import AbstractOrder, BySize, order_from_config
from clease_nn.networks import AbstractNetwork, network_from_config

__all__ = ["MarginalizationModel"]


class MarginalizationModel(AbstractOccupationModel):
    """Generative marginalization model (Liu, Ramadge, Adams, ICML 2024).

    Two networks share the work. The conditional one is that of an any-order autoregressive
    model: it draws, and its exact likelihood is the ``log_prob`` of every draw. The marginal one
    gives ``ln p(x_S)`` of any set of known sites in one pass (:meth:`log_marginal`), so that a
    training step costs a few passes whatever the number of sites
    (:class:`~clease_nn.objectives.MarginalConsistency`).

    ``log_marginal`` is *not* normalised: the two networks agree only as far as training has
    brought them together. Weights, ``complete`` and ``log_prob`` use the conditional alone.

    The marginal is read out of the network's logits ``u`` at the known sites::

        ln p(x_S) = sum over known sites i of  u_i(x_i | x_S) - ln(number of species allowed on i)

    Without a known site it is exactly zero, the boundary condition of every marginal, whatever
    the weights; and a network whose head starts at zero starts at the uniform distribution, as
    the conditional does.

    Parameters
    ----------
    conditional, marginal : AbstractNetwork
        Of any class, with or without fields.
    order : AbstractOrder, optional
        Which sites share a pass. Default: ``BySize()``.

    Raises
    ------
    ValueError
        If both are the same object, or the conditional one sees known sites in one order only.

    Examples
    --------
    >>> from clease_nn.conditions import ConditionRange
    >>> from clease_nn.lattice import Lattice
    >>> from clease_nn.networks import LatticeConvolution
    >>> lattice = Lattice.square(2)
    >>> box = ConditionRange((300, 900), [-0.1], [0.1], [[-1.0, 1.0]])
    >>> conditional, marginal = (
    ...     LatticeConvolution(lattice, box, needs_fields=False) for _ in range(2)
    ... )
    >>> model = MarginalizationModel(conditional, marginal)
    >>> occupations = [[-1, -1, -1, -1], [0, 1, -1, -1], [0, 1, 1, 1]]
    >>> model.log_marginal(Configurations(lattice, box.grid(3, 1), occupations)).detach()
    tensor([ 0.0000, -1.3863, -2.7726], dtype=torch.float64)
    """

    def __init__(
        self,
        conditional: AbstractNetwork,
        marginal: AbstractNetwork,
        order: AbstractOrder | None = None,
    ):
        super().__init__()
        if conditional is marginal:
            raise ValueError("conditional and marginal must be two networks, got one object twice")
        check_any_order(conditional)
        self.conditional = conditional
        self.marginal = marginal
        self.order = BySize() if order is None else order

    def with_order(self, order: AbstractOrder) -> MarginalizationModel:
        """The same model, with the same weights, drawing in other passes."""
        return type(self)(self.conditional, self.marginal, order).train(self.training)

    @property
    def needs_fields(self) -> bool:
        """Whether fields must be handed to :meth:`complete`, :meth:`log_prob`, and so on."""
        return self.conditional.needs_fields or self.marginal.needs_fields

    # ------------------------------------------------------------------ conditional
    def log_conditionals(self, c: Configurations, fields: Tensor | None) -> Tensor:
        """ln q(species | known sites) of every site, (batch, sites, species), float64."""
        logits = self.conditional(c, fields)
        return conditionals(logits, c.lattice.allowed_mask(logits.device))

    def log_conditionals_at(self, c: Configurations, fields: Tensor | None, site: Tensor) -> Tensor:
        """ln q(species | known sites) of one site of each row, (batch, species), float64."""
        logits = self.conditional.at(c, fields, site)
        return conditionals(logits, c.lattice.allowed_mask(logits.device)[site])

    def draw_steps(self, c: Configurations, rng: torch.Generator) -> Tensor:
        """Passes of the unknown sites, (batch, sites) int16, -1 where known."""
        return self.order.steps(c.known, c.lattice, rng)

    # ------------------------------------------------------------------ marginal
    def log_marginal(self, partial: Configurations, fields: Fields | None = None) -> Tensor:
        """ln p(known sites) of the marginal network, shape (batch,), float64, differentiable.

        Not normalised; exactly zero where no site is known.

        Parameters
        ----------
        partial : Configurations
            Any sites known, none, or all.
        fields : callable, optional
            ``ensemble.fields``; needed where ``needs_fields``.

        Raises
        ------
        ValueError
            If fields are needed and absent.
        """
        return self._read_out(partial, self._fields(partial, fields))

    def _read_out(self, c: Configurations, fields: Tensor | None) -> Tensor:
        logits = self.marginal(c, fields).to(torch.float64)
        allowed = c.lattice.allowed_mask(logits.device)
        species = c.occupations.clamp(min=0).long()[:, :, None]
        score = logits.gather(2, species)[:, :, 0] - allowed.sum(1).to(torch.float64).log()
        return torch.where(c.known, score, 0.0).sum(1)

    def inconsistency(
        self, full: Configurations, steps: Tensor, passes: Tensor, fields: Fields | None = None
    ) -> Tensor:
        """What two neighbouring marginals miss the conditional by, (batch, n), float64, in nats.

        ``ln p(x_<l) + ln q(x_l | x_<l) - ln p(x_<=l)`` with ``x_<l`` the sites given or drawn
        before pass ``l`` and ``x_<=l`` those of pass ``l`` as well. Zero everywhere if and only
        if the model is consistent (Liu, Ramadge, Adams, ICML 2024, eq. 4). Differentiable.

        Parameters
        ----------
        full : Configurations
            (batch,) complete configurations.
        steps : Tensor (batch, sites)
            Pass in which each site is drawn, -1 where it is given.
        passes : Tensor (batch, n) of int64
            The passes to look at.
        fields : callable, optional
            ``ensemble.fields``; needed where ``needs_fields``.

        Raises
        ------
        ValueError
            If a site is unknown, or fields are needed and absent.
        """
        before, log_q, after = self.neighbours(full, steps, passes, fields)
        return before + log_q - after

    def neighbours(
        self, full: Configurations, steps: Tensor, passes: Tensor, fields: Fields | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``ln p(x_<l)``, ``ln q(x_l | x_<l)`` and ``ln p(x_<=l)``, each (batch, n), float64.

        Parameters and errors as :meth:`inconsistency`.
        """
        if not bool(full.known.all()):
            raise ValueError("inconsistency needs full configurations; complete them first")
        bare = replace(full, log_prob=None, energy=None, log_target=None, step=None)
        rows = torch.arange(len(full), device=passes.device).repeat_interleave(passes.shape[1])
        c, order = bare[rows], steps[rows]
        at = passes.reshape(-1, 1)
        parts = [
            replace(c, occupations=torch.where(known, c.occupations, UNKNOWN).to(torch.int8))
            for known in (order < at, order <= at)
        ]
        before_fields, after_fields = (self._fields(p, fields) for p in parts)
        truth = c.occupations.long()[:, :, None]
        log_q = self.log_conditionals(parts[0], before_fields).gather(2, truth)[:, :, 0]
        log_q = torch.where(order == at, log_q, 0.0).sum(1)
        before = self._read_out(parts[0], before_fields)
        after = self._read_out(parts[1], after_fields)
        return tuple(value.view(passes.shape) for value in (before, log_q, after))

    # ------------------------------------------------------------------ saving
    def config(self) -> dict:
        """JSON-ready description."""
        return {
            "class": "MarginalizationModel",
            "conditional": self.conditional.config(),
            "marginal": self.marginal.config(),
            "order": self.order.config(),
        }

    @classmethod
    def from_config(cls, config: dict) -> MarginalizationModel:
        """Rebuild from :meth:`config` without ``class``."""
        networks = (network_from_config(config[name]) for name in ("conditional", "marginal"))
        order = order_from_config(config["order"]) if "order" in config else None
        return cls(*networks, order)
