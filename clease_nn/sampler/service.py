"""The one implementation behind every host: fit a model, look it up, sample, free energy."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from os import PathLike
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from clease_nn import recipes, thermodynamics
from clease_nn.conditions import ConditionRange, Conditions
from clease_nn.configurations import Configurations
from clease_nn.cost import Cost
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.io import TrainedModel
from clease_nn.models import WindowedModel
from clease_nn.sampler.arguments import check_route
from clease_nn.sampler.draws import draw_chain
from clease_nn.sampler.lookup import find_model
from clease_nn.sampler.scaling import is_larger, serving
from clease_nn.sampler.system import System
from clease_nn.sampling import sample
from clease_nn.sampling.by_route import exact
from clease_nn.sampling.routes import Routes, choose_routes
from clease_nn.sources.mixed import MixedSource
from clease_nn.statistics import Estimate
from clease_nn.training import Stage, fit, process_seed
from clease_nn.warnings import (
    CleaseNNWarning,
    InterruptedWarning,
    NoModelWarning,
    OutOfRangeWarning,
)

__all__ = ["ModelService"]

_ROWS = 1024  # drawn between two updates of the progress bar
_ROUTED = 4096  # of routes that are chosen together


class ModelService:
    """The models of a system: given, fitted, or found in files; and what they are asked for.

    Parameters
    ----------
    system : System
    model : path or TrainedModel, optional
    out_of_range : {"warn", "raise"}
        What to do at conditions the model was not trained for.

    Attributes
    ----------
    system : System
    own : TrainedModel or None
        The user's model: given or fitted. Never replaced by one that was found.
    found : TrainedModel or None
        The last one that was found in a file.

    Raises
    ------
    TypeError
        If ``model`` is neither a path nor a TrainedModel.
    ValueError
        If the model is one of another system, or ``out_of_range`` is unknown.
    """

    def __init__(
        self,
        system: System,
        model: str | PathLike | TrainedModel | None = None,
        out_of_range: str = "warn",
    ):
        if not isinstance(model, (str, PathLike, TrainedModel, type(None))):
            raise TypeError(
                "model must be the path of a *.nn file or a TrainedModel (from fit() or "
                f"TrainedModel.load), got {model!r}"
            )
        if out_of_range not in ("warn", "raise"):
            raise ValueError(f"out_of_range must be 'warn' or 'raise', got {out_of_range!r}")
        self.system, self.out_of_range = system, out_of_range
        self.own: TrainedModel | None = None
        self.found: TrainedModel | None = None
        self._searched: set = set()
        self._warned: set = set()
        self._serving: dict[int, tuple[TrainedModel, TrainedModel]] = {}
        if model is not None:
            trained = model if isinstance(model, TrainedModel) else TrainedModel.load(model)
            self.own = system.check(trained)

    @property
    def at_hand(self) -> TrainedModel | None:
        """The user's own model, or else the one found."""
        return self.found if self.own is None else self.own

    def adopt(self, system: System) -> None:
        """Go on with another system; the user's own model must belong to it.

        Raises
        ------
        ValueError
            If it does not.
        """
        self.system, self.found = system, None
        self._serving.clear()
        if self.own is not None:
            system.check(self.own)

    # ------------------------------------------------------------------ looking up
    def lookup(
        self,
        conditions: Conditions,
        train: Callable[[], None] | None = None,
        search: bool = True,
    ) -> TrainedModel | None:
        """The model that was trained for one condition, as it serves this lattice, or None.

        Own models go first, then the one found before, then files (if ``search``), then
        ``train``, which is to call :meth:`fit`.

        Raises
        ------
        ValueError
            If the condition lies outside the range of the own model (or of the one found) and
            ``out_of_range="raise"``.
        """
        strict = self.out_of_range == "raise"
        if _serves(self.own, conditions):
            return self.served(self.own)
        if self.own is not None and strict:
            raise ValueError(self._strict(conditions))
        if _serves(self.found, conditions):
            return self.served(self.found)
        key = (self.system.key, conditions.temperature[0].item(), *conditions.mu[0].tolist())
        if search and self.system.key is not None and key not in self._searched:
            self._searched.add(key)
            found = find_model(self.system.key, conditions, self.system.lattice)
            if found is not None:
                self.found = self.system.check(found)
                return self.served(self.found)
        if self.own is None and search and train is not None:
            train()
            if _serves(self.own, conditions):
                return self.served(self.own)
        if strict and self.at_hand is not None:
            raise ValueError(self._strict(conditions))
        return None

    def served(self, trained: TrainedModel) -> TrainedModel:
        """A model as it serves this lattice (:func:`~clease_nn.sampler.scaling.serving`)."""
        if id(trained) not in self._serving:
            served, said = serving(trained, self.system.lattice)
            if isinstance(served.model, WindowedModel) and served is not trained:
                self.warn(said, CleaseNNWarning)
            self._serving[id(trained)] = trained, served
        return self._serving[id(trained)][1]

    def complain(self, conditions: Conditions) -> None:
        """Say, once, that :meth:`lookup` found no model for a condition."""
        if self.at_hand is None:
            self.warn(
                "no trained model of this system was found: exact single-site moves are made. "
                "Train one with fit(), or give model='file.nn'",
                NoModelWarning,
            )
        else:
            text = self.outside(conditions)
            self.warn(f"{text}: exact single-site moves are made there", OutOfRangeWarning)

    def outside(self, conditions: Conditions) -> str:
        """That a condition is outside the range of the model at hand, in words."""
        box = self.at_hand.range
        mu = dict(zip(self.system.lattice.species, conditions.mu[0].tolist(), strict=True))
        return (
            f"T = {conditions.temperature[0].item():g} K, mu = {mu} eV lies outside the trained "
            f"range ({box.temperature[0]:g} to {box.temperature[1]:g} K, {box.low.tolist()} to "
            f"{box.high.tolist()} eV along the trained axes)"
        )

    def _strict(self, conditions: Conditions) -> str:
        text = self.outside(conditions)
        return f"{text}; train a wider range with fit() or use out_of_range='warn'"

    def warn(self, text: str, category: type[Warning]) -> None:
        """Warn, once with each text."""
        if text not in self._warned:
            self._warned.add(text)
            warnings.warn(text, category, stacklevel=6)

    # ------------------------------------------------------------------ training
    def fit(
        self,
        box: ConditionRange,
        *,
        max_seconds: float | None = None,
        max_steps: int | None = None,
        seed: int = 0,
        metadata: Mapping[str, Any] | None = None,
        ensemble: SemiGrandCanonical | None = None,
        recipe: str = "default",
        cells: Sequence[System] = (),
        **options: Any,
    ) -> TrainedModel:
        """Train a model of the system over a range; it becomes the own one.

        Parameters
        ----------
        box : ConditionRange
        max_seconds, max_steps : optional
            Budget; 120 s if neither is given.
        seed : int
        metadata : mapping, optional
            JSON to be saved with the model, besides the system's own.
        ensemble : SemiGrandCanonical, optional
            Train on another energy that resembles the system's own, such as a surrogate of an
            expensive one. What the model is used for stays exact for the system's energy.
        recipe : str
            Model, network, objective and source by name (:func:`clease_nn.recipes.recipe`).
        cells : sequence of System, optional
            Train on these cells of the same parent lattice instead, and use the model here. Of
            several the small ones give more of the batches, and the largest is validated.
        **options
            To :func:`clease_nn.training.fit`; they go before those of the recipe, where they are
            not None.
        """
        if max_seconds is None and max_steps is None:
            max_seconds = 120
        cells = self._cells(cells, recipe, ensemble, options)
        lattice = cells[-1].lattice
        ensemble = cells[-1].ensemble if ensemble is None else ensemble
        named = recipes.recipe(recipe, ensemble, lattice, box, seed=seed)
        if len(cells) > 1:
            named["stages"] = [Stage(_mixed(cells, box, seed))]
        options = {k: v for k, v in options.items() if not (v is None and k in named)}
        replaced = [k for k in ("model", "stages") if options.get(k) is not None]
        trained = fit(
            ensemble,
            lattice,
            box,
            max_seconds=max_seconds,
            max_steps=max_steps,
            seed=seed,
            **{**named, **options},
        )
        own = {
            "parent_fingerprint": self.system.key,
            "lattice": lattice.to_dict(),
            "cells": [cell.lattice.n_sites for cell in cells],
            "recipe": f"{recipe} but for {' and '.join(replaced)}" if replaced else recipe,
            **self.system.details,
            **(metadata or {}),
        }
        fitted = replace(trained, metadata={**trained.metadata, **own})
        self.own = self.system.check(fitted) if lattice is not self.system.lattice else fitted
        return self.own

    def _cells(self, cells, recipe: str, ensemble, options) -> list[System]:
        """The cells to train on, the largest last; ValueError for those of another system."""
        if not cells:
            return [self.system]
        for cell in cells:
            if self.system.key is None or cell.key != self.system.key:
                raise ValueError(
                    f"the cell of {cell.lattice.n_sites} sites to train on has another energy or "
                    f"parent lattice (key {cell.key}, this system {self.system.key}): use the same "
                    "expansion, without a chemical potential folded in"
                )
        if len(cells) > 1 and (recipe != "default" or options.get("stages") is not None):
            raise ValueError(
                "several cells are trained on by the default recipe; give one cell, or leave "
                "recipe and stages out"
            )
        if ensemble is not None:
            raise ValueError("a surrogate belongs to one cell: it cannot be trained on others")
        return sorted(cells, key=lambda cell: cell.lattice.n_sites)

    def save(self, path: str | PathLike) -> None:
        """Write the model at hand to a file.

        Raises
        ------
        ValueError
            If there is none.
        OSError
            If the path cannot be written.
        """
        if self.at_hand is None:
            raise ValueError("there is no model to save; train one with fit()")
        self.at_hand.save(path)

    # ------------------------------------------------------------------ results
    def routes(
        self,
        conditions: Conditions,
        n: int,
        seed: np.random.SeedSequence,
        *,
        weighted: bool = True,
        train: Callable[[], None] | None = None,
    ) -> Routes:
        """How ``n`` rows at each condition would best be sampled, and why, by pilot draws.

        Parameters and errors as :meth:`sample`, of any number of conditions.
        """
        models = self._drawing(conditions, train)
        chosen: list = [None] * len(conditions)
        costs = []
        for rows in _by_model(models):
            seed, own = seed.spawn(2)
            some = self._choose(models[rows[0]], conditions[rows], n, own, weighted)
            costs.append(some.cost)
            for k, route in zip(rows, some, strict=True):
                chosen[k] = route
        return Routes(chosen, Cost.sum(costs))

    def sample(
        self,
        conditions: Conditions,
        n: int,
        seed: np.random.SeedSequence,
        *,
        weighted: bool = True,
        route: str = "auto",
        train: Callable[[], None] | None = None,
    ) -> Configurations:
        """Draw configurations at one condition.

        Parameters
        ----------
        conditions : Conditions
            One row.
        n : int
        seed : SeedSequence
        weighted : bool
            Independent draws with ``log_prob``, ``energy`` and ``log_target``; or, if False, an
            unweighted chain of Metropolis and Hastings.
        route : {"auto", "importance", "annealing", "refine"}
            How (:func:`clease_nn.sampling.exact`). ``"auto"``: by pilot draws on cells
            larger than those the model was trained on; importance sampling otherwise.
        train : callable, optional
            As in :meth:`lookup`.

        Raises
        ------
        ValueError
            If there is no model, the condition is out of range with ``out_of_range="raise"``, or
            the route is unknown or gives no such rows.
        """
        check_route(route, weighted)
        [trained] = self._drawing(conditions, train)
        if self._by_pilot(trained, route):
            pilot, seed = seed.spawn(2)
            routes = self._choose(trained, conditions, n, pilot, weighted)
            if weighted or "refine" in routes.names:
                return self._exact(trained, conditions, n, seed, routes, weighted)
        elif route not in ("auto", "importance"):
            return self._exact(trained, conditions, n, seed, route, weighted)
        rng = torch.Generator().manual_seed(int(seed.generate_state(1)[0]))
        if not weighted:
            parts = trained.model, self.system.ensemble, self.system.lattice
            return _with_training(draw_chain(*parts, conditions, int(n), rng), trained)
        return self._draw(trained, conditions, int(n), rng)

    def sample_grid(
        self,
        conditions: Conditions,
        n: int,
        seed: np.random.SeedSequence,
        *,
        route: str = "auto",
        train: Callable[[], None] | None = None,
        progress: bool = True,
    ) -> Configurations:
        """Draw ``n`` weighted configurations at each of many conditions.

        Parameters
        ----------
        conditions : Conditions
        n : int
        seed : SeedSequence
        route : {"auto", "importance", "annealing"}
            As in :meth:`sample`.
        train : callable, optional
            As in :meth:`lookup`.
        progress : bool
            Show a progress bar.

        Returns
        -------
        Configurations
            Rows in the order of the conditions. After Ctrl-C those of the leading conditions
            that were finished, with an ``InterruptedWarning``.

        Raises
        ------
        ValueError
            As :meth:`sample`, before anything is drawn.
        KeyboardInterrupt
            If none was finished.
        """
        check_route(route, weighted=True)
        models = self._drawing(conditions, train)
        rng = torch.Generator().manual_seed(int(seed.generate_state(1)[0]))
        parts, done = [], 0
        bar = tqdm(total=len(conditions), disable=not progress, desc="sampling", unit="condition")
        try:
            for _, group in groupby(range(len(conditions)), lambda k: id(models[k])):
                rows = list(group)
                trained = models[rows[0]]
                plain = route == "importance" or not (
                    route == "annealing" or self._by_pilot(trained, route)
                )
                at_once = max(1, (_ROWS if plain else _ROUTED) // n)
                for k in range(0, len(rows), at_once):
                    at = rows[k : k + at_once]
                    if plain:
                        parts.append(self._draw(trained, conditions[at], n, rng))
                    else:
                        [own] = seed.spawn(1)
                        parts.append(self._exact(trained, conditions[at], n, own, route, True))
                    done += len(parts[-1]) // n
                    bar.update(len(parts[-1]) // n)
                    if len(parts[-1]) < n * len(at):  # interrupted, and finished in part
                        raise KeyboardInterrupt
        except KeyboardInterrupt:
            if not parts:
                raise
            warnings.warn(
                f"sampling was interrupted: {done} of {len(conditions)} conditions are returned",
                InterruptedWarning,
                stacklevel=3,
            )
        finally:
            bar.close()
        told = [r for p in parts for r in p.provenance.get("routes", ())]
        if any(p.step is None for p in parts):  # annealed rows were not drawn in passes
            parts = [replace(p, step=None) for p in parts]
        out = Configurations.cat(parts)
        return replace(out, provenance={**out.provenance, "routes": told}) if told else out

    def _by_pilot(self, trained: TrainedModel, route: str) -> bool:
        """Whether the route is to be chosen by pilot draws."""
        return route == "auto" and is_larger(trained, self.system.lattice)

    def _choose(self, trained, conditions, n, seed, weighted) -> Routes:
        return choose_routes(
            trained.model, self.system.ensemble, self.system.lattice, conditions, int(n), seed,
            log_z=weighted, precision="auto",
        )  # fmt: skip

    def _exact(self, trained, conditions, n, seed, route, weighted) -> Configurations:
        """Rows by a route, or by routes that were chosen."""
        c = exact(
            trained.model, self.system.ensemble, self.system.lattice, conditions, int(n), seed,
            route=route, log_z=weighted, precision="auto",
        )  # fmt: skip
        return _with_training(c, trained)

    def _drawing(self, conditions, train) -> list[TrainedModel]:
        """The model to draw from at every condition; one warning where they lie out of range."""
        models, outside = [], []
        for k in range(len(conditions)):
            trained = self.lookup(conditions[k], train)
            if trained is None:
                outside.append(k)
                trained = None if self.at_hand is None else self.served(self.at_hand)
            if trained is None:
                raise ValueError(
                    "there is no trained model of this system; train one with fit() or give "
                    "model='file.nn'"
                )
            models.append(trained)
        if outside:
            text = self.outside(conditions[outside[0]])
            if len(outside) > 1:
                text = f"{len(outside)} of {len(conditions)} conditions, the first: {text}"
            warnings.warn(
                f"{text}: drawn from a model that was not trained there; see NESS",
                OutOfRangeWarning,
                stacklevel=4,
            )
        return models

    def _draw(self, trained: TrainedModel, conditions: Conditions, n: int, rng) -> Configurations:
        """``n`` weighted draws at each condition."""
        parts = trained.model, self.system.ensemble, self.system.lattice
        return _with_training(sample(*parts, conditions.repeat(n), rng, precision="auto"), trained)

    def free_energy(
        self, conditions: Conditions, n: int, seed: np.random.SeedSequence, **options: Any
    ) -> Estimate:
        """-kT ln Z in eV per supercell at one condition; arguments as :meth:`sample`."""
        e = thermodynamics.free_energy(self.sample(conditions, n, seed, **options))
        return Estimate(float(e.value[0]), float(e.error[0]), float(e.ness[0]))


def _mixed(cells: list[System], box: ConditionRange, seed: int) -> MixedSource:
    """Chains of several cells: small ones often, large ones rarely."""
    systems = [(cell.ensemble, cell.lattice) for cell in cells]
    shares = [1 / cell.lattice.n_sites for cell in cells]
    return MixedSource.tempering(systems, box, shares, seed=process_seed(seed))


def _by_model(models: list[TrainedModel]) -> list[list[int]]:
    """Rows that one model serves, in the order of its first appearance."""
    out: dict[int, list[int]] = {}
    for k, trained in enumerate(models):
        out.setdefault(id(trained), []).append(k)
    return list(out.values())


def _with_training(c: Configurations, trained: TrainedModel) -> Configurations:
    """Draws that know what their model has cost."""
    return replace(c, provenance=(c.cost + trained.cost).noted_in(c.provenance))


def _serves(trained: TrainedModel | None, conditions: Conditions) -> bool:
    return trained is not None and bool(trained.range.contains(conditions).all())
