"""What the options of `kinograph generate` say of pictures, films and prompts that are given."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kinograph.errors import UsageError, escape
from kinograph.runtime.request import Cue, Still

__all__ = ["films_given", "read_cues", "read_still"]

_STILL = re.compile(r"(?P<path>.+)@(?P<frame>-?[0-9]{1,9})", re.DOTALL)
_CUE = re.compile(r"(?:(?P<minutes>[0-9]{1,4}):)?(?P<seconds>[0-9]{1,6}(?:\.[0-9]{1,6})?)\s+(?P<prompt>\S.*)")
_MAX_BYTES = 1 << 20


def read_still(option: str) -> Still:
    """`FILE` or `FILE@FRAME`; a file of that very name comes first."""
    match = _STILL.fullmatch(option)
    if match is None or Path(option).exists():
        return Still(option)
    return Still(match["path"], int(match["frame"]))


def films_given(options: Mapping[str, Any]) -> dict[str, str | None]:
    """The request's `before` and `after`, from --extend, --extend-backward and --join."""
    extend, backward, join = options["extend"], options["extend_backward"], options["join"]
    if join and (extend or backward):
        raise UsageError("--join says which films the video is between, and so does --extend. Give one of them")
    before, after = join or (extend, backward)
    return {"before": before, "after": after}


def read_cues(path: str | None) -> tuple[Cue, ...]:
    """The lines of a file of prompts, each after its time: `5 a cat`, `0:05.5 a cat`. Raises UsageError."""
    if path is None:
        return ()
    try:
        file = Path(path)
        if file.stat().st_size > _MAX_BYTES:
            raise UsageError(f"--prompts {escape(path)} has more than {_MAX_BYTES >> 20} MB, too many for prompts")
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"--prompts {escape(path)} cannot be read as UTF-8 text: {exc}") from exc
    cues = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        match = _CUE.fullmatch(line.strip())
        if match is None:
            raise UsageError(
                f"--prompts {escape(path)}, line {number}: expected a time and a prompt, such as `0:05 a cat sleeps`"
            )
        cues.append(Cue(60 * int(match["minutes"] or 0) + float(match["seconds"]), match["prompt"]))
    return tuple(cues)
