"""How `kinograph inspect` and `kinograph doctor` lay facts out as text."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
from rich import box
from rich.console import Console as RichConsole
from rich.table import Table
from rich.text import Text

from kinograph.console import json_text
from kinograph.errors import escape

if TYPE_CHECKING:
    from kinograph.manifest import Added, Manifest, Speed, Variant

__all__ = ["describe_speed", "doctor_text", "manifest_json", "manifest_text", "rendered"]

_PLAIN_WIDTH = 160  # columns where stdout is no terminal: wide enough that no figure is cut


def manifest_text(manifest: Manifest) -> str:
    """A bundle's facts and its components, for people."""
    tables = [_components(manifest), *([_engines(manifest)] if manifest.engines else [])]
    return rendered(_facts(_manifest_facts(manifest)), *tables)


def manifest_json(manifest: Manifest) -> str:
    """All of a bundle's manifest, for programs."""
    return json_text(msgspec.to_builtins(manifest))


def doctor_text(report: Mapping[str, Any]) -> str:
    """What `doctor.examine` found, for people."""
    machine, device, starter, video = (report[key] for key in ("machine", "device", "starter", "video"))
    providers = report["providers"]
    missing = ", ".join(report["export_missing"])
    facts = {
        "kinograph": f"{report['kinograph'] or 'not installed as a package'}, Python {report['python']}",
        "packages": ", ".join(f"{name} {found}" for name, found in report["packages"].items()),
        "export": f"missing {missing}: pip install 'kinograph[export]'" if missing else "available",
        "machine": f"{machine['system']}, {machine['cpus']} CPUs, {_size(machine['memory_bytes'])} memory",
        "bytes": "multiplied faster than floats: int8 is taken before them"
        if machine["multiplies_bytes"]
        else "multiplied no faster than floats, for want of VNNI: these are taken before int8",
        "ONNX Runtime": providers if isinstance(providers, str) else ", ".join(providers),
        "--device auto": f"{device['auto']}: {device['because']}",
        "not used": "\n".join(
            f"{one['backend']} on {one['device']}: {one['why_not']}" for one in device["candidates"] if one["why_not"]
        )
        or "nothing",
        "video": f"libavcodec {video['libavcodec']}; "
        + "; ".join(f"{ending}: {', '.join(codecs) or 'none'}" for ending, codecs in video["codecs"].items()),
        "starter": f"{'present' if starter['present'] else 'MISSING'} at {starter['path']}",
    }
    return rendered(_facts(facts))


def _manifest_facts(manifest: Manifest) -> dict[str, str]:
    defaults, geometry, solver, given = manifest.defaults, manifest.geometry, manifest.solver, manifest.conditioning
    multiple = geometry.spatial * geometry.patch
    experts = [
        f"{expert.component} (guidance {expert.guidance_scale:g}"
        + (f", timesteps from {expert.boundary:g})" if len(manifest.experts) > 1 else ")")
        for expert in manifest.experts
    ]
    total = sum(file.size for file in manifest.files.values())
    return {
        "name": manifest.name,
        "family": manifest.family,
        "source": f"{manifest.source.checkpoint} ({manifest.source.pipeline}), exported by {manifest.source.exporter}",
        **({"LoRA": ", ".join(map(_added, manifest.source.loras))} if manifest.source.loras else {}),
        "licence": manifest.source.licence or "not stated",
        "size": f"{_size(total)} in {len(manifest.files)} files, format {manifest.format_version}",
        "geometry": f"sides are multiples of {multiple} pixels up to {multiple * geometry.positions}; "
        f"1 + {geometry.temporal}·k frames up to {1 + geometry.temporal * (geometry.positions - 1)}; "
        f"{geometry.channels} latent channels at 1/{geometry.spatial}",
        "defaults": f"{defaults.width}×{defaults.height}, {defaults.num_frames} frames at {defaults.fps:g} fps, "
        f"{defaults.num_inference_steps} steps",
        "negative": defaults.negative_prompt or "none",
        "solver": f"{solver.name}, shift {solver.shift:g}, {solver.train_timesteps} training timesteps",
        **{f"--speed {name}": describe_speed(level) for name, level in manifest.speeds.items()},
        "experts": ", ".join(experts),
        "given frames": f"{given.kind}, image required" if given.image_required else given.kind,
        **({"judge": manifest.judge} if manifest.judge else {}),
        "text": f"{manifest.text.length} tokens of {manifest.text.dim}; cleaning: {', '.join(manifest.text.cleaning)}",
    }


def _added(lora: Added) -> str:
    expert = "" if lora.expert == 1 else f" for expert {lora.expert}"
    return f"{lora.name} × {lora.strength:g}{expert}"


def describe_speed(level: Speed) -> str:
    """What a speed level computes, and what its videos are like."""
    first, last = level.guided
    guided = sum(first <= stretch.step < last for stretch in level.computed)
    told = f", {guided or 'none'} with guidance" if level.every_row > level.steps else ""
    return (
        f"{len(level.computed)} of {level.steps} steps{told}: "
        f"{level.rows} of {level.every_row} rows, {level.every_row / level.rows:.1f}× fewer; "
        f"PSNR {level.psnr_db:.1f} dB, SSIM {level.ssim:.3f} over {level.videos} videos"
    )


def _components(manifest: Manifest) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("component", "precision", "weights"):
        table.add_column(title, justify="right" if title == "weights" else "left")
    table.add_column("largest difference from PyTorch", justify="right")
    table.add_column("RMS", justify="right")
    table.add_column("of", justify="right")
    table.add_column("measured with")
    for name, component in manifest.components.items():
        for precision, variant in component.variants.items():
            table.add_row(*(Text(escape(cell)) for cell in (name, precision, *_figures(manifest, variant))))
    return table


def _engines(manifest: Manifest) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("engine", "precision", "for", "size", "activations", "layers", "fused attention", "axes", "builder"):
        table.add_column(title)
    for engine in manifest.engines:
        axes = ", ".join(f"{axis} {a}" if a == b else f"{axis} {a}–{b}" for axis, (a, b) in engine.axes.items())
        cells = (
            engine.component,
            engine.precision,
            f"sm{engine.capability}" + (f" ({engine.device})" if engine.device else ""),
            _size(manifest.files[engine.file].size),
            _size(engine.activation_bytes),
            str(engine.layers),
            str(engine.fused_attention),
            axes,
            engine.builder,
        )
        table.add_row(*(Text(escape(cell)) for cell in cells))
    return table


def _figures(manifest: Manifest, variant: Variant) -> tuple[str, str, str, str, str]:
    size = _size(sum(manifest.files[file].size for file in variant.weights if file in manifest.files))
    parity, quality = variant.parity, variant.quality
    if quality is not None:
        told = f"PSNR {quality.psnr_db:.1f} dB, SSIM {quality.ssim:.3f}, velocity {quality.velocity_db:.1f} dB"
        if quality.judged:
            parted = sum(one.lost + one.gained for one in quality.judged.attributes.values())
            asked = sum(one.prompts for one in quality.judged.attributes.values())
            told += f", {100 * (1 - parted / asked):.0f} % the same verdicts"
        return size, "", "", "", f"{'passed' if quality.passed else 'MISSED'} its gate: {told}"
    if parity is None:
        return size, "not measured", "", "", ""
    return size, f"{parity.max_abs:.1e}", f"{parity.rms:.1e}", f"{parity.scale:.2g}", parity.engine


def _facts(facts: Mapping[str, str]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, Text(escape(value)))
    return table


def rendered(*tables: Table) -> str:
    """The tables as text: as wide as the terminal and in its colours, or plain where there is none."""
    terminal = sys.stdout.isatty()
    console = RichConsole(file=sys.stdout if terminal else io.StringIO(), width=None if terminal else _PLAIN_WIDTH)
    with console.capture() as captured:
        console.print(*tables, sep="\n")
    return _trimmed(captured.get().splitlines())


def _trimmed(lines: Iterable[str]) -> str:
    return "\n".join(line.rstrip() for line in lines).rstrip()


def _size(count: float) -> str:
    """A number of bytes, to two or three figures."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while count >= 999.5 and len(units) > 1:
        count /= 1000
        units.pop(0)
    return f"{count:.3g} {units[0]}"
