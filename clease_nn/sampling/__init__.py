"""Drawing from a trained model: every sample scored, so that everything can be corrected.

:func:`sample` draws whole configurations, :func:`complete` the unknown sites of partial ones.
"""

from clease_nn.sampling.draw import DrawError, complete, sample

__all__ = ["DrawError", "complete", "sample"]
