"""What a training step is given: batches of partial, and of complete, configurations."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from clease_nn.configurations import Configurations
from clease_nn.models import Fields

__all__ = ["CompleteBatch", "MaskedBatch"]


@dataclass(frozen=True, eq=False)
class MaskedBatch:
    """Partial configurations and what their unknown sites should be predicted to be.

    For models that take any set of known sites (``any_order``).

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


@dataclass(frozen=True, eq=False)
class CompleteBatch:
    """Complete configurations with the passes in which a model draws, or drew, their sites.

    Attributes
    ----------
    full : Configurations
        (batch,) rows with ``step``; with ``log_target`` where the objective needs energies, and
        with ``log_prob`` where the model that is trained has just drawn them.
    group : Tensor, shape (batch,), int64
        Rows of one condition share a number, 0 ... groups - 1.
    fields : callable, optional
        ``ensemble.fields``, where the model needs them.
    passes : Tensor, shape (batch, n), int64, optional
        Passes that gradients are taken at (see ``log_prob`` of models); None: all.
    weight : Tensor, shape (batch,), optional
        Weight of each row, mean one; default all one.
    drawn : Tensor, shape (batch, sites), bool, optional
        The sites that the model has just drawn and ``log_prob`` is about, the last ones of
        ``step``; None: all.
    """

    full: Configurations
    group: Tensor
    fields: Fields | None = None
    passes: Tensor | None = None
    weight: Tensor | None = None
    drawn: Tensor | None = None
