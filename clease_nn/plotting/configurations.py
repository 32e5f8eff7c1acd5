"""Pictures of samples: a row of configurations for every condition, drawn by their weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch

from clease_nn.configurations import Configurations
from clease_nn.lattice import Lattice
from clease_nn.plotting.structures import BACKGROUND, SPECIES_COLOURS, structures
from clease_nn.statistics import normalized_ess

__all__ = ["pick_samples", "sampled_configurations"]


def pick_samples(c: Configurations, n: int, seed: int = 0) -> list[Configurations]:
    """``n`` configurations of every condition that stand for its distribution.

    Weighted draws are drawn again by their weights, so that a picture shows what is probable, not
    what a model happened to draw; chains are looked at in even intervals.

    Parameters
    ----------
    c : Configurations
        Weighted or chains.
    n : int
        Of each condition.
    seed : int
        Of the choice among weighted draws.

    Returns
    -------
    list of Configurations
        One a condition, in the order of their first appearance, ``n`` rows each. A weighted draw
        is repeated only where fewer than ``2 n`` draws are effective.

    Raises
    ------
    ValueError
        If ``n`` is less than 1, or a condition of a chain has fewer than ``n`` rows.

    Examples
    --------
    >>> from clease_nn.conditions import Conditions
    >>> at = Conditions([300.0, 600.0], [[0.0, 0.0]] * 2).repeat(5)
    >>> x = torch.arange(10)[:, None].expand(-1, 4) % 2
    >>> c = Configurations(Lattice.square(2), at, x, chain=torch.zeros(10))
    >>> [part.occupations[:, 0].tolist() for part in pick_samples(c, 3)]
    [[0, 0, 0], [1, 1, 1]]
    """
    if n < 1:
        raise ValueError(f"n must be at least 1 configuration a condition, got {n}")
    rng = np.random.default_rng(seed)
    key = torch.column_stack([c.conditions.temperature, c.conditions.mu])
    _, group, first = _groups(key)
    out = []
    for g in np.argsort(first):
        rows = np.flatnonzero(group == g)
        if c.log_prob is None:
            if len(rows) < n:
                raise ValueError(f"{n} configurations a condition are wanted, one has {len(rows)}")
            chosen = rows[np.linspace(0, len(rows) - 1, n).round().astype(int)]
        else:
            log_w = c.log_weight[rows].cpu().numpy()
            w = np.exp(log_w - log_w.max())
            enough = len(rows) * normalized_ess(log_w) >= 2 * n and (w > 0).sum() >= n
            chosen = rng.choice(rows, size=n, replace=not enough, p=w / w.sum())
        out.append(c[torch.as_tensor(chosen)])
    return out


def sampled_configurations(
    axes,
    c: Configurations,
    *,
    labels: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    rotation: str | None = None,
    cell: bool = True,
    seed: int = 0,
) -> np.ndarray:
    """Samples of every condition in a row of axes of their own.

    Configurations in one plane are drawn flat, a square or a circle a site; others as balls
    (:func:`structures`).

    Parameters
    ----------
    axes : array_like of matplotlib.axes.Axes, shape (conditions, n)
        ``n`` samples are shown of each condition (:func:`pick_samples`).
    c : Configurations
        Weighted or chains, without unknown sites.
    labels : sequence of str, optional
        Left of each row. Default: the temperature in K.
    names : sequence of str, optional
        Of the species, in the legend. Default: those of the lattice; of spins perhaps
        ``["up", "down"]``.
    rotation, cell
        As in :func:`structures`, where sites are not in one plane.
    seed : int
        Of the choice among weighted draws.

    Returns
    -------
    ndarray of Axes, shape (conditions, n)

    Raises
    ------
    ValueError
        If there are no configurations, rows of axes or labels are not as many as conditions, names
        not as many as species, or a site is unknown.

    Examples
    --------
    >>> from clease_nn.conditions import Conditions
    >>> from matplotlib.figure import Figure
    >>> at = Conditions([300.0, 600.0], [[0.0, 0.0]] * 2).repeat(3)
    >>> c = Configurations(Lattice.square(3), at, torch.zeros(6, 9), chain=torch.zeros(6))
    >>> drawn = sampled_configurations(Figure().subplots(2, 3), c)
    >>> [row[0].texts[0].get_text() for row in drawn]
    ['300 K', '600 K']
    """
    if not len(c):
        raise ValueError("there are no configurations to draw")
    if not bool(c.known.all()):
        raise ValueError("configurations with unknown sites cannot be drawn; complete them first")
    axes = np.atleast_1d(np.asarray(axes, dtype=object))
    key = torch.column_stack([c.conditions.temperature, c.conditions.mu])
    n_conditions = _groups(key)[0]
    if axes.ndim == 1:
        axes = axes[None] if n_conditions == 1 else axes[:, None]
    if len(axes) != n_conditions:
        raise ValueError(f"{n_conditions} conditions need as many rows of axes, got {len(axes)}")
    if labels is not None and len(labels) != n_conditions:
        raise ValueError(f"{n_conditions} conditions need as many labels, got {len(labels)}")
    names = c.lattice.species if names is None else names
    if len(names) != c.lattice.n_species:
        raise ValueError(f"{c.lattice.n_species} species need as many names, got {len(names)}")
    chosen = pick_samples(c, axes.shape[1], seed)
    flat = np.ptp(c.lattice.template.positions @ _normal(c.lattice)) < 1e-3
    for k, (row, part) in enumerate(zip(axes, chosen, strict=True)):
        if flat:
            for ax, x in zip(row, part.occupations.cpu().numpy(), strict=True):
                _plane(ax, c.lattice, x)
        else:
            structures(row, part, rotation=rotation, cell=cell)
            for ax in row:
                if ax.get_legend() is not None:
                    ax.get_legend().remove()
        text = f"{part.conditions.temperature[0]:g} K" if labels is None else labels[k]
        row[0].text(
            -0.06, 0.5, text, transform=row[0].transAxes, rotation=90, ha="right", va="center",
            fontsize="medium",
        )  # fmt: skip
    colours = [SPECIES_COLOURS[a % len(SPECIES_COLOURS)] for a in range(c.lattice.n_species)]
    axes[0, -1].legend(
        handles=[
            Patch(facecolor=colour, edgecolor="black", lw=0.5, label=name)
            for colour, name in zip(colours, names, strict=True)
        ],
        frameon=False,
        fontsize="small",
        loc="upper left",
        bbox_to_anchor=(1, 1),
        handlelength=0.9,
        handleheight=0.9,
    )
    return axes


# ------------------------------------------------------------------ pieces
def _groups(key: torch.Tensor) -> tuple[int, np.ndarray, np.ndarray]:
    """Number of distinct rows, the one each row is, and where each appears first."""
    _, first, group = np.unique(key.cpu().numpy(), axis=0, return_index=True, return_inverse=True)
    return len(first), group.ravel(), first


def _normal(lattice: Lattice) -> np.ndarray:
    """Unit vector across the plane of the first two cell vectors."""
    cell = np.array(lattice.template.cell.complete())
    across = np.cross(cell[0], cell[1])
    return across / np.linalg.norm(across)


def _plane(ax: Axes, lattice: Lattice, occupations: np.ndarray) -> None:
    """Sites of one plane from above: squares on a rectangular grid, otherwise circles."""
    n = lattice.n_species
    colours = [SPECIES_COLOURS[a % len(SPECIES_COLOURS)] for a in range(n)]
    xy = lattice.positions[:, :2]
    columns, rows = (np.unique(v.round(3)) for v in xy.T)
    ax.set_aspect("equal")
    if len(columns) * len(rows) == len(xy) and _even(columns) and _even(rows):
        image = np.full((len(rows), len(columns)), -1)
        at = np.searchsorted(rows, xy[:, 1].round(3)), np.searchsorted(columns, xy[:, 0].round(3))
        image[at] = occupations
        dx, dy = (np.diff(v)[0] / 2 if len(v) > 1 else 0.5 for v in (columns, rows))
        extent = (columns[0] - dx, columns[-1] + dx, rows[0] - dy, rows[-1] + dy)
        look = {"cmap": ListedColormap(colours), "vmin": -0.5, "vmax": n - 0.5}
        ax.imshow(image, origin="lower", extent=extent, interpolation="nearest", **look)
        ax.set_xticks([])
        ax.set_yticks([])
        ax.spines[:].set_linewidth(0.6)
        return
    every = lattice.template.positions[:, :2]
    size = 0.9 * _shortest(every)
    face = np.array([BACKGROUND] * len(every), dtype=object)
    face[lattice.site_indices] = np.array(colours, dtype=object)[occupations]
    diameter = np.full(len(every), size)
    ax.add_collection(
        EllipseCollection(
            diameter, diameter, 0, units="xy", offsets=every, transOffset=ax.transData,
            facecolors=list(face), edgecolors="black", linewidths=0.3,
        )
    )  # fmt: skip
    ax.set_xlim(every[:, 0].min() - size, every[:, 0].max() + size)
    ax.set_ylim(every[:, 1].min() - size, every[:, 1].max() + size)
    ax.set_axis_off()


def _even(v: np.ndarray) -> bool:
    return len(v) < 3 or bool(np.ptp(np.diff(v)) < 2e-3)


def _shortest(xy: np.ndarray) -> float:
    """Shortest distance between points of a plane."""
    from scipy.spatial import cKDTree

    return float(cKDTree(xy).query(xy, 2)[0][:, 1].min()) if len(xy) > 1 else 1.0
