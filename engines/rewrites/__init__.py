"""What a backend prefers to the portable graph: one file per rewrite, applied when a component is opened.

A rewrite changes `model` in place. `weights` holds the arrays of its external initializers by name; a rewrite that
changes such a weight replaces the array, the engine does the rest.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from kinograph.engines.rewrites.attention import attention_to_multi_head
from kinograph.engines.rewrites.biased_products import biased_products_to_one_operator
from kinograph.engines.rewrites.blocks import blocks_to_float32
from kinograph.engines.rewrites.channel_norm import channel_norm_to_convolution
from kinograph.engines.rewrites.halves import bfloat16_to_float32, float16_to_float32
from kinograph.engines.rewrites.narrow_convolution import narrow_convolution_to_frames
from kinograph.engines.rewrites.one_row import rows_of_tokens_to_one
from kinograph.engines.rewrites.rms_norm import rms_norm_to_simplified_layer_norm
from kinograph.engines.rewrites.stored_kernels import stored_kernels_to_floats
from kinograph.engines.rewrites.zero_points import zero_points_for_weights

__all__ = ["CPU_REWRITES", "CUDA_REWRITES", "Rewrite"]

Rewrite = Callable[[ir.Model, MutableMapping[str, npt.NDArray[Any]]], None]

CUDA_REWRITES: tuple[Rewrite, ...] = (  # what ONNX Runtime has kernels for on a GPU, too
    bfloat16_to_float32,
    blocks_to_float32,
    attention_to_multi_head,
    rms_norm_to_simplified_layer_norm,
    channel_norm_to_convolution,
    stored_kernels_to_floats,
    zero_points_for_weights,
)
CPU_REWRITES: tuple[Rewrite, ...] = (
    float16_to_float32,
    *CUDA_REWRITES,
    narrow_convolution_to_frames,
    rows_of_tokens_to_one,
    biased_products_to_one_operator,
)
