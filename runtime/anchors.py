"""What windows keep of how a prompt's part of a film began, so that what it shows stays itself, and its colours too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kinograph.runtime.joins import SAME
from kinograph.runtime.story import Story
from kinograph.runtime.windows import Window

__all__ = ["Anchor", "Anchors"]

Latents = npt.NDArray[np.float32]

_LEAST = 0.2  # of all cells, that have to show the same, for their difference to be a drift
_ALONE = 0.999  # share of a window that one prompt is in force for


@dataclass(frozen=True)
class Anchor:
    """The latent frame of one frame that later windows begin with, and what all frames of its window showed: both
    float32 [1, C, 1, H, W].
    """

    first: Latents
    usual: Latents

    @classmethod
    def of(cls, first: Latents, following: Latents) -> Anchor:
        """`following` [1, C, F, H, W] are latent frames after the first one; where something moves, it is left out."""
        return cls(first, np.asarray(np.median(following, axis=2, keepdims=True), np.float32))

    def held(self, latents: Latents) -> Latents:
        """`latents` [1, C, F, H, W] with their colours where the anchor has them, cell by cell where that can be told.

        Each channel is moved by the median difference over the cells that show what is usual there, so that what moves
        is no drift. Where those are few, the picture has changed, and nothing is done. Those cells themselves are moved
        by their own median over time: bright and dark parts do not drift alike, and what varies within a window stays.
        """
        difference = latents - self.usual
        away = np.abs(difference).mean(axis=1, keepdims=True)  # [1, 1, F, H, W]
        same = away < SAME
        if same.mean() < _LEAST:
            return latents
        everywhere = np.median(np.moveaxis(difference, 1, -1)[same[:, 0]], axis=0)[None, :, None, None, None]
        seen = same.any(axis=2, keepdims=True)
        own = np.nanmedian(np.where(same | ~seen, difference, np.nan), axis=2, keepdims=True)
        sure = np.clip(2 * (1 - away / SAME), 0, 1)  # what is half as far away is as good as none
        return np.asarray(latents - everywhere - sure * (own - everywhere), np.float32)


class Anchors:
    """The anchors of a film that tells `story`: one for each prompt, from the first window that can be one."""

    def __init__(self, story: Story) -> None:
        self._story = story
        self._kept: dict[str, Anchor] = {}

    def first(self, window: Window) -> Latents | None:
        """The latent frame [1, C, 1, H, W] that a window begins with, if one was kept of what it is told."""
        anchor = self._kept.get(self._story.main(window)[0])
        return None if anchor is None else anchor.first

    def begin(self, window: Window, anchor: Anchor) -> None:
        """Take this for the anchor of what a window is told."""
        self._kept[self._story.main(window)[0]] = anchor

    def held(self, window: Window, made: Latents) -> Latents:
        """What a window made, its colours held if it is told nothing else than its anchor's window."""
        prompt, share = self._story.main(window)
        return self._kept[prompt].held(made) if share > _ALONE and prompt in self._kept else made

    def remember(self, window: Window, made: Latents, ending: Callable[[], Latents]) -> None:
        """Keep what a window made, if it is the first of its prompt.

        What the film's first window begins with was told its prompt. Others began with what was told something else, so
        it is their `ending`, the last frame as a latent frame [1, C, 1, H, W], that later ones are given.
        """
        prompt, share = self._story.main(window)
        if prompt in self._kept:
            return
        if window.start == 0:
            self._kept[prompt] = Anchor.of(made[:, :, :1], made[:, :, 1:] if made.shape[2] > 1 else made)
        elif share > _ALONE:
            self._kept[prompt] = Anchor.of(ending(), made)
