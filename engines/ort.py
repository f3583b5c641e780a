"""ONNX Runtime on the CPU.

A graph is rewritten for the CPU when it is opened; its weights are the bundle's verified files, memory-mapped and
handed to ONNX Runtime without a copy.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakSet

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from kinograph.engines.footprint import Footprint, activation_bytes, largest_factor_bytes
from kinograph.engines.host import NUMPY_DTYPES, HostBuffer, HostTable, adds_bytes_exactly, memory_bytes, one_by_one
from kinograph.engines.mapped import HALVES, floats_as_inputs, halves_as_inputs, take_halves
from kinograph.engines.rewrites import CPU_REWRITES, Rewrite
from kinograph.engines.weights import map_weights
from kinograph.engines.worker import Worker
from kinograph.errors import EngineError, Interrupted, MemoryLimitError, UsageError

if TYPE_CHECKING:
    from kinograph.engines.protocol import Array, Axes, Buffer, Contents
    from kinograph.manifest import Tensor, Variant

__all__ = ["OrtDevice", "OrtEngine", "Provider"]

_PLACEHOLDER = "mapped"  # external data must name a file; the weights are given to the session instead
_OUT_OF_MEMORY = re.compile("bad_alloc|[Ff]ailed to allocate memory|std::length_error")
_FOREIGN = (ir.DataType.FLOAT8E4M3FN.numpy(), ir.DataType.BFLOAT16.numpy())
_COPIED_SHARE = 0.4  # of the memory: of weights that would take more there is no copy, which costs speed
_ARENA = 3  # times what lives at once: ONNX Runtime's arena grew to 1.6 to 2.6 times that, in both codec and step
_WIDENED = ("fp16", "bf16")  # what is computed in float32, which takes twice the memory
_FLOATS = ("fp32", *_WIDENED)  # 16 bits gain nothing on a CPU
_BYTES = ("int8-dynamic", "int8")
_STATE = "next_state_"  # what a streaming codec carries from call to call
_ERRORS_ONLY = 3  # ONNX Runtime's log severity


class Provider(NamedTuple):
    """Where a session computes: ONNX Runtime's execution providers, its name for the device, and the device's number.

    `address` says where a buffer of that device lies, and None of any other. `plugin` is a provider that ONNX Runtime
    has loaded, as its devices and options, which goes before the chain; `rewrites` is what it wants done to a graph.
    """

    chain: list[Any]
    device: str
    number: int
    address: Callable[[Buffer], int | None]
    plugin: tuple[list[Any], dict[str, str]] | None = None
    rewrites: tuple[Rewrite, ...] = CPU_REWRITES


def _host_address(buffer: Buffer) -> int | None:
    return buffer.array.ctypes.data if isinstance(buffer, HostBuffer) else None


ort.disable_telemetry_events()  # of a process that had imported it before Kinograph

CPU = Provider(["CPUExecutionProvider"], "cpu", 0, _host_address)


class OrtDevice:
    """The CPU as a `Device`. `threads` is how many an engine computes with; by default all the process may use."""

    name = "cpu"
    asynchronous = False

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads or len(os.sched_getaffinity(0))
        self.cancelled = False
        self._open: WeakSet[OrtEngine] = WeakSet()

    @property
    def backend(self) -> str:
        return f"onnxruntime {ort.__version__} (CPU)"

    @property
    def variants(self) -> tuple[str, ...]:
        """Floats come first where products of bytes take as long as theirs do, and are further from the model."""
        return ("int4-weights", *((*_BYTES, *_FLOATS) if adds_bytes_exactly() else (*_FLOATS, *_BYTES)))

    @property
    def memory_bytes(self) -> int:
        return memory_bytes()

    def empty(self, shape: tuple[int, ...], dtype: str) -> HostBuffer:
        return HostBuffer(shape, dtype)

    def table(self, rows: Array) -> HostTable:
        return HostTable(rows)

    def prepare(self, bundle: Contents, precisions: Mapping[str, str], axes: Mapping[str, Axes]) -> Iterator[str]:
        return iter(())

    def footprint(self, bundle: Contents, component: str, precision: str, sizes: Mapping[str, int]) -> Footprint:
        variant = bundle.component(component).variants[precision]
        widened = precision in _WIDENED
        stored = sum(bundle.size(name) for name in variant.weights)
        private = sum(bundle.private(name) for name in variant.weights)
        copies = _copied_bytes(0, stored) if widened else _copied_bytes(stored, 0)
        alive = activation_bytes(bundle, variant, sizes, widened=widened)
        if _are_copied(copies):
            return Footprint(private + copies, _ARENA * alive)
        # they are read where they lie, and need not stay; one at a time is widened
        return Footprint(private, _ARENA * (alive + (2 * largest_factor_bytes(bundle, variant) if widened else 0)))

    def repeat(self, body: Callable[[int], None], count: int) -> Iterator[int]:
        return one_by_one(body, count)

    def open(self, bundle: Contents, component: str, precision: str) -> OrtEngine:
        variants = bundle.component(component).variants
        if precision not in variants:
            raise UsageError(
                f"{component} has no variant {precision!r}; this bundle has: {', '.join(variants)}. Use --variant."
            )
        engine = OrtEngine(bundle, component, variants[precision], self.threads, cancelled=lambda: self.cancelled)
        self._open.add(engine)
        return engine

    def close(self) -> None:
        for engine in list(self._open):
            engine.close()

    def __enter__(self) -> OrtDevice:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class OrtEngine:
    """A component in an ONNX Runtime session. With `cancelled` it can be stopped between two nodes of its graph."""

    def __init__(
        self,
        bundle: Contents,
        component: str,
        variant: Variant,
        threads: int,
        provider: Provider = CPU,
        *,
        cancelled: Callable[[], bool] | None = None,
    ) -> None:
        self.component = component
        self._worker = None if cancelled is None else Worker(cancelled)
        model = ir.from_proto(onnx.load_model_from_string(bundle.read(variant.graph)))
        weights = map_weights(model, bundle, variant)
        halves = sum(array.nbytes for array in weights.values() if ir.DataType.from_numpy(array.dtype) in HALVES)
        stored = sum(array.nbytes for array in weights.values())
        large = provider is CPU and not _are_copied(_copied_bytes(stored - halves, halves))
        mapped = take_halves(model, weights) if large else {}
        for rewrite in provider.rewrites:
            rewrite(model, weights)
        if large:
            halves_as_inputs(model, mapped)
            mapped |= floats_as_inputs(model, weights)
        self._provider = provider
        packed = {name: weights.pop(name) for name in list(weights) if _is_packed(model, name)}
        for name, array in packed.items():
            _refer_to(model.graph.initializers[name], name, array)
        for name, array in weights.items():
            _set_placeholder(model.graph.initializers[name], array)
        self.inputs = _declared(variant.inputs, model.graph.inputs)
        self.outputs = _declared(variant.outputs, model.graph.outputs)
        self._weights = weights | mapped | packed  # the session reads them in place
        self._session: ort.InferenceSession | None = self._start(model, weights, packed, threads)
        self._binding = self._session.io_binding()
        for name, array in mapped.items():
            value = _value(array)
            self._values.append(value)
            self._binding.bind_ortvalue_input(name, value)
        self._bound: dict[str, Buffer] = {}

    def _start(
        self, model: ir.Model, weights: Mapping[str, Array], packed: Mapping[str, Array], threads: int
    ) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = _ERRORS_ONLY
        if self._provider is CPU:
            self._save_memory(options)
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if not adds_bytes_exactly():  # products of bytes overflow 16 bits, unless they are told to be exact
            options.add_session_config_entry("session.x64quantprecision", "1")
        # what has 8-bit weights alone is computed in floats, not with activations of 8 bits behind one's back
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        self._values = [_value(array) for array in weights.values()]
        options.add_external_initializers(list(weights), self._values)
        if packed:
            sizes = [array.nbytes for array in packed.values()]
            options.add_external_initializers_from_files_in_memory(list(packed), list(packed.values()), sizes)
        chain: list[Any] | None = self._provider.chain
        if self._provider.plugin is not None:
            options.add_provider_for_devices(*self._provider.plugin)
            chain = None  # the CPU comes last by itself
        content = ir.to_proto(model).SerializeToString()
        try:
            return self._call(
                lambda: ort.InferenceSession(content, options, providers=chain),
                lambda: options.set_load_cancellation_flag(True),
            )
        except Interrupted:
            raise
        except Exception as exc:  # onnxruntime's exceptions share no base class
            raise EngineError(
                f"ONNX Runtime {ort.__version__} could not load {self.component}: {exc}. "
                "Check `kinograph doctor`; a newer onnxruntime may be needed."
            ) from exc

    def _save_memory(self, options: ort.SessionOptions) -> None:
        """Let values lie where earlier ones did. A pattern of where all of them lie takes its own memory besides.

        By itself ONNX Runtime computes what only the caller reads at the very end: of a codec that is every layer's
        state, so that whatever one is cut from would be kept until then.
        """
        options.enable_mem_pattern = False
        if any(name.startswith(_STATE) for name in self.outputs):
            options.execution_order = ort.ExecutionOrder.PRIORITY_BASED

    def bind(self, name: str, buffer: Buffer) -> None:
        if self._session is None:
            raise EngineError(f"{self.component} was closed and cannot be bound")
        address = self._provider.address(buffer)
        if address is None:
            raise EngineError(
                f"{self.component}: {name} needs a buffer of the {self._provider.device}, got {type(buffer).__name__}"
            )
        self._bound[name] = buffer
        bind = self._binding.bind_input if name in self.inputs else self._binding.bind_output
        tensor = self.inputs.get(name) or self.outputs.get(name)
        if tensor is None:
            raise EngineError(f"{self.component} has no input or output {name!r}")
        bind(name, self._provider.device, self._provider.number, NUMPY_DTYPES[tensor.dtype], buffer.shape, address)

    def run(self) -> None:
        if self._session is None:
            raise EngineError(f"{self.component} was closed and cannot run")
        session, binding, options = self._session, self._binding, self._run_options()
        memory = [buffer.array for buffer in self._bound.values() if isinstance(buffer, HostBuffer)]

        def run(kept: object = memory) -> None:  # it stays where it is until the run has ended, whoever else lets go
            session.run_with_iobinding(binding, options)

        try:
            self._call(run, lambda: setattr(options, "terminate", True))
        except Interrupted:
            raise
        except Exception as exc:  # as above
            if _OUT_OF_MEMORY.search(str(exc)):
                raise MemoryLimitError(
                    f"{self.component} ran out of memory ({exc}). Ask for a smaller --size or fewer --frames."
                ) from exc
            raise EngineError(f"{self.component} failed in ONNX Runtime {ort.__version__}: {exc}") from exc

    def _call(self, work: Callable[[], Any], stop: Callable[[], None]) -> Any:
        return work() if self._worker is None else self._worker.call(work, stop)

    def _run_options(self) -> ort.RunOptions:
        """How the next run is to be done."""
        return ort.RunOptions()

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()
        self._session = None
        self._binding = None
        self._bound.clear()
        self._values = []
        self._weights = {}


def _copied_bytes(others: int, halves: int) -> int:
    """What weights take that are copied: packed for the kernels, and those of 16 bits as the float32 they were made."""
    return others + 2 * 2 * halves


def _are_copied(size: int) -> bool:
    return size <= _COPIED_SHARE * memory_bytes()


def _value(array: Array) -> ort.OrtValue:
    """An array as ONNX Runtime takes it, in place; it does not know the floats that numpy has from elsewhere."""
    if array.dtype in _FOREIGN:
        raw = array.view(np.dtype(f"u{array.dtype.itemsize}"))
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(raw, ir.DataType.from_numpy(array.dtype).value)
    return ort.OrtValue.ortvalue_from_numpy(array)


def _is_packed(model: ir.Model, name: str) -> bool:
    return model.graph.initializers[name].dtype == ir.DataType.INT4


def _refer_to(value: ir.Value, file: str, array: Array) -> None:
    """Let a packed initializer, which no OrtValue can be, be what a file called `file` holds."""
    shape = ir.Shape(tuple(value.shape or ()))
    value.const_value = ir.ExternalTensor(file, 0, array.nbytes, ir.DataType.INT4, shape=shape, name=str(value.name))


def _set_placeholder(value: ir.Value, array: Array) -> None:
    """Give an initializer the type of `array`; the session gets the data from `add_external_initializers`."""
    dtype, shape = ir.DataType.from_numpy(array.dtype), ir.Shape(array.shape)
    value.const_value = ir.ExternalTensor(_PLACEHOLDER, 0, array.nbytes, dtype, shape=shape, name=str(value.name))
    value.shape, value.dtype = shape, dtype


def _declared(declared: tuple[Tensor, ...], values: Any) -> dict[str, Tensor]:
    """The manifest's declarations, with the dtypes the rewritten graph has."""
    dtypes = {value.name: str(np.dtype(value.dtype.numpy())) for value in values}
    return {tensor.name: msgspec.structs.replace(tensor, dtype=dtypes[tensor.name]) for tensor in declared}
