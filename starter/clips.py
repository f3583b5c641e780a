"""Rendered clips for training: a pool in memory, and crops of it around the subjects."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from kinograph.starter import drawing, world

__all__ = ["Crop", "Pool", "pixels"]


_BATCH = 64  # scenes drawn at a time


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
        drawn = list(drawing.draw_batches(self.scenes, _BATCH, frames, size))
        self.clips, shown = (np.concatenate(parts) for parts in zip(*drawn, strict=True))
        self.classes = np.stack([drawing.classes(scene, own) for scene, own in zip(self.scenes, shown, strict=True)])

    def batch(self, crop: Crop) -> tuple[torch.Tensor, torch.Tensor]:
        """Random crops near a subject: clips [B, 3, T, H, W] from -1 to 1, and classes int64 [B, T, H, W]."""
        cut = np.empty((crop.count, crop.frames, crop.side, crop.side, 3), np.uint8)
        label = np.empty((crop.count, crop.frames, crop.side, crop.side), np.int64)
        for i in range(crop.count):
            cut[i], label[i] = self._cut(crop)
        return pixels(cut), torch.from_numpy(label)

    def _cut(self, crop: Crop) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        index = int(self.rng.integers(len(self.clips)))
        frames, size = self.clips.shape[1:3]
        first = int(self.rng.integers(frames - crop.frames + 1))
        actors = self.scenes[index].actors
        path = world.track(actors[int(self.rng.integers(len(actors)))], frames)
        middle = path[first + crop.frames // 2, :2] * size
        corner = middle - crop.side / 2 + self.rng.uniform(-crop.side / 3, crop.side / 3, 2)
        x, y = np.clip(corner.round().astype(int), 0, size - crop.side)
        window = (index, slice(first, first + crop.frames), slice(y, y + crop.side), slice(x, x + crop.side))
        return self.clips[window], self.classes[window]
