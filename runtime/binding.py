"""An engine together with the buffers it runs on."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy.typing as npt

from kinograph.engines.protocol import Buffer, Device, Engine
from kinograph.manifest import resolve_shape

__all__ = ["Binding"]


class Binding:
    """Owns a buffer of zeros for every input and output of an engine, at sizes given by `axes`.

    Inputs that it is `without` belong to somebody else, who gives them with `use`.
    Several engines of the same component (the experts of a two-expert model) can take turns on one set of buffers.
    A context manager: leaving it frees the buffers.
    """

    def __init__(
        self, device: Device, engine: Engine, axes: Mapping[str, int], *, without: Collection[str] = ()
    ) -> None:
        self._engine = engine
        self._buffers: dict[str, Buffer] = {}
        self._lent: dict[str, Buffer] = {}
        try:
            for tensor in (*engine.inputs.values(), *engine.outputs.values()):
                if tensor.name not in without:
                    self._buffers[tensor.name] = device.empty(resolve_shape(tensor.shape, axes), tensor.dtype)
            self.attach(engine)
        except BaseException:
            self.close()
            raise

    def attach(self, engine: Engine) -> None:
        """Let `engine` run on these buffers from now on; it must have the same inputs and outputs."""
        self._engine = engine
        for name, buffer in (*self._buffers.items(), *self._lent.items()):
            engine.bind(name, buffer)

    def use(self, name: str, buffer: Buffer) -> None:
        """Read the input called `name`, one of those that it is `without`, from somebody else's buffer."""
        self._lent[name] = buffer
        self._engine.bind(name, buffer)

    def __getitem__(self, name: str) -> Buffer:
        return self._buffers[name]

    def __contains__(self, name: str) -> bool:
        return name in self._buffers

    def write(self, name: str, array: npt.NDArray[Any]) -> None:
        """Copy `array` into the buffer called `name`."""
        self._buffers[name].write(array)

    def run(self) -> None:
        self._engine.run()

    @property
    def carried(self) -> list[str]:
        """The inputs X that come out as `next_X`."""
        return [name for name in self._engine.inputs if f"next_{name}" in self._engine.outputs]

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
        for buffer in self._buffers.values():
            buffer.close()
        self._buffers.clear()
        self._lent.clear()

    def __enter__(self) -> Binding:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
