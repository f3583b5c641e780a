"""The report as one HTML page: no script, no network, readable for as long as there are browsers.

It has no times and no prompts, so that it is the same whenever it is made, and gives away nothing of what was asked.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

import numpy as np
import numpy.typing as npt

from kinograph.calibration.compare import Layer, Report
from kinograph.manifest import Judged
from kinograph.runtime.image import contact_sheet, png_bytes

__all__ = ["page"]

Frames = npt.NDArray[np.uint8]

_SHOWN = 4  # videos
_COLUMNS = 6  # frames of each
_AMPLIFIED = 8  # times the difference is shown larger than it is
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 720, 260, 48, 34  # of the plot, in CSS pixels
_TICK = 10  # dB
_STYLE = """
:root { color-scheme: light dark; --line: #0969da; --control: #9a6700; --rule: #8884; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; } td, th { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; } tr { border-bottom: 1px solid var(--rule); }
code { font-size: .85em; overflow-wrap: anywhere; } img { max-width: 100%; image-rendering: pixelated; }
figure { margin: 1rem 0; } figcaption { color: GrayText; } svg { max-width: 100%; height: auto; }
svg text { fill: currentColor; font: 12px system-ui, sans-serif; } .kept { color: var(--control); }
"""


def page(name: str, report: Report, pairs: Sequence[tuple[Frames, Frames]]) -> str:
    """The report on a bundle called `name`; `pairs` are videos uint8 [T, H, W, 3] by the float and the new variant."""
    quality = report.quality
    title = f"{escape(name)}: {escape(report.variant)}"
    facts = [
        ("gate", "passed" if quality.passed else "missed, and written all the same"),
        ("PSNR against float", f"{quality.psnr_db:.1f} dB over {quality.videos} videos"),
        ("SSIM against float", f"{quality.ssim:.4f}"),
        ("velocity", f"{quality.velocity_db:.1f} dB at the worst step"),
        ("weights", f"{report.bytes_before / 1e6:.1f} MB → {report.bytes_after / 1e6:.1f} MB"),
    ]
    if report.text_db is not None:
        facts.append(("embedded prompts", f"{report.text_db:.1f} dB"))
    rows = "".join(f"<tr><th>{label}</th><td>{value}</td></tr>" for label, value in facts)
    shown = "".join(_video(number, *pair) for number, pair in enumerate(pairs[:_SHOWN], 1))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>{_STYLE}</style></head><body>
<h1>{title}</h1>
<table>{rows}</table>
<h2>Error of the velocity over the schedule</h2>
<p>Signal-to-noise ratio of the predicted velocity against the float graph on the same inputs; higher is better. The
control quantises the same layers with one range for each tensor, the smallest and largest value seen, and smooths
nothing.</p>
{_plot(report)}
{_judged(quality.judged) if quality.judged else ""}
<h2>Videos from the same noise</h2>
{shown}
<h2>Layers</h2>
<p>A layer's own error is that of its products on rows that its range was not found on; its effect is what quantising it
alone does to the velocity, or to the decoder's frames. Those that matter most come first.</p>
{_layers(report.layers)}
</body></html>
"""


def _plot(report: Report) -> str:
    """Decibels over timesteps, from noise on the left to the picture on the right, as SVG."""
    timesteps = sorted(report.velocity_db, reverse=True)
    series = {"line": report.velocity_db, "control": report.control_db}
    values = [one[t] for one in series.values() for t in timesteps]
    low = _TICK * np.floor(min(values) / _TICK)
    high = max(low + _TICK, _TICK * np.ceil(max(values) / _TICK))

    def x(number: int) -> float:
        return _LEFT + (_WIDTH - _LEFT - 8) * number / max(1, len(timesteps) - 1)

    def y(decibels: float) -> float:
        return float(8 + (_HEIGHT - _BOTTOM - 8) * (high - decibels) / (high - low))

    parts = []
    for tick in np.arange(low, high + 1, _TICK):
        parts.append(
            f'<path d="M{_LEFT} {y(tick):.1f}H{_WIDTH}" stroke="var(--rule)"/>'
            f'<text x="{_LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:.0f} dB</text>'
        )
    for number, anchor in {0: "start", len(timesteps) // 2: "middle", len(timesteps) - 1: "end"}.items():
        at = f'x="{x(number):.1f}" y="{_HEIGHT - 18}" text-anchor="{anchor}"'
        parts.append(f"<text {at}>{timesteps[number]:.0f}</text>")
    for name, one in series.items():
        points = " ".join(f"{x(i):.1f},{y(one[t]):.1f}" for i, t in enumerate(timesteps))
        parts.append(f'<polyline points="{points}" fill="none" stroke="var(--{name})" stroke-width="2"/>')
    legend = (
        f'<text x="{_WIDTH - 150}" y="22" style="fill: var(--line)">{escape(report.variant)}</text>'
        f'<text x="{_WIDTH - 80}" y="22" style="fill: var(--control)">control</text>'
        f'<text x="{_LEFT}" y="{_HEIGHT - 4}">timestep</text>'
    )
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" role="img">{"".join(parts)}{legend}</svg>'


def _judged(judged: Judged) -> str:
    """What the videos show, by attribute: two accuracies, and how often the verdicts part."""
    rows = []
    for name, one in judged.attributes.items():
        right = one.right - one.lost + one.gained
        cells = (one.prompts, one.right, right, one.prompts - one.lost - one.gained, one.lost, one.gained)
        rows.append(f"<tr><td>{escape(name)}</td>{''.join(f'<td class=n>{cell}</td>' for cell in cells)}</tr>")
    titles = ("prompts", "right, float", "right, quantised", "same verdict", "lost", "gained")
    head = f"<tr><th>attribute</th>{''.join(f'<th class=n>{title}</th>' for title in titles)}</tr>"
    return f"""<h2>What the videos show</h2>
<p>Of {judged.prompts} prompts both made a video from the same noise, and the judge {escape(judged.judge)} told what
each shows. A variant that is as good as the float one loses about as many as it gains.</p>
<table>{head}{"".join(rows)}</table>"""


def _video(number: int, before: Frames, after: Frames) -> str:
    """Frames of both, and between them, one above the other."""
    difference = np.abs(before.astype(np.int16) - after).astype(np.int32) * _AMPLIFIED
    sheets = [
        contact_sheet(frames, _COLUMNS) for frames in (before, after, np.minimum(difference, 255).astype(np.uint8))
    ]
    data = base64.b64encode(png_bytes(np.concatenate(sheets))).decode()
    width = min(960, 2 * sheets[0].shape[1])
    return (
        f'<figure><img width="{width}" alt="video {number}" src="data:image/png;base64,{data}">'
        f"<figcaption>Video {number}: float, quantised, and {_AMPLIFIED} times their difference.</figcaption></figure>"
    )


def _layers(layers: Sequence[Layer]) -> str:
    rows = []
    for layer in sorted(layers, key=lambda one: one.rank):
        names = "<br>".join(f"<code>{escape(name)}</code>" for name in layer.weights)
        effect = "" if layer.effect_db is None else f"{layer.effect_db:.1f}"
        told = f"{layer.format}, smoothed" if layer.smoothed else escape(str(layer.format))
        told = told if layer.format else "<span class=kept>left as it is</span>"
        rows.append(
            f"<tr><td>{names}<br>{escape(layer.component)}</td><td class=n>{layer.noise_db:.1f}</td>"
            f"<td class=n>{effect}</td><td>{told}</td></tr>"
        )
    head = "<tr><th>weights</th><th class=n>own error, dB</th><th class=n>effect, dB</th><th></th></tr>"
    return f"<table>{head}{''.join(rows)}</table>"
