"""What of a calibration is done, kept beside the bundle, so that one that was interrupted goes on where it was.

An item is written beside its name and renamed, so it is there whole or not at all. All that is decided is decided from
items that were read back, whether they were made a moment or a week ago: both ways give the same bytes.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from kinograph.bundle import Bundle
from kinograph.bundle.refusal import printable
from kinograph.calibration import CalibrationOptions
from kinograph.errors import OutputError, UsageError

__all__ = ["Arrays", "Journal", "open_journal"]

Arrays = Mapping[str, npt.NDArray[Any]]

_KEY = "key"  # the file that says what the journal is of
_IRRELEVANT = ("force", "skip")  # options that change nothing of what is kept


class Journal:
    """Items by name and number in a `folder`, which is also where a variant lies until it is in its bundle."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self._stack = stack

    def sequence(self, name: str, total: int, make: Callable[[int], Iterator[Arrays]]) -> Iterator[Arrays]:
        """`total` items, each read from disk where it is asked for: those that are there, then what `make` gives.

        `make` is told from which number on; it is not called if all are there.
        """
        done = 0
        while done < total and (kept := self._load(f"{name}-{done}")) is not None:
            yield kept
            done += 1
        if done == total:
            return
        for number, item in enumerate(make(done), done):
            self._save(f"{name}-{number}", item)
            kept = self._load(f"{name}-{number}")
            if kept is None:
                raise OutputError(f"{printable(self.folder)} cannot be read back. Check the disk.")
            yield kept

    def finish(self) -> None:
        """Remove everything: the variant is in its bundle."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _save(self, name: str, item: Arrays) -> None:
        temporary = self.folder / f"{name}.new"
        try:
            with temporary.open("wb") as file:
                np.savez(file, allow_pickle=False, **item)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.folder / f"{name}.npz")
        except OSError as exc:
            raise OutputError(
                f"{printable(self.folder)} could not be written: {exc.strerror}. Free some space; what is done is kept."
            ) from exc

    def _load(self, name: str) -> Arrays | None:
        """An item; None if it is not there, or not whole, as after a fault of the disk."""
        try:
            file = self._stack.enter_context((self.folder / f"{name}.npz").open("rb"))
            item: Arrays = np.load(file, allow_pickle=False)
        except (OSError, ValueError, zipfile.BadZipFile):
            return None
        return item


@contextmanager
def open_journal(bundle: Bundle, options: CalibrationOptions, backend: str) -> Iterator[Journal]:
    """The journal of calibrating a bundle with these options on this backend, where there is one, else a new one.

    It is a hidden folder beside the bundle. One of other options, or of what the bundle was before, is removed.

    Raises UsageError where another process is calibrating the bundle, OutputError where the folder cannot be made.
    """
    path = bundle.path.absolute()
    folder = path.with_name(f".{path.name}.calibration")
    key = _key(bundle, options, backend)
    try:
        if folder.is_symlink():
            raise OutputError(f"{printable(folder)} is a symbolic link, expected a folder. Move it away.")
        folder.mkdir(exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as exc:
        raise OutputError(f"{printable(folder)} cannot be used: {exc.strerror}. Calibrate a copy elsewhere.") from exc
    with ExitStack() as stack:
        stack.callback(os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{printable(path)} is being calibrated by another process. Wait for it.") from None
        except OSError:  # NFS locks no folders
            pass
        _begin(folder, key)
        yield Journal(folder, stack)


def _begin(folder: Path, key: str) -> None:
    """Keep what is in the folder if it is of this key, else remove it."""
    own = folder / _KEY
    names = {entry.name for entry in folder.iterdir()}
    if names and _KEY not in names:
        raise OutputError(f"{printable(folder)} holds something else than a calibration. Move it away.")
    if names and own.read_text("utf-8") == key:
        return
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry != own:
            entry.unlink()
    own.write_text(key, "utf-8")


def _key(bundle: Bundle, options: CalibrationOptions, backend: str) -> str:
    told = {name: value for name, value in asdict(options).items() if name not in _IRRELEVANT}
    facts = [bundle.digest, told, backend, version("kinograph"), np.__version__]
    return hashlib.sha256(msgspec.json.encode(facts)).hexdigest()
