"""Engines that were built, kept for the next time: a folder of the user's own.

An engine is found by its `Origin`: what it was built from, by what and for which GPU. Each lies beside a card of JSON,
which says that, what sizes it takes, and its sha256; what does not match its card is built again. The least recently
used go when there are too many bytes.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from kinograph.engines.origin import Card
from kinograph.errors import EngineError, OutputError

if TYPE_CHECKING:
    from kinograph.engines.origin import Origin
    from kinograph.engines.protocol import Axes
    from kinograph.engines.tensorrt import Built

__all__ = ["CACHE_VARIABLE", "EngineCache", "cache_folder"]

CACHE_VARIABLE = "KINOGRAPH_CACHE"
_LIMIT = 64 << 30  # bytes of engines: those of a few large models
_CARD, _ENGINE, _COMPILED, _TIMINGS, _LOCK = ".json", ".engine", ".compiled", ".timings", ".lock"
_OTHERS = 0o022  # who may write, besides the owner


def cache_folder() -> Path:
    """Where engines are kept: KINOGRAPH_CACHE, or `kinograph` in the user's cache (XDG_CACHE_HOME, ~/.cache)."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kinograph"


class EngineCache:
    """The engines in `folder`, of which the least recently used are removed beyond `limit` bytes."""

    def __init__(self, folder: Path | None = None, *, limit: int = _LIMIT) -> None:
        self.folder = (cache_folder() if folder is None else folder) / "engines"
        self._limit = limit

    def cards(self) -> list[Card]:
        """Of every engine, the last used first. What is no card is passed over."""
        found: list[tuple[float, Card]] = []
        for path in self.folder.glob(f"*{_CARD}"):
            with contextlib.suppress(OSError, msgspec.DecodeError, msgspec.ValidationError):
                card = msgspec.json.decode(path.read_bytes(), type=Card)
                if card.name == path.stem:
                    found.append((path.stat().st_mtime, card))
        return [card for _, card in sorted(found, key=lambda pair: -pair[0])]

    def find(self, wanted: Origin, axes: Axes) -> Card | None:
        """The narrowest engine of that origin that takes these sizes, or None."""
        return min(
            (c for c in self.cards() if c.origin.serves(wanted) and c.takes(axes)), key=lambda c: c.width, default=None
        )

    def obtain(self, wanted: Origin, needed: Axes, axes: Axes, build: Callable[[], Built]) -> tuple[Card, bool]:
        """An engine for the sizes `needed`, and whether `build` had to make it: it makes one for `axes`."""
        found = self.find(wanted, needed)
        if found is not None:
            return found, False
        with self.building(wanted):
            found = self.find(wanted, needed)  # another process may have built it meanwhile
            if found is not None:
                return found, False
            built = build()
            card = Card.of(wanted, axes, built)
            self.write(card, built.plan)
        return card, True

    def read(self, card: Card) -> bytes | None:
        """The engine; None, and it is gone from the cache, where it is not what its card says.

        Raises EngineError where others than the user could have written it.
        """
        path = self._path(card, _ENGINE)
        try:
            self._check_owner()
            plan = path.read_bytes()
        except FileNotFoundError:
            plan = b""
        except OSError as exc:
            raise EngineError(
                f"an engine in the cache cannot be read: {exc}. Set {CACHE_VARIABLE} to a folder of yours"
            ) from exc
        if len(plan) != card.bytes or hashlib.sha256(plan).hexdigest() != card.sha256:
            self.remove(card)
            return None
        with contextlib.suppress(OSError):
            os.utime(self._path(card, _CARD))
        return plan

    def plan(self, card: Card) -> bytes:
        """The same, of an engine that was just found. Raises EngineError where it was altered since."""
        plan = self.read(card)
        if plan is None:
            raise EngineError(
                f"{card.name} in {self.folder} was altered since it was written. Run the same command again"
            )
        return plan

    def write(self, card: Card, plan: bytes) -> None:
        """Keep an engine. Raises OutputError where that is not possible."""
        try:
            self._make()
            self._replace(self._path(card, _ENGINE), plan)
            self._replace(self._path(card, _CARD), msgspec.json.format(msgspec.json.encode(card)))
        except OSError as exc:
            raise OutputError(
                f"the engine cannot be kept in {self.folder}: {exc.strerror or exc}. "
                f"Set {CACHE_VARIABLE} to a folder with room"
            ) from exc
        self._evict(card)

    def compiled(self, card: Card, builder: str) -> bytes | None:
        """What TensorRT compiled of an engine when it ran before, for the GPU and driver `builder` names."""
        with contextlib.suppress(OSError):
            data = self._path(card, _COMPILED).read_bytes()
            head = hashlib.sha256(builder.encode()).digest()
            if data.startswith(head):
                return data[len(head) :]
        return None

    def keep_compiled(self, card: Card, builder: str, data: bytes) -> None:
        """Keep what was compiled; where it cannot be, it is compiled again the next time."""
        with contextlib.suppress(OSError, EngineError):
            there = bool(card.file) or self._path(card, _CARD).exists()
            if there and self.compiled(card, builder) != data:
                self._make()
                self._replace(self._path(card, _COMPILED), hashlib.sha256(builder.encode()).digest() + data)

    def timings(self, wanted: Origin) -> bytes | None:
        """What the builder of engines from there has timed on that GPU before, whatever it built."""
        with contextlib.suppress(OSError):
            return self._timings(wanted).read_bytes()
        return None

    def keep_timings(self, wanted: Origin, data: bytes) -> None:
        """Keep what was timed; where it cannot be, it is timed again the next time."""
        with contextlib.suppress(OSError, EngineError):
            self._make()
            self._replace(self._timings(wanted), data)

    def clean(self) -> list[Card]:
        """Forget every engine, whatever was compiled of those in bundles, and timings; returns what there was."""
        cards = self.cards()
        for card in cards:
            self.remove(card)
        for path in (*self.folder.glob(f"*{_COMPILED}"), *self.folder.glob(f"*{_TIMINGS}")):
            path.unlink(missing_ok=True)
        return cards

    def remove(self, card: Card) -> None:
        """Forget an engine; one that is not there is no matter."""
        for ending in (_CARD, _ENGINE, _COMPILED):
            self._path(card, ending).unlink(missing_ok=True)

    @contextmanager
    def building(self, wanted: Origin) -> Iterator[None]:
        """Wait until no other process builds engines of that origin, and hold them off."""
        try:
            self._make()
            lock = os.open(self.folder / f"{wanted.key}{_LOCK}", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as exc:
            raise OutputError(f"{self.folder} cannot be written: {exc.strerror or exc}. Set {CACHE_VARIABLE}") from exc
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _path(self, card: Card, ending: str) -> Path:
        return self.folder / f"{card.name}{ending}"

    def _timings(self, wanted: Origin) -> Path:
        whose = f"{wanted.builder}, {wanted.capability}, {wanted.device}"
        return self.folder / f"{hashlib.sha256(whose.encode()).hexdigest()[:32]}{_TIMINGS}"

    def _make(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._check_owner()

    def _check_owner(self) -> None:
        """An engine is code that the GPU runs: only the user may have put it there."""
        state = self.folder.stat()
        if state.st_uid != os.geteuid() or state.st_mode & _OTHERS:
            raise EngineError(
                f"{self.folder} belongs to user {state.st_uid} with mode {state.st_mode & 0o777:o}, and engines run "
                f"code; expected a folder that only you can write. Run chmod go-w on it, or set {CACHE_VARIABLE}"
            )

    def _replace(self, path: Path, data: bytes) -> None:
        handle, draft = tempfile.mkstemp(dir=self.folder, prefix=".")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(draft).replace(path)
        except BaseException:
            Path(draft).unlink(missing_ok=True)
            raise

    def _evict(self, latest: Card) -> None:
        total = 0
        for card in self.cards():
            total += card.bytes
            if total > self._limit and card != latest:
                self.remove(card)
