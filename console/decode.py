"""The work behind `kinograph decode`: latents that were kept become a video again."""

from __future__ import annotations

from pathlib import Path

import kinograph
from kinograph.console import Console
from kinograph.runtime.audio import check_audio
from kinograph.runtime.latents import cuts_of, read_latents
from kinograph.runtime.video import VideoWriter, check_codec, check_output

__all__ = ["decode"]


def decode(
    latents: str,
    bundle: str | None,
    *,
    output: str,
    fps: float | None,
    codec: str | None,
    audio: str | None,
    device: str,
    variant: str | None,
    force: bool,
    console: Console,
) -> int:
    """Write the video of a file of latents; returns how many frames it has."""
    check_output(output, force)
    check_codec(output, codec)
    if audio is not None:
        check_audio(audio, output)
    values, about = read_latents(Path(latents))
    console.start_stage("load")
    with kinograph.load(bundle, device=device, variant=variant) as pipe:
        geometry, rate = pipe.bundle.manifest.geometry, fps or pipe.bundle.manifest.defaults.fps
        height, width = (side * geometry.spatial for side in values.shape[-2:])
        console.start_stage("decode", None, "frames")
        events = pipe.decode(values, cuts_of(about, values.shape[2]))
        with VideoWriter(output, width=width, height=height, fps=rate, codec=codec, audio=audio, force=force) as writer:
            for event in events:
                writer.write(event.frames)
                console.update(writer.frames_written, event.total)
            return writer.frames_written
