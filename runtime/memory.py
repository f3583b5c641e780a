"""How much memory a run is going to take, stage by stage, before anything is loaded."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from kinograph.errors import MemoryLimitError
from kinograph.manifest import Manifest, resolve_shape

if TYPE_CHECKING:
    from kinograph.bundle import Bundle
    from kinograph.engines.protocol import Axes, Device

__all__ = ["Need", "check_needs", "needs", "stage_bytes"]

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "uint8": 1, "int64": 8}
_TRIES = 12  # of smaller sizes


class Need(NamedTuple):
    """What a component is going to take, in bytes: weights, activations, and the buffers of its inputs and outputs."""

    component: str
    weights: int
    activations: int
    buffers: int

    @property
    def total(self) -> int:
        return self.weights + self.activations + self.buffers


def needs(bundle: Bundle, device: Device, precisions: Mapping[str, str], axes: Mapping[str, Axes]) -> dict[str, Need]:
    """The need of every component of `axes`, at the greatest sizes that it will run at."""
    found = {}
    for component, ranges in axes.items():
        sizes = {axis: most for axis, (_, most) in ranges.items()}
        variant = bundle.component(component).variants[precisions[component]]
        weights, activations = device.footprint(bundle, component, precisions[component], sizes)
        tensors = (*variant.inputs, *variant.outputs)
        buffers = sum(math.prod(resolve_shape(t.shape, sizes)) * _BYTES[t.dtype] for t in tensors)
        found[component] = Need(component, weights, activations, buffers)
    return found


def check_needs(
    manifest: Manifest, device: Device, width: int, height: int, needed: Callable[[int, int], Mapping[str, Need]]
) -> Mapping[str, Need]:
    """The needs of a video of `width` × `height` pixels, as `needed` has them for a size.

    Raises MemoryLimitError, which names the largest size of that shape that fits, where one component alone takes more
    than the device has.
    """
    limit, asked = device.memory_bytes, needed(width, height)
    worst = max(asked.values(), key=lambda need: need.total)
    if worst.total <= limit:
        return asked
    multiple = manifest.geometry.spatial * manifest.geometry.patch
    advice, share = "Use a smaller --variant", 1.0
    for _ in range(_TRIES):
        share *= min(0.9, max(0.3, math.sqrt(limit / worst.total)))
        smaller = tuple(max(multiple, int(side * share) // multiple * multiple) for side in (width, height))
        worst_there = max(needed(*smaller).values(), key=lambda need: need.total)
        if worst_there.total <= limit:
            advice = f"Nearest size that fits: {smaller[0]}x{smaller[1]}. Use --size {smaller[0]}x{smaller[1]}"
            break
        if smaller == (multiple, multiple):
            break
    raise MemoryLimitError(
        f"{worst.component} would take {_gb(worst.total)} at {width}x{height}: weights {_gb(worst.weights)}, "
        f"activations {_gb(worst.activations)}, buffers {_gb(worst.buffers)}; {device.name} has {_gb(limit)}. {advice}"
    )


def stage_bytes(stage: str, needed: Mapping[str, Need], resident: Collection[str]) -> int:
    """What the components of a stage take together, with those that are `resident`, which stay loaded beside it."""
    parts = {"text": ("text",), "image": ("image", "encoder"), "denoise": ("step",), "decode": ("decoder",)}
    own = [need for name, need in needed.items() if name.startswith(parts.get(stage, tuple(needed)))]
    beside = [need for need in needed.values() if need.component in resident and need not in own]
    kept, passing = (_weights(need for need in own if (need.component in resident) == kept) for kept in (True, False))
    work = max((need.activations + need.buffers for need in own), default=0)
    return work + sum(kept) + sum(_weights(beside)) + max(passing, default=0)


def _weights(needs: Iterable[Need]) -> list[int]:
    """Bytes of weights, those that two graphs of a codec share but once."""
    return [need.weights for need in needs if not need.component.endswith("_next")]


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
