"""Ground states and the convex hull of formation energies, with what lies on its vertices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from clease_nn.configurations import Configurations, species_counts
from clease_nn.cost import Cost
from clease_nn.ensemble import Enumeration
from clease_nn.errors import NotDeterminedError
from clease_nn.lattice import Lattice
from clease_nn.phases.convex import (
    composition_axes,
    hull_vertices,
    lower_facets,
    lowest_mixture,
)
from clease_nn.phases.structures import Structure, distinct_structures
from clease_nn.symmetry import site_permutations
from clease_nn.thermodynamics import DensityOfStates

__all__ = ["Hull", "Transition", "Vertex", "formation_hull"]

_SAME_MU = 1e-7  # eV; facets of the hull whose slopes differ by less are one


@dataclass(frozen=True, eq=False)
class Vertex:
    """A composition whose lowest state is a ground state at some chemical potential.

    Attributes
    ----------
    counts : ndarray, shape (species,)
        Active sites with each species.
    energy : float
        eV per supercell.
    formation_energy : float
        eV per site.
    structures : tuple of Structure
        Those of this energy among the data that symmetry does not relate.
    """

    counts: np.ndarray
    energy: float
    formation_energy: float
    structures: tuple[Structure, ...]

    @property
    def composition(self) -> np.ndarray:
        """Share of the active sites, shape (species,)."""
        return self.counts / self.counts.sum()

    @property
    def degeneracy(self) -> int:
        """Configurations of this energy, by symmetry from the structures known."""
        return sum(s.degeneracy for s in self.structures)


@dataclass(frozen=True, eq=False)
class Transition:
    """Chemical potentials at which ground states coexist for T -> 0.

    Attributes
    ----------
    species : tuple of str
    mu : ndarray, shape (species,)
        eV, in a gauge of its own: only differences between species mean something.
    vertices : tuple of int
        Which vertices of the hull: two in a binary alloy, three in a ternary.
    exchanges : ndarray, shape (species, species)
        Projector on the changes of composition that the lattice allows.
    """

    species: tuple[str, ...]
    mu: np.ndarray
    vertices: tuple[int, ...]
    exchanges: np.ndarray

    def difference(self, species: str, against: str) -> float:
        """``mu_species - mu_against`` in eV.

        Raises
        ------
        ValueError
            If a species is none of the lattice.
        NotDeterminedError
            If the one never takes the place of the other in the data.
        """
        for s in (species, against):
            if s not in self.species:
                raise ValueError(f"species {s!r} is none of {self.species}")
        direction = np.zeros(len(self.species))
        direction[self.species.index(species)] += 1
        direction[self.species.index(against)] -= 1
        if np.abs(self.exchanges @ direction - direction).max() > 1e-9:
            raise NotDeterminedError(
                f"{species} never takes the place of {against} in the data, which therefore do "
                "not determine the difference of their chemical potentials"
            )
        return float(self.mu @ direction)


@dataclass(frozen=True, eq=False)
class Hull:
    """Lowest energy at each composition and the convex hull below.

    Attributes
    ----------
    lattice : Lattice
    counts : ndarray, shape (compositions, species)
        Compositions of the data, as numbers of active sites.
    energy : ndarray, shape (compositions,)
        Lowest energy known, eV per supercell.
    references : ndarray, shape (species,)
        Energies that formation energies refer to, eV per site.
    vertices : tuple of Vertex
        In the order of their compositions.
    transitions : tuple of Transition
        In the order of their chemical potentials.
    provenance : Mapping
    """

    lattice: Lattice
    counts: np.ndarray
    energy: np.ndarray
    references: np.ndarray
    vertices: tuple[Vertex, ...]
    transitions: tuple[Transition, ...]
    provenance: Mapping = field(default_factory=dict)

    @property
    def cost(self) -> Cost:
        """What the data have cost."""
        return Cost.from_provenance(self.provenance)

    @property
    def composition(self) -> np.ndarray:
        """Share of the active sites, shape (compositions, species)."""
        return self.counts / self.lattice.n_sites

    @property
    def formation_energy(self) -> np.ndarray:
        """Lowest energy at each composition less that of the references, eV per site."""
        return self.energy / self.lattice.n_sites - self.composition @ self.references

    @property
    def distance(self) -> np.ndarray:
        """Height above the hull of each composition of the data, eV per site."""
        # the hull is convex: at each composition the highest of the planes through its facets
        planes = [
            self.vertices[t.vertices[0]].energy
            + (self.counts - self.vertices[t.vertices[0]].counts) @ t.mu
            for t in self.transitions
        ]
        hull = np.max(planes, 0) if planes else self.energy
        return np.maximum(self.energy - hull, 0.0) / self.lattice.n_sites

    def hull_energy(self, composition) -> float:
        """Formation energy of the hull at any composition, eV per site.

        The lowest mixture of ground states of this composition; the distance of a state above
        the hull is its own formation energy less this.

        Parameters
        ----------
        composition : array_like, shape (species,)
            Shares of the active sites.

        Raises
        ------
        ValueError
            If this is no composition.
        NotDeterminedError
            If it lies outside the compositions of the vertices.
        """
        x = np.asarray(composition, dtype=float)
        if x.shape != (self.lattice.n_species,) or not np.isfinite(x).all():
            raise ValueError(f"a composition is one share for each of {self.lattice.species}")
        if x.min() < -1e-9 or abs(x.sum() - 1) > 1e-6:
            raise ValueError(f"shares must not be negative and sum to 1, got {x.tolist()}")
        return lowest_mixture(
            x,
            np.array([v.composition for v in self.vertices]),
            np.array([v.formation_energy for v in self.vertices]),
        )

    def grand_potential(self, mu) -> np.ndarray:
        """Lowest ``E - mu.N`` of all states, eV per supercell: the grand potential at T = 0.

        Parameters
        ----------
        mu : array_like, shape (conditions, species) or (species,)
            eV.

        Returns
        -------
        ndarray, shape (conditions,)
        """
        return (self.energy - self._mus(mu) @ self.counts.T).min(1)

    def ground_state(self, mu) -> list[Vertex]:
        """The vertex that is stable for T -> 0 at each of the chemical potentials.

        Parameters
        ----------
        mu : array_like, shape (conditions, species) or (species,)
            eV.
        """
        energy = np.array([v.energy for v in self.vertices])
        counts = np.array([v.counts for v in self.vertices])
        return [self.vertices[k] for k in (energy - self._mus(mu) @ counts.T).argmin(1)]

    def transition_chemical_potentials(self, species: str, against: str) -> np.ndarray:
        """``mu_species - mu_against`` in eV at which ground states change, ascending.

        For this supercell exact, as far as the states are: larger cells may hold others.

        Raises
        ------
        ValueError
            If a species is none of the lattice.
        """
        return np.sort([t.difference(species, against) for t in self.transitions])

    def to_rows(self) -> list[dict]:
        """One flat JSON-ready dictionary a composition, for tables."""
        index = {tuple(v.counts): v for v in self.vertices}
        rows = []
        for n, e, f, d in zip(
            self.counts, self.energy, self.formation_energy, self.distance, strict=True
        ):
            vertex = index.get(tuple(n))
            row = {
                f"x_{s}": float(k) / self.lattice.n_sites
                for s, k in zip(self.lattice.species, n, strict=True)
            }
            row |= {"energy": float(e), "formation_energy": float(f), "distance": float(d)}
            rows.append(
                row
                | {
                    "vertex": vertex is not None,
                    "structures": None if vertex is None else len(vertex.structures),
                    "degeneracy": None if vertex is None else vertex.degeneracy,
                    "space_group": (None if vertex is None else vertex.structures[0].space_group()),
                }
            )
        return rows

    def __str__(self) -> str:
        species = self.lattice.species
        shares = "  ".join(f"{'x_' + s:>6s}" for s in species)
        out = [f"formula     {shares}  E_form (meV/site)  structures  degeneracy  space group"]
        for v in self.vertices:
            shares = "  ".join(f"{x:6.4f}" for x in v.composition)
            groups = ", ".join(dict.fromkeys(s.space_group() for s in v.structures))
            out.append(
                f"{v.structures[0].formula:10s}  {shares}  {1e3 * v.formation_energy:17.3f}  "
                f"{len(v.structures):10d}  {v.degeneracy:10d}  {groups}"
            )
        for t in self.transitions:
            names = " / ".join(self.vertices[k].structures[0].formula for k in t.vertices)
            relative = t.mu - t.mu[0]
            mu = ", ".join(
                f"mu_{s} - mu_{species[0]} = {m:+.5f} eV"
                for s, m in zip(species[1:], relative[1:], strict=True)
            )
            out.append(f"{names}: {mu}")
        return "\n".join(out)

    def _mus(self, mu) -> np.ndarray:
        mu = np.atleast_2d(np.asarray(mu, dtype=float))
        if mu.ndim != 2 or mu.shape[1] != self.lattice.n_species:
            raise ValueError(
                f"chemical potentials must have shape (n, {self.lattice.n_species}), got {mu.shape}"
            )
        if not np.isfinite(mu).all():
            raise ValueError("chemical potentials must be finite, got NaN or infinity")
        return mu


def formation_hull(
    data: Configurations | DensityOfStates | Enumeration | Sequence,
    *,
    references: Mapping[str, float] | None = None,
    tolerance: float = 1e-6,
) -> Hull:
    """Lowest energy at each composition, formation energies and their convex hull.

    States above the hull are not listed as structures, only their lowest energy. Degeneracies
    suppose that the energy has the symmetry of the crystal. Nothing here can know of states that
    are missing in the data: search at chemical potentials between all neighbours of the result,
    and see whether anything new appears.

    Parameters
    ----------
    data : Configurations, DensityOfStates or Enumeration, or several of one lattice
        Scored configurations at any conditions: annealed (:func:`~clease_nn.phases.anneal`),
        draws of a model at the lowest temperature, chains; every row counts, whatever its weight.
    references : mapping of species to float, optional
        Energies of pure ends in eV per site. Where a species may fill all sites, that state
        enters the hull. Default: the pure ends of the data. Needed also for species that may not
        fill the whole lattice; 0 leaves their energy in the formation energy.
    tolerance : float
        Energies that differ by less are the same, eV per supercell.

    Raises
    ------
    NotDeterminedError
        If a pure end is neither among the data nor given.
    ValueError
        If there are no data, sites are unknown, energies are missing, NaN or infinite, the data
        are of several lattices, or a reference names an unknown species.
    TypeError
        If the data are none of the types above.

    References
    ----------
    C. B. Barber, D. P. Dobkin, H. Huhdanpaa, ACM Trans. Math. Softw. 22, 469 (1996): the hull.

    Examples
    --------
    >>> from clease_nn.energies.ising import ising_energy
    >>> from clease_nn.ensemble import SemiGrandCanonical
    >>> lattice = Lattice.square(4)
    >>> model = SemiGrandCanonical(ising_energy(lattice, coupling=-0.05))
    >>> found = formation_hull(model.enumerate(lattice))
    >>> print(found)
    formula       x_Cu    x_Au  E_form (meV/site)  structures  degeneracy  space group
    Cu          1.0000  0.0000              0.000           1           1  P4/mmm (123)
    AuCu        0.5000  0.5000           -200.000           1           2  P4/mmm (123)
    Au          0.0000  1.0000              0.000           1           1  P4/mmm (123)
    Cu / AuCu: mu_Au - mu_Cu = -0.40000 eV
    AuCu / Au: mu_Au - mu_Cu = +0.40000 eV
    >>> found.transition_chemical_potentials("Au", "Cu").round(6).tolist()
    [-0.4, 0.4]
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance must not be negative, got {tolerance} eV")
    parts = list(data) if isinstance(data, list | tuple) else [data]
    lattice, occupations, energy = _states(parts)
    given = _references(lattice, references)
    occupations, energy = _add_ends(lattice, occupations, energy, given)
    all_counts = species_counts(torch.from_numpy(occupations), lattice.n_species).numpy()
    counts, group = np.unique(all_counts.astype(int), axis=0, return_inverse=True)
    group = group.ravel()
    counts, group = counts[::-1], len(counts) - 1 - group  # first species first
    lowest = np.full(len(counts), np.inf)
    np.minimum.at(lowest, group, energy)
    zero = _zero(lattice, counts, lowest, given)
    formation = lowest / lattice.n_sites - counts / lattice.n_sites @ zero
    chosen = hull_vertices(counts, formation, tolerance / lattice.n_sites)
    candidates = energy <= lowest[group] + tolerance
    permutations = site_permutations(lattice)
    vertices = tuple(
        Vertex(
            counts[k],
            float(lowest[k]),
            float(formation[k]),
            distinct_structures(lattice, occupations[candidates & (group == k)], permutations),
        )
        for k in chosen
    )
    transitions = _transitions(lattice, counts[chosen], lowest[chosen])
    costs = Cost.sum(Cost.from_provenance(getattr(p, "provenance", {})) for p in parts)
    provenance = {**costs.to_dict(), "states": len(energy)}
    return Hull(lattice, counts, lowest, zero, vertices, transitions, provenance)


# ------------------------------------------------------------------ data
def _states(parts: list) -> tuple[Lattice, np.ndarray, np.ndarray]:
    """Occupations and energies of all parts, checked."""
    if not parts:
        raise ValueError("a hull needs configurations, got none")
    occupations, energies = [], []
    for part in parts:
        if not isinstance(part, Configurations | DensityOfStates | Enumeration):
            raise TypeError(
                "a hull is made of Configurations, DensityOfStates or Enumeration, got "
                f"{type(part).__name__}"
            )
        if part.lattice.fingerprint != parts[0].lattice.fingerprint:
            raise ValueError(
                f"data of different lattices: {part.lattice} and {parts[0].lattice}; energies per "
                "supercell of one lattice only make a hull"
            )
        if part.occupations is None:
            raise ValueError(
                "the density of states has no occupations: states without a structure make no "
                "hull; hand over samples or an enumeration"
            )
        if part.energy is None:
            raise ValueError(
                "configurations carry no energy; score them first: "
                "SemiGrandCanonical(energy).score(c)"
            )
        x = part.occupations.detach().cpu().numpy()
        if (x < 0).any():
            raise ValueError("a hull needs configurations without unknown sites")
        e = torch.as_tensor(part.energy, dtype=torch.float64).detach().cpu().numpy()
        if not np.isfinite(e).all():
            raise ValueError(
                f"{int((~np.isfinite(e)).sum())} of {len(e)} energies are NaN or infinite; check "
                "the energy model"
            )
        occupations.append(x.astype(np.int8))
        energies.append(e)
    if not sum(map(len, energies)):
        raise ValueError("a hull needs configurations, got none")
    return parts[0].lattice, np.concatenate(occupations), np.concatenate(energies)


def _references(lattice: Lattice, references: Mapping[str, float] | None) -> np.ndarray:
    """(species,) reference energies in eV per site, NaN where none is given."""
    out = np.full(lattice.n_species, np.nan)
    for species, value in (references or {}).items():
        if species not in lattice.species:
            raise ValueError(f"reference {species!r} is none of the species {lattice.species}")
        if not np.isfinite(value):
            raise ValueError(f"the reference of {species} must be finite, got {value} eV")
        out[lattice.species.index(species)] = value
    return out


def _add_ends(lattice, occupations, energy, given):
    """States and those pure ends whose energies are given."""
    ends = np.flatnonzero(np.isfinite(given) & lattice.allowed.all(0))
    pure = np.tile(ends[:, None], (1, lattice.n_sites)).astype(np.int8)
    return (
        np.concatenate([occupations, pure]),
        np.concatenate([energy, given[ends] * lattice.n_sites]),
    )


def _zero(lattice, counts, lowest, given) -> np.ndarray:
    """(species,) energies per site that formation energies refer to."""
    zero = given.copy()
    for a in np.flatnonzero(np.isnan(zero)):
        species = lattice.species[a]
        if not lattice.allowed[:, a].any():
            zero[a] = 0.0
            continue
        if not lattice.allowed[:, a].all():
            raise NotDeterminedError(
                f"{species} may not fill all active sites: there is no pure end to refer to; give "
                f"references={{{species!r}: energy in eV per site}} (0 leaves the energy as it is)"
            )
        end = counts[:, a] == lattice.n_sites
        if not end.any():
            raise NotDeterminedError(
                f"pure {species} was never sampled; add pure_ends(ensemble, lattice) to the data, "
                f"or give references={{{species!r}: energy in eV per site}}"
            )
        zero[a] = lowest[end][0] / lattice.n_sites
    return zero


def _transitions(lattice, counts, energy) -> tuple[Transition, ...]:
    """Facets between vertices, coplanar ones joined."""
    axes = composition_axes(counts)
    if not len(axes):
        return ()
    points = counts @ axes.T
    slopes, corners = lower_facets(points, energy)
    found: list[tuple[np.ndarray, set]] = []
    for slope, corner in zip(slopes, corners, strict=True):
        for other, members in found:
            if np.abs(slope - other).max() < _SAME_MU:
                members.update(corner.tolist())
                break
        else:
            found.append((slope, set(corner.tolist())))
    projector = axes.T @ axes
    out = [
        Transition(lattice.species, slope @ axes, tuple(sorted(members)), projector)
        for slope, members in found
    ]
    return tuple(sorted(out, key=lambda t: tuple(t.mu[1:] - t.mu[0])))
