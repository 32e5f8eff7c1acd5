"""Batches from parallel tempering."""

from __future__ import annotations

import numpy as np
import torch

from clease_nn.conditions import ConditionRange, Conditions
from clease_nn.configurations import Configurations
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import UNKNOWN, Lattice
from clease_nn.models import AbstractOccupationModel
from clease_nn.montecarlo import ParallelTempering, heat_bath_probabilities
from clease_nn.montecarlo.spacing import equalise_spacing
from clease_nn.objectives import CompleteBatch, MaskedBatch
from clease_nn.sources.abstract import AbstractSource
from clease_nn.sources.masking import random_known_sites

__all__ = ["ParallelTemperingSource"]


class ParallelTemperingSource(AbstractSource):
    """Unbiased batches from vectorised parallel tempering over a range of conditions.

    Before every batch all chains do ``sweeps`` heat-bath sweeps and one exchange. Rows are random
    chains with a stratified random number of known sites; targets are heat-bath conditionals of
    the unknown sites averaged over ``target_sweeps`` sweeps with the known sites clamped
    (Rao-Blackwell). Models that draw in a fixed order are given the whole configurations.

    Parameters
    ----------
    ensemble, lattice, box
        What to sample: any energy with ``flip_energies`` or cluster tables is fast.
    shape : tuple of int, optional
        Chains along temperature and each chemical potential. Default about 1024 in all.
    burn_in : int
        Exchange steps before and after the conditions are spaced
        (:func:`~clease_nn.montecarlo.spacing.equalise_spacing`), all before the first batch.
    seed : int or numpy.random.SeedSequence
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
        seed: int | np.random.SeedSequence = 0,
    ):
        sequence = (
            seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
        )
        chains_seed, own_seed, order_seed = sequence.spawn(3)
        if shape is None:
            side = max(2, round(1024 ** (1 / (1 + box.n_axes))))
            shape = (side,) * (1 + box.n_axes)
        self.ensemble, self.lattice, self.box = ensemble, lattice, box
        self.target_sweeps = target_sweeps
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
        )
        self._evaluations = 0
        self._burn_in = burn_in

    def _advance(self) -> None:
        if self._burn_in:
            for _ in range(self._burn_in):
                self.tempering.step()
            if hasattr(self.ensemble.energy, "flip_energies"):
                self.tempering.thaw()
            if self.box.n_axes:
                equalise_spacing(self.tempering, self.box, self._burn_in, self.rng)
                for _ in range(self._burn_in):
                    self.tempering.step()
            self._burn_in = 0
        self.tempering.step()

    def batch(self, size: int, model: AbstractOccupationModel) -> MaskedBatch | CompleteBatch:
        """The next ``size`` rows; all chains move on first.

        Masked for models of any order, complete for the others.
        """
        self._advance()
        n_chains = len(self.tempering.conditions)
        rows = self.rng.choice(n_chains, size, replace=size > n_chains)
        full = torch.as_tensor(self.tempering.occupations[rows])
        conditions: Conditions = self.tempering.conditions[torch.as_tensor(rows)]
        if not model.any_order:
            return self._complete(full, conditions, torch.as_tensor(rows), model)
        known, weight = random_known_sites(size, self.lattice.n_sites, self.rng)
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
        """Chains, generators and counters."""
        return {
            "tempering": self.tempering.state_dict(),
            "rng": self.rng.bit_generator.state,
            "orders": self.orders.get_state(),
            "evaluations": self._evaluations,
            "burn_in": self._burn_in,
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue exactly where :meth:`state_dict` was taken."""
        self.tempering.load_state_dict(state["tempering"])
        self.rng.bit_generator.state = state["rng"]
        self.orders.set_state(state["orders"])
        self._evaluations = int(state["evaluations"])
        self._burn_in = int(state["burn_in"])
