"""One Metropolis chain: what a script runs between two observations."""

from clease_nn.single_chain.abstract import AbstractChain
from clease_nn.single_chain.compiled import SingleChain, StepLog
from clease_nn.single_chain.generic import EnergyChain
from clease_nn.single_chain.groups import FlipGroups

__all__ = ["AbstractChain", "EnergyChain", "FlipGroups", "SingleChain", "StepLog"]
