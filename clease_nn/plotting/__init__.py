"""Figures: axes in, axes out; colours that survive colour blindness and grey printing.

Every function draws into axes of the caller and returns them; figures are made, sized and saved
by the caller. Curves differ in marker or dashes as well as in colour. Error bars are one standard
error, bands two; what is not determined (NaN) is left out.
"""

from clease_nn.plotting.comparisons import comparison
from clease_nn.plotting.configurations import pick_samples, sampled_configurations
from clease_nn.plotting.costs import cost
from clease_nn.plotting.curves import (
    correlation,
    heat_capacity,
    isotherms,
    short_range_order,
)
from clease_nn.plotting.free_energies import free_energy
from clease_nn.plotting.maps import condition_map, heat_capacity_map, ness_map
from clease_nn.plotting.phases import boundary_points, phase_diagram
from clease_nn.plotting.samples import ground_states, histogram, symmetry
from clease_nn.plotting.shortfall import gap_map, phase_shares
from clease_nn.plotting.states import density_of_states
from clease_nn.plotting.structures import hull, structures
from clease_nn.plotting.style import figure
from clease_nn.plotting.training import training_curve

__all__ = [
    "boundary_points",
    "comparison",
    "condition_map",
    "correlation",
    "cost",
    "density_of_states",
    "figure",
    "free_energy",
    "gap_map",
    "ground_states",
    "heat_capacity",
    "heat_capacity_map",
    "histogram",
    "hull",
    "isotherms",
    "ness_map",
    "phase_diagram",
    "phase_shares",
    "pick_samples",
    "sampled_configurations",
    "short_range_order",
    "structures",
    "symmetry",
    "training_curve",
]
