"""Where the names of phases go in a phase diagram: the middle of each field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.path import Path
from scipy.ndimage import binary_dilation, distance_transform_edt, label

__all__ = ["place_names"]

_NX, _NY = 260, 200
_SIZE = 9.0  # points


def place_names(
    ax: Axes,
    sides: Sequence[tuple[str, np.ndarray, np.ndarray, int]],
    texts: Mapping[str, str],
    regions: Sequence[np.ndarray] = (),
    symbols: Sequence[tuple[np.ndarray, np.ndarray]] = (),
) -> None:
    """Write each phase's name where its field has most room, upright where it is narrow.

    The axes are cut into pixels; lines and two-phase regions are walls, and every connected piece
    of the rest belongs to the phase that most of its bordering lines name.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
        With its final limits.
    sides : sequence of (phase, temperatures, positions, side)
        A line, and on which of its sides (-1 left, 1 right) this phase lies.
    texts : mapping
        Text of every phase; empty for none.
    regions : sequence of ndarray, shape (corners, 2)
        Polygons (position, temperature) that belong to no phase.
    symbols : sequence of (positions, temperatures)
        Points that no name should cover.
    """
    (x0, x1), (y0, y1) = ax.get_xlim(), ax.get_ylim()
    x, y = (
        x0 + (np.arange(_NX) + 0.5) / _NX * (x1 - x0),
        y0 + (np.arange(_NY) + 0.5) / _NY * (y1 - y0),
    )

    def pixels(position, temperature):
        """Row and column of points, those outside left out."""
        column = np.floor((position - x0) / (x1 - x0) * _NX)
        row = np.floor((temperature - y0) / (y1 - y0) * _NY)
        inside = (column >= 0) & (column < _NX) & (row >= 0) & (row < _NY)
        return row[inside].astype(int), column[inside].astype(int)

    free = np.ones((_NY, _NX), dtype=bool)
    centres = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)
    for corners in regions:
        free &= ~Path(corners).contains_points(centres).reshape(_NY, _NX)
    wall = np.zeros_like(free)
    for _, temperature, position, _ in sides:
        wall[pixels(*_dense(position, temperature))] = True
    free &= ~binary_dilation(wall, iterations=1)
    taken = np.zeros_like(free)
    for position, temperature in symbols:
        taken[pixels(position, temperature)] = True
    taken = binary_dilation(taken, iterations=3)
    owner = _owners(free, _voters(sides, pixels, free, list(texts)))
    for k, (phase, text) in enumerate(texts.items()):
        if not text:
            continue
        at = _roomiest((owner == k) & ~taken, text, *_size_in_points(ax))
        if at is not None:
            row, column, turned = at
            _write(ax, x[column], y[row], text, turned)
        elif (narrow := _beside(sides, phase)) is not None:
            _write(ax, *narrow, text, 90)


def _dense(position, temperature):
    """Points along a line, closer than a pixel."""
    steps = np.arange(len(position))
    fine = np.linspace(0, len(position) - 1, 40 * max(len(position), 2))
    return np.interp(fine, steps, position), np.interp(fine, steps, temperature)


def _voters(sides, pixels, free, phases) -> list[tuple[np.ndarray, np.ndarray]]:
    """Free pixels next to the lines of every phase, on its side."""
    found = [([], []) for _ in phases]
    for phase, temperature, position, side in sides:
        row, column = pixels(*_dense(position, temperature))
        column = column + 4 * side
        ok = (column >= 0) & (column < _NX)
        row, column = row[ok], column[ok]
        ok = free[row, column]
        if phase in phases:
            rows, columns = found[phases.index(phase)]
            rows.append(row[ok])
            columns.append(column[ok])
    none = np.empty(0, dtype=int)
    return [tuple(np.concatenate([none, *part]) for part in both) for both in found]


def _owners(free: np.ndarray, voters) -> np.ndarray:
    """Index of the phase that every free pixel belongs to; -1: none."""
    owner = np.full(free.shape, -1)
    pieces, _ = label(free)
    ballot = np.full(free.shape, -1)
    for k, (row, column) in enumerate(voters):
        ballot[row, column] = k
    for piece in np.unique(pieces[ballot >= 0]):
        inside = pieces == piece
        votes = np.bincount(ballot[inside & (ballot >= 0)], minlength=len(voters))
        if votes.max() > 0.75 * votes.sum():
            owner[inside] = votes.argmax()
            continue
        # lines that end in the open: to the nearest line, at the temperatures it was seen at
        nearest = distance_transform_edt(
            ~(inside & (ballot >= 0)), return_distances=False, return_indices=True
        )
        split = ballot[tuple(nearest)]
        rows = np.arange(len(free))[:, None]
        for k in np.flatnonzero(votes):
            seen = np.flatnonzero((inside & (ballot == k)).any(1))
            owner[inside & (split == k) & (rows >= seen[0]) & (rows <= seen[-1])] = k
    return owner


def _roomiest(mask: np.ndarray, text: str, width: float, height: float):
    """Row, column and angle at which a text fits best; None if it fits nowhere."""
    long, tall = 0.62 * _SIZE * max(len(_plain(text)), 2), 1.3 * _SIZE
    framed = np.pad(mask, 1)
    for turned, (w, h) in ((0, (long, tall)), (90, (tall, long))):
        room = distance_transform_edt(framed, (2 * height / _NY / h, 2 * width / _NX / w))
        if room.max() > 0.9:
            row, column = np.unravel_index(room.argmax(), room.shape)
            return row - 1, column - 1, turned
    return None


def _beside(sides, phase: str):
    """A place on the line of a phase whose field is too narrow for its name."""
    lines = [(t, x) for name, t, x, _ in sides if name == phase]
    if not lines:
        return None
    t, x = max(lines, key=lambda line: np.ptp(line[0]))
    middle = len(t) // 2
    return x[middle], t[middle]


def _write(ax: Axes, position: float, temperature: float, text: str, angle: float) -> None:
    box = {"boxstyle": "square,pad=0.1", "fc": "white", "ec": "none", "alpha": 0.75}
    style = {"ha": "center", "va": "center", "fontsize": _SIZE, "zorder": 5, "bbox": box}
    ax.text(position, temperature, text, rotation=angle, **style)


def _size_in_points(ax: Axes) -> tuple[float, float]:
    inches = ax.get_position().size * ax.figure.get_size_inches()
    return tuple(72.0 * inches)


def _plain(text: str) -> str:
    """Without the marks of mathematical text."""
    return "".join(c for c in text if c not in "$_{}^\\")
