"""What a caller asks for, and what a bundle makes of it."""

from __future__ import annotations

import math
from typing import Literal, TypeVar

import msgspec

from kinograph.errors import RequestError, UsageError
from kinograph.manifest import Manifest

__all__ = ["SOLVERS", "Request", "resolve"]

_Value = TypeVar("_Value")

SOLVERS = ("euler", "unipc", "dpmpp-2m")
_MAX_SIDE = 8192  # pixels; the codec's memory is quadratic in it
_MAX_GUIDANCE = 100


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One video. None means the bundle's default; `Pipeline.resolve` fills it in and checks the rest.

    `height`, `width` in pixels; `fps` frames per second, which changes only the file; `guidance_scale` of
    classifier-free guidance (arXiv:2207.12598), 1 for none; `guidance_scale_2` is that of a second expert, where the
    model has two, and follows `guidance_scale` where only that is given; `seed` as torch's CPU generator takes it;
    `speed` is one of the bundle's speed levels, which leave out steps of its own schedule, None for every step; `image`
    is the path of a picture that becomes the first frame.
    """

    prompt: str
    negative_prompt: str | None = None
    width: int | None = None
    height: int | None = None
    num_frames: int | None = None
    fps: float | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    guidance_scale_2: float | None = None
    seed: int = 0
    solver: Literal["euler", "unipc", "dpmpp-2m"] | None = None
    speed: str | None = None
    image: str | None = None


def resolve(request: Request, manifest: Manifest) -> Request:
    """`request` with the bundle's defaults in place of None.

    Raises RequestError naming every field that cannot be done and its nearest valid value.
    """
    if request.solver is not None and request.solver not in SOLVERS:
        raise UsageError(f"unknown solver {request.solver!r}; expected one of: {', '.join(SOLVERS)}")
    try:
        request = msgspec.convert(msgspec.to_builtins(request), Request)
    except (msgspec.ValidationError, TypeError, UnicodeEncodeError) as exc:
        raise RequestError(f"the request has a field of the wrong type: {exc}") from exc
    defaults = manifest.defaults
    filled = msgspec.structs.replace(
        request,
        negative_prompt=_or(request.negative_prompt, defaults.negative_prompt),
        width=_or(request.width, defaults.width),
        height=_or(request.height, defaults.height),
        num_frames=_or(request.num_frames, defaults.num_frames),
        fps=_or(request.fps, defaults.fps),
        num_inference_steps=_or(request.num_inference_steps, defaults.num_inference_steps),
        guidance_scale=_or(request.guidance_scale, manifest.experts[0].guidance_scale),
        guidance_scale_2=_or(request.guidance_scale_2, request.guidance_scale or manifest.experts[-1].guidance_scale),
        solver=_or(request.solver, manifest.solver.name),
    )
    problems = [
        *_size_problems(filled, manifest),
        *_frame_problems(filled, manifest),
        *_number_problems(filled, manifest),
        *_speed_problems(filled, manifest),
        *_image_problems(filled, manifest),
    ]
    if problems:
        raise RequestError("; ".join(problems))
    return filled


def _or(value: _Value | None, default: _Value) -> _Value:
    return default if value is None else value


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _size_problems(request: Request, manifest: Manifest) -> list[str]:
    geometry = manifest.geometry
    multiple = geometry.spatial * geometry.patch
    most = multiple * min(geometry.positions, _MAX_SIDE // multiple)
    width, height = request.width, request.height
    if not _whole(width) or not _whole(height) or width is None or height is None:
        return [f"size {width!r}x{height!r} is not two whole numbers of pixels"]
    if all(0 < side <= most and side % multiple == 0 for side in (width, height)):
        return []
    nearest = f"{_nearest(width, multiple, most)}x{_nearest(height, multiple, most)}"
    return [
        f"size {width}x{height}: both sides must be multiples of {multiple} up to {most}; "
        f"nearest: {nearest}. Use --size {nearest}"
    ]


def _nearest(value: int, multiple: int, most: int) -> int:
    return min(max(round(value / multiple), 1), most // multiple) * multiple


def _frame_problems(request: Request, manifest: Manifest) -> list[str]:
    temporal, count = manifest.geometry.temporal, request.num_frames
    most = 1 + temporal * (manifest.geometry.positions - 1)
    if not _whole(count) or count is None:
        return [f"{count!r} frames is not a whole number"]
    if 1 <= count <= most and (count - 1) % temporal == 0:
        return []
    nearest = min(max(1 + temporal * round((count - 1) / temporal), 1), most)
    return [
        f"{count} frames: this model makes 1 + {temporal}·k frames, up to {most}; "
        f"nearest: {nearest}. Use --frames {nearest}"
    ]


def _number_problems(request: Request, manifest: Manifest) -> list[str]:
    problems = []
    steps, most = request.num_inference_steps, manifest.solver.train_timesteps
    if not _whole(steps) or steps is None or not 1 <= steps <= most:
        nearest = min(max(int(steps), 1), most) if _whole(steps) and steps is not None else 1
        problems.append(f"{steps!r} steps: expected 1 to {most}; nearest: {nearest}. Use --steps {nearest}")
    for option, guidance in (("--guidance", request.guidance_scale), ("--guidance-2", request.guidance_scale_2)):
        if guidance is None or not math.isfinite(guidance) or not 1 <= guidance <= _MAX_GUIDANCE:
            nearest = _MAX_GUIDANCE if guidance is not None and guidance > _MAX_GUIDANCE else 1
            problems.append(
                f"guidance {guidance}: expected 1 (none) to {_MAX_GUIDANCE}; nearest: {nearest}. Use {option} {nearest}"
            )
    if not _whole(request.seed) or not 0 <= request.seed < 1 << 64:
        problems.append(f"seed {request.seed!r}: expected a whole number from 0 to 2^64 - 1. Use --seed 0")
    fps = request.fps
    if fps is None or not math.isfinite(fps) or not 0.1 <= fps <= 1000:
        problems.append(f"fps {fps}: expected 0.1 to 1000. Use --fps {manifest.defaults.fps:g}")
    return problems


def _speed_problems(request: Request, manifest: Manifest) -> list[str]:
    if request.speed is None:
        return []
    level = manifest.speeds.get(request.speed)
    if level is None:
        offered = f"it has: {', '.join(manifest.speeds)}. Use --speed" if manifest.speeds else "it has none"
        return [
            f"{manifest.name} has no speed level {request.speed!r}; {offered}. "
            f"`kinograph calibrate BUNDLE --skip {request.speed}` finds one"
        ]
    if request.num_inference_steps == level.steps and request.solver == manifest.solver.name:
        return []
    return [
        f"speed level {request.speed!r} leaves out some of {level.steps} steps of the {manifest.solver.name} solver, "
        f"this run has {request.num_inference_steps} of {request.solver}. Leave out --speed, or --steps and --solver"
    ]


def _image_problems(request: Request, manifest: Manifest) -> list[str]:
    if manifest.conditioning.image_required and request.image is None:
        return [f"{manifest.name} makes a video from a picture, and none was given. Use --image FILE"]
    return []
