"""A variant on disk before it is in its bundle: written a weight at a time, tried there, and moved in if it passes."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import onnx_ir as ir

from kinograph.bundle.draft import Source, Trial
from kinograph.bundle.refusal import printable
from kinograph.bundle.weights import WeightFile
from kinograph.calibration.loop import FLOAT
from kinograph.calibration.work import Work
from kinograph.errors import OutputError
from kinograph.manifest import Component, Variant

__all__ = ["VariantDraft", "draft", "write_graphs"]

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

    def trial(self, bundle: Source) -> Trial:
        """The bundle with this in place of its float variants."""
        components = {name: Component(variants={FLOAT: variant}) for name, variant in self.variants.items()}
        return Trial(bundle, components, self.files)


def draft(bundle: Source, work: Mapping[str, Work], name: str, folder: Path, *, control: bool = False) -> VariantDraft:
    """Write the variant `name` of every component of `work` below `folder`, or that of its control."""
    variants: dict[str, Variant] = {}
    files: dict[str, Path] = {}
    for place, components in _places(bundle, work, name).items():
        models = {one: work[one].control_model() if control else work[one].model() for one in components}
        for one, model in models.items():
            _refer(model, work[one])
        bases = {one: bundle.component(one).variants[FLOAT] for one in components}
        made = write_graphs(models, bases, folder, place)
        variants |= made.variants
        files |= made.files
    return VariantDraft(variants, files)


def write_graphs(
    models: Mapping[str, ir.Model], bases: Mapping[str, Variant], folder: Path, place: str
) -> VariantDraft:
    """Write graphs that share their weights to `place` below `folder`; each has its base's name, inputs and outputs.

    Raises OutputError where there is no room for them.
    """
    weights = WeightFile(_WEIGHTS)
    for model in models.values():
        weights.claim(model)
    variants: dict[str, Variant] = {}
    files = {f"{place}/{_WEIGHTS}": folder / place / _WEIGHTS}
    try:
        (folder / place).mkdir(parents=True, exist_ok=True)
        for _ in weights.write(folder / place):
            pass
        weights.link()
        for name, model in models.items():
            graph = f"{place}/{posixpath.basename(bases[name].graph)}"
            files[graph] = folder / graph
            files[graph].write_bytes(ir.to_proto(model).SerializeToString())
            variants[name] = msgspec.structs.replace(bases[name], graph=graph, weights=(f"{place}/{_WEIGHTS}",))
    except OSError as exc:
        raise OutputError(
            f"{printable(folder / place)} could not be written: {exc.strerror}. Its weights take "
            f"{weights.size:,} bytes: free some space; what is done is kept."
        ) from exc
    return VariantDraft(variants, files)


def _refer(model: ir.Model, work: Work) -> None:
    """Let the float weights that are still used be read from the bundle's memory map."""
    for name, value in model.graph.initializers.items():
        if name in work.graph.weights:
            value.const_value = ir.tensor(work.graph.weights[name], name=name)


def _places(bundle: Source, components: Mapping[str, Work], variant: str) -> dict[str, list[str]]:
    """The variant's folders, each with the components whose graphs lie in it and share its weights."""
    found: dict[str, list[str]] = {}
    for name in components:
        base = posixpath.dirname(bundle.component(name).variants[FLOAT].graph)
        found.setdefault(f"{posixpath.dirname(base)}/{variant}", []).append(name)
    return found
