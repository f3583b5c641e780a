"""The streaming codec against the whole clip at once, in float32 before any rounding to frames."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("diffusers")

import torch
from diffusers import AutoencoderKLWan

from kinograph.export.families.wan.codec import WanDecoder, WanEncoder

pytestmark = [pytest.mark.export, pytest.mark.filterwarnings("ignore")]

# the same float32 arithmetic; only the order of sums inside a convolution may differ with its length
TOLERANCE = 1e-6


def load(checkpoint: Path) -> tuple[AutoencoderKLWan, torch.Tensor, torch.Tensor]:
    vae = AutoencoderKLWan.from_pretrained(checkpoint / "vae").eval()
    mean, std = (torch.tensor(v).reshape(1, -1, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
    return vae, mean, std


@pytest.mark.parametrize("kind", ["t2v", "ti2v"])
@torch.no_grad()
def test_streamed_decode_equals_the_whole(kind: str, tiny_checkpoint: Callable[[str], Path]) -> None:
    vae, mean, std = load(tiny_checkpoint(kind))
    latents = torch.randn(1, vae.config.z_dim, 4, 4, 6, generator=torch.Generator().manual_seed(0))
    whole = vae.decode(latents * std + mean).sample
    decoder = WanDecoder(vae, torch.float32)
    parts, state = [], None
    for index in range(latents.shape[2]):
        pixels, state = decoder.decode(latents[:, :, index : index + 1], state)
        parts.append(pixels)
    decoded = torch.cat(parts).permute(3, 0, 1, 2).unsqueeze(0)
    largest = (decoded.clamp(-1, 1) - whole).abs().max().item()
    print(f"{kind}: largest difference {largest:.1e}")
    assert largest <= TOLERANCE


@pytest.mark.parametrize("kind", ["t2v", "ti2v"])
@torch.no_grad()
def test_streamed_encode_equals_the_whole(kind: str, tiny_checkpoint: Callable[[str], Path]) -> None:
    vae, mean, std = load(tiny_checkpoint(kind))
    scale = vae.config.scale_factor_spatial
    frames = torch.randint(0, 256, (13, 4 * scale, 6 * scale, 3), generator=torch.Generator().manual_seed(0))
    frames = frames.to(torch.uint8)
    whole = vae.encode((frames.float() / 255 * 2 - 1).permute(3, 0, 1, 2).unsqueeze(0)).latent_dist.mode()
    encoder = WanEncoder(vae, torch.float32)
    parts, state = [], None
    for start, end in ((0, 1), (1, 5), (5, 9), (9, 13)):
        latents, *state = encoder(frames[start:end], torch.ones(end - start), state)
        parts.append(latents)
    largest = (torch.cat(parts, dim=2) - (whole - mean) / std).abs().max().item()
    print(f"{kind}: largest difference {largest:.1e}")
    assert largest <= TOLERANCE
