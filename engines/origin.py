"""What an engine is: where it came from, by which it is found, and what is known of it."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from kinograph.engines.protocol import Axes, Contents
    from kinograph.engines.tensorrt import Built

__all__ = ["Card", "Origin", "Portability", "sources", "streams", "weight_bytes"]

_FUSED = "_gemm_mha"  # in the name of a layer that does attention in one kernel
_AMPERE = 80

Portability = Literal["same-capability", "ampere-plus"]
"""GPUs that TensorRT lets an engine run on, besides the one that it was built on."""


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """What decides whether an engine is the one that is wanted, whatever its sizes.

    `sources` is what the function of that name gives, `kinograph` the version that is installed. `device` is the GPU's
    name where the builder timed its choices on that GPU. An engine that `streams` can leave weights in the host's
    memory; one for `later_versions` runs on those of its builder too, and one for `gpus` on more than the GPU that it
    was built on.
    """

    component: str
    precision: str
    sources: str
    builder: str
    capability: int
    kinograph: str = msgspec.field(default_factory=lambda: version("kinograph"))
    device: str | None = None
    streams: bool = False
    later_versions: bool = False
    gpus: Portability | None = None

    @property
    def key(self) -> str:
        """What its engines' names begin with."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:32]

    def serves(self, wanted: Origin) -> bool:
        """Whether an engine that came from here is as good as one that came from where it was wanted from."""
        same = "component", "precision", "sources", "kinograph", "streams"
        return (
            all(getattr(self, name) == getattr(wanted, name) for name in same)
            and (self.builder == wanted.builder or (self.later_versions and _later(self.builder, wanted.builder)))
            and (self._where == wanted._where or self._reaches(wanted))
            and self.later_versions >= wanted.later_versions
            and wanted.gpus in (None, self.gpus)
        )

    @property
    def _where(self) -> tuple[int, str | None]:
        return self.capability, self.device

    def _reaches(self, wanted: Origin) -> bool:
        if self.gpus == "ampere-plus":
            return min(self.capability, wanted.capability) >= _AMPERE
        return self.gpus == "same-capability" and self.capability == wanted.capability


class Card(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is known of an engine: its origin, sizes, bytes, sha256, and what its builder said of it.

    `fused_attention` counts the attentions that one kernel does; `file` is its name in the bundle that it came with.
    """

    origin: Origin
    axes: dict[str, tuple[int, int]]
    bytes: int
    sha256: str
    activation_bytes: int
    weight_bytes: int
    layers: int
    fused_attention: int
    file: str | None = None

    def takes(self, axes: Axes) -> bool:
        """Whether it was built for all these sizes."""
        return all(
            axis in self.axes and self.axes[axis][0] <= least and most <= self.axes[axis][1]
            for axis, (least, most) in axes.items()
        )

    @classmethod
    def of(cls, origin: Origin, axes: Axes, built: Built) -> Card:
        """The card of an engine that was just built."""
        return cls(
            origin=origin,
            axes=dict(axes),
            bytes=len(built.plan),
            sha256=hashlib.sha256(built.plan).hexdigest(),
            activation_bytes=built.activation_bytes,
            weight_bytes=built.weight_bytes,
            layers=len(built.layers),
            fused_attention=sum(_FUSED in layer for layer in built.layers),
        )

    @property
    def width(self) -> int:
        """How many sizes it takes; of engines that do, the narrowest is the fastest."""
        total = 1
        for least, most in self.axes.values():
            total *= most - least + 1
        return total

    @property
    def name(self) -> str:
        """Its files' name, without an ending."""
        sizes = hashlib.sha256(msgspec.json.encode(sorted(self.axes.items()))).hexdigest()[:8]
        return f"{self.origin.key}-{sizes}"

    @property
    def file_name(self) -> str:
        """What its file is called outside the cache."""
        return f"{self.origin.component}.{self.origin.precision}.sm{self.origin.capability}.engine"


def sources(contents: Contents, component: str, precision: str) -> str:
    """The sha256 over the sha256 of a component's graph and of its weights' files."""
    variant = contents.component(component).variants[precision]
    total = hashlib.sha256()
    for name in (variant.graph, *variant.weights):
        total.update(contents.sha256(name).encode())
    return total.hexdigest()


def weight_bytes(contents: Contents, component: str, precision: str) -> int:
    """The bytes of a component's weights."""
    return sum(contents.size(name) for name in contents.component(component).variants[precision].weights)


def streams(contents: Contents, component: str, precision: str, budget: int | None) -> bool:
    """Whether a component has more weights than the budget for them on the GPU, if there is one."""
    return budget is not None and weight_bytes(contents, component, precision) > budget


def _later(old: str, new: str) -> bool:
    """Whether `new`, a name and a version such as `TensorRT 10.3.0`, is `old` in a later version of the same number."""
    (old_name, _, old_number), (new_name, _, new_number) = old.rpartition(" "), new.rpartition(" ")
    versions = [tuple(int(part) for part in number.split(".") if part.isdigit()) for number in (old_number, new_number)]
    return old_name == new_name and versions[0][:1] == versions[1][:1] and versions[0] <= versions[1]
