"""What is minimised: pure functions of a model and a batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clease_nn.configurations import Configurations
from clease_nn.models import AbstractOccupationModel

__all__ = ["Batch", "any_order_cross_entropy"]


@dataclass(frozen=True, eq=False)
class Batch:
    """Partial configurations and what their unknown sites should be predicted to be.

    Attributes
    ----------
    partial : Configurations
        (batch,) rows with at least one unknown site each.
    targets : Tensor, shape (batch, sites, species), float32
        Probabilities of the species on unknown sites; rows of known sites are ignored.
    fields : Tensor, shape (batch, sites, species), optional
        Conditional fields of the partial configurations in kT, where the model needs them.
    weight : Tensor, shape (batch,), optional
        Weight of each row, mean one; default all one.
    """

    partial: Configurations
    targets: Tensor
    fields: Tensor | None = None
    weight: Tensor | None = None


def any_order_cross_entropy(
    model: AbstractOccupationModel, batch: Batch
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
