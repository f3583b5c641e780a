"""Prompts that are kept: when the text encoder is not opened, files of them, and `kinograph embed`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import kinograph
from kinograph.cli import main
from kinograph.errors import MemoryLimitError, RequestError, UsageError
from kinograph.runtime import prompts
from kinograph.runtime.pipeline import Pipeline
from kinograph.runtime.variants import resident

RED, BLUE = "a red ball moves left", "a blue star circles"
SHORT = {"width": 64, "height": 64, "num_frames": 5, "num_inference_steps": 2}


class Opened(list[str]):
    """The components that a pipeline opened, in their order."""


def watched(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Opened:
    opened = Opened()
    real = pipe.device.open

    def open_(bundle: Any, component: str, precision: str) -> Any:
        opened.append(component)
        return real(bundle, component, precision)

    monkeypatch.setattr(pipe.device, "open", open_)
    monkeypatch.setattr(pipe, "_resident", frozenset())  # as where the model fills the memory
    return opened


def test_the_text_encoder_gives_way_to_what_every_video_needs() -> None:
    with kinograph.load("starter", device="cpu") as pipe:
        manifest, variants = pipe.bundle.manifest, pipe.variant
        others = set(variants) - {"text_encoder"}
        weights = {name: manifest.components[name].variants[variants[name]].weights for name in variants}
        total = sum(manifest.files[path].size for path in {path for paths in weights.values() for path in paths})
        text = manifest.files[weights["text_encoder"][0]].size
        assert resident(manifest, variants, 4 * total) == set(variants)
        assert resident(manifest, variants, 4 * total - 4) == others
        assert resident(manifest, variants, 4 * (total - text)) == others
        assert resident(manifest, variants, 4 * (total - text) - 4) == set()
        pipe._resident = frozenset(others)
        pipe(RED, **SHORT)
        assert pipe._engines.keys() == {"step", "decoder_first", "decoder_next"}


@pytest.fixture
def pipe() -> Iterator[Pipeline]:
    with kinograph.load("starter", device="cpu") as pipe:
        yield pipe


def embedded(path: Path, *arguments: str) -> dict[str, Any]:
    assert main(["embed", "starter", *arguments, "-o", str(path), "--device", "cpu"]) == 0
    return load_file(path)


def test_a_prompt_is_embedded_once(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = watched(pipe, monkeypatch)
    first = pipe(RED, **SHORT).frames
    assert opened.count("text_encoder") == 1
    again = pipe(RED, **SHORT).frames
    assert np.array_equal(first, again)
    assert opened.count("text_encoder") == 1
    pipe(BLUE, **SHORT)
    assert opened.count("text_encoder") == 2
    pipe.prompts.clear()
    assert np.array_equal(pipe(RED, **SHORT).frames, first)
    assert opened.count("text_encoder") == 3


def test_nothing_is_embedded_beside_a_run(pipe: Pipeline) -> None:
    run = pipe.run(kinograph.Request(prompt=RED, **SHORT))
    next(run)
    with pytest.raises(UsageError, match="already making a video"):
        pipe.embed([BLUE])
    run.close()
    assert len(pipe.embed([BLUE])) == 1


def test_the_oldest_are_forgotten_first(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = pipe.embed([RED])
    monkeypatch.setattr(prompts, "_MOST_BYTES", 3 * next(iter(rows.values())).nbytes)
    names = [f"a {colour} ball moves left" for colour in ("red", "blue", "green", "white")]
    pipe.embed(names[:3])
    pipe.embed(names[:1])  # used again
    pipe.embed(names[3:])
    assert [pipe.prompts.known([name]) for name in names] == [True, False, True, True]


def test_what_a_file_has_needs_no_text_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "prompts.safetensors"
    assert len(embedded(path, RED)) == 2  # and the negative one
    with kinograph.load("starter", device="cpu") as pipe:
        expected, other = pipe(RED, **SHORT).frames, pipe(BLUE, **SHORT).frames
    with kinograph.load("starter", device="cpu", embedded=path) as pipe:
        opened = watched(pipe, monkeypatch)
        assert np.array_equal(pipe(RED, **SHORT).frames, expected)
        assert "text_encoder" not in opened
        assert np.array_equal(pipe(BLUE, **SHORT).frames, other)
        assert opened.count("text_encoder") == 1


def test_nor_memory_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "prompts.safetensors"
    embedded(path, RED)
    for given in (None, path):
        with kinograph.load("starter", device="cpu", embedded=given) as pipe:
            real = pipe.device.footprint

            def footprint(bundle: Any, component: str, *more: Any, real: Callable[..., Any] = real) -> Any:
                found = real(bundle, component, *more)
                return found._replace(weights=1 << 60) if component == "text_encoder" else found

            monkeypatch.setattr(pipe.device, "footprint", footprint)
            if given is None:
                with pytest.raises(MemoryLimitError, match="text_encoder would take"):
                    pipe(RED, **SHORT)
            else:
                pipe(RED, **SHORT)


def test_embed_adds_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, lines = tmp_path / "prompts.safetensors", tmp_path / "prompts.txt"
    lines.write_text(f"{BLUE}\n\na green cat spins\n")
    first = embedded(path, RED)
    capsys.readouterr()
    both = embedded(path, RED, "--prompts", str(lines), "-n", "blurred", "--json")
    report = json.loads(capsys.readouterr().out)
    assert (report["prompts"], report["new"], report["variant"]) == (5, 3, "fp32")
    assert all(np.array_equal(both[key], row) for key, row in first.items())
    before = path.read_bytes()
    assert embedded(path, RED).keys() == both.keys()
    assert path.read_bytes() == before
    assert embedded(path, RED, "--force").keys() == first.keys()
    assert RED.encode() not in before


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "there is no prompt"),
        ([RED, "-o", "prompts.txt"], 7, "must be .safetensors"),
        (["red " * 400], 3, "tokens, but the model reads"),
        ([RED, "--variant", "fp64"], 2, "no variant 'fp64'"),
    ],
)
def test_what_embed_refuses(
    arguments: list[str], code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "prompts.safetensors"
    output = [] if "-o" in arguments else ["-o", str(path)]
    assert main(["embed", "starter", *arguments, *output]) == code
    assert said in capsys.readouterr().err
    assert not path.exists()


def test_a_file_of_another_text_encoder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "prompts.safetensors"
    embedded(path, RED)
    before = path.read_bytes()
    with pytest.raises(RequestError, match="another text encoder"):
        kinograph.load("starter-few-steps", device="cpu", embedded=path)
    assert main(["embed", "starter-few-steps", BLUE, "-o", str(path)]) == 3
    assert "another text encoder" in capsys.readouterr().err
    assert main(["generate", "starter-few-steps", RED, "--embedded", str(path), "-o", str(tmp_path / "out.gif")]) == 3
    assert path.read_bytes() == before


def test_files_that_hold_something_else(tmp_path: Path) -> None:
    good = tmp_path / "good.safetensors"
    rows = embedded(good, RED)
    with prompts.safetensors.safe_open(good, "np") as file:
        about = file.metadata()
    key, row = next(iter(rows.items()))
    long = np.zeros((10_000, row.shape[1]), np.float32)
    wrong = [
        {key: row[0]},
        {key: row.astype(np.float64)},
        {key: row[:, :3]},
        {key: row * np.nan},
        {"a": row},
        {key: long},
    ]
    for content in wrong:
        path = tmp_path / "wrong.safetensors"
        save_file({name: np.ascontiguousarray(array) for name, array in content.items()}, path, about)
        with pytest.raises(RequestError, match="expected finite float32"):
            kinograph.load("starter", device="cpu", embedded=path)
    for data in (b"", b"\xff" * 100, good.read_bytes()[:-10]):
        path.write_bytes(data)
        with pytest.raises(RequestError, match="holds no prompts"):
            kinograph.load("starter", device="cpu", embedded=path)
    with pytest.raises(RequestError, match="holds no prompts"):
        kinograph.load("starter", device="cpu", embedded=tmp_path / "nowhere")
