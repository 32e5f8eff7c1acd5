"""Drawing from a trained model: every sample scored, so that everything can be corrected.

:func:`sample` draws whole configurations, :func:`complete` the unknown sites of partial ones,
which :func:`held` makes; :func:`anneal` takes draws along a path to conditions that the model does
not serve well.
"""

from clease_nn.sampling.annealing import anneal
from clease_nn.sampling.block_moves import BlockMoves
from clease_nn.sampling.draw import DrawError, complete, sample
from clease_nn.sampling.held import complete_with_numbers, held

__all__ = [
    "BlockMoves",
    "DrawError",
    "anneal",
    "complete",
    "complete_with_numbers",
    "held",
    "sample",
]
