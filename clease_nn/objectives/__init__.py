"""What is minimised: callables of a model and a batch, ``(model, batch) -> (loss, metrics)``.

``metrics`` are floats for the history and the progress bar, ``loss`` among them.
"""

from clease_nn.objectives.batches import CompleteBatch, MaskedBatch
from clease_nn.objectives.cross_entropy import any_order_cross_entropy, cross_entropy
from clease_nn.objectives.log_variance import LogVariance
from clease_nn.objectives.marginalization import MarginalConsistency
from clease_nn.objectives.reinforce import Reinforce

__all__ = [
    "CompleteBatch",
    "LogVariance",
    "MarginalConsistency",
    "MaskedBatch",
    "Reinforce",
    "any_order_cross_entropy",
    "cross_entropy",
]
