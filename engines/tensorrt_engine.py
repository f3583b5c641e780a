"""One component on TensorRT: a plan for some sizes, and a context for every set of shapes that it has run at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from kinograph.engines.device_memory import DeviceBuffer, DeviceMemory
from kinograph.engines.launch import Addresses, Call, Launcher
from kinograph.errors import EngineError
from kinograph.manifest import solve_axes

if TYPE_CHECKING:
    from kinograph.engines.origin import Card
    from kinograph.engines.protocol import Buffer, Contents
    from kinograph.engines.tensorrt_device import TensorRTDevice
    from kinograph.engines.tensorrt_toolkit import Context, Plan
    from kinograph.manifest import Tensor

__all__ = ["Arena", "TensorRTEngine"]

Shapes = tuple[tuple[str, tuple[int, ...]], ...]


class Arena:
    """The activations' memory: runs follow one another, so all engines share one piece, as large as any needs."""

    def __init__(self, memory: DeviceMemory, launcher: Launcher) -> None:
        self.address = 0
        self.size = 0
        self._memory, self._launcher = memory, launcher

    def require(self, size: int) -> None:
        """Make it at least so large; graphs that know the old one are forgotten."""
        if size <= self.size:
            return
        self.release()
        self.address, self.size = self._memory.take(size), size

    def release(self) -> None:
        """Give it back; the next engine that needs one gets another."""
        self._launcher.forget()
        if self.address:
            self._memory.give(self.address)
        self.address = self.size = 0


class TensorRTEngine:
    """An `Engine`. Plans are loaded, and built where need be, when it first runs at sizes that they are for."""

    def __init__(self, device: TensorRTDevice, bundle: Contents, component: str, precision: str) -> None:
        variant = bundle.component(component).variants[precision]
        self.component = component
        self.inputs: Mapping[str, Tensor] = {tensor.name: tensor for tensor in variant.inputs}
        self.outputs: Mapping[str, Tensor] = {tensor.name: tensor for tensor in variant.outputs}
        self._device, self._bundle, self._precision = device, bundle, precision
        self._bound: dict[str, DeviceBuffer] = {}
        self._plans: list[tuple[Card, Plan]] = []
        self._ready: dict[Shapes, _Ready] = {}
        self._closed = False

    def bind(self, name: str, buffer: Buffer) -> None:
        if name not in self.inputs and name not in self.outputs:
            raise EngineError(f"{self.component} has no input or output {name!r}")
        if not isinstance(buffer, DeviceBuffer):
            raise EngineError(
                f"{self.component}: {name} needs a buffer of {self._device.name}, got {type(buffer).__name__}"
            )
        self._bound[name] = buffer

    def run(self) -> None:
        missing = (self.inputs.keys() | self.outputs.keys()) - self._bound.keys()
        if self._closed or missing:
            raise EngineError(
                f"{self.component} cannot run: {'closed' if self._closed else f'unbound {sorted(missing)}'}"
            )
        shapes = tuple((name, self._bound[name].shape) for name in self.inputs)
        if shapes not in self._ready:
            self._ready[shapes] = self._prepared(shapes)
        addresses = tuple((name, buffer.address) for name, buffer in sorted(self._bound.items()))
        self._device.launcher.run(Call(self._ready[shapes], addresses))

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._device.forget(self)
        try:
            self._device.gpu.synchronize()
        finally:
            for ready in self._ready.values():
                self._device.launcher.forget(ready)
                ready.context.close()
            for card, plan in self._plans:
                if (compiled := plan.compiled()) is not None:
                    self._device.cache.keep_compiled(card, self._device.backend, compiled)
                plan.close()
            self._ready.clear()
            self._plans.clear()
            self._bound.clear()

    def _prepared(self, shapes: Shapes) -> _Ready:
        device, by_name = self._device, dict(shapes)
        sizes = solve_axes({name: self.inputs[name].shape for name in by_name}, by_name)
        needed = {axis: (size, size) for axis, size in sizes.items()}
        plan = next((plan for card, plan in self._plans if card.takes(needed)), None)
        if plan is None:
            card, plan = device.load(self._bundle, self.component, self._precision, needed)
            self._plans.append((card, plan))
        context = plan.context(by_name)
        try:
            device.arena.require(context.arena_bytes)
        except BaseException:
            context.close()
            raise
        return _Ready(context, device, {name: self._bound[name].bytes for name in self.outputs})


class _Ready:
    """A context as the launcher runs it."""

    def __init__(self, context: Context, device: TensorRTDevice, outputs: Mapping[str, int]) -> None:
        self.context = context
        self._device, self._outputs = device, outputs

    @property
    def capturable(self) -> bool:
        return self.context.capturable(self._device.gpu.stream)

    def enqueue(self, addresses: Addresses) -> None:
        self.context.enqueue(dict(addresses), self._device.arena.address, self._device.gpu.stream)

    def rehearse(self, addresses: Addresses) -> None:
        memory = self._device.memory
        aside: dict[str, int] = {}
        try:
            for name, size in self._outputs.items():
                aside[name] = memory.take(size)
            self.context.enqueue(dict(addresses) | aside, self._device.arena.address, self._device.gpu.stream)
        finally:
            for address in aside.values():
                memory.give(address)
