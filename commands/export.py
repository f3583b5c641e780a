"""`kinograph export`: a checkpoint as a bundle."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import click

from kinograph.commands.options import force_option, json_option, lora_options, progress_options, size
from kinograph.console import Console
from kinograph.errors import escape

__all__ = ["export"]


@click.command()
@click.argument("checkpoint")
@click.argument("bundle")
@click.option("--precision", type=click.Choice(["fp32", "fp16", "bf16"]), default="fp32", show_default=True)
@click.option("--parity/--no-parity", default=True, show_default=True, help="Compare every graph with PyTorch.")
@click.option("--name", help="Name of the bundle.  [default: the checkpoint folder's]")
@click.option("--size", metavar="WxH", callback=size, help="Default size in pixels.  [default: the family's]")
@click.option("--frames", "num_frames", type=int, help="Default number of frames.  [default: the family's]")
@click.option("--fps", type=float, help="Default frames per second.  [default: the family's]")
@click.option("--steps", "num_inference_steps", type=int, help="Default denoising steps.  [default: the family's]")
@click.option("--guidance", "guidance_scale", type=float, help="Default guidance scale.  [default: the family's]")
@lora_options
@click.option("--licence", help="The checkpoint's licence, to be kept in the bundle.")
@click.option("--judge", help="Who can tell what the model's videos show: starter-world, for the starter's own.")
@force_option
@json_option
@progress_options
def export(checkpoint: str, bundle: str, as_json: bool, console: Console, **options: Any) -> None:
    """Turn a CHECKPOINT folder in diffusers layout into a BUNDLE. Needs kinograph[export]."""
    from kinograph.console.inspect import manifest_json
    from kinograph.export import ExportOptions
    from kinograph.export import export as run

    width, height = options.pop("size") or (None, None)
    chosen = ExportOptions(width=width, height=height, **options)
    with console, contextlib.redirect_stdout(sys.stderr):  # torch's exporter prints
        manifest = run(Path(checkpoint), Path(bundle), chosen, console.staged)
    line = escape(f"{bundle}: exported {manifest.name} ({manifest.family})")
    click.echo(manifest_json(manifest) if as_json else line)
