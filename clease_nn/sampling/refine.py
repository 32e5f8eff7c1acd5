"""Refinement: chains that start from a model's draws and sample the exact distribution.

Exact in any cell, also where weights of independent draws would carry no information: block moves
of the model (:class:`BlockMoves`) take turns with compiled single-site sweeps.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from clease_nn.configurations import Configurations
from clease_nn.cost import Cost
from clease_nn.energies.tables import ClusterTables
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import UNKNOWN
from clease_nn.models import AbstractOccupationModel, AbstractOrder, Coloured
from clease_nn.montecarlo import Chains
from clease_nn.networks import AbstractNetwork
from clease_nn.sampling.block_moves import BlockMoves, rows_together
from clease_nn.sampling.draw import complete
from clease_nn.sampling.regions import SHAPES
from clease_nn.statistics import integrated_autocorrelation_time, normalized_ess, series_mean
from clease_nn.warnings import ChainWarning, InterruptedWarning

__all__ = ["Refinement", "refine"]

# Rough costs in seconds that only decide how often to make block moves: constants, so that a run
# with the same seed makes the same moves on every machine.
_MULTIPLICATION, _PASS = 5e-11, 2e-5
_UPDATE, _ENERGY = 4e-8, 1e-4  # of a site of a cluster expansion; of any other energy
_WIDTH = 64  # chains that are swept side by side
_NEAR, _FAR = 1.0, 0.05  # time of block moves as a share of that of the sweeps

_ADAPT, _ADAPTING = 30, 4  # rounds that adapt sizes; chains a condition that take part in each
_PILOT = (128, 2048)  # sweeps that measure the autocorrelation time: at least, at most
_MOST_SWEEPS = 512  # between two kept configurations
_BURN_IN = (16, 256)  # steps: at least, at most
_DISTINCT = 0.5  # effective share of the rows that starts are resampled to
_DRIFT = 3.5  # standard errors by which two quarters of the burn-in may differ


class Refinement:
    """Chains from a model's draws, moved by a model's blocks and by single sites.

    A step is a number of heat-bath sweeps (:class:`~clease_nn.montecarlo.Chains`) and, at regular
    intervals, block moves (:class:`BlockMoves`); each leaves ``exp(-(E - mu.N)/kT)`` of every row
    stationary, restricted to its held sites. The first :meth:`run` begins with a burn-in, none of
    which is kept:

    1. sizes of blocks adapt to an acceptance of 0.4, for every condition and shape, and freeze;
    2. sweeps alone measure the autocorrelation time ``t`` of E - mu.N and the composition;
    3. the interval of block moves is set at every condition. A block move that is accepted with
       probability ``a`` and redraws a share ``f`` of the sites makes the chain forget at a rate
       ``a f``, one sweep at ``1/t``. Where a block move gains more for its cost it gets about as
       much time as the sweeps, elsewhere a twentieth of it, as an insurance against barriers that
       the sweeps have not seen;
    4. steps follow until the means of two quarters of the burn-in agree.

    Deterministic: costs are counted, not timed. Parameters and errors as :func:`refine`.

    Attributes
    ----------
    chains : Chains
    moves : BlockMoves
    sweeps : int or None
        Heat-bath sweeps a step; None before the burn-in has chosen them.
    block_rate : ndarray, shape (chains,)
        Block moves a sweep.
    burn_in : dict
        What the burn-in has found and planned; empty before it.
    """

    def __init__(
        self,
        model: AbstractOccupationModel,
        ensemble: SemiGrandCanonical,
        start: Configurations,
        seed: int | np.random.SeedSequence = 0,
        *,
        sweeps: int | None = None,
        shapes: Sequence[str] = SHAPES,
        order: AbstractOrder | None = None,
        clamped: Tensor | None = None,
        batch_size: int | None = None,
        precision: str = "float32",
    ):
        if not model.any_order:
            raise ValueError(
                f"{type(model).__name__} has one order of drawing and cannot redraw a region "
                "around the others; use a model of any order (AnyOrderARM, MarginalizationModel)"
            )
        if sweeps is not None and sweeps < 1:
            raise ValueError(f"sweeps must be at least 1, got {sweeps}")
        if len(start) == 0:
            raise ValueError("there are no configurations to start from")
        sequence = (
            seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
        )
        for_chains, for_moves = sequence.spawn(2)
        rng = torch.Generator().manual_seed(int(for_moves.generate_state(1)[0]))
        if clamped is not None:
            clamped = _checked(clamped, start)
        if not bool(start.known.all()):
            together = rows_together(start.lattice) if batch_size is None else batch_size
            start = complete(model, ensemble, start, rng, batch_size=together, precision=precision)
        start, clamped = _unweighted(ensemble, start, clamped, rng)
        self.moves = BlockMoves(
            model,
            ensemble,
            start.lattice,
            rng,
            size=max(1, start.lattice.n_sites // 16),
            shapes=shapes,
            clamped=clamped,
            order=Coloured() if order is None else order,
            batch_size=batch_size,
            precision=precision,
        )
        free = self.moves.free.sum(1)
        if not bool(free.all()):
            row = int((free == 0).nonzero()[0])
            raise ValueError(f"nothing can change in row {row}: each of its sites is held")
        self.distinct_starts = len(start.occupations.unique(dim=0))
        self.chains = Chains(
            ensemble,
            start.lattice,
            start.conditions,
            start.occupations,
            clamped,
            seed=for_chains,
        )
        self._sweeps_asked = sweeps
        self.sweeps: int | None = sweeps
        self.steps = 0
        self.burn_in: dict = {}
        self.block_rate = np.zeros(len(start))
        self._start_cost = start.cost
        self._seconds = 0.0
        key = torch.cat([start.conditions.temperature[:, None], start.conditions.mu], 1)
        self._condition = np.unique(key.numpy(), axis=0, return_inverse=True)[1].ravel()

    # ------------------------------------------------------------------ runs
    def run(self, n_samples: int, *, progress: bool = True) -> Configurations:
        """``n_samples`` further configurations of every chain, the burn-in first if there was none.

        Returns and raises as :func:`refine`.
        """
        if n_samples < 1:
            raise ValueError(f"n_samples must be at least 1, got {n_samples}")
        # an interrupted sweep may have left energies that belong to other configurations
        self.chains.occupations = self.chains.occupations
        if not self.burn_in:
            self.equilibrate(progress=progress)
        kept = []
        bar = tqdm(total=n_samples, disable=not progress, desc="refining", unit="step")
        try:
            for _ in range(n_samples):
                self.step()
                kept.append(self.chains.configurations())
                bar.update()
        except KeyboardInterrupt:
            if not kept:
                raise
            warnings.warn(
                f"refinement was interrupted: {len(kept)} of {n_samples} configurations of every "
                "chain are returned",
                InterruptedWarning,
                stacklevel=2,
            )
        finally:
            bar.close()
        provenance = self.provenance()
        kept = [replace(c, provenance=provenance) for c in kept]
        return Configurations.cat(kept)

    def step(self) -> None:
        """The block moves that are due, then the sweeps."""
        started = time.perf_counter()
        n = self.sweeps or 1
        due = np.floor((self.steps + 1) * n * self.block_rate) - np.floor(
            self.steps * n * self.block_rate
        )
        if due.any():
            c = self.chains.configurations()
            for k in range(int(due.max())):
                c, _ = self.moves(c, torch.as_tensor(np.flatnonzero(due > k)))
            self.chains.occupations = c.occupations
        self.chains.sweep(n)
        self.steps += 1
        self._seconds += time.perf_counter() - started

    def provenance(self) -> dict:
        """JSON-ready: cost, schedule, and size and acceptance of blocks at every condition."""
        chains, moves = self.chains, self.moves
        share = sum(r["size"] * r["attempted"] for r in moves.report()) / chains.lattice.n_sites
        own = replace(chains.cost, seconds=self._seconds) + Cost(
            energy_evaluations=moves.energy_evaluations,
            network_passes=moves.network_passes,
            attempts_per_site=share,
        )
        notes = {
            "method": "refinement",
            "chains": len(chains),
            "distinct_starts": self.distinct_starts,
            "sweeps": self.sweeps,
            "burn_in": self.burn_in,
            "block_moves": moves.report(),
        }
        return (self._start_cost + own).noted_in(notes)

    # ------------------------------------------------------------------ burn-in
    def equilibrate(self, *, progress: bool = True) -> None:
        """Adapt, plan, and run until nothing drifts; :meth:`run` does it where it is due.

        Warns
        -----
        ChainWarning
            If something still drifts after the longest burn-in.
        """
        started = time.perf_counter()
        bar = tqdm(disable=not progress, desc="burn-in", unit="step")
        try:
            self._adapt(bar)
            plan = self._plan(self._pilot(bar))
            self._seconds += time.perf_counter() - started
            drifting = self._settle(bar)
        finally:
            bar.close()
        self.burn_in = {"steps": self.steps, "conditions": plan, "drifting": drifting}
        self.steps = 0
        self.moves.reset_counts()
        if drifting:
            warnings.warn(
                f"{len(drifting)} of {len(plan)} conditions still drift after {_BURN_IN[1]} steps "
                f"of burn-in, the first: T = {drifting[0]['temperature']:g} K, mu = "
                f"{drifting[0]['mu']} eV; run longer and discard the beginning, or start from "
                "better draws",
                ChainWarning,
                stacklevel=3,
            )

    def _adapt(self, bar) -> None:
        """Sizes of the blocks; a few chains of every condition take part in each round."""
        members = [np.flatnonzero(self._condition == k) for k in np.unique(self._condition)]
        self.chains.sweep(16)
        for t in range(_ADAPT):
            if t == _ADAPT // 2:
                self.moves.reset_counts()
            rows = np.unique(
                np.concatenate(
                    [m[(t * _ADAPTING + np.arange(_ADAPTING)) % len(m)] for m in members]
                )
            )
            c, _ = self.moves.adapt(self.chains.configurations(), torch.as_tensor(rows))
            self.chains.occupations = c.occupations
            self.chains.sweep(4)
            bar.update()

    def _pilot(self, bar) -> np.ndarray:
        """Autocorrelation time in sweeps at every condition, of the slowest quantity."""
        rows, target = [], _PILOT[0]
        while True:
            while len(rows) < target:
                self.chains.sweep(1)
                rows.append(self._observed())
            times = self._times(np.array(rows))
            bar.update()
            if target >= min(50 * times.max(), _PILOT[1]):
                return times
            target *= 2

    def _observed(self) -> np.ndarray:
        """E - mu.N in kT and the numbers of atoms, (chains, 1 + species)."""
        chains = self.chains
        counts = chains.counts()
        reduced = chains.beta * chains.energy - (chains.beta_mu * counts).sum(1)
        return np.column_stack([reduced, counts])

    def _times(self, series: np.ndarray) -> np.ndarray:
        """Autocorrelation times (conditions,) of series (time, chains, quantities)."""
        out = []
        for k in np.unique(self._condition):
            x = series[:, self._condition == k]
            moving = [v for v in x.transpose(2, 0, 1) if np.ptp(v) > 1e-9]
            out.append(max((integrated_autocorrelation_time(v) for v in moving), default=1.0))
        return np.array(out)

    def _plan(self, times: np.ndarray) -> list[dict]:
        """Sets sweeps a step and block moves a sweep; what was decided, and why."""
        chains, moves = self.chains, self.moves
        n = chains.lattice.n_sites
        networks = [m for m in moves.model.modules() if isinstance(m, AbstractNetwork)]
        a_pass = _PASS + 2 * _MULTIPLICATION * sum(m.multiplications(n) for m in networks)
        compiled = isinstance(getattr(moves.ensemble.energy, "tables", None), ClusterTables)
        width = _WIDTH * -(-len(chains) // _WIDTH) / len(chains) if compiled else 1.0
        a_sweep = n * (_UPDATE * width if compiled else _ENERGY)
        free = moves.free.sum(1).numpy()
        plan = []
        for k, t in enumerate(times):
            members = np.flatnonzero(self._condition == k)
            at = chains.conditions[int(members[0])]
            row = {"temperature": at.temperature.item(), "mu": at.mu[0].tolist()}
            blocks = [r for r in moves.report() if all(r[key] == row[key] for key in row)]
            blocks = [r for r in blocks if r["attempted"]]
            share = [min(1.0, r["size"] / free[members].mean()) for r in blocks]
            gain = np.mean([r["acceptance"] * f for r, f in zip(blocks, share, strict=True)])
            passes = np.mean([r["passes"] for r in blocks])
            cost = (2 * passes * a_pass + (0.0 if compiled else _ENERGY)) / a_sweep  # in sweeps
            pays = gain * t > cost
            every = max(1.0, cost / (_NEAR if pays else _FAR))
            self.block_rate[members] = 1.0 / every
            row |= {
                "autocorrelation_sweeps": float(t),
                "block_gain": float(gain),
                "block_cost_sweeps": float(cost),
                "sweeps_between_blocks": float(every),
                "blocks_pay": bool(pays),
            }
            plan.append(row)
        if self._sweeps_asked is None:
            self.sweeps = int(np.clip(np.ceil(times.max()), 1, _MOST_SWEEPS))
        return plan

    def _settle(self, bar) -> list[dict]:
        """Steps until no mean drifts; the conditions where one still does at the longest."""
        rows, target = [], _BURN_IN[0]
        self.steps = 0
        while True:
            while len(rows) < target:
                self.step()
                rows.append(self._observed())
                bar.update()
            drifting = self._drifting(np.array(rows))
            if not drifting or target >= _BURN_IN[1]:
                return drifting
            target *= 2

    def _drifting(self, series: np.ndarray) -> list[dict]:
        """Conditions whose second and last quarters have different means."""
        quarter = len(series) // 4
        out = []
        for k in np.unique(self._condition):
            x = series[:, self._condition == k]
            for v in x.transpose(2, 0, 1):
                a, b = v[quarter : 2 * quarter], v[3 * quarter :]
                if np.ptp(v) < 1e-9:
                    continue
                first, last = series_mean(a), series_mean(b)
                error = np.hypot(first.error, last.error)
                if abs(first.value - last.value) > _DRIFT * error + 1e-9:
                    at = self.chains.conditions[int(np.flatnonzero(self._condition == k)[0])]
                    out.append({"temperature": at.temperature.item(), "mu": at.mu[0].tolist()})
                    break
        return out

    # ------------------------------------------------------------------ state
    def state_dict(self) -> dict:
        """Everything that a bitwise continuation needs, between two steps."""
        return {
            "chains": self.chains.state_dict(),
            "moves": self.moves.state_dict(),
            "sweeps": self.sweeps,
            "steps": self.steps,
            "burn_in": self.burn_in,
            "rate": self.block_rate.copy(),
            "seconds": self._seconds,
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue from a state written by :meth:`state_dict` of a refinement of the same start."""
        self.chains.load_state_dict(state["chains"])
        self.moves.load_state_dict(state["moves"])
        self.sweeps, self.steps = state["sweeps"], int(state["steps"])
        self.burn_in, self._seconds = state["burn_in"], float(state["seconds"])
        self.block_rate = np.array(state["rate"], dtype=float)


def refine(
    model: AbstractOccupationModel,
    ensemble: SemiGrandCanonical,
    start: Configurations,
    n_samples: int,
    seed: int | np.random.SeedSequence = 0,
    *,
    sweeps: int | None = None,
    shapes: Sequence[str] = SHAPES,
    order: AbstractOrder | None = None,
    clamped: Tensor | None = None,
    batch_size: int | None = None,
    precision: str = "float32",
    progress: bool = True,
) -> Configurations:
    """Exact chains from a model's draws, in cells of any size; see :class:`Refinement`.

    Parameters
    ----------
    start : Configurations
        A row a chain, several at every condition; 64 chains cost hardly more sweeps than one.
        Draws of :func:`sample` or :func:`complete` (with ``log_prob``) are resampled to
        unweighted ones, separately at every condition: by their weights where NESS is 0.5 or
        more, otherwise by the power of them that gives 0.5, since copies of one row would all
        start in one phase. What bias is left decays in the burn-in. Sites that they were given
        are held, unless ``clamped`` says otherwise. Rows with unknown sites are completed by the
        model first. Rows without ``log_prob`` are taken as they are.
    n_samples : int
        Configurations kept of every chain.
    seed : int or numpy.random.SeedSequence
    sweeps : int, optional
        Heat-bath sweeps between two kept configurations. Default: the autocorrelation time that
        the burn-in measures, at most 512.
    shapes, order, batch_size, precision : optional
        As of :class:`BlockMoves`; ``order`` is :class:`~clease_nn.models.Coloured` by default.
    clamped : Tensor of bool, shape (rows, sites) or (1, sites), optional
        Sites that never change: the constrained ensemble is sampled.
    progress : bool
        Show progress bars.

    Returns
    -------
    Configurations
        ``len(start) * n_samples`` rows with ``energy``, ``log_target`` and ``chain``, the row of
        ``start`` it began from; every function of :mod:`clease_nn.thermodynamics` reads them as
        chains. ``provenance`` has sizes and acceptance of the blocks for every condition and
        shape, the schedule, the burn-in, and the cost, that of ``start`` included. After Ctrl-C
        as many of every chain as were finished, with an ``InterruptedWarning``.

    Raises
    ------
    ValueError
        If the model has one order of drawing, ``n_samples`` or ``sweeps`` < 1, ``clamped`` has
        another shape, a species is not allowed where it is, or all sites of a row are held.
    MemoryError
        If the memory that is free has no room for the rows of a batch.
    KeyboardInterrupt
        If nothing was finished.

    Examples
    --------
    >>> from clease_nn.conditions import ConditionRange
    >>> from clease_nn.energies.ising import ising_energy
    >>> from clease_nn.lattice import Lattice
    >>> from clease_nn.models import AnyOrderARM
    >>> from clease_nn.networks import LatticeConvolution
    >>> from clease_nn.thermodynamics import averages
    >>> lattice = Lattice.square(4)
    >>> ensemble = SemiGrandCanonical(ising_energy(lattice))
    >>> box = ConditionRange((40000, 60000), [-0.5], [0.5], [[-1.0, 1.0]])
    >>> model = AnyOrderARM(LatticeConvolution(lattice, box, channels=4, blocks=1))
    >>> start = Configurations.unknown(lattice, box.grid(1, 1).repeat(16))
    >>> c = refine(model, ensemble, start, 100, progress=False)
    >>> energy = averages(c)[0].energy
    >>> exact = ensemble.enumerate(lattice)
    >>> bool(abs(energy.z(exact.mean(box.grid(1, 1), exact.energy)[0])) < 4)
    True
    """
    refinement = Refinement(
        model,
        ensemble,
        start,
        seed,
        sweeps=sweeps,
        shapes=shapes,
        order=order,
        clamped=clamped,
        batch_size=batch_size,
        precision=precision,
    )
    return refinement.run(n_samples, progress=progress)


def _checked(clamped, start: Configurations) -> Tensor:
    clamped = torch.as_tensor(clamped).to(torch.bool)
    n = start.lattice.n_sites
    if clamped.ndim != 2 or clamped.shape[1] != n or clamped.shape[0] not in (1, len(start)):
        raise ValueError(
            f"clamped must have shape ({len(start)}, {n}) or (1, {n}), got {tuple(clamped.shape)}"
        )
    return clamped


def _unweighted(
    ensemble: SemiGrandCanonical, start: Configurations, clamped, rng: torch.Generator
) -> tuple[Configurations, Tensor]:
    """Rows to start chains from, and their held sites.

    Weighted rows are resampled systematically among those at one condition around the same held
    sites, by a power of their weights that leaves at least half of them distinct in effect.
    """
    rows, n = len(start), start.lattice.n_sites
    if clamped is not None:
        clamped = clamped.expand(rows, n)
    elif start.step is not None and start.log_prob is not None:
        clamped = start.step < 0
    else:
        clamped = torch.zeros(rows, n, dtype=torch.bool)
    if start.log_prob is None:
        return start, clamped
    if start.log_target is None:
        start = ensemble.score(start)
    held = torch.where(clamped, start.occupations, UNKNOWN).double()
    key = torch.cat([start.conditions.temperature[:, None], start.conditions.mu, held], 1)
    group = key.unique(dim=0, return_inverse=True)[1]
    pick = torch.arange(rows)
    for g in range(int(group.max()) + 1):
        at = (group == g).nonzero()[:, 0]
        w = _tempered(start.log_weight[at]).cumsum(0)
        u = (torch.arange(len(at)) + torch.rand(1, generator=rng, dtype=torch.float64)) / len(at)
        pick[at] = at[torch.searchsorted(w / w[-1], u).clamp(max=len(at) - 1)]
    return replace(start[pick], log_prob=None, step=None), clamped


def _tempered(log_w: Tensor) -> Tensor:
    """Shares of rows by the largest power of their weights, up to 1, with NESS of a half."""
    low, high = 0.0, 1.0
    if normalized_ess(log_w.numpy()) >= _DISTINCT:
        return torch.softmax(log_w, 0)
    for _ in range(30):
        middle = (low + high) / 2
        enough = normalized_ess(middle * log_w.numpy()) >= _DISTINCT
        low, high = (middle, high) if enough else (low, middle)
    return torch.softmax(low * log_w, 0)
