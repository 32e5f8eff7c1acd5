"""Neural trial moves for CLEASE's own Monte Carlo classes.

A trained model proposes; CLEASE computes the energies, applies bias potentials, calls observers
and decides, with the ratio of the proposal probabilities that the generator hands it::

    moves = MixedMoves([(NeuralGlobalMove("cuau.nn", atoms), 1), (RandomFlip(symbols, atoms), 63)])
    mc = CorrectedSGCMonteCarlo(atoms, 600, symbols, generator=moves)

What is sampled is the distribution of the Monte Carlo, whatever the model and its conditions are;
these decide how many moves are accepted.
"""

from __future__ import annotations

import math
import random
import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from os import PathLike

import numpy as np
import torch
from ase import Atoms
from clease.calculator import Clease
from clease.datastructures import SystemChange
from clease.montecarlo import Montecarlo, SGCMonteCarlo
from clease.montecarlo.constraints import ConstrainSwapByBasis, FixedElement, FixedIndices
from clease.montecarlo.mc_evaluator import CEMCEvaluator

from clease_nn.conditions import Conditions
from clease_nn.hosts.clease.acceptance import (
    AbstractProposalGenerator,
    CorrectedMontecarlo,
    CorrectedSGCMonteCarlo,
    MixedMoves,
    Move,
    ProposalRatioAcceptance,
    rejected_move,
)
from clease_nn.hosts.clease.checks import check_chemical_potential
from clease_nn.hosts.clease.chemical_potentials import mu_from_chem_pot
from clease_nn.hosts.clease.constraints import species_indices
from clease_nn.hosts.clease.expansion import (
    Expansion,
    check_atoms,
    refuse_foreign_chemical_potential,
)
from clease_nn.io import TrainedModel
from clease_nn.sampler import CanonicalBlockMoves, NeuralMoves, System, match_composition
from clease_nn.sampler.orders import check_any_order, obstacle
from clease_nn.warnings import OutOfRangeWarning

__all__ = [
    "AbstractProposalGenerator",
    "CorrectedMontecarlo",
    "CorrectedSGCMonteCarlo",
    "MixedMoves",
    "NeuralBlockSwap",
    "NeuralGlobalMove",
    "ProposalRatioAcceptance",
]

_UNDO = 1000  # changes that CLEASE's updater can take back
_AHEAD = (4, 128)  # proposals drawn together: at first, at most


class _AbstractNeuralMove(AbstractProposalGenerator):
    """What neural generators share: model, lattice, conditions of the Monte Carlo, clamps."""

    def __init__(self, model, atoms, chem_pot, indices, system):
        super().__init__()
        if not isinstance(model, (str, PathLike, TrainedModel)):
            raise TypeError(
                "model must be the path of a *.nn file or a TrainedModel (from fit() or "
                f"TrainedModel.load), got {model!r}"
            )
        if chem_pot is not None:
            check_chemical_potential(chem_pot)
        if system is None:
            if isinstance(atoms, Atoms) and not isinstance(atoms.calc, Clease | None):
                raise ValueError(
                    f"the calculator of the atoms is {type(atoms.calc).__name__}, from which the "
                    "sites and species of the model cannot be read; give the System(lattice, "
                    "ensemble, key) that the model was trained for as system="
                )
            check_atoms(atoms)
            refuse_foreign_chemical_potential(atoms)
            system = Expansion.read(atoms, dict(atoms.calc.eci)).system
        self.atoms, self.system = atoms, system
        self.lattice = system.lattice
        self.lattice.occupations(atoms)
        trained = model if isinstance(model, TrainedModel) else TrainedModel.load(model)
        self.trained = system.check(trained)
        self.chem_pot = None if chem_pot is None else dict(chem_pot)
        self._fields = system.ensemble.fields if trained.model.needs_fields else None
        site_of = {int(i): k for k, i in enumerate(self.lattice.site_indices)}
        chosen = self.lattice.site_indices if indices is None else indices
        background = [i for i in chosen if int(i) not in site_of]
        if background:
            raise ValueError(
                f"atom {background[0]} is no active site of the model; leave it out of indices"
            )
        self._movable = np.isin(np.arange(self.lattice.n_sites), [site_of[int(i)] for i in chosen])
        self._allowed = self.lattice.allowed.copy()
        self._rng: torch.Generator | None = None
        self._at: dict[tuple, Conditions] = {}
        self._moves: NeuralMoves | CanonicalBlockMoves | None = None
        self._key: tuple | None = None
        self._warned = False

    def initialize(self, atoms: Atoms) -> None:
        """Called by the Monte Carlo at the start of a run; random numbers start from Python's.

        Conditions that were chosen from a configuration stay: a choice that followed the chain
        from run to run would bias it.
        """
        if atoms is not self.atoms:
            raise ValueError(
                f"{type(self).__name__} was made for another Atoms object; make it with the "
                "atoms of this Monte Carlo"
            )
        self._rng = self._moves = self._key = None

    @abstractmethod
    def _conditions(self, mc: Montecarlo, x: np.ndarray) -> Conditions:
        """Conditions that the model is asked for, one row."""

    @abstractmethod
    def _make(self, conditions: Conditions, reachable: np.ndarray):
        """The moves at some conditions with some sites clamped."""

    def on_move_accepted(self, changes: Move) -> None:
        """Called by the Monte Carlo: the last proposal need not be scored again."""
        if self._moves is not None:
            self._moves.accepted()

    def _propose(self, mc: Montecarlo) -> tuple[Move, float]:
        if mc.atoms is not self.atoms:
            self.initialize(mc.atoms)
        if self._rng is None:
            self._rng = torch.Generator().manual_seed(random.getrandbits(63))
        x = self.lattice.occupations(self.atoms)
        reachable = self._reachable(x)
        free = reachable.sum(1) > 1
        rejected = rejected_move(self.atoms, self.lattice.site_indices[0]), -math.inf
        if not free.any():
            return rejected
        self._check_undo(mc, free)
        setting = self._setting(mc, x)
        if setting not in self._at:
            self._at[setting] = self._conditions(mc, x)
            self._warn_outside(self._at[setting])
        key = (*setting, reachable.tobytes(), x[~free].tobytes())
        if key != self._key:  # proposals drawn ahead were for other clamped sites
            self._moves, self._key = self._make(self._at[setting], reachable), key
            self._ahead = _AHEAD[0]
        self._moves.expected = self._ahead
        self._ahead = min(self._ahead + 1, _AHEAD[1])
        y, log_ratio = self._moves.propose(x)
        if log_ratio == -math.inf:
            return rejected
        index, species = self.lattice.site_indices, self.lattice.species
        move = [
            SystemChange(int(index[k]), species[x[k]], species[y[k]], "neural_move")
            for k in np.flatnonzero(x != y)
        ]
        if not move:
            return rejected
        unmapped = [c for c in self._constraints if not isinstance(c, ConstrainSwapByBasis)]
        return (move, log_ratio) if all(c(move) for c in unmapped) else rejected

    def _setting(self, mc: Montecarlo, x: np.ndarray) -> tuple:
        """What the conditions depend on, besides the first configuration seen there.

        Of the configuration only what the move does not change may enter.
        """
        given = self._guide(mc)
        given = None if given is None else tuple(sorted(given.items()))
        return (float(mc.temperature), given, tuple(self._constraints))

    def _reachable(self, x: np.ndarray) -> np.ndarray:
        """Species that this move may put on each site, (sites, species)."""
        species, index = self.lattice.species, self.lattice.site_indices
        movable, allowed = self._movable.copy(), self._allowed.copy()
        for c in self._constraints:
            if isinstance(c, FixedIndices):
                movable &= ~np.isin(index, list(c.fixed_basis))
            elif isinstance(c, FixedElement) and c.element in species:
                a = species.index(c.element)
                movable &= x != a
                allowed[:, a] = False
        own = np.eye(len(species), dtype=bool)[x]
        wrong = movable & ~allowed[np.arange(len(x)), x]
        if wrong.any():
            k = int(np.flatnonzero(wrong)[0])
            raise ValueError(
                f"atom {index[k]} is {species[x[k]]}, which these moves may not put there; change "
                "the atom, or add it to the symbols"
            )
        return np.where(movable[:, None], allowed, own)

    def _guide(self, mc: Montecarlo) -> Mapping[str, float] | None:
        """Chemical potentials that the model is asked for."""
        return self.chem_pot

    def _mu(self, chem_pot: Mapping[str, float]) -> np.ndarray:
        if isinstance(self.atoms.calc, Clease):
            return mu_from_chem_pot(self.atoms, self.lattice, chem_pot)
        species = self.lattice.species
        species_indices(chem_pot, self.lattice)
        return np.array([float(chem_pot.get(s, 0.0)) for s in species])

    def _check_undo(self, mc: Montecarlo, free: np.ndarray) -> None:
        size = min(getattr(self, "block_size", None) or len(free), int(free.sum()))
        if size > _UNDO and isinstance(mc.evaluator, CEMCEvaluator):
            raise ValueError(
                f"a move may change {size} sites at once, CLEASE can take back {_UNDO}; give "
                f"block_size={_UNDO} or less"
            )

    def _warn_outside(self, conditions: Conditions) -> None:
        if not self._warned and not bool(self.trained.range.contains(conditions).all()):
            self._warned = True
            warnings.warn(
                f"T = {conditions.temperature[0].item():g} K, mu = {conditions.mu[0].tolist()} eV "
                "lies outside the trained range of the model: neural moves stay exact, but few "
                "may be accepted",
                OutOfRangeWarning,
                stacklevel=8,
            )


class NeuralGlobalMove(_AbstractNeuralMove):
    """Redraws all sites, or a block of them, from a trained model at given chemical potentials.

    The composition changes, as with ``RandomFlip``. Use it in a Monte Carlo with
    :class:`ProposalRatioAcceptance`; others are refused when the first move is asked for.

    Parameters
    ----------
    model : path or TrainedModel
        Trained on the expansion of these atoms (any supercell), by ``NeuralSGCSampler.fit``.
    atoms : ase.Atoms
        Those of the Monte Carlo, with its calculator.
    chem_pot : mapping, optional
        Chemical potentials that the model is asked for, ``{"c1_0": 0.03}`` or by element, in eV.
        Default: those of the ``SGCMonteCarlo``. They guide the proposals only: what is sampled
        is what the energies of the Monte Carlo say, bare ones in a plain ``Montecarlo``.
    block_size : int, optional
        Redraw that many sites, random or compact, instead of all: accepted more often.
    symbols : sequence of str, optional
        Elements that may be drawn; default all that the sites allow.
    indices : sequence of int, optional
        Atoms that may change; default all active sites.
    system : System, optional
        Lattice and energy the model was trained for, where the calculator is not CLEASE's or
        differs from the energy of the model. That energy only serves the model's inputs.

    Raises
    ------
    TypeError, ValueError
        If the model belongs to another system or has one order of drawing that does not allow
        these moves, or the input is not what it should be.

    Notes
    -----
    Temperature and chemical potentials are those of the Monte Carlo at every move. Constraints
    never draw again: ``FixedIndices`` and ``FixedElement`` clamp sites, others reject.

    Examples
    --------
    >>> import random, warnings
    >>> from clease_nn import NeuralSGCSampler
    >>> from clease_nn.hosts.clease.examples import cuau_emt_atoms
    >>> atoms = cuau_emt_atoms((2, 2, 2))
    >>> trainer = NeuralSGCSampler(atoms, 800, ["Au", "Cu"])
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")
    ...     trained = trainer.fit((600, 1200), {"c1_0": (-0.1, 0.1)}, max_steps=2, progress=False)
    >>> random.seed(1)
    >>> moves = NeuralGlobalMove(trained, atoms)
    >>> mc = CorrectedSGCMonteCarlo(atoms, 800, ["Au", "Cu"], generator=moves)
    >>> mc.run(20, chem_pot={"c1_0": 0.03})
    >>> mc.current_accept_rate > 0.1
    True
    """

    def __init__(
        self,
        model: str | PathLike | TrainedModel,
        atoms: Atoms,
        chem_pot: Mapping[str, float] | None = None,
        *,
        block_size: int | None = None,
        symbols: Sequence[str] | None = None,
        indices: Sequence[int] | None = None,
        system: System | None = None,
    ):
        if block_size is not None and block_size < 1:
            raise ValueError(f"block_size must be at least 1, got {block_size}")
        super().__init__(model, atoms, chem_pot, indices, system)
        self.block_size = block_size
        if symbols is not None:
            drawn = np.isin(
                np.arange(self.lattice.n_species), species_indices(symbols, self.lattice)
            )
            self._allowed &= drawn
            stuck = ~self._allowed.any(1)
            self._movable &= ~stuck
        free = self._movable & (self._allowed.sum(1) > 1)
        reason = obstacle(self.trained.model, self.lattice, free, block_size)
        if reason is not None:
            raise ValueError(reason)

    def _guide(self, mc):
        if self.chem_pot is None and isinstance(mc, SGCMonteCarlo):
            return mc.chemical_potential
        return self.chem_pot

    def _conditions(self, mc, x):
        chem_pot = self._guide(mc)
        if chem_pot is None:
            raise ValueError(
                f"{type(mc).__name__} has no chemical potential, and a global move changes the "
                "composition: use NeuralBlockSwap for a fixed composition, or give chem_pot={...} "
                "to guide the proposals if the composition is to vary"
            )
        return Conditions([float(mc.temperature)], self._mu(chem_pot)[None])

    def _make(self, conditions, reachable):
        if any(isinstance(c, ConstrainSwapByBasis) for c in self._constraints):
            raise ValueError(
                "ConstrainSwapByBasis restricts swaps, but global moves change the composition; "
                "use ConstrainElementInserts(atoms, index_by_basis, element_by_basis)"
            )
        return NeuralMoves(
            self.trained.model, self.system.ensemble, self.lattice, conditions, self._rng,
            reachable=reachable, block_size=self.block_size, batch_size=_AHEAD[1],
        )  # fmt: skip


class NeuralBlockSwap(_AbstractNeuralMove):
    """Redraws all sites, or a block, with the species they have: a collective swap.

    The composition is fixed on every sublattice: every set of sites with the same allowed
    elements, and basis of ``ConstrainSwapByBasis``. Use it in :class:`CorrectedMontecarlo`, best
    mixed with ``RandomSwap`` by :class:`MixedMoves`.

    Parameters
    ----------
    model : path or TrainedModel
    atoms : ase.Atoms
        Those of the Monte Carlo, with its calculator.
    block_size : int, optional
        Sites redrawn, random or compact ones, at least 2. Default: all. Smaller blocks cost less
        but leave an ordered domain as it is.
    chem_pot : mapping, optional
        Chemical potentials that the model is asked for; any are exact. Default: those at which
        the model finds the configuration at the start of the run most likely.
    indices, system
        As for :class:`NeuralGlobalMove`.

    Raises
    ------
    TypeError, ValueError
        If the model belongs to another system or has one order of drawing that does not allow
        these moves, or the input is not what it should be.
    """

    def __init__(
        self,
        model: str | PathLike | TrainedModel,
        atoms: Atoms,
        block_size: int | None = None,
        chem_pot: Mapping[str, float] | None = None,
        *,
        indices: Sequence[int] | None = None,
        system: System | None = None,
    ):
        if block_size is not None and block_size < 2:
            raise ValueError(f"block_size must be at least 2, got {block_size}")
        super().__init__(model, atoms, chem_pot, indices, system)
        check_any_order(self.trained.model, "moves at fixed composition")
        self.block_size = block_size

    def _setting(self, mc, x):
        return (*super()._setting(mc, x), tuple(np.bincount(x, minlength=self.lattice.n_species)))

    def _conditions(self, mc, x):
        temperature = float(mc.temperature)
        if self.chem_pot is not None:
            return Conditions([temperature], self._mu(self.chem_pot)[None])
        rng = torch.Generator().manual_seed(0)
        return match_composition(self.trained, self.lattice, x, temperature, rng, self._fields)

    def _make(self, conditions, reachable):
        bases = [c.basis for c in self._constraints if isinstance(c, ConstrainSwapByBasis)]
        bases = np.stack([np.zeros(len(self.atoms), dtype=int), *bases], 1)
        groups = np.unique(bases[self.lattice.site_indices], axis=0, return_inverse=True)[1]
        return CanonicalBlockMoves(
            self.trained.model, self.system.ensemble, self.lattice, conditions, self._rng,
            self.block_size, reachable=reachable, groups=groups.ravel(), batch_size=_AHEAD[1],
        )  # fmt: skip
