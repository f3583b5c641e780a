"""The work behind `kinograph bench`: one video by every variant and speed level in turn, in seconds and memory.

Every one of them is a process of its own, so that its peak of memory is its own, too. It opens the bundle and makes a
video that is not counted. Then each makes one whenever it is its turn: what else the machine does hits all alike.
"""

from __future__ import annotations

import multiprocessing
import platform
import signal
import statistics
import time
import warnings
from collections.abc import Sequence
from contextlib import ExitStack, closing
from itertools import pairwise
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import msgspec
from rich import box
from rich.table import Table
from rich.text import Text

import kinograph
from kinograph.bundle import Bundle
from kinograph.console import Console, peak_bytes
from kinograph.console.doctor import cpus, installed_version
from kinograph.console.inspect import rendered
from kinograph.errors import EngineError, KinographError, MemoryLimitError, UsageError, escape
from kinograph.runtime.locate import open_bundle
from kinograph.runtime.request import Request, resolve

__all__ = ["BenchJob", "bench", "bench_text"]

_PROMPT = "a large red ball moves left on a plain navy background, flat style"  # any takes as long
_PACKAGES = ("kinograph", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx")


class BenchJob(NamedTuple):
    """What one `bench` is to do: `runs` videos by each variant, with every step and at each speed level.

    Without `variants` it is those of the bundle's transformer. `request` is without prompt and speed.
    """

    bundle: str | None
    device: str
    variants: Sequence[str]
    speeds: Sequence[str]
    request: Request
    runs: int


class _Side(NamedTuple):
    variant: str
    speed: str | None

    @property
    def name(self) -> str:
        return self.variant if self.speed is None else f"{self.variant}, {self.speed}"


class _Opened(NamedTuple):
    """A side can begin: what computes it, and seconds from nothing to the first video, engines built on the way."""

    backend: str
    variant: dict[str, str]
    seconds: float


class _Timed(NamedTuple):
    """A video's seconds by stage, those until its first frame, and the process's highest memory so far, in bytes."""

    stages: dict[str, float]
    first_frame: float
    peak: int


class _Process:
    """A side, in a process of its own, from which every answer is awaited."""

    def __init__(self, job: BenchJob, side: _Side) -> None:
        context = multiprocessing.get_context("spawn")
        self.side = side
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, job, side), daemon=True)
        resource_tracker.ensure_running()  # `start` would do it, and let signals through again
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited: a terminal's Ctrl-C is ours alone
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        theirs.close()

    def answer(self) -> Any:
        """What it says next. Raises the KinographError that it met, or EngineError where it ended without a word."""
        try:
            said = self._connection.recv()
        except (EOFError, ConnectionError) as exc:
            self._process.join()
            raise EngineError(
                f"the process of {self.side.name} ended with {self._process.exitcode}, which is -9 where memory ran "
                "out. Measure fewer variants at a time"
            ) from exc
        if isinstance(said, KinographError):
            raise said
        return said

    def video(self) -> _Timed:
        """Have it make one."""
        self._connection.send(None)
        timed: _Timed = self.answer()
        return timed

    def close(self) -> None:
        """End it, whatever it does: it has nothing to lose."""
        self._connection.close()
        self._process.kill()
        self._process.join()


def bench(job: BenchJob, console: Console) -> dict[str, Any]:
    """Measure; returns the report that `--json` prints. A side that cannot be measured has its `error` there.

    Raises the first such error where no side can, and whatever the bundle or the request is refused for.
    """
    with open_bundle(job.bundle, console.start_bytes("load")) as bundle:
        sides, report = _sides(bundle, job), _about(bundle, job)
    errors: dict[_Side, KinographError] = {}
    with ExitStack() as stack:
        console.start_stage("open", len(sides), "variants")
        opened: dict[_Side, _Opened] = {}
        running: dict[_Side, _Process] = {}
        for number, side in enumerate(sides, 1):
            process = _Process(job, side)
            stack.callback(process.close)
            try:
                opened[side] = process.answer()
                running[side] = process
            except KinographError as exc:
                errors[side] = exc
            console.update(number, len(sides))
        videos: dict[_Side, list[_Timed]] = {side: [] for side in running}
        console.start_stage("measure", job.runs * len(running), "videos")
        for index in range(job.runs * len(videos)):
            side = list(videos)[index % len(videos)]
            if side not in errors:
                try:
                    videos[side].append(running[side].video())
                except KinographError as exc:
                    errors[side] = exc
            console.update(index + 1, job.runs * len(videos))
    if len(errors) == len(sides):
        raise errors[sides[0]]
    report["sides"] = [
        {"variant": side.variant, "speed": side.speed}
        | ({"error": str(errors[side])} if side in errors else _figures(opened[side], videos[side]))
        for side in sides
    ]
    return report


def _sides(bundle: Bundle, job: BenchJob) -> list[_Side]:
    """What is measured, in order. Raises UsageError for a variant or level that the bundle has not."""
    manifest = bundle.manifest
    own = dict.fromkeys(name for expert in manifest.experts for name in manifest.components[expert.component].variants)
    every = {name for component in manifest.components.values() for name in component.variants}
    for option, asked, known in (("variant", job.variants, every), ("speed", job.speeds, manifest.speeds)):
        if unknown := [name for name in asked if name not in known]:
            there = ", ".join(sorted(known)) or "none"
            raise UsageError(f"{manifest.name} has no {option} {unknown[0]!r}; it has: {there}. Use --{option}")
    levels: list[str | None] = [None, *dict.fromkeys(job.speeds)]
    return [_Side(variant, speed) for variant in dict.fromkeys(job.variants or own) for speed in levels]


def _about(bundle: Bundle, job: BenchJob) -> dict[str, Any]:
    """What is made, and of which bundle. Raises RequestError where the model cannot make it."""
    request = resolve(_request(job, None), bundle.manifest)
    fields = ("width", "height", "num_frames", "num_inference_steps")
    return {
        "bundle": bundle.manifest.name,
        "bundle_sha256": bundle.digest,
        **{name: getattr(request, name) for name in fields},
        "runs": job.runs,
    }


def _request(job: BenchJob, speed: str | None) -> Request:
    return msgspec.structs.replace(job.request, prompt=_PROMPT, speed=speed)


def _figures(opened: _Opened, videos: Sequence[_Timed]) -> dict[str, Any]:
    """Medians in seconds; of memory the most."""
    stages = {name: statistics.median(video.stages[name] for video in videos) for name in videos[0].stages}
    return {
        "backend": opened.backend,
        "components": opened.variant,
        "open_seconds": opened.seconds,
        "stage_seconds": stages,
        "seconds": statistics.median(sum(video.stages.values()) for video in videos),
        "first_frame_seconds": statistics.median(video.first_frame for video in videos),
        "peak_bytes": max(video.peak for video in videos),
    }


# In a side's process


def _serve(connection: Connection, job: BenchJob, side: _Side) -> None:
    """Answer with how it was opened, and then, whenever something comes, with a video's figures."""
    warnings.simplefilter("ignore")  # the report says what computes
    try:
        begun = time.perf_counter()
        with kinograph.load(job.bundle, device=job.device, variant=side.variant) as pipe:
            request = pipe.resolve(_request(job, side.speed))
            _timed(pipe, request)
            connection.send(_Opened(pipe.backend, dict(pipe.variant), time.perf_counter() - begun))
            while True:
                connection.recv()
                connection.send(_timed(pipe, request))
    except KinographError as exc:
        connection.send(exc)
    except MemoryError:
        connection.send(MemoryLimitError("out of memory. Use a smaller --size or fewer --frames"))
    except (EOFError, ConnectionError):
        return  # nobody asks any more


def _timed(pipe: kinograph.Pipeline, request: Request) -> _Timed:
    """Make a video, and throw it away, with all that would be kept of it for the next one."""
    pipe.prompts.clear()
    begun = time.perf_counter()
    marks, first = [("", begun)], 0.0
    with closing(pipe.run(request)) as events:
        for event in events:
            if isinstance(event, kinograph.StageStarted):
                marks.append((event.name, time.perf_counter()))
            elif isinstance(event, kinograph.FramesDecoded) and not first:
                first = time.perf_counter() - begun
    marks.append(("", time.perf_counter()))
    stages: dict[str, float] = {}
    for (name, start), (_, end) in pairwise(marks):
        stages[name or marks[1][0]] = stages.get(name, 0.0) + end - start  # what comes before the first is its own
    return _Timed(stages, first, peak_bytes())


# For people


def bench_text(report: dict[str, Any]) -> str:
    """The report as a table, and what it was measured with."""
    measured = [side for side in report["sides"] if "error" not in side]
    stages = list(dict.fromkeys(name for side in measured for name in side["stage_seconds"]))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("variant")
    for title in (*stages, "video", "speed", "first frame", "peak", "open"):
        table.add_column(title, justify="right")
    for side in measured:
        seconds = [*(side["stage_seconds"].get(name, 0.0) for name in stages), side["seconds"]]
        table.add_row(
            Text(_named(side)),
            *(f"{one:.3f} s" for one in seconds),
            f"{measured[0]['seconds'] / side['seconds']:.2f}×",
            f"{side['first_frame_seconds']:.3f} s",
            f"{side['peak_bytes'] / 1e6:.0f} MB",
            f"{side['open_seconds']:.1f} s",
        )
    videos = "1 video" if report["runs"] == 1 else f"{report['runs']} videos"
    steps = "1 step" if report["num_inference_steps"] == 1 else f"{report['num_inference_steps']} steps"
    backends = ", ".join(dict.fromkeys(side["backend"] for side in measured))
    packages = ", ".join(f"{name} {version}" for name in _PACKAGES if (version := installed_version(name)))
    lines = [
        f"{escape(report['bundle'])}: {report['width']}×{report['height']}, {report['num_frames']} frames, "
        f"{steps}; medians of {videos} each, made in turn, no file written",
        f"{backends}; {packages}; {platform.system()} {platform.machine()}, {cpus()} CPUs",
        rendered(table),
    ]
    return "\n".join(
        lines + [f"{_named(side)}: {escape(side['error'])}" for side in report["sides"] if "error" in side]
    )


def _named(side: dict[str, Any]) -> str:
    return _Side(side["variant"], side["speed"]).name
