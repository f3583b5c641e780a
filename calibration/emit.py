"""Writes quantised formats into a graph, as `QuantizeLinear` and `DequantizeLinear` around the products they are for.

That is the portable form: it says what is computed, and every engine fuses it into its own integer kernels.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import numpy as np
import onnx_ir as ir

from kinograph.calibration.layers import constant
from kinograph.calibration.numerics import Float8, Form, quantised
from kinograph.calibration.recipes.static import ConvolutionPlan, Plan
from kinograph.calibration.store import LaterWeight, later_constant

__all__ = ["emit"]


def emit(model: ir.Model, plans: Iterable[Plan | ConvolutionPlan]) -> ir.Model:
    """A copy of `model` with the groups of `plans` quantised.

    Float weights that are still used stay where they are; those of products are quantised when they are written.
    """
    model = model.clone()
    for plan in plans:
        if isinstance(plan, ConvolutionPlan):
            _quantise_convolution(model, plan)
        else:
            _quantise(model, plan)
    used = {str(value.name) for node in model.graph for value in node.inputs if value is not None}
    for name in [name for name in model.graph.initializers if name not in used]:
        del model.graph.initializers[name]
    return model


def _quantise(model: ir.Model, plan: Plan) -> None:
    graph = model.graph
    nodes = {str(node.name): node for node in graph if str(node.name) in plan.group.nodes}
    first = nodes[plan.group.nodes[0]]
    activation = first.inputs[0]
    name = plan.group.activation
    new: list[ir.Node] = []
    if plan.smoothing is not None:
        inverse = constant(model, f"{name}.smoothing", (1 / plan.smoothing).astype(np.float32))
        new.append(ir.node("Mul", [activation, inverse], name=f"{name}.smooth"))
        activation = new[-1].outputs[0]
    scale, zero = _form(model, name, plan.form)
    new.append(ir.node("QuantizeLinear", [activation, scale, zero], name=f"{name}.quantize"))
    new.append(ir.node("DequantizeLinear", [new[-1].outputs[0], scale, zero], name=f"{name}.dequantize"))
    earliest = next(node for node in graph if str(node.name) in nodes)
    graph.insert_before(earliest, new)
    for number, node_name in enumerate(plan.group.nodes):
        node, weight = nodes[node_name], plan.weight(number)
        values = later_constant(model, LaterWeight.of(f"{node_name}.quantised", weight, partial(plan.weight, number)))
        scales = constant(model, f"{node_name}.scale", weight.scale)
        back = ir.node(
            "DequantizeLinear", [values, scales], attributes={"axis": weight.axis}, name=f"{node_name}.weight"
        )
        graph.insert_before(node, back)
        node.replace_input_with(0, new[-1].outputs[0])
        node.replace_input_with(1, back.outputs[0])


def _quantise_convolution(model: ir.Model, plan: ConvolutionPlan) -> None:
    graph, group = model.graph, plan.group
    node = next(node for node in graph if node.name == group.node)
    scale, zero = _form(model, f"{group.activation}.{group.node}", plan.form)
    there = ir.node("QuantizeLinear", [node.inputs[0], scale, zero], name=f"{group.node}.quantize")
    back = ir.node("DequantizeLinear", [there.outputs[0], scale, zero], name=f"{group.node}.dequantize")
    values = constant(model, f"{group.weight}.int8", plan.weight.values)
    scales = constant(model, f"{group.weight}.scale", plan.weight.scale)
    weight = ir.node("DequantizeLinear", [values, scales], attributes={"axis": 0}, name=f"{group.node}.weight")
    graph.insert_before(node, [there, back, weight])
    node.replace_input_with(0, back.outputs[0])
    node.replace_input_with(1, weight.outputs[0])
    if plan.bias is not None:
        steps = constant(model, f"{group.node}.bias", plan.bias)
        step = constant(model, f"{group.node}.bias_scale", plan.weight.scale * np.float32(plan.form.scale))
        bias = ir.node("DequantizeLinear", [steps, step], attributes={"axis": 0}, name=f"{group.node}.bias")
        graph.insert_before(node, bias)
        node.replace_input_with(2, bias.outputs[0])
    output = node.outputs[0]
    scale, zero = _form(model, f"{group.output}.{group.node}", plan.output)
    there = ir.node("QuantizeLinear", [output, scale, zero], name=f"{group.node}.quantize_output")
    back = ir.node("DequantizeLinear", [there.outputs[0], scale, zero], name=f"{group.node}.dequantize_output")
    back.outputs[0].shape, back.outputs[0].dtype = output.shape, output.dtype or ir.DataType.FLOAT
    if output.is_graph_output():  # whose name is the graph's own
        back.outputs[0].name, output.name = output.name, f"{group.node}.output"
    ir.convenience.replace_all_uses_with(output, back.outputs[0], replace_graph_outputs=True)
    there.replace_input_with(0, output)
    graph.insert_after(node, [there, back])


def _form(model: ir.Model, name: str, form: Form) -> tuple[ir.Value, ir.Value]:
    """Scale and zero point, whose type says what is quantised to."""
    zero = quantised(np.zeros((), np.float32), form) if isinstance(form, Float8) else np.uint8(form.zero_point)
    return constant(model, f"{name}.scale", np.float32(form.scale)), constant(model, f"{name}.zero_point", zero)
