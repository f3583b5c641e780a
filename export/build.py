"""The exporter's five verbs: read the plan, trace, write weights, compare with PyTorch, save."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import msgspec
import onnx_ir as ir

from kinograph.bundle import BundleWriter
from kinograph.bundle.weights import WeightFile
from kinograph.export import ExportOptions, Progress
from kinograph.export.families import read_plan
from kinograph.export.parity import measure
from kinograph.export.plan import Part, Plan
from kinograph.export.precision import PRECISIONS
from kinograph.export.preview import fit_preview
from kinograph.export.trace import Traced
from kinograph.manifest import FORMAT_VERSION, Component, Defaults, Expert, Manifest, Source, Variant

__all__ = ["build"]

_WEIGHTS = "model.safetensors"


def build(checkpoint: Path, bundle: Path, options: ExportOptions, progress: Progress) -> Manifest:
    """See `kinograph.export.export`."""
    plan = read_plan(checkpoint, options.loras)
    components: dict[str, Component] = {}
    with BundleWriter(bundle, force=options.force) as writer:
        writer.file(plan.text.tokenizer).write_bytes(plan.tokenizer)
        for part in plan.parts:
            components |= _export_part(part, writer, options, progress)
        progress("preview", 0, 1)
        preview = fit_preview(_root(writer, plan), components, options.precision, plan.geometry)
        progress("preview", 1, 1)
        manifest = msgspec.structs.replace(_manifest(plan, bundle, components, options), preview=preview)
        writer.save(manifest)
    return manifest


def _export_part(part: Part, writer: BundleWriter, options: ExportOptions, progress: Progress) -> dict[str, Component]:
    progress(f"trace {part.folder}", 0, 1)
    graphs = part.trace(PRECISIONS[options.precision])
    progress(f"trace {part.folder}", 1, 1)
    weights = WeightFile(_WEIGHTS)
    for traced in graphs.values():
        weights.claim(traced.model)
    folder = f"{part.folder}/{options.precision}"
    for done in weights.write(writer.file(f"{folder}/{_WEIGHTS}").parent):
        progress(f"weights {part.folder}", done, weights.size)
    weights.link()
    components = {
        name: _write_graph(writer, folder, _graph_name(part.folder, name), traced, options.precision)
        for name, traced in graphs.items()
    }
    if options.parity:
        progress(f"parity {part.folder}", 0, 1)
        root = writer.file(f"{folder}/{_WEIGHTS}").parent.parent.parent
        figures = measure(root, components, options.precision, part.check())
        components = {
            name: _with_parity(component, options.precision, figures) for name, component in components.items()
        }
        progress(f"parity {part.folder}", 1, 1)
    return components


def _root(writer: BundleWriter, plan: Plan) -> Path:
    """The folder that the bundle is written in."""
    return writer.file(plan.text.tokenizer).parents[plan.text.tokenizer.count("/")]


def _graph_name(folder: str, component: str) -> str:
    return "model" if component == folder else component.removeprefix(f"{folder}_")


def _write_graph(writer: BundleWriter, folder: str, name: str, traced: Traced, precision: str) -> Component:
    path = f"{folder}/{name}.onnx"
    writer.file(path).write_bytes(ir.to_proto(traced.model).SerializeToString())
    variant = Variant(graph=path, weights=(f"{folder}/{_WEIGHTS}",), inputs=traced.inputs, outputs=traced.outputs)
    return Component(variants={precision: variant})


def _with_parity(component: Component, precision: str, figures: object) -> Component:
    variant = msgspec.structs.replace(component.variants[precision], parity=figures)
    return msgspec.structs.replace(component, variants={precision: variant})


def _manifest(plan: Plan, bundle: Path, components: dict[str, Component], options: ExportOptions) -> Manifest:
    return Manifest(
        format_version=FORMAT_VERSION,
        name=options.name or bundle.name,
        family=plan.family,
        source=Source(
            checkpoint=plan.checkpoint.resolve().name,
            pipeline=plan.pipeline,
            exporter=f"kinograph {version('kinograph')}",
            licence=options.licence,
            loras=tuple(lora.added() for lora in options.loras),
        ),
        geometry=plan.geometry,
        defaults=_defaults(plan.defaults, options),
        solver=plan.solver,
        conditioning=plan.conditioning,
        text=plan.text,
        experts=_experts(plan.experts, options),
        components=components,
        files={},
        judge=options.judge,
    )


def _defaults(defaults: Defaults, options: ExportOptions) -> Defaults:
    names = ("width", "height", "num_frames", "fps", "num_inference_steps")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return msgspec.structs.replace(defaults, **given)


def _experts(experts: tuple[Expert, ...], options: ExportOptions) -> tuple[Expert, ...]:
    if options.guidance_scale is None:
        return experts
    return tuple(msgspec.structs.replace(expert, guidance_scale=options.guidance_scale) for expert in experts)
