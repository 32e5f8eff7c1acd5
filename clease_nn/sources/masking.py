"""Which sites of a training row are known."""

from __future__ import annotations

import numpy as np

__all__ = ["random_known_sites"]


def random_known_sites(
    n_rows: int, n_sites: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Which sites are known, and the weight that makes every number of them count alike.

    The first sites drawn decide between phases, and what they should be is the noisiest target:
    the coin that a chain's phase is. Half of the rows therefore have a number of known sites
    that is uniform in its logarithm, the other half one that is uniform; weights correct for it.

    Returns
    -------
    known : ndarray of bool, shape (rows, sites)
        Stratified numbers 0 ... sites - 1, random positions.
    weight : ndarray, shape (rows,), float32
        Uniform probability of the number over the one it was drawn with.

    Examples
    --------
    >>> known, weight = random_known_sites(1000, 4, np.random.default_rng(0))
    >>> known.sum(1).max().item(), weight.mean().round(2).item()
    (3, 1.0)
    """
    k = np.arange(n_sites)
    p = 0.5 / n_sites + 0.5 * np.log((k + 2) / (k + 1)) / np.log(n_sites + 1)
    strata = (rng.permutation(n_rows) + rng.random(n_rows)) / n_rows
    number = np.minimum(np.searchsorted(np.cumsum(p), strata, side="right"), n_sites - 1)
    rank = rng.random((n_rows, n_sites)).argsort(1).argsort(1)
    return rank < number[:, None], (1 / (n_sites * p[number])).astype(np.float32)
