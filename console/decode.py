"""The work behind `kinograph decode`: latents that were kept become a video again."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import kinograph
from kinograph.console import Console
from kinograph.runtime.audio import check_audio
from kinograph.runtime.latents import cuts_of, read_latents
from kinograph.runtime.video import VideoWriter, check_codec, check_output

__all__ = ["DecodeJob", "decode"]


class DecodeJob(NamedTuple):
    """What one `decode` is to do: a video of `latents`, a file; without `fps` it has the bundle's."""

    latents: str
    bundle: str | None
    device: str
    variant: str | None
    output: str
    fps: float | None
    codec: str | None
    audio: str | None
    force: bool


def decode(job: DecodeJob, console: Console) -> int:
    """Write the video; returns how many frames it has. Raises any KinographError."""
    check_output(job.output, job.force)
    check_codec(job.output, job.codec)
    if job.audio is not None:
        check_audio(job.audio, job.output)
    values, about = read_latents(Path(job.latents))
    progress = console.start_bytes("load")
    with kinograph.load(job.bundle, device=job.device, variant=job.variant, progress=progress) as pipe:
        geometry, fps = pipe.bundle.manifest.geometry, job.fps or pipe.bundle.manifest.defaults.fps
        height, width = (side * geometry.spatial for side in values.shape[-2:])
        console.start_stage("decode", None, "frames")
        with VideoWriter(
            job.output, width=width, height=height, fps=fps, codec=job.codec, audio=job.audio, force=job.force
        ) as writer:
            for event in pipe.decode(values, cuts_of(about, values.shape[2])):
                writer.write(event.frames)
                console.update(writer.frames_written, event.total)
            return writer.frames_written
