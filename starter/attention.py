"""Attention for training on a CPU: a few heads at a time, so that their scores never leave its caches.

A transformer as narrow as the starter's spends most of a training step in attention, and that not on its products but
on carrying [S, S] scores through memory. PyTorch's flash kernel keeps them in the caches, and goes forwards here. With
heads as small as these it takes up to three times as long as this to go back: the scores are computed again from what
the forward pass kept of them, the log of each row's sum (Dao et al. 2022, arXiv:2205.14135, appendix B).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator

import torch
import torch._inductor.config
from diffusers.models.transformers import transformer_wan
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["attend", "attention", "compile_blocks"]

_Pair = Callable[..., tuple[torch.Tensor, torch.Tensor]]

_CACHE_BYTES = 4 << 20  # of scores at a time; of 1 to 12 MB the fastest with caches of 1 MB a core and 32 MB for all


@contextlib.contextmanager
def attention(device: torch.device) -> Iterator[None]:
    """Inside, Wan's transformer trains with the attention that is fastest on the device."""
    if device.type != "cpu":
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]):
            yield
        return
    before, transformer_wan.dispatch_attention_fn = transformer_wan.dispatch_attention_fn, _attend
    try:
        yield
    finally:
        transformer_wan.dispatch_attention_fn = before


def compile_blocks(transformer: transformer_wan.WanTransformer3DModel) -> None:
    """Have the blocks compiled when they first run.

    On CPUs with AMX, in vectors of 256 bits: with 512, the backward passes that PyTorch 2.13 compiles give NaN there.
    """
    if torch.cpu._is_amx_tile_supported():
        torch._inductor.config.cpp.simdlen = 256
    for block in transformer.blocks:
        block.compile()


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, attn_mask: None = None, **_: object
) -> torch.Tensor:
    """What diffusers calls, with its backend and other settings; ValueError for a mask, which `attend` has none of."""
    if attn_mask is not None:
        raise ValueError("attention with a mask is not what this computes; expected attn_mask=None")
    return attend(query.to(value.dtype), key.to(value.dtype), value)


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """softmax(q·kᵀ/√D)·v of query [B, S, N, D] and key and value [B, T, N, D], as [B, S, N, D] of the same type.

    All have one type, in which the products are computed; everything between them is float32.
    """
    out: torch.Tensor = _forward(query, key, value)[0]
    return out


@torch.library.custom_op("kinograph_starter::attend", mutates_args=())
def _forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What attention gives [B, S, N, D], and the log of the sum of every row's exponentials [B, N, S, 1]."""
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out, logs = flash(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2).contiguous(), logs.unsqueeze(-1).contiguous()


@torch.library.custom_op("kinograph_starter::attend_backward", mutates_args=())
def _backward(
    grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, logs: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of query, key and value."""
    grads = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in (q, k, v)]
    means = (grad.float() * out.float()).sum(-1).transpose(1, 2).unsqueeze(-1)
    for clip, heads in _parts(q, k):
        queries, keys, values, above = (_heads(tensor, clip, heads) for tensor in (q, k, v, grad))
        scores, slopes = torch.bmm(queries, keys.mT), torch.bmm(above, values.mT)
        scale = q.shape[-1] ** -0.5
        shares, slopes = _compiled(_softmax_backward)(scores, slopes, logs[clip, heads], means[clip, heads], scale)
        parts = torch.bmm(slopes, keys), torch.bmm(slopes.mT, queries), torch.bmm(shares.mT, above)
        for tensor, part in zip(grads, parts, strict=True):
            tensor[clip, :, heads] = part.transpose(0, 1)
    return grads[0], grads[1], grads[2]


def _parts(q: torch.Tensor, k: torch.Tensor) -> Iterator[tuple[int, slice]]:
    """Every clip, and so many of its heads that their scores fit into the caches."""
    count = max(1, _CACHE_BYTES // (q.shape[1] * k.shape[1] * q.element_size()))
    return ((clip, slice(head, head + count)) for clip in range(len(q)) for head in range(0, q.shape[2], count))


def _heads(tensor: torch.Tensor, clip: int, heads: slice) -> torch.Tensor:
    """Some heads of a clip [N, S, D], together in memory."""
    return tensor[clip, :, heads].transpose(0, 1).contiguous()


@functools.cache
def _compiled(function: _Pair) -> _Pair:
    """Compiled when it is first needed: to compile loads what importing this module should not."""
    return torch.compile(function, dynamic=True)


def _softmax_backward(
    scores: torch.Tensor, slopes: torch.Tensor, logs: torch.Tensor, means: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    shares = torch.exp(scores.float() * scale - logs)
    return shares.to(scores.dtype), (shares * (slopes.float() - means) * scale).to(scores.dtype)


@_forward.register_fake
def _(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    logs = q.new_empty((q.shape[0], q.shape[2], q.shape[1], 1), dtype=torch.float32)
    return torch.empty_like(q, memory_format=torch.contiguous_format), logs


@_backward.register_fake
def _(grad: torch.Tensor, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in tensors[:3])


def _keep(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[torch.Tensor, ...], output: object) -> None:
    ctx.save_for_backward(*inputs, *output)


def _gradients(
    ctx: torch.autograd.function.FunctionCtx, grad: torch.Tensor, _: torch.Tensor | None
) -> tuple[torch.Tensor, ...]:
    return _backward(grad, *ctx.saved_tensors)


_forward.register_autograd(_gradients, setup_context=_keep)
