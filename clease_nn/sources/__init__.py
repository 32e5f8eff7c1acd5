"""Where training batches come from: stateful, resumable streams."""

from clease_nn.sources.abstract import AbstractSource
from clease_nn.sources.generated import GeneratedSource
from clease_nn.sources.gibbs import GibbsSource
from clease_nn.sources.masking import random_known_sites
from clease_nn.sources.mixed import MixedSource
from clease_nn.sources.replay import ReplaySource
from clease_nn.sources.tempering import ParallelTemperingSource

__all__ = [
    "AbstractSource",
    "GeneratedSource",
    "GibbsSource",
    "MixedSource",
    "ParallelTemperingSource",
    "ReplaySource",
    "random_known_sites",
]
