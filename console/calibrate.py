"""What `kinograph calibrate` reads and prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from kinograph.console.inspect import describe_speed, rendered
from kinograph.errors import UsageError, escape

if TYPE_CHECKING:
    from kinograph.calibration.compare import Report
    from kinograph.manifest import Judged, Speed

__all__ = ["read_prompts", "report_text", "speeds_text"]

_MAX_BYTES = 16 << 20


def read_prompts(path: str | None) -> tuple[str, ...] | None:
    """The lines of a file of prompts, without empty ones. Raises UsageError where it is none."""
    if path is None:
        return None
    file = Path(path)
    try:
        if not file.is_file():
            raise UsageError(f"--prompts {escape(path)} is no file. Give a text file with a prompt on every line")
        if file.stat().st_size > _MAX_BYTES:
            raise UsageError(f"--prompts {escape(path)} has more than {_MAX_BYTES >> 20} MB, too many for prompts")
        prompts = tuple(line.strip() for line in file.read_text("utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"--prompts {escape(path)} cannot be read as UTF-8 text: {exc}") from exc
    if not prompts:
        raise UsageError(f"--prompts {escape(path)} has no prompts. Write one on every line")
    return prompts


def report_text(report: Report, bundle: str) -> str:
    """The report for people: what it cost at every part of the schedule, which layers stayed, sizes and speeds."""
    quality = report.quality
    steps = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("timestep", "velocity, dB", "control, dB"):
        steps.add_column(title, justify="right")
    for timestep, decibels in sorted(report.velocity_db.items(), reverse=True):
        steps.add_row(f"{timestep:.0f}", f"{decibels:.1f}", f"{report.control_db[timestep]:.1f}")
    layers = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    layers.add_column("weights")
    for title in ("own error, dB", "result, dB", ""):
        layers.add_column(title, justify="right")
    for layer in sorted(report.layers, key=lambda one: one.rank)[:12]:
        layers.add_row(
            Text(layer.weights[0] + (f" and {more} more" if (more := len(layer.weights) - 1) else "")),
            f"{layer.noise_db:.1f}",
            "" if layer.effect_db is None else f"{layer.effect_db:.1f}",
            layer.format or "left as it is",
        )
    counts = Counter(layer.format or "left as they are" for layer in report.layers)
    formats = ", ".join(f"{count} {'' if name.startswith('left') else 'in '}{name}" for name, count in counts.items())
    lines = [
        f"{escape(bundle)}: variant {report.variant} {'passed' if quality.passed else 'MISSED'} its gate: "
        f"PSNR {quality.psnr_db:.1f} dB and SSIM {quality.ssim:.4f} over {quality.videos} videos, "
        f"velocity {quality.velocity_db:.1f} dB at the worst step",
        f"weights {report.bytes_before / 1e6:.1f} MB → {report.bytes_after / 1e6:.1f} MB; "
        + ("" if report.text_db is None else f"embedded prompts {report.text_db:.1f} dB; ")
        + f"a step {_milliseconds(report.step_seconds)}, decoding a video {_milliseconds(report.decode_seconds)}",
        f"{len(report.layers)} layers, {formats}; those that matter most:",
    ]
    told = [lines[0], lines[1], "", rendered(steps)]
    if report.layers:
        told += [lines[2], "", rendered(layers)]
    return "\n".join([*told, *(_judged(quality.judged) if quality.judged else [])])


def _judged(judged: Judged) -> list[str]:
    """What the videos show, by attribute: two accuracies, and how often the verdicts part."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("attribute")
    for title in ("prompts", "float", "variant", "same verdict", "lost", "gained"):
        table.add_column(title, justify="right")
    for name, one in judged.attributes.items():
        counts = (one.right, one.right - one.lost + one.gained, one.prompts - one.lost - one.gained)
        percent = [f"{100 * count / one.prompts:.0f} %" for count in counts]
        table.add_row(Text(escape(name)), str(one.prompts), *percent, str(one.lost), str(one.gained))
    return ["", f"what videos of {judged.prompts} prompts show, as {escape(judged.judge)} has it:", "", rendered(table)]


def speeds_text(speeds: Mapping[str, Speed], bundle: str) -> str:
    """The speed levels that were found, for people."""
    return "\n".join(
        f"{escape(bundle)}: --speed {name} computes {describe_speed(level)}" for name, level in speeds.items()
    )


def _milliseconds(pair: tuple[float, float]) -> str:
    before, after = (1e3 * seconds for seconds in pair)
    return f"{before:.1f} ms → {after:.1f} ms"
