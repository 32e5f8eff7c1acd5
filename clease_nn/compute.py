"""One policy for threads and memory of numerical work."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

import torch

__all__ = ["compute_policy"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def _keep_freed_memory() -> None:
    """Ask glibc to reuse freed memory instead of returning it: page faults are expensive.

    The networks allocate and free arrays of about 10 MB many times a step; on virtual machines
    touching fresh pages was measured to cost more than the arithmetic. Other C libraries ignore
    the request.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**30)


@contextlib.contextmanager
def compute_policy(threads: int | None = None) -> Iterator[None]:
    """Run a block with ``threads`` torch threads (None: as they are) and reuse of memory.

    Raises
    ------
    ValueError
        If ``threads`` is less than 1.

    Examples
    --------
    >>> with compute_policy(threads=1):
    ...     torch.get_num_threads()
    1
    """
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    _keep_freed_memory()
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
