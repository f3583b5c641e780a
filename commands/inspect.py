"""`kinograph inspect` and `kinograph verify`: what a bundle is, after every file has been checked."""

from __future__ import annotations

from typing import Any

import click

from kinograph.commands.options import json_option, progress_options
from kinograph.console import Console, json_text
from kinograph.errors import escape

__all__ = ["inspect", "verify"]


@click.command()
@click.argument("bundle", required=False)
@json_option
@progress_options
def inspect(bundle: str | None, as_json: bool, console: Console) -> None:
    """Show what BUNDLE, or the built-in starter model, is: geometry, defaults, components, parity figures."""
    manifest = _verified(bundle, console)
    from kinograph.console.inspect import manifest_json, manifest_text

    click.echo(manifest_json(manifest) if as_json else manifest_text(manifest))


@click.command()
@click.argument("bundle", required=False)
@json_option
@progress_options
def verify(bundle: str | None, as_json: bool, console: Console) -> None:
    """Check every file of BUNDLE, or of the built-in starter model. Exits 4 naming what is wrong."""
    manifest = _verified(bundle, console)
    size = sum(file.size for file in manifest.files.values())
    if as_json:
        click.echo(json_text({"name": manifest.name, "files": len(manifest.files), "bytes": size}))
        return
    click.echo(f"{escape(bundle or manifest.name)}: verified {len(manifest.files)} files, {size / 1e6:.1f} MB")


def _verified(bundle: str | None, console: Console) -> Any:
    """The manifest of a bundle after all its files have been hashed, with progress."""
    from kinograph.bundle import verify as run
    from kinograph.runtime.locate import find_bundle

    with console:
        return run(find_bundle(bundle), console.start_bytes("verify"))
