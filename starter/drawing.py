"""Draws scenes: backgrounds, subjects and the wall, in every genre, smooth-edged from signed distances.

Numpy only; the same scene renders at any size and number of frames. Genres change how a subject is filled and what
becomes of the background's colours, never where anything is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from kinograph.starter.shapes import FEATURES, OUTLINES
from kinograph.starter.world import BACKGROUNDS, COLOURS, SUBJECTS, WALL, Actor, Scene, track

__all__ = ["CLASSES", "backdrop", "classes", "coverage", "masks", "owners", "paint", "render"]

Array = NDArray[np.float32]

CLASSES = ("background", *SUBJECTS)
"""What a pixel can show."""

_DARK = np.array((16, 16, 22), np.float32)
_PAPER = np.array((246, 240, 228), np.float32)
_BOARD = np.array((36, 60, 50), np.float32)
_WHITE = np.array((255, 255, 255), np.float32)
_BRICK, _MORTAR = (168, 104, 78), (206, 188, 170)
_STROKE = 0.3  # width of an outline, in radii
_GLOW = 0.28  # reach of neon light, in radii
_BLOCK = 32  # side of a pixel-art picture in its own pixels
_SCREEN = np.float32(128)  # what an old screen's glass makes of a picture's darkest and lightest, and by how much
_GLASS = 0.25


@dataclass(frozen=True)
class Shape:
    """A subject along its track: signed distances in pixels of its outline and its dark features, each [T, H, W]."""

    outline: Array
    features: Array | None
    radius: Array  # [T, 1, 1], pixels


def _grid(size: int) -> tuple[Array, Array]:
    line = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)
    return np.meshgrid(line, line)  # type: ignore[return-value]


def shape(actor: Actor, path: Array, size: int) -> Shape:
    """Where an actor is along a track [T, 4], on a grid of `size`² pixels."""
    x, y, radius, angle = (path[:, i, None, None] for i in range(4))
    grid_x, grid_y = _grid(size)
    across, along = (grid_x - x) / radius, (grid_y - y) / radius
    if actor.motion == "spins":
        cos, sin = np.cos(angle), np.sin(angle)
        across, along = across * cos + along * sin, along * cos - across * sin
    across = across * np.float32(actor.facing)
    pixels = radius * np.float32(size)
    features = FEATURES.get(actor.subject)
    return Shape(
        OUTLINES[actor.subject](across, along) * pixels,
        features(across, along) * pixels if features else None,
        pixels,
    )


def _inside(distance: Array, softness: float = 1.0) -> Array:
    return np.clip(np.float32(0.5) - distance / np.float32(softness), 0, 1)


def coverage(actor: Actor, path: Array, size: int) -> tuple[Array, Array]:
    """How much of each pixel the subject, and its dark features, cover along a track [T, 4]: two [T, H, W], 0 to 1."""
    drawn = shape(actor, path, size)
    outline = _inside(drawn.outline)
    return outline, np.zeros_like(outline) if drawn.features is None else _inside(drawn.features)


def _mix(below: Array, above: Array, share: Array | float) -> Array:
    return below + (above - below) * (share[..., None] if isinstance(share, np.ndarray) else np.float32(share))


def paint(genre: str, colour: Array) -> Array:
    """The colour that a subject's paint has in this genre, RGB from 0 to 255."""
    if genre == "watercolour":
        return _mix(colour, _PAPER, 0.22)
    if genre == "neon":
        return _mix(colour, _WHITE, 0.12)
    if genre == "chalkboard":
        return _mix(colour, _WHITE, 0.15)
    return colour


def _draw(canvas: Array, drawn: Shape, colour: Array, genre: str) -> Array:
    """One subject over a canvas [T, H, W, 3]."""
    distance, features, radius = drawn.outline, drawn.features, drawn.radius
    if genre in ("outline", "neon"):
        width = np.maximum(_STROKE * radius, np.float32(2))
        stroke = _inside(np.abs(distance + width / 2) - width / 2)
        if features is not None:
            stroke = np.maximum(stroke, _inside(features))
        if genre == "outline":
            return _mix(canvas, colour, stroke)
        glow = np.exp(-np.abs(distance + width / 2) / (_GLOW * radius)) * np.float32(0.55)
        return _mix(_mix(canvas, colour, glow), paint(genre, colour), stroke)
    if genre == "watercolour":
        body = _inside(distance, 2.0)
        rim = _inside(np.abs(distance + np.float32(0.12) * radius) - np.float32(0.1) * radius, 2.0)
        filled = _mix(np.broadcast_to(paint(genre, colour), canvas.shape), colour * np.float32(0.85), rim * 0.7)
        if features is not None:
            filled = _mix(filled, _DARK, _inside(features, 2.0) * np.float32(0.7))
        return _mix(canvas, filled, body * np.float32(0.94))
    filled = np.broadcast_to(paint(genre, colour), canvas.shape)
    if features is not None:
        filled = _mix(filled, _DARK, _inside(features))
    if genre == "pixel art":
        hard = (distance < 0).astype(np.float32)
        rim = ((distance < 0) & (distance > -1)).astype(np.float32)
        return _mix(canvas, _mix(filled, colour * np.float32(0.5), rim), hard)
    if genre == "chalkboard":
        x, y = _grid(canvas.shape[1])
        hatch = np.float32(0.9) + np.float32(0.1) * np.sin((x + y) * np.float32(2 * np.pi * 10))
        return _mix(canvas, filled, _inside(distance) * hatch)
    return _mix(canvas, filled, _inside(distance))


def _plain(tone: tuple[int, int, int], size: int) -> Array:
    return np.broadcast_to(np.asarray(tone, np.float32), (size, size, 3)).copy()


def _vertical(top: tuple[int, int, int], bottom: tuple[int, int, int], size: int) -> Array:
    return _mix(_plain(top, size), np.asarray(bottom, np.float32), _grid(size)[1])


def _dots(picture: Array, points: tuple[tuple[float, float, float], ...], tone: Array) -> Array:
    x, y = _grid(len(picture))
    for at_x, at_y, radius in points:
        picture = _mix(picture, tone, _inside((np.hypot(x - at_x, y - at_y) - radius) * len(picture)))
    return picture


_STARS = tuple(
    (0.06 + 0.125 * i + 0.03 * ((i * 7 + j * 3) % 5 - 2) / 2, 0.07 + 0.145 * j + 0.03 * ((i * 5 + j * 2) % 5 - 2) / 2)
    for i in range(8)
    for j in range(7)
    if (i + j) % 2 == 0
)
_NIGHT = ((0.1, 0.12), (0.3, 0.22), (0.48, 0.08), (0.6, 0.3), (0.18, 0.42), (0.92, 0.45), (0.42, 0.5), (0.7, 0.56))


def _scenery(background: str, size: int) -> Array:
    """A background in flat colours, [H, W, 3]."""
    tones = BACKGROUNDS[background]
    x, y = _grid(size)
    if background == "gradient":
        return _vertical(tones[0], tones[1], size)
    if background == "stripes":
        wave = np.abs(np.mod((x + y) * 4, 1) - np.float32(0.5)) - np.float32(0.25)
        return _mix(_plain(tones[0], size), np.asarray(tones[1], np.float32), _inside(wave * size / 4 / 1.4))
    if background == "stars":
        return _dots(_plain(tones[0], size), tuple((*p, 0.013) for p in _STARS), np.array((250, 240, 190), np.float32))
    if background == "hills":
        far = (y - 0.62 - 0.09 * np.sin(2 * np.pi * (x * 1.1 + 0.1))) * -size
        near = (y - 0.78 - 0.07 * np.sin(2 * np.pi * (x * 1.3 + 0.6))) * -size
        picture = _mix(_plain(tones[0], size), np.array((150, 190, 160), np.float32), _inside(far))
        return _mix(picture, np.asarray(tones[1], np.float32), _inside(near))
    if background == "night sky":
        picture = _dots(_vertical(tones[0], tones[1], size), tuple((*p, 0.014) for p in _NIGHT), _WHITE * 0.95)
        moon = np.maximum(np.hypot(x - 0.8, y - 0.2) - 0.12, 0.1 - np.hypot(x - 0.75, y - 0.17)) * size
        return _mix(picture, np.array((252, 244, 200), np.float32), _inside(moon))
    if background == "sea":
        sun = _dots(_plain(tones[0], size), ((0.5, 0.5, 0.17),), np.array((255, 180, 120), np.float32))
        water = _mix(sun, np.asarray(tones[1], np.float32), _inside((0.5 - y) * size))
        wave = (np.abs(np.mod(y * 8 + 0.18 * np.sin(2 * np.pi * x * 4), 1) - 0.5) - 0.08) * size / 8
        return _mix(water, np.array((70, 136, 188), np.float32), _inside(wave) * (y > 0.54))
    return _plain(tones[0], size)


def _wall(picture: Array) -> tuple[Array, Array]:
    """The picture with the brick wall in it, and the wall's own mask [H, W]."""
    size = len(picture)
    x, y = _grid(size)
    mask = _inside((np.abs(x - (WALL[0] + WALL[1]) / 2) - (WALL[1] - WALL[0]) / 2) * size)
    row = np.floor(y * 10)
    joint_y = np.abs(np.mod(y * 10, 1) - 0.5) - 0.38
    joint_x = np.abs(np.mod(x * 6 + 0.5 * np.mod(row, 2), 1) - 0.5) - 0.42
    joints = _inside(-np.maximum(joint_y * size / 10, joint_x * size / 6))
    bricks = _mix(_plain(_BRICK, size), np.asarray(_MORTAR, np.float32), joints)
    return _mix(picture, bricks, mask), mask


@cache
def backdrop(background: str, genre: str, wall: bool, size: int) -> tuple[Array, Array]:
    """The background in a genre, RGB [H, W, 3] from 0 to 255, and how much of each pixel stands in front, [H, W]."""
    side = min(size, _BLOCK) if genre == "pixel art" else size
    picture, front = _scenery(background, side), np.zeros((side, side), np.float32)
    if wall:
        picture, front = _wall(picture)
    x, y = _grid(side)
    if genre == "outline":
        picture = _mix(picture, np.asarray(picture.mean((0, 1)), np.float32), 0.25)
    elif genre == "pixel art":
        picture = _mix(picture, _SCREEN, _GLASS)
    elif genre == "watercolour":
        wash = np.sin(2 * np.pi * (x * 1.7 + y * 0.6)) * np.sin(2 * np.pi * (y * 1.9 - x * 0.5 + 0.2))
        picture = _mix(picture, _PAPER, np.float32(0.42) + np.float32(0.1) * wash)
    elif genre == "neon":
        picture = picture * np.float32(0.38)
    elif genre == "chalkboard":
        light = picture @ np.array((0.3, 0.59, 0.11), np.float32) / 255
        picture = _mix(_BOARD + np.zeros_like(picture), np.array((206, 214, 206), np.float32), light * 0.5)
        picture = _mix(picture, _scenery(background, side), 0.3)
    return np.clip(picture, 0, 255).astype(np.float32), front


def _canvas_size(scene: Scene, size: int) -> int:
    return min(size, _BLOCK) if scene.genre == "pixel art" else size


def render(scene: Scene, frames: int = 17, size: int = 64) -> NDArray[np.uint8]:
    """The clip as uint8 RGB [T, H, W, 3] with H = W = `size` pixels."""
    side = _canvas_size(scene, size)
    behind, front = backdrop(scene.background, scene.genre, scene.kind == "wall", side)
    canvas = np.broadcast_to(behind, (frames, side, side, 3))
    for actor in scene.actors:
        colour = np.asarray(COLOURS[actor.colour], np.float32)
        canvas = _draw(canvas, shape(actor, track(actor, frames), side), colour, scene.genre)
    canvas = _mix(canvas, behind, front)
    picture = np.asarray(np.clip(canvas + np.float32(0.5), 0, 255)).astype(np.uint8)
    if side != size:
        nearest = np.arange(size) * side // size
        picture = picture[:, nearest][:, :, nearest]
    return picture


def masks(scene: Scene, frames: int = 17, size: int = 64) -> Array:
    """How much of each pixel every actor visibly covers: [actors, T, H, W], 0 to 1."""
    front = backdrop(scene.background, "flat", scene.kind == "wall", size)[1]
    covered = [_inside(shape(actor, track(actor, frames), size).outline) * (1 - front) for actor in scene.actors]
    for i in range(len(covered)):
        for later in covered[i + 1 :]:
            covered[i] = covered[i] * (1 - later)
    return np.stack(covered)


def owners(scene: Scene, frames: int = 17, size: int = 64) -> NDArray[np.uint8]:
    """Which of the scene's actors each pixel shows, counted from 1, and 0 for none: uint8 [T, H, W]."""
    shown = np.zeros((frames, size, size), np.uint8)
    for number, mask in enumerate(masks(scene, frames, size), start=1):
        shown[mask > 0.5] = number
    return shown


def classes(scene: Scene, shown: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Which of `CLASSES` each pixel shows, from the `owners` of a scene's pixels."""
    return np.asarray([0, *(CLASSES.index(actor.subject) for actor in scene.actors)], np.uint8)[shown]
