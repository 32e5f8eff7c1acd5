"""Whether weighted rows are at rest: exact moves must leave their weighted averages alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.stats import norm, t

from clease_nn.configurations import Configurations
from clease_nn.cost import Cost
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.montecarlo import Chains

__all__ = ["DRIFTING", "drift", "has_cheap_flips"]

DRIFTING = 5.0
"""Standard errors from which on rows are not at rest."""

_SWEEPS = 4
_ROWS = 256  # that are looked at
_FEWEST = 4.0  # effective rows that can tell


def has_cheap_flips(ensemble: SemiGrandCanonical) -> bool:
    """Whether a change of one site costs less than an energy."""
    return hasattr(ensemble.energy, "tables") or hasattr(ensemble.energy, "flip_energies")


def drift(
    c: Configurations, ensemble: SemiGrandCanonical, seed: np.random.SeedSequence
) -> tuple[float, Cost]:
    """How far heat-bath sweeps carry rows of one condition from their weighted averages.

    Moves that leave the target alone leave every average alone, ``sum W f(x') = sum W f(x)`` within
    the error of the difference, if the weights ``W`` of the rows describe the target. Where draws
    have missed a mode that a few sweeps reach, rows leave for it, whatever their NESS; modes behind
    barriers that sweeps do not cross stay unseen. Looked at are ``E - mu.N`` and the number of
    atoms of each species.

    Parameters
    ----------
    c : Configurations
        Weighted and scored, at one condition; the first 256 rows are looked at, none is
        changed.
    ensemble : SemiGrandCanonical
    seed : SeedSequence

    Returns
    -------
    float
        In standard errors, of the quantity that moves most; nan where fewer than four effective
        rows, or an energy without cheap changes of one site, cannot tell.
    Cost
        Of the sweeps.

    Examples
    --------
    Random configurations at a low temperature, as if all of them had the same weight:

    >>> from dataclasses import replace
    >>> import torch
    >>> from clease_nn.energies.ising import ising_conditions, ising_energy
    >>> from clease_nn.lattice import Lattice
    >>> lattice = Lattice.square(4)
    >>> ensemble = SemiGrandCanonical(ising_energy(lattice))
    >>> x = torch.randint(2, (64, 16), generator=torch.Generator().manual_seed(0))
    >>> at = ising_conditions(1.5, 0.0).repeat(64)
    >>> c = ensemble.score(Configurations(lattice, at, x.to(torch.int8)))
    >>> c = replace(c, log_prob=c.log_target)
    >>> drift(c, ensemble, np.random.SeedSequence(0))[0] > DRIFTING
    True
    """
    if not has_cheap_flips(ensemble):
        return np.nan, Cost()
    c = c[:_ROWS]
    log_w = c.log_weight.cpu().numpy()
    w = np.exp(log_w - log_w.max())
    w /= w.sum()
    effective = 1.0 / (w @ w)
    if effective < _FEWEST:
        return np.nan, Cost()
    chains = Chains(ensemble, c.lattice, c.conditions, c.occupations.cpu(), seed=seed)
    before = _observed(chains)
    chains.sweep(_SWEEPS)
    change = _observed(chains) - before
    mean = w @ change
    error = np.sqrt((w**2) @ (change - mean) ** 2)
    moving = error > 1e-9
    cost = replace(chains.cost, seconds=0.0)
    if not moving.any():
        return 0.0, cost
    # heavy weights make few rows of many: Student's t of the effective ones, as a normal deviate
    tail = t.logsf(np.abs(mean[moving] / error[moving]).max(), effective - 1)
    return float(norm.isf(np.exp(max(tail, -700.0)))), cost


def _observed(chains: Chains) -> np.ndarray:
    """E - mu.N in kT and the numbers of atoms, (chains, 1 + species)."""
    counts = chains.counts()
    reduced = chains.beta * chains.energy - (chains.beta_mu * counts).sum(1)
    return np.column_stack([reduced, counts])
