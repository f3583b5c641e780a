"""Pictures to start from, for models that make videos from one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from kinograph.runtime.conditioning import fit
from kinograph.runtime.image import read_image

__all__ = ["chosen_pictures"]

Pixels = npt.NDArray[np.uint8]

_COUNT = 8
_COARSEST, _OCTAVES = 2, 6  # cells along a side, doubled so many times


def chosen_pictures(paths: Sequence[str], width: int, height: int) -> list[Pixels]:
    """The user's pictures as uint8 [H, W, 3], or some of the project's own. Raises RequestError.

    Those are noise whose contrast falls with its frequency, in random colours, as that of photographs does (Field 1987,
    doi:10.1364/JOSAA.4.002379).
    """
    if paths:
        return [fit(read_image(path), width, height, resample=Image.Resampling.LANCZOS) for path in paths]
    return [_clouds(number, width, height) for number in range(_COUNT)]


def _clouds(seed: int, width: int, height: int) -> Pixels:
    random = np.random.default_rng(seed)
    mixed = np.zeros((height, width, 3), np.float32)
    for octave in range(_OCTAVES):
        cells = _COARSEST << octave
        grid = random.normal(0, 40 / (1 + octave), (cells, cells, 3)) + 128
        small = Image.fromarray(np.clip(grid, 0, 255).astype(np.uint8))
        mixed += np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), np.float32) - 128
    return np.asarray(np.clip(mixed + random.uniform(64, 192, 3), 0, 255), np.uint8)
