"""Export: a local diffusers checkpoint becomes a bundle. The only part of Kinograph, with the starter, that needs
torch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kinograph.errors import MissingExtraError

if TYPE_CHECKING:
    from kinograph.bundle.lora import Lora
    from kinograph.manifest import Manifest

__all__ = ["ExportOptions", "export"]

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ExportOptions:
    """How to export. None means what the family was released with.

    `precision` of every component; `parity` compares each with PyTorch, which loads the real model into memory; `name`,
    `licence`, `width`, `height`, `num_frames`, `fps`, `num_inference_steps`, `guidance_scale` and `judge` become the
    bundle's own description and defaults; `loras` are added to the transformers' weights; `force` replaces an existing
    bundle.
    """

    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    parity: bool = True
    force: bool = False
    name: str | None = None
    licence: str | None = None
    width: int | None = None
    height: int | None = None
    num_frames: int | None = None
    fps: float | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    judge: str | None = None
    loras: tuple[Lora, ...] = ()


def _silent(stage: str, done: int, total: int) -> None:
    """No progress."""


def export(
    checkpoint: Path, bundle: Path, options: ExportOptions | None = None, progress: Progress = _silent
) -> Manifest:
    """Export the diffusers folder `checkpoint` into a new bundle and return its manifest.

    `progress(stage, done, total)` is called as work goes on: stages in steps, weights in bytes. Raises
    MissingExtraError where torch or diffusers is not installed, BundleError for a checkpoint that cannot be exported,
    OutputError where the bundle cannot be written.
    """
    logging.getLogger("diffusers.utils.import_utils").setLevel(logging.ERROR)  # it warns of how packages are named
    try:
        import diffusers  # noqa: F401
        import optimum.exporters.onnx  # noqa: F401
        import torch  # noqa: F401
    except ImportError as exc:
        raise MissingExtraError("kinograph export", "export") from exc
    from kinograph.export.build import build

    return build(checkpoint, bundle, options or ExportOptions(), progress)
