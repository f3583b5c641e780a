"""A bundle is written whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_bundles import BIAS, TOKENIZER, WEIGHTS, a_manifest, write_bundle

from kinograph.bundle import Bundle, BundleWriter
from kinograph.bundle import writer as _bundle_writer
from kinograph.errors import BundleError, OutputError, UsageError
from kinograph.manifest import (
    Expert,
    Solver,
    Text,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_existing_bundle_is_replaced_only_with_force(bundle: Path) -> None:
    with pytest.raises(OutputError, match="--force"):
        write_bundle(bundle)
    with Bundle.open(bundle) as old:
        write_bundle(bundle, force=True, bias=BIAS + 1)
        with Bundle.open(bundle) as new:
            assert new.digest != old.digest
        assert old.map(WEIGHTS)[-BIAS.nbytes :].tobytes() == BIAS.tobytes()
    assert names(bundle.parent) == ["tiny"]


def test_a_damaged_bundle_can_be_replaced(bundle: Path) -> None:
    (bundle / WEIGHTS).unlink()
    write_bundle(bundle, force=True)
    Bundle.open(bundle).close()


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(Path.mkdir, id="empty folder"),
        pytest.param(lambda path: path.write_text("precious"), id="file"),
        pytest.param(lambda path: path.symlink_to("/etc"), id="link"),
        pytest.param(lambda path: (write_bundle(path), (path / "notes.txt").write_text("mine")), id="with more inside"),
        pytest.param(lambda path: (path.mkdir(), (path / "bundle.json").write_text("{}")), id="another bundle.json"),
    ],
)
def test_what_is_not_a_bundle_is_never_replaced(tmp_path: Path, make: Callable[[Path], object]) -> None:
    target = tmp_path / "target"
    make(target)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OutputError, match="target"):
        write_bundle(target, force=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_leaving_without_save_leaves_nothing(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "tiny") as writer:
        writer.file(WEIGHTS).write_bytes(b"half")
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["../x", "/x", "bundle.json", ".hidden", "a//b", ""])
def test_an_unfit_name_is_not_written(tmp_path: Path, name: str) -> None:
    with BundleWriter(tmp_path / "tiny") as writer, pytest.raises(UsageError, match="cannot be a file of a bundle"):
        writer.file(name)


def test_a_bundle_that_would_not_open_is_not_saved(bundle: Path) -> None:
    before = (bundle / "bundle.json").read_bytes()
    for changes, said in (
        ({"solver": Solver(name="euler", shift=float("nan"))}, "solver.shift"),
        ({"experts": (Expert(component="none"),)}, "no component 'none'"),
        ({"text": Text(tokenizer="missing.json", length=1, dim=1, cleaning=())}, "missing.json"),
    ):
        with pytest.raises(BundleError, match=said):
            write_bundle(bundle, force=True, **changes)
    assert (bundle / "bundle.json").read_bytes() == before
    assert names(bundle.parent) == ["tiny"]


@pytest.mark.parametrize("atomic", [True, False], ids=["renameat2", "rename"])
@pytest.mark.parametrize("failing", ["fsync", "rename", "second rename"])
def test_an_interrupted_save_leaves_the_old_bundle(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, atomic: bool, failing: str
) -> None:
    before = (bundle / "bundle.json").read_bytes()
    calls = 0

    def fail(*args: object) -> None:
        nonlocal calls
        calls += 1
        raise OSError(28, "No space left on device")

    rename = Path.rename

    def fail_second(source: Path, target: Path) -> Path:
        if source.suffix == ".new":
            fail()
        return rename(source, target)

    if not atomic:
        monkeypatch.setattr(_bundle_writer, "_UNSUPPORTED", {28})
    if failing == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr(_bundle_writer, "_renameat2", fail)
        if not atomic:
            monkeypatch.setattr(Path, "rename", fail if failing == "rename" else fail_second)
    with pytest.raises(OutputError, match="tiny could not be written: No space left on device"):
        write_bundle(bundle, force=True, bias=BIAS + 1)
    assert calls > 0
    monkeypatch.undo()
    assert (bundle / "bundle.json").read_bytes() == before
    Bundle.open(bundle).close()
    assert names(bundle.parent) == ["tiny"]


def test_plain_renames_replace_too(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*args: object) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(_bundle_writer, "_renameat2", unsupported)
    before = (bundle / "bundle.json").read_bytes()
    write_bundle(bundle, force=True, bias=BIAS + 1)
    assert (bundle / "bundle.json").read_bytes() != before
    assert names(bundle.parent) == ["tiny"]


def test_the_next_writer_cleans_up_after_a_killed_one(bundle: Path) -> None:
    (bundle.with_name(".tiny.01234567.new")).mkdir()
    bundle.rename(bundle.with_name(".tiny.01234567.old"))
    with BundleWriter(bundle.with_name("other")):
        pass
    assert not bundle.exists()
    with pytest.raises(OutputError, match="--force"):
        BundleWriter(bundle)  # the old bundle is back
    Bundle.open(bundle).close()
    assert names(bundle.parent) == ["tiny"]


def test_a_link_among_the_files_is_not_saved(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "tiny") as writer:
        writer.file(WEIGHTS).symlink_to("/etc/passwd")
        with pytest.raises(BundleError, match=f"{WEIGHTS} is a symbolic link"):
            writer.save(a_manifest())


def test_two_writers_do_not_disturb_each_other(bundle: Path) -> None:
    with BundleWriter(bundle, force=True) as slow:
        slow.file(TOKENIZER).write_text("half")
        write_bundle(bundle, force=True, bias=BIAS + 1)
        assert slow.file(TOKENIZER).read_text() == "half"
    Bundle.open(bundle).close()


KILLER = """
    import os, random, signal, sys, time
    sys.path.insert(0, sys.argv[1])
    from pathlib import Path
    from kinograph.bundle import Bundle
    from tiny_bundles import BIAS, write_bundle

    path = Path(sys.argv[2])
    rng = random.Random(0)
    digests = set()
    for _ in range(40):
        child = os.fork()
        if child == 0:
            while True:
                write_bundle(path, force=True, bias=BIAS + rng.randrange(9))
        time.sleep(rng.uniform(0.001, 0.06))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with Bundle.open(path) as opened:
            digests.add(opened.digest)
        rng.random()
    write_bundle(path, force=True)
    assert os.listdir(path.parent) == [path.name], os.listdir(path.parent)
    print(len(digests))
"""


def test_killed_at_any_moment_the_path_holds_a_whole_bundle(bundle: Path) -> None:
    script = textwrap.dedent(KILLER)
    command = [sys.executable, "-c", script, str(Path(__file__).parent.parent), str(bundle)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) > 1  # some of the writers got to the end before they were killed
