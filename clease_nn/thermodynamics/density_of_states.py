"""States with statistical weights: thermodynamics at any condition from one object.

Whatever estimates how many configurations there are with an energy and a composition delivers a
:class:`DensityOfStates`: samples of many conditions combined
(:func:`~clease_nn.thermodynamics.density_of_states`), an exact enumeration, Wang-Landau sampling.
With ``g_i`` the weight of state ``i``,

    Z(T, mu) = sum_i g_i exp(-(E_i - mu.N_i) / kT),

and averages are those over the states with the terms of this sum as weights. Errors come from
replicas: weights that resampled data would have given.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import nan

import numpy as np
import torch
from ase.units import kB

from clease_nn.conditions import Conditions
from clease_nn.configurations import species_counts
from clease_nn.cost import Cost
from clease_nn.ensemble import Enumeration
from clease_nn.errors import NotDeterminedError
from clease_nn.lattice import Lattice
from clease_nn.statistics import Estimate, pareto_k
from clease_nn.thermodynamics.averages import Averages, ConditionAverages
from clease_nn.thermodynamics.groups import name, stack
from clease_nn.thermodynamics.histograms import Histogram
from clease_nn.warnings import LowESSWarning

__all__ = ["DOUBTFUL", "FEWEST", "DensityOfStates", "Moments"]

FEWEST = 50.0  # effective states below which nothing is said
DOUBTFUL = 200.0  # effective states below which a warning is given
_HIGHEST_K = 0.7
_LARGE_SHARE = 0.01  # of the whole weight on one state, from which on a heavy tail matters
_NEGLIGIBLE = 1e-13  # of the whole weight; rows below it are left out of sums


@dataclass(frozen=True, eq=False)
class Moments:
    """Means under one condition, with the means that resampled data would have given.

    Attributes
    ----------
    log_z : float
        ln Z (up to a constant where the density of states is not absolute).
    log_z_replicas : ndarray, shape (replicas,)
    mean : ndarray, shape (...)
    replicas : ndarray, shape (replicas, ...)
    ess : float
        Effective number of states.
    """

    log_z: float
    log_z_replicas: np.ndarray
    mean: np.ndarray
    replicas: np.ndarray
    ess: float

    def estimate(self, function=lambda mean: mean) -> Estimate:
        """Any smooth function of the means, its error by the spread over the replicas.

        Parameters
        ----------
        function : callable
            Of an array shaped like ``mean``; applied to each replica.
        """
        value = np.asarray(function(self.mean), dtype=float)
        if len(self.replicas) < 2:
            return Estimate(value[()], np.zeros_like(value)[()], nan)
        spread = np.std([function(r) for r in self.replicas], axis=0, ddof=1)
        return Estimate(value[()], np.asarray(spread, dtype=float)[()], nan)


@dataclass(frozen=True, eq=False)
class _Support:
    """States that matter at one condition with weights of sum one."""

    rows: np.ndarray
    w: np.ndarray
    log_z: float
    ess: float


@dataclass(frozen=True, eq=False)
class DensityOfStates:
    """States, each with the number of configurations it stands for.

    Attributes
    ----------
    lattice : Lattice
    energy : ndarray, shape (states,)
        eV per supercell, without mu.N.
    counts : ndarray, shape (states, species)
        Active sites with each species.
    log_g : ndarray, shape (states,)
        Natural logarithm of the weight; minus infinity is none.
    occupations : Tensor, shape (states, sites), int8, optional
        The configurations, where states are configurations; observables need them.
    replicas : ndarray, shape (states, replicas), float32, optional
        Factors on ``exp(log_g)`` that resampled data would have given; None: exact.
    inefficiency : ndarray, shape (states,), optional
        Samples in one independent sample, for correlated rows; None: all independent.
    absolute : bool
        Whether Z is absolute; otherwise it is known up to a factor.
    sampled : Conditions, optional
        Where the data were taken; named in messages.
    provenance : Mapping
        JSON-ready; :class:`~clease_nn.cost.Cost` reads it.

    Examples
    --------
    >>> from clease_nn.energies.ising import ising_energy
    >>> from clease_nn.ensemble import SemiGrandCanonical
    >>> from clease_nn.lattice import Lattice
    >>> lattice = Lattice.square(3)
    >>> states = SemiGrandCanonical(ising_energy(lattice)).enumerate(lattice)
    >>> dos = DensityOfStates.exact(states)
    >>> dos
    DensityOfStates(512 states of Lattice(9 active sites of 9, species Cu/Au, 1 sublattices), \
exact, absolute ln Z)
    >>> at = Conditions([30000.0], [[0.0, 0.1]])
    >>> bool(np.isclose(dos.log_z(at).value[0], states.log_z(at)[0]))
    True
    >>> [a] = dos.averages(at)
    >>> a.composition.value.round(4).tolist()
    [0.4388, 0.5612]
    """

    lattice: Lattice
    energy: np.ndarray
    counts: np.ndarray
    log_g: np.ndarray
    occupations: torch.Tensor | None = None
    replicas: np.ndarray | None = None
    inefficiency: np.ndarray | None = None
    absolute: bool = True
    sampled: Conditions | None = None
    provenance: Mapping = field(default_factory=dict)

    def __post_init__(self):
        n = len(self.energy)
        if n == 0:
            raise ValueError("a density of states needs at least one state")
        if self.counts.shape != (n, self.lattice.n_species) or self.log_g.shape != (n,):
            raise ValueError(
                f"{n} energies need counts of shape ({n}, {self.lattice.n_species}) and log_g of "
                f"shape ({n},), got {self.counts.shape} and {self.log_g.shape}"
            )
        if not np.isfinite(self.energy).all() or np.isnan(self.log_g).any():
            raise ValueError("an energy or a weight of the density of states is NaN or infinite")
        if self.replicas is not None:
            shape = np.shape(self.replicas)
            if len(shape) != 2 or shape[0] != n:
                raise ValueError(f"replicas must have {n} rows, one a state, got shape {shape}")
            if shape[1] < 2:
                raise ValueError(
                    f"errors need at least two replicas, got {shape[1]}; None says that the "
                    "states are exact"
                )

    @classmethod
    def exact(cls, states: Enumeration) -> DensityOfStates:
        """Every configuration once: errors are zero."""
        counts = species_counts(states.occupations, states.lattice.n_species).numpy()
        return cls(
            states.lattice,
            states.energy.numpy(),
            counts,
            np.zeros(len(states.energy)),
            occupations=states.occupations,
            provenance={"energy_evaluations": len(states.energy)},
        )

    def __len__(self) -> int:
        return len(self.energy)

    def __repr__(self) -> str:
        kind = "exact" if self.is_exact else f"{self.replicas.shape[1]} replicas"
        where = "" if self.sampled is None else f", {len(self.sampled)} sampled conditions"
        z = "absolute" if self.absolute else "relative"
        return f"DensityOfStates({len(self)} states of {self.lattice}{where}, {kind}, {z} ln Z)"

    @property
    def is_exact(self) -> bool:
        """Whether there are no statistical errors."""
        return self.replicas is None

    @property
    def cost(self) -> Cost:
        """What the data have cost."""
        return Cost.from_provenance(self.provenance)

    def restricted(self, mask) -> DensityOfStates:
        """The density of states of a part of them: of one phase, or one composition.

        Parameters
        ----------
        mask : array_like of bool, shape (states,)

        Raises
        ------
        ValueError
            If the mask has another shape or selects nothing.
        """
        mask = np.asarray(mask)
        if mask.dtype != bool or mask.shape != (len(self),):
            raise ValueError(f"the mask must be {len(self)} booleans, got shape {mask.shape}")
        if not mask.any():
            raise ValueError("no state is left: this part was never sampled")
        rows = np.flatnonzero(mask)
        pick = lambda x: None if x is None else x[rows]  # noqa: E731
        return replace(
            self,
            energy=self.energy[rows],
            counts=self.counts[rows],
            log_g=self.log_g[rows],
            occupations=None if self.occupations is None else self.occupations[mask],
            replicas=pick(self.replicas),
            inefficiency=pick(self.inefficiency),
        )

    # ------------------------------------------------------------------ one condition
    def log_weights(self, condition: Conditions) -> np.ndarray:
        """``ln g_i - (E_i - mu.N_i)/kT`` of every state at one condition, shape (states,)."""
        if len(condition) != 1:
            raise ValueError(f"one condition at a time, got {len(condition)}")
        mu = condition.mu[0].cpu().numpy()
        if mu.shape != (self.lattice.n_species,):
            raise ValueError(
                f"the condition has {len(mu)} chemical potentials, the lattice "
                f"{self.lattice.n_species} species"
            )
        return self.log_g - (self.energy - self.counts @ mu) / condition.kT[0].item()

    def moments(self, values, condition: Conditions, *, check: bool = True) -> Moments:
        """Means of any observable at one condition, with replicas.

        Parameters
        ----------
        values : array_like, shape (states, ...)
        condition : Conditions
            One row.
        check : bool
            Refuse if too few effective states support the condition.

        Raises
        ------
        NotDeterminedError
            If fewer than 50 effective states carry the weight there.
        """
        v = np.asarray(values)
        if len(v) != len(self):
            raise ValueError(f"values have {len(v)} rows, there are {len(self)} states")
        support = self._support(condition, check)
        return self._moments(v[support.rows], support)

    def _support(self, condition: Conditions, check: bool = True) -> _Support:
        """The states that matter at one condition."""
        log_w = self.log_weights(condition)
        top = log_w.max()
        w = np.exp(log_w - top)
        total = w.sum()
        w /= total
        ess = self._ess(w)
        if check:
            self._require(ess, condition)
        rows = np.flatnonzero(w > (0.0 if self.is_exact else _NEGLIGIBLE))
        w = w[rows]
        return _Support(rows, w / w.sum(), float(top + np.log(total)), ess)

    def _moments(self, v: np.ndarray, support: _Support) -> Moments:
        """Means of values given at the states of a support only."""
        v, w = np.asarray(v, dtype=float), support.w
        mean = np.tensordot(w, v, 1)
        if self.replicas is None:
            return Moments(support.log_z, np.empty(0), mean, np.empty((0, *mean.shape)), np.inf)
        r = self.replicas[support.rows]
        # centred, so that single precision of the replicas is enough
        d = w[:, None] * (v - mean).reshape(len(v), -1)
        columns = np.concatenate([w[:, None], d], 1).astype(np.float32)
        sums = (columns.T @ r).astype(float)
        scale = np.maximum(sums[0], 1e-300)
        replicas = mean + (sums[1:] / scale).T.reshape(len(scale), *mean.shape)
        return Moments(support.log_z, support.log_z + np.log(scale), mean, replicas, support.ess)

    def _ess(self, w: np.ndarray) -> float:
        if self.is_exact:
            return np.inf
        square = w**2 if self.inefficiency is None else w**2 * self.inefficiency
        return float(1.0 / square.sum())

    def _ness(self, ess: float) -> float:
        """Share of effective states; a state that stands for many samples counts once."""
        return nan if self.is_exact else min(ess / len(self), 1.0)

    def ess(self, conditions: Conditions) -> np.ndarray:
        """Effective number of states behind each condition, shape (conditions,).

        ``1 / sum_i w_i^2 tau_i`` with normalised weights and the inefficiency of correlated rows;
        infinite for exact densities of states. It cannot know of states that were never sampled.
        """
        out = np.empty(len(conditions))
        for k in range(len(conditions)):
            log_w = self.log_weights(conditions[k])
            w = np.exp(log_w - log_w.max())
            out[k] = self._ess(w / w.sum())
        return out

    def determined(self, conditions: Conditions) -> np.ndarray:
        """(conditions,) bool: enough effective states support a condition."""
        return self.ess(conditions) >= FEWEST

    def _require(self, ess: float, condition: Conditions) -> None:
        if ess >= FEWEST:
            return
        text = (
            f"{name(condition)}: {ess:.1f} effective of {len(self)} samples (need "
            f"{FEWEST:.0f}): the data do not overlap with this condition. "
        )
        if self.sampled is None or not len(self.sampled):
            raise NotDeterminedError(text + "Remedy: sample there")
        from clease_nn.thermodynamics.overlap import where_to_sample

        near = self.sampled[int(np.argmin(_distance(self.sampled, condition)))]
        way = where_to_sample(self, condition)
        listed = "; ".join(name(way[k]) for k in range(min(len(way), 4)))
        if len(way) > 4:
            listed += f"; and {len(way) - 4} more on the way there"
        raise NotDeterminedError(
            f"{text}The nearest sampled is {name(near)}. Remedy: sample at {listed} "
            "(where_to_sample proposes conditions)"
        )

    # ------------------------------------------------------------------ many conditions
    def log_z(self, conditions: Conditions) -> Estimate:
        """ln Z at every condition, shape (conditions,).

        Raises
        ------
        NotDeterminedError
            If a condition is not supported, or the density of states is not absolute.
        """
        if not self.absolute:
            raise NotDeterminedError(
                "these data know ln Z up to a constant only (chains without a reference); hand "
                "over ln Z at one sampled condition, or weighted draws"
            )
        ones = np.zeros((len(self), 0))
        _require_conditions(conditions)
        parts = [self.moments(ones, conditions[k]) for k in range(len(conditions))]
        return stack(
            [Estimate(m.log_z, _spread(m.log_z_replicas), self._ness(m.ess)) for m in parts]
        )

    def mean(self, values, conditions: Conditions) -> Estimate:
        """Average of an observable (states, ...) at every condition, (conditions, ...).

        Raises
        ------
        NotDeterminedError
            If a condition is not supported.
        """
        _require_conditions(conditions)
        out = []
        for k in range(len(conditions)):
            m = self.moments(values, conditions[k])
            e = m.estimate()
            out.append(Estimate(e.value, e.error, self._ness(m.ess)))
        return stack(out)

    def histogram(self, values, edges, conditions: Conditions) -> Histogram:
        """Histogram of an observable (states,) at every condition.

        As :func:`clease_nn.thermodynamics.histogram`, at conditions sampled or not.
        """
        v, edges = np.asarray(values, dtype=float), np.asarray(edges, dtype=float)
        if v.shape != (len(self),) or np.isnan(v).any():
            raise ValueError(f"values must be {len(self)} numbers, got shape {v.shape} or NaN")
        if edges.ndim != 1 or len(edges) < 2 or not (np.diff(edges) > 0).all():
            raise ValueError(f"edges must be at least two ascending numbers, got {edges}")
        n = len(edges) - 1
        bins = np.searchsorted(edges, v, side="right") - 1
        bins[v == edges[-1]] = n - 1
        inside = (bins[:, None] == np.arange(n)).astype(np.float32)
        p = self.mean(inside, conditions)
        outside = self.mean(((bins < 0) | (bins >= n)).astype(float), conditions)
        return Histogram(conditions, edges, p, outside)

    def averages(self, conditions: Conditions) -> Averages:
        """Everything :class:`~clease_nn.thermodynamics.ConditionAverages` holds, anywhere.

        Raises
        ------
        NotDeterminedError
            If a condition is not supported by enough effective states; :meth:`determined` tells
            beforehand.

        Warns
        -----
        LowESSWarning
            If fewer than 200 effective states, or weights with a heavy tail, support one.
        """
        doubts: list = []
        out = [self._average(conditions[k], doubts) for k in range(len(conditions))]
        if doubts:
            doubts.sort()
            warnings.warn(
                f"{len(doubts)} of {len(conditions)} conditions cannot be trusted within their "
                f"errors; worst: {'; '.join(text for _, text in doubts[:3])}. Remedy: sample "
                "there too",
                LowESSWarning,
                stacklevel=2,
            )
        return Averages(out, self.cost)

    def _average(self, condition: Conditions, doubts: list) -> ConditionAverages:
        temperature, kT = condition.temperature[0].item(), condition.kT[0].item()
        mu = condition.mu[0].cpu().numpy()
        n, d = len(self), 1 + self.lattice.n_species
        support = self._support(condition)
        energy, counts = self.energy[support.rows], self.counts[support.rows]
        y = np.concatenate([(energy - counts @ mu)[:, None], counts], 1)
        # about a typical value, so that second moments lose no digits
        centre = y[int(np.argmax(support.w))]
        y = y - centre
        second = (y[:, :, None] * y[:, None, :]).reshape(len(y), -1)
        m = self._moments(np.concatenate([y, second, energy[:, None]], 1), support)
        shrink = 1.0 if self.is_exact else 1.0 / (1.0 - 1.0 / max(m.ess, 2.0))

        def covariance(x):
            return (x[d : d + d * d].reshape(d, d) - np.outer(x[:d], x[:d])) * shrink

        cov = m.estimate(covariance)
        k_hat = nan
        if not self.is_exact:
            k_hat = _tail_shape(support.w)
            if m.ess < DOUBTFUL or (k_hat > _HIGHEST_K and support.w.max() > _LARGE_SHARE):
                doubts.append((m.ess, f"{name(condition)}: {m.ess:.0f} effective, k {k_hat:.2f}"))
        ness = nan if self.is_exact else m.ess / n
        out = {
            "energy": m.estimate(lambda x: x[-1]),
            "sgc_energy": m.estimate(lambda x: x[0] + centre[0]),
            "composition": m.estimate(lambda x: (x[1:d] + centre[1:]) / self.lattice.n_sites),
            "count_covariance": cov[1:, 1:],
            "heat_capacity": cov[0, 0] / (kB * temperature**2),
        }
        share = self._ness(m.ess)
        out = {key: Estimate(e.value, e.error, share) for key, e in out.items()}
        if self.absolute:
            log_z = Estimate(m.log_z, _spread(m.log_z_replicas), share)
            s = m.log_z + (m.mean[0] + centre[0]) / kT
            s_error = _spread(m.log_z_replicas + m.replicas[:, 0] / kT)
            out |= {
                "log_z": log_z,
                "grand_potential": log_z * -kT,
                "entropy": Estimate(s, s_error, share) * kB,
            }
        return ConditionAverages(
            temperature=temperature,
            mu=mu,
            species=self.lattice.species,
            n_sites=self.lattice.n_sites,
            n=n,
            ness=ness,
            pareto_k=k_hat,
            acceptance=nan,
            **out,
        )


def require_density_of_states(dos) -> None:
    """Refuse anything else in words: samples in particular, which must be combined first."""
    if not isinstance(dos, DensityOfStates):
        raise TypeError(
            f"expected a DensityOfStates, got {type(dos).__name__}; combine configurations with "
            "thermodynamics.density_of_states(c) first"
        )


def _require_conditions(conditions: Conditions) -> None:
    if not len(conditions):
        raise ValueError("there are no conditions to read the density of states at")


def _tail_shape(w: np.ndarray) -> float:
    """Pareto shape of weights, not above what the largest of them allows.

    Combined weights are bounded, and many states of one level share theirs: the plain fit may
    find any shape among them. The largest of m weights of shape k stands about m^k above the
    threshold.
    """
    size = int(min(0.2 * len(w), 3 * np.sqrt(len(w))))
    k = pareto_k(np.log(w))
    if size < 5 or not k > 0:
        return k
    ordered = np.partition(w, len(w) - size - 1)
    return min(k, float(np.log(w.max() / ordered[len(w) - size - 1]) + 0.7) / np.log(size))


def _spread(replicas: np.ndarray) -> float:
    return float(np.std(replicas, ddof=1)) if len(replicas) > 1 else 0.0


def _distance(sampled: Conditions, condition: Conditions) -> np.ndarray:
    """How far conditions are in beta and beta mu, each scaled by its spread."""
    x = np.column_stack([sampled.beta, (sampled.beta[:, None] * sampled.relative_mu())])
    y = np.column_stack([condition.beta, (condition.beta[:, None] * condition.relative_mu())])
    scale = np.maximum(np.ptp(x, axis=0), 1e-9)
    return (((x - y) / scale) ** 2).sum(1)
