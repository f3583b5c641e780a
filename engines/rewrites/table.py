"""Rows of an int8 table, made float once looked up → a float table that is looked up: TensorRT has no int8 look-ups."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import onnx_ir as ir

__all__ = ["dequantise_tables"]


def dequantise_tables(model: ir.Model, weights: MutableMapping[str, Any]) -> None:
    """Put `DequantizeLinear` before every look-up of int8 rows, in place of what makes them float after it."""
    graph = model.graph
    for node in list(graph):
        table = node.inputs[0] if node.op_type == "Gather" and not node.domain else None
        if table is None or table.dtype != ir.DataType.INT8 or not table.is_initializer():
            continue
        product = _only_user(_only_user(node))
        scales = _scales(product) if product is not None and product.op_type == "Mul" else None
        if product is None or scales is None:
            continue
        back = ir.node("DequantizeLinear", [table, scales], {"axis": 0}, name=f"{node.name}.table")
        rows = ir.node("Gather", [back.outputs[0], node.inputs[1]], {"axis": 0}, name=f"{node.name}.floats")
        ir.convenience.replace_nodes_and_values(graph, product, [product], [back, rows], product.outputs, rows.outputs)


def _only_user(node: ir.Node | None) -> ir.Node | None:
    uses = [] if node is None else list(node.outputs[0].uses())
    return uses[0].node if len(uses) == 1 else None


def _scales(product: ir.Node) -> ir.Value | None:
    """The scales of all rows, of which the product's second factor is a column of those looked up."""
    column = product.inputs[1].producer() if product.inputs[1] is not None else None
    looked_up = column.inputs[0].producer() if column is not None and column.inputs[0] is not None else None
    return looked_up.inputs[0] if looked_up is not None and looked_up.op_type == "Gather" else None
