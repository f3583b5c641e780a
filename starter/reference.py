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

from kinograph.starter import world
from kinograph.starter.clips import pixels
from kinograph.starter.evaluate import Frames, Generate, evaluate, held_out_scenes, show, write_sheets
from kinograph.starter.model import TEXT_LENGTH

__all__ = ["Sampling", "decibels", "generator", "main", "reconstructor"]

_VISIBLE = 8  # smallest difference from the background, of 255, that counts as subject


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


def reconstructor(checkpoint: Path, scenes: Sequence[world.Scene], sampling: Sampling) -> Generate:
    """A function that, for the number of a scene, renders it and passes it through the checkpoint's autoencoder."""
    vae = AutoencoderKLWan.from_pretrained(str(checkpoint), subfolder="vae", torch_dtype=torch.float32).eval()

    @torch.no_grad()
    def reconstruct(prompt: str, number: int) -> Frames:
        clip = world.render(scenes[number], sampling.frames, sampling.size)
        decoded = vae.decode(vae.encode(pixels(clip[None])).latent_dist.mode()).sample[0]
        return np.asarray((decoded.permute(1, 2, 3, 0).numpy() * 127.5 + 128).clip(0, 255), dtype=np.uint8)

    return reconstruct


def decibels(scenes: Sequence[world.Scene], clips: Sequence[Frames]) -> tuple[float, float]:
    """Mean peak signal-to-noise ratio of clips against their true renders, over the subject and over the background."""
    ratios = []
    for scene, clip in zip(scenes, clips, strict=True):
        truth = world.render(scene, len(clip), clip.shape[1]).astype(np.float32)
        subject = np.abs(truth - np.asarray(world.BACKGROUNDS[scene.background])).max(-1) > _VISIBLE
        error = np.square(truth - clip).mean(-1)
        ratios.append([10 * np.log10(255**2 / max(error[part].mean(), 1e-6)) for part in (subject, ~subject)])
    inside, outside = np.mean(ratios, axis=0)
    return float(inside), float(outside)


@click.command()
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--prompts", default=100, show_default=True)
@click.option("--size", default=Sampling.size, show_default=True)
@click.option("--frames", default=Sampling.frames, show_default=True)
@click.option("--steps", default=Sampling.steps, show_default=True)
@click.option("--guidance", default=Sampling.guidance, show_default=True)
@click.option("--threads", default=None, type=int, help="CPU threads; PyTorch's choice if not given.")
@click.option("--reconstruct", is_flag=True, help="Judge the autoencoder on true clips instead of generating.")
@click.option("--sheets", type=click.Path(path_type=Path), help="Folder for contact sheets.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(
    checkpoint: Path,
    prompts: int,
    threads: int | None,
    reconstruct: bool,
    sheets: Path | None,
    as_json: bool,
    **options: float,
) -> None:
    """Judge the videos that diffusers makes from CHECKPOINT, for prompts it was not trained on."""
    if threads is not None:
        torch.set_num_threads(threads)
    scenes = held_out_scenes(prompts)
    sampling = Sampling(**options)  # type: ignore[arg-type]
    generate = reconstructor(checkpoint, scenes, sampling) if reconstruct else generator(checkpoint, sampling)
    report, clips, verdicts = evaluate(generate, scenes)
    show(report, scenes, verdicts, as_json=as_json)
    if reconstruct:
        click.echo("subject {:.1f} dB, background {:.1f} dB".format(*decibels(scenes, clips)), err=True)
    if sheets is not None:
        write_sheets(clips, verdicts, scenes, sheets)


if __name__ == "__main__":
    main()
