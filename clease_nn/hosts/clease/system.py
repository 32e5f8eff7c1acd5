"""What a sampler of any energy works on: active sites, energy, its key, trial moves."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers
from ase.io.jsonio import encode
from clease.montecarlo import RandomFlip, RandomFlipWithinBasis
from clease.montecarlo.trial_move_generator import TrialMoveGenerator

from clease_nn.energies.calculator import CalculatorEnergy
from clease_nn.energies.cluster_expansion import ClusterExpansionEnergy
from clease_nn.energies.protocol import EnergyModel
from clease_nn.hosts.clease.constraints import species_indices
from clease_nn.lattice import Lattice
from clease_nn.symmetry import site_permutations

__all__ = [
    "active_lattice",
    "check_on_lattice",
    "energy_of",
    "fingerprint_of",
    "flips_on",
    "key_of",
    "parameters_of",
]


def active_lattice(atoms: Atoms, symbols: Sequence[str]) -> Lattice:
    """Lattice on which every atom that is one of ``symbols`` may become any of them.

    Sublattices are the active sites that the space group of the structure, all active sites
    alike, maps onto one another.

    Raises
    ------
    ValueError
        If there are fewer than two symbols, one is no element, or no atom carries any.

    Examples
    --------
    >>> from ase.build import bulk
    >>> active_lattice(bulk("NaCl", "rocksalt", a=5.6, cubic=True), ["Na", "K"])
    Lattice(4 active sites of 8, species K/Na, 1 sublattices)
    """
    species = sorted(set(symbols))
    if len(species) < 2:
        raise ValueError(f"at least two symbols are needed, got {list(symbols)}")
    unknown = [s for s in species if s not in atomic_numbers]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no chemical symbol; vacancies are 'X'")
    sites = np.flatnonzero(np.isin(atoms.get_chemical_symbols(), species))
    if not len(sites):
        raise ValueError(
            f"no atom carries one of the symbols {species}: the atoms are {atoms.symbols}; sites "
            "whose species may change must carry one of the symbols at the start"
        )
    allowed = np.ones((len(sites), len(species)), dtype=bool)
    orbits = site_permutations(Lattice(atoms, sites, species, allowed)).min(0)
    sublattices = np.unique(orbits, return_inverse=True)[1].ravel()
    return Lattice(atoms, sites, species, allowed, sublattices)


def fingerprint_of(energy: EnergyModel) -> str | None:
    """What an energy is recognised by, None where it cannot say."""
    try:
        return getattr(energy, "fingerprint", None)
    except ValueError:  # a calculator without parameters
        return None


def energy_of(atoms: Atoms, energy):
    """The energy model: the user's, or the one of the calculator."""
    if energy is not None:
        if not callable(energy):
            raise TypeError(
                "energy must be callable, energy(lattice, occupations) -> eV per supercell, got "
                f"{energy!r}; an ASE calculator belongs to atoms.calc"
            )
        return energy
    if atoms.calc is None:
        raise ValueError(
            "atoms has no calculator; set atoms.calc to any ASE calculator, attach CLEASE's with "
            "clease.calculator.attach_calculator(settings, atoms, eci), or give energy="
        )
    return CalculatorEnergy(atoms.calc)


def check_on_lattice(atoms: Atoms, lattice: Lattice) -> None:
    """Raise ValueError unless the atoms are a configuration of the lattice."""
    lattice.occupations(atoms)
    template = lattice.template
    shift = np.abs(np.asarray(atoms.cell) - np.asarray(template.cell)).max()
    if max(shift, np.abs(atoms.positions - template.positions).max()) > 1e-3:
        raise ValueError(
            "cell or positions of atoms differ from those of the lattice by more than 1e-3 "
            "angstrom; make lattice and sampler from these atoms"
        )


def key_of(energy, lattice: Lattice) -> str | None:
    """What models of an energy are looked up by."""
    fingerprint = fingerprint_of(energy)
    if isinstance(energy, ClusterExpansionEnergy):
        return energy.metadata.get("parent", fingerprint)
    return None if fingerprint is None else f"{fingerprint}-{lattice.fingerprint}"


def parameters_of(energy) -> dict[str, str]:
    """Present parameters of the calculator behind an energy, as text; {} where none are known.

    Examples
    --------
    >>> from ase.calculators.emt import EMT
    >>> parameters_of(CalculatorEnergy(EMT()))
    {'asap_cutoff': 'false'}
    """
    calculator = getattr(energy, "calculator", None)
    parameters = getattr(calculator, "parameters", None)
    out = {}
    for key, value in parameters.items() if isinstance(parameters, Mapping) else ():
        with contextlib.suppress(TypeError, ValueError):  # no plain value
            out[str(key)] = encode(value)
    return out


def flips_on(atoms: Atoms, lattice: Lattice, symbols: Sequence[str]) -> TrialMoveGenerator:
    """Flips of every site among those of ``symbols`` (default: all) that it may carry."""
    chosen = species_indices(symbols, lattice) if symbols else range(lattice.n_species)
    may = lattice.allowed & np.isin(np.arange(lattice.n_species), chosen)
    rows, kind = np.unique(may, axis=0, return_inverse=True)
    groups = [
        ([lattice.species[a] for a in np.flatnonzero(row)],
         lattice.site_indices[kind.ravel() == k].tolist())
        for k, row in enumerate(rows)
        if row.sum() > 1
    ]  # fmt: skip
    if not groups:
        raise ValueError(
            f"no site may carry two of the symbols {list(symbols) or list(lattice.species)}"
        )
    if len(groups) == 1:
        return RandomFlip(groups[0][0], atoms, indices=groups[0][1])
    species, indices = zip(*groups, strict=True)
    return RandomFlipWithinBasis(list(species), atoms, list(indices))
