"""The model families: one module each, found by the name of the checkpoint's diffusers pipeline."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

from kinograph.bundle.lora import Lora
from kinograph.errors import BundleError
from kinograph.export.checkpoint import model_index
from kinograph.export.plan import Plan

__all__ = ["FAMILIES", "read_plan"]

FAMILIES = {
    "WanPipeline": "kinograph.export.families.wan",
    "WanImageToVideoPipeline": "kinograph.export.families.wan",
}


def read_plan(checkpoint: Path, loras: Sequence[Lora] = ()) -> Plan:
    """How to export `checkpoint` with what is added to it.

    Raises BundleError for a folder that is no checkpoint of a known family, and for a LoRA that is not for it.
    """
    pipeline = model_index(checkpoint).get("_class_name")
    if pipeline not in FAMILIES:
        raise BundleError(f"{checkpoint} is a {pipeline!r} checkpoint; this version exports: {', '.join(FAMILIES)}.")
    plan: Plan = importlib.import_module(FAMILIES[pipeline]).read_plan(checkpoint, loras)
    return plan
