"""Monte Carlo chains over many conditions at once, and parallel tempering with ln Z."""

from clease_nn.montecarlo.chains import Chains, heat_bath_probabilities
from clease_nn.montecarlo.frozen import FrozenChains, frozen_chains, ground_state_bound
from clease_nn.montecarlo.growth import growth_stages
from clease_nn.montecarlo.ordered import OrderedPhases, ordered_phases
from clease_nn.montecarlo.result import TemperingResult
from clease_nn.montecarlo.tempering import ParallelTempering

__all__ = [
    "Chains",
    "FrozenChains",
    "OrderedPhases",
    "ParallelTempering",
    "TemperingResult",
    "frozen_chains",
    "ground_state_bound",
    "growth_stages",
    "heat_bath_probabilities",
    "ordered_phases",
]
