"""Engines that come with a bundle: found there as in the cache, and put there out of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from kinograph.bundle import BundleWriter
from kinograph.engines.origin import Card, Origin
from kinograph.manifest import Engine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kinograph.bundle import Bundle
    from kinograph.engines.cache import EngineCache
    from kinograph.engines.protocol import Axes, Contents

__all__ = ["find_bundled", "write_engines"]


def find_bundled(contents: Contents, wanted: Origin, axes: Axes) -> Card | None:
    """The narrowest engine of that origin that came with the bundle and takes these sizes, or None."""
    found = []
    for engine in contents.engines:
        own = Origin(
            component=engine.component,
            precision=engine.precision,
            sources=engine.sources,
            builder=engine.builder,
            capability=engine.capability,
            kinograph=engine.kinograph,
            device=engine.device,
            streams=engine.streams,
            later_versions=engine.later_versions,
            gpus=engine.gpus,
        )
        card = Card(
            origin=own,
            axes={str(axis): size for axis, size in engine.axes.items()},
            bytes=contents.size(engine.file),
            sha256=contents.sha256(engine.file),
            activation_bytes=engine.activation_bytes,
            weight_bytes=engine.weight_bytes,
            layers=engine.layers,
            fused_attention=engine.fused_attention,
            file=engine.file,
        )
        if own.serves(wanted) and card.takes(axes):
            found.append(card)
    return min(found, key=lambda card: card.width, default=None)


def write_engines(bundle: Bundle, cards: Sequence[Card], cache: EngineCache) -> None:
    """The bundle again, with these engines in it; one for the same GPU and sizes is replaced."""
    entries = {_place(engine): engine for engine in bundle.manifest.engines}
    plans: dict[str, Card] = {}
    for card in cards:
        file = f"engines/{card.file_name.removesuffix('.engine')}.{card.name[-8:]}.engine"
        plans[file] = card
        entry = _entry(card, file)
        entries[_place(entry)] = entry
    kept = {entry.file for entry in entries.values()}
    gone = {engine.file for engine in bundle.manifest.engines} - kept
    with BundleWriter(bundle.path, force=True) as writer:
        for name in bundle.manifest.files:
            if name not in plans and name not in gone:
                bundle.copy(name, writer.file(name))
        for file, card in plans.items():
            writer.file(file).write_bytes(cache.plan(card))
        engines = tuple(sorted(entries.values(), key=lambda entry: entry.file))
        writer.save(msgspec.structs.replace(bundle.manifest, engines=engines))


def _entry(card: Card, file: str) -> Engine:
    return Engine(
        file=file,
        **msgspec.structs.asdict(card.origin),
        axes=dict(card.axes),  # type: ignore[arg-type]
        activation_bytes=card.activation_bytes,
        weight_bytes=card.weight_bytes,
        layers=card.layers,
        fused_attention=card.fused_attention,
    )


def _place(engine: Engine) -> tuple[object, ...]:
    """What an engine is for: of two with the same, the later one counts."""
    place = engine.capability, engine.device, engine.later_versions, engine.gpus
    return engine.component, engine.precision, *place, engine.streams, tuple(sorted(engine.axes.items()))
