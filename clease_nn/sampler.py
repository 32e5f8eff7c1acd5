"""What every host's drop-in shares: neural moves, when to make them, and finding a model.

A neural move is an independence (or block) Metropolis-Hastings move with the proposals of an
any-order model. Its ln q depends on the order sigma in which sites are drawn, so sigma is part of
the state: the extended target is ``w(x) u(sigma)``, u not depending on x. A fresh sigma for the
present state is a Gibbs move; a proposal ``(y, sigma')`` has probability ``u(sigma') q(y; sigma')``
and is accepted with probability ``min(1, W(y, sigma') / W(x, sigma))``,
``W = exp(log_target - log q)``. The chain samples the exact Boltzmann distribution whatever the
model; the model decides only how often a move is accepted.
"""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from clease_nn.compute import compute_policy
from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.io import ModelFileError, TrainedModel
from clease_nn.lattice import UNKNOWN, Lattice
from clease_nn.models import AbstractOccupationModel
from clease_nn.sampling import complete, sample
from clease_nn.single_chain import SingleChain
from clease_nn.statistics import (
    independence_acceptance,
    integrated_autocorrelation_time,
    normalized_ess,
)
from clease_nn.warnings import LowESSWarning

__all__ = [
    "NeuralMoves",
    "Schedule",
    "draw_chain",
    "find_model",
    "model_folders",
    "plan_schedule",
    "resample_chain",
]

# Rough costs in seconds that only decide how often to make neural moves: they are constants, so
# that a run with the same seed makes the same moves on every machine.
_FLOP = 5e-11
_HOST_STEP = 6e-6
_NEAR, _FAR = 1.0, 0.05  # neural time as a share of the host's time for the same steps
_PILOT = (128, 4096)  # sweeps: at least, at most
_LOOK = 6  # proposals that check whether the pilot has seen all
_LOW_ACCEPTANCE = 0.05
_SURPLUS = (128, 4096)  # draws before an unweighted chain: at least, at most
_SURPLUS_ESS = 40


class NeuralMoves:
    """Exact Metropolis-Hastings moves at one condition with a model's proposals.

    Parameters
    ----------
    model : AbstractOccupationModel
        Normalised proposals; need not be good.
    ensemble : SemiGrandCanonical
    lattice : Lattice
    conditions : Conditions
        One row.
    rng : torch.Generator
    reachable : ndarray of bool, shape (sites, species), optional
        Species that the chain may put on each site; other proposals are rejected. Sites with
        fewer than two are given to the model as they are. Default: what the lattice allows.
    block_size : int, optional
        Redraw that many sites a move, a random or a compact set, instead of all.
    batch_size : int
        Most proposals drawn together.

    Notes
    -----
    Sites that cannot change must carry what they carried in the first :meth:`step`. Networks run
    on one thread: the work is small, and the moves do not depend on the number of threads.
    """

    def __init__(
        self,
        model: AbstractOccupationModel,
        ensemble: SemiGrandCanonical,
        lattice: Lattice,
        conditions: Conditions,
        rng: torch.Generator,
        *,
        reachable: np.ndarray | None = None,
        block_size: int | None = None,
        batch_size: int = 128,
    ):
        if len(conditions) != 1:
            raise ValueError(f"neural moves need one condition, got {len(conditions)}")
        self.model, self.ensemble, self.lattice = model, ensemble, lattice
        self.conditions, self.rng, self.batch_size = conditions, rng, batch_size
        reachable = lattice.allowed if reachable is None else reachable
        self.reachable = np.array(reachable)
        self.free = torch.as_tensor(np.flatnonzero(self.reachable.sum(1) > 1))
        self._mask = torch.as_tensor(self.reachable)
        self.block_size = block_size
        self.expected = batch_size
        """Moves still to come: no more proposals than that are drawn ahead."""
        self.acceptance = 0.0
        """Acceptance probability of the last move."""
        self._ahead: deque = deque()
        self._known: tuple[torch.Tensor, float] | None = None
        self._distances: np.ndarray | None = None
        self._fields = ensemble.fields if model.needs_fields else None

    def step(self, occupations: np.ndarray, log_target: float) -> tuple[bool, np.ndarray, float]:
        """One move from a configuration (sites,) with known ``-(E - mu.N)/kT``.

        Returns
        -------
        accepted : bool
        occupations : ndarray, shape (sites,), int8
            The next configuration, the same one where the move was rejected.
        log_target : float
            Its ``-(E - mu.N)/kT``.
        """
        x = torch.as_tensor(np.array(occupations, dtype=np.int8))
        if self.block_size is None:
            y, log_q_y, log_target_y = self._global_proposal(x)
            log_q_x = self._log_q(x)
        else:
            y, log_q_y, log_target_y, log_q_x = self._block_proposal(x)
        log_ratio = (log_target_y - log_q_y) - (log_target - log_q_x)
        self.acceptance = float(np.exp(min(0.0, log_ratio)))
        self.expected = max(self.expected - 1, 1)
        if float(torch.rand(1, generator=self.rng, dtype=torch.float64)) >= self.acceptance:
            return False, occupations, log_target
        if self.block_size is None:
            self._known = (y, log_q_y)
        return True, y.numpy(), log_target_y

    def draw(self, occupations: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Fresh global proposals around the fixed sites of a configuration.

        Returns
        -------
        occupations : ndarray, shape (n, sites), int8
        log_weights : ndarray, shape (n,)
        energies : ndarray, shape (n,)
            E - mu.N in eV; infinite where the chain cannot go.
        """
        c = self._draw(torch.as_tensor(np.array(occupations, dtype=np.int8)), n)
        log_target = self._restricted(c)
        energies = -log_target * self.conditions.kT.item()
        return c.occupations.numpy(), (log_target - c.log_prob).numpy(), energies.numpy()

    def energy(self, occupations: np.ndarray) -> float:
        """E - mu.N of a configuration (sites,) in eV."""
        x = torch.as_tensor(np.array(occupations, dtype=np.int8))
        c = self.ensemble.score(Configurations(self.lattice, self.conditions, x[None]))
        return -float(c.log_target) * self.conditions.kT.item()

    # ------------------------------------------------------------------ global proposals
    def _draw(self, x: torch.Tensor, n: int) -> Configurations:
        given = x.clone()
        given[self.free] = UNKNOWN
        partial = Configurations(self.lattice, self.conditions.repeat(n), given.repeat(n, 1))
        return complete(
            self.model, self.ensemble, partial, self.rng, batch_size=self.batch_size, threads=1
        )

    def _restricted(self, c: Configurations) -> torch.Tensor:
        """log_target, -inf where a free site carries what the chain cannot put there."""
        index = c.occupations[:, self.free].long()
        inside = self._mask[self.free][torch.arange(len(self.free)), index].all(1)
        return torch.where(inside, c.log_target, -torch.inf)

    def _global_proposal(self, x):
        if not self._ahead:
            c = self._draw(x, min(self.batch_size, max(self.expected, 1)))
            self._ahead.extend(
                zip(c.occupations, c.log_prob.tolist(), self._restricted(c).tolist(), strict=True)
            )
        return self._ahead.popleft()

    def _log_q(self, x: torch.Tensor) -> float:
        """ln q of the present state in a fresh order, or as drawn if it is the last proposal."""
        if self._known is None or not torch.equal(self._known[0], x):
            self._known = (x, self._score(x, self.free))
        return self._known[1]

    def _score(self, x: torch.Tensor, drawn: torch.Tensor) -> float:
        given = x.clone()
        given[drawn] = UNKNOWN
        partial = Configurations(self.lattice, self.conditions, given[None])
        steps = self.model.draw_steps(partial, self.rng)
        return self._score_with(x, steps)

    @torch.no_grad()
    def _score_with(self, x: torch.Tensor, steps: torch.Tensor) -> float:
        full = Configurations(self.lattice, self.conditions, x[None])
        with compute_policy(threads=1):
            return float(self.model.log_prob(full, steps=steps, fields=self._fields))

    # ------------------------------------------------------------------ block proposals
    def _block(self) -> torch.Tensor:
        """Sites to redraw, chosen without regard to the configuration."""
        k = min(self.block_size, len(self.free))
        order = torch.randperm(len(self.free), generator=self.rng)
        if bool(torch.rand(1, generator=self.rng) < 0.5):
            return self.free[order[:k]]
        if self._distances is None:
            sites = self.lattice.site_indices[self.free.numpy()]
            template = self.lattice.template
            self._distances = np.array(
                [template.get_distances(i, sites, mic=True).round(3) for i in sites]
            )
        centre = int(order[0])
        nearest = np.argsort(self._distances[centre], kind="stable")[:k]
        return self.free[torch.as_tensor(nearest)]

    def _block_proposal(self, x: torch.Tensor):
        given = x.clone()
        given[self._block()] = UNKNOWN
        partial = Configurations(self.lattice, self.conditions, given[None])
        c = complete(self.model, self.ensemble, partial, self.rng, threads=1)
        log_q_x = self._score_with(x, c.step)
        return c.occupations[0], float(c.log_prob), float(self._restricted(c)), log_q_x


@dataclass(frozen=True)
class Schedule:
    """How often neural moves are made at a condition, and why.

    Attributes
    ----------
    interval : float
        Sweeps from one neural move to the next (a sweep is one step a free site).
    block_size : int or None
        Sites redrawn; None: all.
    autocorrelation : float
        Of the single-site chain in sweeps, nan where it was not measured.
    acceptance : float
        Of the neural moves, nan where it was not measured.
    reason : str
        In words, why neural moves are made that often.
    """

    interval: float
    block_size: int | None = None
    autocorrelation: float = float("nan")
    acceptance: float = float("nan")
    reason: str = ""

    def steps(self, n_free: int) -> int:
        """Steps from one neural move to the next."""
        return max(1, round(self.interval * n_free))


def plan_schedule(
    chain: SingleChain, moves: NeuralMoves, n_free: int, planned_steps: int | None = None
) -> Schedule:
    """Choose how often to make neural moves from a short pilot run.

    Neural moves either get about the time that the host itself would need for the steps, or a
    twentieth of it, as an insurance. The first where they at least double the number of
    independent configurations: with moves accepted with probability a every m sweeps, a chain
    with autocorrelation time t forgets at the rate ``1/t + a/m`` a sweep, so where ``a t > m``.
    t is infinite where the chain remembers its start (energy or observables differ between
    starts from the present configuration and from pure species) or where the model's proposals
    carry weight at energies or observables that the chain has not seen; this last look may cost
    a third of the host's time for ``planned_steps`` and is left out where it would cost more.
    Where few global proposals are accepted, blocks of 1/2, 1/4 and 1/8 of the sites are tried.

    Deterministic: costs are constants and the random numbers of the pilot are its own. ``chain``
    is used up; ``moves`` lends its proposals.
    """
    n_rows = len(moves.free)
    parameters = sum(p.numel() for p in moves.model.parameters())
    draw = 2 * _FLOP * parameters * moves.lattice.n_sites * n_rows + 5e-5 * n_rows
    cost = 2 * draw
    far = max(1.0, cost / (_FAR * _HOST_STEP * n_free))
    near = max(1.0, cost / (_NEAR * _HOST_STEP * n_free))
    chain.seed(np.random.SeedSequence(0))
    start = chain.occupations.copy()
    series = _pilot_series(chain, n_free, _PILOT[1])
    tau = max((_time(v) for v in series), default=np.inf)
    if tau < near and _remembers(chain, moves, n_free, start, series):
        tau = np.inf
    affordable = planned_steps is None or _LOOK * draw <= planned_steps * _HOST_STEP / 3
    if tau < near and affordable and _unseen(chain, moves, start, series):
        tau = np.inf
    if tau < near:
        reason = (
            f"single-site moves forget in {tau:.1f} sweeps, faster than neural moves could at the "
            f"same cost (one every {near:.0f} sweeps); one every {far:.0f} sweeps as an insurance"
        )
        return Schedule(far, None, tau, reason=reason)
    acceptance = _acceptance(moves.draw(chain.occupations, 16)[1])
    block = None
    if acceptance < _LOW_ACCEPTANCE:
        best = acceptance * n_rows
        for k in sorted({max(1, n_rows // d) for d in (2, 4, 8)}):
            a = _block_acceptance(chain, moves, k)
            if a * k > best:
                best, block, acceptance = a * k, k, a
    share = 1.0 if block is None else block / n_rows
    pays = acceptance > 0 and acceptance * share * tau > near
    forget = "do not forget" if np.isinf(tau) else f"need {tau:.0f} sweeps to forget"
    reason = (
        f"single-site moves {forget}, {acceptance:.2g} of the neural moves are accepted: one every "
        + (f"{near:.0f} sweeps pays" if pays else f"{far:.0f} sweeps as an insurance")
    )
    return Schedule(near if pays else far, block, tau, acceptance, reason)


def _remembers(chain, moves, n_free: int, start: np.ndarray, series: np.ndarray) -> bool:
    """Whether chains from pure species have other means than the given series."""
    for a in range(moves.reachable.shape[1]):
        pure = np.where(moves.reachable[:, a], a, start).astype(np.int8)
        chain.load(pure, moves.energy(pure))
        for v, w in zip(series, _pilot_series(chain, n_free, _PILOT[0]), strict=True):
            error = v.var() * _time(v) / len(v) + w.var() * _time(w) / len(w)
            if abs(v.mean() - w.mean()) > 6 * np.sqrt(error) + 1e-9:
                return True
    return False


def _unseen(chain, moves, start: np.ndarray, series: np.ndarray) -> bool:
    """Whether a tenth of the weight of a few proposals lies outside what the series covers."""
    proposals, log_w, energies = moves.draw(start, _LOOK)
    if not np.isfinite(log_w).any():
        return False
    margin = 0.25 * np.ptp(series, axis=1) + 1e-9
    low, high = series.min(1) - margin, series.max(1) + margin
    outside = np.zeros(len(log_w), dtype=bool)
    for k in np.flatnonzero(np.isfinite(energies)):
        chain.load(proposals[k], energies[k])
        values = np.append(chain.values, chain.energy)
        outside[k] = ((values < low) | (values > high)).any()
    w = np.exp(log_w - log_w.max())
    return bool(w[outside].sum() > 0.1 * w.sum())


def _pilot_series(chain: SingleChain, n_free: int, longest: int) -> np.ndarray:
    """Observables and energy of consecutive sweeps, (series, sweeps), until 50 times t."""
    chain.run(16 * n_free)
    rows: list[np.ndarray] = []
    target = _PILOT[0]
    while True:
        while len(rows) < target:
            chain.run(n_free)
            rows.append(np.append(chain.values, chain.energy))
        series = np.array(rows).T
        if target >= longest or target >= 50 * max(_time(v) for v in series):
            return series
        target = min(4 * target, longest)


def _time(v: np.ndarray) -> float:
    return float(integrated_autocorrelation_time(v)) if np.ptp(v) > 1e-12 else 1.0


def _acceptance(log_w: np.ndarray) -> float:
    """Acceptance of independence moves with these weights, 0 where none is possible."""
    return independence_acceptance(log_w) if np.isfinite(log_w).any() else 0.0


def _block_acceptance(chain: SingleChain, moves: NeuralMoves, size: int) -> float:
    before = moves.block_size
    moves.block_size = size
    kT = moves.conditions.kT.item()
    x, log_target, out = chain.occupations.copy(), -chain.energy / kT, []
    try:
        for _ in range(6):
            _, x, log_target = moves.step(x, log_target)
            out.append(moves.acceptance)
    finally:
        moves.block_size = before
    return float(np.mean(out))


def resample_chain(c: Configurations, rng: torch.Generator, n: int) -> Configurations:
    """Unweighted configurations from weighted ones: an independence Metropolis-Hastings chain.

    Parameters
    ----------
    c : Configurations
        Independent draws at one condition with ``log_prob`` and ``log_target``, at least ``n``
        of them. Half of the surplus gives the start of the chain, drawn by weight; the chain
        goes through the other half before its first row.
    n : int
        Length of the chain; a rejected proposal repeats the row before it.

    Returns
    -------
    Configurations
        ``chain`` is 0 everywhere, ``log_prob`` None, rows in time order.
    """
    if not 1 <= n <= len(c):
        raise ValueError(f"n must lie between 1 and the {len(c)} draws given, got {n}")
    log_w = c.log_weight
    start = len(c) - n
    pool = (start + 1) // 2
    log_u = torch.rand(len(c), generator=rng, dtype=torch.float64).log().tolist()
    if pool:
        at = int(torch.multinomial((log_w[:pool] - log_w[:pool].max()).exp(), 1, generator=rng))
    else:
        at = 0
    rows = []
    accepted = 0
    log_w = log_w.tolist()
    for k in range(pool, len(c)):
        if log_u[k] < log_w[k] - log_w[at]:
            at = k
            accepted += k >= start
        if k >= start:
            rows.append(at)
    provenance = {
        **c.provenance,
        "method": "independence Metropolis-Hastings chain, unweighted",
        "acceptance": accepted / n,
        "surplus": start,
    }
    out = replace(c[torch.as_tensor(rows)], log_prob=None, step=None)
    return replace(out, chain=torch.zeros(n, dtype=torch.int64), provenance=provenance)


def draw_chain(
    model: AbstractOccupationModel,
    ensemble: SemiGrandCanonical,
    lattice: Lattice,
    conditions: Conditions,
    n: int,
    rng: torch.Generator,
    *,
    precision: str = "auto",
) -> Configurations:
    """Unweighted configurations at one condition, however few are asked for.

    The surplus that :func:`resample_chain` starts from has 40 effective samples by its own
    weights: a poor model costs more draws, up to a limit, and then gives a ``LowESSWarning``.

    Parameters
    ----------
    conditions : Conditions
        One row.
    n : int
        Length of the chain.

    Returns
    -------
    Configurations
        As :func:`resample_chain`; ``provenance`` has ``surplus`` (draws before the chain) and
        ``effective_draws`` (effective number of all draws).
    """

    def draw(k: int) -> Configurations:
        rows = conditions.repeat(k)
        return sample(model, ensemble, lattice, rows, rng, precision=precision)

    surplus, wanted = None, _SURPLUS[0]
    while surplus is None or len(surplus) < wanted:
        parts = [] if surplus is None else [surplus]
        surplus = Configurations.cat([*parts, draw(wanted - sum(map(len, parts)))])
        needed = np.ceil(_SURPLUS_ESS / normalized_ess(surplus.log_weight))
        wanted = int(np.clip(needed, *_SURPLUS))
    c = Configurations.cat([surplus, draw(n)])
    effective = len(c) * float(normalized_ess(c.log_weight))
    if effective < max(_SURPLUS_ESS / 2, 0.05 * n):
        warnings.warn(
            f"{n} unweighted configurations come from {len(c)} draws of the model that are worth "
            f"{effective:.1f} independent ones: repeats prevail and the first may be off; train "
            "longer or on a narrower range, or use weighted draws and look at their errors",
            LowESSWarning,
            stacklevel=3,
        )
    out = resample_chain(c, rng, n)
    return replace(out, provenance={**out.provenance, "effective_draws": effective})


def model_folders() -> list[Path]:
    """Folders searched for models (``*.nn``).

    Those of the environment variable ``CLEASE_NN_MODELS`` (separated as in PATH), or else
    ``~/.cache/clease_nn/models``; then the working directory.
    """
    given = os.environ.get("CLEASE_NN_MODELS")
    folders = given.split(os.pathsep) if given else [Path.home() / ".cache/clease_nn/models"]
    return [Path(f) for f in folders if f] + [Path.cwd()]


def find_model(
    key: str, conditions: Conditions, folders: Iterable[os.PathLike | str] | None = None
) -> TrainedModel | None:
    """A saved model of an expansion whose range contains the conditions, or None.

    Parameters
    ----------
    key : str
        Parent fingerprint of the bare expansion (``metadata["parent_fingerprint"]``).
    conditions : Conditions
        All of them must lie in the trained range.
    folders : iterable of paths, optional
        Default :func:`model_folders`. The newest file wins; the first folder goes first.

    Notes
    -----
    Files that are not readable models are passed over.
    """
    for folder in model_folders() if folders is None else map(Path, folders):
        files = folder.glob("*.nn") if folder.is_dir() else ()
        for path in sorted(files, key=_modified, reverse=True):
            try:
                trained = TrainedModel.load(path)
            except (ModelFileError, OSError):
                continue
            if trained.metadata.get("parent_fingerprint") != key:
                continue
            try:
                if bool(trained.range.contains(conditions).all()):
                    return trained
            except ValueError:  # a range for another number of species
                continue
    return None


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
