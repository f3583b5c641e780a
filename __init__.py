"""Kinograph: text-to-video diffusion models without PyTorch.

    import kinograph

    pipe = kinograph.load()  # the built-in starter model; or kinograph.load("wan-1.3b/")
    video = pipe("a large red ball moves left on a plain navy background, flat style", seed=7)
    video.save("out.mp4")

Names are imported when they are used: `import kinograph` itself loads nothing. It does turn off what ONNX Runtime would
report to its makers.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kinograph.bundle.lora import Lora
    from kinograph.errors import KinographError
    from kinograph.runtime.events import Event, FramesDecoded, StageStarted, StepDone, WindowDone
    from kinograph.runtime.pipeline import Pipeline, Video, load
    from kinograph.runtime.request import Cue, Request, Still

__all__ = [
    "Cue",
    "Event",
    "FramesDecoded",
    "KinographError",
    "Lora",
    "Pipeline",
    "Request",
    "StageStarted",
    "StepDone",
    "Still",
    "Video",
    "WindowDone",
    "load",
]

# Since 1.29 ONNX Runtime tells its makers of every model it opens, and keeps what it could not send in the home folder,
# unless this is said before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_HOMES = {
    "Cue": "kinograph.runtime.request",
    "Event": "kinograph.runtime.events",
    "FramesDecoded": "kinograph.runtime.events",
    "KinographError": "kinograph.errors",
    "Lora": "kinograph.bundle.lora",
    "Pipeline": "kinograph.runtime.pipeline",
    "Request": "kinograph.runtime.request",
    "StageStarted": "kinograph.runtime.events",
    "StepDone": "kinograph.runtime.events",
    "Still": "kinograph.runtime.request",
    "Video": "kinograph.runtime.pipeline",
    "WindowDone": "kinograph.runtime.events",
    "load": "kinograph.runtime.pipeline",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'kinograph' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
