"""What diffusers and transformers compute for the same inputs: the reference of the parity run.

The real models are loaded in float32 with their own forward passes; nothing of the exported graphs' code is used but
the step's wrapper around the transformer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPVisionModel, UMT5EncoderModel

from kinograph.export.checkpoint import read_config
from kinograph.export.lora import AdaptedCheckpoint
from kinograph.export.plan import Check
from kinograph.export.step import STEP_INPUTS, Step
from kinograph.manifest import Conditioning, Geometry, Text
from kinograph.runtime.solvers import HISTORY

__all__ = ["check_decoder", "check_encoder", "check_image_encoder", "check_step", "check_text_encoder", "image_shape"]

_FRAMES, _HEIGHT, _WIDTH = 3, 4, 6  # latents; small, and other than what was traced
_ROWS = 2


class DiffusersDenoiser(nn.Module):
    """diffusers' own forward pass behind the `Denoiser` protocol."""

    def __init__(self, transformer: Any, *, per_token_timestep: bool) -> None:
        super().__init__()
        self.transformer = transformer
        self.per_token_timestep = per_token_timestep

    def forward(self, x: Tensor, timesteps: Tensor, mask: Tensor, text: Tensor, image: Tensor | None) -> Tensor:
        rows = text.shape[0]
        timestep = timesteps[1:]
        if self.per_token_timestep:
            step = self.transformer.config.patch_size[1]
            timestep = torch.where(mask[0, 0, :, ::step, ::step] > 0, *timesteps).flatten().unsqueeze(0)
        velocity: Tensor = self.transformer(
            hidden_states=x.expand(rows, -1, -1, -1, -1),
            timestep=timestep.expand(rows, *timestep.shape[1:]),
            encoder_hidden_states=text,
            encoder_hidden_states_image=None if image is None else image.expand(rows, -1, -1),
            return_dict=False,
        )[0]
        return velocity


def image_shape(checkpoint: Path, transformer: Any) -> tuple[int, int]:
    """[N, D'] of CLIP's tokens: one per patch and one for the class."""
    config = read_config(checkpoint / "image_encoder" / "config.json")
    config = config.get("vision_config", config)
    return (config["image_size"] // config["patch_size"]) ** 2 + 1, int(transformer.image_dim)


def _generator() -> torch.Generator:
    return torch.Generator("cpu").manual_seed(0)


@torch.no_grad()
def check_step(weights: AdaptedCheckpoint, geometry: Geometry, conditioning: Conditioning, text: Text) -> Check:
    transformer = WanTransformer3DModel.from_pretrained(weights.folder, torch_dtype=torch.float32).eval()
    transformer.load_state_dict({name: weights.read(name) for name in weights.changed()}, strict=False)
    denoiser = DiffusersDenoiser(transformer, per_token_timestep=conditioning.kind == "clean")
    step = Step(denoiser, conditioning.kind, geometry.temporal)
    generator = _generator()
    latents = (1, geometry.channels, _FRAMES, _HEIGHT, _WIDTH)
    shapes = dict.fromkeys(STEP_INPUTS, latents) | {
        "history": (HISTORY, *latents[1:]),
        "text": (_ROWS, text.length, text.dim),
        "coefficients": (HISTORY + 1, HISTORY + 3),
    }
    values = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    values["mask"] = torch.zeros(1, 1, *latents[2:])
    values["mask"][:, :, 0] = 1
    values["known_weights"] = torch.tensor([0.9, 0.3, 0.25])
    values["timestep"] = torch.tensor([500.0])
    values["guidance"] = torch.tensor([5.0, -4.0])
    if conditioning.image_tokens:
        values["image"] = torch.randn(1, *image_shape(weights.folder.parent, transformer.config), generator=generator)
    prediction = step(**values)[2]
    inputs = {name: value.numpy() for name, value in values.items()}
    return Check((inputs,), "prediction", prediction.numpy())


@torch.no_grad()
def check_text_encoder(checkpoint: Path) -> Check:
    encoder = UMT5EncoderModel.from_pretrained(checkpoint / "text_encoder", dtype=torch.float32).eval()
    ids = torch.randint(1, encoder.config.vocab_size, (1, 20), generator=_generator())
    mask = torch.ones_like(ids)
    hidden = encoder(ids, mask).last_hidden_state
    return Check(({"input_ids": ids.numpy(), "attention_mask": mask.numpy()},), "embeddings", hidden.numpy())


@torch.no_grad()
def check_image_encoder(checkpoint: Path) -> Check:
    encoder = CLIPVisionModel.from_pretrained(checkpoint / "image_encoder", dtype=torch.float32).eval()
    processor = CLIPImageProcessor.from_pretrained(checkpoint / "image_processor")
    size = encoder.config.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    values = processor(images=pixels, return_tensors="pt").pixel_values
    hidden = encoder(values, output_hidden_states=True).hidden_states[-2]
    return Check(({"pixels": pixels},), "tokens", hidden.numpy())


def _load_vae(checkpoint: Path) -> tuple[Any, Tensor, Tensor]:
    vae = AutoencoderKLWan.from_pretrained(checkpoint / "vae", torch_dtype=torch.float32).eval()
    mean, std = (
        torch.tensor(values).reshape(1, -1, 1, 1, 1) for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return vae, mean, std


@torch.no_grad()
def check_decoder(checkpoint: Path) -> Check:
    vae, mean, std = _load_vae(checkpoint)
    latents = torch.randn(1, vae.config.z_dim, _FRAMES, _HEIGHT, _WIDTH, generator=_generator())
    video = vae.decode(latents * std + mean, return_dict=False)[0]
    frames = ((video * 0.5 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)[0].permute(1, 2, 3, 0)
    chunks = tuple({"latents": latents[:, :, i : i + 1].numpy()} for i in range(_FRAMES))
    return Check(chunks, "frames", frames.numpy(), axis=0)


@torch.no_grad()
def check_encoder(checkpoint: Path) -> Check:
    vae, mean, std = _load_vae(checkpoint)
    scale, temporal = vae.config.scale_factor_spatial, vae.config.scale_factor_temporal
    count = 1 + temporal * (_FRAMES - 1)
    shape = (count, _HEIGHT * scale, _WIDTH * scale, 3)
    frames = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    given = np.ones(count, np.float32)
    given[1 + temporal :] = 0  # the last chunk is not given: mid-grey
    pixels = (torch.from_numpy(frames).float() / 255 * 2 - 1) * torch.from_numpy(given).reshape(-1, 1, 1, 1)
    latents = vae.encode(pixels.permute(3, 0, 1, 2).unsqueeze(0)).latent_dist.mode()
    ends = [1 + temporal * i for i in range(_FRAMES)]
    chunks = tuple(
        {"frames": frames[start:end], "given": given[start:end]} for start, end in zip([0, *ends], ends, strict=False)
    )
    return Check(chunks, "latents", ((latents - mean) / std).numpy(), axis=2)
