"""Writes a variant into its bundle."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping
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

_WEIGHTS = "model.safetensors"


def write(bundle: Bundle, path: Path, work: Mapping[str, Work], report: Report, page: str, progress: Progress) -> None:
    """The bundle again, with the variant in it, and the report's HTML `page`."""
    components = dict(bundle.manifest.components)
    folders = _folders(bundle, work, report.variant)
    with BundleWriter(path, force=True) as writer:
        document = f"{report.variant}-report.html"
        writer.file(document).write_text(page, "utf-8")
        kept = [name for name in bundle.manifest.files if name != document and posixpath.dirname(name) not in folders]
        for number, name in enumerate(kept, 1):
            _copy(bundle, name, writer.file(name))
            progress("write", number, len(kept))
        for folder, names in folders.items():
            models = {name: work[name].model() for name in names}
            weights = WeightFile(_WEIGHTS)
            for model in models.values():
                weights.claim(model)
            for _ in weights.write(writer.file(f"{folder}/{_WEIGHTS}").parent):
                pass
            external = weights.external()
            for name, model in models.items():
                for value in model.graph.initializers.values():
                    if value.name in external:
                        value.const_value = external[value.name]
                base = bundle.component(name).variants[FLOAT]
                graph = f"{folder}/{posixpath.basename(base.graph)}"
                writer.file(graph).write_bytes(ir.to_proto(model).SerializeToString())
                variant = Variant(
                    graph=graph,
                    weights=(f"{folder}/{_WEIGHTS}",),
                    inputs=base.inputs,
                    outputs=base.outputs,
                    quality=report.quality,
                )
                variants = components[name].variants | {report.variant: variant}
                components[name] = msgspec.structs.replace(components[name], variants=variants)
        writer.save(msgspec.structs.replace(bundle.manifest, components=components))


def _folders(bundle: Bundle, components: Iterable[str], variant: str) -> dict[str, list[str]]:
    """The variant's folders, each with the components whose graphs lie in it and share its weights."""
    found: dict[str, list[str]] = {}
    for name in components:
        base = posixpath.dirname(bundle.component(name).variants[FLOAT].graph)
        found.setdefault(f"{posixpath.dirname(base)}/{variant}", []).append(name)
    return found


def _copy(bundle: Bundle, name: str, target: Path) -> None:
    """One verified file of the bundle, from the descriptor that was verified."""
    data = bundle.map(name)
    with target.open("wb") as file:
        file.write(data.data)
