"""Which route leads from a model to exact results of a cell: measured, and said in words."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch

from clease_nn.conditions import Conditions
from clease_nn.cost import Cost
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import Lattice
from clease_nn.models import AbstractOccupationModel
from clease_nn.sampling.annealing import anneal
from clease_nn.sampling.draw import sample
from clease_nn.sampling.drift import DRIFTING, drift, has_cheap_flips
from clease_nn.statistics import normalized_ess
from clease_nn.warnings import LostModeWarning, LowESSWarning

__all__ = [
    "GOOD_NESS",
    "LONGEST_PATH",
    "POOR_NESS",
    "ROUTES",
    "SamplingRoute",
    "Routes",
    "as_chains",
    "check_request",
    "choose_routes",
    "generator_of",
    "seed_sequence",
]

ROUTES = ("importance", "annealing", "refine")
"""Names of the routes."""

LONGEST_PATH = 1000
"""Steps that annealing may take."""

GOOD_NESS = 0.25
"""NESS of a pilot from which on draws and their weights are enough."""

POOR_NESS = 0.1
"""NESS below which thermodynamics warns of every number."""

_PILOT = (32, 96)  # draws of a pilot: at least, at most
_PILOT_SHARE = 4  # rows asked for over draws of a pilot


@dataclass(frozen=True, eq=False)
class SamplingRoute:
    """How one condition is sampled, and why.

    Attributes
    ----------
    name : str
        ``"importance"``: independent draws with weights. ``"annealing"``: draws where the model
        is good, carried to the condition by exact moves, with weights. ``"refine"``: chains of
        exact moves whose blocks the model proposes, without weights and ln Z.
    conditions : Conditions
        One row.
    ness : float
        Normalised effective sample size of the pilot draws of the model there; nan if there were
        none.
    expected : float
        NESS to be expected of the route's weights; nan for chains.
    seconds : float
        Roughly what ``rows`` rows will take, from the pilot; nan where nothing was measured.
    rows : int
    reason : str
        In words.
    start : Conditions or None
        Where annealing begins, found by the pilot; None with ``fractions``: with random
        configurations, where the model's own draws would be worse.
    fractions : tuple of float or None
        Where on its path the steps of annealing lie, as the pilot spaced them.
    """

    name: str
    conditions: Conditions
    ness: float
    expected: float
    seconds: float
    rows: int
    reason: str
    start: Conditions | None = None
    fractions: tuple[float, ...] | None = None

    @property
    def steps(self) -> int | None:
        """Conditions on the path of annealing, None where there is none."""
        return None if self.fractions is None else len(self.fractions)

    def to_dict(self) -> dict:
        """JSON-ready."""
        return {
            "route": self.name,
            "temperature": float(self.conditions.temperature[0]),
            "mu": self.conditions.mu[0].tolist(),
            "ness": _plain(self.ness),
            "expected_ness": _plain(self.expected),
            "reason": self.reason,
        }

    def __str__(self) -> str:
        return f"{_where(self.conditions)}: {self.reason}"


class Routes(tuple):
    """The routes of several conditions, one a condition, in their order.

    Attributes
    ----------
    cost : Cost
        Of the pilots.
    """

    cost: Cost

    def __new__(cls, items: Iterable[SamplingRoute] = (), cost: Cost | None = None) -> Routes:
        self = super().__new__(cls, items)
        self.cost = Cost() if cost is None else cost
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the routes taken, each once."""
        return tuple(name for name in ROUTES if any(r.name == name for r in self))

    @property
    def seconds(self) -> float:
        """What all of them will take, roughly."""
        return float(sum(r.seconds for r in self))

    @property
    def reason(self) -> str:
        """In words: of one condition its reason; of many, what goes where, and the worst."""
        if len(self) == 1:
            return self[0].reason
        parts = []
        for name in self.names:
            some = [r for r in self if r.name == name]
            worst = min(some, key=lambda r: math.inf if math.isnan(r.ness) else r.ness)
            parts.append(f"{name} at {len(some)} of {len(self)} conditions, worst {worst}")
        return "; ".join(parts)

    def __str__(self) -> str:
        return self.reason


def choose_routes(
    model: AbstractOccupationModel,
    ensemble: SemiGrandCanonical,
    lattice: Lattice,
    conditions: Conditions,
    n: int,
    seed: int | np.random.SeedSequence = 0,
    *,
    log_z: bool = True,
    precision: str = "float32",
) -> Routes:
    """Choose how to sample each condition from what pilot draws of the model are worth there.

    Importance sampling where the NESS of 32 to 96 pilot draws is at least 0.25 and a few exact
    sweeps do not carry them off their weighted averages, as draws that lack a mode. Elsewhere the
    model's draws begin where it is good, mostly at a higher temperature, and are annealed to the
    condition (:func:`~clease_nn.sampling.annealing.anneal`); a pilot measures path and NESS. Where
    only averages are wanted (``log_z=False``), chains of blocks that the model redraws are begun
    instead (:func:`~clease_nn.sampling.refine.refine`). Every route is exact; they differ in
    variance. Pilots are thrown away, so that the choice biases nothing.

    Parameters
    ----------
    model, ensemble, lattice
    conditions : Conditions
    n : int
        Rows wanted at each condition.
    seed : int or SeedSequence
        Fixes pilots and choice.
    log_z : bool
        Whether ln Z is wanted, or averages alone.
    precision : str
        As in :func:`clease_nn.sampling.sample`.

    Returns
    -------
    Routes

    Raises
    ------
    ValueError
        If there are no conditions, or ``n`` < 1.

    Notes
    -----
    A pilot may read NESS too high where weights have a heavy tail, as near a critical point;
    :func:`~clease_nn.sampling.exact` looks again at the rows themselves. Neither NESS nor sweeps
    can tell of a phase that the model never draws and barriers keep apart; compare chains or other
    starts (:func:`clease_nn.diagnostics.validate`).

    Examples
    --------
    >>> from clease_nn.conditions import ConditionRange
    >>> from clease_nn.models import AnyOrderARM
    >>> from clease_nn.networks import LatticeConvolution
    >>> lattice = Lattice.square(2)
    >>> box = ConditionRange((300, 900), [-0.1], [0.1], [[-1.0, 1.0]])
    >>> model = AnyOrderARM(LatticeConvolution(lattice, box, needs_fields=False))
    >>> flat = SemiGrandCanonical(lambda lattice, occupations: torch.zeros(len(occupations)))
    >>> routes = choose_routes(model, flat, lattice, box.grid(1, 1), 400)
    >>> print(routes)
    importance sampling: 96 pilot draws have NESS 1.00
    """
    check_request(conditions, n)
    rng = generator_of(seed)
    pilot = int(np.clip(n // _PILOT_SHARE, *_PILOT))
    started = time.perf_counter()
    drawn = sample(model, ensemble, lattice, conditions.repeat(pilot), rng, precision=precision)
    each = (time.perf_counter() - started) / len(drawn)
    costs = [drawn.cost]
    log_w = drawn.log_weight.reshape(len(conditions), pilot).cpu().numpy()
    routes = []
    for k, own in enumerate(seed_sequence(rng).spawn(len(conditions))):
        ness = float(normalized_ess(log_w[k]))
        given = f"{pilot} pilot draws have NESS {ness:.2f}"
        moved, cost = drift(drawn[k * pilot : (k + 1) * pilot], ensemble, own)
        costs.append(cost)
        lost = moved > DRIFTING
        if lost:
            given += f" but lack a mode (exact sweeps carry them off by {moved:.0f} errors)"
        reason = f"importance sampling: {given}"
        plain = SamplingRoute("importance", conditions[k], ness, ness, n * each, n, reason)
        if ness >= GOOD_NESS and not lost:
            routes.append(plain)
        elif not log_z and model.any_order:
            routes.append(as_chains(plain, f"{given}, and averages alone are wanted"))
        elif not has_cheap_flips(ensemble):
            reason = (
                f"importance sampling although {given}: annealing would cost an energy a site and "
                f"step; expect about {max(1, round(ness * n))} effective samples of {n}"
            )
            routes.append(replace(plain, reason=reason))
        else:
            route, cost = _annealing_route(
                model, ensemble, lattice, rng, plain, given, pilot, precision
            )
            routes.append(route)
            costs.append(cost)
    return Routes(routes, Cost.sum(costs))


def _annealing_route(
    model, ensemble, lattice, rng, plain: SamplingRoute, given: str, pilot: int, precision: str
) -> tuple[SamplingRoute, Cost]:
    """Annealing, with the start and the steps that pilots find.

    From the model's draws; where that is no good, also from random configurations, and the better.
    """
    tried, costs = [], []
    for beginning in (model, None):
        started = time.perf_counter()
        with warnings.catch_warnings():
            for doubt in (LostModeWarning, LowESSWarning):
                warnings.simplefilter("ignore", doubt)
            c = anneal(
                beginning, ensemble, lattice, plain.conditions, rng, n=pilot, batch_size=None,
                max_steps=LONGEST_PATH, precision=precision, progress=False,
            )  # fmt: skip
        costs.append(c.cost)
        [path] = c.provenance["paths"]
        found = 0.0 if (path["drift"] or 0.0) > DRIFTING else path["ness"]
        tried.append((found, path, time.perf_counter() - started))
        if found >= GOOD_NESS or path["start_temperature"] is None:
            break
    ness, path, seconds = max(tried, key=lambda t: t[0])
    start = None
    if path["start_temperature"] is not None:
        start = Conditions([path["start_temperature"]], [path["start_mu"]])
    reason = f"{_origin(path)}: {given}, annealed ones {ness:.2f}"
    if start is None and len(tried) > 1:
        reason += f" (from the model's own draws {tried[0][0]:.2f})"
    if ness < POOR_NESS:
        reason += (
            ", poor: errors of ln Z will be large; chains of blocks (refine) give averages, more "
            "training on larger cells better draws"
        )
    found = {"expected": ness, "seconds": seconds * plain.rows / pilot, "reason": reason}
    route = replace(
        plain, name="annealing", start=start, fractions=tuple(path["fractions"]), **found
    )
    return route, Cost.sum(costs)


def _origin(path: dict) -> str:
    """Where a path begins and how long it is."""
    steps = f"{path['steps']} step{'s' if path['steps'] > 1 else ''}"
    if path["start_temperature"] is None:
        return f"annealing from random configurations in {steps}"
    if abs(path["start_temperature"] - path["temperature"]) < 1e-6:
        return f"annealing from the condition itself in {steps}"
    return f"annealing from {path['start_temperature']:.0f} K in {steps}"


def as_chains(route: SamplingRoute, why: str) -> SamplingRoute:
    """Chains instead of what was chosen."""
    reason = f"chains of blocks that the model redraws: {why}"
    none = {"expected": math.nan, "seconds": math.nan, "start": None, "fractions": None}
    return replace(route, name="refine", reason=reason, **none)


# ------------------------------------------------------------------ helpers
def check_request(conditions: Conditions, n: int) -> None:
    if len(conditions) == 0:
        raise ValueError("there are no conditions to sample")
    if n < 1:
        raise ValueError(f"n must be at least 1 row a condition, got {n}")


def generator_of(seed: int | np.random.SeedSequence) -> torch.Generator:
    root = seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
    return torch.Generator().manual_seed(int(root.generate_state(1, np.uint64)[0]))


def seed_sequence(rng: torch.Generator) -> np.random.SeedSequence:
    return np.random.SeedSequence(int(torch.randint(2**62, (), generator=rng)))


def _where(conditions: Conditions) -> str:
    mu = ", ".join(f"{m:g}" for m in conditions.mu[0].tolist())
    return f"T = {conditions.temperature[0].item():g} K, mu = ({mu}) eV"


def _plain(x: float) -> float | None:
    return None if math.isnan(x) else x
