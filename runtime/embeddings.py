"""Prompts as the transformer reads them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kinograph.engines.protocol import Device, Engine
from kinograph.manifest import Text
from kinograph.runtime.binding import Binding
from kinograph.runtime.text import Tokenizer

__all__ = ["embed"]


def embed(
    device: Device, engine: Engine, tokenizer: Tokenizer, text: Text, prompts: Sequence[str]
) -> npt.NDArray[np.float32]:
    """Embeddings [B, L, D] of the prompts by the text encoder `engine`, padded with zeros."""
    rows = np.zeros((len(prompts), text.length, text.dim), np.float32)
    for row, prompt in zip(rows, prompts, strict=True):
        ids = tokenizer.encode(prompt)
        with Binding(device, engine, {"L": len(ids)}) as binding:
            binding.write("input_ids", ids[None])
            binding.write("attention_mask", np.ones((1, len(ids)), np.int64))
            binding.run()
            row[: len(ids)] = binding["embeddings"].read()[0]
    return rows
