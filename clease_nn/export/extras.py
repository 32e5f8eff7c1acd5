"""Packages that only some formats need."""

from __future__ import annotations

from importlib import import_module

__all__ = ["optional"]


def optional(name: str):
    """An optional package of the extra ``formats``.

    Raises
    ------
    ImportError
        If it is not installed; the message names the extra.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(
            f"{name} is needed for this format: pip install 'clease_nn[formats]'"
        ) from error
