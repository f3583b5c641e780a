"""Frames that are given: which they are, as the `known` latents and the `mask` of the step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from kinograph.engines.protocol import Device, Engine
from kinograph.manifest import Geometry
from kinograph.runtime import codec
from kinograph.runtime.windows import Window

__all__ = ["Fit", "Given", "Piece", "encode_piece", "encode_start", "fit", "given_in", "nothing_given"]

Pixels = npt.NDArray[np.uint8]
Latents = npt.NDArray[np.float32]
Open = Callable[[str], Engine]
Fit = Literal["crop", "pad", "stretch"]

_ENCODER = ("encoder_first", "encoder_next")


@dataclass(frozen=True)
class Given:
    """`known` [1, C, F, H, W] and `mask` [1, 1, F, H, W], float32; the mask is 1 where a latent frame is given."""

    known: Latents
    mask: Latents


@dataclass(frozen=True)
class Piece:
    """Frames of a film that are known: uint8 [T, s·H, s·W, 3], the first of which is the film's frame `start`."""

    frames: Pixels
    start: int


def nothing_given(shape: tuple[int, int, int, int, int]) -> Given:
    """Plain text-to-video for latents of `shape`."""
    return Given(np.zeros(shape, np.float32), np.zeros((1, 1, *shape[2:]), np.float32))


def given_in(
    window: Window, shape: tuple[int, int, int, int, int], known: Mapping[int, Latents], first: Latents | None
) -> Given:
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
    shape: tuple[int, int, int, int, int],
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
