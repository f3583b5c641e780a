"""What `kinograph doctor` reports: versions, engines, machine and the starter model; torch is not imported."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

__all__ = ["cpus", "examine", "installed_version"]

_RUNTIME = ("numpy", "onnxruntime", "onnxruntime-gpu", "onnx", "tokenizers", "av", "pillow", "msgspec")
_EXPORT = ("torch", "diffusers", "transformers", "optimum", "onnxscript")


def examine() -> dict[str, Any]:
    """The state of this installation, ready for JSON; sizes in bytes."""
    return {
        "kinograph": installed_version("kinograph"),
        "python": platform.python_version(),
        "packages": {name: found for name in (*_RUNTIME, *_EXPORT) if (found := installed_version(name))},
        "export_missing": [name for name in _EXPORT if not installed_version(name)],
        "machine": _machine(),
        "device": _device(),
        "providers": _providers(),
        "video": _video(),
        "starter": _starter(),
    }


def installed_version(package: str) -> str | None:
    """The version of an installed package, without importing it; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def cpus() -> int | None:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _machine() -> dict[str, Any]:
    from kinograph.engines.host import adds_bytes_exactly, memory_bytes

    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpus": cpus(),
        "memory_bytes": memory_bytes(),
        "multiplies_bytes": adds_bytes_exactly(),
    }


def _device() -> dict[str, Any]:
    """What `auto` stands for, and of every other way to compute why it is not that."""
    from kinograph.engines.select import DEVICE_VARIABLE, candidates, chosen_name

    asked = chosen_name()
    found = [{"device": one.name, "backend": one.backend, "why_not": one.why_not} for one in candidates()]
    usable = [one for one in found if one["why_not"] is None]
    because = "it is the best that can be used" if asked == "auto" else f"{DEVICE_VARIABLE} is {asked}"
    return {"auto": usable[0]["device"] if usable else None, "because": because, "candidates": found}


def _providers() -> list[str] | str:
    try:
        import onnxruntime
    except ImportError as error:
        return f"ONNX Runtime cannot be imported: {error}. Run: pip install onnxruntime"
    return list(onnxruntime.get_available_providers())


def _video() -> dict[str, Any]:
    import av

    from kinograph.runtime.video import available_codecs

    return {
        "libavcodec": ".".join(str(part) for part in av.library_versions["libavcodec"]),
        "codecs": {ending: list(available_codecs(f"out{ending}")) for ending in (".mp4", ".mkv", ".webm")},
    }


def _starter() -> dict[str, Any]:
    from kinograph.runtime.locate import starter_bundle

    folder = starter_bundle()
    return {"path": str(folder), "present": (folder / "bundle.json").is_file()}
