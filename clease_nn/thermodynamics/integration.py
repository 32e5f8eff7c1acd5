"""ln Z by integration along an isotherm or a temperature path: what is done where Z is unknown.

Single-condition Monte Carlo gives averages, and ln Z by integrating them from a start where it is
known,

    d ln Z = <N> . d(mu/kT) - <E> d(1/kT),

along a chemical potential at fixed temperature, or along 1/kT at fixed chemical potentials, where
the integrand is ``-<E - mu.N>``. Starts are a pure or ordered phase of few excitations
(:func:`excitation_log_z`), or infinite temperature, where ``ln Z = lattice.log_states`` (1e12 K
will do). Two faults cannot be seen in the statistical errors: a path through a first-order
transition carries its hysteresis along, and points too far apart integrate a curve that nobody has
measured. The first shows in two paths of opposite directions (:func:`hysteresis`), the second in
:attr:`Integrated.discretisation`.

References
----------
A. van de Walle and M. Asta, Modelling Simul. Mater. Sci. Eng. 10, 521 (2002); A. Van der Ven,
J. C. Thomas, B. Puchala, A. R. Natarajan, Annu. Rev. Mater. Res. 48, 27 (2018).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.integrate import cumulative_simpson, cumulative_trapezoid
from scipy.interpolate import CubicSpline

from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.cost import Cost
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import Lattice
from clease_nn.statistics import Estimate
from clease_nn.thermodynamics.averages import Averages, ConditionAverages

__all__ = [
    "Hysteresis",
    "Integrated",
    "excitation_log_z",
    "hysteresis",
    "integrate_grand_potential",
]

_STRAIGHT = 1e-9  # relative, of temperatures or chemical potentials that are meant to be equal


@dataclass(frozen=True, eq=False)
class Integrated:
    """ln Z along a path.

    Attributes
    ----------
    conditions : Conditions
        Of the path, in its order.
    n_sites : int
    log_z : Estimate, shape (points,)
        Errors contain those of all averages up to a point and of the start, nothing else.
    discretisation : ndarray, shape (points,)
        Difference from the integral over every other point: what the spacing of the points may
        be worth; nan where there are too few points. No error bar: where the curve has a step
        between two points, both are off.
    cost : Cost
        Of the averages.
    """

    conditions: Conditions
    n_sites: int
    log_z: Estimate
    discretisation: np.ndarray
    cost: Cost

    @property
    def grand_potential(self) -> Estimate:
        """-kT ln Z, eV per supercell, shape (points,)."""
        return self.log_z * -self.conditions.kT.cpu().numpy()

    @property
    def grand_potential_per_site(self) -> Estimate:
        """-kT ln Z per active site, eV, shape (points,)."""
        return self.grand_potential / self.n_sites


def integrate_grand_potential(
    averages: Averages | Sequence[ConditionAverages],
    reference: Estimate | float,
    *,
    method: str = "simpson",
) -> Integrated:
    """Integrate averages along a path into ln Z.

    Parameters
    ----------
    averages : Averages
        In the order of the path, from the known start on: one temperature and chemical potentials
        on a straight line, or the same chemical potentials and temperatures that rise or fall.
        Any averages will do, also without ``log_z``.
    reference : Estimate or float
        ln Z at the first point.
    method : {"simpson", "trapezoid", "spline"}
        scipy's rules for unequal spacings. ``"trapezoid"`` is the safest across steps.

    Returns
    -------
    Integrated

    Raises
    ------
    ValueError
        If there are fewer than two points, the path is not of one of the two kinds or turns back,
        a value or the reference is not finite, or the method is unknown.

    Notes
    -----
    Every rule is linear in the averages, ``ln Z_k = ln Z_0 + sum_j W_kj f_j``, and the points are
    independent runs: ``error_k^2 = error_0^2 + sum_j W_kj^2 error_j^2``. For more than two species
    the error of ``<N>`` along the path takes the slowest species for all.

    Examples
    --------
    Exact averages of a 3 x 3 Ising model along an isotherm:

    >>> from clease_nn.energies.ising import ising_energy
    >>> from clease_nn.thermodynamics import DensityOfStates
    >>> lattice = Lattice.square(3)
    >>> exact = DensityOfStates.exact(SemiGrandCanonical(ising_energy(lattice)).enumerate(lattice))
    >>> path = Conditions.grid([30000.0], [[0.0, m] for m in np.linspace(-9, 0, 61)])
    >>> found = integrate_grand_potential(exact.averages(path), exact.log_z(path).value[0])
    >>> bool(abs(found.log_z.value - exact.log_z(path).value).max() < 1e-3)
    True
    """
    points = list(averages)
    if len(points) < 2:
        raise ValueError(f"a path needs at least two points, got {len(points)}")
    if method not in _RULES:
        raise ValueError(f"method must be one of {tuple(_RULES)}, got {method!r}")
    s, f, error = _path(points)
    if not (np.isfinite(f).all() and np.isfinite(error).all()):
        k = int(np.argmin(np.isfinite(f) & np.isfinite(error)))
        raise ValueError(
            f"the average at point {k} of the path (T = {points[k].temperature:g} K) is not finite"
        )
    start = reference if isinstance(reference, Estimate) else Estimate(float(reference), 0.0)
    if np.ndim(start.value) or not np.isfinite(start.value + start.error):
        raise ValueError(
            f"reference must be ln Z at the first point, one finite number, got {reference}"
        )
    weights = _weights(s, method)
    value = start.value + weights @ f
    spread = np.sqrt(start.error**2 + weights**2 @ error**2)
    return Integrated(
        conditions=Conditions([p.temperature for p in points], np.stack([p.mu for p in points])),
        n_sites=points[0].n_sites,
        log_z=Estimate(value, spread),
        discretisation=_discretisation(s, f, weights, method),
        cost=getattr(averages, "cost", Cost()),
    )


@dataclass(frozen=True, eq=False)
class Hysteresis:
    """Two paths over the same points in opposite directions.

    Attributes
    ----------
    conditions : Conditions
        In the order of the first path.
    difference : Estimate, shape (points,)
        Composition of the species that differs most, first path minus second.
    integrals : Estimate or None, shape (points,)
        ln Z of the first path minus that of the second, where both were integrated.
    sigmas : float
        Differences of more errors than this count.
    """

    conditions: Conditions
    difference: Estimate
    integrals: Estimate | None
    sigmas: float

    @property
    def branches(self) -> np.ndarray:
        """(points,) bool: the averages of the two directions differ beyond errors there."""
        return np.abs(self.difference.z(0.0)) > self.sigmas

    @property
    def integrated(self) -> np.ndarray:
        """(points,) bool: the integrals of the two directions differ beyond errors there."""
        if self.integrals is None:
            return np.zeros(len(self.conditions), dtype=bool)
        return np.abs(self.integrals.z(0.0)) > self.sigmas

    @property
    def mask(self) -> np.ndarray:
        """(points,) bool: either of the two."""
        return self.branches | self.integrated

    def __str__(self) -> str:
        worst = float(np.abs(self.difference.value).max())
        return (
            f"{int(self.branches.sum())} of {len(self.conditions)} points differ between the two "
            f"directions by more than {self.sigmas:g} errors, at most by {worst:.4f} in "
            "composition; "
            f"integrals differ at {int(self.integrated.sum())}"
        )


def hysteresis(
    one: Averages | Sequence[ConditionAverages],
    other: Averages | Sequence[ConditionAverages],
    *,
    references: tuple[Estimate | float, Estimate | float] | None = None,
    method: str = "simpson",
    sigmas: float = 5.0,
) -> Hysteresis:
    """Compare two runs along one path in opposite directions.

    Parameters
    ----------
    one, other : Averages
        Each in its own order: the first point of one is the last of the other.
    references : (Estimate or float, Estimate or float), optional
        ln Z at the first point of each; then the integrals are compared too.
    method : str
        As for :func:`integrate_grand_potential`.
    sigmas : float
        What counts as a difference, in errors. With many points, 5 is seldom exceeded by chance;
        errors of chains that never left a metastable phase know nothing of it, which is why the
        two directions are compared.

    Raises
    ------
    ValueError
        If the two do not visit the same points in opposite directions.
    """
    a, b = list(one), list(other)[::-1]
    same = len(a) == len(b) and all(
        np.isclose(p.temperature, q.temperature, rtol=_STRAIGHT)
        and np.allclose(p.mu, q.mu, rtol=0, atol=1e-9)
        for p, q in zip(a, b, strict=True)
    )
    if not same:
        raise ValueError(
            "the two runs must visit the same conditions in opposite directions, each in the order "
            "in which it went"
        )
    x, y = (np.array([p.composition.value for p in c]) for c in (a, b))
    e = np.sqrt(sum(np.array([p.composition.error for p in c]) ** 2 for c in (a, b)))
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(x == y, 0.0, np.abs(x - y) / e)
    worst = np.argmax(z, axis=1)
    rows = np.arange(len(a))
    difference = Estimate((x - y)[rows, worst], e[rows, worst])
    integrals = None
    if references is not None:
        up = integrate_grand_potential(one, references[0], method=method)
        down = integrate_grand_potential(other, references[1], method=method)
        integrals = Estimate(
            up.log_z.value - down.log_z.value[::-1],
            np.hypot(up.log_z.error, down.log_z.error[::-1]),
        )
    at = Conditions([p.temperature for p in a], np.stack([p.mu for p in a]))
    return Hysteresis(at, difference, integrals, float(sigmas))


def excitation_log_z(
    ensemble: SemiGrandCanonical, lattice: Lattice, occupations, conditions: Conditions
) -> Estimate:
    """ln Z of a phase at low temperature: its ground state and independent single-site excitations.

        ln Z = -(E_0 - mu.N_0)/kT + sum_sites ln(1 + sum_species exp(-dE'/kT)),

    the leading term of the low-temperature expansion, with ``dE'`` the change of ``E - mu.N``. It
    is where a path starts, in a pure phase at a large chemical potential or in an ordered one. One
    of several variants of a phase is counted; add the logarithm of their number.

    Parameters
    ----------
    ensemble : SemiGrandCanonical
    lattice : Lattice
    occupations : array_like, shape (sites,)
        The ground state.
    conditions : Conditions

    Returns
    -------
    Estimate, shape (conditions,)
        ``error`` is ``N x^2``, x the mean number of excitations a site: the size of the first
        term left out, pairs of neighbours. It is no statistical error.

    Raises
    ------
    ValueError
        If a site carries a species it may not carry, or a single change lowers the energy: then
        this is no ground state at the condition.

    Examples
    --------
    >>> lattice = Lattice.square(3)
    >>> free = SemiGrandCanonical(lambda lattice, x: torch.zeros(len(x)))
    >>> at = Conditions([600.0], [[0.0, 0.5]])
    >>> exact = 9 * np.log(1 + np.exp(0.5 / at.kT.item()))
    >>> bool(np.isclose(excitation_log_z(free, lattice, [1] * 9, at).value[0], exact))
    True
    """
    ground = np.asarray(occupations, dtype=np.int8)
    if ground.shape != (lattice.n_sites,) or not (
        ((ground >= 0) & (ground < lattice.n_species)).all()
        and lattice.allowed[np.arange(lattice.n_sites), ground].all()
    ):
        raise ValueError(f"occupations must be {lattice.n_sites} allowed species")
    site, species = np.nonzero(lattice.allowed)
    other = species != ground[site]
    site, species = site[other], species[other]
    states = np.repeat(ground[None], len(site) + 1, axis=0)
    states[np.arange(1, len(states)), site] = species
    value, error = [], []
    for k in range(len(conditions)):
        c = Configurations(lattice, conditions[k].repeat(len(states)), torch.as_tensor(states))
        log_w = ensemble.score(c).log_target.cpu().numpy()
        change = log_w[1:] - log_w[0]
        if len(change) and change.max() > 0:
            j = int(np.argmax(change))
            raise ValueError(
                f"{lattice.species[species[j]]} on site {site[j]} lowers E - mu.N by "
                f"{change[j] * conditions.kT[k].item():.4g} eV: this is no ground state at T = "
                f"{conditions.temperature[k].item():g} K, mu = {conditions.mu[k].tolist()} eV"
            )
        excited = np.bincount(site, np.exp(change), lattice.n_sites)
        value.append(log_w[0] + np.log1p(excited).sum())
        error.append(excited.sum() ** 2 / lattice.n_sites)
    return Estimate(np.array(value), np.array(error))


# ------------------------------------------------------------------ the path
def _path(points: list[ConditionAverages]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coordinate along the path, derivative of ln Z along it, and its error."""
    at = Conditions([p.temperature for p in points], np.stack([p.mu for p in points]))
    beta, mu = at.beta.numpy(), at.mu.numpy()
    t = at.temperature.numpy()
    if np.ptp(t) <= _STRAIGHT * t.max():
        x = (mu - mu[0]) * beta[0]
        length = np.linalg.norm(x, axis=1)
        along = x[-1] / max(length[-1], 1e-300)
        if np.abs(x - length[:, None] * along).max() > 1e-6 * max(length[-1], 1e-300):
            raise ValueError(
                "the chemical potentials of an isotherm must lie on one straight line in one "
                "direction; integrate every straight part by itself"
            )
        s = length
        f = np.array([p.n_sites * (p.composition.value @ along) for p in points])
        error = np.array([_count_error(p, along) for p in points])
    elif np.abs(mu - mu[0]).max() <= _STRAIGHT * (1 + np.abs(mu).max()):
        s = beta
        f = np.array([-float(p.sgc_energy.value) for p in points])
        error = np.array([float(p.sgc_energy.error) for p in points])
    else:
        raise ValueError(
            "a path is an isotherm or has the same chemical potentials throughout; on this one "
            "both change: integrate its parts one after the other"
        )
    step = np.diff(s)
    if not ((step > 0).all() or (step < 0).all()):
        raise ValueError("the path turns back or stands still; give its points in order")
    return s, f, error


def _count_error(p: ConditionAverages, along: np.ndarray) -> float:
    """Error of ``<N> . along`` from those of the compositions and the covariance."""
    covariance = np.asarray(p.count_covariance.value)
    variance = np.diag(covariance)
    moving = variance > 0
    error = p.n_sites * np.asarray(p.composition.error)
    if not moving.any():
        return float(np.abs(along) @ error)
    slowest = (error[moving] / np.sqrt(variance[moving])).max()
    return float(np.sqrt(max(along @ covariance @ along, 0.0)) * slowest)


# ------------------------------------------------------------------ rules
def _trapezoid(s: np.ndarray) -> np.ndarray:
    return cumulative_trapezoid(np.eye(len(s)), s, axis=0, initial=0)


def _simpson(s: np.ndarray) -> np.ndarray:
    if len(s) < 3:
        return _trapezoid(s)
    # scipy wants rising coordinates; the sign of all steps may be taken out
    sign = np.sign(s[-1] - s[0])
    rows = cumulative_simpson(np.eye(len(s)), x=sign * s, axis=-1, initial=0)
    return sign * rows.T


def _spline(s: np.ndarray) -> np.ndarray:
    if len(s) < 3:
        return _trapezoid(s)
    sign = np.sign(s[-1] - s[0])
    curve = CubicSpline(sign * s, np.eye(len(s))).antiderivative()
    return sign * (curve(sign * s) - curve(sign * s[0]))


_RULES = {"simpson": _simpson, "trapezoid": _trapezoid, "spline": _spline}


def _weights(s: np.ndarray, method: str) -> np.ndarray:
    """(points, points): integral up to each point as a linear function of the values."""
    return _RULES[method](s)


def _discretisation(s, f, weights, method: str) -> np.ndarray:
    """Change of the integral when every other point is left out, nan where this cannot be told."""
    out = np.full(len(s), np.nan)
    out[0] = 0.0
    coarse = np.arange(0, len(s), 2)
    if len(coarse) < 2:
        return out
    out[coarse] = weights[coarse] @ f - _weights(s[coarse], method) @ f[coarse]
    between = np.isnan(out)
    out[between] = np.interp(np.flatnonzero(between), coarse, out[coarse])
    return out
