"""Phases: which there are, where they coexist, ground states, and diagrams of them."""

from clease_nn.phases.assemble import phase_diagram
from clease_nn.phases.coexistence import Coexistence, NoCoexistenceError, coexistence
from clease_nn.phases.diagram import Boundary, PhaseDiagram, ThreePhasePoint
from clease_nn.phases.hull import Hull, Transition, Vertex, formation_hull
from clease_nn.phases.identify import identify
from clease_nn.phases.labels import Phases
from clease_nn.phases.line import ChemicalPotentialLine
from clease_nn.phases.maxima import heat_capacity_maxima, susceptibility_maxima
from clease_nn.phases.published import (
    alpha_shape,
    common_tangent,
    greatest_composition_jump,
    heat_capacity_peak,
    lowest_temperature,
)
from clease_nn.phases.search import anneal, ground_state_hull, pure_ends, random_search
from clease_nn.phases.structures import Structure
from clease_nn.phases.trace import trace

__all__ = [
    "Boundary",
    "ChemicalPotentialLine",
    "Coexistence",
    "Hull",
    "NoCoexistenceError",
    "PhaseDiagram",
    "Phases",
    "Structure",
    "ThreePhasePoint",
    "Transition",
    "Vertex",
    "alpha_shape",
    "anneal",
    "coexistence",
    "common_tangent",
    "formation_hull",
    "greatest_composition_jump",
    "ground_state_hull",
    "heat_capacity_maxima",
    "heat_capacity_peak",
    "identify",
    "lowest_temperature",
    "phase_diagram",
    "pure_ends",
    "random_search",
    "susceptibility_maxima",
    "trace",
]
