"""Long calls into C++, which signals and other threads can end.

Python's signal handlers run in the main thread, between two of its instructions: not while it waits for a step that
takes minutes in C++. So such a call is another thread's, and the one that waits for it stays awake.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

from kinograph.errors import Interrupted

__all__ = ["Worker"]

T = TypeVar("T")

_Jobs = SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None]

_GLANCE = 0.05  # seconds between two looks at whether it was cancelled


class Worker:
    """A thread that makes one call at a time, until `cancelled` is set or a signal's handler raises.

    No ThreadPoolExecutor: that takes no calls any more once a program's main thread has come to its end, though others
    of its threads go on.
    """

    def __init__(self, cancelled: threading.Event) -> None:
        self._cancelled = cancelled
        self._jobs: _Jobs = SimpleQueue()
        self.close = weakref.finalize(self, self._jobs.put, None)
        threading.Thread(target=_serve, args=(self._jobs,), name="kinograph-engine", daemon=True).start()

    def call(self, work: Callable[[], T], stop: Callable[[], None]) -> T:
        """What `work` gives. Raises what it raises, what a signal's handler raises, or Interrupted.

        In the last two cases `stop` has been called, which makes `work` end early, be it now or when it begins. Nothing
        runs any more when this is left, so that what the call uses may be freed.
        """
        try:
            self._check()
            future = self._submit(work)
            while not future.done():
                with contextlib.suppress(TimeoutError):
                    future.exception(_GLANCE)
                if not future.done():
                    self._check()
        except BaseException:
            stop()
            self._settle()
            raise
        return future.result()

    def _submit(self, work: Callable[[], T]) -> Future[T]:
        future = Future[T]()
        self._jobs.put((work, future))
        return future

    def _check(self) -> None:
        if self._cancelled.is_set():
            raise Interrupted("cancelled")

    def _settle(self) -> None:
        """Wait until the thread is idle: another Ctrl-C does not make it so."""
        idle: Future[int] | None = None
        while idle is None or not idle.done():
            try:
                idle = idle or self._submit(int)
                idle.result()
            except (KeyboardInterrupt, SystemExit):
                continue


def _serve(jobs: _Jobs) -> None:
    while (job := jobs.get()) is not None:
        work, future = job
        try:
            result = work()
        except BaseException as exc:
            future.set_exception(exc)
        else:
            future.set_result(result)
            del result
        del job, work, future  # what a call holds is not held while there is none
