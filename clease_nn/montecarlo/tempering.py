"""Parallel tempering over a grid of temperatures and chemical potentials, with ln Z."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from tqdm.auto import tqdm

from clease_nn.conditions import ConditionRange, Conditions
from clease_nn.configurations import Configurations
from clease_nn.cost import Cost
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import Lattice
from clease_nn.montecarlo.anchors import GroundStates
from clease_nn.montecarlo.chains import Chains
from clease_nn.montecarlo.frozen import FrozenChains, frozen_chains, ground_state_bound
from clease_nn.montecarlo.grids import condition_grid, neighbours, weakest_link
from clease_nn.montecarlo.log_z import anchored, combine, differences
from clease_nn.montecarlo.moves import Move
from clease_nn.montecarlo.ordered import OrderedPhases
from clease_nn.montecarlo.result import TemperingResult
from clease_nn.montecarlo.starts import given_occupations, ordered_start, small_cells
from clease_nn.statistics import Estimate

__all__ = ["ParallelTempering"]

_HOT = 1e12  # K; stands for the rungs of the ladder, whose beta may be zero
_STARTS = ("grow", "ordered", "random")


class ParallelTempering:
    """Chains on a (T, mu) grid that exchange configurations with their neighbours.

    Neighbours along temperature and along every chemical potential exchange in turn. Two
    conditions ``i, j`` exchange with probability
    ``min(1, w_i(x_j) w_j(x_i) / (w_i(x_i) w_j(x_j)))``, ``w = exp(-(E - mu.N)/kT)``, which leaves
    every ``w`` stationary [1]_. Exchange in temperature alone was seen to miss stable phases.

    Parameters
    ----------
    ensemble : SemiGrandCanonical
    lattice : Lattice
    box : ConditionRange or Conditions
        The box that is filled with a grid, or the conditions themselves in the order of a grid
        of shape ``shape``, the last axis fastest.
    shape : tuple of int
        Number of temperatures, then of points along every axis of the chemical potentials.
    seed : int or numpy.random.SeedSequence
    sweeps_per_exchange : int
        Heat-bath sweeps between exchanges.
    jitter : bool
        Draw every condition uniformly within its cell of the grid, once and for all: the chains
        then cover the box instead of a few isotherms. Only with a ConditionRange.
    start : {"grow", "ordered", "random"}, Configurations or list of ase.Atoms
        ``"grow"``: equilibrate smaller periodic cells and copy them into the larger, in stages
        (cluster expansions on more than 32 sites that have subcells; random otherwise).
        ``"ordered"``: grow, search the ordered phases of all small cells as well, and begin
        every chain in the best of these, near coexistences from both sides
        (:func:`~clease_nn.montecarlo.starts.ordered_start`): for large cells, where chains do
        not cross from phase to phase by themselves. Configurations, or Atoms of this
        supercell: the same with these among the phases.
    grow_steps : int
        Steps of every stage of growth.

    Raises
    ------
    ValueError
        If the shape does not fit the box, the start is unknown, or given configurations do not
        fit the lattice.
    TypeError
        If the start is something else.

    References
    ----------
    .. [1] C. J. Geyer, Computing Science and Statistics 23, 156 (1991).

    Examples
    --------
    >>> from clease_nn.energies.ising import ising_energy
    >>> lattice = Lattice.square(4)
    >>> box = ConditionRange((20000, 60000), [-0.5], [0.5], [[-1.0, 1.0]])
    >>> ensemble = SemiGrandCanonical(ising_energy(lattice))
    >>> result = ParallelTempering(ensemble, lattice, box, shape=(4, 3), seed=1).run(200)
    >>> bool((abs(result.log_z.z(ensemble.enumerate(lattice).log_z(result.conditions))) < 5).all())
    True
    """

    def __init__(
        self,
        ensemble: SemiGrandCanonical,
        lattice: Lattice,
        box: ConditionRange | Conditions,
        shape: tuple[int, ...],
        seed: int | np.random.SeedSequence = 0,
        sweeps_per_exchange: int = 4,
        jitter: bool = False,
        start: str | Configurations | Sequence = "grow",
        grow_steps: int = 100,
    ):
        started = time.perf_counter()
        sequence = (
            seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
        )
        for_grid, for_chains, for_swaps, for_growth = sequence.spawn(4)
        self.shape = tuple(int(n) for n in shape)
        if sweeps_per_exchange < 1:
            raise ValueError(f"sweeps_per_exchange must be at least 1, got {sweeps_per_exchange}")
        given = None
        if isinstance(start, str):
            if start not in _STARTS:
                raise ValueError(f"start must be one of {_STARTS}, got {start!r}")
        else:
            given = given_occupations(lattice, start)
        self.sweeps_per_exchange = int(sweeps_per_exchange)
        conditions = condition_grid(box, self.shape, jitter, np.random.default_rng(for_grid))
        occupations, self._aside = None, Cost()
        self.phases: OrderedPhases | None = None
        if given is not None or start != "random":
            occupations, self._aside = _grown(
                ensemble, lattice, conditions, self.shape, grow_steps, for_growth
            )
        if given is not None or start == "ordered":
            rng = np.random.default_rng(for_growth.spawn(1)[0])
            occupations, self.phases, cost = ordered_start(
                ensemble, lattice, conditions, self.shape, rng, occupations, given
            )
            self._aside += cost
        self.chains = Chains(ensemble, lattice, conditions, occupations, seed=for_chains)
        self.rng = np.random.default_rng(for_swaps)
        self.n_grid = len(conditions)
        self._rungs = 0
        self._connect(np.arange(self.n_grid).reshape(self.shape))
        self.replica = np.arange(self.n_grid)
        self.steps = 0
        self.seconds = time.perf_counter() - started

    # ------------------------------------------------------------------ state
    @property
    def ensemble(self) -> SemiGrandCanonical:
        """Ensemble of the chains."""
        return self.chains.ensemble

    @property
    def lattice(self) -> Lattice:
        """Lattice of the chains."""
        return self.chains.lattice

    @property
    def conditions(self) -> Conditions:
        """Conditions of the grid, the last axis fastest."""
        return self.chains.conditions[: self.n_grid]

    @property
    def occupations(self) -> np.ndarray:
        """Present configurations of the grid, shape (conditions, sites), int8."""
        return self.chains.occupations[: self.n_grid]

    @property
    def configurations(self) -> Configurations:
        """Present configurations of the grid, scored."""
        return self._configurations(
            self.occupations.copy(), self.chains.energy[: self.n_grid], np.arange(self.n_grid)
        )

    @property
    def energy_evaluations(self) -> int:
        """Energies evaluated so far; a single-site energy difference counts as one."""
        return self.chains.energy_evaluations

    @property
    def cost(self) -> Cost:
        """What everything up to now has cost, growth included; seconds are of this process."""
        mine = replace(self.chains.cost, seconds=self.seconds)
        return replace(self._aside, seconds=0.0) + mine

    @property
    def swap_acceptance(self) -> np.ndarray:
        """Share of exchanges accepted along temperature and every chemical potential."""
        done = [
            sum(n * len(p[0]) for n, p in zip(attempted, both, strict=True))
            for attempted, both in zip(self._attempted, self._pairs, strict=True)
        ]
        return np.array([a.sum() / max(n, 1) for a, n in zip(self._accepted, done, strict=True)])

    def _configurations(self, occupations, energy, row) -> Configurations:
        c = Configurations(
            self.lattice,
            self.conditions[torch.as_tensor(row)],
            torch.from_numpy(occupations),
            chain=torch.as_tensor(row, dtype=torch.int64),
        )
        energy = torch.as_tensor(np.array(energy, dtype=float))
        return replace(
            c,
            energy=energy,
            log_target=self.ensemble.log_weight(c, energy),
            provenance=self.cost.noted_in({"method": "parallel tempering"}),
        )

    # ------------------------------------------------------------------ moves
    def step(self) -> tuple[torch.Tensor, Conditions]:
        """Sweeps of all chains, then exchanges along every axis of the grid.

        Returns
        -------
        occupations : Tensor, shape (conditions, sites), int8
            A copy of the present configurations of the grid.
        conditions : Conditions
            Their conditions.
        """
        started = time.perf_counter()
        self.chains.sweep(self.sweeps_per_exchange)
        self.exchange()
        self.steps += 1
        self.seconds += time.perf_counter() - started
        return torch.from_numpy(self.occupations.copy()), self.conditions

    def exchange(self) -> None:
        """Exchange neighbours along every axis, even and odd pairs in turn."""
        chains = self.chains
        counts = chains.counts()
        energy = chains.energy
        place = np.arange(len(chains))  # where the configuration now at a condition came from
        for axis, both in enumerate(self._pairs):
            i, j = both[self.steps % 2]
            if len(i) == 0:
                continue
            a, b = place[i], place[j]
            log_ratio = (chains.beta[i] - chains.beta[j]) * (energy[a] - energy[b])
            log_ratio -= ((chains.beta_mu[i] - chains.beta_mu[j]) * (counts[a] - counts[b])).sum(1)
            take = np.log1p(-self.rng.random(len(i))) < log_ratio
            place[i[take]], place[j[take]] = b[take], a[take]
            self._attempted[axis][self.steps % 2] += 1
            self._accepted[axis][self.steps % 2, : len(i)] += take
        chains.permute(place)
        self.replica = self.replica[place]

    def apply(self, move: Move, rows: np.ndarray | None = None) -> np.ndarray:
        """One exact move of the chains of the grid, or of some of them.

        Parameters
        ----------
        move : Move
            Handed their configurations, scored, each at its own condition.
        rows : ndarray of int, optional
            Conditions of the grid, each at most once, chosen without looking at the
            configurations. Default: all.

        Returns
        -------
        ndarray of bool, shape (rows,)
            Which have accepted.

        Raises
        ------
        ValueError
            If the move hands back other rows, or rows without energies.
        """
        started = time.perf_counter()
        rows = np.arange(self.n_grid) if rows is None else np.asarray(rows)
        before = self._configurations(self.occupations[rows], self.chains.energy[rows], rows)
        after, accepted = move(before)
        if len(after) != len(rows) or after.energy is None or len(accepted) != len(rows):
            raise ValueError(
                f"a move of {len(rows)} rows must hand back as many, with their energies and "
                f"which have accepted; {type(move).__name__} handed back {len(after)}"
            )
        self.chains.replace(rows, after.occupations.cpu().numpy(), after.energy.cpu().numpy())
        self._aside += Cost(energy_evaluations=float(len(rows)))
        self.seconds += time.perf_counter() - started
        return accepted.cpu().numpy().astype(bool)

    def thaw(self, margin: float = 6.0, sweeps: int = 16) -> FrozenChains:
        """Replace frozen chains by copies of the best configuration at their condition.

        It is sought among the chains and the ordered phases they began from. The copies are
        shifted by random lattice translations. Use it before the measured part of a run: the
        replacement itself does not keep the distribution.

        Returns
        -------
        FrozenChains
            The state before the replacement; ``margin`` and ``sweeps`` as in
            :func:`frozen_chains`.
        """
        candidates = self._with_phases(self.configurations)
        test = self._frozen_chains(candidates, margin, sweeps)
        rows = np.flatnonzero(test.mask)
        if len(rows):
            shift = self.lattice.random_translations(len(rows), self.rng)
            best = candidates.occupations.numpy()[test.best[rows]]
            fresh = self.chains.occupations.copy()
            fresh[rows] = np.take_along_axis(best, shift, 1)
            self.chains.occupations = fresh
        return test

    def _frozen_chains(self, candidates: Configurations, margin: float, sweeps: int):
        test = frozen_chains(
            self.ensemble,
            self.configurations,
            candidates,
            sweeps=sweeps,
            margin=margin,
            seed=np.random.SeedSequence(self.rng.integers(2**63)),
        )
        self._aside += Cost(
            energy_evaluations=test.energy_evaluations, attempts_per_site=sweeps * self.n_grid
        )
        return test

    def _with_phases(self, c: Configurations) -> Configurations:
        """Configurations and, where they are known, one of each ordered phase variant."""
        if self.phases is None:
            return c
        known = replace(self.phases.configurations, provenance={})
        return Configurations.cat([replace(c, chain=None, provenance={}), known])

    # ------------------------------------------------------------------ runs
    def run(
        self,
        n_steps: int,
        burn_in: int | None = None,
        *,
        interval: int = 1,
        log_z: bool = True,
        thaw: bool = True,
        moves: Sequence[Move] = (),
        move_interval: int = 10,
        progress: bool = False,
    ) -> TemperingResult:
        """Sample all conditions and, if asked for, determine ln Z of each.

        For ln Z the grid is extended by rungs of higher temperature up to ``beta = 0``, where ln Z
        is the logarithm of the number of configurations, at every chemical potential. Differences
        between neighbours (Bennett's acceptance ratio) are combined by least squares; where ordered
        phases are known, so is ln Z at low temperature, from the share of the time that chains
        spend in them. The errors know correlations up to a tenth of the run; where exchanges
        between phases are slower (on large cells), runs with other seeds show the true spread.

        Parameters
        ----------
        n_steps : int
            Steps that are measured, at least 10.
        burn_in : int, optional
            Steps before. Default: a quarter of ``n_steps``.
        interval : int
            Configurations are kept every so many steps; ln Z uses all steps.
        log_z : bool
        thaw : bool
            Replace frozen chains halfway through and at the end of the burn-in.
        moves : sequence of Move
            Further exact moves of all chains of the grid, such as regions or whole cells that a
            model redraws (:class:`~clease_nn.sampling.BlockMoves`).
        move_interval : int
            Steps between them.
        progress : bool
            Show a progress bar.

        Returns
        -------
        TemperingResult

        Raises
        ------
        ValueError
            If ``n_steps``, ``interval`` or ``move_interval`` is too small.

        Warns
        -----
        ChainWarning
            If neighbours hardly ever exchange, chains remain frozen, an estimate of ln Z lies
            below its rigorous lower bound by more than four standard errors, or the ladder and
            the share of the ground state do not agree on it.
        """
        if n_steps < 10:
            raise ValueError(f"n_steps must be at least 10, got {n_steps}")
        if not 1 <= interval <= n_steps:
            raise ValueError(f"interval must be between 1 and {n_steps}, got {interval}")
        if move_interval < 1:
            raise ValueError(f"move_interval must be at least 1, got {move_interval}")
        started, before = time.perf_counter(), self.seconds
        burn_in = n_steps // 4 if burn_in is None else int(burn_in)
        if log_z and self._rungs == 0:
            self._extend()
        accepted = np.zeros((len(moves), self.n_grid), dtype=np.int64)

        def advance():
            self.step()
            if moves and self.steps % move_interval == 0:
                for count, move in zip(accepted, moves, strict=True):
                    count += self.apply(move)

        bar = tqdm(total=burn_in + n_steps, disable=not progress, desc="parallel tempering")
        for k in range(burn_in):
            if thaw and k == burn_in // 2:
                self.thaw()
            advance()
            bar.update()
        frozen = None
        if thaw and burn_in:
            frozen = self.thaw().mask
            if frozen.any():
                for _ in range(burn_in // 2):
                    advance()
                frozen = self._frozen_chains(self._with_phases(self.configurations), 6.0, 16).mask
        accepted[:] = 0
        for counter in (*self._accepted, *self._attempted):
            counter[:] = 0
        kept, kept_energy = [], []
        energy = np.empty((n_steps, len(self.chains)))
        counts = np.empty((n_steps, len(self.chains), self.lattice.n_species))
        begun = self.steps
        ground = None if self.phases is None else GroundStates(self.phases, self.conditions)
        visits = np.zeros((n_steps, self.n_grid), dtype=bool)
        for k in range(n_steps):
            advance()
            energy[k], counts[k] = self.chains.energy, self.chains.counts()
            if ground is not None:
                visits[k] = ground.visited(self.occupations, energy[k, : self.n_grid])
            if (k + 1) % interval == 0:
                kept.append(self.occupations.copy())
                kept_energy.append(energy[k, : self.n_grid].copy())
            bar.update()
        bar.close()
        occupations = np.stack(kept, 1).reshape(-1, self.lattice.n_sites)
        row = np.repeat(np.arange(self.n_grid), len(kept))
        known = None if ground is None else ground.log_z(visits)
        estimate, conflict = self._log_z(energy, counts, known) if log_z else (None, None)
        self.seconds = before + time.perf_counter() - started
        configurations = self._configurations(occupations, np.stack(kept_energy, 1).ravel(), row)
        bound = None
        if log_z:
            bound = ground_state_bound(
                self.ensemble, self._with_phases(configurations), self.conditions
            )
        result = TemperingResult(
            configurations=configurations,
            conditions=self.conditions,
            log_z=estimate,
            lower_bound=bound,
            swap_acceptance=self.swap_acceptance,
            weakest_link=weakest_link(self._pairs, self._accepted, self._attempted),
            energy_evaluations=int(self.cost.energy_evaluations),
            frozen=frozen,
            conflict=conflict,
            move_acceptance=accepted / max(self.steps // move_interval - begun // move_interval, 1),
        )
        result.warn(n_steps)
        return result

    def _log_z(self, energy: np.ndarray, counts: np.ndarray, anchors):
        """ln Z on the grid and its conflicts, from all series and :meth:`GroundStates.log_z`."""
        beta, beta_mu = self.chains.beta, self.chains.beta_mu
        pairs = [p for both in self._pairs for p in both if len(p[0])]
        known = beta == 0
        (i, j), difference, influence, variance = differences(
            pairs, beta, beta_mu, energy, counts, known
        )
        args = len(beta), (i, j), difference, influence, variance, known, self.lattice.log_states
        conflict = np.zeros(len(beta))
        if anchors is None:
            value, error = combine(*args)
        else:
            value, error, conflict = anchored(*args, anchors)
        # what never happened in the run may well do so once in as many steps
        error = np.hypot(error, 0.5 / len(energy))
        return Estimate(value[: self.n_grid], error[: self.n_grid]), conflict[: self.n_grid]

    # ------------------------------------------------------------------ the ladder to beta = 0
    def _connect(self, index: np.ndarray) -> None:
        """Pairs of neighbours of a grid of chain numbers, and their counters."""
        axes = range(len(self.shape))
        self._pairs = [neighbours(index, axis) for axis in axes]
        self._accepted = [
            np.zeros((2, max(len(p[0]) for p in both)), dtype=np.int64) for both in self._pairs
        ]
        self._attempted = [np.zeros(2, dtype=np.int64) for _ in axes]

    def _extend(self, rungs: int | None = None) -> None:
        """Append rungs between the hottest row of the grid and infinite temperature."""
        beta = self.chains.beta.reshape(self.shape[0], -1)
        beta_mu = self.chains.beta_mu.reshape(self.shape[0], -1, self.lattice.n_species)
        last = beta[-1].mean() <= beta[0].mean()
        hot, hot_mu = (beta[-1], beta_mu[-1]) if last else (beta[0], beta_mu[0])
        if rungs is None:
            rungs = self._rungs_needed(hot, hot_mu)
        columns = len(hot)
        factor = np.repeat(np.arange(rungs - 1, -1, -1) / rungs, columns)
        index = np.arange(self.n_grid).reshape(self.shape)
        ladder = self.n_grid + np.arange(rungs * columns).reshape(rungs, *self.shape[1:])
        self._connect(
            np.concatenate([index, ladder]) if last else np.concatenate([ladder[::-1], index])
        )
        old = self.chains
        mu = torch.zeros((rungs * columns, self.lattice.n_species), dtype=torch.float64)
        hot_conditions = Conditions(torch.full((rungs * columns,), _HOT), mu)
        state = self.rng.integers(2**63)
        self.chains = Chains(
            old.ensemble,
            old.lattice,
            Conditions.cat([self.conditions, hot_conditions]),
            np.concatenate(
                [
                    old.occupations,
                    Chains(old.ensemble, old.lattice, hot_conditions, seed=state).occupations,
                ]
            ),
            seed=np.random.SeedSequence([state, 1]),
        )
        self.chains.engine.evaluations += old.engine.evaluations
        self.chains.attempted, self.chains.accepted = old.attempted, old.accepted
        self.chains.seconds = old.seconds
        self.chains.set_weights(
            np.concatenate([old.beta, factor * np.tile(hot, rungs)]),
            np.concatenate([old.beta_mu, factor[:, None] * np.tile(hot_mu, (rungs, 1))]),
        )
        self.replica = np.concatenate([self.replica, np.arange(self.n_grid, len(self.chains))])
        self._rungs = rungs

    def _rungs_needed(self, hot: np.ndarray, hot_mu: np.ndarray) -> int:
        """One rung for each standard deviation of ln w among random configurations."""
        n = 256
        trial = Chains(
            self.ensemble,
            self.lattice,
            Conditions(torch.full((n,), _HOT), torch.zeros(n, self.lattice.n_species)),
            seed=np.random.SeedSequence(self.rng.integers(2**63)),
        )
        log_weight = trial.counts() @ hot_mu.T - trial.energy[:, None] * hot
        self._aside += trial.cost
        return int(np.clip(np.ceil(log_weight.std(0).max()), 1, 200))

    # ------------------------------------------------------------------ resume
    def state_dict(self) -> dict:
        """Everything that a bitwise continuation needs: arrays and generator states."""
        return {
            "chains": self.chains.state_dict(),
            "rng": self.rng.bit_generator.state,
            "replica": self.replica.copy(),
            "steps": self.steps,
            "shape": list(self.shape),
            "rungs": self._rungs,
            "accepted": [a.copy() for a in self._accepted],
            "attempted": [a.copy() for a in self._attempted],
            "aside": replace(self._aside, seconds=0.0).to_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue from a state written by :meth:`state_dict`.

        Raises
        ------
        ValueError
            If the state belongs to a grid of another shape.
        """
        if tuple(state["shape"]) != self.shape:
            raise ValueError(
                f"the saved grid has shape {tuple(state['shape'])}, this one {self.shape}"
            )
        if int(state["rungs"]) != self._rungs:
            if self._rungs:
                raise ValueError(
                    "this grid already has a ladder for ln Z of another length than the saved "
                    "one; load the state into a new ParallelTempering"
                )
            self._extend(int(state["rungs"]))
        self.chains.load_state_dict(state["chains"])
        self.rng.bit_generator.state = state["rng"]
        self.replica = np.array(state["replica"], dtype=np.int64)
        self.steps = int(state["steps"])
        self._aside = Cost(**state.get("aside", {}))
        self._accepted = [np.array(a, dtype=np.int64) for a in state["accepted"]]
        self._attempted = [np.array(a, dtype=np.int64) for a in state["attempted"]]


def _grown(ensemble, lattice, conditions, shape, steps, seed) -> tuple[np.ndarray | None, Cost]:
    """Configurations grown from small cells, or None where there are none to grow from; cost."""
    rng = np.random.default_rng(seed)
    occupations, cost = None, Cost()
    for small_ensemble, small, onto in small_cells(ensemble, lattice):
        tempering = ParallelTempering(
            small_ensemble, small, conditions, shape, rng.integers(2**63), start="random"
        )
        if occupations is not None:
            tempering.chains.occupations = occupations
        for _ in range(steps):
            tempering.step()
        part, share = tempering.cost, small.n_sites / lattice.n_sites
        cost += replace(part, attempts_per_site=part.attempts_per_site * share)
        occupations = tempering.occupations[:, onto]
    if occupations is not None:
        shift = lattice.random_translations(len(occupations), rng)
        occupations = np.take_along_axis(occupations, shift, 1)
    return occupations, cost
