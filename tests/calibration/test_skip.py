"""Which steps to compute: the best choice there is, by trying all; and levels of the starter, found and used."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
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


def samples_of(guided: Floats) -> Floats:
    """Where runs [N + 1, n] are that begin at noise and take Euler steps along predictions [N, n]."""
    noise = np.random.default_rng(9).standard_normal(guided.shape[1])
    return noise + np.concatenate([np.zeros((1, guided.shape[1])), np.cumsum(np.diff(SIGMAS)[:, None] * guided, 0)])


def products(*runs: tuple[Floats, Floats]) -> Products:
    found = Products(SIGMAS)
    for guided, unguided in runs:
        found.add(list(samples_of(guided)), list(guided), list(unguided))
    return found


def left_wrong(guided: Floats, unguided: Floats, computed: Sequence[int], interval: tuple[int, int]) -> float:
    """What these steps leave wrong, stretch by stretch, from the runs themselves."""
    total, samples = 0.0, samples_of(guided)
    used = [guided[i] if interval[0] <= i < interval[1] else unguided[i] for i in range(len(guided))]
    for number, (latest, following) in enumerate(zip(computed, [*computed[1:], len(guided)], strict=True)):
        basis = np.stack([samples[latest], used[latest], *([used[computed[number - 1]]] if number else [])])
        fit = np.linalg.lstsq(basis.T, samples[following], rcond=None)[0]
        weight = (3 if latest >= interval[1] else 1) / (1 - SIGMAS[following])
        total += weight * float(np.mean((samples[following] - fit @ basis) ** 2))
    return total


def test_it_finds_what_trying_all_would() -> None:
    rng = np.random.default_rng(0)
    steps = len(SIGMAS) - 1
    trend = np.cumsum(rng.standard_normal((steps, 40)), axis=0)
    front = best_choices(products((trend, trend)), guidance=False)
    for choice in front:
        computed = [stretch.step for stretch in choice.computed]
        others = combinations(range(2, steps), len(computed) - 2) if len(computed) > 1 else [()]
        start = (0, 1) if len(computed) > 1 else (0,)
        least = min(left_wrong(trend, trend, (*start, *other), (0, steps)) for other in others)
        assert choice.error == pytest.approx(least, abs=1e-9)
        assert choice.error == pytest.approx(left_wrong(trend, trend, computed, (0, steps)), abs=1e-9)
    assert front[-1].rows == steps and front[-1].error == pytest.approx(0, abs=1e-9)


def test_with_guidance_too_its_errors_are_those_of_the_runs() -> None:
    rng = np.random.default_rng(3)
    guided = np.cumsum(rng.standard_normal((len(SIGMAS) - 1, 50)), axis=0)
    unguided = guided + 0.3 * rng.standard_normal(guided.shape)
    front = best_choices(products((guided, unguided)), guidance=True)
    assert [choice.rows for choice in front] == sorted({choice.rows for choice in front})
    assert [choice.error for choice in front] == sorted((choice.error for choice in front), reverse=True)
    for choice in front:
        computed, (first, last) = [stretch.step for stretch in choice.computed], choice.guided
        assert choice.rows == len(computed) + sum(first <= step < last for step in computed)
        assert choice.error == pytest.approx(left_wrong(guided, unguided, computed, choice.guided), abs=1e-9)


def test_a_choice_leads_from_sample_to_sample() -> None:
    rng = np.random.default_rng(4)
    guided = np.cumsum(0.2 * rng.standard_normal((len(SIGMAS) - 1, 80)), axis=0)
    samples = samples_of(guided)
    choice = next(c for c in best_choices(products((guided, guided)), guidance=False) if c.rows == 4)
    earlier, wrong = np.zeros(80), 0.0
    ends = [*(stretch.step for stretch in choice.computed[1:]), len(guided)]
    for stretch, end in zip(choice.computed, ends, strict=True):
        latest = guided[stretch.step]
        reached = stretch.sample * samples[stretch.step] + stretch.latest * latest + stretch.earlier * earlier
        wrong, earlier = wrong + float(np.mean((reached - samples[end]) ** 2)) / (1 - SIGMAS[end]), latest
    assert wrong == pytest.approx(choice.error, rel=1e-6)


def test_what_is_steady_needs_one_step_and_what_changes_steadily_two() -> None:
    rng = np.random.default_rng(1)
    first, slope = rng.standard_normal((2, 60))
    constant = np.stack([first] * (len(SIGMAS) - 1))
    assert best_choices(products((constant, constant)), guidance=False)[0].error < 1e-9
    changing = np.stack([first + i * slope for i in range(len(SIGMAS) - 1)])
    front = best_choices(products((changing, changing)), guidance=False)
    assert front[0].error > 1e-3
    assert front[1].rows == 2 and front[1].error < 1e-9


def test_guidance_stays_where_it_matters() -> None:
    rng = np.random.default_rng(2)
    guided = rng.standard_normal((len(SIGMAS) - 1, 60))
    unguided = guided.copy()
    unguided[1:3] += 5.0
    exact = next(c for c in best_choices(products((guided, unguided)), guidance=True) if c.error < 1e-9)
    assert exact.guided == (1, 3) and exact.rows == 8


def test_the_mean_of_runs_counts() -> None:
    rng = np.random.default_rng(5)
    runs = [np.cumsum(rng.standard_normal((len(SIGMAS) - 1, 40)), axis=0) for _ in range(3)]
    together, each = products(*((run, run) for run in runs)), [products((run, run)) for run in runs]
    assert together.gram == pytest.approx(np.mean([one.gram for one in each], axis=0), rel=1e-12)


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
    assert len(done) == done[0].total == len(level.computed)
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
