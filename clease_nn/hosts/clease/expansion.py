"""The expansion behind a CLEASE sampler: bare ECIs, lattice, energy, and who else changes it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from ase import Atoms
from clease.calculator import Clease
from clease.montecarlo import SGCMonteCarlo
from clease.montecarlo.sgc_montecarlo import InvalidChemicalPotentialError

from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.hosts.clease import extraction
from clease_nn.hosts.clease.chemical_potentials import (
    axes,
    chem_pot_from_mu,
    mu_from_chem_pot,
)
from clease_nn.lattice import Lattice
from clease_nn.sampler import System

__all__ = ["Expansion", "check_atoms", "refuse_foreign_chemical_potential"]

_TOLERANCE = 1e-9  # eV; folding a chemical potential in and out rounds the ECIs
_KNOWN: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class Expansion:
    """A cluster expansion without any chemical potential, on one supercell.

    Attributes
    ----------
    eci : dict
        Bare ECIs, eV per atom.
    lattice : Lattice
    ensemble : SemiGrandCanonical
        Of the bare energy.
    parent : str
        Fingerprint of ECIs and parent lattice, the same for every supercell.
    singlet_table : ndarray, shape (singlets, species)
        What an active site contributes to ``c1_0``, ``c1_1``, ...: the singlets are means of
        this over the active sites, background that CLEASE counts included.
    """

    eci: dict[str, float]
    lattice: Lattice
    ensemble: SemiGrandCanonical
    parent: str
    singlet_table: np.ndarray

    @classmethod
    def read(cls, atoms: Atoms, eci: Mapping[str, float]) -> Expansion:
        """The expansion of ``atoms`` with the given bare ECIs; read once for each calculator."""
        known = _KNOWN.get(atoms.calc)
        if known is None or known.eci != dict(eci):
            host = extraction.lattice(atoms)
            names = [f"c1_{d}" for d in range(len(atoms.calc.settings.basis_functions))]
            share = host.n_sites / len(atoms)
            known = cls(
                dict(eci),
                host,
                SemiGrandCanonical(extraction.energy(atoms, eci)),
                extraction.parent_fingerprint(atoms, eci),
                share * axes(atoms, host, names),
            )
            _KNOWN[atoms.calc] = known
        return known

    @cached_property
    def system(self) -> System:
        """The bare energy on its lattice."""
        return System(self.lattice, self.ensemble, self.parent, {"eci": dict(self.eci)})

    def has(self, eci: Mapping[str, float]) -> bool:
        """Whether these are the bare ECIs, up to rounding."""
        return eci.keys() == self.eci.keys() and all(
            abs(v - self.eci[k]) < _TOLERANCE for k, v in eci.items()
        )

    def singlets(
        self, atoms: Atoms, chem_pot: Mapping[str, float]
    ) -> tuple[dict[str, float], float]:
        """Singlet form x and rest c: ``mu_a = N/N_a sum_d x_d phi_d(a) + c``, eV.

        Raises
        ------
        InvalidChemicalPotentialError
            If a singlet is unknown, or it (or, for elements, ``c0``) has no ECI to carry it.
        ValueError
            If a name is unknown or a value is not finite.
        """
        singlet_form = all(k.startswith("c1_") for k in chem_pot)
        missing = [k for k in chem_pot if k.startswith("c1_") and k not in atoms.calc.eci]
        known = [f"c1_{d}" for d in range(len(self.singlet_table))]
        if set(missing) - set(known):
            raise InvalidChemicalPotentialError(
                f"unknown chemical potential {sorted(set(missing) - set(known))[0]!r}: the "
                f"settings have the singlets {known}; use those, or elements: "
                f"{list(self.lattice.species)}"
            )
        if missing:
            raise InvalidChemicalPotentialError(
                f"the chemical potential {missing[0]} has no ECI; give the calculator all of "
                f"{sorted(chem_pot)}, with the value 0 where the expansion has none"
            )
        mu = mu_from_chem_pot(atoms, self.lattice, chem_pot)
        if singlet_form:
            return {k: float(v) for k, v in chem_pot.items()}, 0.0
        singlets = chem_pot_from_mu(atoms, self.lattice, mu)
        missing = [k for k in (*singlets, "c0") if k not in atoms.calc.eci]
        if missing:
            raise InvalidChemicalPotentialError(
                f"chemical potentials of elements need an ECI {missing[0]}; give the calculator "
                "one with the value 0, or use the singlet form {'c1_0': x}"
            )
        rest = mu - mu_from_chem_pot(atoms, self.lattice, singlets)
        return singlets, float(rest.mean())


def refuse_foreign_chemical_potential(atoms: Atoms, sampler: SGCMonteCarlo | None = None) -> None:
    """Raise ValueError if a sampler other than ``sampler`` has changed the ECIs of ``atoms``."""
    for other in gc.get_objects():
        if not issubclass(type(other), SGCMonteCarlo) or other is sampler:
            continue
        if vars(other).get("chem_pot_in_eci") and other.calc.eci is atoms.calc.eci:
            raise ValueError(
                f"another {type(other).__name__} has folded its chemical potential "
                f"{other.chemical_potential} into the ECIs of this calculator; call reset_eci() "
                "on it first"
            )


def check_atoms(atoms) -> None:
    """Raise ValueError (as CLEASE does) unless ``atoms`` has a Clease calculator of its own."""
    remedy = "attach one with clease.calculator.attach_calculator(settings, atoms, eci)"
    if not isinstance(atoms, Atoms):
        raise ValueError(f"atoms must be an ase.Atoms object, got {type(atoms).__name__}")
    if atoms.calc is None:
        raise ValueError(
            f"atoms has no calculator; {remedy}, or set atoms.calc to any ASE calculator"
        )
    if not isinstance(atoms.calc, Clease):
        raise ValueError(
            f"the calculator must be clease.calculator.Clease, got {type(atoms.calc).__name__}; "
            f"{remedy}"
        )
    if atoms.calc.updater is None:
        atoms.get_potential_energy()
    if atoms.calc.atoms is not atoms:
        raise ValueError(
            "the calculator was initialised with another Atoms object and would silently follow "
            f"that one; {remedy}"
        )
