"""Built engines that are kept: found by what they came from, checked when read, removed when there are many."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import time
from pathlib import Path

import msgspec
import pytest

from kinograph.engines.cache import EngineCache, cache_folder
from kinograph.engines.origin import Card, Origin
from kinograph.engines.tensorrt import Built
from kinograph.errors import EngineError, OutputError

ORIGIN = Origin(
    component="step", precision="bf16", sources="0" * 64, builder="TensorRT 1", capability=89, kinograph="0.1.0"
)
SIZES = {"F": (1, 5), "H": (8, 8)}


def put(cache: EngineCache, plan: bytes = b"plan", origin: Origin = ORIGIN, axes: object = None) -> Card:
    built = Built(plan, ("Name: _gemm_mha_v2",), 100, 10)
    return cache.obtain(origin, axes or SIZES, axes or SIZES, lambda: built)[0]


def never() -> Built:
    raise AssertionError("it is there already")


def test_what_was_built_is_found(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    card = put(cache)
    found, built = EngineCache(tmp_path).obtain(ORIGIN, {"F": (2, 2), "H": (8, 8)}, SIZES, never)
    assert (found, built) == (card, False)
    assert cache.read(found) == b"plan"


@pytest.mark.parametrize(
    ("built", "wanted", "serves"),
    [
        ({"later_versions": True}, {"builder": "TensorRT 10.9.0"}, True),
        ({"later_versions": True}, {"builder": "TensorRT 10.2.9"}, False),
        ({"later_versions": True}, {"builder": "TensorRT 11.0.0"}, False),
        ({"later_versions": True}, {"builder": "TensorRT for RTX 10.9.0"}, False),
        ({}, {"builder": "TensorRT 10.9.0"}, False),
        ({"gpus": "same-capability"}, {"device": "RTX 4060"}, True),
        ({"gpus": "same-capability"}, {"device": "RTX 3060", "capability": 86}, False),
        ({"gpus": "ampere-plus"}, {"device": "RTX 3060", "capability": 86}, True),
        ({"gpus": "ampere-plus"}, {"device": "RTX 2060", "capability": 75}, False),
        ({"gpus": "ampere-plus"}, {"device": "RTX 4060", "gpus": "same-capability"}, False),
        ({"gpus": "ampere-plus", "later_versions": True}, {"device": "RTX 4060", "builder": "TensorRT 10.4.0"}, True),
    ],
)
def test_a_portable_engine_serves_where_it_may(
    built: dict[str, object], wanted: dict[str, object], serves: bool
) -> None:
    here = msgspec.structs.replace(ORIGIN, builder="TensorRT 10.3.0", device="RTX 4090")
    own = msgspec.structs.replace(here, **built)
    assert own.serves(msgspec.structs.replace(here, **wanted)) == serves
    assert own.serves(own)


@pytest.mark.parametrize(
    "change",
    [
        {"sources": "1" * 64},
        {"builder": "TensorRT 2"},
        {"capability": 120},
        {"precision": "int8"},
        {"component": "decoder_first"},
        {"kinograph": "0.2.0"},
        {"device": "another GPU"},
        {"streams": True},
        {"later_versions": True},
        {"gpus": "ampere-plus"},
    ],
)
def test_whatever_changes_makes_it_another_engine(tmp_path: Path, change: dict[str, object]) -> None:
    cache = EngineCache(tmp_path)
    put(cache)
    other = msgspec.structs.replace(ORIGIN, **change)
    assert cache.find(other, SIZES) is None
    put(cache, b"other", other)
    assert len(cache.cards()) == 2


def test_sizes_beyond_an_engine_are_another(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    put(cache)
    assert cache.find(ORIGIN, {"F": (1, 6), "H": (8, 8)}) is None
    assert cache.find(ORIGIN, {"F": (1, 1), "W": (8, 8)}) is None
    narrow = put(cache, b"narrow", axes={"F": (5, 6), "H": (8, 8)})
    assert cache.find(ORIGIN, {"F": (5, 5), "H": (8, 8)}) == narrow, "of two that would do, the narrower"


@pytest.mark.parametrize("damage", [b"", b"plan plan", b"plaN"])
def test_an_engine_that_was_altered_is_gone(tmp_path: Path, damage: bytes) -> None:
    cache = EngineCache(tmp_path)
    card = put(cache)
    (cache.folder / f"{card.name}.engine").write_bytes(damage)
    assert cache.read(card) is None
    assert cache.cards() == []


def test_cards_that_are_none_are_passed_over(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    card = put(cache)
    (cache.folder / "broken.json").write_bytes(b"{")
    (cache.folder / "renamed.json").write_bytes((cache.folder / f"{card.name}.json").read_bytes())
    assert cache.cards() == [card]


def test_a_folder_that_others_can_write_is_refused(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    card = put(cache)
    cache.folder.chmod(0o777)
    with pytest.raises(EngineError, match="only you can write"):
        cache.read(card)
    with pytest.raises(EngineError, match="chmod go-w"):
        put(cache, origin=msgspec.structs.replace(ORIGIN, capability=120))


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "engines").write_text("a file is in the way")
    with pytest.raises(OutputError, match="KINOGRAPH_CACHE"):
        put(EngineCache(tmp_path))


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path, limit=25)
    cards = []
    for number in range(3):
        cards.append(put(cache, bytes(10), msgspec.structs.replace(ORIGIN, capability=80 + number)))
        os.utime(cache.folder / f"{cards[-1].name}.json", (number, number))
        if number == 1:
            cache.read(cards[0])  # now the second is the one that was used least recently
    assert {card.origin.capability for card in cache.cards()} == {80, 82}
    assert sorted(path.suffix for path in cache.folder.glob("*.engine")) == [".engine"] * 2


def test_an_engine_larger_than_the_cache_is_kept_while_it_is_the_latest(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path, limit=5)
    assert cache.read(put(cache, bytes(10))) == bytes(10)


def test_what_was_compiled_is_for_one_gpu_and_driver(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    card = put(cache)
    cache.keep_compiled(card, "GPU A, driver 1", b"kernels")
    assert cache.compiled(card, "GPU A, driver 1") == b"kernels"
    assert cache.compiled(card, "GPU A, driver 2") is None
    cache.remove(card)
    cache.keep_compiled(card, "GPU A, driver 1", b"kernels")
    assert [path.suffix for path in cache.folder.iterdir()] == [".lock"]


def build_slowly(folder: Path) -> None:
    def slow() -> Built:
        time.sleep(0.3)
        with (folder / "builds").open("a") as log:
            log.write("built\n")
        return Built(b"plan", (), 0, 0)

    EngineCache(folder).obtain(ORIGIN, SIZES, SIZES, slow)


def test_two_processes_build_an_engine_once(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("fork")
    workers = [spawn.Process(target=build_slowly, args=(tmp_path,)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert (tmp_path / "builds").read_text().split() == ["built"]


def test_the_place_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KINOGRAPH_CACHE", "/somewhere")
    assert cache_folder() == Path("/somewhere")
    monkeypatch.delenv("KINOGRAPH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert cache_folder() == Path("/cache/kinograph")


def test_a_card_says_what_it_is_of() -> None:
    card = Card.of(ORIGIN, SIZES, Built(b"plan", ("a", "b"), 7, 8))
    assert (card.bytes, card.sha256) == (4, hashlib.sha256(b"plan").hexdigest())
    assert msgspec.json.decode(msgspec.json.encode(card), type=Card) == card
