"""A training loop that fits a time budget: learning rate, averaged weights, checkpoints and resuming, in one place."""

from __future__ import annotations

import copy
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kinograph.starter.muon import Muon

__all__ = ["SAVE_EVERY", "Budget", "Loop", "save_atomically"]

log = logging.getLogger(__name__)

SAVE_EVERY = 120.0  # seconds
_LOG_EVERY = 20.0  # seconds
_WARM_UP = 100  # steps
_MOST_LOST = 10  # steps in a row: more than chance, and training would go on for hours without learning


@dataclass(frozen=True)
class Budget:
    """How long and how fast to train. `ema` is the largest decay of the averaged weights.

    `muon_rate` is the learning rate of the weights that the `Loop` is told to train with Muon.
    """

    minutes: float
    learning_rate: float
    ema: float = 0.999
    weight_decay: float = 0.01
    muon_rate: float = 5e-3


def save_atomically(state: dict[str, Any], path: Path) -> None:
    """`torch.save` to a temporary sibling, then rename: whoever reads `path` sees a whole file or the previous one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    torch.save(state, temporary)
    temporary.replace(path)


def _as_matrix(weight: torch.Tensor) -> torch.Tensor:
    """A convolution's weight [O, I, ...] as a matrix [O, I·...] in the same memory, whichever way it is laid out."""
    return weight.flatten(1) if weight.is_contiguous() else weight.movedim(1, -1).flatten(1)


def _optimisers(
    module: nn.Module, budget: Budget, is_muon: Callable[[str, nn.Parameter], bool]
) -> tuple[list[torch.optim.Optimizer], dict[nn.Parameter, nn.Parameter]]:
    """AdamW for everything but the weights chosen for Muon (Jordan et al. 2024); biases and gains do not decay.

    Muon trains matrices: a convolution's weight is given to it as one, and the second result says by which parameter.
    """
    groups: dict[str, list[nn.Parameter]] = {"muon": [], "decayed": [], "others": []}
    matrices: dict[nn.Parameter, nn.Parameter] = {}
    for name, parameter in module.named_parameters():
        kind = "muon" if is_muon(name, parameter) else "decayed" if parameter.ndim > 1 else "others"
        if kind == "muon" and parameter.ndim > 2:
            parameter = matrices.setdefault(parameter, nn.Parameter(_as_matrix(parameter.detach())))
        groups[kind].append(parameter)
    rate, decay = budget.learning_rate, budget.weight_decay
    adamw = [
        {"params": groups["decayed"], "weight_decay": decay, "full_rate": rate},
        {"params": groups["others"], "weight_decay": 0.0, "full_rate": rate},
    ]
    optimisers: list[torch.optim.Optimizer] = [torch.optim.AdamW(adamw, lr=rate, betas=(0.9, 0.98), fused=True)]
    if groups["muon"]:
        muon = [{"params": groups["muon"], "weight_decay": decay, "full_rate": budget.muon_rate}]
        optimisers.append(Muon(muon, lr=budget.muon_rate))
    return optimisers, matrices


class Loop:
    """Trains one module until its budget of wall-clock time is used up, resuming from `path` if it exists.

    >>> loop = Loop(module, Budget(minutes=10, learning_rate=1e-3), Path("run/vae.pt"))
    >>> for progress in loop.steps():
    ...     loop.update(loss_of(module, progress))
    >>> averaged = loop.averaged
    """

    def __init__(
        self,
        module: nn.Module,
        budget: Budget,
        path: Path,
        is_muon: Callable[[str, nn.Parameter], bool] = lambda name, parameter: False,
    ) -> None:
        self.module = module
        self.averaged = copy.deepcopy(module).requires_grad_(False)
        self.budget = budget
        self.path = path
        self.step = 0
        self.seconds = 0.0
        self.optimisers, self._matrices = _optimisers(module, budget, is_muon)
        self._lost = 0  # steps in a row whose gradient was not finite
        self._running: dict[str, torch.Tensor] = {}
        if path.exists():
            self._load()

    @property
    def progress(self) -> float:
        """Share of the time budget used, 0 to 1; a budget of nothing is used up."""
        return min(1.0, self.seconds / (self.budget.minutes * 60)) if self.budget.minutes > 0 else 1.0

    def steps(self) -> Iterator[float]:
        """Progress before each step, until the budget is used up; the state is saved on the way and at the end."""
        if self.progress >= 1 and self.path.exists():
            return
        saved = logged = last = time.monotonic()
        while self.progress < 1.0:
            yield self.progress
            now = time.monotonic()
            self.seconds += now - last
            last = now
            if now - logged > _LOG_EVERY:
                logged = now
                figures = " ".join(f"{name} {float(value):.4f}" for name, value in self._running.items())
                log.info("%s step %d, %.0f %%: %s", self.path.stem, self.step, 100 * self.progress, figures)
            if now - saved > SAVE_EVERY:
                saved = now
                self.save()
        self.save()

    def update(self, loss: torch.Tensor, **figures: torch.Tensor) -> None:
        """One optimiser step on this loss; `figures` are averaged for the log.

        Raises ArithmeticError when the gradients of ten steps in a row were not finite.
        """
        rate = self._rate()
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["full_rate"] * rate
        self.module.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        for weight, matrix in self._matrices.items():
            matrix.grad = None if weight.grad is None else _as_matrix(weight.grad)
        if torch.isfinite(norm):
            self._lost = 0
            for optimiser in self.optimisers:
                optimiser.step()
        else:
            self._pass_over()
        self.step += 1
        self._average()
        for name, value in {"loss": loss, **figures}.items():
            value = value.detach()  # not read before it is logged: reading waits for the device
            self._running[name] = self._running.get(name, value).lerp(value, 0.02)

    def _pass_over(self) -> None:
        """Leave out a step whose gradient is not finite; ArithmeticError where there are no others."""
        self._lost += 1
        if self._lost == _MOST_LOST:
            raise ArithmeticError(
                f"{self.path.stem}: the gradient of {_MOST_LOST} steps in a row was not finite; nothing was learnt; "
                "expected one such step at most. Try lower rates; if so from the first step, without torch.compile"
            )

    def save(self) -> None:
        """Write everything needed to go on from here."""
        state = {
            "module": self.module.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "step": self.step,
            "seconds": self.seconds,
        }
        save_atomically(state, self.path)

    def _load(self) -> None:
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        self.module.load_state_dict(state["module"])
        self.averaged.load_state_dict(state["averaged"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.step, self.seconds = state["step"], state["seconds"]
        log.info("%s resumed at step %d, %.0f s", self.path.stem, self.step, self.seconds)

    def _rate(self) -> float:
        """Share of the full learning rate: a linear warm-up, then a cosine to zero at the end of the budget."""
        cosine = 0.5 * (1 + math.cos(math.pi * self.progress))
        return min(1.0, (self.step + 1) / _WARM_UP) * max(cosine, 1e-3)

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.budget.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.averaged.parameters()), list(self.module.parameters()), 1 - decay)
