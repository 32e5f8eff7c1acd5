"""Training of marginalization models: self-consistency and the reverse KL divergence."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from clease_nn.lattice import UNKNOWN
from clease_nn.models import MarginalizationModel
from clease_nn.objectives.batches import CompleteBatch
from clease_nn.objectives.groups import group_means, group_sizes

__all__ = ["MarginalConsistency"]


@dataclass(frozen=True)
class MarginalConsistency:
    """Reverse KL divergence of the marginals, with conditionals made consistent with them.

    With marginal ``p``, conditional ``q``, target ``f = exp(-(E - mu.N)/kT)``, random orders and
    random positions ``l`` of them (Liu, Ramadge, Adams, ICML 2024, eqs. 5 and 9)::

        loss = KL term + weight * mean [ln p(x_<l) + ln q(x_l | x_<l) - ln p(x_<=l)]^2

    The gradient of the KL term is that of REINFORCE with ``p`` in place of ``q``,
    ``mean of (A - mean of A) * grad ln p(x)`` with the advantage ``A = ln p(x) - ln f(x)``, means
    taken over the rows of one condition. Half the variance of ``A`` among those rows has the same
    gradient: where the rows do not quite follow ``p``, the term is still least where ``p`` is
    proportional to ``f``. The first position has no known site, where ``ln p = 0`` by the
    construction of the model; consistency carries this boundary on to the full configuration
    and so fixes the normalisation, which the KL term leaves open.

    Memory and time of a step do not depend on the length of the orders, only on the number of
    positions a row.

    Parameters
    ----------
    weight : float
        Of self-consistency; the literature uses 10 to 100.
    standardise : bool
        Divide the advantage by its standard deviation among the rows of its condition, as in the
        literature. The gradient then does not shrink as the model improves.
    block : float
        Weight of the squared inconsistency of whole blocks, those that the model has just redrawn
        (not in the literature; 0 leaves it out). Neighbours hardly see an error ``D`` that grows
        evenly along an order of N sites: it costs ``(D / N)^2`` a position, and ``D^2`` a block
        of all sites. One marginal more a row; the likelihood of the block is known from its
        drawing, its gradient is taken at the positions that fall into it.

    Raises
    ------
    ValueError
        If ``weight`` is not positive and finite, or ``block`` is negative or not finite.
    """

    weight: float = 10.0
    standardise: bool = False
    block: float = 0.0

    def __post_init__(self):
        if not (self.weight > 0 and math.isfinite(self.weight)):
            raise ValueError(
                f"the weight of self-consistency must be positive and finite, got {self.weight}: "
                "without it nothing trains the conditional that draws"
            )
        if not (self.block >= 0 and math.isfinite(self.block)):
            raise ValueError(f"the weight of blocks must be finite and not negative: {self.block}")

    def __call__(
        self, model: MarginalizationModel, batch: CompleteBatch
    ) -> tuple[Tensor, dict[str, float]]:
        """Loss and metrics of a batch with ``log_target``, ``step`` and ``passes``.

        Returns
        -------
        loss : Tensor
            Its gradient is that of the formula of the class; its value carries no meaning.
        metrics : dict
            ``loss``: mean of ``ln p(x) - ln f(x)`` in nats, which tends to the mean of ``-ln Z``;
            ``inconsistency``: root mean square of the bracket in nats; ``spread``: root mean
            square of the centred advantage in nats.

        Raises
        ------
        TypeError
            If the model has no marginals.
        ValueError
            If the batch lacks ``log_target``, ``step`` or ``passes``, or a condition has one row.
        """
        if not isinstance(model, MarginalizationModel):
            raise TypeError(
                f"MarginalConsistency trains a MarginalizationModel, got {type(model).__name__}"
            )
        full = batch.full
        if full.log_target is None or full.step is None or batch.passes is None:
            raise ValueError(
                "MarginalConsistency needs log_target, step and passes; take the batches from a "
                "GibbsSource"
            )
        group_sizes(batch.group, "MarginalConsistency")
        before, log_q, after = model.neighbours(full, full.step, batch.passes, batch.fields)
        gap = before + log_q - after
        log_p = model.log_marginal(full, batch.fields)
        weight = 1.0 if batch.weight is None else batch.weight.to(log_p)
        difference = log_p.detach() - full.log_target.to(log_p.device)
        advantage = difference - group_means(difference, batch.group)
        spread = advantage.square().mean()
        if self.standardise:
            variance = group_means(advantage.square(), batch.group)
            advantage = advantage / variance.sqrt().clamp(min=1e-6)
        kl = (weight * advantage * log_p).mean()
        consistency = (weight * gap.square().mean(1)).mean()
        metrics = {
            "loss": float(difference.mean()),
            "inconsistency": float(gap.detach().square().mean().sqrt()),
            "spread": float(spread.sqrt()),
        }
        loss = kl + self.weight * consistency
        if self.block:
            loss = loss + self.block * (weight * self._block(model, batch, log_p, log_q)).mean()
        return loss, metrics

    @staticmethod
    def _block(model, batch: CompleteBatch, log_p: Tensor, log_q: Tensor) -> Tensor:
        """(batch,) whose mean gradient is that of the squared inconsistency of the block."""
        full = batch.full
        if batch.drawn is None or full.log_prob is None:
            raise ValueError(
                "blocks need to know which sites the model has just drawn, and log_prob; take the "
                "batches from a GibbsSource or set block=0"
            )
        given = replace(
            full, occupations=torch.where(batch.drawn, UNKNOWN, full.occupations).to(torch.int8)
        )
        log_s = model.log_marginal(given, batch.fields)
        gap = (log_s - log_p).detach() + full.log_prob
        n_sites, n_passes = batch.drawn.shape[1], batch.passes.shape[1]
        inside = batch.passes >= n_sites - batch.drawn.sum(1, keepdim=True)
        log_block = torch.where(inside, log_q, 0.0).sum(1) * (n_sites / n_passes)
        return 2 * gap * (log_s + log_block - log_p)
