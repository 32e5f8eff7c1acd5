"""What a phase diagram is made of: boundaries, points where three phases meet, and what is open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from clease_nn.cost import Cost
from clease_nn.phases.line import ChemicalPotentialLine
from clease_nn.statistics import Estimate

__all__ = ["Boundary", "PhaseDiagram", "ThreePhasePoint"]


@dataclass(frozen=True, eq=False)
class Boundary:
    """Conditions along which two phases meet.

    Attributes
    ----------
    kind : str
        ``"first-order"``, ``"heat-capacity maximum"`` or ``"susceptibility maximum"``.
    phases : tuple of two str
        In the order of the compositions.
    temperature : Estimate, shape (points,)
        K; without error where temperatures were chosen.
    mu : Estimate, shape (points,)
        Position along the line of chemical potentials, eV; without error where it was chosen.
    composition : Estimate, shape (points, 2)
        Share of the line's species in each phase; ends of the tie line.
    slope : Estimate or None, shape (points,)
        d mu / d T along a first-order line from the jumps of entropy and composition, eV/K.
    stable : ndarray of bool, shape (points,)
        Whether no third phase has a lower grand potential.
    reason : str
        Why the line ends where it does.
    """

    kind: str
    phases: tuple[str, str]
    temperature: Estimate
    mu: Estimate
    composition: Estimate
    slope: Estimate | None
    stable: np.ndarray
    reason: str = ""


@dataclass(frozen=True, eq=False)
class ThreePhasePoint:
    """Where three phases coexist.

    Attributes
    ----------
    phases : tuple of three str
        In the order of their compositions.
    temperature, mu : Estimate
        K, and eV along the line.
    composition : Estimate, shape (3,)
    kind : str
        ``"eutectoid"``, ``"peritectoid"``, or ``""`` where it is not determined.
    """

    phases: tuple[str, str, str]
    temperature: Estimate
    mu: Estimate
    composition: Estimate
    kind: str = ""


@dataclass(frozen=True, eq=False)
class PhaseDiagram:
    """Boundaries along one line of chemical potentials, over temperature.

    Attributes
    ----------
    line : ChemicalPotentialLine
    phases : tuple of str
    boundaries : tuple of Boundary
    points : tuple of ThreePhasePoint
    undetermined : tuple of str
        What could not be determined, each with its reason.
    provenance : Mapping
    """

    line: ChemicalPotentialLine
    phases: tuple[str, ...]
    boundaries: tuple[Boundary, ...]
    points: tuple[ThreePhasePoint, ...] = ()
    undetermined: tuple[str, ...] = ()
    provenance: Mapping = field(default_factory=dict)

    @property
    def cost(self) -> Cost:
        """What the data have cost."""
        return Cost.from_provenance(self.provenance)
