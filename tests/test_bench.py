"""`kinograph bench`: what it measures, what it refuses, and what becomes of its processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from kinograph.cli import main
from kinograph.console.bench import BenchJob, _Process, _Side, bench_text
from kinograph.errors import EngineError
from kinograph.runtime.request import Request

SHORT = ("starter-few-steps", "--steps", "1", "--frames", "5", "--size", "64x64")


def test_every_variant_is_measured_in_turn(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *SHORT, "--runs", "2", "--device", "cpu", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [report[name] for name in ("width", "height", "num_frames", "num_inference_steps", "runs")] == [
        64,
        64,
        5,
        1,
        2,
    ]
    assert [(side["variant"], side["speed"]) for side in report["sides"]] == [("fp16", None), ("int8", None)]
    for side in report["sides"]:
        assert side["components"]["step"] == side["variant"]
        assert list(side["stage_seconds"]) == ["text", "denoise", "decode"]
        assert 0 < side["first_frame_seconds"] <= side["seconds"] < side["open_seconds"]
        assert 50e6 < side["peak_bytes"] < 2e9
    text = bench_text(report)
    assert "starter-few-steps: 64×64, 5 frames, 1 step; medians of 2 videos each" in text
    assert [line.split()[0] for line in text.splitlines() if "MB" in line] == ["fp16", "int8"]


def test_what_cannot_be_measured_is_told_beside_what_can(capsys: pytest.CaptureFixture[str]) -> None:
    small = ("--steps", "2", "--frames", "5", "--size", "64x64", "--runs", "1", "--device", "cpu")
    assert main(["bench", *small, "--variant", "fp32", "--speed", "balanced"]) == 0
    shown = capsys.readouterr().out
    assert "medians of 1 video each" in shown
    assert "fp32, balanced: speed level 'balanced' leaves out some of 24 steps" in shown


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--variant", "fp8"], 2, "starter-few-steps has no variant 'fp8'; it has: fp16, int8. Use --variant"),
        (["--speed", "warp"], 2, "starter-few-steps has no speed 'warp'; it has: none. Use --speed"),
        (["--size", "60x64"], 3, "nearest"),
        (["--device", "cuda:99"], 5, "cuda"),
    ],
)
def test_what_is_refused(options: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "starter-few-steps", *options]) == code
    assert said in capsys.readouterr().err


def test_a_process_that_is_killed_is_told() -> None:
    job = BenchJob("starter-few-steps", "cpu", (), (), Request(prompt=""), 1)
    side = _Process(job, _Side("fp16", None))
    try:
        side._process.kill()
        with pytest.raises(EngineError, match="process of fp16 ended with -9, which is -9 where memory ran out"):
            side.answer()
    finally:
        side.close()


def test_interrupted_it_leaves_no_process() -> None:
    command = [sys.executable, "-c", "import sys; from kinograph.cli import main; sys.exit(main())", "bench"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, it would be so in the process, too
    try:
        process = subprocess.Popen(
            [*command, "--runs", "1000"], env=environment, stderr=subprocess.PIPE, start_new_session=True
        )
    finally:
        signal.signal(signal.SIGINT, handler)
    with process:
        deadline = time.monotonic() + 60
        while not (children := _children(process.pid)) and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(0.3)  # they are being imported, or make videos
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        assert process.stderr is not None
        assert process.stderr.read().strip() == b"kinograph: interrupted"
        assert process.wait() == 130
    assert children
    while any(os.path.exists(f"/proc/{child}") for child in children):  # noqa: PTH110
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _children(pid: int) -> list[str]:
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:  # noqa: PTH123
        return file.read().split()
