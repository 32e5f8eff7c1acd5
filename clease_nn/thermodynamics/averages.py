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

from collections.abc import Iterable
from dataclasses import dataclass
from math import nan

import numpy as np
import torch
from ase.units import kB

from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.cost import Cost
from clease_nn.statistics import (
    Estimate,
    independence_acceptance,
    log_mean_exp,
    log_mean_exp_plus_mean,
    pareto_k,
)
from clease_nn.thermodynamics.groups import (
    Group,
    autocorrelation_time,
    groups,
    rows_by_condition,
    stack,
    to_numpy,
)

__all__ = [
    "Averages",
    "ConditionAverages",
    "averages",
    "conditions",
    "free_energy",
    "log_z",
    "mean",
]


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
    def susceptibility(self) -> Estimate:
        """``d<N_a>/d mu_b = Cov(N_a, N_b) / kT``, atoms per eV, shape (species, species)."""
        return self.count_covariance / (kB * self.temperature)

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
    """Averages of every condition, a tuple of :class:`ConditionAverages`.

    Attributes
    ----------
    cost : Cost
        What the data behind all of them have cost.
    """

    cost: Cost

    def __new__(cls, items: Iterable[ConditionAverages] = (), cost: Cost | None = None) -> Averages:
        self = super().__new__(cls, items)
        self.cost = Cost() if cost is None else cost
        return self

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
    TypeError
        If ``c`` is something else.
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
    return Averages((_average(c, g) for g in groups(c, scored=True)), c.cost)


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
    return stack([g.mean(v[g.rows].astype(float)) for g in groups(c)])


def log_z(c: Configurations) -> Estimate:
    """ln Z at every condition from weighted draws, shape (conditions,).

    Raises
    ------
    ValueError
        As :func:`averages`, and for chains, which know no ``Z``.
    """
    found = groups(c)
    if found[0].log_w is None:
        raise ValueError(
            "chains carry no partition function; use weighted draws, or the log_z of "
            "ParallelTempering"
        )
    return stack([log_mean_exp(g.log_w) for g in found])


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
    return c.conditions[torch.as_tensor([rows[0] for rows in rows_by_condition(c)])]


# ------------------------------------------------------------------ one condition
def _average(c: Configurations, g: Group) -> ConditionAverages:
    temperature = g.condition.temperature[0].item()
    kT = g.condition.kT[0].item()
    part = c[torch.as_tensor(g.rows, device=c.occupations.device)]
    counts = part.counts().cpu().numpy()
    energy = to_numpy(part.energy)
    log_target = to_numpy(part.log_target)
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
        out |= {"ness": 1.0 / autocorrelation_time(c, g), "pareto_k": nan, "acceptance": nan}
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
