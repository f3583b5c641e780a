"""The command `kinograph`: what its commands, of `commands/`, have in common: exit codes, warnings, signals."""

from __future__ import annotations

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from kinograph.commands.batch import batch
from kinograph.commands.bench import bench
from kinograph.commands.build import build
from kinograph.commands.calibrate import calibrate
from kinograph.commands.decode import decode
from kinograph.commands.doctor import doctor
from kinograph.commands.embed import embed
from kinograph.commands.export import export
from kinograph.commands.generate import generate
from kinograph.commands.inspect import inspect, verify
from kinograph.commands.serve import serve
from kinograph.errors import KinographError, escape

__all__ = ["main"]

_INTERRUPTED, _TERMINATED, _NO_MEMORY, _INTERNAL = 130, 143, 6, 1
_PATIENCE = 1.0  # seconds from a signal until whoever sent it is told what is waited for


def main(args: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code (drawn at the top of errors.py) and never shows a traceback unasked."""
    before = _take_signals()
    shown, warnings.showwarning = warnings.showwarning, _warn
    try:
        result = kinograph.main(args=None if args is None else list(args), prog_name="kinograph", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted", _INTERRUPTED)
    except KinographError as error:
        return _fail(str(error), error.exit_code)
    except MemoryError:
        return _fail("out of memory. Use a smaller --size, fewer --frames or a smaller --variant", _NO_MEMORY)
    except Exception as error:
        message = f"internal error: {type(error).__name__}: {error}. Set KINOGRAPH_DEBUG=1 for the traceback"
        return _fail(message, _INTERNAL)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
        warnings.showwarning = shown


def _fail(message: str, exit_code: int) -> int:
    if os.environ.get("KINOGRAPH_DEBUG") == "1":
        traceback.print_exc()
    print(f"kinograph: {escape(message)}", file=sys.stderr)
    return exit_code


def _warn(message: Warning | str, category: type[Warning], *where: object, **more: object) -> None:
    """A warning as a user should see it: what it says, not where it was raised."""
    print(f"warning: {escape(str(message))}", file=sys.stderr)


def _take_signals() -> dict[signal.Signals, Any]:
    """Handle the signals that end a command; returns their handlers until now. What is ignored stays so."""
    ours = {signal.SIGINT: _interrupt, signal.SIGTERM: _terminate, signal.SIGALRM: _explain}
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell's job in the background
        del ours[signal.SIGINT]
    return {number: signal.signal(number, handler) for number, handler in ours.items()}


def _interrupt(number: int, frame: object) -> None:
    signal.setitimer(signal.ITIMER_REAL, _PATIENCE)
    raise KeyboardInterrupt


def _terminate(number: int, frame: object) -> None:
    signal.setitimer(signal.ITIMER_REAL, _PATIENCE)
    raise SystemExit(_TERMINATED)  # unwinds, so that every temporary is removed


def _explain(number: int, frame: object) -> None:
    """A command that has been told to stop has not yet: what it calls may end only between two large operations."""
    print("kinograph: stopping, as soon as what is being computed ends", file=sys.stderr)


def _show_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from kinograph.console.doctor import installed_version

        click.echo(f"kinograph {installed_version('kinograph') or '(not installed as a package)'}")
        ctx.exit()


def _show_cpp(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(str(Path(__file__).resolve().parent / "runtime" / "cpp"))
        ctx.exit()


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show the version."
)
@click.option(
    "--cpp",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_cpp,
    help="Show the folder of the library for C and C++, for cmake -S.",
)
def kinograph() -> None:
    """Text-to-video diffusion models without PyTorch: export once, generate anywhere.

    Exit codes: 0 done, 1 internal error, 2 usage, 3 bad request, 4 bundle refused, 5 device or engine, 6 out of memory,
    7 output, 8 numeric failure, 130 interrupted.
    """


for _command in (generate, batch, serve, embed, decode, export, calibrate, build, inspect, verify, bench, doctor):
    kinograph.add_command(_command)
