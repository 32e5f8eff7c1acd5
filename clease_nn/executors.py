"""Many pieces of work over any executor, results as they come."""

from __future__ import annotations

import pickle
import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

__all__ = ["Batch", "check_executor"]

_CHUNK = 64  # items handed at once to an executor that has only map


class Batch:
    """Results of ``task(item)`` for every item, in the order in which they finish.

    Parameters
    ----------
    executor : object or None
        With ``submit`` (futures), else with ``map``; None runs in this thread.
    task : callable
        Must not raise; an exception is taken as the executor's death.
    items : sequence

    Attributes
    ----------
    error : BaseException or None
        What the executor died of, set when the iteration ends.
    """

    def __init__(self, executor, task: Callable, items: Sequence):
        self.executor, self.task, self.items = executor, task, items
        self.error: BaseException | None = None
        self._stopped = False
        self._futures: dict[int, Any] = {}

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        if self.executor is None:
            run = self._serial
        elif hasattr(self.executor, "submit"):
            run = self._submit
        else:
            run = self._map
        return run()

    def stop(self) -> None:
        """Start no more work; what is running still comes."""
        if self._stopped:
            return
        self._stopped = True
        started = self._started_by_dask()
        for k, future in list(self._futures.items()):
            if future.done() or getattr(future, "key", None) in started:
                continue
            future.cancel()
            if future.cancelled():
                self._futures.pop(k, None)

    def finished(self) -> list[tuple[int, Any]]:
        """After an interruption: results that have come but were not taken yet."""
        out = []
        for k, future in list(self._futures.items()):
            if future.done():
                try:
                    out.append((k, future.result()))
                except Exception as error:
                    self.error = self.error or error
                del self._futures[k]
        return out

    def _started_by_dask(self) -> set:
        """Keys of what its workers have: dask drops even what is running if it is cancelled."""
        if not self._futures or not _is_dask(self.executor):
            return set()
        try:
            return set().union(*self.executor.processing().values())
        except Exception:  # a client that is closed
            return set()

    def _serial(self):
        for k, item in enumerate(self.items):
            if self._stopped:
                return
            yield k, self.task(item)

    def _map(self):
        # one by one where the executor can (pools of multiprocessing only by imap)
        run = getattr(self.executor, "imap", None) or self.executor.map
        for start in range(0, len(self.items), _CHUNK):
            if self._stopped:
                return
            chunk = self.items[start : start + _CHUNK]
            try:
                results = iter(run(self.task, chunk))
                for k in range(start, start + len(chunk)):
                    result = next(results)
                    yield k, result
            except Exception as error:
                self.error = error
                return

    def _submit(self):
        done: queue.SimpleQueue = queue.SimpleQueue()
        # dask takes equal calls for one and remembers their failure
        options = {"pure": False} if _is_dask(self.executor) else {}
        try:
            for k, item in enumerate(self.items):
                future = self.executor.submit(self.task, item, **options)
                self._futures[k] = future
                future.add_done_callback(lambda _, k=k: done.put(k))
        except Exception as error:
            self.error = error
            self.stop()
        try:
            while self._futures:
                future = self._futures.pop(k := done.get(), None)
                if future is None:
                    continue
                try:
                    result = future.result()
                except Exception as error:
                    self.error = self.error or error
                    self.stop()
                    continue
                yield k, result
        finally:  # interrupted: nothing more is started
            self.stop()


def check_executor(executor, *payload, remedy: str) -> None:
    """Refuse an executor that cannot work, before the work starts.

    Parameters
    ----------
    executor : object or None
    *payload
        What is sent to every worker.
    remedy : str
        What to do about a part that cannot be sent, in words.

    Raises
    ------
    TypeError
        If it has neither ``submit`` nor ``map``, or if it runs in other processes and a part of
        the payload cannot be pickled.
    """
    if executor is None:
        return
    if not (hasattr(executor, "submit") or hasattr(executor, "map")):
        raise TypeError(
            f"executor must have submit or map, got {type(executor).__name__}; use one of "
            "concurrent.futures or a dask.distributed.Client"
        )
    module = type(executor).__module__
    if _is_dask(executor):
        from distributed.protocol.pickle import dumps
    elif isinstance(executor, ProcessPoolExecutor) or module.startswith("multiprocessing"):
        dumps = pickle.dumps
    else:
        return
    for part in payload:
        try:
            dumps(part)
        except Exception as error:
            name = getattr(part, "__qualname__", type(part).__name__)
            raise TypeError(
                f"{name} cannot be sent to the processes of {type(executor).__name__} "
                f"({type(error).__name__}: {error}); {remedy}"
            ) from error


def _is_dask(executor) -> bool:
    return type(executor).__module__.split(".")[0] == "distributed"
