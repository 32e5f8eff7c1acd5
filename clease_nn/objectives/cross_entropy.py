"""Cross entropy: the model against configurations of the ensemble."""

from __future__ import annotations

import torch
from torch import Tensor

from clease_nn.models import AbstractOccupationModel
from clease_nn.objectives.batches import CompleteBatch, MaskedBatch

__all__ = ["any_order_cross_entropy", "cross_entropy"]


def cross_entropy(
    model: AbstractOccupationModel, batch: MaskedBatch | CompleteBatch
) -> tuple[Tensor, dict[str, float]]:
    """Mean of ``-weight * ln q(x)`` over configurations of the ensemble.

    Rows of a :class:`~clease_nn.objectives.CompleteBatch` are scored in their own passes; those
    of a :class:`~clease_nn.objectives.MaskedBatch` by :func:`any_order_cross_entropy`.

    Returns
    -------
    loss : Tensor
        nats per configuration, mean over the batch.
    metrics : dict
        ``loss``, and ``excess`` for masked batches.

    Raises
    ------
    ValueError
        If complete configurations come without the passes of their sites.
    """
    if isinstance(batch, MaskedBatch):
        return any_order_cross_entropy(model, batch)
    if batch.full.step is None:
        raise ValueError(
            "cross entropy of complete configurations needs their `step`; set it to "
            "model.draw_steps of the unknown configurations"
        )
    log_q = model.log_prob(
        batch.full, steps=batch.full.step, fields=batch.fields, passes=batch.passes
    )
    if batch.weight is not None:
        log_q = log_q * batch.weight.to(log_q)
    loss = -log_q.mean()
    return loss, {"loss": float(loss.detach())}


def any_order_cross_entropy(
    model: AbstractOccupationModel, batch: MaskedBatch
) -> tuple[Tensor, dict[str, float]]:
    """Any-order likelihood: ``N / unknown * sum over unknown sites of CE(target, model)``.

    With random positions and (by weight) uniform numbers of the known sites its mean is the mean
    of ``-ln q(x)`` over random orders (Hoogeboom et al., ICLR 2022, eq. 5), with memory O(1) in
    the number of sites.

    Returns
    -------
    loss : Tensor
        nats per configuration, mean over the batch.
    metrics : dict
        ``loss`` and ``excess``: loss minus the entropy of the targets, which tends to the KL
        divergence when the targets are exact conditionals.
    """
    log_q = model.log_conditionals(batch.partial, batch.fields)
    targets = batch.targets.to(log_q.dtype)
    unknown = ~batch.partial.known
    weight = unknown * (unknown.shape[1] / unknown.sum(1, keepdim=True)) / len(unknown)
    if batch.weight is not None:
        weight = weight * batch.weight.to(log_q)[:, None]
    entropy = -(torch.xlogy(targets, targets)).sum(-1)
    ce = -(targets * log_q.masked_fill(targets == 0, 0.0)).sum(-1)
    loss = (weight * ce).sum()
    with torch.no_grad():
        excess = loss - (weight * entropy).sum()
    return loss, {"loss": float(loss.detach()), "excess": float(excess)}
