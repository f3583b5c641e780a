"""What windows keep of how a prompt's part of a film began, so that what it shows stays itself, and its colours too."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Anchor"]

Latents = npt.NDArray[np.float32]

_SAME = 0.35  # mean difference of a cell's channels, up to which it shows the same; latents have a variance of about 1
_LEAST = 0.2  # of all cells, that have to show the same, for their difference to be a drift


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
        """`latents` [1, C, F, H, W] with their colours where the anchor has them: each channel moved as a whole.

        By how much is the median over the cells that show what is usual there, so that what moves is no drift. Where
        those are few, the picture has changed, and nothing is done.
        """
        difference = latents - self.usual
        same = np.abs(difference).mean(axis=1) < _SAME  # [1, F, H, W]
        if same.mean() < _LEAST:
            return latents
        drift = np.median(np.moveaxis(difference, 1, -1)[same], axis=0)
        return np.asarray(latents - drift[None, :, None, None, None], np.float32)
