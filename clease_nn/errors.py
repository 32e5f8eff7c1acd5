"""Errors that say that data cannot answer a question."""

__all__ = ["NotDeterminedError"]


class NotDeterminedError(ValueError):
    """The data at hand do not determine what was asked for; the message says what would."""
