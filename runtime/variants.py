"""In which of its precisions every component of a bundle runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kinograph.errors import BundleError, UsageError
from kinograph.manifest import FLOATS, Manifest

if TYPE_CHECKING:
    from kinograph.engines import Device

__all__ = ["check_components", "choose_variants", "resident"]

_RESIDENT_SHARE = 0.25  # of the memory, which weights that stay between stages take at most
_FULL_SHARE = 0.75  # which they take at most together with the text encoder
_TEXT_ENCODER = "text_encoder"


def check_components(manifest: Manifest) -> None:
    """Raises BundleError where a bundle lacks what every video needs."""
    needed = {"text_encoder", "decoder_first", "decoder_next", *(expert.component for expert in manifest.experts)}
    if missing := sorted(needed - manifest.components.keys()):
        raise BundleError(f"{manifest.name} has no {', '.join(missing)}, which making a video needs. Export it again.")


def choose_variants(manifest: Manifest, variant: str | None, device: Device) -> dict[str, str]:
    """The variant of every component: `variant` where it has that, else the best for the device.

    That is the first in the device's order, but floats that would fill the memory come last. What is quantised counts
    where it passed its gate, and not where another variant is asked for.
    """
    chosen: dict[str, str] = {}
    order, most = (*device.variants, *FLOATS), _RESIDENT_SHARE * device.memory_bytes
    for name, component in manifest.components.items():
        passed = {n for n, v in component.variants.items() if variant is None and v.quality and v.quality.passed}
        best = [n for n in order if n in component.variants and (n in FLOATS or n in passed)]
        light = [n for n in best if n not in FLOATS or _weight_bytes(manifest, {name: n}) <= most]
        chosen[name] = variant if variant in component.variants else next(iter([*light, *best, *component.variants]))
    if variant is not None and variant not in chosen.values():
        offered = sorted({name for component in manifest.components.values() for name in component.variants})
        raise UsageError(f"{manifest.name} has no variant {variant!r}; it has: {', '.join(offered)}. Use --variant.")
    return chosen


def resident(manifest: Manifest, variants: dict[str, str], memory_bytes: int) -> frozenset[str]:
    """The components whose engines stay loaded between stages, and for the next video.

    A small model's are all of them. Of a larger one the text encoder, which is opened for new prompts alone, may give
    way to the others; what fills the memory is opened stage by stage.
    """
    others = {name: precision for name, precision in variants.items() if name != _TEXT_ENCODER}
    every, rest = (_weight_bytes(manifest, chosen) for chosen in (variants, others))
    if every <= _RESIDENT_SHARE * memory_bytes:
        return frozenset(variants)
    fits = rest <= _RESIDENT_SHARE * memory_bytes and every <= _FULL_SHARE * memory_bytes
    return frozenset(others if fits else ())


def _weight_bytes(manifest: Manifest, variants: dict[str, str]) -> int:
    files = {
        path for name, precision in variants.items() for path in manifest.components[name].variants[precision].weights
    }
    return sum(manifest.files[path].size for path in files)
