"""The starter, quantised: what comes out, what it is held against, and that a refused variant changes nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from calibrated import Calibrated

import kinograph
from kinograph.bundle import Bundle, verify
from kinograph.calibration import CalibrationOptions, calibrate, compare, run
from kinograph.calibration.pictures import chosen_pictures
from kinograph.calibration.quality import Bars, psnr, ssim
from kinograph.calibration.work import Work
from kinograph.cli import main
from kinograph.console.judges import JUDGES
from kinograph.engines.bundled import write_engines
from kinograph.engines.cache import EngineCache
from kinograph.engines.host import adds_bytes_exactly
from kinograph.engines.origin import Card, Origin, sources
from kinograph.engines.tensorrt import Built
from kinograph.errors import NumericError, RequestError, UsageError

QUICK = CalibrationOptions(runs=3, videos=1, scan=False)
PROMPT = "a large red ball moves left on a plain navy background, flat style"


def silent(stage: str, done: int, total: int) -> None:
    assert 0 <= done <= total, stage


def test_the_variant_is_smaller_near_and_better_than_its_control(calibrated: Calibrated) -> None:
    path, report = calibrated.path, calibrated.report
    assert report.quality.passed and report.bytes_after < 0.3 * 2 * report.bytes_before  # of floats of 16 bits
    assert np.mean([*report.velocity_db.values()]) > np.mean([*report.control_db.values()])
    manifest = verify(path)
    page = (path / "int8-report.html").read_text("utf-8")
    assert page.count("<figure>") == 2 and 'src="data:image/png;base64,' in page
    assert report.quality.judged is not None and report.quality.judged.prompts == 3
    assert "<h2>What the videos show</h2>" in page
    assert "http" not in page and "<script" not in page
    assert manifest.components["step"].variants["int8"].quality == report.quality
    assert {"fp16", "int8"} == manifest.components["decoder_next"].variants.keys()
    assert "int8" in manifest.components["text_encoder"].variants


def test_it_generates_by_name_and_by_itself(calibrated: Calibrated) -> None:
    path = calibrated.path
    videos = {}
    for variant in ("fp16", "int8", None):
        with kinograph.load(path, device="cpu", variant=variant) as pipe:
            videos[variant] = pipe(PROMPT, seed=3)
    best = "int8" if adds_bytes_exactly() else "fp16"
    assert videos[None].metadata["variant"] == best
    assert np.array_equal(videos[None].frames, videos[best].frames)
    assert psnr(videos["fp16"].frames, videos["int8"].frames) > 25


def test_the_same_calibration_gives_the_same_bytes(
    calibrated: Calibrated, tmp_path: Path, starter_copy: Callable[..., Path]
) -> None:
    again = starter_copy(tmp_path / "starter", name="starter-few-steps", size=64)
    calibrate(again, calibrated.options, silent, JUDGES)
    with Bundle.open(calibrated.path) as one, Bundle.open(again) as other:
        assert one.manifest.files == other.manifest.files


def test_a_variant_that_misses_its_gate_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, starter_copy: Callable[..., Path]
) -> None:
    path = starter_copy(tmp_path / "starter", name="starter-few-steps", size=64)
    monkeypatch.setattr(compare, "Bars", lambda: Bars(psnr_db=119.0))
    before = (path / "bundle.json").read_bytes()
    with pytest.raises(NumericError, match=r"missed its gate and was not written: .*PSNR .* expected at least 119"):
        calibrate(path, QUICK, silent)
    assert (path / "bundle.json").read_bytes() == before
    report = calibrate(path, replace(QUICK, force=True), silent)
    assert not report.quality.passed
    with kinograph.load(path, device="cpu") as pipe:  # nobody gets it unasked
        assert pipe.variant["step"] == "fp16"


def test_what_cannot_be_done_is_said_before_any_work(calibrated: Calibrated) -> None:
    path = calibrated.path
    with pytest.raises(UsageError, match="has a variant 'int8' already"):
        calibrate(path, QUICK, silent)
    with pytest.raises(UsageError, match="unknown recipe 'int3'; expected one of: int8"):
        calibrate(path, replace(QUICK, recipe="int3"), silent)
    with pytest.raises(RequestError, match=r"prompt 2 cannot be used: the prompt has \d+ tokens"):
        calibrate(path, replace(QUICK, force=True, prompts=(PROMPT, "x" * 400)), silent)
    with pytest.raises(
        UsageError, match="1 of 2 prompts can be used with starter-few-steps; expected at least 2 different ones"
    ):
        calibrate(path, replace(QUICK, force=True, prompts=(PROMPT, PROMPT)), silent)
    with pytest.raises(UsageError, match="0 runs and 1 videos: expected at least one of each"):
        calibrate(path, replace(QUICK, force=True, runs=0), silent)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], starter_copy: Callable[..., Path]) -> None:
    path = starter_copy(tmp_path / "starter", name="starter-few-steps", size=64)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(f"{PROMPT}\n\na small yellow star circles in the night sky, neon style\n")
    options = ["--prompts", str(prompts), "--videos", "1", "--no-scan", "--judged", "2", "--quiet", "--force"]
    assert main(["calibrate", str(path), *options, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["quality"]["recipe"] == "int8"
    assert main(["calibrate", str(path), *options]) == 0
    told = capsys.readouterr().out
    assert "its gate: PSNR" in told and "what videos of 2 prompts show, as starter-world has it" in told
    assert main(["inspect", str(path), "--quiet"]) == 0
    assert "its gate: PSNR" in capsys.readouterr().out
    assert main(["calibrate", str(path), *options[:-1]]) == 2
    assert main(["calibrate", str(tmp_path / "nothing")]) == 4
    assert main(["calibrate", str(path), "--prompts", str(tmp_path)]) == 2
    prompts.write_bytes(b"\xff\xfe")
    assert main(["calibrate", str(path), "--prompts", str(prompts)]) == 2


def test_the_text_encoder_alone_in_4_bits(tmp_path: Path, starter_copy: Callable[..., Path]) -> None:
    options = CalibrationOptions(recipe="int4-weights", runs=1, videos=2, force=True)
    paths = [starter_copy(tmp_path / name, name="starter-few-steps", size=64) for name in ("one", "other")]
    report, again = (calibrate(path, options, silent) for path in paths)
    assert report == again or report.quality == again.quality
    assert report.quality.passed and report.bytes_after < 0.18 * 2 * report.bytes_before and not report.layers
    assert report.text_db is not None and report.text_db > 15
    assert all(report.velocity_db[step] > report.control_db[step] for step in report.velocity_db)
    with Bundle.open(paths[0]) as one, Bundle.open(paths[1]) as other:
        assert one.manifest.files == other.manifest.files
        assert {name for name, c in one.manifest.components.items() if "int4-weights" in c.variants} == {"text_encoder"}
    with kinograph.load(paths[0], device="cpu") as pipe:
        assert pipe.variant["text_encoder"] == "int4-weights" and pipe.variant["step"] == "fp16"
        assert len(pipe(PROMPT, seed=3).frames) == 17
    with pytest.raises(UsageError, match="has a variant 'int4-weights' already"):
        calibrate(paths[0], replace(options, force=False), silent)


@pytest.fixture
def from_pictures(tmp_path: Path, tiny_bundle: Callable[..., Path]) -> Path:
    """A tiny model that makes videos from pictures, and reads their tokens; its own are small."""
    path = tmp_path / "i2v"
    shutil.copytree(tiny_bundle("i2v"), path)
    document = json.loads((path / "bundle.json").read_text())
    document["defaults"] |= {"width": 64, "height": 48, "num_frames": 5, "num_inference_steps": 3}
    (path / "bundle.json").write_text(json.dumps(document))
    return path


def test_models_that_start_from_a_picture(
    from_pictures: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = calibrate(from_pictures, replace(QUICK, force=True, images=(str(picture),)), silent)
    assert report.quality.psnr_db > 25
    with kinograph.load(from_pictures, device="cpu", variant="int8") as pipe:
        assert pipe("a cat walks", image=str(picture)).frames.shape == (5, 48, 64, 3)
    assert main(["calibrate", str(from_pictures), "--skip", "careful", "--image", "none.png", "-q"]) == 3
    assert "none.png" in capsys.readouterr().err


def test_our_own_pictures_have_the_contrasts_of_photographs() -> None:
    pictures = chosen_pictures((), 64, 48)
    assert {one.shape for one in pictures} == {(48, 64, 3)} and len({one.tobytes() for one in pictures}) == len(
        pictures
    )
    spectrum = np.mean([np.abs(np.fft.fft2(one.astype(float).mean(2))) for one in pictures], axis=0)
    assert spectrum[1, 1] > 4 * spectrum[8, 8] > 4 * spectrum[20, 20] > 0


def test_engines_of_a_replaced_variant_go_with_it(tmp_path: Path, starter_copy: Callable[..., Path]) -> None:
    path, cache = starter_copy(tmp_path / "starter", name="starter-few-steps", size=64), EngineCache(tmp_path / "cache")
    options = CalibrationOptions(recipe="int4-weights", runs=1, videos=1, force=True)
    calibrate(path, options, silent)
    cards = []
    with Bundle.open(path) as bundle:
        for precision in ("fp16", "int4-weights"):
            wanted = Origin(
                component="text_encoder",
                precision=precision,
                sources=sources(bundle, "text_encoder", precision),
                builder="TensorRT 1",
                capability=89,
            )
            cards.append(Card.of(wanted, {"L": (1, 40)}, Built(precision.encode(), (), 1, 1)))
            cache.write(cards[-1], precision.encode())
        write_engines(bundle, cards, cache)
    assert {engine.precision for engine in verify(path).engines} == {"fp16", "int4-weights"}
    calibrate(path, options, silent)
    assert {engine.precision for engine in verify(path).engines} == {"fp16"}
    assert len(list((path / "engines").iterdir())) == 1


def test_figures_of_videos() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 16, 24, 3), dtype=np.uint8)
    assert psnr(frames, frames) == 120 and ssim(frames, frames) == pytest.approx(1)
    other = np.clip(frames.astype(int) + 10, 0, 255).astype(np.uint8)
    assert 27 < psnr(frames, other) < 30
    assert ssim(frames, 255 - frames) < 0 < ssim(frames, other) < 1


def test_a_model_too_small_for_four_bits_is_told(
    tmp_path: Path, starter_copy: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = starter_copy(tmp_path / "starter", name="starter-few-steps", size=64)
    before = verify(path)

    def scanned(loop: object, steps: Mapping[str, Work], *rest: object) -> None:
        for own in steps.values():
            own.effects = [1.0] * len(own.plans) + [1e-3] * len(own.finer)

    monkeypatch.setattr(run, "scan", scanned)
    with pytest.raises(NumericError, match=r"no layer of the step can be in nvfp4.* Use --recipe fp8"):
        calibrate(path, CalibrationOptions(recipe="nvfp4", runs=1, videos=1), silent)
    assert verify(path) == before
