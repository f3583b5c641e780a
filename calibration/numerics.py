"""What a number becomes in each format: the reference that every emitted graph is tested against.

Integers are symmetric for weights (zero is zero, the range is −127 to 127, so that negation is exact) and affine for
activations (0 to 255 with a zero point), as ONNX's `QuantizeLinear` and `DequantizeLinear` have them: rounding is to
the nearest, ties to even, and what is out of range is clipped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kinograph.errors import NumericError

__all__ = [
    "Affine",
    "Weight",
    "affine",
    "dequantised",
    "fake_quantised",
    "quantised",
    "quantised_weight",
    "signal_to_noise",
    "weight_scale",
    "weight_values",
]

Floats = npt.NDArray[np.float32]

_LARGEST_WEIGHT = 127
_LEVELS = 255
_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Affine:
    """x ≈ scale · (q − zero_point), q from 0 to 255."""

    scale: float
    zero_point: int


@dataclass(frozen=True)
class Weight:
    """x ≈ scale · q along `axis`: `values` int8 of the weight's shape, `scale` float32 [size of `axis`]."""

    values: npt.NDArray[np.int8]
    scale: Floats
    axis: int


def affine(low: float, high: float) -> Affine:
    """The affine format whose range holds `low` to `high`, and zero, which it has exactly.

    Raises NumericError where a bound is NaN or infinite.
    """
    if not (np.isfinite(low) and np.isfinite(high)):
        raise NumericError(
            f"a range of {low} to {high} cannot be quantised: NaN or infinity was met while calibrating. "
            "Check the bundle with `kinograph generate --variant fp32`."
        )
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    scale = (high - low) / _LEVELS
    if scale < _SMALLEST_SCALE:  # nothing but zeros; any scale will do
        return Affine(1.0, 0)
    return Affine(float(np.float32(scale)), int(np.clip(np.rint(-low / scale), 0, _LEVELS)))


def quantised(x: Floats, form: Affine) -> npt.NDArray[np.uint8]:
    """What `QuantizeLinear` makes of `x`."""
    steps = np.rint(np.asarray(x, np.float32) / np.float32(form.scale)) + form.zero_point
    return np.asarray(np.clip(steps, 0, _LEVELS), np.uint8)


def dequantised(q: npt.NDArray[np.uint8], form: Affine) -> Floats:
    """What `DequantizeLinear` makes of `q`."""
    return (q.astype(np.int32) - form.zero_point).astype(np.float32) * np.float32(form.scale)


def fake_quantised(x: Floats, form: Affine) -> Floats:
    """`x` there and back."""
    return dequantised(quantised(x, form), form)


def weight_scale(weight: Floats, axis: int) -> Floats:
    """The scale of each index of `axis`, float32; 1 for a channel of zeros.

    Raises NumericError where the weight holds NaN or infinity.
    """
    others = tuple(i for i in range(weight.ndim) if i != axis % weight.ndim)
    # no copy of the magnitudes: a vocabulary's table has gigabytes
    largest = np.maximum(weight.max(axis=others, initial=0.0), -weight.min(axis=others, initial=0.0))
    if not np.isfinite(largest).all():
        raise NumericError("a weight holds NaN or infinity and cannot be quantised. Export the checkpoint again.")
    scale = np.where(largest > _LARGEST_WEIGHT * _SMALLEST_SCALE, largest / _LARGEST_WEIGHT, 1.0)
    return np.asarray(scale, np.float32)


def weight_values(weight: Floats, scale: Floats, axis: int) -> npt.NDArray[np.int8]:
    """A weight, or some of its rows with their scales, in int8."""
    others = tuple(i for i in range(weight.ndim) if i != axis % weight.ndim)
    steps = np.rint(weight / np.expand_dims(scale, others))
    return np.asarray(np.clip(steps, -_LARGEST_WEIGHT, _LARGEST_WEIGHT), np.int8)


def quantised_weight(weight: Floats, axis: int) -> Weight:
    """A weight in int8 with a scale for each index of `axis`; a channel of zeros stays one.

    Raises NumericError where the weight holds NaN or infinity.
    """
    scale = weight_scale(weight, axis)
    return Weight(weight_values(weight, scale, axis), scale, axis % weight.ndim)


def signal_to_noise(reference: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
    """How far `other` is from `reference`, in dB: 10·log₁₀(Σ reference² / Σ difference²); 120 at most."""
    signal = float(np.square(reference, dtype=np.float64).sum())
    noise = float(np.square(np.subtract(reference, other, dtype=np.float64)).sum())
    if signal == 0.0:
        return 120.0 if noise == 0.0 else 0.0
    return float(min(120.0, 10 * np.log10(signal / max(noise, signal * 1e-12))))
