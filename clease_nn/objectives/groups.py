"""Statistics of rows that share a condition."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["group_means", "group_sizes"]


def group_sizes(group: Tensor, who: str) -> Tensor:
    """How many rows each row's group has, (batch,) float64.

    Raises
    ------
    ValueError
        If a group has a single row: nothing to compare it with.
    """
    counts = torch.bincount(group)
    if bool((counts == 1).any()):
        k = int((counts == 1).nonzero()[0])
        raise ValueError(
            f"{who} compares the rows of a condition with one another, but condition {k} of the "
            f"batch has 1 row; it needs at least 2: raise batch_size or lower n_conditions"
        )
    return counts.to(torch.float64)[group]


def group_means(values: Tensor, group: Tensor) -> Tensor:
    """Mean over the rows of the same group, spread back to the rows, (batch,) float64.

    Examples
    --------
    >>> group_means(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 1]))
    tensor([2., 2., 5.], dtype=torch.float64)
    """
    values = values.to(torch.float64)
    n = torch.bincount(group)
    total = torch.zeros(len(n), dtype=torch.float64, device=group.device)
    return (total.index_add(0, group, values) / n)[group]
