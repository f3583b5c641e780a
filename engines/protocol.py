"""The seam between the runtime and a backend.

A `Device` makes buffers and opens components; an `Engine` runs one component on buffers that were bound to its inputs
and outputs. Buffers are bound, not passed, because that is what a CUDA graph and TensorRT need, and because it says
who owns memory: **the caller owns every buffer**; an engine only remembers which ones to use. An output may never be
bound to the same buffer as an input.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from kinograph.manifest import Component, Tensor

__all__ = ["Buffer", "Contents", "Device", "Engine"]

Array = npt.NDArray[Any]


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
        """The contents, as an array the caller owns."""
        ...

    def close(self) -> None:
        """Free the memory. The buffer must not be bound to an engine that will run again."""
        ...


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
        """Run once on the bound buffers; returns when the outputs can be read. Raises EngineError."""
        ...

    def close(self) -> None: ...


class Contents(Protocol):
    """What an engine reads of a bundle: a `Bundle`, or something that stands for one that is still being made."""

    def read(self, name: str) -> bytes: ...

    def map(self, name: str) -> npt.NDArray[np.uint8]: ...

    def component(self, name: str) -> Component: ...


class Device(Protocol):
    """One device of one backend. A context manager: leaving it closes what it opened."""

    @property
    def name(self) -> str:
        """What the user calls it: `cpu`, `cuda:0`."""
        ...

    @property
    def backend(self) -> str:
        """The engine's name and version, for reports and metadata."""
        ...

    def empty(self, shape: tuple[int, ...], dtype: str) -> Buffer:
        """A new buffer of zeros; `dtype` is the manifest's name for it."""
        ...

    def open(self, bundle: Contents, component: str, precision: str) -> Engine:
        """Load a component. Raises EngineError, or BundleError where the bundle lacks it."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc_info: object) -> None: ...
