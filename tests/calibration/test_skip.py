"""Which steps to skip: the best choice there is, by trying all; and levels of the starter, found and used."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

import kinograph
from kinograph.bundle import verify
from kinograph.calibration import CalibrationOptions, find_speeds
from kinograph.calibration.quality import LEVELS, Bars
from kinograph.calibration.skip import Products, best_choices
from kinograph.cli import main
from kinograph.errors import NumericError, RequestError, UsageError

QUICK = CalibrationOptions(runs=3, videos=1, skip=("fast",))
PROMPT = "a large red ball moves left on a plain navy background, flat style"
SIGMAS = (1.0, 0.9, 0.75, 0.6, 0.4, 0.2, 0.0)

Floats = np.ndarray


def silent(stage: str, done: int, total: int) -> None:
    assert done >= 0, stage


def products(guided: Floats, unguided: Floats) -> Products:
    found = Products(SIGMAS)
    found.add(list(guided), list(unguided))
    return found


def moved(used: Floats, guided: Floats, computed: tuple[int, ...]) -> float:
    """How far skipping moves the sample, stretch by stretch, from the predictions themselves."""
    widths, total = -np.diff(SIGMAS), 0.0
    for number, latest in enumerate(computed):
        end = computed[number + 1] if number + 1 < len(computed) else len(widths)
        apart = widths[latest] * (guided[latest] - used[latest])
        basis = used[[latest, computed[number - 1]]] if number else used[[latest]]
        for step in range(latest + 1, end):
            mix = np.linalg.lstsq(basis.T, guided[step], rcond=None)[0]
            apart = apart + widths[step] * (guided[step] - mix @ basis)
        total += float(np.mean(apart**2))
    return total


def test_it_finds_what_trying_all_would() -> None:
    rng = np.random.default_rng(0)
    steps = len(SIGMAS) - 1
    trend = np.cumsum(rng.standard_normal((steps, 40)), axis=0)
    front = best_choices(products(trend, trend), guidance=False, mix=True)
    for choice in front:
        others = combinations(range(2, steps), len(choice.computed) - 2) if len(choice.computed) > 1 else [()]
        start = (0, 1) if len(choice.computed) > 1 else (0,)
        least = min(moved(trend, trend, (*start, *other)) for other in others)
        assert choice.error == pytest.approx(least, abs=1e-9)
        assert choice.error == pytest.approx(moved(trend, trend, choice.computed), abs=1e-9)
        assert sorted((*choice.computed, *(skip.step for skip in choice.skipped))) == list(range(steps))
    assert front[-1].rows == steps and front[-1].error == pytest.approx(0, abs=1e-9)


def test_what_changes_steadily_needs_two_predictions_where_they_may_be_mixed() -> None:
    rng = np.random.default_rng(1)
    first, slope = rng.standard_normal((2, 60))
    steady = np.stack([first + i * slope for i in range(len(SIGMAS) - 1)])
    mixed = best_choices(products(steady, steady), guidance=False, mix=True)
    repeated = best_choices(products(steady, steady), guidance=False, mix=False)
    assert mixed[-1].rows == 2 and mixed[-1].error < 1e-9
    assert repeated[1].error > 1e-3
    assert all(skip.earlier == 0 for choice in repeated for skip in choice.skipped)


def test_guidance_stays_where_it_matters() -> None:
    rng = np.random.default_rng(2)
    guided = rng.standard_normal((len(SIGMAS) - 1, 60))
    unguided = guided.copy()
    unguided[1:3] += 5.0
    exact = next(c for c in best_choices(products(guided, unguided), guidance=True, mix=True) if c.error < 1e-9)
    assert exact.guided == (1, 3) and exact.rows == 8


@pytest.fixture(scope="module")
def sped(tmp_path_factory: pytest.TempPathFactory, starter_copy: Callable[..., Path]) -> Path:
    path = starter_copy(tmp_path_factory.mktemp("sped") / "starter")
    found = find_speeds(path, replace(QUICK, force=True), silent)
    assert found["fast"].rows < found["fast"].every_row / 2
    assert found["fast"].psnr_db >= LEVELS["fast"].psnr_db and found["fast"].ssim >= LEVELS["fast"].ssim
    assert verify(path).speeds["fast"] == found["fast"]
    return path


def test_a_level_generates_near_to_every_step(sped: Path) -> None:
    with kinograph.load(sped, device="cpu") as pipe:
        level = pipe.bundle.manifest.speeds["fast"]
        whole, fast = pipe(PROMPT, seed=3), pipe(PROMPT, seed=3, speed="fast")
        done = [e for e in pipe.run(kinograph.Request(prompt=PROMPT, speed="fast")) if type(e).__name__ == "StepDone"]
    assert len(done) == done[0].total == level.steps - len(level.skipped)
    assert fast.metadata["speed"] == "fast" and "speed" not in whole.metadata
    error = np.square(whole.frames.astype(float) - fast.frames).mean()
    assert 0 < error < 255**2 / 10**2.0  # 20 dB


def test_levels_are_of_one_schedule(sped: Path) -> None:
    with kinograph.load(sped, device="cpu") as pipe:
        with pytest.raises(RequestError, match=r"leaves out some of 24 steps of the unipc solver.*has 12 of unipc"):
            pipe(PROMPT, speed="fast", num_inference_steps=12)
        with pytest.raises(RequestError, match=r"has no speed level 'slow'; it has: .*fast"):
            pipe(PROMPT, speed="slow")


def test_a_level_is_found_once_and_replaced_with_force(sped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (sped / "bundle.json").read_bytes()
    with pytest.raises(UsageError, match="has a speed level 'fast' already"):
        find_speeds(sped, QUICK, silent)
    with pytest.raises(UsageError, match="unknown speed level 'slow'; expected one of: careful, balanced, fast"):
        find_speeds(sped, CalibrationOptions(skip=("slow",)), silent)
    assert (sped / "bundle.json").read_bytes() == before
    options = ["--skip", "fast", "--runs", "3", "--videos", "1", "--force", "--json"]
    assert main(["calibrate", str(sped), *options]) == 0
    assert json.loads(capsys.readouterr().out)["speeds"]["fast"]["steps"] == 24
    assert (sped / "bundle.json").read_bytes() == before  # the same runs give the same level


def test_what_no_level_reaches_is_said(sped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LEVELS, "careful", Bars(psnr_db=119.0, ssim=1.0))
    before = (sped / "bundle.json").read_bytes()
    with pytest.raises(NumericError, match="no step can be skipped at level 'careful'"):
        find_speeds(sped, CalibrationOptions(runs=2, videos=1, skip=("careful",), force=True), silent)
    assert (sped / "bundle.json").read_bytes() == before
