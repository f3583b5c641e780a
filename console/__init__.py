"""What a command shows while it works: progress on stderr, and text from outside made safe for a terminal."""

from __future__ import annotations

import contextlib
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from kinograph.errors import escape

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["Console", "Stage", "json_text", "peak_bytes"]

_EVERY = 0.1  # seconds from one line about a stage to the next


def json_text(value: object) -> str:
    """`value` as indented JSON in ASCII, which every terminal, pipe and locale carries."""
    return json.dumps(value, indent=2, allow_nan=False)


class Stage(NamedTuple):
    """A finished part of the work: wall-clock seconds, and the process's highest memory use so far in bytes.

    `expected_bytes` is what models were expected to take of it, 0 where that was not told.
    """

    name: str
    seconds: float
    peak_bytes: int
    expected_bytes: int = 0


class _Running(NamedTuple):
    """The stage that runs, and since when."""

    name: str
    unit: str
    start: float
    expected_bytes: int


class Console:
    """Progress of one command on stderr, of a kind: a `bar` for every stage where that is a terminal, `json`, or None.

    With `json` it is an object a line: `stage` with `done`, `total` (null while that is unknown) and `unit`, as a stage
    begins and then up to ten times a second, and with `seconds` and `peak_bytes` as it ends; `tell` takes such objects
    in place of stderr. Stages are timed whichever kind it is. A context manager; the display ends with it. Colour
    follows NO_COLOR.
    """

    def __init__(self, progress: str | None = "bar", tell: Callable[[dict[str, Any]], None] | None = None) -> None:
        self.stages: list[Stage] = []
        self._progress = progress
        self._tell = tell if tell or progress != "json" else _tell_on_stderr
        self._told = 0.0
        self._display: Progress | None = None
        self._task: TaskID | None = None
        self._current: _Running | None = None

    def __enter__(self) -> Self:
        if self._progress == "bar" and sys.stderr.isatty():
            self._display = _display()
            self._display.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.end_stage()
        if self._display is not None:
            self._display.stop()
            self._display = None

    def start_stage(self, name: str, total: float | None = None, unit: str = "", *, expected_bytes: int = 0) -> None:
        """End the running stage and begin `name`; `total` is None while it is unknown."""
        self.end_stage()
        self._current = _Running(name, unit, time.perf_counter(), expected_bytes)
        if self._tell is not None:
            self._tell({"stage": name, "done": 0, "total": total, "unit": unit})
        if self._display is not None:
            self._task = self._display.add_task(name, total=total, unit=unit)

    def update(self, done: float, total: float | None = None) -> None:
        """Say how far the running stage is. May be called from any thread."""
        stage, now = self._current, time.perf_counter()
        if self._tell is not None and stage is not None and (now - self._told >= _EVERY or done == total):
            self._told = now
            self._tell({"stage": stage.name, "done": done, "total": total, "unit": stage.unit})
        if self._display is not None and self._task is not None:
            self._display.update(self._task, completed=done, total=total)

    def staged(self, stage: str, done: int, total: int) -> None:
        """Say how far `stage` is, which begins where another one was running."""
        if self._current is None or self._current.name != stage:
            self.start_stage(stage, total)
        self.update(done, total)

    def start_bytes(self, name: str) -> Callable[[int, int], None]:
        """Begin stage `name`, and return what is told how many bytes are done, of how many."""
        self.start_stage(name, unit="MB")
        return lambda done, total: self.update(done / 1e6, total / 1e6)

    def end_stage(self) -> None:
        """End the running stage, if there is one."""
        if self._current is None:
            return
        name, _, start, expected = self._current
        ended = Stage(name, time.perf_counter() - start, peak_bytes(), expected)
        self.stages.append(ended)
        self._current = None
        if self._tell is not None:
            self._tell({"stage": name, "seconds": ended.seconds, "peak_bytes": ended.peak_bytes})
        if self._display is not None and self._task is not None:
            task = next(task for task in self._display.tasks if task.id == self._task)
            total = task.total if task.total is not None else max(task.completed, 1)
            self._display.update(self._task, total=total, completed=total)
            self._task = None

    def warn(self, text: str) -> None:
        """Show a warning on stderr, also when quiet."""
        line = f"warning: {escape(text)}"
        if self._display is not None:
            self._display.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, file=sys.stderr)


def _tell_on_stderr(what: dict[str, Any]) -> None:
    """A line for programs, written at once and in one piece."""
    with contextlib.suppress(BrokenPipeError):  # who no longer reads of it may still want the video
        sys.stderr.write(json.dumps(what, allow_nan=False) + "\n")
        sys.stderr.flush()


def peak_bytes() -> int:
    """The highest resident memory of this process so far."""
    with contextlib.suppress(OSError):  # Linux; what `getrusage` says there is also of the process that started this
        for line in Path("/proc/self/status").read_text("utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10  # elsewhere in KiB


def _display() -> Progress:
    from rich.console import Console as RichConsole
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
    from rich.progress import TimeRemainingColumn as Remaining
    from rich.text import Text

    class Count(ProgressColumn):
        """How much is done, of how much where that is known."""

        def render(self, task: Task) -> Text:
            unit = task.fields["unit"]
            if not unit or (task.finished and task.total == 1):
                return Text("")
            total = "" if task.total is None else f"/{task.total:.0f}"
            return Text(f"{task.completed:.0f}{total} {unit}")

    class Left(Remaining):
        """The time that remains, while some does."""

        def render(self, task: Task) -> Text:
            left = super().render(task)
            return Text("") if task.finished or task.total is None else Text.assemble("left ", left)

    columns = [TextColumn("{task.description:<16}"), BarColumn(bar_width=30), Count(), TimeElapsedColumn(), Left()]
    return Progress(*columns, console=RichConsole(stderr=True))
