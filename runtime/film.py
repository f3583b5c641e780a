"""One film in the making: text, what is given, and window after window of denoising and decoding."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from kinograph.engines.protocol import Axes
from kinograph.errors import RequestError
from kinograph.runtime import conditioning
from kinograph.runtime.anchors import Anchor, Anchors
from kinograph.runtime.codec import Decoder
from kinograph.runtime.conditioning import Piece
from kinograph.runtime.denoise import Inputs
from kinograph.runtime.embeddings import embed
from kinograph.runtime.events import StageStarted, StepDone, WindowDone
from kinograph.runtime.image import read_image
from kinograph.runtime.inpainting import Patch
from kinograph.runtime.noise import Generator as Noise
from kinograph.runtime.request import Request, Still, given_frames
from kinograph.runtime.sampling import Sampler
from kinograph.runtime.sizes import component_axes
from kinograph.runtime.story import Story
from kinograph.runtime.windows import Window, plan, plan_back
from kinograph.runtime.workshop import Workshop

__all__ = ["Film", "Workshop"]

Latents = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Layout:
    """Where a film's frames come from: `context` known ones that go before, `made` new ones, `ending` known ones.

    `window` and `overlap` are in latent frames.
    """

    temporal: int
    context: int
    made: int
    ending: int
    window: int
    overlap: int

    @property
    def latents(self) -> int:
        """Latent frames in all."""
        return 1 + (self.context + self.made + self.ending - 1) // self.temporal


class Film:
    """Makes one film of a resolved request, led up to by the frames of `before`, and leading to those of `after`.

    The result begins with the last of the former and ends with the first of the latter, faded into what the codec makes
    of them, for that is how all between them looks: a cut from one look to the other would be seen.
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
        self.shop, self.request = workshop, request
        geometry, temporal = workshop.manifest.geometry, workshop.manifest.geometry.temporal
        overlap, window = int(request.overlap or 1), int(request.window or 1)
        last, first = given_frames(overlap, window, temporal)
        context = 0
        if before is not None:  # as much as there is
            context = 1 + temporal * min((last - 1) // temporal, (len(before) - 1) // temporal)
            before = before[-context:]
        if after is not None:
            after = after[:first]
        self.before, self.after = before, after
        self.layout = Layout(
            temporal,
            context,
            int(request.num_frames or 1),
            0 if after is None else temporal * -(-len(after) // temporal),
            1 + (window - 1) // temporal,
            1 + (overlap - 1) // temporal,
        )
        place = self.layout
        self.story = Story(request, temporal, context)
        cuts = self.story.cuts(place.latents)
        self.windows = plan(place.latents, place.window, place.overlap, place.ending // temporal, cuts)
        self.size = (int(request.width or 0), int(request.height or 0))
        self.cells = (self.size[1] // geometry.spatial, self.size[0] // geometry.spatial)
        self._patch = patch
        self._original = None
        if original is not None:
            self._original = conditioning.Original(workshop.device, workshop.engine, geometry, original)
        self._known: dict[int, Latents] = {}
        self._made: dict[int, Latents] = {}  # the last latent frames, by number
        self._shown: dict[int, Pixels] = {}  # the last frame of each of those
        self._sampler = Sampler(workshop, request)
        # A film that another is made from is itself what its windows share.
        apart = original is not None or patch is not None or len(self.windows) == 1
        self._together = workshop.manifest.conditioning.kind == "noised" and not apart
        clean = workshop.manifest.conditioning.kind == "clean"
        self._back = clean and before is None and after is not None and not apart
        if self._back:
            self.windows = plan_back(place.latents, place.window, place.ending // temporal)
        self._anchors = Anchors(self.story) if request.anchor and len(self.windows) > 1 else None

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
        pieces = self._pieces()
        if pieces:
            yield StageStarted("image")
        tokens = self._take_in(pieces)
        noise, count = Noise(self.request.seed), len(self.windows)
        starts = (noise.normal((1, self.shop.manifest.geometry.channels, w.count, *self.cells)) for w in self.windows)
        if count > 1:
            yield StageStarted("film")
        made: Sequence[Latents] = []
        whole = done is not None and done.shape[2] >= self.layout.latents
        if self._back:
            new = done if whole and done is not None else (yield from self._led_up(starts, texts, tokens))
            yield from self._shown_at_once(new)
            return
        if self._together and not whole:
            inputs = [self._inputs(window, next(starts), texts, tokens) for window in self.windows]
            made = yield from self._sampler.together(inputs, self.windows)
        with self._decoder() as decoder:
            for number, window in enumerate(self.windows):
                kept = slice(window.given, window.kept)
                if made:
                    new = made[number][:, :, kept]
                elif done is not None and window.end <= done.shape[2]:
                    next(starts)
                    new = done[:, :, window.start + window.given : window.end]
                else:
                    if count == 1:
                        yield StageStarted("denoise")
                    its = self._inputs(window, next(starts), texts, tokens)
                    new = (yield from self._sampler.alone(its, number, count))[:, :, kept]
                    if self._anchors is not None and not its.given.mask[:, :, kept].any():
                        new = self._anchors.held(window, new)
                if count == 1:
                    yield StageStarted("decode")
                yield from self._decoded(decoder, window, new)
                yield WindowDone(number, count, new, window.cut)

    def _led_up(
        self,
        starts: Iterator[Latents],
        texts: npt.NDArray[np.float32],
        tokens: npt.NDArray[np.float32] | None,
    ) -> Generator[StepDone, None, Latents]:
        """The latents of a film that leads up to a known one: made from its end, a window before the other."""
        total, count = self.layout.latents, len(self.windows)
        if self._anchors is not None and self.after is not None:
            known = np.concatenate([self._known[number] for number in sorted(self._known)], axis=2)
            self._anchors.begin(self.windows[0], Anchor.of(self._as_first(self.after[0]), known))
        for number, window in enumerate(self.windows):
            its = self._inputs(window, next(starts), texts, tokens)
            latents = yield from self._sampler.alone(its, number, count)
            for local in range(window.given, window.kept):
                self._made[window.start + local] = latents[:, :, local : local + 1]
        every = self._known | self._made
        return np.concatenate([every[number] for number in range(total)], axis=2)

    def _shown_at_once(self, new: Latents) -> Generator[WindowDone | Pixels, None, None]:
        """A film's frames, all of whose latents are there."""
        with self._decoder() as decoder:
            yield from self._decoded(decoder, Window(0, new.shape[2], 0, new.shape[2]), new)
            yield WindowDone(0, 1, new)

    def _inputs(
        self, window: Window, noise: Latents, texts: npt.NDArray[np.float32], tokens: npt.NDArray[np.float32] | None
    ) -> Inputs:
        shape = (1, self.shop.manifest.geometry.channels, window.count, *self.cells)
        given, image = self._conditions(window, shape, tokens)
        return Inputs(noise, self.story.told(window, texts), given, image, self._begun(window, noise))

    def axes(self, precisions: Mapping[str, str], cells: tuple[int, int] | None = None) -> dict[str, Axes]:
        """The components that will run, with the sizes that they will run at; in other `cells`, if given."""
        manifest, counts = self.shop.manifest, [window.count for window in self.windows]
        encoders = [name for name in ("encoder_first", "encoder_next", "image_encoder") if name in manifest.components]
        request, several = self.request, len(counts) > 1
        given = any((several, request.image, request.images, self.before is not None, self.after is not None))
        names = ["text_encoder", *(expert.component for expert in manifest.experts), "decoder_first", "decoder_next"]
        return component_axes(
            manifest,
            precisions,
            (min(counts), max(counts)),
            *(cells or self.cells),
            [*names, *(encoders if given or request.remix or request.inpaint else [])],
        )

    @property
    def frames(self) -> int:
        """How many frames it has, those that it shares with films that were given among them."""
        return self.layout.context + self.layout.made + (0 if self.after is None else len(self.after))

    def _faded(self, frames: Pixels, at: int) -> Pixels:
        """Frames [T, H, W, 3] from the film's frame `at` on, given ones faded into what was made of them."""
        place, mixed = self.layout, frames.astype(np.float32)
        for index in range(len(frames)):
            number, later = at + index, at + index - place.context - place.made
            if self.before is not None and number < place.context:
                mixed[index] += (self.before[number] - mixed[index]) * (1 - (number + 1) / (place.context + 1))
            elif self.after is not None and 0 <= later < len(self.after):
                mixed[index] += (self.after[later] - mixed[index]) * ((later + 1) / (len(self.after) + 1))
        return np.asarray(np.rint(mixed), np.uint8)

    def _embedded(self) -> npt.NDArray[np.float32]:
        """The rows of text of every prompt, and of the negative one where the run is guided."""
        request, manifest = self.request, self.shop.manifest
        negative = [request.negative_prompt or ""] if (request.guidance_scale or 1) > 1 else []
        engine, prompts = self.shop.engine("text_encoder"), [*self.story.prompts, *negative]
        rows = embed(self.shop.device, engine, self.shop.tokenizer, manifest.text, prompts)
        self.shop.leave_stage()
        return rows

    # What is given

    def _pieces(self) -> list[Piece]:
        """Every picture and film that is given, placed."""
        request, place = self.request, self.layout
        width, height = self.size
        stills = [Still(request.image)] if request.image is not None else []
        pieces = []
        for still in (*stills, *request.images):
            number = still.frame + (place.made if still.frame < 0 else 0)
            picture = conditioning.fit(
                read_image(still.path), width, height, resample=Image.Resampling.LANCZOS, how=request.fit
            )
            pieces.append(Piece(picture[None], place.context + number))
        if self.before is not None:
            pieces.append(Piece(self.before, 0))
        if self.after is not None:
            pieces.append(Piece(self.after, place.context + place.made))
        return pieces

    def _take_in(self, pieces: Sequence[Piece]) -> npt.NDArray[np.float32] | None:
        """Encode what is given; returns the image tokens of a model that reads them."""
        manifest, request = self.shop.manifest, self.request
        if not pieces:
            return None
        if "encoder_first" not in manifest.components:
            raise RequestError(f"{manifest.name} cannot start from a picture: it has no encoder. Leave out --image")
        if manifest.conditioning.kind == "channels":
            self._shown[0] = pieces[0].frames[-1]
        else:
            for piece in pieces:
                self._known |= conditioning.encode_piece(self.shop.device, self.shop.engine, manifest.geometry, piece)
        self.shop.leave_stage()
        if not manifest.conditioning.image_tokens:
            return None
        return self._tokens(pieces[0].frames[-1] if request.image is None else read_image(request.image))

    def _tokens(self, picture: Pixels) -> npt.NDArray[np.float32]:
        tokens = conditioning.image_tokens(self.shop.device, self.shop.engine, picture)
        self.shop.leave_stage()
        return tokens

    def _conditions(
        self, window: Window, shape: conditioning.Shape, tokens: npt.NDArray[np.float32] | None
    ) -> tuple[conditioning.Given, npt.NDArray[np.float32] | None]:
        """What a window is given, and the image tokens."""
        device, engine, manifest = self.shop.device, self.shop.engine, self.shop.manifest
        temporal, clip = manifest.geometry.temporal, manifest.conditioning.kind == "channels"
        image = None if window.cut else self._shown.get(window.start)
        if clip:
            if image is None:
                return conditioning.nothing_given(shape), tokens
            given = conditioning.given_start(device, engine, image, shape, temporal)
            self.shop.leave_stage()
            if window.start > 0 and manifest.conditioning.image_tokens:
                tokens = self._tokens(image)
            return given, tokens
        first = None if self._anchors is None else self._anchors.first(window)
        if first is None and image is not None and window.start > 0:
            first = self._as_first(image)
        given = conditioning.given_in(window, shape, self._made | self._known, first)
        if self._patch is not None:
            self._patch.give(given, window)
            self.shop.leave_stage()
        return given, tokens

    def _as_first(self, image: Pixels) -> Latents:
        """A frame as the latent frame [1, C, 1, H, W] that a window begins with."""
        shape = (1, self.shop.manifest.geometry.channels, 1, *self.cells)
        temporal = self.shop.manifest.geometry.temporal
        latents = conditioning.encode_start(self.shop.device, self.shop.engine, image, shape, temporal, clip=False)
        self.shop.leave_stage()
        return latents

    def _begun(self, window: Window, noise: Latents) -> Latents | None:
        """The sample that a window of a film made from another begins with, at the first step's noise level."""
        if self._original is None:
            return None
        sigma = np.float32(self._sampler.steps[0].sigma)
        latents = self._original.window(window)
        self.shop.leave_stage()
        return (1 - sigma) * latents + sigma * noise

    # What comes of it

    def _decoder(self) -> Decoder:
        engine = self.shop.engine
        return Decoder(self.shop.device, lambda: engine("decoder_first"), lambda: engine("decoder_next"))

    def _decoded(self, decoder: Decoder, window: Window, new: Latents) -> Iterator[Pixels]:
        """The frames of a window's new latents; remembers what the next window needs."""
        temporal, place = self.shop.manifest.geometry.temporal, self.layout
        number = window.start + window.given  # the film's latent frame
        at = max(0, temporal * (number - 1) + 1) if number else 0  # and frame
        for index in range(new.shape[2]):
            self._made[number + index] = new[:, :, index : index + 1]
        if window.cut:
            decoder.cut(new)
        for decoded in decoder.frames(new):
            frames = decoded if self._patch is None else self._patch.blend(decoded)
            for offset, frame in enumerate(frames, at):
                if offset % temporal == 0:
                    self._shown[offset // temporal] = frame
            yield self._faded(frames[: max(0, self.frames - at)], at)
            at += len(frames)
        if self._anchors is not None:
            last = self._shown[window.end - 1]
            self._anchors.remember(window, new, lambda: self._as_first(last))
        for kept in (self._made, self._shown):
            for old in [key for key in kept if key < window.end - place.window]:
                del kept[old]
        self.shop.leave_stage()
