"""`python -m kinograph.starter.reference CHECKPOINT`: the same evaluation through diffusers' own pipeline.

It judges a checkpoint before it is exported, and chooses the number of steps and the guidance scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
from diffusers import WanPipeline

from kinograph.starter.evaluate import Frames, Generate, evaluate, held_out_scenes, show, write_sheets
from kinograph.starter.model import TEXT_LENGTH

__all__ = ["Sampling", "generator", "main"]


@dataclass(frozen=True)
class Sampling:
    """How clips are generated: size in pixels, frames, denoising steps and guidance scale."""

    size: int = 64
    frames: int = 17
    steps: int = 20
    guidance: float = 3.0


def generator(checkpoint: Path, sampling: Sampling) -> Generate:
    """A function from prompt and seed to uint8 frames [T, H, W, 3], by `WanPipeline` in float32 on the CPU."""
    pipe = WanPipeline.from_pretrained(str(checkpoint), torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)

    def generate(prompt: str, seed: int) -> Frames:
        frames = pipe(
            prompt,
            height=sampling.size,
            width=sampling.size,
            num_frames=sampling.frames,
            num_inference_steps=sampling.steps,
            guidance_scale=sampling.guidance,
            generator=torch.Generator("cpu").manual_seed(seed),
            max_sequence_length=TEXT_LENGTH,
        ).frames[0]
        return np.asarray(np.clip(frames * 255 + 0.5, 0, 255), dtype=np.uint8)

    return generate


@click.command()
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--prompts", default=100, show_default=True)
@click.option("--size", default=Sampling.size, show_default=True)
@click.option("--frames", default=Sampling.frames, show_default=True)
@click.option("--steps", default=Sampling.steps, show_default=True)
@click.option("--guidance", default=Sampling.guidance, show_default=True)
@click.option("--threads", default=None, type=int, help="CPU threads; PyTorch's choice if not given.")
@click.option("--sheets", type=click.Path(path_type=Path), help="Folder for contact sheets.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(
    checkpoint: Path, prompts: int, threads: int | None, sheets: Path | None, as_json: bool, **sampling: float
) -> None:
    """Judge the videos that diffusers makes from CHECKPOINT, for prompts it was not trained on."""
    if threads is not None:
        torch.set_num_threads(threads)
    scenes = held_out_scenes(prompts)
    generate = generator(checkpoint, Sampling(**sampling))  # type: ignore[arg-type]
    report, clips, verdicts = evaluate(generate, scenes)
    show(report, scenes, verdicts, as_json=as_json)
    if sheets is not None:
        write_sheets(clips, verdicts, scenes, sheets)


if __name__ == "__main__":
    main()
