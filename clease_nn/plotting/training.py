"""Training curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from clease_nn.plotting.style import BLUE, VERMILION

__all__ = ["training_curve"]


def training_curve(ax: Axes, history: Sequence[Mapping]) -> Axes:
    """Loss and, on a second axis, normalised effective sample size against training time.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
    history : sequence of mappings
        Keys ``seconds`` and ``loss`` (nats per configuration), and ``ness`` where it was
        measured (missing or None elsewhere).

    Raises
    ------
    ValueError
        If the history is empty.
    """
    if not history:
        raise ValueError("the training history is empty; train for at least one step")
    seconds = _column(history, "seconds")
    loss = _column(history, "loss")
    ax.plot(seconds, loss, color=BLUE, lw=1.2)
    ax.set_xlabel("training time (s)")
    ax.set_ylabel("loss (nats per configuration)", color=BLUE)
    # the first steps are far off: let the rest be seen
    seen = loss[np.isfinite(loss)]
    if len(seen) > 10:
        low, high = seen.min(), np.quantile(seen[len(seen) // 20 :], 0.99)
        margin = 0.08 * (high - low) or 1.0
        ax.set_ylim(low - margin, high + margin)
    ness = _column(history, "ness")
    measured = np.isfinite(ness)
    if measured.any():
        right = ax.twinx()
        right.plot(
            seconds[measured], ness[measured], color=VERMILION, marker="s", ms=4, lw=1.2, ls="--"
        )
        right.set_ylabel("NESS", color=VERMILION)
        right.set_ylim(0, 1.02)
        right.spines["top"].set_visible(False)
    ax.spines["top"].set_visible(False)
    return ax


def _column(history: Sequence[Mapping], key: str) -> np.ndarray:
    return np.array([np.nan if row.get(key) is None else row[key] for row in history], dtype=float)
