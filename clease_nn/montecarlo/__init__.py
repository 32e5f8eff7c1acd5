"""Monte Carlo chains over many conditions at once, and parallel tempering with ln Z."""

from clease_nn.montecarlo.chains import Chains, heat_bath_probabilities
from clease_nn.montecarlo.tempering import ParallelTempering

__all__ = ["Chains", "ParallelTempering", "heat_bath_probabilities"]
