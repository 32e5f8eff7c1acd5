"""What is minimised: callables of a model and a batch, ``(model, batch) -> (loss, metrics)``.

``metrics`` are floats for the history and the progress bar, ``loss`` among them.
"""

from clease_nn.objectives.batches import CompleteBatch, MaskedBatch
from clease_nn.objectives.cross_entropy import any_order_cross_entropy
from clease_nn.objectives.marginalization import MarginalConsistency

__all__ = ["CompleteBatch", "MarginalConsistency", "MaskedBatch", "any_order_cross_entropy"]
