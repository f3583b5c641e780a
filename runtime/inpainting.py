"""A film of which a part is made anew: what stays is given to every window, and put back into its frames."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from kinograph.engines.protocol import Device, Engine
from kinograph.errors import RequestError
from kinograph.manifest import Geometry
from kinograph.runtime.clip import Clip, read_clip
from kinograph.runtime.conditioning import Given, Original, fit
from kinograph.runtime.image import read_image
from kinograph.runtime.request import Request
from kinograph.runtime.windows import Window

__all__ = ["Patch"]

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Open = Callable[[str], Engine]

_NEW = 128  # of 255: as light as this, and a pixel of the mask is to be made anew
_FEATHER = 4  # pixels within what is made anew, over which it gives way to what stays


class Patch:
    """The film and the mask of a resolved `request`, read as far as windows go.

    A latent is given where nothing that it shows is to be made anew, in whole patches of the transformer, whose tokens
    have one timestep each. Pixels that stay are the film's own.
    """

    def __init__(self, device: Device, open_engine: Open, geometry: Geometry, request: Request) -> None:
        film, again = itertools.tee(_lasting(Clip.of(request, request.inpaint)))
        self._latents = Original(device, open_engine, geometry, film)
        self._frames = again
        masks, masks_again = itertools.tee(_masks(request))
        self._masks, self._masks_again = masks, masks_again
        self._geometry = geometry
        self._kept: dict[int, npt.NDArray[np.float32]] = {}

    def give(self, given: Given, window: Window) -> None:
        """Add what stays of a window's new latent frames to what is given of it already."""
        latents = self._latents.window(window)
        for local in range(window.given, window.count):
            keep = self._keep(window.start + local)
            given.mask[0, 0, local] = keep
            given.known[:, :, local] = latents[:, :, local] * keep
        for old in [number for number in self._kept if number < window.start]:
            del self._kept[old]

    def blend(self, frames: Pixels) -> Pixels:
        """The next frames [T, H, W, 3] of the film, with what stays as it was."""
        mixed = []
        for frame, own, mask in zip(frames, self._frames, self._masks_again, strict=False):
            share = _feathered(mask)[..., None]
            mixed.append(np.rint(own + share * (frame.astype(np.float32) - own)).astype(np.uint8))
        return np.stack(mixed)

    def close(self) -> None:
        self._latents.close()

    def _keep(self, number: int) -> npt.NDArray[np.float32]:
        """[H, W]: 1 where the film's latent frame stays as it is."""
        while number not in self._kept:
            following = 1 + max(self._kept, default=-1)
            count = self._geometry.temporal if following else 1
            new = np.any([next(self._masks) for _ in range(count)], axis=0)
            self._kept[following] = _cells(new, self._geometry)
        return self._kept[number]


def _cells(new: Mask, geometry: Geometry) -> npt.NDArray[np.float32]:
    """[H, W] in latents: 0 in every patch that has a pixel to be made anew, and 1 in the others."""
    side = geometry.spatial * geometry.patch
    height, width = new.shape
    patches = new.reshape(height // side, side, width // side, side).any(axis=(1, 3))
    return np.repeat(np.repeat(~patches, geometry.patch, 0), geometry.patch, 1).astype(np.float32)


def _feathered(mask: Mask) -> npt.NDArray[np.float32]:
    """The share [H, W] of what was made: 0 wherever the mask is, and 1 from some pixels within it on."""
    blurred = Image.fromarray(mask.astype(np.uint8) * 255).filter(ImageFilter.BoxBlur(_FEATHER))
    share: npt.NDArray[np.float32] = np.clip(np.asarray(blurred, np.float32) / 127.5 - 1, 0, 1) * mask
    return share


def _lasting(frames: Clip) -> Iterator[Pixels]:
    """The frames, and the last one from then on."""
    frame = None
    for frame in frames:
        yield frame
    while frame is not None:
        yield frame


def _masks(request: Request) -> Iterator[Mask]:
    """The mask [H, W] of every frame: a picture's is the same for all, a film's has frames of its own."""
    path, width, height = str(request.mask), int(request.width or 0), int(request.height or 0)
    frames: Iterator[Pixels]
    try:
        picture = read_image(path)
    except RequestError as not_a_picture:
        try:
            clip = read_clip(path, width=width, height=height, fps=float(request.fps or 1), how=request.fit)
            frames = itertools.chain([next(clip)], clip)
        except RequestError:
            raise not_a_picture from None
    else:
        frames = iter([fit(picture, width, height, resample=Image.Resampling.LANCZOS, how=request.fit)])
    mask: Mask | None = None
    for frame in frames:
        mask = frame.mean(axis=2) >= _NEW
        yield mask
    while mask is not None:
        yield mask
