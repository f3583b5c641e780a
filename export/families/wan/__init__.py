"""Wan 2.1 and 2.2: text-to-video, image-to-video, and the two-expert models.

References: Wan, arXiv:2503.20314; diffusers' WanPipeline and WanImageToVideoPipeline.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel

from kinograph.bundle.lora import Lora
from kinograph.bundle.lora_names import FAMILIES
from kinograph.errors import BundleError
from kinograph.export.checkpoint import model_index, read_config
from kinograph.export.codec import trace_decoder, trace_encoder
from kinograph.export.families.wan import reference
from kinograph.export.families.wan.codec import WanDecoder, WanEncoder
from kinograph.export.families.wan.transformer import WanDenoiser
from kinograph.export.image import trace_clip
from kinograph.export.lora import AdaptedCheckpoint
from kinograph.export.plan import Part, Plan
from kinograph.export.precision import set_precision
from kinograph.export.step import Step, trace_step
from kinograph.export.text import text_length, tokenizer_json, trace_umt5
from kinograph.export.trace import Traced, meta_module
from kinograph.export.weights import Checkpoint
from kinograph.manifest import Conditioning, Defaults, Expert, Geometry, Text
from kinograph.runtime.solvers import solver_from_scheduler_config

__all__ = ["read_plan"]

_FAMILY = "wan"
_NAMES = FAMILIES[_FAMILY]
_TRANSFORMERS = ("transformer", "transformer_2")
_CLEANING = ("ftfy", "html", "whitespace")


def read_plan(checkpoint: Path, loras: Sequence[Lora] = ()) -> Plan:
    """The plan for a Wan checkpoint in diffusers layout. Raises BundleError for what Wan does not have."""
    index = model_index(checkpoint)
    experts = [name for name in _TRANSFORMERS if _present(index, name)]
    if not experts:
        raise BundleError(f"{checkpoint} has no transformer in its model_index.json.")
    configs = [read_config(checkpoint / name / "config.json") for name in experts]
    vae = read_config(checkpoint / "vae" / "config.json")
    geometry = _geometry(configs[0], vae)
    conditioning = _conditioning(index, configs[0], geometry)
    scheduler = read_config(checkpoint / "scheduler" / "scheduler_config.json")
    text = Text(
        tokenizer="tokenizer.json",
        length=text_length(checkpoint / "tokenizer"),
        dim=configs[0]["text_dim"],
        cleaning=_CLEANING,
    )
    solver = solver_from_scheduler_config(scheduler)
    transformers = _transformers(checkpoint, experts, loras)
    return Plan(
        family=_FAMILY,
        pipeline=index["_class_name"],
        geometry=geometry,
        solver=solver,
        conditioning=conditioning,
        text=text,
        tokenizer=tokenizer_json(checkpoint / "tokenizer"),
        defaults=_defaults(index),
        experts=_experts(index, experts, conditioning, solver.train_timesteps),
        parts=tuple(_parts(checkpoint, transformers, geometry, conditioning, text)),
        checkpoint=checkpoint,
    )


def _transformers(checkpoint: Path, experts: Sequence[str], loras: Sequence[Lora]) -> dict[str, AdaptedCheckpoint]:
    """The weights of each transformer, by component."""
    if beyond := [lora for lora in loras if not 1 <= lora.expert <= len(experts)]:
        raise BundleError(
            f"{beyond[0].path} is for transformer {beyond[0].expert}, and {checkpoint.name} has {len(experts)}. "
            "Use --lora, or a model with two experts"
        )
    return {
        component: AdaptedCheckpoint(checkpoint / name, [lora for lora in loras if lora.expert == number], _NAMES)
        for number, (component, name) in enumerate(zip(("step", "step_2"), experts, strict=False), 1)
    }


def _present(index: dict[str, Any], name: str) -> bool:
    entry = index.get(name)
    return isinstance(entry, list) and len(entry) == 2 and entry[1] is not None


def _geometry(transformer: dict[str, Any], vae: dict[str, Any]) -> Geometry:
    patch = list(transformer["patch_size"])
    if patch[0] != 1 or patch[1] != patch[2]:
        raise BundleError(f"patch_size {patch} is not supported; expected [1, p, p].")
    return Geometry(
        channels=vae["z_dim"],
        spatial=vae.get("scale_factor_spatial", 8),
        temporal=vae.get("scale_factor_temporal", 4),
        patch=patch[1],
        positions=transformer.get("rope_max_seq_len", 1024),
    )


def _conditioning(index: dict[str, Any], transformer: dict[str, Any], geometry: Geometry) -> Conditioning:
    """TI2V takes clean given frames, I2V extra channels (4 of mask, then the latents), plain T2V neither."""
    channels, latent = transformer["in_channels"], geometry.channels
    if index.get("expand_timesteps"):
        return Conditioning(kind="clean")
    if channels == latent:
        return Conditioning(kind="noised")
    if channels == 2 * latent + geometry.temporal:
        tokens = transformer.get("image_dim") is not None
        if transformer.get("pos_embed_seq_len") is not None:
            raise BundleError("a transformer with pos_embed_seq_len (first and last frame) is not supported yet.")
        return Conditioning(kind="channels", image_required=True, image_tokens=tokens)
    raise BundleError(
        f"the transformer takes {channels} channels; expected {latent}, or {2 * latent + geometry.temporal} for "
        "image-to-video."
    )


def _experts(
    index: dict[str, Any], names: list[str], conditioning: Conditioning, train_timesteps: int
) -> tuple[Expert, ...]:
    """Guidance scales are Wan's own: 5 for one expert, 4 and 3 for text-to-video A14B, 3.5 for image-to-video A14B."""
    ratio = index.get("boundary_ratio")
    if len(names) == 1:
        return (Expert(component="step", guidance_scale=5.0),)
    if not isinstance(ratio, int | float) or not 0 < ratio < 1:
        raise BundleError(f"model_index.json has two transformers and boundary_ratio {ratio!r}; expected 0 to 1.")
    scales = (3.5, 3.5) if conditioning.kind == "channels" else (4.0, 3.0)
    return (
        Expert(component="step", boundary=ratio * train_timesteps, guidance_scale=scales[0]),
        Expert(component="step_2", guidance_scale=scales[1]),
    )


def _defaults(index: dict[str, Any]) -> Defaults:
    """Sizes and lengths the models were released for."""
    if index.get("expand_timesteps"):
        return Defaults(width=1280, height=704, num_frames=121, fps=24, num_inference_steps=50)
    steps = 40 if _present(index, "transformer_2") else 50
    return Defaults(width=832, height=480, num_frames=81, fps=16, num_inference_steps=steps)


def _parts(
    checkpoint: Path,
    transformers: Mapping[str, AdaptedCheckpoint],
    geometry: Geometry,
    conditioning: Conditioning,
    text: Text,
) -> Iterator[Part]:
    yield Part(
        "text_encoder",
        lambda dtype: {"text_encoder": trace_umt5(checkpoint / "text_encoder", dtype)},
        partial(reference.check_text_encoder, checkpoint),
    )
    if conditioning.image_tokens:
        yield Part(
            "image_encoder",
            lambda dtype: {
                "image_encoder": trace_clip(checkpoint / "image_encoder", checkpoint / "image_processor", dtype)
            },
            partial(reference.check_image_encoder, checkpoint),
        )
    for component, weights in transformers.items():
        yield Part(
            component,
            partial(_trace_step, weights, component, geometry, conditioning, text),
            partial(reference.check_step, weights, geometry, conditioning, text),
        )
    yield Part(
        "encoder", partial(_trace_codec, checkpoint, "encoder", geometry), partial(reference.check_encoder, checkpoint)
    )
    yield Part(
        "decoder", partial(_trace_codec, checkpoint, "decoder", geometry), partial(reference.check_decoder, checkpoint)
    )


def _trace_step(
    weights: AdaptedCheckpoint,
    component: str,
    geometry: Geometry,
    conditioning: Conditioning,
    text: Text,
    dtype: torch.dtype,
) -> dict[str, Traced]:
    folder = weights.folder
    with meta_module():
        config = read_config(folder / "config.json")
        transformer = WanTransformer3DModel.from_config(config)
    set_precision(transformer, dtype, keep=transformer._keep_in_fp32_modules)
    denoiser = WanDenoiser(transformer, per_token_timestep=conditioning.kind == "clean", dtype=dtype)
    step = Step(denoiser, conditioning.kind, geometry.temporal)
    image = reference.image_shape(folder.parent, transformer.config) if conditioning.image_tokens else None
    sources = {_NAMES.prefix: weights}
    key = (_architecture(config), conditioning, geometry, dtype)
    return {component: trace_step(step, geometry, text, sources, image=image, key=key)}


def _trace_codec(checkpoint: Path, direction: str, geometry: Geometry, dtype: torch.dtype) -> dict[str, Traced]:
    folder = checkpoint / "vae"
    with meta_module():
        config = read_config(folder / "config.json")
        vae = AutoencoderKLWan.from_config(config)
    set_precision(vae, dtype, keep=vae._keep_in_fp32_modules)
    sources, key = {"vae.": Checkpoint(folder)}, (direction, _architecture(config), dtype)
    if direction == "decoder":
        stream = trace_decoder(WanDecoder(vae, dtype), geometry, sources, key)
    else:
        stream = trace_encoder(WanEncoder(vae, dtype), geometry, sources, key)
    return {f"{direction}_first": stream.first, f"{direction}_next": stream.next}


def _architecture(config: dict[str, Any]) -> str:
    """What a config says of a model, and not of where it came from."""
    return json.dumps({name: value for name, value in config.items() if not name.startswith("_")}, sort_keys=True)
