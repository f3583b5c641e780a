"""TensorRT, whichever there is: `tensorrt_rtx` and `tensorrt` share an interface, and here is where they differ.

TensorRT for RTX builds engines for GPUs that are not there, compiles the rest of them when they first run, and keeps
what it compiled in a cache of its own. TensorRT builds for the GPU at hand and leaves nothing to be compiled. The
`tensorrt` of JetPack is version 10, others are 11; what differs between those is looked for, not asked by number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from kinograph.engines.tensorrt import BuildOptions, Built, Progress, build
from kinograph.engines.tensorrt_module import NAMES, RTX, find_module, listening
from kinograph.errors import EngineError

if TYPE_CHECKING:
    from kinograph.engines.origin import Origin
    from kinograph.engines.protocol import Axes, Contents

__all__ = ["Context", "Plan", "TensorRT", "Toolkit"]

Shapes = Mapping[str, tuple[int, ...]]


class Context(Protocol):
    """A plan, ready to run at certain shapes. `arena_bytes` is the memory for activations that a run needs."""

    @property
    def arena_bytes(self) -> int: ...

    def capturable(self, stream: int) -> bool:
        """Whether a CUDA graph can hold its runs on that stream."""
        ...

    def enqueue(self, addresses: Mapping[str, int], arena: int, stream: int) -> None:
        """Ask `stream` for a run on these buffers, with `arena_bytes` of memory at `arena`. Raises EngineError."""
        ...

    def close(self) -> None: ...


class Plan(Protocol):
    """An engine as TensorRT has loaded it, its weights on the GPU."""

    def context(self, shapes: Shapes) -> Context:
        """Ready to run with inputs of these shapes. Raises EngineError where it was not built for them."""
        ...

    def compiled(self) -> bytes | None:
        """What was compiled since it was loaded, to be loaded along with it the next time; None if there is none."""
        ...

    def close(self) -> None: ...


class Toolkit(Protocol):
    """What builds and loads engines."""

    @property
    def version(self) -> str:
        """Its name and version."""
        ...

    @property
    def times(self) -> bool:
        """Whether it builds by timing on the GPU at hand, for which alone the engine is then the best."""
        ...

    def build(self, contents: Contents, wanted: Origin, axes: Axes, options: BuildOptions, progress: Progress) -> Built:
        """The component that is `wanted`, as an engine for sizes within `axes`."""
        ...

    def load(
        self, plan: bytes, compiled: bytes | None, *, host_code: bool = False, weight_budget: int | None = None
    ) -> Plan:
        """Load an engine onto the current GPU. Raises EngineError, which says why it does not fit there.

        One for later versions brings a runtime of its own, which is `host_code`. Of one that streams, no more than
        `weight_budget` bytes of weights stay on the GPU.
        """
        ...


class TensorRT:
    """The `Toolkit` of a target: `rtx` or `tensorrt`. Raises MissingExtraError where it is not installed."""

    def __init__(self, target: str = RTX) -> None:
        self.target = target
        self._trt = find_module(target)
        self._logger = listening(self._trt)
        self._runtime: Any = None

    @property
    def version(self) -> str:
        return f"{NAMES[self.target]} {self._trt.__version__}"

    @property
    def times(self) -> bool:
        return self.target != RTX

    def build(self, contents: Contents, wanted: Origin, axes: Axes, options: BuildOptions, progress: Progress) -> Built:
        return build(
            contents,
            wanted.component,
            wanted.precision,
            capability=wanted.capability,
            axes=axes,
            target=self.target,
            options=options,
            progress=progress,
        )

    def load(
        self, plan: bytes, compiled: bytes | None, *, host_code: bool = False, weight_budget: int | None = None
    ) -> Plan:
        if self._runtime is None:
            self._runtime = self._trt.Runtime(self._logger)
        self._runtime.engine_host_code_allowed = host_code
        self._logger.errors.clear()
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise EngineError(
                f"{self.version} cannot load an engine: {self._why_not(plan)}. Remove it with "
                "`kinograph build --clean`; it is built again when it is needed"
            )
        if weight_budget is not None:
            engine.weight_streaming_budget_v2 = min(weight_budget, engine.streamable_weights_size)
        return _Plan(self._trt, engine, self._logger, compiled, streams=weight_budget is not None)

    def _why_not(self, plan: bytes) -> str:
        """What is wrong with a plan, as far as TensorRT says it."""
        if hasattr(self._runtime, "get_engine_validity"):
            validity, diagnostics = self._runtime.get_engine_validity(plan)
            if validity != self._trt.EngineValidity.VALID:
                return f"{validity}, {diagnostics}; {self._logger.told()}"
        return str(self._logger.told())


class _Plan:
    def __init__(self, trt: Any, engine: Any, logger: Any, compiled: bytes | None, *, streams: bool) -> None:
        self._trt, self._engine, self._logger, self._streams = trt, engine, logger, streams
        self._cache: Any = None
        self._config: Any = None
        if hasattr(engine, "create_runtime_config"):
            self._config = engine.create_runtime_config()
            self._config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if hasattr(self._config, "create_runtime_cache"):
            self._cache = self._config.create_runtime_cache()
            if compiled is not None:
                self._cache.deserialize(compiled)  # what does not fit this GPU and driver is left out
            self._config.set_runtime_cache(self._cache)
            # what compiles in the background would have to be captured in the middle of a loop
            self._config.dynamic_shapes_kernel_specialization_strategy = (
                trt.DynamicShapesKernelSpecializationStrategy.EAGER
            )

    def context(self, shapes: Shapes) -> Context:
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        self._logger.errors.clear()
        context = self._engine.create_execution_context(self._config if self._config is not None else strategy)
        if context is None:
            raise EngineError(f"TensorRT made no execution context: {self._logger.told()}. Free memory on the GPU")
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise EngineError(
                    f"the engine takes no {name} of shape {list(shape)}: {self._logger.told()}. "
                    "Build one for this --size and --frames"
                )
        return _Context(context, self._logger, streams=self._streams)

    def compiled(self) -> bytes | None:
        return None if self._cache is None else bytes(self._cache.serialize())

    def close(self) -> None:
        self._config = self._cache = self._engine = None


class _Context:
    def __init__(self, context: Any, logger: Any, *, streams: bool) -> None:
        self._context, self._logger, self._streams = context, logger, streams
        self.arena_bytes = int(context.update_device_memory_size_for_shapes())

    def capturable(self, stream: int) -> bool:
        asked = getattr(self._context, "is_stream_capturable", None)  # which TensorRT for RTX has
        return not self._streams and (asked is None or bool(asked(stream)))

    def enqueue(self, addresses: Mapping[str, int], arena: int, stream: int) -> None:
        context = self._context
        context.set_device_memory(arena, self.arena_bytes)
        for name, address in addresses.items():
            context.set_tensor_address(name, address)
        self._logger.errors.clear()
        if not context.execute_async_v3(stream):
            raise EngineError(f"TensorRT failed: {self._logger.told()}. Check `kinograph doctor`, or use --device cpu")

    def close(self) -> None:
        self._context = None
