"""The denoising loop: run the step N times.

All arithmetic is in the step graph, and everything that changes from step to step lies in tables on the device before
the loop begins: it binds their rows, runs, and swaps two buffers. Such a loop a device can take as a whole. It is a
generator, so progress, previews and cancelling belong to whoever iterates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt

from kinograph.engines.protocol import Device, Engine, Table
from kinograph.errors import NumericError
from kinograph.manifest import Expert, Manifest
from kinograph.runtime.binding import Binding
from kinograph.runtime.conditioning import Given
from kinograph.runtime.solvers import Step

__all__ = ["TABLES", "Inputs", "Model", "denoise", "load_inputs"]

Latents = npt.NDArray[np.float32]

TABLES = frozenset({"timestep", "known_weights", "coefficients", "text", "guidance"})
"""The inputs that change from step to step, or may: the loop's own."""


@dataclass(frozen=True)
class Inputs:
    """What a run starts from: `noise` [1, C, F, H, W], `text` [B, L, D], what is given, `image` [1, N, D'] or None.

    `start` [1, C, F, H, W] is the first step's sample where that is not the noise alone.
    """

    noise: Latents
    text: npt.NDArray[np.float32]
    given: Given
    image: npt.NDArray[np.float32] | None = None
    start: Latents | None = None


@dataclass(frozen=True)
class Model:
    """What predicts: the experts of `manifest`, the guidance scale of each, and how one is opened."""

    manifest: Manifest
    scales: Sequence[float]
    open: Callable[[Expert], Engine]

    @property
    def noised(self) -> bool:
        """Whether it takes given frames at the step's noise level, and never clean."""
        return self.manifest.conditioning.kind == "noised"

    def parts(self, steps: Sequence[Step]) -> Iterator[tuple[Expert, float, range]]:
        """Every expert in turn, its scale, and which of the steps are its own."""
        start = 0
        for expert, group in groupby(steps, lambda step: self.manifest.expert_at(step.timestep)):
            end = start + len(list(group))
            yield expert, self.scales[self.manifest.experts.index(expert)], range(start, end)
            start = end


def load_inputs(binding: Binding, inputs: Inputs) -> None:
    """Write everything that does not change from step to step, but what is in `TABLES`."""
    binding.write("sample", inputs.noise if inputs.start is None else inputs.start)
    binding.write("noise", inputs.noise)
    binding.write("known", inputs.given.known)
    binding.write("mask", inputs.given.mask)
    if inputs.image is not None:
        binding.write("image", inputs.image)


def denoise(
    device: Device,
    binding: Binding,
    inputs: Inputs,
    steps: Sequence[Step],
    model: Model,
) -> Iterator[Step]:
    """Yield steps after they have run, each or the last of several; `binding["sample"]` then holds its result.

    `binding` is without `TABLES` and has been loaded with `inputs`. The model's guidance scales count where there is a
    second row of text, at steps that are guided. An expert is opened when the first of its steps is due.

    Raises NumericError, naming the step, where the latents are no longer finite.
    """
    with ExitStack() as stack:

        def table(rows: Sequence[npt.NDArray[np.float32]]) -> Table:
            kept = device.table(np.stack(rows))
            stack.callback(kept.close)
            return kept

        timesteps = table([np.array([step.timestep], np.float32) for step in steps])
        noised = model.noised or inputs.given.noised
        weights = table([np.array(_known_weights(step, noised), np.float32) for step in steps])
        coefficients = table([step.coefficients for step in steps])
        guided = any(step.guided for step in steps) and len(inputs.text) > 1
        texts = [table([inputs.text[:1]]), *([table([inputs.text])] if guided else [])]
        # v = v₋ + g·(v₊ − v₋) over the rows (prompt, negative prompt): classifier-free guidance, arXiv:2207.12598
        alone = table([np.ones(1, np.float32)])

        for expert, scale, numbers in model.parts(steps):
            both = table([np.array([scale, 1 - scale], np.float32)])

            def body(number: int, numbers: range = numbers, both: Table = both) -> None:
                step = numbers[number]
                two = guided and steps[step].guided
                binding.use("timestep", timesteps[step])
                binding.use("known_weights", weights[step])
                binding.use("coefficients", coefficients[step])
                binding.use("text", texts[two][0])
                binding.use("guidance", both[0] if two else alone[0])
                binding.run()
                binding.advance()

            binding.attach(model.open(expert))
            for last in device.repeat(body, len(numbers)):
                _check(binding, steps[numbers[last]])
                yield steps[numbers[last]]


def _known_weights(step: Step, noised: bool) -> tuple[float, float, float]:
    """How much of given latents and of noise enter where they are given, and at which share of the timestep."""
    return (1 - step.sigma, step.sigma, 1.0) if noised else (1.0, 0.0, 0.0)


def _check(binding: Binding, step: Step) -> None:
    if not np.isfinite(binding["sample"].read()).all():
        raise NumericError(
            f"the latents are NaN or infinite after step {step.index + 1} (timestep "
            f"{step.timestep:g}). Try another --variant (fp16 overflows first) or a lower --guidance."
        )
