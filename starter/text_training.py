"""The second stage: the text encoder learns to say, at every token, what the whole caption describes.

It takes a minute, and the transformer then finds each attribute at whichever token it attends to; the encoder goes on
learning together with the transformer afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

from kinograph.starter import world
from kinograph.starter.loop import Budget, Loop
from kinograph.starter.model import TEXT_DIM, encode_text, make_text_encoder, make_tokenizer

__all__ = ["ATTRIBUTES", "labels", "train_text", "world_tokenizer"]

ATTRIBUTES: dict[str, Sequence[str]] = {
    "subject": world.SUBJECTS,
    "colour": tuple(world.COLOURS),
    "size": world.SIZES,
    "motion": world.MOTIONS,
    "background": tuple(world.BACKGROUNDS),
}
_CAPTIONS = 20_000  # enough to meet every word many times
_BATCH = 64


def world_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of the world's captions; always the same one."""
    rng = np.random.default_rng(0)
    return make_tokenizer([world.caption(world.sample(rng), rng) for _ in range(_CAPTIONS)])


def labels(scenes: Sequence[world.Scene]) -> torch.Tensor:
    """The scenes' attributes as class indices, int64 [B, attributes]."""
    rows = [[list(words).index(getattr(s, name)) for name, words in ATTRIBUTES.items()] for s in scenes]
    return torch.tensor(rows)


def train_text(folder: Path, budget: Budget, *, seed: int, device: torch.device) -> UMT5EncoderModel:
    """Train the text encoder within the budget, resuming from `folder`, and return its averaged weights."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    tokenizer = world_tokenizer()
    heads = nn.ModuleList(nn.Linear(TEXT_DIM, len(words)) for words in ATTRIBUTES.values())
    module = nn.ModuleDict({"encoder": make_text_encoder(len(tokenizer)), "heads": heads}).to(device)
    loop = Loop(module, budget, folder / "text.pt")
    for _ in loop.steps():
        scenes = [world.sample(rng) for _ in range(_BATCH)]
        hidden = encode_text(module["encoder"], tokenizer, [world.caption(s, rng) for s in scenes], device)
        words = hidden.abs().sum(-1) > 0
        truth = labels(scenes).to(device)
        loss, right = torch.zeros((), device=device), 0.0
        for i, head in enumerate(module["heads"]):
            scores = head(hidden)[words]
            wanted = truth[:, i, None].expand_as(words)[words]
            loss = loss + functional.cross_entropy(scores, wanted)
            right += float((scores.argmax(-1) == wanted).float().mean()) / len(ATTRIBUTES)
        loop.update(loss, accuracy=right)
    return loop.averaged["encoder"]
