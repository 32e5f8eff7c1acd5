"""CLEASE's semi-grand canonical interface for energies that CLEASE itself refuses."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from os import PathLike
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.units import kB
from clease.montecarlo import Montecarlo
from clease.montecarlo.observers import (
    CorrelationFunctionObserver,
    LowestEnergyStructure,
    MultiStateSGCConcObserver,
    SGCObserver,
)
from clease.montecarlo.trial_move_generator import TrialMoveGenerator
from tqdm import tqdm

from clease_nn.conditions import Conditions
from clease_nn.energies.cluster_expansion import ClusterExpansionEnergy
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.hosts.clease.checks import (
    check_chemical_potential,
    check_temperature,
    potential_value,
)
from clease_nn.hosts.clease.driver import AbstractNeuralSampler
from clease_nn.hosts.clease.evaluation import (
    EnergyAverages,
    EnergyEvaluator,
    WatchedEnergy,
)
from clease_nn.hosts.clease.guided import GuidedSystem, expansion_to_json
from clease_nn.hosts.clease.system import (
    active_lattice,
    check_on_lattice,
    energy_of,
    flips_on,
    key_of,
    parameters_of,
)
from clease_nn.io import TrainedModel
from clease_nn.lattice import Lattice
from clease_nn.sampler import ModelService, Schedule, System, plan_schedule
from clease_nn.single_chain import AbstractChain, EnergyChain, SingleChain
from clease_nn.surrogate import DelayedAcceptanceChain, Surrogate, SurrogateReport, fit_surrogate
from clease_nn.warnings import LowESSWarning

__all__ = ["EnergySampler"]

_MANY, _FEW = 40, 0.05  # energies of a run; accepted share below which it is called stuck
_EVERY = (2, 20)  # steps between neural moves where every step costs an energy
_NEED_EXPANSION = (CorrelationFunctionObserver, MultiStateSGCConcObserver, SGCObserver)


class EnergySampler(AbstractNeuralSampler):
    """Semi-grand canonical Monte Carlo of any energy, with CLEASE's interface.

    ``NeuralSGCSampler(atoms, temp, symbols)`` makes one of these where the calculator of
    ``atoms`` is not CLEASE's, or ``energy`` is given. The chain samples ``exp(-E'/kT)`` exactly,
    ``E' = E - sum_a mu_a N_a``, with chemical potentials by element:
    ``run(1000, chem_pot={"Au": 0.1})``.

    A step costs one energy: a single-site move at first; once :meth:`fit` has made a surrogate,
    a long stretch of its moves or a configuration drawn by the model. Moves of an energy that is
    a cluster expansion are compiled and cost nothing. ``energy_calls`` counts what was paid,
    ``surrogate_report`` says how good the surrogate is, ``free_energy().ness`` how good the model
    is for the energy itself; exact are all results.

    Parameters
    ----------
    atoms : ase.Atoms
        With any ASE calculator. Its numbers are changed in place, its positions never.
    temp : float
        K.
    symbols : sequence of str
        Elements that trial moves exchange, "X" for vacancies. Without ``lattice``, every atom
        that carries one of them is an active site and may carry all of them; the others stay.
    generator : TrialMoveGenerator, optional
        Other trial moves, as in CLEASE.
    observe_singlets : bool
        Also report <E> (``singlet_energy``) and the variances of the concentrations.
    energy : EnergyModel, optional
        ``energy(lattice, occupations)`` -> (batch,) eV per supercell; default
        ``CalculatorEnergy(atoms.calc)``. Give one to choose caches, relaxation and executors.
    lattice : Lattice, optional
        Active sites and species of ``atoms``, where they are not what ``symbols`` says.
    model, train, out_of_range, seed, neural_interval
        As in :class:`~clease_nn.hosts.clease.NeuralSGCSampler`. Where each step costs an energy,
        "auto" makes every twentieth step a neural move, or more where single-site moves of the
        surrogate do not forget (without one, every other).

    Raises
    ------
    TypeError, ValueError
        If the input is not what it should be; the message says what to do.

    Notes
    -----
    Observers that need correlation functions are refused. An energy that fails or is not finite
    ends the run with an error that names the configuration; atoms, averages and chain are those
    of the step before, and ``irun`` goes on from there once the cause is mended; stepping around
    the same configuration again and again would bias the averages.

    Examples
    --------
    >>> from ase.build import bulk
    >>> from ase.calculators.emt import EMT
    >>> atoms = bulk("Cu", a=3.8, cubic=True)
    >>> atoms.calc = EMT()
    >>> mc = EnergySampler(atoms, 800, ["Au", "Cu"], seed=1, neural_interval=None)
    >>> mc.run(200, chem_pot={"Au": 0.2})
    >>> averages = mc.get_thermodynamic_quantities()
    >>> averages["n_mc_steps"], round(averages["Au_conc"] + averages["Cu_conc"], 9)
    (200, 1.0)
    """

    def __init__(
        self,
        atoms: Atoms,
        temp: float,
        symbols: Sequence[str] = (),
        generator: TrialMoveGenerator | None = None,
        observe_singlets: bool = False,
        *,
        energy=None,
        lattice: Lattice | None = None,
        model: str | PathLike | TrainedModel | None = None,
        train: bool | Mapping = False,
        out_of_range: str = "warn",
        seed: int | None = None,
        neural_interval: str | float | None = "auto",
    ):
        if not isinstance(atoms, Atoms):
            raise ValueError(f"atoms must be an ase.Atoms object, got {type(atoms).__name__}")
        check_temperature(temp)
        self._configure(train, seed, neural_interval)
        self._own_calculator = atoms.calc if energy is None else None
        energy = energy_of(atoms, energy)
        if lattice is None:
            lattice = active_lattice(atoms, symbols or getattr(generator, "symbols", ()))
        check_on_lattice(atoms, lattice)
        compiled = isinstance(energy, ClusterExpansionEnergy)
        if compiled:
            energy.tables.check_lattice(lattice)
        self._energy = energy if compiled else WatchedEnergy(energy, lattice)
        self._chained_with: ClusterExpansionEnergy | None = None
        kind = System if compiled else GuidedSystem
        self._parameters = parameters_of(energy)
        self._known: tuple[np.ndarray, np.ndarray] | None = None  # structures of the last fit
        system = kind(lattice, SemiGrandCanonical(self._energy), key_of(energy, lattice))
        self._models = ModelService(system, model, out_of_range)
        self._adopt(system)
        if generator is None:
            generator = flips_on(atoms, lattice, symbols)
        self._details = bool(observe_singlets)
        self._chemical_potential: dict[str, float] | None = None
        self._begin(EnergyEvaluator(atoms, lattice, self._energy), temp, generator)
        self.symbols = list(symbols) or list(lattice.species)

    def _begin(self, evaluator: EnergyEvaluator, temp: float, generator) -> None:
        """What the constructor of ``SGCMonteCarlo`` does with a cluster expansion."""
        self.averager = EnergyAverages(evaluator)
        Montecarlo.__init__(self, evaluator, temp, generator)
        self.name = "SGCMonteCarlo"
        self.chem_pots: list[float] = []
        self.chem_pot_names: list[str] = []
        self.chem_pot_in_eci = False
        self.attach(self.averager)

    # ------------------------------------------------------------------ chemical potentials
    @property
    def chemical_potential(self) -> dict[str, float] | None:
        """Chemical potentials of elements in eV, as they were given; those left out are 0."""
        return self._chemical_potential

    @chemical_potential.setter
    def chemical_potential(self, chem_pot: Mapping[str, float]) -> None:
        check_chemical_potential(chem_pot, form="{'Au': 0.06}")
        self.evaluator.mu = self._mu(chem_pot)
        self._chemical_potential = dict(chem_pot)
        self.chem_pot_names = sorted(chem_pot)
        self.chem_pots = [float(chem_pot[name]) for name in self.chem_pot_names]
        if self.current_energy is not None:
            self.update_current_energy()

    def reset_eci(self) -> None:
        """Nothing: this energy never contains a chemical potential."""

    def _mu(self, chem_pot: Mapping[str, float]) -> np.ndarray:
        mu = np.zeros(self._lattice.n_species)
        for name, value in chem_pot.items():
            mu += potential_value(name, value) * self._axes([name])[0]
        return mu

    def _axes(self, names: Iterable[str]) -> np.ndarray:
        species = self._lattice.species
        names = list(names)
        unknown = [name for name in names if name not in species]
        if unknown:
            raise ValueError(
                f"unknown chemical potential {unknown[0]!r}: give those of the elements "
                f"{list(species)} in eV, such as chem_pot={{{species[0]!r}: 0.1}}"
            )
        if not names:
            raise ValueError(f"give at least one chemical potential, e.g. {species[0]!r}")
        return np.eye(len(species))[[species.index(name) for name in names]]

    def _names(self) -> list[str]:
        return list(self._lattice.species[1:])

    def _require_chemical_potential(self) -> None:
        if self._chemical_potential is None:
            raise ValueError(
                "no chemical potentials given; use those of the elements in eV, such as "
                f"chem_pot={{{self._lattice.species[0]!r}: 0.1}}"
            )

    # ------------------------------------------------------------------ the energy
    def _check_energy(self) -> None:
        """Refuse atoms that have moved, another calculator, and one with other parameters."""
        check_on_lattice(self.atoms, self._lattice)
        if self._own_calculator is not None and self.atoms.calc is not self._own_calculator:
            raise ValueError(
                "atoms has another calculator than when the sampler was made; make a new sampler "
                "for it"
            )
        bare = self._energy.energy if isinstance(self._energy, WatchedEnergy) else None
        now = parameters_of(bare)
        for key, value in self._parameters.items():
            if now.get(key) != value:
                raise ValueError(
                    f"the parameter {key!r} of the calculator was {value} when the sampler was "
                    f"made and is {now.get(key)}: energies computed before are kept and would mix "
                    "with others; make a new energy and a new sampler for the changed calculator"
                )

    def _energy_state(self) -> tuple:
        return (*self.evaluator.mu.tolist(), id(self.surrogate))

    def _present_conditions(self) -> Conditions:
        return self._conditions()

    def _new_chain(self, observing: bool) -> AbstractChain:
        observed = np.eye(self._lattice.n_species)
        if isinstance(self._energy, ClusterExpansionEnergy):
            return SingleChain(self._energy.tables, observed)
        if self.surrogate is None:
            return EnergyChain(self._energy, self._lattice, observed)
        return DelayedAcceptanceChain(self._energy, self.surrogate, self._lattice, observed)

    def _chain_with(self, observing: bool) -> AbstractChain:
        if self._chained_with is not self.surrogate:
            self._chains.clear()
            self._chained_with = self.surrogate
        return super()._chain_with(observing)

    def _plan(self, neural, groups, conditions, occupations) -> Schedule:
        if isinstance(self._energy, ClusterExpansionEnergy):
            pilot = self._new_chain(True)
            return self._plan_by(pilot, neural, groups, conditions, occupations)
        n_free = len(neural.free)
        if self.surrogate is None:
            reason = "every step costs one energy: every other one is a neural move"
            return Schedule(2 / n_free, reason=reason)
        cheap = copy.copy(neural)
        cheap.ensemble = SemiGrandCanonical(self.surrogate)
        cheap.rng, cheap.block_size = torch.Generator().manual_seed(0), None
        pilot = SingleChain(self.surrogate.tables, np.eye(self._lattice.n_species))
        pilot.set(conditions.kT.item(), conditions.mu[0].numpy(), groups)
        pilot.load(occupations, cheap.energy(occupations))
        plan = plan_schedule(pilot, cheap, n_free)
        if np.isfinite(plan.autocorrelation):
            every = _EVERY[1]
            reason = (
                f"single-site moves of the surrogate forget in {plan.autocorrelation:.1f} sweeps, "
                f"and there are many for one energy: a neural move every {every} steps as an "
                "insurance"
            )
        else:
            every = round(float(np.clip(1 / max(plan.acceptance, 1e-9), *_EVERY)))
            reason = (
                f"single-site moves of the surrogate do not forget, {plan.acceptance:.2g} of the "
                f"neural moves would be accepted there: one every {every} steps"
            )
        return replace(plan, interval=every / n_free, block_size=None, reason=reason)

    def _loaded_energy(self, conditions: Conditions, occupations: np.ndarray) -> float:
        return self.evaluator.get_energy()

    def _load(self, chain: AbstractChain, conditions, groups, occupations) -> None:
        chain.reference = self.averager.reference
        super()._load(chain, conditions, groups, occupations)

    @contextlib.contextmanager
    def _following(self) -> Iterator:
        yield self._remember

    def _remember(self) -> None:
        """Tell the evaluator an energy that the chain has paid for."""
        if self._fast and isinstance(self._energy, WatchedEnergy):
            chain = self._chain
            bare = chain.energy + float(self.evaluator.mu[chain.occupations].sum())
            self.evaluator.remember(chain.occupations, bare)

    def _apply(self, move) -> None:
        self.evaluator.apply_system_changes(move, keep=True)
        self._remember()

    def _update_calculator(self) -> None:
        self._remember()

    def initialize_run(self) -> None:
        """Prepare the next run; a model that is found or trained may bring a surrogate."""
        wanted = self._planned_steps and self._neural_interval is not None
        wanted = wanted and not self.bias_potentials
        if wanted and isinstance(self._energy, WatchedEnergy):
            self._models.lookup(self._present_conditions(), self._lookup_and_train())
        if isinstance(self._energy, WatchedEnergy) and not self.averager.counter:
            self._check_energy()
            self.averager.reference = self.evaluator.get_energy()
        super().initialize_run()
        self._calls_before = getattr(self._energy, "calls", 0)

    def run(
        self,
        steps: int = 10,
        call_observers: bool = True,
        chem_pot: Mapping[str, float] | None = None,
    ) -> None:
        """Reset all averages and make ``steps`` steps; arguments as in CLEASE.

        Warns
        -----
        LowESSWarning
            If hardly any step of the surrogate or the model was accepted.
        """
        super().run(steps, call_observers, chem_pot)
        if self.surrogate is None or not self._fast:
            return
        tried = self._energy.calls - self._calls_before
        if tried >= _MANY and self.num_accepted < _FEW * tried:
            self._models.warn(
                f"of {tried} energies {self.num_accepted} were accepted at {self.temperature:g} K, "
                f"mu = {self._chemical_potential} eV: what surrogate and model propose is poor "
                "there, and the averages may be those of a chain that is stuck. Fit again with "
                "this condition in the range and more max_calls, or run longer and compare",
                LowESSWarning,
            )

    # ------------------------------------------------------------------ surrogate
    def fit(
        self,
        temps: tuple[float, float],
        chem_pots: Mapping[str, tuple[float, float]],
        *,
        surrogate: Surrogate | Mapping | str | None = "auto",
        max_seconds: float | None = None,
        max_steps: int | None = None,
        seed: int = 0,
        **options: Any,
    ) -> TrainedModel:
        """Train a model over a range and use it from now on.

        An expensive energy is learnt twice: a cluster expansion, the surrogate, is fitted to some
        of its energies, and the model is trained on the surrogate. From then on runs make many
        moves of the surrogate for one energy (:class:`~clease_nn.surrogate.DelayedAcceptanceChain`)
        and neural moves, both accepted with the energy itself; samples are weighted with it. A poor
        surrogate costs energies, never exactness.

        Parameters
        ----------
        temps : (low, high)
            K.
        chem_pots : mapping of str to (low, high)
            eV, of elements.
        surrogate : Surrogate, mapping, "auto" or None
            One fitted before; options of :func:`~clease_nn.surrogate.fit_surrogate`; None to train
            on the energy itself, which takes millions of energies. "auto" fits a surrogate with
            the defaults unless the energy offers ``flip_energies`` or is a cluster expansion. A
            second fit goes on from the structures of the first.
        max_seconds, max_steps : optional
            Budget of the training; 120 s if neither is given.
        seed : int
        **options
            To :func:`clease_nn.training.fit`; and ``recipe``, a published way of training by name
            (:func:`clease_nn.recipes.recipe`).

        Raises
        ------
        TypeError, ValueError
            If a range is empty, inverted or names something unknown, or the surrogate is none of
            the above or of another lattice.
        """
        self._check_energy()
        self._cells(options.pop("train_on", None))  # there are none: says what to do instead
        box = self._box(temps, chem_pots)
        metadata: dict[str, Any] = {"chem_pots": list(chem_pots)}
        ensemble = None
        if isinstance(self._energy, WatchedEnergy):
            fitted = self._surrogate_for(surrogate, box, seed, options.get("progress", True))
            if fitted is None:
                self._energy.guide(None)
            else:
                self._energy.guide(fitted.energy, fitted.report)
                ensemble = SemiGrandCanonical(fitted.energy)
                metadata["surrogate"] = {
                    "energy": expansion_to_json(fitted.energy),
                    "report": asdict(fitted.report),
                }
        elif surrogate not in ("auto", None):
            raise ValueError("this energy is a cluster expansion and needs no surrogate")
        trained = self._models.fit(
            box, max_seconds=max_seconds, max_steps=max_steps, seed=seed, metadata=metadata,
            ensemble=ensemble, **options,
        )  # fmt: skip
        if ensemble is not None and options.get("progress", True):
            tqdm.write(
                "the figures of the training are those against the surrogate; NESS against the "
                "energy itself comes with free_energy() and sample()"
            )
        return trained

    def _surrogate_for(self, wish, box, seed: int, progress: bool) -> Surrogate | None:
        if isinstance(wish, Surrogate):
            wish.energy.tables.check_lattice(self._lattice)
            return wish
        if wish is None or (wish == "auto" and hasattr(self._energy, "flip_energies")):
            return None
        if wish == "auto":
            wish = {}
        if not isinstance(wish, Mapping):
            raise TypeError(
                "surrogate must be a Surrogate, a mapping with options of fit_surrogate, 'auto' "
                f"or None, got {wish!r}"
            )
        options = {"seed": seed, "progress": progress, "known": self._known, **wish}
        fitted = fit_surrogate(self._energy.tolerant, self._lattice, box, **options)
        self._known = fitted.occupations, fitted.true_energies
        return fitted

    @property
    def surrogate(self) -> ClusterExpansionEnergy | None:
        """The expansion that runs use between two energies, or None."""
        return getattr(self._energy, "surrogate", None)

    @property
    def surrogate_report(self) -> SurrogateReport | None:
        """How good the surrogate is on structures it had not seen, and what it cost; or None."""
        return getattr(self._energy, "surrogate_report", None)

    @property
    def energy_calls(self) -> int | None:
        """Energies paid for since the sampler was made; None for a cluster expansion.

        As the energy itself counts them (``CalculatorEnergy.calls``: duplicates and what a cache
        knew left out), or else the configurations asked for.
        """
        return self._energy.paid if isinstance(self._energy, WatchedEnergy) else None

    # ------------------------------------------------------------------ observers, results
    def attach(self, obs, interval: int = 1) -> None:
        """Attach an observer, to be called every ``interval`` steps.

        Raises
        ------
        TypeError
            If the observer needs a cluster expansion of CLEASE.
        """
        needs = isinstance(obs, _NEED_EXPANSION)
        if needs or (isinstance(obs, LowestEnergyStructure) and obs.track_cf):
            raise TypeError(
                f"{type(obs).__name__} needs correlation functions, which this energy does not "
                "have; averages of energy and concentrations are in "
                "get_thermodynamic_quantities()"
            )
        super().attach(obs, interval)

    @property
    def observe_singlets(self) -> bool:
        """Whether <E> and variances of the concentrations are reported."""
        return self._details

    def singlet2composition(self, avg_singlets) -> dict[str, float]:
        """There are no singlets: raises TypeError."""
        raise TypeError(
            "this energy has no singlets; concentrations are in get_thermodynamic_quantities()"
        )

    def get_thermodynamic_quantities(self, reset_eci: bool = False) -> dict[str, Any]:
        """Averages of the last run, flat scalars under CLEASE's keys.

        ``energy`` and ``sgc_energy``: <E'> in eV per supercell; ``sgc_heat_capacity``:
        Var(E')/(kB T^2), eV/K; ``temperature``, ``n_mc_steps``, ``accept_rate``;
        ``<symbol>_conc``: mean share of the active sites; ``mu_<symbol>``, eV; with
        ``observe_singlets`` also ``singlet_energy`` = <E> and ``var_<symbol>_conc``;
        ``energy_calls`` since the sampler was made; then what the observers report.

        Parameters
        ----------
        reset_eci : bool
            As in CLEASE; nothing here.
        """
        averages = self.averager
        mean = float(averages.energy.mean)
        species, mu = self._lattice.species, self.evaluator.mu
        out: dict[str, Any] = {
            "energy": mean,
            "sgc_energy": mean,
            "sgc_heat_capacity": averages.energy_variance / (kB * self.temperature**2),
            "temperature": self.temperature,
            "n_mc_steps": averages.counter,
            "accept_rate": self.current_accept_rate,
        }
        if self._details and averages.counter:
            out["singlet_energy"] = mean + float(mu @ averages.shares) * self._lattice.n_sites
        out.update({f"{s}_conc": float(x) for s, x in zip(species, averages.shares, strict=True)})
        if self._details and averages.counter:
            var = averages.share_variances
            out.update({f"var_{s}_conc": float(x) for s, x in zip(species, var, strict=True)})
        out.update({f"mu_{s}": float(x) for s, x in zip(species, mu, strict=True)})
        if self.energy_calls is not None:
            out["energy_calls"] = self.energy_calls
        if self.surrogate is not None:
            report = self.surrogate_report
            heldout = report.heldout_rmse
            out["surrogate_error"] = report.loo_rmse if math.isnan(heldout) else heldout
        out.update(self.meta_info)
        for _, observer in self.observers:
            out.update(observer.get_averages())
        return out
