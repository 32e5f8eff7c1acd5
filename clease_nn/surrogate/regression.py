"""Ridge regression of a cluster basis with the penalty chosen by leave-one-out error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clease_nn.energies.cluster_basis import ClusterBasis

__all__ = ["RidgeFit", "ridge"]

_PENALTIES = np.logspace(-10, 2, 37)  # times the largest squared singular value
_SIZE_DECAYS = (1.0, 0.5, 0.2)
_DISTANCE_DECAYS = (0.0, 3.0, 6.0)


@dataclass(frozen=True, eq=False)
class RidgeFit:
    """A fit of energies that can tell how sure it is.

    Attributes
    ----------
    coefficients : ndarray, shape (features,)
        eV per supercell.
    loo_residuals : ndarray, shape (structures,)
        True energy minus the prediction of the fit without that structure, eV per supercell.
    """

    coefficients: np.ndarray
    loo_residuals: np.ndarray
    _mean: np.ndarray
    _scale: np.ndarray
    _inverse: np.ndarray
    _noise: float

    @property
    def loo_rmse(self) -> float:
        """Root mean square of the leave-one-out residuals, eV per supercell."""
        return float(np.sqrt((self.loo_residuals**2).mean()))

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Energies, eV per supercell, shape (batch,)."""
        return features @ self.coefficients

    def standard_deviation(self, features: np.ndarray) -> np.ndarray:
        """Predictive standard deviation without the noise, eV per supercell, shape (batch,)."""
        z = (features[:, 1:] - self._mean) * self._scale
        return self._noise * np.sqrt(np.einsum("bi,ij,bj->b", z, self._inverse, z).clip(min=0))

    def pick(self, features: np.ndarray, n: int) -> np.ndarray:
        """Rows to compute next: one after the other, the most uncertain given those before.

        The uncertainty depends on where structures lie, not on their energies: after each pick
        it is updated without knowing the energy (Sherman-Morrison).
        """
        z = (features[:, 1:] - self._mean) * self._scale
        inverse, picked = self._inverse.copy(), []
        for _ in range(min(n, len(z))):
            az = z @ inverse
            leverage = (az * z).sum(1)
            leverage[picked] = -np.inf
            best = int(leverage.argmax())
            picked.append(best)
            inverse -= np.outer(az[best], az[best]) / (1.0 + leverage[best])
        return np.array(picked, dtype=np.int64)


def ridge(basis: ClusterBasis, features: np.ndarray, energies: np.ndarray) -> RidgeFit:
    r"""Fit energies with the features of a basis.

    Minimises :math:`\sum_n (E_n - c_0 - \sum_o c_o \Phi_o(s_n))^2 + \lambda \sum_o J_o^2 / v_o`,
    where :math:`J_o = c_o / |o|` is the energy of a single cluster and its expected square
    :math:`v_o = |o|^{-1} a^{2k} r^{-2p}` falls with the size k and the diameter r of the cluster.
    (Without decay every feature is expected to contribute alike to the energies of random
    structures, ``Phi_o`` having the variance ``1/|o|`` there.) The penalty and the decays a, p
    have the least leave-one-out error, in closed form :math:`r_n / (1 - H_{nn})` with H the hat
    matrix [1]_. More features than structures are no problem.

    Parameters
    ----------
    basis : ClusterBasis
    features : ndarray, shape (structures, features)
        Of :meth:`ClusterBasis.features`.
    energies : ndarray, shape (structures,)
        eV per supercell.

    Raises
    ------
    ValueError
        If there are fewer than 3 structures or an energy is not finite.

    References
    ----------
    .. [1] D. M. Allen, Technometrics 16, 125 (1974); T. Mueller, G. Ceder, Phys. Rev. B 80,
       024103 (2009) for penalties that grow with size and distance.
    """
    y = np.asarray(energies, dtype=float)
    if len(y) < 3 or len(features) != len(y):
        raise ValueError(
            f"a fit needs at least 3 structures with one energy each, got {len(features)} "
            f"structures and {len(y)} energies"
        )
    if not np.isfinite(y).all():
        row = int(np.flatnonzero(~np.isfinite(y))[0])
        raise ValueError(f"the energy of structure {row} is {y[row]}; leave it out of the fit")
    n, x_mean, y_mean = len(y), features[:, 1:].mean(0), y.mean()
    x, r = features[:, 1:] - x_mean, y - y_mean
    size, multiplicity = basis.sizes[1:], basis.multiplicities[1:]
    reach = basis.diameters[1:]
    shortest = reach[reach > 0].min(initial=np.inf)
    relative = np.where(reach > 0, reach / shortest, 1.0)
    best: tuple | None = None
    for a in _SIZE_DECAYS:
        for p in _DISTANCE_DECAYS:
            scale = np.sqrt(multiplicity) * a ** (size - 1.0) * relative**-p
            u, s, vt = np.linalg.svd(x * scale, full_matrices=False)
            top = max(float(s.max(initial=0.0)) ** 2, np.finfo(float).tiny)
            penalties = _PENALTIES * top
            shrink = s**2 / (s**2 + penalties[:, None])  # penalties, components
            leverage = 1 / n + shrink @ (u**2).T
            fitted = (shrink * (u.T @ r)) @ u.T
            loo = (r - fitted) / np.maximum(1.0 - leverage, 1e-9)
            error = (loo**2).mean(1)
            # the largest penalty within a hair of the best
            k = int(np.flatnonzero(error <= error.min() * 1.001)[-1])
            if best is None or error[k] < best[0]:
                residual = r - fitted[k]
                free = max(n - leverage[k].sum(), 1.0)
                best = error[k], scale, penalties[k], s, vt, u, loo[k], residual, free
    _, scale, penalty, s, vt, u, loo, residual, free = best
    weights = vt.T @ (s / (s**2 + penalty) * (u.T @ r))
    coefficients = np.empty(1 + len(scale))
    coefficients[1:] = weights * scale
    coefficients[0] = y_mean - coefficients[1:] @ x_mean
    # (Z'Z + penalty)^-1 from the singular values: directions without data keep the prior
    inverse = np.eye(len(scale)) / penalty
    inverse += (vt.T * (1 / (s**2 + penalty) - 1 / penalty)) @ vt
    noise = float(np.sqrt((residual**2).sum() / free))
    return RidgeFit(coefficients, loo, x_mean, scale, inverse, noise)
