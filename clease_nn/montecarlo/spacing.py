"""Where to put the conditions of chains: denser where neighbouring distributions differ."""

from __future__ import annotations

import numpy as np
import torch

from clease_nn.conditions import ConditionRange, Conditions
from clease_nn.montecarlo.tempering import ParallelTempering

__all__ = ["equalise_spacing"]


def equalise_spacing(
    tempering: ParallelTempering,
    box: ConditionRange,
    n_steps: int,
    rng: np.random.Generator,
    share: float = 0.5,
) -> None:
    """Move the chains along the last chemical potential to where distributions change fastest.

    Between neighbours the symmetrised Kullback-Leibler divergence is ``beta * dmu * d<N>``; its
    square root is a length. A ``share`` of the chains of every line is spread evenly in that
    length, the rest evenly in mu: lines resolve a coexistence (a window of about kT/N) wherever
    it is, without knowing it in advance. Chains take over the configuration of the nearest old
    condition of their line.

    Parameters
    ----------
    tempering : ParallelTempering
        Of shape (temperatures, ..., points along the last axis); changed in place.
    box : ConditionRange
        The box it was made for.
    n_steps : int
        Steps over which ``<N>`` is averaged.
    rng : numpy.random.Generator
        Places each condition uniformly within its share of the line.

    Raises
    ------
    ValueError
        If the box has no chemical potential axis.
    """
    if box.n_axes == 0:
        raise ValueError("the box has no chemical potential to space conditions along")
    axes = box.axes - box.axes.mean(1, keepdims=True)
    mean = np.zeros(len(tempering.conditions))
    for _ in range(n_steps):
        tempering.step()
        mean += tempering.chains.counts() @ axes[-1] / n_steps
    shape = tempering.shape
    old = tempering.conditions
    x = box.coordinates(old)
    line = x[:, -1].reshape(-1, shape[-1])
    beta = old.beta.numpy().reshape(line.shape)
    moment = mean.reshape(line.shape)
    low, high = box.low[-1], box.high[-1]
    new, source = np.empty_like(line), np.empty(line.shape, dtype=np.int64)
    index = np.arange(line.size).reshape(line.shape)
    for r in range(len(line)):
        order = np.argsort(line[r], kind="stable")
        knots = np.concatenate([[low], line[r, order], [high]])
        d_mu, d_n = np.diff(line[r, order]), np.diff(moment[r, order])
        divergence = 0.5 * (beta[r, order][1:] + beta[r, order][:-1]) * d_mu * d_n
        length = np.concatenate([[0.0], np.sqrt(np.maximum(divergence, 0.0)), [0.0]])
        even = np.diff(knots) / max(high - low, 1e-300)
        total = length.sum()
        density = share * length / total + (1 - share) * even if total > 0 else even
        cumulative = np.concatenate([[0.0], np.cumsum(density)])
        quantile = (np.arange(shape[-1]) + rng.random(shape[-1])) / shape[-1] * cumulative[-1]
        new[r] = np.interp(quantile, cumulative, knots)
        source[r] = index[r, np.abs(line[r][None, :] - new[r][:, None]).argmin(1)]
    x = x.copy()
    x[:, -1] = new.ravel()
    tempering.chains.permute(source.ravel())
    tempering.chains.conditions = Conditions(old.temperature, torch.as_tensor(x @ box.axes))
