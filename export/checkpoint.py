"""Reading a local diffusers folder: its index and its configurations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kinograph.errors import BundleError

__all__ = ["model_index", "read_config"]

_MAX_CONFIG_BYTES = 1 << 20


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object from the checkpoint. Raises BundleError."""
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise BundleError(f"{path} is larger than {_MAX_CONFIG_BYTES} bytes: no configuration is.")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise BundleError(
            f"{path} cannot be read ({exc}). Expected a model in diffusers layout, as save_pretrained() writes it."
        ) from exc
    if not isinstance(value, dict):
        raise BundleError(f"{path} is no JSON object. Copy the checkpoint again.")
    return value


def model_index(checkpoint: Path) -> dict[str, Any]:
    """`model_index.json` of a checkpoint folder. Raises BundleError where there is none."""
    if not checkpoint.is_dir():
        raise BundleError(
            f"{checkpoint} is no folder. Name a local checkpoint in diffusers layout; nothing is downloaded."
        )
    return read_config(checkpoint / "model_index.json")
