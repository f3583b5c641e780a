"""Every CPU rewrite computes what the portable graph computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort
import pytest

from kinograph.engines.host import adds_bytes_exactly
from kinograph.engines.rewrites import Rewrite
from kinograph.engines.rewrites.attention import attention_to_multi_head
from kinograph.engines.rewrites.attention16 import attention_to_16_bits
from kinograph.engines.rewrites.biased_products import biased_products_to_one_operator
from kinograph.engines.rewrites.channel_norm import channel_norm_to_convolution
from kinograph.engines.rewrites.halves import bfloat16_to_float32, float16_to_float32
from kinograph.engines.rewrites.narrow_convolution import narrow_convolution_to_frames
from kinograph.engines.rewrites.one_row import rows_of_tokens_to_one
from kinograph.engines.rewrites.rms_norm import rms_norm_to_simplified_layer_norm
from kinograph.engines.rewrites.stored_kernels import stored_kernels_to_floats
from kinograph.engines.rewrites.table import dequantise_tables
from kinograph.engines.rewrites.zero_points import zero_points_for_weights

Array = npt.NDArray[np.float32]

# float32 sums in another order
TOLERANCE = 2e-6


def session_of(model: ir.Model, exact: str = "0") -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", exact)
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    return ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(model: ir.Model, inputs: dict[str, Array]) -> Array:
    result: Array = session_of(model).run(None, inputs)[0]
    return result


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def attention(extra: str = "", attributes: str = "") -> ir.Model:
    return ir.from_onnx_text(
        f"""<ir_version: 11, opset_import: ["" : 23]>
        g (float[2,5,16] q, float[2,7,16] k, float[2,7,16] v{extra}) => (float[2,5,16] y) {{
            y = Attention <q_num_heads = 2, kv_num_heads = 2{attributes}> (q, k, v{", m" if extra else ""})
        }}"""
    )


def test_attention_becomes_multi_head_attention() -> None:
    rng = np.random.default_rng(0)
    inputs = {name: rng.normal(size=(2, 5 if name == "q" else 7, 16)).astype(np.float32) for name in "qkv"}
    expected = run(attention(), inputs)
    model = attention()
    attention_to_multi_head(model, {})
    assert operators(model) == ["MultiHeadAttention"]
    assert np.abs(run(model, inputs) - expected).max() < TOLERANCE


@pytest.mark.parametrize(
    ("extra", "attributes"), [(", float[5,7] m", ""), ("", ", is_causal = 1"), ("", ", softcap = 2.0")]
)
def test_other_attention_stays(extra: str, attributes: str) -> None:
    model = attention(extra, attributes)
    attention_to_multi_head(model, {})
    assert operators(model) == ["Attention"]


def test_rms_norm_becomes_simplified_layer_norm() -> None:
    text = """<ir_version: 11, opset_import: ["" : 23]>
        g (float[2,5,16] x, float[16] w) => (float[2,5,16] y) { y = RMSNormalization <epsilon = 0.001, axis = -1> (x,
        w) }"""
    rng = np.random.default_rng(0)
    inputs = {"x": rng.normal(size=(2, 5, 16)).astype(np.float32), "w": rng.normal(size=16).astype(np.float32)}
    expected = run(ir.from_onnx_text(text), inputs)
    model = ir.from_onnx_text(text)
    rms_norm_to_simplified_layer_norm(model, {})
    assert operators(model) == ["SimplifiedLayerNormalization"]
    assert np.abs(run(model, inputs) - expected).max() < TOLERANCE


@pytest.mark.parametrize(
    ("half", "rewrite"), [(ir.DataType.BFLOAT16, bfloat16_to_float32), (ir.DataType.FLOAT16, float16_to_float32)]
)
def test_a_graph_of_16_bits_runs_in_float32(half: ir.DataType, rewrite: Rewrite) -> None:
    model = ir.from_onnx_text(
        f"""<ir_version: 11, opset_import: ["" : 23]>
        g (float[3,4] x, float[4,2] w) => (float[3,2] y) {{
            a = Cast <to = {half.value}> (x)
            b = Cast <to = {half.value}> (w)
            c = MatMul (a, b)
            y = Cast <to = 1> (c)
        }}"""
    )
    rng = np.random.default_rng(0)
    held = rng.normal(size=(4, 2)).astype(half.numpy())
    weights: dict[str, Any] = {"held": held, "other": np.arange(3)}
    rewrite(model, weights)
    assert all(value.dtype == ir.DataType.FLOAT for node in model.graph for value in node.outputs if value.dtype)
    assert weights["held"].dtype == np.float32 and np.array_equal(weights["held"], held.astype(np.float32))
    assert weights["other"].dtype == np.int64
    x, w = rng.normal(size=(3, 4)).astype(np.float32), rng.normal(size=(4, 2)).astype(np.float32)
    assert np.abs(run(model, {"x": x, "w": w}) - x @ w).max() < TOLERANCE


def channel_norm(axes: str = "1", keepdims: int = 1, shape: str = "1,6,2,3,4") -> ir.Model:
    return ir.from_onnx_text(
        f"""<ir_version: 11, opset_import: ["" : 23]>
        g (float[{shape}] x) => (float y) <int64[1] axes = {{{axes}}}> {{
            y = ReduceL2 <keepdims = {keepdims}> (x, axes)
        }}"""
    )


@pytest.mark.parametrize("shape", ["1,6,2,3,4", "2,6,3,4", "1,6,T,3,W"])
def test_a_norm_over_channels_becomes_a_convolution(shape: str) -> None:
    sizes = [int(size) if size.isdigit() else 5 for size in shape.split(",")]
    x = {"x": np.random.default_rng(1).normal(size=sizes).astype(np.float32)}
    expected = run(channel_norm(shape=shape), x)
    model = channel_norm(shape=shape)
    channel_norm_to_convolution(model, {})
    assert operators(model) == ["Mul", "Conv", "Sqrt"]
    assert np.abs(run(model, x) - expected).max() < TOLERANCE


@pytest.mark.parametrize("change", [{"axes": "2"}, {"keepdims": 0}, {"shape": "1,C,2,3,4"}, {"shape": "6,6"}])
def test_other_norms_stay(change: dict[str, object]) -> None:
    model = channel_norm(**change)  # type: ignore[arg-type]
    channel_norm_to_convolution(model, {})
    assert operators(model) == ["ReduceL2"]


def with_constants(model: ir.Model, arrays: dict[str, npt.NDArray[np.generic]]) -> ir.Model:
    """The model with every input but its first a constant, or nothing at all."""
    for value in list(model.graph.inputs)[1:]:
        model.graph.inputs.remove(value)
        if value.name in arrays:
            value.const_value = ir.tensor(arrays[value.name], name=value.name)
            model.graph.initializers[value.name] = value
    return model


def convolution(
    shape: str = "1,6,T,8,8",
    made: int = 4,
    kernel: str = "3,3,3",
    bias: bool = True,
    attributes: str = "pads = [0,1,1,0,1,1]",
    groups: int = 1,
) -> ir.Model:
    """A convolution of x with random weights, which lie in the graph."""
    taken = int(shape.split(",")[1]) // groups
    sides = [int(side) for side in kernel.split(",")]
    model = ir.from_onnx_text(
        f"""<ir_version: 11, opset_import: ["" : 23]>
        g (float[{shape}] x, float[{made},{taken},{kernel}] w, float[{made}] b) => (float[B,O,F,H,W] y) {{
            y = Conv <group = {groups}, {attributes}> (x, w{", b" if bias else ""})
        }}"""
    )
    rng = np.random.default_rng(0)
    arrays = {"w": rng.normal(size=[made, taken, *sides]), "b": rng.normal(size=made)}
    return with_constants(model, {name: arrays[name].astype(np.float32) for name in ("w", "b")[: 1 + bias]})


@pytest.mark.parametrize("frames", [3, 6])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("kernel", "pads"), [("3,3,3", "0,1,1,0,1,1"), ("2,3,1", "0,2,0,0,1,0"), ("3,1,1", "0,0,0,0,0,0")]
)
def test_a_narrow_convolution_over_time_is_done_within_frames(frames: int, bias: bool, kernel: str, pads: str) -> None:
    model = convolution(kernel=kernel, bias=bias, attributes=f"pads = [{pads}]")
    x = {"x": np.random.default_rng(1).normal(size=(1, 6, frames, 8, 8)).astype(np.float32)}
    expected = run(model, x)
    narrow_convolution_to_frames(model, {})
    assert operators(model).count("Conv") == 1
    assert "Slice" in operators(model)
    assert "w" not in model.graph.initializers
    assert np.abs(run(model, x) - expected).max() < 10 * TOLERANCE


def test_a_narrow_convolution_may_have_its_weights_elsewhere_and_share_them() -> None:
    model = convolution()
    kernel = model.graph.initializers["w"]
    other = ir.node("Conv", [model.graph.inputs[0], kernel], {"strides": [1, 2, 2]})
    model.graph.append(other)
    weights = {"w": kernel.const_value.numpy(), "b": model.graph.initializers["b"].const_value.numpy()}  # type: ignore[union-attr]
    narrow_convolution_to_frames(model, weights)
    assert list(weights) == ["w"]
    assert other.inputs[1] is model.graph.initializers["w"]


@pytest.mark.parametrize(
    "change",
    [
        {"made": 8},
        {"shape": "1,32,T,8,8", "made": 24},
        {"shape": "2,6,T,8,8"},
        {"shape": "1,12,T,8,8", "groups": 2},
        {"kernel": "1,3,3"},
        {"attributes": "pads = [1,1,1,1,1,1]"},
        {"attributes": 'auto_pad = "SAME_UPPER"'},
        {"attributes": "strides = [1,2,2]"},
        {"attributes": "dilations = [2,1,1]"},
    ],
)
def test_other_convolutions_stay(change: dict[str, object]) -> None:
    model = convolution(**change)  # type: ignore[arg-type]
    narrow_convolution_to_frames(model, {})
    assert operators(model) == ["Conv"]


def stored_kernel(integers: bool = False, zero: bool = False, axis: int = 0) -> ir.Model:
    """A convolution with a kernel in int8, of floats or of what was made of `integers`."""
    channels = 4 if axis == 0 else 6
    model = ir.from_onnx_text(
        f"""<ir_version: 11, opset_import: ["" : 23]>
        g ({"uint8" if integers else "float"}[1,6,8,8] x, int8[4,6,3,3] k, float[{channels}] s, int8[{channels}] z)
        => (float[1,4,6,6] y) <float half = {{0.5}}> {{
            w = DequantizeLinear <axis = {axis}> (k, s{", z" if zero else ""})
            {"f = DequantizeLinear (x, half)" if integers else ""}
            y = Conv ({"f" if integers else "x"}, w)
        }}"""
    )
    rng = np.random.default_rng(0)
    arrays = {
        "k": rng.integers(-127, 128, (4, 6, 3, 3)).astype(np.int8),
        "s": rng.uniform(0.01, 0.02, channels).astype(np.float32),
        "z": np.ones(channels, np.int8),
    }
    return with_constants(model, {name: arrays[name] for name in ("k", "s", "z")[: 2 + zero]})


def test_stored_kernels_of_float_convolutions_become_floats() -> None:
    model, elsewhere = stored_kernel(), stored_kernel()
    x = {"x": np.random.default_rng(1).normal(size=(1, 6, 8, 8)).astype(np.float32)}
    expected = run(model, x)
    stored_kernels_to_floats(model, {})
    assert operators(model) == ["Conv"]
    assert not {"k", "s"} & set(model.graph.initializers)
    assert np.abs(run(model, x) - expected).max() < 10 * TOLERANCE

    weights = {name: elsewhere.graph.initializers[name].const_value.numpy() for name in "ks"}  # type: ignore[union-attr]
    stored_kernels_to_floats(elsewhere, weights)
    assert not weights


@pytest.mark.parametrize("change", [{"integers": True}, {"zero": True}, {"axis": 1}])
def test_other_stored_kernels_stay(change: dict[str, int]) -> None:
    model = stored_kernel(**change)  # type: ignore[arg-type]
    before = operators(model)
    stored_kernels_to_floats(model, {})
    assert operators(model) == before


def quantised(last: str) -> ir.Model:
    """A product p of bytes [S, 4] · [4, 3], and what is made of it."""
    return ir.from_onnx_text(
        f"""<ir_version: 11, opset_import: ["" : 23, "com.microsoft" : 1]>
        g (float[1,S,4] x) => (float[1,S,3] y) <
            int8[4,3] w = {{127, -127, 5, -128, 127, 3, 127, 9, 1, 2, 127, -7}}, float[3] ws = {{0.5, 0.25, 1.0}},
            int8[3] wz = {{0, 0, 0}}, float s = {{0.03}}, uint8 z = {{120}}, float[3] bias = {{1, -2, 0.5}}
        > {{
            q = QuantizeLinear (x, s, z)
            back = DequantizeLinear (q, s, z)
            weight = DequantizeLinear <axis = 1> (w, ws, wz)
            p = MatMul (back, weight)
            {last}
        }}"""
    )


BIASED = "y = Add (p, bias)"


@pytest.mark.parametrize("exact", ["0", "1"])
def test_a_product_of_bytes_takes_its_bias(exact: str) -> None:
    """Also where products are told to be exact, as on processors without VNNI."""
    x = {"x": np.random.default_rng(1).normal(size=(1, 5, 4)).astype(np.float32)}
    model, expected = quantised(BIASED), run(quantised(BIASED), x)
    biased_products_to_one_operator(model, {})
    assert operators(model) == ["QuantizeLinear", "MatMulIntegerToFloat"]
    assert np.abs(session_of(model, exact).run(None, x)[0] - expected).max() < 100 * TOLERANCE


def test_a_product_that_others_read_keeps_its_bias_apart() -> None:
    model = quantised("r = Add (p, bias)\n y = Mul (p, r)")
    before = operators(model)
    biased_products_to_one_operator(model, {})
    assert operators(model) == before


def looked_up(last: str = "y = Add (scaled, shift)") -> ir.Model:
    """Scales and shifts of two timesteps, of which each token has one."""
    return ir.from_onnx_text(
        f"""<ir_version: 11, opset_import: ["" : 23]>
        g (float[2,S,3] x, float[1,S] given) => (float[2,S,3] y) <
            float[4,3] rows = {{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}}, int64 two = {{2}}, int64 one = {{1}}
        > {{
            which = Cast <to = 7> (given)
            first = Mul (which, two)
            second = Add (first, one)
            scale = Gather (rows, first)
            shift = Gather (rows, second)
            scaled = Mul (x, scale)
            {last}
        }}"""
    )


def named(model: ir.Model) -> ir.Model:
    """With the shapes that an exporter writes."""
    shapes = {"which": (1, "S"), "first": (1, "S"), "second": (1, "S"), "scale": (1, "S", 3), "shift": (1, "S", 3)}
    for node in model.graph:
        for value in node.outputs:
            if value.name in shapes:
                value.shape = ir.Shape(shapes[value.name])
            elif value.name == "scaled":
                value.shape = ir.Shape((2, "S", 3))
    return model


@pytest.mark.parametrize("given", [[0, 0, 0], [1, 1, 1], [0, 1, 1]])
def test_tokens_of_one_timestep_share_a_row(given: list[int]) -> None:
    x = np.random.default_rng(3).normal(size=(2, 3, 3)).astype(np.float32)
    inputs = {"x": x, "given": np.asarray([given], np.float32)}
    model, expected = named(looked_up()), run(looked_up(), inputs)
    rows_of_tokens_to_one(model, {})
    assert "Slice" in operators(model)
    assert np.array_equal(run(model, inputs), expected)


def test_rows_that_a_graph_is_told_to_look_up_stay() -> None:
    text = """<ir_version: 11, opset_import: ["" : 23]>
    g (float[2,S,3] x, int64[1,S] which) => (float[2,S,3] y) <
        float[4,3] rows = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, int64 one = {1}
    > {
        second = Add (which, one)
        scale = Gather (rows, second)
        y = Mul (x, scale)
    }"""
    model = named(ir.from_onnx_text(text))
    rows_of_tokens_to_one(model, {})
    assert operators(model) == ["Add", "Gather", "Mul"]


def test_rows_for_nobody_knows_how_many_tokens_stay() -> None:
    model = named(looked_up())
    for node in model.graph:
        for value in node.outputs:
            if value.name in ("scale", "shift", "scaled"):
                value.shape = ir.Shape((value.shape[0], None, 3))  # type: ignore[index]
    model.graph.inputs[0].shape = ir.Shape((2, None, 3))
    rows_of_tokens_to_one(model, {})
    assert "Slice" not in operators(model)


@pytest.mark.parametrize(
    "last", ["y = Concat <axis = 1> (scaled, shift)", "both = Mul (scale, shift)\n y = Add (x, both)"]
)
def test_rows_that_are_not_spread_over_tokens_stay(last: str) -> None:
    model = named(looked_up(last))
    rows_of_tokens_to_one(model, {})
    assert "Slice" not in operators(model)


def test_int8_tables_become_float_ones() -> None:
    text = """<ir_version: 11, opset_import: ["" : 23]>
    g (int64[3] ids) => (float[3,2] y)
    <int8[4,2] table = {1, 2, 3, 4, 5, 6, 7, 8}, float[4] scales = {0.5, 1.0, 2.0, 4.0}, int64[1] last = {-1}> {
        rows = Gather (table, ids)
        found = Gather (scales, ids)
        column = Unsqueeze (found, last)
        floats = Cast <to = 1> (rows)
        y = Mul (floats, column)
    }"""
    model = ir.from_onnx_text(text)
    ids = {"ids": np.array([3, 0, 2])}
    expected = run(model, ids)  # type: ignore[arg-type]
    dequantise_tables(model, {})
    assert np.array_equal(run(model, ids), expected)  # type: ignore[arg-type]
    assert "DequantizeLinear" in operators(model) and "Mul" not in operators(model)


def test_int8_weights_without_a_zero_point_compute_exactly() -> None:
    """On every processor, where products are told to be exact: see `zero_points_for_weights`."""
    model = ir.from_onnx_text(
        """<ir_version: 11, opset_import: ["" : 23]>
        g (float[2,4] x) => (float[2,3] y) <
            int8[4,3] w = {127, -127, 5, -128, 127, 3, 127, 9, 1, 2, 127, -7}, float[3] scale = {0.5, 0.25, 1.0}
        > {
            weight = DequantizeLinear <axis = 1> (w, scale)
            y = MatMul (x, weight)
        }"""
    )
    x = np.array([[1, 2, 3, 4], [-4, 0, 2, 1]], np.float32)
    weight = model.graph.initializers["w"].const_value.numpy().astype(np.float32) * [0.5, 0.25, 1.0]
    zero_points_for_weights(model, {})
    assert np.allclose(session_of(model, "1").run(None, {"x": x})[0], x @ weight)


@pytest.mark.parametrize(
    ("machine", "flags", "exactly"),
    [
        ("x86_64", "flags : fpu avx2 avx512f", False),
        ("x86_64", "flags : fpu avx2 avx_vnni", True),
        ("AMD64", "flags : avx512_vnni", True),
        ("x86_64", None, False),
        ("aarch64", None, True),
    ],
)
def test_which_processors_have_to_be_told_to_be_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: str, flags: str | None, exactly: bool
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    file = tmp_path / f"{machine}-{exactly}"
    if flags is not None:
        file.write_text(f"processor : 0\n{flags}\n")
    assert adds_bytes_exactly(str(file)) is exactly


def test_attention_of_a_quantised_graph_is_done_in_16_bits() -> None:
    model = ir.from_onnx_text(
        """<ir_version: 11, opset_import: ["" : 23]>
        g (float[2,5,16] q, float[2,7,16] k, float[2,7,16] v) => (float[2,5,16] y) {
            x = Attention <q_num_heads = 2, kv_num_heads = 2> (q, k, v)
            y = Relu (x)
        }"""
    )
    for value in (node.outputs[0] for node in model.graph):
        value.dtype, value.shape = ir.DataType.FLOAT, ir.Shape((2, 5, 16))
    rng = np.random.default_rng(0)
    inputs = {name: rng.normal(size=(2, n, 16)).astype(np.float32) for name, n in (("q", 5), ("k", 7), ("v", 7))}
    expected = run(model, inputs)
    attention_to_16_bits(model, {})
    assert operators(model) == ["Cast", "Cast", "Cast", "Attention", "Cast", "Relu"]
    assert model.graph[3].outputs[0].dtype == ir.DataType.BFLOAT16
    for node in model.graph:  # float16 stands in for bfloat16, which the CPU has no attention for
        if node.op_type == "Cast" and node.attributes["to"].as_int() == ir.DataType.BFLOAT16:
            node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT16)
    model.graph[3].outputs[0].dtype = ir.DataType.FLOAT16
    assert np.abs(run(model, inputs) - expected).max() < 3e-3
    unchanged = attention("", "")  # its output is the graph's
    attention_to_16_bits(unchanged, {})
    assert operators(unchanged) == ["Attention"]
