"""How each format is written into a graph.

Static ones are `QuantizeLinear` and `DequantizeLinear` around the products they are for. That is the portable form: it
says what is computed, and every engine fuses it into its own kernels. Int8 by rows has a scale that is computed,
which no engine fuses, so its product is written as ONNX's own product of integers. Blocks of an activation are
TensorRT's operators, for ONNX has none; `engines/rewrites/blocks.py` says in ONNX's what those compute.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from kinograph.calibration.block_numerics import BlockWeight, Microscaled, Nvfp4, Rows
from kinograph.calibration.layers import constant
from kinograph.calibration.numerics import Affine, Float8, Form, Weight, quantised
from kinograph.calibration.recipes.products import Plan
from kinograph.calibration.store import LaterWeight, later_constant

__all__ = ["Written", "affine_constants", "integer_product", "weight_nodes", "written_activation"]

_TENSORRT = "trt"  # the domain of its operators
_FLOAT, _FLOAT8 = ir.DataType.FLOAT, ir.DataType.FLOAT8E4M3FN
_LARGEST, _MIDDLE = 127, 128


class Written(NamedTuple):
    """Nodes, the value they give, and, where that is bytes, the size of each row, which 1 / 127 of is their step."""

    nodes: list[ir.Node]
    value: ir.Value
    rows: ir.Value | None = None


def written_activation(model: ir.Model, name: str, value: ir.Value, form: Form) -> Written:
    """What quantises an activation, and makes floats of it again where its product is one of floats."""
    match form:
        case Affine() | Float8():
            scale, zero = affine_constants(model, name, form)
            there = ir.node("QuantizeLinear", [value, scale, zero], name=f"{name}.quantize")
            back = ir.node("DequantizeLinear", [there.outputs[0], scale, zero], name=f"{name}.dequantize")
            return Written([there, back], back.outputs[0])
        case Rows():
            return _rows(model, name, value)
        case Microscaled():
            _use_tensorrt(model)
            blocks = {"axis": -1, "block_size": form.size}
            there = _tensorrt("TRT_MXFP8DynamicQuantize", [value], blocks | {"output_dtype": _FLOAT8}, name, 2)
            back = _tensorrt("TRT_MXFP8DequantizeLinear", there.outputs, blocks | {"output_dtype": _FLOAT}, name)
            return Written([there, back], back.outputs[0])
        case Nvfp4():
            _use_tensorrt(model)
            whole = constant(model, f"{name}.scale", np.float32(form.whole))
            blocks = {"axis": -1, "block_size": form.size}
            there = _tensorrt("TRT_FP4DynamicQuantize", [value, whole], blocks | {"scale_type": _FLOAT8}, name, 2)
            scales = ir.node("DequantizeLinear", [there.outputs[1], whole], name=f"{name}.scales")
            both = [there.outputs[0], scales.outputs[0]]
            back = ir.node("DequantizeLinear", both, blocks, name=f"{name}.dequantize")
            return Written([there, scales, back], back.outputs[0])
    raise AssertionError(form)


def weight_nodes(model: ir.Model, node_name: str, plan: Plan, number: int) -> list[ir.Node]:
    """What makes floats of one of the plan's weights, which is added to the graph in its format."""
    weight = plan.weight(number)
    values = _later_values(model, node_name, plan, number, weight.values)
    if isinstance(weight, Weight):
        scales = constant(model, f"{node_name}.scale", weight.scale)
        return [ir.node("DequantizeLinear", [values, scales], {"axis": weight.axis}, name=f"{node_name}.weight")]
    assert isinstance(weight, BlockWeight)
    blocks = {"axis": 0, "block_size": weight.size}
    scales = constant(model, f"{node_name}.scale", weight.scale)
    if weight.whole is None:
        return [_tensorrt("TRT_MXFP8DequantizeLinear", [values, scales], blocks | {"output_dtype": _FLOAT}, node_name)]
    whole = constant(model, f"{node_name}.whole", weight.whole)
    scale = ir.node("DequantizeLinear", [scales, whole], name=f"{node_name}.scales")
    return [scale, ir.node("DequantizeLinear", [values, scale.outputs[0]], blocks, name=f"{node_name}.weight")]


def integer_product(model: ir.Model, node: ir.Node, activation: Written, plan: Plan, number: int) -> list[ir.Node]:
    """What computes the product of rows of bytes with one of the plan's weights, in place of `node`."""
    name, weight = str(node.name), plan.weight(number)
    assert isinstance(weight, Weight)
    values = _later_values(model, name, plan, number, weight.values)
    zero = constant(model, "rows.zero_point", np.uint8(_MIDDLE))
    product = ir.node("MatMulInteger", [activation.value, values, zero], name=f"{name}.integers")
    floats = ir.node("Cast", [product.outputs[0]], {"to": _FLOAT}, name=f"{name}.floats")
    columns = constant(model, f"{name}.scale", weight.scale / np.float32(_LARGEST))
    by_column = ir.node("Mul", [floats.outputs[0], columns], name=f"{name}.columns")
    by_row = ir.node("Mul", [by_column.outputs[0], activation.rows], name=f"{name}.rows")
    by_row.outputs[0].shape, by_row.outputs[0].dtype = node.outputs[0].shape, _FLOAT
    return [product, floats, by_column, by_row]


def affine_constants(model: ir.Model, name: str, form: Affine | Float8) -> tuple[ir.Value, ir.Value]:
    """Scale and zero point, whose type says what is quantised to."""
    zero = quantised(np.zeros((), np.float32), form) if isinstance(form, Float8) else np.uint8(form.zero_point)
    return constant(model, f"{name}.scale", np.float32(form.scale)), constant(model, f"{name}.zero_point", zero)


def _rows(model: ir.Model, name: str, value: ir.Value) -> Written:
    """Rows divided by their largest magnitude, in bytes: 1 is 255, 0 is 128, −1 is 1."""
    last = constant(model, "rows.axis", np.array([-1], np.int64))
    tiny = constant(model, "rows.tiny", np.finfo(np.float32).tiny)
    step = constant(model, "rows.step", np.float32(1 / _LARGEST))
    zero = constant(model, "rows.zero_point", np.uint8(_MIDDLE))
    sizes = ir.node("Abs", [value], name=f"{name}.sizes")
    largest = ir.node("ReduceMax", [sizes.outputs[0], last], name=f"{name}.row_largest")
    divisor = ir.node("Max", [largest.outputs[0], tiny], name=f"{name}.largest")
    divided = ir.node("Div", [value, divisor.outputs[0]], name=f"{name}.divided")
    there = ir.node("QuantizeLinear", [divided.outputs[0], step, zero], name=f"{name}.quantize")
    return Written([sizes, largest, divisor, divided, there], there.outputs[0], divisor.outputs[0])


def _later_values(model: ir.Model, name: str, plan: Plan, number: int, values: np.ndarray[Any, Any]) -> ir.Value:
    return later_constant(model, LaterWeight.of(f"{name}.quantised", values, partial(plan.weight, number)))


def _tensorrt(operator: str, inputs: Any, attributes: dict[str, Any], name: str, outputs: int = 1) -> ir.Node:
    label = "quantize" if "DynamicQuantize" in operator else "dequantize"
    return ir.node(operator, inputs, attributes, domain=_TENSORRT, num_outputs=outputs, name=f"{name}.{label}")


def _use_tensorrt(model: ir.Model) -> None:
    model.graph.opset_imports[_TENSORRT] = 1
