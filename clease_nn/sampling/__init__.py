"""Drawing from a trained model: every sample scored, so that everything can be corrected.

:func:`sample` draws whole configurations, :func:`complete` the unknown sites of partial ones,
which :func:`held` makes; :func:`anneal` takes draws along a path to conditions that the model does
not serve well. :func:`exact` takes the route that pays, by what pilot draws are worth.
"""

from clease_nn.sampling.annealing import anneal
from clease_nn.sampling.block_moves import BlockMoves
from clease_nn.sampling.by_route import exact
from clease_nn.sampling.draw import DrawError, complete, sample
from clease_nn.sampling.held import complete_with_numbers, held
from clease_nn.sampling.refine import Refinement, refine

__all__ = [
    "BlockMoves",
    "DrawError",
    "Refinement",
    "anneal",
    "complete",
    "complete_with_numbers",
    "exact",
    "held",
    "refine",
    "sample",
]
