"""The likelihood of samples of many conditions: one weight a state, one ln Z a condition.

Rows ``i`` with statistical weights ``u_i`` come from conditions ``k`` with unnormalised densities
``p_k(x) = exp(-(E - mu_k.N)/kT_k)``; condition ``k`` stands for ``N_k`` effective samples, the sum
of its ``u_i``. Where a mean importance weight has measured ``ln Z_k`` to be ``f'_k +- sigma_k``,
the weights ``g_i`` of the states maximise

    sum_i u_i ln g_i - sum_k N_k ln Z_k - sum_k (ln Z_k - f'_k)^2 / (2 sigma_k^2),
    Z_k = sum_i g_i p_k(x_i),

the likelihood of Vardi and of Kong et al. with the measurements as a further term. At the maximum

    g_i = u_i / sum_k c_k p_k(x_i)/Z_k,   c_k = N_k + (ln Z_k - f'_k)/sigma_k^2.

Without measurements this is the multistate Bennett acceptance ratio, which knows ratios of the Z_k
only. With exact ones the ``c_k`` are the multipliers of the constraints ``sum_i g_i p_k = Z_k``,
which are as good as control variates; nothing need overlap.

References
----------
Y. Vardi, Ann. Stat. 13, 178 (1985); A. Kong et al., J. R. Stat. Soc. B 65, 585 (2003); Z. Tan,
J. Am. Stat. Assoc. 99, 1027 (2004); M. R. Shirts and J. D. Chodera, J. Chem. Phys. 129, 124105
(2008).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.linalg import lu_factor, lu_solve

__all__ = ["MultistateLikelihood"]

_CHUNK = 2048
_MOST_STEPS = 30
_LONGEST = 10.0  # Newton step of ln Z; a longer one comes from what is hardly determined
_FIXED_POINT_STEPS = 20
_LOWEST_RATIO = 0.02  # of mixtures of a replica and the solution; replicas stop before it
_NEGLIGIBLE = -32.0  # logarithm of a density, relative to the mixture, that is left out


class MultistateLikelihood:
    """Solver for the ``ln Z`` of many conditions.

    Parameters
    ----------
    energy : ndarray, shape (states,)
    counts : ndarray, shape (states, species)
    beta : ndarray, shape (conditions,)
        1/eV.
    mu : ndarray, shape (conditions, species)
    weight : ndarray, shape (states,)
        ``u_i``.
    effective : ndarray, shape (conditions,)
        ``N_k``; their sum is that of ``weight``.
    """

    def __init__(self, energy, counts, beta, mu, weight, effective):
        self.x = np.concatenate([energy[:, None], counts], 1)
        self.y = np.concatenate([-beta[None], (beta[:, None] * mu).T], 0)
        self.weight, self.effective = weight, effective

    def __len__(self) -> int:
        return len(self.effective)

    def chunks(self, f: np.ndarray) -> Iterator[tuple[slice, np.ndarray, np.ndarray, np.ndarray]]:
        """Rows, columns that matter, densities ``p_k/Z_k`` over a scale, logarithm of the scale."""
        log_n = np.log(self.effective)
        for start in range(0, len(self.x), _CHUNK):
            rows = slice(start, start + _CHUNK)
            log_p = self.x[rows] @ self.y
            log_p -= f
            top = (log_p + log_n).max(1)
            log_p -= top[:, None]
            columns = np.flatnonzero((log_p + log_n).max(0) > _NEGLIGIBLE)
            yield rows, columns, np.exp(log_p[:, columns]), top

    def log_mixture(self, f: np.ndarray, c: np.ndarray) -> np.ndarray:
        """``ln sum_k c_k p_k/Z_k`` of every state; nan where the sum is not positive."""
        out = np.empty(len(self.x))
        for rows, columns, p, top in self.chunks(f):
            m = p @ c[columns]
            out[rows] = top + np.log(np.where(m > 0, m, np.nan))
        return out

    def residual(self, f: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, float]:
        """``sum_i g_i p_k/Z_k - 1`` of every condition, and ``sum_i u_i ln m_i``."""
        total, objective = np.zeros(len(self)), 0.0
        for rows, columns, p, top in self.chunks(f):
            m = p @ c[columns]
            if not (m > 0).all():
                return np.full(len(self), np.inf), np.inf
            u = self.weight[rows]
            total[columns] += (u / m) @ p
            objective += u @ (np.log(m) + top)
        return total - 1.0, objective

    def shared(self, f: np.ndarray, c: np.ndarray) -> np.ndarray:
        """``sum_i u_i p_k p_l / (Z_k Z_l m_i^2)``, shape (conditions, conditions)."""
        out = np.zeros((len(self), len(self)))
        for rows, columns, p, _ in self.chunks(f):
            a = p * (np.sqrt(self.weight[rows]) / (p @ c[columns]))[:, None]
            out[np.ix_(columns, columns)] += a.T @ a
        return out

    def ratios(self, f: np.ndarray, tolerance: float = 1e-10) -> np.ndarray:
        """``ln Z_k`` without measurements, by damped Newton steps from a start ``f``.

        Conditions that share nothing keep the difference they start with.
        """
        n = self.effective
        r, objective = self.residual(f, n)
        objective += n @ f
        for _ in range(60):
            if np.abs(r).max() < tolerance:
                break
            shared = self.shared(f, n)
            hessian = np.diag(n * (r + 1.0)) - n[:, None] * shared * n
            # what is not determined (a factor common to a group) is left as it is
            scale = 1.0 / np.sqrt(n)
            values, vectors = np.linalg.eigh(scale[:, None] * hessian * scale)
            inverse = np.where(values > 1e-9, 1.0 / np.maximum(values, 1e-9), 0.0)
            step = scale * (vectors @ (inverse * (vectors.T @ (scale * n * r))))
            for size in 0.5 ** np.arange(5) * min(1.0, _LONGEST / max(np.abs(step).max(), 1e-300)):
                trial = f + size * step
                r_new, new = self.residual(trial, n)
                new += n @ trial
                if new <= objective + 1e-12 * abs(objective):
                    f, r, objective = trial, r_new, new
                    break
            else:
                # too far for Newton's steps: the fixed-point iteration goes down from anywhere
                for _ in range(_FIXED_POINT_STEPS):
                    f = f + np.log(np.maximum(1.0 + r, 1e-30))
                    r, objective = self.residual(f, n)
                objective += n @ f
        return f

    def joint(
        self, f: np.ndarray, measured: np.ndarray, precision: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """``ln Z_k`` and ``c_k`` with measurements, by Newton steps from a start ``f``.

        Parameters
        ----------
        measured : ndarray, shape (conditions,)
            ``f'_k``; ignored where the precision is zero.
        precision : ndarray, shape (conditions,)
            ``1/sigma_k^2``.

        Returns
        -------
        f, c : ndarray, shape (conditions,)

        Raises
        ------
        RuntimeError
            If the measurements contradict the samples.
        """
        n, s = self.effective, precision
        multipliers = lambda f: n + s * (f - measured)  # noqa: E731
        c = multipliers(f)
        r = self.residual(f, c)[0]
        if not np.isfinite(r).all():  # the start is too far from the measurements: go half-way
            raise RuntimeError("the measured ln Z contradict the samples")
        solve, free = None, self.free_groups(f, c, s)
        for _ in range(60):
            norm = np.linalg.norm(r * np.sqrt(n))
            if np.abs(r).max() < 1e-9:
                return f, c
            fresh = solve is None
            if fresh:
                solve = self.newton(f, c, s, free)
            step, size = lu_solve(solve, r), 1.0
            while True:
                trial = f + size * step
                c_new = multipliers(trial)
                r_new = self.residual(trial, c_new)[0]
                new = np.linalg.norm(r_new * np.sqrt(n))
                if new < (1 - 0.1 * size) * norm or not fresh:
                    break
                size /= 2
                if size < 1e-3:
                    raise RuntimeError("the measured ln Z contradict the samples")
            if new < norm:
                f, c, r = trial, c_new, r_new
            if not new < 0.1 * norm:  # an old matrix serves as long as it does well
                solve = None
        raise RuntimeError("the measured ln Z contradict the samples")

    def newton(self, f, c, s, free):
        """Factors of the matrix that turns residuals into steps of ``f``."""
        matrix = np.eye(len(self)) + self.shared(f, c) * (s - c)
        for group in free:
            matrix[np.ix_(group, group)] += c[group] / c[group].sum()
        return lu_factor(matrix)

    def free_groups(self, f, c, s) -> list[np.ndarray]:
        """Groups of conditions that share states and have no measurement."""
        if s.all():
            return []
        return [g for g in connected(self.shared(f, c) * np.outer(c, c), 1e-9) if not s[g].any()]

    def replicas(
        self,
        f: np.ndarray,
        c: np.ndarray,
        precision: np.ndarray,
        weights: np.ndarray,
        measured: np.ndarray,
        tolerance: float = 1e-4,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The solution for resampled weights and measurements.

        Parameters
        ----------
        weights : ndarray, shape (states, replicas), float32
        measured : ndarray, shape (conditions, replicas)

        Returns
        -------
        f : ndarray, shape (conditions, replicas)
        factor : ndarray, shape (states, replicas), float32
            Mixture density of every state over that of the solution.
        solved : ndarray of bool, shape (replicas,)
            False where no solution was found.
        """
        n, s = self.effective[:, None], precision[:, None]
        solve = self.newton(f, c, precision, self.free_groups(f, c, precision))
        accepted = np.repeat(f[:, None], weights.shape[1], 1)
        trial, step = accepted.copy(), np.zeros_like(accepted)
        size, best = np.ones(weights.shape[1]), np.full(weights.shape[1], np.inf)
        for _ in range(_MOST_STEPS):
            lowest, r = self._replica_residual(f, c, n, s, weights, measured, trial)[:2]
            worst = np.abs(r * np.sqrt(n)).max(0)
            good = (lowest > _LOWEST_RATIO) & (worst < best)
            accepted[:, good], best[good], size[good] = trial[:, good], worst[good], 1.0
            step[:, good] = lu_solve(solve, r[:, good])
            size[~good] /= 2
            if np.abs(size * step).max() < tolerance:
                break
            trial = accepted + size * step
        solved = np.abs(step).max(0) < tolerance
        return accepted, self._replica_residual(f, c, n, s, weights, measured, accepted)[2], solved

    def _replica_residual(self, f, c, n, s, weights, measured, trial):
        """Lowest ratio of mixtures, residuals, and all ratios, for every replica."""
        shift = np.exp(f[:, None] - trial)
        change = (n + s * np.where(s > 0, trial - measured, 0.0)) * shift
        coefficient = change.astype(np.float32)
        total = np.zeros_like(trial)
        ratio = np.empty(weights.shape, dtype=np.float32)
        for rows, columns, p, _ in self.chunks(f):
            b = (p / (p @ c[columns])[:, None]).astype(np.float32)
            r = b @ coefficient[columns]
            ratio[rows] = r
            total[columns] += b.T @ (weights[rows] / np.maximum(r, _LOWEST_RATIO))
        return ratio.min(0), total * shift - 1.0, ratio


def connected(conductance: np.ndarray, threshold: float) -> list[np.ndarray]:
    """Groups between which the summed conductance stays below a threshold.

    Pairs above it are joined, and whatever shares as much with all others together, as on a dense
    grid of few samples each, joins the one it shares most with.

    Examples
    --------
    >>> [g.tolist() for g in connected(np.array([[0, 2, 0], [2, 0, 0.1], [0, 0.1, 0]]), 1.0)]
    [[0, 1], [2]]
    """
    from scipy.sparse.csgraph import connected_components

    labels = np.arange(len(conductance))
    between = np.array(conductance, dtype=float)
    while True:
        np.fill_diagonal(between, 0.0)
        joined = between >= threshold
        if not joined.any():
            rows = np.flatnonzero(between.sum(1) >= threshold)
            if not len(rows):
                break
            joined[rows, between[rows].argmax(1)] = True
        count, merged = connected_components(joined, directed=False)
        labels = merged[labels]
        member = np.zeros((count, len(between)))
        member[merged, np.arange(len(between))] = 1.0
        between = member @ between @ member.T
    return [np.flatnonzero(labels == k) for k in range(labels.max() + 1)]
