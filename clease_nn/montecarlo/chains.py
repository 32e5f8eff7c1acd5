"""Many Monte Carlo chains at once, every chain at its own conditions."""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import Tensor

from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.cost import Cost
from clease_nn.energies.tables import ClusterTables
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import Lattice
from clease_nn.montecarlo.engines import Engine, GenericEngine, TableEngine

__all__ = ["Chains", "heat_bath_probabilities", "make_engine", "random_occupations"]

_METHODS = ("heat_bath", "metropolis")


def make_engine(ensemble: SemiGrandCanonical, lattice: Lattice) -> Engine:
    """Compiled engine where the energy is a cluster expansion, the generic one otherwise."""
    tables = getattr(ensemble.energy, "tables", None)
    if isinstance(tables, ClusterTables):
        return TableEngine(tables, lattice)
    return GenericEngine(ensemble.energy, lattice)


def random_occupations(lattice: Lattice, n: int, rng: np.random.Generator) -> np.ndarray:
    """Uniformly random allowed configurations, shape (n, sites), int8."""
    number = lattice.allowed.sum(1)
    choices = np.argsort(~lattice.allowed, axis=1, kind="stable")
    pick = rng.integers(0, number, size=(n, lattice.n_sites))
    return choices[np.arange(lattice.n_sites), pick].astype(np.int8)


def check_occupations(lattice: Lattice, occupations, n: int) -> np.ndarray:
    """A contiguous int8 copy (n, sites); ValueError where a species is not allowed."""
    occupations = np.array(occupations, dtype=np.int8, order="C")
    if occupations.shape != (n, lattice.n_sites):
        raise ValueError(
            f"occupations must have shape ({n}, {lattice.n_sites}) for {n} conditions, got "
            f"{occupations.shape}"
        )
    inside = (occupations >= 0) & (occupations < lattice.n_species)
    good = inside & lattice.allowed[np.arange(lattice.n_sites), np.where(inside, occupations, 0)]
    if not good.all():
        row, site = np.argwhere(~good)[0]
        raise ValueError(
            f"site {site} of configuration {row} carries {occupations[row, site]}, which is not "
            "an allowed species there; chains start from complete configurations"
        )
    return occupations


class Chains:
    """Markov chains of single-site updates, one chain a row of ``conditions``.

    The stationary distribution of chain ``c`` is ``exp(-(E - mu.N)/kT)`` at its own condition,
    restricted to its clamped sites. Cluster expansions run compiled, 64 chains side by side; any
    other batched energy runs on a generic path with the same distribution.

    Parameters
    ----------
    ensemble : SemiGrandCanonical
    lattice : Lattice
    conditions : Conditions
        One row a chain.
    occupations : array_like, shape (chains, sites), optional
        Where to start. Default: uniformly random allowed species.
    clamped : array_like of bool, shape (chains, sites), optional
        Sites that never change. Default: none.
    seed : int or numpy.random.SeedSequence

    Raises
    ------
    ValueError
        If shapes do not match or a site carries a species it may not carry.

    Examples
    --------
    >>> from clease_nn.energies.tables import ClusterTables
    >>> from types import SimpleNamespace
    >>> lattice = Lattice.square(4)
    >>> bonds = [(-0.1, [(i, 0), ((i + 4) % 16, 0)]) for i in range(16)]
    >>> tables = ClusterTables.from_terms(16, [[-1.0, 1.0]], bonds)
    >>> ensemble = SemiGrandCanonical(SimpleNamespace(tables=tables))
    >>> chains = Chains(ensemble, lattice, Conditions([500.0, 900.0], [[0.0, 0.0]] * 2), seed=1)
    >>> chains.sweep(10)
    >>> chains.occupations.shape, chains.energy.shape
    ((2, 16), (2,))
    """

    def __init__(
        self,
        ensemble: SemiGrandCanonical,
        lattice: Lattice,
        conditions: Conditions,
        occupations=None,
        clamped=None,
        seed: int | np.random.SeedSequence = 0,
    ):
        self.ensemble = ensemble
        self.lattice = lattice
        self.engine = make_engine(ensemble, lattice)
        sequence = (
            seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
        )
        self.rng = np.random.default_rng(sequence)
        self.conditions = conditions
        n = len(conditions)
        if occupations is None:
            occupations = random_occupations(lattice, n, self.rng)
        elif isinstance(occupations, Tensor):
            occupations = occupations.cpu().numpy()
        self._occupations = check_occupations(lattice, occupations, n)
        if clamped is None:
            clamped = np.zeros((n, lattice.n_sites), dtype=bool)
        elif isinstance(clamped, Tensor):
            clamped = clamped.cpu().numpy()
        self._clamped = np.array(clamped, dtype=bool, order="C")
        if self._clamped.shape != self._occupations.shape:
            raise ValueError(
                f"clamped must have shape {self._occupations.shape}, got {self._clamped.shape}"
            )
        self.generators = self.engine.new_generators(n, self.rng)
        self.accepted = 0
        self.attempted = 0
        self.seconds = 0.0
        self._energy: np.ndarray | None = None

    # ------------------------------------------------------------------ state
    @property
    def conditions(self) -> Conditions:
        """Conditions of every chain; may be replaced by as many others."""
        return self._conditions

    @conditions.setter
    def conditions(self, conditions: Conditions) -> None:
        if conditions.mu.shape[1] != self.lattice.n_species:
            raise ValueError(
                f"conditions have {conditions.mu.shape[1]} chemical potentials, the lattice "
                f"{self.lattice.n_species} species"
            )
        if hasattr(self, "_conditions") and len(conditions) != len(self._conditions):
            raise ValueError(
                f"{len(self._conditions)} chains need as many conditions, got {len(conditions)}"
            )
        self._conditions = conditions
        beta = conditions.beta.cpu().numpy()
        self.set_weights(beta, beta[:, None] * conditions.mu.cpu().numpy())

    def set_weights(self, beta: np.ndarray, beta_mu: np.ndarray) -> None:
        """Set ``1/kT`` (chains,) in 1/eV and ``mu/kT`` (chains, species); zero is allowed."""
        self.beta = np.ascontiguousarray(beta, dtype=float)
        self.beta_mu = np.ascontiguousarray(beta_mu, dtype=float)

    @property
    def occupations(self) -> np.ndarray:
        """Present configurations, shape (chains, sites), int8; assign to replace them."""
        return self._occupations

    @occupations.setter
    def occupations(self, occupations) -> None:
        if isinstance(occupations, Tensor):
            occupations = occupations.cpu().numpy()
        self._occupations = check_occupations(self.lattice, occupations, len(self))
        self._energy = None

    @property
    def energy(self) -> np.ndarray:
        """Energies of the present configurations in eV per supercell, shape (chains,)."""
        if self._energy is None:
            self._energy = self.engine.energies(self._occupations)
        return self._energy

    @property
    def energy_evaluations(self) -> int:
        """Energies evaluated so far; a single-site energy difference counts as one."""
        return self.engine.evaluations

    @property
    def cost(self) -> Cost:
        """What all chains together have cost; seconds are those of sweeps in this process."""
        return Cost(
            energy_evaluations=float(self.energy_evaluations),
            attempts_per_site=self.attempted / self.lattice.n_sites,
            seconds=self.seconds,
        )

    def replace(self, rows: np.ndarray, occupations: np.ndarray, energy: np.ndarray) -> None:
        """Some chains continue from other configurations, whose energies in eV are known."""
        known = self.energy.copy()
        known[rows] = energy
        fresh = self._occupations.copy()
        fresh[rows] = check_occupations(self.lattice, occupations, len(rows))
        self._occupations, self._energy = fresh, known

    def permute(self, order: np.ndarray) -> None:
        """Chain ``c`` continues from the configuration of chain ``order[c]``."""
        self._occupations = self._occupations[order]
        if self._energy is not None:
            self._energy = self._energy[order]

    def counts(self) -> np.ndarray:
        """Sites that carry each species, shape (chains, species), float64."""
        return np.stack(
            [(self._occupations == a).sum(1) for a in range(self.lattice.n_species)], 1
        ).astype(float)

    def __len__(self) -> int:
        return len(self._conditions)

    # ------------------------------------------------------------------ moves
    def sweep(self, n: int = 1, method: str = "heat_bath") -> None:
        """Do ``n`` sweeps, as many single-site updates a sweep as there are sites.

        ``"heat_bath"`` draws the species of a site from its exact conditional distribution, sites
        in random order. ``"metropolis"`` proposes another allowed species on a random site and
        accepts it with probability ``min(1, weight ratio)``.

        Raises
        ------
        ValueError
            If the method is unknown.
        """
        if method not in _METHODS:
            raise ValueError(f"method must be one of {_METHODS}, got {method!r}")
        started = time.perf_counter()
        attempted, accepted, self._energy = getattr(self.engine, method)(
            self._occupations,
            self.beta,
            self.beta_mu,
            self._clamped,
            int(n),
            self.generators,
            self.rng,
            self._energy,
        )
        self.attempted += attempted
        self.accepted += accepted
        self.seconds += time.perf_counter() - started

    def configurations(self, chain=None) -> Configurations:
        """Present configurations with energy, log_target and chain filled in.

        Parameters
        ----------
        chain : array_like of int, shape (chains,), optional
            Identifiers of the chains. Default: 0, 1, 2, ...
        """
        chain = np.arange(len(self)) if chain is None else np.asarray(chain)
        c = Configurations(
            self.lattice,
            self.conditions,
            torch.from_numpy(self._occupations.copy()),
            chain=torch.as_tensor(chain, dtype=torch.int64),
        )
        energy = torch.from_numpy(self.energy.copy())
        return Configurations(
            c.lattice,
            c.conditions,
            c.occupations,
            energy=energy,
            log_target=self.ensemble.log_weight(c, energy),
            chain=c.chain,
            provenance=self.cost.to_dict(),
        )

    def state_dict(self) -> dict:
        """Everything that a bitwise continuation needs: arrays and generator states."""
        return {
            "occupations": self._occupations.copy(),
            "clamped": self._clamped.copy(),
            "beta": self.beta.copy(),
            "beta_mu": self.beta_mu.copy(),
            "temperature": self.conditions.temperature.numpy().copy(),
            "mu": self.conditions.mu.numpy().copy(),
            "generators": self.generators.copy(),
            "rng": self.rng.bit_generator.state,
            "accepted": self.accepted,
            "attempted": self.attempted,
            "evaluations": self.engine.evaluations,
            "energy": None if self._energy is None else self._energy.copy(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue from a state written by :meth:`state_dict` of chains of the same shape."""
        if np.shape(state["occupations"]) != self._occupations.shape:
            raise ValueError(
                f"the saved chains have shape {np.shape(state['occupations'])}, these "
                f"{self._occupations.shape}"
            )
        self.conditions = Conditions(state["temperature"], state["mu"])
        self.set_weights(state["beta"], state["beta_mu"])
        self._occupations = np.array(state["occupations"], dtype=np.int8, order="C")
        self._clamped = np.array(state["clamped"], dtype=bool, order="C")
        self.generators = np.array(state["generators"], dtype=np.uint64, order="C")
        self.rng.bit_generator.state = state["rng"]
        self.accepted = int(state["accepted"])
        self.attempted = int(state["attempted"])
        self.engine.evaluations = int(state["evaluations"])
        energy = state["energy"]
        self._energy = None if energy is None else np.array(energy, dtype=float)


def heat_bath_probabilities(
    ensemble: SemiGrandCanonical,
    lattice: Lattice,
    conditions: Conditions,
    occupations,
    clamped,
    sweeps: int,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    """Rao-Blackwell targets: conditional probabilities averaged over heat-bath sweeps.

    The clamped sites stay, the others start from ``occupations`` and are swept; whenever a site
    is updated, the exact conditional probabilities of its species given all other sites are
    added up. Their mean estimates ``p(species on site | clamped sites)`` with less noise than the
    drawn species.

    Parameters
    ----------
    ensemble, lattice, conditions
        One condition a row.
    occupations : array_like, shape (batch, sites)
        Complete configurations.
    clamped : array_like of bool, shape (batch, sites)
    sweeps : int
        At least 1.
    rng : numpy.random.Generator

    Returns
    -------
    probabilities : Tensor, shape (batch, sites, species), float32
        One-hot on clamped sites and on sites with a single allowed species.
    occupations : Tensor, shape (batch, sites), int8
        The final configurations.
    """
    if sweeps < 1:
        raise ValueError(f"sweeps must be at least 1, got {sweeps}")
    occupations = torch.as_tensor(occupations).cpu().numpy()
    occupations = check_occupations(lattice, occupations, len(conditions))
    clamped = np.ascontiguousarray(torch.as_tensor(clamped).cpu().numpy().astype(bool))
    if clamped.shape != occupations.shape:
        raise ValueError(f"clamped must have shape {occupations.shape}, got {clamped.shape}")
    engine = make_engine(ensemble, lattice)
    beta = conditions.beta.cpu().numpy()
    beta_mu = beta[:, None] * conditions.mu.cpu().numpy()
    sums = np.zeros((*occupations.shape, lattice.n_species), dtype=np.float32)
    generators = engine.new_generators(len(conditions), rng)
    engine.heat_bath(occupations, beta, beta_mu, clamped, int(sweeps), generators, rng, None, sums)
    sums /= sweeps
    known = clamped | (lattice.allowed.sum(1) == 1)
    np.copyto(
        sums, np.eye(lattice.n_species, dtype=np.float32)[occupations], where=known[..., None]
    )
    return torch.from_numpy(sums), torch.from_numpy(occupations)
