"""The embedding library: what its functions give and refuse, called as C calls them, and the examples."""

from __future__ import annotations

import ctypes as c
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import save_file

import kinograph

ROOT = Path(__file__).resolve().parents[2]
COMMAND = Path(sys.executable).with_name("kinograph")

OK, USAGE, REQUEST, BUNDLE, ENGINE, OUTPUT, CANCELLED = 0, 2, 3, 4, 5, 7, 130
PROMPT = "a red ball moves left"
SHORT = {"width": 64, "height": 64, "num_frames": 5, "num_inference_steps": 2}


PROGRESS = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_char_p, c.c_double, c.c_double, c.c_char_p)


class Options(c.Structure):
    _fields_ = (
        ("command", c.c_char_p),
        ("bundle", c.c_char_p),
        ("device", c.c_char_p),
        ("variant", c.c_char_p),
        ("weight_budget", c.c_uint64),
        ("no_cuda_graph", c.c_int),
        ("loras", c.POINTER(c.c_char_p)),
        ("loras_2", c.POINTER(c.c_char_p)),
        ("progress", PROGRESS),
        ("user", c.c_void_p),
    )


class Pictures(c.Structure):
    _fields_ = (("pixels", c.c_void_p), ("count", c.c_uint32), ("height", c.c_uint32), ("width", c.c_uint32))

    def array(self) -> npt.NDArray[np.uint8]:
        shape = (self.count, self.height, self.width, 3)
        return np.frombuffer(c.string_at(self.pixels, int(np.prod(shape))), np.uint8).reshape(shape)


class Frames(c.Structure):
    _fields_ = (("pictures", Pictures), ("first", c.c_uint64), ("total", c.c_uint64))


FRAMES = c.CFUNCTYPE(c.c_int, c.c_void_p, c.POINTER(Frames))
PREVIEW = c.CFUNCTYPE(c.c_int, c.c_void_p, c.POINTER(Pictures), c.c_uint64, c.c_uint64)
WARNING = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_char_p)


class Callbacks(c.Structure):
    _fields_ = (
        ("user", c.c_void_p),
        ("frames", FRAMES),
        ("progress", PROGRESS),
        ("preview", PREVIEW),
        ("warning", WARNING),
    )


def pictures_of(array: npt.NDArray[np.uint8]) -> Pictures:
    count, height, width, _ = array.shape
    return Pictures(array.ctypes.data, count, height, width)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library, installed, and the examples, built against that with address and undefined behaviour checked."""
    missing = [name for name in ("cmake", "c++", "make") if shutil.which(name) is None]
    if missing and os.environ.get("CI") != "true":
        pytest.skip(f"needs {', '.join(missing)}")
    folder = tmp_path_factory.mktemp("cpp")
    debug = "-DCMAKE_BUILD_TYPE=Debug"  # compiles in a quarter of the time, and is checked as well
    checked = "-Werror -fsanitize=address,undefined -fno-sanitize-recover=all"
    try:
        run("cmake", "-S", ROOT / "runtime/cpp", "-B", folder / "b", "-DCMAKE_CXX_FLAGS=-Werror")
    except AssertionError as exc:
        if "nlohmann_json" in str(exc) and os.environ.get("CI") != "true":
            pytest.skip("needs nlohmann-json3-dev")
        raise
    run("cmake", "--build", folder / "b", "-j2")
    run("cmake", "--install", folder / "b", "--prefix", folder / "shared")
    run(
        "cmake",
        "-S",
        ROOT / "runtime/cpp",
        "-B",
        folder / "s",
        "-DBUILD_SHARED_LIBS=OFF",
        debug,
        f"-DCMAKE_CXX_FLAGS={checked}",
    )
    run("cmake", "--build", folder / "s", "-j2")
    run("cmake", "--install", folder / "s", "--prefix", folder / "static")
    examples = ["-S", ROOT / "examples/cpp", "-B", folder / "e", f"-DCMAKE_PREFIX_PATH={folder / 'static'}"]
    flags = f"{checked} -Wall -Wextra -Wpedantic"
    run("cmake", *examples, debug, f"-DCMAKE_CXX_FLAGS={flags}", f"-DCMAKE_C_FLAGS={flags} -std=c99")
    run("cmake", "--build", folder / "e", "-j2")
    return folder


def run(*command: str | Path) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Library:
    """kinograph.h."""

    def __init__(self, path: Path) -> None:
        self.c = c.CDLL(str(path))
        for name in ("error", "version", "about", "report"):
            getattr(self.c, f"kinograph_{name}").restype = c.c_char_p
        self.c.kinograph_request_new.restype = c.c_void_p

    def error(self) -> str:
        return str(self.c.kinograph_error().decode())

    def open(
        self, progress: Callable[..., int] | None = None, loras: Sequence[str] = (), **options: str
    ) -> tuple[int, c.c_void_p]:
        pipeline = c.c_void_p()
        given = {"command": str(COMMAND), "bundle": "starter-few-steps", "device": "cpu"} | options
        asked = Options(**{name: value.encode() for name, value in given.items()})
        if progress is not None:
            asked.progress = PROGRESS(progress)
        if loras:
            asked.loras = (c.c_char_p * (len(loras) + 1))(*(one.encode() for one in loras), None)
        return self.c.kinograph_open(c.byref(asked), c.byref(pipeline)), pipeline

    def request(self, prompt: str = PROMPT, **fields: Any) -> c.c_void_p:
        request = c.c_void_p(self.c.kinograph_request_new(prompt.encode()))
        for name, value in fields.items():
            kind, converted = {
                bool: ("flag", c.c_int),
                int: ("integer", c.c_uint64),
                float: ("number", c.c_double),
                str: ("text", lambda text: c.c_char_p(text.encode())),
            }[type(value)]
            setter = getattr(self.c, f"kinograph_request_set_{kind}")
            assert setter(request, name.encode(), converted(value)) == OK
        return request

    def generate(self, pipeline: c.c_void_p, request: c.c_void_p, **callbacks: Callable[..., int]) -> int:
        kinds = {"frames": FRAMES, "progress": PROGRESS, "preview": PREVIEW, "warning": WARNING}
        given = Callbacks(**{name: kinds[name](call) for name, call in callbacks.items()})
        status: int = self.c.kinograph_generate(pipeline, request, c.byref(given))
        self.c.kinograph_request_free(request)
        return status


@pytest.fixture(scope="module")
def library(built: Path) -> Library:
    return Library(next(built.glob("shared/lib*/**/libkinograph.so")))


@pytest.fixture(scope="module")
def pipeline(library: Library) -> Iterator[c.c_void_p]:
    status, pipeline = library.open()
    assert status == OK, library.error()
    yield pipeline
    library.c.kinograph_close(pipeline)


@pytest.fixture
def fake(tmp_path: Path, library: Library) -> Callable[[str], tuple[int, c.c_void_p]]:
    """Opens what a shell script says, in place of the command."""

    def opened(script: str) -> tuple[int, c.c_void_p]:
        path = tmp_path / "fake"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return library.open(command=str(path))

    return opened


def collected(into: list[npt.NDArray[np.uint8]]) -> Callable[..., int]:
    def frames(_: object, given: Any) -> int:
        assert given.contents.first == sum(map(len, into))
        into.append(given.contents.pictures.array())
        return 0

    return frames


def test_frames_are_those_of_the_pipeline(library: Library, pipeline: c.c_void_p) -> None:
    got: list[npt.NDArray[np.uint8]] = []
    stages, previews = [], []

    def progress(_: object, stage: bytes, done: float, total: float, unit: bytes) -> int:
        stages.append((stage.decode(), done, total, unit.decode()))
        return 0

    def preview(_: object, given: Any, step: int, steps: int) -> int:
        previews.append((step, steps, given.contents.array().shape))
        return 0

    request = library.request(**SHORT, seed=2**64 - 1, fps=12.5)
    status = library.generate(pipeline, request, frames=collected(got), progress=progress, preview=preview)
    assert status == OK, library.error()
    with kinograph.load("starter-few-steps", device="cpu") as pipe:
        expected = pipe(PROMPT, **SHORT, seed=2**64 - 1).frames
    assert np.array_equal(np.concatenate(got), expected)
    assert ("text", 0, -1, "") in stages
    assert ("denoise", 2, 2, "steps") in stages
    assert previews == [(0, 2, (2, 8, 8, 3)), (1, 2, (2, 8, 8, 3))]
    report = json.loads(library.c.kinograph_report(pipeline))
    assert (report["num_frames"], report["seed"], report["fps"]) == (5, 2**64 - 1, 12.5)
    about = json.loads(library.c.kinograph_about(pipeline))
    assert (about["bundle"], about["defaults"]["num_frames"]) == ("starter-few-steps", 33)
    assert library.c.kinograph_version().decode() == about["kinograph"]


def test_pictures_films_and_cues(library: Library, pipeline: c.c_void_p, tmp_path: Path) -> None:
    film = np.random.default_rng(0).integers(0, 256, (17, 64, 64, 3), np.uint8)
    request = library.request(**SHORT | {"num_frames": 12}, overlap=5, window=9)
    assert library.c.kinograph_request_set_film(request, b"before", c.byref(pictures_of(film[:5]))) == OK
    assert library.c.kinograph_request_set_film(request, b"before", c.byref(pictures_of(film))) == OK
    last = film[:1].copy()
    assert library.c.kinograph_request_add_picture(request, c.byref(pictures_of(last)), c.c_int64(-1)) == OK
    assert library.c.kinograph_request_add_cue(request, c.c_double(0.5), b"a blue star circles") == OK
    output = tmp_path / "out.mp4"
    assert library.c.kinograph_request_set_output(request, str(output).encode(), 0) == OK
    given, film_before = film[:12].copy(), film.copy()
    film[:] = 0  # the pixels were copied
    last[:] = 0
    got: list[npt.NDArray[np.uint8]] = []
    assert library.generate(pipeline, request, frames=collected(got)) == OK, library.error()
    frames = np.concatenate(got)
    assert len(frames) == len(film_before) + 12
    assert np.array_equal(frames[:12], given)
    assert output.stat().st_size > 0


@pytest.mark.parametrize(
    ("fields", "status", "said"),
    [
        ({"num_frames": 6}, REQUEST, "nearest: 5"),
        ({"colour": "red"}, REQUEST, "unknown field `colour`"),
        ({"width": "64"}, REQUEST, "Expected `int"),
        ({"image": "nowhere.png"}, REQUEST, "cannot be opened"),
    ],
)
def test_what_cannot_be_made_is_told_and_the_next_can(
    fields: dict[str, Any], status: int, said: str, library: Library, pipeline: c.c_void_p
) -> None:
    assert library.generate(pipeline, library.request(**SHORT | fields)) == status
    assert said in library.error()
    assert library.c.kinograph_report(pipeline) is None
    assert library.generate(pipeline, library.request(**SHORT)) == OK


def test_arguments_that_are_refused_at_once(library: Library, pipeline: c.c_void_p, tmp_path: Path) -> None:
    call = library.c
    assert call.kinograph_generate(None, None, None) == USAGE
    assert "NULL" in library.error()
    assert call.kinograph_open(None, None) == USAGE
    assert call.kinograph_request_new(None) is None
    assert call.kinograph_report(None) is None
    assert call.kinograph_about(None) is None
    call.kinograph_close(None)
    call.kinograph_request_free(None)
    call.kinograph_cancel(None)
    request = library.request(**SHORT)
    assert call.kinograph_request_set_number(request, b"fps", c.c_double(float("nan"))) == REQUEST
    two = np.zeros((2, 4, 4, 3), np.uint8)
    assert call.kinograph_request_add_picture(request, c.byref(pictures_of(two)), c.c_int64(0)) == USAGE
    for wrong in (Pictures(None, 1, 4, 4), Pictures(two.ctypes.data, 0, 4, 4), Pictures(two.ctypes.data, 1, 9000, 4)):
        assert call.kinograph_request_set_film(request, b"before", c.byref(wrong)) in (USAGE, REQUEST)
    assert call.kinograph_request_set_text(request, b"negative_prompt", c.c_char_p(b"\xff")) == OK
    assert library.generate(pipeline, request) == REQUEST
    assert "UTF-8" in library.error()
    (tmp_path / "there.mp4").write_bytes(b"mine")
    request = library.request(**SHORT)
    call.kinograph_request_set_output(request, str(tmp_path / "there.mp4").encode(), 0)
    assert library.generate(pipeline, request) == OUTPUT
    assert (tmp_path / "there.mp4").read_bytes() == b"mine"
    assert library.generate(pipeline, library.request(**SHORT)) == OK


def test_cancelled_by_a_thread_or_a_callback(library: Library, pipeline: c.c_void_p) -> None:
    long = {"width": 256, "height": 256, "num_inference_steps": 200}
    begun = threading.Event()

    def progress(_: object, stage: bytes, done: float, *more: object) -> int:
        if stage == b"denoise" and done:
            begun.set()
        return 0

    def other() -> None:
        begun.wait(60)
        library.c.kinograph_cancel(pipeline)

    thread = threading.Thread(target=other)
    thread.start()
    assert library.generate(pipeline, library.request(**long), progress=progress) == CANCELLED
    thread.join()
    calls = []
    assert library.generate(pipeline, library.request(**long), progress=lambda *a: calls.append(a) or 1) == CANCELLED
    assert len(calls) == 1
    library.c.kinograph_cancel(pipeline)  # of nothing
    assert library.generate(pipeline, library.request(**SHORT)) == OK


def test_one_video_at_a_time(library: Library, pipeline: c.c_void_p) -> None:
    inner = []

    def frames(*_: object) -> int:
        inner.append((library.generate(pipeline, library.request(**SHORT)), library.error()))
        return 0

    assert library.generate(pipeline, library.request(**SHORT), frames=frames) == OK
    assert inner[0][0] == USAGE
    assert "already making a video" in inner[0][1]


def test_what_cannot_be_opened(library: Library, tmp_path: Path) -> None:
    for options, status, said in (
        ({"command": "/nowhere/kinograph"}, USAGE, "'/nowhere/kinograph' cannot be started: No such file"),
        ({"bundle": str(tmp_path)}, BUNDLE, "bundle.json"),
        ({"bundle": "--help"}, BUNDLE, "--help"),
        ({"device": "tpu"}, USAGE, "tpu"),
        ({"variant": "fp8"}, USAGE, "fp8"),
    ):
        got, pipeline = library.open(**options)
        assert (got, pipeline.value) == (status, None), library.error()
        assert said in library.error()


def children() -> set[int]:
    return set(map(int, Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()))


def test_loras_are_added_and_told_of(library: Library, tmp_path: Path) -> None:
    path = tmp_path / "style.safetensors"
    layer = "transformer.blocks.0.attn1.to_q.lora"
    save_file({f"{layer}_A.weight": np.ones((1, 256), "f"), f"{layer}_B.weight": np.ones((256, 1), "f")}, path)
    status, pipeline = library.open(loras=[f"{path}@0.5", str(path)])
    assert status == OK, library.error()
    about = json.loads(library.c.kinograph_about(pipeline))
    library.c.kinograph_close(pipeline)
    assert [(one["name"], one["strength"]) for one in about["loras"]] == [(path.name, 0.5), (path.name, 1.0)]
    status, _ = library.open(loras=[str(path), str(tmp_path / "missing.safetensors")])
    assert status == BUNDLE
    assert "missing.safetensors cannot be read" in library.error()


def test_opening_is_told_of_and_can_be_given_up(library: Library) -> None:
    told: list[tuple[Any, ...]] = []
    status, pipeline = library.open(progress=lambda _, *what: told.append(what) or 0)
    assert status == OK, library.error()
    library.c.kinograph_close(pipeline)
    assert told[0] == (b"load", 0, -1, b"MB")
    assert told[-1][1] == told[-1][2] > 10
    before = children()
    status, pipeline = library.open(progress=lambda *_: 1)
    assert (status, pipeline.value) == (CANCELLED, None)
    assert "given up" in library.error()
    assert children() == before


READY = '{"type": "ready", "protocol": 1}'


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("exit 3", "ended with exit code 3"),
        ("kill -9 $$", "ended by signal 9, which is what the system sends where memory runs out"),
        ("echo hello", "no message"),
        ("echo '{}'", "no message"),
        ('echo \'{"type": "done"}\'', "before it is ready"),
        ('echo \'{"type": "ready", "protocol": 7}\'', "speaks protocol 7"),
        ("head -c 9000000 /dev/zero", "a line without an end"),
    ],
)
def test_a_process_that_is_none_of_ours(
    script: str, said: str, fake: Callable[[str], tuple[int, c.c_void_p]], library: Library
) -> None:
    status, pipeline = fake(script)
    assert status in (ENGINE, USAGE)
    assert pipeline.value is None
    assert said in library.error()


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ('{"type": "frames", "count": 1, "height": 2, "width": 2, "first": 0, "total": 1, "bytes": 3}\\nabc', "size"),
        ('{"type": "frames", "count": -1, "height": 2, "width": 2, "first": 0, "total": 1, "bytes": 3}\\nabc', "size"),
        ('{"type": "frames", "bytes": 3}\\nabc', "no message"),
        ('{"type": "frames", "bytes": 3}\\nab', "ended with exit code 0"),
        ('{"type": "frames", "bytes": 99999999999999999}\\n', ""),
        ('{"type": "stage", "done": "much"}\\n', "no message"),
        ('{"type": "error", "code": "x"}\\n', "no message"),
        ("", "ended with exit code 0"),
    ],
)
def test_a_process_that_talks_nonsense_or_goes(
    said: str, error: str, fake: Callable[[str], tuple[int, c.c_void_p]], library: Library
) -> None:
    status, pipeline = fake(f"echo '{READY}'; read line; printf '{said}'")
    assert status == OK, library.error()
    got = library.generate(pipeline, library.request(), frames=lambda *_: 0, progress=lambda *_: 0)
    assert got != OK
    assert error in library.error()
    if not said.startswith('{"type": "error"'):  # the last of a video: what follows it could be heard
        assert library.generate(pipeline, library.request()) == ENGINE
        assert "ended with exit code 0" in library.error()
    library.c.kinograph_close(pipeline)


def test_what_a_later_version_says_is_passed_over(
    fake: Callable[[str], tuple[int, c.c_void_p]], library: Library
) -> None:
    later = '{"type": "sound", "bytes": 3}\\nabc{"type": "warning", "message": "slow"}\\n{"type": "done"}\\n'
    status, pipeline = fake(f"echo '{READY}'; read line; printf '{later}'; cat > /dev/null")
    assert status == OK, library.error()
    warnings = []
    warning = lambda _, text: warnings.append(text) or 0  # noqa: E731
    assert library.generate(pipeline, library.request(), warning=warning) == OK, library.error()
    assert warnings == [b"slow"]
    library.c.kinograph_close(pipeline)


def test_a_process_that_is_killed_is_told_and_hurts_nobody(library: Library) -> None:
    status, pipeline = library.open()
    assert status == OK
    serving = [pid for pid in sorted(children()) if b"serve" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def progress(_: object, stage: bytes, *more: object) -> int:
        if stage == b"denoise":
            os.kill(serving[-1], signal.SIGKILL)
        return 0

    assert library.generate(pipeline, library.request(**SHORT), progress=progress) == ENGINE
    assert "ended by signal 9" in library.error()
    assert library.generate(pipeline, library.request(**SHORT)) == ENGINE
    library.c.kinograph_cancel(pipeline)
    library.c.kinograph_close(pipeline)


def test_closing_ends_the_process_even_one_that_is_stuck(
    fake: Callable[[str], tuple[int, c.c_void_p]], library: Library, tmp_path: Path
) -> None:
    status, pipeline = fake(f"echo $$ > {tmp_path}/pid; echo '{READY}'; exec sleep 1000")
    assert status == OK
    begun = time.perf_counter()
    library.c.kinograph_close(pipeline)
    assert time.perf_counter() - begun < 60
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()


def test_the_example_in_c_writes_every_frame(built: Path, tmp_path: Path) -> None:
    done = example(built / "e/video", "starter-few-steps", PROMPT, tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["num_frames"] == 33
    with kinograph.load("starter-few-steps", device="cpu") as pipe:
        expected = pipe(PROMPT, seed=7).frames
    for number, frame in enumerate(expected):
        assert (tmp_path / f"{number:04}.ppm").read_bytes() == b"P6\n128 128\n255\n" + frame.tobytes()


def test_the_example_in_cpp_continues_its_own_frames(built: Path, tmp_path: Path) -> None:
    output = tmp_path / "longer.mp4"
    done = example(built / "e/continue", "starter-few-steps", PROMPT, output)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["num_frames"] > 33
    assert output.stat().st_size > 0
    refused = example(built / "e/continue", str(tmp_path), PROMPT, output)
    assert (refused.returncode, "bundle.json" in refused.stderr) == (BUNDLE, True)


def example(*command: str | Path) -> subprocess.CompletedProcess[str]:
    path = f"{COMMAND.parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "KINOGRAPH_DEVICE": "cpu"}
    return subprocess.run(
        [*map(str, command)], capture_output=True, text=True, timeout=300, check=False, env=environment
    )
