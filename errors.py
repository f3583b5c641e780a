"""Every error a user can meet, and the exit code it ends a command with.

KinographError                 1   a bug in Kinograph itself, if raised as is
├── UsageError                 2   the command line or the API was used wrongly
│   └── MissingExtraError      2   an optional dependency is not installed
├── RequestError               3   size, frames, prompt or media that cannot be done
├── BundleError                4   a bundle (or checkpoint) was refused
├── EngineError                5   a device or an engine failed
├── MemoryLimitError           6   the request does not fit in memory
├── OutputError                7   the result could not be written
├── NumericError               8   NaN or Inf in the latents; no video is written
└── Interrupted              130   cancelled (143 for SIGTERM)

A message says what happened, the value got, what was expected and what to do.
"""

from __future__ import annotations

__all__ = [
    "BundleError",
    "EngineError",
    "Interrupted",
    "KinographError",
    "MemoryLimitError",
    "MissingExtraError",
    "NumericError",
    "OutputError",
    "RequestError",
    "UsageError",
    "escape",
]


def escape(text: object) -> str:
    """`text` with everything that could move the cursor, colour the terminal or reverse the line written as `\\x1b`.

    Letters of any script, and line ends, are kept.
    """
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in str(text))


class KinographError(Exception):
    """Base of every error raised on purpose; `exit_code` is what the command line returns."""

    exit_code = 1


class UsageError(KinographError):
    """The command line or the API was used wrongly: an unknown option, solver, device or variant."""

    exit_code = 2


class MissingExtraError(UsageError):
    """An optional dependency is missing; the message names the pip command that installs it."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs packages that are not installed. Run: pip install 'kinograph[{extra}]'")


class RequestError(KinographError):
    """A request the model cannot do; the message names the nearest one it can."""

    exit_code = 3


class BundleError(KinographError):
    """A bundle or checkpoint is missing, altered, malformed or made by another format version."""

    exit_code = 4


class EngineError(KinographError):
    """A backend, a device or an engine is missing or failed."""

    exit_code = 5


class MemoryLimitError(KinographError):
    """The request needs more memory than there is."""

    exit_code = 6


class OutputError(KinographError):
    """The result could not be written: disk full, no permission, or a file is in the way."""

    exit_code = 7


class NumericError(KinographError):
    """NaN or Inf appeared while denoising; the message names the step."""

    exit_code = 8


class Interrupted(KinographError):  # noqa: N818 - what happened to the run, not a fault
    """The run was cancelled; nothing was left under the final name."""

    exit_code = 130
