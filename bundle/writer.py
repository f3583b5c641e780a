"""Writing a bundle so that its path holds the old one or the whole new one at any moment, even if the process dies."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import glob
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

import msgspec

from kinograph.bundle.content_check import content_problems
from kinograph.bundle.manifest_check import MANIFEST_NAME, ManifestError, name_problem, parse_manifest
from kinograph.bundle.refusal import printable, refusal
from kinograph.bundle.tree import Walk, hash_files, open_folder
from kinograph.errors import OutputError, UsageError
from kinograph.manifest import File, Manifest

__all__ = ["BundleWriter"]

_NEW = ".new"
_OLD = ".old"


class BundleWriter:
    """Collects the files of a bundle in a hidden folder beside `path`, and puts it there in one step.

        with BundleWriter("wan", force=True) as writer:
            writer.file("tokenizer.json").write_bytes(tokenizer)
            writer.save(manifest)

    Leaving without `save` removes what was written. The folders it needs above `path` are made.

    Raises OutputError if there is something at `path` and `force` is not given, or if what is there is not a bundle and
    nothing else, which `force` does not replace either.
    """

    def __init__(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        self.path = Path(os.path.abspath(path))  # noqa: PTH100, resolve() would follow a link at `path`
        self._force = force
        self._staging: Path | None = None
        self._lock = -1
        with _writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with _turn(self.path.parent):
                _recover(self.path)
                _check_replaceable(self.path, force)

    def file(self, name: str) -> Path:
        """Where to write the file `name` of the bundle; its folder is there. Raises UsageError for an unfit name."""
        problem = name_problem(name)
        if problem is not None or name == MANIFEST_NAME:
            raise UsageError(f"'{printable(name)}' cannot be a file of a bundle: it {problem or 'is the manifest'}")
        with _writing(self.path):
            target = self._folder() / name
            target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def save(self, manifest: Manifest) -> None:
        """Fill in `manifest.files`, write `bundle.json`, and put the bundle at its path.

        Raises BundleError if what was written would not open as a bundle, OutputError if it could not be written; the
        path then still holds what it held.
        """
        with _writing(self.path):
            staging = self._folder()
            with _closing(open_folder(staging)) as root:
                complete = self._sealed(root, manifest)
                target = os.open(MANIFEST_NAME, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666, dir_fd=root)
                with os.fdopen(target, "wb") as stream:
                    stream.write(complete)
                    stream.flush()
                    os.fsync(stream.fileno())
                os.fsync(root)
            with _turn(self.path.parent):
                _check_replaceable(self.path, self._force)
                old = _put(staging, self.path)
            self._staging = None
        self._unlock()
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)  # what cannot be removed, the next writer removes

    def discard(self) -> None:
        """Remove what was written since the last `save`."""
        if self._staging is not None:
            shutil.rmtree(self._staging, ignore_errors=True)
            self._staging = None
        self._unlock()

    def __enter__(self) -> BundleWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()

    def _folder(self) -> Path:
        """The folder to write in, made when it is first needed, and locked while this process lives."""
        if self._staging is None:
            self._staging, self._lock = _claim(self.path)
        return self._staging

    def _unlock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _sealed(self, root: int, manifest: Manifest) -> bytes:
        """The bytes of `bundle.json` for what is below `root`, which is verified and flushed to disk."""
        walk = Walk(root, None)
        try:
            if walk.problems:
                problems = [f"{printable(name)} {problem}" for name, problem in walk.problems.items()]
                raise refusal(self.path, problems, "Write only regular files where BundleWriter.file() says.")
            digests = hash_files(walk.files)
            files = {name: File(size=walk.files[name].size, sha256=digests[name]) for name in sorted(digests)}
            data = msgspec.json.format(msgspec.json.encode(msgspec.structs.replace(manifest, files=files))) + b"\n"
            advice = "This is a mistake in what wrote the bundle, not in your files."
            try:
                complete = parse_manifest(data)
            except ManifestError as exc:
                raise refusal(self.path, exc.problems, advice) from exc
            problems = list(content_problems(complete, walk.files))
            if problems:
                raise refusal(self.path, problems, advice)
            for file in walk.files.values():
                os.fsync(file.fd)
        finally:
            walk.close()
        for folder in reversed(walk.folders):
            with _closing(open_folder(folder, root)) as fd:
                os.fsync(fd)
        return data


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Say which bundle an OSError kept from being written."""
    try:
        yield
    except OSError as exc:
        advice = "Free some space, or write to another disk." if exc.errno == errno.ENOSPC else "Choose another place."
        raise OutputError(f"bundle {printable(path)} could not be written: {exc.strerror}. {advice}") from exc


def _check_replaceable(path: Path, force: bool) -> None:
    """Raise OutputError if a new bundle must not take the place of what is at `path`."""
    if not os.path.lexists(path):
        return
    if path.is_symlink() or not path.is_dir():
        raise OutputError(f"{printable(path)} is not a folder; expected a new name, or a bundle to replace")
    if not force:
        raise OutputError(f"{printable(path)} exists. Choose another name, or replace it with --force")
    foreign = _foreign_file(path)
    if foreign is not None:
        raise OutputError(
            f"{printable(path)} is not replaced: it is not a bundle, or holds more than one: {printable(foreign)}. "
            "Move it away, or choose another name"
        )


def _foreign_file(path: Path) -> str | None:
    """Something at `path` that is not part of a bundle, which may itself be damaged; None if there is nothing."""
    try:
        document = json.loads(_regular(path / MANIFEST_NAME).read_bytes())
        listed = {MANIFEST_NAME, *document["files"]}
        _ = document["format_version"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return f"no valid {MANIFEST_NAME}"
    for folder, folders, names in os.walk(path):
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        for name in (*names, *links):
            relative = (Path(folder) / name).relative_to(path).as_posix()
            if relative not in listed:
                return relative
    return None


def _regular(path: Path) -> Path:
    """`path`, if reading it cannot hang. Raises OSError."""
    if path.is_symlink() or not path.is_file():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    return path


# Replacing ------------------------------------------------------------------------------------------------------------

_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_RENAME_EXCHANGE = 2
# The kernel, the C library or the file system may lack renameat2.
_UNSUPPORTED = frozenset({errno.ENOSYS, errno.EINVAL, errno.ENOTSUP})


def _put(staging: Path, path: Path) -> Path | None:
    """Move `staging` to `path`. Returns where the bundle that was there went, if there was one. Raises OSError."""
    replaces = path.exists()
    old = staging if replaces else None
    try:
        # One system call, so that nobody ever finds the path empty.
        _renameat2(staging, path, _RENAME_EXCHANGE if replaces else _RENAME_NOREPLACE)
    except OSError as exc:
        if exc.errno not in _UNSUPPORTED:
            raise
        old = staging.with_suffix(_OLD) if replaces else None
        _put_in_two(staging, path, old)
    _sync_folder(path.parent)
    return old


def _put_in_two(staging: Path, path: Path, old: Path | None) -> None:
    """The same with plain renames. Killed between them, the old bundle is put back by the next writer."""
    if old is not None:
        path.rename(old)
    try:
        staging.rename(path)
    except BaseException:
        if old is not None:
            old.rename(path)
        raise


def _renameat2(source: Path, target: Path, flags: int) -> None:
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if call(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), ctypes.c_uint(flags)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(target))


def _sync_folder(path: Path) -> None:
    with _closing(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
        os.fsync(fd)


# Several writers ------------------------------------------------------------------------------------------------------


def _recover(path: Path) -> None:
    """Clean up after writers of `path` that were killed: put back a bundle moved aside, remove what is half written."""
    for left in sorted(path.parent.glob(f".{glob.escape(path.name)}.????????.???")):
        if left.suffix not in (_NEW, _OLD) or left.is_symlink() or not left.is_dir():
            continue
        if left.suffix == _OLD and not os.path.lexists(path):
            left.rename(path)
            continue
        with suppress(FileNotFoundError), _closing(open_folder(left)) as fd:
            if _lock(fd):  # else its writer lives
                shutil.rmtree(left, ignore_errors=True)


def _claim(path: Path) -> tuple[Path, int]:
    """A new folder to write `path` in, and the descriptor that locks it for as long as this process lives."""
    while True:
        staging = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_NEW}")
        staging.mkdir()
        # Until it is locked, another writer may take it for left behind, and remove it.
        with suppress(FileNotFoundError):
            fd = open_folder(staging)
            if _lock(fd) is not False and staging.exists():
                return staging, fd
            os.close(fd)


@contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Wait until no other writer is putting a bundle into `folder` or cleaning up there."""
    with _closing(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
        _lock(fd, wait=True)
        yield


@contextmanager
def _closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


def _lock(fd: int, wait: bool = False) -> bool | None:
    """Lock a folder until its descriptor is closed. False if another holds it, None if the file system has no locks."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:  # NFS locks no folders
        return None
    return True
