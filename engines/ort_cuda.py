"""ONNX Runtime on an NVIDIA GPU: for GPUs that TensorRT is not there for, and for graphs that it cannot build.

The graphs are those of the CPU, rewrites and all: bfloat16 computes as float32, attention is one node that the GPU has
a flash kernel for. Buffers, tables and the stream are CUDA's own, and ONNX Runtime works on that stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING
from weakref import WeakSet

import onnxruntime as ort

from kinograph.engines.device_memory import DeviceBuffer, DeviceMemory, DeviceTable
from kinograph.engines.footprint import Footprint, activation_bytes
from kinograph.engines.host import one_by_one
from kinograph.engines.ort import OrtEngine, Provider
from kinograph.errors import UsageError

if TYPE_CHECKING:
    from kinograph.engines.gpu import Gpu
    from kinograph.engines.protocol import Array, Axes, Buffer, Contents

__all__ = ["OrtCudaDevice"]


class OrtCudaDevice:
    """A GPU with ONNX Runtime. It owns `gpu`."""

    asynchronous = False  # ONNX Runtime waits at the end of every run
    variants = ("fp16", "fp32", "bf16")  # it has no 8-bit kernels on CUDA

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self.memory = DeviceMemory(gpu)
        self._open: WeakSet[OrtEngine] = WeakSet()

    @property
    def name(self) -> str:
        return f"cuda:{self.gpu.index}"

    @property
    def backend(self) -> str:
        return f"onnxruntime {ort.__version__} ({self.gpu.name}, CUDA {self.gpu.driver})"

    @property
    def memory_bytes(self) -> int:
        return self.gpu.memory()[1]

    def empty(self, shape: tuple[int, ...], dtype: str) -> DeviceBuffer:
        return DeviceBuffer(self.memory, shape, dtype)

    def table(self, rows: Array) -> DeviceTable:
        return DeviceTable(self.memory, rows)

    def prepare(self, bundle: Contents, precisions: Mapping[str, str], axes: Mapping[str, Axes]) -> Iterator[str]:
        return iter(())

    def open(self, bundle: Contents, component: str, precision: str) -> OrtEngine:
        variants = bundle.component(component).variants
        if precision not in variants:
            raise UsageError(
                f"{component} has no variant {precision!r}; this bundle has: {', '.join(variants)}. Use --variant."
            )
        options = {
            "device_id": str(self.gpu.index),
            "user_compute_stream": str(self.gpu.stream),
            "arena_extend_strategy": "kSameAsRequested",  # the next power of two is more than a large model leaves
        }
        chain = [("CUDAExecutionProvider", options), "CPUExecutionProvider"]
        provider = Provider(chain, "cuda", self.gpu.index, _device_address)
        engine = OrtEngine(bundle, component, variants[precision], 1, provider)
        self._open.add(engine)
        return engine

    def footprint(self, bundle: Contents, component: str, precision: str, sizes: Mapping[str, int]) -> Footprint:
        variant = bundle.component(component).variants[precision]
        weights = sum(bundle.map(name).size for name in variant.weights)
        return Footprint(weights, activation_bytes(bundle, variant, sizes))

    def repeat(self, body: Callable[[int], None], count: int) -> Iterator[int]:
        return one_by_one(body, count)

    def close(self) -> None:
        try:
            for engine in list(self._open):
                engine.close()
            self.memory.trim()
        finally:
            self.gpu.close()

    def __enter__(self) -> OrtCudaDevice:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _device_address(buffer: Buffer) -> int | None:
    return buffer.address if isinstance(buffer, DeviceBuffer) else None
