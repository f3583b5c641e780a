"""What a number becomes in each format: the reference that every emitted graph is tested against.

Integers are symmetric for weights (zero is zero, the range is −127 to 127, so that negation is exact) and affine for
activations (0 to 255 with a zero point). Floats of 8 bits are E4M3 (Micikevicius et al. 2022, arXiv:2209.05433), which
has no infinity and ends at 448. All as ONNX's `QuantizeLinear` and `DequantizeLinear` have them: rounding is to the
nearest, ties to even, and what is out of range is clipped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import ml_dtypes
import numpy as np
import numpy.typing as npt

from kinograph.errors import NumericError

__all__ = [
    "FLOATS",
    "INTEGERS",
    "LARGEST_E4M3",
    "Affine",
    "Float8",
    "Form",
    "Numbers",
    "QuantisedWeight",
    "Weight",
    "affine",
    "as_floats",
    "check_range",
    "dequantised",
    "float8",
    "float8_weight",
    "nearest_e4m3",
    "nearest_float",
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
LARGEST_E4M3 = 448.0
_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Affine:
    """x ≈ scale · (q − zero_point), q from 0 to 255."""

    scale: float
    zero_point: int

    def there_and_back(self, x: Floats) -> Floats:
        return dequantised(quantised(x, self), self)


@dataclass(frozen=True)
class Float8:
    """x ≈ scale · q, q an E4M3 number."""

    scale: float

    def there_and_back(self, x: Floats) -> Floats:
        scale = np.float32(self.scale)
        return np.asarray(nearest_e4m3(np.asarray(x, np.float32) / scale) * scale)


class Form(Protocol):
    """How an activation is quantised."""

    def there_and_back(self, x: Floats) -> Floats:
        """What becomes of `x` [..., K]: quantised, and dequantised."""
        ...


class QuantisedWeight(Protocol):
    """A weight [K, N] in fewer bits."""

    @property
    def values(self) -> npt.NDArray[Any]: ...

    @property
    def floats(self) -> Floats:
        """What it stands for, float32 [K, N]."""
        ...


@dataclass(frozen=True)
class Weight:
    """x ≈ scale · q along `axis`: `values` int8 or E4M3 of the weight's shape, `scale` float32 [size of `axis`]."""

    values: npt.NDArray[Any]
    scale: Floats
    axis: int

    @property
    def floats(self) -> Floats:
        others = tuple(i for i in range(self.values.ndim) if i != self.axis)
        return np.asarray(as_floats(self.values) * np.expand_dims(self.scale, others))


def nearest_float(x: Floats, bits: int, least: int, largest: float) -> Floats:
    """`x` as a float has it that has `bits` of fraction, is normal from 2^`least` on and ends at `largest`.

    It stays float32: a cast to a type that the CPU does not know, and back, takes several times as long.
    """
    x = np.asarray(np.clip(x, -largest, largest), np.float32)
    dropped = 23 - bits
    kept = x.view(np.uint32)
    normal = kept + ((kept >> dropped & 1) + ((1 << dropped - 1) - 1)) & np.uint32(-1 << dropped & 0xFFFFFFFF)
    shift = np.float32(1.5 * 2.0 ** (dropped + least))  # from here on float32 has the steps of what is not normal
    return np.where(np.abs(x) < np.float32(2.0**least), x + shift - shift, normal.view(np.float32))


def nearest_e4m3(x: Floats) -> Floats:
    """`x` as E4M3 has it, in float32."""
    return nearest_float(x, 3, -6, LARGEST_E4M3)


def as_floats(values: npt.NDArray[Any]) -> Floats:
    """Values of a type of eight bits or fewer in float32."""
    if np.issubdtype(values.dtype, np.integer):
        return values.astype(np.float32)
    return np.arange(256, dtype=np.uint8).view(values.dtype).astype(np.float32)[values.view(np.uint8)]


def check_range(low: float, high: float) -> None:
    if not (np.isfinite(low) and np.isfinite(high)):
        raise NumericError(
            f"a range of {low} to {high} cannot be quantised: NaN or infinity was met while calibrating. "
            "Check the bundle with `kinograph generate --variant fp32`."
        )


def affine(low: float, high: float) -> Affine:
    """The affine format whose range holds `low` to `high`, and zero, which it has exactly.

    Raises NumericError where a bound is NaN or infinite.
    """
    check_range(low, high)
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    scale = (high - low) / _LEVELS
    if scale < _SMALLEST_SCALE:  # nothing but zeros; any scale will do
        return Affine(1.0, 0)
    return Affine(float(np.float32(scale)), int(np.clip(np.rint(-low / scale), 0, _LEVELS)))


def float8(low: float, high: float) -> Float8:
    """The E4M3 format whose range holds `low` to `high`. Raises NumericError where a bound is NaN or infinite."""
    check_range(low, high)
    scale = max(-low, high, 0.0) / LARGEST_E4M3
    return Float8(1.0 if scale < _SMALLEST_SCALE else float(np.float32(scale)))


def quantised(x: Floats, form: Affine | Float8) -> npt.NDArray[Any]:
    """What `QuantizeLinear` makes of `x`."""
    if isinstance(form, Float8):
        scaled = np.asarray(x, np.float32) / np.float32(form.scale)
        return np.asarray(np.clip(scaled, -LARGEST_E4M3, LARGEST_E4M3), _E4M3)
    steps = np.rint(np.asarray(x, np.float32) / np.float32(form.scale)) + form.zero_point
    return np.asarray(np.clip(steps, 0, _LEVELS), np.uint8)


def dequantised(q: npt.NDArray[Any], form: Affine | Float8) -> Floats:
    """What `DequantizeLinear` makes of `q`."""
    if isinstance(form, Float8):
        return np.asarray(q.astype(np.float32) * np.float32(form.scale))
    return (q.astype(np.int32) - form.zero_point).astype(np.float32) * np.float32(form.scale)


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
    scale = weight_scale(weight, axis, LARGEST_E4M3)
    others = tuple(i for i in range(weight.ndim) if i != axis % weight.ndim)
    steps = np.clip(weight / np.expand_dims(scale, others), -LARGEST_E4M3, LARGEST_E4M3)
    return Weight(steps.astype(_E4M3), scale, axis % weight.ndim)


@dataclass(frozen=True)
class Numbers:
    """What a recipe quantises to, by `name`: an activation's format from its range, and a weight [K, N].

    `plain` is how a control has the weight; K must be a multiple of `block`.
    """

    name: str
    activation: Callable[[float, float], Form]
    weight: Callable[[Floats], QuantisedWeight]
    plain: Callable[[Floats], QuantisedWeight]
    block: int = 1


def _whole(make: Callable[[Floats, int], Weight]) -> Callable[[Floats], Weight]:
    """With one scale for the whole weight, which each output channel then has."""

    def plain(weight: Floats) -> Weight:
        one = make(weight.reshape(-1, 1), 1)
        return Weight(one.values.reshape(weight.shape), np.full(weight.shape[1], one.scale[0], np.float32), 1)

    return plain


INTEGERS = Numbers("int8", affine, partial(quantised_weight, axis=1), _whole(quantised_weight))
FLOATS = Numbers("fp8", float8, partial(float8_weight, axis=1), _whole(float8_weight))


def signal_to_noise(reference: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
    """How far `other` is from `reference`, in dB: 10·log₁₀(Σ reference² / Σ difference²); 120 at most."""
    signal = float(np.square(reference, dtype=np.float64).sum())
    noise = float(np.square(np.subtract(reference, other, dtype=np.float64)).sum())
    if signal == 0.0:
        return 120.0 if noise == 0.0 else 0.0
    return float(min(120.0, 10 * np.log10(signal / max(noise, signal * 1e-12))))
