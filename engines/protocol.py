"""The seam between the runtime and a backend.

A `Device` makes buffers and opens components; an `Engine` runs one component on buffers that were bound to its inputs
and outputs. Buffers are bound, not passed, because that is what a CUDA graph and TensorRT need, and because it says
who owns memory: **the caller owns every buffer**; an engine only remembers which ones to use. An output may never be
bound to the same buffer as an input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from kinograph import manifest
    from kinograph.engines.footprint import Footprint
    from kinograph.manifest import Component, Tensor

__all__ = ["Axes", "Buffer", "Contents", "Device", "Engine", "Table"]

Array = npt.NDArray[Any]

Axes = Mapping[str, tuple[int, int]]
"""The least and the greatest size of every axis."""


class Buffer(Protocol):
    """Memory of a fixed shape and dtype on a device."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def write(self, array: Array) -> None:
        """Copy `array` in. Raises ValueError where shape or dtype differ."""
        ...

    def read(self) -> Array:
        """The contents, as an array the caller owns; waits for what was asked of the device before."""
        ...

    def fetch(self) -> Callable[[], Array]:
        """Start to read: the contents are those of now, and the result waits for them when it is called."""
        ...

    def close(self) -> None:
        """Free the memory. The buffer must not be bound to an engine that will run again."""
        ...


class Table(Protocol):
    """Rows of one shape and dtype, each of which can be bound as an input. It owns their memory."""

    def __getitem__(self, row: int) -> Buffer: ...

    def close(self) -> None: ...


class Engine(Protocol):
    """A component, loaded and ready to run.

    `inputs` and `outputs` are what the engine takes, which may differ from the manifest in dtype (a CPU runs bfloat16
    graphs in float32), never in name or shape.
    """

    @property
    def inputs(self) -> Mapping[str, Tensor]: ...

    @property
    def outputs(self) -> Mapping[str, Tensor]: ...

    def bind(self, name: str, buffer: Buffer) -> None:
        """Use `buffer` for the input or output `name` from the next run on."""
        ...

    def run(self) -> None:
        """Run once on the bound buffers: what is read of them afterwards is what came out. Raises EngineError."""
        ...

    def close(self) -> None: ...


class Contents(Protocol):
    """What an engine reads of a bundle: a `Bundle`, or something that stands for one that is still being made."""

    def read(self, name: str) -> bytes: ...

    def map(self, name: str) -> npt.NDArray[np.uint8]: ...

    def component(self, name: str) -> Component: ...

    def size(self, name: str) -> int:
        """The bytes of a file."""
        ...

    def private(self, name: str) -> int:
        """How many bytes of a file's map are not the file's, and stay in memory for as long as it is mapped."""
        ...

    def sha256(self, name: str) -> str:
        """The sha256 of a file."""
        ...

    @property
    def engines(self) -> tuple[manifest.Engine, ...]:
        """Engines that were built beforehand."""
        ...


class Device(Protocol):
    """One device of one backend. A context manager: leaving it closes what it opened.

    To make `cancelled` true, from any thread or a signal's handler, is to ask it to stop what it does, which then
    raises Interrupted as soon as the device can, and so does what is begun before it is false again. A device that does
    nothing for long may leave that to whoever iterates.
    """

    cancelled: bool

    @property
    def name(self) -> str:
        """What the user calls it: `cpu`, `cuda:0`."""
        ...

    @property
    def backend(self) -> str:
        """The engine's name and version, for reports and metadata."""
        ...

    @property
    def asynchronous(self) -> bool:
        """Whether it goes on with what it was asked for while its caller does something else."""
        ...

    @property
    def memory_bytes(self) -> int:
        """All the memory there is for weights, activations and latents."""
        ...

    @property
    def variants(self) -> tuple[str, ...]:
        """The variants it runs well, best first; quantised ones count only where they passed their gate."""
        ...

    def empty(self, shape: tuple[int, ...], dtype: str) -> Buffer:
        """A new buffer of zeros; `dtype` is the manifest's name for it."""
        ...

    def table(self, rows: Array) -> Table:
        """The rows [N, …] of an array, to be bound one at a time."""
        ...

    def prepare(self, bundle: Contents, precisions: Mapping[str, str], axes: Mapping[str, Axes]) -> Iterator[str]:
        """Do beforehand what takes minutes, for components at `precisions` and the sizes they will run at.

        Yields what is about to be done, and nothing where there is nothing to do.
        """
        ...

    def open(self, bundle: Contents, component: str, precision: str) -> Engine:
        """Load a component. Raises EngineError, or BundleError where the bundle lacks it."""
        ...

    def footprint(self, bundle: Contents, component: str, precision: str, sizes: Mapping[str, int]) -> Footprint:
        """The memory that a component is going to take at these sizes of its axes; nothing is loaded."""
        ...

    def repeat(self, body: Callable[[int], None], count: int) -> Iterator[int]:
        """Call `body` with 0 … `count` − 1; yields, whenever there is a pause, the last that is done.

        `body` binds and runs engines and nothing else: a device may note what it runs, and do several in one launch.
        """
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc_info: object) -> None: ...
