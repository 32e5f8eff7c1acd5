"""The one implementation behind every host: fit a model, look it up, sample, free energy."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
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
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.io import TrainedModel
from clease_nn.sampler.draws import draw_chain
from clease_nn.sampler.lookup import find_model
from clease_nn.sampler.system import System
from clease_nn.sampling import sample
from clease_nn.statistics import Estimate
from clease_nn.training import fit
from clease_nn.warnings import InterruptedWarning, NoModelWarning, OutOfRangeWarning

__all__ = ["ModelService", "condition_range", "check_train"]

_ROWS = 1024  # drawn between two updates of the progress bar


def check_train(train) -> None:
    """Raise TypeError unless ``train`` of a sampler is a bool or arguments of its ``fit``.

    Examples
    --------
    >>> check_train({"temps": (300, 900), "chem_pots": {"Au": (0, 1)}, "max_seconds": 60})
    """
    if isinstance(train, (bool, np.bool_)):
        return
    if not isinstance(train, Mapping) or not {"temps", "chem_pots"} <= train.keys():
        raise TypeError(
            "train must be True, False or a dict of arguments of fit(), temps and chem_pots among "
            f"them, got {train!r}"
        )


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
        if self.own is not None:
            system.check(self.own)

    # ------------------------------------------------------------------ looking up
    def lookup(
        self,
        conditions: Conditions,
        train: Callable[[], None] | None = None,
        search: bool = True,
    ) -> TrainedModel | None:
        """The model that was trained for one condition, or None.

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
            return self.own
        if self.own is not None and strict:
            raise ValueError(self._strict(conditions))
        if _serves(self.found, conditions):
            return self.found
        key = (self.system.key, conditions.temperature[0].item(), *conditions.mu[0].tolist())
        if search and self.system.key is not None and key not in self._searched:
            self._searched.add(key)
            found = find_model(self.system.key, conditions, self.system.lattice)
            if found is not None:
                self.found = self.system.check(found)
                return self.found
        if self.own is None and search and train is not None:
            train()
            if _serves(self.own, conditions):
                return self.own
        if strict and self.at_hand is not None:
            raise ValueError(self._strict(conditions))
        return None

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
        **options
            To :func:`clease_nn.training.fit`; they go before those of the recipe, where they are
            not None.
        """
        if max_seconds is None and max_steps is None:
            max_seconds = 120
        ensemble = self.system.ensemble if ensemble is None else ensemble
        named = recipes.recipe(recipe, ensemble, self.system.lattice, box, seed=seed)
        options = {k: v for k, v in options.items() if not (v is None and k in named)}
        replaced = [k for k in ("model", "stages") if options.get(k) is not None]
        trained = fit(
            ensemble,
            self.system.lattice,
            box,
            max_seconds=max_seconds,
            max_steps=max_steps,
            seed=seed,
            **{**named, **options},
        )
        own = {
            "parent_fingerprint": self.system.key,
            "recipe": f"{recipe} but for {' and '.join(replaced)}" if replaced else recipe,
            **self.system.details,
            **(metadata or {}),
        }
        self.own = replace(trained, metadata={**trained.metadata, **own})
        return self.own

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
    def sample(
        self,
        conditions: Conditions,
        n: int,
        seed: np.random.SeedSequence,
        *,
        weighted: bool = True,
        train: Callable[[], None] | None = None,
    ) -> Configurations:
        """Draw configurations from the model at one condition.

        Parameters
        ----------
        conditions : Conditions
            One row.
        n : int
        seed : SeedSequence
        weighted : bool
            Independent draws with ``log_prob``, ``energy`` and ``log_target``; or, if False, an
            unweighted Metropolis-Hastings chain of such draws.
        train : callable, optional
            As in :meth:`lookup`.

        Raises
        ------
        ValueError
            If there is no model, or the condition is out of range with
            ``out_of_range="raise"``.
        """
        [trained] = self._drawing(conditions, train)
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
        train: Callable[[], None] | None = None,
        progress: bool = True,
    ) -> Configurations:
        """Draw ``n`` weighted configurations at each of many conditions.

        Parameters
        ----------
        conditions : Conditions
        n : int
        seed : SeedSequence
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
        models = self._drawing(conditions, train)
        rng = torch.Generator().manual_seed(int(seed.generate_state(1)[0]))
        at_once = max(1, _ROWS // n)
        parts, done = [], 0
        bar = tqdm(total=len(conditions), disable=not progress, desc="sampling", unit="condition")
        try:
            for _, group in groupby(range(len(conditions)), lambda k: id(models[k])):
                rows = list(group)
                for k in range(0, len(rows), at_once):
                    at = rows[k : k + at_once]
                    parts.append(self._draw(models[at[0]], conditions[at], n, rng))
                    done += len(at)
                    bar.update(len(at))
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
        return Configurations.cat(parts)

    def _drawing(self, conditions, train) -> list[TrainedModel]:
        """The model to draw from at every condition; one warning where they lie out of range."""
        models, outside = [], []
        for k in range(len(conditions)):
            trained = self.lookup(conditions[k], train)
            if trained is None:
                outside.append(k)
                trained = self.at_hand
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


def condition_range(
    temps: tuple[float, float],
    chem_pots: Mapping[str, tuple[float, float]],
    axes: np.ndarray,
    unit: float = 1.0,
) -> ConditionRange:
    """The range of a fit from the form that hosts take.

    Parameters
    ----------
    temps : (low, high)
        K.
    chem_pots : mapping to (low, high)
        eV, along the axes.
    axes : ndarray, shape (len(chem_pots), species)
    unit : float
        K in one unit of ``temps``, for hosts with another Boltzmann constant.

    Raises
    ------
    ValueError
        If something is no pair, or a range is empty or inverted.
    """
    if np.shape(temps) != (2,):
        raise ValueError(
            f"temps must be a pair (low, high) in K, such as (300, 1200), got {temps!r}"
        )
    for name, value in chem_pots.items():
        if np.shape(value) != (2,):
            raise ValueError(f"the range of {name} must be (low, high) in eV, got {value!r}")
    low, high = zip(*chem_pots.values(), strict=True)
    return ConditionRange((unit * temps[0], unit * temps[1]), list(low), list(high), axes)


def _with_training(c: Configurations, trained: TrainedModel) -> Configurations:
    """Draws that know what their model has cost."""
    return replace(c, provenance=(c.cost + trained.cost).noted_in(c.provenance))


def _serves(trained: TrainedModel | None, conditions: Conditions) -> bool:
    return trained is not None and bool(trained.range.contains(conditions).all())
