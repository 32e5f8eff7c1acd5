"""Lower convex hulls of heights over compositions, in any number of species."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linprog
from scipy.spatial import ConvexHull, QhullError

from clease_nn.errors import NotDeterminedError

__all__ = ["composition_axes", "hull_vertices", "lower_chain", "lower_facets", "lowest_mixture"]


def composition_axes(counts: np.ndarray) -> np.ndarray:
    """Orthonormal changes of composition that occur, shape (d, species)."""
    _, size, axes = np.linalg.svd((counts - counts[0]).astype(float), full_matrices=False)
    return axes[size > 1e-9 * max(1.0, size.max())]


def lower_facets(points: np.ndarray, height: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower facets of points (n, d) with heights (n,): slopes (facets, d), corners (facets, d+1).

    A point far above makes Qhull's task well posed also where all heights are on one plane.
    """
    d = points.shape[1]
    if d == 0:
        return np.empty((1, 0)), np.array([[int(height.argmin())]])
    scale = np.ptp(points, axis=0).max()
    size = max(np.ptp(height), 1e-12)
    x = np.concatenate([points, points.mean(0, keepdims=True)]) / scale
    y = np.concatenate([height - height.min(), [2 * size]]) / size
    try:
        hull = ConvexHull(np.column_stack([x, y]))
    except QhullError as error:  # pragma: no cover - the extra point prevents it
        raise NotDeterminedError(f"the compositions span no hull: {error}") from error
    lower = hull.equations[:, -2] < -1e-10
    normal = hull.equations[lower, :-1]
    slopes = -normal[:, :-1] / normal[:, -1:] * size / scale
    return slopes, hull.simplices[lower]


def lowest_mixture(x: np.ndarray, corners: np.ndarray, height: np.ndarray) -> float:
    """Lowest mean height of mixtures of corners with the composition x."""
    found = linprog(height, A_eq=corners.T, b_eq=x, bounds=(0, None), method="highs")
    if found.status != 0:
        raise NotDeterminedError(
            f"the composition {x.tolist()} is no mixture of the ground states known"
        )
    return float(found.fun)


def hull_vertices(counts: np.ndarray, height: np.ndarray, tolerance: float) -> np.ndarray:
    """Rows that are vertices of the lower hull by more than the tolerance, in order."""
    points = counts @ composition_axes(counts).T
    kept = np.unique(lower_facets(points, height)[1])
    # rounding makes corners of states that lie on a facet: each must stand out from the others
    for k in sorted(kept, key=lambda k: -height[k]):
        others = kept[kept != k]
        if not len(others):
            break
        try:
            rest = lowest_mixture(counts[k], counts[others], height[others])
        except NotDeterminedError:
            continue
        if height[k] >= rest - tolerance:
            kept = others
    return kept


def lower_chain(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Indices of the lower convex hull, x ascending (Andrew's monotone chain)."""
    chain: list[int] = []
    for k in range(len(x)):
        while len(chain) > 1:
            i, j = chain[-2], chain[-1]
            if (y[j] - y[i]) * (x[k] - x[i]) < (y[k] - y[i]) * (x[j] - x[i]) - 1e-12:
                break
            chain.pop()
        chain.append(k)
    return np.array(chain)
