"""The work behind `kinograph serve`: videos for the program at the other end of standard input and output.

Both ways go lines of JSON, each an object with a `type`; one with `bytes` is followed by as many of them. What is said
and answered is in docs/serve.md.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from importlib.metadata import version
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import av
import msgspec
import numpy as np
import numpy.typing as npt

import kinograph
from kinograph.console import Console
from kinograph.console.attached import Attachment, attached, write_attachment
from kinograph.console.progress import Progress
from kinograph.console.report import video_report
from kinograph.errors import Interrupted, KinographError, MemoryLimitError, OutputError, RequestError, UsageError
from kinograph.runtime.request import Request
from kinograph.runtime.video import VideoWriter, check_output

__all__ = ["PROTOCOL", "serve"]

PROTOCOL = 1
"""Of what is said both ways. It changes with whatever an older program would misread."""

Pixels = npt.NDArray[np.uint8]

_MAX_LINE = 1 << 22  # bytes; room for a film's worth of prompts
_CHUNK = 1 << 20
_MEMORY = "(in memory)"  # what stands for a file that was handed over


class _Generate(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="generate"):
    """Make a video of `request`. Its `attachments` follow the line, one after the other."""

    request: msgspec.Raw
    attachments: tuple[Attachment, ...] = ()
    frames: bool = True
    previews: bool = False
    output: str | None = None
    force: bool = False


class _Cancel(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="cancel"):
    """End what was asked for before this."""


_Asked = msgspec.json.Decoder(_Generate | _Cancel)


class _Host:
    """The program that is served. `say` may be called from any thread."""

    def __init__(self, incoming: int, outgoing: int) -> None:
        self._incoming, self._outgoing = incoming, outgoing
        self._read = bytearray()
        self._lock = threading.Lock()

    def line(self) -> bytes:
        """The next line, without its end. Raises EOFError after the last, UsageError where it is too long."""
        searched = 0
        while (end := self._read.find(b"\n", searched)) < 0:
            searched = len(self._read)
            if searched > _MAX_LINE:
                raise UsageError(f"a line of more than {_MAX_LINE} bytes was sent. Send pictures after the line")
            self._more()
        line = bytes(self._read[:end])
        del self._read[: end + 1]
        return line

    def take(self, count: int) -> bytearray:
        """The next `count` bytes. Raises EOFError."""
        while len(self._read) < count:
            self._more()
        taken = self._read[:count]
        del self._read[:count]
        return taken

    def _more(self) -> None:
        part = os.read(self._incoming, _CHUNK)
        if not part:
            raise EOFError
        self._read += part

    def say(self, kind: str, pixels: Pixels | None = None, **fields: Any) -> None:
        """A message, with the bytes of uint8 [T, H, W, 3] `pixels`. Raises ConnectionError where nobody reads."""
        message = {"type": kind, **fields}
        if pixels is not None:
            count, height, width, _ = pixels.shape
            message |= {"count": count, "width": width, "height": height, "bytes": pixels.nbytes}
        with self._lock:
            self._write(memoryview(msgspec.json.encode(message) + b"\n"))
            if pixels is not None:
                self._write(np.ascontiguousarray(pixels).data.cast("B"))

    def _write(self, data: memoryview) -> None:
        while data:
            data = data[os.write(self._outgoing, data) :]


class _Job:
    """A video that was asked for, and the folder where the files lie that were handed over for it."""

    def __init__(self, asked: _Generate) -> None:
        self.asked = asked
        self.cancelled = False
        self.folder = Path(tempfile.mkdtemp(prefix="kinograph-"))
        self._files: list[tuple[Attachment, str]] = []
        self._error: KinographError | None = None
        self._request = Request(prompt="")
        try:
            self._request = msgspec.json.decode(asked.request, type=Request)
        except msgspec.MsgspecError as exc:
            self._error = RequestError(f"the request cannot be read: {exc}. Its fields are those of kinograph.Request")

    def receive(self, host: _Host, default_fps: float) -> None:
        """Take the attachments, whatever becomes of them. Raises EOFError."""
        for number, what in enumerate(self.asked.attachments):
            frames = _frames(host, what)
            try:
                path = write_attachment(self.folder, number, what, frames, self._request.fps or default_fps)
                self._files.append((what, str(path)))
            except (OSError, ValueError, av.error.FFmpegError) as exc:
                self._error = self._error or OutputError(
                    f"what was handed over for {what.field} cannot be kept in {self.folder.parent}: {exc}. "
                    "Make room there, or set TMPDIR"
                )
            for _ in frames:  # what was not taken
                pass

    def request(self) -> Request:
        """What is asked for, with the files in it. Raises RequestError or OutputError."""
        if self._error is not None:
            raise self._error
        return attached(self._request, self._files)

    def told(self, resolved: Request) -> Request:
        """A resolved request as it is told of: without the names of our own files."""
        plain = msgspec.structs.replace(resolved, images=self._request.images)
        return attached(plain, [(what, _MEMORY) for what, _ in self._files])

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _frames(host: _Host, what: Attachment) -> Iterator[Pixels]:
    for _ in range(what.frames):
        pixels = host.take(what.height * what.width * 3)
        yield np.frombuffer(pixels, np.uint8).reshape(what.height, what.width, 3)


class _Desk:
    """Where what the host asks for waits until it is its turn. A thread takes it in."""

    def __init__(self, host: _Host, pipe: kinograph.Pipeline) -> None:
        self._host, self._pipe = host, pipe
        self._unfinished: list[_Job] = []
        self._waiting: SimpleQueue[_Job | KinographError | None] = SimpleQueue()
        threading.Thread(target=self._listen, name="kinograph-serve", daemon=True).start()

    def jobs(self) -> Iterator[_Job]:
        """One after the other, until the host has no more. Raises UsageError for what cannot be read."""
        while (job := self._waiting.get()) is not None:
            if isinstance(job, KinographError):
                raise job
            try:
                yield job
            finally:
                self._unfinished.remove(job)
                job.close()

    def _listen(self) -> None:
        fps = self._pipe.bundle.manifest.defaults.fps
        last: KinographError | None = None
        try:
            while True:
                asked = _Asked.decode(self._host.line())
                if isinstance(asked, _Generate):
                    job = _Job(asked)
                    self._unfinished.append(job)
                    job.receive(self._host, fps)
                    self._waiting.put(job)
                else:
                    self._cancel()
        except (EOFError, ConnectionError):
            pass
        except msgspec.MsgspecError as exc:
            last = UsageError(f"what was sent is no message: {exc}. docs/serve.md says what is")
        except KinographError as exc:
            last = exc
        except OSError as exc:
            last = OutputError(f"there is no place for what is handed over: {exc}. Set TMPDIR to one")
        except Exception as exc:  # who waits for a job would wait for ever
            last = _internal(exc)
        if last is None:  # the host has gone, and nobody waits for anything
            self._cancel()
        self._waiting.put(last)

    def _cancel(self) -> None:
        jobs = list(self._unfinished)
        for job in jobs:
            job.cancelled = True
        if jobs:
            self._pipe.cancel()

    def close(self) -> None:
        """Nothing that was handed over stays."""
        for job in list(self._unfinished):
            job.close()


def serve(bundle: str | None, opened: Mapping[str, Any]) -> int:
    """Open a bundle as `kinograph.load` does, and make what the host asks for, until it has no more.

    Standard output is the host's: what anything else writes there goes to standard error. The host is told of what
    opening raises, and of what is no message; returns the exit code of that, or 0.
    """
    host = _Host(os.dup(0), os.dup(1))
    os.dup2(2, 1)
    warnings.showwarning = lambda message, *_, **__: host.say("warning", message=str(message))
    try:
        try:
            with _console(host) as console:
                pipe = kinograph.load(bundle, **opened, progress=console.start_bytes("load"))
            with pipe:
                host.say("ready", **_about(pipe))
                with closing(_Desk(host, pipe)) as desk:
                    for job in desk.jobs():
                        _answer(job, pipe, host)
        except KinographError as exc:
            host.say("error", code=exc.exit_code, message=str(exc))
            return exc.exit_code
    except ConnectionError:
        pass  # nobody reads any more
    return 0


def _about(pipe: kinograph.Pipeline) -> dict[str, Any]:
    manifest = pipe.bundle.manifest
    return {
        "protocol": PROTOCOL,
        "kinograph": version("kinograph"),
        "bundle": manifest.name,
        "bundle_sha256": pipe.bundle.digest,
        "loras": msgspec.to_builtins(manifest.source.loras),
        "backend": pipe.backend,
        "variant": dict(pipe.variant),
        "defaults": msgspec.to_builtins(manifest.defaults),
        "speeds": list(manifest.speeds),
        "image_required": manifest.conditioning.image_required,
    }


def _answer(job: _Job, pipe: kinograph.Pipeline, host: _Host) -> None:
    """Make a video; the last that the host is told is `done` or `error`."""
    try:
        report = _make(job, pipe, host)
    except KinographError as exc:
        host.say("error", code=exc.exit_code, message=str(exc))
    except MemoryError:
        said = "out of memory. Use a smaller size, fewer frames or a smaller variant"
        host.say("error", code=MemoryLimitError.exit_code, message=said)
    except ConnectionError:
        raise
    except Exception as exc:
        host.say("error", code=KinographError.exit_code, message=str(_internal(exc)))
    else:
        host.say("done", **report)


def _internal(exc: Exception) -> KinographError:
    """What is told of a fault of our own."""
    if os.environ.get("KINOGRAPH_DEBUG") == "1":
        traceback.print_exc()
    return KinographError(f"internal error: {type(exc).__name__}: {exc}. Set KINOGRAPH_DEBUG=1 for the traceback")


def _make(job: _Job, pipe: kinograph.Pipeline, host: _Host) -> dict[str, Any]:
    asked = job.asked
    if asked.output is not None:
        check_output(asked.output, asked.force)
    request = pipe.resolve(job.request())
    told = job.told(request)
    shown = 0
    with ExitStack() as stack:
        console = stack.enter_context(_console(host))
        writer = stack.enter_context(_writer(asked, request, pipe.metadata(told))) if asked.output is not None else None
        progress = Progress(console, float(request.fps or 1))
        for event in stack.enter_context(closing(pipe.run(request))):
            if job.cancelled:
                raise Interrupted("cancelled")
            progress.see(event)
            if isinstance(event, kinograph.FramesDecoded):
                shown = event.index + len(event.frames)
                if writer is not None:
                    writer.write(event.frames)
                if asked.frames:
                    host.say("frames", event.frames, first=event.index, total=event.total)
            elif isinstance(event, kinograph.StepDone) and asked.previews and event.preview is not None:
                host.say("preview", event.preview(), step=event.index, steps=event.total)
    return video_report(pipe, told, shown)


def _console(host: _Host) -> Console:
    """Tells the host of every stage."""
    return Console(None, lambda what: host.say("stage", **what))


def _writer(asked: _Generate, request: Request, metadata: Mapping[str, str]) -> VideoWriter:
    return VideoWriter(
        str(asked.output),
        width=int(request.width or 0),
        height=int(request.height or 0),
        fps=float(request.fps or 0),
        metadata=metadata,
        force=asked.force,
    )
