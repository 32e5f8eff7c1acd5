"""What a CLEASE sampler needs to have a model: its expansion, conditions, fit and samples."""

from __future__ import annotations

import random
import warnings
from abc import ABC
from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from typing import Any

import numpy as np
import torch
from clease.montecarlo import SGCMonteCarlo

from clease_nn import thermodynamics
from clease_nn.conditions import ConditionRange, Conditions
from clease_nn.configurations import Configurations
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.hosts.clease.checks import check_chemical_potential, check_count, check_temperature
from clease_nn.hosts.clease.chemical_potentials import axes
from clease_nn.hosts.clease.constraints import read_generator
from clease_nn.hosts.clease.expansion import (
    Expansion,
    check_model,
    refuse_foreign_chemical_potential,
)
from clease_nn.io import TrainedModel
from clease_nn.lattice import Lattice
from clease_nn.sampler import draw_chain
from clease_nn.sampling import sample
from clease_nn.statistics import Estimate
from clease_nn.training import fit
from clease_nn.warnings import OutOfRangeWarning

__all__ = ["AbstractModelledSampler"]


class AbstractModelledSampler(SGCMonteCarlo, ABC):
    """An ``SGCMonteCarlo`` that knows its bare expansion and may have a model of it.

    A subclass sets ``_shelf``, ``_train``, ``_offset`` = 0 and ``_rng_root`` and calls
    :meth:`_adopt` before the constructor of CLEASE.
    """

    _complained = False

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
    def chemical_potential(self) -> dict[str, float] | None:
        """Chemical potentials in eV as they were given: of singlets or of elements."""
        return self._chemical_potential

    @chemical_potential.setter
    def chemical_potential(self, chem_pot: Mapping[str, float]) -> None:
        check_chemical_potential(chem_pot)
        singlets, offset = self._expansion.singlets(self.atoms, chem_pot)
        self.reset_eci()
        self._chemical_potential = chem_pot
        self._fold(singlets, offset)

    @property
    def lattice(self) -> Lattice:
        """Active sites and allowed species of the atoms."""
        return self._lattice

    @property
    def ensemble(self) -> SemiGrandCanonical:
        """Ensemble of the bare expansion, without chemical potential."""
        return self._ensemble

    def _fold(self, singlets: dict[str, float], offset: float) -> None:
        """Put the chemical potential into the calculator's ECIs, as CLEASE does."""
        eci = self.calc.eci
        self._offset = offset * self._lattice.n_sites / len(self.atoms)
        if self._offset:
            eci["c0"] -= self._offset
        self._include_chemical_potential_in_eci(singlets, eci)

    def reset_eci(self) -> None:
        """Take the chemical potential out of the calculator's ECIs."""
        if not self.chem_pot_in_eci:
            return
        eci = self.calc.eci
        if self._offset:
            eci["c0"] += self._offset
        self._reset_eci_to_original(eci)
        for name in (*self.chem_pot_names, "c0"):  # exactly, not up to rounding
            if name in eci and abs(eci[name] - self._expansion.eci.get(name, np.inf)) < 1e-9:
                eci[name] = self._expansion.eci[name]
        self.calc.update_eci(eci)

    def _conditions(self, temp: float | None = None, chem_pot: Mapping | None = None) -> Conditions:
        """One row: the present temperature and chemical potentials where none are given."""
        chem_pot = (self._chemical_potential or {}) if chem_pot is None else chem_pot
        check_chemical_potential(chem_pot)
        temp = self.temperature if temp is None else temp
        check_temperature(temp)
        return self._expansion.conditions(self.atoms, temp, chem_pot)

    def _require_chemical_potential(self) -> None:
        if self._chemical_potential is None:
            raise ValueError(
                "no chemical potentials given; use chem_pot={'c1_0': x} with the singlets of the "
                "expansion, or {'Au': mu} with its elements"
            )

    # ------------------------------------------------------------------ the expansion
    def _check_eci(self) -> None:
        """Follow ECIs that the user has changed; refuse those another sampler has changed."""
        bare = dict(self.calc.eci)
        if self.chem_pot_in_eci:
            for name, x in zip(self.chem_pot_names, self.chem_pots, strict=True):
                bare[name] += x
            if self._offset:
                bare["c0"] += self._offset
        if self._expansion.has(bare):
            return
        refuse_foreign_chemical_potential(self.atoms, self)
        self._adopt(Expansion.read(self.atoms, bare))
        self._shelf.found = None
        if self._shelf.trained is not None:
            check_model(self._shelf.trained, self._expansion)

    # ------------------------------------------------------------------ models
    def _adopt(self, expansion: Expansion) -> None:
        self._expansion = expansion
        self._lattice, self._ensemble = expansion.lattice, expansion.ensemble

    def _model_for(self, conditions: Conditions, under_way: bool = False) -> TrainedModel | None:
        """The model for moves at one condition; None after a warning if there is none.

        Within a run only models at hand are used, and there is one warning.
        """
        trained = self._shelf.lookup(
            self._expansion, conditions, self._train_on_demand, search=not under_way
        )
        self._complained = under_way and self._complained
        if trained is None and not self._complained:
            self._complained = True
            self._shelf.complain(self._expansion, conditions)
        return trained

    def _train_on_demand(self) -> None:
        if isinstance(self._train, Mapping):
            self.fit(**self._train)
            return
        singlets = {f"c1_{d}": 0.0 for d in range(len(self._expansion.singlet_table))}
        self.fit(
            temps=(0.5 * self.temperature, 2.0 * self.temperature),
            chem_pots={
                k: (v - 0.1, v + 0.1) for k, v in (self._chemical_potential or singlets).items()
            },
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
        **options
            To :func:`clease_nn.training.fit`: target_ness, checkpoint, progress, ...

        Raises
        ------
        ValueError
            If a range is empty, inverted or names something unknown.
        """
        if np.shape(temps) != (2,):
            raise ValueError(
                f"temps must be a pair (low, high) in K, such as (300, 1200), got {temps!r}"
            )
        check_chemical_potential(chem_pots, "chem_pots", "{'c1_0': (-0.1, 0.1)}")
        for name, value in chem_pots.items():
            if np.shape(value) != (2,):
                raise ValueError(f"the range of {name} must be (low, high) in eV, got {value!r}")
        self._check_eci()
        if max_seconds is None and max_steps is None:
            max_seconds = 120
        box = ConditionRange(
            tuple(temps),
            [v[0] for v in chem_pots.values()],
            [v[1] for v in chem_pots.values()],
            axes(self.atoms, self._lattice, chem_pots),
        )
        trained = fit(
            self._ensemble, self._lattice, box, max_seconds=max_seconds, max_steps=max_steps,
            seed=seed, **options,
        )  # fmt: skip
        host = {
            "parent_fingerprint": self._expansion.parent,
            "eci": dict(self._expansion.eci),
            "chem_pots": list(chem_pots),
        }
        self._shelf.trained = replace(trained, metadata={**trained.metadata, **host})
        return self._shelf.trained

    @property
    def trained(self) -> TrainedModel | None:
        """The model with its range and validation, or None.

        The one fitted or given; only where there is none, the one found in a file.
        """
        return self._shelf.at_hand

    def save(self, path: str | PathLike) -> None:
        """Write the model to a file; ``model=path`` or the lookup reads it.

        Raises
        ------
        ValueError
            If there is no model.
        OSError
            If the path cannot be written.
        """
        if self.trained is None:
            raise ValueError("there is no model to save; train one with fit()")
        self.trained.save(path)

    def sample(
        self,
        n: int,
        temp: float | None = None,
        chem_pot: Mapping[str, float] | None = None,
        weighted: bool = True,
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

        Raises
        ------
        ValueError
            If there is no model, symbols or constraints restrict the configurations, or the
            condition is out of range with ``out_of_range="raise"``.
        """
        check_count("n", n, 1)
        if chem_pot is None:
            self._require_chemical_potential()
        self._check_eci()
        conditions = self._conditions(temp, chem_pot)
        self._refuse_restrictions()
        trained = self._shelf.lookup(self._expansion, conditions, self._train_on_demand)
        if trained is None:
            trained = self._shelf.at_hand
            if trained is None:
                raise ValueError(
                    "there is no trained model of this expansion; train one with fit() or give "
                    "model='file.nn'"
                )
            warnings.warn(
                f"{self._shelf.outside(self._expansion, conditions)}: drawn from a model that was "
                "not trained there; see NESS",
                OutOfRangeWarning,
                stacklevel=2,
            )
        rng = torch.Generator().manual_seed(int(self._spawn().generate_state(1)[0]))
        parts = trained.model, self._ensemble, self._lattice
        if not weighted:
            return draw_chain(*parts, conditions, int(n), rng)
        return sample(*parts, conditions.repeat(int(n)), rng, precision="auto")

    def free_energy(
        self,
        temp: float | None = None,
        chem_pot: Mapping[str, float] | None = None,
        n: int = 2000,
    ) -> Estimate:
        """-kT ln Z in eV per supercell, ``Z = sum exp(-E'/kT)`` over all configurations.

        E' is the energy as CLEASE defines it, offset included: ``E - N x <phi>`` for
        ``{"c1_0": x}`` and ``E - sum mu_a N_a`` for ``{"Au": mu}``.

        Parameters and errors as :meth:`sample`, whose weights it uses.
        """
        e = thermodynamics.free_energy(self.sample(n, temp, chem_pot))
        return Estimate(float(e.value[0]), float(e.error[0]), float(e.ness[0]))

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
