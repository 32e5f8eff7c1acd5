"""Grids of conditions and the neighbours on them."""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import minimum_spanning_tree

from clease_nn.conditions import ConditionRange, Conditions

__all__ = ["condition_grid", "neighbours", "weakest_link"]


def neighbours(index: np.ndarray, axis: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Even and odd pairs of neighbours along one axis of a grid of chain numbers."""
    index = np.moveaxis(index, axis, 0)
    return [
        (index[parity : len(index) - 1 : 2].ravel(), index[parity + 1 :: 2].ravel())
        for parity in (0, 1)
    ]


def weakest_link(pairs, accepted, attempted) -> float:
    """Acceptance of the weakest pair on the strongest tree that joins all conditions.

    ``pairs``, ``accepted`` and ``attempted`` as parallel tempering counts them: for every axis
    even and odd pairs, exchanges accepted of each, and how often each set was tried.
    """
    n = 1 + max((int(j.max()) for both in pairs for _, j in both if len(j)), default=0)
    links = coo_matrix((n, n))
    for both, taken, tried in zip(pairs, accepted, attempted, strict=True):
        for (i, j), a, steps in zip(both, taken, tried, strict=True):
            cost = 2.0 - a[: len(i)] / max(steps, 1)
            links = links + coo_matrix((cost, (i, j)), shape=(n, n))
    tree = minimum_spanning_tree(links)
    return 2.0 - float(tree.data.max(initial=1.0))


def condition_grid(
    box: ConditionRange | Conditions,
    shape: tuple[int, ...],
    jitter: bool,
    rng: np.random.Generator,
) -> Conditions:
    """Conditions of a grid of a shape, the last axis fastest.

    With ``jitter`` each is drawn uniformly within its cell of the grid; without, the grid
    includes the ends of the box. Conditions are passed through if their number fits.

    Raises
    ------
    ValueError
        If the shape does not fit the box, or conditions are to be jittered.

    Examples
    --------
    >>> box = ConditionRange((300, 1200), [-0.1], [0.1], [[0.0, 1.0]])
    >>> condition_grid(box, (2, 3), False, None).temperature
    tensor([ 300.,  300.,  300., 1200., 1200., 1200.], dtype=torch.float64)
    """
    if any(n < 1 for n in shape):
        raise ValueError(f"shape must be positive along every axis, got {shape}")
    if isinstance(box, Conditions):
        if jitter:
            raise ValueError("jitter needs a ConditionRange; give the box instead of conditions")
        if len(box) != int(np.prod(shape)):
            raise ValueError(
                f"shape {shape} needs {int(np.prod(shape))} conditions, not {len(box)}"
            )
        return box
    if len(shape) != 1 + box.n_axes:
        raise ValueError(
            f"shape must have {1 + box.n_axes} numbers (temperatures and {box.n_axes} axes of "
            f"chemical potentials), got {shape}"
        )
    mesh = np.stack([m.ravel() for m in np.meshgrid(*map(np.arange, shape), indexing="ij")], 1)
    n = np.array(shape)
    if jitter:
        return box.at((mesh + rng.random(mesh.shape)) / n)
    return box.at(np.where(n > 1, mesh / np.maximum(n - 1, 1), 0.5))
