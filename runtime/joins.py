"""Where latents that are known and new ones meet."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["SAME", "eased"]

Latents = npt.NDArray[np.float32]

SAME = 0.35  # mean difference of a cell's channels, up to which it shows the same; latents have a variance of about 1
_FRAMES = 3  # latent frames over which a difference is spread


def eased(known: Latents, new: Latents) -> Latents:
    """`new` [1, C, F, H, W], led up to from `known` [1, C, 1, H, W], the latent frame beside its first.

    A model comes near what it goes on from, not all the way. Where both show the same, which is decided cell by cell,
    what lies between them is not one step but is spread over several latent frames; what moves is left as it is.
    """
    difference = new[:, :, :1] - known
    same = np.abs(difference).mean(axis=1, keepdims=True) < SAME
    count = min(_FRAMES, new.shape[2])
    left = np.zeros(new.shape[2], np.float32)
    left[:count] = 1 - np.arange(1, count + 1, dtype=np.float32) / (count + 1)
    return np.asarray(new - np.where(same, difference, 0) * left[:, None, None], np.float32)
