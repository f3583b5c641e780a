"""What a caller asks for, and what a bundle makes of it."""

from __future__ import annotations

import math
from typing import Literal, TypeVar

import msgspec

from kinograph.errors import RequestError, UsageError
from kinograph.manifest import Manifest

__all__ = ["SOLVERS", "Cue", "Request", "Still", "bridge", "given_frames", "resolve"]

_Value = TypeVar("_Value")

SOLVERS = ("euler", "unipc", "dpmpp-2m")
_MAX_SIDE = 8192  # pixels; the codec's memory is quadratic in it
_MAX_GUIDANCE = 100
_MAX_FRAMES = 1 << 20  # twelve hours at 24 a second


class Still(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A picture that the video shows at frame `frame`; negative numbers count from the end, -1 being the last frame."""

    path: str
    frame: int = 0


class Cue(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """From `start` seconds on, the video is of `prompt`."""

    start: float
    prompt: str


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One video. None means the bundle's default; `Pipeline.resolve` fills it in and checks the rest.

    `height`, `width` in pixels; `fps` frames per second, which changes only the file; `guidance_scale` of
    classifier-free guidance (arXiv:2207.12598), 1 for none; `guidance_scale_2` is that of a second expert, where the
    model has two, and follows `guidance_scale` where only that is given; `seed` as torch's CPU generator takes it;
    `speed` is one of the bundle's speed levels, which leave out steps of its own schedule, None for every step.

    What is given: `image`, the path of a picture that becomes the first frame; `images`, further ones; `before` and
    `after`, films that the video continues and that it leads to, which become part of the result. `num_frames` is then
    what is made beside them. `remix` is a film that becomes the video: noise is added up to `strength` of the way, and
    taken away as `prompt` says. `inpaint` is a film that stays as it is, but for where `mask`, a picture or a film, is
    white: there the video is made anew. `fit` says what becomes of pictures of another shape. `loop` leads the video
    back to its beginning.

    A video longer than `window` frames (the bundle's default length) is made in windows of that length, each given the
    last `overlap` frames of the one before. With `anchor` the first of those is, instead, the beginning of what is told
    the same, so that what it shows stays itself; by default where the model and `overlap` allow it. `cues` are prompts
    that follow `prompt`, in the order of their times; with `cuts` one begins where another ends, instead of coming out
    of it.
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
    images: tuple[Still, ...] = ()
    before: str | None = None
    after: str | None = None
    remix: str | None = None
    strength: float = 0.6
    inpaint: str | None = None
    mask: str | None = None
    loop: bool = False
    fit: Literal["crop", "pad", "stretch"] = "crop"
    window: int | None = None
    overlap: int | None = None
    anchor: bool | None = None
    cues: tuple[Cue, ...] = ()
    cuts: bool = False


def _default_window(manifest: Manifest) -> int:
    """The bundle's own length, or the shortest that can follow from another."""
    return max(manifest.defaults.num_frames, 1 + manifest.geometry.temporal)


def _default_overlap(manifest: Manifest, window: int) -> int:
    """Frames that a window shares with the one before: models conditioned through channels take a single one.

    Windows that are made together need more than those that follow from each other: a third.
    """
    temporal = manifest.geometry.temporal
    if manifest.conditioning.kind == "channels":
        return 1
    third = (window - 1) // temporal // 3 if manifest.conditioning.kind == "noised" else 1
    return max(1, min(1 + temporal * max(1, third), window - temporal))


def _default_frames(request: Request, manifest: Manifest) -> int:
    """The bundle's own number, or as many as a window makes between the films that are given."""
    if request.before is None:
        return manifest.defaults.num_frames
    window = request.window or _default_window(manifest)
    overlap = request.overlap or _default_overlap(manifest, window)
    before, after = given_frames(overlap, window, manifest.geometry.temporal)
    return max(manifest.geometry.temporal, window - before - (after if request.after else 0))


def given_frames(overlap: int, window: int, temporal: int) -> tuple[int, int]:
    """How many of a film's last frames, and of another's first, the model is given to lead on from and to.

    As many as of a window before, or those of two latent frames more than the first, which show better how things move
    and let the film fade more slowly into what is made of it, where they are no more than a third of a window.
    """
    longer = 1 + 2 * temporal
    given = max(overlap, longer) if overlap > 1 and 3 * longer <= window else overlap
    return given, max(temporal, given - 1)


def bridge(request: Request, manifest: Manifest) -> Request:
    """The way from the end of a resolved request's video back to its beginning: as much as a window makes."""
    between = msgspec.structs.replace(
        request, image=None, images=(), before="its end", after="its beginning", loop=False, num_frames=None, cues=()
    )
    return msgspec.structs.replace(between, num_frames=_default_frames(between, manifest))


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
        num_frames=_or(request.num_frames, _default_frames(request, manifest)),
        window=_or(request.window, _default_window(manifest)),
        overlap=_or(request.overlap, _default_overlap(manifest, request.window or _default_window(manifest))),
        fps=_or(request.fps, defaults.fps),
        num_inference_steps=_or(request.num_inference_steps, defaults.num_inference_steps),
        guidance_scale=_or(request.guidance_scale, manifest.experts[0].guidance_scale),
        guidance_scale_2=_or(request.guidance_scale_2, request.guidance_scale or manifest.experts[-1].guidance_scale),
        solver=_or(request.solver, manifest.solver.name),
    )
    if filled.anchor is None:
        filled = msgspec.structs.replace(filled, anchor=not _anchor_problems(filled, manifest))
    problems = [
        *_size_problems(filled, manifest),
        *_frame_problems(filled, manifest),
        *_window_problems(filled, manifest),
        *_cut_problems(filled, manifest),
        *(_anchor_problems(filled, manifest) if filled.anchor else []),
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
    if not _whole(count) or count is None:
        return [f"{count!r} frames is not a whole number"]
    first = 0 if request.before is not None else 1
    least = first or temporal
    if least <= count <= _MAX_FRAMES and (count - first) % temporal == 0:
        return []
    most = first + (_MAX_FRAMES - first) // temporal * temporal
    nearest = min(max(first + temporal * round((count - first) / temporal), least), most)
    made = f"1 + {temporal}·k frames" if first else f"{temporal}·k frames after a film"
    return [f"{count} frames: this model makes {made}, up to {most}; nearest: {nearest}. Use --frames {nearest}"]


def _window_problems(request: Request, manifest: Manifest) -> list[str]:
    temporal, window, overlap = manifest.geometry.temporal, request.window, request.overlap
    most = 1 + temporal * (manifest.geometry.positions - 1)
    problems = []
    if not _whole(window) or window is None or not temporal < window <= most or (window - 1) % temporal:
        nearest = 1 + temporal * min(max(round(((window or 0) - 1) / temporal), 1), manifest.geometry.positions - 1)
        problems.append(
            f"windows of {window} frames: this model makes 1 + {temporal}·k at a time, {1 + temporal} to {most}; "
            f"nearest: {nearest}. Use --window {nearest}"
        )
    elif not _whole(overlap) or overlap is None or not 1 <= overlap < window or (overlap - 1) % temporal:
        nearest = 1 + temporal * min(max(round(((overlap or 0) - 1) / temporal), 0), (window - 1) // temporal - 1)
        problems.append(
            f"windows that overlap by {overlap} frames: expected 1 + {temporal}·k, less than the window's {window}; "
            f"nearest: {nearest}. Use --overlap {nearest}"
        )
    elif manifest.conditioning.kind == "channels" and overlap != 1:
        problems.append(f"{manifest.name} can be given one frame of the window before, not {overlap}. Use --overlap 1")
    times = [cue.start for cue in request.cues]
    if not all(math.isfinite(t) and t > 0 for t in times) or times != sorted(set(times)):
        problems.append(f"prompts begin at {times} seconds: expected rising times after 0. Put them in order")
    return problems


def _anchor_problems(request: Request, manifest: Manifest) -> list[str]:
    """Why windows cannot be given the beginning of what they show."""
    if manifest.conditioning.kind == "channels":
        return [f"{manifest.name} is given the end of the window before, and nothing else. Leave out --anchor"]
    if manifest.conditioning.kind == "noised":
        return [
            f"{manifest.name} was not trained to be given frames; its windows are made together. Leave out --anchor"
        ]
    if request.remix is not None or request.inpaint is not None:
        return ["what is made from a film is given that film, which may change. Leave out --anchor"]
    if request.overlap == 1:
        least = 1 + manifest.geometry.temporal
        return [f"the only frame given of the window before would be the anchor. Use --overlap {least} or more"]
    return []


def _cut_problems(request: Request, manifest: Manifest) -> list[str]:
    if not request.cuts:
        return []
    if not request.cues:
        return ["--cuts are between prompts in time, and there is one prompt. Use --prompts FILE"]
    if request.after is not None or request.loop or request.remix is not None or request.inpaint is not None:
        return ["--cuts are for films that are made from their prompts on. Leave out other films and --loop"]
    if manifest.conditioning.kind == "channels":
        return [f"{manifest.name} makes a video from a picture, and after a cut there is none. Leave out --cuts"]
    return []


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
            "`kinograph calibrate BUNDLE --skip LEVEL` finds one"
        ]
    if request.num_inference_steps == level.steps and request.solver == manifest.solver.name:
        return []
    return [
        f"speed level {request.speed!r} leaves out some of {level.steps} steps of the {manifest.solver.name} solver, "
        f"this run has {request.num_inference_steps} of {request.solver}. Leave out --speed, or --steps and --solver"
    ]


def _inpaint_problems(request: Request, manifest: Manifest) -> list[str]:
    if request.inpaint is None:
        return ["--mask says what --inpaint makes anew, and there is no --inpaint"] if request.mask is not None else []
    problems = []
    if request.mask is None:
        problems.append(
            "--inpaint makes anew what a mask shows, and there is none. Use --mask FILE, a picture that is white there"
        )
    if any((request.image, request.images, request.before, request.after, request.remix, request.loop)):
        problems.append("--inpaint takes all but the mask from its film. Leave out other films, --image and --loop")
    if manifest.conditioning.kind == "channels":
        problems.append(f"{manifest.name} takes a first frame, and no parts of others. Use another model for --inpaint")
    elif "encoder_first" not in manifest.components:
        problems.append(f"{manifest.name} has no encoder, and can read no film. Use another model for --inpaint")
    return problems


def _image_problems(request: Request, manifest: Manifest) -> list[str]:
    given = [request.image, request.before, *(still.path for still in request.images)]
    if manifest.conditioning.image_required and not any(given):
        return [f"{manifest.name} makes a video from a picture, and none was given. Use --image FILE"]
    count = request.num_frames or 0
    problems = [
        f"--image {still.path}@{still.frame}: the video has frames 0 to {count - 1}, or -{count} to -1 from its end"
        for still in request.images
        if not -count <= still.frame < count
    ]
    if request.loop and (request.before is not None or request.after is not None):
        problems.append("a loop leads back to its own beginning, so it cannot be given other films. Leave out --loop")
    if request.remix is not None and (request.before is not None or request.after is not None):
        problems.append("--remix makes a film anew, so it cannot be continued as well. Leave out --extend and --join")
    problems += _inpaint_problems(request, manifest)
    if not 0 < request.strength <= 1:
        problems.append(f"strength {request.strength}: expected more than 0, up to 1. Use --strength 0.6")
    if request.remix is not None and request.speed is not None:
        problems.append("--remix begins within the schedule, which --speed skips steps of. Leave out --speed")
    temporal = manifest.geometry.temporal
    least = 1 + temporal * (-(-sum(given_frames(request.overlap or 1, request.window or 1, temporal)) // temporal))
    if request.loop and count < least:
        problems.append(f"a loop of {count} frames is too short to lead back; nearest: {least}. Use --frames {least}")
    if manifest.conditioning.kind == "channels" and (request.images or request.after is not None or request.loop):
        problems.append(f"{manifest.name} takes a first frame, and nothing later. Give one --image, or --extend")
    return problems
