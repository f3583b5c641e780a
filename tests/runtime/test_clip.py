"""Films as input: at our rate and size, upright, and refused where they are none."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from kinograph.errors import RequestError
from kinograph.runtime.clip import Clip, Middle, read_clip
from kinograph.runtime.video import VideoWriter

SIZE = {"width": 64, "height": 48}


def ramp(count: int) -> np.ndarray:
    """Frames of which each is a little lighter, with a red left half: [T, 48, 64, 3]."""
    frames = np.zeros((count, 48, 64, 3), np.uint8)
    frames[:] = (np.arange(count, dtype=np.uint8) * 10 + 20)[:, None, None, None]
    frames[:, :, :32, 0] = 220
    return frames


@pytest.fixture
def film(tmp_path: Path) -> Path:
    path = tmp_path / "film.mp4"
    with VideoWriter(path, width=64, height=48, fps=8) as writer:
        writer.write(ramp(16))
    return path


def test_what_was_written_is_read(film: Path) -> None:
    frames = np.stack(list(read_clip(film, **SIZE, fps=8, how="crop")))
    assert frames.shape == (16, 48, 64, 3)
    assert np.abs(frames.astype(int) - ramp(16)).mean() < 2.5  # colours, too: the file says BT.709


@pytest.mark.parametrize(("fps", "count"), [(4, 8), (16, 32), (8, 16), (24, 48)])
def test_the_rate_is_ours(film: Path, fps: float, count: int) -> None:
    frames = np.stack(list(read_clip(film, **SIZE, fps=fps, how="crop")))
    assert len(frames) == pytest.approx(count, abs=1)
    light = frames[:, 24, 60, 1].astype(int)
    expected = ramp(16)[np.minimum(np.arange(len(frames)) * 8 // fps, 15).astype(int), 24, 60, 1]
    assert np.abs(light - expected).max() <= 13  # a frame more or less


def test_a_variable_rate_is_evened_out(tmp_path: Path) -> None:
    path = tmp_path / "variable.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt, stream.codec_context.time_base = 64, 48, "yuv420p", Fraction(1, 8)
        for frame, at in zip(ramp(4), (0, 1, 6, 7), strict=True):
            picture = av.VideoFrame.from_ndarray(frame, "rgb24")
            picture.pts, picture.time_base = at, Fraction(1, 8)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    frames = np.stack(list(read_clip(path, **SIZE, fps=8, how="crop")))
    light = frames[:8, 24, 60, 1].astype(int)
    assert np.abs(light - [20, 30, 30, 30, 30, 30, 40, 50]).max() <= 6


def test_the_size_is_ours(film: Path) -> None:
    frame = next(iter(read_clip(film, width=96, height=32, fps=8, how="pad")))
    assert frame.shape == (32, 96, 3) and not frame[:, 0].any()


def test_ends_are_kept_and_counted(film: Path) -> None:
    clip = Clip(str(film), 64, 48, 8, "crop")
    tail, count = clip.last(5)
    head, again = clip.first(4)
    assert tail is not None and head is not None
    assert (len(tail), len(head), count, again) == (5, 4, 16, 16)
    assert tail[-1].mean() > head[-1].mean()
    assert Clip(None, 64, 48, 8, "crop").last(5) == (None, 0)


@pytest.mark.parametrize(("head", "tail"), [(0, 0), (4, 5), (0, 5), (4, 0)])
@pytest.mark.parametrize("step", [1, 3, 16])
def test_the_middle_goes_by(head: int, tail: int, step: int) -> None:
    middle, passed = Middle(head, tail), []
    for start in range(0, 16, step):
        passed += middle.push(ramp(16)[start : start + step])
    assert np.array_equal(np.stack(passed), ramp(16)[head : 16 - tail])
    assert not head or np.array_equal(middle.head, ramp(16)[:head])
    assert not tail or np.array_equal(middle.tail, ramp(16)[16 - tail :])


@pytest.mark.parametrize("ending", ["mp4", "mkv", "webm", "gif", "webp"])
def test_what_kinograph_writes_it_reads(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"film.{ending}"
    with VideoWriter(path, width=64, height=48, fps=8) as writer:
        writer.write(ramp(9))
    try:
        count = len(list(read_clip(path, **SIZE, fps=8, how="crop")))
    except RequestError as error:
        assert ending == "webp", error  # FFmpeg reads no animated WebP
    else:
        assert count == pytest.approx(9, abs=1)


def test_a_playlist_is_no_film(film: Path, tmp_path: Path) -> None:
    playlist = tmp_path / "list.m3u8"
    playlist.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{film}\n#EXT-X-ENDLIST\n")
    with pytest.raises(RequestError, match=r"list\.m3u8"):
        list(read_clip(playlist, **SIZE, fps=8, how="crop"))


@pytest.mark.parametrize("content", [b"", b"not a film", b"\x00\x00\x00\x18ftypmp42" + bytes(200)])
def test_what_is_no_film_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.mp4"
    path.write_bytes(content)
    with pytest.raises(RequestError, match=r"broken\.mp4"):
        list(read_clip(path, **SIZE, fps=8, how="crop"))


def test_a_film_cut_off_is_refused_or_read_as_far_as_it_goes(film: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(film.read_bytes()[:-400])
    try:
        frames = list(read_clip(cut, **SIZE, fps=8, how="crop"))
    except RequestError as error:
        assert "cut.mp4" in str(error)
    else:
        assert 0 < len(frames) <= 16


def test_only_regular_local_files_are_read(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.mp4", "https://example.org/film.mp4"):
        with pytest.raises(RequestError, match="Name a local file"):
            list(read_clip(path, **SIZE, fps=8, how="crop"))
