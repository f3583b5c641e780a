"""`int4-weights`: a text encoder's weights in 4 bits, with a scale for every block of 32, computed with as floats.

A large model's text encoder outweighs the transformer that it serves, and runs once for a video: what it needs is less
memory, not faster products. Ranges of activations are not asked for, so it takes no runs.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["INT4_WEIGHTS", "Blocks"]


@dataclass(frozen=True)
class Blocks:
    """A recipe for weights alone: `size` of them along the input channels share a scale.

    With `search` a block's scale is the one of several that gives it the least error, without it the largest weight's.
    """

    size: int
    search: bool = True
    convolutions = False


INT4_WEIGHTS = Blocks(32)
