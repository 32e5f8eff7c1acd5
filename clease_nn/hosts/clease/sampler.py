"""Drop-in for CLEASE's semi-grand canonical Monte Carlo with neural moves."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.units import kB
from clease.datastructures import MCStep, SystemChange

from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.hosts.clease.checks import check_count, check_temperature
from clease_nn.hosts.clease.constraints import read_generator, single_trial_move, species_indices
from clease_nn.hosts.clease.expansion import (
    Expansion,
    check_atoms,
    check_model,
    refuse_foreign_chemical_potential,
)
from clease_nn.hosts.clease.modelled import AbstractModelledSampler
from clease_nn.hosts.clease.observers import (
    BlockAverager,
    corrected,
    feed,
    original,
    updated_on_demand,
)
from clease_nn.hosts.clease.shelf import ModelShelf
from clease_nn.io import TrainedModel
from clease_nn.sampler import NeuralMoves, Schedule, plan_schedule
from clease_nn.single_chain import SingleChain
from clease_nn.warnings import NoModelWarning

__all__ = ["NeuralSGCSampler"]

_LONGEST_BLOCK = 1_000_000  # steps; Ctrl-C is heard between blocks
_REPLAY = 4096  # steps made before observers that look closely see them
_REPLAY_BELOW = 16  # interval of such observers
_UNDO = 1000  # changes that CLEASE can take back


class NeuralSGCSampler(AbstractModelledSampler):
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
    TypeError, ValueError
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
    >>> mc = NeuralSGCSampler(atoms, 600, symbols=["Au", "Cu"], seed=1, neural_interval=None)
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
        check_atoms(atoms)
        check_temperature(temp)
        if not isinstance(model, (str, PathLike, TrainedModel, type(None))):
            raise TypeError(
                "model must be the path of a *.nn file or a TrainedModel (from fit() or "
                f"TrainedModel.load), got {model!r}"
            )
        if out_of_range not in ("warn", "raise"):
            raise ValueError(f"out_of_range must be 'warn' or 'raise', got {out_of_range!r}")
        if neural_interval not in ("auto", None) and not (
            isinstance(neural_interval, (int, float)) and 0 < neural_interval < np.inf
        ):
            raise ValueError(
                "neural_interval must be 'auto', None or a positive number of sweeps, got "
                f"{neural_interval!r}"
            )
        refuse_foreign_chemical_potential(atoms)
        atoms.calc.eci = dict(atoms.calc.eci)  # the user's own dict stays as it is
        self._adopt(Expansion.read(atoms, atoms.calc.eci))
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
        self._train = train
        self._shelf = ModelShelf(out_of_range, bool(train))
        self._moves: NeuralMoves | None = None
        self._planned_steps = 0
        self._ready = False
        self._seen: tuple | None = None
        self._resets = 0
        self._replay_length = _REPLAY
        super().__init__(atoms, temp, symbols, generator, observe_singlets)
        q = self.averager.quantities
        reference = float(atoms.calc.energy)
        q.energy, q.energy_sq = BlockAverager(reference), BlockAverager(reference**2)
        if model is not None:
            trained = model if isinstance(model, TrainedModel) else TrainedModel.load(model)
            self._shelf.trained = check_model(trained, self._expansion)

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
        steps -= self._run_compiled(steps, call_observers) if self._fast else 0
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
        if self._chemical_potential is not None and not self.chem_pot_in_eci:
            self._fold(*self._expansion.singlets(self.atoms, self._chemical_potential))
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

    def _adopt(self, expansion: Expansion) -> None:
        super()._adopt(expansion)
        self._chains: dict[bool, SingleChain] = {}
        self._schedules: dict = {}
        self._planned_for = None

    def _chain_with(self, singlets: bool) -> SingleChain:
        if singlets not in self._chains:
            table = self._expansion.singlet_table if singlets else None
            self._chains[singlets] = SingleChain(self._ensemble.energy.tables, table)
        return self._chains[singlets]

    def _state(self) -> tuple:
        """What a step depends on and a user may change while a run is under way."""
        constraints = getattr(self.generator, "_constraints", ())
        trials = (id(self.generator), *map(id, constraints), None, *map(id, self.bias_potentials))
        return trials, tuple(self.calc.eci.values()), self.kT

    def _follow(self) -> None:
        """Act on changes made since the last step, as CLEASE does; no average is touched."""
        state = self._state()
        if state == self._seen:
            return
        trials, eci, _ = self._seen or (None, None, None)
        if state[1] != eci:
            self._check_eci()
        if state[:2] != (trials, eci):
            self.update_current_energy()
        self._prepare(under_way=True)

    def _prepare(self, under_way: bool = False) -> None:
        state = self._state()
        trials, eci, _ = (under_way and self._seen) or (None, None, None)
        self._seen = None
        if state[0] != trials:
            self._trials = read_generator(self.generator, self.atoms, self._lattice)
        moves = self._trials
        biased = bool(self.bias_potentials)
        self._fast = moves.compiled and not biased
        self._moves, self._last_move = None, None
        if state[:2] == (trials, eci):  # the temperature alone
            conditions = Conditions([self.temperature], self._now.mu)
            if self._fast:
                self._chain.set(self.kT, conditions.mu[0].numpy(), moves.groups)
        else:
            conditions = self._conditions(chem_pot=None if self.chem_pot_in_eci else {})
            chain_seed, proposal_seed = self._spawn().spawn(2)
            self._proposal_rng = torch.Generator()
            self._proposal_rng.manual_seed(int(proposal_seed.generate_state(1)[0]))
            if self._fast:
                self._chain = self._chain_with(self.observe_singlets)
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
            if self._shelf.at_hand is not None:
                reason = "bias potentials are attached" if biased else moves.reason
                self._shelf.warn(f"no neural moves are made: {reason}", NoModelWarning)
            return
        trained = self._model_for(conditions, under_way)
        n_free = int(moves.groups.free.sum())
        if trained is None or n_free == 0:
            return
        neural = NeuralMoves(
            trained.model, self._ensemble, self._lattice, conditions, self._proposal_rng,
            reachable=moves.groups.reachable, batch_size=8 if under_way else 128,
        )  # fmt: skip
        if self._schedule is None:
            occupations = self._lattice.occupations(self.atoms)
            schedule = self._schedule_for(neural, moves.groups, conditions, occupations, n_free)
            every = schedule.steps(n_free)
            if every > self._planned_steps:
                few = f"; none in {self._planned_steps} steps, since one is due every {every}"
                schedule = replace(schedule, reason=schedule.reason + few)
            self._schedule, self._every = schedule, every
        neural.block_size = self._schedule.block_size
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
            pilot = SingleChain(self._ensemble.energy.tables, self._expansion.singlet_table)
            self._load(pilot, conditions, groups, occupations)
            trial = copy.copy(neural)
            trial.rng = torch.Generator().manual_seed(0)
            trial.block_size = None
            self._schedules[key] = plan_schedule(pilot, trial, n_free, self._planned_steps)
        return self._schedules[key]

    @property
    def neural_schedule(self) -> Schedule | None:
        """How often the last run made neural moves and why (``reason``, in words).

        None where no model served the condition. An interval longer than the run means that it
        made single-site moves alone.
        """
        return self._schedule

    # ------------------------------------------------------------------ steps
    def _run_compiled(self, steps: int, call_observers: bool) -> int:
        """Make steps as long as compiled code can make them; how many it was."""
        done = 0
        try:
            with updated_on_demand(self.calc) as changed:
                while done < steps and not self.quit:
                    self._follow()
                    if not self._fast:
                        break
                    done += self._compiled_part(steps - done, call_observers, changed)
        except BaseException:
            self._seen = None  # the chain may be ahead of the atoms
            raise
        return done

    def _compiled_part(self, steps: int, call_observers: bool, changed) -> int:
        """At most ``steps`` steps, up to where somebody looks; how many it was."""
        watching = [(k, o) for k, o in self.observers if call_observers and o is not self.averager]
        now, every = self.current_step, self._every if self._moves is not None else 0
        neural_at = now + every - now % every if every else np.inf
        if any(k < _REPLAY_BELOW for k, _ in watching):
            n = int(min(steps, self._replay_length, neural_at - 1 - now))
            if n:
                return self._replay(n, watching, call_observers, changed)
        stop = min([now + steps, now + _LONGEST_BLOCK, *(now + k - now % k for k, _ in watching)])
        stop = int(min(stop, neural_at))
        self._block(stop, neural_at <= stop, call_observers, changed)
        due = [o for k, o in watching if stop % k == 0]
        if due:
            accepted, move = self._last_move or self._last_flip()
            self.trial_move = move
            step = MCStep(stop, self.current_energy, accepted, move)
            for observer in due:
                observer.observe_step(step)
        return stop - now

    def _block(self, stop: int, neural: bool, call_observers: bool, changed) -> None:
        """Steps up to ``stop``, the last of which may be a neural move."""
        chain = self._chain
        chain.run(stop - self.current_step - bool(neural))
        self._last_move = None
        if neural:
            self._last_move = self._neural_move()
            chain.add_current()
        self.num_accepted += chain.accepted + bool(neural and self._last_move[0])
        self._write_numbers()
        changed()
        self.current_step = stop
        self.current_energy = chain.energy
        self.mean_energy.add_sum(chain.sums[0], chain.steps)
        self.energy_squared.add_sum(chain.sums[1], chain.steps)
        if call_observers:
            feed(self.averager, chain.steps, chain.sums)
        chain.clear()

    def _replay(self, n: int, watching, call_observers: bool, changed) -> int:
        """Make ``n`` single-site steps and then show them to the observers one by one.

        Ends early, with the chain taken back, where an observer stops the run or changes what
        the steps depend on. Returns the number of steps shown.
        """
        chain, numbers = self._chain, self.atoms.numbers
        sites, atomic = self._lattice.site_indices.tolist(), self._expansion.numbers.tolist()
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
                self.evaluator.apply_system_changes(move, keep=True)
                self.evaluator.get_energy()
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
                self.atoms.numbers[self._lattice.site_indices] = self._expansion.numbers[after]
        return accepted, move or [self._change(0, before[0], before[0])]

    def _change(self, site: int, old: int, new: int, name: str = "neural_move") -> SystemChange:
        species, index = self._lattice.species, self._lattice.site_indices
        return SystemChange(int(index[site]), species[old], species[new], name)

    def _last_flip(self) -> tuple[bool, list[SystemChange]]:
        """Whether the last compiled move was accepted, and the change it made."""
        site, old, new = self._chain.last or (0, *[self._chain.occupations[0]] * 2)
        return old != new, [self._change(site, old, new, "flip_move")]

    def _write_numbers(self) -> None:
        if self._fast:
            occupations = self._chain.occupations
            self.atoms.numbers[self._lattice.site_indices] = self._expansion.numbers[occupations]

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
