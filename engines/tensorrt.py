"""TensorRT engines, built ahead of time: TensorRT for RTX builds for a GPU that is not there.

Only building is here so far; the engines are ordinary TensorRT plans, for whoever loads them.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from kinograph.engines.rewrites.symmetric import affine_to_symmetric, biases_to_float
from kinograph.engines.rewrites.table import dequantise_tables
from kinograph.engines.weights import map_weights
from kinograph.errors import EngineError, MissingExtraError, UsageError
from kinograph.manifest import resolve_shape

if TYPE_CHECKING:
    from kinograph.engines.protocol import Contents
    from kinograph.manifest import Variant

__all__ = ["Axes", "build", "builder_version", "capabilities"]

Axes = Mapping[str, tuple[int, int]]
"""The least and the greatest size of every axis; engines are fastest at the greatest."""

_MODULES = ("tensorrt_rtx", "tensorrt_rtx_bindings")  # the package, and what it wraps
_ATTENTION = {"ATTENTION_INPUT": "IAttentionInputLayer", "ATTENTION_OUTPUT": "IAttentionOutputLayer"}
_MOST_ERRORS = 3  # told
_FLOAT8, _FLOAT8_FROM = "fp8", 89


def builder_version() -> str:
    """TensorRT for RTX and its version. Raises MissingExtraError where it is not installed."""
    return f"TensorRT for RTX {_module().__version__}"


def capabilities() -> list[int]:
    """The compute capabilities that can be built for: 89 is that of Ada Lovelace, 120 that of Blackwell."""
    names = _module().ComputeCapability.__members__
    return sorted(int(name[2:]) for name in names if name.startswith("SM"))


def build(contents: Contents, component: str, precision: str, *, capability: int, axes: Axes) -> bytes:
    """A component as a TensorRT engine for GPUs of one compute capability, for sizes within `axes`.

    Every type is the graph's own. Attention that has no kernel of its own is taken apart. Raises UsageError for a
    capability or a variant that there is none of, EngineError where TensorRT refuses.
    """
    trt = _module()
    if capability not in capabilities():
        there = ", ".join(map(str, capabilities()))
        raise UsageError(f"compute capability {capability} cannot be built for; expected one of: {there}. Use --sm.")
    variants = contents.component(component).variants
    if precision not in variants:
        raise UsageError(f"{component} has no variant {precision!r}; it has: {', '.join(variants)}. Use --variant.")
    variant = variants[precision]
    if precision == _FLOAT8 and capability < _FLOAT8_FROM:
        raise UsageError(
            f"{precision} needs compute capability {_FLOAT8_FROM} or later, and {capability} has no arithmetic of that "
            "kind. Use --variant int8 or bf16."
        )
    logger = _logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    weights = _parse(trt, network, logger, contents, variant)
    _take_attention_apart(trt, network)
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{capability}"), 0)
    config.add_optimization_profile(_profile(builder, variant, axes))
    plan = builder.build_serialized_network(network, config)
    del weights  # which the parser read in place
    if plan is None:
        raise EngineError(
            f"{builder_version()} cannot build {component} in {precision} for compute capability {capability}: "
            f"{logger.told()}. Try another --variant"
        )
    return bytes(plan)


def _module() -> Any:
    for name in _MODULES:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise MissingExtraError("building TensorRT engines", "tensorrt")


def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        """Keeps what went wrong, and prints nothing."""

        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self.errors.append(" ".join(message.split()))

        def told(self) -> str:
            return "; ".join(error[:300] for error in self.errors[-_MOST_ERRORS:]) or "it does not say why"

    return Logger()


def _parse(trt: Any, network: Any, logger: Any, contents: Contents, variant: Variant) -> Any:
    """Read a variant's graph into a network; returns its weights, which must live until the engine is built."""
    model = ir.from_proto(onnx.load_model_from_string(contents.read(variant.graph)))
    weights = map_weights(model, contents, variant)
    affine_to_symmetric(model, weights)
    biases_to_float(model, weights)
    dequantise_tables(model, weights)
    RemoveUnusedNodesPass()(model)
    parser = trt.OnnxParser(network, logger)
    data = ir.to_proto(model).SerializeToString()
    loaded = parser.load_model_proto(data)
    for name, array in weights.items():
        loaded = loaded and (
            name not in model.graph.initializers or parser.load_initializer(name, array.ctypes.data, array.nbytes)
        )
    if not loaded or not parser.parse_model_proto():
        raise EngineError(f"{builder_version()} cannot read {variant.graph}: {logger.told()}. Try another --variant")
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
