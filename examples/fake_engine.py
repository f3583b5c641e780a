"""Integrating Kinograph without waiting for a model: every graph is replaced by a small deterministic function.

    python examples/fake_engine.py [BUNDLE]

Sizes, frame counts, events, errors and files are those of the real pipeline; only the pictures mean nothing. The bundle
is still opened and verified, because it says what the shapes are.
"""

from __future__ import annotations

import sys

import kinograph
from kinograph.engines.fake import FakeDevice
from kinograph.errors import RequestError
from kinograph.runtime.locate import open_bundle

device = FakeDevice()
with kinograph.Pipeline(open_bundle(sys.argv[1] if len(sys.argv) > 1 else None), device) as pipe:
    request = kinograph.Request(prompt="a large red ball moves left", num_inference_steps=3)
    for event in pipe.run(request):
        if isinstance(event, kinograph.StageStarted):
            print(event.name)
        elif isinstance(event, kinograph.StepDone):
            print(f"  step {event.index + 1} of {event.total}, timestep {event.timestep:g}")
        else:
            print(f"  frames {event.index} to {event.index + len(event.frames) - 1}: {event.frames.shape[1:]}")

    try:
        pipe("a red ball", num_frames=6)
    except RequestError as error:
        print(f"refused: {error} (exit code {error.exit_code})")

print(f"engines opened {device.opened}, closed {device.closed}")
