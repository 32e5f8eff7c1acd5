"""One structure, computed: what runs in the workers."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from ase import Atoms

from clease_nn.energies.calculator.relaxation import Relaxation, collapse

__all__ = ["Outcome", "Task"]

_LOCAL = threading.local()  # the calculator of this thread


@dataclass(frozen=True)
class Outcome:
    """Energy in eV, or why there is none.

    Attributes
    ----------
    energy : float
        NaN for a failure.
    atoms : Atoms or None
        The relaxed structure, also of a collapse; None for fixed positions.
    kind, reason : str
        As in :class:`Failure`, empty for a success.
    attempts : int
        Times the calculator was asked for this structure.
    steps : int
        Optimizer steps.
    """

    energy: float
    atoms: Atoms | None = None
    kind: str = ""
    reason: str = ""
    attempts: int = 1
    steps: int = 0


class _Unusable(Exception):
    """No energy, and trying again would not help."""

    def __init__(self, kind: str, reason: str, atoms: Atoms | None = None, steps: int = 0):
        super().__init__(kind, reason)
        self.kind, self.reason, self.atoms, self.steps = kind, reason, atoms, steps


@dataclass(frozen=True)
class Task:
    """Picklable function from atomic numbers (atoms,) to an :class:`Outcome`.

    Exceptions of the calculator become outcomes; whatever this raises is the executor's doing.

    Parameters
    ----------
    source : ase calculator or callable
        The calculator, or a factory of calculators.
    is_factory : bool
    shared : bool
        Whether the caller's thread runs the task, so that the calculator itself can be used. In
        other threads a calculator is copied and a factory called once a thread.
    token : str
        Tells the calculators of different energies apart.
    template : Atoms
    relax : Relaxation or None
    retries : int
    """

    source: object
    is_factory: bool
    shared: bool
    token: str
    template: Atoms
    relax: Relaxation | None
    retries: int

    def __call__(self, numbers: np.ndarray) -> Outcome:
        """Compute one structure; vacancies (number 0) are deleted."""
        if not numbers.any():
            return Outcome(0.0, attempts=0)
        kind = reason = ""
        attempts = 0
        for attempts in range(1, self.retries + 2):
            try:
                energy, atoms, steps = self._compute(numbers)
            except _Unusable as e:
                return Outcome(np.nan, e.atoms, e.kind, e.reason, attempts, e.steps)
            except Exception as e:
                kind, reason = "error", f"{type(e).__name__}: {e}"
                self._start_over()
                continue
            if np.isfinite(energy):
                return Outcome(energy, atoms, attempts=attempts, steps=steps)
            kind, reason = "not finite", f"the calculator returned {energy}"
            self._start_over()
        return Outcome(np.nan, None, kind, reason, attempts)

    def atoms(self, numbers: np.ndarray) -> Atoms:
        """The structure that the calculator is given."""
        atoms = self.template.copy()
        atoms.numbers[:] = numbers
        # indexing loses constraints that do not know how, such as FixCom
        return atoms if numbers.all() else atoms[np.flatnonzero(numbers)]

    def _compute(self, numbers: np.ndarray) -> tuple[float, Atoms | None, int]:
        atoms = self.atoms(numbers)
        before = atoms.copy()
        atoms.calc = self._calculator()
        try:
            if self.relax is None:
                energy = float(atoms.get_potential_energy())
                _require_unchanged(before, atoms)
                return energy, None, 0
            atoms.get_forces()  # kept by the calculator for the first step
            _require_unchanged(before, atoms)
            converged, steps = self.relax.run(atoms)
            energy = float(atoms.get_potential_energy())
        finally:
            atoms.calc = None
        if not np.array_equal(before.numbers, atoms.numbers):
            _require_unchanged(before, atoms)
        if not converged:
            raise _Unusable(
                "not converged",
                f"forces above {self.relax.fmax:g} eV/angstrom after {steps} steps; raise "
                "max_steps of the Relaxation or choose another optimizer",
                atoms,
                steps,
            )
        reason = collapse(self.template, np.flatnonzero(numbers), atoms, self.relax.max_strain)
        if reason:
            raise _Unusable("collapsed", reason, atoms, steps)
        return energy, atoms, steps

    def _calculator(self):
        if self.shared and not self.is_factory:
            return self.source
        if getattr(_LOCAL, "token", None) != self.token:
            make: Callable = self.source if self.is_factory else lambda: copy.deepcopy(self.source)
            _LOCAL.calculator = make()
            _LOCAL.token = self.token
        return _LOCAL.calculator

    def _start_over(self) -> None:
        """A calculator that has failed may be in any state: make it anew, or reset it."""
        if self.shared and not self.is_factory:
            reset = getattr(self.source, "reset", None)
            if callable(reset):
                reset()
        else:
            _LOCAL.token = None


def _require_unchanged(before: Atoms, after: Atoms) -> None:
    """The calculator must have left numbers, positions, cell and periodicity alone."""
    if len(before) != len(after):
        changed = ["number of atoms"]
    else:
        pairs = {
            "atomic numbers": (before.numbers, after.numbers),
            "positions": (before.positions, after.positions),
            "cell": (before.cell.array, after.cell.array),
            "periodicity": (before.pbc, after.pbc),
        }
        changed = [name for name, (a, b) in pairs.items() if not np.array_equal(a, b)]
    if changed:
        raise _Unusable(
            "changed atoms",
            f"the calculator changed the {' and '.join(changed)} of the Atoms it was given, so "
            "that its energy belongs to another structure; let it work on atoms.copy()",
        )
