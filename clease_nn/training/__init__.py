"""Training: one loop for every model, source and objective, in one process or in several."""

from clease_nn.training.fitting import fit
from clease_nn.training.processes import process_seed
from clease_nn.training.stage import Stage

__all__ = ["Stage", "fit", "process_seed"]
