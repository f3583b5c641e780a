"""Frames that are given: which they are, as the `known` latents and the `mask` of the step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from kinograph.engines.protocol import Device, Engine
from kinograph.manifest import Geometry
from kinograph.runtime import codec
from kinograph.runtime.binding import Binding
from kinograph.runtime.windows import Window

__all__ = [
    "Fit",
    "Given",
    "Original",
    "Piece",
    "Shape",
    "encode_piece",
    "encode_start",
    "fit",
    "given_in",
    "given_start",
    "image_tokens",
    "nothing_given",
]

Pixels = npt.NDArray[np.uint8]
Latents = npt.NDArray[np.float32]
Open = Callable[[str], Engine]
Shape = tuple[int, int, int, int, int]
Fit = Literal["crop", "pad", "stretch"]

_ENCODER = ("encoder_first", "encoder_next")


@dataclass(frozen=True)
class Given:
    """`known` [1, C, F, H, W] and `mask` [1, 1, F, H, W], float32; the mask is 1 where a latent frame is given.

    `noised`: to a model that takes clean frames, these are given at the noise level of the step.
    """

    known: Latents
    mask: Latents
    noised: bool = False


@dataclass(frozen=True)
class Piece:
    """Frames of a film that are known: uint8 [T, s·H, s·W, 3], the first of which is the film's frame `start`."""

    frames: Pixels
    start: int


def nothing_given(shape: Shape) -> Given:
    """Plain text-to-video for latents of `shape`."""
    return Given(np.zeros(shape, np.float32), np.zeros((1, 1, *shape[2:]), np.float32))


def given_in(window: Window, shape: Shape, known: Mapping[int, Latents], first: Latents | None) -> Given:
    """What of a window's latents of `shape` is given: `known` [1, C, 1, H, W] by the film's latent frame.

    `first` is the window's first latent frame, which stands for one frame, where the film's stands for several.
    """
    given = nothing_given(shape)
    for local in range(window.count):
        latents = known.get(window.start + local)
        if local == 0 and window.start > 0:
            latents = first
        if latents is not None:
            given.known[:, :, local : local + 1] = latents
            given.mask[:, :, local] = 1
    return given


def encode_piece(device: Device, open_engine: Open, geometry: Geometry, piece: Piece) -> dict[int, Latents]:
    """Normalised latents [1, C, 1, H, W] of the film's latent frames that a piece reaches into, by their number.

    Where it reaches into one only in part, its first or last frame stands for the rest. What is before a piece that
    does not begin the film is taken to stand still: the encoder is causal, and has to have seen something.
    """
    temporal, frames = geometry.temporal, piece.frames
    axes = {"H": frames.shape[1] // geometry.spatial, "W": frames.shape[2] // geometry.spatial}
    first = -(-piece.start // temporal)  # the latent frame that the piece's first frame is in
    end = piece.start + len(frames)  # of the film, without
    last = -(-(end - 1) // temporal)
    whole = range(1 + temporal * (first - 1), 1 + temporal * last)  # the film's frames in those, after the very first
    numbers = [0, *range(1, 1 + temporal * last)] if piece.start == 0 else [*whole]
    still = [frames[0]] * (1 + temporal) if piece.start else []
    lasting = [frames[min(max(number - piece.start, 0), len(frames) - 1)] for number in numbers]
    sequence = np.stack([*still, *lasting])
    engines = [open_engine(name) for name in _ENCODER]
    encoded = list(codec.encode(device, engines[0], engines[1], _chunks(sequence, temporal), axes))
    skipped = 2 if piece.start else 0
    return {first + number: latents for number, latents in enumerate(encoded[skipped:])}


def encode_start(
    device: Device,
    open_engine: Open,
    image: Pixels,
    shape: Shape,
    temporal: int,
    *,
    clip: bool,
) -> Latents:
    """Latents [1, C, F', H, W] of a video that begins with `image` uint8 [s·H, s·W, 3], for latents of `shape`.

    With `clip`, of the whole clip, with mid-grey for the frames that are not given, which is what models conditioned
    through extra channels know; else of the first latent frame.
    """
    _, _, count, height, width = shape
    grey = (np.zeros((temporal, *image.shape), np.uint8), np.zeros(temporal, np.float32))
    chunks = [(image[None], np.ones(1, np.float32)), *([grey] * (count - 1) if clip else [])]
    engines = [open_engine(name) for name in _ENCODER]
    return np.concatenate(list(codec.encode(device, engines[0], engines[1], chunks, {"H": height, "W": width})), axis=2)


def image_tokens(device: Device, open_engine: Open, picture: Pixels) -> Latents:
    """What the image encoder makes of a picture of any size, uint8 [H', W', 3]: float32 [1, N, D']."""
    with Binding(device, open_engine("image_encoder"), {}) as binding:
        height, width, _ = binding["pixels"].shape
        binding.write("pixels", fit(picture, width, height, resample=Image.Resampling.BICUBIC))
        binding.run()
        return np.asarray(binding["tokens"].read(), np.float32)


def given_start(device: Device, open_engine: Open, image: Pixels, shape: Shape, temporal: int) -> Given:
    """A video that begins with `image`, as a model that is conditioned through channels is given it."""
    given = nothing_given(shape)
    given.known[...] = encode_start(device, open_engine, image, shape, temporal, clip=True)
    given.mask[:, :, 0] = 1
    return given


class Original:
    """The latents of a film that another is made from, encoded as far as they are asked for.

    `frames` are its frames uint8 [s·H, s·W, 3]; where they end, the last one stands for those that are missing.
    """

    def __init__(self, device: Device, open_engine: Open, geometry: Geometry, frames: Iterator[Pixels]) -> None:
        self._frames, self._temporal = frames, geometry.temporal
        self._stream = codec.Stream(device, lambda: open_engine(_ENCODER[0]), lambda: open_engine(_ENCODER[1]))
        self._spatial = geometry.spatial
        self._latents: dict[int, Latents] = {}
        self._shown: dict[int, Pixels] = {}  # the last frame of each latent frame
        self._latest: Pixels | None = None
        self._start = (device, open_engine)

    def window(self, window: Window) -> Latents:
        """Normalised latents [1, C, F, H, W] of a window, its first latent frame standing for one frame."""
        while len(self._shown) == 0 or max(self._shown) < window.start + window.count - 1:
            self._encode_next()
        parts = [self._latents[window.start + local] for local in range(window.count)]
        if window.start:
            device, open_engine = self._start
            shape = (1, *parts[0].shape[1:2], 1, *parts[0].shape[3:])
            image = self._shown[window.start]
            parts[0] = encode_start(device, open_engine, image, shape, self._temporal, clip=False)
        for kept in (self._latents, self._shown):
            for old in [number for number in kept if number < window.start]:
                del kept[old]
        return np.concatenate(parts, axis=2)

    def _encode_next(self) -> None:
        number = 1 + max(self._shown) if self._shown else 0
        frames = np.stack([self._next() for _ in range(self._temporal if number else 1)])
        axes = {"H": frames.shape[1] // self._spatial, "W": frames.shape[2] // self._spatial}
        inputs: dict[str, npt.NDArray[Any]] = {"frames": frames, "given": np.ones(len(frames), np.float32)}
        self._latents[number] = self._stream.call(inputs, axes)["latents"].read()
        self._shown[number] = frames[-1]

    def _next(self) -> Pixels:
        self._latest = next(self._frames, self._latest)
        if self._latest is None:
            raise ValueError("a film that another is made from has at least one frame")
        return self._latest

    def close(self) -> None:
        self._stream.close()


def _chunks(frames: Pixels, temporal: int) -> Iterator[tuple[Pixels, Latents]]:
    """Frames [1 + temporal·k, …] as the encoder takes them."""
    for start, end in pairwise([0, *range(1, len(frames) + 1, temporal)]):
        yield frames[start:end], np.ones(end - start, np.float32)


def fit(image: Pixels, width: int, height: int, *, resample: Image.Resampling, how: Fit = "crop") -> Pixels:
    """`image` uint8 [H', W', 3] at `width` × `height`.

    `crop` scales it to cover that and cuts around its centre; `pad` scales it to lie within and leaves the rest black;
    `stretch` changes its proportions. A picture of the same shape is only scaled, which with Lanczos is what diffusers'
    video processor does. With bicubic, `crop` is what CLIP's image processor does to any picture.
    """
    picture = Image.fromarray(image)
    if how == "stretch":
        return np.asarray(picture.resize((width, height), resample))
    wide = picture.width * height > picture.height * width
    # the side that fits decides the scale; the other is rounded down, as CLIP does
    if wide != (how == "pad"):
        scaled = (max(1, height * picture.width // picture.height), height)
    else:
        scaled = (width, max(1, width * picture.height // picture.width))
    picture = picture.resize(scaled, resample)
    left, top = (scaled[0] - width) // 2, (scaled[1] - height) // 2
    return np.asarray(picture.crop((left, top, left + width, top + height)))
