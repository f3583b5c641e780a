"""The few-step variant: a transformer that takes the trained one's whole way in four steps, without guidance.

The teacher's guided trajectories are integrated finely from noise to clip and kept where the student will stand. The
student learns, at each of its noise levels, the straight line to the next: from one point on the teacher's way to
another, as progressive distillation does (Salimans and Ho 2022, arXiv:2202.00512), but in one go, and with guidance
built in (Meng et al. 2023, arXiv:2210.03142).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from diffusers import WanTransformer3DModel
from torch import nn

from kinograph.starter import captions
from kinograph.starter.attention import attention
from kinograph.starter.clips import training_scenes
from kinograph.starter.dit_training import is_muon
from kinograph.starter.loop import Budget, Loop, save_atomically
from kinograph.starter.model import FLOW_SHIFT, encode_text, few_steps_scheduler
from kinograph.starter.precision import mixed_precision
from kinograph.starter.text_training import world_tokenizer

__all__ = ["STEPS", "Teaching", "levels", "train_few_steps", "write_trajectories"]

log = logging.getLogger(__name__)

STEPS = 4  # of the student
_SUBSTEPS = 3  # of the teacher to each of the student's


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
    """Let the teacher make its clips for random training captions, and write them: points float16, text float16."""
    rng = np.random.default_rng((teaching.seed, 3))
    torch.manual_seed(teaching.seed + 3)
    tokenizer = world_tokenizer()
    empty = encode_text(module["text_encoder"], tokenizer, [""], teaching.device).float()
    points, texts = [], []
    for start in range(0, teaching.count, teaching.batch):
        told = [captions.caption(scene, rng) for scene in training_scenes(teaching.batch, rng)]
        with torch.no_grad():
            text = encode_text(module["text_encoder"], tokenizer, told, teaching.device).float()
        noise = torch.randn(teaching.batch, *teaching.shape, device=teaching.device)
        points.append(_trajectories(module["transformer"], noise, text, empty, teaching.guidance).half().cpu())
        texts.append(text.half().cpu())
        if start % (teaching.batch * 10) == 0:
            log.info("trajectories %d of %d", start, teaching.count)
    save_atomically({"points": torch.cat(points), "text": torch.cat(texts)}, path)


def train_few_steps(
    folder: Path, budget: Budget, trajectories: Path, teacher: WanTransformer3DModel, *, seed: int, batch: int
) -> WanTransformer3DModel:
    """Train the student within the budget, from the teacher's weights, and return its averaged weights."""
    torch.manual_seed(seed)
    state = torch.load(trajectories, weights_only=True, mmap=True)
    device = next(teacher.parameters()).device
    points, texts = state["points"].to(device), state["text"].to(device)
    sigmas, timesteps = (values.to(device) for values in levels())
    module = nn.ModuleDict({"transformer": teacher.requires_grad_(True)})
    loop = Loop(module, budget, folder / "few_steps.pt", is_muon)
    for block in teacher.blocks:
        block.compile()
    rng = np.random.default_rng((seed, 4, loop.step))
    for _ in loop.steps():
        chosen = torch.from_numpy(rng.integers(len(points), size=batch)).to(device)
        step = torch.from_numpy(rng.integers(STEPS, size=batch)).to(device)
        here, there = points[chosen, step].float(), points[chosen, step + 1].float()
        line = (there - here) / (sigmas[step + 1] - sigmas[step]).view(-1, 1, 1, 1, 1)
        velocity = _velocity(teacher, here, timesteps[step], texts[chosen].float())
        loop.update((velocity - line).square().mean())
    return loop.averaged["transformer"]
