"""The first stage, the video VAE: from single frames to crops of clips to whole clips; then its decoder alone."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch.nn import functional

from kinograph.starter.clips import Crop, Pool
from kinograph.starter.loop import Budget, Loop
from kinograph.starter.model import make_vae

__all__ = ["Clips", "decode_unclamped", "psnr", "train_decoder", "train_vae"]

log = logging.getLogger(__name__)

_KL_WEIGHT = 1e-4  # per latent value: keeps latents near unit scale without blurring
_FOREGROUND = 6.0  # extra weight of the subject's pixels
_SWEPT = 2.0  # extra weight of pixels the subject touches at any time in the clip
_WIDE = 1.5  # share of the subject's mask grown by one pixel
_JITTER = 0.1  # noise on the latents that a decoder is trained on alone, in standard deviations
_POOL = 1000  # clips kept in memory
_PHASES = (0.2, 0.85)  # until here single frames; until here crops of clips; then whole clips


def decode_unclamped(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """`vae.decode` without its final clamp, which has no gradient outside -1 to 1.

    Takes [B, C, F, H, W], returns [B, 3, 1 + 4·(F − 1), 8·H, 8·W].
    """
    cache: list[torch.Tensor | None] = [None] * vae._cached_conv_counts["decoder"]
    hidden = vae.post_quant_conv(latents)
    pieces = [
        vae.decoder(hidden[:, :, i : i + 1], feat_cache=cache, feat_idx=[0], first_chunk=i == 0)
        for i in range(hidden.shape[2])
    ]
    return unpatchify(torch.cat(pieces, dim=2), patch_size=vae.config.patch_size)


def psnr(clips: torch.Tensor, decoded: torch.Tensor, mask: torch.Tensor) -> tuple[float, float]:
    """Peak signal-to-noise ratio in dB over the foreground and over the background; values from -1 to 1."""
    error = ((clips - decoded.clamp(-1, 1)) / 2).square().mean(1, keepdim=True)
    inside = (error * mask).sum() / mask.sum()
    outside = (error * (1 - mask)).sum() / (1 - mask).sum()
    return float(-10 * torch.log10(inside + 1e-12)), float(-10 * torch.log10(outside + 1e-12))


def _loss(
    vae: AutoencoderKLWan, clips: torch.Tensor, mask: torch.Tensor, jitter: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Foreground-weighted L1 plus KL, and the decoded clips; latents get noise of `jitter` standard deviations."""
    with torch.autocast(clips.device.type, torch.bfloat16):
        moments = vae._encode(clips)
        posterior = DiagonalGaussianDistribution(moments.float())
        latents = posterior.sample()
        spread = latents.detach().std((0, 2, 3, 4), keepdim=True)
        decoded = decode_unclamped(vae, latents + jitter * spread * torch.randn_like(latents))
    decoded = decoded.float()
    wide = functional.max_pool3d(mask, (1, 3, 3), 1, (0, 1, 1))
    weight = 1 + _FOREGROUND * (mask + _WIDE * (wide - mask)) + _SWEPT * wide.amax(2, keepdim=True)
    difference = (decoded - clips).abs() + 0.5 * (decoded - clips).square()
    kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
    return (difference * weight).mean() / weight.mean() + _KL_WEIGHT * kl, decoded


def _crop(progress: float, frames: int, size: int, scale: int) -> Crop:
    """The batch to train on at this point: `scale` multiplies the number of clips, for larger machines."""
    half = size // 2
    if progress < _PHASES[0]:
        return Crop(64 * scale, 1, half)
    if progress < _PHASES[1]:
        return Crop(8 * scale, min(9, frames), half)
    return Crop(4 * scale, frames, size)


@dataclass(frozen=True)
class Clips:
    """What to train on: frames a clip, side in pixels, seed, batch sizes as a multiple of the CPU's, and where."""

    frames: int
    size: int
    seed: int
    scale: int
    device: torch.device


def train_vae(folder: Path, budget: Budget, data: Clips) -> AutoencoderKLWan:
    """Train the whole VAE within the budget, resuming from `folder`, and return its averaged weights."""
    torch.manual_seed(data.seed)
    loop = Loop(make_vae().to(data.device), budget, folder / "vae.pt")
    _fit(loop, data, start=0.0, jitter=0.0)
    return loop.averaged


def train_decoder(folder: Path, budget: Budget, data: Clips, vae: AutoencoderKLWan) -> AutoencoderKLWan:
    """Go on with the decoder alone: the latents stay what the transformer learns, so both may train at once.

    The latents get a little noise, because those that a transformer makes are not quite those of an encoder.
    """
    torch.manual_seed(data.seed)
    vae.requires_grad_(True)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    loop = Loop(vae.to(data.device), budget, folder / "decoder.pt")
    _fit(loop, data, start=_PHASES[0], jitter=_JITTER)
    return loop.averaged


def _fit(loop: Loop, data: Clips, *, start: float, jitter: float) -> None:
    """Train until the budget is used up; `start` is where among the phases the first step stands."""
    if loop.progress >= 1:
        return
    pool = Pool(_POOL, data.frames, data.size, np.random.default_rng((data.seed, loop.step)))
    for progress in loop.steps():
        crop = _crop(start + (1 - start) * progress, data.frames, data.size, data.scale)
        clips, mask = (x.to(data.device) for x in pool.batch(crop))
        loss, decoded = _loss(loop.module, clips, mask, jitter)
        inside, outside = psnr(clips, decoded.detach(), mask)
        loop.update(loss, foreground=inside, background=outside)
