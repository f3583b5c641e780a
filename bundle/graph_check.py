"""Whether an ONNX graph of a bundle is safe to hand to an engine, and is the graph its manifest declares.

The graph is parsed as data: no external file is opened, nothing is allocated from a size that the graph states.
"""

from __future__ import annotations

import math
import posixpath
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto

from kinograph.bundle.refusal import printable
from kinograph.manifest import Tensor, Variant

__all__ = ["MAX_GRAPH_BYTES", "graph_problems"]

MAX_GRAPH_BYTES = 64 << 20  # without its weights a graph is a few MB

_DOMAINS = frozenset({"", "ai.onnx", "com.microsoft"})
# Operators of TensorRT that are its own, and need no plugin: blocks of 4- and 8-bit floats, which ONNX has none for.
_TENSORRT_OPS = frozenset(
    ("trt", name) for name in ("TRT_FP4DynamicQuantize", "TRT_MXFP8DynamicQuantize", "TRT_MXFP8DequantizeLinear")
)
# Nodes of com.microsoft that load a file or run foreign code.
_FORBIDDEN_OPS = frozenset({"EPContext", "PythonOp", "PythonOpGrad", "TritonOp", "ATen", "ATenGrad"})
# ONNX Runtime can be told to take its session options from this metadata entry.
_FORBIDDEN_METADATA = frozenset({"ort_config"})
_MAX_NODES = 1 << 20  # with functions expanded; a 14B transformer has 10 000
_MAX_FUNCTIONS = 512
_MAX_DIM = 1 << 40

_EXTERNAL_KEYS = frozenset({"location", "offset", "length", "checksum"})
_DECIMAL = re.compile(r"[0-9]{1,18}")

_BITS = {
    **dict.fromkeys(("INT2", "UINT2"), 2),
    **dict.fromkeys(("INT4", "UINT4", "FLOAT4E2M1"), 4),
    **dict.fromkeys(("BOOL", "INT8", "UINT8", "FLOAT8E8M0"), 8),
    **dict.fromkeys(("FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ"), 8),
    **dict.fromkeys(("INT16", "UINT16", "FLOAT16", "BFLOAT16"), 16),
    **dict.fromkeys(("INT32", "UINT32", "FLOAT"), 32),
    **dict.fromkeys(("INT64", "UINT64", "DOUBLE", "COMPLEX64"), 64),
    "COMPLEX128": 128,
}
_DTYPES = {"FLOAT": "float32", "FLOAT16": "float16", "BFLOAT16": "bfloat16", "UINT8": "uint8", "INT64": "int64"}
_TYPED_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
_MOST_ELEMENTS_PER_ENTRY = 4  # 2-bit types are packed by fours


def graph_problems(data: bytes, variant: Variant, sizes: Mapping[str, int]) -> Iterator[str]:
    """What is wrong with the graph `data` of `variant`; `sizes` are the bundle's files in bytes."""
    try:
        model = onnx.load_model_from_string(data)
    except (DecodeError, ValueError) as exc:
        yield f"is not an ONNX model, or is cut short: {printable(exc)}"
        return
    if model.ir_version < 3 or not model.opset_import or not model.graph.node:
        yield "is not an ONNX model, or is cut short: it has no version, no operator set or no nodes"
        return
    if model.training_info:
        yield "carries training information; expected inference only"
    for entry in model.metadata_props:
        if entry.key in _FORBIDDEN_METADATA:
            yield f"sets engine options in its metadata ('{printable(entry.key)}')"
    if len(model.functions) > _MAX_FUNCTIONS or len(model.graph.node) > _MAX_NODES:
        yield f"has more than {_MAX_FUNCTIONS} functions or {_MAX_NODES} nodes"
        return
    main = _body(model.graph.node)
    functions = {_key(f.domain, f.name, f.overload): _body(f.node, f.attribute_proto) for f in model.functions}
    if len(functions) != len(model.functions):
        yield "defines a function twice"
        return
    yield from _operator_problems(model, [main, *functions.values()], functions.keys())
    yield from _expansion_problems(main, functions)
    weights = {posixpath.basename(name): sizes[name] for name in variant.weights}
    for tensor in model.graph.initializer:
        yield from _initializer_problems(tensor, weights)
    for tensor in _parts(model.graph.sparse_initializer):
        yield from _inline_problems(tensor)
    for body in (main, *functions.values()):
        for tensor in body.tensors():
            yield from _inline_problems(tensor)
    initialized = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in initialized]
    yield from _interface_problems("input", inputs, variant.inputs)
    yield from _interface_problems("output", model.graph.output, variant.outputs)


# Walking --------------------------------------------------------------------------------------------------------------


@dataclass
class _Body:
    """All that is inside the main graph or a function, at any depth: nodes, their attributes, and their subgraphs."""

    nodes: list[NodeProto]
    attributes: list[AttributeProto]
    graphs: list[GraphProto]

    def tensors(self) -> Iterator[TensorProto]:
        """Every tensor in attributes and subgraphs."""
        for attribute in self.attributes:
            yield from ([attribute.t] if attribute.HasField("t") else attribute.tensors)
            one = attribute.HasField("sparse_tensor")
            yield from _parts([attribute.sparse_tensor] if one else attribute.sparse_tensors)
        for graph in self.graphs:
            yield from graph.initializer
            yield from _parts(graph.sparse_initializer)


def _parts(sparse: Iterable[SparseTensorProto]) -> Iterator[TensorProto]:
    for tensor in sparse:
        yield from (tensor.values, tensor.indices)


def _body(nodes: Iterable[NodeProto], defaults: Iterable[AttributeProto] = ()) -> _Body:
    """What is inside `nodes`, and inside a function's default attributes. Protobuf itself limits the nesting."""
    body = _Body([], [], [])

    def add(attributes: Iterable[AttributeProto]) -> None:
        for attribute in attributes:
            body.attributes.append(attribute)
            for graph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                body.graphs.append(graph)
                add_nodes(graph.node)

    def add_nodes(inner: Iterable[NodeProto]) -> None:
        for node in inner:
            body.nodes.append(node)
            add(node.attribute)

    add_nodes(nodes)
    add(defaults)
    return body


# Operators ------------------------------------------------------------------------------------------------------------

_Key = tuple[str, str, str]  # domain, name, overload


def _key(domain: str, name: str, overload: str) -> _Key:
    return ("" if domain == "ai.onnx" else domain, name, overload)


def _operator_problems(model: ModelProto, bodies: Iterable[_Body], functions: Collection[_Key]) -> Iterator[str]:
    """Operators that would need a custom library, load a file or run foreign code."""
    known = _DOMAINS | {domain for domain, _, _ in functions} | {domain for domain, _ in _TENSORRT_OPS}
    for domain in sorted({i.domain for holder in (model, *model.functions) for i in holder.opset_import} - known):
        yield f"imports the operator set '{printable(domain)}'; expected only ONNX's own, com.microsoft and trt"
    refused: set[tuple[str, str]] = set()
    for body in bodies:
        for node in body.nodes:
            name = (node.domain, node.op_type)
            own = node.domain in _DOMAINS or name in _TENSORRT_OPS
            if node.op_type in _FORBIDDEN_OPS or not (own or _key(*name, node.overload) in functions):
                refused.add(name)
    for domain, op_type in sorted(refused):
        operator = printable(f"{domain}.{op_type}".lstrip("."))
        yield f"uses the operator '{operator}', which is custom, loads files or runs foreign code"


def _expansion_problems(main: _Body, functions: Mapping[_Key, _Body]) -> Iterator[str]:
    """Functions that call themselves, or that expand to a graph without bounds."""
    calls = {key: _calls(body) for key, body in functions.items()}
    graph = {key: count.keys() & functions.keys() for key, count in calls.items()}
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as exc:
        yield f"has a function that calls itself: {printable(' → '.join(name for _, name, _ in exc.args[1]))}"
        return
    size: dict[_Key, int] = {}
    for key in order:
        size[key] = 1 + sum(count * size.get(callee, 1) for callee, count in calls[key].items())
    if sum(count * size.get(callee, 1) for callee, count in _calls(main).items()) > _MAX_NODES:
        yield f"has more than {_MAX_NODES} nodes once its functions are expanded"


def _calls(body: _Body) -> Counter[_Key]:
    return Counter(_key(node.domain, node.op_type, node.overload) for node in body.nodes)


# Tensors --------------------------------------------------------------------------------------------------------------


def _is_external(tensor: TensorProto) -> bool:
    return tensor.data_location == TensorProto.EXTERNAL or bool(tensor.external_data)


def _type_name(data_type: int) -> str:
    return (
        str(TensorProto.DataType.Name(data_type)) if data_type in TensorProto.DataType.values() else f"type {data_type}"
    )


def _byte_size(tensor: TensorProto) -> int | str:
    """How many bytes the tensor's dimensions and type come to, or why they make no sense."""
    bits = _BITS.get(_type_name(tensor.data_type))
    if bits is None:
        return f"has the element type {_type_name(tensor.data_type)}, whose size is not fixed"
    if any(dim < 0 or dim > _MAX_DIM for dim in tensor.dims):
        return f"has the shape {printable(list(tensor.dims))}; expected dimensions from 0 to {_MAX_DIM}"
    elements: int = math.prod(tensor.dims)
    return (elements * bits + 7) // 8


def _initializer_problems(tensor: TensorProto, weights: Mapping[str, int]) -> Iterator[str]:
    """An initializer of the main graph: the only kind that may live in a weight file."""
    if not _is_external(tensor):
        yield from _inline_problems(tensor)
        return
    at = f"initializer '{printable(tensor.name)}'"
    keys = [entry.key for entry in tensor.external_data]
    unknown = sorted(set(keys) - _EXTERNAL_KEYS)
    if unknown or len(set(keys)) != len(keys) or tensor.data_location != TensorProto.EXTERNAL:
        yield f"{at} has malformed external data: the keys are {printable(keys)}, expected location, offset and length"
        return
    if tensor.raw_data or any(len(getattr(tensor, field)) for field in _TYPED_FIELDS):
        yield f"{at} has data both inside and outside the graph"
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    if location not in weights:
        listed = printable(", ".join(weights) or "none")
        yield f"{at} is read from '{printable(location)}'; expected one of the variant's weights ({listed})"
        return
    texts = (entries.get("offset", "0"), entries.get("length", ""))
    if not all(_DECIMAL.fullmatch(text) for text in texts):
        yield f"{at} has offset '{printable(texts[0])}' and length '{printable(texts[1])}'; expected decimal numbers"
        return
    offset, length = (int(text) for text in texts)
    size = _byte_size(tensor)
    if isinstance(size, str):
        yield f"{at} {size}"
    elif length != size:
        yield f"{at} has length {length}, expected {size} for its shape and type"
    elif offset + length > weights[location]:
        yield f"{at} ends at byte {offset + length} of '{printable(location)}', which has {weights[location]} bytes"


def _inline_problems(tensor: TensorProto) -> Iterator[str]:
    """A tensor that must be in the graph itself, with as much data as its dimensions say."""
    at = f"tensor '{printable(tensor.name)}'"
    if _is_external(tensor):
        yield f"{at} has external data; only initializers of the main graph may"
        return
    if tensor.HasField("segment"):
        yield f"{at} is stored in segments"
        return
    if tensor.data_type == TensorProto.STRING:
        if math.prod(tensor.dims) != len(tensor.string_data):
            yield f"{at} has {len(tensor.string_data)} strings, and its shape is {printable(list(tensor.dims))}"
        return
    size = _byte_size(tensor)
    if isinstance(size, str):
        yield f"{at} {size}"
    elif tensor.HasField("raw_data"):
        if len(tensor.raw_data) != size:
            yield f"{at} has {len(tensor.raw_data)} bytes, expected {size} for its shape and type"
    elif math.prod(tensor.dims) > _MOST_ELEMENTS_PER_ENTRY * sum(
        len(getattr(tensor, field)) for field in _TYPED_FIELDS
    ):
        yield f"{at} has less data than its shape {printable(list(tensor.dims))} says"


# Interface ------------------------------------------------------------------------------------------------------------


def _interface_problems(role: str, found: Iterable[onnx.ValueInfoProto], declared: tuple[Tensor, ...]) -> Iterator[str]:
    """Inputs or outputs that are not what the manifest declares."""
    actual = {value.name: value for value in found}
    names = {tensor.name for tensor in declared}
    for name in sorted(actual.keys() - names):
        yield f"has the {role} '{printable(name)}', which the manifest does not declare"
    for tensor in declared:
        if tensor.name not in actual:
            yield f"lacks the {role} '{tensor.name}' that the manifest declares"
            continue
        problem = _mismatch(actual[tensor.name], tensor)
        if problem is not None:
            yield f"{role} '{tensor.name}' {problem}"


def _mismatch(value: onnx.ValueInfoProto, tensor: Tensor) -> str | None:
    """How a graph's tensor differs from the declared one. A dimension that the graph leaves open fits any."""
    kind = value.type.tensor_type
    dtype = _DTYPES.get(_type_name(kind.elem_type), _type_name(kind.elem_type))
    if not value.type.HasField("tensor_type") or dtype != tensor.dtype:
        return f"is {dtype}; the manifest declares {tensor.dtype}"
    if not kind.HasField("shape"):
        return f"has no shape; the manifest declares {list(tensor.shape)}"
    shape = [dim.dim_value if dim.HasField("dim_value") else (dim.dim_param or "?") for dim in kind.shape.dim]
    fits = len(shape) == len(tensor.shape) and all(
        isinstance(dim, str) or dim == axis for dim, axis in zip(shape, tensor.shape, strict=True)
    )
    return None if fits else f"has the shape {printable(shape)}; the manifest declares {list(tensor.shape)}"
