"""A judge in the gate: what it compares, when it refuses, and that the starter's is one."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from kinograph.calibration.judging import agreement, worse
from kinograph.console.judges import JUDGES
from kinograph.manifest import Agreement, Judged
from kinograph.runtime.locate import find_bundle
from kinograph.starter import drawing, world
from kinograph.starter.judging import NAME, StarterJudge


class Brightness:
    """Holds a video right where it is bright."""

    def prompts(self, count: int) -> list[str]:
        return [str(number) for number in range(count)]

    def right(self, number: int, frames: np.ndarray) -> Mapping[str, bool]:
        return {"bright": bool(frames.mean() > 127)} | ({"even": bool(frames.min() > 9)} if number % 2 == 0 else {})


def videos(*values: int) -> list[np.ndarray]:
    return [np.full((2, 4, 4, 3), value, np.uint8) for value in values]


def test_verdicts_are_paired_by_prompt() -> None:
    judged = agreement("brightness", Brightness(), videos(200, 200, 0, 0), videos(200, 0, 200, 0))
    assert judged == Judged(
        judge="brightness",
        prompts=4,
        attributes={
            "bright": Agreement(prompts=4, right=2, lost=1, gained=1),
            "even": Agreement(prompts=2, right=1, lost=0, gained=1),
        },
    )


def judged_with(lost: int, gained: int) -> Judged:
    return Judged(judge="a", prompts=40, attributes={"all": Agreement(prompts=40, right=20, lost=lost, gained=gained)})


@pytest.mark.parametrize(
    ("lost", "gained", "refused"), [(0, 0, False), (6, 0, False), (7, 0, True), (12, 8, False), (20, 3, True)]
)
def test_only_losses_that_chance_does_not_explain_count(lost: int, gained: int, refused: bool) -> None:
    assert worse(judged_with(lost, gained)) == (["all"] if refused else [])


def test_a_variant_as_good_is_seldom_refused_and_one_that_breaks_always() -> None:
    random = np.random.default_rng(0)
    attributes = [f"attribute {number}" for number in range(15)]

    def refused(loss: float) -> float:
        """How often, where each of 40 prompts has one verdict in ten part, `loss` of these as a loss."""
        count = 0
        for _ in range(400):
            changed = random.binomial(40, 0.1, len(attributes))
            lost = random.binomial(changed, loss)
            found = {
                name: Agreement(prompts=40, right=30, lost=int(one), gained=int(every - one))
                for name, one, every in zip(attributes, lost, changed, strict=True)
            }
            count += bool(worse(Judged(judge="a", prompts=40, attributes=found)))
        return count / 400

    assert refused(0.5) <= 0.01
    broken = {name: Agreement(prompts=40, right=30, lost=20, gained=2) for name in attributes}
    assert worse(Judged(judge="a", prompts=40, attributes=broken)) == attributes


def test_the_starters_judge_knows_renders_of_its_prompts() -> None:
    judge = StarterJudge()
    assert judge.prompts(3) == judge.prompts(5)[:3] == StarterJudge().prompts(3)
    rng = np.random.default_rng(40_000)
    scenes = [world.sample(rng, evaluation=True) for _ in range(5)]
    right = [judge.right(number, drawing.render(scene, 17, 64))["colour"] for number, scene in enumerate(scenes)]
    assert sum(right) >= 4
    assert isinstance(JUDGES[NAME](), StarterJudge)


def test_the_built_in_bundle_names_its_judge() -> None:
    from kinograph.bundle import verify

    assert verify(find_bundle(None)).judge == NAME
