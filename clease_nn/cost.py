"""What a result has cost: energy evaluations, network passes, attempted moves and time.

Routes to the same figures are compared at equal error (:func:`cost_table`). An error falls as one
over the square root of the cost of sampling, so that every route can be scaled to the error of
another; what is paid once, the training of a model, is not scaled.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from math import inf, isfinite

__all__ = ["Cost", "CostRow", "CostTable", "Route", "cost_table", "merge_provenance"]


@dataclass(frozen=True)
class Cost:
    """What it took to make a result; costs of parts are added.

    Training is paid once: two parts with the same training figures come from the same model, and
    their sum has them once. (Sum many parts at once with :meth:`sum`, which tells any number of
    models apart.)

    Attributes
    ----------
    energy_evaluations : float
        Energies of whole configurations and energy differences of single moves alike.
    network_passes : float
        Passes of a network over a batch of configurations.
    attempts_per_site : float
        Attempted changes of a site's species over the number of active sites; a drawn site is one.
    seconds : float
        Wall time of sampling, training not counted.
    training_seconds : float
        Time of training, once for all conditions.
    training_energy_evaluations : float
        Energy evaluations of training, not among ``energy_evaluations``.

    Examples
    --------
    >>> once = Cost(energy_evaluations=100, seconds=2.0, training_seconds=60.0)
    >>> (once + once).energy_evaluations, (once + once).training_seconds
    (200.0, 60.0)
    >>> Cost.from_provenance({"energy_evaluations": 7, "seed": 3}).energy_evaluations
    7.0
    """

    energy_evaluations: float = 0.0
    network_passes: float = 0.0
    attempts_per_site: float = 0.0
    seconds: float = 0.0
    training_seconds: float = 0.0
    training_energy_evaluations: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost.sum([self, other])

    @staticmethod
    def sum(costs: Iterable[Cost]) -> Cost:
        """Sum of any number of costs, every training once."""
        costs = list(costs)
        trainings = {c._training for c in costs}
        total = {n: float(sum(getattr(c, n) for c in costs)) for n in _SAMPLING}
        paid = [float(sum(t)) for t in zip(*sorted(trainings), strict=True)] or [0.0, 0.0]
        return Cost(**total, **dict(zip(_TRAINING, paid, strict=True)))

    @classmethod
    def from_provenance(cls, provenance: Mapping) -> Cost:
        """The costs noted in the provenance of configurations; what is not noted reads 0."""
        return cls(**{n: float(provenance.get(n) or 0.0) for n in _NAMES})

    def to_dict(self) -> dict:
        """JSON-ready numbers."""
        return asdict(self)

    def noted_in(self, provenance: Mapping) -> dict:
        """A provenance that states this cost instead of its own; zeros are left out.

        Examples
        --------
        >>> Cost(seconds=2.0).noted_in({"seed": 1, "seconds": 1.0})
        {'seed': 1, 'seconds': 2.0}
        """
        rest = {k: v for k, v in provenance.items() if k not in _NAMES}
        return rest | {n: getattr(self, n) for n in _NAMES if getattr(self, n)}

    @property
    def _training(self) -> tuple[float, float]:
        return tuple(float(getattr(self, n)) for n in _TRAINING)


_NAMES = tuple(f.name for f in fields(Cost))
_TRAINING = tuple(n for n in _NAMES if n.startswith("training"))
_SAMPLING = tuple(n for n in _NAMES if n not in _TRAINING)


def merge_provenance(parts: Sequence[Mapping]) -> dict:
    """Provenance of parts put together: costs added, other entries kept where all agree.

    Parts that hold the very same mapping are slices of one result, whose cost counts once.

    Examples
    --------
    >>> a = {"energy_evaluations": 5, "seed": 1, "method": "chains"}
    >>> b = {"energy_evaluations": 7, "seed": 2, "method": "chains"}
    >>> merge_provenance([a, b, a])
    {'method': 'chains', 'energy_evaluations': 12.0}
    """
    distinct = list({id(p): p for p in parts}.values())
    first = distinct[0]
    if len(distinct) == 1:
        return dict(first)
    out = {
        key: value
        for key, value in first.items()
        if key not in _NAMES and all(key in p and p[key] == value for p in distinct)
    }
    noted = {n for p in distinct for n in _NAMES if n in p}
    total = Cost.sum(Cost.from_provenance(p) for p in distinct)
    return out | {n: getattr(total, n) for n in _NAMES if n in noted}


# ------------------------------------------------------------------ routes side by side
@dataclass(frozen=True)
class Route:
    """One way to the same figures: what it cost, what it gave.

    Attributes
    ----------
    name : str
    cost : Cost
        Of all conditions together.
    n_conditions : int
        Conditions it served.
    error : float
        Statistical error it reached, root mean square over the conditions, in the same unit for
        all routes. A bias (hysteresis, too coarse a path) does not fall with sampling and is not
        to be mixed in.
    note : str
        How the figures came about, such as "extrapolated from a pilot run".
    """

    name: str
    cost: Cost
    n_conditions: int
    error: float
    note: str = ""

    def __post_init__(self):
        if not (isfinite(self.error) and self.error > 0):
            raise ValueError(
                f"the error of {self.name!r} must be positive and finite, got {self.error}: a "
                "route without a statistical error cannot be scaled to that of another"
            )
        if self.n_conditions < 1:
            raise ValueError(f"{self.name!r} must serve a condition, got {self.n_conditions}")

    def scaled(self, error: float, n_conditions: int) -> Cost:
        """What another error at another number of conditions costs.

        Sampling grows in proportion to the conditions and to one over the error squared;
        training stays.
        """
        factor = (self.error / error) ** 2 * n_conditions / self.n_conditions
        return Cost(
            **{n: getattr(self.cost, n) * factor for n in _SAMPLING},
            **{n: getattr(self.cost, n) for n in _TRAINING},
        )


@dataclass(frozen=True)
class CostRow:
    """One route at the error and the number of conditions of the table.

    Attributes
    ----------
    route : Route
    cost : Cost
        At equal error.
    seconds : float
        Training and sampling.
    energy_evaluations : float
        Training and sampling.
    ratio : float
        Seconds over those of the first route.
    pays_conditions : tuple of float
        Numbers of conditions between which the first route takes less time, (low, high): from
        ``low`` on where ``high`` is infinite; ``(inf, inf)``: never.
    pays_energy : tuple of float
        Seconds by which an energy evaluation must be dearer than it was here for the first route
        to take less time, (low, high) likewise.
    """

    route: Route
    cost: Cost
    seconds: float
    energy_evaluations: float
    ratio: float
    pays_conditions: tuple[float, float]
    pays_energy: tuple[float, float]


@dataclass(frozen=True)
class CostTable:
    """Routes at equal error, the first against all others.

    Attributes
    ----------
    rows : tuple of CostRow
    error : float
        The error to which all are scaled.
    n_conditions : int
        The number of conditions to which all are scaled.
    unit : str
        Of the error.
    """

    rows: tuple[CostRow, ...]
    error: float
    n_conditions: int
    unit: str = ""

    def __getitem__(self, name: str) -> CostRow:
        for row in self.rows:
            if row.route.name == name:
                return row
        raise KeyError(f"no route {name!r}; there are {[r.route.name for r in self.rows]}")

    def to_rows(self) -> list[dict]:
        """One flat dictionary of JSON-ready values a route.

        None where there is no limit, and of the first route, which is not held against itself.
        """

        def limit(x: float) -> float | None:
            return x if isfinite(x) else None

        def pays(row: CostRow, window: tuple[float, float], name: str) -> dict:
            low, high = window
            words = None if row is self.rows[0] else _window(window, "{:.6g}".format)
            return {
                f"first_pays_{name}": words,
                f"first_pays_{name}_from": limit(low),
                f"first_pays_{name}_to": limit(high),
            }

        return [
            {
                "route": r.route.name,
                "seconds": r.seconds,
                "training_seconds": r.cost.training_seconds,
                "energy_evaluations": r.energy_evaluations,
                "network_passes": r.cost.network_passes,
                "attempts_per_site": r.cost.attempts_per_site,
                "ratio": r.ratio,
                "measured_error": r.route.error,
                "measured_conditions": r.route.n_conditions,
                "measured_seconds": r.route.cost.seconds,
                **pays(r, r.pays_conditions, "conditions"),
                **pays(r, r.pays_energy, "energy_seconds"),
                "note": r.route.note,
            }
            for r in self.rows
        ]

    def __str__(self) -> str:
        first = self.rows[0].route.name
        head = (
            "route",
            "seconds",
            "of these training",
            "energies",
            "attempts/site",
            "ratio",
            "first pays: conditions",
            "first pays: s an energy",
        )
        lines = [head]
        for k, r in enumerate(self.rows):
            lines.append(
                (
                    r.route.name,
                    f"{r.seconds:.4g}",
                    f"{r.cost.training_seconds:.4g}",
                    f"{r.energy_evaluations:.3g}",
                    f"{r.cost.attempts_per_site:.3g}",
                    f"{r.ratio:.4g}",
                    "" if k == 0 else _window(r.pays_conditions, lambda n: f"{n:.3g}"),
                    "" if k == 0 else _window(r.pays_energy, lambda s: f"{s:.2g}"),
                )
            )
        width = [max(len(line[k]) for line in lines) for k in range(len(head))]
        text = [
            "  ".join(
                cell.ljust(w) if k == 0 else cell.rjust(w)
                for k, (cell, w) in enumerate(zip(line, width, strict=True))
            ).rstrip()
            for line in lines
        ]
        unit = f" {self.unit}" if self.unit else ""
        notes = [f"{r.route.name}: {r.route.note}" for r in self.rows if r.route.note]
        return "\n".join(
            [f"at an error of {self.error:.3g}{unit}, {self.n_conditions} conditions; the first is "
             f"{first}", *text, *notes]
        )  # fmt: skip


def cost_table(
    routes: Sequence[Route],
    *,
    error: float | None = None,
    n_conditions: int | None = None,
    unit: str = "",
) -> CostTable:
    """Set routes side by side at equal error, the first against the others.

    With ``t`` the seconds of training, ``s`` those of sampling a condition to the error, and
    ``V`` the energy evaluations of all (training included), the first route ``a`` takes less time
    than another ``b`` at ``n`` conditions where

        t_a + n s_a < t_b + n s_b,

    and, if each energy evaluation took ``c`` seconds more than it did here, where

        t_a + n s_a + c V_a < t_b + n s_b + c V_b.

    The bounds are given for ``n`` and, at the table's ``n``, for ``c``. Sampling is taken to grow
    in proportion to the number of conditions. A route whose samples of a whole range also serve
    conditions in between (parallel tempering, draws combined over conditions) does better.

    Parameters
    ----------
    routes : sequence of Route
        The one to be judged first, usually that with training.
    error : float, optional
        Default: that of the first route.
    n_conditions : int, optional
        Default: that of the first route.
    unit : str
        Of the errors, for the print.

    Returns
    -------
    CostTable

    Raises
    ------
    ValueError
        If there are no routes, two have the same name, or ``error`` or ``n_conditions`` is not
        positive.

    Examples
    --------
    >>> neural = Route("neural", Cost(seconds=10, training_seconds=300), 100, 1e-3)
    >>> chains = Route("chains", Cost(seconds=400), 10, 2e-3)
    >>> row = cost_table([neural, chains])["chains"]
    >>> row.seconds  # four times the samples, ten times the conditions
    16000.0
    >>> [round(n, 3) for n in row.pays_conditions]
    [1.876, inf]
    """
    routes = list(routes)
    if not routes:
        raise ValueError("a cost table needs at least one route")
    names = [r.name for r in routes]
    if len(set(names)) < len(names):
        raise ValueError(f"every route needs a name of its own, got {names}")
    error = routes[0].error if error is None else float(error)
    n = routes[0].n_conditions if n_conditions is None else n_conditions
    if not (isfinite(error) and error > 0) or n < 1 or n % 1:
        raise ValueError(
            "error must be positive and n_conditions a whole number of at least 1, got "
            f"{error} and {n_conditions}"
        )
    n = int(n)
    costs = [r.scaled(error, n) for r in routes]
    seconds = [c.seconds + c.training_seconds for c in costs]
    evaluations = [c.energy_evaluations + c.training_energy_evaluations for c in costs]
    a = costs[0]
    rows = [
        CostRow(
            route,
            c,
            seconds[k],
            evaluations[k],
            seconds[k] / seconds[0] if seconds[0] > 0 else inf,
            _less(a.training_seconds, a.seconds / n, c.training_seconds, c.seconds / n),
            _less(seconds[0], evaluations[0], seconds[k], evaluations[k]),
        )
        for k, (route, c) in enumerate(zip(routes, costs, strict=True))
    ]
    return CostTable(tuple(rows), error, n, unit)


def _less(a: float, b: float, c: float, d: float) -> tuple[float, float]:
    """The positive x, (low, high), for which ``a + b x < c + d x``."""
    if b == d:
        return (0.0, inf) if a < c else (inf, inf)
    x = (a - c) / (d - b)
    if d > b:
        return max(x, 0.0), inf
    return (0.0, x) if x > 0 else (inf, inf)


def _window(window: tuple[float, float], text) -> str:
    low, high = window
    if low == inf:
        return "never"
    if high == inf:
        return "always" if low == 0 else f"above {text(low)}"
    return f"below {text(high)}"
