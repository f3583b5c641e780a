"""The linear map from latents to colours, fitted to what the exported encoder makes of pictures.

Pictures are blocks of random colours at several scales, so that every colour is there beside every other. A latent is
held against the mean of the pixels that it stands for; least squares say the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kinograph.bundle.draft import Draft
from kinograph.engines.ort import OrtDevice
from kinograph.manifest import Component, Geometry, Preview
from kinograph.runtime.codec import encode

__all__ = ["fit_preview"]

_PICTURES = 32
_SIDE = 8  # latents
_RIDGE = 1e-3  # of the latents' own spread: a channel that says nothing gets nothing


def fit_preview(
    folder: Path, components: Mapping[str, Component], precision: str, geometry: Geometry
) -> Preview | None:
    """The map for a bundle that is in `folder`; None for one without an encoder."""
    names = ("encoder_first", "encoder_next")
    if not all(name in components for name in names):
        return None
    latents, colours = [], []
    with OrtDevice() as device:
        first, following = (device.open(Draft(folder, components), name, precision) for name in names)
        for picture in _pictures(_SIDE * geometry.spatial):
            clips = [np.stack([picture] * count) for count in (1, geometry.temporal)]
            chunks = [(clip, np.ones(len(clip), np.float32)) for clip in clips]
            means = _means(picture, geometry.spatial)
            for encoded in encode(device, first, following, chunks, {"H": _SIDE, "W": _SIDE}):
                latents.append(encoded[0, :, 0].reshape(geometry.channels, -1).T)
                colours.append(means)
    x, y = np.concatenate(latents).astype(np.float64), np.concatenate(colours)
    middle, target = x.mean(axis=0), y.mean(axis=0)
    spread = (x - middle).T @ (x - middle)
    ridge = _RIDGE * np.trace(spread) / len(spread) * np.eye(len(spread))
    weights = np.linalg.solve(spread + ridge, (x - middle).T @ (y - target))
    bias = target - middle @ weights
    return Preview(tuple(_rounded(row) for row in weights), _rounded(bias))


def _rounded(row: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    red, green, blue = (float(f"{value:.6g}") for value in row)
    return red, green, blue


def _pictures(side: int) -> list[npt.NDArray[np.uint8]]:
    random = np.random.default_rng(0)
    pictures = []
    for number in range(_PICTURES):
        blocks = 1 << number % 4  # from one colour to a colour for every latent
        colours = random.integers(0, 256, (blocks, blocks, 3), dtype=np.uint8)
        pictures.append(np.kron(colours, np.ones((side // blocks, side // blocks, 1), np.uint8)))
    return pictures


def _means(picture: npt.NDArray[np.uint8], spatial: int) -> npt.NDArray[np.float64]:
    """The mean colour [H·W, 3], 0 to 1, of the pixels of every latent."""
    height, width, _ = picture.shape
    cells = picture.reshape(height // spatial, spatial, width // spatial, spatial, 3)
    return np.asarray(cells.mean(axis=(1, 3)).reshape(-1, 3) / 255)
