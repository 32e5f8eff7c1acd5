"""Recipes by which published phase diagrams were drawn, by name, so that they can be redrawn.

Each says what it does wrong. Boundaries with errors that mean something come from
:func:`~clease_nn.phases.coexistence` and :func:`~clease_nn.phases.trace`; these here read the
grid of conditions that was sampled and inherit its spacing.
"""

from __future__ import annotations

from math import nan

import numpy as np
import torch
from ase.units import kB
from scipy.spatial import Delaunay, QhullError

from clease_nn.configurations import Configurations
from clease_nn.phases.convex import lower_facets
from clease_nn.phases.diagram import Boundary
from clease_nn.phases.line import ChemicalPotentialLine
from clease_nn.statistics import Estimate
from clease_nn.thermodynamics import Averages, CanonicalAverages

__all__ = [
    "alpha_shape",
    "common_tangent",
    "greatest_composition_jump",
    "heat_capacity_peak",
    "lowest_temperature",
]


def greatest_composition_jump(
    averages: Averages,
    line: ChemicalPotentialLine,
    window: tuple[float, float] | None = None,
) -> Boundary:
    """At each temperature the two neighbouring mu between which the composition jumps most.

    What is wrong with it: there is a greatest jump at every temperature, above the critical point
    as well; it scales with the spacing of mu; near coexistence averages of a finite cell are
    mixtures of both phases, so that the compositions either side lie within the gap; chains with
    hysteresis jump where they lose their phase; and a window holds one transition only.

    Parameters
    ----------
    averages : Averages
        On a grid of temperatures and positions along the line.
    line : ChemicalPotentialLine
    window : (low, high), optional
        Positions along the line to look at, eV. Default: all.

    Returns
    -------
    Boundary
        Of kind ``"greatest composition jump"``, one point a temperature; ``mu`` is the middle of
        the two positions, its error half their distance. nan with a reason where the window
        holds fewer than two positions.

    Raises
    ------
    ValueError
        If there are no averages, they do not lie on the line, or the window is empty.
    """
    temperature, t, x = _on_line(averages, line)
    low, high = (-np.inf, np.inf) if window is None else (float(v) for v in window)
    if not low < high:
        raise ValueError(f"the window must be (low, high) with low < high, got {low}, {high} eV")
    rows, notes = [], []
    for value in np.unique(temperature):
        inside = (temperature == value) & (t >= low) & (t <= high)
        here = np.flatnonzero(inside & np.isfinite(x.value))
        here = here[np.argsort(t[here])]
        if len(here) < 2:
            rows.append([value, *[nan] * 6])
            notes.append(f"{value:g} K: {len(here)} positions within the window, two are needed")
            continue
        k = int(np.abs(np.diff(x.value[here])).argmax())
        a, b = here[k], here[k + 1]
        left, right = sorted((a, b), key=lambda i: x.value[i])
        rows.append(
            [
                value,
                (t[a] + t[b]) / 2,
                (t[b] - t[a]) / 2,
                *x.value[[left, right]],
                *x.error[[left, right]],
            ]
        )
    warning = "a jump is found at every temperature, above a critical point too"
    cost = averages.cost.to_dict()
    return _boundary("greatest composition jump", rows, [warning, *notes], cost)


def heat_capacity_peak(
    averages: Averages, line: ChemicalPotentialLine, *, parabola: bool = False
) -> Boundary:
    """At each mu the temperature of the grid with the largest heat capacity.

    The two neighbouring temperatures serve as error bar, or, with ``parabola``, the vertex of
    the parabola through the three points with the error of their heat capacities.

    What is wrong with it: the largest of noisy values is not the maximum, and the neighbours say
    nothing about the noise; a parabola through three points is biased where the peak is
    asymmetric or narrower than the grid; a grid at constant mu crosses first-order lines without
    telling; and a finite cell's maximum is not the transition.
    :func:`~clease_nn.phases.heat_capacity_maxima` mends the first two.

    Parameters
    ----------
    averages : Averages
        On a grid of temperatures and positions along the line.
    line : ChemicalPotentialLine
    parabola : bool

    Returns
    -------
    Boundary
        Of kind ``"heat-capacity peak"``, one point a position, with the composition at the peak
        of the grid. nan with a reason where the peak lies at the end of the temperatures.

    Raises
    ------
    ValueError
        If there are no averages, or they do not lie on the line.
    """
    temperature, t, x = _on_line(averages, line)
    capacity = np.array([a.heat_capacity.value for a in averages])
    rows, notes = [], []
    for value in np.unique(t):
        here = np.flatnonzero((t == value) & np.isfinite(capacity))
        here = here[np.argsort(temperature[here])]
        if len(here) < 3:
            rows.append([nan, value, 0.0, *[nan] * 4, nan])
            notes.append(f"t = {value:.6g} eV: {len(here)} heat capacities, three are needed")
            continue
        c = capacity[here]
        k = int(c.argmax())
        if k in (0, len(here) - 1):
            rows.append([nan, value, 0.0, *[nan] * 4, nan])
            notes.append(
                f"t = {value:.6g} eV: largest at the end {temperature[here[k]]:g} K of the grid"
            )
            continue
        three = here[k - 1 : k + 2]
        where = temperature[three]
        top, error = where[1], (where[2] - where[0]) / 2
        if parabola:
            errors = np.array([averages[i].heat_capacity.error for i in three])
            top, error = _vertex(where, c[k - 1 : k + 2], errors)
        i = here[k]
        rows.append([top, value, 0.0, *[x.value[i]] * 2, *[x.error[i]] * 2, error])
    warning = "the largest of noisy values on a grid, in a finite cell"
    cost = averages.cost.to_dict()
    return _boundary("heat-capacity peak", rows, [warning, *notes], cost)


def common_tangent(
    canonical: CanonicalAverages, species: str | None = None, *, min_width: float = 0.0
) -> Boundary:
    """Two-phase intervals from the convex hull of the free energy F(x), at each temperature.

    The route of metadynamics and Wang-Landau studies, and a check of first-order boundaries.

    What is wrong with it: the compositions are multiples of 1/n_sites; within the gap a finite
    cell pays for the interface, of order n_sites^(2/3), which lifts F and moves the tangent
    points; noise makes the hull touch fewer points and so finds narrow intervals where there is
    one phase (``min_width`` drops them); ordered phases are stable in such narrow ranges as well.

    Parameters
    ----------
    canonical : CanonicalAverages
        Of a binary: :func:`~clease_nn.thermodynamics.canonical`.
    species : str, optional
        Whose share is the composition. Default: the last.
    min_width : float
        Narrower intervals are left out; share of the sites.

    Returns
    -------
    Boundary
        Of kind ``"common tangent"``: a point for each interval that leaves out at least one
        composition whose free energy is determined, in the order of temperature and composition.
        ``mu`` is the slope, ``mu_species`` less that of the other species. Errors by the
        replicas of the free energies, without the step of 1/n_sites; nan where fewer than half
        of the replicas have the interval.

    Raises
    ------
    ValueError
        If the data are of no binary, the species is none of them, or min_width is negative.

    Examples
    --------
    >>> from clease_nn.energies.ising import ising_energy
    >>> from clease_nn.ensemble import SemiGrandCanonical
    >>> from clease_nn.lattice import Lattice
    >>> from clease_nn.thermodynamics import DensityOfStates, canonical
    >>> lattice = Lattice.square(4)
    >>> model = SemiGrandCanonical(ising_energy(lattice, coupling=0.02))
    >>> dos = DensityOfStates.exact(model.enumerate(lattice))
    >>> found = common_tangent(canonical(dos, [300.0, 3000.0]), "Au")
    >>> found.temperature.value.tolist(), found.composition.value.tolist()
    ([300.0], [[0.0, 1.0]])
    >>> bool(abs(found.mu.value[0]) < 1e-12)
    True
    """
    if len(canonical.species) != 2:
        raise ValueError(
            f"a common tangent belongs to two species, the data have {canonical.species}; restrict "
            "them to one line of compositions"
        )
    species = canonical.species[-1] if species is None else species
    if species not in canonical.species:
        raise ValueError(f"species {species!r} is none of {canonical.species}")
    if not min_width >= 0:
        raise ValueError(f"min_width must not be negative, got {min_width}")
    count = canonical.counts[:, canonical.species.index(species)]
    order = np.argsort(count)
    count, n = count[order], canonical.n_sites
    rows, notes = [], []
    for k, temperature in enumerate(canonical.temperatures):
        kT = kB * temperature
        f = -kT * canonical.log_z[k][order]
        known = np.isfinite(f)
        if known.sum() < 3:
            notes.append(f"{temperature:g} K: F is determined at {known.sum()} compositions")
            continue
        c, f = count[known], f[known]
        found = [e for e in _edges(c, f) if (e[1] - e[0]) / n > min_width]
        for left, right, _ in found:
            if (~known & (count > left) & (count < right)).any():
                notes.append(
                    f"{temperature:g} K: F is not determined everywhere between x = {left / n:.4g} "
                    f"and {right / n:.4g}"
                )
        others: list = []
        if canonical.log_z_replicas is not None:
            deviations = canonical.log_z_replicas[k][order][known].astype(float)
            others = [_edges(c, f - kT * d) for d in deviations.T]
        for edge in found:
            error = _edge_error(edge, others)
            left, right, mu = edge
            rows.append([temperature, mu, error[2], left / n, right / n, *(error[:2] / n)])
    warning = f"compositions in steps of 1/{n}, interfaces within the gap included"
    return _boundary("common tangent", rows, [warning, *notes], canonical.provenance)


def lowest_temperature(c: Configurations) -> Configurations:
    """The sample of the lowest temperature at each composition.

    Semi-grand canonical samples leave a miscibility gap empty, so that the lowest temperature at
    which a composition was ever seen traces the edge of the gap.

    What is wrong with it: it is the extreme of a sample, so that more samples move it down
    without end; fluctuations of a finite cell reach into the gap; it shows ordered phases as
    single compositions; and a chain trapped in a metastable phase counts like any other.

    Parameters
    ----------
    c : Configurations
        Samples of many temperatures, at chemical potentials dense enough to reach all
        compositions.

    Returns
    -------
    Configurations
        One row a composition, in their order; among several the one of lowest energy, where
        energies are known. The points of the picture are ``.counts() / n_sites`` and
        ``.conditions.temperature``.

    Raises
    ------
    ValueError
        If there are no configurations or a site is unknown.
    """
    if not len(c):
        raise ValueError("there are no configurations")
    if not bool(c.known.all()):
        raise ValueError("configurations have unknown sites; complete them first")
    counts = c.counts().cpu().numpy().astype(int)
    temperature = c.conditions.temperature.cpu().numpy()
    energy = np.zeros(len(c)) if c.energy is None else c.energy.cpu().numpy()
    order = np.lexsort((energy, temperature))
    _, first = np.unique(counts[order], axis=0, return_index=True)
    return c[torch.as_tensor(order[first])]


def alpha_shape(points, radius: float) -> np.ndarray:
    """Outline of a cloud of points, such as all (x, T) that belong to one phase.

    Delaunay triangles whose circumscribed circle is larger than ``radius`` are taken away; the
    outline is the edges that belong to one triangle only. Both axes are scaled to their ranges.

    What is wrong with it: the outline depends on the radius and on how densely was sampled; it
    has no error and no thermodynamics in it.

    Parameters
    ----------
    points : array_like, shape (n, 2)
    radius : float
        In units of the ranges of the points; infinity gives the convex hull.

    Returns
    -------
    ndarray, shape (edges, 2), int
        Pairs of rows of ``points``.

    Raises
    ------
    ValueError
        If there are fewer than three points, all lie on one line, one is not finite, or the
        radius is not positive.

    References
    ----------
    H. Edelsbrunner, D. G. Kirkpatrick, R. Seidel, IEEE Trans. Inf. Theory 29, 551 (1983).

    Examples
    --------
    >>> corners = [[0, 200], [1, 200], [1, 900], [0, 900]]
    >>> alpha_shape(corners, np.inf).tolist()
    [[0, 1], [0, 3], [1, 2], [2, 3]]
    """
    p = np.asarray(points, dtype=float)
    if p.ndim != 2 or p.shape[1] != 2 or len(p) < 3 or not np.isfinite(p).all():
        raise ValueError(f"an outline needs at least three finite points (n, 2), got {p.shape}")
    if not radius > 0:
        raise ValueError(f"the radius must be positive, got {radius}")
    size = np.ptp(p, axis=0)
    if not (size > 0).all():
        raise ValueError("all points lie on one line, which has no outline")
    q = (p - p.min(0)) / size
    try:
        triangles = Delaunay(q).simplices
    except QhullError as error:
        raise ValueError("all points lie on one line, which has no outline") from error
    a, b, c = (q[triangles[:, k]] for k in range(3))
    sides = [np.linalg.norm(u - v, axis=1) for u, v in ((a, b), (b, c), (c, a))]
    u, v = b - a, c - a
    area = np.abs(u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]) / 2
    kept = np.prod(sides, 0) <= 4 * area * radius if np.isfinite(radius) else area > 0
    edges = np.sort(np.concatenate([triangles[kept][:, [i, (i + 1) % 3]] for i in range(3)]), 1)
    unique, times = np.unique(edges, axis=0, return_counts=True)
    return unique[times == 1]


# ------------------------------------------------------------------ helpers
def _on_line(averages: Averages, line: ChemicalPotentialLine):
    """Temperatures, positions along the line (rounded), and compositions of averages."""
    if not len(averages):
        raise ValueError("there are no averages")
    if line.species not in averages[0].species:
        raise ValueError(f"the line's species {line.species!r} is none of {averages[0].species}")
    conditions = averages.conditions
    t = line.position(conditions)
    off = line.mu(t) - conditions.mu.numpy()
    off = np.abs(off - off.mean(1, keepdims=True)).max()
    if off > 1e-6:
        raise ValueError(
            f"chemical potentials lie up to {off:.3g} eV off the line {line.label}; hand over "
            "averages along it only"
        )
    k = averages[0].species.index(line.species)
    x = Estimate(
        np.array([a.composition.value[k] for a in averages]),
        np.array([a.composition.error[k] for a in averages]),
    )
    return conditions.temperature.numpy(), np.round(t, 9), x


def _boundary(kind: str, rows: list, notes: list[str], provenance) -> Boundary:
    """From rows of T, mu, its error, both compositions, their errors, and perhaps T's error."""
    r = np.array(rows, dtype=float).reshape(len(rows), -1 if rows else 7)
    error = r[:, 7] if r.shape[1] > 7 else np.zeros(len(r))
    return Boundary(
        kind=kind,
        phases=("", ""),
        temperature=Estimate(r[:, 0], error),
        mu=Estimate(r[:, 1], r[:, 2]),
        composition=Estimate(r[:, 3:5], r[:, 5:7]),
        slope=None,
        stable=np.isfinite(r[:, :2]).all(1),
        reason="; ".join(notes),
        provenance=dict(provenance),
    )


def _vertex(x: np.ndarray, y: np.ndarray, errors: np.ndarray) -> tuple[float, float]:
    """Vertex of the parabola through three points and its error from those of y."""

    def vertex(y):
        a, b, _ = np.polyfit(x - x[1], y, 2)
        return x[1] - b / (2 * a)

    if not np.ptp(y) > 0:
        return float(x[1]), float((x[2] - x[0]) / 2)
    step = 1e-4 * np.ptp(y)
    slopes = np.array([(vertex(y + d) - vertex(y - d)) / (2 * step) for d in step * np.eye(3)])
    return float(vertex(y)), float(np.sqrt(((slopes * errors) ** 2).sum()))


def _edges(count: np.ndarray, f: np.ndarray) -> list[tuple[int, int, float]]:
    """Edges (left, right, slope) of the lower hull that leave out a composition, in order."""
    slopes, corners = lower_facets(count[:, None].astype(float), f)
    corners = np.sort(corners, 1)
    return sorted(
        (int(count[a]), int(count[b]), float(s))
        for (a, b), s in zip(corners, slopes[:, 0], strict=True)
        if b - a > 1
    )


def _edge_error(edge: tuple, replicas: list) -> np.ndarray:
    """Errors of (left, right, slope): spread of the edges of replicas that overlap most."""
    if not replicas:
        return np.zeros(3)
    found = []
    for edges in replicas:
        overlap = [min(edge[1], e[1]) - max(edge[0], e[0]) for e in edges]
        if overlap and max(overlap) > 0:
            found.append(edges[int(np.argmax(overlap))])
    if len(found) < max(2, len(replicas) / 2):
        return np.full(3, nan)
    return np.std(found, axis=0, ddof=1)
