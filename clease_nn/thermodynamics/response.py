"""Responses at fixed composition and of the composition: fluctuations of E and N together."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import nan

import numpy as np
from ase.units import kB

from clease_nn.conditions import Conditions
from clease_nn.lattice import Lattice
from clease_nn.statistics import Estimate
from clease_nn.thermodynamics.density_of_states import (
    DensityOfStates,
    Moments,
    require_density_of_states,
)
from clease_nn.thermodynamics.groups import name, stack

__all__ = ["ThermodynamicFactor", "constant_composition_heat_capacity", "thermodynamic_factor"]

_FEWEST_CHANGES = 20.0  # effective states times variance of the counts


def constant_composition_heat_capacity(dos: DensityOfStates, conditions: Conditions) -> Estimate:
    """Heat capacity of the supercell at the mean composition of each condition, eV/K.

    ``C_x = [Var(E) - Cov(E, N) Cov(N, N)^+ Cov(N, E)] / (kB T^2)``: what the energy fluctuates
    besides following the composition. The inverse is taken in the directions in which the lattice
    lets the composition move. It equals the heat capacity at fixed N for large supercells, where
    fluctuations of N are small; :func:`~clease_nn.thermodynamics.canonical` has it at fixed N.

    Parameters
    ----------
    dos : DensityOfStates
    conditions : Conditions

    Returns
    -------
    Estimate, shape (conditions,)
        Per supercell; never above the heat capacity at constant chemical potentials.

    Raises
    ------
    NotDeterminedError
        If a condition is not supported by the data.

    References
    ----------
    J. L. Lebowitz, J. K. Percus, L. Verlet, Phys. Rev. 153, 250 (1967), for fluctuations in one
    ensemble from those in another.

    Examples
    --------
    >>> from clease_nn.energies.ising import ising_energy
    >>> from clease_nn.ensemble import SemiGrandCanonical
    >>> lattice = Lattice.square(3)
    >>> states = SemiGrandCanonical(ising_energy(lattice, 0.02)).enumerate(lattice)
    >>> at = Conditions([900.0], [[0.0, 0.05]])
    >>> dos = DensityOfStates.exact(states)
    >>> c_x = constant_composition_heat_capacity(dos, at).value[0]
    >>> bool(0 < c_x < dos.averages(at)[0].heat_capacity.value)
    True
    """
    require_density_of_states(dos)
    basis = _directions(dos.lattice)
    parts = []
    for k in range(len(conditions)):
        m, _ = _fluctuations(dos, conditions[k], basis)
        ess = m.ess
        # every direction of the composition takes one effective state more
        shrink = 1.0 if np.isinf(ess) else 1.0 - min((1.0 + len(basis)) / ess, 0.5)
        scale = 1.0 / (kB * conditions.temperature[k].item() ** 2 * shrink)
        e = m.estimate(lambda x: _schur(_covariance(x, len(basis) + 1)))
        parts.append(Estimate(e.value, e.error, _ness(dos, ess)) * scale)
    return stack(parts)


@dataclass(frozen=True, eq=False)
class ThermodynamicFactor:
    """How fast chemical potentials rise with composition.

    Attributes
    ----------
    conditions : Conditions
    species : tuple of str
        The independent ones: all but the solvent.
    solvent : str
    factor : Estimate, shape (conditions, species, species)
        ``d(mu_i - mu_solvent)/kT / d x_j``; nan where not determined.
    composition : Estimate, shape (conditions, species)
        Of the independent species.
    darken : Estimate or None, shape (conditions,)
        ``x (1 - x)`` times the factor of a binary, ``d(mu_a/kT) / d ln x_a``: 1 in an ideal
        solution, 0 where it becomes unstable; None with more components.
    reasons : tuple of str
        Why conditions are not determined.
    """

    conditions: Conditions
    species: tuple[str, ...]
    solvent: str
    factor: Estimate
    composition: Estimate
    darken: Estimate | None
    reasons: tuple[str, ...] = ()


def thermodynamic_factor(
    dos: DensityOfStates, conditions: Conditions, solvent: str | None = None
) -> ThermodynamicFactor:
    """Matrix of thermodynamic factors at every condition.

    ``Theta_ij = d(mu_i - mu_solvent)/kT / d x_j = n_sites [Cov(N, N)^-1]_ij`` over the species
    other than the solvent, with shares x of the active sites. Its product with the kinetic
    coefficients gives the diffusion coefficients of a substitutional alloy.

    Parameters
    ----------
    dos : DensityOfStates
    conditions : Conditions
    solvent : str, optional
        Default: the first species of the lattice.

    Returns
    -------
    ThermodynamicFactor
        nan, with a reason, where the composition does not move enough (as in a pure phase) for
        its variance to be known.

    Raises
    ------
    NotDeterminedError
        If a condition is not supported by the data at all.
    ValueError
        If the lattice lacks the solvent, or its sublattices keep the composition from moving in
        all directions.

    References
    ----------
    A. Van der Ven, G. Ceder, M. Asta, P. D. Tepesch, Phys. Rev. B 64, 184307 (2001);
    A. Van der Ven et al., Chem. Rev. 120, 6977 (2020).

    Examples
    --------
    Sites without interactions are an ideal solution:

    >>> from clease_nn.energies.ising import ising_energy
    >>> from clease_nn.ensemble import SemiGrandCanonical
    >>> lattice = Lattice.square(3)
    >>> free = SemiGrandCanonical(ising_energy(lattice, 0.0)).enumerate(lattice)
    >>> at = Conditions([600.0], [[0.0, 0.1]])
    >>> found = thermodynamic_factor(DensityOfStates.exact(free), at)
    >>> found.darken.value.round(9).tolist()
    [1.0]
    """
    require_density_of_states(dos)
    lattice = dos.lattice
    solvent = lattice.species[0] if solvent is None else solvent
    if solvent not in lattice.species:
        raise ValueError(f"the solvent {solvent!r} is none of {lattice.species}")
    free = len(_directions(lattice))
    if free != lattice.n_species - 1 or free == 0:
        raise ValueError(
            f"the composition of this lattice moves in {free} directions, its {lattice.n_species} "
            f"species {lattice.species} would need {max(lattice.n_species - 1, 1)}: species on "
            "sublattices of their own have no common thermodynamic factor; read count_covariance "
            "of the averages"
        )
    others = [a for a, s in enumerate(lattice.species) if s != solvent]
    basis = np.eye(lattice.n_species)[others]
    n, d = lattice.n_sites, len(others)
    factors, shares, darkens, reasons = [], [], [], []
    for k in range(len(conditions)):
        m, centre = _fluctuations(dos, conditions[k], basis)
        ness = _ness(dos, m.ess)
        share = partial(_share, centre=centre[1:], n=n)
        shrink = 1.0 if np.isinf(m.ess) else 1.0 - 1.0 / m.ess
        least = np.linalg.eigvalsh(_covariance(m.mean, d + 1)[1:, 1:])[0]
        changes = least * min(m.ess, 1e12)
        darken = Estimate(nan, nan)
        if changes < _FEWEST_CHANGES:
            reasons.append(
                f"{name(conditions[k])}: the composition hardly moves ({changes:.1f} effective "
                f"states times the variance of the counts, need {_FEWEST_CHANGES:.0f})"
            )
            factor = Estimate(np.full((d, d), nan), np.full((d, d), nan))
        else:
            factor = m.estimate(_inverse) * (n * shrink)
            if d == 1:
                darken = m.estimate(partial(_darken, share=share)) * (n * shrink)
        factors.append(Estimate(factor.value, factor.error, ness))
        darkens.append(Estimate(darken.value, darken.error, ness))
        x = m.estimate(share)
        shares.append(Estimate(x.value, x.error, ness))
    return ThermodynamicFactor(
        conditions,
        tuple(lattice.species[a] for a in others),
        solvent,
        stack(factors),
        stack(shares),
        stack(darkens) if d == 1 else None,
        tuple(reasons),
    )


def _share(moments: np.ndarray, centre: np.ndarray, n: int) -> np.ndarray:
    return (moments[1 : len(centre) + 1] + centre) / n


def _inverse(moments: np.ndarray) -> np.ndarray:
    """Inverse covariance of all but the first variable."""
    d = int(np.sqrt(len(moments)))  # d + d^2 moments
    return np.linalg.inv(_covariance(moments, d)[1:, 1:])


def _darken(moments: np.ndarray, share) -> float:
    [x], [[inverse]] = share(moments), _inverse(moments)
    return x * (1 - x) * inverse


def _directions(lattice: Lattice) -> np.ndarray:
    """Orthonormal directions in which the composition of a lattice can move, (d, species)."""
    k = lattice.n_species
    steps = [np.zeros(k)]
    for allowed in np.unique(lattice.allowed, axis=0):
        first, *rest = np.flatnonzero(allowed)
        steps += [np.eye(k)[a] - np.eye(k)[first] for a in rest]
    _, size, vectors = np.linalg.svd(np.array(steps))
    return vectors[: int((size > 1e-9).sum())]


def _fluctuations(
    dos: DensityOfStates, condition: Conditions, basis: np.ndarray
) -> tuple[Moments, np.ndarray]:
    """First and second moments of (E - mu.N, N along the basis) about a typical state."""
    mu = condition.mu[0].cpu().numpy()
    y = np.column_stack([dos.energy - dos.counts @ mu, dos.counts @ basis.T])
    # so that second moments lose no digits
    centre = y[int(np.argmax(dos.log_weights(condition)))]
    y = y - centre
    second = (y[:, :, None] * y[:, None, :]).reshape(len(y), -1)
    return dos.moments(np.concatenate([y, second], 1), condition), centre


def _covariance(moments: np.ndarray, d: int) -> np.ndarray:
    return moments[d:].reshape(d, d) - np.outer(moments[:d], moments[:d])


def _schur(covariance: np.ndarray) -> float:
    """Variance of the first variable that the others do not explain."""
    cross, others = covariance[0, 1:], covariance[1:, 1:]
    return covariance[0, 0] - cross @ np.linalg.pinv(others, rcond=1e-9, hermitian=True) @ cross


def _ness(dos: DensityOfStates, ess: float) -> float:
    return nan if dos.is_exact else ess / len(dos)
