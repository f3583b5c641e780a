"""bfloat16 → float32: ONNX Runtime has no bfloat16 MatMul on the CPU, and float32 holds every bfloat16 value."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import numpy as np
import onnx_ir as ir

__all__ = ["bfloat16_to_float32"]


def bfloat16_to_float32(model: ir.Model, weights: MutableMapping[str, Any]) -> None:
    """Turn every bfloat16 value, cast target and constant of `model` into float32."""
    graph = model.graph
    values = [*graph.inputs, *graph.initializers.values()]
    for node in graph:
        values.extend(node.outputs)
        target = node.attributes.get("to")
        if target is not None and target.as_int() == ir.DataType.BFLOAT16:
            node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT)
    for value in values:
        if value.dtype == ir.DataType.BFLOAT16:
            value.dtype = ir.DataType.FLOAT
        tensor = value.const_value
        if tensor is not None and tensor.dtype == ir.DataType.BFLOAT16 and value.name not in weights:
            value.const_value = ir.tensor(tensor.numpy().astype(np.float32), name=value.name)
