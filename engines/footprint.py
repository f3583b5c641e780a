"""How much memory a graph's values need at certain sizes, told from the graph alone.

A value lives from the node that makes it to the last that reads it; the most that ever live at once are the
activations. Shapes are the graph's own, in symbols that the exporter named: ONNX's shape inference at the sizes asked
for says how large those of the symbols are that it gets to, and they say the rest.
"""

from __future__ import annotations

import ast
import math
import operator
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import onnx
import onnx_ir as ir

from kinograph.manifest import resolve_shape

if TYPE_CHECKING:
    from kinograph.engines.protocol import Contents
    from kinograph.manifest import Variant

__all__ = ["Footprint", "activation_bytes", "largest_factor_bytes"]

_OPERATORS: Mapping[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_HELD_OUTSIDE = frozenset({"Constant", "DequantizeLinear"})  # nodes whose result a backend keeps elsewhere, or folds
# Every video asks again, and of four components it takes longer than a step of the starter.
_told: dict[tuple[str, frozenset[tuple[str, int]], bool], int] = {}
_HALVES = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})

Shape = list[int | str | None]


class Footprint(NamedTuple):
    """The bytes that a component's weights take on a device, and what it computes with beside them at certain sizes."""

    weights: int
    activations: int


def activation_bytes(contents: Contents, variant: Variant, axes: Mapping[str, int], *, widened: bool = False) -> int:
    """The most bytes that values between a variant's inputs and outputs take at once, at these sizes of its axes.

    Those of 16-bit floats count as float32 if they are `widened` when the graph is opened.
    What has no shape that can be told counts nothing, so this is a lower bound; of exported graphs that is scalars.
    """
    asked = contents.sha256(variant.graph), frozenset(axes.items()), widened
    if asked not in _told:
        _told[asked] = _activation_bytes(contents.read(variant.graph), variant, axes, widened)
    return _told[asked]


def largest_factor_bytes(contents: Contents, variant: Variant) -> int:
    """The bytes of the largest stored matrix that a product of a variant's graph reads."""
    graph = onnx.load_model_from_string(contents.read(variant.graph)).graph
    factors = {name for node in graph.node if node.op_type in ("MatMul", "Gemm") for name in node.input}
    sizes = (
        math.prod(tensor.dims) * ir.DataType(tensor.data_type).itemsize
        for tensor in graph.initializer
        if tensor.name in factors
    )
    return math.ceil(max(sizes, default=0))


def _activation_bytes(graph: bytes, variant: Variant, axes: Mapping[str, int], widened: bool) -> int:
    proto = onnx.load_model_from_string(graph)
    symbolic = {value.name: _shape(value) for value in proto.graph.value_info}
    inferred = _inferred(proto, {tensor.name: resolve_shape(tensor.shape, axes) for tensor in variant.inputs})
    sizes = _solved(symbolic, inferred, axes)
    types = {value.name: value.type.tensor_type.elem_type for value in _values(proto)}
    found: dict[str, int] = {}
    for name in symbolic.keys() | inferred.keys():
        shape = _resolved(symbolic.get(name), inferred.get(name), sizes)
        if shape is not None:
            own = ir.DataType(types.get(name, 1))
            bytes_each = ir.DataType.FLOAT.itemsize if widened and own in _HALVES else own.itemsize
            found[name] = math.ceil(math.prod(shape) * bytes_each)
    return _most_alive(proto.graph, found)


def _values(proto: onnx.ModelProto) -> Iterator[Any]:
    yield from proto.graph.value_info
    yield from proto.graph.output


def _shape(value: Any) -> Shape:
    dims = value.type.tensor_type.shape.dim
    return [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in dims]


def _inferred(proto: onnx.ModelProto, inputs: Mapping[str, tuple[int, ...]]) -> dict[str, Shape]:
    """Shapes by ONNX's own inference, of which it leaves some dimensions open."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    del copy.graph.value_info[:]
    for value in copy.graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, inputs[value.name], strict=True):
            dim.dim_value = size
    for value in copy.graph.output:
        value.type.tensor_type.ClearField("shape")
    done = onnx.shape_inference.infer_shapes(copy, data_prop=True)
    known = [value for value in _values(done) if value.type.tensor_type.HasField("shape")]
    return {value.name: [dim if isinstance(dim, int) else None for dim in _shape(value)] for value in known}


def _solved(symbolic: Mapping[str, Shape], inferred: Mapping[str, Shape], axes: Mapping[str, int]) -> dict[str, int]:
    """The sizes of the graph's symbols, where a value has one in a dimension that inference got to."""
    sizes = dict(axes)
    for name, shape in symbolic.items():
        for symbol, size in zip(shape, inferred.get(name, []), strict=False):
            if not isinstance(symbol, str) or size is None or not isinstance(size, int):
                continue
            factor, _, rest = symbol.rpartition("*")
            if rest.isidentifier() and (not factor or factor.isdecimal()):
                sizes.setdefault(rest, size // int(factor or 1))
    return sizes


def _resolved(symbolic: Shape | None, inferred: Shape | None, sizes: Mapping[str, int]) -> list[int] | None:
    shape: list[int] = []
    rank = len(symbolic if symbolic is not None else inferred or [])
    for index in range(rank):
        exact = inferred[index] if inferred is not None and len(inferred) == rank else None
        told = symbolic[index] if symbolic is not None else None
        size = exact if isinstance(exact, int) else told
        if isinstance(size, str):
            size = _evaluated(size, sizes)
        if not isinstance(size, int):
            return None
        shape.append(size)
    return shape


def _evaluated(expression: str, sizes: Mapping[str, int]) -> int | None:
    """A dimension such as `4*s39 + 1`, or None where it is of another kind or has a symbol that nobody knows."""

    def value(node: ast.AST) -> int:
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        if isinstance(node, ast.Name):
            return sizes[node.id]
        if isinstance(node, ast.BinOp):
            return _OPERATORS[type(node.op)](value(node.left), value(node.right))
        raise KeyError(ast.dump(node))

    try:
        return value(ast.parse(expression, mode="eval").body)
    except (KeyError, SyntaxError, ZeroDivisionError):
        return None


def _most_alive(graph: onnx.GraphProto, sizes: Mapping[str, int]) -> int:
    outputs = {value.name for value in graph.output}
    last = {name: number for number, node in enumerate(graph.node) for name in node.input}
    ends: dict[int, list[str]] = defaultdict(list)
    alive = most = 0
    for number, node in enumerate(graph.node):
        for name in node.output:
            if name in sizes and name not in outputs and node.op_type not in _HELD_OUTSIDE:
                alive += sizes[name]
                ends[last.get(name, number)].append(name)
        most = max(most, alive)
        alive -= sum(sizes[name] for name in ends.pop(number, ()))
    return most
