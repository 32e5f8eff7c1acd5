"""Which conditions share states, and where more samples are needed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.thermodynamics.density_of_states import DensityOfStates
from clease_nn.thermodynamics.mixture import start, states_of
from clease_nn.thermodynamics.pooling import Pool

__all__ = ["overlap", "where_to_sample"]

_STRIDE = 2.0  # standard deviations of ln p from one proposed condition to the next


def overlap(c: Configurations | Sequence[Configurations]) -> np.ndarray:
    """Overlap of the distributions of all sampled conditions.

    Entry (k, l) is the mean share that condition ``l`` has in the density of the mixture of all
    samples, over the samples of condition ``k``: rows sum to one. A diagonal entry near one says
    that a condition stands alone. With chains, neighbours should share a few per cent; weighted
    draws need no overlap.

    Parameters
    ----------
    c : Configurations or sequence of Configurations
        As for :func:`~clease_nn.thermodynamics.density_of_states`.

    Returns
    -------
    ndarray, shape (conditions, conditions)
        In the order of the conditions of ``DensityOfStates.sampled``.

    References
    ----------
    P. V. Klimovich, M. R. Shirts and D. L. Mobley, J. Comput. Aided Mol. Des. 29, 397 (2015).

    Examples
    --------
    >>> from clease_nn.ensemble import SemiGrandCanonical
    >>> from clease_nn.lattice import Lattice
    >>> zero = SemiGrandCanonical(lambda lattice, x: torch.zeros(len(x)))
    >>> x = torch.randint(2, (40, 4), generator=torch.Generator().manual_seed(0))
    >>> at = Conditions([300.0, 600.0], [[0.0, 0.0], [0.0, 0.0]]).repeat(20)
    >>> c = Configurations(Lattice.square(2), at, x, chain=torch.arange(40))
    >>> overlap(zero.score(c)).round(2).tolist()
    [[0.5, 0.5], [0.5, 0.5]]
    """
    pool = Pool.of(c)
    model = states_of(pool)[0]
    f = model.ratios(start(pool))
    return model.shared(f, model.effective) * model.effective


def where_to_sample(dos: DensityOfStates, conditions: Conditions) -> Conditions:
    """Conditions whose samples would determine those that are not.

    From the nearest sampled condition towards every undetermined one, in steps over which
    ``ln p`` changes by two standard deviations; the fluctuations are those of the data at the
    sampled condition, so that proposals far away are rough. Whatever lies within a step of a
    proposal already made needs none of its own.

    Parameters
    ----------
    dos : DensityOfStates
    conditions : Conditions
        Those one wants to know.

    Returns
    -------
    Conditions
        Nearest first; empty if all are determined.
    """
    missing = np.flatnonzero(~dos.determined(conditions))
    if not len(missing):
        return conditions[missing]
    if dos.sampled is None or not len(dos.sampled):
        return conditions[torch.as_tensor(missing)]
    wanted, there = _point(conditions)[missing], _point(dos.sampled)
    scale = np.maximum(np.ptp(np.concatenate([wanted, there]), axis=0), 1e-9)
    gap = (((wanted[:, None] - there[None]) / scale) ** 2).sum(-1)
    nearest = gap.argmin(1)
    metric = {k: _fluctuations(dos, k) for k in np.unique(nearest)}
    proposed = np.empty((0, wanted.shape[1]))
    for i in np.argsort(gap.min(1)):
        cov, origin = metric[nearest[i]], there[nearest[i]]
        if (_distance(proposed - wanted[i], cov) < 0.5 * _STRIDE).any():
            continue
        steps = max(1, int(np.ceil(_distance((wanted[i] - origin)[None], cov)[0] / _STRIDE)))
        share = np.arange(1, steps + 1)[:, None] / steps
        path = origin + share * (wanted[i] - origin)
        fresh = [p for p in path[:-1] if not (_distance(proposed - p, cov) < _STRIDE).any()]
        proposed = np.concatenate([proposed, *[p[None] for p in fresh], path[-1:]])
    beta = torch.as_tensor(-proposed[:, 0])
    return Conditions.from_kT(1 / beta, torch.as_tensor(proposed[:, 1:]) / beta[:, None])


def _point(conditions: Conditions) -> np.ndarray:
    """The natural parameters of E and N: (-beta, beta mu)."""
    beta = conditions.beta[:, None]
    return torch.cat([-beta, beta * conditions.mu], 1).cpu().numpy()


def _fluctuations(dos: DensityOfStates, k: int) -> np.ndarray:
    """Covariance of E and N at a sampled condition."""
    x = np.concatenate([dos.energy[:, None], dos.counts], 1)
    centre = x.mean(0)
    x = x - centre
    second = (x[:, :, None] * x[:, None, :]).reshape(len(x), -1)
    m = dos.moments(np.concatenate([x, second], 1), dos.sampled[int(k)], check=False).mean
    d = x.shape[1]
    return m[d:].reshape(d, d) - np.outer(m[:d], m[:d])


def _distance(step: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Standard deviation of the change of ln p over steps (n, d)."""
    return np.sqrt(np.maximum(np.einsum("ni,ij,nj->n", step, covariance, step), 0.0))
