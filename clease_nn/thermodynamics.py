"""Free energies and averages read off configurations, with errors.

Rows of :class:`~clease_nn.configurations.Configurations` are grouped by identical conditions, in
the order of their first appearance. Two kinds of data are read by the same functions:

* *weighted*: independent draws with ``log_prob`` and ``log_target``; averages are self-normalised
  importance-sampling means and ``Z`` is the mean weight,
  ``Z = sum_x exp(-(E - mu.N)/kT) ~ (1/n) sum exp(log_target - log_prob)``;
* *chains*: ``chain`` set and no ``log_prob``; plain means whose errors contain the autocorrelation
  time, and no ``Z``.

Energies are in eV per supercell and extensive unless a name says per site; a site is an active
site. No number computed from the draws alone, errors and effective sample sizes included, can tell
of a phase that was never drawn. The chemical potentials are those of ``conditions.mu``; a constant
added to all of them lowers the grand potential by that constant per site.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from math import isnan, nan

import numpy as np
import torch
from ase.units import kB

from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.statistics import (
    Estimate,
    independence_acceptance,
    integrated_autocorrelation_time,
    log_mean_exp,
    log_mean_exp_plus_mean,
    normalized_ess,
    pareto_k,
    series_covariance,
    series_mean,
    weighted_covariance,
    weighted_mean,
)
from clease_nn.warnings import LowESSWarning

__all__ = [
    "Averages",
    "ConditionAverages",
    "averages",
    "conditions",
    "free_energy",
    "log_z",
    "mean",
]

_FEWEST_SAMPLES = 10
_FEWEST_EFFECTIVE = 200
_LOWEST_NESS = 0.1
_HIGHEST_K = 0.7
_HARMLESS_NESS = 0.98  # above it a tail, however shaped, carries next to no weight
_HIGHEST_SHARE = 0.99


@dataclass(frozen=True, eq=False)
class ConditionAverages:
    """Thermodynamics at one condition.

    Attributes
    ----------
    temperature : float
        K.
    mu : ndarray, shape (species,)
        Chemical potentials in eV.
    species : tuple of str
    n_sites : int
        Active sites of the supercell.
    n : int
        Samples read.
    ness : float
        Effective samples over ``n``; for chains one over the longest autocorrelation time of
        ``E - mu.N`` and the counts.
    pareto_k : float
        Tail shape of the weights (see :func:`clease_nn.statistics.pareto_k`); nan for chains.
    acceptance : float
        Acceptance an independence Metropolis-Hastings chain proposing these draws would have,
        ``sum_ij min(w_i, w_j) / (n sum_i w_i)``; nan for chains.
    energy : Estimate
        <E>, eV.
    sgc_energy : Estimate
        <E - mu.N>, eV.
    composition : Estimate, shape (species,)
        Mean share of the active sites that carry each species.
    count_covariance : Estimate, shape (species, species)
        Covariance of the numbers of atoms of each species.
    heat_capacity : Estimate
        Var(E - mu.N) / (kB T^2) at constant mu, eV/K.
    log_z : Estimate or None
        ln Z; None for chains, as are the next two.
    grand_potential : Estimate or None
        -kT ln Z, eV.
    entropy : Estimate or None
        kB ln Z + <E - mu.N>/T, eV/K.
    """

    temperature: float
    mu: np.ndarray
    species: tuple[str, ...]
    n_sites: int
    n: int
    ness: float
    pareto_k: float
    acceptance: float
    energy: Estimate
    sgc_energy: Estimate
    composition: Estimate
    count_covariance: Estimate
    heat_capacity: Estimate
    log_z: Estimate | None = None
    grand_potential: Estimate | None = None
    entropy: Estimate | None = None

    @property
    def ess(self) -> float:
        """Effective number of samples."""
        return self.n * self.ness

    @property
    def grand_potential_per_site(self) -> Estimate | None:
        """-kT ln Z per active site, eV; None for chains."""
        return None if self.grand_potential is None else self.grand_potential / self.n_sites

    def to_dict(self) -> dict:
        """Flat dictionary of JSON-ready numbers; None where a quantity is not available.

        Every estimate ``name`` has a companion ``name_error``. Keys: ``temperature``,
        ``mu_<species>``, ``n``, ``ness``, ``pareto_k``, ``acceptance``, ``log_z``,
        ``grand_potential``, ``grand_potential_per_site``, ``entropy``, ``energy``,
        ``sgc_energy``, ``heat_capacity``, ``x_<species>``, ``cov_<species>_<species>``.
        """
        out: dict = {"temperature": self.temperature}
        out |= {f"mu_{s}": float(m) for s, m in zip(self.species, self.mu, strict=True)}
        out |= {"n": self.n}
        for name in ("ness", "pareto_k", "acceptance"):
            value = getattr(self, name)
            out[name] = value if np.isfinite(value) else None
        for name in (
            "log_z",
            "grand_potential",
            "grand_potential_per_site",
            "entropy",
            "energy",
            "sgc_energy",
            "heat_capacity",
        ):
            estimate = getattr(self, name)
            out[name] = None if estimate is None else float(estimate.value)
            out[f"{name}_error"] = None if estimate is None else float(estimate.error)
        for a, s in enumerate(self.species):
            out[f"x_{s}"] = float(self.composition.value[a])
            out[f"x_{s}_error"] = float(self.composition.error[a])
        for a, s in enumerate(self.species):
            for b in range(a, len(self.species)):
                key = f"cov_{s}_{self.species[b]}"
                out[key] = float(self.count_covariance.value[a, b])
                out[f"{key}_error"] = float(self.count_covariance.error[a, b])
        return out


class Averages(tuple):
    """Averages of every condition, a tuple of :class:`ConditionAverages`."""

    __slots__ = ()

    @property
    def conditions(self) -> Conditions:
        """The conditions, one a row."""
        return Conditions([a.temperature for a in self], np.stack([a.mu for a in self]))

    def to_rows(self) -> list[dict]:
        """One flat dictionary a condition (:meth:`ConditionAverages.to_dict`), for tables."""
        return [a.to_dict() for a in self]


def averages(c: Configurations) -> Averages:
    """Everything :class:`ConditionAverages` holds, for every condition in ``c``.

    Parameters
    ----------
    c : Configurations
        Scored (``energy`` and ``log_target``), either weighted or chains.

    Returns
    -------
    Averages
        In the order in which the conditions first appear.

    Raises
    ------
    ValueError
        If rows are neither weighted nor chains or both, a site is unknown, a condition has fewer
        than 10 samples, or one sample carries more than 99 % of the weight.

    Warns
    -----
    LowESSWarning
        If a condition has fewer than 200 effective samples, or weights with a normalised
        effective sample size below 0.1 or a Pareto shape above 0.7.

    Examples
    --------
    Uniform draws of a lattice gas without interactions, whose partition function is known:

    >>> from clease_nn.ensemble import SemiGrandCanonical
    >>> from clease_nn.lattice import Lattice
    >>> lattice = Lattice.square(3)
    >>> zero = SemiGrandCanonical(lambda lattice, x: torch.zeros(len(x)))
    >>> at = Conditions([600.0], [[0.0, 0.01]]).repeat(1000)
    >>> x = torch.randint(2, (1000, 9), generator=torch.Generator().manual_seed(0))
    >>> log_prob = torch.full((1000,), -9 * np.log(2))
    >>> [a] = averages(zero.score(Configurations(lattice, at, x, log_prob=log_prob)))
    >>> exact = 9 * np.log(1 + np.exp(0.01 / (kB * 600)))
    >>> abs(a.log_z.z(exact)) < 3
    True
    >>> print(a.composition[1])
    0.5562 +- 0.0055 (NESS 0.92)
    """
    groups = _groups(c, scored=True)
    return Averages(_average(c, g) for g in groups)


def mean(c: Configurations, values) -> Estimate:
    """Average of any observable at every condition.

    Parameters
    ----------
    c : Configurations
        Weighted or chains; for chains no energies are needed.
    values : array_like, shape (batch, ...)
        The observable of every row.

    Returns
    -------
    Estimate
        ``value`` and ``error`` of shape (conditions, ...), ``ness`` of shape (conditions,).

    Raises
    ------
    ValueError
        As :func:`averages`, and if ``values`` and ``c`` differ in length.
    """
    v = values.detach().cpu().numpy() if torch.is_tensor(values) else np.asarray(values)
    if v.ndim == 0 or len(v) != len(c):
        raise ValueError(f"values have shape {v.shape}, but there are {len(c)} configurations")
    return _stack([g.mean(v[g.rows].astype(float)) for g in _groups(c)])


def log_z(c: Configurations) -> Estimate:
    """ln Z at every condition from weighted draws, shape (conditions,).

    Raises
    ------
    ValueError
        As :func:`averages`, and for chains, which know no ``Z``.
    """
    groups = _groups(c)
    if groups[0].log_w is None:
        raise ValueError(
            "chains carry no partition function; use weighted draws, or the log_z of "
            "ParallelTempering"
        )
    return _stack([log_mean_exp(g.log_w) for g in groups])


def free_energy(c: Configurations) -> Estimate:
    """Grand potential ``-kT ln Z`` at every condition, eV per supercell, shape (conditions,).

    Raises
    ------
    ValueError
        As :func:`log_z`.
    """
    return log_z(c) * -conditions(c).kT.cpu().numpy()


def conditions(c: Configurations) -> Conditions:
    """The distinct conditions of ``c`` in the order of their first appearance."""
    return c.conditions[torch.as_tensor([rows[0] for rows in _rows_by_condition(c)])]


# ------------------------------------------------------------------ one condition
@dataclass(frozen=True, eq=False)
class _Group:
    """Rows of one condition: weighted (``log_w``) or chains (``pieces``, positions in rows)."""

    rows: np.ndarray
    condition: Conditions
    log_w: np.ndarray | None = None
    pieces: list[np.ndarray] | None = None

    @property
    def name(self) -> str:
        mu = ", ".join(f"{m:.4g}" for m in self.condition.mu[0].tolist())
        return f"T = {self.condition.temperature[0].item():g} K, mu = ({mu}) eV"

    def mean(self, v: np.ndarray) -> Estimate:
        """Average of (rows, ...) values."""
        if self.log_w is not None:
            return weighted_mean(v, self.log_w)
        columns = v.reshape(len(v), -1).T
        parts = _stack([series_mean([x[p] for p in self.pieces]) for x in columns])
        shape = v.shape[1:]
        value, error = (np.reshape(a, shape) for a in (parts.value, parts.error))
        return Estimate(value[()], error[()], float(np.min(parts.ness)))

    def covariance(self, v: np.ndarray) -> Estimate:
        """Covariance matrix of (rows, d) values."""
        if self.log_w is not None:
            return weighted_covariance(v, self.log_w)
        d = v.shape[1]
        pieces = [[x[p] for p in self.pieces] for x in v.T]
        value, error = np.zeros((d, d)), np.zeros((d, d))
        for a in range(d):
            for b in range(a, d):
                e = series_covariance(pieces[a], pieces[b])
                value[a, b] = value[b, a] = e.value
                error[a, b] = error[b, a] = e.error
        return Estimate(value, error)


def _average(c: Configurations, g: _Group) -> ConditionAverages:
    temperature = g.condition.temperature[0].item()
    kT = g.condition.kT[0].item()
    part = c[torch.as_tensor(g.rows, device=c.occupations.device)]
    counts = part.counts().cpu().numpy()
    energy = _numpy(part.energy)
    log_target = _numpy(part.log_target)
    sgc_energy = -kT * log_target
    scale = 1.0 / (kB * temperature**2)
    variance = g.covariance(sgc_energy[:, None])[0, 0]
    out = {
        "energy": g.mean(energy),
        "sgc_energy": g.mean(sgc_energy),
        "composition": g.mean(counts / c.lattice.n_sites),
        "count_covariance": g.covariance(counts),
        "heat_capacity": variance * scale,
    }
    if g.log_w is None:
        out |= {"ness": 1.0 / _autocorrelation_time(c, g), "pareto_k": nan, "acceptance": nan}
    else:
        ln_z = log_mean_exp(g.log_w)
        out |= {
            "ness": ln_z.ness,
            "pareto_k": pareto_k(g.log_w),
            "acceptance": independence_acceptance(g.log_w),
            "log_z": ln_z,
            "grand_potential": ln_z * -kT,
            "entropy": log_mean_exp_plus_mean(-log_target, g.log_w) * kB,
        }
    return ConditionAverages(
        temperature=temperature,
        mu=g.condition.mu[0].cpu().numpy(),
        species=c.lattice.species,
        n_sites=c.lattice.n_sites,
        n=len(g.rows),
        **out,
    )


# ------------------------------------------------------------------ grouping and refusals
def _rows_by_condition(c: Configurations) -> Iterator[np.ndarray]:
    if len(c) == 0:
        raise ValueError("there are no configurations")
    key = torch.cat([c.conditions.temperature[:, None], c.conditions.mu], 1).cpu().numpy()
    _, first, inverse = np.unique(key, axis=0, return_index=True, return_inverse=True)
    by_condition = np.split(
        np.argsort(inverse.ravel(), kind="stable"), np.cumsum(np.bincount(inverse.ravel()))[:-1]
    )
    return (by_condition[k] for k in np.argsort(first))


def _groups(c: Configurations, scored: bool = False) -> list[_Group]:
    """Rows of every condition, checked; warns of low effective sample sizes."""
    if not bool(c.known.all()):
        raise ValueError("configurations have unknown sites; complete them before averaging")
    if c.log_prob is not None and c.chain is not None:
        raise ValueError(
            "configurations carry both log_prob (weighted draws) and chain (unweighted): these do "
            "not mix; drop one with dataclasses.replace(c, log_prob=None) or (c, chain=None)"
        )
    if c.log_prob is None and c.chain is None:
        raise ValueError(
            "configurations carry neither log_prob (weighted draws) nor chain; for independent "
            "unweighted draws set chain=torch.arange(len(c))"
        )
    needed = ["log_target"] if c.log_prob is not None else []
    needed = ["energy", "log_target"] if scored else needed
    if any(getattr(c, name) is None for name in needed):
        raise ValueError(
            "configurations carry no energy or log_target; score them first: "
            "SemiGrandCanonical(energy).score(c)"
        )
    log_w = chain = None
    if c.log_prob is None:
        chain = c.chain.cpu().numpy()
    else:
        log_w = _numpy(c.log_weight)
    groups, doubts = [], []
    for rows in _rows_by_condition(c):
        condition = c.conditions[torch.as_tensor(rows[:1])]
        if chain is None:
            g = _Group(rows, condition, log_w=log_w[rows])
            _check_given_sites(c, g)
        else:
            labels = chain[rows]
            pieces = [np.flatnonzero(labels == k) for k in np.unique(labels)]
            g = _Group(rows, condition, pieces=pieces)
        if len(rows) < _FEWEST_SAMPLES:
            raise ValueError(
                f"only {len(rows)} samples at {g.name}: no error can be given; draw at least "
                f"{_FEWEST_SAMPLES}, better {_FEWEST_EFFECTIVE} or more"
            )
        doubt = _doubt_weights(g) if chain is None else _doubt_chains(c, g)
        groups.append(g)
        if doubt is not None:
            doubts.append(doubt)
    if doubts:
        doubts.sort(key=lambda d: d[0])
        remedy = (
            "draw more samples, or train the model longer around these conditions"
            if chain is None
            else "run the chains longer, or use ParallelTempering"
        )
        warnings.warn(
            f"{len(doubts)} of {len(groups)} conditions cannot be trusted within their errors; "
            f"worst: {'; '.join(text for _, text in doubts[:3])}. Remedy: {remedy}",
            LowESSWarning,
            stacklevel=3,
        )
    return groups


def _doubt_weights(g: _Group) -> tuple[float, str] | None:
    w = g.log_w
    n = len(w)
    if not np.isfinite(w).all():
        raise ValueError(f"a log weight at {g.name} is NaN or infinite; check log_prob and energy")
    share = 1.0 / np.exp(w - w.max()).sum()
    if share > _HIGHEST_SHARE:
        raise ValueError(
            f"one of {n} samples carries {share:.1%} of the weight at {g.name}: the model does "
            "not describe this condition; train it there, or use chains"
        )
    ness, k = normalized_ess(w), pareto_k(w)
    reasons = []
    if n * ness < _FEWEST_EFFECTIVE:
        reasons.append(f"{n * ness:.0f} effective of {n} samples (want {_FEWEST_EFFECTIVE})")
    elif ness < _LOWEST_NESS:
        reasons.append(f"NESS {ness:.3f} (want {_LOWEST_NESS})")
    if not isnan(k) and k > _HIGHEST_K and ness < _HARMLESS_NESS:
        reasons.append(f"weight tail k-hat {k:.2f} (want at most {_HIGHEST_K})")
    return (n * ness, f"{g.name}: {', '.join(reasons)}") if reasons else None


def _autocorrelation_time(c: Configurations, g: _Group) -> float:
    """Longest of the autocorrelation times of the counts and, where known, of E - mu.N."""
    part = c[torch.as_tensor(g.rows, device=c.occupations.device)]
    series = list(part.counts().cpu().numpy().T)
    if part.log_target is not None:
        series.append(_numpy(part.log_target))
    # a species that never changes says nothing about the correlation
    moving = [x for x in series if np.ptp(x) > 0] or series[-1:]
    return max(integrated_autocorrelation_time([x[p] for p in g.pieces]) for x in moving)


def _doubt_chains(c: Configurations, g: _Group) -> tuple[float, str] | None:
    ess = len(g.rows) / _autocorrelation_time(c, g)
    if ess >= _FEWEST_EFFECTIVE:
        return None
    return ess, (
        f"{g.name}: {ess:.0f} effective of {len(g.rows)} chain samples (want {_FEWEST_EFFECTIVE})"
    )


def _check_given_sites(c: Configurations, g: _Group) -> None:
    """Draws around given sites describe one restricted ensemble only if all share these sites."""
    if not c[torch.as_tensor(g.rows, device=c.occupations.device)].same_given:
        raise ValueError(
            f"rows at {g.name} were completed from different given sites; average every set of "
            "given sites separately, or unweighted as chains"
        )


def _stack(parts: list[Estimate]) -> Estimate:
    return Estimate(*(np.stack([getattr(p, n) for p in parts]) for n in ("value", "error", "ness")))


def _numpy(x: torch.Tensor) -> np.ndarray:
    return x.detach().to(torch.float64).cpu().numpy()
