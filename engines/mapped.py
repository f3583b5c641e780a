"""Weights that would fill the memory: read where they are mapped, which is in the bundle's verified files.

ONNX Runtime keeps its own copy of every initializer, packed for its kernels. What is an input of a graph it reads where
it lies, and the system takes that memory back wherever it needs it. Floats of 16 bits are made float32 when their
product is computed, one after the other, for there is no arithmetic of 16 bits on a CPU.
"""

from __future__ import annotations

from collections.abc import MutableMapping

import numpy as np
import onnx_ir as ir

from kinograph.engines.protocol import Array

__all__ = ["HALVES", "floats_as_inputs", "halves_as_inputs", "take_halves"]

HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)

_READ = frozenset({"MatMul", "Gemm", "Gather"})  # which reads a weight where it lies, packed or not
_ADDED = 2  # the input of a Gemm that is no factor
_LEAST = 1 << 16  # bytes; of smaller ones a copy is cheaper than a node


def floats_as_inputs(model: ir.Model, weights: MutableMapping[str, Array]) -> dict[str, Array]:
    """Make the float32 weights of products and look-ups inputs of the graph; takes them out of `weights`."""
    mapped: dict[str, Array] = {}
    for name in list(weights):
        if weights[name].dtype == np.float32 and _is_read(model.graph.initializers[name]):
            mapped[name] = weights.pop(name)
            _make_input(model.graph, name)
    return mapped


def take_halves(model: ir.Model, weights: MutableMapping[str, Array]) -> dict[str, Array]:
    """Take the 16-bit weights of products and look-ups out of `weights`, before rewrites make floats of them."""
    return {
        name: weights.pop(name)
        for name, value in model.graph.initializers.items()
        if name in weights and value.dtype in HALVES and weights[name].nbytes >= _LEAST and _is_read(value)
    }


def halves_as_inputs(model: ir.Model, halves: MutableMapping[str, Array]) -> None:
    """Make weights that were taken inputs of the graph, which is in float32 by now, cast right before their products.

    Of a table, what is looked up is cast.
    """
    graph = model.graph
    for name, array in halves.items():
        value = graph.initializers[name]
        uses = list(value.uses())
        _make_input(graph, name)
        value.dtype = half = ir.DataType.from_numpy(array.dtype)
        for number, (node, index) in enumerate(uses):
            if node.op_type == "Gather":
                _cast_rows(graph, node, half)
            else:
                _cast_weight(graph, value, node, index, f"{name}.{number}")


def _cast_weight(graph: ir.Graph, weight: ir.Value, node: ir.Node, index: int, name: str) -> None:
    """Cast a weight that a product reads, and not before the other factor is there.

    ONNX Runtime computes what waits for nothing at the very beginning, and would have all weights in float32 at once.
    So the weight is given the shape that it has, and that shape is computed from the other factor.
    """

    def made(operator: str, inputs: list[ir.Value | None], dtype: ir.DataType, shape: ir.Shape) -> ir.Value:
        attributes = {"to": ir.DataType.FLOAT} if operator == "Cast" else {}
        maker = ir.node(operator, inputs, attributes, name=f"{name}.{operator}")
        value = maker.outputs[0]
        value.name, value.shape, value.type = maker.name, shape, ir.TensorType(dtype)
        graph.insert_before(node, maker)
        return value

    assert isinstance(weight.shape, ir.Shape)
    assert weight.dtype is not None
    own = np.array(weight.shape.numpy(), np.int64)
    size = made("Size", [node.inputs[1 - index]], ir.DataType.INT64, ir.Shape(()))
    nothing = made("Mul", [size, _constant(graph, f"{name}.zero", np.array(0))], ir.DataType.INT64, ir.Shape(()))
    shape = made("Add", [_constant(graph, f"{name}.shape", own), nothing], ir.DataType.INT64, ir.Shape(own.shape))
    there = made("Reshape", [weight, shape], weight.dtype, weight.shape)
    node.replace_input_with(index, made("Cast", [there], ir.DataType.FLOAT, weight.shape))


def _constant(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(ir.DataType.INT64), const_value=tensor)
    graph.initializers[name] = value
    return value


def _cast_rows(graph: ir.Graph, node: ir.Node, dtype: ir.DataType) -> None:
    rows = node.outputs[0]
    cast = ir.node("Cast", [rows], {"to": ir.DataType.FLOAT}, name=f"{node.name}.cast")
    cast.outputs[0].name = f"{rows.name}.float32"
    cast.outputs[0].shape, cast.outputs[0].dtype = rows.shape, ir.DataType.FLOAT
    ir.convenience.replace_all_uses_with(rows, cast.outputs[0])
    cast.replace_input_with(0, rows)
    rows.dtype = dtype
    graph.insert_after(node, cast)


def _is_read(value: ir.Value) -> bool:
    """Whether nothing but products and look-ups reads it, and no product as what is added to it."""
    return all(use.node.op_type in _READ and use.idx < _ADDED for use in value.uses())


def _make_input(graph: ir.Graph, name: str) -> None:
    value = graph.initializers.pop(name)
    value.const_value = None
    graph.inputs.append(value)
