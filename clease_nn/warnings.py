"""Warning classes of the package: filter or escalate them one by one."""

__all__ = [
    "CalculatorWarning",
    "ChainWarning",
    "CleaseNNWarning",
    "InterruptedWarning",
    "LostModeWarning",
    "LowESSWarning",
    "NoModelWarning",
    "OutOfRangeWarning",
    "TrainingWarning",
]


class CleaseNNWarning(UserWarning):
    """Base of all warnings of this package.

    Examples
    --------
    Turn every doubt into an error:

    >>> import warnings
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("error", CleaseNNWarning)
    """


class CalculatorWarning(CleaseNNWarning):
    """Structures without an energy; their energies read NaN."""


class InterruptedWarning(CleaseNNWarning):
    """A run was interrupted; what had been finished was returned."""


class LowESSWarning(CleaseNNWarning):
    """Too few effective samples, or weights with too heavy a tail, to trust an error bar."""


class NoModelWarning(CleaseNNWarning):
    """No trained model was found; exact single-site moves are used instead."""


class OutOfRangeWarning(CleaseNNWarning):
    """A condition lies outside the trained range; exact single-site moves are used instead."""


class TrainingWarning(CleaseNNWarning):
    """Training ended with a region of conditions that the model describes badly."""


class LostModeWarning(CleaseNNWarning):
    """Independent configurations are improbable under the model: a phase may be missing."""


class ChainWarning(CleaseNNWarning):
    """Chains look frozen, disagree with one another or are too short."""
