"""Speed levels in a manifest: what cannot be run is refused by name."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from kinograph.bundle.speed_check import speed_problems
from kinograph.console.inspect import describe_speed
from kinograph.manifest import Speed, Stretch
from kinograph.runtime.locate import open_bundle


def at(*steps: int) -> tuple[Stretch, ...]:
    return tuple(Stretch(step=step, sample=1.0, latest=-0.1) for step in steps)


GOOD = Speed(steps=24, guided=(1, 20), computed=at(0, 1, 9), rows=5, every_row=48, psnr_db=30, ssim=1, videos=2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, None),
        ({"steps": 5000}, "steps: got 5000, expected at most 1000"),
        ({"computed": at(0, 24)}, "computed: expected rising steps from 0 to at most 23, each once"),
        ({"computed": at(0, 3, 3)}, "computed: expected rising steps"),
        ({"computed": at(1, 3)}, "computed: expected rising steps"),
        ({"computed": ()}, "computed: expected rising steps"),
        ({"guided": (5, 4)}, "guided: got 5 to 4"),
        ({"guided": (0, 25)}, "guided: got 0 to 25"),
        ({"rows": 49}, "rows: got 49, expected at most every_row, 48"),
    ],
)
def test_a_level_that_cannot_be_run_is_refused(change: dict[str, Any], said: str | None) -> None:
    with open_bundle(None) as bundle:
        level = msgspec.structs.replace(GOOD, **change)
        problems = list(speed_problems(msgspec.structs.replace(bundle.manifest, speeds={"fast": level})))
    assert len(problems) == (said is not None)
    assert said is None or problems[0].startswith(f"speeds.fast.{said}")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, "3 of 24 steps, 2 with guidance: 5 of 48 rows"),
        ({"guided": (2, 3), "rows": 3}, "3 of 24 steps, none with guidance: 3 of 48 rows"),
        ({"guided": (0, 0), "rows": 3, "every_row": 24}, "3 of 24 steps: 3 of 24 rows"),
    ],
)
def test_a_level_tells_how_many_of_its_steps_have_guidance(change: dict[str, Any], said: str) -> None:
    assert describe_speed(msgspec.structs.replace(GOOD, **change)).startswith(said)
