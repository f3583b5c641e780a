"""What happens in a run, as the stages of a console."""

from __future__ import annotations

from kinograph import FramesDecoded, StageStarted, StepDone
from kinograph.console import Console
from kinograph.runtime.events import Event

__all__ = ["Progress"]

_UNITS = {"denoise": "steps", "decode": "frames", "film": "s of film"}


class Progress:
    """Tells a console how far a run is whose video has `fps` frames a second."""

    def __init__(self, console: Console, fps: float) -> None:
        self._console, self._fps, self._stage = console, fps, ""

    def see(self, event: Event) -> None:
        """Something has happened."""
        if isinstance(event, StageStarted):
            self._stage = event.name
            name, unit = f"{event.name} {event.detail}".strip(), _UNITS.get(event.name, "")
            self._console.start_stage(name, None, unit, expected_bytes=event.expected_bytes)
        elif isinstance(event, StepDone) and self._stage == "denoise":
            self._console.update(event.index + 1, event.total)
        elif isinstance(event, FramesDecoded):
            scale = 1 / self._fps if self._stage == "film" else 1
            self._console.update((event.index + len(event.frames)) * scale, event.total * scale)
