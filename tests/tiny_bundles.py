"""Bundles of a graph that adds three numbers: all that opening, refusing and writing bundles need."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper
from safetensors.numpy import save_file

from kinograph.bundle import BundleWriter
from kinograph.manifest import (
    Component,
    Conditioning,
    Defaults,
    Expert,
    Geometry,
    Manifest,
    Solver,
    Source,
    Tensor,
    Text,
    Variant,
)

GRAPH = "step/fp32/model.onnx"
WEIGHTS = "step/fp32/model.safetensors"
TOKENIZER = "tokenizer.json"
BIAS = np.arange(3, dtype=np.float32).reshape(3, 1)


def a_manifest(**changes: Any) -> Manifest:
    sample = Tensor(name="sample", dtype="float32", shape=(1, 3, "F"))
    variant = Variant(
        graph=GRAPH,
        weights=(WEIGHTS,),
        inputs=(sample,),
        outputs=(Tensor(name="next_sample", dtype="float32", shape=(1, 3, "F")),),
    )
    fields: dict[str, Any] = {
        "format_version": 1,
        "name": "tiny",
        "family": "test",
        "source": Source(checkpoint="none", pipeline="TestPipeline", exporter="tests"),
        "geometry": Geometry(channels=3, spatial=8, temporal=4, patch=2, positions=1024),
        "defaults": Defaults(width=32, height=32, num_frames=5, fps=8.0, num_inference_steps=2),
        "solver": Solver(name="euler", shift=3.0),
        "conditioning": Conditioning(kind="clean"),
        "text": Text(tokenizer=TOKENIZER, length=8, dim=4, cleaning=("whitespace",)),
        "experts": (Expert(component="step"),),
        "components": {"step": Component(variants={"fp32": variant})},
        "files": {},
    }
    return Manifest(**{**fields, **changes})


def a_graph(weights: Path) -> ModelProto:
    """sample + bias, with the bias in `weights`, a safetensors file beside the graph."""
    with weights.open("rb") as stream:
        (header_size,) = struct.unpack("<Q", stream.read(8))
        begin, end = json.loads(stream.read(header_size))["bias"]["data_offsets"]
    bias = TensorProto(name="bias", data_type=TensorProto.FLOAT, dims=[3, 1], data_location=TensorProto.EXTERNAL)
    place = {"location": weights.name, "offset": 8 + header_size + begin, "length": end - begin}
    for key, value in place.items():
        bias.external_data.add(key=key, value=str(value))
    graph = helper.make_graph(
        [helper.make_node("Add", ["sample", "bias"], ["next_sample"])],
        "step",
        [helper.make_tensor_value_info("sample", TensorProto.FLOAT, [1, 3, "frames"])],
        [helper.make_tensor_value_info("next_sample", TensorProto.FLOAT, [1, 3, "frames"])],
        [bias],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def write_bundle(path: Path, *, bias: np.ndarray[Any, Any] = BIAS, force: bool = False, **changes: Any) -> Path:
    with BundleWriter(path, force=force) as writer:
        weights = writer.file(WEIGHTS)
        save_file({"bias": bias}, weights)
        writer.file(GRAPH).write_bytes(a_graph(weights).SerializeToString())
        writer.file(TOKENIZER).write_text(json.dumps({"model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}}}))
        writer.save(a_manifest(**changes))
    return path
