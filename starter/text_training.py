"""The second stage: the text encoder learns to say, at every token, what the caption describes.

Every token names the whole scene's kind, background and genre, and, from one subject's words to the next one's, that
subject: which of the scene's subjects it is, in the order of the relation rather than of the words, and all that is
told of it. It takes minutes, and the transformer then finds a subject's looks and motion at whichever of its tokens it
attends to.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

from kinograph.starter import captions, world
from kinograph.starter.loop import Budget, Loop
from kinograph.starter.model import TEXT_DIM, encode_text, make_tokenizer

__all__ = ["ABOUT_ACTORS", "labels", "train_text", "world_tokenizer"]

_MOTIONS = (*world.MOTIONS, "hits left", "hits right", "is hit")
_SIZES = ("", *world.SIZES)
_SCENE: dict[str, tuple[int, Callable[[world.Scene], int]]] = {  # number of values, and which one
    "kind": (len(world.KINDS), lambda scene: list(world.KINDS).index(scene.kind)),
    "background": (len(world.BACKGROUNDS), lambda scene: list(world.BACKGROUNDS).index(scene.background)),
    "genre": (len(world.GENRES), lambda scene: world.GENRES.index(scene.genre)),
}
ABOUT_ACTORS: dict[str, tuple[int, Callable[[world.Actor], int]]] = {
    "subject": (len(world.SUBJECTS), lambda actor: world.SUBJECTS.index(actor.subject)),
    "colour": (len(world.COLOURS), lambda actor: list(world.COLOURS).index(actor.colour)),
    "motion": (len(_MOTIONS), lambda actor: _MOTIONS.index(actor.motion)),
    "facing": (2, lambda actor: int(actor.facing > 0)),
    "size": (len(_SIZES), lambda actor: _SIZES.index(actor.size)),
}
_NONE = -100  # no label: not trained on
_CAPTIONS = 20_000  # enough to meet every word many times
_BATCH = 64
_WORD = re.compile(r"[a-z]+|,")


@functools.cache
def world_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of the world's captions; always the same one."""
    rng = np.random.default_rng(0)
    return make_tokenizer([captions.caption(world.sample(rng), rng) for _ in range(_CAPTIONS)])


def _owners(scene: world.Scene, text: str, length: int) -> list[int]:
    """Which of the scene's actors each of `length` tokens tells of; -1 for none. Every word and comma is one token."""
    words = _WORD.findall(text)
    owners = [-1] * length
    starts = {}
    for number, actor in enumerate(scene.actors):
        at = next(i for i in range(len(words)) if words[i : i + 2] == [actor.colour, actor.subject])
        starts[at] = number
    current = -1
    for i in range(min(len(words), length)):
        current = starts.get(i, current)
        owners[i] = current
    return owners


def labels(scenes: Sequence[world.Scene], texts: Sequence[str], length: int) -> dict[str, torch.Tensor]:
    """What every token is to name: for each name int64 [B, L], -100 where there is nothing to name."""
    found: dict[str, list[list[int]]] = {name: [] for name in (*_SCENE, *ABOUT_ACTORS, "place")}
    for scene, text in zip(scenes, texts, strict=True):
        owners = _owners(scene, text, length)
        for name, (_, value) in _SCENE.items():
            found[name].append([value(scene)] * length)
        for name, (_, about) in ABOUT_ACTORS.items():
            values = [about(actor) for actor in scene.actors]
            found[name].append([values[owner] if owner >= 0 else _NONE for owner in owners])
        found["place"].append([owner if owner >= 0 else _NONE for owner in owners])
    return {name: torch.tensor(rows) for name, rows in found.items()}


def train_text(
    folder: Path, budget: Budget, encoder: UMT5EncoderModel, *, seed: int, device: torch.device
) -> UMT5EncoderModel:
    """Train the text encoder within the budget, resuming from `folder`, and return its averaged weights."""
    rng = np.random.default_rng((seed, 1))
    torch.manual_seed(seed)
    tokenizer = world_tokenizer()
    sizes = {name: count for name, (count, _) in (_SCENE | ABOUT_ACTORS).items()} | {"place": world.MOST_ACTORS}
    heads = nn.ModuleDict({name: nn.Linear(TEXT_DIM, count) for name, count in sizes.items()})
    module = nn.ModuleDict({"encoder": encoder, "heads": heads}).to(device)
    loop = Loop(module, budget, folder / "text.pt")
    for _ in loop.steps():
        scenes = [world.sample(rng) for _ in range(_BATCH)]
        texts = [captions.caption(scene, rng) for scene in scenes]
        hidden = encode_text(module["encoder"], tokenizer, texts, device)
        told = hidden.abs().sum(-1) > 0
        loss, right = torch.zeros((), device=device), {}
        for name, wanted in labels(scenes, texts, hidden.shape[1]).items():
            scores, truth = module["heads"][name](hidden)[told], wanted.to(device)[told]
            loss = loss + functional.cross_entropy(scores, truth, ignore_index=_NONE)
            known = truth != _NONE
            right[name] = (scores.argmax(-1) == truth)[known].float().mean()
        loop.update(loss, **right)
    return loop.averaged["encoder"]
