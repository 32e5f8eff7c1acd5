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

__all__ = [
    "Averages",
    "ConditionAverages",
    "averages",
    "conditions",
    "free_energy",
    "log_z",
    "mean",
]
