"""From a model to exact results of any cell, by the route that pays."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby

import numpy as np
import torch
from tqdm.auto import tqdm

from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.cost import Cost
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import Lattice
from clease_nn.models import AbstractOccupationModel
from clease_nn.sampling.annealing import anneal
from clease_nn.sampling.draw import sample
from clease_nn.sampling.drift import DRIFTING, drift
from clease_nn.sampling.refine import refine
from clease_nn.sampling.routes import (
    GOOD_NESS,
    LONGEST_PATH,
    POOR_NESS,
    ROUTES,
    Routes,
    SamplingRoute,
    as_chains,
    check_request,
    choose_routes,
    generator_of,
    seed_sequence,
)
from clease_nn.statistics import normalized_ess
from clease_nn.warnings import InterruptedWarning, LostModeWarning, LowESSWarning

__all__ = ["exact"]

_AT_ONCE = 1024  # rows drawn between two looks at Ctrl-C
_CHAINS = 16  # of each condition, at most
_CHAIN_LENGTH = 16  # rows of a chain, at least


def exact(
    model: AbstractOccupationModel,
    ensemble: SemiGrandCanonical,
    lattice: Lattice,
    conditions: Conditions,
    n: int,
    seed: int | np.random.SeedSequence = 0,
    *,
    route: str | Routes = "auto",
    log_z: bool = True,
    precision: str = "float32",
    executor=None,
    progress: bool = False,
) -> Configurations:
    """Configurations of any cell for :mod:`clease_nn.thermodynamics`, by the route that pays.

    Parameters
    ----------
    model : AbstractOccupationModel
        Also one that was trained on smaller cells. The worse it is, the more a result costs.
    ensemble, lattice
    conditions : Conditions
    n : int
        Rows at each condition.
    seed : int or SeedSequence
        Fixes the result, but for what a worker is given where there is an executor.
    route : "auto", "importance", "annealing", "refine" or Routes
        ``"auto"``: as :func:`choose_routes` finds; a result of it is followed.
    log_z : bool
        Whether ln Z is wanted, or averages alone; then rows may be those of chains.
    precision, executor
        As in :func:`clease_nn.sampling.sample`; the executor draws, it does not anneal.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Configurations
        ``n`` rows a condition in their order: either all weighted (``log_prob``) or all chains
        (``chain``). ``provenance`` has ``routes`` and the cost, pilots included; of each
        condition name and reason of its route, NESS of the pilot, the one expected and that of
        the rows (``found_ness``), and how far exact sweeps carry the rows off their weighted
        averages, in standard errors (``drift``). After Ctrl-C the leading conditions that were
        finished, of chains as much of every one as was finished, with an ``InterruptedWarning``.

    Raises
    ------
    ValueError
        If the route is unknown, ln Z is wanted of chains, or routes are those of other conditions.
    KeyboardInterrupt
        If no condition was finished.

    Warns
    -----
    LowESSWarning
        If the rows are worth much less than the pilot has promised, or hardly anything. Nothing is
        drawn anew: to keep rows where their weights happen to look good, and others where not,
        would bias both ln Z and averages. Ask for another route.
    LostModeWarning
        If a few exact sweeps carry the rows off their weighted averages, as rows that lack a mode:
        they would be wrong by more than their errors.

    Examples
    --------
    >>> from clease_nn.conditions import ConditionRange
    >>> from clease_nn.models import AnyOrderARM
    >>> from clease_nn.networks import LatticeConvolution
    >>> from clease_nn.thermodynamics import log_z
    >>> lattice = Lattice.square(2)
    >>> box = ConditionRange((300, 900), [-0.1], [0.1], [[-1.0, 1.0]])
    >>> model = AnyOrderARM(LatticeConvolution(lattice, box, needs_fields=False))
    >>> flat = SemiGrandCanonical(lambda lattice, occupations: torch.zeros(len(occupations)))
    >>> c = exact(model, flat, lattice, box.grid(1, 1), 400)
    >>> round(float(np.exp(log_z(c).value[0])), 9), c.provenance["routes"][0]["route"]  # 2^4 states
    (16.0, 'importance')
    """
    check_request(conditions, n)
    root = seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
    pilot_seed, own_seed = root.spawn(2)
    parts = model, ensemble, lattice
    if isinstance(route, str):
        if route not in ("auto", *ROUTES):
            raise ValueError(f"route must be 'auto' or one of {ROUTES}, got {route!r}")
        if route == "auto":
            routes = choose_routes(
                *parts, conditions, n, pilot_seed, log_z=log_z, precision=precision
            )
        else:
            routes = _asked_for(route, conditions, n)
    else:
        routes = route
        _check_routes(routes, conditions)
    if log_z and "refine" in routes.names:
        raise ValueError(
            "chains give no ln Z: take route='annealing' (or 'auto'), or log_z=False for averages"
        )
    if "refine" in routes.names and len(routes.names) > 1:
        routes = _all_chains(routes)
    run = _Run(*parts, generator_of(own_seed), n, precision, executor, progress)
    started = time.perf_counter()
    done, finished = _collected(run, routes)
    cost = Cost.sum([done.cost, routes.cost])
    cost = replace(cost, seconds=time.perf_counter() - started + routes.cost.seconds)
    told = [r.to_dict() for r in routes[:finished]]
    for row, found in zip(told, run.found, strict=False):  # of chains there is none
        row |= found
    _warn(told)
    return replace(done, provenance=cost.noted_in({**done.provenance, "routes": told}))


@dataclass(eq=False)
class _Run:
    """What every route needs."""

    model: AbstractOccupationModel
    ensemble: SemiGrandCanonical
    lattice: Lattice
    rng: torch.Generator
    n: int
    precision: str
    executor: object
    progress: bool
    found: list[dict] = field(default_factory=list)  # what weighted rows are worth, in order

    def importance(self, routes: list[SamplingRoute]) -> Configurations:
        """Weighted draws at the conditions of some routes."""
        conditions = Conditions.cat(r.conditions for r in routes).repeat(self.n)
        c = sample(
            self.model, self.ensemble, self.lattice, conditions, self.rng,
            precision=self.precision, executor=self.executor,
        )  # fmt: skip
        if len(c) < len(conditions):  # interrupted: of no use, and not in order
            return c
        cost = c.cost
        for k, seed in enumerate(seed_sequence(self.rng).spawn(len(routes))):
            rows = c[k * self.n : (k + 1) * self.n].to("cpu")
            moved, paid = drift(rows, self.ensemble, seed)
            self.found.append(_found(normalized_ess(rows.log_weight), moved))
            cost += paid
        return replace(c, provenance=cost.noted_in(c.provenance))

    def annealing(self, routes: list[SamplingRoute]) -> Configurations:
        """Annealed draws at the condition of one route."""
        [route] = routes
        own = route.fractions is None or route.start is not None  # else from random configurations
        with warnings.catch_warnings():  # one warning of all conditions follows
            for doubt in (LostModeWarning, LowESSWarning):
                warnings.simplefilter("ignore", doubt)
            c = anneal(
                self.model if own else None, self.ensemble, self.lattice, route.conditions,
                self.rng, n=max(self.n, 2), start=route.start, steps=route.fractions,
                batch_size=None, max_steps=LONGEST_PATH, precision=self.precision, progress=False,
            )[: self.n]  # fmt: skip
        [path] = c.provenance["paths"]
        self.found.append(_found(path["ness"], path["drift"]))
        return c

    def refine(self, routes: list[SamplingRoute]) -> Configurations:
        """Chains at the conditions of all routes together."""
        return _chains(self, Conditions.cat(r.conditions for r in routes))


def _collected(run: _Run, routes: Routes) -> tuple[Configurations, int]:
    """Rows of all conditions in their order, or of the leading ones; of how many."""
    parts, finished = [], 0
    bar = tqdm(total=len(routes), disable=not run.progress, desc="sampling", unit="condition")
    try:
        for name, some in _blocks(routes, run.n):
            part = getattr(run, name)(some)
            if name != "refine" and len(part) < len(some) * run.n:  # its executor was interrupted
                raise KeyboardInterrupt
            parts.append(part)
            finished += len(some)
            bar.update(len(some))
    except KeyboardInterrupt:
        if not parts:
            raise
        warnings.warn(
            f"sampling was interrupted: {finished} of {len(routes)} conditions are returned",
            InterruptedWarning,
            stacklevel=4,
        )
    finally:
        bar.close()
    if any(p.step is None for p in parts):  # annealed rows were not drawn in passes
        parts = [replace(p, step=None) for p in parts]
    return Configurations.cat(parts), finished


def _blocks(routes: Routes, n: int) -> Iterator[tuple[str, list[SamplingRoute]]]:
    """Routes that are followed together, in the order of the conditions."""
    for name, some in groupby(routes, lambda r: r.name):
        together = list(some)
        at_once = {"importance": max(1, _AT_ONCE // n), "annealing": 1}.get(name, len(together))
        for k in range(0, len(together), at_once):
            yield name, together[k : k + at_once]


def _chains(run: _Run, conditions: Conditions) -> Configurations:
    """Refined chains, ``n`` rows a condition; fewer of each after an interruption."""
    n, per = run.n, int(np.clip(run.n // _CHAIN_LENGTH, 1, _CHAINS))
    start = sample(
        run.model, run.ensemble, run.lattice, conditions.repeat(per), run.rng,
        precision=run.precision, executor=run.executor,
    )  # fmt: skip
    if len(start) < per * len(conditions):  # its executor was interrupted
        raise KeyboardInterrupt
    c = refine(
        run.model, run.ensemble, start, -(-n // per), seed_sequence(run.rng),
        precision=run.precision, progress=run.progress,
    )  # fmt: skip
    steps = len(c) // len(start)
    if steps * per > n:  # the last configuration of some chains is one too many
        chain, step = c.chain.numpy(), np.arange(len(c)) // len(start)
        c = c[torch.as_tensor((step < steps - 1) | (chain % per < per - (steps * per - n)))]
    return c[torch.as_tensor(np.lexsort((np.arange(len(c)), c.chain.numpy())))]


# ------------------------------------------------------------------ helpers
def _found(ness: float, moved: float | None) -> dict:
    unknown = moved is None or math.isnan(moved)
    return {"found_ness": float(ness), "drift": None if unknown else moved}


def _warn(told: list[dict]) -> None:
    """Say where rows are worth less than was thought, and what would be better."""
    weighted = [t for t in told if "found_ness" in t]
    lost = [t for t in weighted if (t["drift"] or 0.0) > DRIFTING]
    if lost:
        worst = max(lost, key=lambda t: t["drift"])
        warnings.warn(
            f"rows lack a mode at {len(lost)} of {len(told)} conditions: exact sweeps carry them "
            f"off their weighted averages, the most ({worst['drift']:.0f} standard errors) at "
            f"{_place(worst)} (route {worst['route']}). ln Z and averages there are wrong by more "
            f"than their errors; {_remedy(worst)}",
            LostModeWarning,
            stacklevel=3,
        )
    low = [t for t in weighted if t["found_ness"] < _least(t["expected_ness"])]
    if low:
        worst = min(low, key=lambda t: t["found_ness"])
        promised = worst["expected_ness"]
        than = "" if promised is None else f" instead of {promised:.2f} as the pilot had it"
        warnings.warn(
            f"weights are poor at {len(low)} of {len(told)} conditions, the worst {_place(worst)} "
            f"(route {worst['route']}): NESS {worst['found_ness']:.3f}{than}. Weights with so "
            f"heavy a tail make errors too small more often than not; {_remedy(worst)}",
            LowESSWarning,
            stacklevel=3,
        )


def _least(expected: float | None) -> float:
    """NESS below which rows are not what they were thought to be, or worth little anyway."""
    return POOR_NESS if expected is None else max(POOR_NESS, min(GOOD_NESS, 0.5 * expected))


def _place(t: dict) -> str:
    return f"T = {t['temperature']:g} K, mu = {np.round(t['mu'], 4).tolist()} eV"


def _remedy(t: dict) -> str:
    if t["route"] == "importance":
        return (
            "sample these conditions anew, all rows of them, with route='annealing', or with "
            "route='refine' and log_z=False for averages"
        )
    return (
        "take chains (route='refine', log_z=False) for averages, more steps (clease_nn.anneal) "
        "for ln Z, or train the model more"
    )


def _asked_for(name: str, conditions: Conditions, n: int) -> Routes:
    """The same route everywhere, as the user wants."""
    nan = math.nan
    return Routes(
        SamplingRoute(name, conditions[k], nan, nan, nan, n, f"{name} was asked for")
        for k in range(len(conditions))
    )


def _all_chains(routes: Routes) -> Routes:
    """Chains everywhere: rows with weights and rows of chains are not mixed."""
    why = "as at other conditions of this run; NESS of the pilot draws here"
    return Routes(
        (r if r.name == "refine" else as_chains(r, f"{why} {r.ness:.2f}") for r in routes),
        routes.cost,
    )


def _check_routes(routes: Routes, conditions: Conditions) -> None:
    if not isinstance(routes, Routes):
        raise TypeError(f"route must be a name or what choose_routes returns, got {routes!r}")
    own = Conditions.cat(r.conditions for r in routes) if routes else None
    if own is None or not (
        torch.equal(own.temperature, conditions.temperature) and torch.equal(own.mu, conditions.mu)
    ):
        raise ValueError("these routes were chosen for other conditions; choose them anew")
