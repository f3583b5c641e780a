"""The cache between the stages: captioned latents of many clips, encoded once."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from torch.nn import functional

from kinograph.starter import world
from kinograph.starter.clips import pixels
from kinograph.starter.loop import save_atomically

__all__ = ["Cache", "encode_world", "load_cache"]

log = logging.getLogger(__name__)

_BATCH = 16
_VISIBLE = 8 / 255  # smallest difference from the background that counts as foreground


@dataclass(frozen=True)
class Cache:
    """`latents` float16 [N, C, F, H, W], normalised; `foreground` uint8 [N, 1, F, H, W], 1 in the subject's cells.

    `mean` and `std` are the channels' own, before normalising; scene `i` was drawn from `seed`, in order.
    """

    latents: torch.Tensor
    foreground: torch.Tensor
    mean: list[float]
    std: list[float]
    scenes: list[world.Scene]


def _cells(scene: world.Scene, clip: np.ndarray, shape: torch.Size) -> torch.Tensor:
    """Which latent cells the subject touches: bool [F, H, W]."""
    back = np.asarray(world.BACKGROUNDS[scene.background])
    mask = torch.from_numpy((np.abs(clip.astype(np.int16) - back).max(-1) > _VISIBLE * 255).astype(np.float32))
    first = functional.adaptive_max_pool3d(mask[None, :1], (1, *shape[1:]))
    rest = functional.adaptive_max_pool3d(mask[None, 1:], (shape[0] - 1, *shape[1:]))
    return torch.cat([first, rest], dim=1)[0] > 0


@torch.no_grad()
def encode_world(
    vae: AutoencoderKLWan, path: Path, *, count: int, frames: int, size: int, seed: int, device: torch.device
) -> None:
    """Render and encode `count` training clips, and write them to `path` with their statistics."""
    rng = np.random.default_rng(seed)
    scenes = [world.sample(rng) for _ in range(count)]
    encoded, cells = [], []
    for start in range(0, count, _BATCH):
        batch = scenes[start : start + _BATCH]
        clips = np.stack([world.render(scene, frames, size) for scene in batch])
        with torch.autocast(device.type, torch.bfloat16):
            moments = vae._encode(pixels(clips).to(device))
        latents = moments.float().chunk(2, dim=1)[0].cpu()
        encoded.append(latents.half())
        cells += [_cells(scene, clip, latents.shape[2:]) for scene, clip in zip(batch, clips, strict=True)]
        if start % (_BATCH * 50) == 0:
            log.info("latents %d of %d", start, count)
    latents = torch.cat(encoded).float()
    mean, std = latents.mean((0, 2, 3, 4)), latents.std((0, 2, 3, 4))
    shape = (1, -1, 1, 1, 1)
    save_atomically(
        {
            "latents": ((latents - mean.view(shape)) / std.view(shape)).half(),
            "foreground": torch.stack(cells).unsqueeze(1).to(torch.uint8),
            "mean": mean.tolist(),
            "std": std.tolist(),
            "seed": seed,
        },
        path,
    )


def load_cache(path: Path) -> Cache:
    """Read a cache; the scenes, which a caption is drawn from anew each time, are sampled again from its seed."""
    state = torch.load(path, weights_only=True, mmap=True)
    rng = np.random.default_rng(state["seed"])
    scenes = [world.sample(rng) for _ in range(len(state["latents"]))]
    return Cache(state["latents"], state["foreground"], state["mean"], state["std"], scenes)
