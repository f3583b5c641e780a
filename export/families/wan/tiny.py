"""Tiny random Wan checkpoints: the real classes with a few thousand parameters, for tests and for trying an export.

Every kind has the structure of a released model: `t2v` and `i2v` of Wan 2.1, `ti2v` of Wan 2.2 (5B), `t2v-a14b` and
`i2v-a14b` of Wan 2.2 with two experts.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    T5TokenizerFast,
    UMT5Config,
    UMT5EncoderModel,
)

from kinograph.runtime.request import SOLVERS, Request

__all__ = ["KINDS", "PARITY_STEPS", "parity_requests", "save_tiny_checkpoint"]

KINDS = ("t2v", "i2v", "ti2v", "t2v-a14b", "i2v-a14b")

PARITY_STEPS = 4

_TEXT_DIM = 32
_CLIP_DIM = 24
_WORDS = [
    "a",
    "red",
    "green",
    "blue",
    "ball",
    "cat",
    "moves",
    "left",
    "right",
    "up",
    "down",
    "on",
    "the",
    "of",
    "large",
    "small",
    "white",
    "navy",
    "background",
]


def save_tiny_checkpoint(kind: str, folder: Path, *, seed: int = 0) -> Path:
    """Write a random checkpoint of `kind` in diffusers layout to `folder` and return it."""
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; expected one of {KINDS}")
    torch.manual_seed(seed)
    residual, image = kind == "ti2v", kind.startswith("i2v")
    vae = _vae(residual)
    latent = vae.config.z_dim
    vae.save_pretrained(folder / "vae")
    _text_encoder().save_pretrained(folder / "text_encoder")
    # diffusers' image-to-video transformer assumes 512 text tokens
    _tokenizer(512 if image else 32).save_pretrained(folder / "tokenizer")
    experts = ["transformer", "transformer_2"] if kind.endswith("a14b") else ["transformer"]
    for name in experts:
        _transformer(latent, image=image, clip=kind == "i2v").save_pretrained(folder / name)
    shift = 5.0 if residual else 3.0
    UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift, num_train_timesteps=1000
    ).save_pretrained(folder / "scheduler")
    if kind == "i2v":
        _clip(folder)
    (folder / "model_index.json").write_text(json.dumps(_index(kind, experts), indent=2))
    return folder


def parity_requests(kind: str, picture: Path) -> Iterator[Request]:
    """What a comparison with diffusers runs: three solvers, with and without guidance, two sizes, two lengths, and for
    TI2V with and without `picture` as the first frame.

    All sizes are 3:2, and so should the picture be: diffusers stretches what does not fit, Kinograph crops it.
    """
    scale = 2 if kind == "ti2v" else 1  # its codec compresses twice as much
    images = {"i2v": [str(picture)], "i2v-a14b": [str(picture)], "ti2v": [None, str(picture)]}.get(kind, [None])
    options = itertools.product(SOLVERS, (1.0, 5.0), ((48, 32), (96, 64)), (5, 9), images)
    for seed, (solver, guidance, (width, height), frames, image) in enumerate(options):
        yield Request(
            prompt="a red ball moves left",
            negative_prompt="a blue cat",
            width=width * scale,
            height=height * scale,
            num_frames=frames,
            num_inference_steps=PARITY_STEPS,
            guidance_scale=guidance,
            guidance_scale_2=1.0 if guidance == 1 else 3.0,
            seed=seed,
            solver=solver,  # type: ignore[arg-type]
            image=image,
        )


def _index(kind: str, experts: list[str]) -> dict[str, Any]:
    image = kind.startswith("i2v")
    boundary = {"t2v-a14b": 0.875, "i2v-a14b": 0.9}.get(kind)
    return {
        "_class_name": "WanImageToVideoPipeline" if image else "WanPipeline",
        "boundary_ratio": boundary,
        "expand_timesteps": kind == "ti2v",
        "image_encoder": ["transformers", "CLIPVisionModel"] if kind == "i2v" else [None, None],
        "image_processor": ["transformers", "CLIPImageProcessor"] if kind == "i2v" else [None, None],
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "transformer_2": ["diffusers", "WanTransformer3DModel"] if len(experts) == 2 else [None, None],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }


def _transformer(latent: int, *, image: bool, clip: bool) -> WanTransformer3DModel:
    model = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=24,
        in_channels=2 * latent + 4 if image else latent,
        out_channels=latent,
        text_dim=_TEXT_DIM,
        freq_dim=32,
        ffn_dim=64,
        num_layers=2,
        cross_attn_norm=True,
        image_dim=_CLIP_DIM if clip else None,
        added_kv_proj_dim=48 if clip else None,
        rope_max_seq_len=64,
    )
    return _lively(model)


def _vae(residual: bool) -> AutoencoderKLWan:
    if not residual:
        return _lively(AutoencoderKLWan(base_dim=8, z_dim=16, num_res_blocks=1))
    return _lively(
        AutoencoderKLWan(
            base_dim=8,
            decoder_base_dim=12,
            z_dim=8,
            dim_mult=[1, 2, 4, 4],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            latents_mean=[0.1 * i for i in range(8)],
            latents_std=[1.0 + 0.1 * i for i in range(8)],
            is_residual=True,
            in_channels=12,
            out_channels=12,
            patch_size=2,
            scale_factor_spatial=16,
        )
    )


def _lively(model: Any) -> Any:
    """Break the symmetry of fresh norms and biases, so that a forgotten parameter changes the result."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1 or parameter.numel() == parameter.shape[0]:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def _text_encoder() -> UMT5EncoderModel:
    config = UMT5Config(
        vocab_size=64, d_model=_TEXT_DIM, d_kv=8, d_ff=48, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
    )
    return _lively(UMT5EncoderModel(config))


def _tokenizer(length: int) -> T5TokenizerFast:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -10.0)]
    pieces += [(f"▁{word}", -3.0 - 0.1 * i) for i, word in enumerate(_WORDS)]
    pieces += [("▁", -6.0), *((letter, -8.0) for letter in "abcdefghijklmnopqrstuvwxyz")]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=False))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return T5TokenizerFast(
        tokenizer_object=tokenizer, extra_ids=0, pad_token="<pad>", eos_token="</s>", model_max_length=length
    )


def _clip(folder: Path) -> None:
    config = CLIPVisionConfig(
        hidden_size=_CLIP_DIM,
        intermediate_size=32,
        projection_dim=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    _lively(CLIPVisionModel(config)).save_pretrained(folder / "image_encoder")
    CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(
        folder / "image_processor"
    )
