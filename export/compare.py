"""The same request through diffusers and through a bundle: end-to-end parity, for any checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import (
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
)
from PIL import Image

import kinograph
from kinograph.manifest import Manifest
from kinograph.runtime.image import read_image

__all__ = ["Comparison", "compare", "load_reference", "run_reference"]


@dataclass(frozen=True)
class Comparison:
    """Differences of two videos in levels of 255: the largest, and the share of values at most one level apart."""

    largest: int
    within_one: float


def compare(pipeline: Any, pipe: kinograph.Pipeline, request: kinograph.Request) -> Comparison:
    """Run `request` in the diffusers `pipeline` and in Kinograph's `pipe` and compare the frames."""
    request = pipe.resolve(request)
    expected = run_reference(pipeline, pipe.bundle.manifest, request)
    got = np.stack(list(pipe.stream(request)))
    difference = np.abs(got.astype(np.int16) - expected.astype(np.int16))
    return Comparison(int(difference.max()), float((difference <= 1).mean()))


def load_reference(checkpoint: Path) -> Any:
    """The checkpoint's own diffusers pipeline in float32 on the CPU."""
    pipeline = DiffusionPipeline.from_pretrained(str(checkpoint), torch_dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def run_reference(pipeline: Any, manifest: Manifest, request: kinograph.Request) -> npt.NDArray[np.uint8]:
    """Frames uint8 [T, H, W, 3] of a resolved `request` as diffusers makes them."""
    if request.image is not None and manifest.conditioning.kind == "clean":
        pipeline = WanImageToVideoPipeline(**pipeline.components, expand_timesteps=True)
        pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = _scheduler(pipeline.scheduler, request.solver)
    two_experts = {"guidance_scale_2": request.guidance_scale_2} if len(manifest.experts) == 2 else {}
    image = {} if request.image is None else {"image": Image.fromarray(read_image(request.image))}
    video = pipeline(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        height=request.height,
        width=request.width,
        num_frames=request.num_frames,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        generator=torch.Generator("cpu").manual_seed(request.seed),
        max_sequence_length=manifest.text.length,
        output_type="np",
        **two_experts,
        **image,
    ).frames[0]
    frames: npt.NDArray[np.uint8] = (video * 255).round().astype(np.uint8)
    return frames


def _scheduler(current: Any, solver: str | None) -> Any:
    """diffusers' sampler of that name, with the checkpoint's own configuration."""
    config = dict(current.config)
    shift = config.get("flow_shift") or config.get("shift") or 1.0
    if solver == "euler":
        return FlowMatchEulerDiscreteScheduler(shift=shift)
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": shift}
    if solver == "dpmpp-2m":
        return DPMSolverMultistepScheduler(**flow)
    if isinstance(current, UniPCMultistepScheduler):
        return UniPCMultistepScheduler.from_config(config)
    return UniPCMultistepScheduler(**flow)
