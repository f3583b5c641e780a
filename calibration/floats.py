"""The floats that calibration starts from, which are in float32: what was exported in 16 bits is widened first.

Nothing is lost by that, and every recipe has one kind of graph to work on.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnx_ir as ir

from kinograph.bundle import Bundle
from kinograph.bundle.draft import Trial
from kinograph.bundle.weights import StreamedTensor
from kinograph.calibration import Progress
from kinograph.calibration.draft import write_graphs
from kinograph.calibration.layers import Array
from kinograph.calibration.loop import FLOAT
from kinograph.engines.rewrites.halves import bfloat16_to_float32, float16_to_float32
from kinograph.engines.weights import map_weights
from kinograph.manifest import Component, Tensor, Variant

__all__ = ["in_float32"]

_HALVES = {"fp16": float16_to_float32, "bf16": bfloat16_to_float32}
_NARROW = ("float16", "bfloat16")
_BLOCK = 1 << 24  # elements that are widened at a time


def in_float32(bundle: Bundle, folder: Path, progress: Progress) -> Trial:
    """The bundle, with a float32 variant of each component that has 16-bit floats alone, whose files are in `folder`.

    They take twice the space of what they are made from, and no memory to speak of. Raises OutputError without room.
    """
    places: dict[str, dict[str, str]] = {}
    for name, component in bundle.manifest.components.items():
        half = next((one for one in _HALVES if one in component.variants), None)
        if half is not None and FLOAT not in component.variants:
            place = posixpath.dirname(posixpath.dirname(component.variants[half].graph))
            places.setdefault(f"{place}/{FLOAT}", {})[name] = half
    components: dict[str, Component] = {}
    files: dict[str, Path] = {}
    for number, (place, halves) in enumerate(places.items(), 1):
        models = {name: _widened(bundle, name, half) for name, half in halves.items()}
        bases = {name: _declared(bundle.component(name).variants[half]) for name, half in halves.items()}
        made = write_graphs(models, bases, folder, place)
        files |= made.files
        for name, variant in made.variants.items():
            own = bundle.component(name)
            components[name] = msgspec.structs.replace(own, variants=own.variants | {FLOAT: variant})
        progress("widen", number, len(places))
    return Trial(bundle, components, files)


class _Widened(StreamedTensor):
    """A weight in 16 bits as float32, a block at a time."""

    def __init__(self, name: str, array: Array) -> None:
        self._array = array
        super().__init__(self._whole, dtype=ir.DataType.FLOAT, shape=ir.Shape(array.shape), name=name)

    def pieces(self) -> Iterator[memoryview]:
        flat = self._array.reshape(-1)
        for start in range(0, flat.size, _BLOCK):
            yield flat[start : start + _BLOCK].astype(np.float32).view(np.uint8).data

    def _whole(self) -> ir.TensorProtocol:
        return ir.tensor(self._array.astype(np.float32), name=self.name)


def _widened(bundle: Bundle, component: str, precision: str) -> ir.Model:
    variant = bundle.component(component).variants[precision]
    model = ir.from_proto(onnx.load_model_from_string(bundle.read(variant.graph)))
    weights = map_weights(model, bundle, variant)
    _HALVES[precision](model, {})
    for name, array in weights.items():
        value = model.graph.initializers[name]
        narrow = array.dtype.name in _NARROW
        value.const_value = _Widened(name, array) if narrow else ir.tensor(array, name=name)
    return model


def _declared(variant: Variant) -> Variant:
    def wide(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(msgspec.structs.replace(one, dtype="float32") if one.dtype in _NARROW else one for one in tensors)

    return msgspec.structs.replace(variant, inputs=wide(variant.inputs), outputs=wide(variant.outputs), parity=None)
