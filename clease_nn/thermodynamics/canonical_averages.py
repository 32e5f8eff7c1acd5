"""Thermodynamics at fixed composition: the result of a projection onto compositions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import nan

import numpy as np
from ase.units import kB

from clease_nn.cost import Cost
from clease_nn.errors import NotDeterminedError
from clease_nn.statistics import Estimate

__all__ = ["CanonicalAverages", "ChemicalPotentialCurve"]

_QUANTITIES = ("free_energy", "energy", "entropy", "heat_capacity")


@dataclass(frozen=True, eq=False)
class ChemicalPotentialCurve:
    """Exchange chemical potential against composition.

    Attributes
    ----------
    temperatures : ndarray, shape (T,)
        K.
    species, against : str
        An atom of ``against`` is replaced by one of ``species``.
    all_species : tuple of str
        Of the columns of ``composition``.
    composition : ndarray, shape (pairs, species)
        Midpoint of the two compositions that are one exchange apart, from little to much of
        ``species``.
    mu : Estimate, shape (T, pairs)
        ``mu_species - mu_against`` in eV; nan where one of the two is not determined.
    """

    temperatures: np.ndarray
    species: str
    against: str
    all_species: tuple[str, ...]
    composition: np.ndarray
    mu: Estimate

    @property
    def share(self) -> np.ndarray:
        """Share of the sites that carry ``species`` at the midpoints, shape (pairs,)."""
        return self.composition[:, self.all_species.index(self.species)]


@dataclass(frozen=True, eq=False)
class CanonicalAverages:
    """Thermodynamics at every temperature and composition of a supercell.

    Energies are eV per supercell, entropies and heat capacities eV/K per supercell; shapes (T, M)
    are (temperatures, compositions). Where the data do not determine a number it is nan, and
    ``reasons`` says why.

    Attributes
    ----------
    temperatures : ndarray, shape (T,)
        K.
    species : tuple of str
    n_sites : int
        Active sites of the supercell.
    counts : ndarray, shape (M, species), int64
        Atoms of each species, in lexicographic order.
    log_z : ndarray, shape (T, M)
        ``ln Z_N``; up to one constant where ``absolute`` is False.
    energy : Estimate, shape (T, M)
        <E> at fixed composition.
    heat_capacity : Estimate, shape (T, M)
        Var(E) / (kB T^2) at fixed composition.
    ess : ndarray, shape (T, M)
        Effective number of states; infinite where the value is exact, 0 where none was seen.
    log_z_replicas, energy_replicas : ndarray or None, shape (T, M, replicas)
        Deviations of ``ln Z_N`` and of <E> that resampled data would have shown; they carry the
        correlation between compositions. None: everything is exact.
    absolute : bool
        Whether ``log_z`` is absolute.
    reasons : tuple of str
        What is not determined and why, one entry a composition.
    provenance : Mapping
        That of the data.
    """

    temperatures: np.ndarray
    species: tuple[str, ...]
    n_sites: int
    counts: np.ndarray
    log_z: np.ndarray
    energy: Estimate
    heat_capacity: Estimate
    ess: np.ndarray
    log_z_replicas: np.ndarray | None = None
    energy_replicas: np.ndarray | None = None
    absolute: bool = True
    reasons: tuple[str, ...] = ()
    provenance: Mapping = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of compositions."""
        return len(self.counts)

    @property
    def composition(self) -> np.ndarray:
        """Share of the active sites with each species, shape (M, species)."""
        return self.counts / self.n_sites

    @property
    def determined(self) -> np.ndarray:
        """(T, M) bool: the data support a temperature and composition."""
        return ~np.isnan(self.log_z)

    @property
    def cost(self) -> Cost:
        """What the data have cost."""
        return Cost.from_provenance(self.provenance)

    @property
    def free_energy(self) -> Estimate:
        """``-kT ln Z_N``, eV per supercell, shape (T, M).

        Raises
        ------
        NotDeterminedError
            If the data know ln Z up to a constant only. Differences between compositions
            (:meth:`chemical_potential`, :meth:`free_energy_of_mixing`) are known all the same.
        """
        self._require_absolute("the free energy")
        return self._estimate(self.log_z, self.log_z_replicas) * -self._kT

    @property
    def entropy(self) -> Estimate:
        """``(<E> - F)/T``, eV/K per supercell, shape (T, M).

        Raises
        ------
        NotDeterminedError
            As for :attr:`free_energy`.
        """
        self._require_absolute("the entropy")
        value = self.log_z + self.energy.value / self._kT
        if self.log_z_replicas is None:
            return self._estimate(value, None) * kB
        # the two terms come from the same data: their fluctuations largely cancel
        both = self.log_z_replicas + self.energy_replicas / self._kT[..., None]
        return self._estimate(value, both) * kB

    def per_site(self, name: str) -> Estimate:
        """One of the quantities over the number of active sites, shape (T, M).

        Parameters
        ----------
        name : str
            ``"free_energy"``, ``"energy"``, ``"entropy"`` or ``"heat_capacity"``.
        """
        if name not in _QUANTITIES:
            raise ValueError(f"{name!r} is none of the quantities {_QUANTITIES}")
        return getattr(self, name) / self.n_sites

    # ------------------------------------------------------------------ differences
    def chemical_potential(self, species: str, against: str) -> ChemicalPotentialCurve:
        """``mu_species - mu_against = F(N + 1, N' - 1) - F(N, N')`` at the midpoints, eV.

        The error takes into account that the two free energies come from the same data.

        Raises
        ------
        ValueError
            If the lattice lacks a species or the two are the same.
        """
        for s in (species, against):
            if s not in self.species:
                raise ValueError(f"species {s!r} is none of {self.species}")
        if species == against:
            raise ValueError(f"two different species are exchanged, got {species!r} twice")
        step = np.zeros(len(self.species), dtype=np.int64)
        step[self.species.index(species)] += 1
        step[self.species.index(against)] -= 1
        where = {tuple(n): k for k, n in enumerate(self.counts.tolist())}
        pairs = [(k, where.get(tuple((n + step).tolist()))) for k, n in enumerate(self.counts)]
        pairs = np.array([p for p in pairs if p[1] is not None], dtype=np.int64).reshape(-1, 2)
        before, after = pairs[np.argsort(self.counts[pairs[:, 0]] @ step, kind="stable")].T
        deviations = None
        if self.log_z_replicas is not None:
            deviations = self.log_z_replicas[:, after] - self.log_z_replicas[:, before]
        mu = self._estimate(self.log_z[:, after] - self.log_z[:, before], deviations) * -self._kT
        middle = (self.composition[before] + self.composition[after]) / 2
        return ChemicalPotentialCurve(self.temperatures, species, against, self.species, middle, mu)

    def free_energy_of_mixing(self, pure_energies: Mapping[str, float] | None = None) -> Estimate:
        """``F(N) - sum_a x_a F_a`` with F_a of the pure supercells, eV per supercell, (T, M).

        Parameters
        ----------
        pure_energies : mapping of str to float, optional
            Energy in eV per active site of pure species; a pure supercell has one configuration,
            so that this is its free energy. Needed for those that the data do not determine.

        Raises
        ------
        NotDeterminedError
            If a pure supercell was never sampled and its energy is not given, or it is given but
            the data know ln Z up to a constant only.
        ValueError
            If the lattice lacks a species.
        """
        given = dict(pure_energies or {})
        unknown = [s for s in given if s not in self.species]
        if unknown:
            raise ValueError(f"species {unknown[0]!r} is none of {self.species}")
        if given:
            self._require_absolute("a free energy relative to given energies")
        value = self.log_z.copy()
        deviations = None if self.log_z_replicas is None else self.log_z_replicas.copy()
        for a, s in enumerate(self.species):
            x = self.composition[:, a]
            if not x.any():
                continue
            if s in given:
                pure = -float(given[s]) * self.n_sites / self._kT[:, 0]
                value = value - np.where(x > 0, x * pure[:, None], 0.0)
                continue
            [k] = np.flatnonzero(self.counts[:, a] == self.n_sites).tolist() or [-1]
            if k < 0 or not self.determined[:, k].any():
                raise NotDeterminedError(
                    f"the free energy of pure {s} is not determined: the supercell of {s} alone "
                    "was sampled too rarely or cannot exist; pass its energy per site, "
                    f"pure_energies={{{s!r}: ...}}"
                )
            value = value - np.where(x > 0, x * self.log_z[:, k, None], 0.0)
            if deviations is not None:
                deviations = deviations - x[:, None] * self.log_z_replicas[:, k, None, :]
        return self._estimate(value, deviations) * -self._kT

    # ------------------------------------------------------------------ access
    def at_composition(self, composition) -> CanonicalAverages:
        """One composition of the supercell, as an object with M = 1.

        Parameters
        ----------
        composition : mapping of str to float, or array_like of shape (species,)
            Share of every species; a mapping may leave out one, which gets the rest.

        Raises
        ------
        ValueError
            If shares are negative, above 1 or do not add up to 1, or the supercell has no such
            composition.
        """
        x = self._shares(composition)
        counts = x * self.n_sites
        text = ", ".join(f"x_{s} = {v:.6g}" for s, v in zip(self.species, x, strict=True))
        distance = np.abs(self.counts - counts).max(1)
        k = int(np.argmin(distance))
        if distance[k] > 1e-6:
            near = ", ".join(
                f"x_{s} = {v:.6g}" for s, v in zip(self.species, self.composition[k], strict=True)
            )
            raise ValueError(
                f"no data at {text}: a supercell of {self.n_sites} sites has compositions in "
                f"steps of 1/{self.n_sites}; the nearest one is {near}"
            )
        pick = lambda v: None if v is None else v[:, [k]]  # noqa: E731
        title = label(self.species, self.counts[k])
        return replace(
            self,
            counts=self.counts[[k]],
            log_z=pick(self.log_z),
            energy=self.energy[:, [k]],
            heat_capacity=self.heat_capacity[:, [k]],
            ess=pick(self.ess),
            log_z_replicas=pick(self.log_z_replicas),
            energy_replicas=pick(self.energy_replicas),
            reasons=tuple(r for r in self.reasons if r.startswith(title + ":")),
        )

    def to_rows(self) -> list[dict]:
        """Flat dictionaries of JSON-ready numbers, one a temperature and composition.

        Keys: ``temperature``, ``n_<species>``, ``x_<species>``, ``ess``, and for ``free_energy``,
        ``energy``, ``entropy``, ``heat_capacity`` the value and ``<name>_error``; None where not
        determined.
        """
        known = [q for q in _QUANTITIES if self.absolute or q in ("energy", "heat_capacity")]
        columns = {q: getattr(self, q) for q in known}
        out = []
        for t, temperature in enumerate(self.temperatures):
            for m, n in enumerate(self.counts):
                row: dict = {"temperature": float(temperature)}
                row |= {f"n_{s}": int(v) for s, v in zip(self.species, n, strict=True)}
                row |= {f"x_{s}": v / self.n_sites for s, v in zip(self.species, n, strict=True)}
                row["ess"] = _finite(self.ess[t, m])
                for q in _QUANTITIES:
                    e = columns.get(q)
                    row[q] = None if e is None else _finite(e.value[t, m])
                    row[f"{q}_error"] = None if e is None else _finite(e.error[t, m])
                out.append(row)
        return out

    # ------------------------------------------------------------------ helpers
    @property
    def _kT(self) -> np.ndarray:
        return kB * self.temperatures[:, None]

    def _estimate(self, value: np.ndarray, deviations: np.ndarray | None) -> Estimate:
        return Estimate(value, spread(value, deviations), nan)

    def _require_absolute(self, what: str) -> None:
        if not self.absolute:
            raise NotDeterminedError(
                f"{what} is not determined: these data know ln Z up to a constant only (chains "
                "without a reference); hand density_of_states ln Z of a sampled condition as "
                "known=, or weighted draws beside the chains"
            )

    def _shares(self, composition) -> np.ndarray:
        if isinstance(composition, Mapping):
            wrong = [s for s in composition if s not in self.species]
            if wrong:
                raise ValueError(f"species {wrong[0]!r} is none of {self.species}")
            missing = [k for k, s in enumerate(self.species) if s not in composition]
            x = np.array([float(composition.get(s, 0.0)) for s in self.species])
            self._require_shares(x)
            if len(missing) == 1:
                x[missing] = 1.0 - x.sum()
        else:
            x = np.asarray(composition, dtype=float)
            if x.shape != (len(self.species),):
                raise ValueError(
                    f"a composition has one share for each of {self.species}, got shape {x.shape}"
                )
        self._require_shares(x)
        if abs(x.sum() - 1) > 1e-6:
            raise ValueError(f"the shares {x.tolist()} add up to {x.sum():.6g}, not to 1")
        return x

    def _require_shares(self, x: np.ndarray) -> None:
        for s, v in zip(self.species, x, strict=True):
            if not -1e-9 <= v <= 1 + 1e-9:
                raise ValueError(
                    f"x_{s} = {v:.6g} lies outside the simplex of compositions: shares are "
                    "between 0 and 1"
                )


def spread(value: np.ndarray, deviations: np.ndarray | None) -> np.ndarray:
    """Standard error from deviations of the replicas; nan where the value is."""
    if deviations is None or deviations.shape[-1] < 2:
        error = np.zeros(value.shape)
    else:
        error = deviations.std(-1, ddof=1, dtype=float)
    return np.where(np.isnan(value), nan, error)


def label(species: tuple[str, ...], counts: np.ndarray) -> str:
    """A composition in words, like ``Cu3 Au13``."""
    return " ".join(f"{s}{n}" for s, n in zip(species, counts.tolist(), strict=True))


def _finite(v: float) -> float | None:
    return float(v) if np.isfinite(v) else None
