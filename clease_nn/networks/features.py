"""Inputs of the networks: what a site sees and what the whole configuration sees."""

from __future__ import annotations

import torch
from torch import Tensor

from clease_nn.conditions import ConditionRange
from clease_nn.configurations import Configurations

__all__ = [
    "condition_features",
    "global_features",
    "n_condition_features",
    "n_global_features",
    "n_site_features",
    "site_features",
]


def n_condition_features(n_species: int) -> int:
    """Length of a row of :func:`condition_features`."""
    return 2 + 4 * n_species


def condition_features(c: Configurations, box: ConditionRange) -> Tensor:
    """Temperature and mu only, shape (batch, 2 + 4 * species), float32; no occupation enters.

    Temperature and mu scaled by the trained box, beta*mu, and functions of N*beta*mu that stay
    sharp where two phases of a finite cell balance (the window in mu is about kT/N wide).
    """
    return torch.cat(_condition_columns(c, box), 1).to(torch.float32)


def _condition_columns(c: Configurations, box: ConditionRange) -> list[Tensor]:
    """Columns of :func:`condition_features`, float64: the first two of width 1."""
    cond = c.conditions
    n = c.lattice.n_sites
    t_low, t_high = box.temperature
    beta = t_low / cond.temperature
    log_t = torch.log(cond.temperature / t_low) / max(
        torch.log(torch.tensor(t_high / t_low)).item(), 1e-3
    )
    mu = cond.relative_mu()
    scale = max(
        float(abs(box.axes * box.high[:, None]).max()),
        float(abs(box.axes * box.low[:, None]).max()),
        1e-6,
    )
    beta_mu = mu * cond.beta[:, None]
    return [
        beta[:, None],
        log_t[:, None],
        mu / scale,
        torch.asinh(beta_mu),
        torch.tanh(n * beta_mu),
        torch.tanh(n * beta_mu / 6),
    ]


def n_global_features(n_species: int) -> int:
    """Length of a row of :func:`global_features`."""
    return 3 + 7 * n_species


def global_features(c: Configurations, box: ConditionRange) -> Tensor:
    """Conditions and totals of the known sites, shape (batch, 3 + 7 * species), float32.

    What :func:`condition_features` has, fraction and mean occupation of the known sites, and
    functions of the known excess over equal shares that stay sharp where phases balance.
    """
    n = c.lattice.n_sites
    beta, log_t, mu, beta_mu, sharp, less_sharp = _condition_columns(c, box)
    known = c.known.sum(1, keepdim=True).to(torch.float64)
    counts = c.counts()
    excess = counts - known / c.lattice.n_species
    columns = [
        beta,
        log_t,
        known / n,
        mu,
        beta_mu,
        counts / n,
        sharp,
        less_sharp,
        torch.tanh(excess / 2),
        torch.tanh(excess / 10),
    ]
    return torch.cat(columns, 1).to(torch.float32)


def n_site_features(n_species: int, n_shells: int, n_sublattices: int, needs_fields: bool) -> int:
    """Width of :func:`site_features`."""
    extra = n_sublattices if n_sublattices > 1 else 0
    return n_species + 1 + n_shells + extra + (4 * n_species if needs_fields else 0)


def site_features(
    c: Configurations, fields: Tensor | None, share: Tensor, sublattice: Tensor | None
) -> Tensor:
    """What each site sees, shape (batch, sites, features), float32.

    Parameters
    ----------
    fields : Tensor (batch, sites, 2 * species) or None
        In units of kT; squashed here.
    share : Tensor, shape (batch, sites, shells)
        Share of the neighbours in each shell that are known.
    sublattice : Tensor, shape (sites, sublattices), or None
        One-hot sublattice of each site, where there are several.
    """
    occ = c.occupations
    species = torch.arange(c.lattice.n_species, device=occ.device)
    onehot = (occ[:, :, None] == species).to(torch.float32)
    columns = [onehot, onehot.sum(-1, keepdim=True), share]
    if sublattice is not None:
        columns.append(sublattice[None].expand(len(c), -1, -1))
    if fields is not None:
        columns += [torch.tanh(fields / 2), torch.asinh(fields / 2) / 3]
    return torch.cat(columns, -1)
