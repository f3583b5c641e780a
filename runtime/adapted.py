"""A bundle with LoRAs: they are added to its transformers' weights where these are read.

Its files stay as they are, and the next pipeline has the model as it was. What an engine reads of a changed file is a
private copy of its pages, and that file has another sha256, so that a cache of engines does not take the one for the
other.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from kinograph.bundle import Bundle
from kinograph.bundle.lora import Changes, Lora
from kinograph.bundle.lora_names import FAMILIES
from kinograph.errors import BundleError, UsageError
from kinograph.manifest import FLOATS, Component, Manifest, Variant

__all__ = ["AdaptedBundle", "check_variant"]

_TRANSPOSED = ".transposed"  # what a weight's name ends with that is stored the way a product reads it


class _Weight(NamedTuple):
    """Where a weight lies in its file, and what is added to it there, in this order."""

    name: str
    tensor: ir.ExternalTensor
    transposed: bool
    changes: tuple[Changes, ...]


class AdaptedBundle(Bundle):
    """A verified bundle, which it takes over, and LoRAs that are added to its transformers' weights.

    Its manifest names them, and of a transformer that they change only the float variants: the ranges of a quantised
    one were found without them.
    """

    def __init__(self, bundle: Bundle, loras: Sequence[Lora]) -> None:
        """Raises BundleError for a file that is no LoRA of this model, and where there is no float variant."""
        added = tuple(lora.added() for lora in loras)
        source = msgspec.structs.replace(bundle.manifest.source, loras=(*bundle.manifest.source.loras, *added))
        components = dict(bundle.manifest.components)
        super().__init__(bundle.path, bundle.manifest, bundle.digest, bundle._files)
        self._weights: dict[str, list[_Weight]] = {}
        for number, expert in enumerate(bundle.manifest.experts, 1):
            if own := [lora for lora in loras if lora.expert == number]:
                components[expert.component] = self._adapted(expert.component, own)
        if beyond := [lora for lora in loras if not 1 <= lora.expert <= len(bundle.manifest.experts)]:
            raise BundleError(
                f"{beyond[0].path} is for transformer {beyond[0].expert}, and {bundle.manifest.name} has "
                f"{len(bundle.manifest.experts)}. Use --lora, or a model with two experts"
            )
        self.manifest = msgspec.structs.replace(bundle.manifest, components=components, source=source)
        self._mark = msgspec.json.encode(added)

    def map(self, name: str) -> npt.NDArray[np.uint8]:
        """As of `Bundle`, changed. Raises BundleError where what is added does not fit."""
        if name not in self._weights:
            return super().map(name)
        data = self._mapped(name, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
        for weight in self._weights[name]:
            _add(weight, data)
        return data

    def private(self, name: str) -> int:
        return sum(weight.tensor.nbytes for weight in self._weights.get(name, ()))

    def sha256(self, name: str) -> str:
        own = super().sha256(name)
        return hashlib.sha256(own.encode() + self._mark).hexdigest() if name in self._weights else own

    def _adapted(self, component: str, loras: Sequence[Lora]) -> Component:
        """Note what is changed of a component's weights; the component, with what variants are left."""
        whole = self.component(component)
        floats = {name: variant for name, variant in whole.variants.items() if name in FLOATS}
        if not floats:
            there = ", ".join(whole.variants)
            raise BundleError(
                f"{loras[0].path} is added to float weights, and {component} of {self.manifest.name} has {there}. "
                "Export the model with --lora, and calibrate it"
            )
        if self.manifest.family not in FAMILIES:
            raise BundleError(
                f"{self.manifest.name} is of the family {self.manifest.family}, whose LoRAs are not known"
            )
        for variant in floats.values():
            self._note(variant, loras)
        return msgspec.structs.replace(whole, variants=floats)

    def _note(self, variant: Variant, loras: Sequence[Lora]) -> None:
        names = FAMILIES[self.manifest.family]
        tensors = list(self._tensors(variant, names.prefix))
        there = {name for name, _, _ in tensors}
        changes = [Changes(lora, there, names.aliases, self.manifest.name) for lora in loras]
        for name, tensor, transposed in tensors:
            for one in changes:
                if name in one.targets:
                    one.check(name, _shape(tensor, transposed))
        for path in variant.weights:
            location = path.rpartition("/")[2]
            self._weights[path] = [
                _Weight(name, tensor, transposed, mine)
                for name, tensor, transposed in tensors
                if tensor.location == location and (mine := tuple(one for one in changes if name in one.targets))
            ]

    def _tensors(self, variant: Variant, prefix: str) -> Iterator[tuple[str, ir.ExternalTensor, bool]]:
        """The transformer's weights in a graph: their names in the checkpoint, and whether they are transposed."""
        model = ir.from_proto(onnx.load_model_from_string(self.read(variant.graph)))
        for name, value in model.graph.initializers.items():
            if name.startswith(prefix) and isinstance(value.const_value, ir.ExternalTensor):
                own = name.removeprefix(prefix)
                yield own.removesuffix(_TRANSPOSED), value.const_value, own.endswith(_TRANSPOSED)


def check_variant(manifest: Manifest, loras: Sequence[Lora], variant: str | None) -> None:
    """Raises UsageError where a quantised variant is asked for of a transformer that LoRAs are added to."""
    for lora in loras:
        experts = manifest.experts[lora.expert - 1 : lora.expert]
        if variant not in FLOATS and any(variant in manifest.components[one.component].variants for one in experts):
            raise UsageError(
                f"{lora.path} is added to float weights, and not to {variant}, which was calibrated without it. Leave "
                "out --variant, or export the model with --lora and calibrate it"
            )


def _shape(tensor: ir.ExternalTensor, transposed: bool) -> tuple[int, ...]:
    """The shape that a weight has in the checkpoint."""
    shape = tuple(tensor.shape.numpy())
    return shape[::-1] if transposed else shape


def _add(weight: _Weight, data: npt.NDArray[np.uint8]) -> None:
    """Change a weight in place, in float32, rounded once."""
    tensor = weight.tensor
    start = tensor.offset or 0
    stored = data[start : start + tensor.nbytes].view(tensor.dtype.numpy()).reshape(tuple(tensor.shape.numpy()))
    value = stored.astype(np.float32)
    for change in weight.changes:
        added = change.of(weight.name, _shape(tensor, weight.transposed))
        value += added.T if weight.transposed else added
    with np.errstate(over="ignore"):
        stored[...] = value
    if not np.isfinite(stored).all():
        last, kind = weight.changes[-1].lora, tensor.dtype.name.lower()
        raise BundleError(
            f"with {last.path} at {last.strength:g}, {weight.name} is beyond what {kind} can hold. "
            "Name a smaller strength, as in FILE@0.5"
        )
