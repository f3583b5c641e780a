"""A causal video VAE as two graphs that share their weights: `first` for the first latent frame, `next` for all
others.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from torch import nn

from kinograph.export.trace import Traced, trace
from kinograph.export.weights import Checkpoint
from kinograph.manifest import Geometry, Tensor

__all__ = ["TracedStream", "trace_decoder", "trace_encoder"]

_AXES = {"F": 2, "H": 6, "W": 10}  # traced at; any size may be run


@dataclass(frozen=True)
class TracedStream:
    """The two graphs of a stream; their initializers have the same names."""

    first: Traced
    next: Traced


def trace_decoder(
    decoder: nn.Module, geometry: Geometry, sources: Mapping[str, Checkpoint], key: Hashable
) -> TracedStream:
    """`decoder(latents, state)`: latents [1, C, F, H, W] → frames uint8 [T, s·H, s·W, 3] and the next state.

    The first graph takes one latent frame, the next one any number. `key` is as in `trace`.
    """
    latents = Tensor(name="latents", dtype="float32", shape=(1, geometry.channels, 1, "H", "W"))
    first = trace(decoder, [latents], ["frames"], axes=_AXES, sources=sources, key=key)
    several = Tensor(name="latents", dtype="float32", shape=(1, geometry.channels, "F", "H", "W"))
    return TracedStream(first, _trace_next(decoder, (several,), first, "frames", sources, key))


def trace_encoder(
    encoder: nn.Module, geometry: Geometry, sources: Mapping[str, Checkpoint], key: Hashable
) -> TracedStream:
    """`encoder(frames, given, state)`: frames uint8 [T, s·H, s·W, 3] → latents [1, C, 1, H, W] and the next state."""
    first = trace(encoder, _frames(1, geometry), ["latents"], axes=_AXES, sources=sources, key=key)
    several = _frames(geometry.temporal, geometry)
    return TracedStream(first, _trace_next(encoder, several, first, "latents", sources, key))


def _frames(count: int, geometry: Geometry) -> tuple[Tensor, Tensor]:
    height, width = f"{geometry.spatial}*H", f"{geometry.spatial}*W"
    return (
        Tensor(name="frames", dtype="uint8", shape=(count, height, width, 3)),
        Tensor(name="given", dtype="float32", shape=(count,)),
    )


def _trace_next(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    first: Traced,
    output: str,
    sources: Mapping[str, Checkpoint],
    key: Hashable,
) -> Traced:
    state = tuple(
        Tensor(name=tensor.name.removeprefix("next_"), dtype=tensor.dtype, shape=tensor.shape)
        for tensor in first.outputs[1:]
    )
    return trace(module, inputs + state, [output], axes=_AXES, sources=sources, grouped_from=len(inputs), key=key)
