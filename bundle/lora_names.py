"""What LoRA files call the layers of a family's transformers, to which diffusers has given names of its own."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

__all__ = ["FAMILIES", "Names"]


class Names(NamedTuple):
    """What the weights of a transformer begin with in the graph of a step, and what files call a layer of it."""

    prefix: str
    aliases: Callable[[str], Iterator[str]]


_WAN = [  # of diffusers' names, the end or the whole, and what Wan's own code has in its place
    (r"attn1\.to_([qkv])", r"self_attn.\1"),
    (r"attn1\.to_out\.0", r"self_attn.o"),
    (r"attn1\.norm_([qk])", r"self_attn.norm_\1"),
    (r"attn2\.to_([qkv])", r"cross_attn.\1"),
    (r"attn2\.to_out\.0", r"cross_attn.o"),
    (r"attn2\.norm_([qk])", r"cross_attn.norm_\1"),
    (r"attn2\.add_([kv])_proj", r"cross_attn.\1_img"),
    (r"attn2\.norm_added_k", r"cross_attn.norm_k_img"),
    (r"norm2", r"norm3"),
    (r"ffn\.net\.0\.proj", r"ffn.0"),
    (r"ffn\.net\.2", r"ffn.2"),
    (r"condition_embedder\.text_embedder\.linear_1", r"text_embedding.0"),
    (r"condition_embedder\.text_embedder\.linear_2", r"text_embedding.2"),
    (r"condition_embedder\.time_embedder\.linear_1", r"time_embedding.0"),
    (r"condition_embedder\.time_embedder\.linear_2", r"time_embedding.2"),
    (r"condition_embedder\.time_proj", r"time_projection.1"),
    (r"condition_embedder\.image_embedder\.norm1", r"img_emb.proj.0"),
    (r"condition_embedder\.image_embedder\.ff\.net\.0\.proj", r"img_emb.proj.1"),
    (r"condition_embedder\.image_embedder\.ff\.net\.2", r"img_emb.proj.3"),
    (r"condition_embedder\.image_embedder\.norm2", r"img_emb.proj.4"),
    (r"patch_embedding", r"patch_embedding"),
    (r"proj_out", r"head.head"),
]


def _wan(layer: str) -> Iterator[str]:
    """`blocks.0.attn1.to_q` as diffusers, as Wan's own code and ComfyUI, and as kohya's scripts write it."""
    yield f"transformer.{layer}"
    match = re.match(r"blocks\.\d+\.", layer)
    block = match[0] if match else ""
    inner = layer.removeprefix(block)
    for pattern, original in _WAN:
        if re.fullmatch(pattern, inner):
            name = block + re.sub(pattern, original, inner)
            yield name
            yield f"diffusion_model.{name}"
            yield "lora_unet_" + name.replace(".", "_")


FAMILIES: Mapping[str, Names] = {"wan": Names("denoiser.transformer.", _wan)}
