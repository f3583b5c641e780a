"""`kinograph serve`: a bundle that stays open, for the program that started it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from kinograph.commands.options import device_options, embedded_option, lora_options

__all__ = ["serve"]


@click.command()
@click.argument("bundle", required=False)
@device_options
@embedded_option
@lora_options
def serve(bundle: str | None, opened: Mapping[str, Any], **others: Any) -> int:
    """Make videos with BUNDLE, or the built-in starter model, for the program that started this.

    It asks on standard input and is answered on standard output, in lines of JSON with pixels between them:
    docs/serve.md. There is no network in it.
    """
    from kinograph.console.serve import serve as run

    return run(bundle, {**opened, **others})
