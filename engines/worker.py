"""Long calls into C++, which signals and other threads can end.

Python's signal handlers run in the main thread, between two of its instructions: not while it waits for a step that
takes minutes in C++. So such a call is another thread's, and the one that waits for it stays awake.

What waits here must bear an exception at any instruction. Only queues do, which are C: a Condition that is interrupted
while it is entered is locked for ever, and a Future, an Event or a ThreadPoolExecutor with it.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from kinograph.errors import Interrupted

__all__ = ["Worker"]

T = TypeVar("T")

_Answer = SimpleQueue[tuple[Any, BaseException | None]]
_Jobs = SimpleQueue[tuple[Callable[[], Any], _Answer] | None]

_GLANCE = 0.05  # seconds between two looks at whether it was cancelled


class Worker:
    """A thread that makes one call at a time, until it is `cancelled` or a signal's handler raises."""

    def __init__(self, cancelled: Callable[[], bool]) -> None:
        self._cancelled = cancelled
        self._jobs: _Jobs = SimpleQueue()
        self.close = weakref.finalize(self, self._jobs.put, None)
        threading.Thread(target=_serve, args=(self._jobs,), name="kinograph-engine", daemon=True).start()

    def call(self, work: Callable[[], T], stop: Callable[[], None]) -> T:
        """What `work` gives. Raises what it raises, what a signal's handler raises, or Interrupted.

        In the last two cases `stop` has been called, which makes `work` end early, be it now or when it begins. Nothing
        runs any more when this is left, so that what the call uses may be freed.
        """
        result: T
        error: BaseException | None
        try:
            self._check()
            answer = self._submit(work)
            while True:
                try:
                    result, error = answer.get(timeout=_GLANCE)
                    break
                except Empty:
                    self._check()
        except BaseException:
            stop()
            self._settle()
            raise
        if error is None:
            return result
        try:
            raise error
        finally:
            del error  # which refers to this frame

    def _submit(self, work: Callable[[], Any]) -> _Answer:
        answer: _Answer = SimpleQueue()
        self._jobs.put((work, answer))
        return answer

    def _check(self) -> None:
        if self._cancelled():
            raise Interrupted("cancelled")

    def _settle(self) -> None:
        """Wait until the thread is idle: another Ctrl-C does not make it so."""
        while True:
            try:
                self._submit(int).get()
                return
            except (KeyboardInterrupt, SystemExit):
                continue


def _serve(jobs: _Jobs) -> None:
    while (job := jobs.get()) is not None:
        work, answer = job
        try:
            answer.put((work(), None))
        except BaseException as exc:
            answer.put((None, exc))
        del job, work, answer  # what a call holds is not held while there is none
