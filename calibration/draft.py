"""A variant on disk before it is in its bundle: written a weight at a time, tried there, and moved in if it passes."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from kinograph.bundle import Bundle
from kinograph.bundle.draft import Trial
from kinograph.bundle.weights import WeightFile
from kinograph.calibration.loop import FLOAT
from kinograph.calibration.work import Work
from kinograph.manifest import Component, Variant

__all__ = ["VariantDraft", "draft"]

_WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class VariantDraft:
    """The variants of some components, and their files by their names in the bundle."""

    variants: Mapping[str, Variant]
    files: Mapping[str, Path]

    @property
    def bytes(self) -> int:
        """Of all weights; graphs that share a file share them."""
        names = {name for variant in self.variants.values() for name in variant.weights}
        return sum(self.files[name].stat().st_size for name in names)

    def trial(self, bundle: Bundle) -> Trial:
        """The bundle with this in place of its float variants."""
        components = {name: Component(variants={FLOAT: variant}) for name, variant in self.variants.items()}
        return Trial(bundle, components, self.files)


def draft(bundle: Bundle, work: Mapping[str, Work], name: str, folder: Path, *, control: bool = False) -> VariantDraft:
    """Write the variant `name` of every component of `work` below `folder`, or that of its control."""
    variants: dict[str, Variant] = {}
    files: dict[str, Path] = {}
    for place, components in _places(bundle, work, name).items():
        models = {one: work[one].control_model() if control else work[one].model() for one in components}
        weights = WeightFile(_WEIGHTS)
        for one, model in models.items():
            _refer(model, work[one])
            weights.claim(model)
        (folder / place).mkdir(parents=True, exist_ok=True)
        for _ in weights.write(folder / place):
            pass
        weights.link()
        for one, model in models.items():
            base = bundle.component(one).variants[FLOAT]
            graph = f"{place}/{posixpath.basename(base.graph)}"
            (folder / graph).write_bytes(ir.to_proto(model).SerializeToString())
            own = f"{place}/{_WEIGHTS}"
            variants[one] = Variant(graph=graph, weights=(own,), inputs=base.inputs, outputs=base.outputs)
            files |= {path: folder / path for path in (graph, own)}
    return VariantDraft(variants, files)


def _refer(model: ir.Model, work: Work) -> None:
    """Let the float weights that are still used be read from the bundle's memory map."""
    for name, value in model.graph.initializers.items():
        if name in work.graph.weights:
            value.const_value = ir.tensor(work.graph.weights[name], name=name)


def _places(bundle: Bundle, components: Mapping[str, Work], variant: str) -> dict[str, list[str]]:
    """The variant's folders, each with the components whose graphs lie in it and share its weights."""
    found: dict[str, list[str]] = {}
    for name in components:
        base = posixpath.dirname(bundle.component(name).variants[FLOAT].graph)
        found.setdefault(f"{posixpath.dirname(base)}/{variant}", []).append(name)
    return found
