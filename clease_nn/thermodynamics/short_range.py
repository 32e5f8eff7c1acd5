"""Short-range order by shell: pair probabilities, correlations, Warren-Cowley parameters."""

from __future__ import annotations

from dataclasses import dataclass
from math import nan

import numpy as np
import torch

from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.lattice import Lattice
from clease_nn.statistics import Estimate
from clease_nn.thermodynamics.density_of_states import DensityOfStates
from clease_nn.thermodynamics.groups import Group, groups, name, stack

__all__ = ["ShortRangeOrder", "pair_densities", "short_range_order"]

_CHUNK = 512  # rows turned into pair counts together
_FEWEST_PAIRS = 20.0  # pairs expected in the effective samples if species were placed at random


@dataclass(frozen=True, eq=False)
class ShortRangeOrder:
    """Pairs of species on neighbouring sites, at every condition and shell.

    Attributes
    ----------
    conditions : Conditions
    species : tuple of str
    shells : tuple of (sublattice, sublattice of the neighbour, distance)
        Sorted by distance (angstrom), as :meth:`~clease_nn.lattice.Lattice.pair_shells`.
    coordination : ndarray, shape (shells,)
        Neighbours of a site in the shell, periodic images counted.
    probability : Estimate, shape (conditions, shells, species, species)
        ``P(a at a site, b at its neighbour)``; sums to one over the species.
    connected : Estimate, same shape
        ``P_ab - x_a x_b`` with the shares on the two sublattices.
    alpha : Estimate, same shape
        Warren-Cowley parameter ``1 - P_ab / (x_a x_b)``; nan where a species is too rare.
    reasons : tuple of str
        Where ``alpha`` is not determined and why.
    """

    conditions: Conditions
    species: tuple[str, ...]
    shells: tuple[tuple[int, int, float], ...]
    coordination: np.ndarray
    probability: Estimate
    connected: Estimate
    alpha: Estimate
    reasons: tuple[str, ...] = ()

    @property
    def distances(self) -> np.ndarray:
        """Distance of every shell in angstrom, shape (shells,)."""
        return np.array([d for _, _, d in self.shells])

    def pair(self, a: str, b: str) -> Estimate:
        """Warren-Cowley parameters of one pair of species, shape (conditions, shells).

        Raises
        ------
        ValueError
            If the lattice lacks a species.
        """
        for s in (a, b):
            if s not in self.species:
                raise ValueError(f"species {s!r} is none of {self.species}")
        return self.alpha[:, :, self.species.index(a), self.species.index(b)]


def short_range_order(
    source: DensityOfStates | Configurations,
    conditions: Conditions | None = None,
    n_shells: int = 3,
) -> ShortRangeOrder:
    """Warren-Cowley short-range order of every pair of species, shell by shell.

    ``alpha_ab = 1 - P_ab / (x_a x_b)`` is 0 where species are independent, negative where unlike
    neighbours are preferred (``a != b``) and positive where they avoid each other. The shares are
    those of the sublattices that the shell joins, weighted with the number of neighbours, so that
    ``sum_b x_b alpha_ab = 0`` in every shell.

    Parameters
    ----------
    source : DensityOfStates or Configurations
        A density of states with configurations, read at ``conditions``; or configurations
        (weighted or chains), read at the conditions they were drawn at.
    conditions : Conditions, optional
        For a density of states only.
    n_shells : int
        Nearest shells.

    Returns
    -------
    ShortRangeOrder

    Raises
    ------
    NotDeterminedError
        If the density of states does not support a condition.
    ValueError
        If conditions are missing or given twice, states carry no configurations, or as
        :func:`~clease_nn.thermodynamics.averages` for configurations.

    References
    ----------
    J. M. Cowley, Phys. Rev. 77, 669 (1950).

    Examples
    --------
    A checkerboard has unlike neighbours only:

    >>> from clease_nn.energies.ising import ising_energy
    >>> from clease_nn.ensemble import SemiGrandCanonical
    >>> lattice = Lattice.square(4)
    >>> states = SemiGrandCanonical(ising_energy(lattice, -0.1)).enumerate(lattice)
    >>> cold = Conditions([100.0], [[0.0, 0.0]])
    >>> found = short_range_order(DensityOfStates.exact(states), cold, n_shells=2)
    >>> found.pair("Cu", "Au").value.round(6).tolist()
    [[-1.0, 1.0]]
    """
    lattice = source.lattice
    keys = lattice.pair_shells(n_shells)
    matrices = lattice.relation_matrices(keys)
    n_pairs = matrices.sum((1, 2))
    if isinstance(source, DensityOfStates):
        at, parts, ess = _of_states(source, conditions, matrices)
    else:
        if conditions is not None:
            raise ValueError(
                "configurations are read at the conditions they were drawn at; to read others, "
                "combine them: short_range_order(density_of_states(c), conditions)"
            )
        at, parts, ess = _of_configurations(source, matrices)
    probability, connected, alpha = (stack(list(p)) for p in zip(*parts, strict=True))
    alpha, reasons = _without_rare(at, lattice.species, keys, n_pairs, probability, alpha, ess)
    sites = np.array([(lattice.sublattices == a).sum() for a, _, _ in keys])
    return ShortRangeOrder(
        at, lattice.species, tuple(keys), n_pairs / sites, probability, connected, alpha, reasons
    )


def pair_densities(occupations, lattice: Lattice, n_shells: int = 3) -> np.ndarray:
    """Share of the neighbours of each shell with species (a, b), of every configuration.

    Averages of it, at any condition, are pair probabilities: ``dos.mean(pair_densities(...), at)``.

    Parameters
    ----------
    occupations : array_like, shape (rows, sites)
    lattice : Lattice
    n_shells : int

    Returns
    -------
    ndarray, shape (rows, shells, species, species)
        In the order of ``lattice.pair_shells(n_shells)``; sums to one over the species.

    Examples
    --------
    >>> lattice = Lattice.square(2)
    >>> pair_densities([[0, 1, 1, 0]], lattice, n_shells=1).tolist()
    [[[[0.0, 0.5], [0.5, 0.0]]]]
    """
    x = torch.as_tensor(np.asarray(occupations))
    if x.ndim != 2 or x.shape[1] != lattice.n_sites:
        raise ValueError(
            f"occupations must have shape (rows, {lattice.n_sites}), got {tuple(x.shape)}"
        )
    return _densities(
        x, lattice.n_species, lattice.relation_matrices(lattice.pair_shells(n_shells))
    )


def _densities(x: torch.Tensor, n_species: int, matrices: np.ndarray) -> np.ndarray:
    s, n, _ = matrices.shape
    joined = torch.as_tensor(matrices).permute(2, 0, 1).reshape(n, s * n)
    n_pairs = torch.as_tensor(matrices.sum((1, 2), dtype=float))[:, None, None]
    species = torch.arange(n_species)[:, None]
    out = np.empty((len(x), s, n_species, n_species))
    for k in range(0, len(x), _CHUNK):
        one = (x[k : k + _CHUNK, None, :].cpu() == species).to(torch.float32)  # (rows, a, sites)
        around = (one @ joined).reshape(len(one), n_species, s, n)
        out[k : k + _CHUNK] = torch.einsum("nai,nbsi->nsab", one, around).double() / n_pairs
    return out


def _marginals(p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shares of the species at either end of a pair, broadcast against (..., a, b)."""
    return p.sum(-1, keepdims=True), p.sum(-2, keepdims=True)


def _connected(p: np.ndarray) -> np.ndarray:
    left, right = _marginals(p)
    return p - left * right


def _alpha(p: np.ndarray) -> np.ndarray:
    left, right = _marginals(p)
    both = left * right
    return np.where(both > 0, 1.0 - p / np.where(both > 0, both, 1.0), nan)


def _of_states(dos: DensityOfStates, conditions: Conditions | None, matrices: np.ndarray):
    if conditions is None:
        raise ValueError("a density of states is read at given conditions; pass conditions")
    if dos.occupations is None:
        raise ValueError(
            "these states are energies and compositions without configurations, which short-range "
            "order needs; combine sampled configurations instead"
        )
    values = _densities(dos.occupations, dos.lattice.n_species, matrices)
    parts, ess = [], []
    for k in range(len(conditions)):
        m = dos.moments(values, conditions[k])
        ness = nan if dos.is_exact else m.ess / len(dos)
        found = [m.estimate(f) for f in (lambda p: p, _connected, _alpha)]
        parts.append([Estimate(e.value, e.error, ness) for e in found])
        ess.append(m.ess)
    return conditions, parts, np.array(ess)


def _of_configurations(c: Configurations, matrices: np.ndarray):
    found = groups(c)
    values = _densities(c.occupations, c.lattice.n_species, matrices)
    parts = [_linearised(g, values[g.rows]) for g in found]
    at = Conditions.cat(g.condition for g in found)
    return at, parts, np.array([len(g.rows) * p[0].ness for g, p in zip(found, parts, strict=True)])


def _linearised(g: Group, v: np.ndarray) -> list[Estimate]:
    """Probability, connected part and alpha of one condition; errors to first order."""
    probability = g.mean(v)
    p = probability.value
    (left, right), (a, b) = _marginals(p), _marginals(v)
    connected = g.mean(v - a * right - left * b)
    both = np.where(left * right > 0, left * right, nan)
    with np.errstate(invalid="ignore"):
        ratio = np.nan_to_num(v / both - p / both * (a / left + b / right))
    error = np.where(np.isnan(both), nan, g.mean(ratio).error)
    return [
        probability,
        Estimate(_connected(p), connected.error, connected.ness),
        Estimate(_alpha(p), error, probability.ness),
    ]


def _without_rare(at, species, keys, n_pairs, probability, alpha, ess):
    """Alpha of pairs seen too rarely for an error is nan; with a reason each condition."""
    left, right = _marginals(probability.value)
    expected = left * right
    with np.errstate(invalid="ignore"):
        rare = (ess[:, None, None, None] * n_pairs[:, None, None] * expected) < _FEWEST_PAIRS
    rare |= expected == 0
    # species that a sublattice never carries are no matter of data
    ever = expected.max(0) > 0
    reasons = []
    for k in np.flatnonzero((rare & ever).any((1, 2, 3))):
        s, a, b = np.argwhere(rare[k] & ever)[0]
        reasons.append(
            f"{name(at[int(k)])}: too few {species[a]}-{species[b]} pairs are expected at "
            f"{keys[s][2]:g} angstrom (need {_FEWEST_PAIRS:.0f})"
        )
    value, error = (np.where(rare, nan, v) for v in (alpha.value, alpha.error))
    return Estimate(value, error, alpha.ness), tuple(reasons)
