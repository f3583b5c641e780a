"""Progress, frames that are written while they are decoded, and cancelling.

    python examples/stream_with_progress.py [BUNDLE]

Ctrl-C ends the run, in the middle of a step on the CPU, and leaves no file behind.
"""

from __future__ import annotations

import signal
import sys
from contextlib import closing

import kinograph
from kinograph.runtime.video import VideoWriter

OUTPUT = "stream.mp4"
PROMPT = "a small yellow star circles in the night sky, neon style"


def main() -> int:
    try:
        with kinograph.load(sys.argv[1] if len(sys.argv) > 1 else None) as pipe:
            signal.signal(signal.SIGINT, lambda number, frame: pipe.cancel())
            make(pipe, kinograph.Request(prompt=PROMPT, seed=3))
    except kinograph.KinographError as error:
        print(f"\n{error}", file=sys.stderr)
        return error.exit_code
    print(f"\nwrote {OUTPUT}")
    return 0


def make(pipe: kinograph.Pipeline, request: kinograph.Request) -> None:
    """Write the video, or nothing: leaving the block with an exception removes what was written so far."""
    request = pipe.resolve(request)  # no field is None from here on
    writer = VideoWriter(
        OUTPUT,
        width=request.width,
        height=request.height,
        fps=request.fps,
        metadata=pipe.metadata(request),
        force=True,
    )
    with writer, closing(pipe.run(request)) as events:
        for event in events:
            show(event)
            if isinstance(event, kinograph.FramesDecoded):
                writer.write(event.frames)


def show(event: kinograph.Event) -> None:
    """One line of progress, written over itself within a stage."""
    if isinstance(event, kinograph.StageStarted):
        print(f"\n{event.name}", end="", flush=True)
    elif isinstance(event, kinograph.StepDone):
        print(f"\rdenoise: step {event.index + 1} of {event.total}", end="", flush=True)
    else:
        print(f"\rdecode: frame {event.index + len(event.frames)} of {event.total}", end="", flush=True)


if __name__ == "__main__":
    sys.exit(main())
