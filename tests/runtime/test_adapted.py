"""LoRAs that are added when a bundle is opened: what they change, for how long, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load, save_file

import kinograph
from kinograph.cli import main
from kinograph.engines.origin import sources
from kinograph.engines.ort import OrtDevice
from kinograph.errors import BundleError, UsageError
from kinograph.runtime.adapted import AdaptedBundle
from kinograph.runtime.locate import open_bundle

SHORT: dict[str, Any] = {"width": 64, "height": 64, "num_frames": 5, "num_inference_steps": 2}
PROMPT = "a large red ball moves left on a plain navy background, flat style"
WEIGHTS = "step/fp32/model.safetensors"
FEW_STEPS = "starter-few-steps"
LAYER = "blocks.0.attn1.to_q"


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    """One that changes what every frame looks like."""
    rng = np.random.default_rng(0)
    up, down = (rng.standard_normal(shape).astype(np.float32) for shape in ((256, 4), (4, 256)))
    return write(tmp_path / "style.safetensors", {"A": down, "B": up})


def write(path: Path, parts: dict[str, npt.NDArray[Any]], layer: str = LAYER) -> Path:
    save_file({f"transformer.{layer}.lora_{part}.weight": array for part, array in parts.items()}, path)
    return path


def frames(**opened: Any) -> npt.NDArray[np.uint8]:
    with kinograph.load(variant="fp32", **opened) as pipe:
        return pipe(PROMPT, seed=3, **SHORT).frames


def test_it_is_added_for_one_pipeline_alone(lora: Path) -> None:
    plain = frames()
    assert (frames(loras=[kinograph.Lora(lora)]) != plain).mean() > 0.1
    np.testing.assert_array_equal(frames(loras=[kinograph.Lora(lora, 0.0)]), plain)
    np.testing.assert_array_equal(frames(), plain)


def test_what_is_added_is_its_product(lora: Path) -> None:
    with open_bundle(None) as bundle:
        before = load(bundle.map(WEIGHTS).tobytes())
    with AdaptedBundle(open_bundle(None), [kinograph.Lora(lora, 0.5)]) as bundle:
        after = load(bundle.map(WEIGHTS).tobytes())
        assert bundle.map(WEIGHTS).tobytes() == bundle.map(WEIGHTS).tobytes()
        changed = f"denoiser.transformer.{LAYER}.weight.transposed"
        assert [name for name in before if not np.array_equal(before[name], after[name])] == [changed]
        assert bundle.private(WEIGHTS) == before[changed].nbytes
        assert bundle.size(WEIGHTS) == bundle.manifest.files[WEIGHTS].size
    with_numpy = load(lora.read_bytes())
    down, up = (with_numpy[f"transformer.{LAYER}.lora_{part}.weight"] for part in "AB")
    expected = before[changed].astype(np.float32) + 0.5 * (up @ down).T
    np.testing.assert_array_equal(after[changed], expected.astype(before[changed].dtype))


def test_engines_of_another_strength_are_other_engines(lora: Path) -> None:
    told = []
    for strength in (None, 1.0, 0.5):
        bundle = open_bundle(None)
        with bundle if strength is None else AdaptedBundle(bundle, [kinograph.Lora(lora, strength)]) as one:
            told.append(sources(one, "step", "fp32"))
            assert sources(one, "decoder_next", "fp32") == sources(bundle, "decoder_next", "fp32")
    assert len(set(told)) == 3


def test_what_is_changed_counts_as_memory(lora: Path) -> None:
    sizes = {"F": 2, "H": 8, "W": 8, "B": 2}
    with open_bundle(None) as bundle, OrtDevice(1) as device:
        plain = device.footprint(bundle, "step", "fp32", sizes)
        adapted = AdaptedBundle(bundle, [kinograph.Lora(lora)])
        assert device.footprint(adapted, "step", "fp32", sizes).weights == plain.weights + adapted.private(WEIGHTS)


def test_of_what_is_changed_only_floats_are_left(lora: Path) -> None:
    loras = [kinograph.Lora(lora)]
    with kinograph.load(FEW_STEPS, loras=loras) as pipe:
        assert pipe.variant["step"] == "fp16"
        assert "int8" in pipe.bundle.manifest.components["decoder_next"].variants
    with pytest.raises(UsageError, match="and not to int8, which was calibrated without it"):
        kinograph.load(FEW_STEPS, loras=loras, variant="int8")


@pytest.mark.parametrize(
    ("down", "up"),
    [((4, 64), (64, 4)), ((0, 256), (256, 0)), ((4, 256), (256, 3)), ((4,), (256, 4)), ((), (256, 4)), ((4, 256), ())],
)
def test_what_does_not_fit_is_refused_when_it_is_opened(
    down: tuple[int, ...], up: tuple[int, ...], tmp_path: Path
) -> None:
    path = write(tmp_path / "a.safetensors", {"A": np.zeros(down, np.float32), "B": np.zeros(up, np.float32)})
    with pytest.raises(BundleError, match=rf"does not fit {LAYER}.weight, which has the shape \[256, 256\]: A is"):
        kinograph.load(loras=[kinograph.Lora(path)])


@pytest.mark.parametrize(("value", "said"), [(np.nan, "is not finite"), (300.0, "is beyond what float16 can hold")])
def test_what_is_no_number_of_the_weights_is_refused(value: float, said: str, tmp_path: Path) -> None:
    thin = {"A": np.full((1, 256), value, np.float32), "B": np.full((256, 1), value, np.float32)}
    loras = [kinograph.Lora(write(tmp_path / "large.safetensors", thin))]
    with (
        kinograph.load(FEW_STEPS, variant="fp16", loras=loras) as pipe,
        pytest.raises(BundleError, match=said),
    ):
        pipe(PROMPT, **SHORT | {"num_inference_steps": 4})


def test_a_bundle_of_quantised_weights_alone_is_refused(lora: Path) -> None:
    bundle = open_bundle(FEW_STEPS)
    step = bundle.manifest.components["step"]
    step = msgspec.structs.replace(step, variants={"int8": step.variants["int8"]})
    bundle.manifest = msgspec.structs.replace(bundle.manifest, components={**bundle.manifest.components, "step": step})
    with bundle, pytest.raises(BundleError, match="is added to float weights, and step of starter-few-steps has int8"):
        AdaptedBundle(bundle, [kinograph.Lora(lora)])


def test_the_command_tells_of_it_and_goes_on_with_nothing_else(
    lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [PROMPT, "--size", "64x64", "--frames", "5", "--steps", "2", "--latents", str(tmp_path / "l.safetensors")]
    command = ["generate", *options, "-o", str(tmp_path / "out.mp4"), "--force", "--quiet"]
    assert main([*command, "--lora", f"{lora}@0.5", "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["loras"]
    assert (told["name"], told["strength"]) == ("style.safetensors", 0.5)
    assert json.loads((tmp_path / "out.json").read_text())["loras"] == [told]
    assert main([*command, "--lora", str(lora), "--resume"]) == 3
    assert "holds latents of another lora" in capsys.readouterr().err


def test_a_strength_is_a_number_unless_the_file_has_that_name(
    lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", PROMPT, "--lora", f"{lora}@strong"]) == 2
    assert f"'strong' is no strength. Give a number, such as {lora}@0.8" in capsys.readouterr().err
    named = lora.rename(tmp_path / "style@2")
    short = ["--size", "64x64", "--frames", "5", "--steps", "2", "-o", str(tmp_path / "out.mp4"), "--json"]
    assert main(["generate", PROMPT, *short, "--lora", str(named)]) == 0
    (told,) = json.loads(capsys.readouterr().out)["loras"]
    assert (told["name"], told["strength"]) == ("style@2", 1.0)


@pytest.mark.parametrize("command", ["generate", "batch", "serve"])
def test_wrong_files_end_a_command_before_it_begins(
    command: str, lora: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "requests.jsonl").write_text(json.dumps({"prompt": PROMPT}))
    words = {"generate": [PROMPT], "batch": [str(tmp_path / "requests.jsonl")], "serve": []}[command]
    assert main([command, *words, "--lora", str(tmp_path / "missing.safetensors")]) == 4
    assert "missing.safetensors" in "".join(capfd.readouterr())
    assert main([command, *words, "--lora-2", str(lora)]) == 4
    assert "is for transformer 2, and starter has 1" in "".join(capfd.readouterr())
