"""What a video is going to look like, told from its latents by a linear map, without the decoder."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from kinograph.manifest import Preview
from kinograph.runtime.image import contact_sheet

__all__ = ["preview_frames", "preview_sheet"]

Pixels = npt.NDArray[np.uint8]


def preview_frames(latents: npt.NDArray[np.float32], preview: Preview) -> Pixels:
    """A frame for every latent frame of [1, C, F, H, W], at the latents' own size: uint8 [F, H, W, 3]."""
    weights, bias = np.asarray(preview.weights, np.float32), np.asarray(preview.bias, np.float32)
    rgb = np.einsum("cfhw,cr->fhwr", latents[0], weights) + bias
    return np.asarray(np.rint(np.clip(np.nan_to_num(rgb), 0, 1) * 255), np.uint8)


def preview_sheet(frames: Pixels, scale: int, columns: int = 8) -> Pixels:
    """Frames [F, H, W, 3] side by side, `scale` times as large: uint8 [H', W', 3]."""
    height, width = frames.shape[1] * scale, frames.shape[2] * scale
    large = [Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC) for frame in frames]
    return contact_sheet(np.stack([np.asarray(one) for one in large]), columns)
