"""Many scenes drawn on every core, into memory that all processes share: clips are too large to be sent about.

Numpy only, so that its workers start fast.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from functools import cache
from multiprocessing.shared_memory import SharedMemory

import numpy as np
from numpy.typing import NDArray

from kinograph.starter.drawing import owners, render
from kinograph.starter.world import Scene

__all__ = ["draw_batches"]


class _Slots:
    """Shared memory in which workers leave what they draw, in as many places as there are batches under way."""

    def __init__(self, count: int, batch: int, frames: int, size: int) -> None:
        self.pixels = batch * frames * size * size
        self.shape = (batch, frames, size, size)
        self.memory = SharedMemory(create=True, size=4 * self.pixels * count)

    def clips(self, slot: int, length: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        return _views(self.memory, slot, (length, *self.shape[1:]), self.pixels)


def _views(
    memory: SharedMemory, slot: int, shape: tuple[int, ...], pixels: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A slot's clips [B, T, H, W, 3] and owners [B, T, H, W], in place; a slot holds `pixels` pixels."""
    start = 4 * pixels * slot
    clips = np.ndarray((*shape, 3), np.uint8, memory.buf, start)
    return clips, np.ndarray(shape, np.uint8, memory.buf, start + 3 * pixels)


@cache
def _attached(name: str) -> SharedMemory:
    return SharedMemory(name)


def _draw_batch(name: str, slot: int, shape: tuple[int, ...], pixels: int, scenes: Sequence[Scene]) -> None:
    """Draw scenes into a slot of the shared memory of this name."""
    frames, size = shape[1:3]
    clips, shown = _views(_attached(name), slot, (len(scenes), *shape[1:]), pixels)
    for i, scene in enumerate(scenes):
        clips[i], shown[i] = render(scene, frames, size), owners(scene, frames, size)


def draw_batches(
    scenes: Sequence[Scene], batch: int, frames: int, size: int
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Clips [B, T, H, W, 3] and owners [B, T, H, W] of the scenes in order, `batch` at a time, drawn on every core.

    Both are views of shared memory, drawn over once the next are taken: copy what is to last. No more than a few
    batches are drawn ahead.
    """
    cores = os.cpu_count() or 1
    ahead: deque[tuple[int, int, Future[None]]] = deque()
    slots = _Slots(2 * cores + 1, batch, frames, size)
    try:
        with ProcessPoolExecutor(cores, mp_context=multiprocessing.get_context("spawn")) as workers:
            for number, start in enumerate(range(0, len(scenes), batch)):
                part = scenes[start : start + batch]
                slot = number % (2 * cores + 1)
                drawn = workers.submit(_draw_batch, slots.memory.name, slot, slots.shape, slots.pixels, part)
                ahead.append((slot, len(part), drawn))
                if len(ahead) > 2 * cores:
                    yield _drawn(slots, *ahead.popleft())
            while ahead:
                yield _drawn(slots, *ahead.popleft())
    finally:
        slots.memory.unlink()


def _drawn(slots: _Slots, slot: int, length: int, drawn: Future[None]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    drawn.result()
    return slots.clips(slot, length)
