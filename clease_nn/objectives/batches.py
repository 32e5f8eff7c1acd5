"""What a training step is given: batches of partial, and of complete, configurations."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from clease_nn.configurations import Configurations
from clease_nn.models import Fields

__all__ = ["CompleteBatch", "MaskedBatch"]


def _columns(batch, change) -> dict:
    """Every column of tensors or configurations, changed."""
    named = ((f.name, getattr(batch, f.name)) for f in fields(batch))
    return {k: change(v) for k, v in named if isinstance(v, (Tensor, Configurations))}


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
    fields : Tensor, shape (batch, sites, 2 * species), optional
        ``ensemble.fields`` of the partial configurations in kT, where the model needs them.
    weight : Tensor, shape (batch,), optional
        Weight of each row, mean one; default all one.
    """

    partial: Configurations
    targets: Tensor
    fields: Tensor | None = None
    weight: Tensor | None = None

    def __len__(self) -> int:
        return len(self.partial)

    @property
    def occupations(self) -> Tensor:
        """(batch, sites) int8, with unknown sites."""
        return self.partial.occupations

    def to(self, device: str | torch.device) -> MaskedBatch:
        """The same batch on a device."""
        return replace(self, **_columns(self, lambda column: column.to(device)))

    def split(self, n: int) -> list[MaskedBatch]:
        """Up to ``n`` parts with about as many rows each.

        Examples
        --------
        >>> from clease_nn.conditions import Conditions
        >>> from clease_nn.lattice import Lattice
        >>> at = Conditions([300.0] * 5, [[0.0, 0.0]] * 5)
        >>> c = Configurations.unknown(Lattice.square(2), at)
        >>> [len(part) for part in MaskedBatch(c, torch.zeros(5, 4, 2)).split(2)]
        [3, 2]
        """
        if n == 1:
            return [self]
        rows = torch.arange(len(self)).tensor_split(min(n, len(self)))
        return [replace(self, **_columns(self, lambda column, r=r: column[r])) for r in rows]


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

    def __len__(self) -> int:
        return len(self.full)

    @property
    def occupations(self) -> Tensor:
        """(batch, sites) int8."""
        return self.full.occupations

    def to(self, device: str | torch.device) -> CompleteBatch:
        """The same batch on a device."""
        return replace(self, **_columns(self, lambda column: column.to(device)))

    def split(self, n: int) -> list[CompleteBatch]:
        """Up to ``n`` parts with about as many rows each; rows of a condition stay together."""
        if n == 1:
            return [self]
        counts = torch.bincount(self.group)
        before = counts.cumsum(0) - counts
        part_of = (before * n // max(len(self), 1))[self.group]
        parts = []
        for k in part_of.unique():
            rows = (part_of == k).nonzero()[:, 0]
            columns = _columns(self, lambda column, r=rows: column[r])
            columns["group"] = torch.unique(columns["group"], return_inverse=True)[1]
            parts.append(replace(self, **columns))
        return parts
