"""`kinograph bench`: how fast a bundle's variants are on this machine."""

from __future__ import annotations

from typing import Any

import click

from kinograph.commands.options import THE_BUNDLES, json_option, progress_options, size
from kinograph.console import Console, json_text

__all__ = ["bench"]


@click.command()
@click.argument("bundle", required=False)
@click.option(
    "--variant", "variants", multiple=True, help="Precision; may be given again.  [default: all of the transformer's]"
)
@click.option(
    "--speed", "speeds", metavar="LEVEL", multiple=True, help="Also with this speed level; may be given again."
)
@click.option("--runs", type=click.IntRange(1, 1000), default=3, show_default=True, help="Videos by each that count.")
@click.option("--size", metavar="WxH", callback=size, help="Size in pixels." + THE_BUNDLES)
@click.option("--frames", type=int, help="Number of frames." + THE_BUNDLES)
@click.option("--steps", type=int, help="Denoising steps." + THE_BUNDLES)
@click.option("--guidance", type=float, help="Guidance scale; 1 is none." + THE_BUNDLES)
@click.option("--image", metavar="FILE", help="First frame, for models that need one.")
@click.option(
    "--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N; auto heeds KINOGRAPH_DEVICE."
)
@json_option
@progress_options
def bench(bundle: str | None, as_json: bool, console: Console, **options: Any) -> None:
    """Measure the variants of BUNDLE, or of the built-in starter model, on this machine: seconds by stage, and memory.

    Each is a process of its own, all at once in memory, and they make the same video in turn.
    """
    from kinograph.console.bench import BenchJob, bench_text
    from kinograph.console.bench import bench as run
    from kinograph.runtime.request import Request

    width, height = options["size"] or (None, None)
    request = Request(
        prompt="",
        width=width,
        height=height,
        num_frames=options["frames"],
        num_inference_steps=options["steps"],
        guidance_scale=options["guidance"],
        image=options["image"],
    )
    job = BenchJob(bundle, options["device"], options["variants"], options["speeds"], request, options["runs"])
    with console:
        report = run(job, console)
    click.echo(json_text(report) if as_json else bench_text(report))
