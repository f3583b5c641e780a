"""Ahead-of-time TensorRT engines: every component of the starter builds, without a GPU, for GPUs that are not there."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from kinograph.bundle import Bundle
from kinograph.engines import tensorrt, tensorrt_module
from kinograph.engines.rewrites.symmetric import affine_to_symmetric, biases_to_float
from kinograph.engines.tensorrt_toolkit import TensorRT
from kinograph.errors import Interrupted, MissingExtraError, UsageError
from kinograph.manifest import Component, Tensor, Variant
from kinograph.runtime.locate import open_bundle

AXES = {"B": (1, 2), "L": (1, 40), "F": (5, 5), "H": (8, 8), "W": (8, 8)}
CODEC = AXES | {"F": (1, 4)}


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed")
    with open_bundle(None) as opened:
        yield opened


@pytest.mark.parametrize("component", ["text_encoder", "step", "encoder_first", "decoder_first", "decoder_next"])
def test_every_component_builds(bundle: Bundle, component: str) -> None:
    axes = CODEC if "coder_" in component else AXES
    built = tensorrt.build(bundle, component, "fp32", capability=89, axes=axes)
    assert len(built.plan) > 1_000_000
    assert built.activation_bytes > 100_000
    assert built.layers


@pytest.mark.parametrize("capability", [86, 120])
def test_it_builds_for_other_generations(bundle: Bundle, capability: int) -> None:
    assert capability in tensorrt.capabilities()
    assert tensorrt.build(bundle, "decoder_first", "fp32", capability=capability, axes=CODEC)


def test_what_cannot_be_built_is_said(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match=r"capability 70 cannot be built for; expected one of: 75, 80, 86, 89"):
        tensorrt.build(bundle, "step", "fp32", capability=70, axes=AXES)
    with pytest.raises(UsageError, match="no variant 'fp8'"):
        tensorrt.build(bundle, "step", "fp8", capability=89, axes=AXES)


def test_without_tensorrt_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_module, "_MODULES", {"rtx": ("no_such_module",), "tensorrt": ("nor_this",)})
    with pytest.raises(MissingExtraError, match=r"kinograph\[rtx\]"):
        TensorRT("rtx")
    with pytest.raises(UsageError, match="JetPack"):
        TensorRT("tensorrt")


def test_sixteen_bit_attention_is_one_kernel() -> None:
    """TensorRT's own account of the layers: `_gemm_mha_v2` is its fused attention."""
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed")
    for dtype in ("float16", "bfloat16", "float"):
        built = tensorrt.build(Attention(dtype), "step", "any", capability=89, axes={"F": (64, 1024)})
        assert any("mha" in layer for layer in built.layers) == (dtype != "float")


def test_weights_can_stream(bundle: Bundle) -> None:
    options = tensorrt.BuildOptions(streams=True)
    assert tensorrt.build(bundle, "text_encoder", "fp32", capability=89, axes=AXES, options=options).plan


def test_what_tensorrt_alone_can_is_asked_of_it() -> None:
    """The options that TensorRT for RTX knows by name and TensorRT by effect."""
    trt = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed")
    flags: list[object] = []
    config = SimpleNamespace(set_flag=flags.append)
    options = tensorrt.BuildOptions(later_versions=True, gpus="same-capability")
    tensorrt._set_options(trt, config, "tensorrt", 89, options)
    assert trt.BuilderFlag.VERSION_COMPATIBLE in flags
    assert config.hardware_compatibility_level == trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY


@pytest.mark.parametrize(
    ("given", "used"), [(b"mine", b"mine"), (b"another GPU's", b""), (b"broken", b""), (None, b"")]
)
def test_timings_of_another_gpu_are_left_out(given: bytes | None, used: bytes) -> None:
    attached: list[bytes] = []

    class Config:
        def create_timing_cache(self, data: bytes) -> bytes | None:
            return None if data == b"broken" else data

        def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
            fits = not ignore_mismatch and cache != b"another GPU's"
            attached.extend([cache] * fits)
            return fits

    assert tensorrt._set_timings(Config(), given) == used
    assert attached == [used]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, Interrupted])
def test_what_is_raised_meanwhile_ends_a_build(bundle: Bundle, kind: type[BaseException]) -> None:
    def progress(phase: str, done: int, total: int) -> None:
        raise kind("enough")

    with pytest.raises(kind, match="enough"):
        tensorrt.build(bundle, "text_encoder", "fp32", capability=89, axes=AXES, progress=progress)


def test_progress_is_told(bundle: Bundle) -> None:
    told: list[tuple[str, int, int]] = []
    tensorrt.build(bundle, "text_encoder", "fp32", capability=89, axes=AXES, progress=lambda *what: told.append(what))
    assert told
    assert all(0 < done <= total for _, done, total in told)


class Attention:
    """A component of nothing but attention over [1, F, 8 · 64], in place of a bundle."""

    def __init__(self, dtype: str) -> None:
        self._graph = f"""<ir_version: 11, opset_import: ["" : 23]>
            g ({dtype}[1,F,512] q, {dtype}[1,F,512] k, {dtype}[1,F,512] v) => ({dtype}[1,F,512] y) {{
                y = Attention <q_num_heads = 8, kv_num_heads = 8> (q, k, v)
            }}"""
        inputs = tuple(Tensor(name=name, dtype="float32", shape=(1, "F", 512)) for name in "qkv")
        output = Tensor(name="y", dtype="float32", shape=(1, "F", 512))
        variant = Variant(graph="model.onnx", weights=(), inputs=inputs, outputs=(output,))
        self._component = Component(variants={"any": variant})

    def component(self, name: str) -> Component:
        return self._component

    def read(self, name: str) -> bytes:
        return ir.to_proto(ir.from_onnx_text(self._graph)).SerializeToString()


def test_affine_activations_become_symmetric() -> None:
    model = ir.from_onnx_text(
        """<ir_version: 11, opset_import: ["" : 23]>
        g (float[4,16] x) => (float[4,16] y) <float scale = {0.02}, uint8 zero = {100}> {
            q = QuantizeLinear (x, scale, zero)
            y = DequantizeLinear (q, scale, zero)
        }"""
    )
    x = np.random.default_rng(0).uniform(-2.0, 3.1, (4, 16)).astype(np.float32)
    affine_to_symmetric(model, {})
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    step = 155 * 0.02 / 127
    assert np.abs(session.run(None, {"x": x})[0] - x).max() <= step / 2 + 1e-6
    assert {str(node.inputs[2].dtype) for node in model.graph} == {"INT8"}


def test_dequantised_biases_become_float() -> None:
    model = ir.from_onnx_text(
        """<ir_version: 11, opset_import: ["" : 23]>
        g (float[3] x) => (float[3] y) <int32[3] steps = {100, -7, 0}, float[3] scale = {0.5, 0.25, 1.0}> {
            bias = DequantizeLinear <axis = 0> (steps, scale)
            y = Add (x, bias)
        }"""
    )
    biases_to_float(model, {})
    assert [node.op_type for node in model.graph] == ["Add"]
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.zeros(3, np.float32)})[0].tolist() == [50.0, -1.75, 0.0]
