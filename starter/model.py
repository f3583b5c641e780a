"""The starter model's shape: the Wan 2.2 TI2V layout in miniature, and how it is written as a diffusers checkpoint.

Everything here is an ordinary diffusers or transformers class with small numbers; nothing is subclassed, so whatever
reads a Wan 2.2 TI2V checkpoint reads this one.
"""

from __future__ import annotations

import json
import math
import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLWan,
    DPMSolverMultistepScheduler,
    UniPCMultistepScheduler,
    WanTransformer3DModel,
)
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import BatchEncoding, PreTrainedTokenizerFast, T5TokenizerFast, UMT5Config, UMT5EncoderModel

__all__ = [
    "FLOW_SHIFT",
    "LAYOUTS",
    "TEXT_LENGTH",
    "Layout",
    "encode_text",
    "encode_tokens",
    "few_steps_scheduler",
    "make_text_encoder",
    "make_tokenizer",
    "make_transformer",
    "make_vae",
    "tokenize",
    "write",
]

TEXT_LENGTH = 40  # tokens; captions are padded to it
FLOW_SHIFT = 5.0  # of the noise schedule, in training and sampling alike
LATENT_CHANNELS = 24
TEXT_DIM = 128


@dataclass(frozen=True)
class Layout:
    """How large the model and its clips are. `fps` is the rate at which a clip is meant to be shown."""

    frames: int = 33
    size: int = 128  # side of the picture in pixels
    fps: int = 16
    layers: int = 6
    heads: int = 8  # of 32 channels each
    ffn: int = 768
    encoder: int = 16  # channels of the VAE at its finest level
    decoder: int = 16
    few_steps_decoder: int = 8  # of the few-step variant: a wide one takes about as long as its four steps


LAYOUTS = {"full": Layout(), "quarter": Layout(frames=17, size=64, fps=8)}
"""The shipped size, for a GPU, and one with a quarter of its pixels, for a CPU; the networks are the same."""

_FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": FLOW_SHIFT}
_HEAD_DIM = 32
_LETTER_SCORE = -20.0  # log-probability of a letter on its own: any known word is likelier
_WORD = re.compile(r"[a-z]+|,")
_MODEL_INDEX = {
    "_class_name": "WanPipeline",
    "_diffusers_version": "0.39.0",
    "boundary_ratio": None,
    "expand_timesteps": True,
    "text_encoder": ["transformers", "UMT5EncoderModel"],
    "tokenizer": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "WanTransformer3DModel"],
    "transformer_2": [None, None],
    "vae": ["diffusers", "AutoencoderKLWan"],
}


def make_vae(
    layout: Layout, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> AutoencoderKLWan:
    """A fresh video VAE, 8× in space and 4× in time. `mean` and `std` describe its latents, one value a channel.

    The last convolution of every residual block starts at zero, so that training begins from the averaging and
    repeating shortcuts alone.
    """
    vae = AutoencoderKLWan(
        base_dim=layout.encoder,
        decoder_base_dim=layout.decoder,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 4, 4],  # the coarse levels, where shapes are made out, are wide and cheap
        num_res_blocks=1,
        attn_scales=[],
        temperal_downsample=[True, True],
        latents_mean=list(mean) if mean is not None else [0.0] * LATENT_CHANNELS,
        latents_std=list(std) if std is not None else [1.0] * LATENT_CHANNELS,
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_temporal=4,
        scale_factor_spatial=8,
    )
    for module in vae.modules():
        if type(module).__name__ == "WanResidualBlock":
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(module.conv2.bias)
    return vae


def make_transformer(layout: Layout) -> WanTransformer3DModel:
    """A fresh diffusion transformer; a token is a 2×2 patch of latents and carries its own timestep.

    It begins by predicting nothing: its last projection is zero.
    """
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=layout.heads,
        attention_head_dim=_HEAD_DIM,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        text_dim=TEXT_DIM,
        freq_dim=128,
        ffn_dim=layout.ffn,
        num_layers=layout.layers,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        eps=1e-6,
        rope_max_seq_len=256,
    )
    nn.init.zeros_(transformer.proj_out.weight)
    nn.init.zeros_(transformer.proj_out.bias)
    return transformer


def make_text_encoder(vocabulary: int) -> UMT5EncoderModel:
    """A fresh three-layer UMT5 encoder over a vocabulary of this many tokens."""
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=vocabulary,
            d_model=TEXT_DIM,
            d_kv=32,
            d_ff=256,
            num_layers=3,
            num_heads=4,
            relative_attention_num_buckets=16,
            relative_attention_max_distance=32,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            pad_token_id=0,
            eos_token_id=1,
        )
    )


def make_tokenizer(captions: Sequence[str]) -> PreTrainedTokenizerFast:
    """A T5 tokenizer (Unigram, `</s>` at the end) whose pieces are the words of these captions, and single letters."""
    words = Counter(word for text in captions for word in _WORD.findall(text.lower()))
    total = sum(words.values())
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(f"▁{word}", math.log(count / total)) for word, count in sorted(words.items())]
    known = {piece for piece, _ in pieces}
    letters = ["▁", *string.ascii_lowercase, *string.digits, *".,!?'-"]
    pieces += [(letter, _LETTER_SCORE) for letter in letters if letter not in known]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", tokenizer.token_to_id("</s>"))]
    )
    return T5TokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_ids=0,
        model_max_length=TEXT_LENGTH,
    )


def tokenize(tokenizer: PreTrainedTokenizerFast, captions: Sequence[str]) -> BatchEncoding:
    """Captions as token ids and mask, int64 [B, L] each, padded or cut to `TEXT_LENGTH`."""
    return tokenizer(list(captions), padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt")


def encode_tokens(encoder: UMT5EncoderModel, tokens: torch.Tensor) -> torch.Tensor:
    """Embeddings [B, L, D] of token ids [B, L] as WanPipeline makes them: those of the padding are zero."""
    mask = (tokens != encoder.config.pad_token_id).long()
    hidden = encoder(tokens, mask).last_hidden_state
    return hidden * mask.unsqueeze(-1).to(hidden.dtype)


def encode_text(
    encoder: UMT5EncoderModel, tokenizer: PreTrainedTokenizerFast, captions: Sequence[str], device: torch.device
) -> torch.Tensor:
    """Caption embeddings [B, L, D]: see `encode_tokens`."""
    return encode_tokens(encoder, tokenize(tokenizer, captions).input_ids.to(device))


def few_steps_scheduler() -> DPMSolverMultistepScheduler:
    """The few-step variant's scheduler: of first order, which makes it Euler's method on the flow.

    diffusers' own `FlowMatchEulerDiscreteScheduler` puts its last step but the end at σ = 0.009, which would leave
    three of four steps for the whole way; this one's levels are evenly spaced before the flow shift.
    """
    return DPMSolverMultistepScheduler(solver_order=1, **_FLOW)


def write(
    folder: Path,
    vae: AutoencoderKLWan,
    transformer: WanTransformer3DModel,
    text_encoder: UMT5EncoderModel,
    tokenizer: PreTrainedTokenizerFast,
    *,
    few_steps: bool = False,
) -> None:
    """Write a checkpoint in diffusers layout, weights in fp16, that `WanPipeline.from_pretrained(folder)` reads.

    With `few_steps` its scheduler is the one on whose noise levels a distilled transformer was trained.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vae.half().save_pretrained(folder / "vae")
    transformer.half().save_pretrained(folder / "transformer")
    text_encoder.half().save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")
    scheduler = few_steps_scheduler() if few_steps else UniPCMultistepScheduler(solver_order=2, **_FLOW)
    scheduler.save_pretrained(folder / "scheduler")
    index = _MODEL_INDEX | {"scheduler": ["diffusers", type(scheduler).__name__]}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
