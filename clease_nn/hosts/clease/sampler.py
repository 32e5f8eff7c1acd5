"""Drop-in for CLEASE's semi-grand canonical Monte Carlo with neural moves."""

from __future__ import annotations

import copy
import gc
import random
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.data import atomic_numbers
from ase.units import kB
from clease.calculator import Clease
from clease.datastructures import MCStep, SystemChange
from clease.montecarlo import SGCMonteCarlo
from clease.montecarlo.sgc_montecarlo import InvalidChemicalPotentialError

from clease_nn import thermodynamics
from clease_nn.conditions import ConditionRange, Conditions
from clease_nn.configurations import Configurations
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.hosts.clease import extraction
from clease_nn.hosts.clease.chemical_potentials import (
    axes,
    chem_pot_from_mu,
    mu_from_chem_pot,
)
from clease_nn.hosts.clease.constraints import read_generator, single_trial_move, species_indices
from clease_nn.hosts.clease.observers import (
    BlockAverager,
    corrected,
    feed,
    original,
    updated_on_demand,
)
from clease_nn.io import TrainedModel
from clease_nn.sampler import NeuralMoves, Schedule, find_model, plan_schedule, resample_chain
from clease_nn.sampling import sample
from clease_nn.single_chain import SingleChain
from clease_nn.statistics import Estimate
from clease_nn.training import fit
from clease_nn.warnings import NoModelWarning, OutOfRangeWarning

__all__ = ["NeuralSGCSampler"]

_LONGEST_BLOCK = 1_000_000  # steps; Ctrl-C is heard between blocks
_UNDO = 1000  # changes that CLEASE can take back
_EXPANSIONS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


class NeuralSGCSampler(SGCMonteCarlo):
    """CLEASE's ``SGCMonteCarlo``, faster, with neural moves and absolute free energies.

    The chain samples ``exp(-E'/kT)`` exactly, E' being the energy that CLEASE reports: with
    ``chem_pot={"c1_0": x}``, ``E' = E - N x <phi_0>``, N the number of all atoms. Single-site
    moves have CLEASE's distribution and run in compiled code from one observation to the next.
    Where a trained model is at hand, every now and then the whole configuration (or a block of
    it) is redrawn by the model and accepted or rejected so that the distribution stays exact;
    such a move counts as one step. Everything of ``SGCMonteCarlo`` works unchanged.

    Parameters
    ----------
    atoms : ase.Atoms
        With a ``Clease`` calculator. Its numbers are changed in place.
    temp : float
        K.
    symbols : sequence of str
        Elements that trial moves exchange.
    generator : TrialMoveGenerator, optional
        Other trial moves. ``RandomFlip`` and ``RandomFlipWithinBasis`` are compiled; others run at
        the host's speed, without neural moves unless they derive from these two.
    observe_singlets : bool
        Also average the singlets.
    model : path or TrainedModel, optional
        Proposals for neural moves. Default: one is looked for
        (:func:`~clease_nn.sampler.find_model`); if there is none, single-site moves alone are
        made, with a ``NoModelWarning``.
    train : bool or dict
        Train a model at the first run if none is found. A dict has the arguments of :meth:`fit`;
        True means half to twice the temperature, 0.1 eV around the chemical potentials, 60 s.
    out_of_range : {"warn", "raise"}
        What to do at conditions the model was not trained for: warn once and make exact
        single-site moves, or raise ValueError.
    seed : int, optional
        Seed of all compiled and neural moves. Default: taken from Python's ``random`` at the start
        of every run, so that ``random.seed`` fixes a run as it does in CLEASE. Generators that run
        at the host's speed always use Python's ``random``.
    neural_interval : "auto", float or None
        Sweeps between neural moves, chosen by a deterministic pilot run
        (:func:`~clease_nn.sampler.plan_schedule`), given, or no neural moves at all.

    Raises
    ------
    ValueError
        If the input is not what it should be; the message says what to do.

    Notes
    -----
    Rejected moves reach observers as (i, s, s), accepted ones as the changes from state to
    state. A constraint rejects a move instead of having it drawn again. Bias potentials and
    constraints that are neither clamps nor masks are run at the host's speed without neural
    moves. Observers of CLEASE that count wrongly give right results here, in their own objects.

    Examples
    --------
    >>> from clease_nn.hosts.clease.examples import cuau_emt_atoms
    >>> atoms = cuau_emt_atoms()
    >>> random.seed(1)
    >>> mc = NeuralSGCSampler(atoms, 600, symbols=["Au", "Cu"], neural_interval=None)
    >>> mc.run(2000, chem_pot={"c1_0": 0.03})
    >>> mc.get_thermodynamic_quantities()["n_mc_steps"]
    2000
    """

    def __init__(
        self,
        atoms: Atoms,
        temp: float,
        symbols: Sequence[str] = (),
        generator=None,
        observe_singlets: bool = False,
        *,
        model: str | PathLike | TrainedModel | None = None,
        train: bool | Mapping = False,
        out_of_range: str = "warn",
        seed: int | None = None,
        neural_interval: str | float | None = "auto",
    ):
        _check_atoms(atoms)
        if out_of_range not in ("warn", "raise"):
            raise ValueError(f"out_of_range must be 'warn' or 'raise', got {out_of_range!r}")
        if neural_interval not in ("auto", None) and not (
            isinstance(neural_interval, (int, float)) and 0 < neural_interval < np.inf
        ):
            raise ValueError(
                "neural_interval must be 'auto', None or a positive number of sweeps, got "
                f"{neural_interval!r}"
            )
        self._refuse_foreign_chemical_potential(atoms)
        self._bare_eci = dict(atoms.calc.eci)
        atoms.calc.eci = dict(self._bare_eci)  # the user's own dict stays as it is
        self._read_expansion(atoms)
        if generator is None:
            if len(set(symbols)) < 2:
                raise ValueError(
                    f"at least two symbols are needed, got {list(symbols)}; this expansion has "
                    f"{list(self._lattice.species)}"
                )
            species_indices(symbols, self._lattice)
        self._offset = 0.0
        self._rng_root = None if seed is None else np.random.SeedSequence(seed)
        self._neural_interval = neural_interval
        self._out_of_range, self._train = out_of_range, train
        self._trained: TrainedModel | None = None
        self._searched: set = set()
        self._warned: set[str] = set()
        self._schedules: dict = {}
        self._moves: NeuralMoves | None = None
        self._planned_steps = 0
        self._ready = False
        super().__init__(atoms, temp, symbols, generator, observe_singlets)
        q = self.averager.quantities
        reference = float(atoms.calc.energy)
        q.energy, q.energy_sq = BlockAverager(reference), BlockAverager(reference**2)
        if model is not None:
            self._trained = self._checked(
                model if isinstance(model, TrainedModel) else TrainedModel.load(model)
            )

    # ------------------------------------------------------------------ conditions
    def _set_positive_temperature(self, value: float) -> None:
        if not (np.isfinite(value) and value > 0):
            raise ValueError(f"the temperature must be positive and finite, got {value} K")
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
        singlets, offset = self._as_singlets(chem_pot)
        self.reset_eci()
        self._chemical_potential = chem_pot
        self._fold(singlets, offset)

    @property
    def lattice(self):
        """Active sites and allowed species of the atoms."""
        return self._lattice

    @property
    def ensemble(self) -> SemiGrandCanonical:
        """Ensemble of the bare expansion, without chemical potential."""
        return self._ensemble

    def _as_singlets(self, chem_pot: Mapping[str, float]) -> tuple[dict[str, float], float]:
        """Singlet form, and what is left: ``mu_a = N/N_a sum_d x_d phi_d(a) + offset``, eV."""
        eci = self.calc.eci
        missing = [k for k in chem_pot if k.startswith("c1_") and k not in eci]
        if missing:
            raise InvalidChemicalPotentialError(
                f"the chemical potential {missing[0]} has no ECI; give the calculator all of "
                f"{sorted(chem_pot)}, with the value 0 where the expansion has none"
            )
        mu = mu_from_chem_pot(self.atoms, self._lattice, chem_pot)
        if all(k.startswith("c1_") for k in chem_pot):
            return {k: float(v) for k, v in chem_pot.items()}, 0.0
        singlets = chem_pot_from_mu(self.atoms, self._lattice, mu)
        missing = [k for k in (*singlets, "c0") if k not in eci]
        if missing:
            raise InvalidChemicalPotentialError(
                f"chemical potentials of elements need an ECI {missing[0]}; give the calculator "
                "one with the value 0, or use the singlet form {'c1_0': x}"
            )
        rest = mu - mu_from_chem_pot(self.atoms, self._lattice, singlets)
        return singlets, float(rest.mean())

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
            if name in eci and abs(eci[name] - self._bare_eci.get(name, np.inf)) < 1e-9:
                eci[name] = self._bare_eci[name]
        self.calc.update_eci(eci)

    def _conditions(self, temp: float | None = None, chem_pot: Mapping | None = None) -> Conditions:
        """One row: the present temperature and chemical potentials where none are given."""
        chem_pot = (self._chemical_potential or {}) if chem_pot is None else chem_pot
        temp = self.temperature if temp is None else temp
        mu = mu_from_chem_pot(self.atoms, self._lattice, chem_pot)
        return Conditions([float(temp)], mu[None])

    # ------------------------------------------------------------------ the expansion
    def _read_expansion(self, atoms: Atoms) -> None:
        key = tuple(sorted(self._bare_eci.items()))
        known = _EXPANSIONS.get(atoms.calc)
        if known is None or known[0] != key:
            known = (
                key,
                extraction.lattice(atoms),
                extraction.energy(atoms, self._bare_eci),
                extraction.parent_fingerprint(atoms, self._bare_eci),
            )
            _EXPANSIONS[atoms.calc] = known
        _, self._lattice, self._energy, self._parent = known
        self._ensemble = SemiGrandCanonical(self._energy)
        self._numbers = np.array([atomic_numbers[s] for s in self._lattice.species])
        functions = atoms.calc.settings.basis_functions
        self._singlet_table = np.array(
            [[f.get(s, 0.0) for s in self._lattice.species] for f in functions]
        )
        self._chains: dict[bool, SingleChain] = {}

    def _chain_with(self, singlets: bool) -> SingleChain:
        if singlets not in self._chains:
            table = self._singlet_table if singlets else None
            self._chains[singlets] = SingleChain(self._energy.tables, table)
        return self._chains[singlets]

    def _refuse_foreign_chemical_potential(self, atoms: Atoms) -> None:
        for other in gc.get_objects():
            if not issubclass(type(other), SGCMonteCarlo) or other is self:
                continue
            state = vars(other)
            if state.get("chem_pot_in_eci") and other.calc.eci is atoms.calc.eci:
                raise ValueError(
                    f"another {type(other).__name__} has folded its chemical potential "
                    f"{state.get('_chemical_potential')} into the ECIs of this calculator; call "
                    "reset_eci() on it first"
                )

    def _check_eci(self) -> None:
        """Follow ECIs that the user has changed; refuse those another sampler has changed."""
        bare = dict(self.calc.eci)
        if self.chem_pot_in_eci:
            for name, x in zip(self.chem_pot_names, self.chem_pots, strict=True):
                bare[name] += x
            if self._offset:
                bare["c0"] += self._offset
        if bare.keys() == self._bare_eci.keys() and all(
            abs(v - self._bare_eci[k]) < 1e-9 for k, v in bare.items()
        ):
            return
        self._refuse_foreign_chemical_potential(self.atoms)
        self._bare_eci = bare
        self._read_expansion(self.atoms)
        self._schedules.clear()
        if self._trained is not None:
            self._checked(self._trained)

    # ------------------------------------------------------------------ models
    def _checked(self, trained: TrainedModel) -> TrainedModel:
        """The model, or ValueError unless it was trained on this expansion."""
        meta = trained.metadata
        species = tuple(meta.get("species", self._lattice.species))
        if species != self._lattice.species:
            raise ValueError(
                f"the model was trained for the species {list(species)}, this expansion has "
                f"{list(self._lattice.species)}; train one with fit()"
            )
        parent = meta.get("parent_fingerprint")
        same = (
            parent == self._parent
            if parent is not None
            else meta.get("energy_fingerprint") == self._energy.fingerprint
        )
        if same:
            return trained
        eci = meta.get("eci")
        if eci is not None and eci.keys() == self._bare_eci.keys():
            differ = [k for k, v in eci.items() if abs(v - self._bare_eci[k]) > 1e-10]
            if differ and all(k.startswith("c1_") or k == "c0" for k in differ):
                raise ValueError(
                    f"the ECIs differ from those the model was trained on only in {differ}: "
                    "another sampler has folded a chemical potential into them; call "
                    "reset_eci() on it first, or give the calculator the bare ECIs"
                )
        raise ValueError(
            f"the model belongs to another expansion or parent lattice (model {parent}, this "
            f"{self._parent}); load the model of this expansion or train one with fit()"
        )

    def _model_for(self, conditions: Conditions) -> TrainedModel | None:
        """The model to use at one condition; None after a warning if there is none."""
        inside = self._trained is not None and self._contains(self._trained, conditions)
        if inside:
            return self._trained
        key = (conditions.temperature[0].item(), *conditions.mu[0].tolist())
        if key not in self._searched:
            self._searched.add(key)
            found = find_model(self._parent, conditions)
            if found is not None:
                self._trained = self._checked(found)
                return self._trained
        if self._trained is None and self._train:
            self.fit(**self._training_arguments())
            if self._contains(self._trained, conditions):
                return self._trained
        if self._trained is None:
            self._warn(
                "no trained model of this expansion was found: exact single-site moves are made. "
                "Train one with fit(), or give model='file.nn'",
                NoModelWarning,
            )
            return None
        box = self._trained.range
        text = (
            f"T = {key[0]:g} K, chemical potential {self._chemical_potential or {}} lies outside "
            f"the trained range ({box.temperature[0]:g} to {box.temperature[1]:g} K, "
            f"{box.low.tolist()} to {box.high.tolist()} eV along the trained axes)"
        )
        if self._out_of_range == "raise":
            raise ValueError(f"{text}; train a wider range with fit() or use out_of_range='warn'")
        self._warn(f"{text}: exact single-site moves are made there", OutOfRangeWarning)
        return None

    @staticmethod
    def _contains(trained: TrainedModel, conditions: Conditions) -> bool:
        return bool(trained.range.contains(conditions).all())

    def _warn(self, text: str, category: type[Warning]) -> None:
        if category.__name__ not in self._warned:
            self._warned.add(category.__name__)
            warnings.warn(text, category, stacklevel=4)

    def _training_arguments(self) -> dict:
        if isinstance(self._train, Mapping):
            return dict(self._train)
        given = self._chemical_potential
        given = given or {f"c1_{d}": 0.0 for d in range(len(self._singlet_table))}
        return {
            "temps": (0.5 * self.temperature, 2.0 * self.temperature),
            "chem_pots": {k: (v - 0.1, v + 0.1) for k, v in given.items()},
            "max_seconds": 60,
        }

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
            "parent_fingerprint": self._parent,
            "eci": dict(self._bare_eci),
            "chem_pots": list(chem_pots),
        }
        self._trained = replace(trained, metadata={**trained.metadata, **host})
        self._schedules.clear()
        return self._trained

    def save(self, path: str | PathLike) -> None:
        """Write the model to a file; ``model=path`` or the lookup reads it.

        Raises
        ------
        ValueError
            If there is no model.
        OSError
            If the path cannot be written.
        """
        if self._trained is None:
            raise ValueError("there is no model to save; train one with fit()")
        self._trained.save(path)

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
            chain of such draws, with repeats (see ``provenance``).

        Raises
        ------
        ValueError
            If there is no model, symbols or constraints restrict the configurations, or the
            condition is out of range with ``out_of_range="raise"``.
        """
        if int(n) != n or n < 1:
            raise ValueError(f"n must be a positive integer, got {n!r}")
        self._check_eci()
        conditions = self._conditions(temp, chem_pot)
        self._refuse_restrictions()
        with warnings.catch_warnings():
            if self._trained is None:
                warnings.simplefilter("ignore", NoModelWarning)
            trained = self._model_for(conditions) or self._trained
        if trained is None:
            raise ValueError(
                "there is no trained model of this expansion; train one with fit() or give "
                "model='file.nn'"
            )
        rng = torch.Generator().manual_seed(int(self._spawn().generate_state(1)[0]))
        extra = 0 if weighted else min(int(n), 64)
        c = sample(
            trained.model, self._ensemble, self._lattice, conditions.repeat(int(n) + extra), rng
        )
        return c if weighted else resample_chain(c, rng, int(n))

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

    # ------------------------------------------------------------------ running
    def run(
        self,
        steps: int = 10,
        call_observers: bool = True,
        chem_pot: Mapping[str, float] | None = None,
    ) -> None:
        """Reset all averages and make ``steps`` steps; arguments as in CLEASE."""
        if chem_pot is None and self.chemical_potential is None:
            raise ValueError(
                "no chemical potentials given; use chem_pot={'c1_0': x} with the singlets of the "
                "expansion, or {'Au': mu} with its elements"
            )
        if chem_pot is not None:
            self.chemical_potential = chem_pot
        self.reset()
        self._planned_steps = steps
        self.initialize_run()
        if self._fast:
            self._run_compiled(steps, call_observers)
            return
        for _ in self._irun(steps, call_observers=call_observers):
            pass

    def irun(self, steps: int, call_observers: bool = True) -> Iterator[MCStep]:
        """Iterate over steps; averages go on from where they are."""
        self._planned_steps = steps
        return super().irun(steps, call_observers)

    def initialize_run(self) -> None:
        """Prepare the next run: energies, random numbers, trial moves, neural schedule."""
        if self._chemical_potential is not None and not self.chem_pot_in_eci:
            self._fold(*self._as_singlets(self._chemical_potential))
        self._check_eci()
        if self.mean_energy is None:
            reference = self.evaluator.get_energy()
            self.mean_energy = BlockAverager(reference)
            self.energy_squared = BlockAverager(reference)
        super().initialize_run()
        for _, observer in self.observers:
            if observer is not original(observer):
                observer.synchronize()
        self._prepare()

    def attach(self, obs, interval: int = 1) -> None:
        """Attach an observer, to be called every ``interval`` steps; its results are corrected."""
        super().attach(obs, interval)
        self.observers[-1] = (interval, corrected(obs, self))

    def iter_observers(self):
        """The attached observers as they were given."""
        return (original(observer) for _, observer in self.observers)

    def _spawn(self) -> np.random.SeedSequence:
        if self._rng_root is not None:
            return self._rng_root.spawn(1)[0]
        return np.random.SeedSequence(random.getrandbits(128))

    def _prepare(self) -> None:
        moves = read_generator(self.generator, self.atoms, self._lattice)
        biased = bool(self.bias_potentials)
        self._fast = moves.compiled and not biased
        self._moves, self._schedule = None, None
        self._ready = True
        conditions = self._conditions()
        occupations = self._lattice.occupations(self.atoms)
        chain_seed, proposal_seed = self._spawn().spawn(2)
        if self._fast:
            self._chain = self._chain_with(self.observe_singlets)
            self._load(self._chain, conditions, moves.groups, occupations)
            self._chain.seed(chain_seed)
            self._chain.clear()
        if self._neural_interval is None or not self._planned_steps:
            return
        if biased or moves.groups is None:
            if self._trained is not None:
                reason = "bias potentials are attached" if biased else moves.reason
                self._warn(f"no neural moves are made: {reason}", NoModelWarning)
            return
        trained = self._model_for(conditions)
        if trained is None:
            return
        rng = torch.Generator().manual_seed(int(proposal_seed.generate_state(1)[0]))
        neural = NeuralMoves(
            trained.model, self._ensemble, self._lattice, conditions, rng,
            reachable=moves.groups.reachable,
        )  # fmt: skip
        n_free = int(moves.groups.free.sum())
        if n_free == 0:
            return
        self._schedule = self._schedule_for(neural, moves.groups, conditions, occupations, n_free)
        neural.block_size = self._schedule.block_size
        self._every = self._schedule.steps(n_free)
        neural.expected = self._planned_steps // self._every
        if neural.expected:
            self._moves = neural

    def _load(self, chain: SingleChain, conditions, groups, occupations) -> None:
        chain.set(conditions.kT.item(), conditions.mu[0].numpy(), groups)
        bias = sum(b.calculate_from_scratch(self.atoms) for b in self.bias_potentials)
        energy = self.current_energy - bias
        c = Configurations(self._lattice, conditions, torch.as_tensor(occupations)[None])
        own = -float(self._ensemble.score(c).log_target) * conditions.kT.item()
        if abs(own - energy) > 1e-6 * (1 + abs(own)):
            raise RuntimeError(
                f"the calculator says {energy} eV, its expansion {own} eV; the calculator was "
                "changed behind the sampler: make it anew with attach_calculator"
            )
        chain.load(occupations, energy)

    def _schedule_for(self, neural, groups, conditions, occupations, n_free) -> Schedule:
        if self._neural_interval != "auto":
            return Schedule(float(self._neural_interval))
        key = (
            conditions.temperature.item(), *conditions.mu[0].tolist(), groups.reachable.tobytes(),
            id(neural.model),
        )  # fmt: skip
        if key not in self._schedules:
            pilot = SingleChain(self._energy.tables, self._singlet_table)
            self._load(pilot, conditions, groups, occupations)
            trial = copy.copy(neural)
            trial.rng = torch.Generator().manual_seed(0)
            trial.block_size = None
            self._schedules[key] = plan_schedule(pilot, trial, n_free)
        return self._schedules[key]

    @property
    def neural_schedule(self) -> Schedule | None:
        """How often the last run made neural moves; None where it made none."""
        return None if self._moves is None else self._schedule

    # ------------------------------------------------------------------ steps
    def _run_compiled(self, steps: int, call_observers: bool) -> None:
        chain, every = self._chain, self._every if self._moves is not None else 0
        watching = [(k, o) for k, o in self.observers if call_observers and o is not self.averager]
        with updated_on_demand(self.calc) as changed:
            while self.current_step < steps and not self.quit:
                now = self.current_step
                stop = min([steps, now + _LONGEST_BLOCK, *(now + k - now % k for k, _ in watching)])
                neural = every and now + every - now % every <= stop
                if neural:
                    stop = now + every - now % every
                chain.run(stop - now - bool(neural))
                accepted, move = chain.accepted, None
                if neural:
                    move_accepted, move = self._neural_move()
                    accepted += move_accepted
                    chain.add_current()
                    self._write_numbers()
                elif chain.accepted:
                    self._write_numbers()
                changed()
                self.current_step = stop
                self.num_accepted += accepted
                self.current_energy = chain.energy
                self.mean_energy.add_sum(chain.sums[0], chain.steps)
                self.energy_squared.add_sum(chain.sums[1], chain.steps)
                if call_observers:
                    feed(self.averager, chain.steps, chain.sums)
                chain.clear()
                due = [o for k, o in watching if stop % k == 0]
                if due:
                    if move is None:
                        move_accepted, move = self._last_flip()
                    self.trial_move = move
                    step = MCStep(stop, self.current_energy, move_accepted, move)
                    for observer in due:
                        observer.observe_step(step)

    def _mc_step(self, call_observers: bool = True) -> MCStep:
        """One step, after which atoms and calculator are up to date."""
        if not self._ready:
            self.initialize_run()
        self.current_step += 1
        if self._moves is not None and self.current_step % self._every == 0:
            accepted, move = self._neural_move()
            self._write_numbers()
            self._update_calculator()
            self.num_accepted += accepted
        elif self._fast:
            self._chain.run(1)
            accepted, move = self._last_flip()
            self.current_energy = self._chain.energy
            self._chain.clear()
            if accepted:
                self._write_numbers()
                self._update_calculator()
            self.num_accepted += accepted
        else:
            accepted, move = self._host_step()
        self.trial_move = move
        step = MCStep(self.current_step, self.current_energy, accepted, move)
        if call_observers:
            self.execute_observers(step)
        return step

    def _host_step(self) -> tuple[bool, list[SystemChange]]:
        """A move of the user's generator at the host's speed, biases included."""
        move, allowed = single_trial_move(self.generator)
        if len(move) > _UNDO:
            raise ValueError(
                f"the generator changes {len(move)} sites at once, CLEASE can take back {_UNDO}; "
                "let it propose smaller moves"
            )
        if allowed and self._calculate_step(move):
            self._move_accepted(move)
            return True, move
        self._move_rejected(move)
        k = move[0].index if len(move) else 0
        symbol = self.atoms.symbols[k]
        return False, [SystemChange(k, symbol, symbol, "rejected_move")]

    def _neural_move(self) -> tuple[bool, list[SystemChange]]:
        """One neural move; the chain (if compiled) or the atoms follow."""
        compiled = self._fast
        before = self._chain.occupations if compiled else self._lattice.occupations(self.atoms)
        energy = self._chain.energy if compiled else self.current_energy
        before = before.copy()
        accepted, after, log_target = self._moves.step(before, -energy / self.kT)
        move = [self._change(k, before[k], after[k]) for k in np.flatnonzero(after != before)]
        if accepted:
            self.current_energy = -log_target * self.kT
            if compiled:
                self._chain.load(after, self.current_energy)
            else:
                self.atoms.numbers[self._lattice.site_indices] = self._numbers[after]
        return accepted, move or [self._change(0, before[0], before[0])]

    def _change(self, site: int, old: int, new: int, name: str = "neural_move") -> SystemChange:
        species = self._lattice.species
        return SystemChange(int(self._lattice.site_indices[site]), species[old], species[new], name)

    def _last_flip(self) -> tuple[bool, list[SystemChange]]:
        """Whether the last compiled move was accepted, and the change it made."""
        site, old, new = self._chain.last or (0, *[self._chain.occupations[0]] * 2)
        return old != new, [self._change(site, old, new, "flip_move")]

    def _write_numbers(self) -> None:
        if self._fast:
            occupations = self._chain.occupations
            self.atoms.numbers[self._lattice.site_indices] = self._numbers[occupations]

    def _update_calculator(self) -> None:
        """Let the calculator apply and keep what has changed in the atoms."""
        self.calc.update_energy()
        self.calc.clear_history()

    # ------------------------------------------------------------------ results
    def get_thermodynamic_quantities(self, reset_eci: bool = False) -> dict[str, Any]:
        """Averages of the last run under CLEASE's keys, flat scalars only.

        ``energy`` and ``sgc_energy``: <E'> in eV per supercell; ``sgc_heat_capacity``:
        Var(E')/(kB T^2), eV/K; ``temperature``, ``n_mc_steps``, ``accept_rate``, ``mu_c1_k``;
        with ``observe_singlets`` also ``singlet_energy`` = <E>, ``singlet_c1_k``,
        ``var_singlet_c1_k`` and ``<symbol>_conc``; then what the observers report.

        Parameters
        ----------
        reset_eci : bool
            Take the chemical potential out of the ECIs afterwards.
        """
        observed = self.averager
        n = observed.counter
        mean, mean_sq = observed.energy.mean, observed.energy_sq.mean
        out: dict[str, Any] = {
            "energy": float(mean),
            "sgc_energy": float(mean),
            "sgc_heat_capacity": float((mean_sq - mean**2) / (kB * self.temperature**2)),
            "temperature": self.temperature,
            "n_mc_steps": n,
            "accept_rate": self.current_accept_rate,
        }
        if self.observe_singlets and n:
            out.update(self._singlet_averages(mean))
        out.update({f"mu_{k}": x for k, x in zip(self.chem_pot_names, self.chem_pots, strict=True)})
        given = self._chemical_potential or {}
        out.update({f"mu_{k}": float(x) for k, x in given.items() if not k.startswith("c1_")})
        out.update(self.meta_info)
        for _, observer in self.observers:
            out.update(observer.get_averages())
        if reset_eci:
            self.reset_eci()
        return out

    def _singlet_averages(self, mean_energy: float) -> dict[str, float]:
        observed = self.averager
        singlets = observed.singlets / observed.counter
        squares = observed.quantities.singlets_sq / observed.counter
        names = [f"c1_{d}" for d in range(len(singlets))]
        mu_n = sum(
            x * singlets[names.index(k)]
            for k, x in zip(self.chem_pot_names, self.chem_pots, strict=True)
        )
        out = {"singlet_energy": mean_energy + len(self.atoms) * (mu_n + self._offset)}
        for name, s, s2 in zip(names, singlets, squares, strict=True):
            out[f"singlet_{name}"] = float(s)
            out[f"var_singlet_{name}"] = float(s2 - s * s)
        if len(self.symbols) == len(singlets) + 1:
            composition = self.singlet2composition(singlets)
            out.update({k: float(v) for k, v in composition.items()})
        return out


def _check_atoms(atoms) -> None:
    """Raise ValueError (as CLEASE does) unless ``atoms`` has a Clease calculator of its own."""
    remedy = "attach one with clease.calculator.attach_calculator(settings, atoms, eci)"
    if not isinstance(atoms, Atoms):
        raise ValueError(f"atoms must be an ase.Atoms object, got {type(atoms).__name__}")
    if atoms.calc is None:
        raise ValueError(f"atoms has no calculator; {remedy}")
    if not isinstance(atoms.calc, Clease):
        raise ValueError(
            f"the calculator must be clease.calculator.Clease, got {type(atoms.calc).__name__}; "
            f"{remedy}"
        )
    if atoms.calc.updater is None:
        atoms.get_potential_energy()
    if atoms.calc.atoms is not atoms:
        raise ValueError(
            "the calculator was initialised with another Atoms object and would silently follow "
            f"that one; {remedy}"
        )
