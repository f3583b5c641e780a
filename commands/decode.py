"""`kinograph decode`: kept latents as a video."""

from __future__ import annotations

from typing import Any

import click

from kinograph.commands.options import THE_BUNDLES, force_option, progress_options
from kinograph.console import Console
from kinograph.errors import escape

__all__ = ["decode"]


@click.command()
@click.argument("latents")
@click.argument("bundle", required=False)
@click.option("-o", "--output", default="out.mp4", show_default=True, help=".mp4 .mkv .webm .gif .webp, or a folder/.")
@click.option("--fps", type=float, help="Frames per second of the file." + THE_BUNDLES)
@click.option("--codec", help="Video encoder, such as libx265.  [default: libx264; libvpx-vp9 for .webm]")
@click.option("--audio", metavar="FILE", help="Sound for the video, looped where it is shorter.")
@click.option("--device", default="auto", show_default=True, help="auto or cpu.")
@click.option("--variant", help="Precision, such as fp32 or fp16.  [default: the best for the device]")
@force_option
@progress_options
def decode(latents: str, bundle: str | None, console: Console, **options: Any) -> None:
    """Make the video of LATENTS, kept by `generate --latents`, with BUNDLE or the built-in starter model."""
    from kinograph.console.decode import DecodeJob
    from kinograph.console.decode import decode as run

    with console:
        count = run(DecodeJob(latents, bundle, **options), console)
    click.echo(f"{escape(options['output'])}: {count} frames")
