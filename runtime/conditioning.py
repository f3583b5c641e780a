"""Frames that are given: which they are, as the `known` latents and the `mask` of the step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from kinograph.engines.protocol import Device, Engine
from kinograph.manifest import Conditioning
from kinograph.runtime import codec

__all__ = ["Given", "encode_first_frame", "fit", "nothing_given"]

Pixels = npt.NDArray[np.uint8]
Latents = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Given:
    """`known` [1, C, F, H, W] and `mask` [1, 1, F, H, W], float32; the mask is 1 where a latent frame is given."""

    known: Latents
    mask: Latents


def nothing_given(shape: tuple[int, int, int, int, int]) -> Given:
    """Plain text-to-video for latents of `shape`."""
    return Given(np.zeros(shape, np.float32), np.zeros((1, 1, *shape[2:]), np.float32))


def encode_first_frame(
    device: Device,
    first: Engine,
    following: Engine,
    conditioning: Conditioning,
    image: Pixels,
    shape: tuple[int, int, int, int, int],
    temporal: int,
) -> Given:
    """A video that begins with `image` uint8 [s·H, s·W, 3], for latents of `shape`.

    Models conditioned through extra channels know the whole clip, with mid-grey for the frames that are not given; for
    all others only the first latent frame is encoded.
    """
    _, _, count, height, width = shape
    given = nothing_given(shape)
    given.mask[:, :, 0] = 1
    encoded = count if conditioning.kind == "channels" else 1
    chunks = codec.encode(device, first, following, _chunks(image, encoded, temporal), {"H": height, "W": width})
    for index, latents in enumerate(chunks):
        given.known[:, :, index : index + 1] = latents
    return given


def _chunks(image: Pixels, count: int, temporal: int) -> Iterator[tuple[Pixels, Latents]]:
    yield image[None], np.ones(1, np.float32)
    grey = np.zeros((temporal, *image.shape), np.uint8)
    for _ in range(count - 1):
        yield grey, np.zeros(temporal, np.float32)


def fit(image: Pixels, width: int, height: int, *, resample: Image.Resampling) -> Pixels:
    """`image` uint8 [H', W', 3] scaled to cover `width` × `height` and cropped around its centre.

    A picture of the same shape is only scaled, which with Lanczos is what diffusers' video processor does. With
    bicubic it is what CLIP's image processor does to any picture.
    """
    picture = Image.fromarray(image)
    # the side that fits decides the scale; the other is rounded down, as CLIP does
    if picture.width * height <= picture.height * width:
        cover = (width, width * picture.height // picture.width)
    else:
        cover = (height * picture.width // picture.height, height)
    picture = picture.resize(cover, resample)
    left, top = (cover[0] - width) // 2, (cover[1] - height) // 2
    return np.asarray(picture.crop((left, top, left + width, top + height)))
