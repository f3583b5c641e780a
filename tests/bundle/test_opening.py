"""A bundle opens as it was written."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from tampering import MAX_GROWTH_BYTES, flip, grown_by, replaced, reseal
from tiny_bundles import BIAS, GRAPH, TOKENIZER, WEIGHTS

from kinograph.bundle import Bundle, verify
from kinograph.bundle.tree import _CHUNK_BYTES
from kinograph.errors import BundleError, UsageError


def test_an_opened_bundle_is_what_was_written(bundle: Path) -> None:
    with Bundle.open(bundle) as opened:
        assert opened.path == bundle
        assert opened.digest == hashlib.sha256((bundle / "bundle.json").read_bytes()).hexdigest()
        assert opened.manifest.files.keys() == {GRAPH, WEIGHTS, TOKENIZER}
        assert opened.component("step").variants["fp32"].graph == GRAPH
        assert opened.read(GRAPH) == (bundle / GRAPH).read_bytes()
        weights = opened.map(WEIGHTS)
    assert weights.dtype == np.uint8
    assert not weights.flags.writeable
    assert weights[-BIAS.nbytes :].tobytes() == BIAS.tobytes()  # after close()


def test_what_is_not_there_is_named(bundle: Path) -> None:
    with Bundle.open(bundle) as opened:
        with pytest.raises(BundleError, match="no component 'image_encoder'"):
            opened.component("image_encoder")
        with pytest.raises(BundleError, match=r"no file 'bundle\.json'"):
            opened.read("bundle.json")
    opened.close()
    with pytest.raises(UsageError, match="closed"):
        opened.map(WEIGHTS)


def test_verify_reports_every_byte(bundle: Path) -> None:
    told: list[tuple[int, int]] = []
    manifest = verify(bundle, lambda *counts: told.append(counts))
    total = sum(file.size for file in manifest.files.values())
    assert told == sorted(told) and {count for _, count in told} == {total} and told[-1][0] == total


@pytest.mark.parametrize("error", [RuntimeError, BrokenPipeError])  # the latter is not taken for a file's
def test_an_error_in_the_progress_callback_reaches_the_caller(bundle: Path, error: type[Exception]) -> None:
    def fail(done: int, total: int) -> None:
        raise error("from the callback")

    with pytest.raises(error, match="from the callback"):
        verify(bundle, fail)


def test_a_file_of_several_chunks_is_read_whole(bundle: Path) -> None:
    data = json.dumps({"model": {"vocab": {str(index): index for index in range(500_000)}}}).encode()
    assert len(data) > 2 * _CHUNK_BYTES
    replaced(TOKENIZER, data)(bundle)
    with Bundle.open(bundle) as opened:
        assert opened.read(TOKENIZER) == data


def test_hashing_a_large_file_takes_little_memory(bundle: Path) -> None:
    with (bundle / WEIGHTS).open("r+b") as stream:
        stream.truncate(256 << 20)
    reseal(bundle)
    assert grown_by(lambda: verify(bundle)) < MAX_GROWTH_BYTES


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("absent", "No such file"),
        ("tiny/tokenizer.json", "not a folder"),
        (".", "no bundle.json"),
        ("a\0b", "not valid"),
    ],
)
def test_a_path_that_is_no_bundle_is_refused(bundle: Path, path: str, said: str) -> None:
    with pytest.raises(BundleError, match=said):
        Bundle.open(bundle.parent / path)


def test_a_link_to_a_bundle_is_refused(bundle: Path) -> None:
    link = bundle.with_name("link")
    link.symlink_to(bundle)
    with pytest.raises(BundleError, match="symbolic link to"):
        Bundle.open(f"{link}/")


def test_no_engine_gets_what_changed_after_verification(bundle: Path) -> None:
    expected = (bundle / GRAPH).read_bytes()
    with Bundle.open(bundle) as opened:
        (bundle / GRAPH).unlink()
        (bundle / WEIGHTS).rename(bundle / "elsewhere")
        (bundle / GRAPH).write_bytes(b"another graph")
        (bundle / WEIGHTS).write_bytes(b"other weights")
        assert opened.read(GRAPH) == expected
        assert opened.map(WEIGHTS)[-BIAS.nbytes :].tobytes() == BIAS.tobytes()


def test_a_file_altered_in_place_is_not_read(bundle: Path) -> None:
    with Bundle.open(bundle) as opened:
        for name in (GRAPH, WEIGHTS):
            flip(bundle / name, 20)
            os.utime(bundle / name, (0, 0))
        with pytest.raises(BundleError, match=f"{GRAPH} was altered"):
            opened.read(GRAPH)
        with pytest.raises(BundleError, match=f"{WEIGHTS} was altered"):
            opened.map(WEIGHTS)
