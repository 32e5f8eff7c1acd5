"""Ground states found at every chemical potential, beside random search and enumeration."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations, species_counts
from clease_nn.ensemble import Enumeration, SemiGrandCanonical
from clease_nn.montecarlo.chains import random_occupations
from clease_nn.symmetry import canonical_occupations, site_permutations
from clease_nn.thermodynamics.groups import rows_by_condition
from clease_nn.warnings import LostModeWarning

__all__ = ["GroundState", "GroundStates", "ground_states"]

_RARE = 1e-3  # probability of seeing fewer variants than were seen, below which one speaks up


@dataclass(frozen=True, eq=False)
class GroundState:
    """Lowest states known at one condition and how often the draws there hit them.

    Energies are ``E - mu.N`` in eV per supercell.

    Attributes
    ----------
    temperature : float
        K, of the draws.
    mu : ndarray, shape (species,)
        eV.
    species : tuple of str
    n : int
        Draws at this condition, and energy evaluations of the random search.
    found : float
        Lowest of the draws at this condition.
    lowest : float
        Lowest known: of the draws at all conditions, the random search and the enumeration.
    structures : ndarray, shape (structures, sites), int8
        States of energy ``lowest`` that symmetry does not relate, one representative each
        (:func:`~clease_nn.symmetry.canonical_occupations`).
    degeneracies : ndarray, shape (structures,)
        Configurations that symmetry makes of each structure.
    variants_seen : ndarray, shape (structures,)
        How many of them are among the draws at this condition.
    hits : int
        Draws of energy ``lowest``.
    independent_hits : int
        The same, of chains one for each chain that has any.
    random_found : float
        Lowest of the random search.
    random_hits : int
        Uniformly random configurations of energy ``lowest``.
    exact : float or None
        By enumeration.
    exact_degeneracy : int or None
        States of that energy.
    """

    temperature: float
    mu: np.ndarray
    species: tuple[str, ...]
    n: int
    found: float
    lowest: float
    structures: np.ndarray
    degeneracies: np.ndarray
    variants_seen: np.ndarray
    hits: int
    independent_hits: int
    random_found: float
    random_hits: int
    exact: float | None = None
    exact_degeneracy: int | None = None

    @property
    def share(self) -> float:
        """Share of the draws that hit the lowest energy."""
        return self.hits / self.n

    @property
    def random_share(self) -> float:
        """Share of the random search that hit the lowest energy."""
        return self.random_hits / self.n

    @property
    def degeneracy(self) -> int:
        """Configurations of the lowest energy, by symmetry from the structures known."""
        return int(self.degeneracies.sum())

    @property
    def missed(self) -> bool:
        """Whether no draw at this condition has the lowest energy known."""
        return self.hits == 0

    @property
    def composition(self) -> np.ndarray:
        """Share of the active sites with each species, shape (structures, species)."""
        counts = species_counts(torch.as_tensor(self.structures), len(self.species))
        return counts.numpy() / self.structures.shape[1]

    def to_dict(self) -> dict:
        """Flat dictionary of JSON-ready numbers; compositions are those of the first structure."""
        out: dict = {"temperature": self.temperature}
        out |= {f"mu_{s}": float(m) for s, m in zip(self.species, self.mu, strict=True)}
        out |= {f"x_{s}": float(x) for s, x in zip(self.species, self.composition[0], strict=True)}
        return out | {
            "n": self.n,
            "found": self.found,
            "lowest": self.lowest,
            "structures": len(self.structures),
            "degeneracy": self.degeneracy,
            "variants_seen": int(self.variants_seen.sum()),
            "share": self.share,
            "random_found": self.random_found,
            "random_share": self.random_share,
            "exact": self.exact,
            "exact_degeneracy": self.exact_degeneracy,
        }


class GroundStates(tuple):
    """Ground states of every condition, a tuple of :class:`GroundState`."""

    __slots__ = ()

    @property
    def conditions(self) -> Conditions:
        """The conditions, one a row."""
        return Conditions([g.temperature for g in self], np.stack([g.mu for g in self]))

    def to_rows(self) -> list[dict]:
        """One flat dictionary a condition (:meth:`GroundState.to_dict`), for tables."""
        return [g.to_dict() for g in self]

    def problems(self) -> list[tuple[type[Warning], str]]:
        """What a user should know, in words, with the class of the warning.

        Variants count as lost where equally probable variants would leave so many unseen less
        than once in a thousand times; all hits of one chain are one.
        """
        out = []
        missed = [g for g in self if g.missed]
        if missed:
            g = max(missed, key=lambda g: g.found - g.lowest)
            out.append(
                (
                    LostModeWarning,
                    f"the lowest state known was not drawn at {len(missed)} of {len(self)} "
                    f"conditions (worst: {g.found - g.lowest:.4g} eV above it at "
                    f"{g.temperature:.0f} K, mu {np.round(g.mu, 4).tolist()} eV): draw at lower "
                    "temperatures or more, or train longer",
                )
            )
        partial = [g for g in self if not g.missed and _lost_variants(g)]
        if partial:
            g = min(partial, key=lambda g: g.variants_seen.sum() / g.degeneracy)
            out.append(
                (
                    LostModeWarning,
                    f"symmetry-related variants of a ground state are missing at {len(partial)} "
                    f"of {len(self)} conditions (fewest: {int(g.variants_seen.sum())} of "
                    f"{g.degeneracy} in {g.hits} hits at {g.temperature:.0f} K, mu "
                    f"{np.round(g.mu, 4).tolist()} eV): whatever drew these has lost the others, "
                    "and NESS may not see it; train the model longer, or run more chains",
                )
            )
        return out

    def __str__(self) -> str:
        lines = ["   T (K)  lowest (eV)  structures  variants seen   share  random"]
        lines += [
            f"{g.temperature:8.0f}  {g.lowest:11.5f}  {len(g.structures):10d}  "
            f"{int(g.variants_seen.sum()):6d} of {g.degeneracy:<4d}  {g.share:6.3f}  "
            f"{g.random_share:6.1g}"
            for g in self
        ]
        return "\n".join(lines)


def ground_states(
    c: Configurations,
    ensemble: SemiGrandCanonical,
    rng: np.random.Generator,
    *,
    exact: Enumeration | None = None,
    tolerance: float = 1e-6,
) -> GroundStates:
    """The lowest states among draws on a grid of chemical potentials, and how often they are hit.

    Draws at low temperature should be ground states nearly always, in all their symmetry-related
    variants. A state found at one chemical potential is tried at all the others. The yardstick is
    a search among uniformly random configurations with as many energy evaluations as there are
    draws at the condition. Degeneracies suppose that the energy has the symmetry of the lattice.

    Parameters
    ----------
    c : Configurations
        Scored draws at the lowest temperature of interest, one or more at each of the conditions;
        weighted, chains, or plain: every row counts once.
    ensemble : SemiGrandCanonical
        For the random search.
    rng : numpy.random.Generator
        For the random search.
    exact : Enumeration, optional
        ``ensemble.enumerate(lattice)``, where the supercell is small enough.
    tolerance : float
        Energies that differ by less are the same, eV per supercell; larger for energies in
        single precision.

    Raises
    ------
    ValueError
        If there are no rows, a site is unknown or was given, energies are missing, ``exact`` is
        of another lattice or energy, or ``tolerance`` is negative.

    Examples
    --------
    >>> from clease_nn.energies.ising import ising_energy
    >>> from clease_nn.lattice import Lattice
    >>> lattice = Lattice.square(4)
    >>> model = SemiGrandCanonical(ising_energy(lattice, coupling=-0.05))
    >>> checker = (torch.arange(4)[:, None] + torch.arange(4)) % 2
    >>> at = Conditions([200.0], [[0.0, 0.0]])
    >>> c = model.score(Configurations(lattice, at, checker.reshape(1, 16)))
    >>> [g] = ground_states(c, model, np.random.default_rng(0))
    >>> round(g.lowest, 6), g.degeneracy, int(g.variants_seen[0])
    (-1.6, 2, 1)
    """
    if not bool(c.known.all()):
        raise ValueError("ground states need configurations without unknown sites")
    if c.energy is None:
        raise ValueError(
            "configurations carry no energy; score them first: SemiGrandCanonical(energy).score(c)"
        )
    if c.step is not None and bool((c.step < 0).any()):
        raise ValueError(
            "draws around given sites reach only the states that agree with these, and random "
            "search and symmetry do not know them; hand over draws of all sites"
        )
    if not tolerance >= 0:
        raise ValueError(f"tolerance must not be negative, got {tolerance} eV")
    if exact is not None and exact.lattice.fingerprint != c.lattice.fingerprint:
        raise ValueError("`exact` enumerates another lattice than that of the draws")
    groups = list(rows_by_condition(c))
    permutations = site_permutations(c.lattice)
    occupations = c.occupations.cpu().numpy()
    energy = c.energy.cpu().numpy()
    pool, first = np.unique(occupations, axis=0, return_index=True)
    pool_energy = energy[first]
    if exact is not None:
        pool = np.concatenate([pool, exact.occupations.numpy()])
        pool_energy = np.concatenate([pool_energy, exact.energy.numpy()])
    pool_counts = _counts(c, pool)
    out = []
    for rows in groups:
        condition = c.conditions[torch.as_tensor(rows[:1])]
        mu = condition.mu[0].cpu().numpy()
        random = random_occupations(c.lattice, len(rows), rng)
        random_energy = _score(c, condition, random, ensemble) - _counts(c, random) @ mu
        drawn_energy = energy[rows] - _counts(c, occupations[rows]) @ mu
        pool_sgc = pool_energy - pool_counts @ mu
        lowest = min(pool_sgc.min(), random_energy.min())
        states = np.concatenate(
            [
                pool[pool_sgc <= lowest + tolerance],
                random[random_energy <= lowest + tolerance],
            ]
        )
        structures = np.unique(canonical_occupations(states, permutations), axis=0)
        hit_rows = rows[drawn_energy <= lowest + tolerance]
        hit = occupations[hit_rows]
        variants = np.unique(hit, axis=0)
        canonical = canonical_occupations(variants, permutations)
        exact_sgc = None if exact is None else pool_sgc[len(pool) - len(exact.energy) :]
        if exact is not None and exact_sgc.min() > lowest + tolerance:
            raise ValueError(
                f"a configuration lies {exact_sgc.min() - lowest:.3g} eV below the lowest of all "
                "states: `exact` enumerates another energy than that of the draws"
            )
        out.append(
            GroundState(
                temperature=condition.temperature[0].item(),
                mu=mu,
                species=c.lattice.species,
                n=len(rows),
                found=float(drawn_energy.min()),
                lowest=float(lowest),
                structures=structures,
                degeneracies=np.array(
                    [len(np.unique(s[permutations], axis=0)) for s in structures]
                ),
                variants_seen=np.array([int((canonical == s).all(1).sum()) for s in structures]),
                hits=len(hit),
                independent_hits=(
                    len(hit) if c.chain is None else len(np.unique(c.chain.cpu().numpy()[hit_rows]))
                ),
                random_found=float(random_energy.min()),
                random_hits=int((random_energy <= lowest + tolerance).sum()),
                exact=None if exact is None else float(exact_sgc.min()),
                exact_degeneracy=(
                    None if exact is None else int((exact_sgc <= exact_sgc.min() + tolerance).sum())
                ),
            )
        )
    return GroundStates(out)


def _counts(c: Configurations, occupations: np.ndarray) -> np.ndarray:
    return species_counts(torch.as_tensor(occupations), c.lattice.n_species).numpy()


def _score(c, condition, occupations, ensemble) -> np.ndarray:
    """Energies of configurations in eV, checked."""
    part = Configurations(c.lattice, condition.repeat(len(occupations)), occupations)
    return ensemble.score(part).energy.cpu().numpy()


def _lost_variants(g: GroundState) -> bool:
    """Whether equally probable variants would hardly ever leave so many unseen."""
    unseen = g.degeneracy - int(g.variants_seen.sum())
    # the chance that any given set of variants is unseen, times the number of such sets
    if unseen == 0:
        return False
    chosen = np.arange(1, unseen + 1)
    sets = np.log((g.degeneracy - unseen + chosen) / chosen).sum()
    return bool(sets + g.independent_hits * np.log1p(-unseen / g.degeneracy) < np.log(_RARE))
