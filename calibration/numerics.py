"""What a number becomes in each format: the reference that every emitted graph is tested against.

Integers are symmetric for weights (zero is zero, the range is −127 to 127, so that negation is exact) and affine for
activations (0 to 255 with a zero point). Floats of 8 bits are E4M3 (Micikevicius et al. 2022, arXiv:2209.05433), which
has no infinity and ends at 448. All as ONNX's `QuantizeLinear` and `DequantizeLinear` have them: rounding is to the
nearest, ties to even, and what is out of range is clipped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from kinograph.errors import NumericError

__all__ = [
    "BLOCK_LEAST",
    "FLOATS",
    "INTEGERS",
    "Affine",
    "Float8",
    "Form",
    "Numbers",
    "Weight",
    "affine",
    "block_scales",
    "block_values",
    "dequantised",
    "fake_quantised",
    "float8",
    "float8_weight",
    "quantised",
    "quantised_weight",
    "signal_to_noise",
    "weight_scale",
    "weight_values",
]

Floats = npt.NDArray[np.float32]

_LARGEST_WEIGHT = 127
_LEVELS = 255
_E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
_LARGEST_E4M3 = 448.0
_BLOCK_SHARES = (1.0, 0.95, 0.9, 0.875, 0.85, 0.8, 0.75)  # of the largest weight, that the largest step stands for
BLOCK_LEAST, _BLOCK_MOST = -8, 7
_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Affine:
    """x ≈ scale · (q − zero_point), q from 0 to 255."""

    scale: float
    zero_point: int


@dataclass(frozen=True)
class Float8:
    """x ≈ scale · q, q an E4M3 number."""

    scale: float


Form = Affine | Float8
"""How an activation is quantised."""


@dataclass(frozen=True)
class Weight:
    """x ≈ scale · q along `axis`: `values` int8 or E4M3 of the weight's shape, `scale` float32 [size of `axis`]."""

    values: npt.NDArray[Any]
    scale: Floats
    axis: int


def _check_range(low: float, high: float) -> None:
    if not (np.isfinite(low) and np.isfinite(high)):
        raise NumericError(
            f"a range of {low} to {high} cannot be quantised: NaN or infinity was met while calibrating. "
            "Check the bundle with `kinograph generate --variant fp32`."
        )


def affine(low: float, high: float) -> Affine:
    """The affine format whose range holds `low` to `high`, and zero, which it has exactly.

    Raises NumericError where a bound is NaN or infinite.
    """
    _check_range(low, high)
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    scale = (high - low) / _LEVELS
    if scale < _SMALLEST_SCALE:  # nothing but zeros; any scale will do
        return Affine(1.0, 0)
    return Affine(float(np.float32(scale)), int(np.clip(np.rint(-low / scale), 0, _LEVELS)))


def float8(low: float, high: float) -> Float8:
    """The E4M3 format whose range holds `low` to `high`. Raises NumericError where a bound is NaN or infinite."""
    _check_range(low, high)
    scale = max(-low, high, 0.0) / _LARGEST_E4M3
    return Float8(1.0 if scale < _SMALLEST_SCALE else float(np.float32(scale)))


def quantised(x: Floats, form: Form) -> npt.NDArray[Any]:
    """What `QuantizeLinear` makes of `x`."""
    if isinstance(form, Float8):
        scaled = np.asarray(x, np.float32) / np.float32(form.scale)
        return np.asarray(np.clip(scaled, -_LARGEST_E4M3, _LARGEST_E4M3), _E4M3)
    steps = np.rint(np.asarray(x, np.float32) / np.float32(form.scale)) + form.zero_point
    return np.asarray(np.clip(steps, 0, _LEVELS), np.uint8)


def dequantised(q: npt.NDArray[Any], form: Form) -> Floats:
    """What `DequantizeLinear` makes of `q`."""
    if isinstance(form, Float8):
        return np.asarray(q.astype(np.float32) * np.float32(form.scale))
    return (q.astype(np.int32) - form.zero_point).astype(np.float32) * np.float32(form.scale)


def fake_quantised(x: Floats, form: Form) -> Floats:
    """`x` there and back."""
    return dequantised(quantised(x, form), form)


def weight_scale(weight: Floats, axis: int, largest_value: float = _LARGEST_WEIGHT) -> Floats:
    """The scale of each index of `axis`, float32; 1 for a channel of zeros. The largest weight is `largest_value`.

    Raises NumericError where the weight holds NaN or infinity.
    """
    others = tuple(i for i in range(weight.ndim) if i != axis % weight.ndim)
    # no copy of the magnitudes: a vocabulary's table has gigabytes
    largest = np.maximum(weight.max(axis=others, initial=0.0), -weight.min(axis=others, initial=0.0))
    if not np.isfinite(largest).all():
        raise NumericError("a weight holds NaN or infinity and cannot be quantised. Export the checkpoint again.")
    scale = np.where(largest > largest_value * _SMALLEST_SCALE, largest / largest_value, 1.0)
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


def float8_weight(weight: Floats, axis: int) -> Weight:
    """A weight in E4M3 with a scale for each index of `axis`. Raises NumericError where it holds NaN or infinity."""
    scale = weight_scale(weight, axis, _LARGEST_E4M3)
    others = tuple(i for i in range(weight.ndim) if i != axis % weight.ndim)
    steps = np.clip(weight / np.expand_dims(scale, others), -_LARGEST_E4M3, _LARGEST_E4M3)
    return Weight(steps.astype(_E4M3), scale, axis % weight.ndim)


def block_scales(weight: Floats, size: int, *, search: bool = True) -> Floats:
    """The scale of every block of `size` weights along the first axis, float32 [K / size, N] for a weight [K, N].

    With `search` it is the one of several that gives the block the least squared error. A block of zeros has 1. Raises
    NumericError where the weight holds NaN or infinity.
    """
    blocks = weight.reshape(-1, size, weight.shape[1])
    largest = np.abs(blocks).max(axis=1)
    if not np.isfinite(largest).all():
        raise NumericError("a weight holds NaN or infinity and cannot be quantised. Export the checkpoint again.")
    whole = np.where(largest > _BLOCK_MOST * _SMALLEST_SCALE, largest / _BLOCK_MOST, 1.0).astype(np.float32)
    if not search:
        return whole
    best, least = whole, np.full(whole.shape, np.inf, np.float32)
    for share in _BLOCK_SHARES:
        scale = np.maximum(whole * np.float32(share), np.float32(_SMALLEST_SCALE))
        steps = np.clip(np.rint(blocks / scale[:, None]), BLOCK_LEAST, _BLOCK_MOST)
        error = np.square(steps * scale[:, None] - blocks).sum(axis=1)
        best, least = np.where(error < least, scale, best), np.minimum(error, least)
    return np.asarray(best, np.float32)


def block_values(weight: Floats, scales: Floats) -> npt.NDArray[np.int8]:
    """A weight [K, N], or some whole blocks of it with their scales, in steps from −8 to 7."""
    each = np.repeat(scales, len(weight) // len(scales), axis=0)
    return np.asarray(np.clip(np.rint(weight / each), BLOCK_LEAST, _BLOCK_MOST), np.int8)


@dataclass(frozen=True)
class Numbers:
    """What a recipe quantises to: an activation's format from its range, and a weight along an axis."""

    activation: Callable[[float, float], Form]
    weight: Callable[[Floats, int], Weight]


INTEGERS = Numbers(affine, quantised_weight)
FLOATS = Numbers(float8, float8_weight)


def signal_to_noise(reference: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
    """How far `other` is from `reference`, in dB: 10·log₁₀(Σ reference² / Σ difference²); 120 at most."""
    signal = float(np.square(reference, dtype=np.float64).sum())
    noise = float(np.square(np.subtract(reference, other, dtype=np.float64)).sum())
    if signal == 0.0:
        return 120.0 if noise == 0.0 else 0.0
    return float(min(120.0, 10 * np.log10(signal / max(noise, signal * 1e-12))))
