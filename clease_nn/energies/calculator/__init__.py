"""Energies of any ASE calculator: computed once, kept, and spread over any executor."""

from clease_nn.energies.calculator.cache import CacheError
from clease_nn.energies.calculator.energy import CalculatorEnergy
from clease_nn.energies.calculator.failures import CalculatorError, ExecutorError, Failure
from clease_nn.energies.calculator.relaxation import Relaxation

__all__ = [
    "CacheError",
    "CalculatorEnergy",
    "CalculatorError",
    "ExecutorError",
    "Failure",
    "Relaxation",
]
