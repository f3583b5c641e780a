"""`kinograph calibrate`: quantised variants and speed levels of a bundle."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from kinograph.commands.options import json_option, progress_options
from kinograph.console import Console, json_text
from kinograph.errors import escape

__all__ = ["calibrate"]


@click.command()
@click.argument("bundle")
@click.option(
    "--recipe",
    type=click.Choice(["int8", "int8-dynamic", "fp8", "mxfp8", "nvfp4", "int4-weights"]),
    help="What to quantise to.  [default: int8, or nothing with --skip]",
)
@click.option(
    "--skip",
    type=click.Choice(["careful", "balanced", "fast"]),
    multiple=True,
    help="Find a speed level, which leaves out steps; may be given again.",
)
@click.option(
    "--image",
    "images",
    metavar="FILE",
    multiple=True,
    help="Picture to start from, for models that need one; may be given again.  [default: our own]",
)
@click.option("--prompts", metavar="FILE", help="Prompts to calibrate with, one a line.  [default: the project's own]")
@click.option("--runs", type=click.IntRange(1, 4096), default=16, show_default=True, help="Prompts looked into.")
@click.option("--videos", type=click.IntRange(1, 256), default=8, show_default=True, help="Further ones compared.")
@click.option("--judged", type=click.IntRange(1, 4096), default=40, show_default=True, help="Prompts a judge asks for.")
@click.option("--scan/--no-scan", default=True, show_default=True, help="Measure every layer's effect on the velocity.")
@click.option("--device", type=click.Choice(["cpu"]), default="cpu", show_default=True, help="Where it is calibrated.")
@click.option("--force", is_flag=True, help="Replace what is there; write a variant even if it misses the gate.")
@json_option
@progress_options
def calibrate(
    bundle: str, prompts: str | None, recipe: str | None, as_json: bool, console: Console, **options: Any
) -> None:
    """Add a quantised variant, or speed levels, to BUNDLE, and say what that cost.

    Exits 8, the bundle untouched, if it cost too much.
    """
    import msgspec

    from kinograph.calibration import CalibrationOptions, find_speeds
    from kinograph.calibration import calibrate as quantise
    from kinograph.console.calibrate import read_prompts, report_text, speeds_text
    from kinograph.console.judges import JUDGES

    chosen = CalibrationOptions(prompts=read_prompts(prompts), recipe=recipe or "int8", **options)
    report = None
    with console:
        if recipe or not chosen.skip:
            report = quantise(Path(bundle), chosen, console.staged, JUDGES)
        speeds = find_speeds(Path(bundle), chosen, console.staged) if chosen.skip else {}
    if as_json:
        told = msgspec.to_builtins(report) if report else {}
        click.echo(json_text({**told, "speeds": msgspec.to_builtins(speeds)}))
        return
    if report:
        page = os.path.join(bundle, f"{report.variant}-report.html")  # noqa: PTH118
        click.echo(report_text(report, bundle))
        click.echo(f"{escape(page)}: frames side by side, every layer")
    if speeds:
        click.echo(speeds_text(speeds, bundle))
