"""CUDA by `cuda.core`: the one file that talks to it, and that turns its errors into ours."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from kinograph.errors import EngineError, KinographError, MemoryLimitError, MissingExtraError

if TYPE_CHECKING:
    from kinograph.engines.gpu import Graph
    from kinograph.engines.protocol import Array

__all__ = ["CudaGpu", "count_gpus"]

_OUT_OF_MEMORY = "OUT_OF_MEMORY"
_STAGE_BYTES = 32 << 20  # pinned memory that uploads pass through, a piece at a time


def count_gpus() -> int:
    """How many GPUs CUDA finds. Raises MissingExtraError without `cuda.core`, EngineError without a driver."""
    core = _core()
    try:
        return len(core.Device.get_all_devices())
    except Exception as exc:  # which is what it raises depends on what is missing
        first = str(exc).partition(". ")[0]
        raise EngineError(f"CUDA cannot be started ({first}). Check that NVIDIA's driver is installed") from exc


class CudaGpu:
    """A `Gpu`: CUDA's device `index`, with a stream and memory of its own."""

    def __init__(self, index: int = 0) -> None:
        core = _core()
        there = count_gpus()
        if index >= there:
            known = ", ".join(f"cuda:{number}" for number in range(there)) or "none"
            raise EngineError(f"there is no GPU cuda:{index}; found: {known}. Check CUDA_VISIBLE_DEVICES")
        self.index = index
        with _told(f"cuda:{index} could not be opened"):
            self._device = core.Device(index)
            self._device.set_current()
            self._stream = self._device.create_stream()
            self._pinned = core.LegacyPinnedMemoryResource()
        self._view = core.Buffer.from_handle
        self._buffers: dict[int, Any] = {}
        self._stage: Any = None
        self._staged: Any = None
        self._landings: dict[int, list[Any]] = {}  # pinned buffers that nobody reads from, by size

    @property
    def name(self) -> str:
        return str(self._device.name)

    @property
    def capability(self) -> int:
        major, minor = self._device.compute_capability
        return 10 * int(major) + int(minor)

    @functools.cached_property
    def driver(self) -> str:
        version = _checked(_bindings().cuDriverGetVersion())
        return f"{version // 1000}.{version % 1000 // 10}"

    @property
    def stream(self) -> int:
        return int(self._stream.handle)

    def memory(self) -> tuple[int, int]:
        with _told("the GPU's memory could not be read"):
            self._device.set_current()
            free, total = _checked(_bindings().cuMemGetInfo())
        return int(free), int(total)

    def allocate(self, size: int) -> int:
        with _told(f"the GPU has no {size / 1e6:.0f} MB left"):
            buffer = self._device.allocate(size, stream=self._stream)
        self._buffers[address := int(buffer.handle)] = buffer
        return address

    def free(self, address: int) -> None:
        self._buffers.pop(address).close(self._stream)

    def clear(self, address: int, size: int) -> None:
        with _told("memory could not be cleared"):
            self._view(address, size).fill(0, stream=self._stream)

    def upload(self, address: int, array: Array) -> None:
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        with _told("data could not be copied to the GPU"):
            if self._stage is None:
                self._stage = self._pinned.allocate(_STAGE_BYTES)
            for start in range(0, data.size, _STAGE_BYTES):
                piece = data[start : start + _STAGE_BYTES]
                if self._staged is not None:
                    self._staged.sync()  # the last piece is on its way no longer
                _array(self._stage, piece.size)[...] = piece
                self._view(address + start, piece.size).copy_from(
                    self._view(int(self._stage.handle), piece.size), stream=self._stream
                )
                self._staged = self._stream.record()

    def copy(self, address: int, source: int, size: int) -> None:
        with _told("memory could not be copied"):
            self._view(address, size).copy_from(self._view(source, size), stream=self._stream)

    def fetch(self, address: int, size: int) -> Callable[[], Array]:
        with _told("data could not be copied from the GPU"):
            free = self._landings.setdefault(size, [])
            landing = free.pop() if free else self._pinned.allocate(size)
            self._view(int(landing.handle), size).copy_from(self._view(address, size), stream=self._stream)
            done = self._stream.record()

        def wait() -> Array:
            with _told("the GPU failed"):
                done.sync()
            data = _array(landing, size).copy()
            free.append(landing)
            return data

        return wait

    def synchronize(self) -> None:
        with _told("the GPU failed"):
            self._stream.sync()

    def capture(self, work: Callable[[], None]) -> Graph:
        with _told("the loop could not be captured as a CUDA graph; --no-cuda-graph does without"):
            builder = self._stream.create_graph_builder()
            try:
                builder.begin_building("thread_local")
                try:
                    work()
                finally:
                    builder.end_building()
                return _CudaGraph(builder.complete(), self._stream)
            finally:
                builder.close()

    def close(self) -> None:
        self._stream.sync()
        for buffer in (*self._buffers.values(), *(one for free in self._landings.values() for one in free)):
            buffer.close()
        if self._stage is not None:
            self._stage.close()
        self._buffers.clear()
        self._landings.clear()
        self._stage = None
        self._stream.close()


class _CudaGraph:
    def __init__(self, graph: Any, stream: Any) -> None:
        self._graph, self._stream = graph, stream
        graph.upload(stream)

    def launch(self) -> None:
        with _told("the CUDA graph failed"):
            self._graph.launch(self._stream)

    def close(self) -> None:
        self._graph.close()


def _core() -> Any:
    try:
        import cuda.core
    except ImportError as exc:
        raise MissingExtraError("running on a GPU", "rtx") from exc
    return cuda.core


def _bindings() -> Any:
    from cuda.bindings import driver

    return driver


def _array(buffer: Any, size: int) -> Array:
    """Pinned memory as uint8 [size], in place."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(int(buffer.handle)))


def _checked(result: tuple[Any, ...]) -> Any:
    """The values of a call of `cuda.bindings`, which returns its error first."""
    error, *values = result
    if int(error) != 0:
        raise RuntimeError(str(error))
    return values[0] if len(values) == 1 else values


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Turn what goes wrong inside into our errors; `what` says what could not be done."""
    try:
        yield
    except KinographError:
        raise
    except Exception as exc:  # cuda.core's errors share no base class of their own
        if _OUT_OF_MEMORY in str(exc):
            raise MemoryLimitError(f"{what}: {exc}. Ask for a smaller --size or fewer --frames") from exc
        raise EngineError(f"{what}: {exc}. Check `kinograph doctor`, or use --device cpu") from exc
