"""How a refused bundle is worded: every problem found, in text that is safe to show on a terminal."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import islice

from kinograph.errors import BundleError, escape

__all__ = ["MAX_PROBLEMS", "printable", "refusal"]

MAX_PROBLEMS = 50
"""Looking for more problems stops here: a hostile bundle may have millions."""

_MAX_TEXT = 200  # characters; a name or value out of a hostile file may be megabytes
_RECOPY = "Copy the bundle again from its source, or export it again."


def printable(text: object) -> str:
    """`text` with control, bidirectional and undecodable characters as `\\x1b`-style escapes, cut to a sane length.

    Text from a bundle goes through here before it reaches a message, so that no file name can move the cursor or
    recolour the terminal.
    """
    raw = str(text)
    shown = escape(raw[:_MAX_TEXT]).replace("\n", "\\n")
    return shown if len(raw) <= _MAX_TEXT else f"{shown}… ({len(raw)} characters)"


def refusal(path: str | os.PathLike[str], problems: Iterable[str], advice: str = _RECOPY) -> BundleError:
    """The error for a bundle with these problems, one to a line where there are several."""
    found = list(islice(problems, MAX_PROBLEMS + 1))
    bundle = printable(os.fspath(path))
    if len(found) == 1:
        return BundleError(f"bundle {bundle} was refused: {found[0]}. {advice}")
    lines = [f"  - {problem}" for problem in found[:MAX_PROBLEMS]]
    if len(found) > MAX_PROBLEMS:
        lines.append("  - … and more")
    return BundleError("\n".join([f"bundle {bundle} was refused:", *lines, advice]))
