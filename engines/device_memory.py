"""Memory of a GPU, in pieces that are used again, and the buffers and tables that lie in it.

What is freed is kept and handed out again, lowest address first: a run that asks for the same sizes in the same order
gets the same addresses, and so finds the CUDA graphs of the run before.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from kinograph.engines.gpu import ALIGNMENT, Gpu
from kinograph.engines.host import NUMPY_DTYPES
from kinograph.engines.protocol import Array
from kinograph.errors import EngineError, MemoryLimitError

__all__ = ["DeviceBuffer", "DeviceMemory", "DeviceTable"]


class DeviceMemory:
    """Hands out memory of `gpu`. `held` is what the GPU lends, in bytes, `peak` the most that it ever was."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self.held = 0
        self.peak = 0
        self._sizes: dict[int, int] = {}  # of everything held, by address
        self._free: dict[int, list[int]] = {}  # addresses, ascending, by size
        self._on_trim: list[Callable[[], None]] = []

    def on_trim(self, forget: Callable[[], None]) -> None:
        """Call `forget` before any memory goes back to the GPU: whoever remembers addresses must forget them."""
        self._on_trim.append(forget)

    def take(self, size: int) -> int:
        """The address of at least `size` bytes. Raises MemoryLimitError where a trim makes no room for them either."""
        size = max(1, -(-size // ALIGNMENT)) * ALIGNMENT
        if free := self._free.get(size):
            return free.pop(0)
        try:
            address = self.gpu.allocate(size)
        except MemoryLimitError:
            if not self.trim():
                raise
            address = self.gpu.allocate(size)
        self._sizes[address] = size
        self.held += size
        self.peak = max(self.peak, self.held)
        return address

    def give(self, address: int) -> None:
        """Take back what `take` gave."""
        bisect.insort(self._free.setdefault(self._sizes[address], []), address)

    def trim(self) -> int:
        """Give the GPU everything back that is not in use; returns how many bytes that was."""
        before = self.held
        if any(self._free.values()):
            for forget in self._on_trim:
                forget()
            self.gpu.synchronize()
        for size, addresses in self._free.items():
            while addresses:
                address = addresses.pop()
                del self._sizes[address]
                self.held -= size
                self.gpu.free(address)
        return before - self.held


class DeviceBuffer:
    """A `Buffer` at an `address` of a GPU. One that is a `row` of a table does not own its memory."""

    def __init__(self, memory: DeviceMemory, shape: tuple[int, ...], dtype: str, address: int | None = None) -> None:
        self.shape = shape
        self.dtype: np.dtype[Any] = np.dtype(NUMPY_DTYPES[dtype])
        self.bytes = math.prod(shape) * self.dtype.itemsize
        self._memory = memory
        self.row = address is not None
        self.address = memory.take(self.bytes) if address is None else address
        if not self.row:
            try:
                memory.gpu.clear(self.address, self.bytes)
            except BaseException:
                self.close()
                raise

    def write(self, array: Array) -> None:
        if array.shape != self.shape or array.dtype != self.dtype:
            raise ValueError(f"got {array.dtype} {array.shape} for a buffer of {self.dtype} {self.shape}")
        self._memory.gpu.upload(self._at(), array)

    def read(self) -> Array:
        return self.fetch()()

    def fetch(self) -> Callable[[], Array]:
        wait = self._memory.gpu.fetch(self._at(), self.bytes)
        return lambda: wait().view(self.dtype).reshape(self.shape)

    def close(self) -> None:
        if not self.row and self.address:
            self._memory.give(self.address)
        self.address = 0

    def _at(self) -> int:
        if not self.address:
            raise EngineError("a buffer that was closed is used")
        return self.address


class DeviceTable:
    """Arrays of one shape and dtype as rows in one piece of memory, each where an engine can read it: a `Table`."""

    def __init__(self, memory: DeviceMemory, rows: Array) -> None:
        bytes_each = rows[0].nbytes
        stride = -(-bytes_each // ALIGNMENT) * ALIGNMENT
        padded = np.zeros((len(rows), stride), np.uint8)
        padded[:, :bytes_each] = np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), bytes_each)
        self._memory = memory
        self._address = memory.take(padded.nbytes)
        self._rows = [
            DeviceBuffer(memory, rows.shape[1:], str(rows.dtype), self._address + number * stride)
            for number in range(len(rows))
        ]
        try:
            memory.gpu.upload(self._address, padded)
        except BaseException:
            self.close()
            raise

    def __getitem__(self, row: int) -> DeviceBuffer:
        return self._rows[row]

    def __iter__(self) -> Iterator[DeviceBuffer]:
        return iter(self._rows)

    def close(self) -> None:
        for row in self._rows:
            row.close()
        if self._address:
            self._memory.give(self._address)
        self._address = 0
