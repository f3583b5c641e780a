"""Whether the speed levels of a manifest can be run with its schedule."""

from __future__ import annotations

from collections.abc import Iterator

from kinograph.manifest import Manifest, Speed

__all__ = ["speed_problems"]


def speed_problems(manifest: Manifest) -> Iterator[str]:
    """What is wrong with the levels, each named by its place."""
    for name, speed in manifest.speeds.items():
        for problem in _problems(speed, manifest.solver.train_timesteps):
            yield f"speeds.{name}.{problem}"


def _problems(speed: Speed, most: int) -> Iterator[str]:
    if speed.steps > most:
        yield f"steps: got {speed.steps}, expected at most {most}, the solver's timesteps"
    computed = [stretch.step for stretch in speed.computed]
    if computed[:1] != [0] or computed != sorted(set(computed)) or computed[-1] >= speed.steps:
        yield f"computed: expected rising steps from 0 to at most {speed.steps - 1}, each once"
    first, last = speed.guided
    if not first <= last <= speed.steps:
        yield f"guided: got {first} to {last}, expected two steps of 0 to {speed.steps}, the first no later"
    if speed.rows > speed.every_row:
        yield f"rows: got {speed.rows}, expected at most every_row, {speed.every_row}"
