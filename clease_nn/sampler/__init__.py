"""What every host's drop-in shares: neural moves, when to make them, and finding a model."""

from clease_nn.sampler.arguments import condition_range
from clease_nn.sampler.canonical import CanonicalBlockMoves, match_composition
from clease_nn.sampler.draws import draw_chain, resample_chain
from clease_nn.sampler.grid import potential_grid, potential_line, temperature_grid
from clease_nn.sampler.lookup import find_model, model_folders
from clease_nn.sampler.moves import NeuralMoves
from clease_nn.sampler.schedule import Schedule, plan_schedule
from clease_nn.sampler.service import ModelService
from clease_nn.sampler.system import System

__all__ = [
    "CanonicalBlockMoves",
    "ModelService",
    "NeuralMoves",
    "Schedule",
    "System",
    "condition_range",
    "draw_chain",
    "find_model",
    "match_composition",
    "model_folders",
    "plan_schedule",
    "potential_grid",
    "potential_line",
    "resample_chain",
    "temperature_grid",
]
