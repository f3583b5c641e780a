"""TensorRT engines, built: by TensorRT for RTX for a GPU that is not there, by TensorRT for the one that is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from kinograph.engines.needs import check_capability, runs_on
from kinograph.engines.rewrites.attention16 import attention_to_16_bits
from kinograph.engines.rewrites.symmetric import affine_to_symmetric, biases_to_float
from kinograph.engines.rewrites.table import dequantise_tables
from kinograph.engines.tensorrt_module import FULL, NAMES, RTX, find_module, listening
from kinograph.engines.weights import map_weights
from kinograph.errors import EngineError, UsageError
from kinograph.manifest import resolve_shape

if TYPE_CHECKING:
    from kinograph.engines.origin import Portability
    from kinograph.engines.protocol import Axes, Contents
    from kinograph.manifest import Variant

__all__ = ["BuildOptions", "Built", "Progress", "build", "capabilities"]

_ATTENTION = {"ATTENTION_INPUT": "IAttentionInputLayer", "ATTENTION_OUTPUT": "IAttentionOutputLayer"}

Progress = Callable[[str, int, int], None]
"""Told the phase of the build, and how many of how many of its steps are done."""


class Built(NamedTuple):
    """An engine, what its layers are in TensorRT's words, and the bytes of activations and weights it will need.

    `timings` is all that the builder has timed, these and those it was given, where it times.
    """

    plan: bytes
    layers: tuple[str, ...]
    activation_bytes: int
    weight_bytes: int
    timings: bytes | None = None


class BuildOptions(NamedTuple):
    """How an engine is built.

    `workspace` is the most memory, in bytes, that a layer may use to be fast. With `streams`, weights may stay in the
    host's memory when it runs, and its loop is no CUDA graph. `later_versions` and `gpus` are TensorRT's alone, and so
    is `timings`, from builds before.
    """

    workspace: int | None = None
    streams: bool = False
    later_versions: bool = False
    gpus: Portability | None = None
    timings: bytes | None = None


_DEFAULT = BuildOptions()


def _unheard(phase: str, done: int, total: int) -> None: ...


def capabilities() -> list[int]:
    """The compute capabilities that TensorRT for RTX builds for: 89 is that of Ada Lovelace, 120 that of Blackwell."""
    names = find_module(RTX).ComputeCapability.__members__
    return sorted(int(name[2:]) for name in names if name.startswith("SM"))


def build(
    contents: Contents,
    component: str,
    precision: str,
    *,
    capability: int,
    axes: Axes,
    target: str = RTX,
    options: BuildOptions = _DEFAULT,
    progress: Progress = _unheard,
) -> Built:
    """A component as a TensorRT engine for GPUs of one compute capability, for sizes within `axes`.

    Every type is the graph's own. Attention that has no kernel of its own is taken apart. With the target `tensorrt`,
    `capability` must be that of the GPU at hand. Raises UsageError for a capability, a variant or an option that there
    is none of, EngineError where TensorRT refuses.
    """
    trt = find_module(target)
    if target == RTX and capability not in (known := capabilities()):
        raise UsageError(
            f"compute capability {capability} cannot be built for; expected one of: {', '.join(map(str, known))}. "
            "Use --sm."
        )
    variants = contents.component(component).variants
    if precision not in variants:
        raise UsageError(f"{component} has no variant {precision!r}; it has: {', '.join(variants)}. Use --variant.")
    variant = variants[precision]
    check_capability(precision, capability)
    logger = listening(trt)
    builder = trt.Builder(logger)
    # version 11 knows no other networks than strongly typed ones
    typed = getattr(getattr(trt, "NetworkDefinitionCreationFlag", None), "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    quantised = variant.quality is not None and runs_on("bf16", capability)
    weights = _parse(trt, network, logger, contents, variant, quantised=quantised)
    _take_attention_apart(trt, network)
    config = builder.create_builder_config()
    _set_options(trt, config, target, capability, options)
    timings = _set_timings(config, options.timings) if target == FULL else None
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    monitor = config.progress_monitor = _monitor(trt, progress)
    config.add_optimization_profile(_profile(builder, variant, axes))
    plan = builder.build_serialized_network(network, config)
    del weights  # which the parser read in place
    if monitor.raised is not None:
        raise monitor.raised
    if plan is None:
        raise EngineError(
            f"{NAMES[target]} {trt.__version__} cannot build {component} in {precision} for compute capability "
            f"{capability}: {logger.told()}. Try another --variant"
        )
    timed = None if timings is None else bytes(timings.serialize())
    return Built(bytes(plan), logger.layers, logger.bytes("Activation"), logger.bytes("Weights"), timed)


def _set_options(trt: Any, config: Any, target: str, capability: int, options: BuildOptions) -> None:
    """Raises UsageError for what this TensorRT has none of."""
    flags, levels = trt.BuilderFlag, trt.HardwareCompatibilityLevel.__members__
    if target == RTX:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{capability}"), 0)
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
    if options.streams:
        config.set_flag(flags.WEIGHT_STREAMING)
    elif hasattr(flags, "REQUIRE_USER_ALLOCATION"):  # TensorRT for RTX might allocate, which no CUDA graph can hold
        config.set_flag(flags.REQUIRE_USER_ALLOCATION)
    if options.later_versions:
        config.set_flag(flags.VERSION_COMPATIBLE)
    if options.gpus is not None:
        level = options.gpus.upper().replace("-", "_").replace("SAME_", "SAME_COMPUTE_")
        if level not in levels:
            raise UsageError(f"TensorRT {trt.__version__} builds no engines for {options.gpus}. Use a later version")
        config.hardware_compatibility_level = levels[level]


def _set_timings(config: Any, timings: bytes | None) -> Any:
    """Let the builder look up what was timed before, unless another GPU or version did; returns where it adds to."""
    cache = config.create_timing_cache(timings) if timings else None
    if cache is None or not config.set_timing_cache(cache, False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache


def _monitor(trt: Any, progress: Progress) -> Any:
    """TensorRT's phases lie within each other; told is how far the outermost is.

    What is raised meanwhile, by a signal's handler for one, ends the build: it cannot pass through TensorRT itself.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._outer: dict[str, int] = {}
            self.raised: BaseException | None = None

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            if parent is None:
                self._outer[phase] = steps

        def step_complete(self, phase: str, step: int) -> bool:
            try:
                if phase in self._outer:
                    progress(phase, step + 1, self._outer[phase])
            except BaseException as exc:
                self.raised = exc
            return self.raised is None

        def phase_finish(self, phase: str) -> None:
            self._outer.pop(phase, None)

    return Monitor()


def _parse(trt: Any, network: Any, logger: Any, contents: Contents, variant: Variant, *, quantised: bool) -> Any:
    """Read a variant's graph into a network; returns its weights, which must live until the engine is built."""
    model = ir.from_proto(onnx.load_model_from_string(contents.read(variant.graph)))
    weights = map_weights(model, contents, variant)
    affine_to_symmetric(model, weights)
    biases_to_float(model, weights)
    dequantise_tables(model, weights)
    if quantised:
        attention_to_16_bits(model, weights)
    RemoveUnusedNodesPass()(model)
    parser = trt.OnnxParser(network, logger)
    loaded = parser.load_model_proto(ir.to_proto(model).SerializeToString())
    for name, array in weights.items():
        loaded = loaded and (
            name not in model.graph.initializers or parser.load_initializer(name, array.ctypes.data, array.nbytes)
        )
    if not loaded or not parser.parse_model_proto():
        raise EngineError(
            f"TensorRT {trt.__version__} cannot read {variant.graph}: {logger.told()}. Try another --variant"
        )
    return parser, weights


def _take_attention_apart(trt: Any, network: Any) -> None:
    """Let TensorRT do attention by smaller layers where it has no kernel for its sizes and types."""
    for number in range(network.num_layers):
        layer = network.get_layer(number)
        kind = _ATTENTION.get(str(layer.type).rpartition(".")[2])
        if kind is not None:
            layer.__class__ = getattr(trt, kind)
            layer.attention.decomposable = True


def _profile(builder: Any, variant: Variant, axes: Axes) -> Any:
    profile = builder.create_optimization_profile()
    for tensor in variant.inputs:
        least, most = (resolve_shape(tensor.shape, {axis: size[end] for axis, size in axes.items()}) for end in (0, 1))
        profile.set_shape(tensor.name, least, most, most)
    return profile
