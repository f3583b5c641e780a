"""`kinograph embed`: prompts as the transformer reads them, kept in a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from kinograph.commands.options import device_options, force_option, json_option, progress_options
from kinograph.console import Console, json_text
from kinograph.errors import escape

__all__ = ["embed"]


@click.command()
@click.argument("bundle")
@click.argument("prompts", nargs=-1, metavar="[PROMPT]...")
@click.option("--prompts", "file", metavar="FILE", help="Further prompts, one a line.")
@click.option("-n", "--negative-prompt", "negative", multiple=True, help="Further negative ones, beside the bundle's.")
@click.option("-o", "--output", required=True, metavar="FILE.safetensors", help="Where they are kept; may be there.")
@force_option
@json_option
@device_options
@progress_options
def embed(bundle: str, as_json: bool, opened: Mapping[str, Any], console: Console, **options: Any) -> None:
    """Keep prompts as BUNDLE's transformer reads them, for a machine that its text encoder does not fit in.

    There `generate --embedded FILE` makes the same video of them without it. FILE gets those that it has not; nobody
    can read a prompt from it, though who guesses one can tell that it is there.
    """
    from kinograph.console.embed import EmbedJob
    from kinograph.console.embed import embed as run

    with console:
        report = run(EmbedJob(bundle=bundle, opened=opened, **options), console)
    if as_json:
        click.echo(json_text(report))
        return
    click.echo(
        f"{escape(report['output'])}: {report['prompts']} prompts, {report['new']} of them new, {report['variant']} "
        f"text encoder, {report['bytes'] / 1e3:.0f} kB"
    )
