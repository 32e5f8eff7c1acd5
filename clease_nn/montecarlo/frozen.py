"""Checks of chains: frozen ones, and a rigorous lower bound of ln Z."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations, species_counts
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.montecarlo.chains import make_engine
from clease_nn.montecarlo.engines import Engine

__all__ = ["FrozenChains", "frozen_chains", "ground_state_bound"]

_EQUAL = 1e-9  # eV; configurations whose energies agree to that are variants of one another
_TRANSLATIONS = 512  # of every configuration of the lower bound, at most
_VARIANTS = 2**27  # numbers in all configurations of the lower bound together, at most


@dataclass(frozen=True, eq=False)
class FrozenChains:
    """Which chains are frozen in a basin that equilibrium would not choose.

    Attributes
    ----------
    mask : ndarray of bool, shape (chains,)
    excess : ndarray, shape (chains,)
        Mean ``E - mu.N`` of the chain above the best configuration seen at its condition, eV.
    excess_kT : ndarray, shape (chains,)
        The same in units of kT.
    entropy : ndarray, shape (chains,)
        Upper bound of the entropy of the basin in units of k.
    best : ndarray of int, shape (chains,)
        Row of the candidates with the lowest ``E - mu.N`` at each condition.
    energy_evaluations : int
        What the test has cost.
    """

    mask: np.ndarray
    excess: np.ndarray
    excess_kT: np.ndarray
    entropy: np.ndarray
    best: np.ndarray
    energy_evaluations: int = 0

    def __str__(self) -> str:
        worst = float(self.excess[self.mask].max()) if self.mask.any() else 0.0
        return (
            f"{int(self.mask.sum())} of {len(self.mask)} chains frozen, worst excess {worst:.3f} eV"
        )


@dataclass(frozen=True, eq=False)
class Basin:
    """Averages over a few sweeps from a start: what its neighbourhood is worth.

    Attributes
    ----------
    occupations : ndarray, shape (chains, sites), int8
        After the sweeps.
    grand_energy : ndarray, shape (chains,)
        Mean ``E - mu.N`` in eV.
    counts : ndarray, shape (chains, species)
        Mean numbers of sites.
    entropy : ndarray, shape (chains,)
        Sum over sites of the entropy of the site's occupation, in units of k: an upper bound.
    """

    occupations: np.ndarray
    grand_energy: np.ndarray
    counts: np.ndarray
    entropy: np.ndarray


def explore(engine: Engine, conditions: Conditions, x, sweeps: int, rng) -> Basin:
    """Sweep chains on their own and average; ``x`` (chains, sites) is changed in place."""
    lattice = engine.lattice
    beta = conditions.beta.cpu().numpy()
    mu = conditions.mu.cpu().numpy()
    clamped = np.zeros(x.shape, dtype=bool)
    generators = engine.new_generators(len(x), rng)
    sums = np.zeros((*x.shape, lattice.n_species), dtype=np.float32)
    total = np.zeros(len(x))
    now = None
    for _ in range(sweeps):
        _, _, now = engine.heat_bath(
            x, beta, beta[:, None] * mu, clamped, 1, generators, rng, now, sums
        )
        total += engine.energies(x) - (_counts(x, lattice) * mu).sum(1)
    single = lattice.allowed.sum(1) == 1
    only = np.eye(lattice.n_species)[lattice.allowed.argmax(1)]
    p = np.where(single[None, :, None], only, sums / sweeps)
    entropy = -(p * np.log(np.maximum(p, 1e-30))).sum((1, 2))
    return Basin(x, total / sweeps, p.sum(1), entropy)


def frozen_chains(
    ensemble: SemiGrandCanonical,
    configurations: Configurations,
    candidates: Configurations | None = None,
    *,
    sweeps: int = 16,
    margin: float = 6.0,
    seed: int | np.random.SeedSequence = 0,
) -> FrozenChains:
    """Test every chain for being frozen: an excess of energy that its entropy cannot pay for.

    Copies of the chains are swept on their own. A chain that is at equilibrium within a basin of
    configurations has a basin free energy ``<E - mu.N> - T S``, and
    ``S <= sum over sites of the entropy of that site's occupation`` (subadditivity). If even so
    it lies above the best single configuration seen by more than ``margin`` kT, the whole basin
    has less than ``exp(-margin)`` of the weight of that configuration: the chain is frozen.

    Parameters
    ----------
    ensemble : SemiGrandCanonical
    configurations : Configurations
        The present configuration of every chain.
    candidates : Configurations, optional
        Configurations among which the best is sought, at any conditions. Default: those of the
        chains.
    sweeps : int
        Heat-bath sweeps to average over.
    margin : float
        In units of kT.
    seed : int or numpy.random.SeedSequence

    Raises
    ------
    ValueError
        If ``sweeps`` is less than 1.
    """
    if sweeps < 1:
        raise ValueError(f"sweeps must be at least 1, got {sweeps}")
    candidates = configurations if candidates is None else candidates
    lattice = configurations.lattice
    engine = make_engine(ensemble, lattice)
    rng = np.random.default_rng(seed)
    conditions = configurations.conditions
    beta = conditions.beta.cpu().numpy()
    mu = conditions.mu.cpu().numpy()
    seen = candidates.occupations.cpu().numpy()
    energy = engine.energies(seen)
    lowest, best = _lowest(energy, candidates.counts().cpu().numpy(), mu)
    x = np.array(configurations.occupations.cpu().numpy(), order="C")
    basin = explore(engine, conditions, x, sweeps, rng)
    excess = basin.grand_energy - lowest
    return FrozenChains(
        mask=excess * beta > basin.entropy + margin,
        excess=excess,
        excess_kT=excess * beta,
        entropy=basin.entropy,
        best=best,
        energy_evaluations=engine.evaluations,
    )


def _counts(occupations: np.ndarray, lattice) -> np.ndarray:
    return species_counts(torch.from_numpy(occupations), lattice.n_species).numpy()


def _lowest(energy, counts, mu, chunk: int = 256):
    """Lowest ``E - mu.N`` of all configurations at each mu (conditions, species), and where."""
    value, where = np.empty(len(mu)), np.empty(len(mu), dtype=np.int64)
    for k in range(0, len(mu), chunk):
        h = energy - mu[k : k + chunk] @ counts.T
        where[k : k + chunk] = h.argmin(1)
        value[k : k + chunk] = h.min(1)
    return value, where


def ground_state_bound(
    ensemble: SemiGrandCanonical,
    configurations: Configurations,
    conditions: Conditions,
    *,
    limit: int = 256,
) -> torch.Tensor:
    """Rigorous lower bound of ln Z from configurations and their translations.

    ``Z`` is a sum of positive terms, so the sum over any distinct configurations bounds it from
    below. Taken are, for every condition in turn, the configurations of lowest ``E - mu.N``, all
    of equal energy and composition with them, and their lattice translations (512 random ones in
    cells of more sites). At low temperature the bound is tight, and an estimate of
    ln Z below it shows that the chains missed a phase.

    Parameters
    ----------
    ensemble : SemiGrandCanonical
    configurations : Configurations
        Configurations seen, at any conditions.
    conditions : Conditions
        Where the bound is wanted.
    limit : int
        Configurations (before translation) to use, at most.

    Returns
    -------
    Tensor, shape (conditions,), float64
    """
    lattice = configurations.lattice
    engine = make_engine(ensemble, lattice)
    seen = np.unique(configurations.occupations.cpu().numpy(), axis=0)
    energy = engine.energies(seen)
    counts = _counts(seen, lattice)
    mu = conditions.mu.cpu().numpy()
    beta = conditions.beta.cpu().numpy()
    lowest = np.unique(_lowest(energy, counts, mu)[1])
    ranked: dict[int, None] = dict.fromkeys(lowest.tolist())
    for k in lowest:  # other orientations, where they have been seen
        same = (np.abs(energy - energy[k]) < _EQUAL) & (counts == counts[k]).all(1)
        ranked.update(dict.fromkeys(np.flatnonzero(same).tolist()))
    order = np.lexsort((np.arange(len(mu)), mu[:, -1]))
    for k in order[:: max(1, len(order) // 32)]:  # excited states of conditions over the range
        h = energy - counts @ mu[k]
        ranked.update(dict.fromkeys(np.argsort(h, kind="stable")[:8].tolist()))
    if lattice.n_sites <= _TRANSLATIONS:
        shifts = lattice.translations
    else:
        shifts = lattice.random_translations(_TRANSLATIONS, np.random.default_rng(0))
    fit = max(8, _VARIANTS // shifts.size)
    chosen = seen[list(ranked)[: min(limit, fit)]]
    variants = np.unique(np.concatenate([chosen[:, t] for t in shifts]).astype(np.int8), axis=0)
    energy = engine.energies(variants)
    counts = _counts(variants, lattice)
    out = np.empty(len(mu))
    for k in range(len(mu)):
        log_weight = -beta[k] * (energy - counts @ mu[k])
        top = log_weight.max()
        out[k] = top + np.log(np.exp(log_weight - top).sum())
    return torch.from_numpy(out)
