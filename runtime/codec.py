"""The streaming codec: latent frames to pixels and back, one latent frame at a time.

Memory does not grow with length: one latent frame, its pixels and the causal layers' state are all there is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt

from kinograph.engines.protocol import Device, Engine
from kinograph.runtime.binding import Binding

__all__ = ["decode", "encode", "latent_chunks", "stream"]

Pixels = npt.NDArray[np.uint8]
Latents = npt.NDArray[np.float32]


def decode(device: Device, first: Engine, following: Engine, latents: Latents) -> Iterator[Pixels]:
    """Frames of normalised `latents` [1, C, F, H, W], as they are made: uint8 [T, s·H, s·W, 3], T = 1, then 4, 4, …"""
    axes = {"H": latents.shape[3], "W": latents.shape[4]}
    for binding in stream(device, first, following, axes, latent_chunks(latents)):
        yield binding["frames"].read()


def latent_chunks(latents: Latents) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """The decoder's inputs for `latents` [1, C, F, H, W], call by call: a latent frame each."""
    return ({"latents": np.ascontiguousarray(latents[:, :, i : i + 1])} for i in range(latents.shape[2]))


def encode(
    device: Device, first: Engine, following: Engine, chunks: Iterable[tuple[Pixels, Latents]], axes: dict[str, int]
) -> Iterator[Latents]:
    """Normalised latents [1, C, 1, H, W] of every chunk.

    A chunk is frames uint8 [T, s·H, s·W, 3] and `given` float32 [T]; the first has one frame, every other as many as
    the codec's temporal factor. Frames whose `given` is 0 are encoded as mid-grey. `axes` holds H and W.
    """
    inputs: Iterable[dict[str, npt.NDArray[Any]]] = ({"frames": f, "given": given} for f, given in chunks)
    for binding in stream(device, first, following, axes, inputs):
        yield binding["latents"].read()


def stream(
    device: Device,
    first: Engine,
    following: Engine,
    axes: dict[str, int],
    chunks: Iterable[dict[str, npt.NDArray[Any]]],
) -> Iterator[Binding]:
    """Run a codec's two graphs over `chunks`, the inputs of each call; yields the buffers after every run."""
    with ExitStack() as stack:
        binding: Binding | None = None
        for index, chunk in enumerate(chunks):
            if index == 0:
                binding = stack.enter_context(Binding(device, first, axes))
            elif index == 1 and binding is not None:
                start, binding = binding, stack.enter_context(Binding(device, following, axes))
                start.hand_over(binding)
                start.close()
            if binding is None:
                raise RuntimeError("a stream begins with its first chunk")
            for name, array in chunk.items():
                binding.write(name, array)
            binding.run()
            yield binding
            binding.advance()
