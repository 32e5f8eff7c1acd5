"""What every sampler with CLEASE's interface shares: conditions, models, samples, free energies."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np
from ase import Atoms
from clease.montecarlo import SGCMonteCarlo

from clease_nn import thermodynamics
from clease_nn.conditions import ConditionRange, Conditions
from clease_nn.configurations import Configurations
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.hosts.clease.checks import check_chemical_potential, check_count, check_temperature
from clease_nn.hosts.clease.constraints import read_generator
from clease_nn.io import TrainedModel
from clease_nn.lattice import Lattice
from clease_nn.phases import ChemicalPotentialLine
from clease_nn.sampler import (
    ModelService,
    System,
    condition_range,
    potential_grid,
    potential_line,
    temperature_grid,
)
from clease_nn.sampler.arguments import cells_of, check_route
from clease_nn.sampling.routes import SamplingRoute
from clease_nn.statistics import Estimate

__all__ = ["AbstractModelledSampler"]


class AbstractModelledSampler(SGCMonteCarlo, ABC):
    """An ``SGCMonteCarlo`` of a :class:`~clease_nn.sampler.System` that may have a model of it.

    A subclass sets ``_models``, ``_train`` and ``_rng_root`` and calls :meth:`_adopt` before the
    constructor of CLEASE.
    """

    _models: ModelService
    _train: bool | Mapping
    _rng_root: np.random.SeedSequence | None
    _complained = False

    # ------------------------------------------------------------------ what a host says
    @abstractmethod
    def _mu(self, chem_pot: Mapping[str, float]) -> np.ndarray:
        """(species,) chemical potentials in eV, from the form in which users give them."""

    @abstractmethod
    def _axes(self, names: Iterable[str]) -> np.ndarray:
        """(names, species) chemical potentials for 1 eV of each name."""

    @abstractmethod
    def _names(self) -> list[str]:
        """Names of chemical potentials that together span all of them."""

    @abstractmethod
    def _check_energy(self) -> None:
        """Follow changes that the user has made to the energy; refuse those of others."""

    @abstractmethod
    def _require_chemical_potential(self) -> None:
        """Raise ValueError unless chemical potentials have been given."""

    # ------------------------------------------------------------------ conditions
    def _set_positive_temperature(self, value: float) -> None:
        check_temperature(value)
        self._set_temperature(value)

    temperature = property(
        lambda self: self._temperature,
        _set_positive_temperature,
        doc="Temperature in K; setting it clears all averages.",
    )
    T = property(lambda self: self._temperature, _set_positive_temperature, doc="As temperature.")

    @property
    def lattice(self) -> Lattice:
        """Active sites and allowed species of the atoms."""
        return self._lattice

    @property
    def ensemble(self) -> SemiGrandCanonical:
        """Ensemble of the bare energy, without chemical potential."""
        return self._ensemble

    def _conditions(self, temp: float | None = None, chem_pot: Mapping | None = None) -> Conditions:
        """One row: the present temperature and chemical potentials where none are given."""
        chem_pot = (self._chemical_potential or {}) if chem_pot is None else chem_pot
        check_chemical_potential(chem_pot)
        temp = self.temperature if temp is None else temp
        check_temperature(temp)
        return Conditions([float(temp)], self._mu(chem_pot)[None])

    # ------------------------------------------------------------------ models
    def _adopt(self, system: System) -> None:
        """Go on with another energy."""
        self._models.adopt(system)
        self._lattice, self._ensemble = system.lattice, system.ensemble

    def _lookup_and_train(self):
        """What trains a model where none is found, or None."""
        return self._train_on_demand if self._train else None

    def _model_for(self, conditions: Conditions, under_way: bool = False) -> TrainedModel | None:
        """The model for moves at one condition; None after a warning if there is none.

        Within a run only models at hand are used, and there is one warning.
        """
        trained = self._models.lookup(conditions, self._lookup_and_train(), search=not under_way)
        self._complained = under_way and self._complained
        if trained is None and not self._complained:
            self._complained = True
            self._models.complain(conditions)
        return trained

    def _train_on_demand(self) -> None:
        if isinstance(self._train, Mapping):
            self.fit(**self._train)
            return
        around = self._chemical_potential or dict.fromkeys(self._names(), 0.0)
        self.fit(
            temps=(0.5 * self.temperature, 2.0 * self.temperature),
            chem_pots={k: (v - 0.1, v + 0.1) for k, v in around.items()},
            max_seconds=60,
        )

    def _box(self, temps, chem_pots: Mapping[str, tuple[float, float]]) -> ConditionRange:
        """The range of a fit, checked."""
        check_chemical_potential(chem_pots, "chem_pots", "{'c1_0': (-0.1, 0.1)}")
        return condition_range(temps, chem_pots, self._axes(chem_pots))

    def fit(
        self,
        temps: tuple[float, float],
        chem_pots: Mapping[str, tuple[float, float]],
        *,
        max_seconds: float | None = None,
        max_steps: int | None = None,
        seed: int = 0,
        train_on: Atoms | Sequence | None = None,
        **options: Any,
    ) -> TrainedModel:
        """Train a model over a range and use it from now on.

        Parameters
        ----------
        temps : (low, high)
            K.
        chem_pots : mapping of str to (low, high)
            eV, of singlets ("c1_0") or of elements.
        max_seconds, max_steps : optional
            Budget; 120 s if neither is given.
        seed : int
        train_on : ase.Atoms, three integers, or a list of those, optional
            Train on a smaller cell of the same parent lattice, which is cheaper, and use the model
            for these atoms: a supercell of the settings' primitive cell, with or without a
            calculator of the same ECIs, or its repetitions, such as ``(4, 4, 4)``. Of several
            cells the smaller give more of the batches. Default: these atoms.
        **options
            To :func:`clease_nn.training.fit`: target_ness, checkpoint, progress, ...; and
            ``recipe``, a published way of training by name (:func:`clease_nn.recipes.recipe`).

        Raises
        ------
        ValueError
            If a range is empty, inverted or names something unknown, or a cell to train on is one
            of another parent lattice or has other ECIs.
        """
        self._check_energy()
        return self._models.fit(
            self._box(temps, chem_pots), max_seconds=max_seconds, max_steps=max_steps, seed=seed,
            metadata={"chem_pots": list(chem_pots)}, cells=self._cells(train_on), **options,
        )  # fmt: skip

    def _cells(self, train_on) -> list[System]:
        """The cells of ``train_on`` with their energies."""
        return [self._cell(cell) for cell in cells_of(train_on)]

    def _cell(self, cell) -> System:
        raise ValueError(
            "this sampler cannot train on another cell: that takes an expansion of CLEASE. Fit a "
            "sampler of the smaller cell, and give its model to this one with model="
        )

    @property
    def trained(self) -> TrainedModel | None:
        """The model with its range and validation, or None.

        The one fitted or given; only where there is none, the one found in a file.
        """
        return self._models.at_hand

    def save(self, path: str | PathLike) -> None:
        """Write the model to a file; ``model=path`` or the lookup reads it.

        Raises
        ------
        ValueError
            If there is no model.
        OSError
            If the path cannot be written.
        """
        self._models.save(path)

    def sample(
        self,
        n: int,
        temp: float | None = None,
        chem_pot: Mapping[str, float] | None = None,
        weighted: bool = True,
        route: str = "auto",
    ) -> Configurations:
        """Draw configurations from the model.

        Parameters
        ----------
        n : int
            How many.
        temp, chem_pot : optional
            K and eV; default the present ones.
        weighted : bool
            Independent draws with ``log_prob``, ``energy`` (eV per supercell, without chemical
            potential) and ``log_target = -E'/kT``; or, if False, an unweighted Metropolis-Hastings
            chain of such draws, with repeats (see ``provenance``). The chain starts after a
            surplus of draws, the more the poorer the model.
        route : {"auto", "importance", "annealing", "refine"}
            How rows come about (:func:`clease_nn.sampling.exact`). ``"auto"``: on cells
            larger than those the model was trained on, pilot draws decide (:meth:`route` says how);
            importance sampling otherwise. ``"refine"`` gives chains: ``weighted=False``.

        Raises
        ------
        ValueError
            If there is no model, symbols or constraints restrict the configurations, the route
            is unknown or gives no such rows, or the condition is out of range with
            ``out_of_range="raise"``.
        """
        return self._models.sample(*self._request(n, temp, chem_pot), weighted=weighted,
                                   route=route, train=self._lookup_and_train())  # fmt: skip

    def route(
        self,
        n: int = 1000,
        temp: float | None = None,
        chem_pot: Mapping[str, float] | None = None,
        weighted: bool = True,
    ) -> SamplingRoute:
        """How :meth:`sample` would best go about ``n`` rows at a condition, and why.

        A pilot of a few draws decides; its choice is thrown away. Print the result for the
        reason in words; ``seconds`` is roughly what the rows will take.

        Parameters and errors as :meth:`sample`.
        """
        request = self._request(n, temp, chem_pot)
        [route] = self._models.routes(*request, weighted=weighted, train=self._lookup_and_train())
        return route

    def free_energy(
        self,
        temp: float | None = None,
        chem_pot: Mapping[str, float] | None = None,
        n: int = 2000,
        route: str = "auto",
    ) -> Estimate:
        """-kT ln Z in eV per supercell, ``Z = sum exp(-E'/kT)`` over all configurations.

        E' is the energy as CLEASE defines it, offset included: ``E - N x <phi>`` for
        ``{"c1_0": x}`` and ``E - sum mu_a N_a`` for ``{"Au": mu}``.

        Parameters and errors as :meth:`sample`, whose weights it uses.
        """
        request = self._request(n, temp, chem_pot)
        return self._models.free_energy(*request, route=route, train=self._lookup_and_train())

    def sample_grid(
        self,
        n: int,
        temps: float | Sequence[float],
        chem_pots: Mapping[str, Sequence[float]] | Sequence[Mapping[str, float]],
        *,
        route: str = "auto",
        progress: bool = True,
    ) -> Configurations:
        """Draw ``n`` weighted configurations at every condition of a grid.

        Parameters
        ----------
        n : int
            At each condition.
        temps : float or array_like, shape (t,)
            K.
        chem_pots : mapping of str to array_like, or sequence of mappings
            eV: ``{"c1_0": [-0.02, 0, 0.02]}``, of several names all combinations; or a list of
            chemical potentials as :meth:`sample` takes them.
        route : {"auto", "importance", "annealing"}
            As in :meth:`sample`, condition by condition.
        progress : bool
            Show a progress bar.

        Returns
        -------
        Configurations
            ``n`` rows a condition; the temperature varies slowest, the last name of a mapping
            fastest, lists keep their order. After Ctrl-C the conditions finished so far, with an
            ``InterruptedWarning``.

        Raises
        ------
        ValueError
            As :meth:`sample`, or if the grid is empty. Conditions out of the trained range raise
            with ``out_of_range="raise"`` before anything is drawn.
        TypeError
            If the arguments are not what they should be.

        Examples
        --------
        ::

            c = mc.sample_grid(100, [300, 400, 500], {"c1_0": np.linspace(-0.05, 0.05, 21)})
            dos = thermodynamics.density_of_states(c)
        """
        check_count("n", n, 1)
        check_route(route)
        temps, chem_pots = temperature_grid(temps), potential_grid(chem_pots)
        self._check_energy()
        for given in chem_pots:
            check_chemical_potential(given)
        grid = Conditions.grid(temps, np.array([self._mu(given) for given in chem_pots]))
        self._refuse_restrictions()
        return self._models.sample_grid(grid, int(n), self._spawn(), route=route, progress=progress,
                                        train=self._lookup_and_train())  # fmt: skip

    def density_of_states(
        self,
        n: int,
        temps: float | Sequence[float],
        chem_pots: Mapping[str, Sequence[float]] | Sequence[Mapping[str, float]],
        *,
        route: str = "auto",
        progress: bool = True,
    ) -> thermodynamics.DensityOfStates:
        """Thermodynamics at any condition on and between those of a grid, from the model.

        Parameters and errors as :meth:`sample_grid`, whose samples
        :func:`clease_nn.thermodynamics.density_of_states` combines.
        """
        drawn = self.sample_grid(n, temps, chem_pots, route=route, progress=progress)
        return thermodynamics.density_of_states(drawn)

    def line(
        self, name: str, against: str | None = None, at: Mapping[str, float] | None = None
    ) -> ChemicalPotentialLine:
        """The line of conditions along one chemical potential, for phases and phase diagrams.

        Parameters
        ----------
        name : str
            What varies, in eV: a singlet ("c1_0") or an element.
        against : str, optional
            Another element: the position on the line is ``mu_name - mu_against``.
        at : mapping of str to float, optional
            The other chemical potentials; default zero.

        Raises
        ------
        ValueError
            If a name is unknown, or ``at`` has a value for ``name`` itself.

        Examples
        --------
        >>> from clease_nn.hosts.clease import NeuralSGCSampler
        >>> from clease_nn.hosts.clease.examples import cuau_emt_atoms
        >>> mc = NeuralSGCSampler(cuau_emt_atoms(), 600, symbols=["Au", "Cu"])
        >>> line = mc.line("c1_0")
        >>> line.label, line.species, line.direction.round(6).tolist()
        ('c1_0 (eV)', 'Au', [1.0, -1.0])
        >>> mc.line("Au", against="Cu").label
        'mu_Au - mu_Cu (eV)'
        """
        at = {} if at is None else at
        check_chemical_potential(at, "at")
        if name in at:
            raise ValueError(f"{name} varies along the line, so at= cannot have a value for it")
        axis = self._axes([name])[0]
        return potential_line(self._lattice, name, axis, self._mu(at), against)

    def _request(self, n, temp, chem_pot) -> tuple[Conditions, int, np.random.SeedSequence]:
        check_count("n", n, 1)
        if chem_pot is None:
            self._require_chemical_potential()
        self._check_energy()
        conditions = self._conditions(temp, chem_pot)
        self._refuse_restrictions()
        return conditions, int(n), self._spawn()

    def _refuse_restrictions(self) -> None:
        moves = read_generator(self.generator, self.atoms, self._lattice)
        if moves.groups is None or not np.array_equal(
            moves.groups.reachable, self._lattice.allowed
        ):
            raise ValueError(
                "symbols, generator or constraints restrict the configurations "
                f"({moves.reason or 'some species or sites are fixed'}), but the model draws all "
                "of them; use a sampler without restrictions for sample() and free_energy()"
            )

    def _spawn(self) -> np.random.SeedSequence:
        if self._rng_root is not None:
            return self._rng_root.spawn(1)[0]
        return np.random.SeedSequence(random.getrandbits(128))
