"""The files of a folder through descriptors, so that what was checked is what is read, whatever happens to the paths.

Nothing is opened but regular files and folders, each relative to the descriptor of its folder and never through a link.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

from kinograph.bundle.refusal import MAX_PROBLEMS

__all__ = ["OpenFile", "Walk", "hash_files", "open_folder", "open_regular"]

_CHUNK_BYTES = 4 << 20  # per hashing thread; larger reads are no faster
_HASH_THREADS = 4  # sha256 outruns most disks by then

# O_NONBLOCK: a FIFO put in place of the file between lstat and open must not hang us.
_OPEN_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a block device",
    stat.S_IFCHR: "a character device",
    stat.S_IFDIR: "a folder",
}


@dataclass(frozen=True)
class OpenFile:
    """A regular file, open for reading, as it was when it was opened. Whoever holds it closes `fd`."""

    fd: int
    size: int
    mtime_ns: int

    def unchanged(self) -> bool:
        """Whether the file still has the size and modification time it had."""
        now = os.fstat(self.fd)
        return (now.st_size, now.st_mtime_ns) == (self.size, self.mtime_ns)

    def chunks(self) -> Iterator[memoryview]:
        """The content as far as `size`, each chunk valid until the next. Ends early if the file was cut short."""
        buffer = memoryview(bytearray(min(_CHUNK_BYTES, max(self.size, 1))))
        offset = 0
        while offset < self.size:
            count = os.preadv(self.fd, [buffer[: self.size - offset]], offset)
            if count == 0:
                return
            yield buffer[:count]
            offset += count

    def read(self) -> bytes:
        """The whole content; for small files."""
        data = bytearray()
        for chunk in self.chunks():
            data += chunk
        return bytes(data)


def open_folder(path: str | os.PathLike[str], dir_fd: int | None = None) -> int:
    """A descriptor of the folder at `path`, which must not be a link itself. Raises OSError."""
    return os.open(path, _OPEN_FLAGS | os.O_DIRECTORY, dir_fd=dir_fd)


def open_regular(name: str, dir_fd: int, hard_links: bool = False) -> OpenFile | str:
    """The file `name` in the folder `dir_fd`, or what is wrong with it: not regular, hard-linked. Raises OSError."""
    before = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    if not stat.S_ISREG(before.st_mode):
        return f"is {_KINDS.get(stat.S_IFMT(before.st_mode), 'not a file')}; expected a regular file"
    fd = os.open(name, _OPEN_FLAGS, dir_fd=dir_fd)
    try:
        opened = os.fstat(fd)
        if not stat.S_ISREG(opened.st_mode) or not os.path.samestat(before, opened):
            problem = "was replaced while it was being opened"
        elif opened.st_nlink != 1 and not hard_links:
            problem = f"has {opened.st_nlink} hard links; expected 1, so that it cannot be altered under another name"
        else:
            file = OpenFile(fd, opened.st_size, opened.st_mtime_ns)
            fd = -1
            return file
    finally:
        if fd >= 0:
            os.close(fd)
    return problem


class Walk:
    """Opens every file below a folder. By relative POSIX path, `files` are those that were fine, `problems` the rest.

    With `listed`, anything else is a problem and no other folder is entered; without, everything is taken. With
    `hard_links`, files may have other names too.
    """

    def __init__(
        self, root: int, listed: Collection[str] | None, ignore: Collection[str] = (), *, hard_links: bool = False
    ) -> None:
        self.files: dict[str, OpenFile] = {}
        self.folders: list[str] = []
        self.problems: dict[str, str] = {}
        self._listed = listed
        self._ignore = ignore
        self._hard_links = hard_links
        self._parents = {name[:at] for name in listed or () for at, c in enumerate(name) if c == "/"}
        try:
            self._folder(os.dup(root), "")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close every file."""
        while self.files:
            os.close(self.files.popitem()[1].fd)

    def _folder(self, fd: int, prefix: str) -> None:
        """Take what is in the folder `fd`, and close it."""
        try:
            with closing(os.scandir(fd)) as entries:
                for entry in entries:
                    if len(self.problems) > MAX_PROBLEMS:
                        return
                    if prefix + entry.name not in self._ignore:
                        self._entry(fd, entry.name, prefix + entry.name)
        finally:
            os.close(fd)

    def _entry(self, dir_fd: int, name: str, path: str) -> None:
        try:
            mode = os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode) and (self._listed is None or path in self._parents):
                self.folders.append(path)
                self._folder(open_folder(name, dir_fd), path + "/")
            elif stat.S_ISDIR(mode) or (self._listed is not None and path not in self._listed and stat.S_ISREG(mode)):
                self.problems[path] = ("is a folder, and " if stat.S_ISDIR(mode) else "") + _unlisted(path)
            else:
                file = open_regular(name, dir_fd, self._hard_links)
                if isinstance(file, str):
                    self.problems[path] = file
                else:
                    self.files[path] = file
        except OSError as exc:
            self.problems[path] = f"cannot be opened: {exc.strerror}"


def _unlisted(path: str) -> str:
    hidden = any(part.startswith(".") for part in path.split("/"))
    return f"is {'hidden, and ' if hidden else ''}not listed in the manifest"


def _chunks(file: OpenFile, name: str) -> Iterator[memoryview]:
    try:
        yield from file.chunks()
    except OSError as exc:
        raise OSError(exc.errno, exc.strerror, name) from exc


def hash_files(files: Mapping[str, OpenFile], progress: Callable[[int, int], None] | None = None) -> dict[str, str]:
    """The sha256 of each file, in hexadecimal. Several files at a time, with a few MB of memory each.

    `progress` receives how many bytes are hashed so far, and how many there are; its calls never overlap. Raises
    OSError, with the file's name as `filename`, and what `progress` raises.
    """
    stop = threading.Event()
    lock = threading.Lock()
    total = sum(file.size for file in files.values())
    done = 0

    def one(name: str) -> str:
        nonlocal done
        digest = hashlib.sha256()
        for chunk in _chunks(files[name], name):
            if stop.is_set():
                break
            digest.update(chunk)
            if progress is not None:
                with lock:
                    done += len(chunk)
                    progress(done, total)
        return digest.hexdigest()

    # Largest first: the last one running decides how long it takes.
    order = sorted(files, key=lambda name: files[name].size, reverse=True)
    with ThreadPoolExecutor(_HASH_THREADS, thread_name_prefix="kinograph-hash") as pool:
        try:
            return dict(zip(order, pool.map(one, order), strict=True))
        finally:
            stop.set()  # on Ctrl-C or an error, the threads end at their next chunk
