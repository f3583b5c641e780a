"""Stores weights in fewer bits that are computed with as floats: `DequantizeLinear` on the constant, nothing else.

It needs no ranges and costs little, so it is for what is left once the products are planned: layers that stay float
because they do most harm, embeddings of time and patches, plain convolutions, and text encoders as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from kinograph.bundle.weights import StreamedTensor
from kinograph.calibration.block_numerics import int4_scales, int4_values
from kinograph.calibration.layers import constant
from kinograph.calibration.numerics import QuantisedWeight, weight_scale, weight_values
from kinograph.calibration.recipes.blocks import Blocks

__all__ = ["LaterWeight", "later_constant", "store_blocks", "store_weights"]

Floats = npt.NDArray[np.float32]

_FEWEST = 2048  # elements: below, a scale for each channel and a node more outweigh what is saved
_BLOCK = 1 << 24  # elements that are quantised at a time
_MATRIX = 2
_FOUR_BITS = (ir.DataType.INT4, ir.DataType.FLOAT4E2M1)
_NIBBLE, _HALF = np.uint8(0x0F), np.uint8(4)


class LaterWeight(StreamedTensor):
    """A constant of 8 bits, or of 4 that are packed, made when it is written; `make` gives it in pieces of rows."""

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        make: Callable[[], Iterator[npt.NDArray[Any]]],
        dtype: ir.DataType = ir.DataType.INT8,
    ) -> None:
        self._make = make
        super().__init__(self._whole, dtype=dtype, shape=ir.Shape(shape), name=name)

    @classmethod
    def of(cls, name: str, like: npt.NDArray[Any], make: Callable[[], QuantisedWeight]) -> LaterWeight:
        """The values of a weight that is small enough to be made at once, of the shape and type of `like`."""
        dtype = ir.DataType.from_numpy(like.dtype)

        def values() -> Iterator[npt.NDArray[Any]]:
            made = make().values
            yield _packed(made.view(np.uint8)) if dtype in _FOUR_BITS else made

        return cls(name, like.shape, values, dtype)

    def pieces(self) -> Iterator[memoryview]:
        for block in self._make():
            yield np.ascontiguousarray(block).view(np.uint8).data

    def _whole(self) -> ir.TensorProtocol:
        data = np.concatenate(list(self._make()))
        if self.dtype in _FOUR_BITS:
            return ir.PackedTensor(data, self.dtype, shape=self.shape, name=self.name)
        return ir.tensor(data, name=self.name)


def store_weights(model: ir.Model, weights: Mapping[str, npt.NDArray[Any]]) -> None:
    """Put what products, convolutions and look-ups of `model` read of `weights` into int8, in place.

    Each output channel has a scale of its own, and so has each row of a table. Small tensors stay as they are.
    """
    for name, value in list(model.graph.initializers.items()):
        if name not in weights or weights[name].size < _FEWEST or value.is_graph_output() or not value.uses():
            continue
        uses = list(value.uses())
        axis, *others = {_channels(use.node, use.idx) for use in uses}
        if axis is None or others:
            continue
        scale = weight_scale(weights[name], axis)
        stored = _later(model, f"{name}.int8", weights[name], scale, axis)
        scales = constant(model, f"{name}.scale", scale)
        for node, index in uses:
            if node.op_type == "Gather":
                _look_up(model, node, stored, scales)
            else:
                back = ir.node("DequantizeLinear", [stored, scales], {"axis": axis}, name=f"{node.name}.weight")
                model.graph.insert_before(node, back)
                node.replace_input_with(index, back.outputs[0])
        del model.graph.initializers[name]


def store_blocks(model: ir.Model, weights: Mapping[str, npt.NDArray[Any]], recipe: Blocks) -> None:
    """Put what products of `model` read of `weights` into 4 bits by blocks, in place, and the rest as `store_weights`.

    Weights whose input channels do not divide into blocks are part of the rest.
    """
    for name, value in list(model.graph.initializers.items()):
        weight, uses = weights.get(name), list(value.uses())
        if weight is None or weight.size < _FEWEST or value.is_graph_output() or not uses:
            continue
        if {(use.node.op_type, use.node.domain, use.idx) for use in uses} != {("MatMul", "", 1)}:
            continue
        if weight.ndim != _MATRIX or len(weight) % recipe.size:
            continue
        found = [int4_scales(part, recipe.size, search=recipe.search) for part in _parts(weight, recipe)]
        scale = np.concatenate(found)
        stored = later_constant(model, _later_blocks(f"{name}.int4", weight, scale, recipe))
        scales = constant(model, f"{name}.scales", scale)
        attributes = {"axis": 0, "block_size": recipe.size}
        for node, index in uses:
            back = ir.node("DequantizeLinear", [stored, scales], attributes, name=f"{node.name}.weight")
            back.outputs[0].shape, back.outputs[0].dtype = ir.Shape(weight.shape), ir.DataType.FLOAT
            model.graph.insert_before(node, back)
            node.replace_input_with(index, back.outputs[0])
        del model.graph.initializers[name]
    store_weights(model, weights)


def _parts(weight: Floats, recipe: Blocks) -> Iterator[Floats]:
    """Whole blocks of a weight [K, N], as many as fit into memory at a time, and an even number of rows."""
    rows = 2 * recipe.size * max(1, _BLOCK // (2 * recipe.size * weight.shape[1]))
    for start in range(0, len(weight), rows):
        yield weight[start : start + rows]


def _later_blocks(name: str, weight: Floats, scale: Floats, recipe: Blocks) -> LaterWeight:
    """The initializer `name`: `weight` in 4 bits, two to a byte."""

    def packed() -> Iterator[npt.NDArray[np.uint8]]:
        done = 0
        for part in _parts(weight, recipe):
            blocks = len(part) // recipe.size
            yield _packed(int4_values(part, scale[done : done + blocks]).view(np.uint8))
            done += blocks

    return LaterWeight(name, weight.shape, packed, ir.DataType.INT4)


def _packed(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The lower halves of bytes, two to a byte, the first in the lower half."""
    pairs = values.reshape(-1, 2) & _NIBBLE
    return np.asarray(np.bitwise_or(pairs[:, 0], np.left_shift(pairs[:, 1], _HALF)), np.uint8)


def _channels(node: ir.Node, index: int) -> int | None:
    """The axis of output channels in the constant that is the node's input `index`; None where it has none."""
    if node.domain:
        return None
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    match node.op_type, index:
        case "MatMul", 1:
            rank = None if node.inputs[1] is None or node.inputs[1].shape is None else node.inputs[1].shape.rank()
            return 1 if rank == 2 else None
        case "Gemm", 1:
            return 0 if attributes.get("transB", 0) else 1
        case "Conv", 1:
            return 0
        case "Gather", 0:
            return 0 if attributes.get("axis", 0) == 0 else None
    return None


def _later(model: ir.Model, name: str, weight: Floats, scale: Floats, axis: int) -> ir.Value:
    """The initializer `name`: `weight` in int8, a block of rows at a time."""
    rows = max(1, _BLOCK * len(weight) // weight.size)

    def blocks() -> Iterator[npt.NDArray[np.int8]]:
        for start in range(0, len(weight), rows):
            part = slice(start, start + rows)
            yield weight_values(weight[part], scale[part] if axis == 0 else scale, axis)

    return later_constant(model, LaterWeight(name, weight.shape, blocks))


def later_constant(model: ir.Model, tensor: LaterWeight) -> ir.Value:
    """Add an initializer of the tensor's name to a graph."""
    name = str(tensor.name)
    value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.initializers[name] = value
    return value


def _look_up(model: ir.Model, node: ir.Node, table: ir.Value, scales: ir.Value) -> None:
    """Take rows of a table before they are made floats: the whole table as floats is the largest tensor there is."""
    name, graph, indices = str(node.name), model.graph, node.inputs[1]
    last = constant(model, "store.last_axis", np.array([-1], np.int64))
    rows = ir.node("Gather", [table, indices], {"axis": 0}, name=f"{name}.rows")
    row_scales = ir.node("Gather", [scales, indices], {"axis": 0}, name=f"{name}.scales")
    column = ir.node("Unsqueeze", [row_scales.outputs[0], last], name=f"{name}.column")
    floats = ir.node("Cast", [rows.outputs[0]], {"to": ir.DataType.FLOAT}, name=f"{name}.floats")
    back = ir.node("Mul", [floats.outputs[0], column.outputs[0]], name=f"{name}.weight")
    back.outputs[0].shape, back.outputs[0].dtype = node.outputs[0].shape, ir.DataType.FLOAT
    new = [rows, row_scales, column, floats, back]
    ir.convenience.replace_nodes_and_values(graph, node, [node], new, node.outputs, back.outputs)
