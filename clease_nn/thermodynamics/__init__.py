"""Free energies, averages, correlations and histograms read off configurations, with errors."""

from clease_nn.thermodynamics.averages import (
    Averages,
    ConditionAverages,
    averages,
    conditions,
    free_energy,
    log_z,
    mean,
)
from clease_nn.thermodynamics.canonical import canonical
from clease_nn.thermodynamics.canonical_averages import CanonicalAverages, ChemicalPotentialCurve
from clease_nn.thermodynamics.compare import Comparison, Difference, compare
from clease_nn.thermodynamics.constrained import log_probability
from clease_nn.thermodynamics.correlations import Correlations, correlations
from clease_nn.thermodynamics.density_of_states import DensityOfStates, Moments
from clease_nn.thermodynamics.histograms import (
    Histogram,
    composition_histogram,
    energy_histogram,
    histogram,
)
from clease_nn.thermodynamics.integration import (
    Hysteresis,
    Integrated,
    excitation_log_z,
    hysteresis,
    integrate_grand_potential,
)
from clease_nn.thermodynamics.long_range import (
    OrderParameter,
    long_range_order,
    order_parameter,
)
from clease_nn.thermodynamics.mixture import density_of_states
from clease_nn.thermodynamics.overlap import overlap, where_to_sample
from clease_nn.thermodynamics.response import (
    ThermodynamicFactor,
    constant_composition_heat_capacity,
    thermodynamic_factor,
)
from clease_nn.thermodynamics.short_range import (
    ShortRangeOrder,
    pair_densities,
    short_range_order,
)

__all__ = [
    "Averages",
    "CanonicalAverages",
    "ChemicalPotentialCurve",
    "Comparison",
    "ConditionAverages",
    "Correlations",
    "DensityOfStates",
    "Difference",
    "Histogram",
    "Hysteresis",
    "Integrated",
    "Moments",
    "OrderParameter",
    "ShortRangeOrder",
    "ThermodynamicFactor",
    "averages",
    "canonical",
    "compare",
    "composition_histogram",
    "conditions",
    "constant_composition_heat_capacity",
    "correlations",
    "density_of_states",
    "energy_histogram",
    "excitation_log_z",
    "free_energy",
    "histogram",
    "hysteresis",
    "integrate_grand_potential",
    "log_probability",
    "log_z",
    "long_range_order",
    "mean",
    "order_parameter",
    "overlap",
    "pair_densities",
    "short_range_order",
    "thermodynamic_factor",
    "where_to_sample",
]
