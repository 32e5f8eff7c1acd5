"""Symmetry-adapted functions of a supercell: what a cluster expansion is fitted with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
from ase.geometry import get_distances

from clease_nn.energies.cluster_expansion import ClusterExpansionEnergy
from clease_nn.energies.tables import ClusterTables
from clease_nn.lattice import Lattice
from clease_nn.symmetry import site_permutations

__all__ = ["ClusterBasis", "ClusterOrbit", "site_functions"]

_SHELLS = {2: 6, 3: 4, 4: 2}  # cutoffs grow from as many pair shells by default
_FEW = 1000  # quadruplets with a site: if they are no more, three shells of them
_TOLERANCE = 1e-3  # angstrom
_MOST_CLUSTERS = 2_000_000
_MOST_NUMBERS = 2**22  # in a temporary array


@dataclass(frozen=True, eq=False)
class ClusterOrbit:
    """Symmetry-equivalent decorated clusters.

    Attributes
    ----------
    members : ndarray, shape (clusters, sites of a cluster), int64
        ``site * functions + function``, ascending within a row.
    diameter : float
        Largest distance between two sites (nearest images), angstrom; 0 for one site.
    """

    members: np.ndarray
    diameter: float

    @property
    def size(self) -> int:
        """Sites of a cluster."""
        return self.members.shape[1]

    def __len__(self) -> int:
        return len(self.members)


class ClusterBasis:
    r"""Averages of products of site functions over orbits of clusters.

    .. math:: \Phi_o(s) = \frac{1}{|o|} \sum_{t \in o} \prod_{j \in t} \phi_{f_j}(s_{i_j})

    A cluster is a set of distinct active sites of the supercell whose distances (nearest images)
    are at most the cutoff of its size; periodic images of the same set are one cluster, so that
    cells smaller than the interaction work. Every site of a cluster carries one of the
    ``m - 1`` functions of its ``m`` allowed species, which are orthonormal under the uniform
    distribution and orthogonal to the constant. Orbits are taken under the symmetry of the
    supercell (:func:`~clease_nn.symmetry.site_permutations`). The functions of different orbits
    are orthogonal over all configurations, and with clusters of all sizes and no cutoff they span
    every symmetric function [1]_.

    Parameters
    ----------
    lattice : Lattice
    cutoffs : mapping of int to float, optional
        Largest distance in angstrom within clusters of each size (2, 3, ...). Single sites are
        always there. Default: six shells of pairs, four of triplets, two of quadruplets, or three
        where cells are so small that these are few.
    permutations : ndarray, shape (operations, sites), optional
        Symmetry as permutations of active sites, a group. Default: that of the supercell.

    Attributes
    ----------
    functions : ndarray, shape (functions, species)
        Site functions; zero on species that are not allowed.
    orbits : tuple of ClusterOrbit
        Feature ``1 + k`` belongs to ``orbits[k]``; feature 0 is the constant 1.

    Raises
    ------
    ValueError
        If a size is below 2, a cutoff is not positive, or there are more than two million
        clusters.

    References
    ----------
    .. [1] J. M. Sanchez, F. Ducastelle, D. Gratias, Physica A 128, 334 (1984).

    Examples
    --------
    >>> from ase.build import bulk
    >>> lattice = Lattice.uniform(bulk("Au", cubic=True), ["Au", "Cu"])
    >>> basis = ClusterBasis(lattice, {2: 3.0, 3: 3.0, 4: 3.0})
    >>> basis.n_features
    5
    >>> basis.features([[0, 0, 1, 1]]).round(3)
    array([[ 1.   ,  0.   , -0.333,  0.   ,  1.   ]])
    """

    def __init__(
        self,
        lattice: Lattice,
        cutoffs: Mapping[int, float] | None = None,
        permutations: np.ndarray | None = None,
    ):
        sites = lattice.template[lattice.site_indices]
        distances = get_distances(sites.positions, cell=sites.cell, pbc=sites.pbc)[1]
        if cutoffs is None:
            cutoffs = _default_cutoffs(distances)
        for size, cutoff in cutoffs.items():
            if size != int(size) or size < 2 or not cutoff > 0:
                raise ValueError(
                    f"cutoffs must map sizes from 2 upwards to positive distances in angstrom, "
                    f"got {size!r}: {cutoff!r}"
                )
        self.lattice = lattice
        self.cutoffs = {int(size): float(cutoffs[size]) for size in sorted(cutoffs)}
        self.permutations = site_permutations(lattice) if permutations is None else permutations
        self.functions, of_site = site_functions(lattice)
        self.orbits = tuple(self._orbits(distances, of_site))

    @property
    def n_features(self) -> int:
        """Number of features, the constant included."""
        return 1 + len(self.orbits)

    @property
    def sizes(self) -> np.ndarray:
        """(features,) sites of the clusters of every feature; 0 for the constant."""
        return np.array([0, *(o.size for o in self.orbits)])

    @property
    def multiplicities(self) -> np.ndarray:
        """(features,) clusters in the supercell; 1 for the constant."""
        return np.array([1, *map(len, self.orbits)])

    @property
    def diameters(self) -> np.ndarray:
        """(features,) largest distance within the clusters in angstrom."""
        return np.array([0.0, *(o.diameter for o in self.orbits)])

    # ------------------------------------------------------------------ evaluation
    def features(self, occupations) -> np.ndarray:
        """Orbit averages of complete configurations.

        Parameters
        ----------
        occupations : array_like, shape (batch, sites)

        Returns
        -------
        ndarray, shape (batch, features), float64
            Dimensionless; column 0 is 1.

        Raises
        ------
        ValueError
            If the shape is wrong or a site carries a species that it may not carry.
        """
        x = np.asarray(occupations)
        allowed, n = self.lattice.allowed, self.lattice.n_sites
        if x.ndim != 2 or x.shape[1] != n:
            raise ValueError(f"occupations must have shape (batch, {n}), got {x.shape}")
        inside = (x >= 0) & (x < self.lattice.n_species)
        good = inside & allowed[np.arange(n), np.where(inside, x, 0)]
        if not good.all():
            row, site = np.argwhere(~good)[0]
            raise ValueError(
                f"site {site} of configuration {row} carries {x[row, site]}, which is not an "
                "allowed species there; features need complete configurations"
            )
        out = np.ones((len(x), self.n_features))
        clusters = sum(map(len, self.orbits))
        chunk = max(1, _MOST_NUMBERS // max(clusters, 1))
        for start in range(0, len(x), chunk):
            rows = slice(start, start + chunk)
            values = self.functions[:, x[rows].T].transpose(1, 0, 2)  # sites, functions, batch
            values = np.ascontiguousarray(values).reshape(-1, values.shape[2])
            for k, orbit in enumerate(self.orbits):
                terms = values[orbit.members[:, 0]]
                for column in orbit.members.T[1:]:
                    terms = terms * values[column]
                out[rows, 1 + k] = terms.mean(0)
        return out

    def energy(self, coefficients) -> ClusterExpansionEnergy:
        """The expansion ``sum_o coefficients[o] features[o]``.

        Parameters
        ----------
        coefficients : array_like, shape (features,)
            eV per supercell.

        Raises
        ------
        ValueError
            If there are not as many coefficients as features, or one is not finite.
        """
        c = np.asarray(coefficients, dtype=float)
        if c.shape != (self.n_features,):
            raise ValueError(f"{self.n_features} coefficients are needed, got shape {c.shape}")
        n_f = len(self.functions)
        terms = (
            (value / len(orbit), [divmod(int(v), n_f) for v in member])
            for value, orbit in zip(c[1:], self.orbits, strict=True)
            for member in orbit.members
        )
        tables = ClusterTables.from_terms(self.lattice.n_sites, self.functions, terms, c[0])
        return ClusterExpansionEnergy(tables)

    # ------------------------------------------------------------------ orbits
    def _orbits(self, distances: np.ndarray, of_site: list[list[int]]):
        """Orbits of decorated clusters: by size, diameter, then first member."""
        n_f, total = len(self.functions), 0
        # a symmetry moves a site with its function: the same permutation of all variables
        moved = self.permutations[:, :, None] * n_f + np.arange(n_f)
        moved = moved.reshape(len(moved), -1)
        for size in (1, *self.cutoffs):
            sets = _site_sets(distances, size, self.cutoffs.get(size, 0.0))
            seen: set[tuple[int, ...]] = set()
            found = []
            for sites in sets.tolist():
                for chosen in product(*(of_site[i] for i in sites)):
                    cluster = tuple(i * n_f + f for i, f in zip(sites, chosen, strict=True))
                    if cluster in seen:
                        continue
                    members = np.unique(np.sort(moved[:, cluster], axis=1), axis=0)
                    seen.update(map(tuple, members.tolist()))
                    diameter = float(distances[np.ix_(sites, sites)].max())
                    found.append(ClusterOrbit(members, diameter))
                    total += len(members)
                    if total > _MOST_CLUSTERS:
                        raise ValueError(
                            f"more than {_MOST_CLUSTERS} clusters of up to {size} sites; give "
                            f"shorter cutoffs than {self.cutoffs} angstrom"
                        )
            yield from sorted(found, key=lambda o: (round(o.diameter, 3), o.members[0].tolist()))

    def __repr__(self) -> str:
        return f"ClusterBasis({self.n_features} features, cutoffs {self.cutoffs} angstrom)"


def site_functions(lattice: Lattice) -> tuple[np.ndarray, list[list[int]]]:
    """Orthonormal functions of the species on a site, for every set of allowed species.

    Returns
    -------
    functions : ndarray, shape (functions, species)
        Polynomials of the position of a species in its set, of mean 0 and mean square 1 under
        the uniform distribution; 0 for species not in the set.
    of_site : list of list of int
        Functions of every active site; none where a single species is allowed.

    Examples
    --------
    >>> site_functions(Lattice.square(2))
    (array([[-1.,  1.]]), [[0], [0], [0], [0]])
    """
    rows: list[np.ndarray] = []
    of_set: dict[tuple[int, ...], list[int]] = {}
    of_site = []
    for allowed in lattice.allowed:
        species = tuple(np.flatnonzero(allowed).tolist())
        if species not in of_set:
            m = len(species)
            powers = np.vander(np.linspace(-1.0, 1.0, m), m, increasing=True)
            q, r = np.linalg.qr(powers)
            of_set[species] = list(range(len(rows), len(rows) + m - 1))
            for k in range(1, m):
                row = np.zeros(lattice.n_species)
                row[list(species)] = q[:, k] * np.sign(r[k, k]) * np.sqrt(m)
                rows.append(np.round(row, 15) + 0.0)
        of_site.append(of_set[species])
    return np.array(rows).reshape(-1, lattice.n_species), of_site


def _default_cutoffs(distances: np.ndarray) -> dict[int, float]:
    """Cutoffs that take in the nearest shells, as far as the cell has them."""
    d = np.unique(np.round(distances[distances > _TOLERANCE], 3))
    if len(d) == 0:
        return {}
    shells = d[np.concatenate([[True], np.diff(d) > 3 * _TOLERANCE])]
    cutoffs = {size: float(shells[min(n, len(shells)) - 1]) for size, n in _SHELLS.items()}
    wider = float(shells[min(_SHELLS[4] + 1, len(shells)) - 1])
    near = distances <= wider + 3 * _TOLERANCE
    site = int(near.sum(1).argmax())
    others = np.flatnonzero(near[site] & (np.arange(len(near)) != site))
    if len(_site_sets(distances[np.ix_(others, others)], 3, wider)) <= _FEW:
        cutoffs[4] = wider
    return cutoffs


def _site_sets(distances: np.ndarray, size: int, cutoff: float) -> np.ndarray:
    """(sets, size) ascending sites with all distances up to the cutoff."""
    n = len(distances)
    near = distances <= cutoff + 3 * _TOLERANCE
    sets = np.arange(n)[:, None]
    for _ in range(size - 1):
        if len(sets) * n > 10 * _MOST_CLUSTERS:
            raise ValueError(
                f"too many clusters of {size} sites within {cutoff:g} angstrom; give a shorter "
                "cutoff"
            )
        more = near[sets].all(1) & (np.arange(n) > sets[:, -1:])
        row, site = np.nonzero(more)
        sets = np.concatenate([sets[row], site[:, None]], 1)
    return sets
