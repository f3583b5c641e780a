"""A GPU in ordinary memory, for tests: it checks its callers, and does nothing until it must.

Work is queued, and done when somebody waits, as on a real stream: whoever reads too early reads what was there before.
An address that is not, or no longer, allocated is an error; so are waiting and allocating in a capture. `allocated` and
`graphs` say what was not given back. `fail_at` lets the n-th call fail, whichever it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from kinograph.engines.gpu import ALIGNMENT
from kinograph.errors import EngineError, MemoryLimitError

if TYPE_CHECKING:
    from kinograph.engines.protocol import Array

__all__ = ["FakeGpu", "FakeGraph"]

_FIRST = 1 << 20  # an address that no array has by chance


class FakeGpu:
    """A `Gpu` with `total` bytes of memory, whose calls are written down in `log`."""

    index = 0
    name = "Fake GPU"
    capability = 89
    driver = "13.0"
    stream = 7

    def __init__(self, total: int = 1 << 30) -> None:
        self.total = total
        self.allocated: dict[int, Array] = {}
        self.graphs: list[FakeGraph] = []
        self.log: list[str] = []
        self.closed = False
        self.calls = 0
        self.fail_at: int | None = None
        self._next = _FIRST
        self._queue: list[Callable[[], None]] = []
        self._capturing: list[Callable[[], None]] | None = None

    def call(self, name: str) -> None:
        """Write down a call, of TensorRT's too, and fail where it is the one that shall."""
        if self.closed:
            raise AssertionError(f"{name} after the GPU was closed")
        self.log.append(name)
        self.calls += 1
        if self.calls == self.fail_at:
            raise EngineError(f"{name} fails, as it was told to")

    def enqueue(self, work: Callable[[], None]) -> None:
        """Do `work` when its turn comes: in a capture, whenever the graph is launched."""
        (self._queue if self._capturing is None else self._capturing).append(work)

    def at(self, address: int, size: int) -> Array:
        """The memory there, uint8 [size]."""
        for start, array in self.allocated.items():
            if start <= address and address + size <= start + array.size:
                return array[address - start : address - start + size]
        raise AssertionError(f"{size} bytes at {address} are not allocated")

    def memory(self) -> tuple[int, int]:
        self.call("memory")
        return self.total - sum(array.size for array in self.allocated.values()), self.total

    def allocate(self, size: int) -> int:
        self.call("allocate")
        self._not_captured("allocate")
        if size <= 0 or size % ALIGNMENT:
            raise AssertionError(f"{size} bytes are no multiple of {ALIGNMENT}")
        if size > self.total - sum(array.size for array in self.allocated.values()):
            raise MemoryLimitError(f"the fake GPU has no {size} bytes left")
        address = self._next
        self._next += size + ALIGNMENT  # a gap, so that what runs over an end is found
        self.allocated[address] = np.random.default_rng(address).integers(0, 255, size, np.uint8)
        return address

    def free(self, address: int) -> None:
        self._flush()
        del self.allocated[address]

    def clear(self, address: int, size: int) -> None:
        self.call("clear")
        memory = self.at(address, size)
        self.enqueue(lambda: memory.fill(0))

    def upload(self, address: int, array: Array) -> None:
        self.call("upload")
        self._not_captured("upload")
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).copy()
        memory = self.at(address, data.size)
        self.enqueue(lambda: np.copyto(memory, data))

    def copy(self, address: int, source: int, size: int) -> None:
        self.call("copy")
        memory, data = self.at(address, size), self.at(source, size)
        self.enqueue(lambda: np.copyto(memory, data))

    def fetch(self, address: int, size: int) -> Callable[[], Array]:
        self.call("fetch")
        self._not_captured("fetch")
        memory, landed = self.at(address, size), np.zeros(size, np.uint8)
        self.enqueue(lambda: np.copyto(landed, memory))

        def wait() -> Array:
            self.synchronize()
            return landed.copy()

        return wait

    def synchronize(self) -> None:
        self.call("synchronize")
        self._not_captured("synchronize")
        self._flush()

    @property
    def capturing(self) -> bool:
        return self._capturing is not None

    def capture(self, work: Callable[[], None]) -> FakeGraph:
        self.call("capture")
        self._not_captured("capture")
        self._capturing = []
        try:
            work()
            graph = FakeGraph(self, self._capturing)
        finally:
            self._capturing = None
        self.graphs.append(graph)
        return graph

    def close(self) -> None:
        self.closed = True

    def _flush(self) -> None:
        while self._queue:
            self._queue.pop(0)()

    def _not_captured(self, name: str) -> None:
        if self._capturing is not None:
            raise AssertionError(f"{name} in a capture")


class FakeGraph:
    """What was captured. It runs with the memory that it was captured with, whether that is still there or not."""

    def __init__(self, gpu: FakeGpu, work: list[Callable[[], None]]) -> None:
        self._gpu, self._work = gpu, work
        self.launches = 0

    def launch(self) -> None:
        self._gpu.call("launch")
        if self not in self._gpu.graphs:
            raise AssertionError("a graph is launched after it was closed")
        self.launches += 1
        for work in self._work:
            self._gpu.enqueue(work)

    def close(self) -> None:
        self._gpu.graphs.remove(self)
