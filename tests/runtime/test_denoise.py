"""Whose step it is, and guided how far."""

from __future__ import annotations

import msgspec
import pytest

from kinograph.bundle import Bundle
from kinograph.engines.protocol import Engine
from kinograph.manifest import Expert, Solver
from kinograph.runtime.denoise import Model
from kinograph.runtime.locate import starter_bundle
from kinograph.runtime.solvers import schedule


def _closed(expert: Expert) -> Engine:
    raise AssertionError(f"{expert.component} was opened")


@pytest.mark.parametrize("second", ["step", "step_2"])
def test_every_expert_has_its_own_steps_and_guidance(second: str) -> None:
    experts = (Expert(component="step", boundary=875), Expert(component=second))
    manifest = msgspec.structs.replace(
        Bundle.open(starter_bundle("starter"), hard_links=True).manifest, experts=experts
    )
    steps = schedule(Solver(name="euler", shift=5.0), 8)
    parts = list(Model(manifest, [4.0, 3.0], _closed).parts(steps))
    assert [(expert, scale) for expert, scale, _ in parts] == [(experts[0], 4.0), (experts[1], 3.0)]
    assert [n for _, _, numbers in parts for n in numbers] == list(range(8))
    assert all((steps[n].timestep >= 875) == (expert == experts[0]) for expert, _, numbers in parts for n in numbers)
