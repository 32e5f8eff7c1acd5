"""Energies of configurations in batches."""

from clease_nn.energies.calculator import (
    CacheError,
    CalculatorEnergy,
    CalculatorError,
    ExecutorError,
    Failure,
    Relaxation,
)
from clease_nn.energies.callable import CallableEnergy
from clease_nn.energies.check import EnergyModelError, check_energy_model
from clease_nn.energies.cluster_basis import ClusterBasis
from clease_nn.energies.cluster_expansion import ClusterExpansionEnergy
from clease_nn.energies.ising import (
    ising_conditions,
    ising_energy,
    ising_log_z,
    kaufman_log_z,
    potts_energy,
)
from clease_nn.energies.protocol import EnergyModel
from clease_nn.energies.tables import ClusterTables

__all__ = [
    "CacheError",
    "CalculatorEnergy",
    "CalculatorError",
    "CallableEnergy",
    "ClusterBasis",
    "ClusterExpansionEnergy",
    "ClusterTables",
    "EnergyModel",
    "EnergyModelError",
    "ExecutorError",
    "Failure",
    "Relaxation",
    "check_energy_model",
    "ising_conditions",
    "ising_energy",
    "ising_log_z",
    "kaufman_log_z",
    "potts_energy",
]
