"""What a video is going to look like, before it is decoded: told by steps, and by `--preview`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import kinograph
from kinograph import FramesDecoded, Request, StepDone
from kinograph.bundle import Bundle
from kinograph.cli import main
from kinograph.errors import BundleError
from kinograph.manifest import Preview
from kinograph.runtime.locate import open_bundle, starter_bundle
from kinograph.runtime.preview import preview_frames, preview_sheet

PROMPT = "a large red ball moves left on a plain navy background, flat style"


def test_the_map_is_linear() -> None:
    preview = Preview(weights=((0.5, 0.0, 0.0), (0.0, -0.25, 0.0)), bias=(0.5, 0.5, 1.0))
    latents = np.zeros((1, 2, 3, 4, 5), np.float32)
    latents[0, 0, 1], latents[0, 1, 2], latents[0, 0, 0, 0, 0] = 1, 4, np.nan
    frames = preview_frames(latents, preview)
    assert frames.shape == (3, 4, 5, 3)
    assert frames[1, 2, 2].tolist() == [255, 128, 255]
    assert frames[2, 2, 2].tolist() == [128, 0, 255], "what is out of range is clipped"
    assert preview_sheet(frames, 8).shape == (4 * 8 + 8, 3 * (5 * 8 + 4) + 4, 3)


def test_half_way_it_shows_what_the_video_will_show() -> None:
    shown, frames = {}, []
    with kinograph.load(device="cpu", variant="fp32") as pipe:
        for event in pipe.run(Request(prompt=PROMPT, seed=1)):
            if isinstance(event, StepDone):
                assert event.preview is not None
                shown[event.index] = event.preview()
            elif isinstance(event, FramesDecoded):
                frames.append(event.frames)
    video = np.concatenate(frames).astype(float)[::4]
    small = video.reshape(9, 16, 8, 16, 8, 3).mean((2, 4))
    likeness = {index: np.corrcoef(one.ravel(), small.ravel())[0, 1] for index, one in shown.items()}
    assert likeness[len(shown) // 2] > 0.8 and likeness[len(shown) - 1] > 0.9
    assert likeness[0] < likeness[len(shown) - 1]


@pytest.mark.parametrize("kind", ["t2v", "ti2v"])
def test_export_fits_it(tiny_bundle: Callable[..., Path], kind: str) -> None:
    with Bundle.open(tiny_bundle(kind)) as bundle:
        preview = bundle.manifest.preview
        assert preview is not None and len(preview.weights) == bundle.manifest.geometry.channels


def test_the_starter_knows_every_colour() -> None:
    """Of one colour all over, the map tells which."""
    from kinograph.engines.ort import OrtDevice
    from kinograph.runtime.codec import encode

    with open_bundle(None) as bundle, OrtDevice() as device:
        assert bundle.manifest.preview is not None
        engines = [device.open(bundle, name, "fp32") for name in ("encoder_first", "encoder_next")]
        for colour in ((220, 40, 40), (30, 60, 200), (240, 240, 240), (20, 20, 30)):
            picture = np.full((1, 128, 128, 3), colour, np.uint8)
            (latents,) = encode(device, *engines, [(picture, np.ones(1, np.float32))], {"H": 16, "W": 16})
            told = preview_frames(latents, bundle.manifest.preview)[0, 4:12, 4:12].mean((0, 1))
            assert np.abs(told - colour).max() < 40


def test_it_is_written_while_the_video_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", PROMPT, "--steps", "6", "-q", "-o", str(tmp_path / "a.mp4")]
    preview = tmp_path / "preview.png"
    assert main([*command, "--preview", str(preview)]) == 0
    with Image.open(preview) as sheet:
        assert sheet.size == (8 * 132 + 4, 136)
    assert main([*command, "--preview", str(preview)]) == 7, "it is not replaced unasked"
    assert main([*command, "--preview", str(tmp_path / "preview.jpg"), "--force"]) == 7
    assert "Use --preview preview.png" in capsys.readouterr().err


def test_bundles_without_a_map_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "starter"
    shutil.copytree(starter_bundle(), path)
    document = json.loads((path / "bundle.json").read_text())
    preview = document.pop("preview")
    (path / "bundle.json").write_text(json.dumps(document))
    out = ["-q", "-o", str(tmp_path / "a.mp4"), "--preview", str(tmp_path / "p.png")]
    assert main(["generate", str(path), PROMPT, *out]) == 2
    assert "no map from latents to colours" in capsys.readouterr().err
    assert not (tmp_path / "a.mp4").exists()
    preview["weights"].pop()
    (path / "bundle.json").write_text(json.dumps(document | {"preview": preview}))
    with pytest.raises(BundleError, match="one for each of"):
        Bundle.open(path)
