"""Sound for a video: as long as it is, whatever the file's kind, rate, channels and length."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from kinograph.cli import main
from kinograph.errors import RequestError
from kinograph.runtime.audio import check_audio
from kinograph.runtime.video import VideoWriter

RATE = 48_000


def tone(path: Path, seconds: float, *, codec: str = "pcm_s16le", rate: int = 44_100, layout: str = "mono") -> str:
    """A file of one pitch, 440 Hz."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        wave = np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate)
        frame = av.AudioFrame.from_ndarray((wave * 16_000).astype(np.int16)[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts = rate, 0
        for block in av.AudioResampler(stream.codec_context.codec.audio_formats[0].name, layout, rate).resample(frame):
            container.mux(stream.encode(block))
        container.mux(stream.encode(None))
    return str(path)


def film(path: Path, audio: str, *, frames: int = 33, fps: float = 16.0) -> Path:
    with VideoWriter(path, width=64, height=64, fps=fps, audio=audio) as writer:
        for start in range(0, frames, 4):
            writer.write(np.full((min(4, frames - start), 64, 64, 3), 90, np.uint8))
    return path


def heard(path: Path) -> np.ndarray:
    """The sound of a file, its channels' mean [T] at 48 kHz."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        assert (stream.rate, stream.layout.name) == (RATE, "stereo")
        blocks = [block.to_ndarray() for block in container.decode(stream)]
    planar = np.concatenate(blocks, axis=-1)
    return planar.mean(axis=0) if len(planar) == 2 else planar.reshape(-1, 2).mean(axis=1)


def pitch(sound: np.ndarray) -> float:
    return float(np.argmax(np.abs(np.fft.rfft(sound))) * RATE / len(sound))


@pytest.mark.parametrize("ending", [".mp4", ".mkv", ".webm"])
@pytest.mark.parametrize("seconds", [0.3, 5.0])
def test_the_sound_is_as_long_as_the_video(tmp_path: Path, ending: str, seconds: float) -> None:
    sound = heard(film(tmp_path / f"film{ending}", tone(tmp_path / "tone.wav", seconds)))
    assert abs(len(sound) / RATE - 33 / 16) < 0.03, "but for what the encoder fills its last frame with"
    for start in range(0, 2 * RATE - RATE // 5, RATE // 5):
        part = sound[start : start + RATE // 5]
        assert np.abs(part).mean() > 0.1, "it begins again where it ends"
        assert abs(pitch(part) - 440) < 10


@pytest.mark.parametrize(
    ("name", "codec", "rate", "layout"),
    [
        ("a.mp3", "libmp3lame", 44_100, "stereo"),
        ("a.flac", "flac", 96_000, "mono"),
        ("a.ogg", "libopus", 48_000, "stereo"),
        ("a.m4a", "aac", 22_050, "mono"),
        ("a.wav", "pcm_s16le", 8_000, "mono"),
    ],
)
def test_whatever_the_file_is(tmp_path: Path, name: str, codec: str, rate: int, layout: str) -> None:
    audio = tone(tmp_path / name, 1.0, codec=codec, rate=rate, layout=layout)
    sound = heard(film(tmp_path / "film.mp4", audio))
    assert abs(pitch(sound) - 440) < 5


def test_the_sound_of_another_film_will_do(tmp_path: Path) -> None:
    first = film(tmp_path / "first.mp4", tone(tmp_path / "tone.wav", 1.0))
    assert abs(pitch(heard(film(tmp_path / "second.webm", str(first)))) - 440) < 5


def test_pictures_keep_their_times(tmp_path: Path) -> None:
    path = film(tmp_path / "film.mp4", tone(tmp_path / "tone.wav", 1.0), frames=24, fps=30000 / 1001)
    with av.open(str(path)) as container:
        times = [frame.pts * frame.time_base for frame in container.decode(video=0)]
    assert times == [number * Fraction(1001, 30000) for number in range(24)]


def test_what_has_no_sound_is_refused_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("la la la")
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXTINF:1,\n/etc/passwd\n")
    tone(tmp_path / "tone.wav", 1.0)
    with VideoWriter(tmp_path / "silent.mp4", width=64, height=64, fps=16) as writer:
        writer.write(np.zeros((4, 64, 64, 3), np.uint8))
    for name, message in (
        ("silent.mp4", "has no sound"),
        ("notes.txt", "no sound that can be read"),
        ("list.m3u8", "no sound that can be read"),
        ("missing.wav", "cannot be opened"),
        (".", "not a regular file"),
    ):
        with pytest.raises(RequestError, match=message):
            check_audio(str(tmp_path / name), "film.mp4")
    out = tmp_path / "out.gif"
    assert main(["generate", "a red ball", "--audio", str(tmp_path / "tone.wav"), "-o", str(out)]) == 3
    assert "can hold no sound. Use .mp4, .mkv, .webm" in capsys.readouterr().err
    assert main(["generate", "a red ball", "--audio", str(tmp_path / "notes.txt"), "-o", str(tmp_path / "o.mp4")]) == 3
    assert not (tmp_path / "o.mp4").exists()
