"""The pipeline on the built-in model, and on the fake engine."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import kinograph
from kinograph.engines.fake import FakeDevice
from kinograph.engines.ort import OrtDevice
from kinograph.errors import BundleError, EngineError, Interrupted, NumericError, RequestError, UsageError
from kinograph.runtime.codec import decode, encode
from kinograph.runtime.locate import BUILT_IN, find_bundle, open_bundle, starter_bundle
from kinograph.runtime.noise import Generator
from kinograph.runtime.pipeline import Pipeline

pytestmark = pytest.mark.skipif(not (starter_bundle() / "bundle.json").exists(), reason="no starter bundle")

PROMPT = "a large red ball moves left on a plain navy background, flat style"
SHORT = kinograph.Request(prompt=PROMPT, num_frames=5, num_inference_steps=2, seed=1)


def test_one_seed_makes_one_video() -> None:
    with kinograph.load() as pipe:
        first, again = (pipe(PROMPT, num_frames=5, num_inference_steps=2, seed=1) for _ in range(2))
        other = pipe(PROMPT, num_frames=5, num_inference_steps=2, seed=2)
    assert first.frames.shape == (5, first.frames.shape[1], first.frames.shape[2], 3)
    assert np.array_equal(first.frames, again.frames)
    assert not np.array_equal(first.frames, other.frames)
    assert first.metadata["prompt"] == PROMPT


@pytest.mark.parametrize("name", list(BUILT_IN))
def test_a_folder_that_is_no_bundle_does_not_hide_a_built_in_model(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    assert find_bundle(name) == starter_bundle(name)
    (tmp_path / name / "bundle.json").touch()
    assert find_bundle(name) == Path(name)


def test_events_come_in_order() -> None:
    with kinograph.load() as pipe:
        events = list(pipe.run(SHORT))
    stages = [event.name for event in events if isinstance(event, kinograph.StageStarted)]
    steps = [event.index for event in events if isinstance(event, kinograph.StepDone)]
    frames = [(event.index, len(event.frames)) for event in events if isinstance(event, kinograph.FramesDecoded)]
    assert stages == ["text", "denoise", "decode"]
    assert steps == [0, 1]
    assert frames == [(0, 1), (1, 4)]


def test_the_first_frame_is_there_before_the_last_is_decoded() -> None:
    with kinograph.load() as pipe:
        events = pipe.run(SHORT)
        first = next(event for event in events if isinstance(event, kinograph.FramesDecoded))
        assert first.index == 0
        assert first.index + len(first.frames) < first.total
        events.close()


def test_rows_of_guidance_can_run_one_after_the_other() -> None:
    """`partial` hands the weighted prediction of one row to the next: the sum is that of both at once."""
    rng = np.random.default_rng(0)
    with open_bundle(None) as bundle, OrtDevice() as device:
        from kinograph.runtime.binding import Binding

        engine = device.open(bundle, "step", "fp32")
        text = bundle.manifest.text
        rows = rng.normal(size=(2, text.length, text.dim)).astype(np.float32)
        weights = np.array([5.0, -4.0], np.float32)

        def predict(selected: slice, partial: np.ndarray | None) -> np.ndarray:
            count = len(weights[selected])
            with Binding(device, engine, {"B": count, "F": 2, "H": 4, "W": 4}) as binding:
                noise = np.random.default_rng(1).normal(size=binding["sample"].shape).astype(np.float32)
                binding.write("sample", noise)
                binding.write("timestep", np.array([500.0], np.float32))
                binding.write("text", rows[selected])
                binding.write("guidance", weights[selected])
                if partial is not None:
                    binding.write("partial", partial)
                binding.run()
                return binding["prediction"].read()

        both = predict(slice(0, 2), None)
        in_turn = predict(slice(1, 2), predict(slice(0, 1), None))
    assert np.abs(both - in_turn).max() < 1e-4 * np.abs(both).max()


def test_streamed_encode_and_decode_are_deterministic_and_whole() -> None:
    with open_bundle(None) as bundle, OrtDevice() as device:
        geometry = bundle.manifest.geometry
        latents = np.random.default_rng(0).normal(size=(1, geometry.channels, 3, 4, 6)).astype(np.float32)
        engines = [device.open(bundle, name, "fp32") for name in ("decoder_first", "decoder_next")]
        frames = np.concatenate(list(decode(device, *engines, latents)))
        assert frames.shape == (9, 4 * geometry.spatial, 6 * geometry.spatial, 3)
        prefix = np.concatenate(list(decode(device, *engines, latents[:, :, :2])))
        apart = np.abs(frames[:5].astype(int) - prefix)  # decoded in calls of other sizes, which may round otherwise
        assert apart.max() <= 1, "later latents must not change earlier frames"
        encoders = [device.open(bundle, name, "fp32") for name in ("encoder_first", "encoder_next")]
        chunks = [(frames[:1], np.ones(1, np.float32)), (frames[1:5], np.ones(4, np.float32))]
        encoded = list(encode(device, *encoders, chunks, {"H": 4, "W": 6}))
        assert [part.shape for part in encoded] == [(1, geometry.channels, 1, 4, 6)] * 2


def test_an_image_becomes_the_first_frame(picture: Path) -> None:
    with kinograph.load() as pipe:
        video = pipe(PROMPT, num_frames=5, num_inference_steps=2, image=str(picture))
        plain = pipe(PROMPT, num_frames=5, num_inference_steps=2)
    assert not np.array_equal(video.frames, plain.frames)


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_device_that_cannot_be_used_is_named(device: str) -> None:
    with pytest.raises(EngineError, match=device):
        kinograph.load(device=device)


def test_wrong_names_are_usage_errors() -> None:
    with pytest.raises(UsageError, match="auto"):
        kinograph.load(device="tpu")
    with pytest.raises(UsageError, match="fp32"):
        kinograph.load(variant="int3")
    with kinograph.load() as pipe, pytest.raises(UsageError, match="num_frames"):
        pipe(PROMPT, frames=5)


def test_bytes_are_taken_before_floats_where_they_are_faster_or_floats_fill_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for faster, memory, taken in ((True, 1 << 34, "int8"), (False, 1 << 34, "fp16"), (False, 1 << 20, "int8")):
        monkeypatch.setattr("kinograph.engines.ort.adds_bytes_exactly", lambda faster=faster: faster)
        monkeypatch.setattr("kinograph.engines.ort.memory_bytes", lambda memory=memory: memory)
        with kinograph.load("starter-few-steps", device="cpu") as pipe:
            assert pipe.variant["step"] == taken
            assert pipe.variant["encoder_next"] == "fp16"  # it has no other
        with kinograph.load("starter-few-steps", device="cpu", variant="int8") as pipe:
            assert pipe.variant["step"] == "int8"


def test_a_missing_bundle_names_where_it_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KINOGRAPH_BUNDLES", str(tmp_path))
    with pytest.raises(BundleError, match=str(tmp_path)):
        kinograph.load("no-such-model")


def test_a_bundle_is_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    shutil.copytree(starter_bundle(), tmp_path / "mine")
    monkeypatch.setenv("KINOGRAPH_BUNDLES", str(tmp_path))
    with kinograph.load("mine") as pipe:
        assert pipe.bundle.path == tmp_path / "mine"


def test_a_prompt_that_is_too_long_is_refused_before_any_work() -> None:
    with kinograph.load() as pipe, pytest.raises(RequestError, match="token"):
        pipe.resolve(kinograph.Request(prompt="ball " * 1000))


def test_nan_in_the_latents_names_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    device = FakeDevice()
    with Pipeline(open_bundle(None), device) as pipe:
        monkeypatch.setattr(Generator, "normal", lambda self, shape: np.full(shape, np.nan, np.float32))
        with pytest.raises(NumericError, match="after step 1 "):
            list(pipe.run(SHORT))


def test_engines_are_closed_with_the_pipeline() -> None:
    device = FakeDevice()
    with Pipeline(open_bundle(None), device) as pipe:
        list(pipe.run(SHORT))
        list(pipe.run(SHORT))
        assert device.opened == 4  # text encoder, step, and the two halves of the decoder, once
    assert device.closed == device.opened


def test_cancelling_a_run_frees_its_buffers_and_leaves_the_pipeline_usable() -> None:
    with Pipeline(open_bundle(None), FakeDevice()) as pipe:
        events = pipe.run(SHORT)
        next(event for event in events if isinstance(event, kinograph.StepDone))
        events.close()
        assert sum(isinstance(event, kinograph.FramesDecoded) for event in pipe.run(SHORT)) == 2


def test_a_run_that_is_cancelled_raises_and_leaves_the_pipeline_usable() -> None:
    with Pipeline(open_bundle(None), FakeDevice()) as pipe:
        pipe.cancel()  # where nothing runs
        events = pipe.run(SHORT)
        next(event for event in events if isinstance(event, kinograph.StepDone))
        pipe.cancel()
        with pytest.raises(Interrupted, match="cancelled"):
            next(events)
        assert sum(isinstance(event, kinograph.FramesDecoded) for event in pipe.run(SHORT)) == 2


@pytest.mark.parametrize("by", ["thread", "signal"])
def test_a_step_is_ended_while_it_runs(by: str) -> None:
    """One that would take many seconds: no step is done, and the next video is what it would have been."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    large = kinograph.Request(prompt=PROMPT, num_frames=33, num_inference_steps=1, width=512, height=512)
    with kinograph.load(device="cpu") as pipe:
        before = pipe(PROMPT, num_frames=5, num_inference_steps=1).frames
        events = pipe.run(large)
        while getattr(next(events), "name", "") != "denoise":
            pass
        handler = signal.signal(signal.SIGALRM, interrupt)
        timer = threading.Timer(0.3, pipe.cancel)
        try:
            if by == "thread":
                timer.start()
            else:
                signal.setitimer(signal.ITIMER_REAL, 0.3)
            with pytest.raises(Interrupted if by == "thread" else KeyboardInterrupt):
                next(events)
        finally:
            timer.cancel()
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, handler)
        assert np.array_equal(pipe(PROMPT, num_frames=5, num_inference_steps=1).frames, before)


def test_memory_of_decoding_does_not_grow_with_length() -> None:
    """Peak memory of a process that decodes 257 frames, against one that decodes 33."""
    script = """
import re, sys
from pathlib import Path
import numpy as np
from kinograph.engines.ort import OrtDevice
from kinograph.runtime.codec import decode
from kinograph.runtime.locate import open_bundle
with open_bundle(None) as bundle, OrtDevice() as device:
    engines = [device.open(bundle, name, "fp32") for name in ("decoder_first", "decoder_next")]
    shape = (1, bundle.manifest.geometry.channels, int(sys.argv[1]), 16, 16)
    latents = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    for frames in decode(device, *engines, latents):
        pass
# not ru_maxrss: that survives exec, so a child starts with the peak of the process that runs the tests
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""
    peaks = [
        int(subprocess.run([sys.executable, "-c", script, str(n)], check=True, capture_output=True, text=True).stdout)
        for n in (9, 65)
    ]
    print(f"peak memory: 33 frames {peaks[0]} kB, 257 frames {peaks[1]} kB")
    assert peaks[1] <= 1.1 * peaks[0]
