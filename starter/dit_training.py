"""The last stage: the diffusion transformer, by flow matching, together with the text encoder."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import UMT5EncoderModel

from kinograph.starter import world
from kinograph.starter.latents import Cache
from kinograph.starter.loop import Budget, Loop
from kinograph.starter.model import FLOW_SHIFT, encode_text, make_transformer
from kinograph.starter.text_training import world_tokenizer

__all__ = ["given_frames", "train_dit"]

log = logging.getLogger(__name__)

_NO_CAPTION = 0.1  # share of clips trained without a caption, for classifier-free guidance
_FOREGROUND = 2.0  # extra weight of the subject's cells, fading with noise: where noise hides them it would bias
_GIVEN = {"none": 0.75, "first": 0.1, "start": 0.05, "end": 0.05, "both ends": 0.05}


def given_frames(frames: int, rng: np.random.Generator) -> np.ndarray:
    """Which latent frames a clip is given clean: bool [F], with at least one left to make."""
    given = np.zeros(frames, bool)
    kind = str(rng.choice(list(_GIVEN), p=list(_GIVEN.values())))
    if kind == "first":
        given[0] = True
    elif kind == "start":
        given[: rng.integers(1, frames)] = True
    elif kind == "end":
        given[rng.integers(1, frames) :] = True
    elif kind == "both ends":
        first = int(rng.integers(1, frames - 1))
        given[:first] = True
        given[rng.integers(first + 1, frames) :] = True
    return given


def _batch(
    cache: Cache, count: int, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[str]]:
    """Latents [B, C, F, H, W], foreground [B, 1, F, H, W], given frames [B, F] and captions."""
    chosen = rng.integers(len(cache.scenes), size=count)
    latents = cache.latents[chosen].float()
    captions = [world.caption(cache.scenes[i], rng) if rng.random() >= _NO_CAPTION else "" for i in chosen]
    given = np.stack([given_frames(latents.shape[2], rng) for _ in range(count)])
    return latents, cache.foreground[chosen].float(), torch.from_numpy(given), captions


def _is_muon(name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon trains this weight: the matrices inside the transformer's blocks."""
    return parameter.ndim == 2 and name.startswith("transformer.blocks.")


def _attention(device: torch.device) -> SDPBackend:
    """The fastest attention to train with: on a CPU the flash kernel's backward is slower than plain products."""
    return SDPBackend.MATH if device.type == "cpu" else SDPBackend.EFFICIENT_ATTENTION


def _loss(
    module: nn.ModuleDict, text: torch.Tensor, latents: torch.Tensor, foreground: torch.Tensor, given: torch.Tensor
) -> torch.Tensor:
    """Flow matching (Lipman et al. 2022, arXiv:2210.02747): x = (1 − σ)·latents + σ·noise, target noise − latents.

    Given frames stay clean at timestep 0 and carry no loss.
    """
    batch, _, frames, height, width = latents.shape
    sigma = torch.rand(batch, device=latents.device)
    sigma = FLOW_SHIFT * sigma / (1 + (FLOW_SHIFT - 1) * sigma)
    noise = torch.randn_like(latents)
    sigmas = (sigma[:, None] * ~given).view(batch, 1, frames, 1, 1)
    noisy = (1 - sigmas) * latents + sigmas * noise
    tokens = (height // 2) * (width // 2)
    timesteps = (1000 * sigmas).view(batch, frames, 1).expand(-1, -1, tokens).reshape(batch, -1)
    with torch.autocast(latents.device.type, torch.bfloat16), sdpa_kernel(_attention(latents.device)):
        velocity = module["transformer"](noisy, timesteps, text, return_dict=False)[0]
    weight = (1 + _FOREGROUND * foreground * (1 - sigmas)) * ~given.view(batch, 1, frames, 1, 1)
    error = (velocity.float() - (noise - latents)).square().mean(1, keepdim=True)
    return (error * weight).sum() / weight.sum()


def train_dit(
    folder: Path,
    budget: Budget,
    cache: Cache,
    text_encoder: UMT5EncoderModel,
    *,
    seed: int,
    batch: int,
    device: torch.device,
) -> nn.ModuleDict:
    """Train transformer and text encoder within the budget, resuming from `folder`; returns their averaged weights."""
    torch.manual_seed(seed)
    tokenizer = world_tokenizer()
    transformer = make_transformer()
    nn.init.zeros_(transformer.proj_out.weight)
    nn.init.zeros_(transformer.proj_out.bias)
    module = nn.ModuleDict({"transformer": transformer, "text_encoder": text_encoder.requires_grad_(True)}).to(device)
    loop = Loop(module, budget, folder / "dit.pt", _is_muon)
    rng = np.random.default_rng((seed, loop.step))
    for _ in loop.steps():
        latents, foreground, given, captions = _batch(cache, batch, rng)
        with torch.autocast(device.type, torch.bfloat16):
            text = encode_text(module["text_encoder"], tokenizer, captions, device)
        loop.update(_loss(module, text.float(), latents.to(device), foreground.to(device), given.to(device)))
    return loop.averaged
