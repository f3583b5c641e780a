"""The few-step variant: a transformer that takes the trained one's whole way in four steps, without guidance.

The teacher's guided trajectories are integrated finely from noise to clip and kept where the student will stand. The
student learns, at each of its noise levels, the straight line to the next: from one point on the teacher's way to
another, as progressive distillation does (Salimans and Ho 2022, arXiv:2202.00512), but in one go, and with guidance
built in (Meng et al. 2023, arXiv:2210.03142).
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from diffusers import WanTransformer3DModel
from torch import nn

from kinograph.starter import captions
from kinograph.starter.attention import attention, compile_blocks
from kinograph.starter.clips import training_scenes
from kinograph.starter.dit_training import is_muon
from kinograph.starter.loop import SAVE_EVERY, Budget, Loop, save_atomically
from kinograph.starter.model import FLOW_SHIFT, encode_text, few_steps_scheduler
from kinograph.starter.precision import mixed_precision
from kinograph.starter.text_training import world_tokenizer

__all__ = ["STEPS", "Teaching", "levels", "train_few_steps", "write_trajectories"]

log = logging.getLogger(__name__)

STEPS = 4  # of the student
_SUBSTEPS = 3  # of the teacher to each of the student's
_TEACHERS_WAY = 0.4  # share of the training in which the student stands only where the teacher stood


@dataclass(frozen=True)
class Teaching:
    """How the teacher's trajectories are made: how many, with which guidance, latents' shape [C, F, H, W], where."""

    count: int
    guidance: float
    shape: tuple[int, int, int, int]
    seed: int
    batch: int
    device: torch.device


def levels() -> tuple[torch.Tensor, torch.Tensor]:
    """The student's noise levels, [STEPS + 1], and the timesteps it is given at them, [STEPS]; float32."""
    scheduler = few_steps_scheduler()
    scheduler.set_timesteps(STEPS)
    return scheduler.sigmas.float(), scheduler.timesteps.float()


def _between(first: float, last: float) -> list[float]:
    """Noise levels from `first` to `last`, evenly spaced before the flow shift."""
    even = [sigma / (FLOW_SHIFT - (FLOW_SHIFT - 1) * sigma) for sigma in (first, last)]
    inner = np.linspace(even[0], even[1], _SUBSTEPS + 1)
    return [float(FLOW_SHIFT * x / (1 + (FLOW_SHIFT - 1) * x)) for x in inner]


def _velocity(
    transformer: WanTransformer3DModel, latents: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor
) -> torch.Tensor:
    """The velocity of latents [B, C, F, H, W] at timesteps [B], 0 to 1000; float32."""
    with mixed_precision(latents.device), attention(latents.device):
        return transformer(latents, timestep, text, return_dict=False)[0].float()


@torch.no_grad()
def _trajectories(
    transformer: WanTransformer3DModel, noise: torch.Tensor, text: torch.Tensor, empty: torch.Tensor, guidance: float
) -> torch.Tensor:
    """Guided trajectories at the student's levels, [B, STEPS + 1, C, F, H, W], by two-step Adams-Bashforth."""
    at = levels()[0].tolist()
    x, points = noise, [noise]
    before: tuple[float, torch.Tensor] | None = None
    both = torch.cat([text, empty.expand_as(text)])
    for first, last in pairwise(at):
        grid = _between(first, last)
        for here, there in pairwise(grid):
            timestep = torch.full((2 * len(x),), 1000 * here, device=x.device)
            told, untold = _velocity(transformer, torch.cat([x, x]), timestep, both).chunk(2)
            velocity = untold + guidance * (told - untold)
            step = there - here
            slope = velocity if before is None else velocity + 0.5 * step / before[0] * (velocity - before[1])
            x, before = x + step * slope, (step, velocity)
        points.append(x)
    return torch.stack(points, dim=1)


def write_trajectories(path: Path, module: nn.ModuleDict, teaching: Teaching) -> None:
    """Let the teacher make its clips for random training captions, and write them: points float16, text float16.

    What `path` holds already is kept, and only what is missing made.
    """
    points, texts = [], []
    if path.exists():
        state = torch.load(path, weights_only=True)
        points, texts = [state["points"]], [state["text"]]
    tokenizer, saved = world_tokenizer(), time.monotonic()
    empty = encode_text(module["text_encoder"], tokenizer, [""], teaching.device).float()
    while (made := sum(map(len, points))) < teaching.count:
        rng = np.random.default_rng((teaching.seed, 3, made))
        torch.manual_seed(int(rng.integers(2**31)))
        told = [captions.caption(scene, rng) for scene in training_scenes(teaching.batch, rng)]
        with torch.no_grad():
            text = encode_text(module["text_encoder"], tokenizer, told, teaching.device).float()
        noise = torch.randn(teaching.batch, *teaching.shape, device=teaching.device)
        points.append(_trajectories(module["transformer"], noise, text, empty, teaching.guidance).half().cpu())
        texts.append(text.half().cpu())
        log.info("trajectories %d of %d", made + teaching.batch, teaching.count)
        if time.monotonic() - saved > SAVE_EVERY or made + teaching.batch >= teaching.count:
            save_atomically({"points": torch.cat(points), "text": torch.cat(texts)}, path)
            saved = time.monotonic()


class _Pairs:
    """The teacher's trajectories as the student meets them: a point, and the straight line from it to the next."""

    def __init__(self, path: Path, device: torch.device, seed: int) -> None:
        state = torch.load(path, weights_only=True, mmap=True)
        self.points, self.texts = state["points"].to(device), state["text"].to(device)
        self.sigmas, self.timesteps = (values.to(device) for values in levels())
        self.rng = np.random.default_rng(seed)

    def loss(self, student: WanTransformer3DModel, batch: int, *, own: int = 0) -> torch.Tensor:
        """Mean square of what its velocity is off at random points, each as heavy as its step is long in noise level.

        The first step is the shortest and the last the longest, by as much as the first is the hardest to tell and the
        last the easiest. To `own` of the points, which are a little beside the teacher's way, the student went itself
        from the one before; from there the line leads back.
        """
        device = self.points.device
        chosen = torch.from_numpy(self.rng.integers(len(self.points), size=batch)).to(device)
        steps = torch.from_numpy(self.rng.integers(STEPS, size=batch)).to(device)
        steps[:own] = torch.from_numpy(self.rng.integers(1, STEPS, size=own)).to(device)
        here, there = self.points[chosen, steps].float(), self.points[chosen, steps + 1].float()
        text = self.texts[chosen].float()
        if own:
            with torch.no_grad():
                at, before = steps[:own] - 1, self.points[chosen[:own], steps[:own] - 1].float()
                line = _velocity(student, before, self.timesteps[at], text[:own])
                here[:own] = before + self._stretch(at) * line
        line = (there - here) / self._stretch(steps)
        error = _velocity(student, here, self.timesteps[steps], text) - line
        return (-STEPS * self._stretch(steps) * error.square()).mean()

    def _stretch(self, steps: torch.Tensor) -> torch.Tensor:
        """How far these steps lead in noise level, [B, 1, 1, 1, 1]; negative."""
        return (self.sigmas[steps + 1] - self.sigmas[steps]).view(-1, 1, 1, 1, 1)


def train_few_steps(
    folder: Path, budget: Budget, trajectories: Path, student: WanTransformer3DModel, *, seed: int, batch: int
) -> WanTransformer3DModel:
    """Train the student within the budget, from the weights it comes with, and return its averaged weights."""
    torch.manual_seed(seed)
    module = nn.ModuleDict({"transformer": student.requires_grad_(True)})
    loop = Loop(module, budget, folder / "few_steps.pt", is_muon)
    compile_blocks(student)
    pairs = _Pairs(trajectories, student.device, seed=seed + loop.step)
    for progress in loop.steps():
        loop.update(pairs.loss(student, batch, own=batch // 2 if progress > _TEACHERS_WAY else 0))
    return loop.averaged["transformer"]
