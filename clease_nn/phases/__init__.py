"""Phases: which there are, where they coexist, ground states, and diagrams of them."""

from clease_nn.phases.diagram import Boundary, PhaseDiagram, ThreePhasePoint
from clease_nn.phases.line import ChemicalPotentialLine

__all__ = ["Boundary", "ChemicalPotentialLine", "PhaseDiagram", "ThreePhasePoint"]
