"""Backends: how a component of a bundle becomes something that runs on a device."""

from kinograph.engines.protocol import Buffer, Device, Engine
from kinograph.engines.select import open_device

__all__ = ["Buffer", "Device", "Engine", "open_device"]
