"""Wan's causal video VAE as a streaming codec.

The VAE looks only backwards in time, so it can be cut into two graphs that share their weights: *first* turns one
latent frame into one frame, *next* every latent frame into four, and what a layer must remember of its past is an
explicit input and output. diffusers keeps the same memory in Python lists and grows it over the first two calls; here
it always has its full size and starts as the zeros that causal padding stands for, which is the same arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

__all__ = ["WanDecoder", "WanEncoder"]

_SMALLEST_NORM = 1e-12  # what torch.nn.functional.normalize divides by at least


class _Memory:
    """What causal layers remember, handed out and collected in the order the layers run.

    `past` is None in the first call: every layer then remembers zeros.
    """

    def __init__(self, past: Sequence[Tensor] | None) -> None:
        self._past: Iterator[Tensor] | None = None if past is None else iter(past)
        self.future: list[Tensor] = []

    @property
    def first(self) -> bool:
        return self._past is None

    def extend(self, x: Tensor, frames: int) -> Tensor:
        """Put the `frames` frames before x [1, C, T, H, W] in front of it and remember the last ones of the result."""
        zeros = (0, 0, 0, 0, frames, 0)
        joined = F.pad(x, zeros) if self._past is None else torch.cat([next(self._past), x], dim=2)
        self.future.append(joined[:, :, -frames:])
        return joined


class _Codec(nn.Module):
    """A VAE, the precision of its convolutions, and the statistics its latents are normalised with."""

    def __init__(self, vae: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.vae = vae
        self.dtype = dtype
        self.register_buffer("latents_mean", _per_channel(vae.config.latents_mean), persistent=False)
        self.register_buffer("latents_std", _per_channel(vae.config.latents_std), persistent=False)


class WanDecoder(_Codec):
    """Latents [1, C, F, H, W] (normalised, float32) → frames uint8 [T, s·H, s·W, 3]: F = T = 1, then T = 4·F."""

    def forward(self, latents: Tensor, state: list[Tensor] | None = None) -> tuple[Tensor, ...]:
        pixels, future = self.decode(latents, state)
        frames = ((pixels * 0.5 + 0.5).clamp(0, 1) * 255).round()
        return frames.to(torch.uint8), *future  # last: TensorRT has uint8 at the edges alone

    def decode(self, latents: Tensor, state: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        """Pixels [T, s·H, s·W, 3] float32, in [-1, 1] but for what the VAE overshoots, and the next state."""
        memory = _Memory(state)
        decoder = self.vae.decoder
        z = (latents * self.latents_std + self.latents_mean).to(self.dtype)
        x = _conv(self.vae.post_quant_conv, z)
        x = _causal(decoder.conv_in, x, memory)
        x = _middle(decoder.mid_block, x, memory)
        for block in decoder.up_blocks:
            x = _up_block(block, x, memory)
        x = _causal(decoder.conv_out, F.silu(_norm(decoder.norm_out, x)), memory)
        return _pictures(x.float(), self.vae.config.patch_size or 1), memory.future


class WanEncoder(_Codec):
    """Frames uint8 [T, s·H, s·W, 3] → normalised latents [1, C, 1, H, W] float32: the mean of the posterior.

    `given` [T] float32 is 1 for frames that are given and 0 for those that are not, which are encoded as mid-grey.
    """

    def forward(self, frames: Tensor, given: Tensor, state: list[Tensor] | None = None) -> tuple[Tensor, ...]:
        memory = _Memory(state)
        encoder = self.vae.encoder
        pixels = (frames.float() / 255 * 2 - 1) * given.reshape(-1, 1, 1, 1)
        x = _patchify(pixels.permute(3, 0, 1, 2).unsqueeze(0), self.vae.config.patch_size).to(self.dtype)
        x = _causal(encoder.conv_in, x, memory)
        for block in encoder.down_blocks:
            x = _down_block(block, x, memory)
        x = _middle(encoder.mid_block, x, memory)
        x = _causal(encoder.conv_out, F.silu(_norm(encoder.norm_out, x)), memory)
        moments = _conv(self.vae.quant_conv, x).float()
        latents = (moments[:, : self.vae.config.z_dim] - self.latents_mean) / self.latents_std
        return latents, *memory.future


def _per_channel(values: Sequence[float]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float32).reshape(1, -1, 1, 1, 1)


# Layers. The module classes are told apart by name, because diffusers does not export them.


def _conv(conv: nn.Conv3d, x: Tensor) -> Tensor:
    """A convolution whose kernel has one frame: it needs no memory."""
    return F.conv3d(x, conv.weight, conv.bias)


def _causal(conv: Any, x: Tensor, memory: _Memory) -> Tensor:
    """A causal convolution over time: kernel 3, two frames of memory, spatial zero padding as the layer has it."""
    left, right, top, bottom, past, _ = conv._padding
    if left != right or top != bottom:
        raise ValueError(f"expected symmetric spatial padding, got {conv._padding}")
    return F.conv3d(memory.extend(x, past), conv.weight, conv.bias, padding=(0, top, left))


def _norm(norm: Any, x: Tensor) -> Tensor:
    """RMS norm over channels, written as diffusers' L2 norm times √C, in float32."""
    gamma = norm.gamma.reshape(1, -1, *([1] * (x.ndim - 2)))
    length = torch.linalg.vector_norm(x.float(), dim=1, keepdim=True)
    y = (x.float() / torch.maximum(length, torch.tensor(_SMALLEST_NORM))).to(x.dtype) * norm.scale * gamma
    return y if isinstance(norm.bias, float) else y + norm.bias.reshape(gamma.shape)


def _residual(block: Any, x: Tensor, memory: _Memory) -> Tensor:
    shortcut = x if isinstance(block.conv_shortcut, nn.Identity) else _conv(block.conv_shortcut, x)
    x = _causal(block.conv1, F.silu(_norm(block.norm1, x)), memory)
    x = _causal(block.conv2, F.silu(_norm(block.norm2, x)), memory)
    return x + shortcut


def _middle(block: Any, x: Tensor, memory: _Memory) -> Tensor:
    x = _residual(block.resnets[0], x, memory)
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        x = _residual(resnet, _spatial_attention(attention, x), memory)
    return x


def _spatial_attention(block: Any, x: Tensor) -> Tensor:
    """Single-head attention within each frame of x [1, C, T, H, W]."""
    _, channels, frames, height, width = x.shape
    y = F.conv2d(_norm(block.norm, _frames(x)), block.to_qkv.weight, block.to_qkv.bias)
    y = y.reshape(frames, 3, channels, height * width).transpose(2, 3)
    query, key, value = y[:, 0], y[:, 1], y[:, 2]  # each [T, H·W, C]
    y = torch.onnx.ops.attention(query, key, value, q_num_heads=1, kv_num_heads=1)[0]
    y = y.transpose(1, 2).reshape(frames, channels, height, width)
    y = F.conv2d(y, block.proj.weight, block.proj.bias)
    return x + _film(y)


def _frames(x: Tensor) -> Tensor:
    """[1, C, T, H, W] → [T, C, H, W]: what works within a frame takes frames as a batch."""
    return x.squeeze(0).transpose(0, 1)


def _film(y: Tensor) -> Tensor:
    """[T, C, H, W] → [1, C, T, H, W]."""
    return y.transpose(0, 1).unsqueeze(0)


def _upsample(layer: Any, x: Tensor, memory: _Memory) -> Tensor:
    """Double height and width; `upsample3d` also doubles time in every call but the first."""
    if layer.mode == "upsample3d":
        past = memory.extend(x, 2)
        if not memory.first:
            _, channels, frames, height, width = x.shape
            y = F.conv3d(past, layer.time_conv.weight, layer.time_conv.bias)  # [1, 2·C, T, H, W]
            y = y.reshape(1, 2, channels, frames, height, width).permute(0, 2, 3, 1, 4, 5)
            x = y.reshape(1, channels, 2 * frames, height, width)
        else:
            memory.future[-1] = torch.zeros_like(memory.future[-1])  # the first frame never enters the time convolution
    frames = F.interpolate(_frames(x).float(), scale_factor=2.0, mode="nearest").to(x.dtype)
    return _film(F.conv2d(frames, layer.resample[1].weight, layer.resample[1].bias, padding=1))


def _downsample(layer: Any, x: Tensor, memory: _Memory) -> Tensor:
    """Halve height and width; `downsample3d` also halves time in every call but the first."""
    conv, frames = layer.resample[1], F.pad(_frames(x), (0, 1, 0, 1))
    x = _film(F.conv2d(frames, conv.weight, conv.bias, stride=2))
    if layer.mode == "downsample3d":
        past = memory.extend(x, 1)
        if not memory.first:
            x = F.conv3d(past, layer.time_conv.weight, layer.time_conv.bias, stride=(2, 1, 1))
    return x


def _up_block(block: Any, x: Tensor, memory: _Memory) -> Tensor:
    entry = x
    for resnet in block.resnets:
        x = _residual(resnet, x, memory)
    shortcut = getattr(block, "avg_shortcut", None)
    upsampler = getattr(block, "upsampler", None)
    if upsampler is None and getattr(block, "upsamplers", None) is not None:
        upsampler = block.upsamplers[0]
    if upsampler is not None:
        x = _upsample(upsampler, x, memory)
    return x if shortcut is None else x + _duplicate(shortcut, entry, memory.first)


def _down_block(block: Any, x: Tensor, memory: _Memory) -> Tensor:
    kind = type(block).__name__
    if kind == "WanResidualBlock":
        return _residual(block, x, memory)
    if kind == "WanAttentionBlock":
        return _spatial_attention(block, x)
    if kind == "WanResample":
        return _downsample(block, x, memory)
    entry = x
    for resnet in block.resnets:
        x = _residual(resnet, x, memory)
    if block.downsampler is not None:
        x = _downsample(block.downsampler, x, memory)
    return x + _average(block.avg_shortcut, entry)


def _duplicate(up: Any, x: Tensor, first: bool) -> Tensor:
    """Wan 2.2's shortcut upwards: channels repeated, then moved into time and space."""
    _, _, frames, height, width = x.shape
    t, s = up.factor_t, up.factor_s
    if up.repeats == t * s * s:  # every channel is only repeated, in all directions
        x = x.squeeze(0).unsqueeze(2).expand(-1, -1, t, -1, -1).reshape(up.out_channels, frames * t, height, width)
        x = F.interpolate(x.float(), scale_factor=float(s), mode="nearest").to(x.dtype).unsqueeze(0)
        return x[:, :, t - 1 :] if first else x
    x = x.squeeze(0).unsqueeze(1).expand(-1, up.repeats, -1, -1, -1)
    x = x.reshape(up.out_channels, t, s, s, frames, height, width).permute(0, 4, 1, 5, 2, 6, 3)
    x = x.reshape(1, up.out_channels, frames * t, height * s, width * s)
    return x[:, :, t - 1 :] if first else x


def _average(down: Any, x: Tensor) -> Tensor:
    """Wan 2.2's shortcut downwards: time and space moved into channels, then averaged in groups."""
    t, s = down.factor_t, down.factor_s
    if x.shape[2] % t:
        x = F.pad(x, (0, 0, 0, 0, t - x.shape[2] % t, 0))
    _, channels, frames, height, width = x.shape
    x = x.reshape(channels, frames // t, t, height // s, s, width // s, s).permute(0, 2, 4, 6, 1, 3, 5)
    x = x.reshape(1, down.out_channels, down.group_size, frames // t, height // s, width // s)
    return x.mean(dim=2)


def _patchify(x: Tensor, patch: int | None) -> Tensor:
    """[1, 3, T, p·H, p·W] → [1, 3·p², T, H, W]."""
    if patch is None or patch == 1:
        return x
    _, channels, frames, height, width = x.shape
    x = x.reshape(1, channels, frames, height // patch, patch, width // patch, patch).permute(0, 1, 6, 4, 2, 3, 5)
    return x.reshape(1, channels * patch * patch, frames, height // patch, width // patch)


def _pictures(x: Tensor, patch: int) -> Tensor:
    """[1, 3·p², T, H, W] → [T, p·H, p·W, 3].

    In two steps, of which the first moves whole rows and the second only the colours to the end: ONNX Runtime has
    fast kernels for either, and needs twice as long for all at once.
    """
    _, channels, frames, height, width = x.shape
    colours = channels // patch**2
    rows = x.reshape(colours, patch, patch, frames, height, width).permute(1, 0, 3, 4, 2, 5)  # [p, 3, T, H, p, W]
    flat = rows.reshape(patch * colours, frames * patch * height * width).transpose(0, 1)
    return flat.reshape(frames, patch * height, patch * width, colours)
