"""What a run tells whoever iterates over it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

__all__ = ["Event", "FramesDecoded", "StageStarted", "StepDone"]


class StageStarted(msgspec.Struct, frozen=True):
    """A stage begins; the one before has ended."""

    name: Literal["text", "image", "denoise", "decode"]


class StepDone(msgspec.Struct, frozen=True, eq=False):
    """Step `index` of `total` (from 0) has run. `latents()` reads the sample [1, C, F, H, W] as it is now."""

    index: int
    total: int
    timestep: float
    latents: Callable[[], npt.NDArray[np.float32]]


class FramesDecoded(msgspec.Struct, frozen=True, eq=False):
    """`frames` uint8 [T, H, W, 3] are ready; `index` is the number of the first, `total` how many there will be."""

    frames: npt.NDArray[np.uint8]
    index: int
    total: int


Event = StageStarted | StepDone | FramesDecoded
