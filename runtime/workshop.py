"""What a film is made with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kinograph.engines.protocol import Device, Engine
from kinograph.manifest import Manifest
from kinograph.runtime.prompts import Prompts

__all__ = ["Workshop"]


@dataclass(frozen=True)
class Workshop:
    """What a film is made with: `engine` opens a component, `leave_stage` may close those that are open."""

    device: Device
    manifest: Manifest
    prompts: Prompts
    engine: Callable[[str], Engine]
    leave_stage: Callable[[], None]
