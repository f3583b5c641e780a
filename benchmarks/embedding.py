"""What it costs to make videos through the embedding library, in a process of its own, and not in this one.

    python benchmarks/embedding.py LIBKINOGRAPH.so [--bundle starter-few-steps] [--runs 20]

The same video in turn by `kinograph.load` here and by kinograph.h; then frames of 1280×720 pixels that nobody makes,
to see what the way through the socket takes. Prints medians.
"""

from __future__ import annotations

import argparse
import ctypes as c
import os
import stat
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import onnxruntime

import kinograph

PROMPT = "a large red ball moves left on a plain navy background, flat style"
FRAMES, HEIGHT, WIDTH = 80, 720, 1280

SENDER = f"""#!{sys.executable}
import os, sys
say = lambda data: sys.stdout.buffer.write(data)
say(b'{{"type": "ready", "protocol": 1}}\\n')
sys.stdout.flush()
pixels = os.urandom(4 * {HEIGHT * WIDTH * 3})
for line in sys.stdin:
    for first in range(0, {FRAMES}, 4):
        say(b'{{"type": "frames", "first": %d, "total": {FRAMES}, "count": 4, "height": {HEIGHT}, "width": {WIDTH}, '
            b'"bytes": %d}}\\n' % (first, len(pixels)))
        say(pixels)
    say(b'{{"type": "done"}}\\n')
    sys.stdout.flush()
"""


class Library:
    """As much of kinograph.h as this needs."""

    class Callbacks(c.Structure):
        _fields_ = (
            ("user", c.c_void_p),
            ("frames", c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_void_p)),
            ("more", c.c_void_p * 3),
        )

    def __init__(self, path: str, command: str, bundle: str | None) -> None:
        self._c = c.CDLL(path)
        self._c.kinograph_error.restype = c.c_char_p
        self._c.kinograph_request_new.restype = c.c_void_p
        self._pipeline = c.c_void_p()
        texts = [command, bundle, "cpu"]
        options = (c.c_char_p * 6)(*(text and text.encode() for text in texts))  # the rest of the struct is zero
        self._check(self._c.kinograph_open(options, c.byref(self._pipeline)))
        self._request = c.c_void_p(self._c.kinograph_request_new(PROMPT.encode()))

    def video(self) -> None:
        callbacks = self.Callbacks(frames=type(self.Callbacks().frames)(lambda user, frames: 0))
        self._check(self._c.kinograph_generate(self._pipeline, self._request, c.byref(callbacks)))

    def _check(self, status: int) -> None:
        if status:
            raise SystemExit(self._c.kinograph_error().decode())

    def close(self) -> None:
        self._c.kinograph_request_free(self._request)
        self._c.kinograph_close(self._pipeline)


def seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library")
    parser.add_argument("--bundle", default="starter-few-steps")
    parser.add_argument("--runs", type=int, default=20)
    options = parser.parse_args()
    print(f"onnxruntime {onnxruntime.__version__}, {os.cpu_count()} cores; medians of {options.runs}, in turn")
    videos(options)
    transfer(options)


def videos(options: argparse.Namespace) -> None:
    there = Library(options.library, str(Path(sys.executable).with_name("kinograph")), options.bundle)
    with kinograph.load(options.bundle, device="cpu") as pipe:
        sides = {"in this process": lambda: pipe(PROMPT), "through kinograph.h": there.video}
        for work in sides.values():
            work()
        taken: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(options.runs):
            for name, work in sides.items():
                taken[name].append(seconds(work))
    there.close()
    for name, values in taken.items():
        print(f"  {options.bundle} {name}: {1000 * statistics.median(values):.1f} ms")


def transfer(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        sender = Path(folder) / "sender"
        sender.write_text(SENDER)
        sender.chmod(sender.stat().st_mode | stat.S_IXUSR)
        there = Library(options.library, str(sender), None)
        there.video()
        middle = statistics.median(seconds(there.video) for _ in range(options.runs))
        there.close()
    rate = FRAMES * HEIGHT * WIDTH * 3 / middle / 1e9
    print(f"  {FRAMES} frames of {WIDTH}×{HEIGHT} handed over: {1000 * middle:.0f} ms, {rate:.1f} GB/s")


if __name__ == "__main__":
    main()
