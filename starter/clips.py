"""Rendered clips for training: a pool in memory, and crops of it around the subject."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from kinograph.starter import world

__all__ = ["Crop", "Pool", "pixels"]


@dataclass(frozen=True)
class Crop:
    """A batch's shape: `count` clips of `frames` frames, `side` pixels square."""

    count: int
    frames: int
    side: int


def pixels(frames: NDArray[np.uint8]) -> torch.Tensor:
    """uint8 [B, T, H, W, 3] as float [B, 3, T, H, W] from -1 to 1."""
    return torch.from_numpy(frames).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


class Pool:
    """`count` random training scenes, rendered once, from which batches are cut."""

    def __init__(self, count: int, frames: int, size: int, rng: np.random.Generator) -> None:
        self.rng = rng
        self.scenes = [world.sample(rng) for _ in range(count)]
        self.tracks = np.stack([world.track(scene, frames) for scene in self.scenes])
        self.clips = np.stack([world.render(scene, frames, size) for scene in self.scenes])

    def batch(self, crop: Crop) -> tuple[torch.Tensor, torch.Tensor]:
        """Random crops near the subject: clips [B, 3, T, H, W] from -1 to 1, foreground [B, 1, T, H, W] 0 or 1."""
        cut = np.empty((crop.count, crop.frames, crop.side, crop.side, 3), np.uint8)
        mask = np.empty((crop.count, crop.frames, crop.side, crop.side), np.float32)
        for i in range(crop.count):
            cut[i], mask[i] = self._cut(crop)
        return pixels(cut), torch.from_numpy(mask).unsqueeze(1)

    def _cut(self, crop: Crop) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        index = int(self.rng.integers(len(self.clips)))
        frames, size = self.clips.shape[1:3]
        first = int(self.rng.integers(frames - crop.frames + 1))
        middle = self.tracks[index, first + crop.frames // 2, :2] * size
        corner = middle - crop.side / 2 + self.rng.uniform(-crop.side / 3, crop.side / 3, 2)
        x, y = np.clip(corner.round().astype(int), 0, size - crop.side)
        cut = self.clips[index, first : first + crop.frames, y : y + crop.side, x : x + crop.side]
        if crop.frames == 1 and self.rng.random() < 0.5:
            cut = cut[:, :, ::-1]
        back = np.asarray(world.BACKGROUNDS[self.scenes[index].background])
        return cut, (np.abs(cut.astype(np.int16) - back).max(-1) > 8).astype(np.float32)
