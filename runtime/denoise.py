"""The denoising loop: run the step N times.

All arithmetic is in the step graph; the loop writes a row of the solver's table, runs, and swaps two buffers. It is a
generator, so progress, previews and cancelling belong to whoever iterates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kinograph.engines.protocol import Engine
from kinograph.errors import NumericError
from kinograph.manifest import Expert
from kinograph.runtime.binding import Binding
from kinograph.runtime.conditioning import Given
from kinograph.runtime.solvers import Step

__all__ = ["Inputs", "denoise", "load_inputs"]

Latents = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Inputs:
    """What a run starts from: `noise` [1, C, F, H, W], `text` [B, L, D], what is given, `image` [1, N, D'] or None."""

    noise: Latents
    text: npt.NDArray[np.float32]
    given: Given
    image: npt.NDArray[np.float32] | None = None


def load_inputs(binding: Binding, inputs: Inputs) -> None:
    """Write everything that does not change from step to step, but the text, of which a step may have only one row."""
    binding.write("sample", inputs.noise)
    binding.write("noise", inputs.noise)
    binding.write("known", inputs.given.known)
    binding.write("mask", inputs.given.mask)
    if inputs.image is not None:
        binding.write("image", inputs.image)


def denoise(
    binding: Binding,
    inputs: Inputs,
    steps: Sequence[Step],
    experts: Sequence[Expert],
    scales: Sequence[float],
    open_expert: Callable[[Expert], Engine],
    *,
    noised_known: bool,
) -> Iterator[Step]:
    """Yield every step after it has run; `binding["sample"]` then holds its result.

    `binding` has been loaded with `inputs`. `scales` are the experts' guidance scales; they count where there is a
    second row of text, at steps that are guided. An expert is opened when the first of its steps is due.
    `noised_known`: given frames enter at the step's noise level instead of clean.

    Raises NumericError, naming the step, where the latents are no longer finite.
    """
    current: tuple[Expert, int] | None = None
    _, _, frames, height, width = inputs.noise.shape
    for step in steps:
        expert = next(e for e in experts if step.timestep >= e.boundary)
        rows = inputs.text if step.guided else inputs.text[:1]
        if current != (expert, len(rows)):
            current = expert, len(rows)
            binding.attach(open_expert(expert))
            binding.resize({"B": len(rows), "F": frames, "H": height, "W": width})
            binding.write("text", rows)
            scale = scales[experts.index(expert)]
            # v = v₋ + g·(v₊ − v₋) over the rows (prompt, negative prompt): classifier-free guidance, arXiv:2207.12598
            binding.write("guidance", np.array([scale, 1 - scale] if len(rows) > 1 else [1.0], np.float32))
        weights = (1 - step.sigma, step.sigma) if noised_known else (1.0, 0.0)
        binding.write("known_weights", np.array(weights, np.float32))
        binding.write("timestep", np.array([step.timestep], np.float32))
        binding.write("coefficients", step.coefficients)
        binding.run()
        binding.advance()
        if not np.isfinite(binding["sample"].read()).all():
            raise NumericError(
                f"the latents are NaN or infinite after step {step.index + 1} of {len(steps)} (timestep "
                f"{step.timestep:g}). Try another --variant (fp16 overflows first) or a lower --guidance."
            )
        yield step
