"""Ctrl-C during training."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

__all__ = ["Stop", "interruptible"]


class Stop:
    """What the user asked for.

    Attributes
    ----------
    requested : bool
        Stop after the present step.
    at_once : bool
        Asked again: skip the validation.
    held : bool
        A second request does not break what is under way, because half of it must not be done:
        weights are being changed, or other processes take part.
    """

    def __init__(self, held: bool = False):
        self.requested = self.at_once = False
        self.held = held


@contextlib.contextmanager
def interruptible(stop: Stop) -> Iterator[None]:
    """The first Ctrl-C asks to stop after the present step, the second stops at once.

    Outside the main thread, where Python allows no handlers, Ctrl-C works as usual.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def ask(number, frame):
        stop.at_once = stop.requested
        stop.requested = True
        if stop.at_once and not stop.held:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
