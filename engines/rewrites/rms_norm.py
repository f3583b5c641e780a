"""`RMSNormalization` → `SimplifiedLayerNormalization`: the same function, whose CPU kernel is twice as fast."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import onnx_ir as ir

__all__ = ["rms_norm_to_simplified_layer_norm"]


def rms_norm_to_simplified_layer_norm(model: ir.Model, weights: MutableMapping[str, Any]) -> None:
    """Replace every `RMSNormalization` over the last axis."""
    for node in list(model.graph):
        if node.op_type != "RMSNormalization" or node.domain:
            continue
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else -1
        shape = node.inputs[0].shape if node.inputs[0] is not None else None
        if axis != -1 and (shape is None or axis != shape.rank() - 1):
            continue
        attributes: dict[str, Any] = {"axis": -1, "stash_type": 1}
        attributes["epsilon"] = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
        fused = ir.node("SimplifiedLayerNormalization", node.inputs, attributes=attributes, name=node.name)
        ir.convenience.replace_nodes_and_values(model.graph, node, [node], [fused], node.outputs, fused.outputs)
