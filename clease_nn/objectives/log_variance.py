"""Log-variance divergence."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clease_nn.models import AbstractOccupationModel
from clease_nn.objectives.batches import CompleteBatch
from clease_nn.objectives.groups import group_means, group_sizes

__all__ = ["LogVariance"]


@dataclass(frozen=True)
class LogVariance:
    """Variance of ``ln q - ln f`` among the rows of each condition, averaged over conditions.

    Zero if and only if the model is exact on the rows' support; the rows may come from anywhere,
    weights are ignored. On the model's own draws its expected gradient is twice that of
    KL(q || p) (Richter et al., NeurIPS 2020).

    Examples
    --------
    >>> LogVariance()
    LogVariance()
    """

    def __call__(
        self, model: AbstractOccupationModel, batch: CompleteBatch
    ) -> tuple[Tensor, dict[str, float]]:
        """Loss whose gradient is that of the variance, and what is watched.

        With ``batch.passes`` the gradient is an unbiased estimate; ln q itself is then taken from
        ``batch.full.log_prob``, or scored once more without gradients where the rows carry none.

        Returns
        -------
        loss : Tensor
            Its value means nothing.
        metrics : dict
            ``loss``: the variance (nats squared), unbiased.

        Raises
        ------
        ValueError
            If the rows are not complete or not scored, or a condition has a single row.
        """
        full = batch.full if isinstance(batch, CompleteBatch) else None
        if full is None or full.step is None or full.log_target is None:
            raise ValueError(
                "LogVariance needs complete configurations with step and log_target; feed it a "
                "GeneratedSource"
            )
        n = group_sizes(batch.group, "LogVariance")
        log_q = model.log_prob(full, steps=full.step, fields=batch.fields, passes=batch.passes)
        if batch.passes is None:
            now = log_q.detach()
        elif full.log_prob is not None:
            now = full.log_prob
        else:
            with torch.no_grad():
                now = model.log_prob(full, steps=full.step, fields=batch.fields)
        r = now - full.log_target
        centred = r - group_means(r, batch.group)
        # every condition counts alike: 1/(n-1) within each of them, mean over them
        share = 1.0 / ((n - 1) * len(torch.unique(batch.group)))
        loss = (2 * share * centred * log_q).sum()
        return loss, {"loss": float((share * centred.square()).sum())}
