"""What routes to the same figures cost, against the number of conditions."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from clease_nn.cost import CostTable
from clease_nn.plotting.style import DASHES, clean, kinds, legend

__all__ = ["cost"]

_LABELS = {"seconds": "wall time (s)", "energy_evaluations": "energy evaluations"}


def cost(ax: Axes, table: CostTable, *, quantity: str = "seconds") -> Axes:
    """Cost of every route at equal error against the number of conditions, both logarithmic.

    What is paid once (training) is flat, what is paid a condition rises. Where the first route
    becomes cheaper than another, or dearer, is marked with the number of conditions; the vertical
    line is the number of conditions of the table, the symbols on it its figures.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
    table : CostTable
    quantity : str
        ``"seconds"`` (training and sampling) or ``"energy_evaluations"``. Routes that need none
        are left out.

    Raises
    ------
    ValueError
        If the quantity is neither, or all routes cost nothing.

    Examples
    --------
    >>> from clease_nn.cost import Cost, Route, cost_table
    >>> from clease_nn.plotting import figure
    >>> neural = Route("neural", Cost(seconds=10.0, training_seconds=90.0), 100, error=0.1)
    >>> chains = Route("chains", Cost(seconds=100.0), 100, error=0.1)
    >>> fig, ax = figure()
    >>> ax = cost(ax, cost_table([neural, chains], unit="meV per site"))
    >>> [text.get_text() for text in ax.texts]  # where the lines cross
    ['100']
    """
    if quantity not in _LABELS:
        raise ValueError(f"quantity must be one of {tuple(_LABELS)}, got {quantity!r}")
    lines = {}
    for row in table.rows:
        one = row.route.scaled(table.error, 1)
        lines[row.route.name] = getattr(one, f"training_{quantity}"), getattr(one, quantity)
    if not any(sum(line) > 0 for line in lines.values()):
        raise ValueError(f"no route of the table has {quantity}; there is nothing to draw")
    (first, (paid, each)), *others = lines.items()
    crossings = {}
    for name, (other_paid, other_each) in others:
        if other_each != each:
            n = (paid - other_paid) / (other_each - each)
            if 1 < n < 1e7 and paid + n * each > 0:
                crossings[name] = n
    top = 10.0 ** np.ceil(np.log10(3 * max([table.n_conditions, *crossings.values(), 10])))
    n = np.geomspace(1, top, 200)
    ax.axvline(table.n_conditions, color="0.8", lw=1, zorder=0)
    for k, (name, colour, marker) in enumerate(kinds(tuple(lines))):
        once, each = lines[name]
        if not once + each > 0:
            continue
        style = {"color": colour, "ls": DASHES[k % len(DASHES)], "lw": 1.6}
        ax.plot(n, once + n * each, marker=marker, ms=5, markevery=[], label=name, **style)
        at = once + table.n_conditions * each
        ax.plot(table.n_conditions, at, color=colour, marker=marker, ms=6, ls="", zorder=4)
    ax.set(xscale="log", yscale="log", xlim=(1, top))
    box = {"boxstyle": "square,pad=0.1", "fc": "white", "ec": "none", "alpha": 0.8}
    for k, at in enumerate(sorted(crossings.values())):
        height = lines[first][0] + at * lines[first][1]
        circle = {"color": "black", "marker": "o", "ms": 9, "mfc": "none", "ls": "", "zorder": 5}
        ax.plot(at, height, label=None if k else "break-even", **circle)
        style = {"va": "top", "fontsize": "small", "bbox": box, "textcoords": "offset points"}
        if at < 2:  # in the corner of the axes: beside the symbol, off their tick labels
            ax.annotate(f"{at:.3g}", (at, height), (8, -2), ha="left", **style)
        else:  # upright, so that neighbours do not touch
            ax.annotate(f"{at:.3g}", (at, height), (0, -9), ha="center", rotation=90, **style)
    unit = f" {table.unit}" if table.unit else ""
    ax.set(
        xlabel=f"conditions served, each to {table.error:.2g}{unit}",
        ylabel=_LABELS[quantity],
    )
    legend(ax)
    return clean(ax)
