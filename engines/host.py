"""Buffers in ordinary memory, for every backend that computes on the CPU."""

from __future__ import annotations

import os
from typing import Any

import ml_dtypes
import numpy as np

from kinograph.engines.protocol import Array

__all__ = ["NUMPY_DTYPES", "HostBuffer", "memory_bytes"]

NUMPY_DTYPES: dict[str, type[Any]] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "uint8": np.uint8,
    "int64": np.int64,
}


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

    def close(self) -> None:
        self.array = np.empty(0, dtype=self.array.dtype)


def memory_bytes() -> int:
    """The machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
