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
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import PreTrainedTokenizerFast, T5TokenizerFast, UMT5Config, UMT5EncoderModel

__all__ = ["FLOW_SHIFT", "TEXT_LENGTH", "make_text_encoder", "make_tokenizer", "make_transformer", "make_vae", "write"]

TEXT_LENGTH = 32  # tokens; captions are padded to it
FLOW_SHIFT = 3.0  # of the noise schedule, in training and sampling alike
LATENT_CHANNELS = 16
TEXT_DIM = 96
_LETTER_SCORE = -20.0  # log-probability of a letter on its own: any known word is likelier
_WORD = re.compile(r"[a-z]+|,")
_MODEL_INDEX = {
    "_class_name": "WanPipeline",
    "_diffusers_version": "0.39.0",
    "boundary_ratio": None,
    "expand_timesteps": True,
    "scheduler": ["diffusers", "UniPCMultistepScheduler"],
    "text_encoder": ["transformers", "UMT5EncoderModel"],
    "tokenizer": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "WanTransformer3DModel"],
    "transformer_2": [None, None],
    "vae": ["diffusers", "AutoencoderKLWan"],
}


def make_vae(mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> AutoencoderKLWan:
    """A fresh video VAE, 8× in space and 4× in time. `mean` and `std` describe its latents, one value a channel.

    The last convolution of every residual block starts at zero, so that training begins from the averaging and
    repeating shortcuts alone.
    """
    vae = AutoencoderKLWan(
        base_dim=16,
        decoder_base_dim=24,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 2, 2],
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


def make_transformer() -> WanTransformer3DModel:
    """A fresh diffusion transformer; a token is a 2×2 patch of latents and carries its own timestep."""
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=6,
        attention_head_dim=32,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        text_dim=TEXT_DIM,
        freq_dim=128,
        ffn_dim=512,
        num_layers=5,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        eps=1e-6,
        rope_max_seq_len=256,
    )


def make_text_encoder(vocabulary: int) -> UMT5EncoderModel:
    """A fresh two-layer UMT5 encoder over a vocabulary of this many tokens."""
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=vocabulary,
            d_model=TEXT_DIM,
            d_kv=24,
            d_ff=192,
            num_layers=2,
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


def encode_text(
    encoder: UMT5EncoderModel, tokenizer: PreTrainedTokenizerFast, captions: Sequence[str], device: torch.device
) -> torch.Tensor:
    """Caption embeddings [B, L, D] as WanPipeline makes them: padded to L tokens, the padding's embeddings zero."""
    tokens = tokenizer(
        list(captions), padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt"
    ).to(device)
    hidden = encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
    return hidden * tokens.attention_mask.unsqueeze(-1).to(hidden.dtype)


def write(
    folder: Path,
    vae: AutoencoderKLWan,
    transformer: WanTransformer3DModel,
    text_encoder: UMT5EncoderModel,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Write a checkpoint in diffusers layout, weights in fp16, that `WanPipeline.from_pretrained(folder)` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    vae.half().save_pretrained(folder / "vae")
    transformer.half().save_pretrained(folder / "transformer")
    text_encoder.half().save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=FLOW_SHIFT, solver_order=2
    )
    scheduler.save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps(_MODEL_INDEX, indent=2) + "\n")
