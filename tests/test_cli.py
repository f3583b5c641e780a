"""The command line: options, output, exit codes, signals. The pipeline is a fake that draws grey ramps."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import msgspec
import numpy as np
import pytest
from PIL import Image

import kinograph
from kinograph import errors, manifest
from kinograph.cli import main
from kinograph.runtime import request as requests

SCALE = manifest.Parity(max_abs=3e-6, rms=4e-7, scale=0.98, engine="onnxruntime cpu")
MANIFEST = manifest.Manifest(
    format_version=1,
    name="fake-1b",
    family="fake",
    source=manifest.Source(checkpoint="acme/fake", pipeline="FakePipeline", exporter="kinograph 0.1.0", licence="MIT"),
    geometry=manifest.Geometry(channels=4, spatial=8, temporal=4, patch=2, positions=512),
    defaults=manifest.Defaults(width=64, height=48, num_frames=9, fps=16.0, num_inference_steps=4),
    solver=manifest.Solver(name="unipc", shift=3.0),
    conditioning=manifest.Conditioning(kind="clean"),
    text=manifest.Text(tokenizer="tokenizer.json", length=32, dim=8, cleaning=("whitespace",)),
    experts=(manifest.Expert(component="step", guidance_scale=5.0),),
    components={
        "step": manifest.Component(
            variants={
                "fp32": manifest.Variant(graph="s.onnx", weights=("s.bin",), inputs=(), outputs=(), parity=SCALE),
                "int8": manifest.Variant(graph="q.onnx", weights=("q.bin",), inputs=(), outputs=()),
            }
        )
    },
    files={
        "s.bin": manifest.File(size=2_000_000, sha256="0" * 64),
        "q.bin": manifest.File(size=500_000, sha256="1" * 64),
    },
)


class FakePipeline:
    """Answers as a Pipeline does; the prompt says what goes wrong: blank, slow, stubborn, nan, memory, crash."""

    def __init__(self) -> None:
        self.bundle = SimpleNamespace(manifest=MANIFEST, digest="ab" * 32)
        self.backend = "fake"
        self.variant = {"step": "fp32"}

    def __enter__(self) -> FakePipeline:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def resolve(self, request: requests.Request) -> requests.Request:
        return requests.resolve(request, MANIFEST)

    def metadata(self, request: requests.Request) -> dict[str, str]:
        return {"prompt": request.prompt, "seed": str(request.seed)}

    def run(self, request: requests.Request, done: Any = None) -> Iterator[Any]:
        yield kinograph.StageStarted("text")
        yield kinograph.StageStarted("denoise")
        steps, total = request.num_inference_steps or 0, request.num_frames or 0
        for index in range(steps):
            if request.prompt == "slow":
                time.sleep(0.05)
            if request.prompt == "stubborn":
                try:
                    time.sleep(60)
                finally:
                    time.sleep(1.5)  # as one large operation does, which ends when it is done
            if request.prompt == "nan" and index == 2:
                raise errors.NumericError("NaN in the latents after step 3")
            yield kinograph.StepDone(index, steps, 1000.0 - index, lambda: np.zeros((1, 4, 3, 6, 8), np.float32))
        if request.prompt == "memory":
            raise MemoryError
        if request.prompt == "crash":
            raise ValueError("broken \x1b[31mpromise")
        yield kinograph.StageStarted("decode")
        for index in range(0, total, 4):
            count = min(4, total - index)
            levels = np.full(count, 7) if request.prompt == "blank" else 10 * np.arange(index, index + count)
            frames = np.empty((count, request.height or 0, request.width or 0, 3), np.uint8)
            frames[...] = levels[:, None, None, None]
            yield kinograph.FramesDecoded(frames, index, total)


def fake_load(
    path: str | None = None,
    *,
    progress: Callable[[int, int], None],
    device: str = "auto",
    variant: str | None = None,
    **settings: object,
) -> FakePipeline:
    progress(2_000_000, 2_000_000)
    if path not in (None, "fake"):
        raise errors.BundleError(f"no bundle at {path}")
    if device == "cuda":
        raise errors.EngineError("no CUDA here")
    return FakePipeline()


DRIVER = f"""
import runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background has it ignored
import kinograph
kinograph.load = runpy.run_path({__file__!r})["fake_load"]
from kinograph.cli import main
sys.exit(main())
"""


def start(folder: Path, *args: str, **options: Any) -> subprocess.Popen[bytes]:
    """The command as a process of its own, with the fake pipeline."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen([sys.executable, "-c", DRIVER, *args], cwd=folder, env=environment, **streams)


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(kinograph, "load", fake_load)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KINOGRAPH_DEBUG", raising=False)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_generate_writes_video_and_side_car(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "a red ball", "--seed", "7", "--no-metadata"]) == 0
    assert names(tmp_path) == ["out.mp4"]
    assert main(["generate", "fake", "a réd ball", "--seed", "7", "-o", "b.mp4", "--verbose"]) == 0
    assert names(tmp_path) == ["b.json", "b.mp4", "out.mp4"]
    with av.open("b.mp4") as container:
        assert container.metadata["prompt"] == "a réd ball" and container.metadata["seed"] == "7"
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with av.open("out.mp4") as container:
        assert "prompt" not in container.metadata
    assert len(frames) == 9 and frames[0].shape == (48, 64, 3)
    assert [round(float(frame.mean()) / 10) for frame in frames] == list(range(9))
    sidecar = json.loads((tmp_path / "b.json").read_text("utf-8"))
    assert sidecar["metadata"]["prompt"] == "a réd ball" and sidecar["bundle_sha256"] == "ab" * 32
    captured = capsys.readouterr()
    assert "b.mp4: 9 frames, 64×48, 16 fps, seed 7" in captured.out
    assert "denoise" in captured.out and "decode" in captured.out
    assert captured.err == ""  # no progress where there is no terminal


def test_json_is_one_object_without_the_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "-p", "secret", "--steps", "2", "--frames", "5", "--guidance", "1", "--json"]) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert report["num_inference_steps"] == 2 and report["num_frames"] == 5 and report["guidance_scale"] == 1
    assert [stage["name"] for stage in report["stages"]] == ["load", "text", "denoise", "decode", "write"]
    assert all(stage["seconds"] >= 0 and stage["peak_bytes"] > 1_000_000 for stage in report["stages"])
    assert report["solver"] == "unipc" and report["backend"] == "fake" and not report["blank"]
    assert "secret" not in captured.out + captured.err


def test_frames_as_png_with_a_contact_sheet(tmp_path: Path) -> None:
    assert main(["generate", "a", "-o", "frames/", "--sheet", "sheet.png"]) == 0
    assert names(tmp_path) == ["frames", "frames.json", "sheet.png"]
    assert len(names(tmp_path / "frames")) == 9
    with Image.open("sheet.png") as sheet:
        assert sheet.size == (8 * 68 + 4, 56)
        assert sheet.getpixel((10, 10)) == (0, 0, 0) and sheet.getpixel((540, 10)) == (80, 80, 80)


@pytest.mark.parametrize(
    ("seconds", "fps", "frames"), [("0.5", "16", 9), ("5", "16", 81), ("0", "16", 1), ("5.005", "23.976", 121)]
)
def test_seconds_become_frames(seconds: str, fps: str, frames: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "a", "--seconds", seconds, "--fps", fps, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_frames"] == frames


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        ([], 2, "prompt is missing"),
        (["a", "b", "c"], 2, "quotes"),
        (["a", "--frobnicate"], 2, "frobnicate"),
        (["a", "--solver", "magic"], 2, "euler"),
        (["a", "--size", "64"], 2, "832x480"),
        (["a", "--size", "64x48", "-W", "64"], 2, "one of them"),
        (["a", "--frames", "many"], 2, "many"),
        (["a", "--frames", "9", "--seconds", "1"], 2, "--seconds"),
        (["a", "--codec", "magic"], 2, "libx264"),
        (["a", "--size", "60x48"], 3, "nearest: 64x48"),
        (["a", "--size", "0x48"], 3, "width"),
        (["a", "--size", "2147483648x48"], 3, "nearest"),
        (["a", "-H", "-1"], 3, "height"),
        (["a", "--frames", "10"], 3, "nearest: 9"),
        (["a", "--frames", "0"], 3, "--frames is 0"),
        (["a", "--frames", "1000000000"], 3, "nearest"),
        (["a", "--seconds", "0.6"], 3, "nearest: 9 frames"),
        (["a", "--seconds", "nan"], 3, "--seconds is nan"),
        (["a", "--steps", "0"], 3, "--steps is 0"),
        (["a", "--guidance", "nan"], 3, "--guidance is nan"),
        (["a", "--guidance", "1e38"], 3, "--guidance is 1e"),
        (["a", "--guidance-2", "-1"], 3, "--guidance-2 is -1"),
        (["a", "--fps", "0"], 3, "--fps is 0"),
        (["a", "--fps", "inf"], 3, "--fps is inf"),
        (["a", "--seed", str(1 << 64)], 3, "2^64 - 1"),
        (["a", "--seed", "-1"], 3, "--seed is -1"),
        (["a\udcff"], 3, "surrogate"),
        (["a", "-n", "\udcff"], 3, "negative prompt"),
        (["a", "--image", "missing.png"], 3, "missing.png"),
        (["nowhere", "a"], 4, "no bundle at nowhere"),
        (["a", "--device", "cuda"], 5, "no CUDA"),
        (["memory"], 6, "out of memory"),
        (["a", "-o", "missing/out.mp4"], 7, "mkdir"),
        (["a", "-o", "out.avi"], 7, ".mp4"),
        (["a", "--sheet", "sheet.jpg"], 7, "sheet.png"),
        (["nan"], 8, "step 3"),
        (["blank", "--fail-on-blank"], 8, "single colour"),
        (["crash"], 1, "KINOGRAPH_DEBUG=1"),
    ],
)
def test_exit_codes(args: list[str], code: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", *args]) == code
    captured = capsys.readouterr()
    assert words in captured.err and captured.out == ""
    assert "Traceback" not in captured.err and "\x1b" not in captured.err
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["out.mp4", "out.json", "sheet.png"])
def test_what_exists_is_kept_without_force(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / name).write_bytes(b"old")
    args = ["generate", "nowhere", "a", "--sheet", "sheet.png"]
    assert main(args) == 7  # not 4: the output is looked at before the bundle
    assert "--force" in capsys.readouterr().err and (tmp_path / name).read_bytes() == b"old"
    assert main(["generate", "fake", *args[2:], "--force"]) == 0
    assert (tmp_path / name).read_bytes() != b"old"


def test_a_bundle_without_a_prompt_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "bundle.json").write_text("{}")
    assert main(["generate", "mine"]) == 2
    assert "prompt is missing" in capsys.readouterr().err


def test_blank_video_is_warned_about(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "blank", "--quiet", "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err.startswith("warning: every frame") and json.loads(captured.out)["blank"]


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("KINOGRAPH_DEBUG", "1")
    assert main(["generate", "crash"]) == 1
    assert "Traceback" in capsys.readouterr().err


def wait_for_partial(folder: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while not list(folder.glob(".kinograph-*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.2)  # a few steps


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_stop_within_a_step_and_leave_nothing(tmp_path: Path, number: int, code: int) -> None:
    with start(tmp_path, "generate", "slow", "--steps", "1000") as process:
        wait_for_partial(tmp_path, process)
        process.send_signal(number)
        sent = time.monotonic()
        assert process.wait(30) == code
        assert time.monotonic() - sent < 5  # seconds; a step takes 0.05, the rest is a busy machine
        assert process.stderr is not None and b"Traceback" not in process.stderr.read()
    assert names(tmp_path) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_who_waits_for_a_stop_is_told_why(tmp_path: Path, number: int, code: int) -> None:
    with start(tmp_path, "generate", "stubborn") as process:
        wait_for_partial(tmp_path, process)
        process.send_signal(number)
        assert process.wait(30) == code
        assert process.stderr is not None
        assert b"kinograph: stopping, as soon as what is being computed ends\n" in process.stderr.read()
    assert names(tmp_path) == []


def test_signals_are_handled_as_before_once_a_command_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    ours = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    before = [signal.getsignal(number) for number in ours]
    assert main(["generate", "a"]) == 0
    assert [signal.getsignal(number) for number in ours] == before


def test_kill_leaves_no_half_file_and_the_next_run_works(tmp_path: Path) -> None:
    with start(tmp_path, "generate", "slow", "--steps", "1000") as process:
        wait_for_partial(tmp_path, process)
        process.kill()
        process.wait(30)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".kinograph-")
    os.utime(left, (0, 0))
    assert main(["generate", "a"]) == 0
    assert names(tmp_path) == ["out.json", "out.mp4"]


def test_progress_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "a", "--progress", "json"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    ended = [line["stage"] for line in told if "seconds" in line]
    assert ended == ["load", "text", "denoise", "decode", "write"]
    assert all(line["seconds"] >= 0 and line["peak_bytes"] > 1 << 20 for line in told if "seconds" in line)
    steps = [line for line in told if line["stage"] == "denoise" and "done" in line]
    assert steps[0] == {"stage": "denoise", "done": 0, "total": None, "unit": "steps"}
    assert steps[-1] == {"stage": "denoise", "done": 4, "total": 4, "unit": "steps"}
    assert main(["generate", "a", "--progress", "json", "--quiet", "--force"]) == 0
    assert capsys.readouterr().err == ""


def test_who_stops_reading_of_progress_still_gets_the_video(tmp_path: Path) -> None:
    with start(tmp_path, "generate", "slow", "--steps", "20", "--progress", "json") as process:
        assert process.stderr is not None
        process.stderr.readline()
        process.stderr.close()
        assert process.wait(60) == 0
    assert names(tmp_path) == ["out.json", "out.mp4"]


@pytest.mark.parametrize("no_colour", [False, True])
def test_progress_on_a_terminal(tmp_path: Path, no_colour: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_colour:
        monkeypatch.setenv("NO_COLOR", "1")
    ours, theirs = pty.openpty()
    with start(tmp_path, "generate", "a", "--json", stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        try:
            while block := os.read(ours, 4096):
                shown += block
        except OSError:  # Linux says so when the other side has closed
            pass
        os.close(ours)
        assert process.stdout is not None
        json.loads(process.stdout.read())
        assert process.wait(30) == 0
    text = shown.decode()
    assert "4/4 steps" in text and "9/9 frames" in text
    assert ("\x1b[3" in text) is not no_colour


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from kinograph.cli import main; main(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-c", code, "generate", "--help"], capture_output=True, text=True, env=environment, check=True
    )
    heavy = {"numpy", "rich", "onnxruntime", "onnx", "av", "PIL", "tokenizers", "msgspec", "torch"}
    assert not heavy & set(done.stderr.split())
    assert "[default:" in done.stdout and "0 to 2^64 - 1" in done.stdout


def test_inspect_and_verify(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def verify(path: Path, progress: Any) -> manifest.Manifest:
        progress(1000, 2000)
        return MANIFEST

    monkeypatch.setattr("kinograph.bundle.verify", verify)
    assert main(["inspect", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    for fact in (
        "fake-1b",
        "MIT",
        "multiples of 16",
        "1 + 4·k",
        "unipc, shift 3",
        "3.0e-06",
        "int8",
        "500 kB",
        "2.5 MB",
    ):
        assert fact in shown
    assert main(["inspect", str(tmp_path), "--json"]) == 0
    assert msgspec.convert(json.loads(capsys.readouterr().out), manifest.Manifest) == MANIFEST
    assert main(["verify", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path}: verified 2 files, 2.5 MB\n"


def test_verify_refuses_a_folder_that_is_no_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(tmp_path)]) == 4
    captured = capsys.readouterr()
    assert str(tmp_path) in captured.err and captured.out == ""


def test_export_hands_the_options_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import kinograph.export

    seen: list[Any] = []

    def export(checkpoint: Path, bundle: Path, options: Any, progress: Any) -> manifest.Manifest:
        seen.extend([checkpoint, bundle, options])
        print("chatter of an exporter")
        progress("step", 1, 2)
        progress("weights", 2, 2)
        return MANIFEST

    monkeypatch.setattr(kinograph.export, "export", export)
    args = ["export", "wan/", "out", "--precision", "fp16", "--no-parity", "--size", "832x480", "--steps", "4"]
    assert main(args) == 0
    checkpoint, bundle, options = seen
    assert (checkpoint, bundle) == (Path("wan"), Path("out"))
    assert options == kinograph.export.ExportOptions(
        precision="fp16", parity=False, width=832, height=480, num_inference_steps=4
    )
    captured = capsys.readouterr()
    assert captured.out == "out: exported fake-1b (fake)\n" and "chatter" in captured.err


def test_doctor_tells_versions_and_device(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["packages"]["numpy"] == np.__version__ and report["device"]["auto"] and report["device"]["because"]
    assert "CPUExecutionProvider" in report["providers"] and "libx264" in report["video"]["codecs"][".mp4"]
    for faster, told in ((True, "faster than floats"), (False, "no faster than floats, for want of VNNI")):
        monkeypatch.setattr("kinograph.engines.host.adds_bytes_exactly", lambda faster=faster: faster)
        assert main(["doctor"]) == 0
        assert (out := capsys.readouterr().out).count("--device auto") == 1 and f"multiplied {told}" in out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("kinograph ")


def test_the_peak_of_memory_is_the_own_one() -> None:
    inner = [sys.executable, "-c", "from kinograph.console import peak_bytes; print(peak_bytes())"]
    outer = f"import subprocess; kept = b'x' * (300 << 20); subprocess.run({inner!r}, check=True)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    found = subprocess.run([sys.executable, "-c", outer], env=environment, capture_output=True, check=True)
    assert 1 << 20 < int(found.stdout) < 300 << 20


def test_where_the_library_for_c_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--cpp"]) == 0
    folder = Path(capsys.readouterr().out.strip())
    assert (folder / "CMakeLists.txt").is_file()
    settings = tomllib.loads((folder.parents[1] / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert settings["package-data"]["kinograph.runtime"] == ["cpp/**/*"]
