"""What needs a model and data together: is every phase there, and can the weights be trusted?"""

from clease_nn.diagnostics.validation import Validation, kl_gap, validate

__all__ = ["Validation", "kl_gap", "validate"]
