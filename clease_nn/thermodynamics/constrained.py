"""Restricted ensembles: how probable what was held is."""

from __future__ import annotations

import numpy as np
import torch

from clease_nn.configurations import Configurations
from clease_nn.lattice import UNKNOWN
from clease_nn.statistics import Estimate
from clease_nn.thermodynamics.averages import conditions, log_z
from clease_nn.thermodynamics.density_of_states import DensityOfStates
from clease_nn.thermodynamics.groups import name

__all__ = ["log_probability"]


def log_probability(
    constrained: Configurations, free: Configurations | DensityOfStates
) -> Estimate:
    """ln P of what was held: ``ln Z_c - ln Z`` at every condition of ``constrained``.

    ``Z_c``, the sum over all completions of the held species, is the mean weight of draws
    completed around them; ``Z`` that of draws of all sites. A motif far too rare to be met among
    free draws gets its probability so, and -kT ln P is its free energy of formation. (Of a common
    one, ``mean(free, present)`` tells the same.)

    Parameters
    ----------
    constrained : Configurations
        Weighted, completed around the same held sites at each condition
        (:func:`clease_nn.sampling.held`), or with given numbers of species.
    free : Configurations or DensityOfStates
        Weighted draws, independent of the first, at the same conditions and perhaps others; or
        states with an absolute ln Z. Draws around some of the held sites give the probability of
        the rest given those.

    Returns
    -------
    Estimate
        Shape (conditions,); errors of the two added in quadrature, the smaller NESS.

    Raises
    ------
    TypeError
        If ``free`` is something else.
    ValueError
        As :func:`~clease_nn.thermodynamics.log_z`; if lattices differ, a condition is missing in
        ``free``, its ln Z is not absolute, or it holds sites that ``constrained`` does not hold so.

    Examples
    --------
    Without interactions, sites are independent and a site is Au with probability
    ``1 / (1 + exp(-mu/kT))``:

    >>> from dataclasses import replace
    >>> from clease_nn.conditions import Conditions
    >>> from clease_nn.ensemble import SemiGrandCanonical
    >>> from clease_nn.lattice import Lattice
    >>> lattice = Lattice.square(2)
    >>> zero = SemiGrandCanonical(lambda lattice, x: torch.zeros(len(x)))
    >>> at = Conditions([600.0], [[0.0, 0.05]]).repeat(2000)
    >>> x = torch.randint(2, (2000, 4), generator=torch.Generator().manual_seed(0))
    >>> steps = torch.arange(4).expand(2000, 4)
    >>> q = torch.full((2000,), -4 * np.log(2))
    >>> free = zero.score(Configurations(lattice, at, x, steps, log_prob=q))
    >>> first_is_gold = torch.where(steps == 0, torch.tensor(1), x.roll(1, 0))
    >>> c = Configurations(lattice, at, first_is_gold, steps - 1, log_prob=q + np.log(2))
    >>> found = log_probability(zero.score(c), free)
    >>> bool(abs(found[0].z(-np.log1p(np.exp(-0.05 * at.beta[0].item())))) < 3)
    True
    """
    if not isinstance(free, Configurations | DensityOfStates):
        raise TypeError(
            f"free must be weighted Configurations or a DensityOfStates, got {type(free).__name__}"
        )
    above = log_z(constrained)
    if constrained.lattice.fingerprint != free.lattice.fingerprint:
        raise ValueError(
            "constrained and free draws are of different lattices; a probability is a ratio "
            "within one supercell"
        )
    at = conditions(constrained)
    if isinstance(free, DensityOfStates):
        if not free.absolute:
            raise ValueError(
                "this density of states knows ln Z up to a constant only; combine weighted draws"
            )
        below = free.log_z(at)
    else:
        everywhere = log_z(free)
        index = [_row(at[k], conditions(free)) for k in range(len(at))]
        _check_given(constrained, free, at)
        below = everywhere[index]
    return Estimate(
        np.asarray(above.value) - np.asarray(below.value),
        np.hypot(above.error, below.error),
        np.fmin(above.ness, below.ness),
    )


def _rows(c: Configurations, condition) -> torch.Tensor:
    same = c.conditions.temperature == condition.temperature[0]
    return (same & (c.conditions.mu == condition.mu[0]).all(1)).nonzero()[:, 0]


def _row(condition, others) -> int:
    same = (others.temperature == condition.temperature[0]) & (others.mu == condition.mu[0]).all(1)
    if not bool(same.any()):
        raise ValueError(
            f"there are no free draws at {name(condition)}; draw there, or combine those of other "
            "conditions by density_of_states"
        )
    return int(same.nonzero()[0])


def _check_given(constrained: Configurations, free: Configurations, at) -> None:
    """What free draws hold, constrained ones must hold too: else there is no such probability."""
    for k in range(len(at)):
        theirs = free[_rows(free, at[k])[:1]].given[0]
        mine = constrained[_rows(constrained, at[k])[:1]].given[0]
        wrong = (theirs != UNKNOWN) & (theirs != mine)
        if bool(wrong.any()):
            site = int(wrong.nonzero()[0])
            raise ValueError(
                f"the free draws at {name(at[k])} hold site {site}, which the constrained ones do "
                "not hold with that species: draw the free ones around nothing, or around some of "
                "the same held sites"
            )
