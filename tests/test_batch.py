"""`kinograph batch`: what a file of requests becomes, what is passed over, and what ends it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import kinograph
from kinograph.cli import main

SHORT = {"prompt": "a red ball moves left", "width": 64, "height": 64, "num_frames": 5, "num_inference_steps": 2}
Run = Callable[..., int]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs the command on these lines, each of which adds to a short request; the videos lie in `out`."""

    def run(lines: list[dict[str, Any] | str], *options: str) -> int:
        texts = [line if isinstance(line, str) else json.dumps(SHORT | line) for line in lines]
        (tmp_path / "requests.jsonl").write_text("\n".join(texts) + "\n")
        (tmp_path / "out").mkdir(exist_ok=True)
        places = ["starter-few-steps", str(tmp_path / "requests.jsonl"), "-o", str(tmp_path / "out")]
        return main(["batch", *places, "--device", "cpu", *options])

    return run


def made(path: Path) -> list[str]:
    return sorted(one.name for one in (path / "out").iterdir())


def test_each_line_is_the_video_that_generate_makes(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([{"seed": 3, "output": "three/"}, "", {"num_frames": None, "seconds": 0.25}, {"seed": 4}], "--json") == 0
    videos = json.loads(capsys.readouterr().out)["videos"]
    assert [(video["line"], video["num_frames"], video["seed"]) for video in videos] == [
        (1, 5, 3),
        (3, 5, 0),
        (4, 5, 4),
    ]
    assert [stage["name"] for stage in videos[2]["stages"]] == ["text", "denoise", "decode", "write"]
    assert made(tmp_path) == ["0003.json", "0003.mp4", "0004.json", "0004.mp4", "three", "three.json"]
    with kinograph.load("starter-few-steps", device="cpu") as pipe:
        expected = pipe(**SHORT, seed=3).frames
    got = [np.asarray(Image.open(tmp_path / "out" / "three" / f"{number:06}.png")) for number in range(5)]
    assert np.array_equal(np.stack(got), expected)


def test_what_is_there_is_passed_over(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([{"output": "a.gif"}], "--no-metadata") == 0
    assert made(tmp_path) == ["a.gif"]
    (tmp_path / "out" / "a.gif").write_bytes(b"mine")
    assert run([{"output": "a.gif"}, {"output": "b.gif"}], "--no-metadata") == 0
    assert (tmp_path / "out" / "a.gif").read_bytes() == b"mine"
    assert "a.gif: is there\n" in capsys.readouterr().out
    assert run([{"output": "a.gif"}], "--no-metadata", "--force") == 0
    assert (tmp_path / "out" / "a.gif").read_bytes() != b"mine"


def test_a_line_that_cannot_be_done_leaves_the_others(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [{"num_frames": 6}, {"output": "good.gif"}, {"output": "bad.xyz"}, {"image": "nowhere.png"}]
    assert run([*lines, {"output": "nowhere/there.gif"}], "--no-metadata") == 3
    said = capsys.readouterr()
    assert "kinograph: line 1: 6 frames" in said.err
    assert "line 3: " in said.err and "line 4: " in said.err and "line 5: " in said.err
    assert "good.gif: 5 frames, seed 0" in said.out
    assert made(tmp_path) == ["good.gif"]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["{"], "line 1"),
        ([{"frames": 5}], "line 1: Object contains unknown field `frames`"),
        ([{}, "[]"], "line 2: Expected `object`"),
        (['{"seed": 1}'], "missing required field `prompt`"),
        ([{"output": "a.gif"}, {"output": "a.gif"}], "is what line 1 makes"),
    ],
)
def test_a_file_that_is_none_is_refused_before_anything_is_made(
    lines: list[dict[str, Any] | str], said: str, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(lines) == 2
    assert said in capsys.readouterr().err
    assert made(tmp_path) == []


def test_a_file_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    for arguments, said in (
        ([str(tmp_path / "nowhere")], "cannot be read"),
        ([str(tmp_path / "bytes")], "cannot be read"),
        ([], "expected [BUNDLE] FILE"),
        (["a", "b", "c"], "expected [BUNDLE] FILE"),
    ):
        assert main(["batch", *arguments]) == 2
        assert said in capsys.readouterr().err
