"""What a clip's subjects weigh in a loss, so that small ones count as large ones do."""

from __future__ import annotations

import torch

__all__ = ["size_weight"]

_USUAL_SHARE = 0.1  # of a clip, that its subjects cover: 0.02 to 0.23
_LEAST, _MOST = 0.5, 6.0


def size_weight(subjects: torch.Tensor) -> torch.Tensor:
    """A factor for each clip's subjects, [B, 1, 1, 1, 1]: 1 where they cover a tenth of it, 2 where half of that.

    `subjects` is how much of each pixel or cell they cover, 0 to 1, [B, 1, T, H, W].
    """
    share = subjects.mean((1, 2, 3, 4), keepdim=True)
    return (_USUAL_SHARE / share.clamp(min=_USUAL_SHARE / _MOST)).clamp(min=_LEAST)
