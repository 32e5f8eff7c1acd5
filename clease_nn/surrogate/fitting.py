"""Fit a cluster expansion to expensive energies, where the sampler itself goes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from tqdm.auto import tqdm

from clease_nn.conditions import ConditionRange
from clease_nn.energies.cluster_basis import ClusterBasis
from clease_nn.energies.cluster_expansion import ClusterExpansionEnergy
from clease_nn.energies.protocol import EnergyModel
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import Lattice
from clease_nn.montecarlo import ParallelTempering
from clease_nn.surrogate.regression import RidgeFit, ridge
from clease_nn.symmetry import canonical_occupations
from clease_nn.warnings import ChainWarning, TrainingWarning

__all__ = ["Surrogate", "SurrogateReport", "fit_surrogate"]

_TEMPERATURES = 6
_POINTS = {1: 7, 2: 4}  # of chemical potential along each axis; 3 where there are more axes
_STEPS, _INTERVAL = 40, 4  # of parallel tempering a round
_QUIET_ROUNDS = 2  # without anything new until the sampler's structures count as exhausted


@dataclass(frozen=True)
class SurrogateReport:
    """How a surrogate came about and how good it is.

    Attributes
    ----------
    n_structures : int
        True energies in the fit.
    true_calls : int
        True energies asked for, failures included; those given as ``known`` do not count.
    failures : int
        Structures whose true energy is not finite; they are left out.
    loo_rmse : float
        Leave-one-out error of the fit, eV per site.
    heldout_rmse : float
        Error on structures that the sampler drew and no fit had seen, eV per site; nan where it
        drew nothing new. They were predicted by the fit before the last, and are in the last.
    n_heldout : int
        Their number.
    error_kT : float
        Mean of ``|E - surrogate| / kT`` of a supercell over everything that the sampler drew:
        known structures by their residual, new ones by their error before they were fitted.
    converged : bool
        Whether ``error_kT`` reached the target.
    interrupted : bool
        Whether Ctrl-C ended the fit.
    """

    n_structures: int
    true_calls: int
    failures: int
    loo_rmse: float
    heldout_rmse: float
    n_heldout: int
    error_kT: float
    converged: bool
    interrupted: bool

    def __str__(self) -> str:
        return (
            f"surrogate from {self.n_structures} structures ({self.true_calls} true energies): "
            f"leave-one-out {1e3 * self.loo_rmse:.2f} meV/site, held out "
            f"{1e3 * self.heldout_rmse:.2f} meV/site ({self.n_heldout} structures), "
            f"|dE| {self.error_kT:.2f} kT a supercell where sampled"
        )


@dataclass(frozen=True, eq=False)
class Surrogate:
    """A cluster expansion in the place of an expensive energy.

    Attributes
    ----------
    energy : ClusterExpansionEnergy
    basis : ClusterBasis
    coefficients : ndarray, shape (features,), eV per supercell
    occupations : ndarray, shape (structures, sites), int8
        Structures of the fit.
    true_energies : ndarray, shape (structures,), eV per supercell
    report : SurrogateReport
    """

    energy: ClusterExpansionEnergy
    basis: ClusterBasis
    coefficients: np.ndarray
    occupations: np.ndarray
    true_energies: np.ndarray
    report: SurrogateReport


def fit_surrogate(
    energy: EnergyModel,
    lattice: Lattice,
    box: ConditionRange,
    *,
    max_calls: int = 200,
    target_error: float = 0.3,
    cutoffs: Mapping[int, float] | None = None,
    n_start: int | None = None,
    batch: int | None = None,
    known: tuple[np.ndarray, np.ndarray] | None = None,
    seed: int | np.random.SeedSequence = 0,
    progress: bool = False,
) -> Surrogate:
    """Fit a cluster expansion to an energy with few evaluations.

    Starts from random structures of all compositions. Then, in rounds: parallel tempering with
    the present surrogate over the box draws structures, cold and hot; half of the next batch are
    random ones of them that are new up to symmetry (their errors tell how good the surrogate is
    where it is used), half the most uncertain ones; their true energies extend the fit. Ends
    when the error reaches the target, the sampler finds nothing new, or ``max_calls`` are spent.

    The ensemble sampled is never the surrogate's if the true energy has the last word:
    :class:`~clease_nn.surrogate.DelayedAcceptanceChain`, or importance weights,
    ``SemiGrandCanonical(energy).score(draws)`` of draws from a model trained on the surrogate.

    Parameters
    ----------
    energy : EnergyModel
        The true energy, eV per supercell; symmetric under the supercell's symmetry. Called with
        batches, which :class:`~clease_nn.energies.calculator.CalculatorEnergy` spreads over an
        executor. NaN marks a structure as failed.
    lattice : Lattice
    box : ConditionRange
        Where the surrogate will be used.
    max_calls : int
        True energies at most, at least 4.
    target_error : float
        Of the mean ``|E - surrogate| / kT`` of a supercell over the structures sampled. It
        decides the acceptance of delayed acceptance and the weights: 0.3 gives about 80 %.
    cutoffs : mapping of int to float, optional
        Of :class:`~clease_nn.energies.cluster_basis.ClusterBasis`, angstrom.
    n_start : int, optional
        Structures before the first round. Default: as many as features, at most half of
        ``max_calls``.
    batch : int, optional
        True energies a round. Default: a third of ``n_start``, at least 8.
    known : (occupations, energies), optional
        Structures computed before, (n, sites) and (n,) eV per supercell, say of a surrogate of
        another box or a database.
    seed : int or numpy.random.SeedSequence
    progress : bool
        Show a progress bar of true energies.

    Returns
    -------
    Surrogate

    Raises
    ------
    ValueError
        If a number is out of range, or fewer than 3 structures have a finite energy. Errors of
        the energy itself pass through.
    KeyboardInterrupt
        Ctrl-C before 3 structures are known.

    Warns
    -----
    TrainingWarning
        If ``max_calls`` were spent before the target was reached, or after Ctrl-C: what has been
        computed is fitted and returned.

    Examples
    --------
    >>> from clease_nn.energies.ising import ising_energy
    >>> lattice = Lattice.square(4)
    >>> box = ConditionRange((20000, 60000), [-0.5], [0.5], [[-1.0, 1.0]])
    >>> found = fit_surrogate(ising_energy(lattice), lattice, box, max_calls=40, seed=1)
    >>> found.report.converged, found.report.loo_rmse < 1e-3
    (True, True)
    """
    if max_calls < 4:
        raise ValueError(f"max_calls must be at least 4 true energies, got {max_calls}")
    if not target_error > 0:
        raise ValueError(f"target_error must be positive (units of kT), got {target_error}")
    if min(n_start or 3, 3) < 3 or (batch is not None and batch < 2):
        raise ValueError(f"n_start must be at least 3, batch 2; got {n_start} and {batch}")
    basis = ClusterBasis(lattice, cutoffs)
    if n_start is None:
        n_start = max(min(basis.n_features, max_calls // 2), 3)
    n_start = min(n_start, max_calls)
    search = _Search(
        energy, lattice, box, basis, max_calls, batch or max(8, n_start // 3), known, seed, progress
    )
    interrupted = False
    try:
        search.run(n_start, target_error)
    except KeyboardInterrupt:
        if len(search.energies) < 3:
            raise
        interrupted = True
    finally:
        search.bar.close()
    surrogate = search.result(interrupted, target_error)
    if interrupted or not surrogate.report.converged:
        why = "the fit was interrupted" if interrupted else f"max_calls = {max_calls} are spent"
        remedy = "go on with known=(surrogate.occupations, surrogate.true_energies)"
        if search.exhausted and not interrupted:
            why, remedy = "the sampler finds nothing new", "use larger cutoffs"
        warnings.warn(
            f"{why} before the target of {target_error:g} kT: {surrogate.report}; averages stay "
            f"exact with the true energy's last word, at more true energies. To improve it, "
            f"{remedy}",
            TrainingWarning,
            stacklevel=2,
        )
    return surrogate


class _Search:
    """Structures with their true energies, and what the rounds found out."""

    def __init__(self, energy, lattice, box, basis, max_calls, batch, known, seed, progress):
        self.energy, self.lattice, self.box, self.basis = energy, lattice, box, basis
        self.max_calls, self.batch = max_calls, batch
        sequence = (
            seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
        )
        for_draws, self.for_tempering = sequence.spawn(2)
        self.rng = np.random.default_rng(for_draws)
        self.occupations: list[np.ndarray] = []
        self.features = np.empty((0, basis.n_features))
        self.energies: list[float] = []
        self.seen: dict[bytes, int] = {}  # representative -> row, -1 where the energy failed
        self.calls = self.failures = 0
        self.heldout = np.empty(0)
        self.error_kT = np.nan
        self.exhausted = False
        if known is not None:
            self._add_known(*known)
        self.bar = tqdm(total=max_calls, disable=not progress, desc="true energies")

    def _add_known(self, occupations, energies) -> None:
        x = np.asarray(occupations, dtype=np.int8)
        e = np.asarray(energies, dtype=float)
        if x.ndim != 2 or x.shape[1] != self.lattice.n_sites or e.shape != (len(x),):
            raise ValueError(
                f"known must be occupations (n, {self.lattice.n_sites}) and energies (n,), got "
                f"{x.shape} and {e.shape}"
            )
        self._add(x, e)

    # ------------------------------------------------------------------ true energies
    def _keys(self, occupations: np.ndarray) -> list[bytes]:
        rows = canonical_occupations(occupations, self.basis.permutations)
        return [row.tobytes() for row in rows]

    def _add(self, occupations: np.ndarray, energies: np.ndarray) -> None:
        features = self.basis.features(occupations)
        for key, x, f, e in zip(
            self._keys(occupations), occupations, features, energies, strict=True
        ):
            if self.seen.get(key, -1) >= 0:
                continue
            self.seen[key] = -1
            if np.isfinite(e):
                self.seen[key] = len(self.energies)
                self.occupations.append(x)
                self.features = np.concatenate([self.features, f[None]])
                self.energies.append(float(e))

    def compute(self, occupations: np.ndarray) -> np.ndarray:
        """True energies of new structures, a batch at a time; they join the fit."""
        out = np.full(len(occupations), np.nan)
        for start in range(0, len(occupations), self.batch):
            rows = occupations[start : start + self.batch]
            e = self.energy(self.lattice, torch.from_numpy(rows.copy()))
            e = torch.as_tensor(e, dtype=torch.float64).cpu().numpy()
            self.calls += len(rows)
            self.failures += int((~np.isfinite(e)).sum())
            self._add(rows, e)
            out[start : start + self.batch] = e
            self.bar.update(len(rows))
        return out

    # ------------------------------------------------------------------ the rounds
    def run(self, n_start: int, target: float) -> None:
        start = self._start(n_start)
        if len(start):
            self.compute(start)
        quiet = 0
        while True:
            fit = self.fit()
            occupations, kT = self.draw(self.basis.energy(fit.coefficients))
            new = self._round(fit, occupations, kT)
            quiet = 0 if new else quiet + 1
            self.exhausted = quiet >= _QUIET_ROUNDS
            if self.error_kT <= target or self.exhausted or self.calls >= self.max_calls:
                return

    def fit(self) -> RidgeFit:
        """Fit to everything known."""
        return ridge(self.basis, self.features, np.array(self.energies))

    def draw(self, surrogate: ClusterExpansionEnergy) -> tuple[np.ndarray, np.ndarray]:
        """Structures that the sampler visits over the box, and kT of each in eV."""
        n_mu = _POINTS.get(self.box.n_axes, 3)
        [seed] = self.for_tempering.spawn(1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ChainWarning)
            result = ParallelTempering(
                SemiGrandCanonical(surrogate),
                self.lattice,
                self.box,
                (_TEMPERATURES, *[n_mu] * self.box.n_axes),
                seed=seed,
                jitter=True,
            ).run(_STEPS, interval=_INTERVAL, log_z=False)
        c = result.configurations
        return c.occupations.numpy(), c.conditions.kT.numpy()

    def _round(self, fit: RidgeFit, occupations: np.ndarray, kT: np.ndarray) -> bool:
        """Measure the error of a fit on draws and extend it; whether there was anything new."""
        keys = self._keys(occupations)
        row = np.array([self.seen.get(key, -2) for key in keys])
        residual = np.array(self.energies) - fit.predict(self.features)
        old = row >= 0
        error = np.abs(residual[row[old]]) / kT[old]
        fresh = np.flatnonzero(row == -2)
        first: dict[bytes, int] = {}
        for k in self.rng.permutation(fresh):
            first.setdefault(keys[k], int(k))
        candidates = np.array(list(first.values()), dtype=np.int64)
        n = min(self.batch, self.max_calls - self.calls)
        n_test = min((n + 1) // 2, len(candidates))
        test, rest = candidates[:n_test], candidates[n_test:]
        features = self.basis.features(occupations[rest])
        picked = rest[fit.pick(features, n - n_test)]
        predicted = fit.predict(self.basis.features(occupations[test]))
        chosen = np.concatenate([test, picked])
        if len(chosen):
            true = self.compute(occupations[chosen])[:n_test]
            good = np.isfinite(true)
            if good.any():
                self.heldout = (true - predicted)[good]
                new = np.abs(self.heldout) / kT[test[good]]
                share = len(fresh) / max(len(fresh) + old.sum(), 1)
                mean = error.mean() if len(error) else 0.0
                self.error_kT = float((1 - share) * mean + share * new.mean())
        elif len(error) and not len(fresh):
            self.error_kT = float(error.mean())
        return bool(len(chosen))

    def _start(self, n: int) -> np.ndarray:
        """Pure and random structures of all compositions, new up to symmetry."""
        allowed, width = self.lattice.allowed, self.lattice.n_species
        sets, of_site = np.unique(allowed, axis=0, return_inverse=True)
        of_site = np.ravel(of_site)
        rows, keys = [], set(self.seen)
        for k in range(width + 20 * n):
            if len(self.energies) + len(rows) >= n:
                break
            if k < width:
                x = np.where(allowed[:, k], k, allowed.argmax(1))
            else:
                share = self.rng.gamma(1.0, size=sets.shape) * sets
                cumulative = np.cumsum(share / share.sum(1, keepdims=True), 1)[of_site]
                x = (self.rng.random(len(allowed))[:, None] >= cumulative).sum(1)
                last = width - 1 - allowed[:, ::-1].argmax(1)
                x = np.minimum(x, last)
            x = x.astype(np.int8)
            [key] = self._keys(x[None])
            if key not in keys:
                keys.add(key)
                rows.append(x)
        return np.array(rows, dtype=np.int8).reshape(-1, len(allowed))

    # ------------------------------------------------------------------ the end
    def result(self, interrupted: bool, target: float) -> Surrogate:
        fit = self.fit()
        n = self.lattice.n_sites
        heldout = float(np.sqrt((self.heldout**2).mean())) / n if len(self.heldout) else np.nan
        report = SurrogateReport(
            n_structures=len(self.energies),
            true_calls=self.calls,
            failures=self.failures,
            loo_rmse=fit.loo_rmse / n,
            heldout_rmse=heldout,
            n_heldout=len(self.heldout),
            error_kT=self.error_kT,
            converged=bool(self.error_kT <= target),
            interrupted=interrupted,
        )
        return Surrogate(
            self.basis.energy(fit.coefficients),
            self.basis,
            fit.coefficients,
            np.array(self.occupations, dtype=np.int8),
            np.array(self.energies),
            report,
        )
