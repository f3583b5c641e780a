"""Quantises the products and convolutions of a graph, as planned: `formats` says how each format is written."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from kinograph.calibration.formats import affine_constants, integer_product, weight_nodes, written_activation
from kinograph.calibration.layers import constant
from kinograph.calibration.recipes.products import ConvolutionPlan, Plan

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
    name, activation = plan.group.activation, nodes[plan.group.nodes[0]].inputs[0]
    assert activation is not None
    new: list[ir.Node] = []
    if plan.smoothing is not None:
        inverse = constant(model, f"{name}.smoothing", (1 / plan.smoothing).astype(np.float32))
        new.append(ir.node("Mul", [activation, inverse], name=f"{name}.smooth"))
        activation = new[-1].outputs[0]
    written = written_activation(model, name, activation, plan.form)
    earliest = next(node for node in graph if str(node.name) in nodes)
    graph.insert_before(earliest, new + written.nodes)
    for number, node_name in enumerate(plan.group.nodes):
        node = nodes[node_name]
        if written.rows is not None:
            product = integer_product(model, node, written, plan, number)
            ir.convenience.replace_nodes_and_values(graph, node, [node], product, node.outputs, product[-1].outputs)
            continue
        weight = weight_nodes(model, node_name, plan, number)
        graph.insert_before(node, weight)
        node.replace_input_with(0, written.value)
        node.replace_input_with(1, weight[-1].outputs[0])


def _quantise_convolution(model: ir.Model, plan: ConvolutionPlan) -> None:
    graph, group = model.graph, plan.group
    node = next(node for node in graph if node.name == group.node)
    scale, zero = affine_constants(model, f"{group.activation}.{group.node}", plan.form)
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
    scale, zero = affine_constants(model, f"{group.output}.{group.node}", plan.output)
    there = ir.node("QuantizeLinear", [output, scale, zero], name=f"{group.node}.quantize_output")
    back = ir.node("DequantizeLinear", [there.outputs[0], scale, zero], name=f"{group.node}.dequantize_output")
    back.outputs[0].shape, back.outputs[0].dtype = output.shape, output.dtype or ir.DataType.FLOAT
    if output.is_graph_output():  # whose name is the graph's own
        back.outputs[0].name, output.name = output.name, f"{group.node}.output"
    ir.convenience.replace_all_uses_with(output, back.outputs[0], replace_graph_outputs=True)
    there.replace_input_with(0, output)
    graph.insert_after(node, [there, back])
