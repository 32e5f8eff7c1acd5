"""Batches from parallel tempering."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch

from clease_nn.conditions import ConditionRange, Conditions
from clease_nn.configurations import Configurations
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import UNKNOWN, Lattice
from clease_nn.models import AbstractOccupationModel
from clease_nn.montecarlo import ParallelTempering, heat_bath_probabilities
from clease_nn.montecarlo.moves import Move
from clease_nn.montecarlo.result import named
from clease_nn.montecarlo.spacing import equalise_spacing
from clease_nn.objectives import CompleteBatch, MaskedBatch
from clease_nn.sources.abstract import AbstractSource
from clease_nn.sources.masking import random_known_sites, with_surprises
from clease_nn.warnings import ChainWarning

__all__ = ["ParallelTemperingSource"]

_FLOOR = 0.3  # of its even share that every chain keeps, wherever the gap is
_MOVES_AFTER = 200  # batches; before, the model's proposals are hardly accepted
_MOVE_INTERVAL = 20  # batches between the moves of the model
_MOVE_ROWS = 64  # chains that they are tried on, drawn evenly


class ParallelTemperingSource(AbstractSource):
    """Unbiased batches from vectorised parallel tempering over a range of conditions.

    Before every batch all chains do ``sweeps`` heat-bath sweeps and one exchange. Rows are random
    chains with a stratified random number of known sites; targets are heat-bath conditionals of
    the unknown sites averaged over ``target_sweeps`` sweeps with the known sites clamped
    (Rao-Blackwell). Models that draw in a fixed order are given the whole configurations.

    Chains that remain frozen in defects are replaced before the first batch; a ChainWarning names
    the conditions of those that stay so.

    Parameters
    ----------
    ensemble, lattice, box
        What to sample: any energy with ``flip_energies`` or cluster tables is fast.
    shape : tuple of int, optional
        Chains along temperature and each chemical potential. Default about 1024 in all.
    burn_in : int
        Exchange steps before and after the conditions are spaced
        (:func:`~clease_nn.montecarlo.spacing.equalise_spacing`), all before the first batch.
    start : str, Configurations or list of ase.Atoms
        As of :class:`~clease_nn.montecarlo.ParallelTempering`; ``"ordered"`` for large cells.
    moves : callable, optional
        ``moves(model, ensemble, lattice)`` gives the :class:`~clease_nn.montecarlo.moves.Move`
        objects by which the model that is trained helps the chains across, such as
        :class:`~clease_nn.sampling.BlockMoves`; asked once for each model. From the 200th batch
        on, 64 random chains try each of them every 20 batches. Each move is exact; that the model
        learns from the same chains makes a small difference, as in all adaptive Monte Carlo, that
        fades as the model settles. Of a model on another device they are handed a copy on the
        CPU, brought up to date each time. Moves with ``state_dict`` are resumed with the source.
    surprises : float
        Share of the rows in which some known sites carry species by chance
        (:func:`~clease_nn.sources.masking.with_surprises`): what is rare in a small cell is not
        in a large one. Masked rows only.
    seed : int or numpy.random.SeedSequence

    Raises
    ------
    ValueError
        If ``surprises`` is no share, and as ``ParallelTempering``.

    Attributes
    ----------
    shares : ndarray, shape (chains,)
        Share of the rows of a batch that each chain has on average, see :meth:`focus`.
    move_acceptance : float
        Share of the moves of the model that were accepted; nan before the first.

    Examples
    --------
    >>> from clease_nn.energies.ising import ising_energy
    >>> lattice = Lattice.square(3)
    >>> box = ConditionRange((20000, 60000), [-0.5], [0.5], [[-1.0, 1.0]])
    >>> source = ParallelTemperingSource(
    ...     SemiGrandCanonical(ising_energy(lattice)), lattice, box, shape=(4, 4), burn_in=2
    ... )
    >>> source.focus(box.at([[0.0, 0.5]]), np.array([0.3]))
    >>> bool(np.allclose(source.shares, 1 / 16))  # measured at one place: no reason to choose
    True
    """

    def __init__(
        self,
        ensemble: SemiGrandCanonical,
        lattice: Lattice,
        box: ConditionRange,
        *,
        shape: tuple[int, ...] | None = None,
        sweeps: int = 2,
        target_sweeps: int = 24,
        burn_in: int = 50,
        start: str | Configurations | Sequence = "grow",
        moves: Callable[..., Sequence[Move]] | None = None,
        surprises: float = 0.125,
        seed: int | np.random.SeedSequence = 0,
    ):
        sequence = (
            seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
        )
        if not 0 <= surprises <= 1:
            raise ValueError(f"surprises must be a share of the rows, 0 to 1, got {surprises}")
        chains_seed, own_seed, order_seed = sequence.spawn(3)
        if shape is None:
            side = max(2, round(1024 ** (1 / (1 + box.n_axes))))
            shape = (side,) * (1 + box.n_axes)
        self.ensemble, self.lattice, self.box = ensemble, lattice, box
        self.target_sweeps, self.surprises = target_sweeps, float(surprises)
        self.rng = np.random.default_rng(own_seed)
        self.orders = torch.Generator().manual_seed(int(order_seed.generate_state(1)[0]))
        self.tempering = ParallelTempering(
            ensemble,
            lattice,
            box,
            shape=shape,
            sweeps_per_exchange=sweeps,
            jitter=True,
            seed=chains_seed,
            start=start,
        )
        self._evaluations = 0
        self._burn_in = burn_in
        self._batches = 0
        self._gap: tuple[Conditions, np.ndarray] | None = None
        self._shares: np.ndarray | None = None
        self._moves, self._moves_of = moves, None
        self._at_work: AbstractOccupationModel | None = None  # what moves draw with, on the CPU
        self._made: list[Move] = []
        self._move_states: list | None = None
        self._moved = np.zeros(2, dtype=np.int64)

    def _advance(self) -> None:
        if self._burn_in:
            self._settle(self._burn_in)
            self._burn_in = 0
        self.tempering.step()

    def _settle(self, steps: int) -> None:
        """Burn in, space the conditions, replace frozen chains, and see that none stays so."""
        chains = self.tempering
        cheap = hasattr(self.ensemble.energy, "flip_energies")
        for _ in range(steps):
            chains.step()
        if cheap:
            chains.thaw()
        if self.box.n_axes:
            equalise_spacing(chains, self.box, steps, self.rng)
            for _ in range(steps):
                chains.step()
        if cheap and chains.thaw().mask.any():
            for _ in range(steps):
                chains.step()
            frozen = chains.thaw().mask
            if frozen.any():
                warnings.warn(
                    f"{int(frozen.sum())} of {len(frozen)} chains froze again after they had been "
                    f"replaced: {named(chains.conditions, np.flatnonzero(frozen))}. Begin with "
                    "start='ordered', use more chains or a longer burn-in",
                    ChainWarning,
                    stacklevel=4,
                )
        self._share_out()

    # ------------------------------------------------------------------ where rows come from
    @property
    def shares(self) -> np.ndarray:
        """Share of the rows of a batch that each chain has on average; they sum to one."""
        n = len(self.tempering.conditions)
        return np.full(n, 1 / n) if self._shares is None else self._shares.copy()

    def focus(self, conditions: Conditions, gap: np.ndarray) -> None:
        """Draw rows of later batches in proportion to the KL gap that was measured.

        The gap is interpolated to the conditions of the chains (inverse squared distance in 1/kT
        and the chemical potentials, both in units of the range); negative ones count as zero.
        Every chain keeps 30 % of its even share. Only how often a condition is trained on
        changes: targets at each condition are what they were, so that the minimum of the
        objective is, condition by condition, the same.

        Parameters
        ----------
        conditions : Conditions
            Where it was measured.
        gap : ndarray, shape (conditions,)
            In nats. What is not finite is left out.

        Raises
        ------
        ValueError
            If there are not as many gaps as conditions, or the chemical potentials are of another
            number of species.
        """
        gap = np.asarray(gap, dtype=float)
        if gap.shape != (len(conditions),):
            raise ValueError(
                f"focus needs one gap for each of the {len(conditions)} conditions, got an array "
                f"of shape {gap.shape}"
            )
        if conditions.mu.shape[1] != self.lattice.n_species:
            raise ValueError(
                f"the conditions have {conditions.mu.shape[1]} chemical potentials, the lattice "
                f"{self.lattice.n_species} species"
            )
        finite = np.isfinite(gap)
        self._gap = None
        if finite.any():
            picked = torch.from_numpy(np.flatnonzero(finite))
            self._gap = (conditions[picked], np.maximum(gap[finite], 0.0))
        self._share_out()

    def _share_out(self) -> None:
        """Shares of the chains at their present conditions."""
        self._shares = None
        if self._gap is None:
            return
        where, gap = self._gap
        at = self._scaled(self.tempering.conditions)
        distance = ((at[:, None] - self._scaled(where)[None]) ** 2).sum(2)
        weight = 1.0 / (distance + 1e-6)
        wanted = (weight * gap).sum(1) / weight.sum(1)
        if wanted.sum() > 0:
            self._shares = _FLOOR / len(at) + (1 - _FLOOR) * wanted / wanted.sum()

    def _scaled(self, conditions: Conditions) -> np.ndarray:
        """1/kT and chemical potentials in units of the range, shape (conditions, 1 + axes)."""
        cold, hot = 1.0 / np.array(self.box.temperature)
        beta = 1.0 / conditions.temperature.cpu().numpy()
        x = (self.box.coordinates(conditions) - self.box.low) / (self.box.high - self.box.low)
        return np.concatenate([((beta - hot) / (cold - hot))[:, None], x], 1)

    def _rows(self, size: int) -> np.ndarray:
        """Chains of a batch in random order: each as often as its share asks, up to one row."""
        n = len(self.tempering.conditions)
        if self._shares is None:
            return self.rng.choice(n, size, replace=size > n)
        order = self.rng.permutation(n)
        ends = np.cumsum(self._shares[order]) * size
        places = np.arange(size) + self.rng.random()
        rows = order[np.minimum(np.searchsorted(ends, places, side="right"), n - 1)]
        return self.rng.permutation(rows)

    # ------------------------------------------------------------------ help of the model
    @property
    def move_acceptance(self) -> float:
        """Share of the moves of the model that were accepted; nan before the first."""
        return float(self._moved[0] / self._moved[1]) if self._moved[1] else float("nan")

    def _let_model_move(self, model: AbstractOccupationModel) -> None:
        if self._moves is None or self._batches < _MOVES_AFTER or self._batches % _MOVE_INTERVAL:
            return
        if self._moves_of is not model:
            self._moves_of, self._at_work = model, _on_cpu(model)
            self._made = list(self._moves(self._at_work, self.ensemble, self.lattice))
            for move, state in zip(self._made, self._move_states or (), strict=False):
                if state is not None:
                    move.load_state_dict(state)
            self._move_states = None
        if self._at_work is not model:
            self._at_work.load_state_dict(model.state_dict())
        n = len(self.tempering.conditions)
        for move in self._made:
            rows = self.rng.choice(n, min(_MOVE_ROWS, n), replace=False)
            accepted = self.tempering.apply(move, rows)
            self._moved += int(accepted.sum()), len(rows)

    # ------------------------------------------------------------------ batches
    def batch(self, size: int, model: AbstractOccupationModel) -> MaskedBatch | CompleteBatch:
        """The next ``size`` rows; all chains move on first.

        Masked for models of any order, complete for the others.
        """
        self._advance()
        self._let_model_move(model)
        self._batches += 1
        rows = self._rows(size)
        full = torch.as_tensor(self.tempering.occupations[rows])
        conditions: Conditions = self.tempering.conditions[torch.as_tensor(rows)]
        if not model.any_order:
            return self._complete(full, conditions, torch.as_tensor(rows), model)
        known, weight = random_known_sites(size, self.lattice.n_sites, self.rng)
        if self.surprises:
            full = with_surprises(full.numpy(), known, self.lattice, self.surprises, self.rng)
            full = torch.from_numpy(full)
        targets, _ = heat_bath_probabilities(
            self.ensemble, self.lattice, conditions, full, known, self.target_sweeps, self.rng
        )
        self._evaluations += int((~known).sum()) * self.target_sweeps
        occupations = torch.where(torch.as_tensor(known), full, UNKNOWN).to(torch.int8)
        partial = Configurations(self.lattice, conditions, occupations)
        fields = self.ensemble.fields(partial) if model.needs_fields else None
        return MaskedBatch(partial, targets, fields, torch.as_tensor(weight))

    def _complete(self, full, conditions, chain, model) -> CompleteBatch:
        steps = model.draw_steps(Configurations.unknown(self.lattice, conditions), self.orders)
        c = Configurations(self.lattice, conditions, full, step=steps)
        group = torch.unique(chain, return_inverse=True)[1]
        return CompleteBatch(c, group, self.ensemble.fields if model.needs_fields else None)

    def chain_configurations(self, n_conditions: int, n_each: int) -> Configurations:
        """Configurations of chains spread over the range; all chains move on 2 steps between."""
        n_chains = len(self.tempering.conditions)
        stride = (np.sqrt(5) - 1) / 2  # golden ratio: an even spread in every direction
        rows = np.unique((np.arange(n_conditions) * stride % 1 * n_chains).astype(int))
        picked = torch.as_tensor(rows)
        parts = []
        for _ in range(n_each):
            self._advance()
            self._advance()
            occupations = torch.as_tensor(self.tempering.occupations[rows].copy())
            parts.append(
                Configurations(
                    self.lattice, self.tempering.conditions[picked], occupations, chain=picked
                )
            )
        order = np.arange(n_each * len(rows)).reshape(n_each, -1).T.ravel()
        return Configurations.cat(parts)[torch.as_tensor(order)]

    @property
    def energy_evaluations(self) -> int:
        """Energies evaluated so far, those of the targets included."""
        return self._evaluations + self.tempering.energy_evaluations

    def state_dict(self) -> dict:
        """Chains, generators, counters, the measured gap and the state of moves that have one."""
        states = self._move_states
        if self._made:
            states = [m.state_dict() if hasattr(m, "state_dict") else None for m in self._made]
        gap = None
        if self._gap is not None:
            where, values = self._gap
            gap = {
                "temperature": where.temperature.numpy().copy(),
                "mu": where.mu.numpy().copy(),
                "gap": values.copy(),
            }
        return {
            "tempering": self.tempering.state_dict(),
            "rng": self.rng.bit_generator.state,
            "orders": self.orders.get_state(),
            "evaluations": self._evaluations,
            "burn_in": self._burn_in,
            "batches": self._batches,
            "gap": gap,
            "moves": states,
            "moved": self._moved.copy(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue exactly where :meth:`state_dict` was taken."""
        self.tempering.load_state_dict(state["tempering"])
        self.rng.bit_generator.state = state["rng"]
        self.orders.set_state(state["orders"])
        self._evaluations = int(state["evaluations"])
        self._burn_in = int(state["burn_in"])
        self._batches = int(state.get("batches", 0))
        gap = state.get("gap")
        self._gap = None
        if gap is not None:
            self._gap = (Conditions(gap["temperature"], gap["mu"]), np.array(gap["gap"]))
        self._share_out()
        self._made, self._moves_of = [], None
        self._move_states = state.get("moves")
        self._moved = np.array(state.get("moved", (0, 0)), dtype=np.int64)


def _on_cpu(model: AbstractOccupationModel) -> AbstractOccupationModel:
    """The model itself where it is on the CPU, otherwise a copy there."""
    if all(p.device.type == "cpu" for p in model.parameters()):
        return model
    return copy.deepcopy(model).cpu()
