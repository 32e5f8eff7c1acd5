"""Paths between two conditions, and how many steps they need."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from clease_nn.conditions import Conditions

__all__ = ["conditional_ess", "equal_lengths", "interpolate", "systematic", "thermodynamic_length"]

_CESS = 0.8  # conditional effective samples a step of the walk that measures a length
_MOST = 2000  # steps of that walk


def interpolate(start: Conditions | None, target: Conditions, fractions) -> Conditions:
    """Conditions on the straight line in (1/kT, mu/kT) from ``start`` to ``target``.

    On it ``ln w`` of every configuration is linear in the fraction:
    ``(1 - f) ln w_start + f ln w_target`` with ``w = exp(-(E - mu.N)/kT)``.

    Parameters
    ----------
    start : Conditions or None
        One row; None for infinite temperature, where every configuration has weight one.
    target : Conditions
        One row; a fraction of 1 is exactly this.
    fractions : array_like, shape (steps,)
        Above 0, at most 1.

    Returns
    -------
    Conditions
        One row a fraction.

    Examples
    --------
    >>> hot, cold = (Conditions([t], [[0.0, 0.1]]) for t in (1200.0, 400.0))
    >>> interpolate(hot, cold, [0.5, 1.0]).temperature
    tensor([600., 400.], dtype=torch.float64)
    >>> interpolate(None, cold, [0.5, 1.0]).temperature
    tensor([800., 400.], dtype=torch.float64)
    """
    f = torch.as_tensor(np.asarray(fractions, dtype=float))
    beta = f * target.beta
    beta_mu = f[:, None] * target.beta[:, None] * target.mu
    if start is not None:
        beta = beta + (1 - f) * start.beta
        beta_mu = beta_mu + (1 - f[:, None]) * start.beta[:, None] * start.mu
    temperature = 1.0 / beta * (target.temperature * target.beta)
    mu = beta_mu / beta[:, None]
    end = f == 1
    return Conditions(
        torch.where(end, target.temperature, temperature),
        torch.where(end[:, None], target.mu, mu),
    )


def conditional_ess(log_factor: np.ndarray, log_weight: np.ndarray | None = None) -> float:
    """Effective share of weighted rows once their weights are multiplied by a factor.

    ``(sum_i W_i u_i)^2 / sum_i W_i u_i^2`` with normalised weights ``W`` and factors ``u``: 1 for
    equal factors, whatever the weights.

    Parameters
    ----------
    log_factor : ndarray, shape (n,)
        ln u.
    log_weight : ndarray, shape (n,), optional
        ln W up to a constant. Default: equal weights.

    References
    ----------
    Y. Zhou, A. M. Johansen, J. A. D. Aston, J. Comput. Graph. Stat. 25, 701 (2016).

    Examples
    --------
    >>> conditional_ess(np.log([1.0, 1.0]), np.log([1.0, 5.0]))
    1.0
    >>> round(conditional_ess(np.log([1.0, 3.0])), 6)
    0.8
    """
    w = np.ones(len(log_factor)) if log_weight is None else np.exp(log_weight - log_weight.max())
    w = w / w.sum()
    u = np.exp(log_factor - log_factor.max())
    return float((w @ u) ** 2 / (w @ u**2))


def systematic(log_weight: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Which rows systematic resampling keeps, and how often.

    Every row ``i`` of a population is kept ``floor(m W_i)`` or ``ceil(m W_i)`` times, ``m W_i`` on
    average.

    Parameters
    ----------
    log_weight : ndarray, shape (populations, m)
    rng : numpy.random.Generator

    Returns
    -------
    ndarray of int, shape (populations, m)
        Columns kept, ascending.

    References
    ----------
    G. Kitagawa, J. Comput. Graph. Stat. 5, 1 (1996).

    Examples
    --------
    >>> systematic(np.log([[1.0, 2.0, 1.0, 1e-9]]), np.random.default_rng(0)).tolist()
    [[0, 1, 1, 2]]
    """
    populations, m = log_weight.shape
    w = np.exp(log_weight - log_weight.max(1, keepdims=True))
    cumulative = np.cumsum(w, 1)
    cumulative /= cumulative[:, -1:]
    at = (np.arange(m) + rng.random((populations, 1))) / m
    # one search for all populations, each shifted to an interval of its own
    shift = 2.0 * np.arange(populations)[:, None]
    found = np.searchsorted((cumulative + shift).ravel(), (at + shift).ravel(), side="right")
    kept = found.reshape(populations, m) - m * np.arange(populations)[:, None]
    return np.minimum(kept, m - 1)


def thermodynamic_length(
    difference: np.ndarray, relax: Callable[[float, np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Length of a path from a walk along it in steps of equal conditional effective samples.

    A step ``df`` has the length ``sqrt(-ln CESS)``, for normal distributed ``ln u`` their standard
    deviation: the length from start to end is the integral of the standard deviation of
    ``ln(w_target / w_start)`` over the fraction.

    Parameters
    ----------
    difference : ndarray, shape (n,)
        ``ln w_target - ln w_start`` of configurations in equilibrium at the start.
    relax : callable
        ``relax(fraction, log_factor)``: resample the configurations by these factors, relax them
        at the fraction, and return their differences.

    Returns
    -------
    fractions, lengths : ndarray
        Knots of the walk from (0, 0) on; the last fraction is 1.

    References
    ----------
    G. E. Crooks, Phys. Rev. Lett. 99, 100602 (2007).
    """
    fractions, lengths = [0.0], [0.0]
    while fractions[-1] < 1:
        here, step = fractions[-1], 1.0 - fractions[-1]
        if conditional_ess(step * difference) < _CESS:
            low, high = 0.0, step
            for _ in range(50):
                step = 0.5 * (low + high)
                low, high = (
                    (step, high) if conditional_ess(step * difference) > _CESS else (low, step)
                )
            step = max(step, 1.0 / _MOST)
        factor = step * difference
        there = 1.0 if here + step > 1 - 1e-9 else here + step
        fractions.append(there)
        lengths.append(lengths[-1] + np.sqrt(max(-np.log(conditional_ess(factor)), 0.0)))
        if there < 1:
            difference = relax(there, factor)
    return np.array(fractions), np.array(lengths)


def equal_lengths(fractions: np.ndarray, lengths: np.ndarray, steps: int) -> np.ndarray:
    """Fractions that cut a path into ``steps`` parts of equal length, the last one 1.

    Examples
    --------
    >>> equal_lengths(np.array([0.0, 0.5, 1.0]), np.array([0.0, 3.0, 4.0]), 4)
    array([0.16666667, 0.33333333, 0.5       , 1.        ])
    """
    if lengths[-1] == 0:
        return np.arange(1, steps + 1) / steps
    at = np.interp(np.arange(1, steps + 1) * lengths[-1] / steps, lengths, fractions)
    at[-1] = 1.0
    return at
