"""Kernels that are stored in int8 and convolve floats → floats: ONNX Runtime would make them floats in every run.

It also keeps its faster layouts for kernels that it knows when it opens a graph.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import numpy as np
import onnx_ir as ir

from kinograph.engines.rewrites.constants import add_constant, array_of, drop_unused

__all__ = ["stored_kernels_to_floats"]

_BACK = "DequantizeLinear"


def stored_kernels_to_floats(model: ir.Model, weights: MutableMapping[str, Any]) -> None:
    """Replace `DequantizeLinear` of an int8 constant, one scale for each channel, where a `Conv` of floats reads it."""
    graph = model.graph
    for node in list(graph):
        back = node.inputs[1].producer() if node.op_type == "Conv" and not node.domain and node.inputs[1] else None
        if back is None or back.op_type != _BACK or not _is_symmetric(back) or _reads_integers(node):
            continue
        stored, scale = back.inputs[0], back.inputs[1]
        assert stored is not None
        assert scale is not None
        steps, scales = array_of(stored, weights), array_of(scale, weights)
        floats = steps.astype(np.float32) * scales.reshape(-1, *[1] * (steps.ndim - 1))
        node.replace_input_with(1, add_constant(model, f"{node.name}.floats", floats))
        if not back.outputs[0].uses():
            graph.remove(back, safe=True)
        drop_unused(model, weights, stored, scale)


def _is_symmetric(back: ir.Node) -> bool:
    """Whether it makes floats of int8 rows, each with a scale of its own and no zero point."""
    stored, scale, *zero = back.inputs
    constant = all(value is not None and value.is_initializer() for value in (stored, scale))
    if not constant or any(zero) or stored is None or scale is None or scale.shape is None:
        return False
    axis = back.attributes["axis"].as_int() if "axis" in back.attributes else 1
    return stored.dtype == ir.DataType.INT8 and axis == 0 and scale.shape.rank() == 1


def _reads_integers(node: ir.Node) -> bool:
    """Whether what it convolves is made of integers, so that ONNX Runtime convolves those."""
    maker = node.inputs[0].producer() if node.inputs[0] is not None else None
    return maker is not None and maker.op_type == _BACK
