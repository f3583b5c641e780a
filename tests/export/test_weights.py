"""Weights on their way into a bundle."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import onnx_ir as ir
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file

from kinograph.bundle.weights import WeightFile
from kinograph.errors import BundleError
from kinograph.export.weights import Checkpoint, CheckpointTensor

pytestmark = pytest.mark.export


def model(*tensors: ir.TensorProtocol) -> ir.Model:
    """A graph of initializers alone."""
    values = [
        ir.Value(name=t.name, const_value=t, shape=ir.Shape(t.shape), type=ir.TensorType(t.dtype)) for t in tensors
    ]
    graph = ir.Graph([], [], nodes=[], initializers=values, opset_imports={"": 23})
    return ir.Model(graph, ir_version=11)


def from_checkpoint(name: str, value: torch.Tensor, dtype: ir.DataType = ir.DataType.FLOAT) -> CheckpointTensor:
    return CheckpointTensor(name, dtype, value.shape, lambda: value)


def test_a_weight_file_is_readable_safetensors(tmp_path: Path) -> None:
    weight = torch.randn(300, 7)
    tensor = from_checkpoint("w", weight)
    constant = ir.tensor(np.arange(2000, dtype=np.int64), name="table")
    file = WeightFile("model.safetensors")
    file.claim(model(tensor.permuted("w.transposed", [1, 0]), from_checkpoint("half", weight, ir.DataType.FLOAT16)))
    file.claim(model(constant, ir.tensor(np.zeros(3, np.float32), name="small")))
    assert list(file.write(tmp_path))[-1] == file.size == (tmp_path / "model.safetensors").stat().st_size
    stored = load_file(tmp_path / "model.safetensors")
    assert sorted(stored) == ["half", "table", "w.transposed"]
    assert np.array_equal(stored["w.transposed"], weight.numpy().T)
    assert np.array_equal(stored["half"], weight.numpy().astype(np.float16))
    for name, external in file.external().items():
        raw = (tmp_path / "model.safetensors").read_bytes()[external.offset : external.offset + external.length]
        assert raw == stored[name].tobytes()
        assert external.offset % external.dtype.itemsize == 0


def test_blocks_of_rows_add_up_to_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kinograph.export.weights._BLOCK_BYTES", 1000)
    weight = torch.randn(123, 11)
    tensor = from_checkpoint("w", weight).permuted("t", [1, 0])
    blocks = list(tensor.blocks())
    assert len(blocks) > 1
    assert torch.equal(torch.cat(blocks), weight.T)


def test_constants_of_one_name_and_two_values_are_both_kept(tmp_path: Path) -> None:
    graphs = [model(ir.tensor(np.full(500, value, np.float32), name="val_1")) for value in (1, 2, 1)]
    file = WeightFile("model.safetensors")
    for graph in graphs:
        file.claim(graph)
    list(file.write(tmp_path))
    stored = load_file(tmp_path / "model.safetensors")
    names = [next(iter(graph.graph.initializers)) for graph in graphs]
    assert [stored[name][0] for name in names] == [1, 2, 1]
    assert names[0] == names[2] != names[1]


def test_shards_are_read_through_their_index(tmp_path: Path) -> None:
    values = {"a": torch.randn(3), "b": torch.randn(4)}
    for index, (name, value) in enumerate(values.items()):
        save_file({name: value}, tmp_path / f"model-{index}.safetensors")
    weight_map = {"a": "model-0.safetensors", "b": "model-1.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    checkpoint = Checkpoint(tmp_path)
    assert all(torch.equal(checkpoint.read(name), value) for name, value in values.items())
    assert "c" not in checkpoint


@pytest.mark.parametrize("index", ["[]", "{}", "not json", '{"weight_map": {"a": "../elsewhere.safetensors"}}'])
def test_a_bad_index_is_refused(index: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(BundleError, match="index"):
        Checkpoint(tmp_path)


def test_a_weight_of_another_shape_is_refused() -> None:
    tensor = CheckpointTensor("w", ir.DataType.FLOAT, (2, 3), lambda: torch.zeros(3, 2))
    with pytest.raises(BundleError, match=r"w has shape \(3, 2\)"):
        list(tensor.blocks())
