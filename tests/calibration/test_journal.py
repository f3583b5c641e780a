"""A calibration that was interrupted, even killed, goes on where it was, and gives the bytes of one that was not."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from calibrated import Calibrated

from kinograph.bundle import Bundle
from kinograph.calibration import CalibrationOptions, calibrate
from kinograph.calibration.journal import Arrays, open_journal
from kinograph.console.judges import JUDGES
from kinograph.errors import OutputError, UsageError

OPTIONS = CalibrationOptions(runs=3, videos=1)


@pytest.fixture
def path(tmp_path: Path, starter_copy: Callable[..., Path]) -> Path:
    return starter_copy(tmp_path / "starter", name="starter-few-steps", size=64, frames=9)


def journal_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.calibration")


def calls_of(
    path: Path,
    options: CalibrationOptions,
    judges: Any = None,
    stop: tuple[str, int] | None = None,
) -> Counter[str]:
    """How much work each stage did; interrupted where `stop`, a stage and how often, says so."""
    calls: Counter[str] = Counter()

    def progress(stage: str, done: int, total: int) -> None:
        calls[stage] += 1
        if stop is not None and calls[stop[0]] == stop[1]:
            raise KeyboardInterrupt

    if stop is None:
        calibrate(path, options, progress, judges)
    else:
        with pytest.raises(KeyboardInterrupt):
            calibrate(path, options, progress, judges)
    return calls


def test_an_interrupted_calibration_goes_on_with_the_same_bytes(
    calibrated: Calibrated, tmp_path: Path, starter_copy: Callable[..., Path]
) -> None:
    path = starter_copy(tmp_path / "starter", name="starter-few-steps", size=64)
    everything, options = calibrated.calls, calibrated.options
    assert not journal_of(calibrated.path).exists()
    steps = everything["look"] // options.runs
    before = (path / "bundle.json").read_bytes()
    calls_of(path, options, JUDGES, stop=("look", steps + 2))  # in the second run
    calls_of(path, options, JUDGES, stop=("scan step", 5))
    assert (path / "bundle.json").read_bytes() == before
    rest = calls_of(path, options, JUDGES)
    assert rest["text"] == rest["look"] == rest["look at decoder"] == 0
    assert rest["scan step"] == everything["scan step"] - 5
    with Bundle.open(calibrated.path) as one, Bundle.open(path) as other:
        assert one.manifest.files == other.manifest.files
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []


def test_a_killed_calibration_leaves_whole_items(path: Path) -> None:
    command = [sys.executable, "-m", "kinograph", "calibrate", str(path), "--runs", "3", "--videos", "1", "--quiet"]
    process = subprocess.Popen([*command, "--no-scan"])
    try:
        deadline = time.monotonic() + 300
        while not (journal_of(path) / "look-0.npz").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    options = CalibrationOptions(runs=3, videos=1, scan=False, force=True)  # so few runs may miss the gate
    assert calls_of(path, options)["look"] < 3 * 24
    assert not journal_of(path).exists()


def test_other_options_or_another_bundle_begin_anew(path: Path) -> None:
    def items(first: int) -> Iterator[Arrays]:
        yield from ({"number": np.array(number)} for number in range(first, 3))

    def numbers(options: CalibrationOptions) -> tuple[list[int], list[int]]:
        asked: list[int] = []

        def make(first: int) -> Iterator[Arrays]:
            asked.append(first)
            return items(first)

        with Bundle.open(path) as bundle, open_journal(bundle, options, "cpu") as journal:
            return [int(one["number"]) for one in journal.sequence("a", 3, make)], asked

    assert numbers(OPTIONS) == ([0, 1, 2], [0])
    assert numbers(OPTIONS) == ([0, 1, 2], [])
    (journal_of(path) / "a-1.npz").write_bytes(b"PK\x03\x04 cut short")  # it and what follows is made again
    assert numbers(OPTIONS) == ([0, 1, 2], [1])
    assert numbers(CalibrationOptions(runs=4, videos=1)) == ([0, 1, 2], [0])


def test_one_process_at_a_time_and_only_in_a_folder_of_its_own(path: Path) -> None:
    with Bundle.open(path) as bundle:
        with (
            open_journal(bundle, OPTIONS, "cpu"),
            pytest.raises(UsageError, match="is being calibrated by another"),
            open_journal(bundle, OPTIONS, "cpu"),
        ):
            pass
        shutil.rmtree(journal_of(path))
        journal_of(path).mkdir()
        (journal_of(path) / "letter.txt").write_text("mine")
        with (
            pytest.raises(OutputError, match="holds something else than a calibration"),
            open_journal(bundle, OPTIONS, "cpu"),
        ):
            pass
        shutil.rmtree(journal_of(path))
        journal_of(path).symlink_to(path)
        with pytest.raises(OutputError, match="is a symbolic link"), open_journal(bundle, OPTIONS, "cpu"):
            pass
