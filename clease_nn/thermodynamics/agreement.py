"""Do the mean weights of every condition agree with the draws of all others?"""

from __future__ import annotations

import warnings

import numpy as np
from scipy.sparse import csr_array

from clease_nn.thermodynamics.groups import name
from clease_nn.thermodynamics.multistate import MultistateLikelihood
from clease_nn.thermodynamics.pooling import SampleSet
from clease_nn.warnings import ChainWarning, LostModeWarning, LowESSWarning

__all__ = ["disagreement", "warn_of_chains", "warn_of_disagreement"]

_SUSPECT = 4.0  # standard errors by which one condition may fall short of the others
_STUCK = 8.0  # own standard errors between means of a chain and those of all data
_SCATTER = 2.0  # root mean square of those that all may fall short by
_FEWEST_CONDITIONS = 10  # below it a scatter says nothing
_FEWEST_SHARED = 20.0  # effective draws of others below which they cannot judge a condition


def disagreement(
    model: MultistateLikelihood, sets: list[SampleSet], state: np.ndarray, f: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """ln Z by a condition's own mean weight minus that by the draws of all others.

    The draws of the other weighted conditions are one sample of the mixture of their densities,
    whose normalisations their own mean weights give; reweighted to condition ``k`` its mean weight
    is Z_k as well, without a single draw of ``k``. A mode that the draws of ``k`` miss and those of
    others have makes the difference negative.

    Parameters
    ----------
    model : MultistateLikelihood
        Of all sets.
    sets : list of SampleSet
    state : ndarray of int, shape (rows,)
        State of the model of every row of the pool.
    f : ndarray, shape (sets,)
        ln Z; where a mean weight measured it, that value is taken.

    Returns
    -------
    difference, error : ndarray, shape (sets,)
        nan for chains, and where fewer than 20 effective draws of others reach a condition.
    """
    weighted = np.array([s.error < np.inf for s in sets])
    measured = np.where(weighted, [s.log_z for s in sets], f)
    variance = np.array([s.precision**-1 if s.error < np.inf else 0.0 for s in sets])
    n = np.where(weighted, model.effective, 0.0)
    own, squares = _weights_by_set(sets, state, len(model.weight))
    total, spread = (np.asarray(m.sum(1)).ravel() for m in (own, squares))
    z, second, inherited = np.zeros(len(n)), np.zeros(len(n)), np.zeros((len(n), len(n)))
    for rows, columns, p, _ in model.chunks(measured):
        part = p * n[columns]
        others = part.sum(1)[:, None] - part
        # where a condition is alone, nobody else judges it
        ratio = np.where(others > 1e-9 * part, p / np.maximum(others, 1e-300), 0.0)
        u = total[rows, None] - own[rows].toarray()[:, columns]
        v = spread[rows, None] - squares[rows].toarray()[:, columns]
        terms = np.maximum(u, 0.0) * ratio
        z[columns] += terms.sum(0)
        second[columns] += (np.maximum(v, 0.0) * ratio**2).sum(0)
        share = np.divide(terms, others, out=np.zeros_like(terms), where=ratio > 0)
        inherited[np.ix_(columns, columns)] += share.T @ part
    np.fill_diagonal(inherited, 0.0)
    known = weighted & (z**2 > _FEWEST_SHARED * second)
    safe = np.where(known, z, 1.0)
    error = np.sqrt(variance + (second + inherited**2 @ variance) / safe**2)
    return np.where(known, -np.log(safe), np.nan), np.where(known, error, np.nan)


def warn_of_disagreement(sets: list[SampleSet], difference: np.ndarray, error: np.ndarray) -> None:
    """Name the condition whose weights fall short most of what the draws of others show.

    Warns
    -----
    LostModeWarning
        If one falls short by more than 4 standard errors.
    LowESSWarning
        If all together scatter more than twice as much as their errors say.
    """
    z = difference / error
    if np.isnan(z).all():
        return
    k = int(np.nanargmin(z))
    worst = (
        f"worst: {name(sets[k].condition)}, {sets[k].log_z:.3f} by its own weights, "
        f"{sets[k].log_z - difference[k]:.3f} by the others ({-z[k]:.1f} standard errors apart)"
    )
    known = z[~np.isnan(z)]
    # positive ones may be a lack of overlap
    scatter = np.sqrt(2.0 * np.mean(np.minimum(known, 0.0) ** 2))
    if z[k] < -_SUSPECT:
        warnings.warn(
            f"at {(known < -_SUSPECT).sum()} of {len(sets)} conditions ln Z of the mean weights is "
            f"below what the draws of other conditions show; {worst}. Its draws seem to miss a "
            "phase that others have. Remedy: leave this condition out, draw more, or train the "
            "model longer there",
            LostModeWarning,
            stacklevel=3,
        )
    elif len(known) >= _FEWEST_CONDITIONS and scatter > _SCATTER:
        warnings.warn(
            f"ln Z of the mean weights scatter {scatter:.1f} times as much as their errors say "
            f"about what the draws of other conditions show; {worst}. Remedy: check that log_prob "
            "is that of the draws, draw more, or train the model longer",
            LowESSWarning,
            stacklevel=3,
        )


def warn_of_chains(
    model: MultistateLikelihood,
    sets: list[SampleSet],
    values: np.ndarray,
    f: np.ndarray,
    c: np.ndarray,
) -> None:
    """Name the chains whose own means are furthest from those of all data at their condition.

    The combination takes the samples of a chain for those of its whole ensemble; a chain that is
    stuck in one of two phases spoils it, and shows by the contradiction with its neighbours.

    Parameters
    ----------
    model : MultistateLikelihood
    sets : list of SampleSet
    values : ndarray, shape (rows, d)
        Energy and counts of the rows of the pool.
    f, c : ndarray, shape (sets,)
        The solution.

    Warns
    -----
    ChainWarning
        If a mean is more than 8 of the chain's own standard errors away.
    """
    chains = [k for k, s in enumerate(sets) if s.error == np.inf]
    if not chains or len(sets) < 2:
        return
    x = model.x - model.x.mean(0)
    first, second = (np.zeros((len(sets), x.shape[1])) for _ in range(2))
    for rows, columns, p, _ in model.chunks(f):
        w = (p * (model.weight[rows] / (p @ c[columns]))[:, None]).T
        first[columns] += w @ x[rows]
        second[columns] += w @ x[rows] ** 2
    variance = np.maximum(second - first**2, 0.0)
    apart = np.zeros(len(sets))
    for k in chains:
        own = values[sets[k].rows] - model.x.mean(0)
        scale = np.sqrt(np.maximum(variance[k], own.var(0)) / sets[k].effective)
        moving = scale > 1e-9
        away = np.abs(own.mean(0) - first[k])[moving] / scale[moving]
        apart[k] = away.max(initial=0.0)
    k = int(np.argmax(apart))
    if apart[k] > _STUCK:
        warnings.warn(
            f"the chains at {(apart > _STUCK).sum()} of {len(sets)} conditions contradict all data "
            f"together; worst: {name(sets[k].condition)}, where their own means are {apart[k]:.0f} "
            "of their standard errors away: stuck in one phase, or too short. Remedy: run longer, "
            "use ParallelTempering, or leave these chains out",
            ChainWarning,
            stacklevel=3,
        )


def _weights_by_set(
    sets: list[SampleSet], state: np.ndarray, n_states: int
) -> tuple[csr_array, csr_array]:
    """Weights of weighted draws, and their squares, summed by state and set."""
    index = [k for k, s in enumerate(sets) if s.error < np.inf]
    shape = (n_states, len(sets))
    if not index:
        return csr_array(shape), csr_array(shape)
    column = np.concatenate([np.full(len(sets[k].rows), k) for k in index])
    row = state[np.concatenate([sets[k].rows for k in index])]
    u = np.concatenate([sets[k].effective * sets[k].weight for k in index])
    return tuple(csr_array((x, (row, column)), shape=shape) for x in (u, u**2))
