"""Formats whose scales are for blocks of numbers along the channels that a product adds up, and for rows.

Weights may be int4 with float scales. Microscaling (OCP MX 1.0, arXiv:2310.10537) gives 32 numbers in E4M3 a power of
two; NVFP4 (arXiv:2509.25149) gives 16 numbers in E2M1 a scale in E4M3, and all of those one in float32. An activation's
scales are found when it is computed, and so is that of a row in int8. As everywhere, rounding is to the nearest, ties
to even, what is out of range is clipped, and zeros stay zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from kinograph.calibration.numerics import (
    INTEGERS,
    LARGEST_E4M3,
    Numbers,
    as_floats,
    check_range,
    nearest_e4m3,
    nearest_float,
)
from kinograph.errors import NumericError

__all__ = [
    "INT4_LEAST",
    "MICROSCALED",
    "NVFP4",
    "ROWS",
    "BlockWeight",
    "Microscaled",
    "Nvfp4",
    "Rows",
    "int4_scales",
    "int4_values",
    "microscaled_weight",
    "nvfp4_weight",
]

Floats = npt.NDArray[np.float32]

INT4_LEAST, _INT4_MOST = -8, 7
_SHARES = (1.0, 0.95, 0.9, 0.875, 0.85, 0.8, 0.75)  # of the largest weight, that the largest step stands for
_E4M3, _E2M1 = np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.float4_e2m1fn)
_LARGEST_E2M1 = 6.0
_LARGEST_INT8 = 127
_BIAS_E8M0, _MOST_E8M0 = 127, 254
_TINY = np.float32(np.finfo(np.float32).tiny)
_MX_BLOCK, _NV_BLOCK = 32, 16


# int4


def int4_scales(weight: Floats, size: int, *, search: bool = True) -> Floats:
    """The scale of every block of `size` weights along the first axis, float32 [K / size, N] for a weight [K, N].

    With `search` it is the one of several that gives the block the least squared error. A block of zeros has 1. Raises
    NumericError where the weight holds NaN or infinity.
    """
    blocks = weight.reshape(-1, size, weight.shape[1])
    largest = _largest(blocks)
    whole = np.where(largest > _INT4_MOST * _TINY, largest / _INT4_MOST, 1.0).astype(np.float32)
    if not search:
        return whole

    def back(scale: Floats) -> Floats:
        return np.asarray(np.clip(np.rint(blocks / scale[:, None]), INT4_LEAST, _INT4_MOST) * scale[:, None])

    best: Floats = _best(blocks, [np.maximum(whole * np.float32(share), _TINY) for share in _SHARES], back)
    return best


def int4_values(weight: Floats, scales: Floats) -> npt.NDArray[np.int8]:
    """A weight [K, N], or some whole blocks of it with their scales, in steps from −8 to 7."""
    each = np.repeat(scales, len(weight) // len(scales), axis=0)
    return np.asarray(np.clip(np.rint(weight / each), INT4_LEAST, _INT4_MOST), np.int8)


# Rows


@dataclass(frozen=True)
class Rows:
    """x ≈ scale · q, q int8 from −127 to 127, with a scale for every row of the last axis."""

    def there_and_back(self, x: Floats) -> Floats:
        largest = np.maximum(np.abs(x).max(axis=-1, keepdims=True), _TINY)
        steps = np.rint(x / largest * np.float32(_LARGEST_INT8))
        return np.asarray(steps * (largest / np.float32(_LARGEST_INT8)), np.float32)


# Blocks


@dataclass(frozen=True)
class BlockWeight:
    """x ≈ whole · scale · q: `values` [K, N], `scale` [K / size, N] for blocks of `size` along K, `whole` for all.

    `values` are E4M3 or E2M1; `scale` is E8M0 as bytes, the exponents of powers of two with 127 added, or E4M3.
    """

    values: npt.NDArray[Any]
    scale: npt.NDArray[Any]
    whole: np.float32 | None
    size: int

    @property
    def floats(self) -> Floats:
        scale = _power(self.scale) if self.whole is None else as_floats(self.scale) * self.whole
        return np.asarray(as_floats(self.values) * np.repeat(scale, self.size, axis=0))


@dataclass(frozen=True)
class Microscaled:
    """Blocks of 32 along the last axis: x ≈ 2^e · q, q E4M3, e the least with which the largest is not clipped."""

    size = _MX_BLOCK

    def there_and_back(self, x: Floats) -> Floats:
        blocks = x.reshape(*x.shape[:-1], -1, self.size)
        scale = _power(_exponents(blocks, -1))
        return np.asarray(nearest_e4m3(blocks / scale) * scale, np.float32).reshape(x.shape)


@dataclass(frozen=True)
class Nvfp4:
    """Blocks of 16 along the last axis: x ≈ whole · s · q, q E2M1, s E4M3."""

    whole: float
    size = _NV_BLOCK

    def there_and_back(self, x: Floats) -> Floats:
        blocks = x.reshape(*x.shape[:-1], -1, self.size)
        whole = np.float32(self.whole)
        wanted = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(_LARGEST_E2M1) / whole
        scale = nearest_e4m3(wanted) * whole
        return np.asarray(_nearest_e2m1(blocks, scale) * scale, np.float32).reshape(x.shape)


def nvfp4(low: float, high: float) -> Nvfp4:
    """The NVFP4 format whose range holds `low` to `high`. Raises NumericError where a bound is NaN or infinite."""
    check_range(low, high)
    return Nvfp4(float(_whole(max(-low, high, 0.0))))


def microscaled(low: float, high: float) -> Microscaled:
    """The MXFP8 format, which needs no range. Raises NumericError where what was seen is NaN or infinite."""
    check_range(low, high)
    return Microscaled()


def rows(low: float, high: float) -> Rows:
    """Int8 by rows, which needs no range. Raises NumericError where what was seen is NaN or infinite."""
    check_range(low, high)
    return Rows()


def microscaled_weight(weight: Floats) -> BlockWeight:
    """A weight [K, N] in MXFP8, K a multiple of 32. Raises NumericError where it holds NaN or infinity."""
    blocks = weight.reshape(-1, _MX_BLOCK, weight.shape[1])
    _largest(blocks)
    exponents = _exponents(blocks, 1)
    values = _e4m3(blocks / _power(exponents))
    return BlockWeight(values.reshape(weight.shape), exponents[:, 0], None, _MX_BLOCK)


def nvfp4_weight(weight: Floats, *, search: bool = True) -> BlockWeight:
    """A weight [K, N] in NVFP4, K a multiple of 16. Raises NumericError where it holds NaN or infinity.

    With `search` a block's scale is the one of several that gives it the least squared error.
    """
    blocks = weight.reshape(-1, _NV_BLOCK, weight.shape[1])
    largest = _largest(blocks)
    whole = _whole(float(largest.max(initial=0)))

    def back(scale: npt.NDArray[Any]) -> Floats:
        floats = (as_floats(scale) * whole)[:, None]
        return np.asarray(_nearest_e2m1(blocks, floats) * floats, np.float32)

    shares = _SHARES if search else _SHARES[:1]
    scale = _best(blocks, [_e4m3(largest * np.float32(s / _LARGEST_E2M1) / whole) for s in shares], back)
    values = _nearest_e2m1(blocks, (as_floats(scale) * whole)[:, None]).astype(_E2M1)
    return BlockWeight(values.reshape(weight.shape), scale, whole, _NV_BLOCK)


def _largest(blocks: Floats) -> Floats:
    """The largest magnitude of each block along the second axis."""
    largest = np.asarray(np.abs(blocks).max(axis=1))
    if not np.isfinite(largest).all():
        raise NumericError("a weight holds NaN or infinity and cannot be quantised. Export the checkpoint again.")
    return largest


def _best(blocks: Floats, scales: list[Any], back: Callable[[Any], Floats]) -> Any:
    """For every block the one of `scales` with which what comes `back` has the least squared error."""
    best, least = scales[0], np.full(scales[0].shape, np.inf, np.float32)
    for scale in scales:
        error = np.square(back(scale) - blocks).sum(axis=1)
        best, least = np.where(error < least, scale, best), np.minimum(error, least)
    return best


def _exponents(blocks: Floats, axis: int) -> npt.NDArray[np.uint8]:
    """The E8M0 bytes of blocks of E4M3 along `axis`, which stays, with one element.

    The exponent is rounded up, as NVIDIA's kernels do: the specification's own rule clips what is above 1.75 · 2^n.
    """
    wanted = np.abs(blocks).max(axis=axis, keepdims=True) / np.float32(LARGEST_E4M3)
    mantissa, exponent = np.frexp(wanted)  # wanted = mantissa · 2^exponent, mantissa in [½, 1)
    up = np.where(mantissa == 0.5, exponent - 1, exponent) + _BIAS_E8M0
    return np.asarray(np.where(wanted == 0, 0, np.clip(up, 0, _MOST_E8M0)), np.uint8)


def _power(exponents: npt.NDArray[np.uint8]) -> Floats:
    """What E8M0 bytes stand for."""
    return np.ldexp(np.float32(1), exponents.astype(np.int32) - _BIAS_E8M0)


def _whole(largest: float) -> np.float32:
    """The scale of all scales, with which the largest block's is E4M3's largest; 1 for nothing but zeros."""
    whole = np.float32(largest / (_LARGEST_E2M1 * LARGEST_E4M3))
    return whole if whole >= _TINY else np.float32(1)


def _e4m3(x: Floats) -> npt.NDArray[Any]:
    return np.asarray(np.clip(x, -LARGEST_E4M3, LARGEST_E4M3), _E4M3)


def _nearest_e2m1(x: Floats, scale: Floats) -> Floats:
    """`x / scale` as E2M1 has it, in float32; zero where the scale is."""
    steps = np.divide(x, scale, out=np.zeros(np.broadcast_shapes(x.shape, scale.shape), np.float32), where=scale != 0)
    return nearest_float(steps, 1, 0, _LARGEST_E2M1)


ROWS = Numbers("int8 by rows", rows, INTEGERS.weight, INTEGERS.plain)
MICROSCALED = Numbers("mxfp8", microscaled, microscaled_weight, microscaled_weight, _MX_BLOCK)
NVFP4 = Numbers("nvfp4", nvfp4, nvfp4_weight, partial(nvfp4_weight, search=False), _NV_BLOCK)
