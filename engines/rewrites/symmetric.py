"""Affine uint8 → symmetric int8, and biases in float: TensorRT has no zero points and no int32 to dequantise."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import numpy as np
import onnx_ir as ir

from kinograph.engines.rewrites.constants import add_constant, array_of

__all__ = ["affine_to_symmetric", "biases_to_float"]

_LARGEST = 127  # of int8, and of what is as far below zero
_QUANTISERS = ("QuantizeLinear", "DequantizeLinear")


def affine_to_symmetric(model: ir.Model, weights: MutableMapping[str, Any]) -> None:
    """Give every activation that is quantised to uint8 the int8 range that holds the same values."""
    graph = model.graph
    done: dict[tuple[str, str], tuple[ir.Value, ir.Value]] = {}
    for node in graph:
        if node.op_type not in _QUANTISERS or node.domain or len(node.inputs) < 3:
            continue
        scale, zero = node.inputs[1], node.inputs[2]
        if scale is None or zero is None or zero.dtype != ir.DataType.UINT8:
            continue
        names = str(scale.name), str(zero.name)
        if names not in done:
            point = array_of(zero, weights).astype(np.float32)
            largest = np.maximum(point, 255 - point) * array_of(scale, weights) / _LARGEST
            done[names] = (
                add_constant(model, f"{names[0]}.symmetric", largest.astype(np.float32)),
                add_constant(model, f"{names[1]}.symmetric", np.zeros(point.shape, np.int8)),
            )
        node.replace_input_with(1, done[names][0])
        node.replace_input_with(2, done[names][1])
        if node.op_type == "QuantizeLinear":
            node.outputs[0].dtype = ir.DataType.INT8


def biases_to_float(model: ir.Model, weights: MutableMapping[str, Any]) -> None:
    """Replace every int32 constant that is dequantised by what it stands for."""
    graph = model.graph
    for node in list(graph):
        if node.op_type != "DequantizeLinear" or node.domain or len(node.inputs) != 2:
            continue
        steps, scale = node.inputs
        if steps is None or scale is None or steps.dtype != ir.DataType.INT32 or not steps.is_initializer():
            continue
        values = array_of(steps, weights) * array_of(scale, weights)
        float_bias = add_constant(model, f"{steps.name}.float", np.asarray(values, np.float32))
        ir.convenience.replace_all_uses_with(node.outputs[0], float_bias)
        graph.remove(node, safe=True)
