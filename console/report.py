"""What is told of a video that was made."""

from __future__ import annotations

from typing import Any

import msgspec

from kinograph import Pipeline, Request

__all__ = ["video_report"]


def video_report(pipe: Pipeline, request: Request, num_frames: int) -> dict[str, Any]:
    """How a video of so many frames was made of a resolved request, without the prompts."""
    return {
        "width": request.width,
        "height": request.height,
        "num_frames": num_frames,
        "fps": request.fps,
        "seed": request.seed,
        "num_inference_steps": request.num_inference_steps,
        "guidance_scale": request.guidance_scale,
        "guidance_scale_2": request.guidance_scale_2,
        "solver": request.solver,
        "speed": request.speed,
        "bundle": pipe.bundle.manifest.name,
        "bundle_sha256": pipe.bundle.digest,
        "loras": msgspec.to_builtins(pipe.bundle.manifest.source.loras),
        "backend": pipe.backend,
        "variant": dict(pipe.variant),
    }
