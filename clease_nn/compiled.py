"""Compilation of hot loops: one place for numba's options."""

from __future__ import annotations

import numba

__all__ = ["njit"]


def njit(function):
    """``numba.njit`` with a cache on disk, or without one where the install is read-only.

    The compiled loops run on one thread, release the GIL and may reorder sums.
    """
    options = {"fastmath": {"reassoc", "contract", "nsz", "arcp"}, "nogil": True}
    try:
        return numba.njit(function, cache=True, **options)
    except RuntimeError:  # numba found no writable place for its cache
        return numba.njit(function, **options)
