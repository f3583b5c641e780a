"""Writes a variant into its bundle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
import onnx_ir as ir

from kinograph.bundle import Bundle, BundleWriter
from kinograph.bundle.weights import WeightFile
from kinograph.calibration import Progress
from kinograph.calibration.compare import Report
from kinograph.calibration.work import FLOAT, Work
from kinograph.manifest import Variant

__all__ = ["write"]


def write(bundle: Bundle, path: Path, work: Mapping[str, Work], report: Report, progress: Progress) -> None:
    """The bundle again, with the variant in it."""
    components = dict(bundle.manifest.components)
    with BundleWriter(path, force=True) as writer:
        kept = [name for name in bundle.manifest.files if not _is_of(name, work, report.variant)]
        for number, name in enumerate(kept, 1):
            _copy(bundle, name, writer.file(name))
            progress("write", number, len(kept))
        for component, own in work.items():
            if own.model is None:
                continue
            folder = f"{component}/{report.variant}"
            weights = WeightFile("model.safetensors")
            weights.claim(own.model)
            for _ in weights.write(writer.file(f"{folder}/model.safetensors").parent):
                pass
            external = weights.external()
            for value in own.model.graph.initializers.values():
                if value.name in external:
                    value.const_value = external[value.name]
            writer.file(f"{folder}/model.onnx").write_bytes(ir.to_proto(own.model).SerializeToString())
            base = bundle.component(component).variants[FLOAT]
            variant = Variant(
                graph=f"{folder}/model.onnx",
                weights=(f"{folder}/model.safetensors",),
                inputs=base.inputs,
                outputs=base.outputs,
                quality=report.quality,
            )
            variants = components[component].variants | {report.variant: variant}
            components[component] = msgspec.structs.replace(components[component], variants=variants)
        writer.save(msgspec.structs.replace(bundle.manifest, components=components))


def _is_of(name: str, work: Mapping[str, Work], variant: str) -> bool:
    return any(name.startswith(f"{component}/{variant}/") for component in work)


def _copy(bundle: Bundle, name: str, target: Path) -> None:
    """One verified file of the bundle, from the descriptor that was verified."""
    data = bundle.map(name)
    with target.open("wb") as file:
        file.write(data.data)
