"""TensorRT on the fake GPU: engines that ONNX Runtime computes, in the memory that the fake GPU lends."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from kinograph.engines.fake import FakeDevice
from kinograph.engines.fake_gpu import FakeGpu
from kinograph.engines.gpu import ALIGNMENT
from kinograph.engines.host import NUMPY_DTYPES
from kinograph.engines.origin import Origin
from kinograph.engines.ort import OrtDevice
from kinograph.engines.protocol import Axes, Buffer, Contents, Device
from kinograph.engines.tensorrt import BuildOptions, Built, Progress
from kinograph.errors import EngineError
from kinograph.manifest import resolve_shape, solve_axes

__all__ = ["FakePlan", "FakeToolkit"]

_ARENA = 4096  # bytes of activations that every context says it needs
_WEIGHTS = 1 << 20  # bytes of weights that every engine says it has


class FakeToolkit:
    """A `Toolkit`; `contexts` and `plans` count what is open, `built` says what was built and for what.

    `budgets` is what was allowed each engine that was loaded.

    Without `computes`, all that engines do is fill their outputs with zeros.
    """

    version = "Fake TensorRT 1.0"

    def __init__(self, gpu: FakeGpu, contents: Contents, *, computes: bool = True, times: bool = False) -> None:
        self.gpu, self.contents, self.computes, self.times = gpu, contents, computes, times
        self.built: list[tuple[str, Axes]] = []
        self.budgets: dict[str, int | None] = {}
        self.plans = 0
        self.contexts = 0
        self.host: Device = OrtDevice(threads=1) if computes else FakeDevice()

    def build(self, contents: Contents, wanted: Origin, axes: Axes, options: BuildOptions, progress: Progress) -> Built:
        component, precision = wanted.component, wanted.precision
        self.gpu.call("build")
        progress("build", 1, 1)
        self.built.append((component, axes))
        sizes = {axis: list(size) for axis, size in axes.items()}
        plan = msgspec.json.encode([component, precision, sizes, options.streams])
        timings = (options.timings or b"") + component.encode() if self.times else None
        return Built(plan, ("Name: _gemm_mha_v2",), _ARENA, _WEIGHTS, timings)

    def load(
        self, plan: bytes, compiled: bytes | None, *, host_code: bool = False, weight_budget: int | None = None
    ) -> FakePlan:
        self.gpu.call("load")
        component, precision, axes, streams = msgspec.json.decode(plan)
        _check(streams == (weight_budget is not None), "a budget is for an engine that streams, which needs one")
        self.budgets[component] = weight_budget
        return FakePlan(self, component, precision, axes, streams=streams)


class FakePlan:
    def __init__(
        self, toolkit: FakeToolkit, component: str, precision: str, axes: dict[str, list[int]], *, streams: bool
    ) -> None:
        self.toolkit, self.component, self.axes, self.streams = toolkit, component, axes, streams
        self.engine = toolkit.host.open(toolkit.contents, component, precision)
        self.closed = False
        toolkit.plans += 1

    def context(self, shapes: Mapping[str, tuple[int, ...]]) -> FakeContext:
        self.toolkit.gpu.call("context")
        sizes = solve_axes({name: self.engine.inputs[name].shape for name in shapes}, shapes)
        if any(not least <= sizes[axis] <= most for axis, (least, most) in self.axes.items()):
            raise EngineError(f"{self.component} was built for {self.axes}, not for {sizes}")
        return FakeContext(self, sizes)

    def compiled(self) -> bytes | None:
        return b"kernels"

    def close(self) -> None:
        _check(not self.closed, "a plan is closed twice")
        self.closed = True
        self.toolkit.plans -= 1
        self.engine.close()


class FakeContext:
    arena_bytes = _ARENA

    def __init__(self, plan: FakePlan, sizes: Mapping[str, int]) -> None:
        self.plan, self.sizes = plan, sizes
        self.closed = False
        plan.toolkit.contexts += 1

    def capturable(self, stream: int) -> bool:
        return not self.plan.streams

    def enqueue(self, addresses: Mapping[str, int], arena: int, stream: int) -> None:
        gpu, engine = self.plan.toolkit.gpu, self.plan.engine
        _check(not self.closed and not self.plan.closed, "what was closed is run")
        _check(stream == gpu.stream, f"stream {stream} is not the GPU's")
        _check(self.capturable(stream) or not gpu.capturing, "what streams its weights is captured")
        gpu.call("enqueue")
        scratch = gpu.at(arena, self.arena_bytes)
        memory = {
            tensor.name: self._memory(tensor, addresses[tensor.name])
            for tensor in (*engine.inputs.values(), *engine.outputs.values())
        }

        def run() -> None:
            buffers: dict[str, Buffer] = {}
            for name, (array, shape, dtype) in memory.items():
                buffers[name] = self.plan.toolkit.host.empty(shape, dtype)
                if name in engine.inputs:
                    buffers[name].write(array.view(buffers[name].dtype).reshape(shape).copy())
                engine.bind(name, buffers[name])
            if self.plan.toolkit.computes:
                engine.run()
            scratch[:] = 255  # activations: whatever else lies there is lost
            for name in engine.outputs:
                memory[name][0][:] = buffers[name].read().reshape(-1).view(np.uint8)

        gpu.enqueue(run)

    def close(self) -> None:
        _check(not self.closed, "a context is closed twice")
        self.closed = True
        self.plan.toolkit.contexts -= 1

    def _memory(self, tensor: Any, address: int) -> tuple[Any, tuple[int, ...], str]:
        _check(address % ALIGNMENT == 0, f"{tensor.name} lies at {address}")
        shape = resolve_shape(tensor.shape, self.sizes)
        size = math.prod(shape) * np.dtype(NUMPY_DTYPES[tensor.dtype]).itemsize
        return self.plan.toolkit.gpu.at(address, size), shape, tensor.dtype


def _check(right: bool, otherwise: str) -> None:
    if not right:
        raise AssertionError(otherwise)
