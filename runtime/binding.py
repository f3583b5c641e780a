"""An engine together with the buffers it runs on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from kinograph.engines.protocol import Buffer, Device, Engine
from kinograph.manifest import resolve_shape

__all__ = ["Binding"]


class Binding:
    """Owns a buffer of zeros for every input and output of an engine, at sizes given by `axes`.

    Several engines of the same component (the experts of a two-expert model) can take turns on one set of buffers.
    A context manager: leaving it frees the buffers.
    """

    def __init__(self, device: Device, engine: Engine, axes: Mapping[str, int]) -> None:
        self._device = device
        self._engine = engine
        self._buffers: dict[str, Buffer] = {}
        self._aside: dict[tuple[str, tuple[int, ...]], Buffer] = {}
        self.resize(axes)

    def resize(self, axes: Mapping[str, int]) -> None:
        """Run at these sizes from now on. What gets another shape gets a buffer of zeros for it.

        The buffer it had is kept as it is until the sizes come back to it; what keeps its shape keeps its buffer.
        """
        for tensor in (*self._engine.inputs.values(), *self._engine.outputs.values()):
            shape = resolve_shape(tensor.shape, axes)
            before = self._buffers.get(tensor.name)
            if before is not None and before.shape == shape:
                continue
            if before is not None:
                self._aside[tensor.name, before.shape] = before
            kept = self._aside.pop((tensor.name, shape), None)
            self._buffers[tensor.name] = kept or self._device.empty(shape, tensor.dtype)
        self.attach(self._engine)

    def attach(self, engine: Engine) -> None:
        """Let `engine` run on these buffers from now on; it must have the same inputs and outputs."""
        self._engine = engine
        for name, buffer in self._buffers.items():
            engine.bind(name, buffer)

    def __getitem__(self, name: str) -> Buffer:
        return self._buffers[name]

    def __contains__(self, name: str) -> bool:
        return name in self._buffers

    def write(self, name: str, array: npt.NDArray[Any]) -> None:
        """Copy `array` into the buffer called `name`."""
        self._buffers[name].write(array)

    def run(self) -> None:
        self._engine.run()

    def advance(self) -> None:
        """What came out as `next_X` becomes X: the buffers of the pair change places, nothing is copied."""
        for name in self._engine.outputs:
            target = name.removeprefix("next_")
            if target != name and target in self._engine.inputs:
                self._buffers[name], self._buffers[target] = self._buffers[target], self._buffers[name]
                self._engine.bind(name, self._buffers[name])
                self._engine.bind(target, self._buffers[target])

    def hand_over(self, other: Binding) -> None:
        """Give `other` every `next_X` it has an input X for: the step from a stream's first call to its second."""
        for name, buffer in self._buffers.items():
            target = name.removeprefix("next_")
            if target != name and target in other:
                other.write(target, buffer.read())

    def close(self) -> None:
        for buffer in (*self._buffers.values(), *self._aside.values()):
            buffer.close()
        self._buffers.clear()
        self._aside.clear()

    def __enter__(self) -> Binding:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
