"""`kinograph doctor`: the machine and what is installed."""

from __future__ import annotations

import click

from kinograph.commands.options import json_option
from kinograph.console import json_text

__all__ = ["doctor"]


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Show versions, engines, the machine, and what `--device auto` would use."""
    from kinograph.console.doctor import examine

    report = examine()
    if as_json:
        click.echo(json_text(report))
        return
    from kinograph.console.inspect import doctor_text

    click.echo(doctor_text(report))
