"""What a film is told, and when: prompts in time, each in force until the next begins."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from kinograph.runtime.request import Request
from kinograph.runtime.windows import Window

__all__ = ["Story"]

Rows = npt.NDArray[np.float32]


class Story:
    """The prompts of a resolved request; a latent frame has `temporal` frames, and `context` of a film go before."""

    def __init__(self, request: Request, temporal: int, context: int) -> None:
        cues = request.cues or ()
        self.prompts = (request.prompt, *(cue.prompt for cue in cues))
        self._starts = [0.0, *(cue.start for cue in cues), float("inf")]
        self._fps, self._temporal, self._context = float(request.fps or 1), temporal, context
        self._cuts = [self._latent(start) for start in self._starts[1:-1]] if request.cuts else []

    def _latent(self, seconds: float) -> int:
        """The latent frame that begins nearest to a time."""
        return 1 + max(0, round((seconds * self._fps + self._context - 1) / self._temporal))

    def cuts(self, total: int) -> list[int]:
        """At which of a film's `total` latent frames there is a cut."""
        return sorted({number for number in self._cuts if number < total})

    def shares(self, window: Window) -> list[float]:
        """How much of what a window makes each prompt is in force for; they add up to 1."""
        first = window.start + window.given
        if self._cuts:
            shown = sum(number <= first for number in self._cuts)
            return [float(number == shown) for number in range(len(self.prompts))]
        begin = max(0, self._temporal * (first - 1) + 1 - self._context) / self._fps
        end = max(begin + 1 / self._fps, (self._temporal * (window.end - 1) + 1 - self._context) / self._fps)
        return [max(0.0, min(end, b) - max(begin, a)) / (end - begin) for a, b in pairwise(self._starts)]

    def turns(self, windows: Sequence[Window]) -> frozenset[Window]:
        """Those of a film's windows that go on from one that was told something else."""
        return frozenset(b for a, b in pairwise(windows) if not b.cut and self.shares(a) != self.shares(b))

    def unheard(self, windows: Sequence[Window]) -> list[float]:
        """When prompts begin, in seconds, that are in force for nothing of a film."""
        most = np.max([self.shares(window) for window in windows], axis=0)
        return [start for start, share in zip(self._starts[:-1], most, strict=True) if share == 0]

    def told(self, window: Window, rows: Rows) -> Rows:
        """The rows of text [B, L, D] of a window; `rows` are the prompts' and then, if there is one, the negative's."""
        count = len(self.prompts)
        if count == 1:
            return rows
        mixed = np.einsum("p,pld->ld", np.asarray(self.shares(window), np.float32), rows[:count])
        return np.stack([mixed, *rows[count:]])

    def main(self, window: Window) -> tuple[str, float]:
        """The prompt that is in force for most of what a window makes, and for which share of it."""
        share, prompt = max(zip(self.shares(window), self.prompts, strict=True), key=lambda pair: pair[0])
        return prompt, share
