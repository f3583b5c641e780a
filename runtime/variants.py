"""In which of its precisions every component of a bundle runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kinograph.errors import BundleError, UsageError
from kinograph.manifest import Manifest

if TYPE_CHECKING:
    from kinograph.engines import Device

__all__ = ["RESIDENT_SHARE", "check_components", "choose_variants", "weight_bytes"]

_FLOATS = ("fp32", "fp16", "bf16")  # what an export may write
RESIDENT_SHARE = 0.25
"""Engines stay loaded between stages while the weights are at most this share of the memory."""


def check_components(manifest: Manifest) -> None:
    needed = {"text_encoder", "decoder_first", "decoder_next", *(expert.component for expert in manifest.experts)}
    if missing := sorted(needed - manifest.components.keys()):
        raise BundleError(f"{manifest.name} has no {', '.join(missing)}, which making a video needs. Export it again.")


def choose_variants(manifest: Manifest, variant: str | None, device: Device) -> dict[str, str]:
    """The variant of every component: `variant` where it has that, else the best for the device.

    That is the first in the device's order, but floats that would fill the memory come last. What is quantised counts
    where it passed its gate, and not where another variant is asked for.
    """
    chosen: dict[str, str] = {}
    order, most = (*device.variants, *_FLOATS), RESIDENT_SHARE * device.memory_bytes
    for name, component in manifest.components.items():
        passed = {n for n, v in component.variants.items() if variant is None and v.quality and v.quality.passed}
        best = [n for n in order if n in component.variants and (n in _FLOATS or n in passed)]
        light = [n for n in best if n not in _FLOATS or weight_bytes(manifest, {name: n}) <= most]
        chosen[name] = variant if variant in component.variants else next(iter([*light, *best, *component.variants]))
    if variant is not None and variant not in chosen.values():
        offered = sorted({name for component in manifest.components.values() for name in component.variants})
        raise UsageError(f"{manifest.name} has no variant {variant!r}; it has: {', '.join(offered)}. Use --variant.")
    return chosen


def weight_bytes(manifest: Manifest, variants: dict[str, str]) -> int:
    files = {
        path for name, precision in variants.items() for path in manifest.components[name].variants[precision].weights
    }
    return sum(manifest.files[path].size for path in files)
