"""How often neural moves are made: a deterministic pilot run decides."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from clease_nn.configurations import Configurations
from clease_nn.lattice import UNKNOWN
from clease_nn.networks import AbstractNetwork
from clease_nn.sampler.moves import NeuralMoves
from clease_nn.single_chain import SingleChain
from clease_nn.statistics import independence_acceptance, integrated_autocorrelation_time

__all__ = ["Schedule", "plan_schedule"]

# Rough costs in seconds that only decide how often to make neural moves: they are constants, so
# that a run with the same seed makes the same moves on every machine.
_FLOP = 5e-11
_HOST_STEP = 6e-6
_NEAR, _FAR = 1.0, 0.05  # neural time as a share of the host's time for the same steps
_PILOT = (128, 4096)  # sweeps: at least, at most
_LOOK = 6  # proposals that check whether the pilot has seen all
_LOW_ACCEPTANCE = 0.05  # of all sites, below which blocks are tried
_WANTED_ACCEPTANCE = 0.4  # of blocks


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
    Where few global proposals are accepted, blocks of 1/2, 1/4, 1/8 ... of the sites are tried
    until 0.4 of the moves are accepted, unless the model has one order of drawing; the size is
    taken that changes most sites a move.

    Deterministic: costs are constants and the random numbers of the pilot are its own. ``chain``
    is used up; ``moves`` lends its proposals.
    """
    n_rows = len(moves.free)
    networks = [m for m in moves.model.modules() if isinstance(m, AbstractNetwork)]
    a_pass = sum(network.multiplications(moves.lattice.n_sites) for network in networks)

    def interval(passes: int, share: float) -> float:
        """Sweeps in which the host's time is that of a proposal and of scoring the present."""
        cost = 2 * passes * (2 * _FLOP * a_pass + 5e-5)
        return max(1.0, cost / (share * _HOST_STEP * n_free))

    n_passes = _passes(moves, None)
    draw = n_passes * (2 * _FLOP * a_pass + 5e-5)
    far, near = interval(n_passes, _FAR), interval(n_passes, _NEAR)
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
    if acceptance < _LOW_ACCEPTANCE and moves.model.any_order:
        best, size, a = acceptance * n_rows, n_rows, acceptance
        while size > 1 and (a < _WANTED_ACCEPTANCE or size > n_rows // 8):
            size //= 2
            a = _block_acceptance(chain, moves, size)
            if a * size > best:
                best, block, acceptance = a * size, size, a
    if block is not None and block < n_rows // 8:  # a small block costs less than all sites
        n_passes = _passes(moves, block)
        far, near = interval(n_passes, _FAR), interval(n_passes, _NEAR)
    share = 1.0 if block is None else block / n_rows
    pays = acceptance > 0 and acceptance * share * tau > near
    forget = "do not forget" if np.isinf(tau) else f"need {tau:.0f} sweeps to forget"
    reason = (
        f"single-site moves {forget}, {acceptance:.2g} of the neural moves are accepted: one every "
        + (f"{near:.0f} sweeps pays" if pays else f"{far:.0f} sweeps as an insurance")
    )
    return Schedule(near if pays else far, block, tau, acceptance, reason)


def _passes(moves: NeuralMoves, block_size: int | None) -> int:
    """Passes of a network in which a proposal is drawn."""
    n = len(moves.free) if block_size is None else block_size
    occupations = torch.zeros(1, moves.lattice.n_sites, dtype=torch.int8)
    occupations[0, moves.free[:n]] = UNKNOWN
    partial = Configurations(moves.lattice, moves.conditions, occupations)
    steps = moves.model.draw_steps(partial, torch.Generator().manual_seed(0))
    return int(steps.max()) + 1


def _remembers(chain, moves, n_free: int, start: np.ndarray, series: np.ndarray) -> bool:
    """Whether chains from pure species have other means than the given series."""
    for a in range(moves.reachable.shape[1]):
        pure = np.where(moves.reachable[:, a], a, start).astype(np.int8)
        if moves.forbidden is not None and moves.forbidden(pure[None])[0]:
            continue
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
