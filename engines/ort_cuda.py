"""ONNX Runtime on an NVIDIA GPU: for GPUs that TensorRT is not there for, and for graphs that it cannot build.

The graphs are those of the CPU, with most of its rewrites: bfloat16 computes as float32, attention is one node that the
GPU has a flash kernel for. Buffers, tables and the stream are CUDA's own, and ONNX Runtime works on that stream.

A step is a CUDA graph. ONNX Runtime captures one for every set of addresses and replays it from then on; a loop writes
alternately into two buffers, and the rows of its tables are copied to one place, so that there are two of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Self
from weakref import WeakSet

import onnxruntime as ort

from kinograph.engines.device_memory import DeviceBuffer, DeviceMemory, DeviceTable
from kinograph.engines.footprint import Footprint, activation_bytes
from kinograph.engines.host import one_by_one
from kinograph.engines.ort import OrtEngine, Provider
from kinograph.engines.rewrites import CUDA_REWRITES
from kinograph.errors import EngineError, UsageError

if TYPE_CHECKING:
    from kinograph.engines.gpu import Gpu
    from kinograph.engines.protocol import Array, Axes, Buffer, Contents
    from kinograph.manifest import Variant

__all__ = ["OrtCudaDevice", "OrtCudaEngine", "device_address"]

_STEP = "step"  # what the names of the components begin with that run many times at the same addresses
_KEPT = 8  # graphs of a step; after so many sets of addresses the others are run node by node
_NO_GRAPH = -1  # in place of a graph's number


class OrtCudaDevice:
    """A GPU with ONNX Runtime. It owns `gpu`; without `graphs` steps are run node by node."""

    asynchronous = False  # ONNX Runtime waits at the end of every run
    variants = ("fp16", "fp32", "bf16")  # it has no 8-bit kernels on CUDA

    def __init__(self, gpu: Gpu, *, graphs: bool = True) -> None:
        self.gpu = gpu
        self._graphs = graphs
        self.cancelled = False
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
        engine = self._started(bundle, component, variants[precision])
        self._open.add(engine)
        return engine

    def _started(self, bundle: Contents, component: str, variant: Variant) -> OrtEngine:
        options = {
            "device_id": str(self.gpu.index),
            "user_compute_stream": str(self.gpu.stream),
            "gpu_mem_limit": str(self.gpu.memory()[0]),  # of what is free now, and not of what others hold
            "arena_extend_strategy": "kSameAsRequested",  # the next power of two is more than a large model leaves
        }
        if self._graphs and component.startswith(_STEP):
            try:
                graphs = self._provider(options | {"enable_cuda_graph": "1"})
                return OrtCudaEngine(bundle, component, variant, graphs, self.memory)
            except EngineError:  # ONNX Runtime does not capture a graph of which the CPU computes a part
                pass
        return OrtEngine(bundle, component, variant, 1, self._provider(options))

    def _provider(self, options: Mapping[str, str]) -> Provider:
        chain = [("CUDAExecutionProvider", dict(options)), "CPUExecutionProvider"]
        return Provider(chain, "cuda", self.gpu.index, device_address, rewrites=CUDA_REWRITES)

    def footprint(self, bundle: Contents, component: str, precision: str, sizes: Mapping[str, int]) -> Footprint:
        variant = bundle.component(component).variants[precision]
        weights = sum(bundle.size(name) for name in variant.weights)
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class OrtCudaEngine(OrtEngine):
    """A step whose runs ONNX Runtime captures, once for every set of addresses, and replays."""

    def __init__(
        self, bundle: Contents, component: str, variant: Variant, provider: Provider, memory: DeviceMemory
    ) -> None:
        super().__init__(bundle, component, variant, 1, provider)
        self._memory = memory
        self._rows: dict[str, DeviceBuffer] = {}  # where the row of a table is copied to before every run
        self._numbers: dict[tuple[tuple[str, int, tuple[int, ...]], ...], int] = {}

    def bind(self, name: str, buffer: Buffer) -> None:
        if isinstance(buffer, DeviceBuffer) and buffer.row:
            own = self._rows.get(name)
            if own is None or own.shape != buffer.shape:
                if own is not None:
                    own.close()
                own = self._rows[name] = DeviceBuffer(self._memory, buffer.shape, str(buffer.dtype))
            self._memory.gpu.copy(own.address, buffer.address, own.bytes)
            buffer = own
        super().bind(name, buffer)

    def close(self) -> None:
        super().close()
        for own in self._rows.values():
            own.close()
        self._rows.clear()

    def _run_options(self) -> ort.RunOptions:
        addresses = {name: (buffer.address, buffer.shape) for name, buffer in self._bound.items()}  # type: ignore[attr-defined]
        key = tuple((name, *addresses[name]) for name in sorted(addresses))
        if key not in self._numbers and len(self._numbers) < _KEPT:
            self._numbers[key] = len(self._numbers)
        options = ort.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(self._numbers.get(key, _NO_GRAPH)))
        return options


def device_address(buffer: Buffer) -> int | None:
    """Where a buffer lies on a GPU; None for one that does not."""
    return buffer.address if isinstance(buffer, DeviceBuffer) else None
