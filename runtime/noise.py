"""Gaussian noise equal to PyTorch's on the CPU, so that a seed gives the same video as `torch.Generator("cpu")`.

PyTorch draws from MT19937 (Matsumoto & Nishimura 1998) and turns uniform numbers into normal ones by Box and Muller's
method (1958), in two ways (DistributionTemplates.h and DistributionsHelper.h of its ATen library):

- 16 values or more: float32, in blocks of 16, whose first 8 uniforms give radii and whose last 8 give angles. Where the
  size is not a multiple of 16, the last 16 values are drawn again over what was there.
- fewer than 16 values: float64, one pair at a time. An odd one out is kept for the next draw of this kind.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from kinograph import errors

__all__ = ["Generator", "normal"]

_BLOCK = 16
_CHUNK = 1 << 20  # values made at a time: 16 MB of temporaries or so, whatever the size of the latents


def normal(shape: tuple[int, ...], seed: int) -> npt.NDArray[np.float32]:
    """Standard normal noise, float32 of `shape`, equal to PyTorch's to 1e-6.

    PyTorch's is `torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))`.
    Raises RequestError for a seed outside 0 ≤ seed < 2⁶⁴.
    """
    return Generator(seed).normal(shape)


class Generator:
    """A stream of noise: consecutive draws equal consecutive `torch.randn` calls on one generator.

    Raises RequestError for a seed outside 0 ≤ seed < 2⁶⁴.
    """

    def __init__(self, seed: int) -> None:
        if not 0 <= seed < 1 << 64:
            nearest = min(max(seed, 0), (1 << 64) - 1)
            raise errors.RequestError(f"seed is {seed}: expected 0 to 2**64 - 1. Nearest: {nearest}.")
        # RandomState seeds as init_genrand of the reference implementation does; PyTorch keeps the low 32 bits.
        self._bits = np.random.MT19937()
        seeded = np.random.RandomState(seed & 0xFFFFFFFF).get_state(legacy=False)
        self._bits.state = {"bit_generator": "MT19937", "state": seeded["state"]}
        self._spare: float | None = None

    def normal(self, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        """The next standard normal noise, float32 of `shape`, equal to PyTorch's to 1e-6."""
        size = math.prod(shape)
        if size < _BLOCK:
            return np.array([self._single() for _ in range(size)], np.float32).reshape(shape)
        values = np.empty(size, np.float32)
        whole = size - size % _BLOCK
        for start in range(0, whole, _CHUNK):
            stop = min(start + _CHUNK, whole)
            values[start:stop] = self._blocks(stop - start)
        if whole != size:
            self._bits.random_raw(size - whole, output=False)  # uniforms that PyTorch draws and then draws again
            values[-_BLOCK:] = self._blocks(_BLOCK)
        return values.reshape(shape)

    def _blocks(self, size: int) -> npt.NDArray[np.float32]:
        """The next `size` values, a multiple of 16, in float32 arithmetic like PyTorch's."""
        draws = self._bits.random_raw(size) & np.uint64(0xFFFFFF)
        uniform = (draws.astype(np.float32) * np.float32(2**-24)).reshape(-1, 2, _BLOCK // 2)
        radius = np.sqrt(np.float32(-2) * np.log(np.float32(1) - uniform[:, 0]))
        angle = np.float32(2 * math.pi) * uniform[:, 1]
        return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)

    def _single(self) -> float:
        """The next value of the float64 path."""
        if self._spare is not None:
            value, self._spare = self._spare, None
            return value
        angle = 2 * math.pi * self._uniform()
        radius = math.sqrt(-2 * math.log1p(-self._uniform()))
        self._spare = radius * math.sin(angle)
        return radius * math.cos(angle)

    def _uniform(self) -> float:
        """The next float64 in [0, 1): the low 53 bits of two draws, the first of which is the high word."""
        high, low = (int(draw) for draw in self._bits.random_raw(2))
        return (((high << 32) | low) & ((1 << 53) - 1)) * 2.0**-53
