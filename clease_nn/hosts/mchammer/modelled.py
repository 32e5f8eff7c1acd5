"""What a mchammer ensemble needs to have a model: conditions, fit, samples, free energy."""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Integral, Real
from os import PathLike
from typing import Any

import numpy as np
from ase import Atoms
from ase.units import kB
from mchammer.calculators import ClusterExpansionCalculator
from mchammer.ensembles import SemiGrandCanonicalEnsemble

from clease_nn import thermodynamics
from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.hosts.mchammer import extraction
from clease_nn.hosts.mchammer.chemical_potentials import Gauge
from clease_nn.hosts.mchammer.expansion import Expansion, flip_groups
from clease_nn.hosts.mchammer.private import structure_of
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
from clease_nn.single_chain import FlipGroups
from clease_nn.statistics import Estimate

__all__ = ["AbstractModelledEnsemble", "check_number"]


class AbstractModelledEnsemble(SemiGrandCanonicalEnsemble, ABC):
    """A ``SemiGrandCanonicalEnsemble`` that may have a model of its expansion.

    A subclass sets ``_expansion`` (None: there can be no model), ``_models``, ``_gauge``,
    ``_train`` and ``_spawning``.
    """

    _expansion: Expansion | None
    _models: ModelService
    _gauge: Gauge
    _train: bool | Mapping
    _spawning: np.random.SeedSequence

    # ------------------------------------------------------------------ the expansion
    def _known(self) -> Expansion:
        if self._expansion is None:
            raise TypeError(
                f"the energy of a {type(self.calculator).__name__} is more than a cluster "
                "expansion and is not read; use a ClusterExpansionCalculator"
            )
        return self._expansion

    @property
    def lattice(self) -> Lattice:
        """Active sites and allowed species of the structure."""
        return self._known().system.lattice

    @property
    def ensemble(self) -> SemiGrandCanonical:
        """Ensemble of the bare expansion, without chemical potential."""
        return self._known().system.ensemble

    def _groups(self) -> FlipGroups:
        """The trial moves as they are now."""
        return flip_groups(
            self.lattice,
            self.configuration.occupations,
            self.sublattices,
            self._flip_sublattice_probabilities,
            self.configuration.neighbor_sites_to_avoid,
        )

    # ------------------------------------------------------------------ conditions
    def _given(self, temperature, chemical_potentials) -> Conditions:
        """One row, chemical potentials as given; the present ones where none are."""
        temperature = self.temperature if temperature is None else temperature
        check_number("temperature", temperature)
        if chemical_potentials is None:
            chemical_potentials = self.chemical_potentials
        mu = self._gauge.mu(chemical_potentials)
        return Conditions.from_kT([float(temperature) * self.boltzmann_constant], mu[None])

    def _fixed(self, conditions: Conditions) -> Conditions:
        """The same conditions in the gauge that models know."""
        return Conditions(conditions.temperature, self._gauge.fixed(conditions.mu.numpy()))

    # ------------------------------------------------------------------ models
    def _on_demand(self):
        """What trains a model where a look-up finds none, or None."""
        return self._train_on_demand if self._train else None

    def _train_on_demand(self) -> None:
        if isinstance(self._train, Mapping):
            self.fit(**self._train)
            return
        mu = self._gauge.fixed(self._given(None, None).mu[0].numpy())
        present = dict(zip(self.lattice.species, mu.tolist(), strict=True))
        self.fit(
            temps=(0.5 * self.temperature, 2.0 * self.temperature),
            chem_pots={s: (present[s] - 0.1, present[s] + 0.1) for s in self._gauge.independent},
            max_seconds=60,
        )

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
        """Train a model over a range; this and later ensembles of the calculator use it.

        Parameters
        ----------
        temps : (low, high)
            K.
        chem_pots : mapping of str to (low, high)
            eV, of elements; those left out are zero. Only differences within a sublattice count,
            so one element of each has to be left out.
        max_seconds, max_steps : optional
            Budget; 120 s if neither is given.
        seed : int
        train_on : ase.Atoms, three integers, or a list of those, optional
            Train on a smaller cell of the same expansion, which is cheaper, and use the model for
            this structure: a supercell of the expansion's primitive structure, or how often to
            repeat that, such as ``(4, 4, 4)``; or a ``ClusterExpansionCalculator`` of another
            supercell. Of several cells the smaller give more of the batches. Default: this
            structure.
        **options
            To :func:`clease_nn.training.fit`: target_ness, checkpoint, progress, ...; and
            ``recipe``, a published way of training by name (:func:`clease_nn.recipes.recipe`).

        Raises
        ------
        TypeError
            If the calculator's energy is more than a cluster expansion.
        ValueError
            If a range is empty, inverted or names something unknown, or a cell to train on is one
            of another primitive structure or expansion.
        """
        expansion = self._known()
        axes = self._gauge.axes(chem_pots)
        box = condition_range(temps, chem_pots, axes, self.boltzmann_constant / kB)
        expansion.fitted = self._models.fit(
            box, max_seconds=max_seconds, max_steps=max_steps, seed=seed,
            metadata={"chem_pots": [str(k) for k in chem_pots]},
            cells=[self._cell(cell) for cell in cells_of(train_on)], **options,
        )  # fmt: skip
        return expansion.fitted

    def _cell(self, cell) -> System:
        """A cell to train on, with the energy of the expansion there."""
        own = self._known().system
        expansion = self.calculator
        if isinstance(cell, ClusterExpansionCalculator):
            if (key := extraction.parent_fingerprint(cell)) != own.key:
                raise ValueError(
                    f"the calculator to train on has another expansion (key {key}, this one "
                    f"{own.key}): make it with the same ClusterExpansion, or give the size alone"
                )
            expansion, cell = cell, structure_of(cell)
        elif not isinstance(cell, Atoms):
            primitive = self.calculator.cluster_expansion.primitive_structure
            cell = primitive.repeat(_size(cell))
        host = extraction.lattice(cell, expansion)
        energy = extraction.energy(cell, expansion)
        return System(host, SemiGrandCanonical(energy), energy.metadata["parent"])

    @property
    def trained(self) -> TrainedModel | None:
        """The model with its range and validation, or None.

        The one fitted or given; only where there is none, the one fitted by another ensemble of
        the calculator or found in a file.
        """
        return self._models.at_hand if self._expansion else None

    def save(self, path: str | PathLike) -> None:
        """Write the model to a file; ``model=path`` or the lookup reads it.

        Raises
        ------
        ValueError
            If there is no model.
        OSError
            If the path cannot be written.
        """
        self._known()
        self._models.save(path)

    def sample(
        self,
        n: int,
        temperature: float | None = None,
        chemical_potentials: Mapping[str, float] | None = None,
        weighted: bool = True,
        route: str = "auto",
    ) -> Configurations:
        """Draw configurations from the model.

        Parameters
        ----------
        n : int
            How many.
        temperature, chemical_potentials : optional
            K and eV; default the present ones. Species without a chemical potential have zero.
        weighted : bool
            Independent draws with ``log_prob``, ``energy`` (eV per supercell, without chemical
            potential) and ``log_target = -(E - sum_i mu_i N_i)/kT``, the sum over active sites;
            or, if False, an unweighted Metropolis-Hastings chain of such draws, with repeats (see
            ``provenance``).
        route : {"auto", "importance", "annealing", "refine"}
            How rows come about (:func:`clease_nn.sampling.exact`). ``"auto"``: on structures
            larger than those the model was trained on, pilot draws decide (:meth:`route` says how);
            importance sampling otherwise. ``"refine"`` gives chains: ``weighted=False``.

        Raises
        ------
        TypeError
            If the calculator's energy is more than a cluster expansion.
        ValueError
            If there is no model, frozen sublattices or sites to avoid restrict the
            configurations, the route is unknown or gives no such rows, or the condition is out
            of range with ``out_of_range="raise"``.
        """
        given, request = self._request(n, temperature, chemical_potentials)
        c = self._models.sample(*request, weighted=weighted, route=route, train=self._on_demand())
        return _as_given(c, given.repeat(len(c)))

    def route(
        self,
        n: int = 1000,
        temperature: float | None = None,
        chemical_potentials: Mapping[str, float] | None = None,
        weighted: bool = True,
    ) -> SamplingRoute:
        """How :meth:`sample` would best go about ``n`` rows at a condition, and why.

        A pilot of a few draws decides; they are thrown away. Print the result for the reason in
        words; ``seconds`` is roughly what the rows will take.

        Parameters and errors as :meth:`sample`.
        """
        given, request = self._request(n, temperature, chemical_potentials)
        [route] = self._models.routes(*request, weighted=weighted, train=self._on_demand())
        return replace(route, conditions=given)

    def _request(self, n, temperature, chemical_potentials):
        """Conditions as given; conditions as models know them, rows and seed."""
        self._known()
        _check_count(n)
        given = self._given(temperature, chemical_potentials)
        self._refuse_restrictions()
        return given, (self._fixed(given), int(n), self._spawning.spawn(1)[0])

    def sample_grid(
        self,
        n: int,
        temperatures: float | Sequence[float],
        chemical_potentials: Mapping[str, Sequence[float]] | Sequence[Mapping[str, float]],
        *,
        route: str = "auto",
        progress: bool = True,
    ) -> Configurations:
        """Draw ``n`` weighted configurations at every condition of a grid.

        Parameters
        ----------
        n : int
            At each condition.
        temperatures : float or array_like, shape (t,)
            K.
        chemical_potentials : mapping to array_like, or sequence of mappings
            eV: ``{"Ag": 0, "Au": [0.1, 0.2]}``, of several elements all combinations; or a list
            of chemical potentials as :meth:`sample` takes them.
        route : {"auto", "importance", "annealing"}
            As in :meth:`sample`, condition by condition.
        progress : bool
            Show a progress bar.

        Returns
        -------
        Configurations
            ``n`` rows a condition; the temperature varies slowest, the last element of a mapping
            fastest, lists keep their order. After Ctrl-C the conditions finished so far, with an
            ``InterruptedWarning``.

        Raises
        ------
        TypeError
            As :meth:`sample`, or if the arguments are not what they should be.
        ValueError
            As :meth:`sample`, or if the grid is empty. Conditions out of the trained range raise
            with ``out_of_range="raise"`` before anything is drawn.
        """
        self._known()
        _check_count(n)
        check_route(route)
        scale = self.boltzmann_constant / kB
        temperatures = [scale * t for t in temperature_grid(temperatures)]
        mu = [self._gauge.mu(given) for given in potential_grid(chemical_potentials)]
        given = Conditions.grid(temperatures, np.array(mu))
        self._refuse_restrictions()
        c = self._models.sample_grid(
            self._fixed(given),
            int(n),
            self._spawning.spawn(1)[0],
            route=route,
            progress=progress,
            train=self._on_demand(),
        )
        return _as_given(c, given.repeat(int(n))[: len(c)])

    def density_of_states(
        self,
        n: int,
        temperatures: float | Sequence[float],
        chemical_potentials: Mapping[str, Sequence[float]] | Sequence[Mapping[str, float]],
        *,
        route: str = "auto",
        progress: bool = True,
    ) -> thermodynamics.DensityOfStates:
        """Thermodynamics at any condition on and between those of a grid, from the model.

        Parameters and errors as :meth:`sample_grid`, whose samples
        :func:`clease_nn.thermodynamics.density_of_states` combines.
        """
        drawn = self.sample_grid(
            n, temperatures, chemical_potentials, route=route, progress=progress
        )
        return thermodynamics.density_of_states(drawn)

    def line(
        self, name: str, against: str | None = None, at: Mapping[str, float] | None = None
    ) -> ChemicalPotentialLine:
        """The line of conditions along one chemical potential, for phases and phase diagrams.

        Parameters
        ----------
        name : str
            The element whose chemical potential varies, in eV.
        against : str, optional
            Another element: the position on the line is ``mu_name - mu_against``.
        at : mapping of str to float, optional
            The other chemical potentials; default zero.

        Raises
        ------
        TypeError
            If the calculator's energy is more than a cluster expansion.
        ValueError
            If an element is unknown or on an inactive sublattice, or ``at`` has a value for
            ``name`` itself.
        """
        self._known()
        self._gauge.axes({name: 0.0})
        if at is not None and name in at:
            raise ValueError(f"{name} varies along the line, so at= cannot have a value for it")
        origin = np.zeros(self.lattice.n_species) if not at else self._gauge.mu(at)
        axis = np.eye(self.lattice.n_species)[self.lattice.species.index(name)]
        return potential_line(self.lattice, name, axis, origin, against)

    def free_energy(
        self,
        temperature: float | None = None,
        chemical_potentials: Mapping[str, float] | None = None,
        n: int = 2000,
        route: str = "auto",
    ) -> Estimate:
        """-kT ln Z in eV per supercell, ``Z = sum exp[-(E - sum_i mu_i N_i)/kT]``.

        The sum runs over all configurations, N_i over active sites. Parameters and errors as
        :meth:`sample`, whose weights it uses.
        """
        e = thermodynamics.free_energy(
            self.sample(n, temperature, chemical_potentials, route=route)
        )
        return Estimate(float(e.value[0]), float(e.error[0]), float(e.ness[0]))

    def _refuse_restrictions(self) -> None:
        groups = self._groups()
        if len(groups.avoid) or not np.array_equal(groups.reachable, self.lattice.allowed):
            raise ValueError(
                "sublattice_probabilities or neighbor_sites_to_avoid restrict the "
                "configurations, but the model draws all of them; use an ensemble without them "
                "for sample() and free_energy()"
            )


def _size(cell) -> list[int]:
    """Repetitions of the primitive structure, checked."""
    try:
        size = [int(n) for n in cell]
        if len(size) == 3 and all(n > 0 for n in size) and size == [*cell]:
            return size
    except (TypeError, ValueError):
        pass
    raise TypeError(
        "a cell must be ase.Atoms, a ClusterExpansionCalculator, or how often to repeat the "
        f"primitive structure, such as (2, 2, 4); got {cell!r}"
    )


def _as_given(c: Configurations, given: Conditions) -> Configurations:
    """Draws of the fixed gauge, at the chemical potentials that were asked for."""
    shift = given.mu - c.conditions.mu
    moved = shift.gather(1, c.occupations.long()).sum(1) / given.kT
    return replace(c, conditions=given, log_target=c.log_target + moved)


def check_number(name: str, value, zero: bool = False) -> None:
    """Raise unless a value is a positive finite number, or zero where that is allowed.

    Raises
    ------
    TypeError
        If it is not a number.
    ValueError
        If it is negative or not finite, or zero where that is not allowed.
    """
    if not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        raise ValueError(f"{name} must be {'zero or ' * zero}positive and finite, got {value}")


def _check_count(n) -> None:
    if not isinstance(n, Integral) or isinstance(n, bool):
        raise TypeError(f"n must be a positive integer, got {n!r}; int() makes one of a number")
    if n < 1:
        raise ValueError(f"n must be a positive integer, got {n}")
