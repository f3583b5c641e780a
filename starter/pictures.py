"""Pictures of an evaluation: contact sheets of what it can do and gets wrong, and confusion matrices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from kinograph.starter import world
from kinograph.starter.judge import Verdict
from kinograph.starter.measures import matched, outcomes
from kinograph.starter.sheet import contact_sheet, write_png

__all__ = ["confusion", "write_confusions", "write_sheets"]

Frames = NDArray[np.uint8]

_SHEET = 12  # clips a contact sheet
_KINDS = {"single": ("single",), "pair": ("beside", "above"), "row": ("row",), "wall": ("wall",)}
_KINDS |= {"collision": ("collision",)}
_CELL = 30  # pixels
_FONT = 12  # pixels
_NONE = "none"  # what is shown where nothing was found
_INK, _PAPER, _SHADE = (30, 30, 34), (255, 255, 255), (38, 92, 168)


def write_sheets(
    clips: Sequence[Frames],
    verdicts: Sequence[Verdict],
    scenes: Sequence[world.Scene],
    captions: Sequence[str],
    folder: Path,
) -> None:
    """Contact sheets by kind of scene, of the genres and of mistakes, with the captions in text files beside them."""
    chosen = {name: [i for i, s in enumerate(scenes) if s.kind in kinds] for name, kinds in _KINDS.items()}
    by_genre = [[i for i, s in enumerate(scenes) if s.genre == genre] for genre in world.GENRES]
    chosen["genres"] = [i for same in by_genre for i in same[: _SHEET // len(by_genre)]]
    wrong = {i: _wrong(s, v) for i, (s, v) in enumerate(zip(scenes, verdicts, strict=True))}
    chosen["mistakes"] = [i for i in wrong if wrong[i]]
    for name, numbers in chosen.items():
        shown = numbers[:_SHEET]
        if shown:
            write_png(contact_sheet([clips[i] for i in shown]), folder / f"{name}.png")
            lines = [f"{i}: {captions[i]}" + (f" (wrong: {wrong[i]})" if wrong[i] else "") for i in shown]
            (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")


def _wrong(scene: world.Scene, verdict: Verdict) -> str:
    return ", ".join(name for name, hits in outcomes(scene, verdict).items() if name != "all" and not all(hits))


def write_confusions(scenes: Sequence[world.Scene], verdicts: Sequence[Verdict], folder: Path) -> None:
    """Confusion matrices of subjects, colours, motions, backgrounds and genres as PNG."""
    pairs: dict[str, list[tuple[str, str]]] = {"subject": [], "colour": [], "motion": []}
    for scene, verdict in zip(scenes, verdicts, strict=True):
        for actor, found in zip(scene.actors, matched(scene, verdict), strict=True):
            for name, seen in pairs.items():
                seen.append((getattr(actor, name), getattr(found, name) if found else _NONE))
    for name in ("background", "genre"):
        pairs[name] = [(getattr(s, name), getattr(v, name)) for s, v in zip(scenes, verdicts, strict=True)]
    words = {
        "subject": world.SUBJECTS,
        "colour": tuple(world.COLOURS),
        "motion": (*world.MOTIONS, "hits left", "hits right", "is hit"),
        "background": tuple(world.BACKGROUNDS),
        "genre": world.GENRES,
    }
    for name, seen in pairs.items():
        write_png(confusion(seen, words[name], name), folder / f"confusion-{name}.png")


def confusion(pairs: Sequence[tuple[str, str]], words: Sequence[str], title: str) -> Frames:
    """A confusion matrix of (asked for, shown) as uint8 RGB [H, W, 3]: percentages of each row."""
    columns = [*words, _NONE]
    counts = np.zeros((len(words), len(columns)), np.int64)
    for asked, shown in pairs:
        counts[words.index(asked), columns.index(shown)] += 1
    font = ImageFont.load_default(_FONT)
    margin = max(int(font.getlength(word)) for word in columns) + 14
    top = margin + 24
    size = margin + _CELL * len(columns) + 60, top + _CELL * len(words) + 8
    picture = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((8, 6), f"{title}: asked for (rows), shown (columns), % of a row", _INK, font)
    for j, word in enumerate(columns):
        label = Image.new("RGB", (margin, _CELL), _PAPER)
        ImageDraw.Draw(label).text((4, _CELL // 2), word, _INK, font, anchor="lm")
        picture.paste(label.rotate(90, expand=True), (margin + _CELL * j, 24))
    for i, word in enumerate(words):
        y, total = top + _CELL * i, counts[i].sum()
        draw.text((margin - 6, y + _CELL // 2), word, _INK, font, anchor="rm")
        draw.text((margin + _CELL * len(columns) + 8, y + _CELL // 2), f"n={total}", _INK, font, anchor="lm")
        for j in range(len(columns)):
            share = counts[i, j] / max(total, 1)
            fill = tuple(round(p + (s - p) * share) for p, s in zip(_PAPER, _SHADE, strict=True))
            x = margin + _CELL * j
            draw.rectangle((x, y, x + _CELL, y + _CELL), fill, (214, 214, 214))
            if counts[i, j]:
                ink = _PAPER if share > 0.5 else _INK
                draw.text((x + _CELL // 2, y + _CELL // 2), f"{100 * share:.0f}", ink, font, anchor="mm")
    return np.asarray(picture)
