"""What needs a model and data together: are phases lost, symmetric, and followed rightly?

Whether the weights can be trusted (:func:`validate`), where they cannot and why
(:func:`shortfall`), whether symmetry-related configurations are
equally probable (:func:`symmetry_check`), how the model responds to its conditions
(:func:`responses`), and which ground states its draws contain (:func:`ground_states`).
"""

from clease_nn.diagnostics.derivatives import Responses, condition_scores, responses
from clease_nn.diagnostics.ground_states import GroundState, GroundStates, ground_states
from clease_nn.diagnostics.shortfall import PhaseShare, Region, Shortfall, shortfall
from clease_nn.diagnostics.symmetry import SymmetryCheck, symmetry_check
from clease_nn.diagnostics.validation import Validation, kl_gap, validate

__all__ = [
    "GroundState",
    "GroundStates",
    "PhaseShare",
    "Region",
    "Responses",
    "Shortfall",
    "SymmetryCheck",
    "Validation",
    "condition_scores",
    "ground_states",
    "kl_gap",
    "responses",
    "shortfall",
    "symmetry_check",
    "validate",
]
