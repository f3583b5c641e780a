"""The work behind `kinograph batch`: the lines of a file, one video after the other, by one pipeline."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

import kinograph
from kinograph.console import Console
from kinograph.console.generate import Job, check_job, make_video
from kinograph.errors import BundleError, EngineError, Interrupted, KinographError, UsageError, escape
from kinograph.runtime.pipeline import Pipeline
from kinograph.runtime.request import Request

__all__ = ["BatchJob", "batch"]

_MAX_BYTES = 64 << 20
_ENDS_ALL = (BundleError, EngineError, Interrupted)  # no other line would fare better


class BatchJob(NamedTuple):
    """What one `batch` is to do: the requests of `file`, by the bundle as it is `opened`, into `folder`."""

    file: str
    bundle: str | None
    folder: str
    opened: Mapping[str, Any]
    keep_metadata: bool
    force: bool


class _Line(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request, the file that it becomes, and what else of a file `generate` takes."""

    output: str | None = None
    seconds: float | None = None
    audio: str | None = None
    title: str | None = None
    captions: str | None = None


class _Wanted(NamedTuple):
    number: int
    job: Job


def batch(job: BatchJob, console: Console) -> Iterator[dict[str, Any]]:
    """A report for every line, in order: that of its video, or its `error` and `code`; what is there has neither.

    Raises UsageError where a line is no request, before anything is made.
    """
    wanted = list(_wanted(job))
    with kinograph.load(job.bundle, **job.opened, progress=console.start_bytes("load")) as pipe:
        console.end_stage()
        for number, one in wanted:
            yield {"line": number} | _made(one, pipe, console)


def _made(job: Job, pipe: Pipeline, console: Console) -> dict[str, Any]:
    console.stages.clear()
    if os.path.exists(job.output) and not job.force:  # noqa: PTH110 - as the user named it
        return {"output": os.path.abspath(job.output)}  # noqa: PTH100
    try:
        report, _ = make_video(job, pipe, check_job(job), console)
    except _ENDS_ALL:
        raise
    except KinographError as exc:
        return {"output": os.path.abspath(job.output), "error": str(exc), "code": exc.exit_code}  # noqa: PTH100
    return report


def _wanted(job: BatchJob) -> Iterator[_Wanted]:
    """The lines of the file. Raises UsageError, which names the line, where one is no request or two make one file."""
    taken: dict[str, int] = {}
    for number, text in enumerate(_lines(job.file), 1):
        if not text.strip():
            continue
        where = f"{escape(job.file)}, line {number}"
        try:
            line = msgspec.json.decode(text, type=_Line)
        except msgspec.MsgspecError as exc:
            raise UsageError(f"{where}: {exc}. Expected the fields of kinograph.Request, and output") from exc
        output = os.path.join(job.folder, line.output or f"{number:04}.mp4")  # noqa: PTH118 - keeps a slash at its end
        if output in taken:
            raise UsageError(f"{where}: {escape(output)} is what line {taken[output]} makes. Give each its own output")
        taken[output] = number
        yield _Wanted(number, _job(job, line, output))


def _lines(path: str) -> list[str]:
    try:
        file = Path(path)
        if file.stat().st_size > _MAX_BYTES:
            raise UsageError(f"{escape(path)} has more than {_MAX_BYTES >> 20} MB, too many for requests. Split it")
        return file.read_text("utf-8").splitlines()
    except (OSError, ValueError) as exc:
        raise UsageError(
            f"{escape(path)} cannot be read as UTF-8 text: {exc}. Give a file with a request a line"
        ) from exc


def _job(job: BatchJob, line: _Line, output: str) -> Job:
    request = Request(**{name: getattr(line, name) for name in Request.__struct_fields__})
    return Job(
        request=request,
        videos=1,
        bundle=job.bundle,
        opened=job.opened,
        seconds=line.seconds,
        output=output,
        codec=None,
        sheet=None,
        latents=None,
        resume=False,
        force=job.force,
        fail_on_blank=False,
        preview=None,
        audio=line.audio,
        title=line.title,
        captions=line.captions,
        font=None,
        keep_metadata=job.keep_metadata,
    )
