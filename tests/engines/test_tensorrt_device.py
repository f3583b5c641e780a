"""The loop on TensorRT, on a GPU that is not there: what is launched, with which addresses, and what is given back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import save_file

import kinograph
from kinograph.bundle import Bundle
from kinograph.engines.bundled import write_engines
from kinograph.engines.cache import EngineCache
from kinograph.engines.fake_gpu import FakeGpu
from kinograph.engines.fake_tensorrt import FakeToolkit
from kinograph.engines.ort import OrtDevice
from kinograph.engines.tensorrt_device import TensorRTDevice
from kinograph.errors import BundleError, Interrupted, KinographError, MemoryLimitError
from kinograph.runtime.adapted import AdaptedBundle
from kinograph.runtime.locate import open_bundle, starter_bundle
from kinograph.runtime.pipeline import Pipeline

REQUEST = kinograph.Request(prompt="a red ball moves left", num_frames=5, num_inference_steps=4, seed=3)


class Rig:
    """A pipeline on a fake GPU, with everything that a test looks at."""

    def __init__(
        self,
        folder: Path,
        *,
        path: Path | None = None,
        opened: Bundle | None = None,
        computes: bool = True,
        times: bool = False,
        total: int = 1 << 30,
        **options: object,
    ) -> None:
        self.gpu = FakeGpu(total)
        self.bundle = bundle = opened or open_bundle(None if path is None else str(path))
        self.toolkit = FakeToolkit(self.gpu, bundle, computes=computes, times=times)
        self.cache = EngineCache(folder)
        self.device = TensorRTDevice(self.gpu, self.toolkit, self.cache, **{"longest": 60.0, **options})
        self.pipe = Pipeline(bundle, self.device, "fp32")

    def frames(self, request: kinograph.Request = REQUEST) -> np.ndarray:
        return np.concatenate([e.frames for e in self.pipe.run(request) if isinstance(e, kinograph.FramesDecoded)])

    def left_over(self) -> list[int]:
        """Bytes, graphs, plans and contexts that nobody gave back."""
        sizes = sum(array.size for array in self.gpu.allocated.values())
        return [sizes, len(self.gpu.graphs), self.toolkit.plans, self.toolkit.contexts]


@contextmanager
def rigged(folder: Path, **options: object) -> Iterator[Rig]:
    rig = Rig(folder, **options)
    try:
        yield rig
    finally:
        rig.pipe.close()
    assert rig.left_over() == [0, 0, 0, 0]


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    with Pipeline(open_bundle(None), OrtDevice(threads=1), "fp32") as pipe:  # as the fake computes, to the bit
        frames = [e.frames for e in pipe.run(REQUEST) if isinstance(e, kinograph.FramesDecoded)]
    return np.concatenate(frames)


def test_the_loop_is_one_graph_and_makes_the_same_video(tmp_path: Path, expected: np.ndarray) -> None:
    with rigged(tmp_path) as rig:
        assert np.array_equal(rig.frames(), expected)
        assert rig.gpu.log.count("capture") == rig.gpu.log.count("launch") == 1
        assert np.array_equal(rig.frames(), expected)
        assert rig.gpu.log.count("capture") == 1, "the second run finds the graph of the first"
        assert rig.gpu.log.count("launch") == 2


def test_another_seed_and_prompt_replay_the_same_graph(tmp_path: Path, expected: np.ndarray) -> None:
    with rigged(tmp_path) as rig:
        rig.frames()
        other = rig.frames(kinograph.Request(prompt="a blue star", num_frames=5, num_inference_steps=4, seed=4))
        assert rig.gpu.log.count("capture") == 1
        assert not np.array_equal(other, expected)
        assert np.array_equal(rig.frames(), expected)


def test_cancelling_ends_a_build_and_nothing_else_is_tried(tmp_path: Path, expected: np.ndarray) -> None:
    with rigged(tmp_path) as rig:
        events = rig.pipe.run(REQUEST)
        assert next(events) == kinograph.StageStarted("build", "text_encoder (fp32)")
        rig.pipe.cancel()
        with pytest.raises(Interrupted):
            next(events)
        assert rig.toolkit.built == []
        assert np.array_equal(rig.frames(), expected)


def test_without_graphs_the_same_video(tmp_path: Path, expected: np.ndarray) -> None:
    with rigged(tmp_path, graphs=False) as rig:
        assert np.array_equal(rig.frames(), expected)
        assert "capture" not in rig.gpu.log


def test_a_graph_holds_no_more_than_there_is_time_for(tmp_path: Path, expected: np.ndarray) -> None:
    with rigged(tmp_path, longest=0.0) as rig:  # every step is too long
        assert np.array_equal(rig.frames(), expected)
        assert "capture" not in rig.gpu.log
    with rigged(tmp_path) as rig:
        steps = [event.index for event in rig.pipe.run(REQUEST) if isinstance(event, kinograph.StepDone)]
        assert steps == [3], "several steps in a launch are told as the last of them"


def test_with_a_lora_the_step_alone_is_another_engine(tmp_path: Path, expected: np.ndarray) -> None:
    layer, file = "transformer.blocks.0.attn1.to_q.lora", tmp_path / "style.safetensors"
    up, down = np.random.default_rng(0).standard_normal((2, 256, 4)).astype("f")
    save_file({f"{layer}_A.weight": np.ascontiguousarray(down.T), f"{layer}_B.weight": up}, file)
    with rigged(tmp_path) as rig:
        assert np.array_equal(rig.frames(), expected)
    for built in (["step"], []):
        with rigged(tmp_path, opened=AdaptedBundle(open_bundle(None), [kinograph.Lora(file)])) as rig:
            assert not np.array_equal(rig.frames(), expected)
            assert [component for component, _ in rig.toolkit.built] == built
    with rigged(tmp_path) as rig:
        assert np.array_equal(rig.frames(), expected)
        assert rig.toolkit.built == []


def test_a_speed_level_that_guides_some_steps_is_one_graph_too(tmp_path: Path) -> None:
    request = kinograph.Request(prompt="a red ball moves left", num_frames=5, seed=3, speed="balanced")
    with kinograph.load(device="cpu", variant="fp32") as pipe:
        expected = np.concatenate([e.frames for e in pipe.run(request) if isinstance(e, kinograph.FramesDecoded)])
    with rigged(tmp_path) as rig:
        assert np.array_equal(rig.frames(request), expected)
        assert rig.gpu.log.count("launch") == 1


def test_weights_beyond_the_budget_stream_and_nothing_else_changes(tmp_path: Path, expected: np.ndarray) -> None:
    budget = 8 << 20
    with rigged(tmp_path, weight_budget=budget) as rig:
        assert np.array_equal(rig.frames(), expected)
        assert "capture" not in rig.gpu.log, "what copies weights may allocate, which no graph can hold"
        assert rig.toolkit.budgets["step"] == budget
        assert rig.toolkit.budgets["decoder_first"] is None, "it fits"
        axes = dict.fromkeys("BLFHW", 1)
        assert rig.device.footprint(rig.bundle, "step", "fp32", axes).weights == budget
    with rigged(tmp_path) as rig:
        rig.frames()
        assert [component for component, _ in rig.toolkit.built] == ["step"], "one that streams is another engine"


def test_what_was_timed_for_one_engine_is_there_for_the_next(tmp_path: Path) -> None:
    with rigged(tmp_path, computes=False, times=True) as rig:
        rig.frames()
        timings = rig.cache.timings(rig.cache.cards()[0].origin)
        assert timings == "".join(component for component, _ in rig.toolkit.built).encode()
        rig.cache.clean()
        assert not list(rig.cache.folder.glob("*.timings"))


def test_stopping_between_launches_gives_everything_back(tmp_path: Path) -> None:
    with rigged(tmp_path, computes=False, longest=0.0) as rig:
        events = rig.pipe.run(REQUEST)
        next(event for event in events if isinstance(event, kinograph.StepDone))
        events.close()


def test_whatever_fails_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call to CUDA or TensorRT fails once: the error is ours, and closing gives everything back."""
    with rigged(tmp_path, computes=False) as rig:
        before = rig.gpu.calls
        rig.frames()
        calls = rig.gpu.calls
    with open_bundle(None) as opened, monkeypatch.context() as patch:
        patch.setattr(opened, "close", lambda: None)  # verified once: that is most of the time
        for failing in range(before + 1, calls + 1):
            with rigged(tmp_path / str(failing), opened=opened, computes=False) as rig:
                rig.gpu.fail_at = failing
                with pytest.raises(KinographError):
                    rig.frames()
    assert calls - before > 50


def test_a_run_that_failed_can_be_tried_again(tmp_path: Path, expected: np.ndarray) -> None:
    with rigged(tmp_path) as rig:
        rig.gpu.fail_at = 40
        with pytest.raises(KinographError, match="fails, as it was told to"):
            rig.frames()
        assert np.array_equal(rig.frames(), expected)


def test_engines_are_built_once_and_found_again(tmp_path: Path) -> None:
    with rigged(tmp_path, computes=False) as rig:
        stages = [e for e in rig.pipe.run(REQUEST) if isinstance(e, kinograph.StageStarted) and e.name == "build"]
        built = [component for component, _ in rig.toolkit.built]
        assert built == ["text_encoder", "step", "decoder_first", "decoder_next"]
        assert [stage.detail.split()[0] for stage in stages] == built
    with rigged(tmp_path, computes=False) as rig:
        rig.frames()
        assert rig.toolkit.built == []
    with rigged(tmp_path, computes=False) as rig:
        rig.gpu.capability = 120
        rig.frames()
        assert len(rig.toolkit.built) == 4, "another GPU has other engines"


def test_other_sizes_have_their_own_engines(tmp_path: Path) -> None:
    with rigged(tmp_path, computes=False) as rig:
        rig.frames()
        rig.toolkit.built.clear()
        longer = kinograph.Request(prompt="a red ball moves left", num_frames=9, num_inference_steps=2)
        assert len(rig.frames(longer)) == 9
        assert [component for component, _ in rig.toolkit.built] == ["step", "decoder_next"]


def test_memory_that_is_short_is_said(tmp_path: Path) -> None:
    with (
        rigged(tmp_path, computes=False, total=1 << 20) as rig,
        pytest.raises(MemoryLimitError, match=r"cuda:0 has 1\.0 MB"),
    ):
        rig.frames()


def test_more_videos_take_no_more_memory_than_one(tmp_path: Path) -> None:
    with rigged(tmp_path, computes=False) as rig:
        rig.frames()
        held = rig.device.memory.held
        for seed in range(20):
            rig.frames(msgspec.structs.replace(REQUEST, seed=seed))
        assert rig.device.memory.held == held


@pytest.mark.export
def test_two_experts_take_turns_on_the_gpu(tmp_path: Path, tiny_bundle: Callable[..., Path]) -> None:
    path = tiny_bundle("t2v-a14b")
    request = kinograph.Request(prompt="a cat", num_frames=5, num_inference_steps=6, width=32, height=32, seed=2)
    with Pipeline(open_bundle(str(path)), OrtDevice(threads=1), "fp32") as pipe:
        expected = [e.frames for e in pipe.run(request) if isinstance(e, kinograph.FramesDecoded)]
    with rigged(tmp_path, path=path) as rig:
        assert np.array_equal(rig.frames(request), np.concatenate(expected))
        captured = rig.gpu.log.count("capture")
        assert np.array_equal(rig.frames(request), np.concatenate(expected))
        assert rig.gpu.log.count("capture") == captured <= 2
        assert {component for component, _ in rig.toolkit.built} >= {"step", "step_2"}


@pytest.fixture
def carrying(tmp_path: Path) -> Path:
    """A copy of the starter with its engines in it."""
    path = tmp_path / "starter"
    shutil.copytree(starter_bundle(), path)
    with rigged(tmp_path / "built", path=path, computes=False) as rig:
        rig.frames()
        cards = rig.cache.cards()
        write_engines(rig.bundle, cards, rig.cache)
        write_engines(rig.bundle, cards, rig.cache)  # again is as good as once
    assert len(cards) == 4
    return path


def test_engines_in_the_bundle_need_no_building(tmp_path: Path, carrying: Path, expected: np.ndarray) -> None:
    with rigged(tmp_path / "empty", path=carrying) as rig:
        assert len(rig.bundle.manifest.engines) == 4
        assert np.array_equal(rig.frames(), expected)
        assert rig.toolkit.built == []
        rig.frames(msgspec.structs.replace(REQUEST, num_frames=9))
        assert rig.toolkit.built, "those in the bundle take five frames alone"


def test_engines_of_another_builder_or_graph_are_passed_over(tmp_path: Path, carrying: Path) -> None:
    document = json.loads((carrying / "bundle.json").read_text())
    for engine, other in zip(document["engines"], ("builder", "sources", "capability", "kinograph"), strict=True):
        engine[other] = {"builder": "TensorRT 1", "sources": "0" * 64, "capability": 86, "kinograph": "9"}[other]
    (carrying / "bundle.json").write_text(json.dumps(document))
    with rigged(tmp_path / "empty", path=carrying, computes=False) as rig:
        rig.frames()
        assert len(rig.toolkit.built) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda engine: engine.update(file="engines/other.engine"), "is not in files"),
        (lambda engine: engine.update(file="tokenizer.json"), "ends in .engine"),
        (lambda engine: engine.update(precision="int3"), "in int3"),
        (lambda engine: engine["axes"].update(H=[9, 8]), "the least size first"),
        (lambda engine: engine["axes"].update(Q=[1, 1]), "axes.Q"),
    ],
)
def test_a_bundle_whose_engines_do_not_fit_is_refused(carrying: Path, change: Any, message: str) -> None:
    document = json.loads((carrying / "bundle.json").read_text())
    change(document["engines"][0])
    (carrying / "bundle.json").write_text(json.dumps(document))
    with pytest.raises(BundleError, match=message):
        open_bundle(str(carrying))


def test_an_engine_that_was_altered_is_refused_with_its_bundle(carrying: Path) -> None:
    engine = next((carrying / "engines").iterdir())
    data = bytearray(engine.read_bytes())
    data[0] ^= 1
    engine.write_bytes(data)
    with pytest.raises(BundleError, match=engine.name):
        open_bundle(str(carrying))
