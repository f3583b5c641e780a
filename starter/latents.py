"""The cache between the stages: latents of many clips, encoded once, and what each of their cells shows."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan

from kinograph.starter import world
from kinograph.starter.clips import pixels, training_scenes
from kinograph.starter.drawing_batches import draw_batches
from kinograph.starter.loop import save_atomically
from kinograph.starter.precision import mixed_precision
from kinograph.starter.vae_training import encode_moments, shares

__all__ = ["Cache", "encode_world", "load_cache"]

log = logging.getLogger(__name__)

_BATCH = 16


@dataclass(frozen=True)
class Cache:
    """`latents` float16 [N, C, F, H, W], normalised; `shares` float16 [N, 4, F, H, W], of each cell, 0 to 1.

    Of a cell's pixels, share 0 shows the background and share `i` the scene's actor `i`, from 1 to 3. `mean` and `std`
    are the channels' own, before normalising; scene `i` was drawn from `seed`, in order. The first of them set off as
    their clips begin, the others are under way: `firsts` float16 [M, C, 1, H, W] is how those M set off, in order.
    """

    latents: torch.Tensor
    firsts: torch.Tensor
    shares: torch.Tensor
    mean: list[float]
    std: list[float]
    scenes: list[world.Scene]


@torch.no_grad()
def encode_world(
    vae: AutoencoderKLWan,
    path: Path,
    *,
    count: int,
    frames: int,
    size: int,
    seed: int,
    device: torch.device,
    measured: bool,
) -> None:
    """Render and encode `count` training clips, and write them to `path` with their statistics.

    Those are what is `measured` of these clips, or else what the VAE's configuration says.
    """
    scenes = training_scenes(count, np.random.default_rng(seed))

    def encode(clips: np.ndarray) -> torch.Tensor:
        with mixed_precision(device):
            moments = encode_moments(vae, pixels(torch.from_numpy(clips).to(device)))
        return moments.float().chunk(2, dim=1)[0].half().cpu()

    encoded, covered = [], []
    for clips, shown in draw_batches(scenes, _BATCH, frames, size):
        encoded.append(encode(clips))
        owners = torch.from_numpy(shown).to(device).long()
        covered.append(shares(owners, 1 + world.MOST_ACTORS, encoded[-1].shape[2:]).half().cpu())
        if len(encoded) % 50 == 0:
            log.info("latents %d of %d", len(encoded) * _BATCH, count)
    latents = torch.cat(encoded).float()
    late = [world.begun(scene, 0.0) for scene in scenes if scene.actors[0].begun > 0]
    pictures = [encode(frame).float() for frame, _ in draw_batches(late, _BATCH, 1, size)]
    firsts = torch.cat([latents[:0, :, :1], *pictures])
    mean, std = torch.tensor(vae.config.latents_mean), torch.tensor(vae.config.latents_std)
    if measured:
        mean, std = latents.mean((0, 2, 3, 4)), latents.std((0, 2, 3, 4))
    shape = (1, -1, 1, 1, 1)
    save_atomically(
        {
            "latents": ((latents - mean.view(shape)) / std.view(shape)).half(),
            "firsts": ((firsts - mean.view(shape)) / std.view(shape)).half(),
            "shares": torch.cat(covered),
            "mean": mean.tolist(),
            "std": std.tolist(),
            "seed": seed,
        },
        path,
    )


def load_cache(path: Path) -> Cache:
    """Read a cache; the scenes, which a caption is drawn from anew each time, are sampled again from its seed."""
    state = torch.load(path, weights_only=True, mmap=True)
    scenes = training_scenes(len(state["latents"]), np.random.default_rng(state["seed"]))
    return Cache(state["latents"], state["firsts"], state["shares"], state["mean"], state["std"], scenes)
