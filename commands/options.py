"""Options that several commands have."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import click

from kinograph.console import Console

__all__ = ["THE_BUNDLES", "force_option", "json_option", "progress_options", "size"]

THE_BUNDLES = "  [default: the bundle's]"

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
force_option = click.option("--force", is_flag=True, help="Replace what exists already.")


def progress_options(command: Callable[..., None]) -> Callable[..., None]:
    """`--quiet` and `--progress`, which the command is given as its `console`."""

    @click.option("-q", "--quiet", is_flag=True, help="No progress; warnings and errors only.")
    @click.option(
        "--progress",
        type=click.Choice(["bar", "json"]),
        default="bar",
        show_default=True,
        help="On stderr, a bar where that is a terminal, or JSON objects, one a line, for programs.",
    )
    @functools.wraps(command)
    def with_console(*, quiet: bool, progress: str, **options: Any) -> None:
        command(console=Console(None if quiet else progress), **options)

    return with_console


def size(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """`832x480` as two numbers of pixels."""
    if value is None:
        return None
    match = re.fullmatch(r"(-?[0-9]{1,12})[x×](-?[0-9]{1,12})", value)
    if match is None:
        raise click.BadParameter(f"{value!r} is not a size such as 832x480", ctx, param)
    return int(match[1]), int(match[2])
