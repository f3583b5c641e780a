"""Reading and adding a graph's constants."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

import numpy as np
import onnx_ir as ir

__all__ = ["add_constant", "array_of", "drop_unused"]


def array_of(value: ir.Value, weights: Mapping[str, Any]) -> Any:
    """The array of a constant, which `weights` holds if it is external."""
    if value.name in weights:
        return np.asarray(weights[str(value.name)])
    if value.const_value is None:
        raise ValueError(f"{value.name} is no constant")
    return value.const_value.numpy()


def add_constant(model: ir.Model, name: str, array: Any) -> ir.Value:
    """A new initializer, kept in the graph itself."""
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.initializers[name] = value
    return value


def drop_unused(model: ir.Model, weights: MutableMapping[str, Any], *values: ir.Value | None) -> None:
    """Take those constants that nothing reads any more out of the graph and out of `weights`."""
    for value in values:
        if value is not None and not value.uses():
            del model.graph.initializers[str(value.name)]
            weights.pop(str(value.name), None)
