"""Where a result goes: checked before any work, made under a temporary name beside it, synced to disk, then renamed.

A reader sees the old file or the whole new one, never half of one. What a killed run leaves behind is a hidden
`.kinograph-….partial`, which the next run into the same folder removes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from kinograph.errors import OutputError

__all__ = ["StagedOutput", "check_target", "is_folder", "mapped_errors", "write_file"]

_FRAME_NAME = re.compile(r"^\d{6,}\.png\Z")
_PARTIAL = ".kinograph-*.partial"
_STALE_AFTER = 60.0  # seconds; a partial younger than this may not have been locked by its owner yet
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}
_REASONS = {
    errno.ENOSPC: "the disk is full. Free some space or write elsewhere",
    errno.EDQUOT: "the disk quota is used up. Free some space or write elsewhere",
    errno.EFBIG: "the file would be larger than this system allows. Write elsewhere or ask for fewer frames",
    errno.EACCES: "permission denied. Choose a folder you may write to",
    errno.EPERM: "permission denied. Choose a folder you may write to",
    errno.EROFS: "the file system is read-only. Choose another folder",
    errno.ENOENT: "its folder does not exist. Create it first",
    errno.ENOTDIR: "a part of its path is a file, not a folder. Choose another path",
    errno.ENAMETOOLONG: "the name is too long. Choose a shorter one",
    errno.ELOOP: "symbolic links in its path form a loop. Choose another path",
}


def check_target(path: str | os.PathLike[str], force: bool = False) -> Path:
    """Refuse an output that could not be written, before any work is done for it.

    A path that ends in "/" is a folder of frames: it may exist if it is empty or, with `force`, holds nothing but PNG
    frames. Returns the absolute path. Raises OutputError: something is in the way (without `force`, any file), a
    symbolic link, a missing folder, a place that cannot be written to.
    """
    text = os.fspath(path)
    if not text or "\0" in text:
        raise OutputError(f"the output path {text!r} is not a file name. Use -o out.mp4")
    target = Path(os.path.abspath(text))  # noqa: PTH100 - resolve() would follow a symbolic link
    if is_folder(text) and (target.parent == target or Path(text).name in ("", "..")):
        raise OutputError(f"{text!r} cannot be replaced by a folder of frames. Name a new folder, such as frames/")
    with mapped_errors(target):
        try:
            mode = os.lstat(target).st_mode
        except FileNotFoundError:
            mode = None
        _check_folder(target.parent)
    if mode is not None:
        _check_existing(target, mode, folder=is_folder(text), force=force)
    return target


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether an output path asks for a folder of frames: it ends in "/"."""
    return os.fspath(path).endswith(("/", os.sep))


def _check_folder(folder: Path) -> None:
    if not folder.exists():
        raise OutputError(f"the folder {str(folder)!r} does not exist. Create it first: mkdir -p {str(folder)!r}")
    if not folder.is_dir():
        raise OutputError(f"{str(folder)!r} is a file, not a folder. Choose another path")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"the folder {str(folder)!r} cannot be written to. Choose a folder you may write to")


def _check_existing(target: Path, mode: int, *, folder: bool, force: bool) -> None:
    name = str(target)
    if stat.S_ISLNK(mode):
        raise OutputError(f"{name!r} is a symbolic link, which output does not follow. Name the file it is for")
    if stat.S_ISDIR(mode):
        if not folder:
            raise OutputError(f"{name!r} is a folder. Name a file in it, or write PNG frames with -o {name + '/'!r}")
        _check_frames_folder(target, force)
    elif not stat.S_ISREG(mode):
        raise OutputError(f"{name!r} is a device, a pipe or a socket, not a file. Choose another path")
    elif folder:
        raise OutputError(f"{name!r} is a file, not a folder. Choose another path for the frames")
    elif not force:
        raise OutputError(f"{name!r} exists and is kept. Choose another name, or replace it with --force")


def _check_frames_folder(target: Path, force: bool) -> None:
    with mapped_errors(target), os.scandir(target) as entries:
        for entry in entries:
            if not force:
                raise OutputError(f"the folder {str(target)!r} is not empty. Name a new one, or use --force")
            if not _FRAME_NAME.match(entry.name):
                raise OutputError(
                    f"the folder {str(target)!r} holds {entry.name!r}, which is not a frame, and is kept even with "
                    "--force. Name a new folder"
                )


@contextlib.contextmanager
def mapped_errors(target: Path) -> Iterator[None]:
    """Turn what the operating system says about writing `target` into an OutputError that says what to do."""
    try:
        yield
    except OSError as error:
        reason = _REASONS.get(error.errno or 0, f"{error.strerror or error}. Write elsewhere")
        raise OutputError(f"{str(target)!r} could not be written: {reason}") from error


class StagedOutput:
    """A temporary sibling of the result, a file or a folder, that takes the result's name when it is complete.

    Whoever makes one calls `publish()` or `discard()`. Raises OutputError from the start and from `publish`.
    """

    def __init__(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        self.target = check_target(path, force)
        self._force = force
        self._folder = is_folder(path)
        self._token = secrets.token_hex(8)
        self.path = self.target.parent / f".kinograph-{self._token}.partial"
        with mapped_errors(self.target):
            _remove_stale(self.target.parent)
            if self._folder:
                self.path.mkdir()
                self._lock = os.open(self.path, os.O_RDONLY)
            else:
                self._lock = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            with contextlib.suppress(OSError):  # some network file systems have no locks; then nothing is ever stale
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def publish(self) -> None:
        """Sync what was written to disk and give it its name; on failure nothing of it is left."""
        try:
            with mapped_errors(self.target):
                for file in sorted(self.path.iterdir()) if self._folder else [self.path]:
                    _sync(file)
                if self._folder:
                    self._publish_folder()
                elif self._force:
                    self.path.replace(self.target)
                else:
                    self._publish_new()
                _sync(self.target.parent)
        finally:
            self.discard()

    def discard(self) -> None:
        """Remove the temporary; nothing happens if it has been published or removed already."""
        if self._folder:
            shutil.rmtree(self.path, ignore_errors=True)
        else:
            self.path.unlink(missing_ok=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _publish_new(self) -> None:
        try:
            os.link(self.path, self.target)  # unlike a rename, a link never replaces what appeared meanwhile
        except FileExistsError:
            self._keep_beside()
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if os.path.lexists(self.target):
                self._keep_beside()
            self.path.rename(self.target)

    def _publish_folder(self) -> None:
        try:
            self.path.rename(self.target)  # replaces an empty folder too
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            if not self._force:
                self._keep_beside()
            _check_existing(self.target, os.lstat(self.target).st_mode, folder=True, force=True)
            old = self.path.with_name(f".kinograph-{secrets.token_hex(8)}.partial")
            self.target.rename(old)
            self.path.rename(self.target)
            shutil.rmtree(old, ignore_errors=True)

    def _keep_beside(self) -> None:
        kept = self.target.with_name(f"{self.target.stem}.{self._token}{self.target.suffix}")
        self.path.rename(kept)
        raise OutputError(
            f"{str(self.target)!r} was made by somebody else meanwhile and is kept. This result is {str(kept)!r}"
        )


def write_file(path: str | os.PathLike[str], data: bytes, *, force: bool = False) -> None:
    """Write a small file whole or not at all. Raises OutputError."""
    staged = StagedOutput(path, force=force)
    try:
        with mapped_errors(staged.target):
            staged.path.write_bytes(data)
        staged.publish()
    finally:
        staged.discard()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_stale(folder: Path) -> None:
    """Remove what killed runs left: partials that nobody has locked."""
    for partial in folder.glob(_PARTIAL):
        with contextlib.suppress(OSError):
            descriptor = os.open(partial, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                if time.time() - os.fstat(descriptor).st_mtime < _STALE_AFTER:
                    continue
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if partial.is_dir():
                    shutil.rmtree(partial, ignore_errors=True)
                else:
                    partial.unlink()
            finally:
                os.close(descriptor)
