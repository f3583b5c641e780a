"""`python -m kinograph.starter.reference CHECKPOINT`: the same evaluation through diffusers' own pipeline.

It judges a checkpoint before it is exported, and chooses the number of steps and the guidance scale. With
`--reconstruct` it judges the video autoencoder alone, which bounds what the whole model can reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanPipeline

from kinograph.starter import drawing, world
from kinograph.starter.clips import pixels
from kinograph.starter.evaluate import Frames, Generate, captions_of, evaluate, held_out_scenes, show
from kinograph.starter.measures import decibels
from kinograph.starter.model import TEXT_LENGTH

__all__ = ["Sampling", "generator", "main", "reconstruction_decibels", "reconstructor"]

_VISIBLE = 0.01  # share of a pixel from which a subject is in it


@dataclass(frozen=True)
class Sampling:
    """How clips are generated: size in pixels, frames, denoising steps and guidance scale."""

    size: int = 128
    frames: int = 33
    steps: int = 24
    guidance: float = 3.0


def generator(checkpoint: Path, sampling: Sampling) -> Generate:
    """A function from prompt and seed to uint8 frames [T, H, W, 3], by `WanPipeline` in float32 on the CPU.

    `WanPipeline` starts from text alone: with a first frame the function raises `ValueError`.
    """
    pipe = WanPipeline.from_pretrained(str(checkpoint), torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)

    def generate(prompt: str, seed: int, first_frame: Frames | None = None) -> Frames:
        if first_frame is not None:
            raise ValueError("expected no first frame: WanPipeline starts from text alone")
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


def reconstructor(checkpoint: Path, scenes: Sequence[world.Scene], sampling: Sampling) -> Generate:
    """A function that, for the number of a scene, renders it and passes it through the checkpoint's autoencoder."""
    vae = AutoencoderKLWan.from_pretrained(str(checkpoint), subfolder="vae", torch_dtype=torch.float32).eval()

    @torch.no_grad()
    def reconstruct(prompt: str, number: int, first_frame: Frames | None = None) -> Frames:
        clip = drawing.render(scenes[number], sampling.frames, sampling.size)
        decoded = vae.decode(vae.encode(pixels(torch.from_numpy(clip[None]))).latent_dist.mode()).sample[0]
        return np.asarray((decoded.permute(1, 2, 3, 0).numpy() * 127.5 + 128).clip(0, 255), dtype=np.uint8)

    return reconstruct


def reconstruction_decibels(scenes: Sequence[world.Scene], clips: Sequence[Frames]) -> tuple[float, float]:
    """Mean peak signal-to-noise ratio of clips against true renders, over the subjects and over the background."""
    ratios = []
    for scene, clip in zip(scenes, clips, strict=True):
        length, size = clip.shape[:2]
        truth = drawing.render(scene, length, size)
        subjects = drawing.masks(scene, length, size).max(0) > _VISIBLE
        ratios.append([decibels(clip, truth, part) for part in (subjects, ~subjects)])
    inside, outside = np.mean(ratios, axis=0)
    return float(inside), float(outside)


@click.command()
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--prompts", default=100, show_default=True)
@click.option("--kind", type=click.Choice(list(world.KINDS)), help="Only scenes of this kind.")
@click.option("--paraphrases", is_flag=True, help="Other words than the plainest.")
@click.option("--size", default=Sampling.size, show_default=True)
@click.option("--frames", default=Sampling.frames, show_default=True)
@click.option("--steps", default=Sampling.steps, show_default=True)
@click.option("--guidance", default=Sampling.guidance, show_default=True)
@click.option("--threads", default=None, type=int, help="CPU threads; PyTorch's choice if not given.")
@click.option("--reconstruct", is_flag=True, help="Judge the autoencoder on true clips instead of generating.")
@click.option("--sheets", type=click.Path(path_type=Path), help="Folder for contact sheets and confusion matrices.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(
    checkpoint: Path,
    prompts: int,
    kind: str | None,
    paraphrases: bool,
    threads: int | None,
    reconstruct: bool,
    sheets: Path | None,
    as_json: bool,
    **options: float,
) -> None:
    """Judge the videos that diffusers makes from CHECKPOINT, for prompts it was not trained on."""
    if threads is not None:
        torch.set_num_threads(threads)
    scenes = held_out_scenes(prompts, kind=kind)
    sampling = Sampling(**options)  # type: ignore[arg-type]
    generate = reconstructor(checkpoint, scenes, sampling) if reconstruct else generator(checkpoint, sampling)
    evaluation = evaluate(generate, scenes, captions_of(scenes, len(scenes) if paraphrases else None))
    show(evaluation, as_json=as_json, sheets=sheets)
    if reconstruct:
        subjects, background = reconstruction_decibels(scenes, evaluation.clips)
        click.echo(f"subjects {subjects:.1f} dB, background {background:.1f} dB", err=True)


if __name__ == "__main__":
    main()
