"""The sizes that a bundle's components are run at: what engines are built for, and what memory is planned by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kinograph.engines.protocol import Axes
from kinograph.manifest import Manifest, Variant
from kinograph.runtime.codec import latents_per_call

__all__ = ["component_axes"]


def component_axes(
    manifest: Manifest,
    precisions: Mapping[str, str],
    frames: tuple[int, int],
    height: int,
    width: int,
    components: Iterable[str],
) -> dict[str, Axes]:
    """The least and greatest sizes of each component's own axes, for videos of these latent sizes.

    `frames` are the least and the most latent frames that are denoised at a time.
    """
    found: dict[str, Axes] = {}
    for component in components:
        variant = manifest.components[component].variants[precisions[component]]
        axes = {
            "B": (1, 2),
            "L": (1, manifest.text.length),
            "F": frames,
            "H": (height, height),
            "W": (width, width),
        }
        if component == "decoder_next":
            output = next(tensor for tensor in variant.outputs if tensor.name == "frames")
            axes["F"] = (1, max(1, min(frames[1] - 1, latents_per_call(output, height, width))))
        elif component == "decoder_first":
            axes["F"] = (1, 1)
        own = _letters(variant)
        found[component] = {axis: sizes for axis, sizes in axes.items() if axis in own}
    return found


def _letters(variant: Variant) -> set[str]:
    return {axis[-1] for tensor in variant.inputs for axis in tensor.shape if isinstance(axis, str)}
