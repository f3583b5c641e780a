"""What a run tells whoever iterates over it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

__all__ = ["Event", "FramesDecoded", "StageStarted", "StepDone", "WindowDone"]


class StageStarted(msgspec.Struct, frozen=True):
    """A stage begins; the one before has ended. `film` is denoising and decoding in turn, window by window.

    `build` makes an engine that is missing, which takes minutes and is done once; `detail` says which. `expected_bytes`
    is the memory that its components are going to take, as far as that can be told.
    """

    name: Literal["build", "text", "image", "denoise", "decode", "film"]
    detail: str = ""
    expected_bytes: int = 0


class StepDone(msgspec.Struct, frozen=True, eq=False):
    """Step `index` of `total` (from 0) has run. `latents()` reads the sample [1, C, F, H, W] as it is now.

    `preview()` is what the video is going to look like, as far as it can be told from there: uint8 [F, H, W, 3], a
    frame for every latent frame, at the latents' size. It is None where the bundle has no map for that. Both read what
    the next step overwrites.
    """

    index: int
    total: int
    timestep: float
    latents: Callable[[], npt.NDArray[np.float32]]
    preview: Callable[[], npt.NDArray[np.uint8]] | None = None


class FramesDecoded(msgspec.Struct, frozen=True, eq=False):
    """`frames` uint8 [T, H, W, 3] are ready; `index` is the number of the first, `total` how many there will be."""

    frames: npt.NDArray[np.uint8]
    index: int
    total: int


class WindowDone(msgspec.Struct, frozen=True, eq=False):
    """Window `index` of `total` (from 0) is made and decoded; `latents` [1, C, F, H, W] are what it adds.

    With `cut` nothing in them follows from what was before.
    """

    index: int
    total: int
    latents: npt.NDArray[np.float32]
    cut: bool = False


Event = StageStarted | StepDone | FramesDecoded | WindowDone
