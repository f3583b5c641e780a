"""`kinograph batch`: many videos of one bundle, from a file of requests."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import click

from kinograph.commands.options import (
    device_options,
    embedded_option,
    force_option,
    json_option,
    lora_options,
    progress_options,
)
from kinograph.console import Console, json_text
from kinograph.errors import UsageError, escape

__all__ = ["batch"]


@click.command()
@click.argument("words", nargs=-1, metavar="[BUNDLE] FILE.jsonl")
@click.option("-o", "--output", "folder", default=".", show_default=True, help="Folder of the videos.")
@click.option("--no-metadata", is_flag=True, help="No prompt or settings in the files, and no side-cars.")
@force_option
@device_options
@embedded_option
@lora_options
@json_option
@progress_options
def batch(words: tuple[str, ...], opened: Mapping[str, Any], console: Console, **options: Any) -> int:
    """Make a video of every line of FILE with BUNDLE, or the built-in starter model, which is opened once.

    A line is a JSON object with the fields of kinograph.Request, and where the video goes: {"prompt": "a cat walks",
    "seed": 7, "output": "cat.mp4"}. What is there already is passed over, so that the same command goes on after a
    break. A line that cannot be done is told, and the others are made; the exit code is then the first such line's.
    """
    if len(words) not in (1, 2):
        raise UsageError(
            f"expected [BUNDLE] FILE, but got {len(words)} arguments. Give a file with a request on each line"
        )
    from kinograph.console.batch import BatchJob
    from kinograph.console.batch import batch as run

    job = BatchJob(
        file=words[-1],
        bundle=words[0] if len(words) == 2 else None,
        folder=options["folder"],
        opened={**opened, **{name: options[name] for name in ("embedded", "loras")}},
        keep_metadata=not options["no_metadata"],
        force=options["force"],
    )
    reports = []
    with console:
        for report in run(job, console):
            reports.append(report)
            if not options["as_json"]:
                _tell(report)
    if options["as_json"]:
        click.echo(json_text({"videos": reports}))
    return next((int(report["code"]) for report in reports if "code" in report), 0)


def _tell(report: dict[str, Any]) -> None:
    if "error" in report:
        print(f"kinograph: line {report['line']}: {escape(report['error'])}", file=sys.stderr)
    elif "stages" not in report:
        click.echo(f"{escape(report['output'])}: is there")
    else:
        seconds = sum(stage["seconds"] for stage in report["stages"])
        click.echo(f"{escape(report['output'])}: {report['num_frames']} frames, seed {report['seed']}, {seconds:.1f} s")
