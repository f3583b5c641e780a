"""A tiny deterministic engine, for tests and for programs that integrate Kinograph without waiting for a model.

It obeys every rule of the protocol and computes nothing of meaning: floats are a bounded function of the inputs,
frames a moving gradient whose phase depends on the latents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from kinograph.engines.footprint import Footprint
from kinograph.engines.host import HostBuffer, HostTable, memory_bytes, one_by_one
from kinograph.errors import EngineError

if TYPE_CHECKING:
    from kinograph.engines.protocol import Array, Axes, Buffer, Contents
    from kinograph.manifest import Variant

__all__ = ["FakeDevice", "FakeEngine"]


class FakeDevice:
    """A `Device` that needs no graphs. `opened` and `closed` count engines, so that a test can see a leak."""

    name = "fake"
    backend = "fake"
    asynchronous = False
    memory_bytes = memory_bytes()
    variants = ("fp32",)

    def __init__(self) -> None:
        self.cancelled = False
        self.opened = 0
        self.closed = 0

    def empty(self, shape: tuple[int, ...], dtype: str) -> HostBuffer:
        return HostBuffer(shape, dtype)

    def table(self, rows: Array) -> HostTable:
        return HostTable(rows)

    def prepare(self, bundle: Contents, precisions: Mapping[str, str], axes: Mapping[str, Axes]) -> Iterator[str]:
        return iter(())

    def footprint(self, bundle: Contents, component: str, precision: str, sizes: Mapping[str, int]) -> Footprint:
        return Footprint(0, 0)

    def repeat(self, body: Callable[[int], None], count: int) -> Iterator[int]:
        return one_by_one(body, count)

    def open(self, bundle: Contents, component: str, precision: str) -> FakeEngine:
        self.opened += 1
        return FakeEngine(self, component, bundle.component(component).variants[precision])

    def close(self) -> None: ...

    def __enter__(self) -> FakeDevice:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class FakeEngine:
    """Fills every output from the means of the inputs; `next_X` is X, a little smaller."""

    def __init__(self, device: FakeDevice, component: str, variant: Variant) -> None:
        self.component = component
        self.inputs = {tensor.name: tensor for tensor in variant.inputs}
        self.outputs = {tensor.name: tensor for tensor in variant.outputs}
        self._device = device
        self._buffers: dict[str, HostBuffer] = {}
        self._closed = False

    def bind(self, name: str, buffer: Buffer) -> None:
        if name not in self.inputs and name not in self.outputs:
            raise EngineError(f"{self.component} has no input or output {name!r}")
        if not isinstance(buffer, HostBuffer):
            raise EngineError(f"{self.component}: {name} needs a host buffer, got {type(buffer).__name__}")
        self._buffers[name] = buffer

    def run(self) -> None:
        missing = (self.inputs.keys() | self.outputs.keys()) - self._buffers.keys()
        if self._closed or missing:
            raise EngineError(
                f"{self.component} cannot run: {'closed' if self._closed else f'unbound {sorted(missing)}'}"
            )
        phase = sum(float(np.mean(self._buffers[name].array)) for name in self.inputs)
        for name in self.outputs:
            target = self._buffers[name].array
            past = self._buffers.get(name.removeprefix("next_"))
            if name.startswith("next_") and past is not None and past.shape == target.shape:
                target[...] = past.array * 0.5
            else:
                target[...] = _pattern(target.shape, target.dtype, phase)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._device.closed += 1
            self._buffers.clear()


def _pattern(shape: tuple[int, ...], dtype: np.dtype[Any], phase: float) -> Array:
    ramp = np.sin(np.arange(int(np.prod(shape)), dtype=np.float64) * 0.01 + phase)
    scaled = (ramp + 1) * 127 if dtype == np.uint8 else ramp
    return scaled.reshape(shape).astype(dtype)
