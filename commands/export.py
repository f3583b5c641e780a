"""`kinograph export`: a checkpoint as a bundle."""

from __future__ import annotations

import contextlib
import re
import sys
from pathlib import Path
from typing import Any

import click

from kinograph.commands.options import force_option, json_option, progress_options, size
from kinograph.console import Console
from kinograph.errors import escape

__all__ = ["export"]

_LORA = re.compile(r"(?P<path>.+)@(?P<strength>-?[0-9]{1,4}(?:\.[0-9]{1,6})?)", re.DOTALL)


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
@click.option(
    "--lora",
    "loras",
    metavar="FILE[@STRENGTH]",
    multiple=True,
    help="LoRA that is added to the transformer, or to the first of two; may be given again.",
)
@click.option("--lora-2", "loras_2", metavar="FILE[@STRENGTH]", multiple=True, help="One for the second expert.")
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
    experts = enumerate((options.pop("loras"), options.pop("loras_2")), 1)
    loras = tuple(_lora(given, number) for number, every in experts for given in every)
    chosen = ExportOptions(width=width, height=height, loras=loras, **options)
    with console, contextlib.redirect_stdout(sys.stderr):  # torch's exporter prints
        manifest = run(Path(checkpoint), Path(bundle), chosen, console.staged)
    line = escape(f"{bundle}: exported {manifest.name} ({manifest.family})")
    click.echo(manifest_json(manifest) if as_json else line)


def _lora(option: str, expert: int) -> Any:
    """`FILE` or `FILE@STRENGTH`; a file of that very name comes first."""
    from kinograph.export import Lora

    match = _LORA.fullmatch(option)
    if match is None or Path(option).exists():
        return Lora(Path(option), expert=expert)
    return Lora(Path(match["path"]), float(match["strength"]), expert)
