"""Drop-in for mchammer's semi-grand canonical ensemble with neural moves."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from numbers import Integral, Real
from os import PathLike

import numpy as np
import torch
from ase import Atoms
from ase.units import kB
from mchammer.ensembles import SemiGrandCanonicalEnsemble

import clease_nn
from clease_nn.conditions import Conditions
from clease_nn.hosts.mchammer.chemical_potentials import Gauge
from clease_nn.hosts.mchammer.expansion import Expansion
from clease_nn.hosts.mchammer.extraction import is_plain
from clease_nn.hosts.mchammer.modelled import AbstractModelledEnsemble, check_number
from clease_nn.io import TrainedModel
from clease_nn.sampler import ModelService, NeuralMoves, Schedule, plan_schedule
from clease_nn.sampler.arguments import check_train
from clease_nn.sampler.keyed import KeyedMoves
from clease_nn.sampler.orders import obstacle
from clease_nn.single_chain import FlipGroups, SingleChain
from clease_nn.warnings import NoModelWarning

__all__ = ["NeuralSGCEnsemble"]

_LONGEST_BLOCK = 1_000_000  # steps; Ctrl-C is heard between blocks
_COLD = 1e-300  # eV; at mchammer's zero temperature no move uphill is accepted
_RECORD = "chain"  # entry of the container's metadata
_STEP = (
    "_do_trial_step",
    "do_sgc_flip",
    "get_random_sublattice_index",
    "_get_property_change",
    "_acceptance_condition",
    "_next_random_number",
    "update_occupations",
)  # what a trial step of mchammer goes through


class NeuralSGCEnsemble(AbstractModelledEnsemble):
    """mchammer's ``SemiGrandCanonicalEnsemble``, faster, with neural moves and free energies.

    The chain samples ``exp[-(E - sum_i mu_i N_i)/kT]`` exactly. Single-site moves have mchammer's
    distribution and run in compiled code from one row of the data container to the next. Where a
    trained model is at hand, every now and then the whole configuration (or a block of it) is
    redrawn by the model and accepted or rejected so that the distribution stays exact; such a
    move counts as one trial step. Rows, observers, data containers and restarts are those of
    mchammer; a run may be gone on with by either class.

    Parameters
    ----------
    structure : ase.Atoms
        Supercell with the initial configuration.
    calculator : mchammer calculator
        The moves of a ``ClusterExpansionCalculator`` are compiled. Those of other calculators, and
        of subclasses with trial steps of their own, are made by mchammer, one by one and without
        models, with a ``NoModelWarning``.
    temperature : float
        K, or what ``boltzmann_constant`` goes with.
    chemical_potentials : mapping of str to float
        eV, of every species that trial moves exchange.
    boltzmann_constant : float
        eV/K.
    user_tag, random_seed, dc_filename, data_container_write_period
        As in mchammer. The seed fixes all moves, also across a restart.
    ensemble_data_write_interval, trajectory_write_interval
        As in mchammer.
    sublattice_probabilities : sequence of float, optional
        As in mchammer; sublattices with zero are frozen, also for neural moves.
    neighbor_sites_to_avoid : mapping, optional
        As in mchammer; neural moves that violate it are rejected.
    model : path or TrainedModel, optional
        Proposals for neural moves. Default: the model last fitted with this calculator, or one
        found by :func:`~clease_nn.sampler.find_model`; if there is none, single-site moves alone
        are made, with a ``NoModelWarning``.
    train : bool or dict
        Train a model at the first run if none is found. A dict has the arguments of :meth:`fit`;
        True means half to twice the temperature, 0.1 eV around the chemical potentials, 60 s.
    out_of_range : {"warn", "raise"}
        What to do at conditions the model was not trained for: warn once and make exact
        single-site moves, or raise ValueError.
    neural_interval : "auto", float or None
        Sweeps (one trial step a site that may change) between neural moves, chosen by a
        deterministic pilot run (:func:`~clease_nn.sampler.plan_schedule`), given, or no neural
        moves at all.

    Raises
    ------
    TypeError, ValueError
        If the input is not what it should be; the message says what to do. mchammer raises
        ValueError if the container in ``dc_filename`` belongs to other parameters.

    Notes
    -----
    ``metadata`` of the data container says how the moves were made; its entry ``"chain"`` holds
    the state of the random numbers, from which a restart goes on as if there had been none.

    Examples
    --------
    >>> from ase.build import bulk
    >>> from icet import ClusterExpansion, ClusterSpace
    >>> from mchammer.calculators import ClusterExpansionCalculator
    >>> primitive = bulk("Au")
    >>> space = ClusterSpace(primitive, [4.3], ["Ag", "Au"])
    >>> expansion = ClusterExpansion(space, [0, 0, 0.1, -0.02])
    >>> structure = primitive.repeat(3)
    >>> mc = NeuralSGCEnsemble(
    ...     structure=structure, calculator=ClusterExpansionCalculator(structure, expansion),
    ...     temperature=600, chemical_potentials={"Ag": 0, "Au": 0.8}, random_seed=1,
    ...     neural_interval=None,
    ... )
    >>> mc.run(270)
    >>> len(mc.data_container.data)
    11
    """

    def __init__(
        self,
        structure: Atoms,
        calculator,
        temperature: float,
        chemical_potentials: Mapping[str, float],
        boltzmann_constant: float = kB,
        user_tag: str | None = None,
        random_seed: int | None = None,
        dc_filename: str | None = None,
        data_container_write_period: float = 600,
        ensemble_data_write_interval: int | None = None,
        trajectory_write_interval: int | None = None,
        sublattice_probabilities: list[float] | None = None,
        neighbor_sites_to_avoid: dict[int, list[int]] | None = None,
        *,
        model: str | PathLike | TrainedModel | None = None,
        train: bool | Mapping = False,
        out_of_range: str = "warn",
        neural_interval: str | float | None = "auto",
    ):
        check_number("temperature", temperature, zero=True)
        check_number("boltzmann_constant", boltzmann_constant)
        if neural_interval not in ("auto", None) and not (
            isinstance(neural_interval, Real) and 0 < neural_interval < np.inf
        ):
            raise ValueError(
                "neural_interval must be 'auto', None or a positive number of sweeps, got "
                f"{neural_interval!r}"
            )
        check_train(train)
        self._neural_interval, self._train = neural_interval, train
        self._chain: SingleChain | None = None
        self._moves: KeyedMoves | None = None
        self._schedule: Schedule | None = None
        self._every = 0
        self._made: tuple | None = None
        self._prepared: tuple | None = None
        self._behind = self._unsorted = False
        self._expansion = Expansion.read(structure, calculator) if is_plain(calculator) else None
        if self._expansion is not None:
            self._models = ModelService(self._expansion.system, model, out_of_range)
            self._models.found = self._expansion.fitted
            inactive = [s.chemical_symbols[0] for s in calculator.sublattices.inactive_sublattices]
            self._gauge = Gauge(self.lattice, inactive)
            self._gauge.mu(chemical_potentials)
        super().__init__(
            structure=structure,
            calculator=calculator,
            temperature=temperature,
            chemical_potentials=chemical_potentials,
            boltzmann_constant=boltzmann_constant,
            user_tag=user_tag,
            random_seed=random_seed,
            dc_filename=dc_filename,
            data_container_write_period=data_container_write_period,
            ensemble_data_write_interval=ensemble_data_write_interval,
            trajectory_write_interval=trajectory_write_interval,
            sublattice_probabilities=sublattice_probabilities,
            neighbor_sites_to_avoid=neighbor_sites_to_avoid,
        )
        if self._expansion is None:
            self._leave_to_the_host(model)
        elif not self._left_to_subclass():
            groups = self._groups()
            self._gauge.mu(self.chemical_potentials, self._exchanged(groups))
            self._chain = SingleChain(self.ensemble.energy.tables)
        self._take_over()

    def _leave_to_the_host(self, model) -> None:
        """Say that mchammer makes the moves; raise if it could not."""
        kind = type(self.calculator).__name__
        if model is not None:
            raise TypeError(
                f"a model cannot serve a {kind}, whose energy is more than a cluster expansion; "
                "use a ClusterExpansionCalculator or leave the model out"
            )
        site = int(self.sublattices.active_sublattices[0].indices[0])
        numbers = self.configuration.occupations
        try:
            self._get_property_change([site], [int(numbers[site])])
        except (NotImplementedError, TypeError) as error:
            raise TypeError(
                f"a {kind} gives no energy differences (calculate_change), which trial moves "
                "need; use a ClusterExpansionCalculator"
            ) from error
        warnings.warn(
            f"the energy of a {kind} is more than a cluster expansion: mchammer makes all moves, "
            "exactly and at its own speed, without models",
            NoModelWarning,
            stacklevel=3,
        )

    def _left_to_subclass(self) -> bool:
        """Whether a subclass changes what a trial step does; says so."""
        host, cls = SemiGrandCanonicalEnsemble, type(self)
        own = [m for m in _STEP if getattr(cls, m) is not getattr(host, m)]
        if own and self._neural_interval is not None:
            warnings.warn(
                f"{cls.__name__} has a {own[0]} of its own: all moves are left to it, at "
                "mchammer's speed and without neural moves; neural_interval=None says that this "
                "is meant",
                NoModelWarning,
                stacklevel=3,
            )
        return bool(own)

    def _exchanged(self, groups: FlipGroups) -> list[str]:
        """Species that trial moves may put somewhere."""
        return [self.lattice.species[k] for k in np.unique(groups.species)]

    # ------------------------------------------------------------------ restart
    def _take_over(self) -> None:
        """Go on from the record in the container, or begin one."""
        metadata = self.data_container.metadata
        record = metadata.get(_RECORD)
        if isinstance(record, Mapping) and record.get("step") == self.step:
            self._root = int(record["seed"], 16)
            self._counts = [int(record["neural_moves"]), int(record["neural_accepted"])]
            state = record["random_state"]
            if record["schedule"] is not None and record["planned"]:
                self._schedule = Schedule(**_without_none(record["schedule"]))
        else:  # a new run, or one that mchammer has made steps in
            self._root = _digest(metadata.get("seed", self.random_seed), self.step)
            self._counts, state = [0, 0], None
        self._spawning = np.random.SeedSequence([self._root, 1])
        if self._chain is not None:
            self._chain.seed(np.random.SeedSequence([self._root, 0]))
            if state is not None:
                self._chain.random_state = state

    def _write_record(self) -> None:
        metadata = self.data_container.metadata
        metadata["clease_nn"] = clease_nn.__version__
        if self._chain is None:
            metadata["method"] = "Metropolis chain, moves of mchammer"
            return
        neural = self._counts[0] > 0
        metadata["method"] = "Metropolis chain, compiled single-site moves" + (
            " and neural moves" if neural else ""
        )
        metadata[_RECORD] = {
            "step": int(self.step),
            "seed": f"{self._root:x}",
            "random_state": self._chain.random_state,
            "schedule": None if self._schedule is None else _plain(asdict(self._schedule)),
            "planned": self._neural_interval == "auto",
            "neural_moves": self._counts[0],
            "neural_accepted": self._counts[1],
        }

    def write_data_container(self, outfile) -> None:
        """Write rows, parameters and the state of the chain to a file, as mchammer does."""
        self._synchronize()
        self._write_record()
        super().write_data_container(outfile)

    def _finalize(self) -> None:
        super()._finalize()
        self._write_record()

    # ------------------------------------------------------------------ running
    def run(self, number_of_trial_steps: int) -> None:
        """Sample for a number of trial steps; whatever ends it early leaves a consistent state.

        Raises
        ------
        TypeError
            If ``number_of_trial_steps`` is not an integer.
        ValueError
            If the condition is out of the model's range with ``out_of_range="raise"``.
        """
        if isinstance(number_of_trial_steps, int) and number_of_trial_steps > 0:
            self._prepare()
        try:
            super().run(number_of_trial_steps)
        finally:
            self._synchronize()

    def _run(self, number_of_trial_steps: int) -> None:
        """Make trial moves up to the next observation."""
        if self._chain is None:
            super()._run(number_of_trial_steps)
            return
        if self._prepared != self._present():
            self._synchronize()
            self._prepare()
        last = self.step + number_of_trial_steps
        every = self._every if self._moves is not None else 0
        while self.step < last:
            neural_at = self.step + every - self.step % every if every else np.inf
            stop = int(min(last, self.step + _LONGEST_BLOCK, neural_at))
            self._block(stop, stop == neural_at)

    def _block(self, stop: int, neural: bool) -> None:
        """Steps up to ``stop``, the last of which may be a neural move; all or none of them."""
        chain = self._chain
        before = chain.occupations.copy(), chain.random_state
        counted = self._step, self._accepted_trials, list(self._counts)
        self._behind = True
        try:
            chain.clear()
            chain.run(stop - self._step - neural)
            accepted = chain.accepted
            if neural:
                accepted += self._neural_move(stop // self._every)
            self._accepted_trials += accepted
            self._step = stop
        except BaseException:
            chain.load(before[0], 0.0)
            chain.random_state = before[1]
            self._step, self._accepted_trials, self._counts = counted
            raise

    def _neural_move(self, number: int) -> bool:
        """One neural move of the chain; whether it was accepted."""
        kT = self._moves.conditions.kT.item()
        before = self._chain.occupations.copy()
        log_target = -self._moves.energy(before) / kT
        accepted, after, _ = self._moves.move(number, before, log_target)
        if accepted:
            self._chain.load(after, 0.0)
        self._counts[0] += 1
        self._counts[1] += int(accepted)
        return accepted

    def _synchronize(self) -> None:
        """Bring configuration manager and calculator to where the chain is."""
        self._show()
        if self._unsorted:
            self.configuration.set_occupations(self.configuration.occupations)
            self._unsorted = False

    def _show(self) -> None:
        """Bring what a row and observers look at to where the chain is.

        The manager's lists of sites by species are not among it: they cost a hundred times what
        the rest does, and only mchammer's own swaps read them.
        """
        if self._behind:
            numbers = self.configuration.occupations
            numbers[self.lattice.site_indices] = self._expansion.numbers[self._chain.occupations]
            self._unsorted = True
            self.configuration._occupations[:] = numbers
            self.calculator.set_occupations(numbers)
            self._behind = False

    def _observe(self, step: int) -> None:
        intervals = [self._ensemble_data_write_interval, self._trajectory_write_interval]
        if any(step % k == 0 for k in (*intervals, *(o.interval for o in self.observers.values()))):
            self._show()
        super()._observe(step)

    def _occupations(self, numbers: np.ndarray) -> np.ndarray:
        """(sites,) species of the active sites."""
        equal = numbers[self.lattice.site_indices][:, None] == self._expansion.numbers
        return equal.argmax(1).astype(np.int8)

    # ------------------------------------------------------------------ set up
    def _present(self) -> tuple:
        """What the moves depend on and may change between two rows."""
        return self.temperature, tuple(self.chemical_potentials.items())

    def _prepare(self) -> None:
        """Trial moves, condition and neural schedule as they are now."""
        if self._chain is None:
            return
        groups = self._groups()
        mu = self._gauge.mu(self.chemical_potentials, self._exchanged(groups))
        kT = max(self.temperature * self.boltzmann_constant, _COLD)
        self._chain.set(kT, mu, groups)
        present = self._occupations(self.configuration.occupations)
        if self._prepared is None or not np.array_equal(self._chain.occupations, present):
            self._chain.load(present, 0.0)
        self._moves, self._prepared = None, self._present()
        if self._neural_interval is not None and groups.free.any() and self.temperature > 1e-16:
            self._look_up(groups)

    def _look_up(self, groups: FlipGroups) -> None:
        """Make neural moves if there is a model for the condition, or say that there is none."""
        conditions = self._fixed(self._given(None, None))
        trained = self._models.lookup(conditions, self._on_demand())
        if trained is None:
            self._models.complain(conditions)
            return
        reason = obstacle(trained.model, self.lattice, groups.reachable.sum(1) > 1)
        if reason is not None:
            self._models.warn(f"no neural moves are made: {reason}", NoModelWarning)
        else:
            self._adopt(trained, conditions, groups)

    def _adopt(self, trained: TrainedModel, conditions: Conditions, groups: FlipGroups) -> None:
        """Make neural moves with a model from now on."""
        n_free = int(groups.free.sum())
        options = {
            "reachable": groups.reachable,
            "forbidden": groups.forbidden if len(groups.avoid) else None,
        }
        parts = trained.model, self.ensemble, self.lattice, conditions
        if self._neural_interval != "auto":
            reason = f"neural_interval={self._neural_interval} sweeps was asked for"
            self._schedule = Schedule(float(self._neural_interval), reason=reason)
        elif self._schedule is None:
            pilot = SingleChain(self.ensemble.energy.tables, np.eye(self.lattice.n_species))
            pilot.set(conditions.kT.item(), conditions.mu[0].numpy(), groups)
            moves = NeuralMoves(*parts, torch.Generator().manual_seed(0), **options)
            present = self._chain.occupations.copy()
            pilot.load(present, moves.energy(present))
            self._schedule = plan_schedule(pilot, moves, n_free)
        block_size, self._every = self._schedule.block_size, self._schedule.steps(n_free)
        seed = (self._root << 32) + self._every  # another interval would number moves anew
        arrays = conditions.temperature, conditions.mu, groups.reachable, groups.avoid_pointer
        key = (seed, block_size, *(np.asarray(a).tobytes() for a in (*arrays, groups.avoid)))
        made_for, moves = self._made or (None, None)
        if made_for != key or moves.model is not trained.model:  # else keep what is drawn ahead
            moves = KeyedMoves(*parts, seed, block_size=block_size, **options)
        self._made, self._moves = (key, moves), moves

    @property
    def neural_schedule(self) -> Schedule | None:
        """How often neural moves are made and why (``reason``, in words).

        None where no model served the condition so far. The schedule is made at the first run
        and kept, also across a restart.
        """
        return self._schedule


def _digest(seed, step: int) -> int:
    """A seed for everything from what mchammer was given and the step a chain begins at."""
    seed = int(seed) if isinstance(seed, Integral) else seed
    return int.from_bytes(hashlib.sha256(f"{seed!r} {step}".encode()).digest()[:16], "big")


def _plain(values: dict) -> dict:
    """Plain JSON: None where a number is not finite."""
    return {
        k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in values.items()
    }


def _without_none(values: Mapping) -> dict:
    return {k: v for k, v in values.items() if v is not None}
