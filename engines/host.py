"""Buffers in ordinary memory, for every backend that computes on the CPU."""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np

from kinograph.engines.protocol import Array

__all__ = ["NUMPY_DTYPES", "HostBuffer", "HostTable", "adds_bytes_exactly", "memory_bytes", "one_by_one"]

NUMPY_DTYPES: dict[str, type[Any]] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "uint8": np.uint8,
    "int64": np.int64,
}


@functools.cache
def adds_bytes_exactly(flags: str = "/proc/cpuinfo") -> bool:
    """Whether the processor adds up products of bytes without overflow: all but those of x86 without VNNI.

    On those ONNX Runtime's products of bytes take as long as those of floats, be they exact or not.
    `flags` is the file that says what it can do; where that cannot be read, it is taken not to.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    try:
        with open(flags, encoding="utf-8") as file:  # noqa: PTH123
            found = next((line for line in file if line.startswith("flags")), "")
    except OSError:
        return False
    return not {"avx_vnni", "avx512_vnni"}.isdisjoint(found.split())


class HostBuffer:
    """A `Buffer` around a numpy array; `array` is the memory itself."""

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        self.array: Array = np.zeros(shape, dtype=NUMPY_DTYPES[dtype])

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    def write(self, array: Array) -> None:
        if array.shape != self.array.shape or array.dtype != self.array.dtype:
            raise ValueError(f"got {array.dtype} {array.shape} for a buffer of {self.array.dtype} {self.array.shape}")
        self.array[...] = array

    def read(self) -> Array:
        return self.array.copy()

    def fetch(self) -> Callable[[], Array]:
        array = self.read()
        return lambda: array

    def close(self) -> None:
        self.array = np.empty(0, dtype=self.array.dtype)


class HostTable:
    """A `Table` of host buffers."""

    def __init__(self, rows: Array) -> None:
        self._rows = [HostBuffer(rows.shape[1:], str(rows.dtype)) for _ in rows]
        for buffer, row in zip(self._rows, rows, strict=True):
            buffer.write(row)

    def __getitem__(self, row: int) -> HostBuffer:
        return self._rows[row]

    def close(self) -> None:
        for row in self._rows:
            row.close()


def one_by_one(body: Callable[[int], None], count: int) -> Iterator[int]:
    """`Device.repeat` where every run is done when it returns."""
    for number in range(count):
        body(number)
        yield number


def memory_bytes() -> int:
    """The machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
