"""Wan's diffusion transformer as an export graph.

The parameters are those of diffusers' `WanTransformer3DModel`; the forward pass is our own, so that attention, rotary
embedding and normalisation leave as the ONNX operators of those names, and nothing is scattered, split into sequences
or computed per token where two rows and a selection do.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

__all__ = ["WanDenoiser"]

# What modulation tables hold, and what is added to it: scales count from one.
_BLOCK = (0.0, 1.0, 0.0, 0.0, 1.0, 0.0)  # shift, scale and gate of attention, then of the feed-forward
_HEAD = (0.0, 1.0)  # shift and scale


class WanDenoiser(nn.Module):
    """`WanTransformer3DModel` behind the `Denoiser` protocol.

    `per_token_timestep` is Wan 2.2 TI2V's: given tokens have a timestep of their own. `dtype` is the precision of
    the matrix products; what diffusers keeps in float32 stays float32.
    """

    def __init__(self, transformer: Any, *, per_token_timestep: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.transformer = transformer
        self.per_token_timestep = per_token_timestep
        self.dtype = dtype
        config = transformer.config
        self.heads: int = config.num_attention_heads
        self.head_dim: int = config.attention_head_dim
        self.patch: tuple[int, int, int] = tuple(config.patch_size)
        self.freq_dim: int = config.freq_dim
        cos, sin = rotary_tables(self.head_dim, config.rope_max_seq_len)
        self.register_buffer("rope_cos", cos, persistent=False)
        self.register_buffer("rope_sin", sin, persistent=False)

    def forward(self, x: Tensor, timesteps: Tensor, mask: Tensor, text: Tensor, image: Tensor | None) -> Tensor:
        """x [1, C', F, H, W], timesteps [2], mask [1, 1, F, H, W], text [B, L, D] → [B, C, F, H, W], float32."""
        model = self.transformer
        rows = text.shape[0]
        grid = tuple(size // patch for size, patch in zip(x.shape[2:], self.patch, strict=True))
        rope = self._rope(grid, rows)
        tokens = self._timestep_rows(mask) if self.per_token_timestep else None

        hidden = F.conv3d(x.to(self.dtype), model.patch_embedding.weight, model.patch_embedding.bias, stride=self.patch)
        hidden = hidden.flatten(2).transpose(1, 2)
        embedder = model.condition_embedder
        temb, modulation = self._embed_timesteps(timesteps if self.per_token_timestep else timesteps[1:])
        context = embedder.text_embedder.linear_2(
            F.gelu(embedder.text_embedder.linear_1(text.to(self.dtype)), approximate="tanh")
        )
        image_context = None if image is None else self._embed_image(image).expand(rows, -1, -1)

        modulation, rows_of_table = modulation.float(), _rows(tokens, len(_BLOCK))
        for index, block in enumerate(model.blocks):
            table = _select(block.scale_shift_table + modulation + _column(_BLOCK), rows_of_table)
            hidden = self._attend_self(block, hidden, table, rope if index else self._rope(grid, 1))
            if index == 0:  # until the text enters, all guidance rows are equal
                hidden = hidden.expand(rows, -1, -1)
            hidden = hidden + self._attend_text(block, hidden, context, image_context)
            hidden = self._feed_forward(block, hidden, table)

        table = model.scale_shift_table + temb.unsqueeze(1) + _column(_HEAD)
        shift, scale = _select(table, _rows(tokens, len(_HEAD)))
        hidden = (model.norm_out(hidden.float()) * scale + shift).to(self.dtype)
        hidden = model.proj_out(hidden)
        return self._unpatchify(hidden, rows, grid)

    # Embeddings

    def _embed_timesteps(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Sinusoidal embeddings of timesteps [R] → [R, D] and modulation [R, 6, D]."""
        half = self.freq_dim // 2
        frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * (-math.log(10000.0) / half))
        angles = timesteps.unsqueeze(1) * frequencies.unsqueeze(0)
        waves = torch.cat([angles.cos(), angles.sin()], dim=1)
        embedder = self.transformer.condition_embedder
        hidden = embedder.time_embedder.linear_2(F.silu(embedder.time_embedder.linear_1(waves)))
        temb = hidden.to(self.dtype)
        return temb, embedder.time_proj(F.silu(temb)).unflatten(1, (6, -1))

    def _embed_image(self, image: Tensor) -> Tensor:
        embedder = self.transformer.condition_embedder.image_embedder
        hidden = image.to(self.dtype)
        if embedder.pos_embed is not None:
            hidden = hidden + embedder.pos_embed
        hidden = embedder.norm1(hidden)
        hidden = embedder.ff.net[2](F.gelu(embedder.ff.net[0].proj(hidden)))
        return embedder.norm2(hidden)

    def _timestep_rows(self, mask: Tensor) -> Tensor:
        """Which timestep each token has: [1, S] int64, 0 where given, read at a patch's first latent like diffusers."""
        p_t, p_h, p_w = self.patch
        return (mask[:, 0, ::p_t, ::p_h, ::p_w].flatten(1) <= 0.5).long()

    def _rope(self, grid: tuple[int, ...], rows: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines [rows, S, head_dim / 2] of the 3-D rotary embedding (RoFormer, arXiv:2104.09864)."""
        parts: list[list[Tensor]] = [[], []]
        start = 0
        for axis, width in enumerate(rotary_widths(self.head_dim)):
            view = [1, 1, 1, width]
            view[axis] = grid[axis]
            for table, part in zip((self.rope_cos, self.rope_sin), parts, strict=True):
                part.append(table[: grid[axis], start : start + width].reshape(view).expand(*grid, width))
            start += width
        cos, sin = (torch.cat(part, dim=-1).reshape(1, -1, start).expand(rows, -1, -1) for part in parts)
        return cos, sin

    # Blocks

    def _attend_self(
        self, block: Any, hidden: Tensor, table: tuple[Tensor, ...], rope: tuple[Tensor, Tensor]
    ) -> Tensor:
        shift, scale, gate = table[:3]
        attn = block.attn1
        x = (block.norm1(hidden.float()) * scale + shift).to(self.dtype)
        query = self._rotate(attn.norm_q(attn.to_q(x)), rope)
        key = self._rotate(attn.norm_k(attn.to_k(x)), rope)
        out = attn.to_out[0](self._attention(query, key, attn.to_v(x)))
        return (hidden.float() + out * gate).to(self.dtype)

    def _attend_text(self, block: Any, hidden: Tensor, context: Tensor, image_context: Tensor | None) -> Tensor:
        attn = block.attn2
        x = block.norm2(hidden.float()).to(self.dtype)
        query = attn.norm_q(attn.to_q(x))
        out = self._attention(query, attn.norm_k(attn.to_k(context)), attn.to_v(context))
        if image_context is not None:
            key = attn.norm_added_k(attn.add_k_proj(image_context))
            out = out + self._attention(query, key, attn.add_v_proj(image_context))
        return attn.to_out[0](out)

    def _feed_forward(self, block: Any, hidden: Tensor, table: tuple[Tensor, ...]) -> Tensor:
        shift, scale, gate = table[3:]
        x = (block.norm3(hidden.float()) * scale + shift).to(self.dtype)
        x = block.ffn.net[2](F.gelu(block.ffn.net[0].proj(x), approximate="tanh"))
        return (hidden.float() + x.float() * gate).to(self.dtype)

    def _attention(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Multi-head attention over [B, S, heads · head_dim]."""
        out: Tensor = torch.onnx.ops.attention(query, key, value, q_num_heads=self.heads, kv_num_heads=self.heads)[0]
        return out

    def _rotate(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        rotated = torch.onnx.ops.rotary_embedding(x.float(), *rope, interleaved=True, num_heads=self.heads)
        return rotated.to(self.dtype)

    def _unpatchify(self, hidden: Tensor, rows: int, grid: tuple[int, ...]) -> Tensor:
        """[B, S, pt·ph·pw·C] → [B, C, F, H, W] float32."""
        x = hidden.float().reshape(rows, *grid, *self.patch, -1).permute(0, 7, 1, 4, 2, 5, 3, 6)
        sizes = [size * patch for size, patch in zip(grid, self.patch, strict=True)]
        return x.reshape(rows, -1, *sizes)


def _column(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values).unsqueeze(1)


def _rows(tokens: Tensor | None, count: int) -> list[Tensor] | None:
    """For each of a table's `count` parts, the row [1, S] that every token has of the table's [R·n, D]."""
    return None if tokens is None else [tokens * count + part for part in range(count)]


def _select(table: Tensor, rows: list[Tensor] | None) -> tuple[Tensor, ...]:
    """Split a modulation table [R, n, D] into n tensors: [1, 1, D], or [1, S, D] with every token's own `rows`.

    Rows are copied; to choose between two of them element by element takes ONNX Runtime three times as long.
    """
    if rows is None:
        return tuple(part.unsqueeze(1) for part in table.unbind(dim=1))
    return tuple(F.embedding(row, table.flatten(0, 1)) for row in rows)


def rotary_widths(head_dim: int) -> tuple[int, int, int]:
    """Rotated pairs for time, height and width: Wan gives height and width a third each, time the rest."""
    spatial = head_dim // 6
    return head_dim // 2 - 2 * spatial, spatial, spatial


def rotary_tables(head_dim: int, length: int, theta: float = 10000.0) -> tuple[Tensor, Tensor]:
    """Cosine and sine tables [length, head_dim / 2] float32, computed in float64 as diffusers does."""
    angles = []
    for width in rotary_widths(head_dim):
        exponents = torch.arange(0, 2 * width, 2, dtype=torch.float64) / (2 * width)
        angles.append(torch.outer(torch.arange(length, dtype=torch.float64), theta**-exponents))
    table = torch.cat(angles, dim=1)
    return table.cos().float(), table.sin().float()
