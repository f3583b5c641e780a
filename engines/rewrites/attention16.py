"""`Attention` in float32 → in bfloat16, for graphs whose products were quantised.

TensorRT does attention in one kernel for 16-bit types alone. A quantised variant is made from the float32 graph, and
its products are rounded far more coarsely than bfloat16 rounds, so its attention may as well be.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import onnx_ir as ir

__all__ = ["attention_to_16_bits"]

_NARROW = ir.DataType.BFLOAT16


def attention_to_16_bits(model: ir.Model, weights: MutableMapping[str, Any]) -> None:
    """Put casts around every unmasked float32 `Attention`; others stay as they are."""
    for node in list(model.graph):
        if node.op_type != "Attention" or node.domain or any(value is not None for value in node.inputs[3:]):
            continue
        output = node.outputs[0]
        if output.dtype != ir.DataType.FLOAT or output.is_graph_output() or any(one.uses() for one in node.outputs[1:]):
            continue
        narrowed = [ir.node("Cast", [value], {"to": _NARROW}) for value in node.inputs[:3]]
        model.graph.insert_before(node, narrowed)
        for index, cast in enumerate(narrowed):
            node.replace_input_with(index, cast.outputs[0])
        widened = ir.node("Cast", [output], {"to": ir.DataType.FLOAT})
        widened.outputs[0].shape, widened.outputs[0].dtype = output.shape, ir.DataType.FLOAT
        ir.convenience.replace_all_uses_with(output, widened.outputs[0])
        widened.replace_input_with(0, output)
        model.graph.insert_after(node, widened)
        output.dtype = _NARROW
