"""The first stage, the video VAE: from single frames to crops of clips to whole clips; then its decoder alone.

Its latents are made for a small transformer to learn. Noise is added to them before they are decoded, so that what
matters is written large and the decoder snaps what is nearly right into shape (as in latent denoising, Yang et al.
2025, arXiv:2507.15856); and a linear head reads from each latent cell which subjects it shows, so that those are linear
directions of the latents rather than something to be decoded (as in VA-VAE, Yao et al. 2025, arXiv:2501.01423).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import patchify, unpatchify
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import nn
from torch.nn import functional

from kinograph.starter.clips import Crop, Pool
from kinograph.starter.drawing import CLASSES
from kinograph.starter.loop import Budget, Loop
from kinograph.starter.model import LATENT_CHANNELS, Layout
from kinograph.starter.precision import mixed_precision
from kinograph.starter.weighting import size_weight

__all__ = ["Clips", "decode_unclamped", "encode_moments", "psnr", "shares", "train_decoder", "train_vae"]

log = logging.getLogger(__name__)

_KL_WEIGHT = 1e-4  # per latent value: keeps latents near unit scale without blurring
_HEAD_WEIGHT = 0.1  # of reading the subjects from the latents
_EDGES = 1.0  # of neighbouring pixels' differences: keeps textures that are too faint for plain L1
_FOREGROUND = 5.0  # extra weight of the subjects' pixels
_SWEPT = 1.5  # extra weight of pixels that a subject touches at any time in the clip
_WIDE = 1.5  # share of the subjects' mask grown by one pixel
_JITTER = 0.4  # most noise on the latents before decoding, in standard deviations
_POOL = 2400  # clips kept in memory
_PHASES = (0.15, 0.4)  # until here single frames; until here crops of short clips; then crops of clips and whole ones
_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def decode_unclamped(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """`vae.decode` without its final clamp, which has no gradient outside -1 to 1.

    Takes [B, C, F, H, W], returns [B, 3, 1 + 4·(F − 1), 8·H, 8·W].
    """
    cache: list[torch.Tensor | None] = [None] * vae._cached_conv_counts["decoder"]
    hidden = vae.post_quant_conv(latents)
    pieces = [vae.decoder(hidden[:, :, :1], feat_cache=cache, feat_idx=[0], first_chunk=True)]
    if hidden.shape[2] > 1:
        pieces.append(vae.decoder(hidden[:, :, 1:], feat_cache=cache, feat_idx=[0]))
    return unpatchify(torch.cat(pieces, dim=2), patch_size=vae.config.patch_size)


def encode_moments(vae: AutoencoderKLWan, clips: torch.Tensor) -> torch.Tensor:
    """`vae._encode`, with the frames after the first in one piece: [B, 3, T, H, W] to [B, 2·C, F, H/8, W/8].

    The result is the same but for rounding; larger pieces keep a CPU's cores busier.
    """
    cache: list[torch.Tensor | None] = [None] * vae._cached_conv_counts["encoder"]
    patches = patchify(clips, patch_size=vae.config.patch_size)
    pieces = [vae.encoder(patches[:, :, :1], feat_cache=cache, feat_idx=[0])]
    if patches.shape[2] > 1:
        pieces.append(vae.encoder(patches[:, :, 1:], feat_cache=cache, feat_idx=[0]))
    return vae.quant_conv(torch.cat(pieces, dim=2))


def psnr(clips: torch.Tensor, decoded: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Peak signal-to-noise ratio in dB over the foreground and over the background; values from -1 to 1."""
    error = ((clips - decoded.clamp(-1, 1)) / 2).square().mean(1, keepdim=True)
    inside = (error * mask).sum() / mask.sum().clamp(min=1)
    outside = (error * (1 - mask)).sum() / (1 - mask).sum()
    return -10 * torch.log10(inside + 1e-12), -10 * torch.log10(outside + 1e-12)


def shares(label: torch.Tensor, kinds: int, cells: torch.Size) -> torch.Tensor:
    """How much of each latent cell every kind of pixel covers: kinds [B, T, H, W] to float [B, kinds, F, H', W'].

    The first latent frame stands for one frame, each other for an equal share of the rest.
    """
    covered = functional.one_hot(label, kinds).permute(0, 4, 1, 2, 3).float()
    first = functional.adaptive_avg_pool3d(covered[:, :, :1], (1, *cells[1:]))
    if cells[0] == 1:
        return first
    return torch.cat([first, functional.adaptive_avg_pool3d(covered[:, :, 1:], (cells[0] - 1, *cells[1:]))], dim=2)


def _loss(module: nn.ModuleDict, clips: torch.Tensor, label: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Foreground-weighted L1 and L2, L1 of the differences between neighbouring pixels (Mathieu et al. 2016,
    arXiv:1511.05440), KL, and the head's cross-entropy; and the decoded clips [B, 3, T, H, W].
    """
    vae = module["vae"]
    with mixed_precision(clips.device):
        moments = encode_moments(vae, clips)
        posterior = DiagonalGaussianDistribution(moments.float())
        latents = posterior.mean
        spread = latents.detach().std((0, 2, 3, 4), keepdim=True) + 1e-3
        level = torch.rand(len(latents), 1, 1, 1, 1, device=clips.device) * _JITTER
        noisy = latents + level * spread * torch.randn_like(latents)
        decoded = decode_unclamped(vae, noisy)
        scores = module["head"](noisy / spread)
    decoded = decoded.float()
    mask = (label > 0).float().unsqueeze(1)
    wide = functional.max_pool3d(mask, (1, 3, 3), 1, (0, 1, 1))
    subjects = size_weight(mask) * (mask + _WIDE * (wide - mask))
    weight = 1 + _FOREGROUND * subjects + _SWEPT * wide.amax(2, keepdim=True)
    error = decoded - clips
    difference = error.abs() + 0.5 * error.square()
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
    seen = functional.cross_entropy(scores.float(), shares(label, len(CLASSES), scores.shape[2:]))
    pictures = (difference * weight).mean() / weight.mean() + _EDGES * edges
    return pictures + _KL_WEIGHT * kl + _HEAD_WEIGHT * seen, decoded


def _crop(progress: float, step: int, layout: Layout, scale: int) -> Crop:
    """The batch to train on at this point: `scale` multiplies the number of clips, for larger machines."""
    frames, size = layout.frames, layout.size
    half = size // 2
    if progress < _PHASES[0]:
        return Crop(64 * scale, 1, half)
    if progress < _PHASES[1]:
        return Crop(8 * scale, min(9, frames), half)
    return Crop(8 * scale, frames, half) if step % 2 else Crop(4 * scale, frames, size)


@dataclass(frozen=True)
class Clips:
    """What to train on: the layout's clips, seed, batch sizes as a multiple of the CPU's, and where."""

    layout: Layout
    seed: int
    scale: int
    device: torch.device


def _module(vae: AutoencoderKLWan) -> nn.ModuleDict:
    """The VAE with the head that reads its latents, in the memory layout in which a CPU convolves fastest."""
    module = nn.ModuleDict({"vae": vae, "head": nn.Conv3d(LATENT_CHANNELS, len(CLASSES), 1)})
    for parameter in module.parameters():
        if parameter.ndim in _LAST:
            parameter.data = parameter.data.contiguous(memory_format=_LAST[parameter.ndim])
    for part in module.modules():
        if isinstance(part, nn.Conv3d) and part.kernel_size == (1, 1, 1):
            part.forward = partial(_product, part)  # type: ignore[method-assign]
    return module


def _product(convolution: nn.Conv3d, x: torch.Tensor) -> torch.Tensor:
    """A convolution of single cells, [B, C, T, H, W], as the product that it is.

    PyTorch 2.13's own corrupts memory on CPUs with AMX, in its bfloat16 gradient, from 64×64 cells on.
    """
    product = functional.linear(x.movedim(1, -1), convolution.weight.flatten(1), convolution.bias)
    return product.movedim(-1, 1)


def _is_muon(name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon trains this weight: the convolutions within encoder and decoder."""
    return parameter.ndim in _LAST and ("encoder." in name or "decoder." in name) and "conv_" not in name


def train_vae(folder: Path, budget: Budget, data: Clips, vae: AutoencoderKLWan, *, anew: bool) -> AutoencoderKLWan:
    """Train the whole VAE within the budget, resuming from `folder`, and return its averaged weights.

    Single frames come first where it is trained `anew`; one that goes on begins with crops of clips and whole ones.
    """
    torch.manual_seed(data.seed)
    loop = Loop(_module(vae).to(data.device), budget, folder / "vae.pt", _is_muon)
    _fit(loop, data, start=0.0 if anew else _PHASES[1])
    return loop.averaged["vae"]


def train_decoder(path: Path, budget: Budget, data: Clips, vae: AutoencoderKLWan, *, anew: bool) -> AutoencoderKLWan:
    """Train the decoder alone, resuming from `path`: the latents stay what the transformer learns, so both may at once.

    As with `train_vae`, single frames come first for a decoder that begins `anew`.
    """
    torch.manual_seed(data.seed)
    vae.requires_grad_(True)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    loop = Loop(_module(vae).to(data.device), budget, path, _is_muon)
    _fit(loop, data, start=0.0 if anew else _PHASES[1])
    return loop.averaged["vae"]


def _fit(loop: Loop, data: Clips, *, start: float) -> None:
    """Train until the budget is used up; `start` is where among the phases the first step stands."""
    if loop.progress >= 1:
        return
    pool = Pool(_POOL, data.layout.frames, data.layout.size, np.random.default_rng((data.seed, loop.step)), data.device)
    for progress in loop.steps():
        crop = _crop(start + (1 - start) * progress, loop.step, data.layout, data.scale)
        clips, label = pool.batch(crop)
        clips = clips.contiguous(memory_format=torch.channels_last_3d)
        loss, decoded = _loss(loop.module, clips, label)
        inside, outside = psnr(clips, decoded.detach(), (label > 0).float().unsqueeze(1))
        loop.update(loss, foreground=inside, background=outside)
