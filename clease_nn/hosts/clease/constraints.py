"""What CLEASE's trial move generators and constraints mean for a chain that never redraws.

CLEASE draws again until a move satisfies all constraints. That samples ``w(x) n(x)``, n(x) the
number of moves open to x, unless n is constant. Here fixed sites and elements become clamps, the
elements of a basis a mask, and any other constraint rejects the move: the state is counted again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms
from clease.montecarlo import RandomFlip, RandomFlipWithinBasis
from clease.montecarlo.constraints import (
    ConstrainElementInserts,
    ConstrainSwapByBasis,
    FixedElement,
    FixedIndices,
    MCConstraint,
)
from clease.montecarlo.trial_move_generator import TrialMoveGenerator

from clease_nn.lattice import Lattice
from clease_nn.single_chain import FlipGroups

__all__ = ["TrialMoves", "constraints_of", "read_generator", "single_trial_move"]

_MAPPED = (FixedIndices, FixedElement, ConstrainElementInserts)


@dataclass(frozen=True)
class TrialMoves:
    """A generator with its constraints, understood as far as possible.

    Attributes
    ----------
    groups : FlipGroups or None
        Sites and species of flips; None where the generator makes other moves or a constraint
        has no equivalent as clamp or mask.
    compiled : bool
        The moves are exactly those of ``groups``, so compiled code may make them.
    reason : str
        Why ``groups`` is None or ``compiled`` False.
    """

    groups: FlipGroups | None
    compiled: bool
    reason: str = ""


def constraints_of(generator: TrialMoveGenerator) -> list[MCConstraint]:
    """Constraints added to a generator.

    Raises
    ------
    ValueError
        If one of them needs swaps.
    """
    found = list(getattr(generator, "_constraints", []))
    for c in found:
        if isinstance(c, ConstrainSwapByBasis):
            raise ValueError(
                "ConstrainSwapByBasis restricts swaps of two atoms, but semi-grand canonical moves "
                "change one site; use ConstrainElementInserts(atoms, index_by_basis, "
                "element_by_basis) or the generator RandomFlipWithinBasis instead"
            )
    return found


def read_generator(generator: TrialMoveGenerator, atoms: Atoms, lattice: Lattice) -> TrialMoves:
    """Translate a generator and its constraints for the present configuration.

    Raises
    ------
    ValueError
        If a constraint is unsupported, symbols cross sublattices, a site is background or
        carries a species outside the symbols of its moves, or nothing can move.
    """
    constraints = constraints_of(generator)
    flippers = _flippers(generator)
    if flippers is None:
        return TrialMoves(None, False, f"the generator {type(generator).__name__} is not a flip")
    mask = lattice.allowed.copy()
    symbols = np.array(atoms.get_chemical_symbols())[lattice.site_indices]
    fixed = np.zeros(lattice.n_sites, dtype=bool)
    inserts = np.ones_like(mask)
    unknown = [c for c in constraints if type(c) not in _MAPPED]
    for c in constraints:
        if type(c) is FixedIndices:
            fixed |= np.isin(lattice.site_indices, list(c.fixed_basis))
        elif type(c) is FixedElement:
            fixed |= symbols == c.element
            mask &= np.array([s != c.element for s in lattice.species])
        elif type(c) is ConstrainElementInserts:
            inserts &= _inserts(c, lattice)
    mask &= inserts
    site_of = {int(i): k for k, i in enumerate(lattice.site_indices)}
    groups = []
    for flipper in flippers:
        if flipper.atoms is not atoms:
            raise ValueError(
                f"the generator {type(generator).__name__} was made for another Atoms object; "
                "make it with the atoms of this sampler"
            )
        background = [i for i in flipper.indices if int(i) not in site_of]
        if background:
            raise ValueError(
                f"the generator flips atom {background[0]}, which is background; give it "
                "indices=atoms.calc.settings.non_background_indices"
            )
        sites = [site_of[int(i)] for i in flipper.indices]
        species = species_indices(flipper.symbols, lattice)
        _check_sublattices(flipper.symbols, species, sites, inserts, lattice)
        groups.append(([k for k in sites if not fixed[k]], species))
    flips = FlipGroups(groups, mask)
    wrong = flips.check(lattice.occupations(atoms))
    if wrong is not None:
        may = [s for s, ok in zip(lattice.species, flips.reachable[wrong], strict=True) if ok]
        raise ValueError(
            f"atom {lattice.site_indices[wrong]} is {symbols[wrong]}, but trial moves and "
            f"constraints allow only {may} there; change the atom, or add it to the symbols"
        )
    if unknown:
        names = sorted({type(c).__name__ for c in unknown})
        return TrialMoves(None, False, f"constraint {names[0]} is neither a clamp nor a mask")
    exact = type(generator) in (RandomFlip, RandomFlipWithinBasis)
    reason = "" if exact else f"{type(generator).__name__} is a generator of its own"
    return TrialMoves(flips, exact, reason)


def single_trial_move(generator: TrialMoveGenerator):
    """One move of a generator and whether its constraints allow it; nothing is redrawn.

    Generators with a ``get_trial_move`` of their own look after their constraints themselves.
    """
    if type(generator).get_trial_move is not TrialMoveGenerator.get_trial_move:
        return generator.get_trial_move(), True
    move = generator.get_single_trial_move()
    return move, all(c(move) for c in constraints_of(generator))


def species_indices(symbols, lattice: Lattice) -> list[int]:
    """Indices of symbols in the species of a lattice.

    Raises
    ------
    ValueError
        If a symbol is not one of them.
    """
    index = {s: k for k, s in enumerate(lattice.species)}
    for s in symbols:
        if s not in index:
            raise ValueError(
                f"unknown element {s!r}: the active sites of this expansion may carry "
                f"{list(lattice.species)}"
            )
    return sorted({index[s] for s in symbols})


def _flippers(generator) -> list[RandomFlip] | None:
    if isinstance(generator, RandomFlip):
        return [generator]
    if isinstance(generator, RandomFlipWithinBasis):
        return list(generator._flippers)
    return None


def _inserts(constraint: ConstrainElementInserts, lattice: Lattice) -> np.ndarray:
    basis = constraint.basis[lattice.site_indices]
    none = np.zeros(int(constraint.basis.max()) + 1, dtype=bool)
    columns = [
        np.asarray(constraint.element_allowed.get(s, none), dtype=bool)[basis]
        for s in lattice.species
    ]
    return np.stack(columns, 1)


def _check_sublattices(symbols, species, sites, inserts, lattice) -> None:
    sites = np.array(sites, dtype=np.int64)
    crossing = inserts[np.ix_(sites, species)] & ~lattice.allowed[np.ix_(sites, species)]
    if crossing.any():
        k, a = np.argwhere(crossing)[0]
        site = sites[k]
        may = [s for s, ok in zip(lattice.species, lattice.allowed[site], strict=True) if ok]
        raise ValueError(
            f"symbols {list(symbols)} cross sublattices: atom {lattice.site_indices[site]} may "
            f"carry only {may}, not {lattice.species[species[a]]}; use the generator "
            "RandomFlipWithinBasis(symbols, atoms, indices), or add the constraint "
            "ConstrainElementInserts(atoms, index_by_basis, element_by_basis)"
        )
