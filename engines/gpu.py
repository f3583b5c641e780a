"""The seam between the TensorRT engines and CUDA: one GPU, one stream.

Everything asked of a `Gpu` is done in the order it was asked for, and later: only `download`, what `fetch` returned and
`synchronize` wait. Addresses are plain integers, because they are what TensorRT is given and what a CUDA graph
remembers. `cuda.py` is the real one; `fake_gpu.py` does the same in ordinary memory, and checks its callers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from kinograph.engines.protocol import Array

__all__ = ["ALIGNMENT", "Gpu", "Graph"]

ALIGNMENT = 256  # bytes; what TensorRT asks of every address


class Graph(Protocol):
    """Work that was captured, to be done again and again with a single launch."""

    def launch(self) -> None: ...

    def close(self) -> None: ...


class Gpu(Protocol):
    """A GPU. Every call raises EngineError where CUDA fails, MemoryLimitError where memory is short."""

    @property
    def index(self) -> int:
        """Its number, as in `cuda:0`."""
        ...

    @property
    def name(self) -> str:
        """What its maker calls it."""
        ...

    @property
    def capability(self) -> int:
        """The compute capability: 89 is 8.9, Ada Lovelace."""
        ...

    @property
    def driver(self) -> str:
        """The version of CUDA that the driver brings."""
        ...

    @property
    def stream(self) -> int:
        """The handle of the stream."""
        ...

    def memory(self) -> tuple[int, int]:
        """Bytes that are free, and bytes in all."""
        ...

    def allocate(self, size: int) -> int:
        """The address of `size` bytes, a multiple of `ALIGNMENT`, with anything in them."""
        ...

    def free(self, address: int) -> None: ...

    def clear(self, address: int, size: int) -> None:
        """Fill with zeros."""
        ...

    def upload(self, address: int, array: Array) -> None:
        """Copy an array in; it may be changed as soon as this returns."""
        ...

    def copy(self, address: int, source: int, size: int) -> None:
        """Copy `size` bytes from one place on the GPU to another."""
        ...

    def fetch(self, address: int, size: int) -> Callable[[], Array]:
        """Start to copy `size` bytes out; the result, once called, waits for them: uint8 [size]."""
        ...

    def synchronize(self) -> None:
        """Wait until everything asked for is done."""
        ...

    def capture(self, work: Callable[[], None]) -> Graph:
        """What `work` asks of the stream, not done but kept. Nothing may be allocated or waited for in it."""
        ...

    def close(self) -> None:
        """Give everything back. Addresses and graphs are of no more use."""
        ...
