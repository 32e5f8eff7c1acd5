r"""CLEASE's Monte Carlo with moves that are not symmetric: who owns the ratio, and who uses it.

CLEASE accepts a move from x to y with probability :math:`\min\{1, \exp[-(E_y - E_x)/kT]\}`, which
is right only where y is proposed from x as often as x from y. A generator whose proposals are not
symmetric keeps :math:`\ln r = \ln q(x|y) - \ln q(y|x)` of its last move, and a Monte Carlo with
:class:`ProposalRatioAcceptance` accepts with

.. math:: \min\{1, \exp[-(E_y - E_x)/kT + \ln r]\}

(Hastings, Biometrika 57, 97 (1970)); E includes chemical potentials and bias potentials. Any other
Monte Carlo is refused by the generator before the first move.
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence

from clease.datastructures import MCStep, SystemChange
from clease.montecarlo import Montecarlo, RandomSwap, SGCMonteCarlo
from clease.montecarlo.constraints import MCConstraint
from clease.montecarlo.swap_move_index_tracker import SwapMoveIndexTracker
from clease.montecarlo.trial_move_generator import MixedSwapFlip, TrialMoveGenerator

__all__ = [
    "AbstractProposalGenerator",
    "CorrectedMontecarlo",
    "CorrectedSGCMonteCarlo",
    "MixedMoves",
    "ProposalRatioAcceptance",
    "rejected_move",
]

Move = Sequence[SystemChange]


def rejected_move(atoms, index: int = 0) -> list[SystemChange]:
    """A move that changes nothing, for a proposal that is rejected before its energy is known."""
    symbol = atoms.symbols[int(index)]
    return [SystemChange(int(index), symbol, symbol, "rejected_move")]


class AbstractProposalGenerator(TrialMoveGenerator, ABC):
    """A generator that owns the log ratio of its proposals and refuses who would ignore it.

    A subclass says what it proposes (:meth:`_propose`). A Monte Carlo with
    :class:`ProposalRatioAcceptance` calls :meth:`bind` before every draw and
    :meth:`take_log_ratio` when it decides. Constraints never lead to another draw, which would
    bias the chain: a proposal that violates one is rejected.
    """

    def __init__(self):
        super().__init__()
        self._bound: Montecarlo | None = None
        self._log_ratio: float | None = None

    @abstractmethod
    def _propose(self, mc: Montecarlo) -> tuple[Move, float]:
        """One move and its ln q(x|y) - ln q(y|x); -inf rejects it."""

    def bind(self, mc: Montecarlo) -> None:
        """Allow one draw on behalf of a Monte Carlo that will take the log ratio."""
        self._bound, self._log_ratio = mc, None

    def take_log_ratio(self) -> float:
        """ln q(x|y) - ln q(y|x) of the move just drawn, once.

        Raises
        ------
        RuntimeError
            If there is no such move: none was drawn, or its ratio was taken before.
        """
        if self._log_ratio is None:
            raise RuntimeError(
                "no move was drawn since the last decision; call _do_accept once a move"
            )
        log_ratio, self._log_ratio = self._log_ratio, None
        return log_ratio

    def get_single_trial_move(self) -> Move:
        """One move, for a Monte Carlo that has bound itself.

        Raises
        ------
        RuntimeError
            If nobody has: the acceptance would be wrong.
        """
        if self._bound is None:
            raise RuntimeError(
                f"the proposals of {type(self).__name__} are not symmetric, and this Monte Carlo "
                "would accept them with a wrong probability; use CorrectedMontecarlo or "
                "CorrectedSGCMonteCarlo of clease_nn.hosts.clease.moves, or class "
                "MyMontecarlo(ProposalRatioAcceptance, Montecarlo), and combine generators with "
                "MixedMoves"
            )
        mc, self._bound = self._bound, None
        move, self._log_ratio = self._propose(mc)
        return move

    def get_trial_move(self) -> Move:
        """As :meth:`get_single_trial_move`; nothing is drawn again."""
        return self.get_single_trial_move()


class ProposalRatioAcceptance:
    """Mixin for ``Montecarlo`` and its subclasses: the acceptance of Metropolis and Hastings.

    Put it first: ``class Mine(ProposalRatioAcceptance, Montecarlo)``. Moves of generators that
    are symmetric are accepted as CLEASE does, with the same random numbers. Chemical potentials
    and bias potentials (``add_bias``, CLEASE's metadynamics) are part of the energies that CLEASE
    compares and need nothing further.

    Raises
    ------
    RuntimeError
        If a subclass decides about a move without calling ``_do_accept``, or calls it twice.
    """

    def initialize_run(self) -> None:
        """Prepare a run; a RandomSwap that other moves have left behind looks at the atoms."""
        swaps = _swaps(self.generator)
        if swaps is not None:
            symbols = list(self.atoms.symbols)
            tracked = swaps.tracker.tracker.items()
            if any(symbols[i] != symbol for symbol, sites in tracked for i in sites):
                _follow(swaps, self.atoms)
        super().initialize_run()

    def _mc_step(self, call_observers: bool = True) -> MCStep:
        generator = self.generator
        self._asymmetric = None
        if not isinstance(generator, AbstractProposalGenerator):
            return super()._mc_step(call_observers=call_observers)
        if super()._do_accept.__func__ is not Montecarlo._do_accept:
            raise RuntimeError(
                f"{type(self).__name__} has an acceptance of its own, which does not know of "
                "proposal ratios; derive it from Montecarlo or SGCMonteCarlo, or use symmetric "
                "moves"
            )
        self._asymmetric = generator
        generator.bind(self)
        try:
            step = super()._mc_step(call_observers=call_observers)
            self._check_decided()  # also where a subclass has a _calculate_step of its own
            return step
        finally:
            self._asymmetric = generator._bound = None

    def _calculate_step(self, system_changes: Move) -> bool:
        accept = super()._calculate_step(system_changes)
        self._check_decided()
        return accept

    def _check_decided(self) -> None:
        generator = getattr(self, "_asymmetric", None)
        if generator is not None and generator._log_ratio is not None:
            raise RuntimeError(
                f"{type(self).__name__} decided about a move without _do_accept, so the proposal "
                "ratio was not used and the move may be wrong; let its _calculate_step call "
                "self._do_accept, with ProposalRatioAcceptance as the first base class"
            )

    def _do_accept(self, current_energy: float, new_energy: float) -> bool:
        generator = getattr(self, "_asymmetric", None)
        log_ratio = 0.0 if generator is None else generator.take_log_ratio()
        if log_ratio == 0.0:
            return super()._do_accept(current_energy, new_energy)
        log_p = log_ratio - (new_energy - current_energy) / self.kT
        return log_p >= 0 or random.random() < math.exp(log_p)


class CorrectedMontecarlo(ProposalRatioAcceptance, Montecarlo):
    """CLEASE's canonical ``Montecarlo``, exact also with neural moves. Arguments are the same."""


class CorrectedSGCMonteCarlo(ProposalRatioAcceptance, SGCMonteCarlo):
    """CLEASE's ``SGCMonteCarlo``, exact also with neural moves. Arguments are the same."""


class MixedMoves(AbstractProposalGenerator):
    """Moves of several generators, each drawn with a fixed probability.

    The choice does not depend on the configuration, so every generator keeps its own ratio: the
    mixture is exact. Generators of CLEASE have ratio 0, and their constraints reject instead of
    drawing again.

    Parameters
    ----------
    generators : sequence of (TrialMoveGenerator, float)
        Generators and their weights, positive and finite.

    Raises
    ------
    TypeError
        If a generator keeps track of the atoms in a way that other generators' moves would spoil.
    ValueError
        If there is no generator, or a weight is not positive.

    Examples
    --------
    >>> from clease.montecarlo import RandomFlip
    >>> from clease_nn.hosts.clease.examples import cuau_emt_atoms
    >>> atoms = cuau_emt_atoms((2, 2, 2))
    >>> e = atoms.get_potential_energy()
    >>> flips = RandomFlip(["Au", "Cu"], atoms)
    >>> mc = CorrectedSGCMonteCarlo(atoms, 600, generator=MixedMoves([(flips, 1.0)]))
    >>> mc.run(100, chem_pot={"c1_0": 0.03})
    >>> mc.get_thermodynamic_quantities()["n_mc_steps"]
    100
    """

    def __init__(self, generators: Sequence[tuple[TrialMoveGenerator, float]]):
        super().__init__()
        pairs = list(generators)
        if not pairs:
            raise ValueError("MixedMoves needs at least one (generator, weight)")
        for generator, weight in pairs:
            if not isinstance(generator, TrialMoveGenerator):
                raise TypeError(
                    f"expected a TrialMoveGenerator, got {type(generator).__name__}; give pairs "
                    "(generator, weight)"
                )
            if not (math.isfinite(weight) and weight > 0):
                raise ValueError(f"weights must be positive and finite, got {weight}")
            _check_can_follow(generator)
        self.generators = tuple(g for g, _ in pairs)
        self.weights = tuple(float(w) for _, w in pairs)
        self._last: TrialMoveGenerator | None = None
        self._stale: set[int] = set()

    def initialize(self, atoms) -> None:
        """Hand the atoms to all generators; called at the start of a run."""
        for generator in self.generators:
            generator.initialize(atoms)
        self._stale = set(range(len(self.generators)))

    def add_constraint(self, cnst: MCConstraint) -> None:
        """Add a constraint to all generators."""
        for generator in self.generators:
            generator.add_constraint(cnst)

    def remove_constraints(self) -> None:
        """Remove the constraints of all generators."""
        for generator in self.generators:
            generator.remove_constraints()

    def on_move_accepted(self, changes: Move) -> None:
        """Tell the generator whose move it was; the others look at the atoms before they draw."""
        if self._last is not None:
            self._last.on_move_accepted(changes)
        self._stale |= {k for k, g in enumerate(self.generators) if g is not self._last}

    def on_move_rejected(self, changes: Move) -> None:
        """Tell the generator whose move it was."""
        if self._last is not None:
            self._last.on_move_rejected(changes)

    def _propose(self, mc: Montecarlo) -> tuple[Move, float]:
        k = random.choices(range(len(self.generators)), weights=self.weights)[0]
        generator = self._last = self.generators[k]
        if k in self._stale:
            _follow(generator, mc.atoms)
            self._stale.discard(k)
        if isinstance(generator, AbstractProposalGenerator):
            generator.bind(mc)
            return generator.get_trial_move(), generator.take_log_ratio()
        own_draw = type(generator).get_trial_move is not TrialMoveGenerator.get_trial_move
        if own_draw:
            return generator.get_trial_move(), 0.0
        if isinstance(generator, RandomSwap) and generator.tracker.num_symbols < 2:
            self._last = None
            return rejected_move(mc.atoms), -math.inf
        move = generator.get_single_trial_move()
        if not generator._change_ok(move):
            self._last = None
            return rejected_move(mc.atoms, move[0].index), -math.inf
        return move, 0.0


def _swaps(generator: TrialMoveGenerator) -> RandomSwap | None:
    """The part of a CLEASE generator that keeps track of the atoms."""
    generator = generator.swapper if isinstance(generator, MixedSwapFlip) else generator
    return generator if isinstance(generator, RandomSwap) else None


def _check_can_follow(generator: TrialMoveGenerator) -> None:
    known = isinstance(generator, AbstractProposalGenerator) or _swaps(generator) is not None
    tracks = type(generator).on_move_accepted is not TrialMoveGenerator.on_move_accepted
    if tracks and not known:
        raise TypeError(
            f"{type(generator).__name__} follows its own accepted moves and would not know of "
            "those of the other generators; mix generators that look at the atoms when they draw "
            "(RandomFlip, RandomFlipWithinBasis, RandomSwap, MixedSwapFlip, neural moves)"
        )


def _follow(generator: TrialMoveGenerator, atoms) -> None:
    """Let a generator know where the elements are after moves that were not its own."""
    if isinstance(generator, MixedMoves):
        generator._stale = set(range(len(generator.generators)))
    swaps = _swaps(generator)
    if swaps is not None:
        swaps.tracker = SwapMoveIndexTracker(atoms, indices=swaps.indices)
