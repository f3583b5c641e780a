"""What was exported in 16 bits, as calibration reads it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from kinograph.bundle import Bundle
from kinograph.bundle.weights import WeightFile
from kinograph.calibration.floats import in_float32
from kinograph.calibration.layers import open_graph
from kinograph.calibration.loop import Loop
from kinograph.engines import open_device
from kinograph.errors import OutputError
from kinograph.runtime.locate import starter_bundle

HALF = onnx.TensorProto.FLOAT16


def silent(stage: str, done: int, total: int) -> None:
    assert 0 <= done <= total, stage


def test_16_bits_are_widened_without_a_change(tmp_path: Path) -> None:
    with Bundle.open(starter_bundle("starter-few-steps")) as bundle:
        floats = in_float32(bundle, tmp_path, silent)
        for name, component in bundle.manifest.components.items():
            wide = floats.component(name).variants["fp32"]
            assert set(component.variants) | {"fp32"} == set(floats.manifest.components[name].variants)
            assert {one.dtype for one in (*wide.inputs, *wide.outputs)} <= {"float32", "int64", "uint8"}
            model = onnx.load_model_from_string(floats.read(wide.graph))
            assert HALF not in {one.data_type for one in model.graph.initializer}
            assert HALF not in {a.i for node in model.graph.node if node.op_type == "Cast" for a in node.attribute}
            narrow = onnx.load_model_from_string(bundle.read(component.variants["fp16"].graph))
            assert {one.name for one in model.graph.initializer} == {one.name for one in narrow.graph.initializer}
        step = bundle.component("step").variants["fp16"]
        stored = np.frombuffer(bundle.map(step.weights[0]).tobytes()[-(1 << 20) :], np.float16)
        weights = open_graph(floats, "step", "fp32").weights
        held = np.concatenate([one.reshape(-1) for one in weights.values()])
        assert np.isin(stored.astype(np.float32), held).all()


def test_components_that_share_their_weights_share_the_widened_ones(tmp_path: Path) -> None:
    with Bundle.open(starter_bundle("starter-few-steps")) as bundle:
        floats = in_float32(bundle, tmp_path, silent)
        first, following = (floats.component(f"decoder_{one}").variants["fp32"].weights for one in ("first", "next"))
        assert first == following


def test_float32_is_left_alone(tmp_path: Path) -> None:
    with Bundle.open(starter_bundle("starter")) as bundle:
        floats = in_float32(bundle, tmp_path / "floats", silent)
        assert floats.manifest == bundle.manifest and not (tmp_path / "floats").exists()


def test_float16_gives_on_a_cpu_what_float32_gives(tmp_path: Path) -> None:
    """The checkpoint is in float16, so that nothing is rounded."""
    with Bundle.open(starter_bundle("starter-few-steps")) as bundle, open_device("cpu") as device:
        loop = Loop(in_float32(bundle, tmp_path, silent), device)
        halves, floats = (next(loop.embedded(["a red car moves right"], one)) for one in ("fp16", "fp32"))
        assert halves.dtype == floats.dtype == np.float32 and np.array_equal(halves, floats)


def test_a_full_disk_is_told_with_what_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> Iterator[int]:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        yield

    monkeypatch.setattr(WeightFile, "write", full)
    wanted = r"No space left on device. Its weights take [\d,]+ bytes: free some space"
    with Bundle.open(starter_bundle("starter-few-steps")) as bundle, pytest.raises(OutputError, match=wanted):
        in_float32(bundle, tmp_path, silent)
