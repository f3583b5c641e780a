"""Titles and captions: when they are seen, where, in which script, and what cannot be drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import features

from kinograph.cli import main
from kinograph.errors import RequestError
from kinograph.runtime import captions
from kinograph.runtime.captions import Caption, Captions, read_captions, title

SIZE = {"width": 320, "height": 180, "fps": 10.0}
GREY = np.full((40, 180, 320, 3), 100, np.uint8)

pytestmark = pytest.mark.skipif(not captions._system_fonts(), reason="this system has no fonts")


def drawn(*texts: Caption) -> np.ndarray:
    return Captions(texts, **SIZE).draw(GREY, 0) != GREY


def rows(seen: np.ndarray) -> np.ndarray:
    return np.flatnonzero(seen.any((0, 2, 3)))


def test_a_caption_is_seen_in_its_time_at_the_bottom_within_safe_margins() -> None:
    seen = drawn(Caption(1.0, 2.5, "a star is born"))
    assert np.flatnonzero(seen.any((1, 2, 3))).tolist() == list(range(10, 25))
    assert rows(seen).min() > 90 and rows(seen).max() < 180 * 0.95
    columns = np.flatnonzero(seen.any((0, 1, 3)))
    assert abs(columns.mean() - 160) < 4


def test_a_title_is_in_the_middle_and_fades() -> None:
    shown = Captions([title("The Star")], **SIZE).draw(GREY, 0).astype(int) - GREY
    strength = np.abs(shown).sum((1, 2, 3))
    assert abs(rows(shown != 0).mean() - 90) < 6
    assert strength[0] == strength[20] > strength[27] > strength[29] > strength[30] == 0


def test_frames_come_in_pieces(tmp_path: Path) -> None:
    texts = [title("The Star"), Caption(0.4, 1.7, "one"), Caption(1.5, 3.0, "two\nlines")]
    whole = Captions(texts, **SIZE).draw(GREY, 0)
    writer = Captions(texts, **SIZE)
    pieces = [writer.draw(GREY[start : start + 7], start) for start in range(0, 40, 7)]
    assert np.array_equal(np.concatenate(pieces), whole)
    assert (GREY == 100).all(), "the frames that are given are left alone"


def test_long_text_is_wrapped_and_too_long_text_refused() -> None:
    words = "the quick brown fox jumps over the lazy dog and goes home again "
    seen = drawn(Caption(0, 4, words), Caption(0, 4, "w" * 60))
    columns = np.flatnonzero(seen.any((0, 1, 3)))
    assert columns.min() >= 160 - 320 * 0.45 - 4 and columns.max() <= 160 + 320 * 0.45 + 4
    with pytest.raises(RequestError, match="Use less text, or a larger --size"):
        Captions([Caption(0, 1, words * 20)], **SIZE)


@pytest.mark.skipif(not features.check("raqm"), reason="Pillow has no Raqm here")
def test_scripts_are_shaped_and_ordered() -> None:
    """Arabic letters join: as a word they are narrower than one by one, and a word is not its mirror image."""
    word = "شمس"
    try:
        face = captions._face(word, 40, None)
    except RequestError:
        pytest.skip("no font here has Arabic letters")
    assert face.getlength(word) < 0.95 * sum(face.getlength(one) for one in word)
    assert captions._shape(face, word) != captions._shape(face, word[::-1])


def test_without_raqm_what_is_written_from_right_to_left_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captions.features, "check", lambda name: False)
    with pytest.raises(RequestError, match="Install FriBidi"):
        Captions([Caption(0, 1, "שלום")], **SIZE)
    assert drawn(Caption(0, 4, "hello")).any()


def test_a_character_that_no_font_has_is_named() -> None:
    with pytest.raises(RequestError, match=r"no font of this system has .*0010abcd.*--font FILE"):
        Captions([title("star \U0010abcd")], **SIZE)


def test_files_of_captions_are_read(tmp_path: Path) -> None:
    srt = tmp_path / "a.srt"
    srt.write_text(
        "\ufeff1\r\n00:00:00,500 --> 00:00:01,250\r\n<i>A star</i> is born,\r\n{\\an8}far away\r\n\r\n"
        "2\r\n00:01:02,000 --> 00:01:03,000\r\nПривет\r\n",
        "utf-8",
    )
    assert read_captions(str(srt)) == [
        Caption(0.5, 1.25, "A star is born,\nfar away"),
        Caption(62.0, 63.0, "Привет"),
    ]
    vtt = tmp_path / "a.vtt"
    vtt.write_text("WEBVTT\n\n00:00.500 --> 00:01.000\nhello\n")
    assert read_captions(str(vtt)) == [Caption(0.5, 1.0, "hello")]


@pytest.mark.parametrize(
    "content", [b"", b"no captions here", b"1\n00:00:00,500 --> 00:00:01,000\n\xff\xfe\n", b"\0" * 64]
)
def test_what_has_no_captions_is_refused(tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.srt"
    path.write_bytes(content)
    with pytest.raises(RequestError, match=r"Give an \.srt|UTF-8"):
        read_captions(str(path))
    assert main(["generate", "a ball", "--captions", str(path), "-o", str(tmp_path / "o.mp4")]) == 3
    assert "a.srt" in capsys.readouterr().err


def test_they_are_in_the_file(tmp_path: Path) -> None:
    srt = tmp_path / "a.srt"
    srt.write_text("1\n00:00:00,000 --> 00:00:09,000\nA STAR IS BORN\n")
    out = [str(tmp_path / f"{name}.png") for name in ("with", "without")]
    quick = [
        "generate",
        "a red ball on a plain navy background",
        "--steps",
        "2",
        "--frames",
        "5",
        "--size",
        "128x128",
        "-q",
    ]
    assert (
        main([*quick, "-o", str(tmp_path / "a.mp4"), "--captions", str(srt), "--title", "Film", "--sheet", out[0]]) == 0
    )
    assert main([*quick, "-o", str(tmp_path / "b.mp4"), "--sheet", out[1]]) == 0
    assert Path(out[0]).read_bytes() != Path(out[1]).read_bytes()
