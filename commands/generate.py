"""`kinograph generate`: its options as one job."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from kinograph.commands.options import (
    THE_BUNDLES,
    device_options,
    embedded_option,
    force_option,
    json_option,
    lora_options,
    progress_options,
    size,
)
from kinograph.console import Console, json_text
from kinograph.errors import UsageError, escape

__all__ = ["generate"]


@click.command()
@click.argument("words", nargs=-1, metavar="[BUNDLE] PROMPT")
@click.option("-p", "--prompt", help="The prompt, in place of the argument.")
@click.option("-n", "--negative-prompt", help="What not to show." + THE_BUNDLES)
@click.option("--size", metavar="WxH", callback=size, help="Size in pixels." + THE_BUNDLES)
@click.option("-W", "--width", type=int, help="Width in pixels." + THE_BUNDLES)
@click.option("-H", "--height", type=int, help="Height in pixels." + THE_BUNDLES)
@click.option("--frames", type=int, help="Number of frames." + THE_BUNDLES)
@click.option("--seconds", type=float, help="Time from the first frame to the last, in place of --frames.")
@click.option("--fps", type=float, help="Frames per second of the file." + THE_BUNDLES)
@click.option("--steps", type=int, help="Denoising steps." + THE_BUNDLES)
@click.option("--guidance", type=float, help="Guidance scale; 1 is none." + THE_BUNDLES)
@click.option("--guidance-2", type=float, help="That of a second expert.  [default: --guidance, or the bundle's]")
@click.option("-k", "videos", type=click.IntRange(1, 1000), default=1, help="So many videos, with consecutive seeds.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the noise, 0 to 2^64 - 1.")
@click.option("--solver", type=click.Choice(["euler", "unipc", "dpmpp-2m"]), help="Sampler." + THE_BUNDLES)
@click.option("--speed", metavar="LEVEL", help="Leave out steps: a speed level of the bundle, such as balanced.")
@click.option(
    "--image",
    "images",
    metavar="FILE[@FRAME]",
    multiple=True,
    help="A picture that becomes a frame: the first, or that number; -1 is the last. May be given again.",
)
@click.option("--extend", metavar="FILE", help="A film that the video continues, and which goes before it in the file.")
@click.option("--extend-backward", metavar="FILE", help="A film that the video leads to.")
@click.option("--join", nargs=2, metavar="FILE FILE", help="Two films that the video leads from and to.")
@click.option("--remix", metavar="FILE", help="A film that is made anew, as the prompt says.")
@click.option("--strength", type=float, default=0.6, show_default=True, help="How far --remix leaves its film, 0 to 1.")
@click.option("--inpaint", metavar="FILE", help="A film that stays as it is, but for where --mask is white.")
@click.option("--mask", metavar="FILE", help="A picture, or a film: white is made anew, as the prompt says.")
@click.option("--loop", is_flag=True, help="Lead the video back to its beginning.")
@click.option(
    "--fit",
    type=click.Choice(["crop", "pad", "stretch"]),
    default="crop",
    show_default=True,
    help="Pictures and films of another shape.",
)
@click.option("--prompts", metavar="FILE", help="Further prompts with their times, a line each: 0:05 a cat sleeps.")
@click.option("--cuts", is_flag=True, help="Cut from one of the --prompts to the next, and let none become the next.")
@click.option("--window", type=int, help="Frames made at a time; longer videos are made in windows." + THE_BUNDLES)
@click.option("--overlap", type=int, help="Frames that a window is given of the one before." + THE_BUNDLES)
@click.option(
    "--anchor/--no-anchor",
    default=None,
    help="Give windows the beginning of what they show, so that it stays itself.  [default: where the model can]",
)
@device_options
@embedded_option
@lora_options
@click.option(
    "-o", "--output", default="out.mp4", show_default=True, help=".mp4 .mkv .webm .gif .webp, or a folder/ of PNG."
)
@click.option("--codec", help="Video encoder, such as libx265.  [default: libx264; libvpx-vp9 for .webm]")
@click.option("--preview", metavar="FILE", help="Every few steps, a PNG of what the video is going to look like.")
@click.option("--audio", metavar="FILE", help="Sound for the video, looped where it is shorter.")
@click.option("--title", metavar="TEXT", help="Words over the first three seconds.")
@click.option("--captions", metavar="FILE", help="Words from a subtitle file (.srt, .vtt), drawn into the picture.")
@click.option("--font", metavar="FILE", help="For those.  [default: one of the system's that has the characters]")
@click.option("--sheet", metavar="FILE.png", help="Also write frames side by side as one picture.")
@click.option("--latents", metavar="FILE.safetensors", help="Keep the latents, window by window, to go on from.")
@click.option("--resume", is_flag=True, help="Go on from the latents in --latents, if they are there.")
@click.option("--fail-on-blank", is_flag=True, help="Exit 8, without a file, if the video is a single colour.")
@click.option("--no-metadata", is_flag=True, help="No prompt or settings in the file, and no side-car .json.")
@force_option
@click.option("-v", "--verbose", is_flag=True, help="Print seconds and peak memory of every stage.")
@json_option
@progress_options
def generate(words: tuple[str, ...], console: Console, **options: Any) -> None:
    """Make a video from a prompt, with BUNDLE or the built-in starter model."""
    job = _job(words, options)
    from kinograph.console.generate import generate as run

    with console:
        reports = run(job, console)
    if options["as_json"]:
        click.echo(json_text(reports[0] if len(reports) == 1 else {"videos": reports}))
        return
    before = 0.0
    for report in reports:
        seconds = sum(stage["seconds"] for stage in report["stages"])
        click.echo(
            f"{escape(report['output'])}: {report['num_frames']} frames, {report['width']}×{report['height']}, "
            f"{report['fps']:g} fps, seed {report['seed']}, {seconds - before:.1f} s"
        )
        before = seconds
    if options["sheet"]:
        click.echo(f"{escape(os.path.abspath(options['sheet']))}: frames side by side")  # noqa: PTH100
    if options["verbose"]:
        for stage in console.stages:
            expected = f", {stage.expected_bytes / 1e6:.0f} MB expected of models" if stage.expected_bytes else ""
            click.echo(f"  {stage.name:<8} {stage.seconds:8.2f} s   peak {stage.peak_bytes / 1e6:6.0f} MB{expected}")


def _job(words: tuple[str, ...], options: dict[str, Any]) -> Any:
    """The options of `generate` as one object."""
    bundle, prompt = _bundle_and_prompt(words, options["prompt"])
    width, height = _width_and_height(options)
    from kinograph.console.generate import Job
    from kinograph.console.given import films_given, read_cues, read_still
    from kinograph.runtime.request import Request

    request = Request(
        prompt=prompt,
        negative_prompt=options["negative_prompt"],
        width=width,
        height=height,
        num_frames=options["frames"],
        fps=options["fps"],
        num_inference_steps=options["steps"],
        guidance_scale=options["guidance"],
        guidance_scale_2=options["guidance_2"],
        seed=options["seed"],
        solver=options["solver"],
        speed=options["speed"],
        images=tuple(read_still(one) for one in options["images"]),
        **films_given(options),
        remix=options["remix"],
        inpaint=options["inpaint"],
        mask=options["mask"],
        strength=options["strength"],
        loop=options["loop"],
        fit=options["fit"],
        window=options["window"],
        overlap=options["overlap"],
        anchor=options["anchor"],
        cues=read_cues(options["prompts"]),
        cuts=options["cuts"],
    )
    same = (
        "videos",
        "seconds",
        "output",
        "codec",
        "sheet",
        "latents",
        "resume",
        "force",
        "fail_on_blank",
        "preview",
        "audio",
        "title",
        "captions",
        "font",
    )
    return Job(
        request=request,
        bundle=bundle,
        opened=options["opened"] | {name: options[name] for name in ("embedded", "loras")},
        keep_metadata=not options["no_metadata"],
        **{name: options[name] for name in same},
    )


def _bundle_and_prompt(words: tuple[str, ...], prompt: str | None) -> tuple[str | None, str]:
    if prompt is not None and len(words) <= 1:
        return (words[0] if words else None), prompt
    if prompt is None and len(words) == 2:
        return words[0], words[1]
    if prompt is None and len(words) == 1:
        if (Path(words[0]) / "bundle.json").is_file():
            raise UsageError(f"{words[0]!r} is a bundle, and the prompt is missing. Give it after the bundle")
        return None, words[0]
    if not words:
        raise UsageError("the prompt is missing. Give it in quotes: kinograph generate 'a red ball rolls left'")
    raise UsageError(f"expected [BUNDLE] PROMPT, but got {len(words)} arguments. Put the prompt in quotes")


def _width_and_height(options: dict[str, Any]) -> tuple[int | None, int | None]:
    if options["size"] is None:
        return options["width"], options["height"]
    if options["width"] is not None or options["height"] is not None:
        raise UsageError("--size and --width or --height both say how large the video is. Give one of them")
    width, height = options["size"]
    return width, height
