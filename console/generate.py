"""The work behind `kinograph generate`: one request in; a video, its side-car and a report out."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

import kinograph
from kinograph.console.progress import Progress
from kinograph.console.report import video_report
from kinograph.errors import NumericError, OutputError, RequestError, UsageError
from kinograph.runtime.audio import check_audio
from kinograph.runtime.captions import Captions, read_captions, title
from kinograph.runtime.clip import Clip
from kinograph.runtime.image import contact_sheet, png_bytes, read_image, sheet_indices
from kinograph.runtime.latents import LatentsFile
from kinograph.runtime.output import check_target, is_folder, write_file
from kinograph.runtime.preview import preview_sheet
from kinograph.runtime.text import check_prompt
from kinograph.runtime.video import VideoWriter, check_codec, check_output

if TYPE_CHECKING:
    from kinograph.console import Console
    from kinograph.runtime.pipeline import Pipeline
from kinograph.runtime.request import Request

__all__ = ["Job", "check_job", "generate", "make_video"]

_Value = TypeVar("_Value")

_SHEET_COLUMNS = 8
_PREVIEW_STEPS = 4
_BLANK_SPREAD = 2  # 8-bit levels; float noise around one colour rounds to no more


class Job(NamedTuple):
    """What one `generate` is to do: `videos` of them, with consecutive seeds.

    `opened` is how, the arguments of `kinograph.load`; `seconds` is the time from the first frame to the last, in place
    of num_frames.
    """

    request: Request
    videos: int
    bundle: str | None
    opened: Mapping[str, Any]
    seconds: float | None
    output: str
    codec: str | None
    sheet: str | None
    latents: str | None
    resume: bool
    force: bool
    fail_on_blank: bool
    preview: str | None
    audio: str | None
    title: str | None
    captions: str | None
    font: str | None
    keep_metadata: bool


def generate(job: Job, console: Console) -> list[dict[str, Any]]:
    """Make the videos and all that lies beside them; returns for each the report that the side-car holds.

    Whatever can be refused without the bundle is refused before it is opened. Raises any KinographError.
    """
    jobs = _of_each_seed(job)
    sidecars = [check_job(one) for one in jobs]
    reports, rows = [], []
    with kinograph.load(job.bundle, **job.opened, progress=console.start_bytes("load")) as pipe:
        for one, sidecar in zip(jobs, sidecars, strict=True):
            report, frames = make_video(one, pipe, sidecar, console)
            reports.append(report)
            rows.append(frames)
    if job.sheet is not None:
        sheet = contact_sheet(np.concatenate(rows), len(rows[0]), len(rows))
        write_file(job.sheet, png_bytes(sheet), force=job.force)
    return reports


def _of_each_seed(job: Job) -> list[Job]:
    """The job for every video, with consecutive seeds, which their files are numbered by where they are several."""
    if job.videos == 1:
        return [job]
    if job.latents is not None:
        raise UsageError("--latents keeps those of one video. Leave it out, or -k")
    jobs = []
    for seed in range(job.request.seed, job.request.seed + job.videos):
        stem, ending = os.path.splitext(job.output.rstrip("/"))  # noqa: PTH122 - may end in a slash
        slash = "/" if job.output.endswith("/") else ""
        request = msgspec.structs.replace(job.request, seed=seed)
        jobs.append(job._replace(request=request, output=f"{stem}-{seed}{ending}{slash}"))
    return jobs


def check_job(job: Job) -> Path | None:
    """Refuse what no bundle could do, and places that cannot be written to; returns where the side-car goes."""
    _check_values(job)
    return _check_outputs(job)


def make_video(
    job: Job, pipe: Pipeline, sidecar: Path | None, console: Console
) -> tuple[dict[str, Any], npt.NDArray[np.uint8]]:
    """One video with its side-car; returns its report and the frames [n, H, W, 3] of a contact sheet."""
    request = pipe.resolve(_with_frames(job, pipe))
    metadata = pipe.metadata(request) if job.keep_metadata else {}
    kept = _latents_file(job, pipe, request)
    done = kept.resume() if kept and job.resume else None
    writer = VideoWriter(
        job.output,
        width=_known(request.width),
        height=_known(request.height),
        fps=_known(request.fps),
        codec=job.codec,
        metadata=metadata,
        audio=job.audio,
        force=job.force,
    )
    with writer:
        watched = _Watched()
        shown = None if job.preview is None else _Preview(job.preview, pipe.bundle.manifest.geometry.spatial)
        to = _Outlets(writer, _captions(job, request), watched, kept, shown)
        _run(pipe, request, done, to, console)
        if watched.blank and job.fail_on_blank:
            raise NumericError("every frame is the same single colour, so no video was written. Try another --seed")
        console.start_stage("write")
    if watched.blank:
        console.warn("every frame of the video is the same single colour. Try another prompt, --seed or more --steps")
    console.end_stage()
    report = {
        "output": os.path.abspath(job.output),  # noqa: PTH100 - as the user named it
        **video_report(pipe, request, watched.count),
        "blank": watched.blank,
        "stages": [stage._asdict() for stage in console.stages],
    }
    if sidecar is not None:
        text = json.dumps({**report, "metadata": metadata}, indent=2, ensure_ascii=False)
        write_file(sidecar, text.encode("utf-8", "backslashreplace") + b"\n", force=job.force)
    return report, watched.sheet()


class _Watched:
    """What is remembered of the frames that go by: those of the contact sheet, and whether all are one colour."""

    def __init__(self) -> None:
        self.count = 0
        self._kept: list[npt.NDArray[np.uint8]] = []
        self._low = np.full(3, 255, np.uint8)
        self._high = np.zeros(3, np.uint8)

    def see(self, frames: npt.NDArray[np.uint8], first: int, total: int) -> None:
        """Frames [T, H, W, 3] go by, the first of which is number `first` of `total`."""
        wanted = sheet_indices(total, _SHEET_COLUMNS)
        self.count = first + len(frames)
        self._low = np.minimum(self._low, frames.min(axis=(0, 1, 2)))
        self._high = np.maximum(self._high, frames.max(axis=(0, 1, 2)))
        self._kept += [frame.copy() for number, frame in enumerate(frames, first) if number in wanted]

    @property
    def blank(self) -> bool:
        return bool(np.all(self._high.astype(int) - self._low <= _BLANK_SPREAD))

    def sheet(self) -> npt.NDArray[np.uint8]:
        return np.stack(self._kept)


def _captions(job: Job, request: Request) -> Captions:
    """What is to be read in the video."""
    texts = [title(job.title)] if job.title else []
    texts += read_captions(job.captions) if job.captions is not None else []
    size = {"width": int(_known(request.width)), "height": int(_known(request.height))}
    return Captions(texts, **size, fps=_known(request.fps), font=job.font)


class _Preview:
    """A picture of what the video is going to look like, written anew every few steps."""

    def __init__(self, path: str, scale: int) -> None:
        self._path, self._scale, self._next = path, scale, 0

    def see(self, event: kinograph.StepDone) -> None:
        """A step has run."""
        if event.preview is None:
            raise UsageError("--preview: this bundle has no map from latents to colours. Export it again")
        if event.index >= self._next:
            sheet = preview_sheet(event.preview(), self._scale)
            write_file(self._path, png_bytes(sheet), force=True)  # what was there was checked before the first one
            self._next = event.index + _PREVIEW_STEPS


def _latents_file(job: Job, pipe: Pipeline, request: Request) -> LatentsFile | None:
    """Where latents are kept, of what and by what."""
    if job.latents is None:
        if job.resume:
            raise UsageError("--resume goes on from latents that were kept. Name their file with --latents FILE")
        return None
    origin = {
        "bundle_sha256": pipe.bundle.digest,
        "lora": msgspec.json.encode(pipe.bundle.manifest.source.loras).decode(),
        "variant": json.dumps(pipe.variant),
        "backend": pipe.backend,
    }
    return LatentsFile(Path(job.latents), request, origin)


class _Outlets(NamedTuple):
    """Where what happens in a run goes: frames, with captions, to the file and whoever watches; latents; previews."""

    writer: VideoWriter
    captions: Captions
    watched: _Watched
    kept: LatentsFile | None
    preview: _Preview | None


def _run(
    pipe: Pipeline, request: Request, done: npt.NDArray[np.float32] | None, to: _Outlets, console: Console
) -> None:
    progress = Progress(console, _known(request.fps))
    with closing(pipe.run(request, done)) as events:
        for event in events:
            if isinstance(event, kinograph.StepDone) and to.preview is not None:
                to.preview.see(event)
            elif isinstance(event, kinograph.WindowDone) and to.kept is not None:
                to.kept.add(event.latents, cut=event.cut)
            elif isinstance(event, kinograph.FramesDecoded):
                frames = to.captions.draw(event.frames, event.index)
                to.writer.write(frames)
                to.watched.see(frames, event.index, event.total)
            progress.see(event)


def _check_values(job: Job) -> None:
    """Refuse numbers and prompts that no bundle could do, and a picture that cannot be read."""
    request = job.request
    limits: list[tuple[str, float | None, float, float]] = [
        ("--size (width)", request.width, 1, math.inf),
        ("--size (height)", request.height, 1, math.inf),
        ("--frames", request.num_frames, 1, math.inf),
        ("--steps", request.num_inference_steps, 1, math.inf),
        ("--seed", request.seed, 0, (1 << 64) - 1),
        ("--guidance", request.guidance_scale, 0, 1e6),
        ("--guidance-2", request.guidance_scale_2, 0, 1e6),
        ("--fps", request.fps, 0.1, 1000),
        ("--seconds", job.seconds, 0, 1e6),
    ]
    problems = []
    for option, value, low, high in limits:
        if value is not None and not low <= value <= high:  # NaN is in no range
            upper = "2^64 - 1" if option == "--seed" else f"{high:g}"
            expected = f"at least {low:g}" if high == math.inf else f"{low:g} to {upper}"
            problems.append(f"{option} is {value}, but must be {expected}")
    if problems:
        raise RequestError(". ".join(problems))
    check_prompt(request.prompt)
    check_prompt(request.negative_prompt or "", "negative prompt")
    for still in request.images:
        read_image(still.path)
    if job.captions is not None:
        read_captions(job.captions)


def _check_outputs(job: Job) -> Path | None:
    """Refuse places that cannot be written to; returns where the side-car goes."""
    video = check_output(job.output, job.force)
    check_codec(job.output, job.codec)
    if job.audio is not None:
        check_audio(job.audio, job.output)
    if job.sheet is not None:
        if Path(job.sheet).suffix.lower() != ".png":
            raise OutputError(f"the contact sheet {job.sheet!r} must be PNG. Use --sheet {Path(job.sheet).stem}.png")
        check_target(job.sheet, job.force)
    if job.preview is not None:
        if Path(job.preview).suffix.lower() != ".png":
            raise OutputError(f"the preview {job.preview!r} must be PNG. Use --preview {Path(job.preview).stem}.png")
        check_target(job.preview, job.force)
    if job.latents is not None:
        if Path(job.latents).suffix != ".safetensors":
            raise OutputError(f"the latents {job.latents!r} must be .safetensors. Use --latents film.safetensors")
        check_target(job.latents, job.force or job.resume)
    if not job.keep_metadata:
        return None
    sidecar = video.with_name(f"{video.name}.json") if is_folder(job.output) else video.with_suffix(".json")
    return check_target(sidecar, job.force)


def _with_frames(job: Job, pipe: Pipeline) -> Request:
    """The request with `seconds` as a number of frames: a video of 1 + n frames lasts n / fps from first to last.

    One that continues a film has no first frame of its own.
    """
    if job.seconds is None and (job.request.remix or job.request.inpaint) and job.request.num_frames is None:
        resolved = pipe.resolve(job.request)  # as long as the film that it is made from
        temporal = pipe.bundle.manifest.geometry.temporal
        count = sum(1 for _ in Clip.of(resolved, resolved.remix or resolved.inpaint))
        return msgspec.structs.replace(job.request, num_frames=1 + (count - 1) // temporal * temporal)
    if job.seconds is None:
        return job.request
    if job.request.num_frames is not None:
        raise UsageError("--frames and --seconds both say how long the video is. Give one of them")
    manifest = pipe.bundle.manifest
    fps = job.request.fps if job.request.fps is not None else manifest.defaults.fps
    temporal = manifest.geometry.temporal
    first = 0 if job.request.before is not None else 1
    steps = temporal * round(job.seconds * fps / temporal)
    if abs(steps - job.seconds * fps) > 0.5:  # half a frame: fps such as 23.976 have no whole frame at a whole second
        raise RequestError(
            f"{job.seconds:g} seconds at {fps:g} fps is not {first} + {temporal}·k frames; nearest: {first + steps} "
            f"frames, {steps / fps:.4g} seconds. Use --frames {first + steps}"
        )
    return msgspec.structs.replace(job.request, num_frames=first + steps)


def _known(value: _Value | None) -> _Value:
    """A field of a resolved request, which is never None."""
    if value is None:
        raise TypeError("the request was not resolved")
    return value
