"""`Attention` → `com.microsoft.MultiHeadAttention`, which is flash attention on the CPU.

ONNX Runtime's `Attention` writes the S×S matrix of scores to memory; for a video of a few thousand tokens that is
most of the step's time and all of its peak.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import onnx_ir as ir

__all__ = ["attention_to_multi_head"]


def attention_to_multi_head(model: ir.Model, weights: MutableMapping[str, Any]) -> None:
    """Replace every unmasked `Attention` over [B, S, heads · head_dim]; others stay as they are."""
    for node in list(model.graph):
        if node.op_type != "Attention" or node.domain or not _replaceable(node):
            continue
        attributes = {"num_heads": node.attributes["q_num_heads"].as_int()}
        if "scale" in node.attributes:
            attributes["scale"] = node.attributes["scale"].as_float()  # type: ignore[assignment]
        fused = ir.node(
            "MultiHeadAttention", node.inputs[:3], attributes=attributes, domain="com.microsoft", name=node.name
        )
        ir.convenience.replace_nodes_and_values(model.graph, node, [node], [fused], node.outputs[:1], fused.outputs)
        model.opset_imports.setdefault("com.microsoft", 1)


def _replaceable(node: ir.Node) -> bool:
    heads = node.attributes.get("q_num_heads")
    if heads is None or any(value is not None for value in node.inputs[3:]):
        return False
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return False
    kv_heads = node.attributes.get("kv_num_heads")
    causal, softcap = node.attributes.get("is_causal"), node.attributes.get("softcap")
    return (
        (kv_heads is None or kv_heads.as_int() == heads.as_int())
        and (causal is None or causal.as_int() == 0)
        and (softcap is None or softcap.as_float() == 0.0)
    )
