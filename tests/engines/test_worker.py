"""Calls that are ended while they run: by a signal, by another thread; nothing runs any more afterwards."""

from __future__ import annotations

import contextlib
import gc
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from random import Random
from types import FrameType

import pytest

from kinograph.engines.worker import Worker
from kinograph.errors import Interrupted


class Call:
    """A long call: it runs until it is stopped."""

    def __init__(self) -> None:
        self.begun, self.stopped, self.running = threading.Event(), threading.Event(), False

    def __call__(self) -> None:
        self.running = True
        self.begun.set()
        assert self.stopped.wait(60)
        self.running = False
        raise RuntimeError("stopped")

    def when_begun(self, then: object) -> None:
        threading.Thread(target=lambda: self.begun.wait(60) and then()).start()  # type: ignore[operator]


@pytest.fixture
def cancelled() -> threading.Event:
    return threading.Event()


@pytest.fixture
def worker(cancelled: threading.Event) -> Iterator[Worker]:
    worker = Worker(cancelled.is_set)
    yield worker
    worker.close()


@pytest.fixture
def alarm() -> Iterator[None]:
    """SIGUSR1 raises KeyboardInterrupt, as SIGINT does."""

    def handler(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, handler)
    yield
    signal.signal(signal.SIGUSR1, before)


def send() -> None:
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)


def test_what_is_called_returns_or_raises(worker: Worker) -> None:
    def fail() -> None:
        raise TimeoutError("its own")

    assert worker.call(lambda: threading.current_thread() is threading.main_thread(), pytest.fail) is False
    with pytest.raises(TimeoutError, match="its own"):
        worker.call(fail, lambda: None)


def test_another_thread_ends_a_call(worker: Worker, cancelled: threading.Event) -> None:
    call = Call()
    call.when_begun(cancelled.set)
    with pytest.raises(Interrupted, match="cancelled"):
        worker.call(call, call.stopped.set)
    assert call.begun.is_set() and not call.running
    with pytest.raises(Interrupted):
        worker.call(pytest.fail, lambda: None)  # type: ignore[arg-type]
    cancelled.clear()
    assert worker.call(lambda: 3, pytest.fail) == 3


@pytest.mark.usefixtures("alarm")
def test_a_signal_ends_a_call(worker: Worker) -> None:
    call = Call()
    call.when_begun(send)
    with pytest.raises(KeyboardInterrupt):
        worker.call(call, call.stopped.set)
    assert call.begun.is_set() and not call.running
    assert worker.call(lambda: 3, pytest.fail) == 3


@pytest.mark.usefixtures("alarm")
def test_a_second_signal_does_not_leave_it_running(worker: Worker) -> None:
    call = Call()
    call.when_begun(send)

    def again() -> None:
        while worker._jobs.empty():  # until it is waited for
            time.sleep(0.01)
        send()
        time.sleep(0.2)
        call.stopped.set()

    def stop() -> None:
        threading.Thread(target=again).start()

    with pytest.raises(KeyboardInterrupt):
        worker.call(call, stop)
    assert not call.running and call.stopped.is_set()


@pytest.mark.usefixtures("alarm")
def test_signals_may_come_at_any_moment(worker: Worker) -> None:
    """Within whatever it waits with, too: a lock that is left locked there would hang the next call."""
    random = Random(0)
    before = signal.signal(signal.SIGALRM, signal.getsignal(signal.SIGUSR1))
    try:
        for _ in range(300):
            stopped: list[int] = []

            def work(stopped: list[int] = stopped) -> None:
                while not stopped:
                    time.sleep(0.0002)

            with contextlib.suppress(KeyboardInterrupt):
                signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 2e-3))
                worker.call(work, lambda stopped=stopped: stopped.append(1))  # type: ignore[misc]
    finally:
        signal.signal(signal.SIGALRM, before)
    assert worker.call(lambda: 3, pytest.fail) == 3


def test_a_handler_that_does_not_raise_ends_nothing(worker: Worker) -> None:
    call, heard = Call(), threading.Event()
    before = signal.signal(signal.SIGUSR1, lambda number, frame: (heard.set(), call.stopped.set()))
    call.when_begun(send)
    try:
        with pytest.raises(RuntimeError, match="stopped"):
            worker.call(call, pytest.fail)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert heard.is_set()


def test_its_thread_ends_with_it(cancelled: threading.Event) -> None:
    def threads() -> int:
        return sum(thread.name == "kinograph-engine" for thread in threading.enumerate())

    gc.collect()
    before = threads()
    closed, forgotten = Worker(cancelled.is_set), Worker(cancelled.is_set)
    assert threads() == before + 2
    closed.close()
    closed.close()
    del forgotten
    deadline = time.monotonic() + 60
    while threads() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threads() == before


def test_it_works_on_when_the_main_thread_has_ended() -> None:
    script = """
import threading, time
from kinograph.engines.worker import Worker

def work():
    threading.main_thread().join()
    time.sleep(0.2)
    print(Worker(lambda: False).call(lambda: 3, print))

threading.Thread(target=work).start()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("3\n", "")
