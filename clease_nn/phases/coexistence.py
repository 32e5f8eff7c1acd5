"""First-order lines: where two phases have one grand potential.

A phase's own ln Z is the sum over its states (of one of its variants), so two phases coexist at
temperature T where ``ln Z_a(T, t) = ln Z_b(T, t)``, t being the position along a line of chemical
potentials. There

    dt/dT = -(S_a - S_b) / (A_a - A_b),   S_a - S_b = (U_a - U_b) / T,

with A = direction . <N> and U = <E - mu.N>: the Clausius-Clapeyron equation of the grand
potentials, ``d Omega = -S dT - A dt``. Only differences of ln Z enter: data that know it up to a
constant will do.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import nan

import numpy as np
from scipy.optimize import brentq

from clease_nn.errors import NotDeterminedError
from clease_nn.phases.identify import CRITICAL_VALLEY
from clease_nn.phases.labels import UNDECIDED, Phases
from clease_nn.phases.line import ChemicalPotentialLine
from clease_nn.phases.projection import Landscape, Projection
from clease_nn.statistics import Estimate
from clease_nn.thermodynamics import DensityOfStates
from clease_nn.thermodynamics.density_of_states import FEWEST

__all__ = ["Coexistence", "NoCoexistenceError", "coexistence", "find_coexistence"]

_SHALLOWEST = 0.9  # valley over peak
_FEWEST_REPLICAS = 0.5  # that must have a point
_NEWTON, _BACK = 30, 10  # steps at most
_SCAN = 400  # points at which crossings are looked for


class NoCoexistenceError(ValueError):
    """Nowhere along the line do the two phases have one grand potential."""


@dataclass(frozen=True, eq=False)
class Coexistence:
    """Two phases of equal grand potential at one temperature.

    Attributes
    ----------
    phases : tuple of two str
        The one poorer in the line's species first.
    temperature : float
        K.
    mu : Estimate
        Position along the line, eV.
    composition : Estimate, shape (2,)
        Share of the line's species in each phase.
    entropy_jump : Estimate
        Entropy of the second phase minus that of the first, eV/K per supercell.
    slope : Estimate
        d mu / d T along the line of coexistence, eV/K.
    valley : Estimate
        Weight between the phases over that of the lower peak, seen along the direction that
        separates them best.
    limit : float
        Valley above which the phases count as one: that of a critical point of Ising type (0.46)
        for phases of one kind of order, 0.9 for different kinds, where a small supercell fills
        the valley of a first-order transition and a continuous one has none.
    ess : tuple of two float
        Effective states of each phase.
    share : float
        Share of the replicas in which the phases coexist, 1 for exact densities of states. Near
        the top of a dome it falls: errors are the spread over the replicas that have the point.
    """

    phases: tuple[str, str]
    temperature: float
    mu: Estimate
    composition: Estimate
    entropy_jump: Estimate
    slope: Estimate
    valley: Estimate
    limit: float
    ess: tuple[float, float]
    share: float

    @property
    def separate(self) -> bool:
        """Whether the valley is deeper than the limit by its error."""
        return bool(self.valley.value + self.valley.error < self.limit)

    def __str__(self) -> str:
        a, b = self.phases
        return (
            f"{a} + {b} at {self.temperature:g} K: mu = {self.mu} eV, "
            f"x = {self.composition[0]} and {self.composition[1]}"
        )


def coexistence(
    dos: DensityOfStates,
    phases: Phases,
    pair: tuple[str, str],
    line: ChemicalPotentialLine,
    temperature: float,
    *,
    near: float | None = None,
) -> Coexistence:
    """Where two phases coexist at one temperature.

    Parameters
    ----------
    dos : DensityOfStates
    phases : Phases
        Labels of its states.
    pair : tuple of two str
        The phase poorer in the line's species first: a phase that borders another on both sides
        meets it at two points.
    line : ChemicalPotentialLine
    temperature : float
        K.
    near : float, optional
        eV along the line; needed only if there are several points: the nearest counts.

    Raises
    ------
    ValueError
        If a phase is unknown, the labels belong to other states, or there are several points and
        ``near`` is not given.
    NoCoexistenceError
        If the grand potentials cross nowhere in the range of the data.
    NotDeterminedError
        If a phase was never sampled, too few effective states of either carry the point, or less
        than half of the replicas have it.

    Examples
    --------
    >>> from clease_nn.energies.ising import ising_energy
    >>> from clease_nn.ensemble import SemiGrandCanonical
    >>> from clease_nn.lattice import Lattice
    >>> lattice = Lattice.square(4)
    >>> states = SemiGrandCanonical(ising_energy(lattice, 0.02)).enumerate(lattice)
    >>> dos = DensityOfStates.exact(states)
    >>> labels = np.sign(dos.counts[:, 1] - 8)  # half-filled states belong to neither
    >>> phases = Phases.given(dos, np.array([0, -1, 1])[labels.astype(int) + 1], ["Cu", "Au"])
    >>> line = ChemicalPotentialLine.exchange(lattice, "Au", "Cu")
    >>> point = coexistence(dos, phases, ("Cu", "Au"), line, 400.0)
    >>> bool(abs(point.mu.value) < 1e-10), point.composition.value.round(3).tolist()
    (True, [0.016, 0.984])
    """
    landscape = Landscape(dos, phases, line)
    return find_coexistence(landscape, pair, temperature, near=near)


def find_coexistence(
    landscape: Landscape, pair: tuple[str, str], temperature: float, near: float | None = None
) -> Coexistence:
    """As :func:`coexistence`, on sums that are shared between calls."""
    a, b = _pair(landscape, pair, temperature)
    roots = crossings(landscape, a, b, temperature)
    words = f"{pair[0]} and {pair[1]} at {temperature:g} K"
    if not roots:
        low, high = landscape.span(temperature)
        raise NoCoexistenceError(
            f"{words}: no point between {low:.4g} and {high:.4g} eV along the line where both "
            f"have one grand potential and {pair[0]} is the poorer in {landscape.line.species}"
        )
    if near is not None:
        if not np.isfinite(near):
            raise ValueError(f"near must be a finite position along the line, got {near} eV")
        roots = [min(roots, key=lambda t: abs(t - near))]  # none else, however well sampled
    enough = [t for t in roots if min(a.ess([t])[0], b.ess([t])[0]) >= FEWEST]
    if not enough:
        t = roots[0]
        poor = [(p.ess([t])[0], n) for p, n in zip((a, b), pair, strict=True)]
        ess, name = min(poor)
        raise NotDeterminedError(
            f"{words} seem to coexist near {t:.4g} eV along the line, but only {ess:.1f} "
            f"effective states of {name} carry this point (need {FEWEST:.0f}). Remedy: sample "
            f"there, in {name}"
        )
    if len(enough) > 1 and near is None:
        raise ValueError(
            f"{words} coexist at {', '.join(f'{t:.4g}' for t in enough)} eV along the line; say "
            "which with near="
        )
    return _point(landscape, pair, a, b, temperature, enough[0])


def crossings(
    landscape: Landscape, a: Projection, b: Projection, temperature: float
) -> list[float]:
    """Every t at which both have one ln Z and ``a`` is the poorer in the line's species."""

    def difference(t):
        return a.log_z(t) - b.log_z(t)

    grid = np.linspace(*landscape.span(temperature), _SCAN)
    f = difference(grid)
    out = []
    for k in np.flatnonzero(np.sign(f[1:]) != np.sign(f[:-1])):
        t = brentq(lambda t: difference(t)[0], grid[k], grid[k + 1], xtol=1e-15, rtol=1e-14)
        known = any(abs(t - other) < 1e-12 for other in out)  # a root on the grid shows twice
        if a.at(t)[2][1] < b.at(t)[2][1] and not known:
            out.append(t)
    return out


# ------------------------------------------------------------------ parts
def _pair(landscape: Landscape, pair, temperature: float) -> tuple[Projection, Projection]:
    if len(pair) != 2 or pair[0] == pair[1]:
        raise ValueError(f"a pair is two different phases, got {pair}")
    if not (np.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be positive and finite, got {temperature} K")
    found = [landscape.projection(name, temperature) for name in pair]
    for p, name in zip(found, pair, strict=True):
        if p is None or not len(p):
            raise NotDeterminedError(
                f"{name} was never sampled: no state carries its label. Remedy: start chains in "
                "it, or sample where it is stable"
            )
    return found[0], found[1]


def _point(landscape, pair, a, b, temperature: float, t: float) -> Coexistence:
    def read(log_z, amount, mean, t):
        """U, amount, composition; columns over replicas where there are any."""
        return mean[..., 0] - t * amount, amount, mean[..., 1]

    def derived(x, y):
        jump = (y[0] - x[0]) / temperature
        return np.stack([x[2], y[2], jump, -jump / (y[1] - x[1])])

    value = derived(read(*a.at(t), t), read(*b.at(t), t))
    error, mu_error, share = np.zeros(4), 0.0, 1.0
    if not landscape.dos.is_exact:
        own, has = _solve_replicas(a, b, t)
        share = float(has.mean())
        if share < _FEWEST_REPLICAS:
            raise NotDeterminedError(
                f"{pair[0]} and {pair[1]} at {temperature:g} K: they coexist in {share:.0%} of the "
                f"replicas of the data only (need {_FEWEST_REPLICAS:.0%}): within the errors the "
                "line may end before. Remedy: sample both phases more"
            )
        replicas = derived(read(*a.replicas(own), own), read(*b.replicas(own), own))[:, has]
        error, mu_error = replicas.std(1, ddof=1), float(own[has].std(ddof=1))
    pick = [Estimate(float(v), float(e), nan) for v, e in zip(value, error, strict=True)]
    return Coexistence(
        phases=tuple(pair),
        temperature=float(temperature),
        mu=Estimate(float(t), mu_error, nan),
        composition=Estimate(value[:2], error[:2], nan),
        entropy_jump=pick[2],
        slope=pick[3],
        valley=_valley(landscape, pair, temperature, t),
        limit=_limit(landscape, pair),
        ess=(float(a.ess([t])[0]), float(b.ess([t])[0])),
        share=share,
    )


def _limit(landscape: Landscape, pair) -> float:
    first, second = (landscape.phases.kinds[landscape.phases.index(name)] for name in pair)
    return CRITICAL_VALLEY if first == second else _SHALLOWEST


def _solve_replicas(a: Projection, b: Projection, t: float) -> tuple[np.ndarray, np.ndarray]:
    """The t of every replica at which both have one ln Z, and whether it has one, (replicas,).

    Newton's method from the point of the data. Where the difference of the amounts changes sign
    on the way there is none: the difference of ln Z has an extremum before it is zero. The t of
    such a replica is that of the data.
    """
    sign = np.sign(a.at(t)[1] - b.at(t)[1])

    def compare(own):
        """ln Z of the first less that of the second, and their amounts alike."""
        (za, na, _), (zb, nb, _) = a.replicas(own), b.replicas(own)
        return za - zb, na - nb

    own = np.full(a.replicas(t)[0].shape, t)
    f, slope = compare(own)
    for k in range(_BACK):  # replicas whose extremum lies on the near side of t: go behind it
        behind = sign * slope <= 0
        if not behind.any():
            break
        own = np.where(behind, t + sign * 0.01 * 2**k * a.kT, own)
        f, slope = compare(own)
    has = sign * slope > 0
    for _ in range(_NEWTON):
        step = np.where(has, -f * a.kT / np.where(has, slope, 1.0), 0.0)
        own = own + step
        f, slope = compare(own)
        has &= sign * slope > 0
        if not np.abs(step[has]).max(initial=0.0) > 1e-9 * a.kT:
            break
    has &= np.abs(f) < 1e-6
    return np.where(has, own, t), has


def _valley(landscape: Landscape, pair, temperature: float, t: float) -> Estimate:
    """Depth of the valley between two phases at their coexistence.

    The states of both, and the undecided ones, are laid along Fisher's linear discriminant of
    composition, energy and long-range order, with the phases' means at 0 and 1, tilted to give
    both phases equal weight whatever their degeneracies, and smoothed with a Gaussian of width
    0.12.
    """
    dos, phases = landscape.dos, landscape.phases
    i, j = (phases.index(name) for name in pair)
    labels = phases.labels
    rows = np.flatnonzero((labels == i) | (labels == j) | (labels == UNDECIDED))
    kT = landscape.projection(pair[0], temperature).kT
    log_w = landscape.log_weights(temperature)[rows] + t * landscape.amount[rows] / kT
    w = np.exp(log_w - log_w[labels[rows] != UNDECIDED].max())
    keep = w > 1e-12
    rows, w = rows[keep], w[keep] / w[keep].sum()
    sites = dos.lattice.n_sites
    features = np.column_stack(
        [dos.counts[rows] / sites, dos.energy[rows] / sites, phases.order[rows]]
    )
    first, second = labels[rows] == i, labels[rows] == j
    mean, within = [], 0.0
    for part in (first, second):
        p = w[part] / w[part].sum()
        m = p @ features[part]
        d = features[part] - m
        mean.append(m)
        within = within + (d * p[:, None]).T @ d
    scale = np.sqrt(np.maximum(np.diag(within), 1e-300))
    difference = mean[1] - mean[0]
    # features without spread inside the phases: on their own they separate completely
    rigid = (scale < 1e-9) & (np.abs(difference) > 1e-6)
    if rigid.any():
        z = features[:, rigid] @ difference[rigid] / (difference[rigid] @ difference[rigid])
        z = z - mean[0][rigid] @ difference[rigid] / (difference[rigid] @ difference[rigid])
    else:
        use = scale > 1e-9
        correlation = within[np.ix_(use, use)] / np.outer(scale[use], scale[use])
        direction = np.linalg.pinv(correlation, rcond=1e-6) @ (difference[use] / scale[use])
        direction = direction / scale[use]
        z = (features[:, use] - mean[0][use]) @ direction / (difference[use] @ direction)
    w = w * np.exp(-np.log(w[second].sum() / w[first].sum()) * np.clip(z, -0.5, 1.5))
    w = w / w.sum()
    edges = np.linspace(-1.0, 2.0, 301)
    centres = (edges[1:] + edges[:-1]) / 2
    tau = np.ones(len(rows)) if dos.inefficiency is None else dos.inefficiency[rows]
    kernel = np.exp(-0.5 * ((centres[:, None] - centres) / 0.12) ** 2)
    density = kernel @ np.histogram(z, edges, weights=w)[0]
    square = kernel**2 @ np.histogram(z, edges, weights=w**2 * tau)[0]
    left = np.flatnonzero(np.abs(centres) <= 0.5)
    right = np.flatnonzero(np.abs(centres - 1) <= 0.5)
    p, q = left[density[left].argmax()], right[density[right].argmax()]
    v = p + int(density[p : q + 1].argmin())
    peak = p if density[p] < density[q] else q
    if density[peak] <= 0:
        return Estimate(1.0, 0.0, nan)
    ratio = density[v] / density[peak]
    if dos.is_exact:
        return Estimate(float(ratio), 0.0, nan)
    error = np.hypot(np.sqrt(square[v]), ratio * np.sqrt(square[peak])) / density[peak]
    return Estimate(float(ratio), float(error), nan)
