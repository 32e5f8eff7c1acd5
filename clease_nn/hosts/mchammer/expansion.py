"""What an ensemble needs to know of its calculator, read once, and of its trial moves."""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers

from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.hosts.mchammer import extraction
from clease_nn.io import TrainedModel
from clease_nn.lattice import Lattice
from clease_nn.sampler import System
from clease_nn.single_chain import FlipGroups

__all__ = ["Expansion", "flip_groups"]

_KNOWN: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
_TOLERANCE = 1e-6


@dataclass(eq=False)
class Expansion:
    """The cluster expansion of a calculator on its supercell.

    Attributes
    ----------
    system : System
        Lattice, ensemble of the bare energy, fingerprint.
    numbers : ndarray, shape (species,)
        Atomic numbers of the species.
    fitted : TrainedModel or None
        The last model fitted by an ensemble with this calculator; the next one may use it.
    """

    system: System
    numbers: np.ndarray
    fitted: TrainedModel | None = None

    @classmethod
    def read(cls, structure: Atoms, calculator) -> Expansion:
        """The expansion of a plain calculator; read once for each calculator and supercell.

        Raises
        ------
        ImportError, TypeError, ValueError
            As :func:`extraction.energy`; ValueError also if the calculator belongs to another
            supercell.
        """
        known = _KNOWN.get(calculator)
        if known is None or not known._serves(structure, calculator):
            lattice = extraction.lattice(structure, calculator)
            energy = extraction.energy(structure, calculator)
            system = System(lattice, SemiGrandCanonical(energy), energy.metadata["parent"])
            known = cls(system, np.array([atomic_numbers[s] for s in lattice.species]))
            known.check(calculator)
            _KNOWN[calculator] = known
        return known

    def _serves(self, structure: Atoms, calculator) -> bool:
        """Whether supercell and energies are still those that were read."""
        if not _same_supercell(self.system.lattice.template, structure):
            return False
        try:
            self.check(calculator)
        except ValueError:
            return False
        return True

    def check(self, calculator) -> None:
        """Raise ValueError if the calculator gives other energies than the tables."""
        lattice = self.system.lattice
        rng = np.random.default_rng(0)
        columns = [rng.choice(np.flatnonzero(row), size=3) for row in lattice.allowed]
        x = np.stack(columns, 1).astype(np.int8)
        own = self.system.ensemble.energy.tables.direct_energies(x)
        remedy = "make the calculator with the structure of the ensemble"
        try:
            host = [calculator.calculate_total(occupations=lattice.atoms(r).numbers) for r in x]
        except Exception as error:
            raise ValueError(f"the calculator does not take this structure; {remedy}") from error
        if np.abs(own - host).max() > _TOLERANCE * (1 + np.abs(own).max()):
            raise ValueError(
                f"the calculator gives {host[0]} eV where its expansion has {own[0]} eV on this "
                f"supercell; {remedy}"
            )


def _same_supercell(template: Atoms, structure: Atoms) -> bool:
    return (
        len(template) == len(structure)
        and np.allclose(template.cell, structure.cell)
        and np.allclose(template.positions, structure.positions)
    )


def flip_groups(
    lattice: Lattice, numbers: np.ndarray, sublattices, probabilities, neighbors
) -> FlipGroups:
    """The trial moves of mchammer's semi-grand canonical ensembles.

    Parameters
    ----------
    lattice : Lattice
    numbers : ndarray, shape (atoms,)
        Present atomic numbers; those of inactive sites never change.
    sublattices : icet Sublattices
    probabilities : sequence of float
        Relative, one a sublattice; sublattices with zero are frozen.
    neighbors : mapping of int to sequences of int, or None
        Atoms that must not be occupied (carry anything but a vacancy) at the same time.

    Raises
    ------
    ValueError
        If the probabilities are not one a sublattice, negative, all zero, or not zero for a
        sublattice with a single species.
    """
    probabilities = _checked(probabilities, sublattices)
    site_of = np.full(len(numbers), -1)
    site_of[lattice.site_indices] = np.arange(lattice.n_sites)
    groups, weights = [], []
    for sublattice, p in zip(sublattices, probabilities, strict=True):
        if p > 0:
            species = [lattice.species.index(s) for s in sorted(sublattice.chemical_symbols)]
            groups.append((site_of[sublattice.indices], species))
            weights.append(p)
    allowed = lattice.allowed.copy()
    vacancy = lattice.species.index("X") if "X" in lattice.species else -1
    avoid: dict[int, list[int]] = {}
    for i, others in (neighbors or {}).items():
        for j in others:
            if site_of[i] >= 0 and site_of[j] >= 0:
                avoid.setdefault(int(site_of[i]), []).append(int(site_of[j]))
            elif site_of[i] >= 0 and numbers[j] != 0:  # occupied for ever
                allowed[site_of[i], np.arange(lattice.n_species) != vacancy] = False
    return FlipGroups(
        groups,
        allowed,
        weights=weights if len(weights) > 1 else None,
        avoid=avoid,
        vacancy=vacancy,
    )


def _checked(probabilities, sublattices) -> list[float]:
    out = [float(p) for p in probabilities]
    if len(out) != len(sublattices):
        raise ValueError(
            f"sublattice_probabilities must have one number for each of the {len(sublattices)} "
            f"sublattices {sublattices.allowed_species}, got {out}"
        )
    if not all(np.isfinite(p) and p >= 0 for p in out) or not any(out):
        raise ValueError(
            f"sublattice_probabilities must be finite, not negative and not all zero, got {out}"
        )
    for sublattice, p in zip(sublattices, out, strict=True):
        if p and len(sublattice.chemical_symbols) < 2:
            raise ValueError(
                f"the sublattice of {sublattice.chemical_symbols[0]} has the probability {p}, but "
                "nothing can change there; set it to zero"
            )
    return out
