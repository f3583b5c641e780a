"""16-bit floats → float32, which holds every value of theirs.

ONNX Runtime has no bfloat16 MatMul, and on a CPU it gains nothing from float16: it casts around most operators.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import numpy as np
import onnx_ir as ir

__all__ = ["bfloat16_to_float32", "float16_to_float32"]


def bfloat16_to_float32(model: ir.Model, weights: MutableMapping[str, Any]) -> None:
    """Turn every bfloat16 value, cast target and constant of `model` into float32."""
    _to_float32(model, weights, ir.DataType.BFLOAT16)


def float16_to_float32(model: ir.Model, weights: MutableMapping[str, Any]) -> None:
    """Turn every float16 value, cast target and constant of `model` into float32."""
    _to_float32(model, weights, ir.DataType.FLOAT16)


def _to_float32(model: ir.Model, weights: MutableMapping[str, Any], half: ir.DataType) -> None:
    graph = model.graph
    values = [*graph.inputs, *graph.initializers.values()]
    for node in graph:
        values.extend(node.outputs)
        for name in ("to", "dtype", "output_dtype"):
            if name in node.attributes and node.attributes[name].as_int() == half:
                node.attributes[name] = ir.AttrInt64(name, ir.DataType.FLOAT)
        constant = node.attributes.get("value")
        if constant is not None and constant.type == ir.AttributeType.TENSOR and constant.as_tensor().dtype == half:
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(_widened(constant.as_tensor().numpy())))
    for value in values:
        if value.dtype == half:
            value.dtype = ir.DataType.FLOAT
        tensor = value.const_value
        if tensor is not None and tensor.dtype == half and not isinstance(tensor, ir.ExternalTensor):
            value.const_value = ir.tensor(_widened(tensor.numpy()), name=value.name)
    for name, array in weights.items():
        if array.dtype == half.numpy():
            weights[name] = _widened(array)
    _drop_casts(graph)


def _drop_casts(graph: ir.Graph) -> None:
    """Take out casts of float32 to float32, so that what is made of a graph is the same as of one in float32."""
    for node in list(graph):
        if node.op_type != "Cast" or node.domain or node.attributes["to"].as_int() != ir.DataType.FLOAT:
            continue
        value, cast = node.inputs[0], node.outputs[0]
        if value is not None and value.dtype == ir.DataType.FLOAT and not cast.is_graph_output():
            ir.convenience.replace_all_uses_with(cast, value)
            graph.remove(node, safe=True)


def _widened(array: Any) -> Any:
    return array.astype(np.float32)
