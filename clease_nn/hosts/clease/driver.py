"""Running a chain behind CLEASE's interface: blocks of steps, observers, neural moves."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace

import numpy as np
import torch
from ase.data import atomic_numbers
from clease.datastructures import MCStep, SystemChange

from clease_nn.conditions import Conditions
from clease_nn.hosts.clease.checks import check_count
from clease_nn.hosts.clease.constraints import read_generator, single_trial_move
from clease_nn.hosts.clease.modelled import AbstractModelledSampler
from clease_nn.hosts.clease.observers import BlockAverager, corrected, feed, original
from clease_nn.sampler import NeuralMoves, Schedule, System, plan_schedule
from clease_nn.sampler.arguments import check_train
from clease_nn.sampler.orders import obstacle
from clease_nn.single_chain import AbstractChain, SingleChain
from clease_nn.warnings import NoModelWarning

__all__ = ["AbstractNeuralSampler"]

_LONGEST_BLOCK = 1_000_000  # steps; Ctrl-C is heard between blocks
_REPLAY = 4096  # steps made before observers that look closely see them
_REPLAY_BELOW = 16  # interval of such observers
_UNDO = 1000  # changes that CLEASE can take back


class AbstractNeuralSampler(AbstractModelledSampler):
    """The chain behind CLEASE's interface, whatever its energy.

    A subclass calls :meth:`_configure` and :meth:`_adopt` before the constructor of CLEASE.
    """

    # ------------------------------------------------------------------ what a host says
    @abstractmethod
    def _energy_state(self) -> tuple:
        """What E' depends on, the temperature left out; compared to notice changes."""

    @abstractmethod
    def _present_conditions(self) -> Conditions:
        """The condition that E' belongs to."""

    @abstractmethod
    def _new_chain(self, observing: bool) -> AbstractChain:
        """A chain of the present energy; ``observing``: its ``values`` are wanted."""

    @abstractmethod
    def _loaded_energy(self, conditions: Conditions, occupations: np.ndarray) -> float:
        """E' of the present configuration in eV, without biases."""

    @abstractmethod
    def _following(self) -> AbstractContextManager:
        """While blocks are run; yields a function to be called when the atoms have changed."""

    @abstractmethod
    def _update_calculator(self) -> None:
        """Let the calculator follow the atoms."""

    def _apply(self, move: list[SystemChange]) -> None:
        """Bring atoms and calculator to what the chain has accepted."""
        self.evaluator.apply_system_changes(move, keep=True)
        self.evaluator.get_energy()

    @abstractmethod
    def _plan(self, neural: NeuralMoves, groups, conditions, occupations) -> Schedule:
        """How often to make neural moves at a condition."""

    # ------------------------------------------------------------------ set up
    def _configure(self, train, seed: int | None, neural_interval) -> None:
        if neural_interval not in ("auto", None) and not (
            isinstance(neural_interval, (int, float)) and 0 < neural_interval < np.inf
        ):
            raise ValueError(
                "neural_interval must be 'auto', None or a positive number of sweeps, got "
                f"{neural_interval!r}"
            )
        check_train(train)
        self._rng_root = None if seed is None else np.random.SeedSequence(seed)
        self._neural_interval = neural_interval
        self._train = train
        self._moves: NeuralMoves | None = None
        self._planned_steps = 0
        self._ready = False
        self._seen: tuple | None = None
        self._resets = 0
        self._replay_length = _REPLAY

    def _adopt(self, system: System) -> None:
        super()._adopt(system)
        self._numbers = np.array([atomic_numbers[s] for s in system.lattice.species])
        self._chains: dict[bool, AbstractChain] = {}
        self._schedules: dict = {}
        self._planned_for = None

    # ------------------------------------------------------------------ running
    def run(
        self,
        steps: int = 10,
        call_observers: bool = True,
        chem_pot: Mapping[str, float] | None = None,
    ) -> None:
        """Reset all averages and make ``steps`` steps; arguments as in CLEASE."""
        check_count("steps", steps, 0)
        if chem_pot is None:
            self._require_chemical_potential()
        else:
            self.chemical_potential = chem_pot
        self.reset()
        self._planned_steps = int(steps)
        self.initialize_run()
        steps -= self._run_blocks(steps, call_observers) if self._fast else 0
        if not self.quit:
            for _ in self._irun(steps, call_observers=call_observers):
                pass

    def irun(self, steps: int, call_observers: bool = True) -> Iterator[MCStep]:
        """Iterate over steps; averages go on from where they are."""
        check_count("steps", steps, 0)
        self._planned_steps = int(steps)
        return super().irun(steps, call_observers)

    def initialize_run(self) -> None:
        """Prepare the next run: energies, random numbers, trial moves, neural schedule."""
        self._check_energy()
        if self.mean_energy is None:
            reference = self.evaluator.get_energy()
            self.mean_energy = BlockAverager(reference)
            self.energy_squared = BlockAverager(reference)
        super().initialize_run()
        for _, observer in self.observers:
            if observer is not original(observer):
                observer.synchronize()
        self._prepare()

    def reset_averagers(self) -> None:
        """Clear all averages, as every change of the temperature does."""
        self._resets += 1
        super().reset_averagers()

    def attach(self, obs, interval: int = 1) -> None:
        """Attach an observer, to be called every ``interval`` steps; its results are corrected."""
        super().attach(obs, interval)
        self.observers[-1] = (interval, corrected(obs, self))

    def iter_observers(self):
        """The attached observers as they were given."""
        return (original(observer) for _, observer in self.observers)

    def _chain_with(self, observing: bool) -> AbstractChain:
        if observing not in self._chains:
            self._chains[observing] = self._new_chain(observing)
        return self._chains[observing]

    def _state(self) -> tuple:
        """What a step depends on and a user may change while a run is under way."""
        constraints = getattr(self.generator, "_constraints", ())
        trials = (id(self.generator), *map(id, constraints), None, *map(id, self.bias_potentials))
        return trials, self._energy_state(), self.kT

    def _follow(self) -> None:
        """Act on changes made since the last step, as CLEASE does; no average is touched."""
        state = self._state()
        if state == self._seen:
            return
        trials, energy, _ = self._seen or (None, None, None)
        if state[1] != energy:
            self._check_energy()
        if state[:2] != (trials, energy):
            self.update_current_energy()
        self._prepare(under_way=True)

    def _prepare(self, under_way: bool = False) -> None:
        state = self._state()
        trials, energy, _ = (under_way and self._seen) or (None, None, None)
        self._seen = None
        if state[0] != trials:
            self._trials = read_generator(self.generator, self.atoms, self._lattice)
        moves = self._trials
        biased = bool(self.bias_potentials)
        self._fast = moves.compiled and not biased
        self._moves, self._last_move = None, None
        if state[:2] == (trials, energy):  # the temperature alone
            conditions = Conditions([self.temperature], self._now.mu)
            if self._fast:
                self._chain.set(self.kT, conditions.mu[0].numpy(), moves.groups)
        else:
            conditions = self._present_conditions()
            chain_seed, proposal_seed = self._spawn().spawn(2)
            self._proposal_rng = torch.Generator()
            self._proposal_rng.manual_seed(int(proposal_seed.generate_state(1)[0]))
            if self._fast:
                self._chain = self._chain_with(self.averager.observe_singlets)
                occupations = self._lattice.occupations(self.atoms)
                self._load(self._chain, conditions, moves.groups, occupations)
                self._chain.seed(chain_seed)
                self._chain.clear()
        self._now = conditions
        if not under_way:
            self._schedule = None
        self._prepare_neural(moves, conditions, biased, under_way)
        self._seen, self._ready = state, True

    def _prepare_neural(self, moves, conditions, biased: bool, under_way: bool) -> None:
        """Neural moves at the present conditions, if there are any.

        While a run is under way its schedule is kept, and no file is searched for models.
        """
        if self._neural_interval is None or not self._planned_steps:
            return
        if biased or moves.groups is None:
            if self._models.at_hand is not None:
                reason = "bias potentials are attached" if biased else moves.reason
                self._models.warn(f"no neural moves are made: {reason}", NoModelWarning)
            return
        trained = self._model_for(conditions, under_way)
        n_free = int(moves.groups.free.sum())
        if trained is None or n_free == 0:
            return
        reason = obstacle(trained.model, self._lattice, moves.groups.reachable.sum(1) > 1)
        if reason is not None:
            self._models.warn(f"no neural moves are made: {reason}", NoModelWarning)
            return
        neural = NeuralMoves(
            trained.model, self._ensemble, self._lattice, conditions, self._proposal_rng,
            reachable=moves.groups.reachable, batch_size=8 if under_way else 128,
        )  # fmt: skip
        if self._schedule is None:
            occupations = self._lattice.occupations(self.atoms)
            schedule = self._schedule_for(neural, moves.groups, conditions, occupations)
            every = schedule.steps(n_free)
            if every > self._planned_steps:
                few = f"; none in {self._planned_steps} steps, since one is due every {every}"
                schedule = replace(schedule, reason=schedule.reason + few)
            self._schedule, self._every = schedule, every
        neural.block_size = self._schedule.block_size
        neural.expected = self._planned_steps // self._every
        if neural.expected:
            self._moves = neural

    def _load(self, chain: AbstractChain, conditions, groups, occupations) -> None:
        chain.set(conditions.kT.item(), conditions.mu[0].numpy(), groups)
        chain.load(occupations, self._loaded_energy(conditions, occupations))

    def _schedule_for(self, neural, groups, conditions, occupations) -> Schedule:
        if self._neural_interval != "auto":
            return Schedule(
                float(self._neural_interval),
                reason=f"neural_interval={self._neural_interval} sweeps was asked for",
            )
        if self._planned_for is not neural.model:
            self._schedules.clear()
            self._planned_for = neural.model
        mu = conditions.mu[0].tolist()
        length = self._planned_steps.bit_length()
        key = (length, conditions.temperature.item(), *mu, groups.reachable.tobytes())
        if key not in self._schedules:
            self._schedules[key] = self._plan(neural, groups, conditions, occupations)
        return self._schedules[key]

    def _plan_by(self, pilot: SingleChain, neural, groups, conditions, occupations) -> Schedule:
        """A schedule from a pilot run of a compiled chain."""
        self._load(pilot, conditions, groups, occupations)
        trial = copy.copy(neural)
        trial.rng = torch.Generator().manual_seed(0)
        trial.block_size = None
        return plan_schedule(pilot, trial, len(neural.free), self._planned_steps)

    @property
    def neural_schedule(self) -> Schedule | None:
        """How often the last run made neural moves and why (``reason``, in words).

        None where no model served the condition. An interval longer than the run means that it
        made single-site moves alone.
        """
        return self._schedule

    # ------------------------------------------------------------------ steps
    def _run_blocks(self, steps: int, call_observers: bool) -> int:
        """Make steps as long as the chain can make them; how many it was."""
        done = 0
        try:
            with self._following() as changed:
                while done < steps and not self.quit:
                    self._follow()
                    if not self._fast:
                        break
                    done += self._next_block(steps - done, call_observers, changed)
        except BaseException:
            self._seen = None  # the chain may be ahead of the atoms
            raise
        return done

    def _next_block(self, steps: int, call_observers: bool, changed) -> int:
        """At most ``steps`` steps, up to where somebody looks; how many it was."""
        watching = [(k, o) for k, o in self.observers if call_observers and o is not self.averager]
        now, every = self.current_step, self._every if self._moves is not None else 0
        neural_at = now + every - now % every if every else np.inf
        close = any(k < _REPLAY_BELOW for k, _ in watching)
        if close and isinstance(self._chain, SingleChain):
            n = int(min(steps, self._replay_length, neural_at - 1 - now))
            if n:
                return self._replay(n, watching, call_observers, changed)
        stop = min([now + steps, now + _LONGEST_BLOCK, *(now + k - now % k for k, _ in watching)])
        stop = int(min(stop, neural_at))
        due = [o for k, o in watching if stop % k == 0]
        self._block(stop, neural_at <= stop, bool(due), call_observers, changed)
        if due:
            accepted, self.trial_move = self._last_move
            step = MCStep(stop, self.current_energy, accepted, self.trial_move)
            for observer in due:
                observer.observe_step(step)
        return stop - now

    def _block(self, stop: int, neural: bool, due: bool, call_observers: bool, changed) -> None:
        """Steps up to ``stop``, the last of which may be a neural move or be observed.

        Whatever happens, the steps made are counted and the atoms are those of the chain.
        """
        chain = self._chain
        n = stop - self.current_step
        self._last_move = None
        try:
            if neural:
                chain.run(n - 1)
                self._last_move = self._neural_move()
                chain.add_current()
            elif due:
                self._last_move = self._chain_steps(n)
            else:
                chain.run(n)
        finally:
            self.num_accepted += chain.accepted + bool(
                neural and self._last_move and self._last_move[0]
            )
            self._write_numbers()
            changed()
            self.current_step += chain.steps
            self.current_energy = chain.energy
            n, r, (total, squares) = chain.steps, chain.reference, chain.sums[:2]
            self.mean_energy.add_sum(total + n * r, n)
            self.energy_squared.add_sum(squares + 2 * r * total + n * r * r, n)
            if call_observers:
                feed(self.averager, chain.steps, chain.sums)
            chain.clear()

    def _replay(self, n: int, watching, call_observers: bool, changed) -> int:
        """Make ``n`` single-site steps and then show them to the observers one by one.

        Ends early, with the chain taken back, where an observer stops the run or changes what
        the steps depend on. Returns the number of steps shown.
        """
        chain, numbers = self._chain, self.atoms.numbers
        sites, atomic = self._lattice.site_indices.tolist(), self._numbers.tolist()
        log = chain.run_logged(n)
        energies = log.energies.tolist()
        done = cleared = 0
        resets, state = self._resets, self._seen
        try:
            for (site, old, new), energy in zip(log.moves.tolist(), energies, strict=True):
                accepted = old != new
                if accepted:
                    numbers[sites[site]] = atomic[new]
                    changed()
                    self.num_accepted += 1
                done += 1
                self.current_step += 1
                self.current_energy = energy
                self.mean_energy.add_sum(energy, 1)
                self.energy_squared.add_sum(energy * energy, 1)
                step = None
                for k, observer in watching:
                    if self.current_step % k == 0:
                        if step is None:
                            self.trial_move = [self._change(site, old, new, "flip_move")]
                            step = MCStep(self.current_step, energy, accepted, self.trial_move)
                        observer.observe_step(step)
                if step is None:
                    continue
                if self._resets != resets:
                    resets, cleared = self._resets, done
                if self.quit or self._state() != state:
                    break
        finally:
            if call_observers:
                feed(self.averager, done - cleared, log.sums(done) - log.sums(cleared))
            chain.clear()
            self._replay_length = min(_REPLAY, 2 * self._replay_length)
            if done < n:
                self._replay_length = max(16, done)
                chain.load(self._lattice.occupations(self.atoms), self.current_energy)
        return done

    def _mc_step(self, call_observers: bool = True) -> MCStep:
        """One step, after which atoms and calculator are up to date."""
        if not self._ready:
            self.initialize_run()
        self._follow()
        self.current_step += 1
        try:
            accepted, move = self._single_step()
        except BaseException:
            self.current_step -= 1  # it was not made
            self._seen = None
            raise
        self.trial_move = move
        step = MCStep(self.current_step, self.current_energy, accepted, move)
        if call_observers:
            self.execute_observers(step)
        return step

    def _single_step(self) -> tuple[bool, list[SystemChange]]:
        if self._moves is not None and self.current_step % self._every == 0:
            accepted, move = self._neural_move()
            self._write_numbers()
            self._update_calculator()
            self.num_accepted += accepted
        elif self._fast:
            accepted, move = self._chain_steps()
            self.current_energy = self._chain.energy
            self._chain.clear()
            if accepted:
                self._apply(move)
            self.num_accepted += accepted
        else:
            accepted, move = self._host_step()
        return accepted, move

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
        species, index = self._lattice.species, self._lattice.site_indices
        return SystemChange(int(index[site]), species[old], species[new], name)

    def _chain_steps(self, n: int = 1) -> tuple[bool, list[SystemChange]]:
        """Steps of the chain: whether the last was accepted, and the changes it made."""
        changes = self._chain.advance(n)
        name = "flip_move" if len(changes) == 1 else "chain_move"
        accepted = any(old != new for _, old, new in changes)
        return accepted, [self._change(*change, name) for change in changes]

    def _write_numbers(self) -> None:
        if self._fast:
            occupations = self._chain.occupations
            self.atoms.numbers[self._lattice.site_indices] = self._numbers[occupations]
