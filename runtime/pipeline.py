"""The pipeline: a bundle and a device, ready to make videos."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt
from PIL import Image

from kinograph.engines import open_device
from kinograph.engines.host import memory_bytes
from kinograph.errors import BundleError, RequestError, UsageError
from kinograph.manifest import Manifest
from kinograph.runtime import conditioning, noise
from kinograph.runtime.binding import Binding
from kinograph.runtime.codec import decode
from kinograph.runtime.denoise import Inputs, denoise, load_inputs
from kinograph.runtime.embeddings import embed
from kinograph.runtime.events import Event, FramesDecoded, StageStarted, StepDone
from kinograph.runtime.image import read_image
from kinograph.runtime.locate import open_bundle
from kinograph.runtime.request import Request, resolve
from kinograph.runtime.solvers import schedule
from kinograph.runtime.text import Tokenizer
from kinograph.runtime.video import VideoWriter

if TYPE_CHECKING:
    from kinograph.bundle import Bundle
    from kinograph.engines import Device, Engine
    from kinograph.manifest import Expert

__all__ = ["Pipeline", "Video", "load"]

_PRECISIONS = ("fp32", "fp16", "bf16")  # what `auto` prefers of an exported bundle on the CPU, best first
_QUANTISED = ("int8",)  # what it prefers to those where it passed its gate
_RESIDENT_SHARE = 0.25  # engines stay loaded between stages while the weights are at most this share of the memory

Latents = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Video:
    """`frames` uint8 [T, H, W, 3], to be shown at `fps`; `metadata` says how they were made."""

    frames: npt.NDArray[np.uint8]
    fps: float
    metadata: dict[str, str]

    def save(self, path: str | os.PathLike[str], fps: float | None = None, *, force: bool = False) -> None:
        """Write a file of the kind its name says (.mp4, .webm, .gif, .webp, or a folder/ of PNG)."""
        _, height, width, _ = self.frames.shape
        rate = self.fps if fps is None else fps
        with VideoWriter(path, width=width, height=height, fps=rate, metadata=self.metadata, force=force) as writer:
            writer.write(self.frames)


def load(path: str | os.PathLike[str] | None = None, *, device: str = "auto", variant: str | None = None) -> Pipeline:
    """Open a bundle: a folder, a name looked up in KINOGRAPH_BUNDLES, or None for the built-in starter model.

    `device` is auto, cpu, cuda or cuda:N; `variant` a precision the bundle has, by default the best for the device.
    Every file is verified first. Raises BundleError, UsageError or EngineError.
    """
    bundle = open_bundle(path)
    try:
        return Pipeline(bundle, open_device(device), variant)
    except BaseException:
        bundle.close()
        raise


class Pipeline:
    """Makes videos from `bundle` on `device`; it owns both, and closes them as a context manager or with `close`."""

    def __init__(self, bundle: Bundle, device: Device, variant: str | None = None) -> None:
        self.bundle = bundle
        self.device = device
        _check_components(bundle.manifest)
        self.variant = _choose_variants(bundle.manifest, variant)
        self._tokenizer = Tokenizer(bundle.read(bundle.manifest.text.tokenizer), bundle.manifest.text)
        self._engines: dict[str, Engine] = {}
        self._running = False  # engines have one set of bound buffers, so one run at a time
        self._resident = _weight_bytes(bundle.manifest, self.variant) <= _RESIDENT_SHARE * memory_bytes()

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

    def run(self, request: Request) -> Generator[Event, None, None]:
        """Everything that happens, as it happens; closing the generator cancels between two steps."""
        request = self.resolve(request)
        if self._running:
            raise UsageError("this pipeline is already making a video. Finish or close that run, or load a second one.")
        self._running = True
        try:
            latents = yield from self._latents(request)
            yield StageStarted("decode")
            yield from self._decode(latents, int(request.num_frames or 0))
        finally:
            self._running = False
            self._leave_stage()

    def metadata(self, request: Request) -> dict[str, str]:
        """How the video was made, for the file and its side-car."""
        values = {name: getattr(request, name) for name in Request.__struct_fields__}
        return {
            **{name: str(value) for name, value in values.items() if value is not None},
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

    def _latents(self, request: Request) -> Generator[Event, None, Latents]:
        """Text, given frames and the denoising loop; returns latents [1, C, F, H, W]."""
        manifest = self.bundle.manifest
        shape = _latent_shape(request, manifest)
        yield StageStarted("text")
        guided = (request.guidance_scale or 1) > 1
        prompts = [request.prompt, request.negative_prompt or ""] if guided else [request.prompt]
        text = self._encode_text(prompts)
        given, image = conditioning.nothing_given(shape), None
        if request.image is not None:
            yield StageStarted("image")
            given, image = self._encode_image(request.image, shape)
        yield StageStarted("denoise")
        inputs = Inputs(noise.normal(shape, request.seed), text, given, image)
        latents: Latents = yield from self._denoise(request, inputs)
        return latents

    def _denoise(self, request: Request, inputs: Inputs) -> Generator[Event, None, Latents]:
        manifest = self.bundle.manifest
        solver = msgspec.structs.replace(manifest.solver, name=request.solver or manifest.solver.name)
        steps = schedule(solver, int(request.num_inference_steps or 0))
        _, _, frames, height, width = inputs.noise.shape
        axes = {"B": inputs.text.shape[0], "F": frames, "H": height, "W": width}
        first = next(e for e in manifest.experts if steps[0].timestep >= e.boundary)
        with Binding(self.device, self._engine(first.component), axes) as binding:
            load_inputs(binding, inputs)
            for step in denoise(
                binding,
                steps,
                manifest.experts,
                [float(request.guidance_scale or 1), float(request.guidance_scale_2 or 1)],
                self._open_expert,
                noised_known=manifest.conditioning.kind == "noised",
            ):
                yield StepDone(step.index, len(steps), step.timestep, binding["sample"].read)
            latents: Latents = binding["sample"].read()
        self._leave_stage()
        return latents

    def _open_expert(self, expert: Expert) -> Engine:
        if expert.component not in self._engines:
            self._leave_stage()
        return self._engine(expert.component)

    def _decode(self, latents: Latents, total: int) -> Iterator[Event]:
        index = 0
        first, following = self._engine("decoder_first"), self._engine("decoder_next")
        for frames in decode(self.device, first, following, latents):
            yield FramesDecoded(frames, index, total)
            index += len(frames)
        self._leave_stage()

    def _encode_text(self, prompts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Embeddings [B, L, D] of the prompts, padded with zeros."""
        rows = embed(self.device, self._engine("text_encoder"), self._tokenizer, self.bundle.manifest.text, prompts)
        self._leave_stage()
        return rows

    def _encode_image(
        self, path: str, shape: tuple[int, int, int, int, int]
    ) -> tuple[conditioning.Given, npt.NDArray[np.float32] | None]:
        manifest = self.bundle.manifest
        if "encoder_first" not in manifest.components:
            raise RequestError(f"{manifest.name} cannot start from a picture: it has no encoder. Leave out --image")
        picture = read_image(path)
        geometry = manifest.geometry
        width, height = shape[4] * geometry.spatial, shape[3] * geometry.spatial
        fitted = conditioning.fit(picture, width, height, resample=Image.Resampling.LANCZOS)
        given = conditioning.encode_first_frame(
            self.device,
            self._engine("encoder_first"),
            self._engine("encoder_next"),
            manifest.conditioning,
            fitted,
            shape,
            geometry.temporal,
        )
        self._leave_stage()
        if not manifest.conditioning.image_tokens:
            return given, None
        engine = self._engine("image_encoder")
        with Binding(self.device, engine, {}) as binding:
            height, width, _ = binding["pixels"].shape
            binding.write("pixels", conditioning.fit(picture, width, height, resample=Image.Resampling.BICUBIC))
            binding.run()
            tokens = binding["tokens"].read()
        self._leave_stage()
        return given, tokens

    # Engines

    def _engine(self, component: str) -> Engine:
        if component not in self._engines:
            self._engines[component] = self.device.open(self.bundle, component, self.variant[component])
        return self._engines[component]

    def _leave_stage(self) -> None:
        """A model that fills the memory gives way to the next stage; a small one stays for the next video."""
        if not self._resident:
            self._release()

    def _release(self) -> None:
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()


def _latent_shape(request: Request, manifest: Manifest) -> tuple[int, int, int, int, int]:
    geometry = manifest.geometry
    frames = 1 + (int(request.num_frames or 1) - 1) // geometry.temporal
    height, width = int(request.height or 0) // geometry.spatial, int(request.width or 0) // geometry.spatial
    return 1, geometry.channels, frames, height, width


def _check_components(manifest: Manifest) -> None:
    needed = {"text_encoder", "decoder_first", "decoder_next", *(expert.component for expert in manifest.experts)}
    if missing := sorted(needed - manifest.components.keys()):
        raise BundleError(f"{manifest.name} has no {', '.join(missing)}, which making a video needs. Export it again.")


def _choose_variants(manifest: Manifest, variant: str | None) -> dict[str, str]:
    """The variant of every component: `variant` where the component has it, else the best float precision it has.

    Without `variant`, a quantised one that passed its gate comes first.
    """
    chosen: dict[str, str] = {}
    for name, component in manifest.components.items():
        passed = [n for n in _QUANTISED if (v := component.variants.get(n)) and v.quality and v.quality.passed]
        order = [*([variant] if variant else passed), *_PRECISIONS]
        available = [precision for precision in order if precision in component.variants]
        chosen[name] = available[0] if available else next(iter(component.variants))
    if variant is not None and variant not in chosen.values():
        offered = sorted({name for component in manifest.components.values() for name in component.variants})
        raise UsageError(f"{manifest.name} has no variant {variant!r}; it has: {', '.join(offered)}. Use --variant.")
    return chosen


def _weight_bytes(manifest: Manifest, variants: dict[str, str]) -> int:
    files = {
        path for name, precision in variants.items() for path in manifest.components[name].variants[precision].weights
    }
    return sum(manifest.files[path].size for path in files)
