"""Films made of windows, from pictures and films, on the starter: joins, loops, storyboards, and going on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

import kinograph
from kinograph import Cue, FramesDecoded, Pipeline, Request, Still, WindowDone
from kinograph.bundle import Bundle
from kinograph.cli import main
from kinograph.errors import RequestError
from kinograph.runtime import conditioning, context
from kinograph.runtime.clip import read_clip
from kinograph.runtime.conditioning import Given, Piece, encode_piece, given_in
from kinograph.runtime.denoise import Inputs
from kinograph.runtime.sampling import Sampler
from kinograph.runtime.windows import Window

PROMPT = "a large red ball moves left on a plain navy background, flat style"
STILL = "a large red ball stays still on a plain navy background, flat style"  # what can come before it is clear
QUICK = {"num_inference_steps": 4, "guidance_scale": 1.0}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, starter_copy: Callable[..., Path]) -> Path:
    return starter_copy(tmp_path_factory.mktemp("bundle") / "starter")


@pytest.fixture(scope="module")
def pipe(bundle: Path) -> Pipeline:
    with kinograph.load(bundle, device="cpu", variant="fp32") as opened:
        yield opened


@pytest.fixture(scope="module")
def film(pipe: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    pipe(STILL, seed=1, num_inference_steps=8).save(path)
    return path


def frames_of(pipe: Pipeline, request: Request) -> np.ndarray:
    events = [event for event in pipe.run(request) if isinstance(event, FramesDecoded)]
    assert [event.index for event in events] == np.cumsum([0, *(len(e.frames) for e in events)])[:-1].tolist()
    frames = np.concatenate([event.frames for event in events])
    assert {event.total for event in events} == {len(frames)}
    return frames


def test_a_long_film_begins_as_a_short_one(pipe: Pipeline) -> None:
    short = pipe(PROMPT, **QUICK).frames
    long = pipe(PROMPT, num_frames=41, **QUICK).frames
    assert len(long) == 41
    assert np.abs(short.astype(int) - long[: len(short)]).max() <= 1
    assert np.abs(np.diff(long.astype(float), axis=0)).mean((1, 2, 3)).max() < 40  # no cut


def test_windows_can_be_longer(pipe: Pipeline) -> None:
    events = list(pipe.run(Request(prompt=PROMPT, num_frames=33, window=33, **QUICK)))
    assert sum(isinstance(event, WindowDone) for event in events) == 1
    events = list(pipe.run(Request(prompt=PROMPT, num_frames=33, overlap=9, **QUICK)))
    assert sum(isinstance(event, WindowDone) for event in events) == 3


@pytest.mark.parametrize("anchor", [True, False])
def test_windows_are_given_the_beginning_of_what_they_show(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch, anchor: bool
) -> None:
    firsts: list[np.ndarray | None] = []

    def seen(window: Window, shape: tuple[int, ...], known: dict[int, np.ndarray], first: np.ndarray | None) -> Given:
        firsts.append(first)
        return given_in(window, shape, known, first)

    monkeypatch.setattr(conditioning, "given_in", seen)
    cues = (Cue(1.0, STILL), Cue(3.5, PROMPT))  # 16 frames, 40, and the first prompt again
    request = Request(prompt=PROMPT, cues=cues, num_frames=89, anchor=anchor, **QUICK)
    made = [event.latents for event in pipe.run(request) if isinstance(event, WindowDone)]
    beginning = made[0][:, :, :1]
    again = [first is not None and np.array_equal(first, beginning) for first in firsts]
    assert firsts[0] is None and again == [False] * 4 + [anchor] * 3
    assert np.array_equal(firsts[2], firsts[3]) == anchor  # the second prompt's own, once it was told alone


def test_a_new_prompt_is_not_held_to_what_the_last_one_showed(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    noised: list[bool] = []
    alone = Sampler.alone

    def seen(sampler: Sampler, inputs: Inputs, number: int, windows: int) -> Any:
        noised.append(inputs.given.noised)
        return alone(sampler, inputs, number, windows)

    monkeypatch.setattr(Sampler, "alone", seen)
    frames_of(pipe, Request(prompt=PROMPT, cues=(Cue(1.5, STILL),), num_frames=53, **QUICK))
    assert noised == [False, True, True, False]  # the second is told both, the third the new one alone
    noised.clear()
    frames_of(pipe, Request(prompt=PROMPT, cues=(Cue(1.5, STILL),), cuts=True, num_frames=41, **QUICK))
    assert not any(noised)


def test_a_cut_forgets_what_was_before(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Given] = []

    def seen(*about: Any) -> Given:
        given.append(given_in(*about))
        return given[-1]

    monkeypatch.setattr(conditioning, "given_in", seen)
    green = "a large green star stays still on a plain white background, flat style"
    cues = (Cue(1.0, green), Cue(2.0, STILL))
    request = Request(prompt=STILL, cues=cues, cuts=True, num_frames=49, num_inference_steps=8)
    frames = frames_of(pipe, request)
    made = [event for event in pipe.run(request) if isinstance(event, WindowDone)]
    assert [event.cut for event in made] == [False, True, True] and len(frames) == 49
    assert np.array_equal(given[2].known[:, :, :1], made[0].latents[:, :, :1])
    latents = np.concatenate([event.latents for event in made], axis=2)
    again = np.concatenate([event.frames for event in pipe.decode(latents, [5, 9])])
    assert np.abs(again.astype(int) - frames).max() <= 1
    resumed = [event.frames for event in pipe.run(request, latents[:, :, :9]) if isinstance(event, FramesDecoded)]
    assert np.array_equal(np.concatenate(resumed), frames)
    changes = np.abs(np.diff(frames.astype(float), axis=0)).mean((1, 2, 3))
    assert set(np.argsort(changes)[-2:] + 1) == {17, 33}  # the frames that begin at 1 and 2 seconds
    assert frames[20:32, :8].mean() > 150 > frames[36:, :8].mean()  # white, and navy again
    masks = [one.mask[0, 0, :, 0, 0].tolist() for one in given]
    assert [mask[:2] for mask in masks[:3]] == [[0, 0], [0, 0], [1, 0]]  # the third is given how the first one began


def test_a_film_is_continued_and_led_to(pipe: Pipeline, film: Path) -> None:
    given = np.stack(list(read_clip(film, width=128, height=128, fps=16, how="crop")))
    after = frames_of(pipe, Request(prompt=STILL, before=str(film), **QUICK))
    assert len(after) == 17 + 12 and np.array_equal(after[:12], given[:12])  # the last five fade
    before = frames_of(pipe, Request(prompt=STILL, after=str(film), num_frames=13, **QUICK))
    assert len(before) == 13 + 17 and np.array_equal(before[17:], given[4:])
    assert np.square(before[13:].astype(float) - given).mean() < 255**2 / 10**3.0  # 30 dB
    between = frames_of(pipe, Request(prompt=STILL, before=str(film), after=str(film), **QUICK))
    assert len(between) == 17 + 8 + 17
    longer = frames_of(pipe, Request(prompt=STILL, before=str(film), after=str(film), num_frames=40, **QUICK))
    assert len(longer) == 17 + 40 + 17
    for frames, joins in ((after, (17,)), (before, (13,)), (between, (17, 25)), (longer, (17, 57))):
        changes = np.abs(np.diff(frames.astype(float), axis=0)).mean((1, 2, 3))
        assert all(changes[join - 1] < 4 * np.median(changes) + 4 for join in joins)


@pytest.mark.parametrize(
    "more", [{}, {"num_frames": 40}, {"before": None, "num_frames": 17}, {"before": None, "num_frames": 41}]
)
def test_what_leads_up_to_a_film_leaves_it_as_it_is(pipe: Pipeline, film: Path, more: dict[str, Any]) -> None:
    request = Request(prompt=PROMPT, **{"before": str(film), "after": str(film), "num_frames": 16} | more | QUICK)
    one, other = (frames_of(pipe, msgspec.structs.replace(request, seed=seed)) for seed in (1, 2))
    assert not np.array_equal(one[-18], other[-18]) and np.array_equal(one[-17:], other[-17:])
    given = np.stack(list(read_clip(film, width=128, height=128, fps=16, how="crop")))
    errors = np.square(one[-17:].astype(float) - given).mean((1, 2, 3))
    assert (errors < 255**2 / 10**3.0).all()  # 30 dB


def test_joins_are_eased_on_both_sides(pipe: Pipeline, film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def made() -> np.ndarray:
        request = Request(prompt=STILL, before=str(film), after=str(film), num_frames=8, seed=4, **QUICK)
        return np.concatenate([e.latents for e in pipe.run(request) if isinstance(e, WindowDone)], axis=2)

    eased = made()
    monkeypatch.setattr(context, "eased", lambda known, new: new)
    abrupt, free = made(), slice(2, 4)  # two latent frames of a film go before, one comes after
    np.testing.assert_array_equal(np.delete(eased, free, axis=2), np.delete(abrupt, free, axis=2))
    for a, b in ((1, 2), (4, 3)):
        steps = [np.abs(latents[:, :, a] - latents[:, :, b]).mean() for latents in (eased, abrupt)]
        assert steps[0] < 0.8 * steps[1]


def test_what_leads_up_to_a_film_is_made_from_its_beginning(
    pipe: Pipeline, film: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[Window, Given]] = []

    def seen(window: Window, *about: Any) -> Given:
        given.append((window, given_in(window, *about)))
        return given[-1][1]

    monkeypatch.setattr(conditioning, "given_in", seen)
    request = Request(prompt=STILL, after=str(film), num_frames=41, **QUICK)
    events = list(pipe.run(request))
    frames = np.concatenate([event.frames for event in events if isinstance(event, FramesDecoded)])
    assert len(frames) == 41 + 17
    masks = [one.mask[0, 0, :, 0, 0].astype(int).tolist() for _, one in given]
    assert [window.start for window, _ in given] == [7, 4, 1, 0]  # from the end on
    assert masks == [[1, 0, 0, 0, 1]] * 3 + [[0, 0, 1, 1, 1]]  # an anchor, and what comes next
    (done,) = [event for event in events if isinstance(event, WindowDone)]
    again = [event.frames for event in pipe.run(request, done.latents) if isinstance(event, FramesDecoded)]
    assert np.array_equal(np.concatenate(again), frames)


def test_a_loop_leads_back(pipe: Pipeline) -> None:
    frames = frames_of(pipe, Request(prompt=STILL, loop=True, num_inference_steps=8))
    assert len(frames) == 17 + 8
    changes = np.abs(np.diff(np.concatenate([frames, frames[:1]]).astype(float), axis=0)).mean((1, 2, 3))
    assert changes[-1] < 4 * np.median(changes) + 4


def test_a_film_is_made_anew(pipe: Pipeline, film: Path) -> None:
    given = np.stack(list(read_clip(film, width=128, height=128, fps=16, how="crop"))).astype(float)
    green = "a large green ball stays still on a plain navy background, flat style"
    apart = {}
    for strength in (0.2, 0.9):
        made = frames_of(pipe, Request(prompt=green, remix=str(film), strength=strength, num_inference_steps=10))
        assert len(made) == 17
        apart[strength] = np.abs(made - given).mean()
    assert apart[0.2] < apart[0.9] and apart[0.2] < 12
    request = Request(prompt=green, remix=str(film), strength=0.5, num_frames=41, **QUICK)
    steps = [event for event in pipe.run(request) if type(event).__name__ == "StepDone"]
    assert len(steps) == steps[0].total == 2 * 3  # two of four steps, in three windows


def test_pictures_come_where_they_are_asked_for(pipe: Pipeline, tmp_path: Path) -> None:
    for name, colour in (("first", (30, 60, 200)), ("last", (220, 40, 40))):
        Image.new("RGB", (64, 64), colour).save(tmp_path / f"{name}.png")
    images = (Still(str(tmp_path / "first.png")), Still(str(tmp_path / "last.png"), -1))
    frames = frames_of(pipe, Request(prompt=PROMPT, images=images, **QUICK))
    assert frames[0, ..., 2].mean() > frames[0, ..., 0].mean()
    assert frames[-1, ..., 0].mean() > frames[-1, ..., 2].mean()
    same = frames_of(pipe, Request(prompt=PROMPT, image=str(tmp_path / "first.png"), **QUICK))
    again = frames_of(pipe, Request(prompt=PROMPT, images=images[:1], **QUICK))
    assert np.array_equal(same, again)


def test_a_piece_of_the_beginning_is_encoded_as_the_whole_is(pipe: Pipeline) -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)
    geometry = pipe.bundle.manifest.geometry

    def encoded(piece: Piece) -> dict[int, np.ndarray]:
        return encode_piece(pipe.device, lambda name: pipe.device.open(pipe.bundle, name, "fp32"), geometry, piece)

    whole = encoded(Piece(frames, 0))
    assert sorted(whole) == [0, 1, 2]
    part = encoded(Piece(frames[:3], 0))  # its last frame stands for the rest of the latent frame
    assert sorted(part) == [0, 1] and np.allclose(part[0], whole[0], atol=1e-4)
    later = encoded(Piece(frames, 6))  # frames 6 to 14, of latent frames 2 to 4
    assert sorted(later) == [2, 3, 4]


def test_prompts_follow_each_other(pipe: Pipeline) -> None:
    cues = (Cue(1.5, "a small green star stays still on a plain white background, flat style"),)
    told = frames_of(pipe, Request(prompt=PROMPT, cues=cues, num_frames=41, num_inference_steps=8))
    plain = frames_of(pipe, Request(prompt=PROMPT, num_frames=41, num_inference_steps=8))
    assert not np.array_equal(told[-12:], plain[-12:])
    beyond = Request(prompt=PROMPT, cues=(Cue(9.0, "a ball"),), num_frames=41, num_inference_steps=8)
    with pytest.warns(UserWarning, match=r"a prompt that begins at 9 s has no part in a film of 2\.6 s"):
        fewer = frames_of(pipe, beyond)
    assert np.array_equal(fewer, plain)  # it never comes to that


def test_a_run_goes_on_to_the_same_film(pipe: Pipeline) -> None:
    request = Request(prompt=PROMPT, num_frames=41, **QUICK)
    whole, made = [], []
    for event in pipe.run(request):
        if isinstance(event, FramesDecoded):
            whole.append(event.frames)
        elif isinstance(event, WindowDone):
            made.append(event.latents)
    for count in range(1, len(made) + 1):
        events = list(pipe.run(request, np.concatenate(made[:count], axis=2)))
        again = [event.latents for event in events if isinstance(event, WindowDone)]
        assert all(np.array_equal(a, b) for a, b in zip(made, again, strict=True))
        frames = [event.frames for event in events if isinstance(event, FramesDecoded)]
        assert np.array_equal(np.concatenate(frames), np.concatenate(whole))
    decoded = np.concatenate([event.frames for event in pipe.decode(np.concatenate(made, axis=2))])
    assert np.abs(decoded.astype(int) - np.concatenate(whole)).max() <= 1


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"window": 18}, "Use --window 17"),
        ({"overlap": 6}, "Use --overlap 5"),
        ({"overlap": 1, "anchor": True}, "Use --overlap 5 or more"),
        ({"cuts": True}, "Use --prompts FILE"),
        ({"cuts": True, "cues": (Cue(1.0, STILL),), "loop": True}, "Leave out other films and --loop"),
        ({"remix": "film.mp4", "anchor": True}, "Leave out --anchor"),
        ({"overlap": 17}, "Use --overlap 13"),
        ({"before": "x.mp4", "num_frames": 9}, "4·k frames after a film"),
        ({"before": "none.mp4"}, "none.mp4' cannot be opened"),
        ({"images": (Still("x.png", 17),)}, "x.png@17: the video has frames 0 to 16"),
        ({"remix": "x.mp4", "strength": 0.0}, "Use --strength 0.6"),
        ({"remix": "x.mp4", "after": "x.mp4"}, "cannot be continued as well"),
        ({"loop": True, "after": "x.mp4"}, "Leave out --loop"),
        ({"cues": (Cue(2.0, "a"), Cue(1.0, "b"))}, "Put them in order"),
        ({"cues": (Cue(1.0, "ball " * 1000),)}, "tokens"),
    ],
)
def test_what_cannot_be_done_is_said_first(pipe: Pipeline, fields: dict[str, object], said: str) -> None:
    with pytest.raises(RequestError) as caught:
        next(event for event in pipe.run(Request(prompt=PROMPT, **fields)) if not isinstance(event, str))
        list(pipe.run(Request(prompt=PROMPT, **fields)))
    assert said in str(caught.value)


def test_the_command_line(film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video, kept = tmp_path / "out.mp4", tmp_path / "film.safetensors"
    options = ["--steps", "4", "--guidance", "1", "--json", "--frames", "29", "--latents", str(kept)]
    assert main(["generate", PROMPT, *options, "-o", str(video)]) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["num_frames"] == 29
    data = video.read_bytes()
    assert main(["generate", PROMPT, *options, "-o", str(video), "--force", "--resume"]) == 0
    assert video.read_bytes() == data
    capsys.readouterr()
    changed = [*options[:-4], "--frames", "33", *options[-2:]]
    assert main(["generate", PROMPT, *changed, "-o", str(video), "--force", "--resume"]) == 3
    assert "num_frames 29, expected 33" in capsys.readouterr().err
    assert video.read_bytes() == data
    assert main(["decode", str(kept), "-o", str(tmp_path / "again.gif"), "--fps", "4"]) == 0
    assert main(["decode", str(film), "-o", str(tmp_path / "no.gif")]) == 3
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("0:02 a small green star stays still on a plain white background, flat style\n\n")
    still = tmp_path / "still.png"
    Image.new("RGB", (80, 40), (20, 200, 90)).save(still)
    more = ["--image", f"{still}@-1", "--fit", "pad", "--prompts", str(prompts), "--steps", "2", "--json"]
    assert main(["generate", PROMPT, *more, "--seconds", "4", "-o", str(tmp_path / "more.mp4")]) == 0
    capsys.readouterr()
    prompts.write_text("two seconds in, a star\n")
    assert main(["generate", PROMPT, *more, "-o", str(tmp_path / "no.mp4")]) == 2
    assert "line 1: expected a time and a prompt" in capsys.readouterr().err
    several = ["-k", "2", "--seed", "4", "--steps", "1", "--frames", "5", "-o", str(tmp_path / "k.mp4"), "--json"]
    assert main(["generate", PROMPT, *several, "--sheet", str(tmp_path / "k.png")]) == 0
    assert [video["seed"] for video in json.loads(capsys.readouterr().out)["videos"]] == [4, 5]
    assert (tmp_path / "k-4.mp4").exists() and (tmp_path / "k-5.json").exists() and (tmp_path / "k.png").exists()
    assert (
        main(["generate", PROMPT, "--remix", str(film), "--steps", "2", "-o", str(tmp_path / "r.mp4"), "--json"]) == 0
    )
    assert json.loads(capsys.readouterr().out)["num_frames"] == 17
    assert main(["generate", PROMPT, "--join", str(film), str(film), "--extend", str(film)]) == 2


def test_a_bundle_without_an_encoder_says_so(pipe: Pipeline, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    manifest = pipe.bundle.manifest
    import msgspec

    components = {name: one for name, one in manifest.components.items() if not name.startswith("encoder")}
    bundle = Bundle(pipe.bundle.path, msgspec.structs.replace(manifest, components=components), "0", pipe.bundle._files)
    with pytest.raises(RequestError, match="has no encoder"):
        list(Pipeline(bundle, pipe.device).run(Request(prompt=PROMPT, image=str(tmp_path / "a.png"))))
