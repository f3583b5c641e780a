"""Blocks and rows: what each number becomes, in numpy and in ONNX's own operators, and what degenerate ones become."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from kinograph.calibration.block_numerics import (
    BlockWeight,
    Microscaled,
    Rows,
    int4_scales,
    int4_values,
    microscaled,
    microscaled_weight,
    nvfp4,
    nvfp4_weight,
    rows,
)
from kinograph.calibration.formats import written_activation
from kinograph.calibration.numerics import Form, signal_to_noise
from kinograph.engines.rewrites.blocks import blocks_to_float32
from kinograph.errors import NumericError

SIZES = {"mxfp8": 32, "nvfp4": 16}


def form_of(name: str, x: np.ndarray) -> Form:
    make = {"mxfp8": microscaled, "nvfp4": nvfp4, "rows": rows}[name]
    return make(float(x.min(initial=0)), float(x.max(initial=0)))


def some(shape: tuple[int, ...], seed: int, spread: float) -> np.ndarray:
    """Normal numbers, whose rows differ in size by up to ±`spread` orders of magnitude; the first is zeros."""
    random = np.random.default_rng(seed)
    x = random.normal(size=shape) * 10 ** random.uniform(-spread, spread, (*shape[:-1], 1))
    x.reshape(-1, shape[-1])[0] = 0
    return x.astype(np.float32)


def written(x: np.ndarray, form: Form) -> np.ndarray:
    """What the graph that the format is written as makes of `x` on the CPU."""
    axes = [f"a{i}" for i in range(x.ndim)]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"], name="product")],
        "there_and_back",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, axes)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, axes)],
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))
    product = model.graph.node(0)
    new = written_activation(model, "x", model.graph.inputs[0], form)
    nodes, value = list(new.nodes), new.value
    if new.rows is not None:
        floats = ir.node("DequantizeLinear", [value, *nodes[-1].inputs[1:]])
        nodes += [floats, ir.node("Mul", [floats.outputs[0], new.rows])]
        value = nodes[-1].outputs[0]
    model.graph.insert_before(product, nodes)
    product.replace_input_with(0, value)
    onnx.checker.check_model(ir.to_proto(model))
    blocks_to_float32(model, {})
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


@settings(deadline=None, max_examples=40)
@given(
    name=st.sampled_from(["mxfp8", "nvfp4", "rows"]),
    shape=st.lists(st.integers(1, 4), min_size=0, max_size=3),
    blocks=st.integers(1, 5),
    seed=st.integers(0, 999),
    spread=st.floats(0, 6),
)
def test_what_is_written_is_what_numpy_says(name: str, shape: list[int], blocks: int, seed: int, spread: float) -> None:
    x = some((2, *shape, 32 * blocks), seed, spread)
    form = form_of(name, x)
    wanted = form.there_and_back(x)
    assert np.isfinite(wanted).all() and not wanted.reshape(-1, x.shape[-1])[0].any()
    assert np.abs(written(x, form) - wanted).max() <= 1e-5 * np.abs(x).max()


@pytest.mark.parametrize(("name", "share"), [("mxfp8", 1 / 16), ("nvfp4", 1 / 4)])
def test_no_number_is_further_off_than_its_block_allows(name: str, share: float) -> None:
    """By half a step near the top of a block: 1/16 of it in E4M3, 1/4 in E2M1, its scale's rounding included."""
    x = some((50, 64), 1, 2)
    blocks = np.abs(x.reshape(-1, SIZES[name]))
    off = np.abs(form_of(name, x).there_and_back(x) - x).reshape(blocks.shape)
    smallest = np.abs(x).max() / (6 * 448) * 2**-9  # the least of the scales that NVFP4 has
    assert (off <= share * blocks.max(axis=1, keepdims=True) + 6 * smallest).all()


def test_exponents_are_rounded_up_so_that_nothing_is_clipped() -> None:
    for largest in (448.0, 448.0001, 500.0, 896.0, 897.0, 2.0**-20, 447.9 * 2.0**40):
        x = np.zeros((1, 32), np.float32)
        x[0, 5] = largest
        back = Microscaled().there_and_back(x)
        assert np.abs(back[0, 5] / np.float32(largest) - 1) <= 1 / 16
        assert np.array_equal(written(x, Microscaled()), back)


def test_an_outlier_costs_only_its_block() -> None:
    x = np.random.default_rng(0).normal(size=(2, 64)).astype(np.float32)
    spoilt = x.copy()
    spoilt[0, 3] = 1e4
    for name in SIZES:
        plain, form = Microscaled() if name == "mxfp8" else nvfp4(-1e4, 1e4), form_of(name, spoilt)
        one, other = plain.there_and_back(x), form.there_and_back(spoilt)
        assert np.array_equal(one[:, SIZES[name] :], other[:, SIZES[name] :])
    assert np.array_equal(Rows().there_and_back(x)[1], Rows().there_and_back(spoilt)[1])


@settings(deadline=None, max_examples=30)
@given(blocks=st.integers(1, 4), columns=st.integers(1, 9), seed=st.integers(0, 99), spread=st.floats(0, 3))
def test_weights_in_blocks(blocks: int, columns: int, seed: int, spread: float) -> None:
    weight = np.ascontiguousarray(some((columns, 32 * blocks), seed, spread).T)
    for made, size in (
        (microscaled_weight(weight), 32),
        (nvfp4_weight(weight), 16),
        (nvfp4_weight(weight, search=False), 16),
    ):
        assert isinstance(made, BlockWeight)
        assert made.values.shape == weight.shape and made.scale.shape == (len(weight) // size, columns)
        assert np.isfinite(made.floats).all() and not made.floats[:, 0].any()
    activation = Microscaled().there_and_back(weight.T).T  # a weight and an activation follow one rule
    assert np.array_equal(microscaled_weight(weight).floats, activation)


def test_the_search_only_gains() -> None:
    weight = np.random.default_rng(3).normal(size=(256, 64)).astype(np.float32)
    plain, searched = (nvfp4_weight(weight, search=search).floats for search in (False, True))
    assert signal_to_noise(weight, searched) > signal_to_noise(weight, plain) + 0.3
    assert signal_to_noise(weight, plain) > 19


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    weight = np.zeros((32, 2), np.float32)
    weight[3, 1] = bad
    for make in (microscaled_weight, nvfp4_weight):
        with pytest.raises(NumericError, match="NaN or infinity"):
            make(weight)
    for form in (microscaled, nvfp4, rows):
        with pytest.raises(NumericError, match="cannot be quantised"):
            form(0.0, bad)


def test_nothing_but_zeros_stays_so() -> None:
    zeros = np.zeros((32, 2), np.float32)
    for made in (microscaled_weight(zeros), nvfp4_weight(zeros)):
        assert not made.floats.any()
    for name in ("mxfp8", "nvfp4", "rows"):
        form = form_of(name, zeros)
        assert not form.there_and_back(zeros.T.copy()).any() and not written(zeros.T.copy(), form).any()


def test_e2m1_rounds_ties_to_even() -> None:
    ties = np.zeros((1, 16), np.float32)
    ties[0, :8] = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0]
    form = nvfp4(0.0, 6.0 * 448)  # so that the scale of scales is 1
    assert form.there_and_back(ties)[0, :8].tolist() == [0, 1, 1, 2, 2, 4, 4, 6]
    assert np.array_equal(written(ties, form), form.there_and_back(ties))
    assert np.array_equal(form.there_and_back(ties), ties.astype(ml_dtypes.float4_e2m1fn).astype(np.float32))


@given(
    blocks=st.integers(1, 5), size=st.sampled_from([2, 16, 32, 64]), columns=st.integers(1, 9), seed=st.integers(0, 99)
)
def test_int4_blocks_are_no_further_off_than_half_a_step(blocks: int, size: int, columns: int, seed: int) -> None:
    weight = np.random.default_rng(seed).normal(size=(blocks * size, columns)).astype(np.float32)
    errors = []
    for search in (False, True):
        scales = int4_scales(weight, size, search=search)
        values = int4_values(weight, scales)
        assert scales.shape == (blocks, columns) and (scales > 0).all()
        assert values.min() >= -8 and values.max() <= 7
        errors.append(
            np.square(weight - values * np.repeat(scales, size, axis=0)).reshape(blocks, size, -1).sum(axis=1)
        )
    plain, searched = errors
    assert (searched <= plain + 1e-6).all()
    steps = np.repeat(int4_scales(weight, size, search=False), size, axis=0)
    assert (np.abs(weight - int4_values(weight, steps[::size]) * steps) <= steps / 2 + 1e-6).all()


def test_int4_blocks_of_zeros_and_outliers() -> None:
    weight = np.zeros((64, 2), np.float32)
    weight[40, 1] = 1e6
    scales = int4_scales(weight, 32)
    back = int4_values(weight, scales) * np.repeat(scales, 32, axis=0)
    assert np.array_equal(np.flatnonzero(back), np.flatnonzero(weight)) and back[40, 1] == pytest.approx(1e6)
    weight[0, 0] = np.nan
    with pytest.raises(NumericError, match="NaN or infinity"):
        int4_scales(weight, 32)
