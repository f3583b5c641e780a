"""`kinograph serve`: what it answers, what it refuses, and what is left when either side goes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

import kinograph
from kinograph.console.serve import _Desk
from kinograph.errors import KinographError

Pixels = npt.NDArray[np.uint8]

SHORT = {"prompt": "a red ball moves left", "width": 64, "height": 64, "num_frames": 5, "num_inference_steps": 2}
LONG = {"prompt": "a red ball moves left", "width": 256, "height": 256, "num_inference_steps": 200}


class Server:
    """The command, and what is said to it and by it."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        command = [sys.executable, "-m", "kinograph", "serve", *(arguments or ("starter-few-steps",))]
        self.folder = folder
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"TMPDIR": str(folder), "KINOGRAPH_DEVICE": "cpu"},
        )
        assert self.process.stdin
        assert self.process.stdout
        self.stdin, self.stdout = self.process.stdin, self.process.stdout

    def say(self, data: bytes) -> None:
        self.stdin.write(data)
        self.stdin.flush()

    def ask(self, request: dict[str, Any], *pixels: bytes, **more: Any) -> None:
        self.say(json.dumps({"type": "generate", "request": request, **more}).encode() + b"\n" + b"".join(pixels))

    def hear(self) -> tuple[dict[str, Any], bytes]:
        message = json.loads(self.stdout.readline())
        return message, self.stdout.read(message.get("bytes", 0))

    def ready(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The message that the bundle is open, and how that went on before."""
        told = []
        while (message := self.hear()[0])["type"] == "stage":
            told.append(message)
        assert message["type"] == "ready"
        return message, [one for one in told if "done" in one]

    def answer(self) -> tuple[list[dict[str, Any]], Pixels | None]:
        """All messages up to the last of a video, and its frames [T, H, W, 3]."""
        messages, frames = [], []
        while not messages or messages[-1]["type"] not in ("done", "error"):
            message, data = self.hear()
            messages.append(message)
            if message["type"] == "frames":
                assert message["first"] == sum(map(len, frames))
                shape = (message["count"], message["height"], message["width"], 3)
                frames.append(np.frombuffer(data, np.uint8).reshape(shape))
        return messages, np.concatenate(frames) if frames else None

    def end(self) -> tuple[int, str]:
        """Close its input; its exit code, and what it said on standard error."""
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors.decode()


def serving(folder: Path, *arguments: str) -> Iterator[Server]:
    server = Server(folder, *arguments)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.communicate()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    for server in serving(tmp_path_factory.mktemp("serve")):
        server.ready()
        yield server
        assert server.end() == (0, "")
        assert list(server.folder.iterdir()) == []


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Server]:
    """A server that a test may end."""
    yield from serving(tmp_path)


def reference(**fields: Any) -> Pixels:
    with kinograph.load("starter-few-steps", device="cpu") as pipe:
        return pipe(**(SHORT | fields)).frames


def test_it_says_what_it_has(own: Server) -> None:
    ready, told = own.ready()
    assert [(one["stage"], one["unit"]) for one in told] == [("load", "MB")] * len(told)
    assert told[0]["done"] == 0 and told[-1]["done"] == told[-1]["total"] > 10
    assert (ready["protocol"], ready["bundle"], ready["image_required"]) == (1, "starter-few-steps", False)
    assert (ready["defaults"]["num_frames"], ready["variant"]["step"]) == (33, "fp16")
    assert own.end() == (0, "")


def test_frames_are_those_of_the_pipeline(server: Server) -> None:
    server.ask(SHORT | {"seed": 3}, previews=True)
    messages, frames = server.answer()
    assert frames is not None
    assert np.array_equal(frames, reference(seed=3))
    assert [m["stage"] for m in messages if "seconds" in m] == ["text", "denoise", "decode"]
    assert [(m["done"], m["total"]) for m in messages if m.get("unit") == "steps"][-1] == (2, 2)
    previews = [m for m in messages if m["type"] == "preview"]
    assert [(m["step"], m["count"], m["width"]) for m in previews] == [(0, 2, 8), (1, 2, 8)]
    done = messages[-1]
    assert (done["num_frames"], done["width"], done["seed"], done["fps"]) == (5, 64, 3, 16.0)
    assert "red ball" not in json.dumps(messages)


def test_a_picture_in_memory_is_one_in_a_file(server: Server, tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    path = tmp_path / "picture.png"
    Image.fromarray(picture).save(path)
    server.ask(SHORT, picture.tobytes(), attachments=[{"field": "images", "at": -1, "width": 70, "height": 50}])
    _, frames = server.answer()
    assert frames is not None
    assert np.array_equal(frames, reference(images=(kinograph.Still(str(path), -1),)))


def test_a_film_in_memory_goes_before_its_continuation_as_it_is(server: Server, tmp_path: Path) -> None:
    film = np.random.default_rng(1).integers(0, 256, (17, 64, 64, 3), np.uint8)
    what = {"field": "before", "frames": 17, "width": 64, "height": 64}
    path = tmp_path / "out.mkv"
    request = SHORT | {"num_frames": 4, "fps": 23.976}
    server.ask(request, film.tobytes(), attachments=[what], output=str(path))
    messages, frames = server.answer()
    assert frames is not None
    assert len(frames) == messages[-1]["num_frames"] == 21
    given = len(film) - 9  # the rest is decoded again, with what follows from it
    assert np.array_equal(frames[:given], film[:given])
    with av.open(str(path)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 21
        told = {name.lower(): value for name, value in container.metadata.items()}
    assert "(in memory)" in json.dumps(told)
    assert str(server.folder) not in json.dumps(told)


def test_a_file_is_written_in_place_of_frames(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "out.gif"
    server.ask(SHORT, output=str(path), frames=False)
    messages, frames = server.answer()
    assert (messages[-1]["type"], frames) == ("done", None)
    with Image.open(path) as image:
        assert getattr(image, "n_frames", 0) == 5
    server.ask(SHORT, output=str(path), frames=False)
    assert server.answer()[0][-1]["code"] == 7
    server.ask(SHORT, output=str(path), frames=False, force=True)
    assert server.answer()[0][-1]["type"] == "done"
    assert [one.name for one in tmp_path.iterdir()] == ["out.gif"]


@pytest.mark.parametrize(
    ("request_", "code", "said"),
    [
        ({"num_frames": 6}, 3, "nearest: 5"),
        ({"frames": 6}, 3, "unknown field `frames`"),
        ({"prompt": 7}, 3, "Expected `str`"),
        ({"solver": "heun"}, 3, "heun"),
        ({"speed": "warp"}, 3, "no speed level"),
        ({"image": "nowhere.png"}, 3, "cannot be opened"),
    ],
)
def test_what_cannot_be_made_is_told_and_the_next_can(
    request_: dict[str, Any], code: int, said: str, server: Server
) -> None:
    pixels = bytes(64 * 64 * 3)
    server.ask(SHORT | request_, pixels, attachments=[{"field": "images", "width": 64, "height": 64}])
    last = server.answer()[0][-1]
    assert (last["type"], last["code"]) == ("error", code)
    assert said in last["message"]
    server.ask(SHORT)
    assert server.answer()[0][-1]["type"] == "done"


def test_films_of_any_size_and_pictures_that_are_none(server: Server) -> None:
    for width, height in ((1, 1), (63, 33)):
        film = {"field": "before", "frames": 1, "width": width, "height": height}
        server.ask(SHORT | {"num_frames": 4}, bytes(width * height * 3), attachments=[film])
        messages, frames = server.answer()
        assert frames is not None, messages[-1]
        assert len(frames) == 5
    film = {"field": "images", "frames": 2, "width": 8, "height": 8}
    server.ask(SHORT, bytes(2 * 8 * 8 * 3), attachments=[film])
    last = server.answer()[0][-1]
    assert (last["code"], "a picture of 2 frames" in last["message"]) == (3, True)


def test_cancelled_at_once_or_amid_its_steps(server: Server) -> None:
    for wait in (False, True):
        server.ask(LONG)
        while wait and server.hear()[0].get("unit") != "steps":
            pass
        server.say(b'{"type": "cancel"}\n')
        last = server.answer()[0][-1]
        assert (last["type"], last["code"], last["message"]) == ("error", 130, "cancelled")
    server.say(b'{"type": "cancel"}\n')  # of nothing
    server.ask(SHORT)
    assert server.answer()[0][-1]["type"] == "done"


def test_several_are_made_in_turn_and_cancelled_together(server: Server) -> None:
    server.ask(SHORT | {"seed": 1})
    server.ask(SHORT | {"seed": 2})
    assert [server.answer()[0][-1]["seed"] for _ in range(2)] == [1, 2]
    server.ask(LONG)
    server.ask(LONG)
    server.say(b'{"type": "cancel"}\n')
    assert [server.answer()[0][-1]["code"] for _ in range(2)] == [130, 130]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"generate\n", "no message"),
        (b'{"type": "generate"}\n', "missing required field `request`"),
        (b'{"type": "stop"}\n', "'stop'"),
        (b"\xff\xfe\n", "no message"),
        (b'{"type": "generate", "request": {}, "attachments": [{"field": "images", "width": 0, "height": 1}]}\n', "1"),
        (b"x" * ((1 << 22) + 1), "a line of more than"),
    ],
)
def test_what_is_no_message_ends_it(line: bytes, said: str, own: Server) -> None:
    own.ready()
    own.say(line)
    last, _ = own.hear()
    assert (last["type"], last["code"]) == ("error", 2)
    assert said in last["message"]
    assert own.end() == (2, "")


def test_a_bundle_that_is_refused_is_told(tmp_path: Path) -> None:
    for server in serving(tmp_path, str(tmp_path)):
        while (last := server.hear()[0])["type"] == "stage":
            pass
        assert (last["type"], last["code"]) == ("error", 4)
        assert server.end() == (4, "")


def test_a_fault_while_listening_is_told_and_not_waited_for() -> None:
    class Faulty:
        def line(self) -> bytes:
            raise RuntimeError("no such luck")

    said = pytest.raises(KinographError, match="internal error: RuntimeError: no such luck")
    with kinograph.load("starter-few-steps", device="cpu") as pipe, said:
        next(_Desk(Faulty(), pipe).jobs())  # type: ignore[arg-type]


@pytest.mark.parametrize("attachments", [0, 1])
def test_a_host_that_goes_ends_it(attachments: int, own: Server) -> None:
    own.ready()
    film = {"field": "before", "frames": 90, "width": 64, "height": 64}
    own.ask(LONG, bytes(64 * 64 * 40) * attachments, attachments=[film] * attachments)
    if not attachments:
        while own.hear()[0].get("unit") != "steps":
            pass
    code, errors = own.end()
    assert (code, errors) == (0, "")
    assert list(own.folder.iterdir()) == []


def test_a_host_that_goes_while_it_opens_ends_it(own: Server) -> None:
    own.stdout.close()
    assert own.process.wait(60) == 0


def test_a_host_that_reads_no_more_ends_it(own: Server) -> None:
    own.ready()
    own.stdout.close()
    own.ask(SHORT)
    assert own.process.wait(60) == 0
    assert list(own.folder.iterdir()) == []


def test_sigterm_ends_it_and_leaves_nothing(own: Server) -> None:
    own.ready()
    own.ask(LONG, bytes(64 * 64 * 3), attachments=[{"field": "images", "width": 64, "height": 64}])
    while own.hear()[0].get("unit") != "steps":
        pass
    own.process.send_signal(signal.SIGTERM)
    assert own.process.wait(60) == 143
    assert list(own.folder.iterdir()) == []
