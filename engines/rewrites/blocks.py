"""Blocks of 4- and 8-bit floats → float32, which they are rounded to: ONNX Runtime has no such numbers on the CPU.

TensorRT's operators find the scales of an activation's blocks when they run. Here is what they compute in ONNX's own,
so that a graph for a GPU gives on any CPU what it gives there: MXFP8 (OCP MX 1.0, with exponents rounded up, as NVIDIA
does) and NVFP4 (arXiv:2509.25149).
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from kinograph.errors import BundleError

__all__ = ["blocks_to_float32"]

_LARGEST_E4M3, _LARGEST_E2M1 = 448.0, 6.0
_LEAST_POWER = 2.0**-126  # below are numbers that a processor may take for zero
_NIBBLE = 0x0F
_FLOAT, _FLOAT8, _FLOAT4 = ir.DataType.FLOAT, ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT4E2M1
_E8M0 = ml_dtypes.float8_e8m0fnu


def blocks_to_float32(model: ir.Model, weights: MutableMapping[str, Any]) -> None:
    """Make floats of every weight in blocks, and round every activation that is quantised in blocks.

    Raises BundleError where blocks are used in any other way.
    """
    graph = model.graph
    written = {"TRT_MXFP8DynamicQuantize": _microscaled, "TRT_FP4DynamicQuantize": _nvfp4}
    for node in list(graph):
        if node.op_type in written:
            back = _only_user(node)
            _replace(model, back, node, written[node.op_type](_Writer(model, str(node.name)), node))
    for node in list(graph):
        blocked = node.op_type == "TRT_MXFP8DequantizeLinear" or (
            node.op_type == "DequantizeLinear" and node.inputs[0] is not None and node.inputs[0].dtype == _FLOAT4
        )
        if blocked and node.graph is graph:
            _store_floats(model, node, weights)
    RemoveUnusedNodesPass()(model)
    for name in [name for name in weights if name not in graph.initializers]:
        del weights[name]
    graph.opset_imports.pop("trt", None)


def _store_floats(model: ir.Model, node: ir.Node, weights: MutableMapping[str, Any]) -> None:
    """Let a weight be the floats that it stands for."""
    values, scale = _inputs(node)
    if node.op_type == "TRT_MXFP8DequantizeLinear":
        scales = _array(scale, weights).view(_E8M0).astype(np.float32)
    else:
        inner = scale.producer()
        if inner is None:
            raise _misused(node, "scales that are no constants")
        one, whole = _inputs(inner)
        scales = _array(one, weights).astype(np.float32) * _array(whole, weights)
    floats, size, axis = (
        _array(values, weights).astype(np.float32),
        _attribute(node, "block_size"),
        _attribute(node, "axis"),
    )
    if axis != 0 or not floats.ndim or scales.ndim != floats.ndim or len(scales) * size != len(floats):
        raise _misused(node, f"blocks of {size} along axis {axis} of {list(floats.shape)}, scales {list(scales.shape)}")
    floats *= np.repeat(scales, size, axis=0)
    name = f"{values.name}.float"
    new = ir.Value(name=name, shape=ir.Shape(floats.shape), type=ir.TensorType(_FLOAT))
    new.const_value = ir.tensor(floats, name=name)
    model.graph.initializers[name] = new
    weights[name] = floats
    ir.convenience.replace_all_uses_with(node.outputs[0], new)
    model.graph.remove(node, safe=True)


def _misused(node: ir.Node, what: str) -> BundleError:
    return BundleError(f"{node.op_type} {node.name!r} has {what}. Quantise the bundle again")


def _inputs(node: ir.Node) -> tuple[ir.Value, ir.Value]:
    first, second = (*node.inputs, None, None)[:2]
    if first is None or second is None:
        raise _misused(node, "fewer than two inputs")
    return first, second


def _attribute(node: ir.Node, name: str) -> int:
    if name not in node.attributes:
        raise _misused(node, f"no {name}")
    return node.attributes[name].as_int()


def _array(value: ir.Value, weights: MutableMapping[str, Any]) -> Any:
    """A constant; of numbers of 4 bits, two to a byte, one each."""
    held = weights.get(str(value.name))
    if held is None:
        if value.const_value is None:
            raise BundleError(f"{value.name!r} is no constant, and cannot be a weight in blocks")
        return value.const_value.numpy()
    if value.dtype != _FLOAT4:
        return held
    pairs = np.stack([held & _NIBBLE, held >> 4], axis=-1).view(ml_dtypes.float4_e2m1fn)
    return pairs.reshape(tuple(value.shape.numpy()) if value.shape is not None else -1)


class _Writer:
    """Writes nodes in order, which are named after `name`."""

    def __init__(self, model: ir.Model, name: str) -> None:
        self.model, self.name = model, name
        self.nodes: list[ir.Node] = []

    def __call__(self, operator: str, *inputs: ir.Value | float | np.ndarray[Any, Any], **attributes: Any) -> ir.Value:
        values = [value if isinstance(value, ir.Value) else self._constant(value) for value in inputs]
        self.nodes.append(ir.node(operator, values, attributes, name=f"{self.name}.{len(self.nodes)}"))
        return self.nodes[-1].outputs[0]

    def _constant(self, value: float | np.ndarray[Any, Any]) -> ir.Value:
        array = value if isinstance(value, np.ndarray) else np.array(value, np.float32)
        name = f"{self.name}.constant_{len(self.nodes)}_{len(self.model.graph.initializers)}"
        made = ir.Value(name=name, shape=ir.Shape(array.shape), const_value=ir.tensor(array, name=name))
        made.dtype = ir.DataType.from_numpy(array.dtype)
        self.model.graph.initializers[name] = made
        return made


def _in_blocks(write: _Writer, node: ir.Node, rounded: Callable[[ir.Value, ir.Value], ir.Value]) -> ir.Value:
    """`rounded` of an activation's blocks [N, size] and of the largest of each, [N, 1], in the activation's shape."""
    x = node.inputs[0]
    if x is None:
        raise _misused(node, "no input")
    blocks = write("Reshape", x, np.array([-1, _attribute(node, "block_size")], np.int64))
    largest = write("ReduceMax", write("Abs", blocks), np.array([1], np.int64))
    return write("Reshape", rounded(blocks, largest), write("Shape", x))


def _microscaled(write: _Writer, node: ir.Node) -> list[ir.Node]:
    def rounded(blocks: ir.Value, largest: ir.Value) -> ir.Value:
        wanted = write("Div", largest, _LARGEST_E4M3)
        logarithm = write("Div", write("Log", write("Max", wanted, _LEAST_POWER)), float(np.log(2)))
        near = write("Pow", 2.0, write("Round", logarithm))  # within one of what is wanted, for logarithms are rounded
        lower, upper = write("Mul", near, 0.5), write("Mul", near, 2.0)
        power = write("Where", write("Less", near, wanted), upper, near)
        power = write("Where", write("GreaterOrEqual", lower, wanted), lower, power)
        power = write("Max", power, _LEAST_POWER)
        values = write("Cast", write("Div", blocks, power), to=_FLOAT8)
        return write("Mul", write("Cast", values, to=_FLOAT), power)

    _in_blocks(write, node, rounded)
    return write.nodes


def _nvfp4(write: _Writer, node: ir.Node) -> list[ir.Node]:
    whole = _inputs(node)[1]

    def rounded(blocks: ir.Value, largest: ir.Value) -> ir.Value:
        scale = write("Div", write("Div", largest, _LARGEST_E2M1), whole)
        scale = write("Cast", write("Cast", scale, to=_FLOAT8), to=_FLOAT)  # what is too large becomes the largest
        scale = write("Mul", scale, whole)
        divisor = write("Where", write("Equal", scale, 0.0), 1.0, scale)
        steps = write("Min", write("Div", write("Abs", blocks), divisor), _LARGEST_E2M1)
        # E2M1 has 0, ½, 1, 1½, then 2, 3, then 4, 6
        step = write("Where", write("Less", steps, 2.0), 0.5, write("Where", write("Less", steps, 4.0), 1.0, 2.0))
        values = write("Mul", write("Round", write("Div", steps, step)), step)
        return write("Mul", write("Mul", values, write("Sign", blocks)), scale)

    _in_blocks(write, node, rounded)
    return write.nodes


def _only_user(node: ir.Node) -> ir.Node:
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or len(node.outputs) != 2:
        raise _misused(node, f"{len(uses)} readers, expected what makes floats of it alone")
    return uses[0].node


def _replace(model: ir.Model, back: ir.Node, there: ir.Node, new: list[ir.Node]) -> None:
    """Put what rounds an activation in place of what quantises it and what makes floats of it again."""
    output, graph = new[-1].outputs[0], model.graph
    output.shape, output.dtype = back.outputs[0].shape or there.inputs[0].shape, _FLOAT  # type: ignore[union-attr]
    graph.insert_before(there, new)
    ir.convenience.replace_all_uses_with(back.outputs[0], output)
    scales = [use.node for use in there.outputs[1].uses() if use.node is not back]
    graph.remove([back, *scales, there], safe=True)
