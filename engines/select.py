"""Which device a run gets."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from kinograph.errors import EngineError, UsageError

if TYPE_CHECKING:
    from kinograph.engines.protocol import Device

__all__ = ["DEVICE_VARIABLE", "explain_choice", "open_device"]

DEVICE_VARIABLE = "KINOGRAPH_DEVICE"


def open_device(name: str = "auto") -> Device:
    """The device called `name`: `auto` (the environment's KINOGRAPH_DEVICE, else the best there is) or `cpu`.

    Raises EngineError where the device exists but cannot be used, UsageError for a name nobody knows.
    """
    if name == "auto":
        name = explain_choice()[0]
    if name == "cpu":
        from kinograph.engines.ort import OrtDevice

        return OrtDevice()
    if name == "cuda" or name.startswith("cuda:"):
        raise EngineError(f"device {name!r}: this version of Kinograph has engines for the CPU only. Use --device cpu.")
    raise UsageError(f"unknown device {name!r}; expected auto, cpu, cuda or cuda:N. Use --device auto.")


def explain_choice() -> tuple[str, str]:
    """The device `auto` stands for, and why, in words."""
    chosen = os.environ.get(DEVICE_VARIABLE)
    if chosen and chosen != "auto":
        return chosen, f"the environment variable {DEVICE_VARIABLE} says so"
    return "cpu", "ONNX Runtime runs on any CPU, and this version has no engine for another device"
