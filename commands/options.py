"""Options that several commands have."""

from __future__ import annotations

import re

import click

__all__ = ["THE_BUNDLES", "force_option", "json_option", "quiet_option", "size"]

THE_BUNDLES = "  [default: the bundle's]"

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
quiet_option = click.option("-q", "--quiet", is_flag=True, help="No progress; warnings and errors only.")
force_option = click.option("--force", is_flag=True, help="Replace what exists already.")


def size(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """`832x480` as two numbers of pixels."""
    if value is None:
        return None
    match = re.fullmatch(r"(-?[0-9]{1,12})[x×](-?[0-9]{1,12})", value)
    if match is None:
        raise click.BadParameter(f"{value!r} is not a size such as 832x480", ctx, param)
    return int(match[1]), int(match[2])
