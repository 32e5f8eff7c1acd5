"""Which sites of a training row are known."""

from __future__ import annotations

import numpy as np

from clease_nn.lattice import Lattice

__all__ = ["random_known_sites", "with_surprises"]


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


_MOST_SURPRISES = 0.1  # of the known sites of a row


def with_surprises(
    full: np.ndarray, known: np.ndarray, lattice: Lattice, share: float, rng: np.random.Generator
) -> np.ndarray:
    """Copies of configurations in which some known sites carry species that chance put there.

    A network learns its conditionals from known sites as the ensemble has them. What is rare there,
    two minority sites next to each other in a cold small cell, it has never seen, but a cell
    of many times the size has it somewhere, and one wild guess there spoils a whole draw. The
    conditional distribution of the unknown sites is as well defined around improbable known
    sites; rows with them take nothing from the others but time.

    Parameters
    ----------
    full : ndarray, shape (rows, sites), int8
    known : ndarray of bool, shape (rows, sites)
    lattice : Lattice
    share : float
        Of the rows. In each of these a known site is drawn anew, evenly among its allowed
        species, with a probability that is itself uniform between 0 and 0.1.
    rng : numpy.random.Generator

    Examples
    --------
    >>> full, known = np.zeros((1000, 16), dtype=np.int8), np.ones((1000, 16), dtype=bool)
    >>> rng = np.random.default_rng(0)
    >>> x = with_surprises(full, known, Lattice.square(4), 0.25, rng)
    >>> bool(0.004 < x.mean() < 0.009)  # 0.25 * 0.05 / 2 of the sites carry the other species
    True
    """
    rows = rng.random(len(full)) < share
    chance = np.where(rows, _MOST_SURPRISES * rng.random(len(full)), 0.0)
    hit = known & (rng.random(full.shape) < chance[:, None])
    number = lattice.allowed.sum(1)
    choices = np.argsort(~lattice.allowed, axis=1, kind="stable")
    row, site = hit.nonzero()
    out = full.copy()
    out[row, site] = choices[site, rng.integers(0, number[site])]
    return out
