"""What a text encoder makes of token ids, and how the step takes it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kinograph.engines.protocol import Device, Engine
from kinograph.manifest import Text
from kinograph.runtime.binding import Binding

__all__ = ["embed", "padded"]

Rows = npt.NDArray[np.float32]


def embed(device: Device, engine: Engine, ids: npt.NDArray[np.int64]) -> Rows:
    """Embeddings [L', D] of token ids [L'] by the text encoder `engine`."""
    with Binding(device, engine, {"L": len(ids)}) as binding:
        binding.write("input_ids", ids[None])
        binding.write("attention_mask", np.ones((1, len(ids)), np.int64))
        binding.run()
        return np.asarray(binding["embeddings"].read()[0], np.float32)


def padded(rows: Sequence[Rows], text: Text) -> Rows:
    """Embeddings [L', D] of several prompts as the step's `text` [B, L, D], with zeros after each one's last token."""
    batch = np.zeros((len(rows), text.length, text.dim), np.float32)
    for place, row in zip(batch, rows, strict=True):
        place[: len(row)] = row
    return batch
