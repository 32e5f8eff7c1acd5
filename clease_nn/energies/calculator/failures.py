"""What can go wrong with single structures, and the errors that say so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["CalculatorError", "ExecutorError", "Failure"]

_SHOWN = 5  # failures that a message spells out


@dataclass(frozen=True)
class Failure:
    """A structure without an energy.

    Attributes
    ----------
    formula : str
    occupation : tuple of int
        Of the structure that was computed: the representative of its symmetry equivalents.
    kind : {"error", "not finite", "changed atoms", "not converged", "collapsed"}
    reason : str
        In words, with the text of the exception.
    """

    formula: str
    occupation: tuple[int, ...]
    kind: str
    reason: str

    @property
    def final(self) -> bool:
        """Whether computing it again would give the same: a relaxation that ended badly."""
        return self.kind in ("not converged", "collapsed")

    def __str__(self) -> str:
        return f"{self.formula}, occupation {list(self.occupation)}: {self.kind}: {self.reason}"


class CalculatorError(RuntimeError):
    """More structures failed than ``max_failures`` allows; the message names them.

    Attributes
    ----------
    failures : tuple of Failure
        Those of the call, also the ones known from before.
    remaining : int
        Structures of the call that have not been computed.
    """

    def __init__(self, message: str, failures: Sequence[Failure] = (), remaining: int = 0):
        super().__init__(message)
        self.failures = tuple(failures)
        self.remaining = remaining


class ExecutorError(CalculatorError):
    """The executor died; what had finished is kept, and another call goes on from there."""


def listing(failures: Sequence[Failure]) -> str:
    """The first failures, one a line."""
    lines = [f"  {f}" for f in failures[:_SHOWN]]
    if len(failures) > _SHOWN:
        lines.append(f"  and {len(failures) - _SHOWN} more (see the attribute failures)")
    return "\n".join(lines)
