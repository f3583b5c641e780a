"""Writes a variant into its bundle."""

from __future__ import annotations

import posixpath
from pathlib import Path

import msgspec

from kinograph.bundle import Bundle, BundleWriter
from kinograph.calibration import Progress
from kinograph.calibration.compare import Report
from kinograph.calibration.draft import VariantDraft

__all__ = ["write"]


def write(bundle: Bundle, path: Path, made: VariantDraft, report: Report, page: str, progress: Progress) -> None:
    """The bundle again, with the variant moved into it, and the report's HTML `page`.

    Engines of a variant that is replaced go with it.
    """
    components = dict(bundle.manifest.components)
    folders = {posixpath.dirname(name) for name in made.files}
    engines = [e for e in bundle.manifest.engines if e.component not in made.variants or e.precision != report.variant]
    gone = {engine.file for engine in bundle.manifest.engines} - {engine.file for engine in engines}
    with BundleWriter(path, force=True) as writer:
        document = f"{report.variant}-report.html"
        writer.file(document).write_text(page, "utf-8")
        gone |= {name for name in bundle.manifest.files if name == document or posixpath.dirname(name) in folders}
        kept = [name for name in bundle.manifest.files if name not in gone]
        for number, name in enumerate(kept, 1):
            bundle.copy(name, writer.file(name))
            progress("write", number, len(kept))
        for name, file in made.files.items():
            file.replace(writer.file(name))
        for name, variant in made.variants.items():
            judged = msgspec.structs.replace(variant, quality=report.quality)
            variants = components[name].variants | {report.variant: judged}
            components[name] = msgspec.structs.replace(components[name], variants=variants)
        writer.save(msgspec.structs.replace(bundle.manifest, components=components, engines=tuple(engines)))
