"""The pipeline: a bundle and a device, ready to make videos."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt

from kinograph.engines.select import Settings, chosen_name, open_device, open_next
from kinograph.errors import EngineError, Interrupted, RequestError, UsageError
from kinograph.runtime.adapted import AdaptedBundle, check_variant
from kinograph.runtime.clip import Clip, Middle
from kinograph.runtime.codec import decode
from kinograph.runtime.events import Event, FramesDecoded, StageStarted, WindowDone
from kinograph.runtime.film import Film
from kinograph.runtime.inpainting import Patch
from kinograph.runtime.locate import open_bundle
from kinograph.runtime.memory import Need, check_needs, needs, stage_bytes
from kinograph.runtime.prompts import Prompts, read_prompts
from kinograph.runtime.request import Request, bridge, given_frames, resolve
from kinograph.runtime.sizes import component_axes
from kinograph.runtime.text import Tokenizer
from kinograph.runtime.variants import check_components, choose_variants, resident
from kinograph.runtime.video import VideoWriter
from kinograph.runtime.workshop import Workshop

if TYPE_CHECKING:
    from kinograph.bundle import Bundle
    from kinograph.bundle.lora import Lora
    from kinograph.engines import Device, Engine
__all__ = ["Pipeline", "Video", "load"]


Latents = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Video:
    """`frames` uint8 [T, H, W, 3], to be shown at `fps`; `metadata` says how they were made."""

    frames: npt.NDArray[np.uint8]
    fps: float
    metadata: dict[str, str]

    def save(
        self,
        path: str | os.PathLike[str],
        fps: float | None = None,
        *,
        audio: str | None = None,
        force: bool = False,
    ) -> None:
        """Write a file of the kind its name says (.mp4, .webm, .gif, .webp, or a folder/ of PNG), with sound if given.

        `audio` is a file whose sound is cut to the video's length, and begins again where it is shorter.
        """
        _, height, width, _ = self.frames.shape
        rate = self.fps if fps is None else fps
        with VideoWriter(
            path, width=width, height=height, fps=rate, metadata=self.metadata, audio=audio, force=force
        ) as writer:
            writer.write(self.frames)


def load(
    path: str | os.PathLike[str] | None = None,
    *,
    device: str = "auto",
    variant: str | None = None,
    cuda_graphs: bool = True,
    weight_budget: int | None = None,
    embedded: str | os.PathLike[str] | None = None,
    loras: Sequence[Lora] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Pipeline:
    """Open a bundle: a folder, a name looked up in KINOGRAPH_BUNDLES, or None for the built-in starter model.

    `device` is auto, cpu, cuda or cuda:N; `variant` a precision the bundle has, by default the best for the device.
    Without `cuda_graphs` a GPU runs the loop a step at a time. `weight_budget` is the most bytes of a component's
    weights that TensorRT keeps on the GPU: the rest stays in the host's memory, and every step copies it over. What the
    file `embedded` has of prompts, which `kinograph embed` writes, needs no text encoder. `loras` are added to the
    transformers' float weights, for this pipeline alone.

    Every file of the bundle is verified first: `progress` is called with how many bytes are so far, and how many there
    are, one call at a time and from other threads; what it raises ends the opening, and is raised. Raises BundleError,
    UsageError, EngineError, or RequestError where the prompts are another bundle's.
    """
    bundle, settings = open_bundle(path, progress), Settings(cuda_graphs, weight_budget)
    try:
        if loras:
            check_variant(bundle.manifest, loras, variant)
            bundle = AdaptedBundle(bundle, loras)
        fall_back = partial(open_next, settings=settings) if chosen_name(device) == "auto" else None
        given = None if embedded is None else read_prompts(Path(embedded), bundle, bundle.manifest)
        return Pipeline(bundle, open_device(device, settings), variant, fall_back, given)
    except BaseException:
        bundle.close()
        raise


class Pipeline:
    """Makes videos from `bundle` on `device`; it owns both, and closes them as a context manager or with `close`.

    Where the device cannot have the engines it needs, `fall_back` is told why, and may give another in its place.
    `given` are prompts of a file, and the variant of the text encoder that they are of, which embeds all others.

    Attributes:
        prompts: what has been embedded, and is kept for the videos to come.
    """

    def __init__(
        self,
        bundle: Bundle,
        device: Device,
        variant: str | None = None,
        fall_back: Callable[[Device, str], Device | None] | None = None,
        given: tuple[str, Mapping[str, Latents]] | None = None,
    ) -> None:
        self.bundle = bundle
        self.device = device
        check_components(bundle.manifest)
        self._asked, self._text = variant, {} if given is None else {"text_encoder": given[0]}
        self.variant = self._chosen(device)
        self._fall_back = fall_back
        self._tokenizer = Tokenizer(bundle.read(bundle.manifest.text.tokenizer), bundle.manifest.text)
        self.prompts = Prompts(self._tokenizer, bundle.manifest.text, given and given[1])
        self._engines: dict[str, Engine] = {}
        self._running = False  # engines have one set of bound buffers, so one run at a time
        self._resident = resident(bundle.manifest, self.variant, device.memory_bytes)

    @property
    def backend(self) -> str:
        return self.device.backend

    def resolve(self, request: Request) -> Request:
        """`request` without None, checked against the bundle. Raises RequestError before any work is done."""
        resolved = resolve(request, self.bundle.manifest)
        self._tokenizer.encode(resolved.prompt)
        self._tokenizer.encode(resolved.negative_prompt or "", what="negative prompt")
        return resolved

    def __call__(self, prompt: str, **fields: Any) -> Video:
        """Make a whole video; the keyword arguments are the fields of `Request`."""
        try:
            request = Request(prompt=prompt, **fields)
        except TypeError as exc:
            raise UsageError(
                f"{exc}; expected the fields of kinograph.Request: {', '.join(Request.__struct_fields__)}"
            ) from exc
        request = self.resolve(request)
        frames = [event.frames for event in self.run(request) if isinstance(event, FramesDecoded)]
        return Video(np.concatenate(frames), float(request.fps or 0), self.metadata(request))

    def stream(self, request: Request) -> Iterator[npt.NDArray[np.uint8]]:
        """Frames uint8 [H, W, 3], as they are decoded."""
        with closing(self.run(request)) as events:
            for event in events:
                if isinstance(event, FramesDecoded):
                    yield from event.frames

    def run(self, request: Request, done: Latents | None = None) -> Generator[Event, None, None]:
        """Everything that happens, as it happens; closing the generator ends it, and so does `cancel`.

        `done` [1, C, F, H, W] are the latents that `WindowDone` events of an earlier run of the same request brought,
        one after the other: those windows are not made again, and the result is what that run's would have been.
        """
        request = self.resolve(request)
        self._check_idle()
        self._running = True
        self.device.cancelled = False
        try:
            with closing(self._whole(request, done)) as events:
                for event in events:
                    yield event
                    if self.device.cancelled:
                        raise Interrupted("cancelled")
        finally:
            self._running = False
            self._leave_stage()

    def cancel(self) -> None:
        """End the run that is under way: it raises Interrupted, on the CPU at the next node of the graph it computes.

        May be called from any thread, and from a signal's handler. Where nothing runs, nothing happens.
        """
        self.device.cancelled = True

    def embed(self, prompts: Iterable[str], progress: Callable[[int, int], None] | None = None) -> dict[str, Latents]:
        """Prompts as the transformer reads them, as `write_prompts` takes them: float32 [L', D] each, L' its tokens.

        `progress` is called with how many are done, of how many. Raises RequestError for a prompt that is too long,
        UsageError while a video is made.
        """
        self._check_idle()
        every = list(prompts)
        for prompt in every:
            self._tokenizer.encode(prompt)
        if not self.prompts.known(every):
            axes = component_axes(self.bundle.manifest, self.variant, (1, 1), 1, 1, ["text_encoder"])
            for _ in self.device.prepare(self.bundle, self.variant, axes):
                pass
        self.device.cancelled = False
        found: dict[str, Latents] = {}
        for number, prompt in enumerate(every, 1):
            self.prompts.rows(self.device, lambda: self._engine("text_encoder"), [prompt])
            found |= self.prompts.embedded([prompt])
            if progress is not None:
                progress(number, len(every))
        self._leave_stage()
        return found

    def decode(self, latents: Latents, cuts: Sequence[int] = ()) -> Iterator[FramesDecoded]:
        """The frames of normalised latents [1, C, F, H, W], such as `WindowDone` events brought.

        `cuts` are the numbers of the latent frames that windows with a cut began with, in order. Raises RequestError
        where the latents are not this model's.
        """
        geometry = self.bundle.manifest.geometry
        if latents.ndim != 5 or latents.shape[:2] != (1, geometry.channels):
            raise RequestError(
                f"latents of shape {list(latents.shape)} are not those of {self.bundle.manifest.name}: expected "
                f"[1, {geometry.channels}, F, H, W]. Name the bundle that they were made with"
            )
        total, shown = 1 + geometry.temporal * (latents.shape[2] - 1), 0
        self.device.cancelled = False
        engines = self._engine("decoder_first"), self._engine("decoder_next")
        for frames in decode(self.device, *engines, latents, cuts):
            yield FramesDecoded(frames, shown, total)
            shown += len(frames)
        self._leave_stage()

    def metadata(self, request: Request) -> dict[str, str]:
        """How the video was made, for the file and its side-car."""
        values = {name: getattr(request, name) for name in Request.__struct_fields__}
        values["loras"] = self.bundle.manifest.source.loras
        return {
            **{name: _told(value) for name, value in values.items() if value not in (None, (), False)},
            "bundle": self.bundle.manifest.name,
            "bundle_sha256": self.bundle.digest,
            "variant": self.variant[self.bundle.manifest.experts[0].component],
            "backend": self.backend,
            "kinograph": version("kinograph"),
        }

    def close(self) -> None:
        self._release()
        self.device.close()
        self.bundle.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # Stages

    def _whole(self, request: Request, done: Latents | None) -> Generator[Event, None, None]:
        """The film, between those that it was given, and with its way back where it is a loop."""
        temporal = self.bundle.manifest.geometry.temporal
        made = int(request.num_frames or 0)
        last, first = given_frames(int(request.overlap or 1), int(request.window or 1), temporal)
        before, after = (Clip.of(request, path) for path in (request.before, request.after))
        tail, count = before.last(last)
        head, following = after.first(first)
        back = bridge(request, self.bundle.manifest) if request.loop else None
        original = iter(Clip.of(request, request.remix)) if request.remix is not None else None
        while True:
            shop = Workshop(self.device, self.bundle.manifest, self.prompts, self._engine, self._leave_stage)
            patch = None
            if request.inpaint is not None:
                patch = Patch(self.device, self._engine, self.bundle.manifest.geometry, request)
            film = Film(shop, request, tail, head, original, patch)
            needed = self._needed(request, film)
            try:
                for what in self.device.prepare(self.bundle, self.variant, film.axes(self.variant)):
                    yield StageStarted("build", what)
                break
            except EngineError as exc:
                if not self._take_another(str(exc)):
                    raise
        total = count + made + following + (int(back.num_frames or 0) if back else 0)
        shown = 0
        for frame in islice(before, count - film.layout.context):
            yield FramesDecoded(frame[None], shown, total)
            shown += 1
        # A loop has no first frame: what it begins with comes at its end, where the way back has led to it.
        middle = Middle(first, last) if back else Middle(0, 0)
        for event in film.run(done):
            if isinstance(event, StageStarted):
                yield msgspec.structs.replace(event, expected_bytes=stage_bytes(event.name, needed, self._resident))
            elif not isinstance(event, np.ndarray):
                yield event
            elif frames := middle.push(event):
                yield FramesDecoded(np.stack(frames), shown, total)
                shown += len(frames)
        for event in Film(shop, back, middle.tail, middle.head).run() if back else ():
            if isinstance(event, np.ndarray):
                yield FramesDecoded(event, shown, total)
                shown += len(event)
            elif not isinstance(event, WindowDone):
                yield event
        for frame in islice(after, 0 if head is None else len(head), None):
            yield FramesDecoded(frame[None], shown, total)
            shown += 1

    def _needed(self, request: Request, film: Film) -> Mapping[str, Need]:
        """What the film's components are going to take. Raises MemoryLimitError where that is too much."""
        spatial = self.bundle.manifest.geometry.spatial

        def needed(width: int, height: int) -> Mapping[str, Need]:
            axes = film.axes(self.variant, (height // spatial, width // spatial))
            return needs(self.bundle, self.device, self.variant, axes)

        width, height = int(request.width or 0), int(request.height or 0)
        return check_needs(self.bundle.manifest, self.device, width, height, needed)

    # Engines

    def _take_another(self, why: str) -> bool:
        """Go on with another device, if there is one to go on with."""
        other = None if self._fall_back is None else self._fall_back(self.device, why)
        if other is None:
            return False
        self._release()
        self.device.close()
        other.cancelled = self.device.cancelled
        self.device = other
        self.variant = self._chosen(other)
        self._resident = resident(self.bundle.manifest, self.variant, other.memory_bytes)
        self.prompts.clear()
        return True

    def _check_idle(self) -> None:
        if self._running:
            raise UsageError("this pipeline is already making a video. Finish or close that run, or load a second one.")

    def _chosen(self, device: Device) -> dict[str, str]:
        return choose_variants(self.bundle.manifest, self._asked, device) | self._text

    def _engine(self, component: str) -> Engine:
        if component not in self._engines:
            self._engines[component] = self.device.open(self.bundle, component, self.variant[component])
        return self._engines[component]

    def _leave_stage(self) -> None:
        """A model that fills the memory gives way to the next stage; a small one stays for the next video."""
        for component in [name for name in self._engines if name not in self._resident]:
            self._engines.pop(component).close()

    def _release(self) -> None:
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()


def _told(value: object) -> str:
    """A field of a request as text: what has fields of its own as JSON."""
    return str(value) if isinstance(value, str | int | float) else msgspec.json.encode(value).decode()
