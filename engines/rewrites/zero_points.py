"""Zero points where a constant has none: ONNX Runtime needs them to compute exactly on x86 processors without VNNI.

There it turns int8 weights into uint8 ones, which products do not overflow with, and gives each that has no zero point
a single one, also where there is a scale for every channel; that graph it then cannot run.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import numpy as np
import onnx_ir as ir

from kinograph.engines.rewrites.constants import add_constant

__all__ = ["zero_points_for_weights"]


def zero_points_for_weights(model: ir.Model, weights: MutableMapping[str, Any]) -> None:
    """Give every int8 constant that is dequantised without a zero point one for each of its scales."""
    for node in model.graph:
        if node.op_type != "DequantizeLinear" or node.domain or len(node.inputs) != 2:
            continue
        values, scale = node.inputs
        if values is None or scale is None or values.dtype != ir.DataType.INT8 or not values.is_initializer():
            continue
        held = weights.get(str(scale.name))
        shape = held.shape if held is not None else scale.shape.numpy() if scale.shape is not None else ()
        name = f"{scale.name}.zero_point"
        if name not in model.graph.initializers:
            add_constant(model, name, np.zeros(shape, np.int8))
        node.resize_inputs(3)
        node.replace_input_with(2, model.graph.initializers[name])
