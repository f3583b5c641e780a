"""Long calls into C++, which signals and other threads can end.

Python's signal handlers run in the main thread, between two of its instructions: not while it waits for a step that
takes minutes in C++. So such a call is another thread's, and the one that waits for it stays awake.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from kinograph.errors import Interrupted

__all__ = ["Worker"]

T = TypeVar("T")

_GLANCE = 0.05  # seconds between two looks at whether it was cancelled


class Worker:
    """A thread that makes one call at a time, until `cancelled` is set or a signal's handler raises."""

    def __init__(self, cancelled: threading.Event) -> None:
        self._cancelled = cancelled
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kinograph-engine")
        self._thread.submit(int).result()  # it is there from now on: to start it is no moment for a signal

    def call(self, work: Callable[[], T], stop: Callable[[], None]) -> T:
        """What `work` gives. Raises what it raises, what a signal's handler raises, or Interrupted.

        In the last two cases `stop` has been called, which makes `work` end early, be it now or when it begins. Nothing
        runs any more when this is left, so that what the call uses may be freed.
        """
        try:
            self.check()
            future = self._thread.submit(work)
            while not future.done():
                with contextlib.suppress(TimeoutError):
                    future.exception(_GLANCE)
                if not future.done():
                    self.check()
        except BaseException:
            stop()
            self._settle()
            raise
        return future.result()

    def check(self) -> None:
        """Raises Interrupted where it was cancelled."""
        if self._cancelled.is_set():
            raise Interrupted("cancelled")

    def close(self) -> None:
        self._thread.shutdown()

    def _settle(self) -> None:
        """Wait until the thread is idle: another Ctrl-C does not make it so."""
        idle: Future[int] | None = None
        while idle is None or not idle.done():
            try:
                idle = idle or self._thread.submit(int)
                idle.result()
            except (KeyboardInterrupt, SystemExit):
                continue
