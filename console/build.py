"""The work behind `kinograph build`: a bundle's components as TensorRT engines, in the cache and, if asked, beside."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from kinograph.engines.bundled import write_engines
from kinograph.engines.cache import EngineCache
from kinograph.engines.obtain import Supply
from kinograph.engines.origin import Card, Origin, Portability, sources, streams
from kinograph.engines.tensorrt import capabilities
from kinograph.engines.tensorrt_module import FULL, RTX
from kinograph.engines.tensorrt_toolkit import TensorRT
from kinograph.errors import EngineError, RequestError, UsageError
from kinograph.runtime.locate import BUILT_IN, open_bundle
from kinograph.runtime.output import write_file
from kinograph.runtime.request import Request, resolve
from kinograph.runtime.sizes import component_axes

if TYPE_CHECKING:
    from kinograph.bundle import Bundle
    from kinograph.console import Console
    from kinograph.manifest import Manifest

__all__ = ["BuildJob", "build", "card_text", "described"]

_PRECISIONS = ("bf16", "fp16", "fp32")  # what is built unless a variant is named, best first


class BuildJob(NamedTuple):
    """What one `build` is to do: engines of `target` for `capabilities`, for videos of `width` × `height` pixels.

    Without `capabilities` it is the GPU's own. `output` is a folder for them besides the cache, or None; with
    `into_bundle` they become files of the bundle. `workspace` and `weight_budget` are in bytes: of a component with
    more weights than that, the engine can leave some in the host's memory. Engines for `later_versions` and other
    `gpus` are of TensorRT alone.
    """

    bundle: str | None
    output: str | None
    target: str
    capabilities: tuple[int, ...]
    variant: str | None
    width: int | None
    height: int | None
    num_frames: int | None
    workspace: int | None
    force: bool
    into_bundle: bool = False
    weight_budget: int | None = None
    later_versions: bool = False
    gpus: Portability | None = None


class Place(NamedTuple):
    """What engines are built for: a compute capability, and the GPU's name where it is the one at hand that counts."""

    capability: int
    device: str | None


def build(job: BuildJob, console: Console, cache: EngineCache | None = None) -> list[dict[str, Any]]:
    """Build every component for every capability, unless it is in the cache; returns what there is of each."""
    if job.into_bundle and (job.bundle is None or job.bundle in BUILT_IN):
        raise UsageError("--into-bundle writes into a bundle, and the built-in ones stay as they are. Copy it first")
    toolkit, cache = TensorRT(job.target), cache or EngineCache()
    places = _places(job)
    built, cards = [], []
    with open_bundle(job.bundle, console.start_bytes("load")) as bundle:
        supply = Supply(cache, toolkit, bundle, lambda phase, done, total: console.update(done, total), job.workspace)
        precisions = {name: _precision(bundle.manifest, name, job.variant) for name in bundle.manifest.components}
        frames, height, width = _sizes(bundle.manifest, job)
        sizes = component_axes(bundle.manifest, precisions, (frames, frames), height, width, bundle.manifest.components)
        for component, axes in sizes.items():
            for place in places:
                console.start_stage(f"{component}, sm{place.capability}")
                wanted = _origin(bundle, component, precisions[component], toolkit, place, job)
                card, new = supply.obtain(wanted, axes, axes)
                cards.append(card)
                path = None if job.output is None else _put(cache, card, Path(job.output), job.force)
                built.append(described(card) | {"built": new, "file": path, "bundle_sha256": bundle.digest})
        if job.into_bundle:
            console.start_stage("write")
            write_engines(bundle, cards, cache)
    console.end_stage()
    return built


def described(card: Card) -> dict[str, Any]:
    """An engine's card, for JSON."""
    return {
        "component": card.origin.component,
        "precision": card.origin.precision,
        "compute_capability": card.origin.capability,
        "device": card.origin.device,
        "streams_weights": card.origin.streams,
        "later_versions": card.origin.later_versions,
        "gpus": card.origin.gpus,
        "builder": card.origin.builder,
        "axes": {axis: list(size) for axis, size in card.axes.items()},
        "bytes": card.bytes,
        "sha256": card.sha256,
        "activation_bytes": card.activation_bytes,
        "weight_bytes": card.weight_bytes,
        "layers": card.layers,
        "fused_attention": card.fused_attention,
    }


def card_text(card: Card) -> str:
    """One line about an engine."""
    axes = ", ".join(
        f"{axis} {least}" if least == most else f"{axis} {least}–{most}" for axis, (least, most) in card.axes.items()
    )
    whose = f"sm{card.origin.capability}" + (f" ({card.origin.device})" if card.origin.device else "")
    return (
        f"{card.origin.component:<14} {card.origin.precision:<5} {whose:<6} {card.bytes / 1e6:8.1f} MB, "
        f"activations {card.activation_bytes / 1e6:.1f} MB; {axes}; {card.origin.builder}"
    )


def _places(job: BuildJob) -> list[Place]:
    """Raises UsageError where the target and the capabilities do not go together, EngineError without a GPU to ask."""
    if job.target == FULL and job.capabilities:
        raise UsageError(
            "TensorRT builds for the GPU that it runs on, and takes no --sm. Leave it out, or use --target rtx, which "
            "builds for any"
        )
    if job.target == RTX and (job.later_versions or job.gpus):
        option = "--later-versions" if job.later_versions else "--gpus"
        raise UsageError(
            f"{option} is for --target tensorrt: TensorRT for RTX builds for every compute capability that --sm names, "
            "and loads only what its own version built. Leave it out"
        )
    if job.capabilities:
        known = capabilities()
        if unknown := [one for one in job.capabilities if one not in known]:
            there = ", ".join(map(str, known))
            raise UsageError(
                f"compute capability {unknown[0]} cannot be built for; expected one of: {there}. Use --sm."
            )
        return [Place(one, None) for one in job.capabilities]
    from kinograph.engines.cuda import CudaGpu

    try:
        gpu = CudaGpu()
    except (EngineError, UsageError) as exc:
        way = "Use --sm, such as --sm 89 for Ada" if job.target == RTX else "Build on the machine that will run it"
        raise UsageError(f"there is no GPU here to build for: {exc}. {way}") from exc
    place = Place(gpu.capability, gpu.name if job.target == FULL else None)
    gpu.close()
    return [place]


def _origin(bundle: Bundle, component: str, precision: str, toolkit: TensorRT, place: Place, job: BuildJob) -> Origin:
    return Origin(
        component=component,
        precision=precision,
        sources=sources(bundle, component, precision),
        builder=toolkit.version,
        capability=place.capability,
        device=place.device,
        streams=streams(bundle, component, precision, job.weight_budget),
        later_versions=job.later_versions,
        gpus=job.gpus,
    )


def _put(cache: EngineCache, card: Card, folder: Path, force: bool) -> str:
    """Copy an engine out of the cache; returns where to."""
    plan, path = cache.plan(card), folder / card.file_name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(str(path), plan, force=force)
    return str(path)


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
