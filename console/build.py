"""The work behind `kinograph build`: a bundle's components as TensorRT engines, in a folder of their own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from kinograph.engines import tensorrt
from kinograph.errors import RequestError, UsageError
from kinograph.runtime.codec import latents_per_call
from kinograph.runtime.locate import open_bundle
from kinograph.runtime.output import write_file
from kinograph.runtime.request import Request, resolve

if TYPE_CHECKING:
    from kinograph.bundle import Bundle
    from kinograph.console import Console
    from kinograph.manifest import Manifest

__all__ = ["BuildJob", "build"]

_PRECISIONS = ("bf16", "fp16", "fp32")  # what is built unless a variant is named, best first


class BuildJob(NamedTuple):
    """What one `build` is to do: engines for `capabilities`, for videos of `width` × `height` and `num_frames`."""

    bundle: str | None
    output: str
    capabilities: tuple[int, ...]
    variant: str | None
    width: int | None
    height: int | None
    num_frames: int | None
    force: bool


def build(job: BuildJob, console: Console) -> list[dict[str, Any]]:
    """Build every component for every capability; returns for each its file, size and what it was built from."""
    known = tensorrt.capabilities()
    if unknown := [one for one in job.capabilities if one not in known]:
        there = ", ".join(map(str, known))
        raise UsageError(f"compute capability {unknown[0]} cannot be built for; expected one of: {there}. Use --sm.")
    console.start_stage("load")
    built = []
    with open_bundle(job.bundle) as bundle:
        sizes = _sizes(bundle.manifest, job)
        for component in bundle.manifest.components:
            precision = _precision(bundle.manifest, component, job.variant)
            axes = _axes(bundle.manifest, component, precision, sizes)
            for capability in job.capabilities:
                console.start_stage(f"{component}, sm{capability}")
                plan = tensorrt.build(bundle, component, precision, capability=capability, axes=axes)
                path = Path(job.output) / f"{component}.{precision}.sm{capability}.engine"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_file(str(path), plan, force=job.force)
                built.append(_described(bundle, component, precision, capability, axes, path, plan))
    console.end_stage()
    return built


def _precision(manifest: Manifest, component: str, variant: str | None) -> str:
    variants = manifest.components[component].variants
    order = [*([variant] if variant else []), *_PRECISIONS]
    return next((one for one in order if one in variants), next(iter(variants)))


def _sizes(manifest: Manifest, job: BuildJob) -> tuple[int, int, int]:
    """Latent frames, height and width. Raises UsageError for a variant that there is none of, RequestError."""
    if job.variant is not None and all(job.variant not in c.variants for c in manifest.components.values()):
        offered = sorted({name for component in manifest.components.values() for name in component.variants})
        raise UsageError(
            f"{manifest.name} has no variant {job.variant!r}; it has: {', '.join(offered)}. Use --variant."
        )
    image = "given" if manifest.conditioning.image_required else None
    asked = Request(prompt="", width=job.width, height=job.height, num_frames=job.num_frames, image=image)
    request = resolve(asked, manifest)
    frames, geometry = int(request.num_frames or 1), manifest.geometry
    if frames > (longest := 1 + geometry.temporal * (geometry.positions - 1)):
        raise RequestError(f"{frames} frames at a time: this model makes up to {longest}. Use --frames {longest}")
    return (
        1 + (frames - 1) // geometry.temporal,
        int(request.height or 0) // geometry.spatial,
        int(request.width or 0) // geometry.spatial,
    )


def _axes(manifest: Manifest, component: str, precision: str, sizes: tuple[int, int, int]) -> tensorrt.Axes:
    """The sizes that a component is called with in videos of these latent sizes."""
    frames, height, width = sizes
    axes = {"B": (1, 2), "L": (1, manifest.text.length), "F": (frames, frames)}
    if component == "decoder_next":
        output = next(t for t in manifest.components[component].variants[precision].outputs if t.name == "frames")
        axes["F"] = (1, max(1, min(frames - 1, latents_per_call(output, height, width))))
    return axes | {"H": (height, height), "W": (width, width)}


def _described(
    bundle: Bundle,
    component: str,
    precision: str,
    capability: int,
    axes: Mapping[str, tuple[int, int]],
    path: Path,
    plan: bytes,
) -> dict[str, Any]:
    return {
        "component": component,
        "precision": precision,
        "compute_capability": capability,
        "file": str(path),
        "bytes": len(plan),
        "sha256": hashlib.sha256(plan).hexdigest(),
        "axes": {axis: list(size) for axis, size in axes.items()},
        "builder": tensorrt.builder_version(),
        "bundle_sha256": bundle.digest,
    }
