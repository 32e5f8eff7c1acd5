"""Phases: which there are, where they coexist, ground states, and diagrams of them."""

from clease_nn.phases.diagram import Boundary, PhaseDiagram, ThreePhasePoint
from clease_nn.phases.hull import Hull, Structure, Transition, Vertex, formation_hull
from clease_nn.phases.line import ChemicalPotentialLine
from clease_nn.phases.search import anneal, ground_state_hull, pure_ends, random_search

__all__ = [
    "Boundary",
    "ChemicalPotentialLine",
    "Hull",
    "PhaseDiagram",
    "Structure",
    "ThreePhasePoint",
    "Transition",
    "Vertex",
    "anneal",
    "formation_hull",
    "ground_state_hull",
    "pure_ends",
    "random_search",
]
