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
from clease_nn.thermodynamics.correlations import Correlations, correlations
from clease_nn.thermodynamics.density_of_states import DensityOfStates, Moments
from clease_nn.thermodynamics.histograms import (
    Histogram,
    composition_histogram,
    energy_histogram,
    histogram,
)
from clease_nn.thermodynamics.mixture import density_of_states

__all__ = [
    "Averages",
    "ConditionAverages",
    "Correlations",
    "DensityOfStates",
    "Histogram",
    "Moments",
    "averages",
    "composition_histogram",
    "conditions",
    "correlations",
    "density_of_states",
    "energy_histogram",
    "free_energy",
    "histogram",
    "log_z",
    "mean",
]
