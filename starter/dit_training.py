"""The diffusion transformer, by flow matching, on what the text encoder says.

The text encoder stays as its own stage left it. After it had been trained along with the transformer, a linear probe of
its tokens found their subject's colour in 27 % and, among several subjects, which one it is in 57 %: it had lost what
its own stage teaches.

Beside the velocity it learns, halfway through its blocks, to name what each of its tokens will show once the noise is
gone: whose shape, colour, motion and facing. That is known here for every clip, and it makes layout and identity come
early (as representation alignment does for large models, Yu et al. 2024, arXiv:2410.06940); the head that names it is
not part of the model.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import WanTransformer3DModel
from torch import nn
from torch.nn import functional
from transformers import UMT5EncoderModel

from kinograph.starter import captions, world
from kinograph.starter.attention import attention, compile_blocks
from kinograph.starter.latents import Cache
from kinograph.starter.loop import Budget, Loop
from kinograph.starter.model import FLOW_SHIFT, encode_tokens, tokenize
from kinograph.starter.precision import mixed_precision
from kinograph.starter.text_training import ABOUT_ACTORS, world_tokenizer
from kinograph.starter.weighting import size_weight

__all__ = ["Draws", "given_frames", "is_muon", "train_dit"]

log = logging.getLogger(__name__)

_NO_CAPTION = 0.1  # share of clips trained without a caption, for classifier-free guidance
_FOREGROUND = 2.0  # extra weight of the subjects' cells, fading with noise: where noise hides them it would bias
_NAMING_WEIGHT = 0.06  # of the cross-entropy of each thing that is named of a token's cells
_NAMED = ("subject", "colour", "motion", "facing")
_VALUES = [1 + ABOUT_ACTORS[name][0] for name in _NAMED]  # values of each, and none
_CAPTIONS = 6  # of each clip
_GIVEN = {"first": 0.55, "start": 0.15, "end": 0.15, "both ends": 0.15}
_LATE = 0.4  # of the clips that are given frames, those that begin amid a motion: only frames can tell of that
_GIVEN_LATE = {"start": 0.5, "end": 0.25, "both ends": 0.25}
_ANCHORED = 0.5  # of the latter that are given their start, those whose first frame is how the motion set off
_PATCH = 2  # side of a token in latent cells


def given_frames(frames: int, rng: np.random.Generator, *, late: bool = False) -> np.ndarray:
    """Which latent frames a clip, of `frames` ≥ 3, is given clean: bool [F], with at least one left to make.

    One that begins amid a motion (`late`) is given its end, or two or more at its start: one does not tell which way it
    goes.
    """
    given, kinds = np.zeros(frames, bool), _GIVEN_LATE if late else _GIVEN
    kind = str(rng.choice(list(kinds), p=list(kinds.values())))
    if kind == "first":
        given[0] = True
    elif kind == "start":
        given[: rng.integers(1 + late, frames)] = True
    elif kind == "end":
        given[rng.integers(1, frames) :] = True
    elif kind == "both ends":
        first = int(rng.integers(1, frames - 1))
        given[:first] = True
        given[rng.integers(first + 1, frames) :] = True
    return given


def is_muon(name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon trains this weight: the matrices inside the transformer's blocks."""
    return parameter.ndim == 2 and "transformer.blocks." in name


class _Halfway:
    """Keeps the hidden states [B, S, D] that a transformer's middle block last gave."""

    def __init__(self, blocks: nn.ModuleList) -> None:
        self.hidden = torch.empty(0)
        blocks[len(blocks) // 2 - 1].register_forward_hook(self._keep)

    def _keep(self, block: nn.Module, inputs: object, output: torch.Tensor) -> None:
        self.hidden = output


def _head(width: int, scores: int) -> nn.Module:
    """Scores from hidden states, whose scale is the transformer's affair."""
    return nn.Sequential(nn.LayerNorm(width, elementwise_affine=False), nn.Linear(width, scores))


@dataclass(frozen=True)
class Draws:
    """What steps are trained on: batches of a cache's clips, which in a share `conditioned` are given clean frames."""

    cache: Cache
    seed: int
    batch: int
    conditioned: float
    device: torch.device


class _Batches:
    """What a step is trained on, drawn on the device from a cache that lies there: no step waits for the CPU.

    Every clip is told in several captions, tokenized beforehand.
    """

    def __init__(self, draws: Draws) -> None:
        self.draws, cache, device = draws, draws.cache, draws.device
        self.latents, self.shares = cache.latents.to(device), cache.shares.to(device)
        self.firsts = cache.firsts.to(device)
        self.shown = _shown(cache.scenes).to(device)
        rng = np.random.default_rng((draws.seed, 5))
        texts = [captions.caption(scene, rng) for scene in cache.scenes for _ in range(_CAPTIONS)]
        self.tokens = tokenize(world_tokenizer(), [*texts, ""]).input_ids.to(device)

    def draw(self, rng: np.random.Generator) -> tuple[torch.Tensor, ...]:
        """Latents [B, C, F, H, W], what each cell shows [B, K, F, H, W], given frames [B, F] and tokens [B, L]."""
        device, frames, count = self.draws.device, self.latents.shape[2], self.draws.batch
        early = len(self.latents) - len(self.firsts)
        chosen, given = rng.integers(early, size=count), np.zeros((count, frames), bool)
        anchored = np.zeros(count, bool)
        if rng.random() < self.draws.conditioned:
            late = rng.random(count) < (_LATE if len(self.firsts) else 0)
            chosen = np.where(late, early + rng.integers(max(1, len(self.firsts)), size=count), chosen)
            given = np.stack([given_frames(frames, rng, late=bool(one)) for one in late])
            anchored = late & given[:, 0] & (rng.random(count) < _ANCHORED)
        clips = torch.from_numpy(chosen).to(device)
        texts = clips * _CAPTIONS + torch.randint(_CAPTIONS, (count,), device=device)
        texts[torch.rand(count, device=device) < _NO_CAPTION] = len(self.tokens) - 1
        latents = self.latents[clips].float()
        ones = torch.from_numpy(np.flatnonzero(anchored)).to(device)
        latents[ones, :, :1] = self.firsts[clips[ones] - early].float()
        covered = torch.einsum("bka,bafhw->bkfhw", self.shown[clips], self.shares[clips].float())
        return latents, covered, torch.from_numpy(given).to(device), self.tokens[texts]


def _shown(scenes: Sequence[world.Scene]) -> torch.Tensor:
    """Whether the background and each actor show none, and each value, of each of `_NAMED`: float [N, K, actors + 1].

    A cell's shares of each actor's pixels, times this, are its shares of what is named.
    """
    shown = torch.zeros(len(scenes), sum(_VALUES), 1 + world.MOST_ACTORS)
    start = 0
    for name, values in zip(_NAMED, _VALUES, strict=True):
        about = ABOUT_ACTORS[name][1]
        shown[:, start, 0] = 1
        for i, scene in enumerate(scenes):
            for number, actor in enumerate(scene.actors, start=1):
                shown[i, start + 1 + about(actor), number] = 1
        start += values
    return shown


def _tokens(cells: torch.Tensor) -> torch.Tensor:
    """Latent cells [B, K, F, H, W] by token: [B, S, cells of a token, K]."""
    batch, kinds, frames, height, width = cells.shape
    split = cells.view(batch, kinds, frames, height // _PATCH, _PATCH, width // _PATCH, _PATCH)
    return split.permute(0, 2, 3, 5, 4, 6, 1).reshape(batch, -1, _PATCH * _PATCH, kinds)


def _loss(
    module: nn.ModuleDict,
    halfway: _Halfway,
    text: torch.Tensor,
    latents: torch.Tensor,
    covered: torch.Tensor,
    given: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Flow matching (Lipman et al. 2022, arXiv:2210.02747): x = (1 − σ)·latents + σ·noise, target noise − latents.

    Given frames stay clean at timestep 0 and carry no loss. Also returns the mean cross-entropy of the naming head.
    """
    batch, _, frames, height, width = latents.shape
    sigma = torch.rand(batch, device=latents.device)
    sigma = FLOW_SHIFT * sigma / (1 + (FLOW_SHIFT - 1) * sigma)
    noise = torch.randn_like(latents)
    sigmas = (sigma[:, None] * ~given).view(batch, 1, frames, 1, 1)
    noisy = (1 - sigmas) * latents + sigmas * noise
    tokens = (height // _PATCH) * (width // _PATCH)
    timesteps = 1000 * sigma  # one for a whole clip is the same as one for each token, and a third faster
    if given.any():
        timesteps = (1000 * sigmas).view(batch, frames, 1).expand(-1, -1, tokens).reshape(batch, -1)
    with mixed_precision(latents.device), attention(latents.device):
        velocity = module["transformer"](noisy, timesteps, text, return_dict=False)[0]
        scores = module["naming"](halfway.hidden)
    subjects = 1 - covered[:, :1]
    weight = 1 + _FOREGROUND * size_weight(subjects) * subjects * (1 - sigmas)
    weight = weight * ~given.view(batch, 1, frames, 1, 1)
    error = (velocity.float() - (noise - latents)).square().mean(1, keepdim=True)
    shown = _tokens(covered)
    naming = torch.zeros((), device=latents.device)
    for guess, truth in zip(
        scores.float().view(shown.shape).split(_VALUES, dim=-1), shown.split(_VALUES, dim=-1), strict=True
    ):
        naming = naming + functional.cross_entropy(guess.flatten(0, -2), truth.flatten(0, -2))
    return (error * weight).sum() / weight.sum() + _NAMING_WEIGHT * naming, naming.detach() / len(_VALUES)


def train_dit(
    folder: Path,
    budget: Budget,
    draws: Draws,
    text_encoder: UMT5EncoderModel,
    transformer: WanTransformer3DModel,
) -> nn.ModuleDict:
    """Train the transformer within the budget, resuming from `folder`; returns averaged weights, text encoder too."""
    torch.manual_seed(draws.seed)
    width = transformer.config.num_attention_heads * transformer.config.attention_head_dim
    module = nn.ModuleDict(
        {
            "transformer": transformer,
            "text_encoder": text_encoder.requires_grad_(False),
            "naming": _head(width, _PATCH * _PATCH * sum(_VALUES)),
        }
    ).to(draws.device)
    loop = Loop(module, budget, folder / "dit.pt", is_muon)
    halfway = _Halfway(transformer.blocks)
    compile_blocks(transformer)
    rng = np.random.default_rng((draws.seed, loop.step))
    batches: _Batches | None = None
    for _ in loop.steps():
        batches = batches or _Batches(draws)
        latents, covered, given, tokens = batches.draw(rng)
        with torch.no_grad():
            text = encode_tokens(module["text_encoder"], tokens)
        loss, naming = _loss(module, halfway, text, latents, covered, given)
        loop.update(loss, naming=naming)
    return loop.averaged
