"""What every model is: the conditional is all it has to say; drawing and scoring follow."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from clease_nn.configurations import Configurations
from clease_nn.lattice import UNKNOWN, Lattice
from clease_nn.networks import AbstractNetwork

__all__ = [
    "AbstractOccupationModel",
    "Fields",
    "check_any_order",
    "conditionals",
]

Fields = Callable[[Configurations], Tensor]


def conditionals(logits: Tensor, allowed: Tensor) -> Tensor:
    """Normalised ln q of the allowed species, float64; -inf for the others.

    Parameters
    ----------
    logits : Tensor, shape (..., species)
    allowed : Tensor of bool, shape broadcasting with ``logits``

    Examples
    --------
    >>> conditionals(torch.zeros(3), torch.tensor([True, True, False])).exp()
    tensor([0.5000, 0.5000, 0.0000], dtype=torch.float64)
    """
    return logits.to(torch.float64).masked_fill(~allowed, -torch.inf).log_softmax(-1)


def check_any_order(network: AbstractNetwork) -> None:
    """Raise ValueError if a network ignores known sites that come late in an order of its own."""
    if not network.any_order:
        raise ValueError(
            f"{type(network).__name__} sees the sites before each in one order, here any sites may "
            "be known: use FixedOrderARM with it, or another network"
        )


class AbstractOccupationModel(nn.Module, ABC):
    """A normalised distribution of configurations, drawn pass by pass.

    A subclass says which sites are drawn in which pass (:meth:`draw_steps`) and the conditional
    of every unknown site (:meth:`log_conditionals`); drawing and scoring follow, once for all::

        ln q(x | given) = sum over drawn sites i of  ln q(x_i | given, sites of earlier passes)

    Sites of one pass are drawn independently of each other given the earlier ones.

    Attributes
    ----------
    needs_fields : bool
        Whether ``fields`` must be handed to :meth:`complete` and :meth:`log_prob`.
    any_order : bool
        Whether any set of sites may be known; otherwise :meth:`draw_steps` refuses some.
    """

    needs_fields: bool
    any_order: bool = True

    @abstractmethod
    def log_conditionals(self, c: Configurations, fields: Tensor | None) -> Tensor:
        """ln q(species | known sites) of every site, (batch, sites, species), float64.

        Species not allowed on a site have -inf. Rows of known sites carry no meaning.
        """

    def log_conditionals_at(self, c: Configurations, fields: Tensor | None, site: Tensor) -> Tensor:
        """:meth:`log_conditionals` of one site of each row, (batch, species), without gradients.

        Models that can compute it faster than for all sites do so.
        """
        with torch.no_grad():
            log_q = self.log_conditionals(c, fields)
        return log_q[torch.arange(len(c), device=log_q.device), site]

    @abstractmethod
    def draw_steps(self, c: Configurations, rng: torch.Generator) -> Tensor:
        """Pass in which each site is to be drawn, (batch, sites) int16, -1 where known."""

    @torch.no_grad()
    def complete(
        self,
        partial: Configurations,
        rng: torch.Generator,
        fields: Fields | None = None,
        steps: Tensor | None = None,
    ) -> Configurations:
        """Draw every unknown site; known sites stay.

        Parameters
        ----------
        partial : Configurations
            Any sites known, none, or all.
        rng : torch.Generator
            Source of all randomness, on the CPU.
        fields : callable, optional
            ``ensemble.fields``; needed where ``needs_fields``.
        steps : Tensor (batch, sites), optional
            Passes to use instead of :meth:`draw_steps`, -1 for the known sites and no others.

        Returns
        -------
        Configurations
            With ``occupations``, ``step`` and ``log_prob`` (ln q of the drawn sites given the
            given ones).

        Raises
        ------
        ValueError
            If fields are needed and absent, ``steps`` do not belong to the unknown sites, or
            these known sites cannot be served (:attr:`any_order`).
        """
        device = partial.occupations.device
        if steps is None:
            steps = self.draw_steps(partial, rng)
        elif not torch.equal(steps.to(device) < 0, partial.known):
            raise ValueError("steps must be -1 where a site is known, and 0 or more elsewhere")
        steps = steps.to(device)
        evaluate = self._evaluator(partial, steps, fields)
        occupations = partial.occupations.clone()
        log_prob = torch.zeros(len(partial), dtype=torch.float64, device=device)
        n_passes = int(steps.max()) + 1 if steps.numel() else 0
        for t in range(n_passes):
            now = steps == t
            rows = now.any(1).nonzero()[:, 0]
            if len(rows) == 0:
                continue
            everyone = len(rows) == len(partial)
            c = replace(partial, occupations=occupations)
            c = c if everyone else c[rows]
            row, site = (now if everyone else now[rows]).nonzero(as_tuple=True)
            log_q = evaluate(c, row, site)
            u = torch.rand(len(row), generator=rng, dtype=torch.float64).to(device)
            cumulative = log_q.exp().cumsum(-1)
            drawn = (u[:, None] * cumulative[:, -1:] >= cumulative).sum(-1)
            last = (log_q > -torch.inf).long() * torch.arange(log_q.shape[1], device=device)
            drawn = torch.minimum(drawn, last.max(-1).values)
            target = rows[row]
            occupations[target, site] = drawn.to(torch.int8)
            log_prob.index_add_(0, target, log_q.gather(1, drawn[:, None])[:, 0])
        return replace(
            partial,
            occupations=occupations,
            step=steps,
            log_prob=log_prob,
            energy=None,
            log_target=None,
        )

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

        Differentiable with respect to the parameters. All passes of all rows are independent
        given ``steps`` and are evaluated ``chunk`` at a time.

        Parameters
        ----------
        full : Configurations
        steps : Tensor (batch, sites)
            Pass in which each site is drawn, -1 where it is given.
        fields : callable, optional
            ``ensemble.fields``; needed where ``needs_fields``.
        passes : Tensor (batch, n) of int64, optional
            Score these passes only, ``sum over them * (passes of the row / n)``: unbiased where
            they are drawn evenly, with memory O(n) instead of O(sites). Models that score all
            passes at once ignore it.

        Raises
        ------
        ValueError
            If a site is unknown, or fields are needed and absent.
        """
        if not bool(full.known.all()):
            raise ValueError("log_prob needs full configurations; complete them first")
        device = full.occupations.device
        steps = steps.to(device)
        out = torch.zeros(len(full), dtype=torch.float64, device=device)
        n_passes = int(steps.max()) + 1 if steps.numel() else 0
        used = torch.zeros(len(full), max(n_passes, 1), dtype=torch.bool, device=device)
        drawn_row, drawn_site = (steps >= 0).nonzero(as_tuple=True)
        used[drawn_row, steps[drawn_row, drawn_site].long()] = True
        if passes is None:
            pairs = used.nonzero()
            scale = out + 1.0
        else:
            rows = torch.arange(len(full), device=device)[:, None].expand_as(passes)
            pairs = torch.stack([rows.reshape(-1), passes.to(device).reshape(-1).long()], 1)
            scale = used.sum(1) / passes.shape[1]
        for k in range(0, len(pairs), chunk):
            rows, at = pairs[k : k + chunk].T
            log_q = self._log_q_of_passes(full, rows, steps[rows], at, fields)
            out = out.index_add(0, rows, log_q * scale[rows])
        return out

    def _log_q_of_passes(self, full, rows: Tensor, steps: Tensor, at: Tensor, fields) -> Tensor:
        """ln q of what pass ``at`` of each of some rows draws given earlier passes, (rows,)."""
        c = replace(full, log_prob=None, energy=None, log_target=None, step=None)[rows]
        truth = c.occupations.long()[:, :, None]
        known, now = steps < at[:, None], steps == at[:, None]
        c = replace(c, occupations=torch.where(known, c.occupations, UNKNOWN).to(torch.int8))
        log_q = self.log_conditionals(c, self._fields(c, fields)).gather(2, truth)[:, :, 0]
        return torch.where(now, log_q, 0.0).sum(1)

    def check_lattice(self, lattice: Lattice) -> None:
        """Raise ValueError if one of the networks cannot serve a lattice."""
        for part in self.modules():
            if isinstance(part, AbstractNetwork):
                part.check_lattice(lattice)

    def _evaluator(self, partial: Configurations, steps: Tensor, fields: Fields | None) -> Callable:
        """What :meth:`complete` asks for the conditionals of one pass after another.

        Called as ``f(c, row, site)`` with the rows of ``partial`` that draw something, as they
        are by then, and the sites to draw, one or more a row: ln q, (len(row), species), float64.
        A model that can reuse what earlier passes computed returns a function with a memory.
        """

        def evaluate(c: Configurations, row: Tensor, site: Tensor) -> Tensor:
            if len(row) == len(c):  # one site a row
                return self.log_conditionals_at(c, self._fields(c, fields), site)
            return self.log_conditionals(c, self._fields(c, fields))[row, site]

        return evaluate

    def _fields(self, c: Configurations, fields: Fields | None) -> Tensor | None:
        if not self.needs_fields:
            return None
        if fields is None:
            raise ValueError(
                "this model was trained with conditional fields of its energy; hand it "
                "`fields=ensemble.fields`"
            )
        return fields(c)

    @abstractmethod
    def config(self) -> dict:
        """JSON-ready description, with its ``class``.

        :func:`clease_nn.models.model_from_config` rebuilds the model from it.
        """

    @classmethod
    @abstractmethod
    def from_config(cls, config: dict) -> AbstractOccupationModel:
        """Rebuild from :meth:`config` without ``class``; weights are loaded apart."""
