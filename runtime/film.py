"""One film in the making: text, what is given, and window after window of denoising and decoding."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kinograph.engines.protocol import Axes
from kinograph.runtime.anchors import Anchors
from kinograph.runtime.codec import Decoder
from kinograph.runtime.conditioning import Original
from kinograph.runtime.context import Context, Layout
from kinograph.runtime.denoise import Inputs
from kinograph.runtime.events import StageStarted, StepDone, WindowDone
from kinograph.runtime.inpainting import Patch
from kinograph.runtime.joins import dissolved
from kinograph.runtime.noise import Generator as Noise
from kinograph.runtime.request import Request, given_frames
from kinograph.runtime.sampling import Sampler
from kinograph.runtime.sizes import component_axes
from kinograph.runtime.story import Story
from kinograph.runtime.windows import Window, plan, plan_back
from kinograph.runtime.workshop import Workshop

__all__ = ["Film", "Workshop"]

Latents = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class _Part:
    """Latents [1, C, F, H, W] that a window adds to the film."""

    window: Window
    latents: Latents


Making = Generator[StageStarted | StepDone | _Part, None, None]


class Film:
    """Makes one film of a resolved request, led up to by the frames of `before`, and leading to those of `after`.

    The result begins with the last of the former and ends with the first of the latter, faded into what the codec makes
    of them, for that is how all between them looks: a cut from one look to the other would be seen. The latter are
    decoded apart, as they were encoded: in one go with what leads up to them, that would still be seen in their first.
    """

    def __init__(
        self,
        workshop: Workshop,
        request: Request,
        before: Pixels | None,
        after: Pixels | None,
        original: Iterator[Pixels] | None = None,
        patch: Patch | None = None,
    ) -> None:
        self.shop, self.request, self._patch = workshop, request, patch
        geometry, kind = workshop.manifest.geometry, workshop.manifest.conditioning.kind
        self.layout, self.before, self.after = _laid_out(request, workshop, before, after)
        place, ending = self.layout, self.layout.ending // geometry.temporal
        self.story = Story(request, geometry.temporal, place.context)
        self.windows = plan(place.latents, place.window, place.overlap, ending, self.story.cuts(place.latents))
        self._original = None
        if original is not None:
            self._original = Original(workshop.device, workshop.engine, geometry, original)
        self._sampler = Sampler(workshop, request)
        # A film that another is made from is itself what its windows share.
        apart = original is not None or patch is not None or len(self.windows) == 1
        self._together = kind == "noised" and not apart
        self._back = kind == "clean" and before is None and after is not None and not apart
        if self._back:
            self.windows = plan_back(place.latents, place.window, ending)
        anchors = Anchors(self.story) if request.anchor and len(self.windows) > 1 else None
        self._context = Context(workshop, request, place, self.before, self.after, anchors, patch)
        self._turns = self.story.turns(self.windows)
        for start in self.story.unheard(self.windows):
            seconds = float((request.num_frames or 0) / (request.fps or 1))
            warnings.warn(
                f"a prompt that begins at {start:g} s has no part in a film of {seconds:.1f} s. Use more --seconds, or "
                "let it begin earlier",
                stacklevel=2,
            )

    def run(self, done: Latents | None = None) -> Generator[StageStarted | StepDone | WindowDone | Pixels, None, None]:
        """Everything that happens, new frames uint8 [T, H, W, 3] among it.

        `done` are latents [1, C, F, H, W] that an interrupted run of the same film has made.
        """
        with ExitStack() as stack:
            for source in (self._original, self._patch):
                if source is not None:
                    stack.callback(source.close)
            yield from self._run(done)

    def _run(self, done: Latents | None) -> Generator[StageStarted | StepDone | WindowDone | Pixels, None, None]:
        yield StageStarted("text")
        texts = self._embedded()
        if self._context.pieces:
            yield StageStarted("image")
        self._context.take_in()
        if len(self.windows) > 1:
            yield StageStarted("film")
        whole = done is not None and done.shape[2] >= self.layout.latents
        if self._back:
            count, parts = 1, self._led_up(texts, done if whole else None)
        elif self._together and not whole:
            count, parts = len(self.windows), self._side_by_side(texts)
        else:
            count, parts = len(self.windows), self._one_by_one(texts, done)
        number = 0
        with self._decoder() as decoder:
            for part in parts:
                if not isinstance(part, _Part):
                    yield part
                    continue
                if len(self.windows) == 1:
                    yield StageStarted("decode")
                yield from self._decoded(decoder, part)
                yield WindowDone(number, count, part.latents, part.window.cut)
                number += 1

    # Three ways through a film's windows

    def _one_by_one(self, texts: Latents, done: Latents | None) -> Making:
        """Every window goes on from the one before; those that are `done` are only shown."""
        made, count = 0 if done is None else done.shape[2], len(self.windows)
        for number, (window, noise) in enumerate(self._begun()):
            if done is not None and window.end <= made:
                yield _Part(window, done[:, :, window.start + window.given : window.end])
                continue
            if count == 1:
                yield StageStarted("denoise")
            inputs = self._inputs(window, noise, texts)
            latents = yield from self._sampler.alone(inputs, number, count)
            new = latents[:, :, window.given : window.kept]
            yield _Part(window, self._context.settled(window, inputs.given, new))

    def _side_by_side(self, texts: Latents) -> Making:
        """All windows are denoised together, by a model that cannot be given frames."""
        inputs = [self._inputs(window, noise, texts) for window, noise in self._begun()]
        every = yield from self._sampler.together(inputs, self.windows)
        for window, latents in zip(self.windows, every, strict=True):
            yield _Part(window, latents[:, :, window.given : window.kept])

    def _led_up(self, texts: Latents, done: Latents | None) -> Making:
        """A known end is led up to: every window is made before the one that it leads to, and all are shown last."""
        if done is None and self.after is not None:
            self._context.begin_at_end(self.windows[0], self.after)
            for number, (window, noise) in enumerate(self._begun()):
                inputs = self._inputs(window, noise, texts)
                latents = yield from self._sampler.alone(inputs, number, len(self.windows))
                new = self._context.settled(window, inputs.given, latents[:, :, window.given : window.kept])
                self._context.remember(window.start + window.given, new)
            done = self._context.whole()
        if done is not None:
            yield _Part(Window(0, done.shape[2], 0, done.shape[2]), done)

    def _begun(self) -> Iterator[tuple[Window, Latents]]:
        """Every window and its noise [1, C, F, H, W]."""
        noise, channels = Noise(self.request.seed), self.shop.manifest.geometry.channels
        for window in self.windows:
            yield window, noise.normal((1, channels, window.count, *self.layout.cells))

    def _inputs(self, window: Window, noise: Latents, texts: Latents) -> Inputs:
        shape = (1, noise.shape[1], window.count, *self.layout.cells)
        given, image = self._context.given(window, shape, turns=window in self._turns)
        start = None
        if self._original is not None:  # begins with that, at the first step's noise level
            sigma = np.float32(self._sampler.steps[0].sigma)
            start = (1 - sigma) * self._original.window(window) + sigma * noise
            self.shop.leave_stage()
        return Inputs(noise, self.story.told(window, texts), given, image, start)

    def axes(self, precisions: Mapping[str, str], cells: tuple[int, int] | None = None) -> dict[str, Axes]:
        """The components that will run, with the sizes that they will run at; in other `cells`, if given."""
        manifest, counts = self.shop.manifest, [window.count for window in self.windows]
        encoders = [name for name in ("encoder_first", "encoder_next", "image_encoder") if name in manifest.components]
        request, several = self.request, len(counts) > 1
        given = any((several, request.image, request.images, self.before is not None, self.after is not None))
        text = [] if self.shop.prompts.known(self._prompts()) else ["text_encoder"]
        names = [*text, *(expert.component for expert in manifest.experts), "decoder_first", "decoder_next"]
        return component_axes(
            manifest,
            precisions,
            (min(counts), max(counts)),
            *(cells or self.layout.cells),
            [*names, *(encoders if given or request.remix or request.inpaint else [])],
        )

    @property
    def frames(self) -> int:
        """How many frames it has, those that it shares with films that were given among them."""
        return self.layout.context + self.layout.made + (0 if self.after is None else len(self.after))

    def _faded(self, frames: Pixels, at: int) -> Pixels:
        """Frames [T, H, W, 3] from the film's frame `at` on, given ones faded into what was made of them."""
        place, faded = self.layout, frames
        for index, made in enumerate(frames):
            number, later = at + index, at + index - place.context - place.made
            if self.before is not None and number < place.context:
                given, share = self.before[number], 1 - (number + 1) / (place.context + 1)
            elif self.after is not None and 0 <= later < len(self.after):
                given, share = self.after[later], (later + 1) / (len(self.after) + 1)
            else:
                continue
            if faded is frames:
                faded = frames.copy()
            mixed = made.astype(np.float32)
            faded[index] = np.rint(mixed + (given - mixed) * share)
        return faded

    def _embedded(self) -> npt.NDArray[np.float32]:
        """The rows of text of every prompt, and of the negative one where the run is guided."""
        shop = self.shop
        rows = shop.prompts.rows(shop.device, lambda: shop.engine("text_encoder"), self._prompts())
        shop.leave_stage()
        return rows

    def _prompts(self) -> list[str]:
        request = self.request
        return [*self.story.prompts, *([request.negative_prompt or ""] if (request.guidance_scale or 1) > 1 else [])]

    # What comes of it

    def _ending(self, window: Window) -> int:
        """How many of a window's last latent frames are those of the film that follows."""
        last = self.after is not None and window.end == self.layout.latents
        return self.layout.ending // self.layout.temporal if last else 0

    def _decoder(self) -> Decoder:
        engine = self.shop.engine
        return Decoder(self.shop.device, lambda: engine("decoder_first"), lambda: engine("decoder_next"))

    def _decoded(self, decoder: Decoder, part: _Part) -> Iterator[Pixels]:
        """The frames of a part; the next ones' windows are given what they need of it."""
        window, new, temporal = part.window, part.latents, self.layout.temporal
        number = window.start + window.given  # the film's latent frame
        at = max(0, temporal * (number - 1) + 1) if number else 0  # and frame
        self._context.remember(number, new)
        ending = self._ending(window)
        until = new.shape[2] - ending
        film = _pieces(decoder, new[:, :, :until], new[:, :, :1] if window.cut else None)
        if ending:
            film = dissolved(film, _pieces(decoder, new[:, :, until:], self._context.lead))
        for decoded in film:
            frames = decoded if self._patch is None else self._patch.blend(decoded)
            for offset, frame in enumerate(frames, at):
                if offset % temporal == 0:
                    self._context.show(offset // temporal, frame)
            yield self._faded(frames[: max(0, self.frames - at)], at)
            at += len(frames)
        self._context.leave(window, new)
        self.shop.leave_stage()


def _pieces(decoder: Decoder, latents: Latents, lead: Latents | None) -> Iterator[Pixels]:
    """Frames uint8 [T, H, W, 3] of latents [1, C, F, H, W], which follow from `lead` or from what was decoded last."""
    if lead is not None:
        decoder.cut(lead)
    yield from decoder.frames(latents)


def _laid_out(
    request: Request, workshop: Workshop, before: Pixels | None, after: Pixels | None
) -> tuple[Layout, Pixels | None, Pixels | None]:
    """The layout of a resolved request's film, and as much of the films around it as it is given."""
    geometry = workshop.manifest.geometry
    temporal, overlap, window = geometry.temporal, int(request.overlap or 1), int(request.window or 1)
    width, height = int(request.width or 0), int(request.height or 0)
    last, first = given_frames(overlap, window, temporal)
    context = 0
    if before is not None:  # as much as there is
        context = 1 + temporal * min((last - 1) // temporal, (len(before) - 1) // temporal)
        before = before[-context:]
    if after is not None:
        after = after[:first]
    layout = Layout(
        temporal,
        context,
        int(request.num_frames or 1),
        0 if after is None else temporal * -(-len(after) // temporal),
        1 + (window - 1) // temporal,
        1 + (overlap - 1) // temporal,
        (width, height),
        (height // geometry.spatial, width // geometry.spatial),
    )
    return layout, before, after
