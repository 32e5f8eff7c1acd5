"""Parallel tempering over a grid of temperatures and chemical potentials."""

from __future__ import annotations

import numpy as np
import torch

from clease_nn.conditions import ConditionRange, Conditions
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import Lattice
from clease_nn.montecarlo.chains import Chains

__all__ = ["ParallelTempering"]


class ParallelTempering:
    """Chains on a (T, mu) grid that exchange configurations with their neighbours.

    Neighbours along temperature and along every chemical potential exchange in turn. Two
    conditions ``i, j`` exchange with probability
    ``min(1, w_i(x_j) w_j(x_i) / (w_i(x_i) w_j(x_j)))``, ``w = exp(-(E - mu.N)/kT)``, which leaves
    every ``w`` stationary (Geyer 1991).

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
        Draw every condition uniformly within its cell of the grid instead of on its corner: the
        chains then cover the box instead of a few isotherms. Only with a ConditionRange.

    Raises
    ------
    ValueError
        If the shape does not fit the box.
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
        start: str = "random",
    ):
        sequence = (
            seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
        )
        for_grid, for_chains, for_swaps = sequence.spawn(3)
        self.shape = tuple(int(n) for n in shape)
        if sweeps_per_exchange < 1:
            raise ValueError(f"sweeps_per_exchange must be at least 1, got {sweeps_per_exchange}")
        self.sweeps_per_exchange = int(sweeps_per_exchange)
        self.box = box
        conditions = _grid(box, self.shape, jitter, np.random.default_rng(for_grid))
        self.chains = Chains(ensemble, lattice, conditions, seed=for_chains)
        self.rng = np.random.default_rng(for_swaps)
        self.pairs = [neighbour_pairs(self.shape, axis) for axis in range(len(self.shape))]
        self.replica = np.arange(len(conditions))
        self.steps = 0
        self.swaps_attempted = np.zeros(len(self.shape), dtype=np.int64)
        self.swaps_accepted = np.zeros(len(self.shape), dtype=np.int64)

    @property
    def lattice(self) -> Lattice:
        """Lattice of the chains."""
        return self.chains.lattice

    @property
    def conditions(self) -> Conditions:
        """Conditions of the grid, the last axis fastest."""
        return self.chains.conditions

    @property
    def occupations(self) -> np.ndarray:
        """Present configurations, shape (chains, sites), int8."""
        return self.chains.occupations

    @property
    def energy_evaluations(self) -> int:
        """Energies evaluated so far; a single-site energy difference counts as one."""
        return self.chains.energy_evaluations

    @property
    def swap_acceptance(self) -> np.ndarray:
        """Share of exchanges accepted along temperature and every chemical potential."""
        return self.swaps_accepted / np.maximum(self.swaps_attempted, 1)

    def step(self) -> tuple[torch.Tensor, Conditions]:
        """Sweeps of all chains, then exchanges along every axis of the grid.

        Returns
        -------
        occupations : Tensor, shape (chains, sites), int8
            A copy of the present configurations.
        conditions : Conditions
            Their conditions.
        """
        self.chains.sweep(self.sweeps_per_exchange)
        self.exchange()
        self.steps += 1
        return torch.from_numpy(self.chains.occupations.copy()), self.conditions

    def exchange(self) -> None:
        """Exchange neighbours along every axis, even and odd pairs in turn."""
        chains = self.chains
        for axis, both in enumerate(self.pairs):
            i, j = both[self.steps % 2]
            if len(i) == 0:
                continue
            energy, counts = chains.energy, chains.counts()
            d_energy = energy[i] - energy[j]
            d_counts = counts[i] - counts[j]
            log_ratio = (chains.beta[i] - chains.beta[j]) * d_energy
            log_ratio -= ((chains.beta_mu[i] - chains.beta_mu[j]) * d_counts).sum(1)
            take = np.log(self.rng.random(len(i))) < log_ratio
            order = np.arange(len(chains))
            order[i[take]], order[j[take]] = j[take], i[take]
            chains.permute(order)
            self.replica = self.replica[order]
            self.swaps_attempted[axis] += len(i)
            self.swaps_accepted[axis] += int(take.sum())

    def state_dict(self) -> dict:
        """Everything that a bitwise continuation needs: arrays and generator states."""
        return {
            "chains": self.chains.state_dict(),
            "rng": self.rng.bit_generator.state,
            "replica": self.replica.copy(),
            "steps": self.steps,
            "shape": self.shape,
            "swaps_attempted": self.swaps_attempted.copy(),
            "swaps_accepted": self.swaps_accepted.copy(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue from a state written by :meth:`state_dict`."""
        if tuple(state["shape"]) != self.shape:
            raise ValueError(f"the saved grid has shape {state['shape']}, this one {self.shape}")
        self.chains.load_state_dict(state["chains"])
        self.rng.bit_generator.state = state["rng"]
        self.replica = np.array(state["replica"], dtype=np.int64)
        self.steps = int(state["steps"])
        self.swaps_attempted = np.array(state["swaps_attempted"], dtype=np.int64)
        self.swaps_accepted = np.array(state["swaps_accepted"], dtype=np.int64)


def neighbour_pairs(shape: tuple[int, ...], axis: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Even and odd pairs of neighbours of a grid along one axis."""
    index = np.moveaxis(np.arange(int(np.prod(shape))).reshape(shape), axis, 0)
    out = []
    for parity in (0, 1):
        low = index[parity : len(index) - 1 : 2]
        high = index[parity + 1 :: 2]
        out.append((low.ravel(), high.ravel()))
    return out


def _grid(box, shape, jitter: bool, rng: np.random.Generator) -> Conditions:
    """The conditions of a grid, checked against its shape."""
    if any(n < 1 for n in shape):
        raise ValueError(f"shape must be positive along every axis, got {shape}")
    if isinstance(box, Conditions):
        if jitter:
            raise ValueError("jitter needs a ConditionRange; give the box instead of conditions")
        if len(box) != int(np.prod(shape)):
            raise ValueError(
                f"shape {shape} needs {int(np.prod(shape))} conditions, not {len(box)}"
            )
        return box
    if len(shape) != 1 + box.n_axes:
        raise ValueError(
            f"shape must have {1 + box.n_axes} numbers (temperatures and {box.n_axes} axes of "
            f"chemical potentials), got {shape}"
        )
    mesh = np.stack([m.ravel() for m in np.meshgrid(*map(np.arange, shape), indexing="ij")], 1)
    n = np.array(shape)
    if jitter:
        return box.at((mesh + rng.random(mesh.shape)) / n)
    return box.at(np.where(n > 1, mesh / np.maximum(n - 1, 1), 0.5))
