"""The Python modules of TensorRT: `tensorrt_rtx` and `tensorrt` share an interface."""

from __future__ import annotations

import importlib
import re
from typing import Any

from kinograph.errors import MissingExtraError, UsageError

__all__ = ["FULL", "NAMES", "RTX", "find_module", "listening"]

RTX, FULL = "rtx", "tensorrt"
NAMES = {RTX: "TensorRT for RTX", FULL: "TensorRT"}
_MODULES = {RTX: ("tensorrt_rtx", "tensorrt_rtx_bindings"), FULL: ("tensorrt",)}  # the package, and what it wraps
_MOST_ERRORS = 3  # told
_BYTES = re.compile(r"Total (\w+) Memory: (\d+) bytes")
_LAYERS = "Layers:"


def find_module(target: str) -> Any:
    """The Python module of a target. Raises UsageError, naming what to install, where it is not there."""
    for name in _MODULES[target]:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    if target == FULL:
        raise UsageError("TensorRT is not installed. It comes with JetPack, or from NVIDIA as the package tensorrt")
    raise MissingExtraError(NAMES[target], "rtx")


def listening(trt: Any) -> Any:
    """A logger for TensorRT that prints nothing, and keeps what went wrong and what a build says of its result."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []
            self.layers: tuple[str, ...] = ()
            self._bytes: dict[str, int] = {}

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self.errors.append(" ".join(message.split()))
            elif message.startswith(_LAYERS):
                self.layers = tuple(line for line in message.splitlines()[1:] if line.startswith("Name: "))
            elif (found := _BYTES.match(message)) is not None:
                self._bytes[found[1]] = int(found[2])

        def bytes(self, what: str) -> int:
            """How much memory for `what` a build has said its engine takes, or 0."""
            return self._bytes.get(what, 0)

        def told(self) -> str:
            return "; ".join(error[:300] for error in self.errors[-_MOST_ERRORS:]) or "it does not say why"

    return Logger()
