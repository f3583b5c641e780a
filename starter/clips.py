"""Rendered clips for training: a pool in memory, and crops of it around the subjects."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from kinograph.starter import drawing, world
from kinograph.starter.drawing_batches import draw_batches

__all__ = ["Crop", "Pool", "pixels", "training_scenes"]

_BATCH = 64  # scenes drawn at a time
_UNDER_WAY = 0.2  # share of the clips that begin amid a motion, as what is continued does
_KINDS = {  # of scenes, with their share of the clips: what is harder more often than in the world
    "single": 0.19,
    "beside": 0.17,
    "above": 0.17,
    "row": 0.16,
    "wall": 0.24,
    "collision": 0.07,
}


@dataclass(frozen=True)
class Crop:
    """A batch's shape: `count` clips of `frames` frames, `side` pixels square."""

    count: int
    frames: int
    side: int


def pixels(frames: torch.Tensor) -> torch.Tensor:
    """uint8 [B, T, H, W, 3] as float [B, 3, T, H, W] from -1 to 1."""
    return frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def training_scenes(count: int, rng: np.random.Generator) -> list[world.Scene]:
    """Random scenes of the training combinations; those that are under way when their clip begins come last."""
    late = round(_UNDER_WAY * count)
    kinds = rng.choice(list(_KINDS), size=count - late, p=list(_KINDS.values()))
    return [_sample(str(kind), rng) for kind in kinds] + [world.sample_under_way(rng) for _ in range(late)]


def _sample(kind: str, rng: np.random.Generator) -> world.Scene:
    """Of three scenes the one that is hardest to learn."""
    return max((world.sample(rng, kind=kind) for _ in range(3)), key=_hardness)


def _hardness(scene: world.Scene) -> int:
    """How many subjects spin, each frame being another outline, and whether pixel art has few pixels for them."""
    return sum(actor.motion == "spins" for actor in scene.actors) + (scene.genre == "pixel art")


class Pool:
    """`count` random training scenes, rendered once and kept on `device`, from which batches are cut."""

    def __init__(self, count: int, frames: int, size: int, rng: np.random.Generator, device: torch.device) -> None:
        self.rng = rng
        self.scenes = training_scenes(count, rng)
        self.clips = torch.empty(count, frames, size, size, 3, dtype=torch.uint8, device=device)
        self.classes = torch.empty(count, frames, size, size, dtype=torch.uint8, device=device)
        start = 0
        for clips, shown in draw_batches(self.scenes, _BATCH, frames, size):
            part = slice(start, start + len(clips))
            self.clips[part] = torch.from_numpy(clips)
            for i, (scene, own) in enumerate(zip(self.scenes[part], shown, strict=True), start):
                self.classes[i] = torch.from_numpy(drawing.classes(scene, own))
            start += len(clips)

    def batch(self, crop: Crop) -> tuple[torch.Tensor, torch.Tensor]:
        """Random crops near a subject: clips [B, 3, T, H, W] from -1 to 1, and classes int64 [B, T, H, W]."""
        cuts = [self._window(crop) for _ in range(crop.count)]
        return pixels(torch.stack([self.clips[cut] for cut in cuts])), torch.stack(
            [self.classes[cut] for cut in cuts]
        ).long()

    def _window(self, crop: Crop) -> tuple[int, slice, slice, slice]:
        index = int(self.rng.integers(len(self.clips)))
        frames, size = self.clips.shape[1:3]
        first = int(self.rng.integers(frames - crop.frames + 1))
        actors = self.scenes[index].actors
        path = world.track(actors[int(self.rng.integers(len(actors)))], frames)
        middle = path[first + crop.frames // 2, :2] * size
        corner = middle - crop.side / 2 + self.rng.uniform(-crop.side / 3, crop.side / 3, 2)
        x, y = np.clip(corner.round().astype(int), 0, size - crop.side)
        return index, slice(first, first + crop.frames), slice(y, y + crop.side), slice(x, x + crop.side)
