"""A product of bytes and the bias added to it → one operator: the sum is not read and written a second time."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import onnx_ir as ir

__all__ = ["biased_products_to_one_operator"]

_BACK = "DequantizeLinear"
_BYTES = (ir.DataType.INT8, ir.DataType.UINT8)
_MATRIX = 2  # axes


def biased_products_to_one_operator(model: ir.Model, weights: MutableMapping[str, Any]) -> None:
    """Replace `Add` of a constant [N] to a `MatMul` of dequantised bytes [..., K] and [K, N] by `MatMulIntegerToFloat`.

    ONNX Runtime fuses the same, but without the bias. Of floats it would be a `Gemm`, which is no faster.
    """
    for node in list(model.graph):
        if node.op_type != "Add" or node.domain:
            continue
        product, bias = _product(node)
        if product is None or bias is None:
            continue
        fused = _of_bytes(product, bias)
        if fused is None:
            continue
        fused.outputs[0].shape, fused.outputs[0].type = node.outputs[0].shape, node.outputs[0].type
        ir.convenience.replace_nodes_and_values(model.graph, node, [node], [fused], node.outputs, fused.outputs)
        model.opset_imports.setdefault("com.microsoft", 1)
        behind = [value.producer() for value in product.inputs if value is not None]
        model.graph.remove(product, safe=True)
        for maker in behind:
            if maker is not None and maker.op_type == _BACK and not maker.outputs[0].uses():
                model.graph.remove(maker, safe=True)


def _product(node: ir.Node) -> tuple[ir.Node | None, ir.Value | None]:
    """The product that a constant row is added to, and that row."""
    for value, bias in (tuple(node.inputs), tuple(node.inputs)[::-1]):
        product = value.producer() if value is not None else None
        if product is None or product.op_type != "MatMul" or product.domain:
            continue
        assert value is not None
        if len(value.uses()) == 1 and not value.is_graph_output() and _axes(bias) == 1 and _is_constant(bias):
            return product, bias
    return None, None


def _of_bytes(product: ir.Node, bias: ir.Value) -> ir.Node | None:
    left, right = (value.producer() if value is not None else None for value in product.inputs)
    if left is None or right is None or left.op_type != _BACK or right.op_type != _BACK:
        return None
    (a, a_scale, *a_zero), (b, b_scale, *b_zero) = left.inputs, right.inputs
    if _axes(a_scale) != 0 or _axes(b_scale) not in (0, 1) or _axes(b) != _MATRIX or not _is_constant(b):
        return None
    if not a_zero or a_zero[0] is None or a_zero[0].dtype not in _BYTES or b is None or b.dtype not in _BYTES:
        return None
    inputs = [a, b, a_scale, b_scale, a_zero[0], b_zero[0] if b_zero else None, bias]
    return ir.node("MatMulIntegerToFloat", inputs, domain="com.microsoft", name=product.name)


def _axes(value: ir.Value | None) -> int | None:
    return None if value is None or value.shape is None else value.shape.rank()


def _is_constant(value: ir.Value | None) -> bool:
    return value is not None and value.is_initializer() and not value.is_graph_input()
