"""The streaming codec: latent frames to pixels and back, a few latent frames at a time.

Memory does not grow with length: a few latent frames, their pixels and the causal layers' state are all there is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from kinograph.engines.protocol import Device, Engine
from kinograph.manifest import resolve_shape
from kinograph.runtime.binding import Binding

__all__ = ["decode", "encode", "latent_chunks", "stream"]

Pixels = npt.NDArray[np.uint8]
Latents = npt.NDArray[np.float32]
Chunk = tuple[Mapping[str, npt.NDArray[Any]], Mapping[str, int]]
"""One call of a codec: its inputs by name, and the sizes of the axes."""

_PIXELS = 1 << 18  # decoded in one call, unless a single latent frame is more


def decode(device: Device, first: Engine, following: Engine, latents: Latents) -> Iterator[Pixels]:
    """Frames of normalised `latents` [1, C, F, H, W], as they are made: uint8 [T, s·H, s·W, 3].

    The first call gives one frame, every other those of as many latent frames as make a quarter of a million pixels, or
    of one: small pictures cost more in calls than in arithmetic.
    """
    for binding in stream(device, first, following, latent_chunks(following, latents)):
        yield binding["frames"].read()


def latent_chunks(following: Engine, latents: Latents) -> Iterator[Chunk]:
    """The decoder's calls for `latents` [1, C, F, H, W]; `following` says how many pixels a latent frame becomes."""
    _, _, count, height, width = latents.shape
    axes = {"H": height, "W": width}
    shape = resolve_shape(following.outputs["frames"].shape, axes | {"F": 1})
    several = max(1, _PIXELS // math.prod(shape[:3]))
    bounds = [0, *range(1, count, several), count]
    for start, end in pairwise(bounds):
        yield {"latents": np.ascontiguousarray(latents[:, :, start:end])}, axes | {"F": end - start}


def encode(
    device: Device, first: Engine, following: Engine, chunks: Iterable[tuple[Pixels, Latents]], axes: dict[str, int]
) -> Iterator[Latents]:
    """Normalised latents [1, C, 1, H, W] of every chunk.

    A chunk is frames uint8 [T, s·H, s·W, 3] and `given` float32 [T]; the first has one frame, every other as many as
    the codec's temporal factor. Frames whose `given` is 0 are encoded as mid-grey. `axes` holds H and W.
    """
    calls: Iterable[Chunk] = (({"frames": f, "given": given}, axes) for f, given in chunks)
    for binding in stream(device, first, following, calls):
        yield binding["latents"].read()


def stream(device: Device, first: Engine, following: Engine, chunks: Iterable[Chunk]) -> Iterator[Binding]:
    """Run a codec's two graphs over the inputs of each call, at its sizes; yields the buffers after every run."""
    with ExitStack() as stack:
        binding: Binding | None = None
        sizes: Mapping[str, int] = {}
        for index, (inputs, axes) in enumerate(chunks):
            if binding is not None and index > 1 and axes == sizes:
                binding.advance()
            else:
                before, binding = binding, stack.enter_context(Binding(device, following if index else first, axes))
                if before is not None:
                    before.hand_over(binding)
                    before.close()
            sizes = axes
            for name, array in inputs.items():
                binding.write(name, array)
            binding.run()
            yield binding
