"""The step: one whole denoising step as one graph.

Conditioning, the transformer, guidance and the solver's update stand in one graph, so the loop is "run the step N
times" and needs no arithmetic outside the engine. What differs between families is the `Denoiser` inside.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from kinograph.export.trace import Traced, trace
from kinograph.export.weights import Checkpoint
from kinograph.manifest import Geometry, Text
from kinograph.manifest import Tensor as Declared
from kinograph.runtime.solvers import HISTORY

__all__ = ["STEP_INPUTS", "STEP_OUTPUTS", "Denoiser", "Step", "trace_step"]

_AXES = {"B": 2, "F": 3, "H": 4, "W": 6}  # traced at, H and W times the patch; any size may be run

STEP_INPUTS = (
    "sample",
    "history",
    "known",
    "mask",
    "known_weights",
    "noise",
    "timestep",
    "text",
    "guidance",
    "partial",
    "coefficients",
)
STEP_OUTPUTS = ("next_sample", "next_history", "prediction")


class Denoiser(Protocol):
    """A family's transformer: predicts the flow velocity v = noise − x₀ for every guidance row.

    `x` [1, C', F, H, W] float32 is the model's input, `timesteps` [2] float32 are those of what is given and of what is
    made (a model with one for all has the latter), `mask` [1, 1, F, H, W] float32 is 1 where frames are given, `text`
    [B, L, D] float32, `image` [1, N, D'] float32 or None. Returns [B, C, F, H, W] float32.
    """

    def __call__(self, x: Tensor, timesteps: Tensor, mask: Tensor, text: Tensor, image: Tensor | None) -> Tensor: ...


class Step(nn.Module):
    """Mask → denoiser → Σ wᵦ·vᵦ → solver matrix.

    `conditioning` is the manifest's `Conditioning.kind`. For `clean` and `noised`, given latents replace the sample
    on the way in (as `known_weights`₀·known + `known_weights`₁·noise, at `known_weights`₂·timestep) and on the way out
    (as `known`), so the loop ends with the given frames in place. For `channels` the model sees `known` and the mask,
    repeated for each of the `temporal` frames in a latent frame, as further channels, and makes every frame itself.
    """

    def __init__(
        self, denoiser: nn.Module, conditioning: Literal["clean", "noised", "channels"], temporal: int = 4
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.conditioning = conditioning
        self.temporal = temporal

    def forward(
        self,
        sample: Tensor,
        history: Tensor,
        known: Tensor,
        mask: Tensor,
        known_weights: Tensor,
        noise: Tensor,
        timestep: Tensor,
        text: Tensor,
        guidance: Tensor,
        partial: Tensor,
        coefficients: Tensor,
        image: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """All arguments as in the module's documentation of the step; returns next_sample, next_history, prediction."""
        if self.conditioning == "channels":
            x = sample
            model_input = torch.cat([x, mask.expand(-1, self.temporal, -1, -1, -1), known], dim=1)
        else:
            given = known_weights[0] * known + known_weights[1] * noise
            x = mask * given + (1 - mask) * sample
            model_input = x
        timesteps = torch.cat([known_weights[2:] * timestep, timestep])
        velocity = self.denoiser(model_input, timesteps, mask, text, image)
        prediction = partial + (guidance.reshape(-1, 1, 1, 1, 1) * velocity).sum(dim=0, keepdim=True)
        stacked = torch.cat([x, history, prediction, noise], dim=0)
        updated = (coefficients @ stacked.flatten(1)).reshape(HISTORY + 1, *stacked.shape[1:])
        next_sample = updated[:1]
        if self.conditioning != "channels":
            next_sample = mask * known + (1 - mask) * next_sample
        return next_sample, updated[1:], prediction


def trace_step(
    step: Step,
    geometry: Geometry,
    text: Text,
    sources: Mapping[str, Checkpoint],
    *,
    key: Hashable,
    image: tuple[int, int] | None = None,
) -> Traced:
    """The step as a graph; `image` is [N, D'] of the image embeddings where a model takes them, `key` as in `trace`."""
    latents = (1, geometry.channels, "F", "H", "W")
    shapes: dict[str, tuple[int | str, ...]] = dict.fromkeys(STEP_INPUTS, latents)
    shapes |= {
        "history": (HISTORY, geometry.channels, "F", "H", "W"),
        "mask": (1, 1, "F", "H", "W"),
        "known_weights": (3,),
        "timestep": (1,),
        "text": ("B", text.length, text.dim),
        "guidance": ("B",),
        "coefficients": (HISTORY + 1, HISTORY + 3),
    }
    if image is not None:
        shapes["image"] = (1, *image)
    return trace(
        step,
        [Declared(name=name, dtype="float32", shape=shape) for name, shape in shapes.items()],
        STEP_OUTPUTS,
        axes=_AXES | {axis: geometry.patch * _AXES[axis] for axis in ("H", "W")},
        sources=sources,
        divisors={"H": geometry.patch, "W": geometry.patch},
        limits={axis: geometry.positions * (geometry.patch if axis != "F" else 1) for axis in ("F", "H", "W")},
        key=key,
    )
