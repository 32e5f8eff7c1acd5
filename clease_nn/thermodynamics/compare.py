"""Two results of the same quantities: do they agree within their errors?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan

import numpy as np
from scipy.spatial import cKDTree
from scipy.stats import chi2

from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.statistics import Estimate
from clease_nn.thermodynamics.averages import Averages, averages
from clease_nn.thermodynamics.canonical import canonical
from clease_nn.thermodynamics.canonical_averages import CanonicalAverages
from clease_nn.thermodynamics.density_of_states import DensityOfStates

__all__ = ["Comparison", "Difference", "compare"]

_SIGNIFICANT = 1e-3
_FEWEST = 5  # z-scores below which small ones are no sign of errors that are too large
_ROUNDING = 1e-9  # difference of exact values that is none, in units of the largest value
_NO_ERROR = 1e-12  # errors that are rounding, in the same units
_TOLERANCE = {"temperature": 1e-4, "mu": 1e-7, "other": 1e-3}  # K, eV

_SCALARS = ("log_z", "grand_potential", "entropy", "energy", "sgc_energy", "heat_capacity")
_CANONICAL = ("free_energy", "energy", "entropy", "heat_capacity")


@dataclass(frozen=True, eq=False)
class Difference:
    """One quantity of two results.

    Attributes
    ----------
    name : str
    labels : tuple of str
        What each of the n rows is: a condition, a temperature and composition, an index.
    coordinates : Mapping of str to ndarray, shape (n,)
        The same as numbers, for axes of pictures: ``temperature`` (K), ``mu_<species>`` (eV) or
        ``x_<species>``; or ``index``.
    difference : Estimate, shape (n, ...)
        First minus second result, in the quantity's unit; the error is that of the two in
        quadrature. nan where one of them is not determined.
    z : ndarray, shape (n, ...)
        Difference over its error. Where neither result has an error: 0 if they are equal but for
        rounding, otherwise nan.
    """

    name: str
    labels: tuple[str, ...]
    coordinates: Mapping[str, np.ndarray]
    difference: Estimate
    z: np.ndarray

    @property
    def undetermined(self) -> int:
        """Values that one of the results does not determine."""
        return int(np.isnan(self.difference.value + self.difference.error).sum())

    @property
    def exact(self) -> int:
        """Values known without error by both results; these enter no z-score."""
        return int(self._exact.sum())

    @property
    def unequal(self) -> int:
        """How many of the exact values are different."""
        return int((self._exact & np.isnan(self.z)).sum())

    @property
    def n(self) -> int:
        """Number of z-scores: values with an error."""
        return len(self._scores)

    @property
    def rms_z(self) -> float:
        """Root of the mean square of the z-scores: 1 if differences are what the errors say."""
        return float(np.sqrt(np.mean(self._scores**2))) if self.n else nan

    @property
    def mean_z(self) -> float:
        """Mean of the z-scores: a bias that all conditions share."""
        return float(self._scores.mean()) if self.n else nan

    @property
    def max_z(self) -> float:
        """Largest of the absolute z-scores."""
        return float(np.abs(self._scores).max()) if self.n else nan

    @property
    def worst(self) -> str:
        """Label of the row with the largest absolute z-score, or largest difference if exact."""
        size = np.abs(self.z) if self.n else np.abs(self.difference.value)
        size = np.where(np.isnan(size), -1.0, size)
        if self.n:
            size = np.where(self._exact, -1.0, size)
        return self.labels[int(np.unravel_index(np.argmax(size), size.shape)[0])]

    @property
    def rms_difference(self) -> float:
        """Root of the mean square difference, in the quantity's unit."""
        d = self.difference.value[~np.isnan(self.difference.value)]
        return float(np.sqrt(np.mean(d**2))) if d.size else nan

    @property
    def p_value(self) -> float:
        """Chance of z-scores as large as these if the errors are right and all independent."""
        return float(chi2.sf((self._scores**2).sum(), self.n)) if self.n else nan

    @property
    def p_value_correlated(self) -> float:
        """The same if all conditions come from the same data and deviate together.

        An upper bound for practical purposes: then the z-scores are as good as one.
        """
        return float(chi2.sf((self._scores**2).mean(), 1)) if self.n else nan

    @property
    def verdict(self) -> str:
        """What to think of it, in words."""
        if self.unequal:
            return f"differ: {self.unequal} values without errors are not equal"
        if not self.n:
            return "equal" if self.exact else "not determined"
        if self.p_value_correlated < _SIGNIFICANT:
            return "differ by more than their errors"
        if self.p_value < _SIGNIFICANT:
            return "differ by more than their errors, unless conditions are correlated"
        low = chi2.cdf((self._scores**2).sum(), self.n)
        if self.n >= _FEWEST and low < _SIGNIFICANT:
            return "agree, errors too large or data shared"
        return "agree"

    @property
    def _exact(self) -> np.ndarray:
        return np.asarray(self.difference.error) == 0

    @property
    def _scores(self) -> np.ndarray:
        return self.z[~self._exact & ~np.isnan(self.z)]


@dataclass(frozen=True, eq=False)
class Comparison:
    """All quantities that two results have in common.

    Attributes
    ----------
    quantities : dict of str to Difference
    """

    quantities: dict[str, Difference]

    def __getitem__(self, name: str) -> Difference:
        """The difference in one quantity."""
        try:
            return self.quantities[name]
        except KeyError:
            raise KeyError(f"{name!r} is none of {', '.join(self.quantities)}") from None

    @property
    def z(self) -> dict[str, np.ndarray]:
        """z-scores of every quantity."""
        return {name: d.z for name, d in self.quantities.items()}

    @property
    def difference(self) -> dict[str, Estimate]:
        """Differences of every quantity."""
        return {name: d.difference for name, d in self.quantities.items()}

    @property
    def agree(self) -> bool:
        """Whether no quantity differs by more than its errors, conditions taken as independent."""
        return not any(d.verdict.startswith("differ") for d in self.quantities.values())

    def to_rows(self) -> list[dict]:
        """One flat dictionary of JSON-ready values a quantity; None where there is no number."""
        out = []
        for name, d in self.quantities.items():
            row: dict = {"quantity": name, "n": d.n, "exact": d.exact}
            row["undetermined"] = d.undetermined
            for key in ("rms_z", "mean_z", "max_z", "rms_difference", "p_value"):
                value = getattr(d, key)
                row[key] = value if np.isfinite(value) else None
            out.append(row | {"worst": d.worst, "verdict": d.verdict})
        return out

    def __str__(self) -> str:
        head = ("quantity", "n", "rms z", "mean z", "max |z|", "at", "rms difference", "verdict")
        rows = [head]
        for name, d in self.quantities.items():
            z = [f"{v:.2f}" if np.isfinite(v) else "-" for v in (d.rms_z, d.mean_z, d.max_z)]
            note = f" ({d.undetermined} not determined)" if d.undetermined else ""
            rows.append((name, str(d.n), *z, d.worst, f"{d.rms_difference:.3g}", d.verdict + note))
        width = [max(len(r[k]) for r in rows) for k in range(len(head))]
        left = {0, 5, 7}
        lines = [
            "  ".join(
                c.ljust(w) if k in left else c.rjust(w)
                for k, (c, w) in enumerate(zip(row, width, strict=True))
            ).rstrip()
            for row in rows
        ]
        return "\n".join(lines)


def compare(a, b, conditions: Conditions | None = None) -> Comparison:
    """Differences of two results in units of their errors.

    Parameters
    ----------
    a, b
        Two :class:`~clease_nn.thermodynamics.Averages`, two
        :class:`~clease_nn.thermodynamics.CanonicalAverages`, or two
        :class:`~clease_nn.statistics.Estimate` of one shape. Instead of averages, also what they
        are read from: :class:`~clease_nn.configurations.Configurations` of either kind, or a
        :class:`~clease_nn.thermodynamics.DensityOfStates`. Everything that ``a`` has is looked up
        in ``b``; ``b`` may have more.
    conditions : Conditions, optional
        Where two densities of states are compared. Default: where the first was sampled, or else
        the second; where only one is a density of states, what the other result has.

    Returns
    -------
    Comparison
        Of every quantity both have. Of compositions and covariances the last species is left out,
        as it follows from the others.

    Raises
    ------
    TypeError
        If the two are no such pair.
    ValueError
        If ``b`` lacks conditions (or temperatures and compositions) of ``a``, which are named,
        species or numbers of sites differ, or there is nothing to compare. Chemical potentials
        that differ by a constant make other conditions, with another ln Z.

    Notes
    -----
    Independent results with right errors have z-scores ``(a - b) / sqrt(error_a^2 + error_b^2)``
    of mean 0 and variance 1. Their sum of squares is held against the chi-square distribution:
    ``verdict`` says where ``rms z`` is above 1 (or, of five or more, below 1) by what chance would
    do once in a thousand times. This takes z-scores for independent. Those of conditions read
    off one :class:`~clease_nn.thermodynamics.DensityOfStates`, of neighbours in parallel
    tempering or of compositions of one metadynamics run deviate together: then a rms z of 2 over
    a hundred conditions may be one deviation of 2 seen a hundred times, which is why the verdict
    is qualified unless it holds even so. Results that share data agree better than their errors.
    Errors from few independent runs follow Student's t distribution, with larger z-scores.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> a = Estimate(rng.normal(size=100), np.ones(100))
    >>> print(compare(a, Estimate(np.zeros(100), np.zeros(100))))
    quantity    n  rms z  mean z  max |z|  at    rms difference  verdict
    value     100   0.97    0.08     2.33  [12]           0.966  agree
    >>> compare(a + 1.0, Estimate(np.zeros(100), np.zeros(100)))["value"].verdict
    'differ by more than their errors, unless conditions are correlated'
    """
    if isinstance(a, Estimate) and isinstance(b, Estimate):
        first, second = _of_estimate(a), _of_estimate(b)
        if np.shape(a.value) != np.shape(b.value):
            raise ValueError(
                f"the estimates have shapes {np.shape(a.value)} and {np.shape(b.value)}"
            )
    elif isinstance(a, CanonicalAverages) or isinstance(b, CanonicalAverages):
        first, second = _canonical_pair(a, b)
    else:
        first, second = _pair(a, b, conditions)
    return Comparison(_differences(first, second))


# ------------------------------------------------------------------ tables
@dataclass(frozen=True, eq=False)
class _Table:
    """Quantities of labelled rows; rows with the same coordinates belong together."""

    labels: list[str]
    coordinates: dict[str, np.ndarray]
    quantities: dict[str, Estimate]
    kind: tuple  # species and sites, which must be the same

    @property
    def keys(self) -> np.ndarray:
        """(rows, coordinates), in units within which they count as the same."""
        unit = [
            _TOLERANCE.get(name.split("_")[0], _TOLERANCE["other"]) for name in self.coordinates
        ]
        return np.column_stack(list(self.coordinates.values())) / unit


def _of_estimate(e: Estimate) -> _Table:
    value = np.atleast_1d(np.asarray(e.value, dtype=float))
    error = np.broadcast_to(np.asarray(e.error, dtype=float), value.shape)
    index = np.arange(len(value))
    return _Table(
        [f"[{k}]" for k in index],
        {"index": index},
        {"value": Estimate(value, error)},
        (),
    )


def _canonical_pair(a, b) -> tuple[_Table, _Table]:
    for x, other in ((a, b), (b, a)):
        if not isinstance(x, CanonicalAverages | DensityOfStates):
            raise TypeError(
                f"{type(x).__name__} and {type(other).__name__} are not of one kind: "
                "CanonicalAverages compare with CanonicalAverages or a DensityOfStates"
            )
    if isinstance(a, DensityOfStates):
        a = canonical(a, b.temperatures)
    if isinstance(b, DensityOfStates):
        b = canonical(b, a.temperatures)
    return _of_canonical(a), _of_canonical(b)


def _of_canonical(c: CanonicalAverages) -> _Table:
    labels, rows = [], []
    for t in c.temperatures.tolist():
        for n in c.counts.tolist():
            text = "".join(f"{s}{k}" for s, k in zip(c.species, n, strict=True))
            labels.append(f"T = {t:g} K, {text}")
            rows.append([t, *(k / c.n_sites for k in n)])
    names = ["temperature", *(f"x_{s}" for s in c.species)]
    known = [q for q in _CANONICAL if c.absolute or q in ("energy", "heat_capacity")]
    flat = {}
    for name in known:
        e = getattr(c, name)
        flat[name] = Estimate(np.ravel(e.value), np.ravel(e.error))
    columns = dict(zip(names, np.array(rows).T, strict=True))
    return _Table(labels, columns, flat, (tuple(c.species), c.n_sites))


def _pair(a, b, conditions: Conditions | None) -> tuple[_Table, _Table]:
    a, b = (averages(x) if isinstance(x, Configurations) else x for x in (a, b))
    for x in (a, b):
        if not isinstance(x, Averages | DensityOfStates):
            raise TypeError(
                f"cannot compare {type(a).__name__} with {type(b).__name__}; give two of "
                "Averages, Configurations or DensityOfStates, two CanonicalAverages or two "
                "Estimates"
            )
    _require_same(_system(a), _system(b))
    if conditions is None:
        found = [x.conditions for x in (a, b) if isinstance(x, Averages)]
        found += [x.sampled for x in (a, b) if isinstance(x, DensityOfStates)]
        found = [x for x in found if x is not None and len(x)]
        if not found:
            raise ValueError("neither density of states says where it was sampled: give conditions")
        conditions = found[0]
    return _of_averages(a, conditions), _of_averages(b, conditions)


def _system(x: Averages | DensityOfStates) -> tuple[tuple[str, ...], int]:
    """Species and number of active sites."""
    if isinstance(x, DensityOfStates):
        return tuple(x.lattice.species), x.lattice.n_sites
    if not len(x):
        raise ValueError("there are no averages to compare")
    return tuple(x[0].species), x[0].n_sites


def _of_averages(x: Averages | DensityOfStates, conditions: Conditions) -> _Table:
    """Averages as they are; of a density of states those that it determines."""
    if isinstance(x, DensityOfStates):
        known = np.flatnonzero(x.determined(conditions))
        found = x.averages(conditions[known]) if len(known) else ()
        rows = dict(zip(known.tolist(), found, strict=True))
    else:
        conditions, rows = x.conditions, dict(enumerate(x))
    kind = _system(x)
    temperature, mu = conditions.temperature.numpy(), conditions.mu.numpy()
    labels = [
        f"T = {t:g} K, mu = ({', '.join(f'{v:.4g}' for v in m)}) eV"
        for t, m in zip(temperature, mu, strict=True)
    ]
    coordinates = {"temperature": temperature}
    coordinates |= {f"mu_{s}": mu[:, k] for k, s in enumerate(kind[0])}
    quantities = {}
    for name in (*_SCALARS, "composition", "count_covariance"):
        parts = {k: getattr(r, name) for k, r in rows.items()}
        if not parts or any(p is None for p in parts.values()):
            continue
        some = next(iter(parts.values()))
        value = np.full((len(labels), *np.shape(some.value)), nan)
        error = value.copy()
        for k, p in parts.items():
            value[k], error[k] = p.value, p.error
        if name == "composition":
            value, error = value[:, :-1], error[:, :-1]
        elif name == "count_covariance":
            pick = np.triu_indices(len(kind[0]) - 1)
            value, error = value[:, *pick], error[:, *pick]
        quantities[name] = Estimate(value, error)
    return _Table(labels, coordinates, quantities, kind)


# ------------------------------------------------------------------ differences
def _differences(a: _Table, b: _Table) -> dict[str, Difference]:
    _require_same(a.kind, b.kind)
    distance, order = cKDTree(b.keys).query(a.keys)
    missing = [label for label, d in zip(a.labels, distance, strict=True) if d > 1.0]
    if missing:
        raise ValueError(
            f"the second result lacks {len(missing)} of {len(a.labels)} rows of the first: "
            f"{_some(missing)}; it has {_some(b.labels)}. Compare what both have"
        )
    names = [name for name in a.quantities if name in b.quantities]
    if not names:
        raise ValueError("the results have no quantity in common that is determined")
    out = {}
    for name in names:
        x, y = a.quantities[name], b.quantities[name][order]
        value = np.asarray(x.value - y.value)
        error = np.hypot(x.error, y.error)
        error = np.where(np.isnan(value), nan, error)
        finite = np.abs(np.concatenate([np.ravel(x.value), np.ravel(y.value)]))
        scale = float(np.max(finite[np.isfinite(finite)], initial=0.0))
        error = np.where(error <= _NO_ERROR * scale, 0.0, error)
        with np.errstate(divide="ignore", invalid="ignore"):
            z = np.where(error > 0, value / error, nan)
        z = np.where((error == 0) & (np.abs(value) <= _ROUNDING * scale), 0.0, z)
        out[name] = Difference(
            name, tuple(a.labels), a.coordinates, Estimate(value, error), z
        )  # fmt: skip
    return out


def _require_same(a: tuple, b: tuple) -> None:
    if a != b:
        raise ValueError(f"the results are of different systems (species, sites): {a} and {b}")


def _some(labels: Sequence[str]) -> str:
    return "; ".join(labels[:3]) + ("; ..." if len(labels) > 3 else "")
