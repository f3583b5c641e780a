"""Six prompts through one pipeline, as a captioned contact sheet: the picture at the top of the README.

python examples/contact_sheet.py docs/images/starter.png
"""

from __future__ import annotations

import sys

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import kinograph

PROMPTS = (
    "a yellow triangle moves right above a red heart that grows in the night sky, flat style",
    "a purple star stays still left of a blue cat that moves down in front of hills, neon style",
    "a large yellow star moves right in the night sky, neon style",
    "a large orange cat facing right bounces on a plain navy background, flat style",
    "a red ball rolls right and hits a blue ball that rolls on over the sea, flat style",
    "a pink ball bounces, a white square moves up and a red heart spins, from left to right among stars, flat style",
)
SHOWN, SIDE, CAPTION, GAP = 6, 128, 26, 4  # frames a row, then pixels
PAPER, INK = "#ffffff", "#24292f"


def row(prompt: str, frames: np.ndarray) -> Image.Image:
    """Evenly spaced frames of one video, its prompt above them."""
    strip = Image.new("RGB", (SHOWN * (SIDE + GAP) - GAP, CAPTION + SIDE), PAPER)
    ImageDraw.Draw(strip).text((0, 5), prompt, fill=INK, font=ImageFont.load_default(15))
    for place, number in enumerate(np.linspace(0, len(frames) - 1, SHOWN).round().astype(int)):
        frame = Image.fromarray(frames[number]).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        strip.paste(frame, (place * (SIDE + GAP), CAPTION))
    return strip


def main(target: str) -> None:
    with kinograph.load() as pipe:
        rows = [row(prompt, pipe(prompt, seed=7).frames) for prompt in PROMPTS]
    sheet = Image.new("RGB", (rows[0].width + 2 * GAP, len(rows) * (rows[0].height + GAP) + GAP), PAPER)
    for index, strip in enumerate(rows):
        sheet.paste(strip, (GAP, GAP + index * (strip.height + GAP)))
    sheet.save(target, optimize=True)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "sheet.png")
