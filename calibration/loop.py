"""The denoising loop, run over and over for its own sake: to be looked into, and to be compared with another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kinograph.bundle.draft import Source
from kinograph.calibration import Progress
from kinograph.calibration.pictures import chosen_pictures
from kinograph.engines.protocol import Contents, Device, Engine
from kinograph.manifest import Expert
from kinograph.runtime.binding import Binding
from kinograph.runtime.conditioning import Given, given_start, image_tokens, nothing_given
from kinograph.runtime.denoise import TABLES, Inputs, Model, denoise, load_inputs
from kinograph.runtime.embeddings import embed, padded
from kinograph.runtime.noise import normal
from kinograph.runtime.solvers import Step, schedule
from kinograph.runtime.text import Tokenizer

__all__ = ["DECODER", "FLOAT", "Experts", "Loop", "Moment", "Start"]

FLOAT = "fp32"  # what is quantised, and what quality is measured against
DECODER = ("decoder_first", "decoder_next")

Latents = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Start:
    """Where a run starts: `noise` [1, C, F, H, W], the embedded prompt `text` [B, L, D], and a picture, if any.

    Of that, what is `given`, and `image`, its tokens [1, N, D'], if the model reads any.
    """

    noise: Latents
    text: npt.NDArray[np.float32]
    given: Given
    image: npt.NDArray[np.float32] | None = None

    @property
    def inputs(self) -> Inputs:
        """As the loop takes it."""
        return Inputs(self.noise, self.text, self.given, self.image)


@dataclass(frozen=True)
class Moment:
    """One step of a run: what went in, as the step graph has it, the velocity, and the sample that came of it."""

    step: Step
    start: Start
    sample: Latents
    history: Latents
    velocity: Latents
    result: Latents


class Loop:
    """The loop of a bundle at its own size, on a device.

    Where the model makes videos from pictures, runs start from those called `images` in turn, or from our own.
    """

    def __init__(self, bundle: Source, device: Device, images: Sequence[str] = ()) -> None:
        manifest = bundle.manifest
        self.bundle, self.device = bundle, device
        geometry, defaults = manifest.geometry, manifest.defaults
        self.shape = (
            1,
            geometry.channels,
            1 + (defaults.num_frames - 1) // geometry.temporal,
            defaults.height // geometry.spatial,
            defaults.width // geometry.spatial,
        )
        self.steps = schedule(manifest.solver, defaults.num_inference_steps)
        self.scale = manifest.experts[0].guidance_scale
        self._pictures: list[npt.NDArray[np.uint8]] = []
        if manifest.conditioning.image_required:
            self._pictures = chosen_pictures(images, defaults.width, defaults.height)
        self._taken: dict[int, tuple[Given, npt.NDArray[np.float32] | None]] = {}

    def starts(
        self, prompts: Sequence[str], precision: str, contents: Contents | None = None, *, first_seed: int = 0
    ) -> list[Start]:
        """A start for every prompt, embedded as `embedded` does; the i-th has the noise of seed `first_seed` + i."""
        texts = self.embedded(prompts, precision, contents)
        return [self.start(seed, text) for seed, text in enumerate(texts, first_seed)]

    def start(self, seed: int, text: npt.NDArray[np.float32]) -> Start:
        """A start with the noise of a seed."""
        return Start(normal(self.shape, seed), text, *self._conditions(seed))

    def _conditions(self, seed: int) -> tuple[Given, npt.NDArray[np.float32] | None]:
        """What a start of that seed is given of its picture, which the seed decides."""
        if not self._pictures:
            return nothing_given(self.shape), None
        number = seed % len(self._pictures)
        if number not in self._taken:
            picture, manifest = self._pictures[number], self.bundle.manifest
            with ExitStack() as stack:

                def open_engine(component: str) -> Engine:
                    engine = self.device.open(self.bundle, component, FLOAT)
                    stack.callback(engine.close)
                    return engine

                given = given_start(self.device, open_engine, picture, self.shape, manifest.geometry.temporal)
                reads = manifest.conditioning.image_tokens
                tokens = image_tokens(self.device, open_engine, picture) if reads else None
            self._taken[number] = given, tokens
        return self._taken[number]

    def embedded(
        self, prompts: Sequence[str], precision: str, contents: Contents | None = None
    ) -> Iterator[npt.NDArray[np.float32]]:
        """Each prompt as the step reads it, [B, L, D], by the text encoder of the bundle, or of a trial of it."""
        manifest = self.bundle.manifest
        tokenizer = Tokenizer(self.bundle.read(manifest.text.tokenizer), manifest.text)
        engine = self.device.open(contents or self.bundle, "text_encoder", precision)
        unguided = [manifest.defaults.negative_prompt] if self.scale > 1 else []
        try:
            for prompt in prompts:
                rows = [embed(self.device, engine, tokenizer.encode(one)) for one in (prompt, *unguided)]
                yield padded(rows, manifest.text)
        finally:
            engine.close()

    def run(
        self, start: Start, open_expert: Callable[[Expert], Engine], steps: Sequence[Step] | None = None
    ) -> Iterator[tuple[Step, Binding]]:
        """Every step after it has run, with the buffers it ran on; other `steps` than the schedule's, if given."""
        first = open_expert(self.expert(self.steps[0]))
        with Binding(self.device, first, self._axes(), without=TABLES) as binding:
            inputs = start.inputs
            load_inputs(binding, inputs)
            for step in self._steps(binding, inputs, self.steps if steps is None else steps, open_expert):
                yield step, binding

    def moments(self, start: Start, open_expert: Callable[[Expert], Engine]) -> Iterator[Moment]:
        """Every step of a run, with what went in and came out."""
        sample, history = start.noise, None
        for step, binding in self.run(start, open_expert):
            if history is None:
                history = np.zeros(binding["history"].shape, np.float32)
            result = binding["sample"].read()
            yield Moment(step, start, sample, history, binding["prediction"].read(), result)
            sample, history = result, binding["history"].read()

    def reference(self, starts: Sequence[Start], progress: Progress) -> list[Moment]:
        """Every step of the float runs from `starts`."""
        found: list[Moment] = []
        with Experts(self, self.bundle, FLOAT) as experts:
            for start in starts:
                for moment in self.moments(start, experts.open):
                    found.append(moment)
                    progress("reference", len(found), len(starts) * len(self.steps))
        return found

    def expert(self, step: Step) -> Expert:
        """Whose step it is."""
        return self.bundle.manifest.expert_at(step.timestep)

    def velocities(self, engine: Engine, moments: Sequence[Moment]) -> list[Latents]:
        """What an engine makes of what went into `moments`, which are all of its component."""
        found = []
        with Binding(self.device, engine, self._axes(), without=TABLES) as binding:
            for moment in moments:
                inputs = moment.start.inputs
                load_inputs(binding, inputs)
                binding.write("sample", moment.sample)
                binding.write("history", moment.history)
                for _ in self._steps(binding, inputs, [moment.step], lambda expert: engine):
                    found.append(binding["prediction"].read())
        return found

    @contextmanager
    def decoder(self, contents: Contents, precision: str) -> Iterator[tuple[Engine, Engine]]:
        """The two engines of a bundle's decoder, or of a trial's."""
        with ExitStack() as stack:
            engines = [self.device.open(contents, name, precision) for name in DECODER]
            for engine in engines:
                stack.callback(engine.close)
            yield engines[0], engines[1]

    def _steps(
        self, binding: Binding, inputs: Inputs, steps: Sequence[Step], open_expert: Callable[[Expert], Engine]
    ) -> Iterator[Step]:
        manifest = self.bundle.manifest
        model = Model(manifest, [expert.guidance_scale for expert in manifest.experts], open_expert)
        return denoise(self.device, binding, inputs, steps, model)

    def _axes(self) -> dict[str, int]:
        _, _, frames, height, width = self.shape
        return {"F": frames, "H": height, "W": width}


class Experts:
    """The step components of a bundle, or of a trial of one, opened one at a time."""

    def __init__(self, loop: Loop, bundle: Contents, precision: str) -> None:
        self._loop, self._bundle, self._precision = loop, bundle, precision
        self._engines: dict[str, Engine] = {}

    def open(self, expert: Expert) -> Engine:
        if expert.component not in self._engines:
            self.close()
            self._engines[expert.component] = self._loop.device.open(self._bundle, expert.component, self._precision)
        return self._engines[expert.component]

    def __enter__(self) -> Experts:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        while self._engines:
            self._engines.popitem()[1].close()
