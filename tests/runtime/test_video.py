"""Videos are written whole or not at all, with the right colours, times and metadata: everything is read back."""

from __future__ import annotations

import errno
import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from kinograph.errors import OutputError, RequestError, UsageError
from kinograph.runtime.video import VideoWriter, available_codecs, check_output

COLOURS = np.array(
    [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [0, 255, 255], [255, 0, 255], [255] * 3, [0] * 3, [128] * 3],
    dtype=np.uint8,
)
COLOUR_TOLERANCE = 3  # 8-bit limited range has 219 levels for luma, and crf 16 costs another level
METADATA = {"prompt": "a rød ball\nrolls", "seed": "7", "kinograph": "0.1.0"}


def flat(height: int = 32, width: int = 48) -> np.ndarray:
    """One single-coloured frame per colour: uint8 [T, height, width, 3]."""
    return np.broadcast_to(COLOURS[:, None, None], (len(COLOURS), height, width, 3)).copy()


def noise(count: int, height: int = 32, width: int = 48) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def write(path: str | Path, frames: np.ndarray, fps: float = 16, **options: object) -> None:
    height, width = frames.shape[1:3]
    with VideoWriter(path, width=width, height=height, fps=fps, **options) as writer:  # type: ignore[arg-type]
        for start in range(0, len(frames), 4):
            writer.write(frames[start : start + 4])
    assert writer.frames_written == len(frames)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.mark.parametrize("name", ["out.mp4", "out.mkv", "out.webm", "out.MP4"])
def test_movies_keep_colours_and_are_tagged_bt709(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, flat())
    with av.open(str(tmp_path / name)) as container:
        context = container.streams.video[0].codec_context
        assert (context.colorspace, context.color_primaries, context.color_trc, context.color_range) == (1, 1, 1, 1)
        assert context.pix_fmt == "yuv420p"
        frames = [frame.to_ndarray(format="rgb24")[16, 24] for frame in container.decode(video=0)]
    worst = np.abs(np.array(frames, dtype=int) - COLOURS).max()
    print("largest colour difference:", worst)
    assert worst <= COLOUR_TOLERANCE


@pytest.mark.parametrize("fps", [16, 24, 23.976023976, 8.5, 1 / 3])
def test_mp4_times_are_exact(tmp_path: Path, fps: float) -> None:
    write(tmp_path / "out.mp4", noise(9), fps=fps)
    rate = Fraction(fps).limit_denominator(1001)
    with av.open(str(tmp_path / "out.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == rate
        assert stream.duration is not None and stream.duration * stream.time_base == 9 / rate
        times = [frame.pts * stream.time_base for frame in container.decode(video=0)]
    assert times == [number / rate for number in range(9)]


def test_mp4_can_play_before_it_is_all_there(tmp_path: Path) -> None:
    write(tmp_path / "out.mp4", noise(3))
    data = (tmp_path / "out.mp4").read_bytes()
    assert 0 < data.find(b"moov") < data.find(b"mdat")


def test_same_frames_give_the_same_file(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", noise(5), metadata=METADATA)
    write(tmp_path / "b.mp4", noise(5), metadata=METADATA)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


@pytest.mark.parametrize("name", ["out.mp4", "out.mkv", "out.webm"])
def test_movie_metadata_reads_back(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, noise(2), metadata={**METADATA, "odd": "nul \0 lone \ud800"})
    with av.open(str(tmp_path / name)) as container:
        read = {key.lower(): value for key, value in container.metadata.items()}
    assert {key: read[key] for key in METADATA} == METADATA
    assert read["title"] == METADATA["prompt"]
    assert json.loads(read["comment"])["odd"] == "nul \\x00 lone \\ud800"


def test_animation_and_png_metadata_reads_back(tmp_path: Path) -> None:
    for name in ("out.gif", "out.webp", "frames/"):
        write(f"{tmp_path}/{name}", noise(2), metadata=METADATA)
    with Image.open(tmp_path / "out.gif") as image:
        assert json.loads(image.info["comment"]) == METADATA
    with Image.open(tmp_path / "out.webp") as image:
        assert json.loads(image.getexif()[0x010E]) == METADATA
    with Image.open(tmp_path / "frames" / "000000.png") as image:
        assert image.text == METADATA


@pytest.mark.parametrize("name", ["out.gif", "out.webp"])
def test_animations_keep_colours_and_total_time(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, flat(), fps=16)
    with Image.open(tmp_path / name) as image:
        assert image.n_frames == len(COLOURS) and image.info["loop"] == 0
        shown, elapsed = [], 0
        for number in range(image.n_frames):
            image.seek(number)
            shown.append(np.asarray(image.convert("RGB"))[16, 24])
            elapsed += image.info["duration"]
    assert np.abs(np.array(shown, dtype=int) - COLOURS).max() <= COLOUR_TOLERANCE
    assert abs(elapsed - 1000 * len(COLOURS) / 16) <= 5  # half a GIF tick, over the whole video


def test_folder_holds_exact_numbered_frames(tmp_path: Path) -> None:
    frames = noise(3, 7, 9)  # an odd size is fine for PNG
    write(f"{tmp_path}/frames/", frames)
    assert names(tmp_path / "frames") == ["000000.png", "000001.png", "000002.png"]
    with Image.open(tmp_path / "frames" / "000002.png") as image:
        assert np.array_equal(np.asarray(image), frames[2])


@pytest.mark.parametrize("name", ["out.mp4", "out.gif", "out.webp", "frames/"])
@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_nothing(tmp_path: Path, name: str, kind: type[BaseException]) -> None:
    with pytest.raises(kind), VideoWriter(f"{tmp_path}/{name}", width=48, height=32, fps=16) as writer:
        writer.write(noise(3))
        raise kind
    assert names(tmp_path) == []


def test_an_exception_keeps_the_old_file(tmp_path: Path) -> None:
    write(tmp_path / "out.mp4", noise(2))
    old = (tmp_path / "out.mp4").read_bytes()
    with pytest.raises(KeyError), VideoWriter(tmp_path / "out.mp4", width=48, height=32, fps=16, force=True) as writer:
        writer.write(noise(3))
        raise KeyError
    assert (tmp_path / "out.mp4").read_bytes() == old
    write(tmp_path / "out.mp4", noise(3), force=True)
    assert (tmp_path / "out.mp4").read_bytes() != old


def test_places_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    (tmp_path / "old.mp4").write_bytes(b"old")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "link.mp4").symlink_to(tmp_path / "old.mp4")
    (tmp_path / "dangling.mp4").symlink_to(tmp_path / "nowhere.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    before = names(tmp_path)
    for name, force, words in [
        ("old.mp4", False, "--force"),
        ("folder.mp4", True, "is a folder"),
        ("link.mp4", True, "symbolic link"),
        ("dangling.mp4", False, "symbolic link"),
        ("pipe.mp4", True, "a pipe"),
        ("missing/out.mp4", False, "mkdir"),
        ("old.mp4/out.mp4", False, "not a folder|is a file"),
        ("old.mp4/", True, "is a file"),
        ("out.avi", False, r"\.mp4"),
        ("out", False, "missing"),
        ("x" * 300 + ".mp4", False, "too long"),
        ("nul\0.mp4", False, "not a file name"),
    ]:
        with pytest.raises(OutputError, match=words):
            check_output(f"{tmp_path}/{name}", force)
    assert names(tmp_path) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="cannot be written to"):
        check_output(tmp_path / "out.mp4")


def test_unwritable_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(OutputError, match="cannot be written to"):
        check_output(tmp_path / "out.mp4")


def test_force_replaces_only_a_folder_of_frames(tmp_path: Path) -> None:
    path = f"{tmp_path}/frames/"
    (tmp_path / "frames").mkdir()
    write(path, noise(3))  # an empty folder is no obstacle
    with pytest.raises(OutputError, match="not empty"):
        check_output(path)
    write(path, noise(2), force=True)
    assert names(tmp_path / "frames") == ["000000.png", "000001.png"] and names(tmp_path) == ["frames"]
    (tmp_path / "frames" / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match=r"thesis\.tex"):
        check_output(path, force=True)
    for root in ("/", "./", "../"):
        with pytest.raises(OutputError):
            check_output(root, force=True)


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", ["out.mp4", "out.webm", "out.gif", "out.webp", "frames/"])
@pytest.mark.parametrize("limit", [1000, 60_000])
def test_a_file_that_cannot_grow_leaves_nothing(tmp_path: Path, name: str, limit: int) -> None:
    if name == "frames/" and limit > 1000:
        pytest.skip("no single frame is that large")
    path = f"{tmp_path}/{name}"
    with file_size_limit(limit), pytest.raises(OutputError, match="larger than this system allows"):
        write(path, noise(30, 64, 96))
    assert names(tmp_path) == []


def test_disk_full_while_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match="disk is full"):
        write(f"{tmp_path}/frames/", noise(2))
    assert names(tmp_path) == []


def test_disk_full_at_the_last_sync_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="disk is full"):
        write(tmp_path / "out.mp4", noise(2))
    assert names(tmp_path) == []


def test_two_runs_with_one_output_both_keep_their_video(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    with (
        pytest.raises(OutputError, match="somebody else") as caught,
        VideoWriter(path, width=48, height=32, fps=16) as first,
    ):
        first.write(noise(3))
        write(path, noise(5))
    kept = next(entry for entry in tmp_path.iterdir() if entry.name != "out.mp4")
    assert len(names(tmp_path)) == 2 and kept.name in str(caught.value)
    for file, count in ((path, 5), (kept, 3)):
        with av.open(str(file)) as container:
            assert sum(1 for _ in container.decode(video=0)) == count


def test_without_hard_links_nothing_is_replaced_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    write(tmp_path / "out.mp4", noise(2))
    assert names(tmp_path) == ["out.mp4"]
    with (
        pytest.raises(OutputError, match="somebody else"),
        VideoWriter(tmp_path / "b.mp4", width=48, height=32, fps=16) as writer,
    ):
        writer.write(noise(2))
        (tmp_path / "b.mp4").write_bytes(b"theirs")
    assert (tmp_path / "b.mp4").read_bytes() == b"theirs"


def test_leftovers_of_killed_runs_are_removed_and_live_ones_kept(tmp_path: Path) -> None:
    stale, young = tmp_path / ".kinograph-dead.partial", tmp_path / ".kinograph-young.partial"
    stale_folder = tmp_path / ".kinograph-deadfolder.partial"
    stale_folder.mkdir()
    for file in (stale, young, stale_folder / "000000.png"):
        file.write_bytes(b"x")
    for old in (stale, stale_folder):
        os.utime(old, (0, 0))
    with VideoWriter(tmp_path / "live.mp4", width=48, height=32, fps=16) as writer:
        writer.write(noise(2))
        (live,) = set(tmp_path.glob(".kinograph-*")) - {young}
        os.utime(live, (0, 0))  # old, but locked by its writer
        write(tmp_path / "out.mp4", noise(2))
        assert live.exists()
    assert names(tmp_path) == [young.name, "live.mp4", "out.mp4"]


def test_no_frames_is_an_error_and_no_file(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no frame"), VideoWriter(tmp_path / "a.mp4", width=48, height=32, fps=16):
        pass
    assert names(tmp_path) == []


def test_bad_requests_are_refused_before_a_file_is_made(tmp_path: Path) -> None:
    def make(name: str = "a.mp4", width: int = 48, height: int = 32, fps: float = 16, codec: str | None = None) -> None:
        VideoWriter(f"{tmp_path}/{name}", width=width, height=height, fps=fps, codec=codec)

    with pytest.raises(RequestError, match="nearest: 48×32"):
        make(width=47, height=31)
    for fps in (0.0, -1.0, float("nan"), float("inf"), 1e9):
        with pytest.raises(RequestError, match="fps"):
            make(fps=fps)
    with pytest.raises(RequestError, match="50"):
        make("a.gif", fps=60)
    with pytest.raises(RequestError, match="0×32"):
        make(width=0)
    with pytest.raises(UsageError, match="libx264"):
        make(codec="h265000")
    with pytest.raises(UsageError, match="available: libvpx-vp9"):
        make("a.webm", codec="libx264")
    with pytest.raises(UsageError, match="no choice of codec"):
        make("a.gif", codec="libx264")
    assert names(tmp_path) == []


def test_an_encoder_without_its_device_is_refused_at_once(tmp_path: Path) -> None:
    missing = [codec for codec in available_codecs("a.mp4") if codec.startswith("h264_")]
    failures = 0
    for codec in missing:
        try:
            VideoWriter(tmp_path / "a.mp4", width=256, height=256, fps=16, codec=codec).abort()
        except OutputError as error:
            failures += 1
            assert codec in str(error) and "--codec" in str(error)
    if not failures:
        pytest.skip("every hardware encoder works here")
    assert names(tmp_path) == []


def test_hevc_can_be_chosen(tmp_path: Path) -> None:
    if "libx265" not in available_codecs("a.mp4"):
        pytest.skip("this ffmpeg has no libx265")
    write(tmp_path / "a.mp4", flat(64, 96), codec="libx265")
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "hevc"
        assert sum(1 for _ in container.decode(video=0)) == len(COLOURS)


@pytest.mark.parametrize("shape", [(2, 32, 50, 3), (2, 32, 48, 4), (32, 48, 3)])
def test_wrong_arrays_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    writer = VideoWriter(tmp_path / "a.mp4", width=48, height=32, fps=16)
    with pytest.raises(UsageError, match="uint8"):
        writer.write(np.zeros(shape, dtype=np.uint8))
    writer.abort()
    with pytest.raises(UsageError, match="closed"):
        writer.write(noise(1))


def test_a_relative_name_that_looks_like_a_protocol_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write("http:out%d.mp4", noise(2))
    assert names(tmp_path) == ["http:out%d.mp4"]


def test_every_frame_of_an_mp4_is_on_the_disk_when_it_was_written(tmp_path: Path) -> None:
    frames = noise(4)
    with VideoWriter(tmp_path / "a.mp4", width=48, height=32, fps=16) as writer:
        sizes = []
        for frame in frames:
            writer.write(frame[None])
            sizes.append(sum(entry.stat().st_size for entry in os.scandir(tmp_path)))
        growth = np.diff([0, *sizes])
        assert (growth > frame.size / 8).all(), sizes  # noise does not compress
