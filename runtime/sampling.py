"""A film's windows, denoised: one after the other, or all together.

A model that can be given frames continues one window from another. One that was trained on text alone cannot, so its
windows are denoised side by side, a step of each in turn; after every step, where two of them show the same latent
frames, both have the mean of the two, weighted from the earlier at the beginning of what they share to the later at its
end (MultiDiffusion, Bar-Tal et al. 2023, arXiv:2302.08113; over time, Wang et al. 2023, arXiv:2305.18264).
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from functools import cached_property, partial
from itertools import pairwise
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import numpy.typing as npt

from kinograph.runtime.binding import Binding
from kinograph.runtime.denoise import TABLES, Inputs, Model, denoise, load_inputs
from kinograph.runtime.events import StepDone
from kinograph.runtime.preview import preview_frames
from kinograph.runtime.solvers import Step, schedule
from kinograph.runtime.speed import shortened

if TYPE_CHECKING:
    from kinograph.engines.protocol import Engine
    from kinograph.manifest import Expert, Preview
    from kinograph.runtime.request import Request
    from kinograph.runtime.windows import Window
    from kinograph.runtime.workshop import Workshop

__all__ = ["Sampler"]

Latents = npt.NDArray[np.float32]
State = dict[str, Latents]
"""What a run carries from step to step, by the names of the step's inputs."""


class Sampler:
    """Denoises what a resolved request asks for."""

    def __init__(self, workshop: Workshop, request: Request) -> None:
        self._shop, self._request = workshop, request
        self._current: str | None = None  # the expert that is open

    @cached_property
    def steps(self) -> Sequence[Step]:
        """The steps of every window."""
        request, manifest = self._request, self._shop.manifest
        solver = msgspec.structs.replace(manifest.solver, name=request.solver or manifest.solver.name)
        count = int(request.num_inference_steps or 0)
        first = 0 if request.remix is None else min(count - 1, count - round(count * request.strength))
        steps = schedule(solver, count, first)
        return steps if request.speed is None else shortened(steps, manifest.speeds[request.speed])

    def alone(self, inputs: Inputs, number: int, windows: int) -> Generator[StepDone, None, Latents]:
        """The latents [1, C, F, H, W] of window `number` of so many."""
        with self._binding(inputs) as binding:
            load_inputs(binding, inputs)
            for step in self._run(binding, inputs, self.steps):
                yield self._done(binding, step, number * len(self.steps) + step.index, windows)
            latents: Latents = binding["sample"].read()
        self._shop.leave_stage()
        return latents

    def together(self, inputs: Sequence[Inputs], windows: Sequence[Window]) -> Generator[StepDone, None, list[Latents]]:
        """The latents of all windows, which are of one size. What they share begins as the same noise."""
        for (one, other), shared in zip(pairwise(inputs), _shared(windows), strict=True):
            other.noise[:, :, 1:shared] = one.noise[:, :, one.noise.shape[2] - shared + 1 :]
        with self._binding(inputs[0]) as binding:
            states: list[State] = [_beginning(binding, one) for one in inputs]
            for step in self.steps:
                for number, its in enumerate(inputs):
                    load_inputs(binding, its)
                    for name, array in states[number].items():
                        binding.write(name, array)
                    for _ in self._run(binding, its, [step]):
                        states[number] = {name: binding[name].read() for name in states[number]}
                    yield self._done(binding, step, step.index * len(inputs) + number, len(inputs))
                _blend(states, windows)
        self._shop.leave_stage()
        return [state["sample"] for state in states]

    def _binding(self, inputs: Inputs) -> Binding:
        """Buffers for these inputs, with the first step's engine."""
        _, _, frames, height, width = inputs.noise.shape
        engine = self._open(self._shop.manifest.expert_at(self.steps[0].timestep))
        return Binding(self._shop.device, engine, {"F": frames, "H": height, "W": width}, without=TABLES)

    def _open(self, expert: Expert) -> Engine:
        if self._current not in (None, expert.component):
            self._shop.leave_stage()
        self._current = expert.component
        return self._shop.engine(expert.component)

    def _run(self, binding: Binding, inputs: Inputs, steps: Sequence[Step]) -> Iterator[Step]:
        request, manifest = self._request, self._shop.manifest
        scales = [float(request.guidance_scale or 1), float(request.guidance_scale_2 or 1)]
        model = Model(manifest, scales, self._open)
        yield from denoise(self._shop.device, binding, inputs, steps, model)

    def _done(self, binding: Binding, step: Step, index: int, windows: int) -> StepDone:
        preview = self._shop.manifest.preview
        shown = None if preview is None else partial(_preview, binding, step, preview)
        return StepDone(index, len(self.steps) * windows, step.timestep, binding["sample"].read, shown)


def _shared(windows: Sequence[Window]) -> list[int]:
    """How many latent frames every two windows that follow each other share; none across a cut."""
    return [0 if other.cut else one.start + one.count - other.start for one, other in pairwise(windows)]


def _beginning(binding: Binding, inputs: Inputs) -> State:
    """Noise, or what a window begins with, and zeros for what there is no earlier step of."""
    start = inputs.noise if inputs.start is None else inputs.start
    names = [name for name in binding.carried if name != "sample"]
    return {"sample": start, **{name: np.zeros_like(binding[name].read()) for name in names}}


def _blend(states: Sequence[State], windows: Sequence[Window]) -> None:
    """Let windows agree on what they share, but for a window's first latent frame, which stands for one frame."""
    for (one, other), shared in zip(pairwise(states), _shared(windows), strict=True):
        if shared < 2:
            continue
        later = (np.arange(1, shared, dtype=np.float32) / shared)[:, None, None]
        for name in one:
            a, b = one[name], other[name]
            mixed = a[:, :, a.shape[2] - shared + 1 :] * (1 - later) + b[:, :, 1:shared] * later
            a[:, :, a.shape[2] - shared + 1 :] = mixed
            b[:, :, 1:shared] = mixed


def _preview(binding: Binding, step: Step, preview: Preview) -> npt.NDArray[np.uint8]:
    """What the step that has just run takes the video for: x₀ = x − σ·v, without the noise that is left."""
    left: Latents = np.float32(step.sigma_next) * binding["prediction"].read()
    return preview_frames(binding["sample"].read() - left, preview)
