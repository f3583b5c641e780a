"""What an exported bundle looks like inside."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

pytest.importorskip("diffusers")

import torch

from kinograph.bundle import Bundle, verify
from kinograph.errors import BundleError, OutputError
from kinograph.export import ExportOptions, export, trace
from kinograph.export.families import read_plan
from kinograph.runtime.locate import open_bundle

pytestmark = [pytest.mark.export, pytest.mark.filterwarnings("ignore")]

FORBIDDEN = {"ScatterND", "ScatterElements", "SplitToSequence", "SequenceAt", "If", "Loop", "NonZero"}


def graphs(bundle: Bundle) -> dict[str, onnx.ModelProto]:
    return {
        name: onnx.load_model_from_string(bundle.read(next(iter(component.variants.values())).graph))
        for name, component in bundle.manifest.components.items()
    }


@pytest.mark.parametrize("kind", ["i2v", "ti2v"])
def test_graphs_hold_no_operator_that_tensorrt_refuses(kind: str, tiny_bundle: Callable[..., Path]) -> None:
    with open_bundle(tiny_bundle(kind)) as bundle:
        for name, graph in graphs(bundle).items():
            operators = {node.op_type for node in graph.graph.node}
            assert not operators & FORBIDDEN, name


def test_graphs_say_nothing_about_the_machine_they_were_made_on(tiny_bundle: Callable[..., Path]) -> None:
    with open_bundle(tiny_bundle("ti2v")) as bundle:
        for name, component in bundle.manifest.components.items():
            for variant in component.variants.values():
                data = bundle.read(variant.graph)
                assert str(Path.home()).encode() not in data, name
                assert b"site-packages" not in data, name


def test_first_and_next_share_one_weight_file(tiny_bundle: Callable[..., Path]) -> None:
    with open_bundle(tiny_bundle("ti2v")) as bundle:
        for direction in ("encoder", "decoder"):
            first, following = (
                bundle.component(f"{direction}_{part}").variants["fp32"].weights for part in ("first", "next")
            )
            assert first == following


def test_experts_of_one_architecture_are_traced_once_and_keep_their_weights(
    tiny_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    traces = functools.lru_cache(trace._exported.__wrapped__)
    monkeypatch.setattr(trace, "_exported", traces)
    plan = read_plan(tiny_checkpoint("t2v-a14b"))
    first, second = (
        next(iter(part.trace(torch.float32).values())) for part in plan.parts if part.folder.startswith("step")
    )
    assert (traces.cache_info().misses, traces.cache_info().hits) == (1, 1)
    graphs = [ir.to_proto(traced.model).graph for traced in (first, second)]
    assert [node.op_type for node in graphs[0].node] == [node.op_type for node in graphs[1].node]
    name = "denoiser.transformer.blocks.0.attn1.to_q.weight.transposed"
    weights = [traced.model.graph.initializers[name].const_value.numpy() for traced in (first, second)]
    assert weights[0].shape == weights[1].shape and not np.array_equal(*weights)


def test_parity_figures_are_in_the_manifest(tiny_bundle: Callable[..., Path]) -> None:
    manifest = verify(tiny_bundle("i2v"))
    for name, component in manifest.components.items():
        parity = component.variants["fp32"].parity
        assert parity is not None, name
        # frames are compared in levels of 255, everything else in the output's own units
        assert parity.max_abs <= (1 if name.startswith("decoder") else 1e-4), name


@pytest.mark.parametrize(("kind", "precision"), [("i2v", "fp16"), ("ti2v", "bf16")])
def test_half_precision_keeps_what_diffusers_keeps(kind: str, precision: str, tiny_bundle: Callable[..., Path]) -> None:
    with open_bundle(tiny_bundle(kind, precision)) as bundle:
        graph = graphs(bundle)["step"].graph
        half = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}[precision]
        types = {tensor.name: tensor.data_type for tensor in graph.initializer}
        for name, kind in types.items():
            if "scale_shift_table" in name or "time_embedder" in name or ".norm2." in name:
                assert kind == onnx.TensorProto.FLOAT, name
            elif name.endswith(("to_q.weight.transposed", "to_q.bias", "norm_q.weight", "patch_embedding.weight")):
                assert kind == half, name
        parity = bundle.component("step").variants[precision].parity
        assert parity is not None
        # rounding of the weights alone: 11 and 8 significant bits, through two blocks
        assert parity.rms / parity.scale < {"fp16": 0.01, "bf16": 0.05}[precision]


def test_an_existing_bundle_is_kept_without_force(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "mine.txt").write_text("keep me")
    with pytest.raises(OutputError, match="bundle"):
        export(tiny_checkpoint("t2v"), target)
    assert (target / "mine.txt").read_text() == "keep me"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "model_index.json").unlink(), "model_index.json"),
        (lambda folder: (folder / "model_index.json").write_text('{"_class_name": "FluxPipeline"}'), "FluxPipeline"),
        (lambda folder: (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink(), "safetensors"),
        (lambda folder: (folder / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"x" * 99), "safetensors"),
        (lambda folder: (folder / "scheduler" / "scheduler_config.json").write_text("[]"), "scheduler_config.json"),
    ],
)
def test_a_spoilt_checkpoint_is_named_and_leaves_nothing(
    spoil: Callable[[Path], object], words: str, tmp_path: Path
) -> None:
    from kinograph.export.families.wan.tiny import save_tiny_checkpoint

    checkpoint = save_tiny_checkpoint("t2v", tmp_path / "checkpoint")
    spoil(checkpoint)
    with pytest.raises(BundleError, match=words):
        export(checkpoint, tmp_path / "bundle", ExportOptions(parity=False))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]
