"""The weights of a graph, over the verified files of a bundle."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import onnx_ir as ir

from kinograph.errors import BundleError

if TYPE_CHECKING:
    from kinograph.engines.protocol import Array, Contents
    from kinograph.manifest import Variant

__all__ = ["map_weights"]


def map_weights(model: ir.Model, contents: Contents, variant: Variant) -> dict[str, Array]:
    """Arrays over the weight files of a variant, by the name of the initializer of `model` that each is.

    They have the initializers' own types, bfloat16 as `ml_dtypes` has it; numbers of 4 bits are bytes, two in each.
    Raises BundleError where a graph reads a file that its variant does not list.
    """
    files = {os.path.basename(path): contents.map(path) for path in variant.weights}  # noqa: PTH119
    weights: dict[str, Array] = {}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        if tensor.location not in files:
            raise BundleError(f"{variant.graph} reads {tensor.location!r}, which its manifest entry does not list")
        start = tensor.offset or 0
        data = files[str(tensor.location)][start : start + int(tensor.length or 0)]
        packed = tensor.dtype.bitwidth < 8
        weights[name] = data if packed else data.view(tensor.dtype.numpy()).reshape(tuple(tensor.shape.numpy()))
    return weights
