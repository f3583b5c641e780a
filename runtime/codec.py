"""The streaming codec: latent frames to pixels and back, a few latent frames at a time.

Memory does not grow with length: a few latent frames, their pixels and the causal layers' state are all there is.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from kinograph.engines.protocol import Device, Engine
from kinograph.manifest import Tensor, resolve_shape
from kinograph.runtime.binding import Binding

__all__ = ["Decoder", "Stream", "decode", "encode", "latent_chunks", "latents_per_call", "stream"]

Pixels = npt.NDArray[np.uint8]
Latents = npt.NDArray[np.float32]
Chunk = tuple[Mapping[str, npt.NDArray[Any]], Mapping[str, int]]
"""One call of a codec: its inputs by name, and the sizes of the axes."""

_PIXELS = 1 << 18  # decoded in one call, unless a single latent frame is more


class Stream:
    """A codec's two graphs, the second called over and over, and the causal layers' state between the calls.

    The engines are asked for at every call, so that they may be closed in between. A context manager.
    """

    def __init__(self, device: Device, first: Callable[[], Engine], following: Callable[[], Engine]) -> None:
        self._device = device
        self._open = (first, following)
        self._calls = 0
        self._binding: Binding | None = None
        self._axes: Mapping[str, int] = {}

    def call(self, inputs: Mapping[str, npt.NDArray[Any]], axes: Mapping[str, int]) -> Binding:
        """Run on these inputs, at these sizes; returns the buffers, whose contents last until the next call."""
        engine = self._open[min(self._calls, 1)]()
        before = self._binding
        if before is not None and self._calls > 1 and axes == self._axes:
            before.attach(engine)
            before.advance()
            binding = before
        else:
            binding = self._binding = Binding(self._device, engine, axes)
            if before is not None:
                try:
                    before.hand_over(binding)
                finally:
                    before.close()
        self._calls, self._axes = self._calls + 1, axes
        for name, array in inputs.items():
            binding.write(name, array)
        binding.run()
        return binding

    @property
    def started(self) -> bool:
        """Whether there has been a call."""
        return self._calls > 0

    def restart(self) -> None:
        """Let the next call be the first."""
        self.close()
        self._calls, self._axes = 0, {}

    def close(self) -> None:
        if self._binding is not None:
            self._binding.close()
            self._binding = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Decoder(Stream):
    """Latents to frames, piece by piece."""

    def frames(self, latents: Latents) -> Iterator[Pixels]:
        """Frames uint8 [T, s·H, s·W, 3] of the next normalised latents [1, C, F, H, W], as they are made.

        The stream's first latent frame gives one frame; every other call those of as many latent frames as make a
        quarter of a million pixels, or of one: small pictures cost more in calls than in arithmetic. Where the device
        works by itself, it is given the next call before the frames of the last are handed on.
        """
        ahead = 1 if self._device.asynchronous else 0
        waiting: deque[Callable[[], Pixels]] = deque()
        for inputs, axes in latent_chunks(self._open[1](), latents, first=not self.started):
            waiting.append(self.call(inputs, axes)["frames"].fetch())
            if len(waiting) > ahead:
                yield waiting.popleft()()
        while waiting:
            yield waiting.popleft()()

    def cut(self, lead: Latents) -> None:
        """Forget what was decoded: what comes next follows from `lead` [1, C, F, H, W], which is not shown.

        Where there is nothing that it follows from, its own first latent frame resembles that most.
        """
        self.restart()
        for inputs, axes in latent_chunks(self._open[1](), lead):
            self.call(inputs, axes)


def decode(
    device: Device, first: Engine, following: Engine, latents: Latents, cuts: Sequence[int] = ()
) -> Iterator[Pixels]:
    """Frames of normalised `latents` [1, C, F, H, W], as they are made: uint8 [T, s·H, s·W, 3].

    At `cuts`, rising numbers of latent frames, nothing is left of what was before.
    """
    with Decoder(device, lambda: first, lambda: following) as decoder:
        for begin, end in pairwise([0, *cuts, latents.shape[2]]):
            part = latents[:, :, begin:end]
            if begin:
                decoder.cut(part[:, :, :1])
            yield from decoder.frames(part)


def latent_chunks(following: Engine, latents: Latents, *, first: bool = True) -> Iterator[Chunk]:
    """The decoder's calls for `latents` [1, C, F, H, W], the film's `first` or later ones.

    `following` says how many pixels a latent frame becomes.
    """
    _, _, count, height, width = latents.shape
    axes = {"H": height, "W": width}
    several = latents_per_call(following.outputs["frames"], height, width)
    bounds = [0, *range(1, count, several), count] if first else [*range(0, count, several), count]
    for start, end in pairwise(bounds):
        yield {"latents": np.ascontiguousarray(latents[:, :, start:end])}, axes | {"F": end - start}


def latents_per_call(frames: Tensor, height: int, width: int) -> int:
    """How many latent frames of this latent size are decoded in one call; `frames` is the decoder's declared output."""
    shape = resolve_shape(frames.shape, {"F": 1, "H": height, "W": width})
    return max(1, _PIXELS // math.prod(shape[:3]))


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
    with Stream(device, lambda: first, lambda: following) as running:
        for inputs, axes in chunks:
            yield running.call(inputs, axes)
